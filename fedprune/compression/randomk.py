"""Random-k sparsification: values at positions that both sides draw from a seed, so that these cost nothing.

Without error feedback, which is the default, the values are scaled by n/k, which makes them right on average
(Konečný et al., 2016). With it they travel as they are (Stich et al., NeurIPS 2018): error feedback needs a
compressor that never makes an error larger, and keeps what is left out.

Differences from the paper
--------------------------
- Compressed is the update of a round's local training, not a gradient.

References
----------
- S. U. Stich, J.-B. Cordonnier, M. Jaggi: Sparsified SGD with Memory. NeurIPS 2018, arXiv 1809.07599.
- J. Konečný, H. B. McMahan, F. X. Yu, P. Richtárik, A. T. Suresh, D. Bacon: Federated Learning: Strategies
  for Improving Communication Efficiency. 2016, arXiv 1610.05492.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from fedprune.compression.base import Compressor, Feedback, FeedbackOptions, Frame, Memory
from fedprune.compression.message import Source, Writer
from fedprune.compression.topk import count_of


class RandomK(Compressor):
    """Values at random positions, which follow from a seed (Stich et al., NeurIPS 2018)."""

    class Options(FeedbackOptions):
        """How many values are sent."""

        density: float = Field(0.05, gt=0, le=1, description="Share of the kept weights that is sent.")
        feedback: Feedback = Field(
            "none",
            description="Error feedback: none (values are scaled, right on average), ef21 or ef, as topk's.",
        )

    def write(self, update: Tensor, frame: Frame, out: Writer, memory: Memory) -> None:
        """Write the values at the positions drawn."""
        out.floats(update[self._positions(frame)])

    def read(self, frame: Frame, source: Source) -> Tensor:
        """Return them, scaled where there is no error feedback, and 0 elsewhere."""
        positions, update = self._positions(frame), torch.zeros(frame.size)
        scale = frame.size / max(len(positions), 1) if self.feedback == "none" else 1.0
        update[positions] = source.floats(len(positions)) * scale
        return update

    def _positions(self, frame: Frame) -> Tensor:
        order = torch.randperm(frame.size, generator=frame.generator())
        return order[: count_of(self.options.density, frame.size)]
