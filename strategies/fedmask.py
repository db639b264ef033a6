"""FedMask (Li et al., SenSys 2021): joint computation and communication-efficient personalised learning.

Weights are frozen. Every client prunes them once to masks of its own, by the scores that it has learned
in the first round it takes part in. From then on it learns and exchanges a {0, 1} mask of what it kept. The
server averages each entry over the clients that hold it, and sends a client those that it holds.

Differences from the paper
--------------------------
- Single weights are pruned, not filters.
- The frozen weights are random, not pretrained.
- The server sends the average rounded to ``vote_bits`` bits, by default to 0 or 1.

References
----------
- A. Li, J. Sun, X. Zeng, M. Zhang, H. Li, Y. Chen: FedMask: Joint Computation and Communication-Efficient
  Personalized Federated Learning via Heterogeneous Masking. SenSys 2021.
"""

from __future__ import annotations

from typing import Literal

from flwr.serverapp import Grid
from pydantic import Field

from fedprune import seeds
from fedprune.protocol.client_masks import OneShotRequest
from fedprune.protocol.supermasks import LearningOptions, Supermasks
from fedprune.server.personalised import PersonalisedStrategy


class FedMask(PersonalisedStrategy):
    """FedMask (Li et al., SenSys 2021): personal {0, 1} masks of frozen weights, overlaps are averaged."""

    client = "supermask"

    class Options(LearningOptions, PersonalisedStrategy.Options):
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
        self.freeze(self.whole)
        self.personal_masks = self.new_personal_masks()

    def mask_request(self, server_round: int) -> OneShotRequest:
        """Let a client prune that has not yet."""
        return OneShotRequest(self.options.density)
