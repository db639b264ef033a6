"""Gradual magnitude pruning (Zhu and Gupta 2017); with regrowth GraNet (Liu et al., NeurIPS 2021).

From round ``start`` to round ``end`` the averaged model is pruned by magnitude along a cubic curve, quickly
at first and ever less. With ``regrow`` a further share of each layer is dropped and as many weights grow by
gradient; that share falls along a cosine.

Differences from the paper
--------------------------
- GraNet's gradients are those of clients that trained under the masks before the pruning: what a round
  prunes can't grow again in it, and nothing grows while nothing is pruned.

References
----------
- M. Zhu, S. Gupta: To prune, or not to prune: exploring the efficacy of pruning for model compression. 2017,
  arXiv 1710.01878.
- S. Liu, T. Chen, X. Chen, Z. Atashgahi, L. Yin, H. Kou, L. Shen, M. Pechenizkiy, Z. Wang, D. C. Mocanu:
  Sparse Training via Boosting Pruning Plasticity with Neuroregeneration. NeurIPS 2021, arXiv 2106.10404.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from flwr.serverapp import Grid
from pydantic import Field

from fedprune import registry
from fedprune.protocol.reports import GrowthRequest
from fedprune.scenario import Scenario
from fedprune.server.strategy import PruningStrategy
from fedprune.sparsity.distributions import total_kept
from fedprune.sparsity.growth import swap_masks
from fedprune.sparsity.pruning import all_kept, prunable, prune_further
from fedprune.sparsity.schedules import Schedule, cosine, cubic


class Gradual(PruningStrategy):
    """Gradual magnitude pruning (Zhu and Gupta 2017); with ``regrow`` GraNet (Liu et al., NeurIPS 2021)."""

    class Options(PruningStrategy.Options):
        """The schedule, the layers' shares and the regrowth."""

        density: float = Field(gt=0, le=1, description="Kept share of the prunable weights at the end.")
        initial_density: float = Field(1.0, gt=0, le=1, description="Kept share at the start.")
        distribution: str = Field("uniform", description="How much each layer keeps: uniform, erk or global.")
        start: int = Field(1, ge=1, description="Round in which the schedule starts, at initial_density.")
        end: int | None = Field(
            None, ge=1, description="Round that reaches the density; after 3/4 of all rounds where not given."
        )
        prune_every: int = Field(1, ge=1, description="Rounds from one pruning to the next.")
        regrow: bool = Field(False, description="Whether weights are regrown by gradient, as in GraNet.")
        regrow_fraction: float = Field(
            0.5, gt=0, le=1, description="Share of each layer regrown at first; falls to 0 as a cosine."
        )
        growth_batches: int = Field(1, ge=1, description="Batches on which a client judges what should grow.")

    options: Options

    @classmethod
    def validation_errors(cls, scenario: Scenario, options: Options) -> Iterator[tuple[str, str]]:
        """Find a schedule that does not fit the rounds."""
        yield from super().validation_errors(scenario, options)
        end = last_round(options, scenario.rounds)
        if end < options.start:
            yield (
                "start",
                f"pruning starts in round {options.start} and ends in round {end}: set an earlier one",
            )
        if end > scenario.rounds:
            yield "end", f"round {end} never comes: the scenario has {scenario.rounds} rounds"
        if options.density > options.initial_density:
            yield "density", f"{options.density} is above initial_density, {options.initial_density}"

    def prepare(self, grid: Grid) -> None:
        """Start at the initial density."""
        self.set_masks(all_kept(self.module, prunable(self.module, self.options.keep)))
        if self.options.initial_density < 1:
            self.prune_to(self.options.initial_density)

    def due(self, server_round: int) -> bool:
        """Return whether a round prunes; the last one of the schedule always does.

        So does one after it, where that had no reply and left the model above its density.
        """
        options, end = self.options, last_round(self.options, self.scenario.rounds)
        if server_round > end:
            shapes = {name: mask.shape for name, mask in self.masks.items()}
            return sum(self.masks.kept.values()) > total_kept(shapes, options.density)
        on_beat = (server_round - options.start) % options.prune_every == 0
        return options.start <= server_round and (on_beat or server_round == end)

    def scheduled(self, server_round: int, schedule: Schedule, start: float, end: float) -> float:
        """Return a number on its way from ``start`` in the first round that prunes to ``end`` in the last."""
        first, last = self.options.start, last_round(self.options, self.scenario.rounds)
        progress = (server_round - first) / (last - first) if server_round < last else 1.0
        return schedule(progress, start, end)

    def density_after(self, server_round: int) -> float:
        """Return the density after a round that prunes (Zhu and Gupta 2017, equation 1)."""
        return self.scheduled(server_round, cubic, self.options.initial_density, self.options.density)

    def regrown(self, server_round: int) -> dict[str, int]:
        """Return how many weights of each layer grow in a round, given what the layers keep."""
        share = self.scheduled(server_round, cosine, self.options.regrow_fraction, 0.0)
        return {name: math.floor(share * kept) for name, kept in self.masks.kept.items()}

    def growth(self, server_round: int) -> GrowthRequest | None:
        """Ask for what should grow, at most as much as if this round pruned nothing."""
        if not (self.options.regrow and self.due(server_round)):
            return None
        pruned = {name: mask.numel() - self.masks.kept[name] for name, mask in self.masks.items()}
        counts = {name: min(count, pruned[name]) for name, count in self.regrown(server_round).items()}
        counts = {name: count for name, count in counts.items() if count > 0}
        return GrowthRequest(counts, self.options.growth_batches) if counts else None

    def update_masks(self, server_round: int) -> None:
        """Prune to the schedule's density; then swap what clients voted for."""
        if not self.due(server_round):
            return
        self.prune_to(self.density_after(server_round))
        if self.request is not None:
            counts = self.regrown(server_round)
            self.set_masks(swap_masks(self.masks, self.votes, self.state, counts))

    def prune_to(self, density: float) -> None:
        """Prune the weights of smallest magnitude."""
        distribution = registry.load("distribution", self.options.distribution, self.scenario.directory)
        self.set_masks(prune_further(self.state, self.masks, distribution, density))


def last_round(options: Gradual.Options, rounds: int) -> int:
    """Return the round that reaches the density."""
    return options.end if options.end is not None else max(options.start, rounds * 3 // 4)
