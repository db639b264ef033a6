"""``Metric``: how well a model does, computed from sums over examples, so that parts merge exactly.

A metric says which sums it needs of a batch (its sufficient statistics) and what value follows from them. The
sums of chunks, workers and clients are added, and the value of the total is that of all examples together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: The sums of a metric, float64 (S,): counts below 2**53 are exact.
Statistics = NDArray[np.float64]


class Metric(ABC):
    """One measure of how well a model does.

    What is compared are predictions and truth, as `fedprune.tasks.Task.compared` returns them.
    """

    #: Its column in results, such as "accuracy".
    name: str
    #: Whether a model is better with a higher value; None where neither is better.
    higher_is_better: ClassVar[bool | None] = True

    @abstractmethod
    def statistics(self, predictions: Tensor, truth: Tensor) -> Tensor:
        """Return what is to be summed over batches, (S,), of any dtype, with the same S for every batch."""

    def fault(self, statistics: Statistics, examples: int) -> str | None:
        """Return what is wrong with a client's statistics of so many examples; None where nothing is.

        They come from outside. By default nothing is known of them.
        """
        return None

    @abstractmethod
    def value(self, statistics: Statistics) -> float:
        """Return the metric of all examples whose statistics were summed; NaN where it is not defined."""


class Accuracy(Metric):
    """The share of right answers: the largest of each row of (N, K) logits is the label, int64 (N,)."""

    name = "accuracy"

    def statistics(self, predictions: Tensor, truth: Tensor) -> Tensor:
        """Return how many answers are right, and how many there are."""
        correct = (predictions.argmax(dim=1) == truth).sum()
        return torch.stack([correct, correct.new_tensor(len(truth))])

    def fault(self, statistics: Statistics, examples: int) -> str | None:
        """Refuse more right answers than there are examples."""
        right = statistics.shape == (2,) and 0 <= statistics[0] <= statistics[1] == examples
        return None if right else f"expected right answers, from 0 to {examples}, and {examples}"

    def value(self, statistics: Statistics) -> float:
        """Return their ratio."""
        return ratio(*statistics)


def ratio(part: float, whole: float) -> float:
    """Return a part of a whole; NaN where there is no whole."""
    return float(part / whole) if whole else float("nan")


def values_of(metrics: Sequence[Metric], statistics: Mapping[str, Statistics]) -> dict[str, float | None]:
    """Return the value of each metric by its name; None where it is not defined."""
    found = {metric.name: metric.value(statistics[metric.name]) for metric in metrics}
    return {name: value if np.isfinite(value) else None for name, value in found.items()}
