"""FedMef (Huang et al., CVPR 2024): Towards Memory-efficient Federated Dynamic Pruning.

FedMef makes FedTiny's adjustments, with two additions:

- *Budget-aware extrusion.* In the rounds before an adjustment clients drive the weights that it would drop,
  the smallest of the layers that it looks at, towards zero by ``strength * |w|^2`` in the loss.
- *Scaled activation pruning.* Of the activations that the backward pass needs, clients keep the largest.
  Convolution filters are standardised over their kept weights so that activations centre around zero.

As in the paper, the first mask is random, growth and extrusion follow the same adjustment schedule, and the
learning rate of extrusion is ``beta = p(z) * (2 * sigmoid(|w_low|) - 1) * eta`` with REX's ``p`` over the
budget. Forward passes are exact; gradients of weights come from pruned activations.

Differences from the paper
--------------------------
- The extrusion's learning rate holds for all weights.
- The defaults of strength, rounds, distribution and activation density are ours.
- Every round marks its smallest weights anew, on the model as it was sent.
- A filter's kept weights are kept at mean 0 by projection after each step and each change of masks (an
  average of centred filters is centred), and standardised once at the start. From then on the filter's
  norm, trained with them, is the gain that the paper's normalised convolution has as its own parameter.
- A weight that grows starts at 0 less the mean of its filter.
- Batch norm stays in the model, and the input that it saves stays dense, unless the model is built without
  it (``model.batch_norm: false``, the paper's form, for the built-in models that have batch norm).
- Pooling keeps what it needs in full, ReLU one bit a value.

References
----------
- H. Huang, W. Zhuang, C. Chen, L. Lyu: FedMef: Towards Memory-efficient Federated Dynamic Pruning. CVPR 2024,
  arXiv 2403.14737.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from flwr.serverapp import Grid
from pydantic import Field

from fedprune.protocol.extrusion import ExtrusionRequest
from fedprune.protocol.reports import GrowthRequest
from fedprune.scenario import Scenario
from fedprune.server.progressive import Adjustments
from fedprune.server.strategy import PruningStrategy
from fedprune.sparsity.growth import swap_masks
from fedprune.sparsity.standardisation import centred_state, convolutions, standardised_state


class FedMef(PruningStrategy):
    """FedMef (Huang et al., CVPR 2024): progressive pruning with extrusion and pruned activations."""

    client = "extruding"

    class Options(Adjustments, PruningStrategy.Options):
        """The first mask, the adjustments, the extrusion before them and what is kept of activations."""

        density: float = Field(gt=0, le=1, description="Kept share of the prunable weights.")
        criterion: str = Field("random", description="What scores a weight; see `fedprune list criteria`.")
        distribution: str = Field("erk", description="How much each layer keeps: uniform, erk or global.")
        extrusion_strength: float = Field(
            1e-2, ge=0, description="Factor of the squared norm of the weights about to be dropped."
        )
        extrusion_rounds: int = Field(
            1, ge=0, description="Rounds of extrusion before an adjustment, its own the last; 0 for none."
        )
        extrusion_schedule: Literal["budget", "constant"] = Field(
            "budget",
            description="Learning rate of these rounds: falling with the budget and with what is left to "
            "extrude, as in the paper, or as in other rounds.",
        )
        activation_density: float = Field(
            0.2, gt=0, le=1, description="Share of an activation that is kept for the backward pass."
        )
        standardise: bool = Field(
            True, description="Whether the kept weights of each convolution filter have mean 0."
        )

    options: Options

    @classmethod
    def validation_errors(cls, scenario: Scenario, options: Options) -> Iterator[tuple[str, str]]:
        """Find extrusion that is longer than what lies between adjustments."""
        yield from super().validation_errors(scenario, options)
        if options.extrusion_rounds > options.adjust_every:
            yield (
                "extrusion_rounds",
                f"{options.extrusion_rounds} rounds of extrusion do not fit between adjustments every "
                f"{options.adjust_every} rounds",
            )

    def prepare(self, grid: Grid) -> None:
        """Prune once, and standardise what is kept of each filter.

        Pretrained weights are centred only: batch norm has statistics of their scale.
        """
        options = self.options
        masks = self.pruned(options.criterion, options.distribution)
        self.set_masks(masks)
        if options.standardise:
            pretrained = options.pretrain_epochs or self.scenario.model.weights is not None
            standardise = centred_state if pretrained else standardised_state
            self.state = standardise(self.state, convolutions(self.module), masks)

    def growth(self, server_round: int) -> GrowthRequest | None:
        """Ask for growth in the next group of layers, in a round with an adjustment."""
        counts = self.options.swap_counts(server_round, self.module, self.masks)
        return GrowthRequest(counts, self.options.growth_batches) if counts else None

    def extrusion(self, server_round: int) -> ExtrusionRequest | None:
        """Return what clients extrude in a round: what the next adjustment would drop."""
        options = self.options
        ahead = -server_round % options.adjust_every
        if ahead >= options.extrusion_rounds or options.extrusion_strength == 0:
            return None
        counts = options.swap_counts(server_round + ahead, self.module, self.masks)
        done = options.extrusion_rounds - ahead
        return (
            ExtrusionRequest(
                counts,
                strength=options.extrusion_strength,
                start=(done - 1) / options.extrusion_rounds,
                end=done / options.extrusion_rounds,
                budget=options.extrusion_schedule == "budget",
            )
            if counts
            else None
        )

    def train_config(self, server_round: int) -> dict[str, Any]:
        """Tell clients how to train: what they keep of activations, and what they extrude."""
        extrusion = self.extrusion(server_round)
        return {
            "activation-density": self.options.activation_density,
            "standardise": self.options.standardise,
            **(extrusion.config(self.masks) if extrusion else {}),
        }

    def update_masks(self, server_round: int) -> None:
        """Swap what the clients voted for, and centre each filter on what it now keeps."""
        if self.request is not None:
            self.set_masks(swap_masks(self.masks, self.votes, self.state, self.request.counts))
        # Averages of nested parts are not centred where the parts were.
        moved = self.request is not None or self.nested
        if self.options.standardise and moved:
            self.state = centred_state(self.state, convolutions(self.module), self.masks)
