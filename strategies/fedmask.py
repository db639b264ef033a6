"""FedMask (Li et al., SenSys 2021): joint computation and communication-efficient personalised learning.

Weights are frozen. Every client prunes them once to masks of its own, by the scores that it has learned
in the first round it takes part in. From then on it learns and exchanges a {0, 1} mask of what it kept. The
server averages each entry over the clients that hold it, and sends a client those that it holds.

Different from the paper: single weights are pruned, not filters; the frozen weights are random, not
pretrained; what the server sends is the average rounded to ``vote_bits`` bits, by default to 0 or 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from flwr.serverapp import Grid
from pydantic import Field

from fedprune import seeds
from fedprune.aggregators import OverlapMean, TrainReply
from fedprune.own_masks import OneShotRequest, Tickets
from fedprune.sparsity.masks import Masks
from fedprune.sparsity.pruning import all_kept, prunable
from fedprune.strategy import PruningStrategy
from fedprune.supermask import LearningOptions, Supermasks


class FedMask(PruningStrategy):
    """FedMask (Li et al., SenSys 2021): personal {0, 1} masks of frozen weights, overlaps are averaged."""

    client = "supermask"
    mean = OverlapMean

    class Options(LearningOptions, PruningStrategy.Options):
        """How much a client keeps, and how it learns its mask."""

        density: float = Field(0.5, gt=0, le=1, description="Share of each layer that a client keeps.")
        init: Literal["kaiming_normal"] = Field("kaiming_normal", description="Frozen weights: as drawn.")

    options: Options

    def supermasks(self) -> Supermasks:
        """Clients learn {0, 1} masks."""
        return Supermasks("binary", self.options, seeds.derive(self.scenario.seed, "weights"))

    def prepare(self, grid: Grid) -> None:
        """Start with every client at the whole network."""
        self.draw()
        self.freeze(all_kept(self.module, prunable(self.module, self.options.keep)))
        self.tickets = Tickets(self.masks, len(self.clients))

    def memory(self) -> dict[str, Any]:
        """Return the clients' own masks."""
        return self.tickets.memory()

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Take them back."""
        whole = all_kept(self.module, prunable(self.module, self.options.keep))
        self.tickets = Tickets(whole, len(self.clients))
        self.tickets.recall(memory)

    def masks_for(self, number: int) -> Masks:
        """Return the client's own masks."""
        return self.tickets.of(number)

    def mask_request(self, server_round: int) -> OneShotRequest:
        """Let a client prune that has not yet."""
        return OneShotRequest(self.options.density)

    def observe(self, server_round: int, reply: TrainReply) -> None:
        """Keep the masks that a client has pruned."""
        self.tickets.note(reply.client, reply.codec.masks)

    def update_masks(self, server_round: int) -> None:
        """The global model has every weight that any client keeps."""
        masks = self.tickets.union()
        if masks != self.masks:
            self.set_masks(masks)
