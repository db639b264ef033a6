"""Semantic segmentation: a class for each pixel."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from fedprune.data.dataset import DataInfo, Examples
from fedprune.errors import UserError
from fedprune.tasks.base import Task
from fedprune.tasks.metrics import Accuracy, MeanIoU, Metric

#: The target of a pixel that does not count.
IGNORED = 255


class Segmentation(Task):
    """A class for each pixel: cross entropy of logits (B, K, H, W) and classes, (B, H, W); 255 is ignored.

    The loss of an image is the mean over its pixels that count.
    """

    def __init__(self, info: DataInfo, options: Any = None) -> None:
        if len(info.input_shape) != 3:
            raise UserError(
                f"task segmentation: data set {info.name!r} has {info.inputs.kind}, expected images"
            )
        super().__init__(info, options)

    def batch(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return (x, y) with y int64 (B, H, W)."""
        return self.info.inputs.tensor(inputs), targets.long()

    def losses(self, outputs: Tensor, targets: Tensor, inputs: Tensor) -> Tensor:
        """Return each image's mean cross entropy in nats."""
        each = functional.cross_entropy(outputs, targets, ignore_index=IGNORED, reduction="none")
        return each.sum(dim=(1, 2)) / (targets != IGNORED).sum(dim=(1, 2)).clamp(min=1)

    def compared(self, outputs: Tensor, targets: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (P, K) and classes (P,) of the P pixels that count."""
        counts = targets != IGNORED
        return outputs.movedim(1, -1)[counts], targets[counts]

    def headline(self) -> Metric:
        """Return the mean over classes of intersection over union."""
        return MeanIoU(self.outputs)

    def others(self) -> tuple[Metric, ...]:
        """Return the share of right pixels."""
        return (Accuracy(one_each=False),)

    def output_shape(self, examples: int) -> tuple[int, ...]:
        """Return (B, K, H, W)."""
        return (examples, self.outputs, *self.info.input_shape[1:])

    def fault(self, examples: Examples) -> str | None:
        """Refuse other targets than a class for each pixel."""
        targets, size = examples.targets, self.info.input_shape[1:]
        if targets.shape[1:] != size:
            return f"masks of shape {targets.shape}: expected (N, {', '.join(map(str, size))})"
        known = targets[targets != IGNORED]
        if known.size and not 0 <= known.min() <= known.max() < self.outputs:
            return (
                f"classes from {known.min()} to {known.max()}: expected 0 to {self.outputs - 1}, or {IGNORED}"
            )
        return None

    def blank_targets(self, inputs: Tensor) -> Tensor:
        """Return zeros, int64 (B, H, W)."""
        return inputs.new_zeros((len(inputs), *self.info.input_shape[1:])).long()
