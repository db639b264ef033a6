"""``Metric``: how well a model does, computed from sums over examples, so that parts merge exactly.

A metric says which sums it needs of a batch (its sufficient statistics) and what value follows from them. The
sums of chunks, workers and clients are added, and the value of the total is that of all examples together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

#: The sums of a metric, float64 (S,): counts below 2**53 are exact.
Statistics = NDArray[np.float64]


class Metric(ABC):
    """One measure of how well a model does.

    What is compared are predictions and truth, as `fedprune.tasks.Task.compared` returns them.
    """

    #: Its column in results, such as "accuracy".
    name: str
    #: Whether it has one value; else it has `details` alone.
    has_value: ClassVar[bool] = True
    #: Whether a model is better with a higher value; None where neither is better.
    higher_is_better: bool | None = True

    @abstractmethod
    def statistics(self, predictions: Tensor, truth: Tensor) -> Tensor:
        """Return what is to be summed over batches, (S,), of any dtype, with the same S for every batch."""

    def fault(self, statistics: Statistics, examples: int) -> str | None:
        """Return what is wrong with a client's statistics of so many examples; None where nothing is.

        They come from outside. By default nothing is known of them.
        """
        return None

    def details(self, statistics: Statistics) -> Any:
        """Return what else is known, such as a value for each class, as JSON can hold it; None: nothing."""
        return None

    @abstractmethod
    def value(self, statistics: Statistics) -> float:
        """Return the metric of all examples whose statistics were summed; NaN where it is not defined."""


class Accuracy(Metric):
    """The share of right answers: the largest of each row of (N, K) logits is the label, int64 (N,).

    Parameters
    ----------
    one_each
        Whether each example has one answer: a client's statistics are checked by it.
    """

    name = "accuracy"

    def __init__(self, *, one_each: bool = True) -> None:
        self.one_each = one_each

    def statistics(self, predictions: Tensor, truth: Tensor) -> Tensor:
        """Return how many answers are right, and how many there are."""
        correct = (predictions.argmax(dim=1) == truth).sum()
        return torch.stack([correct, correct.new_tensor(len(truth))])

    def fault(self, statistics: Statistics, examples: int) -> str | None:
        """Refuse more right answers than there are."""
        right = statistics.shape == (2,) and 0 <= statistics[0] <= statistics[1]
        if right and (statistics[1] == examples or not self.one_each):
            return None
        return f"expected right answers, from 0 to {examples}, and {examples}"

    def value(self, statistics: Statistics) -> float:
        """Return their ratio."""
        return ratio(*statistics)


class TopK(Metric):
    """The share of labels, int64 (N,), that are among the k largest of each row of (N, K) logits."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.name = f"top{k}_accuracy"

    def statistics(self, predictions: Tensor, truth: Tensor) -> Tensor:
        """Return how many labels are among them, and how many there are."""
        best = predictions.topk(min(self.k, predictions.shape[1]), dim=1).indices
        correct = (best == truth[:, None]).any(dim=1).sum()
        return torch.stack([correct, correct.new_tensor(len(truth))])

    def value(self, statistics: Statistics) -> float:
        """Return their ratio."""
        return ratio(*statistics)


class CalibrationError(Metric):
    """Expected calibration error of (N, K) logits and labels (N,) (Guo et al., ICML 2017), in 15 bins."""

    name = "ece"
    higher_is_better = False
    bins: ClassVar[int] = 15

    def statistics(self, predictions: Tensor, truth: Tensor) -> Tensor:
        """Return, by bin of confidence, examples, their confidences and right answers: (3 * bins,)."""
        confidence, answer = predictions.double().softmax(dim=1).max(dim=1)
        place = (confidence * self.bins).ceil().long().sub(1).clamp(0, self.bins - 1)
        sums = confidence.new_zeros((3, self.bins))
        for row, values in zip(sums, (torch.ones_like(confidence), confidence, answer == truth), strict=True):
            row.index_add_(0, place, values.double())
        return sums.flatten()

    def value(self, statistics: Statistics) -> float:
        """Return the mean over examples of how far their bin's confidence is from its accuracy."""
        examples, confidence, right = statistics.reshape(3, self.bins)
        return ratio(float(np.abs(confidence - right).sum()), float(examples.sum()))


class Perplexity(Metric):
    """The exponential of the mean cross entropy of (N, K) logits and targets (N,)."""

    name = "perplexity"
    higher_is_better = False

    def statistics(self, predictions: Tensor, truth: Tensor) -> Tensor:
        """Return the sum of cross entropies, in nats, and how many there are."""
        total = functional.cross_entropy(predictions.double(), truth, reduction="sum")
        return torch.stack([total, total.new_tensor(len(truth))])

    def value(self, statistics: Statistics) -> float:
        """Return the exponential of their ratio."""
        return float(np.exp(ratio(*statistics)))


class MeanAbsoluteError(Metric):
    """The mean distance of predictions (N, D) from the truth (N, D)."""

    name = "mae"
    higher_is_better = False

    def statistics(self, predictions: Tensor, truth: Tensor) -> Tensor:
        """Return the sum of distances, and how many there are."""
        total = (predictions.double() - truth).abs().sum()
        return torch.stack([total, total.new_tensor(truth.numel())])

    def value(self, statistics: Statistics) -> float:
        """Return their ratio."""
        return ratio(*statistics)


