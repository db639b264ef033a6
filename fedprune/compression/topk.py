"""Top-k sparsification: the largest values of an update, and where they are.

With error feedback what is left out is not lost. EF21 can be chosen; classical error feedback is the default,
as it reaches the same or more under federated averaging with a part of the clients in each round (the
documentation's page on compressed updates has figures), and a server need not keep anything for each client.

Differences from the paper
--------------------------
- Compressed is the update of a round's local training, not a gradient.
- Of k values the positions are coded near their entropy, and k counts the kept weights of a pruned model.

References
----------
- P. Richtárik, I. Sokolov, I. Fatkhullin: EF21: A New, Simpler, Theoretically Better, and Practically Faster
  Error Feedback. NeurIPS 2021, arXiv 2106.05203.
- A. F. Aji, K. Heafield: Sparse Communication for Distributed Gradient Descent. EMNLP 2017.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from fedprune.compression.base import Compressor, FeedbackOptions, Frame, Memory
from fedprune.compression.message import Source, Writer
from fedprune.sparsity.masks import highest


class TopK(Compressor):
    """The largest values, with their positions, and error feedback (EF, or EF21: Richtárik et al., 2021)."""

    class Options(FeedbackOptions):
        """How many values are sent."""

        density: float = Field(0.01, gt=0, le=1, description="Share of the kept weights that is sent.")

    def write(self, update: Tensor, frame: Frame, out: Writer, memory: Memory) -> None:
        """Write the positions and the values of the largest."""
        chosen = highest(update.abs(), count_of(self.options.density, frame.size), "update")
        out.bits(chosen)
        out.floats(update[chosen])

    def read(self, frame: Frame, source: Source) -> Tensor:
        """Return them, and 0 elsewhere."""
        chosen = source.bits(frame.size)
        update = torch.zeros(frame.size)
        update[chosen] = source.floats(int(chosen.sum()))
        return update


def count_of(density: float, size: int) -> int:
    """Return how many of ``size`` values a share of them is: to the nearest, at least one."""
    return min(size, max(1, round(density * size)))
