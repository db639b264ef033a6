"""FedTiny (Huang et al., ICDCS 2023): Distributed Pruning Towards Tiny Neural Networks.

FedTiny finds a sparse model on the devices themselves, within their memory, in two steps:

- *Adaptive batch-norm selection.* Before round 1 the server trains the dense model on its public data and
  prunes it to several candidates. Each client measures batch-norm statistics of one candidate at a time.
  Under the pooled statistics the clients report the candidate's loss, and the smallest loss wins.
- *Progressive pruning.* Every few rounds, in a few layers at a time, clients report the pruned weights with
  the largest gradient. The server averages the reports, grows the weights with the largest gradient, and
  drops as many of the smallest kept ones. Adjustments move weights within a layer, never between layers.

Differences from the paper
--------------------------
- The clients' variances are pooled, between-client differences of means included; the paper averages them
  (``pool_variance: false``).
- Of a model without batch norm, which has no such statistics, candidates are compared by their loss as they
  are, and the log says so.
- Candidates may be of whole channels (``unit: channel``, ``adjust: false``), which the paper does not have.
- Candidates may come from several criteria and distributions (``bases``); the paper varies the layer
  densities of one (magnitude, uniform), which is the default.

References
----------
- H. Huang, L. Zhang, C. Sun, R. Fang, X. Yuan, D. Wu: Distributed Pruning Towards Tiny Neural Networks in
  Federated Learning. ICDCS 2023, arXiv 2212.01977.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from pydantic import BaseModel, ConfigDict, Field

from fedprune import seeds
from fedprune.errors import RunError
from fedprune.protocol import batch_norm
from fedprune.protocol.messages import metrics_of, real
from fedprune.protocol.reports import GrowthRequest
from fedprune.scenario import Scenario
from fedprune.server.option_checks import plugin_errors
from fedprune.server.progressive import Adjustments
from fedprune.server.strategy import PruningStrategy
from fedprune.sparsity.distributions import Distribution, proportional
from fedprune.sparsity.growth import swap_masks
from fedprune.sparsity.masks import Masks
from fedprune.wire import CODEC, get_state, set_state

_logger = logging.getLogger(__name__)


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

    class Options(Adjustments, PruningStrategy.Options):
        """Both modules; ``selection`` and ``adjust`` switch them off for the paper's ablations."""

        density: float = Field(gt=0, le=1, description="Kept share of the prunable weights.")
        pretrain_epochs: int = Field(
            1, ge=0, description="Epochs on the server's public data, before masks are chosen."
        )
        selection: bool = Field(True, description="Whether clients choose among candidates.")
        candidates: int | None = Field(
            None,
            ge=1,
            le=1000,
            description="Size of the pool; round(0.1 / density), at least 2, where not given.",
        )
        bases: tuple[Annotated[tuple[str, str], Field(strict=False)], ...] = Field(
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

    options: Options
    units = ("weight", "channel")

    @classmethod
    def validation_errors(cls, scenario: Scenario, options: Options) -> Iterator[tuple[str, str]]:
        """Find bases that do not exist or lack data, and channels that would have to grow."""
        yield from super().validation_errors(scenario, options)
        if options.unit == "channel" and options.adjust:
            yield (
                "adjust",
                "a pruned channel has no gradient to grow by, with its inputs and outputs both at 0: set "
                "adjust: false, for selection alone",
            )
        for pair in options.bases:
            for kind, name in zip(("criterion", "distribution"), pair, strict=True):
                yield from plugin_errors(scenario, "bases", kind, name)

    # Selection ---------------------------------------------------------------------------

    def prepare(self, grid: Grid) -> None:
        """Take the candidate with the smallest loss on the clients' data."""
        dense, pool = self.state, self.candidates()
        if not self.options.selection:
            self.set_masks(pool[0])
            return
        if not batch_norm.layers(self.module):
            _logger.warning(
                "selection needs batch norm, and the model has none: candidates are compared by their loss "
                "as they are (strategy.selection: false takes the first without asking)"
            )
        smallest, best = math.inf, (dense, pool[0])
        for number, masks in enumerate(pool, start=1):
            self.federation.announce(f"round 0: candidate {number} of {len(pool)}")
            self.state = dense
            self.set_masks(masks)
            loss = self.loss_of_candidate(grid)
            if loss < smallest:
                smallest, best = loss, (self.state, masks)
        if smallest == math.inf:
            raise RunError(f"selection: no client told the loss of any candidate: {self.accounts.reasons}")
        self.state, masks = best
        self.set_masks(masks)

    def candidates(self) -> list[Masks]:
        """Return the pool: each base first as it is, then with perturbed layer densities."""
        options, seed = self.options, self.scenario.seed
        count = options.candidates or max(2, round(0.1 / options.density))
        names = self.places
        pool: list[Masks] = []
        for number in range(count if options.selection else 1):
            base = number % len(options.bases)
            criterion, named = options.bases[base]
            distribution: str | Distribution = named
            if number > base:
                factors = options.noise.factors(seeds.numpy_generator(seed, "candidate", number), len(names))
                densities = pool[base].densities()
                distribution = proportional(
                    {n: densities[n] * f for n, f in zip(names, factors, strict=True)}
                )
            pool.append(self.pruned(criterion, distribution, draw=number))
        return pool

    def loss_of_candidate(self, grid: Grid) -> float:
        """Return the clients' loss of the current candidate under their pooled statistics, which it keeps.

        Each client weighs as much as it has examples. One that drops out counts in neither the
        weighted sum nor the weights; without any answer the loss is infinite.
        """
        measured = self.ask_statistics(grid)
        if not measured:
            return math.inf
        pooled = batch_norm.pool(
            list(measured.values()),
            [self.clients[number].examples for number in measured],
            batch_norm.sizes(self.module, self.masks),
            pool_variance=self.options.pool_variance,
        )
        statistics = batch_norm.statistics_record(pooled)
        set_state(self.module, self.state)
        batch_norm.put_statistics(self.module, statistics, self.masks)
        self.state = get_state(self.module)
        losses = self.ask_losses(grid, measured, statistics)
        if not losses:
            return math.inf
        examples = [self.clients[number].examples for number in losses]
        return float(np.average(list(losses.values()), weights=examples))

    def ask_statistics(self, grid: Grid) -> dict[int, batch_norm.Vector]:
        """Send the current candidate; return the batch-norm statistics of each client that answers."""

        def read(reply: Message) -> batch_norm.Vector:
            return batch_norm.read_statistics(
                reply.content.array_records.get("statistics"), self.module, self.masks
            )

        content = self.state_contents(0, {"examples": self.options.calibration_examples})
        return self.ask(grid, sorted(self.clients), "query.bn_statistics", content, read)

    def ask_losses(self, grid: Grid, numbers: Iterable[int], statistics: ArrayRecord) -> dict[int, float]:
        """Return the loss of the candidate that clients hold, under these statistics, by client."""

        def read(reply: Message) -> float:
            return real(metrics_of(reply.content), "loss")

        frozen = self.model.frozen_values.config()
        config = ConfigRecord({"round": 0, "mask-version": self.masks.version, "codec": CODEC, **frozen})
        content = RecordDict({"statistics": statistics, "config": config})
        return self.ask(grid, numbers, "query.loss", lambda number: content, read)

    # Progressive pruning -----------------------------------------------------------------

    def growth(self, server_round: int) -> GrowthRequest | None:
        """Ask for growth in the next group of layers, in a round with an adjustment."""
        options = self.options
        counts = options.swap_counts(server_round, self.module, self.masks) if options.adjust else {}
        return GrowthRequest(counts, options.growth_batches) if counts else None

    def update_masks(self, server_round: int) -> None:
        """Swap what the clients voted for; every layer keeps its number of weights."""
        if self.request is not None:
            self.set_masks(swap_masks(self.masks, self.votes, self.state, self.request.counts))
