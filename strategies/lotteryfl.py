"""LotteryFL (Li et al. 2020): every client finds a lottery ticket of its own.

LotteryFL is personalised. A client whose model is accurate enough on its held-out examples prunes it by
magnitude and rewinds it to the initial weights, before it trains. It receives and returns the weights under
its own mask alone; the server averages each weight over the clients that kept it.

The density that the server reports is that of the weights which any client keeps; each client's own density
is that of its own mask (``personal_masks``). ``personal_accuracy`` measures the clients' own models.

References
----------
- A. Li, J. Sun, B. Wang, L. Duan, S. Li, Y. Chen, H. Li: LotteryFL: Personalized and Communication-Efficient
  Federated Learning with Lottery Ticket Hypothesis on Non-IID Datasets. 2020, arXiv 2008.03371.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flwr.serverapp import Grid
from pydantic import Field

from fedprune.errors import UserError
from fedprune.protocol.client_masks import TicketRequest
from fedprune.scenario import Scenario
from fedprune.server.federation import Federation
from fedprune.server.personalised import PersonalisedStrategy


class LotteryFL(PersonalisedStrategy):
    """LotteryFL (Li et al., 2020): each client prunes its own model and rewinds; overlaps are averaged."""

    class Options(PersonalisedStrategy.Options):
        """When and how much a client prunes."""

        density: float = Field(gt=0, le=1, description="Kept share at which a client stops pruning.")
        prune_step: float = Field(
            0.2, gt=0, lt=1, description="Share of its remaining weights that a client prunes at a time."
        )
        accuracy_threshold: float = Field(
            0.5, ge=0, le=1, description="Accuracy on its held-out examples from which on a client prunes."
        )

    options: Options
    no_updates = "a client that prunes also rewinds, which no small update stands for"

    @classmethod
    def validation_errors(cls, scenario: Scenario, options: Options) -> Iterator[tuple[str, str]]:
        """Find that clients hold out nothing to measure their accuracy on."""
        yield from super().validation_errors(scenario, options)
        if scenario.data.client_test_fraction == 0:
            yield (
                "accuracy_threshold",
                "clients need held-out examples to measure it: set data.client_test_fraction, as to 0.2",
            )
        if options.pretrain_epochs > 0:
            yield "pretrain_epochs", "clients rewind to the initial weights, not to pretrained ones: set 0"
        if scenario.model.weights is not None:
            yield "name", "clients rewind to the weights that the seed draws: leave model.weights out"

    def __init__(self, federation: Federation, options: Options, **given: Any) -> None:
        super().__init__(federation, options, **given)
        if self.task.metric("accuracy") is None:
            raise UserError(
                f"lotteryfl: clients prune by their accuracy, and task {self.task.name!r} has none"
            )

    def prepare(self, grid: Grid) -> None:
        """Start with every client at the whole model."""
        self.set_masks(self.whole)
        self.personal_masks = self.new_personal_masks()

    def mask_request(self, server_round: int) -> TicketRequest:
        """Let every client prune whose accuracy is high enough."""
        options = self.options
        return TicketRequest(options.prune_step, options.accuracy_threshold, options.density)
