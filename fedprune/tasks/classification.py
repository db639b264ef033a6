"""Classification: one label for each example."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from fedprune.data.dataset import DataInfo
from fedprune.data.inputs import Numbers
from fedprune.tasks.base import Reduction, Task
from fedprune.tasks.metrics import Accuracy, Metric


class Classification(Task):
    """One class for each example: cross entropy of logits (B, K) and labels, int64 (B,)."""

    def losses(self, outputs: Tensor, targets: Tensor, inputs: Tensor) -> Tensor:
        """Return each example's cross entropy in nats."""
        return functional.cross_entropy(outputs, targets, reduction="none")

    def loss(self, outputs: Tensor, targets: Tensor, inputs: Tensor, reduction: Reduction = "mean") -> Tensor:
        """Return the mean or sum of ``losses``, by PyTorch's one operation for both."""
        return functional.cross_entropy(outputs, targets, reduction=reduction)

    def headline(self) -> Metric:
        """Return the share of right answers."""
        return Accuracy()


def classification_of(shape: Sequence[int]) -> Classification:
    """Return classification of inputs of a shape, such as (C, H, W), into classes that are not known."""
    return Classification(DataInfo("", Numbers(tuple(shape))))
