"""FedDST (Bibikar et al., AAAI 2022): Federated Dynamic Sparse Training.

Every few rounds each client swaps a share of its own weights as RigL does, part of the way through its
local training, and sends values and mask. The server averages each weight over the clients that kept it
and prunes every layer back to its number of weights.

As in the paper, a client trains on after its swap: a weight grows from 0, and one that is still 0 when
the server prunes by magnitude would be the first to go.

References
----------
- S. Bibikar, H. Vikalo, Z. Wang, X. Chen: Federated Dynamic Sparse Training: Computing Less, Communicating
  Less, Yet Learning Better. AAAI 2022, arXiv 2112.09824.
"""

from __future__ import annotations

from flwr.serverapp import Grid
from pydantic import Field

from fedprune.protocol.client_masks import AdjustRequest
from fedprune.server.aggregation import OverlapMean
from fedprune.server.strategy import PruningStrategy
from fedprune.sparsity.masks import keep_highest
from fedprune.sparsity.schedules import cosine


class FedDST(PruningStrategy):
    """FedDST (Bibikar et al., AAAI 2022): clients adjust their own masks, overlaps are averaged."""

    mean = OverlapMean

    class Options(PruningStrategy.Options):
        """The first mask, and when and how much clients adjust."""

        density: float = Field(gt=0, le=1, description="Kept share of the prunable weights.")
        distribution: str = Field("erk", description="How much each layer keeps: uniform, erk or global.")
        adjust_every: int = Field(10, ge=1, description="Rounds from one adjustment to the next.")
        stop_adjusting_at: int = Field(100, ge=1, description="Last round that may adjust.")
        alpha: float = Field(
            0.3,
            ge=0,
            le=1,
            description="Share of each layer that is swapped at first; falls to 0 as a cosine.",
        )
        adjust_after: float = Field(
            0.5, gt=0, le=1, description="Share of a round's local training that comes before the swap."
        )
        growth_batches: int = Field(1, ge=1, description="Batches on which a client judges what should grow.")

    options: Options

    def prepare(self, grid: Grid) -> None:
        """Prune the initial model at random, by the layer distribution."""
        self.set_masks(self.pruned("random", self.options.distribution))

    def mask_request(self, server_round: int) -> AdjustRequest | None:
        """Let clients swap a share of their weights, in a round with an adjustment."""
        options = self.options
        if server_round % options.adjust_every or server_round > options.stop_adjusting_at:
            return None
        share = cosine(server_round / options.stop_adjusting_at, options.alpha, 0.0)
        return AdjustRequest(share, options.adjust_after, options.growth_batches) if share > 0 else None

    def update_masks(self, server_round: int) -> None:
        """Prune every layer of the average to its number of weights, by magnitude."""
        if self.move is not None:
            scores = {name: self.state[name].abs() for name in self.masks}
            self.set_masks(keep_highest(scores, self.masks.kept))
