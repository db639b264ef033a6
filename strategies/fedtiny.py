"""FedTiny (Huang et al., ICDCS 2023): Distributed Pruning Towards Tiny Neural Networks.

Two modules (arXiv 2212.01977). Adaptive batch-norm selection: of several coarsely pruned candidates,
take the one with the smallest loss on the clients' data once its batch norms have the clients'
statistics. Progressive pruning: every few rounds, in a few layers at a time, grow the pruned weights
whose gradient is largest and drop as many of the smallest kept ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fedprune import batch_norm, registry, seeds
from fedprune.errors import PluginError, RunError
from fedprune.messages import metrics_of, real, whole
from fedprune.reports import GrowthRequest
from fedprune.scenario import Scenario
from fedprune.sparsity.criteria import needs_data
from fedprune.sparsity.distributions import Distribution, Shapes, rescale
from fedprune.sparsity.growth import swap_masks
from fedprune.sparsity.masks import Masks
from fedprune.sparsity.pruning import blocks, prunable, prune
from fedprune.strategy import PruningStrategy
from fedprune.wire import CODEC, get_state, set_state


class Noise(BaseModel):
    """How the layer densities of a candidate differ from those of its base."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    family: Literal["uniform", "lognormal"] = Field(
        "uniform", description="uniform: times 1 + amount * U(-1, 1); lognormal: times exp(amount * N(0, 1))."
    )
    amount: float = Field(0.5, ge=0, le=1, description="How much; 0 leaves every candidate its base.")

    def factors(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """Draw one factor a layer, above 0."""
        if self.family == "lognormal":
            return np.exp(self.amount * generator.standard_normal(count))
        return np.maximum(1 + self.amount * generator.uniform(-1, 1, count), 1e-3)


class FedTiny(PruningStrategy):
    """Candidate selection by batch-norm statistics, then progressive pruning (Huang et al., ICDCS 2023)."""

    class Options(PruningStrategy.Options):
        """Both modules; ``selection`` and ``adjust`` switch them off for the paper's ablations."""

        density: float = Field(gt=0, le=1, description="Kept share of the prunable weights.")
        pretrain_epochs: int = Field(1, ge=0, description="Epochs on the server's public data at the start.")
        selection: bool = Field(True, description="Whether clients choose among candidates.")
        candidates: int | None = Field(
            None, ge=1, description="Size of the pool; round(0.1 / density), at least 2, where not given."
        )
        bases: tuple[tuple[str, str], ...] = Field(
            (("magnitude", "uniform"),),
            min_length=1,
            strict=False,
            description="What candidates come from: [criterion, distribution] pairs, taken in turn.",
        )
        noise: Noise = Field(default_factory=Noise, description="How candidates differ from their base.")
        calibration_examples: int = Field(
            256, ge=1, description="Examples on which a client measures batch-norm statistics, at most."
        )
        pool_variance: bool = Field(
            True, description="Whether variances are pooled over clients; false: averaged, as in the paper."
        )
        adjust: bool = Field(True, description="Whether the mask moves during training.")
        adjust_every: int = Field(10, ge=1, description="Rounds from one adjustment to the next.")
        stop_adjusting_at: int = Field(100, ge=1, description="Last round that may adjust.")
        granularity: Literal["layer", "block", "model"] = Field(
            "block", description="What one adjustment looks at: a layer, a stage of the model, or all of it."
        )
        order: Literal["backward", "forward"] = Field(
            "backward", description="From the output to the input, or the other way."
        )
        swap_fraction: float = Field(0.15, gt=0, le=0.5, description="Half the share swapped at the start.")
        growth_batches: int = Field(1, ge=1, description="Batches on which a client judges what should grow.")

    options: Options

    @classmethod
    def mistakes(cls, scenario: Scenario, options: Options) -> Iterator[tuple[str, str]]:
        """Find bases that do not exist, and modules that lack the data they need."""
        yield from super().mistakes(scenario, options)
        public = scenario.data.server_fraction > 0
        if options.pretrain_epochs > 0 and not public:
            yield "pretrain_epochs", "pretraining needs public data: set data.server_fraction, or 0 epochs"
        for pair in options.bases:
            for kind, name in zip(("criterion", "distribution"), pair, strict=True):
                try:
                    found = registry.load(kind, name, scenario.directory)
                except PluginError as error:
                    yield "bases", str(error)
                    continue
                if kind == "criterion" and needs_data(found) and not public:
                    yield "bases", f"{name} needs data on the server: set data.server_fraction"

    # Selection ---------------------------------------------------------------------------

    def prepare(self, grid: Grid) -> None:
        """Pretrain, then take the candidate that suits the clients best."""
        if self.options.pretrain_epochs:
            self.pretrain(self.options.pretrain_epochs)
        dense, pool = self.state, self.candidates()
        if not self.options.selection:
            self.set_masks(pool[0])
            return
        losses, states = [], []
        for masks in pool:
            self.state = dense
            self.set_masks(masks)
            losses.append(self.ask_loss(grid))
            states.append(self.state)
        best = int(np.argmin(losses))
        if not math.isfinite(losses[best]):
            raise RunError("selection: no client told the loss of any candidate")
        self.state = states[best]
        self.set_masks(pool[best])

    def candidates(self) -> list[Masks]:
        """Return the pool: each base first as it is, then with perturbed layer densities."""
        options, directory = self.options, self.scenario.directory
        count = options.candidates or max(2, round(0.1 / options.density))
        names = prunable(self.module, options.keep)
        set_state(self.module, self.state)
        pool = []
        for number in range(count if options.selection else 1):
            criterion, distribution = options.bases[number % len(options.bases)]
            base: Distribution = registry.load("distribution", distribution, directory)
            generator = seeds.numpy_generator(self.scenario.seed, "candidate", number)
            factors = np.ones(len(names))
            if number >= len(options.bases):
                factors = options.noise.factors(generator, len(names))
            pool.append(
                prune(
                    self.module,
                    names,
                    criterion=registry.load("criterion", criterion, directory),
                    distribution=perturbed(base, dict(zip(names, factors, strict=True))),
                    density=options.density,
                    input_shape=self.federation.info.input_shape,
                    batches=self.public_batches(),
                    generator=seeds.torch_generator(self.scenario.seed, "prune", number),
                )
            )
        return pool

    def ask_loss(self, grid: Grid) -> float:
        """Return the clients' loss of the current candidate, under their own pooled statistics.

        The statistics stay in ``self.state``. A client that drops out in between counts in neither sum.
        """
        module, options = self.module, self.options

        def read_statistics(reply: Message) -> tuple[int, int, np.ndarray]:
            record = reply.content.array_records.get("statistics")
            examples = whole(metrics_of(reply.content), "num-examples", least=1)
            return self.exchange.number_of(reply), examples, batch_norm.read_statistics(record, module)

        def read_loss(reply: Message) -> tuple[int, float]:
            metrics = metrics_of(reply.content)
            return whole(metrics, "num-examples", least=1), real(metrics, "loss")

        content = self.state_contents(0, {"examples": options.calibration_examples})
        asked = (
            self.exchange.message(number, content(number), "query.bn_statistics", 0)
            for number in sorted(self.clients)
        )
        measured = list(self.exchange.accept(0, self.exchange.send(grid, asked), read_statistics))
        if not measured:
            return math.inf
        numbers, weights, statistics = zip(*measured, strict=True)
        pooled = batch_norm.pool(
            statistics, weights, batch_norm.sizes(module), pool_variance=options.pool_variance
        )
        record = batch_norm.statistics_record(pooled)
        set_state(module, self.state)
        batch_norm.put_statistics(module, record)
        self.state = get_state(module)
        config = ConfigRecord({"round": 0, "mask-version": self.masks.version, "codec": CODEC})
        question = RecordDict({"statistics": record, "config": config})
        asked = (self.exchange.message(number, question, "query.loss", 0) for number in numbers)
        losses = list(self.exchange.accept(0, self.exchange.send(grid, asked), read_loss))
        total = sum(examples for examples, _ in losses)
        return sum(examples * loss for examples, loss in losses) / total if total else math.inf

    # Progressive pruning -----------------------------------------------------------------

    def growth(self, server_round: int) -> GrowthRequest | None:
        """Ask for growth in the next group of layers, in a round with an adjustment."""
        options = self.options
        due = server_round % options.adjust_every == 0 and server_round <= options.stop_adjusting_at
        if not (options.adjust and due):
            return None
        groups = self.groups()
        group = groups[(server_round // options.adjust_every - 1) % len(groups)]
        share = options.swap_fraction * (1 + math.cos(math.pi * server_round / options.stop_adjusting_at))
        kept = self.masks.kept
        counts = {
            name: min(math.floor(share * kept[name]), kept[name], self.masks[name].numel() - kept[name])
            for name in group
        }
        counts = {name: count for name, count in counts.items() if count > 0}
        return GrowthRequest(counts, options.growth_batches) if counts else None

    def groups(self) -> list[list[str]]:
        """Return the groups of layers that adjustments look at, in their order."""
        names = prunable(self.module, self.options.keep)
        groups = {
            "layer": [[name] for name in names],
            "block": blocks(self.module, names),
            "model": [names],
        }[self.options.granularity]
        return groups[::-1] if self.options.order == "backward" else groups

    def update_masks(self, server_round: int) -> None:
        """Swap what the clients voted for; every layer keeps its number of weights."""
        if self.request is not None:
            self.set_masks(swap_masks(self.masks, self.votes, self.state, self.request.counts))


def perturbed(base: Distribution, factors: Mapping[str, float]) -> Distribution:
    """Return a distribution with the layer densities of another, each times its factor, rescaled."""

    def distribution(shapes: Shapes, density: float, scores: Mapping[str, Tensor]) -> dict[str, float]:
        densities = base(shapes, density, scores)
        if all(factor == 1 for factor in factors.values()):
            return densities
        return rescale({name: densities[name] * factors[name] for name in shapes}, shapes, density)

    return distribution
