"""LotteryFL (Li et al., 2020, arXiv 2008.03371): every client finds a lottery ticket of its own.

Personalised: a client whose model is accurate enough on its held-out examples prunes it by magnitude
and rewinds it to the initial weights, before it trains. It is sent, and replies, the weights under its
own mask alone; the server averages each weight over the clients that kept it.

The density that the server reports is that of the weights which any client keeps; what a client is at
stands in its own mask (``tickets``). ``evaluation.clients`` measures the personal models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flwr.serverapp import Grid
from pydantic import Field

from fedprune.aggregators import OverlapMean, TrainReply
from fedprune.own_masks import TicketRequest, Tickets
from fedprune.scenario import Scenario
from fedprune.sparsity.masks import Masks
from fedprune.sparsity.pruning import all_kept, prunable
from fedprune.strategy import PruningStrategy


class LotteryFL(PruningStrategy):
    """LotteryFL (Li et al., 2020): each client prunes its own model and rewinds; overlaps are averaged."""

    mean = OverlapMean

    class Options(PruningStrategy.Options):
        """When and how much a client prunes."""

        density: float = Field(gt=0, le=1, description="Kept share at which a client stops pruning.")
        prune_step: float = Field(
            0.2, gt=0, lt=1, description="Share of its remaining weights that a client prunes at a time."
        )
        accuracy_threshold: float = Field(
            0.5, ge=0, le=1, description="Accuracy on its held-out examples from which on a client prunes."
        )

    options: Options

    @classmethod
    def mistakes(cls, scenario: Scenario, options: Options) -> Iterator[tuple[str, str]]:
        """Find that clients hold out nothing to measure their accuracy on."""
        yield from super().mistakes(scenario, options)
        if scenario.data.client_test_fraction == 0:
            yield (
                "accuracy_threshold",
                "clients need held-out examples to measure it: set data.client_test_fraction, as to 0.2",
            )
        if options.pretrain_epochs > 0:
            yield "pretrain_epochs", "clients rewind to the initial weights, not to pretrained ones: set 0"

    def prepare(self, grid: Grid) -> None:
        """Start with every client at the whole model."""
        self.set_masks(all_kept(self.module, prunable(self.module, self.options.keep)))
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

    def mask_request(self, server_round: int) -> TicketRequest:
        """Let every client prune whose accuracy is high enough."""
        options = self.options
        return TicketRequest(options.prune_step, options.accuracy_threshold, options.density)

    def observe(self, server_round: int, reply: TrainReply) -> None:
        """Keep the masks that a client has pruned."""
        self.tickets.note(reply.client, reply.codec.masks)

    def update_masks(self, server_round: int) -> None:
        """The global model has every weight that any client keeps."""
        masks = self.tickets.union()
        if masks != self.masks:
            self.set_masks(masks)
