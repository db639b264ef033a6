"""SalientGrads (Ohib, Thapaliya et al. 2023): one global mask from the clients' saliency, before training.

Before round 1 every client scores the weights of the initial model on its own data as SNIP does, by
``|w * dL/dw|`` on one batch. The server averages the scores and keeps the highest of the whole model. From
then on all clients train under that mask. The same authors' SSFL is a later account of the method.

Differences from the paper
--------------------------
- A batch is drawn at random; the authors' code can draw its classes evenly.
- Every layer keeps at least one weight. The first and the last layer stay dense unless ``keep`` says
  otherwise.

References
----------
- R. Ohib, B. Thapaliya, P. Gaggenapalli, J. Liu, V. Calhoun, S. Plis: SalientGrads: Sparse Models for
  Communication Efficient and Data Aware Distributed Federated Training. 2023, arXiv 2304.07488. Code:
  github.com/riohib/SalientGrads.
- R. Ohib, B. Thapaliya, G. K. Dziugaite, J. Liu, V. Calhoun, S. Plis: SSFL: Discovering Sparse Unified
  Subnetworks at Initialization for Efficient Federated Learning. 2024, arXiv 2405.09037.
"""

from __future__ import annotations

import torch
from flwr.app import Message
from flwr.serverapp import Grid
from pydantic import Field
from torch import Tensor

from fedprune import registry
from fedprune.errors import RunError
from fedprune.protocol.reports import ImportanceRequest, read_importance
from fedprune.server.strategy import PruningStrategy
from fedprune.sparsity.distributions import kept_counts
from fedprune.sparsity.masks import keep_highest
from fedprune.sparsity.pruning import all_kept, prunable


class SalientGrads(PruningStrategy):
    """Prune once, by the clients' saliency scores, averaged (Ohib, Thapaliya et al., 2023)."""

    class Options(PruningStrategy.Options):
        """What clients measure, and how much is kept."""

        density: float = Field(gt=0, le=1, description="Kept share of the prunable weights.")
        distribution: str = Field("global", description="How much each layer keeps: uniform, erk or global.")
        saliency_batches: int = Field(
            1, ge=1, description="Batches over which a client averages its weights' saliency."
        )
        weighted: bool = Field(
            False, description="Whether clients count by their examples, not all the same."
        )

    options: Options

    def prepare(self, grid: Grid) -> None:
        """Keep the weights of highest mean saliency."""
        self.set_masks(all_kept(self.module, prunable(self.module, self.options.keep)))
        scores = self.mean_saliency(grid)
        distribution = registry.load("distribution", self.options.distribution, self.scenario.directory)
        shapes = {name: mask.shape for name, mask in self.masks.items()}
        density = self.options.density
        self.set_masks(
            keep_highest(scores, kept_counts(distribution(shapes, density, scores), shapes, density))
        )

    def mean_saliency(self, grid: Grid) -> dict[str, Tensor]:
        """Ask every client for the saliency of each weight; return the mean over those that answer."""
        total = {name: torch.zeros(mask.shape, dtype=torch.float64) for name, mask in self.masks.items()}

        def add(reply: Message) -> int:
            facts = self.clients[self.registry.number_of(reply)]
            weight = facts.examples if self.options.weighted else 1
            report = read_importance(reply.content.array_records.get("importance"), self.masks)
            for name, saliency in report.items():
                total[name].add_(saliency, alpha=weight)
            return weight

        request = ImportanceRequest(self.options.saliency_batches, "saliency")
        self.federation.announce("round 0: clients measure the saliency of weights")
        content = self.state_contents(0, request.config())
        weights = self.ask(grid, sorted(self.clients), "query.importance", content, add)
        if not weights:
            raise RunError(f"no client measured the saliency of weights: {self.accounts.reasons}")
        return {name: scores / sum(weights.values()) for name, scores in total.items()}
