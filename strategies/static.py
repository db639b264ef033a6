"""Static pruning: prune once on the server, then train under that mask.

Any criterion and any distribution. The SynFlow and SNIP baselines of the federated pruning papers
are settings of it: ``criterion: synflow, distribution: global`` (Tanaka et al., NeurIPS 2020) and
``criterion: snip, distribution: global`` (Lee et al., ICLR 2019).
"""

from __future__ import annotations

from flwr.serverapp import Grid
from pydantic import Field

from fedprune import registry, seeds
from fedprune.sparsity.pruning import prunable, prune
from fedprune.strategy import PruningStrategy


class Static(PruningStrategy):
    """Prune once on the server by any criterion, then train under that mask."""

    class Options(PruningStrategy.Options):
        """What decides the mask."""

        density: float = Field(gt=0, le=1, description="Kept share of the prunable weights.")
        criterion: str = Field("magnitude", description="What scores a weight; see `fedprune list criteria`.")
        distribution: str = Field("erk", description="How much each layer keeps: uniform, erk or global.")
        iterations: int | None = Field(
            None, ge=1, description="Pruning steps; the criterion's own default where not given."
        )

    options: Options

    def prepare(self, grid: Grid) -> None:
        """Prune the initial model; criteria that need data use the server's public data."""
        options, directory = self.options, self.scenario.directory
        self.set_masks(
            prune(
                self.module,
                prunable(self.module, options.keep),
                criterion=registry.load("criterion", options.criterion, directory),
                distribution=registry.load("distribution", options.distribution, directory),
                density=options.density,
                iterations=options.iterations,
                input_shape=self.federation.info.input_shape,
                batches=self.public_batches(),
                generator=seeds.torch_generator(self.scenario.seed, "prune"),
            )
        )
