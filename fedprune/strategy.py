"""``PruningStrategy``: what every method shares on the server.

It is a Flower ``Strategy``. It owns the global state (values and masks), samples clients, speaks
the wire format, adds replies up as they arrive, keeps the ledger and evaluates. A method is a
subclass with options and a few hooks:

- ``prepare``: before round 1; choose the first masks.
- ``sample``: which clients take part in a round.
- ``growth``: which layers may grow after a round; clients then report candidates.
- ``configure_train``: what a round's messages ask for besides training.
- ``observe``: look at each reply as it is aggregated.
- ``update_masks``: after a round's aggregation; move the masks.

Used as it is, without hooks, it is FedAvg. Clients are known by their own number, which they tell
at the start; Flower's node ids are random. So sampling, order and seeds are the same on any grid.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fedprune import registry, seeds
from fedprune.aggregators import Aggregator, FlowerAggregator, TrainReply, WeightedMean
from fedprune.costs.flops import ModelCost
from fedprune.costs.ledger import RoundRecord
from fedprune.data import batches
from fedprune.dense import DenseTwin
from fedprune.errors import PluginError, RunError
from fedprune.exchange import Exchange, Facts, listed
from fedprune.federation import Federation
from fedprune.messages import arrays_of, metrics_of, real, whole
from fedprune.reports import GrowthRequest, read_growth
from fedprune.scenario import Scenario
from fedprune.sparsity.growth import GrowthVotes
from fedprune.sparsity.masks import Masks, apply_masks
from fedprune.training import train
from fedprune.wire import (
    CODEC,
    Layout,
    StateCodec,
    get_state,
    set_state,
    with_masks,
)

_logger = logging.getLogger(__name__)


class PruningStrategy(Strategy):
    """Federated training under masks; the base of every method, and FedAvg as it stands.

    Parameters
    ----------
    federation : Federation
        What is trained, on what, and who evaluates.
    options : Options
        The method's options, validated.
    aggregator : Aggregator, optional
        How replies become the next state; by default what ``options.aggregator`` names, or the
        mean weighted by examples.
    """

    #: The way of training that clients of this strategy run: a name in the registry.
    client: ClassVar[str] = "sparse"

    class Options(BaseModel):
        """Options that every method has."""

        model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

        density: float = Field(1.0, gt=0, le=1, description="Kept share of the prunable weights.")
        keep: tuple[str, ...] = Field(
            ("first", "last"),
            strict=False,
            description="Weights that are never pruned: name patterns, or 'first' and 'last'.",
        )
        aggregator: str | dict[str, Any] | None = Field(
            None,
            description="A stock Flower strategy that aggregates: its dotted name, or a mapping "
            "with 'name' and its own options.",
        )

    def __init__(
        self, federation: Federation, options: Options, *, aggregator: Aggregator | None = None
    ) -> None:
        self.federation = federation
        self.options = options
        self.scenario = federation.scenario
        self.module = federation.module
        self.layout = Layout.of(federation.module)
        self.cost = ModelCost.of(federation.module, federation.info.input_shape)
        self.state: dict[str, Tensor] = get_state(federation.module)
        self.masks = Masks()
        self.codec = StateCodec(self.layout, self.masks, self.scenario.wire.values)
        self.aggregator = aggregator or self._make_aggregator(
            stock_aggregator(self.scenario, options.aggregator)
        )
        self.dense = DenseTwin(self.scenario, self.layout, self.cost)
        self.exchange = Exchange(federation, self.dense)
        self.votes: dict[str, GrowthVotes] = {}
        self.request: GrowthRequest | None = None

    def _make_aggregator(self, stock: tuple[type[Strategy], dict[str, Any]] | None) -> Aggregator:
        if stock is None:
            return WeightedMean()
        return flower_aggregator(self.federation, *stock)

    @classmethod
    def mistakes(cls, scenario: Scenario, options: Any) -> Iterator[tuple[str, str]]:
        """Yield (option, what is wrong) for options that do not fit the scenario, before it runs.

        ``options`` are valid by themselves. An override starts with ``super().mistakes(...)``.
        """
        try:
            stock_aggregator(scenario, options.aggregator)
        except PluginError as error:
            yield "aggregator", str(error)

    # Hooks -------------------------------------------------------------------------------

    def prepare(self, grid: Grid) -> None:
        """Choose the first masks, with ``set_masks``; may exchange messages through ``exchange``."""

    def sample(self, server_round: int) -> list[int]:
        """Return the client numbers of a round, ascending."""
        generator = seeds.numpy_generator(self.scenario.seed, "sample", server_round)
        numbers = sorted(self.clients)
        count = min(self.scenario.clients.per_round, len(numbers))
        return sorted(int(n) for n in generator.choice(numbers, size=count, replace=False))

    def growth(self, server_round: int) -> GrowthRequest | None:
        """Return which layers may grow how many weights after this round; clients report candidates.

        The request is in ``self.request`` and what they reported in ``self.votes`` when
        ``update_masks`` is called.
        """
        return None

    def observe(self, server_round: int, reply: TrainReply) -> None:
        """Look at a reply as it is aggregated; it is not kept."""

    def update_masks(self, server_round: int) -> None:
        """Move the masks after a round's aggregation, with ``set_masks``."""

    # What methods use --------------------------------------------------------------------

    @property
    def clients(self) -> Mapping[int, Facts]:
        """What each client said of itself, by client number."""
        return self.exchange.clients

    def set_masks(self, masks: Masks) -> None:
        """Make ``masks`` the global ones; weights they prune become exactly 0."""
        self.masks = masks
        self.state = apply_masks(self.state, masks)
        self.codec = StateCodec(self.layout, masks, self.scenario.wire.values)
        self.exchange.set_masks(masks)

    def state_contents(
        self, server_round: int, config: Mapping[str, Any], arrays: ArrayRecord | None = None
    ) -> Callable[[int], RecordDict]:
        """Return a function from client number to content: the global state, and masks where needed.

        All clients share one record of values (two, where some need the mask), so that the
        engine carries it once.
        """
        if arrays is None:
            arrays = self.encode_state(server_round)
        own: dict[str, Any] = {"round": server_round, "mask-version": self.masks.version, "codec": CODEC}
        bare = RecordDict({"arrays": arrays, "config": ConfigRecord({**config, **own})})
        full = bare
        if self.masks:
            payload = self.exchange.mask_payload
            full = RecordDict({"arrays": with_masks(arrays, payload), "config": bare["config"]})
        return lambda number: bare if self.exchange.holds_masks(number) else full

    def public_batches(self) -> list[tuple[Tensor, Tensor]]:
        """Return the server's public examples in batches of the clients' size; [] without any."""
        size = self.scenario.clients.training.batch_size
        federation = self.federation
        return list(batches(federation.pictures, federation.public, federation.info, size))

    def pretrain(self, epochs: int) -> None:
        """Train the global model on the server's public data, as a client trains, from where it is."""
        spec = self.scenario.clients.training
        federation, module = self.federation, self.module
        generator = seeds.torch_generator(self.scenario.seed, "pretrain")
        set_state(module, self.state)

        def public() -> Iterator[tuple[Tensor, Tensor]]:
            for _ in range(epochs):
                yield from batches(
                    federation.pictures,
                    federation.public,
                    federation.info,
                    spec.batch_size,
                    generator=generator,
                    augment=self.scenario.data.augment,
                )

        train(module, public(), spec.optimizer, lr=spec.optimizer.lr, masks=self.masks)
        self.state = get_state(module)

    def encode_state(self, server_round: int) -> ArrayRecord:
        """Return the global state as it travels."""
        seed = seeds.derive(self.scenario.seed, "wire", server_round)
        return self.codec.encode(self.codec.flatten(self.state), seed=seed)

    # Flower's interface ------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the training messages of a round: the global state to each sampled client."""
        return self._state_messages(server_round, arrays, config, MessageType.TRAIN)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate replies as they arrive; the new state is ``self.state``, under the masks."""
        weight, loss = 0, 0.0
        for reply in self.exchange.accept(server_round, replies, self._read_train):
            self.aggregator.add(reply)
            for name, (indices, values) in reply.growth.items():
                self.votes[name].add(indices, values, reply.weight)
            self.observe(server_round, reply)
            weight += reply.weight
            loss += reply.weight * reply.loss
        if weight == 0:
            return None, None
        # An aggregator that knows no masks may move a pruned weight: it is put back to 0.
        self.state = apply_masks(self.aggregator.finish(), self.masks)
        return self.encode_state(server_round), MetricRecord({"train-loss": loss / weight})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the evaluation messages of a round, if the scenario asks clients to evaluate."""
        if not self.scenario.evaluation.clients:
            return []
        return self._state_messages(server_round, arrays, config, MessageType.EVALUATE)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the clients' mean accuracy, weighted by held-out examples."""

        def read(reply: Message) -> tuple[int, float]:
            metrics = metrics_of(reply.content)
            return whole(metrics, "num-examples"), real(metrics, "accuracy")

        scores = list(self.exchange.accept(server_round, replies, read))
        examples = sum(count for count, _ in scores)
        correct = sum((count * accuracy for count, accuracy in scores), 0.0)
        return MetricRecord({"accuracy": correct / examples}) if examples else None

    def summary(self) -> None:
        """Log what is run."""
        _logger.info("%s: %s, %s", self.scenario.name, type(self).__name__, self.options)

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int | None = None,
        timeout: float | None = None,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run the federation on a grid.

        All arguments but the grid default to what the scenario says.

        Raises
        ------
        RunError
            When a round ends without a single good reply.
        """
        self.summary()
        self._rounds = num_rounds or self.scenario.rounds
        if timeout is not None:
            self.exchange.timeout = timeout
        result = Result()
        self._start_round()
        self.exchange.meet(grid)
        if initial_arrays is not None:
            self.state = self.codec.unflatten(self.codec.decode(initial_arrays))
        self.prepare(grid)
        self._end_round(0, None, None)
        for server_round in range(1, self._rounds + 1):
            self._start_round()
            train = train_config or ConfigRecord()
            messages = self.configure_train(server_round, self.encode_state(server_round), train, grid)
            arrays, metrics = self.aggregate_train(server_round, self.exchange.send(grid, messages))
            if arrays is None or metrics is None:
                raise RunError(self._no_reply(server_round))
            trained_under = self.masks
            self.update_masks(server_round)
            if self.masks != trained_under:
                arrays = self.encode_state(server_round)
            evaluate = evaluate_config or ConfigRecord()
            client_metrics = None
            if self._evaluates(server_round):
                messages = list(self.configure_evaluate(server_round, arrays, evaluate, grid))
                if messages:
                    client_metrics = self.aggregate_evaluate(server_round, self.exchange.send(grid, messages))
            record = self._end_round(server_round, metrics, client_metrics)
            result.arrays = arrays
            result.train_metrics_clientapp[server_round] = metrics
            if client_metrics is not None:
                result.evaluate_metrics_clientapp[server_round] = client_metrics
            if record.accuracy is not None and record.loss is not None:
                measured = MetricRecord({"accuracy": record.accuracy, "loss": record.loss})
                result.evaluate_metrics_serverapp[server_round] = measured
            if evaluate_fn is not None and (extra := evaluate_fn(server_round, arrays)) is not None:
                result.evaluate_metrics_serverapp[server_round] = extra
        return result

    # How it does it ----------------------------------------------------------------------

    def _state_messages(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, message_type: str
    ) -> Iterator[Message]:
        numbers = self.sample(server_round)
        if message_type == MessageType.TRAIN:
            nodes = [self.clients[number].node_id for number in numbers]
            config = ConfigRecord({**self.aggregator.begin(server_round, self.state, nodes), **config})
            self.request = self.growth(server_round)
            asked = self.request.counts if self.request else ()
            self.votes = {name: GrowthVotes(self.masks[name]) for name in asked}
            if self.request:
                config.update(self.request.config(self.masks))
        content = self.state_contents(server_round, config, arrays)
        for number in numbers:
            yield self.exchange.message(number, content(number), message_type, server_round)

    def _read_train(self, reply: Message) -> TrainReply:
        metrics, growth = metrics_of(reply.content), {}
        if self.request is not None:
            growth = read_growth(reply.content.array_records.get("growth"), self.request, self.masks)
        return TrainReply(
            client=self.exchange.number_of(reply),
            weight=whole(metrics, "num-examples", least=1),
            loss=real(metrics, "loss"),
            values=self.codec.decode(arrays_of(reply.content)),
            codec=self.codec,
            growth=growth,
            message=reply,
        )

    def _start_round(self) -> None:
        self.exchange.start_round()
        self._began = time.perf_counter()

    def _evaluates(self, server_round: int) -> bool:
        return server_round % self.scenario.evaluation.every == 0 or server_round == self._rounds

    def _end_round(
        self, server_round: int, train: MetricRecord | None, clients: MetricRecord | None
    ) -> RoundRecord:
        score = self.federation.evaluate(self.state, self.masks) if self._evaluates(server_round) else None
        record = RoundRecord(
            round=server_round,
            accuracy=score.accuracy if score else None,
            loss=score.loss if score else None,
            train_loss=real(train, "train-loss") if train else None,
            client_accuracy=real(clients, "accuracy") if clients else None,
            density=self.masks.density,
            layer_densities=self.masks.densities(),
            wall_seconds=time.perf_counter() - self._began,
            clients_ok=self.exchange.ok,
            clients_failed=sum(self.exchange.failures.values()),
            bytes_down=self.exchange.tally.bytes_down,
            bytes_up=self.exchange.tally.bytes_up,
            flops=self.exchange.tally.flops,
            peak_memory_bytes=self.exchange.tally.peak_memory_bytes,
            device_seconds=self.exchange.tally.device_seconds,
        )
        for listener in self.federation.listeners:
            listener.on_round(record)
        return record

    def _no_reply(self, server_round: int) -> str:
        total = sum(self.exchange.failures.values())
        reasons = listed(self.exchange.failures)
        return f"round {server_round}: none of {total} clients gave a usable reply: {reasons}"


def stock_aggregator(
    scenario: Scenario, spec: str | dict[str, Any] | None
) -> tuple[type[Strategy], dict[str, Any]] | None:
    """Return the stock Flower strategy that ``strategy.aggregator`` names, and its options.

    Raises
    ------
    PluginError
        If it names none, or a pruning strategy.
    """
    if spec is None:
        return None
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise PluginError("it needs the dotted name of a Flower strategy as 'name'")
    stock: type[Strategy] = registry.load("strategy", name, scenario.directory)
    if issubclass(stock, PruningStrategy):
        raise PluginError(f"{name} is a pruning strategy: name a stock Flower one, which aggregates")
    return stock, options


def flower_aggregator(
    federation: Federation, stock: type[Strategy], options: Mapping[str, Any]
) -> FlowerAggregator:
    """Return a stock Flower strategy as an aggregator for a federation."""
    names = [name for name, _ in federation.module.named_parameters()]
    return FlowerAggregator(stock, options, names, federation.scenario.seed)


def build_strategy(federation: Federation) -> PruningStrategy:
    """Return the scenario's strategy: a pruning strategy, or a stock Flower one as the aggregator."""
    spec = federation.scenario.strategy
    kind = registry.load("strategy", spec.name, federation.scenario.directory)
    if issubclass(kind, PruningStrategy):
        strategy: PruningStrategy = kind(federation, kind.Options(**spec.options))
        return strategy
    aggregator = flower_aggregator(federation, kind, spec.options)
    return PruningStrategy(federation, PruningStrategy.Options(), aggregator=aggregator)
