"""``Loss``: what criteria and growth ask of a task; which task it is, they do not know."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

from fedprune.errors import UserError


class Loss(Protocol):
    """The loss of a batch, as `fedprune.tasks.Task.loss` returns it."""

    def __call__(
        self, outputs: Tensor, targets: Tensor, inputs: Tensor, reduction: Literal["mean", "sum"], /
    ) -> Tensor:
        """Return the mean or the sum of the examples' losses, a scalar."""


def not_said(
    outputs: Tensor, targets: Tensor, inputs: Tensor, reduction: Literal["mean", "sum"], /
) -> Tensor:
    """Raise a ``UserError``: the loss where none is given, for criteria that look at no data."""
    raise UserError("the criterion needs a loss: pass that of a task, loss=task.loss")
