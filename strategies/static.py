"""Static pruning: prune once on the server, then train under that mask.

Any criterion and any distribution. The SynFlow and SNIP baselines of the federated pruning papers
are settings of it: ``criterion: synflow, distribution: global`` (Tanaka et al., NeurIPS 2020) and
``criterion: snip, distribution: global`` (Lee et al., ICLR 2019).
"""

from __future__ import annotations

from collections.abc import Iterator

from flwr.serverapp import Grid
from pydantic import Field

from fedprune import registry, seeds
from fedprune.errors import PluginError
from fedprune.scenario import Scenario
from fedprune.sparsity.criteria import needs_data
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

    @classmethod
    def mistakes(cls, scenario: Scenario, options: Options) -> Iterator[tuple[str, str]]:
        """Find a criterion or distribution that does not exist or lacks the data it needs."""
        yield from super().mistakes(scenario, options)
        for kind in ("criterion", "distribution"):
            try:
                found = registry.load(kind, getattr(options, kind), scenario.directory)
            except PluginError as error:
                yield kind, str(error)
                continue
            if kind == "criterion" and needs_data(found) and scenario.data.server_fraction == 0:
                yield (
                    kind,
                    (
                        f"{options.criterion} needs data on the server: set data.server_fraction, or take a "
                        "criterion without data (random, magnitude, synflow)"
                    ),
                )

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