class R2(Metric):
    """The coefficient of determination of predictions (N, D) of the truth (N, D), mean over the D values."""

    name = "r2"

    def __init__(self, values: int) -> None:
        self.values = values

    def statistics(self, predictions: Tensor, truth: Tensor) -> Tensor:
        """Return how many there are and, by value, the sums of truth, of its square, of squared errors."""
        truth, predictions = truth.double(), predictions.double()
        sums = [truth.sum(dim=0), truth.square().sum(dim=0), (truth - predictions).square().sum(dim=0)]
        return torch.cat([truth.new_tensor([len(truth)]), *sums])

    def details(self, statistics: Statistics) -> list[float | None]:
        """Return that of each value."""
        return known(self._each(statistics))

    def value(self, statistics: Statistics) -> float:
        """Return the mean over the values."""
        return mean_of_known(self._each(statistics))

    def _each(self, statistics: Statistics) -> NDArray[np.float64]:
        count, (total, squares, errors) = statistics[0], statistics[1:].reshape(3, self.values)
        return 1 - ratios(errors, squares - total**2 / max(count, 1))


class LabelF1(Metric):
    """F1 of all labels together: a logit (N, K) above 0 says that the label applies; 0 or 1 (N, K)."""

    name = "micro_f1"

    def statistics(self, predictions: Tensor, truth: Tensor) -> Tensor:
        """Return how many labels were rightly found, found, and there."""
        found, there = predictions > 0, truth > 0.5
        return torch.stack([(found & there).sum(), found.sum(), there.sum()])

    def value(self, statistics: Statistics) -> float:
        """Return the harmonic mean of precision and recall."""
        right, found, there = statistics
        return ratio(2 * right, found + there)


class MeanIoU(Metric):
    """The mean over classes of intersection over union, of (N, K) logits and classes (N,).

    A class that is neither predicted nor there does not count.
    """

    name = "mean_iou"

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def statistics(self, predictions: Tensor, truth: Tensor) -> Tensor:
        """Return, by class, how often it was rightly predicted, predicted, and there: (3 * K,)."""
        found = predictions.argmax(dim=1)
        counts = [
            torch.bincount(each, minlength=self.classes) for each in (found[found == truth], found, truth)
        ]
        return torch.cat(counts)

    def value(self, statistics: Statistics) -> float:
        """Return the mean over classes."""
        return mean_of_known(self.by_class(statistics))

    def details(self, statistics: Statistics) -> list[float | None]:
        """Return the value of each class; None for one that is neither predicted nor there."""
        return known(self.by_class(statistics))

    def by_class(self, statistics: Statistics) -> NDArray[np.float64]:
        """Return the value of each class; NaN for one that is neither predicted nor there."""
        right, found, there = statistics.reshape(3, self.classes)
        union = found + there - right
        return ratios(right, union)


class ConfusionMatrix(Metric):
    """How often each class, (N,), was taken for each, the largest of a row of (N, K) logits."""

    name = "confusion_matrix"
    has_value = False
    higher_is_better: bool | None = None

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def statistics(self, predictions: Tensor, truth: Tensor) -> Tensor:
        """Return the matrix, (K * K,): a row a true class, a column a predicted one."""
        return torch.bincount(truth * self.classes + predictions.argmax(dim=1), minlength=self.classes**2)

    def details(self, statistics: Statistics) -> list[dict[str, int]]:
        """Return for each true class how often it was taken for which, by class number, but for never.

        Of a thousand classes most pairs never occur.
        """
        rows = statistics.reshape(self.classes, self.classes)
        return [{str(taken): int(row[taken]) for taken in np.flatnonzero(row)} for row in rows]

    def value(self, statistics: Statistics) -> float:
        """Return NaN: it has no one value."""
        return float("nan")


class BalancedAccuracy(ConfusionMatrix):
    """The mean over the classes that are there of the share that is recognised."""

    name = "balanced_accuracy"
    has_value = True
    higher_is_better = True

    def statistics(self, predictions: Tensor, truth: Tensor) -> Tensor:
        """Return, by class, how often it was recognised, and there: (2 * K,)."""
        right = truth[predictions.argmax(dim=1) == truth]
        return torch.cat([torch.bincount(each, minlength=self.classes) for each in (right, truth)])

    def details(self, statistics: Statistics) -> Any:
        """Return the recognised share of each class; None for one that is not there."""
        return known(self._by_class(statistics))

    def value(self, statistics: Statistics) -> float:
        """Return the mean over the classes that are there."""
        return mean_of_known(self._by_class(statistics))

    def _by_class(self, statistics: Statistics) -> NDArray[np.float64]:
        right, there = statistics.reshape(2, self.classes)
        return ratios(right, there)


def ratios(parts: Statistics, wholes: Statistics) -> NDArray[np.float64]:
    """Return parts of wholes, one by one; NaN where there is no whole."""
    found = np.full(len(parts), np.nan)
    np.divide(parts, wholes, out=found, where=wholes > 0)
    return found


def mean_of_known(values: NDArray[np.float64]) -> float:
    """Return the mean of the values that are finite; NaN where none is."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def known(values: NDArray[np.float64]) -> list[float | None]:
    """Return values as JSON can hold them: None for one that is not finite."""
    return [value if np.isfinite(value) else None for value in values.tolist()]


def ratio(part: float, whole: float) -> float:
    """Return a part of a whole; NaN where there is no whole."""
    return float(part / whole) if whole else float("nan")


def columns(metrics: Sequence[Metric]) -> list[str]:
    """Return the names of the metrics that have one value, which are columns of results."""
    return [metric.name for metric in metrics if metric.has_value]


def values_of(metrics: Sequence[Metric], statistics: Mapping[str, Statistics]) -> dict[str, float | None]:
    """Return the value of each metric by its name; None where it is not defined."""
    found = {metric.name: metric.value(statistics[metric.name]) for metric in metrics if metric.has_value}
    return {name: value if np.isfinite(value) else None for name, value in found.items()}
