"""Several labels for each example, any number of which may apply."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fedprune.data.dataset import Examples
from fedprune.tasks.base import Task
from fedprune.tasks.metrics import LabelF1, Metric


class MultiLabel(Task):
    """Labels, 0 or 1 (B, K): binary cross entropy of logits (B, K), mean over the labels."""

    answers = "labels"

    def batch(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return (x, y) with y float (B, K)."""
        return self.info.inputs.tensor(inputs), targets.float()

    def losses(self, outputs: Tensor, targets: Tensor, inputs: Tensor) -> Tensor:
        """Return each example's mean binary cross entropy in nats."""
        return functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(dim=1)

    def headline(self) -> Metric:
        """Return the F1 of all labels together, of those with a logit above 0."""
        return LabelF1()

    def fault(self, examples: Examples) -> str | None:
        """Refuse targets that are not 0 or 1 for each label."""
        targets = examples.targets
        if targets.ndim != 2 or targets.shape[1] != self.outputs:
            return f"targets of shape {targets.shape}: expected (N, {self.outputs}), 0 or 1 for each label"
        if not ((targets == 0) | (targets == 1)).all():
            return "targets that are neither 0 nor 1"
        return None

    def blank_targets(self, inputs: Tensor) -> Tensor:
        """Return zeros, (B, K)."""
        return torch.zeros(len(inputs), self.outputs, device=inputs.device)
