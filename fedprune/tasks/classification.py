"""Classification: one label for each example."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from fedprune.data.dataset import DataInfo
from fedprune.data.inputs import Numbers
from fedprune.errors import UserError
from fedprune.tasks.base import Reduction, Task
from fedprune.tasks.metrics import Accuracy, Metric


class Classification(Task):
    """One class for each example: cross entropy of logits (B, K) and labels, int64 (B,).

    Where examples are mixed, targets are each class's share, float (B, K).
    """

    class Options(Task.Options):
        """How labels count."""

        label_smoothing: float = Field(
            0.0, ge=0, lt=1, description="Share of a label that is spread evenly over all classes."
        )
        class_weights: tuple[float, ...] | Literal["balanced"] | None = Field(
            None,
            description="Weight of the loss of each class's examples; balanced: N / (K * n), where n of N "
            "training examples are of the class, one of K.",
        )

    options: Options

    def __init__(self, info: DataInfo, options: Any = None) -> None:
        super().__init__(info, options)
        given = self.options.class_weights
        if self.options.loss is not None and (given is not None or self.options.label_smoothing):
            raise UserError("task.loss takes no class_weights or label_smoothing: leave these out, or it")
        if isinstance(given, tuple) and not (all(0 <= each < inf for each in given) and any(given)):
            raise UserError(f"task.class_weights are {list(given)}: none may be negative, and not all 0")
        if isinstance(given, tuple) and len(given) != info.classes:
            raise UserError(
                f"task.class_weights has {len(given)} numbers: give one for each of {info.classes}"
            )
        if given == "balanced" and info.label_counts:
            counts = torch.tensor(info.label_counts, dtype=torch.float64)
            given = tuple((counts.sum() / (len(counts) * counts.clamp(min=1))).tolist())
        self.weights = torch.tensor(given) if isinstance(given, tuple) else None

    def batch(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return (x, y) with y int64 (B,)."""
        if self.options.class_weights == "balanced" and self.weights is None:
            raise UserError(
                "task.class_weights: balanced needs the labels of all training examples, which a device with "
                "data of its own cannot see: write the weights"
            )
        return super().batch(inputs, targets)

    def soft(self, targets: Tensor) -> Tensor:
        """Return each class's share, 0 or 1 where nothing is mixed yet, float32 (B, K)."""
        if targets.is_floating_point():
            return targets
        return functional.one_hot(targets, self.outputs).float()

    def losses(self, outputs: Tensor, targets: Tensor, inputs: Tensor) -> Tensor:
        """Return each example's cross entropy in nats, times the weight of its class.

        Of shares of classes that is the mean by them of what each class's loss would be.
        """
        smoothing = self.options.label_smoothing
        if self.weights is not None and targets.is_floating_point():
            shares = targets * self.weights.to(targets)
            weights = shares.sum(dim=1)
            shares = shares / weights.clamp(min=torch.finfo(shares.dtype).tiny)[:, None]
            each = functional.cross_entropy(outputs, shares, reduction="none", label_smoothing=smoothing)
            return each * weights
        losses = functional.cross_entropy(outputs, targets, reduction="none", label_smoothing=smoothing)
        return losses if self.weights is None else losses * self.weights.to(losses)[targets]

    def loss(self, outputs: Tensor, targets: Tensor, inputs: Tensor, reduction: Reduction = "mean") -> Tensor:
        """Return the mean or sum of ``losses``; of plain ones by PyTorch's one operation for both."""
        if self.own_loss is not None or self.weights is not None:
            return super().loss(outputs, targets, inputs, reduction)
        smoothing = self.options.label_smoothing
        return functional.cross_entropy(outputs, targets, reduction=reduction, label_smoothing=smoothing)

    def headline(self) -> Metric:
        """Return the share of right answers."""
        return Accuracy()


def classification_of(shape: Sequence[int]) -> Classification:
    """Return classification of inputs of a shape, such as (C, H, W), into classes that are not known."""
    return Classification(DataInfo("", Numbers(tuple(shape))))
