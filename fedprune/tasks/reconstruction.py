"""Reconstruction, for anomaly detection: a model that knows normal examples errs on others."""

from __future__ import annotations

from math import prod

from torch import Tensor
from torch.nn import functional

from fedprune.data.dataset import Examples
from fedprune.tasks.base import Task
from fedprune.tasks.metrics import Metric
from fedprune.tasks.ranking import ErrorAuroc


class Reconstruction(Task):
    """The input itself, predicted as (B, n) values of its n: mean squared error.

    Targets are 0 for normal examples and 1 for anomalies, of which there should be some in the test set; what
    is trained on are all training examples. Judged is how well the error tells anomalies (AUROC).
    """

    answers = "own"

    @property
    def outputs(self) -> int:
        """Values of an input."""
        return prod(self.info.input_shape)

    def losses(self, outputs: Tensor, targets: Tensor, inputs: Tensor) -> Tensor:
        """Return each example's mean squared error."""
        return functional.mse_loss(outputs, inputs.flatten(1), reduction="none").mean(dim=1)

    def compared(self, outputs: Tensor, targets: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the errors (B,) and which examples are anomalies (B,)."""
        return self.losses(outputs, targets, inputs), targets

    def headline(self) -> Metric:
        """Return the chance that an anomaly has a larger error than a normal example."""
        return ErrorAuroc()

    def fault(self, examples: Examples) -> str | None:
        """Refuse inputs that are no numbers, and targets but 0 and 1."""
        if not self.info.inputs.dtype.is_floating_point:
            return f"{self.info.inputs.kind} as inputs: expected numbers to reconstruct"
        if not ((examples.targets == 0) | (examples.targets == 1)).all():
            return "targets that are neither 0, normal, nor 1, an anomaly"
        return None
