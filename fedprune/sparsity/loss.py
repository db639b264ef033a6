"""``Loss``: what criteria and growth ask of a task; which task it is, they do not know."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor
from torch.nn import functional


class Loss(Protocol):
    """The loss of a batch, as `fedprune.tasks.Task.loss` returns it."""

    def __call__(
        self, outputs: Tensor, targets: Tensor, inputs: Tensor, reduction: Literal["mean", "sum"], /
    ) -> Tensor:
        """Return the mean or the sum of the examples' losses, a scalar."""


def cross_entropy(
    outputs: Tensor, targets: Tensor, inputs: Tensor, reduction: Literal["mean", "sum"], /
) -> Tensor:
    """Return the cross entropy of logits (B, K) and labels, int64 (B,): the loss where no task is given."""
    return functional.cross_entropy(outputs, targets, reduction=reduction)
