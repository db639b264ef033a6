"""Complement Sparsification (Jiang and Borcea, AAAI 2023): low-overhead model pruning for federated learning.

After round 1, which is dense, the server prunes the model by magnitude and sends what is left. Clients
train all weights from there, the pruned ones from 0, and reply the pruned ones alone: their complement of the
model. The server adds ``aggregation_ratio`` times the mean complement to the model that it sent, which is
dense then, and prunes it again. So a kept weight stays as it is until it is pruned, and a pruned one comes
back once clients have made it large.

Up and down together as many weights travel as one dense model has: at a low density the uplink is nearly
dense.

Differences from the paper
--------------------------
- What is never pruned (biases, batch norm, the layers of ``keep``) is sent and averaged in every round.
- How much each layer keeps is an option.

References
----------
- X. Jiang, C. Borcea: Complement Sparsification: Low-Overhead Model Pruning for Federated Learning. AAAI
  2023, arXiv 2303.06237.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from flwr.serverapp import Grid
from pydantic import Field

from fedprune.protocol.client_masks import ComplementRequest
from fedprune.scenario import Scenario
from fedprune.server.aggregation import OverlapMean
from fedprune.server.option_checks import dense_copy_errors
from fedprune.server.strategy import PruningStrategy
from fedprune.sparsity.pruning import all_kept, prunable


class ComplementSparsification(PruningStrategy):
    """The server keeps some weights, clients train and reply the others (Jiang and Borcea, AAAI 2023)."""

    client = "complement"
    mean = OverlapMean

    class Options(PruningStrategy.Options):
        """How much the server keeps, and how it takes in the rest."""

        density: float = Field(gt=0, le=1, description="Kept share of the prunable weights.")
        distribution: str = Field("global", description="How much each layer keeps: uniform, erk or global.")
        aggregation_ratio: float = Field(
            1.0, gt=0, allow_inf_nan=False, description="Factor of the clients' mean complement."
        )

    options: Options

    @classmethod
    def validation_errors(cls, scenario: Scenario, options: Options) -> Iterator[tuple[str, str]]:
        """Find that clients are to train nested parts."""
        yield from super().validation_errors(scenario, options)
        yield from dense_copy_errors(scenario)

    def prepare(self, grid: Grid) -> None:
        """Start dense."""
        self.set_masks(all_kept(self.module, prunable(self.module, self.options.keep)))

    def mask_request(self, server_round: int) -> ComplementRequest | None:
        """Ask for what is pruned, once anything is."""
        return ComplementRequest() if self.masks.density < 1 else None

    def update_masks(self, server_round: int) -> None:
        """Scale what clients replied of what was pruned, and prune by magnitude."""
        if self.move is not None:
            ratio = self.options.aggregation_ratio
            scaled = {
                n: torch.where(mask, self.state[n], ratio * self.state[n]) for n, mask in self.masks.items()
            }
            self.state = {**self.state, **scaled}
        self.prune_to(self.options.density, "magnitude", self.options.distribution)
