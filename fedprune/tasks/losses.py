"""Losses in the place of a task's own: functions of outputs and targets to the loss of each example."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def focal(outputs: Tensor, targets: Tensor) -> Tensor:
    """Focal loss of logits (B, K) and labels (B,), with gamma 2 (Lin et al., ICCV 2017, equation 4)."""
    losses = functional.cross_entropy(outputs, targets, reduction="none")
    return (1 - (-losses).exp()) ** 2 * losses


def mae(outputs: Tensor, targets: Tensor) -> Tensor:
    """Absolute error of outputs and targets, both (B, ...), mean over the values of an example."""
    return functional.l1_loss(outputs, targets, reduction="none").flatten(1).mean(dim=1)


def huber(outputs: Tensor, targets: Tensor) -> Tensor:
    """Huber's loss of outputs and targets, both (B, ...): squared up to an error of 1, absolute above it."""
    return functional.huber_loss(outputs, targets, reduction="none").flatten(1).mean(dim=1)
