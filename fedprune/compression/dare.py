"""DARE: values dropped at random, and those that are left rescaled, so that an update is right on average.

Which are dropped both sides draw from a seed, so that it costs nothing to say.

Differences from the paper
--------------------------
- The paper drops and rescales the difference of a fine-tuned and a pre-trained model, once and before models
  are merged. Here it is each client's update in each round; the server's mean merges them.

References
----------
- L. Yu, B. Yu, H. Yu, F. Huang, Y. Li: Language Models are Super Mario: Absorbing Abilities from Homologous
  Models as a Free Lunch. ICML 2024, arXiv 2311.03099.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from fedprune.compression.base import Compressor, Frame, Memory
from fedprune.compression.message import Source, Writer


class DARE(Compressor):
    """Values dropped at random, the others rescaled by 1 / (1 - drop) (Yu et al., ICML 2024)."""

    class Options(Compressor.Options):
        """How many values are dropped."""

        drop: float = Field(0.9, ge=0, lt=1, description="Chance that a value is dropped.")

    def write(self, update: Tensor, frame: Frame, out: Writer, memory: Memory) -> None:
        """Write the values that are left."""
        out.floats(update[self._left(frame)])

    def read(self, frame: Frame, source: Source) -> Tensor:
        """Return them rescaled, and 0 elsewhere."""
        left, update = self._left(frame), torch.zeros(frame.size)
        update[left] = source.floats(int(left.sum())) / (1 - self.options.drop)
        return update

    def _left(self, frame: Frame) -> Tensor:
        return torch.rand(frame.size, generator=frame.generator()).ge(self.options.drop)
