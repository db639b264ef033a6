"""QSGD: every value of an update rounded, at random and right on average, to one of a few levels.

The values of a bucket are divided by its norm; a magnitude goes to one of the two levels next to it, the
nearer the likelier, so that its mean is the value. Levels are coded near their entropy: most are 0.

Differences from the paper
--------------------------
- Compressed is the update of a round's local training, not a gradient.
- A bucket is a run of kept weights of one tensor.
- The paper codes levels as Elias integers, which suits any distribution of them; here they are coded by how
  often each occurs (`fedprune.wire.symbols`).

References
----------
- D. Alistarh, D. Grubic, J. Li, R. Tomioka, M. Vojnovic: QSGD: Communication-Efficient SGD via Gradient
  Quantization and Encoding. NeurIPS 2017, arXiv 1610.02132.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fedprune.compression.base import Compressor, Frame, Memory
from fedprune.compression.message import Source, Writer


class QSGD(Compressor):
    """Every value rounded at random to one of a few levels, right on average (Alistarh et al., 2017)."""

    class Options(Compressor.Options):
        """How finely values are rounded."""

        levels: int = Field(15, ge=1, lt=2**15, description="Levels of a magnitude besides 0.")
        bucket: int = Field(512, ge=1, description="Weights, at most, that share a norm.")
        norm: Literal["max", "l2"] = Field(
            "max",
            description="What a bucket is divided by: its largest magnitude, as in the paper's experiments, "
            "or its Euclidean norm, as in its analysis.",
        )

    def write(self, update: Tensor, frame: Frame, out: Writer, memory: Memory) -> None:
        """Write the buckets' norms, the levels, and the signs of those that are not 0."""
        buckets = self._buckets(frame)
        magnitudes, number = update.abs(), int(buckets.max()) + 1 if frame.size else 0
        if self.options.norm == "max":
            norms = torch.zeros(number).scatter_reduce_(0, buckets, magnitudes, "amax")
        else:
            squares = torch.zeros(number, dtype=torch.float64)
            norms = squares.index_add_(0, buckets, magnitudes.double() ** 2).sqrt().float()
        shares = magnitudes / norms.clamp(min=torch.finfo(torch.float32).tiny)[buckets]
        noise = torch.rand(frame.size, generator=frame.generator())
        levels = (shares * self.options.levels + noise).floor().long().clamp_(max=self.options.levels)
        out.floats(norms, "float32")  # Rounded, they would not be right on average.
        out.symbols(levels, self.options.levels + 1)
        out.bits(update[levels > 0] < 0)

    def read(self, frame: Frame, source: Source) -> Tensor:
        """Return the values that the levels stand for."""
        buckets = self._buckets(frame)
        norms = source.floats(int(buckets.max()) + 1 if frame.size else 0, "float32")
        levels = source.symbols(frame.size, self.options.levels + 1)
        sent = levels > 0
        signs = torch.ones(frame.size)
        signs[sent] -= 2 * source.bits(int(sent.sum())).float()
        return signs.mul_(norms[buckets]).mul_(levels.float()).div_(float(self.options.levels))

    def _buckets(self, frame: Frame) -> Tensor:
        """Return the number of each weight's bucket, int64 of shape (frame.size,)."""
        found, first = [torch.zeros(0, dtype=torch.long)], 0
        for part in frame.parts:
            found.append(first + torch.arange(part.size) // self.options.bucket)
            first += -(-part.size // self.options.bucket)
        return torch.cat(found)
