"""Regression: one or more measured values for each example."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from fedprune.data.dataset import Examples
from fedprune.tasks.base import Task
from fedprune.tasks.metrics import MeanAbsoluteError, Metric


class Regression(Task):
    """Values, float (B, D), by outputs (B, D); the loss of an example is the mean over its values."""

    answers = "numbers"

    class Options(Task.Options):
        """How far off a prediction is."""

        loss: Literal["mse", "mae", "huber"] = Field(
            "mse",
            description="Squared error, absolute error, or Huber's (squared up to delta, absolute above).",
        )
        delta: float = Field(1.0, gt=0, description="Where Huber's loss becomes absolute.")
        values: int = Field(1, ge=1, description="Values of an example, D.")

    options: Options

    @property
    def outputs(self) -> int:
        """Values of an example."""
        return self.options.values

    def batch(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return (x, y) with y float (B, D)."""
        return self.info.inputs.tensor(inputs), targets.float().view(len(targets), self.outputs)

    def losses(self, outputs: Tensor, targets: Tensor, inputs: Tensor) -> Tensor:
        """Return each example's mean error."""
        match self.options.loss:
            case "mse":
                errors = functional.mse_loss(outputs, targets, reduction="none")
            case "mae":
                errors = functional.l1_loss(outputs, targets, reduction="none")
            case _:
                errors = functional.huber_loss(outputs, targets, reduction="none", delta=self.options.delta)
        return errors.mean(dim=1)

    def headline(self) -> Metric:
        """Return the mean absolute error."""
        return MeanAbsoluteError()

    def fault(self, examples: Examples) -> str | None:
        """Refuse targets that are not so many numbers each."""
        targets = examples.targets
        if targets.dtype.kind not in "fiu":
            return f"targets of {targets.dtype}: expected numbers"
        if targets[:1].size != self.outputs:
            return f"{targets[:1].size} values for each example: write task.values: {targets[:1].size}"
        return None

    def blank_targets(self, inputs: Tensor) -> Tensor:
        """Return zeros, (B, D)."""
        return torch.zeros(len(inputs), self.outputs, device=inputs.device)
