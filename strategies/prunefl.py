"""PruneFL (Jiang et al., TNNLS 2022): Model Pruning Enables Efficient Federated Learning on Edge Devices.

An initial pruning happens on one client, or on the server's data. Then, every few rounds, the clients report
the mean squared gradient of every weight. The largest weights of each layer stay; of all others, the server
keeps those that promise the most descent per second of a round. The model may shrink and grow.

Differences from the paper
--------------------------
- Gradients are squared batch by batch on ``importance_batches`` batches after local training, not summed up
  over all steps since the last adjustment.
- The initial pruning does not train in between. The authors' code prunes the same share of every layer by
  magnitude, adjusts, and repeats this until the size is stable. Here it prunes once, to ``density`` by
  ``distribution``, and adjusts once.
- The model never exceeds ``density``, and every layer keeps at least one weight.
- Weights that are never pruned count as time but not as descent.

References
----------
- Y. Jiang, S. Wang, V. Valls, B. J. Ko, W.-H. Lee, K. K. Leung, L. Tassiulas: Model Pruning Enables Efficient
  Federated Learning on Edge Devices. IEEE Transactions on Neural Networks and Learning Systems, 2022,
  arXiv 1909.12326.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from flwr.app import Message
from flwr.serverapp import Grid
from pydantic import Field
from torch import Tensor

from fedprune.costs.clock import task_seconds
from fedprune.errors import RunError
from fedprune.protocol.reports import ImportanceRequest, read_importance
from fedprune.scenario import Scenario
from fedprune.server.aggregation import TrainReply
from fedprune.server.strategy import PruningStrategy
from fedprune.sparsity.growth import mean_squared_gradient
from fedprune.sparsity.masks import Masks, highest
from fedprune.sparsity.pruning import all_kept, prunable
from fedprune.sparsity.ratio import best_ratio
from fedprune.wire import set_state


class PruneFL(PruningStrategy):
    """PruneFL (Jiang et al., TNNLS 2022): keep the weights with the most squared gradient per second."""

    class Options(PruningStrategy.Options):
        """Where pruning starts, and when and how far it goes on."""

        density: float = Field(gt=0, le=1, description="Kept share of the prunable weights, at most.")
        initial: Literal["client", "server"] = Field(
            "client", description="Who prunes first: the fastest client, or the server on its public data."
        )
        distribution: str = Field(
            "erk", description="How much of each layer the initial pruning keeps: uniform, erk or global."
        )
        adjust_every: int = Field(10, ge=1, description="Rounds from one adjustment to the next.")
        stop_adjusting_at: int | None = Field(
            None, ge=1, description="Last round that may adjust; no last one where not given."
        )
        prunable_share: float = Field(
            0.3,
            ge=0,
            le=1,
            description="Share of each layer's kept weights, the smallest, that an adjustment may prune.",
        )
        importance_batches: int = Field(
            4, ge=1, description="Batches on which a client measures squared gradients."
        )

    options: Options

    @classmethod
    def validation_errors(cls, scenario: Scenario, options: Options) -> Iterator[tuple[str, str]]:
        """Find that the server has no data to prune on."""
        yield from super().validation_errors(scenario, options)
        if options.initial == "server" and scenario.data.server_fraction == 0:
            yield "initial", "the server has no public data: set data.server_fraction, or 'client'"

    # Initial pruning ---------------------------------------------------------------------

    def prepare(self, grid: Grid) -> None:
        """Prune every layer by magnitude, and adjust by the importance that one site measures before.

        Importance alone would leave some layers next to nothing, since a few weights of the others have far
        larger gradients: a deep model does not learn through them.
        """
        self.set_masks(all_kept(self.module, prunable(self.module, self.options.keep)))
        on_server = self.options.initial == "server"
        importance = self.measured_here() if on_server else self.measured_by_a_client(grid)
        set_state(self.module, self.state)
        self.set_masks(self.pruned("magnitude", self.options.distribution))
        self.set_masks(self.chosen(importance))

    def measured_here(self) -> dict[str, Tensor]:
        """Return the importance on the server's public data."""
        set_state(self.module, self.state)
        batches = [[batch] for batch in self.public_batches()[: self.options.importance_batches]]
        loss = self.task.loss
        return {name: mean_squared_gradient(self.module, name, batches, loss) for name in self.masks}

    def measured_by_a_client(self, grid: Grid) -> dict[str, Tensor]:
        """Ask clients, the fastest first, until one measures the importance."""
        request = ImportanceRequest(self.options.importance_batches)
        content = self.state_contents(0, request.config())
        for number in sorted(self.clients, key=lambda n: (-self.clients[n].profile.compute, n)):
            self.federation.announce(f"round 0: client {number} measures the importance of weights")
            found = self.ask(grid, [number], "query.importance", content, self.read_report)
            if number in found:
                return found[number]
        raise RunError(
            f"initial pruning: no client measured the importance of weights: {self.accounts.reasons}"
        )

    # Adjustment --------------------------------------------------------------------------

    def due(self, server_round: int) -> bool:
        """Return whether a round has an adjustment."""
        last = self.options.stop_adjusting_at
        return server_round % self.options.adjust_every == 0 and (last is None or server_round <= last)

    def train_config(self, server_round: int) -> Mapping[str, Any]:
        """Ask for importance, in a round with an adjustment."""
        self.total: dict[str, Tensor] = {}
        self.weight = 0
        if not self.due(server_round):
            return {}
        return ImportanceRequest(self.options.importance_batches).config()

    def read(self, server_round: int, reply: Message) -> dict[str, Tensor] | None:
        """Return a client's importance by layer."""
        return self.read_report(reply) if self.due(server_round) else None

    def read_report(self, reply: Message) -> dict[str, Tensor]:
        """Return the importance in a reply."""
        return read_importance(reply.content.array_records.get("importance"), self.masks)

    def observe(self, server_round: int, reply: TrainReply) -> None:
        """Add up importance, weighted by examples."""
        for name, found in (reply.report or {}).items():
            before = self.total.get(name, torch.zeros(found.shape, dtype=torch.float64))
            self.total[name] = before.add_(found, alpha=reply.weight)
        self.weight += reply.weight

    def update_masks(self, server_round: int) -> None:
        """Keep what promises the most descent per second."""
        if self.due(server_round):
            importance = {name: total / self.weight for name, total in self.total.items()}
            self.set_masks(self.chosen(importance))

    def chosen(self, importance: Mapping[str, Tensor]) -> Masks:
        """Return the masks that maximise importance per second of a round (the paper's algorithm 2)."""
        seconds, fixed = self.seconds()
        return best_ratio(
            importance,
            seconds,
            fixed_seconds=fixed,
            required=self.required(),
            density=self.options.density,
        )

    def required(self) -> Masks:
        """Return what an adjustment may not prune: the largest weights of each layer, at least one."""
        required = {}
        for name, mask in self.masks.items():
            kept = self.masks.kept[name]
            sizes = self.state[name].abs().masked_fill(~mask, -torch.inf)
            required[name] = highest(sizes, max(1, kept - round(self.options.prunable_share * kept)))
        return Masks(required)

    def seconds(self) -> tuple[dict[str, float], float]:
        """Return the seconds that a weight of each layer adds to a round, and those of the rest."""
        layers = {layer.weight: layer for layer in self.cost.layers}
        epochs = self.scenario.clients.training.epochs
        nothing = Masks({name: torch.zeros_like(mask) for name, mask in self.masks.items()})
        rest = sum(shape.numel() for name, shape in self.layout.shapes.items() if name not in self.masks)

        def mean(flops_per_example: int, values: int) -> float:
            length = self.codec.itemsize * values
            times = [
                task_seconds(facts.profile, length, flops_per_example * epochs * facts.examples, length)
                for facts in self.clients.values()
            ]
            return sum(times) / len(times)

        each = {name: mean(layers[name].work(1, 1).total, 1) for name in self.masks}
        return each, mean(self.cost.training_flops(nothing, 1), rest)
