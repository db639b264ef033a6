"""``Task``: what a federation learns, which is all that the rest needs to know of it.

A task says what a batch is made of, what the loss of an example is, and by which metrics a model is judged.
Training, pruning criteria, growth, costs and evaluation ask it and know no loss and no metric by name. How
targets are read is for `fedprune.data`, which weights are pruned for `fedprune.sparsity`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fedprune.data.dataset import DataInfo, Examples
from fedprune.errors import UserError
from fedprune.tasks.metrics import Metric

#: How the losses of examples become one number.
Reduction = Literal["mean", "sum"]
#: A loss of a user's own: outputs (B, ...) and targets (B, ...) to the loss of each example, (B,).
OwnLoss = Callable[[Tensor, Tensor], Tensor]


class Task(ABC):
    """What a federation learns.

    A subclass says what the loss of each example is, and with which metric a model is judged first. One of a
    user's own is named in a scenario as ``task: {name: ./mine.py:Mine}``.

    Parameters
    ----------
    info : DataInfo
        What is known of the data.
    options : Options
        What else the scenario says under ``task``.

    Raises
    ------
    UserError
        Where the task cannot be learnt from such data.
    """

    class Options(BaseModel):
        """What a scenario may say under ``task`` besides the name; a subclass adds fields."""

        model_config = ConfigDict(extra="forbid", frozen=True)

        loss: str | None = Field(
            None,
            description="Another loss: one of `fedprune list losses`, 'package.module:Name' or "
            "'file.py:Name', a function of outputs and targets to the loss of each example.",
        )

    #: What is judged, as ``compared`` returns it: logits (N, K) and "classes" (N,); logits and "labels", 0 or
    #: 1 (N, K); "numbers" (N, D) and numbers; or something of its "own".
    answers: ClassVar[Literal["classes", "labels", "numbers", "own"]] = "classes"
    #: What it is called in results; a scenario's own name for it where `build` made it.
    name: str = ""

    def __init__(self, info: DataInfo, options: Any = None) -> None:
        self.info = info
        self.options = options if options is not None else self.Options()
        #: The loss that the scenario names: (outputs, targets) -> (B,). `build` has found it.
        self.own_loss: OwnLoss | None = None
        #: What is measured: the headline metric first; `build` adds those that the scenario asks for.
        self.metrics: tuple[Metric, ...] = (self.headline(), *self.others())

    # What a subclass says ------------------------------------------------------------------

    @property
    def outputs(self) -> int:
        """How many values a model returns for an example: the second argument of a model's factory."""
        return self.info.classes

    @abstractmethod
    def losses(self, outputs: Tensor, targets: Tensor, inputs: Tensor) -> Tensor:
        """Return the loss of each example, (B,).

        Parameters
        ----------
        outputs : Tensor
            What the model returned, (B, ...).
        targets, inputs : Tensor
            The batch, as ``batch`` made it, on the device of ``outputs``.
        """

    @abstractmethod
    def headline(self) -> Metric:
        """Return the metric by which runs are compared."""

    def others(self) -> tuple[Metric, ...]:
        """Return what else is always measured."""
        return ()

    def batch(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return (x, y) of what is stored: what the model takes, and what its outputs are compared with."""
        return self.info.inputs.tensor(inputs), targets

    def soft(self, targets: Tensor) -> Tensor:
        """Return a batch's targets as floats, such that a mean of some is a target, too, to ``losses``.

        Raises
        ------
        UserError
            Where they are no numbers, as by default all but floats are not.
        """
        if not targets.is_floating_point():
            raise UserError(f"the targets of task {self.name!r} cannot be mixed: leave mixup out")
        return targets

    def compared(self, outputs: Tensor, targets: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return (predictions, truth), which metrics compare; by default outputs and targets."""
        return outputs, targets

    def output_shape(self, examples: int) -> tuple[int, ...]:
        """Return the shape of what a model must return for so many examples."""
        return (examples, self.outputs)

    def known(self) -> dict[str, object]:
        """Return what a model's factory may want to know besides its outputs, by argument.

        By default what the inputs say of themselves, such as ``vocabulary``.
        """
        return self.info.inputs.known()

    def fault(self, examples: Examples) -> str | None:
        """Return what is wrong with stored examples, in a few words; None where nothing is."""
        return None

    # What the rest uses --------------------------------------------------------------------

    def loss(self, outputs: Tensor, targets: Tensor, inputs: Tensor, reduction: Reduction = "mean") -> Tensor:
        """Return the mean or the sum of the examples' losses, a scalar.

        They are those of ``losses``, or of the loss that the scenario names in its place.
        """
        own = self.own_loss
        losses = self.losses(outputs, targets, inputs) if own is None else own(outputs, targets)
        return losses.mean() if reduction == "mean" else losses.sum()

    def metric(self, name: str) -> Metric | None:
        """Return the metric of a name; None where it is not measured."""
        return next((metric for metric in self.metrics if metric.name == name), None)

    def placeholder(
        self, examples: int, *, device: Any = "cpu", dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """Return a batch without data, for tracing a model's step: inputs and targets of zeros.

        Parameters
        ----------
        examples
            How many.
        device, dtype
            Of the model's weights.
        """
        x = self.info.inputs.filled(0, examples, device=device, dtype=dtype)
        return x, self.blank_targets(x)

    def blank_targets(self, inputs: Tensor) -> Tensor:
        """Return targets of zeros for inputs of a `placeholder`, on the same device: by default classes."""
        return torch.zeros(len(inputs), device=inputs.device, dtype=torch.long)
