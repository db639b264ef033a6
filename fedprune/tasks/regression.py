"""Regression: one or more measured values for each example."""

from __future__ import annotations

import numpy as np
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
        """How many values an example has."""

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
        """Return each example's mean squared error; `fedprune list losses` has others."""
        return functional.mse_loss(outputs, targets, reduction="none").mean(dim=1)

    def headline(self) -> Metric:
        """Return the mean absolute error."""
        return MeanAbsoluteError()

    def fault(self, examples: Examples) -> str | None:
        """Refuse targets that are not so many numbers each."""
        targets = examples.targets
        if targets.dtype.kind not in "fiu":
            return f"targets of {targets.dtype}: expected numbers"
        if missing := int((~np.isfinite(targets)).sum()):
            return f"{missing} targets that are NaN or infinite: leave such examples out"
        if targets[:1].size != self.outputs:
            return f"{targets[:1].size} values for each example: write task.values: {targets[:1].size}"
        return None

    def blank_targets(self, inputs: Tensor) -> Tensor:
        """Return zeros, (B, D)."""
        return torch.zeros(len(inputs), self.outputs, device=inputs.device)
