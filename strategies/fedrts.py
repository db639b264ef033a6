"""FedRTS (Huang et al., NeurIPS 2025): Federated Robust Pruning via Combinatorial Thompson Sampling.

The server keeps a Beta posterior for every prunable weight: how likely it is to belong to the model. Each
round moves it by votes, instead of by what one round's clients happen to see:

- *Kept weights*, in every round: the average model and each client's model vote for the largest weights of a
  layer, as many as an adjustment would leave. The outcome is ``gamma`` times the share of examples whose
  clients voted for a weight, plus ``1 - gamma`` times the vote of the average.
- *Pruned weights*, in a round with an adjustment: clients report where the gradient is largest, positions
  alone. The outcome is ``gamma`` times the share of examples, plus ``1 - gamma`` times one half.

An outcome ``x`` adds ``strength * x`` to alpha and ``strength * (1 - x)`` to beta. An adjustment draws from
each posterior once, and every layer keeps as many weights as before: those with the highest draws.

Differences from the paper
--------------------------
- Rules and defaults are those of the authors' code. An adjustment every 10 rounds up to round 300 of 500
  is here up to round 100, as of the other methods.
- A client that trains a nested part votes among the weights that it holds.

References
----------
- H. Huang, J. Yang, Y. Chen, J. Ye, D. Wu: FedRTS: Federated Robust Pruning via Combinatorial Thompson
  Sampling. NeurIPS 2025, arXiv 2501.19122. Code: github.com/FedPruning/FedPruning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from flwr.serverapp import Grid
from pydantic import Field
from torch import Tensor

from fedprune import seeds
from fedprune.protocol.reports import GrowthRequest
from fedprune.server.aggregation import TrainReply
from fedprune.server.strategy import PruningStrategy
from fedprune.sparsity.masks import Masks, highest, keep_highest
from fedprune.sparsity.schedules import cosine


class FedRTS(PruningStrategy):
    """Masks drawn from posteriors that clients' votes move (Huang et al., NeurIPS 2025)."""

    class Options(PruningStrategy.Options):
        """The first mask, when and how far it moves, and how votes count."""

        density: float = Field(gt=0, le=1, description="Kept share of the prunable weights.")
        distribution: str = Field("erk", description="How much each layer keeps: uniform, erk or global.")
        adjust_every: int = Field(10, ge=1, description="Rounds from one adjustment to the next.")
        stop_adjusting_at: int = Field(100, ge=1, description="Last round that may adjust.")
        swap_fraction: float = Field(
            0.2, gt=0, le=1, description="Share of each layer open to a change at first; falls as a cosine."
        )
        gamma: float = Field(
            0.5, ge=0, le=1, description="How much clients' own votes count, against that of their average."
        )
        strength: float = Field(10.0, gt=0, description="What one round's outcome adds to a posterior.")
        growth_batches: int = Field(1, ge=1, description="Batches on which a client judges what should grow.")

    options: Options

    # Alpha and beta of each weight's posterior.
    alpha: dict[str, Tensor]
    beta: dict[str, Tensor]

    def prepare(self, grid: Grid) -> None:
        """Prune the initial model at random, by the layer distribution; nothing is known of any weight."""
        self.set_masks(self.pruned("random", self.options.distribution))
        self.alpha = {name: torch.ones(mask.shape, dtype=torch.float64) for name, mask in self.masks.items()}
        self.beta = {name: torch.ones_like(alpha) for name, alpha in self.alpha.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the posteriors."""
        return {"alpha": dict(self.alpha), "beta": dict(self.beta)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self.alpha, self.beta = dict(state["alpha"]), dict(state["beta"])

    def open_to_change(self, server_round: int) -> dict[str, int]:
        """Return how many kept weights of each layer are open to a change after a round."""
        progress = server_round / self.options.stop_adjusting_at
        share = cosine(progress, self.options.swap_fraction, 0.0)
        return {name: math.floor(share * kept) for name, kept in self.masks.kept.items()}

    def growth(self, server_round: int) -> GrowthRequest | None:
        """Start the votes of a round; ask where gradients are largest, in one with an adjustment."""
        options = self.options
        self.votes_to_keep = {
            name: torch.zeros(mask.shape, dtype=torch.float64) for name, mask in self.masks.items()
        }
        self.weight = 0
        if server_round % options.adjust_every or server_round > options.stop_adjusting_at:
            return None
        pruned = {name: mask.numel() - self.masks.kept[name] for name, mask in self.masks.items()}
        counts = {name: min(count, pruned[name]) for name, count in self.open_to_change(server_round).items()}
        counts = {name: count for name, count in counts.items() if count > 0}
        return GrowthRequest(counts, options.growth_batches, values=False) if counts else None

    def core(self, server_round: int, state: Mapping[str, Tensor], masks: Masks) -> dict[str, Tensor]:
        """Return a model's vote: its largest weights, as many as an adjustment would leave."""
        change = self.open_to_change(server_round)
        return {
            name: highest(
                state[name].abs().masked_fill(~mask, -torch.inf),
                min(self.masks.kept[name] - change[name], masks.kept[name]),
            )
            for name, mask in masks.items()
        }

    def observe(self, server_round: int, reply: TrainReply) -> None:
        """Count a client's vote, by its examples."""
        if server_round > self.options.stop_adjusting_at:
            return
        state = reply.codec.unflatten(reply.values)
        for name, vote in self.core(server_round, state, self.sent_masks(reply.client)).items():
            self.votes_to_keep[name].add_(vote, alpha=reply.weight)
        self.weight += reply.weight

    def update_masks(self, server_round: int) -> None:
        """Move the posteriors; in a round with an adjustment draw the masks."""
        if server_round > self.options.stop_adjusting_at:
            return
        for name, vote in self.core(server_round, self.state, self.masks).items():
            self.learn(name, self.masks[name], self.votes_to_keep[name], vote.double())
        if self.request is None:
            return
        for name, votes in self.votes.items():
            self.learn(name, ~self.masks[name], votes.total, torch.full(votes.mask.shape, 0.5))
        generator = seeds.numpy_generator(self.scenario.seed, "thompson", server_round)
        draws = {
            name: torch.from_numpy(generator.beta(self.alpha[name].numpy(), self.beta[name].numpy()))
            for name in self.masks
        }
        self.set_masks(keep_highest(draws, self.masks.kept))

    def learn(self, name: str, where: Tensor, votes: Tensor, of_the_average: Tensor) -> None:
        """Move the posteriors of a layer, where a mask says, by votes and the vote of the average model."""
        gamma, strength = self.options.gamma, self.options.strength
        outcome = gamma * votes / self.weight + (1 - gamma) * of_the_average
        self.alpha[name] = torch.where(where, self.alpha[name] + strength * outcome, self.alpha[name])
        self.beta[name] = torch.where(where, self.beta[name] + strength * (1 - outcome), self.beta[name])
