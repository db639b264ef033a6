"""Metrics of torchmetrics whose states are sums, so that they merge exactly, as `Metric` wants it.

Areas under curves are taken at fixed thresholds: torchmetrics would keep every prediction for exact ones.
What is measured by default is in `fedprune.tasks.metrics`, and needs no torchmetrics: its import takes
seconds, and a device that does not evaluate by it does without. The extra ``fedprune[metrics]`` brings it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fedprune.errors import UserError
from fedprune.tasks.metrics import Metric, Statistics, known, mean_of_known

if TYPE_CHECKING:
    import torchmetrics

#: Thresholds at which curves are taken.
THRESHOLDS = 500
_NEEDED = 'metric {!r} needs torchmetrics, which is not installed: pip install "fedprune[metrics]"'


class LibraryMetric(Metric):
    """A metric that torchmetrics computes.

    Parameters
    ----------
    name
        Its column in results.
    metric
        That of torchmetrics; of several values it gives, such as one for each class, the mean counts.
    higher_is_better
        Which way is better.

    Raises
    ------
    UserError
        For a metric that keeps every prediction.
    """

    def __init__(
        self, name: str, metric: torchmetrics.Metric, *, higher_is_better: bool | None = True
    ) -> None:
        self.name = name
        self.higher_is_better = higher_is_better
        self._metric = metric
        self._states: dict[str, Tensor] = dict(metric._defaults)  # type: ignore[arg-type]
        reductions = [getattr(reduction, "__name__", "") for reduction in metric._reductions.values()]
        if set(reductions) != {"dim_zero_sum"}:
            raise UserError(f"metric {name!r} is no sum over examples, and cannot be merged: take another")

    def statistics(self, predictions: Tensor, truth: Tensor) -> Tensor:
        """Return the states of torchmetrics after these examples, one after the other."""
        metric = self._metric.to(predictions.device)
        metric.reset()
        with _counting():
            metric.update(predictions, truth)
        return torch.cat([getattr(metric, key).double().flatten() for key in self._states])

    def value(self, statistics: Statistics) -> float:
        """Return the one value, or the mean of those that are defined."""
        return mean_of_known(np.atleast_1d(self._computed(statistics)))

    def details(self, statistics: Statistics) -> Any:
        """Return the values, where there are several."""
        found = self._computed(statistics)
        return known(found) if found.ndim else None

    def _computed(self, statistics: Statistics) -> Any:
        metric = self._metric.cpu()
        metric.reset()
        sizes = [default.numel() for default in self._states.values()]
        parts = torch.from_numpy(np.asarray(statistics, dtype=np.float64)).split(sizes)  # type: ignore[no-untyped-call]
        for (key, default), part in zip(self._states.items(), parts, strict=True):
            exact = torch.float64 if default.is_floating_point() else default.dtype
            setattr(metric, key, part.reshape(default.shape).to(exact))
        metric._update_count = 1  # Or it would warn that nothing was measured.
        return metric.compute().double().numpy()


@contextmanager
def _counting() -> Iterator[None]:
    """Let torchmetrics count as PyTorch does by default.

    Where deterministic algorithms are asked for it compares every score with every bin, in gigabytes. Counts
    are the same in any order.
    """
    asked = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("default")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(asked)


class F1(LibraryMetric):
    """F1, mean over classes or labels; one that is neither predicted nor there does not count."""

    def _computed(self, statistics: Statistics) -> Any:
        found = super()._computed(statistics)
        right, wrong, _, missed = statistics.reshape(4, -1)
        return np.where(right + wrong + missed > 0, found, np.nan)


class Area(LibraryMetric):
    """The mean over classes of an area under a curve; a class that all or none are of does not count.

    Its one state counts (threshold, class, truth, prediction).
    """

    def statistics(self, predictions: Tensor, truth: Tensor) -> Tensor:
        """Return the states; torchmetrics wants whole numbers as truth."""
        return super().statistics(predictions, truth.long())

    def _computed(self, statistics: Statistics) -> Any:
        found = super()._computed(statistics)
        others, own = statistics.reshape(THRESHOLDS, -1, 2, 2)[0].sum(axis=-1).T
        return np.where((others > 0) & (own > 0), found, np.nan)


def of_classes(name: str, classes: int) -> Metric:
    """Return a metric of logits (N, K) and classes (N,)."""
    found = _classification(name)
    if name == "macro_f1":
        return F1(name, found.MulticlassF1Score(classes, average=None))
    kind = {"auroc": found.MulticlassAUROC, "average_precision": found.MulticlassAveragePrecision}[name]
    return Area(name, kind(classes, average=None, thresholds=THRESHOLDS))


def of_labels(name: str, labels: int) -> Metric:
    """Return a metric of logits (N, K) and labels that apply or not (N, K)."""
    found = _classification(name)
    if name == "macro_f1":
        return F1(name, found.MultilabelF1Score(labels, average=None))
    kind = {"auroc": found.MultilabelAUROC, "average_precision": found.MultilabelAveragePrecision}[name]
    return Area(name, kind(labels, average=None, thresholds=THRESHOLDS))


def root_mean_squared_error() -> Metric:
    """Return the root of the mean squared error, of predictions and truth, both float (N, D)."""
    try:
        from torchmetrics import regression
    except ImportError as error:
        raise UserError(_NEEDED.format("rmse")) from error
    metric = regression.MeanSquaredError(squared=False)
    return LibraryMetric("rmse", metric, higher_is_better=False)


def _classification(name: str) -> Any:
    try:
        from torchmetrics import classification
    except ImportError as error:
        raise UserError(_NEEDED.format(name)) from error
    return classification
