"""FedDIP (Long et al., ICDM 2023): Extreme Dynamic Pruning and Incremental Regularization.

Clients train dense weights by the gradients of the pruned model, and reply them pruned. The loss has
``lambda`` times the 2-norm of each layer's pruned weights, and lambda grows in ``regularisation_steps`` equal
steps over the run, from 0 to just below ``regularisation``. From ``initial_density`` the density falls along
a cubic curve to its target in the last round. Every ``reconfigure_every`` rounds the masks move: each client
prunes its dense weights anew, and the server prunes their mean to the density of the round. Both take the
largest weights of the whole model.

Differences from the paper
--------------------------
- Clients reply pruned weights, as the paper counts them; in the authors' code the server averages dense ones.
- The masks also move in the last round, so that the model ends at its density.
- Lambda takes equal steps from 0; in the authors' code its second value is the weight decay, 5e-4.

References
----------
- Q. Long, C. Anagnostopoulos, S. P. Parambath, D. Bi: FedDIP: Federated Learning with Extreme Dynamic Pruning
  and Incremental Regularization. ICDM 2023, arXiv 2309.06805. Code: github.com/EricLoong/feddip.
- T. Lin, S. U. Stich, L. Barba, D. Dmitriev, M. Jaggi: Dynamic Model Pruning with Feedback. ICLR 2020, arXiv
  2006.07253.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flwr.serverapp import Grid
from pydantic import Field

from fedprune.protocol.client_masks import PruneAnewRequest
from fedprune.scenario import Scenario
from fedprune.server.aggregation import ZeroFilledMean
from fedprune.server.option_checks import dense_copy_errors
from fedprune.server.strategy import PruningStrategy
from fedprune.sparsity.schedules import cubic


class FedDIP(PruningStrategy):
    """Pruning with error feedback and a norm that grows (Long et al., ICDM 2023)."""

    client = "feedback"
    mean = ZeroFilledMean

    class Options(PruningStrategy.Options):
        """The schedules of density and regularisation."""

        density: float = Field(gt=0, le=1, description="Kept share of the prunable weights at the end.")
        initial_density: float = Field(0.5, gt=0, le=1, description="Kept share at the start.")
        distribution: str = Field(
            "erk", description="How much each layer keeps of the first, random mask: uniform, erk or global."
        )
        reconfigure_every: int = Field(20, ge=1, description="Rounds from one move of the masks to the next.")
        regularisation: float = Field(
            1e-3,
            ge=0,
            allow_inf_nan=False,
            description="What lambda, the norm's factor in the loss, tends to.",
        )
        regularisation_steps: int = Field(20, ge=1, description="Steps in which it grows.")

    options: Options

    @classmethod
    def validation_errors(cls, scenario: Scenario, options: Options) -> Iterator[tuple[str, str]]:
        """Find a density above the initial one, and that clients are to train nested parts."""
        yield from super().validation_errors(scenario, options)
        yield from dense_copy_errors(scenario)
        if options.density > options.initial_density:
            yield "density", f"{options.density} is above initial_density, {options.initial_density}"

    def prepare(self, grid: Grid) -> None:
        """Prune the initial model at random, to the initial density."""
        options = self.options
        self.set_masks(self.pruned("random", options.distribution, density=options.initial_density))

    def due(self, server_round: int) -> bool:
        """Return whether the masks move in a round."""
        return server_round % self.options.reconfigure_every == 0 or server_round == self.scenario.rounds

    def strength(self, server_round: int) -> float:
        """Return lambda in a round."""
        steps = self.options.regularisation_steps
        step = (server_round - 1) * steps // self.scenario.rounds
        return self.options.regularisation * step / steps

    def train_config(self, server_round: int) -> dict[str, Any]:
        """Tell clients lambda."""
        return {"norm-strength": self.strength(server_round)}

    def mask_request(self, server_round: int) -> PruneAnewRequest | None:
        """Let clients prune anew, in a round in which the masks move."""
        return PruneAnewRequest() if self.due(server_round) else None

    def update_masks(self, server_round: int) -> None:
        """Prune the mean to the density of the round."""
        if self.due(server_round):
            progress = server_round / self.scenario.rounds
            density = cubic(progress, self.options.initial_density, self.options.density)
            self.prune_to(density, "magnitude", "global")
