"""``PruningStrategy``: what every method shares on the server.

It is a Flower ``Strategy``. It owns the global state (values and masks), samples clients, speaks
the wire format, adds replies up as they arrive, keeps the ledger and evaluates. A method is a
subclass with options and a few hooks:

- ``prepare``: before round 1; choose the first masks.
- ``sample``: which clients take part in a round.
- ``configure_train``: what a round's messages ask for besides training.
- ``observe``: look at each reply as it is aggregated.
- ``update_masks``: after a round's aggregation; move the masks.

Used as it is, without hooks, it is FedAvg. Clients are known by their own number, which they tell
at the start; Flower's node ids are random. So sampling, order and seeds are the same on any grid.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import merge
from typing import Any, ClassVar, TypeVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.app.metadata import Metadata
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from fedprune import registry, seeds
from fedprune.aggregators import Aggregator, FlowerAggregator, TrainReply, WeightedMean
from fedprune.client import UNKNOWN_MASK
from fedprune.costs.clock import task_seconds
from fedprune.costs.devices import DeviceProfile
from fedprune.costs.flops import ModelCost
from fedprune.costs.ledger import Listener, RoundRecord, Tally, TaskRecord
from fedprune.costs.memory import forward_memory, optimizer_slots, step_memory
from fedprune.data import DataInfo, Pictures, batches
from fedprune.errors import PluginError, RunError, ScenarioError, WireError
from fedprune.evaluation import Score
from fedprune.messages import arrays_of, config_of, metrics_of, real, text, whole
from fedprune.scenario import Scenario
from fedprune.sparsity.masks import Masks, apply_masks
from fedprune.wire import (
    CODEC,
    Layout,
    StateCodec,
    content_bytes,
    encode_masks,
    get_state,
    mask_bytes,
    with_masks,
)

_logger = logging.getLogger(__name__)

#: What a client may report of its costs.
_COSTS = ("flops", "peak-memory-bytes", "num-examples")
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, eq=False)
class Federation:
    """What a strategy is given: the scenario, a model, public data, and who evaluates.

    Parameters
    ----------
    scenario : Scenario
        What is run.
    info : DataInfo
        Shape, classes and normalisation of the data set.
    module : nn.Module
        The model with its initial weights, on the CPU.
    pictures : Pictures
        Where ``public`` points into.
    public : np.ndarray
        int64 indices of the server's public examples; empty when ``data.server_fraction`` is 0.
    evaluate : Callable[[Mapping[str, Tensor], Masks], Score]
        Scores a global state on the server's test data.
    listeners : Sequence[Listener]
        Who hears of tasks and rounds.
    """

    scenario: Scenario
    info: DataInfo
    module: nn.Module
    pictures: Pictures
    public: np.ndarray
    evaluate: Callable[[Mapping[str, Tensor], Masks], Score]
    listeners: Sequence[Listener] = ()


@dataclass(frozen=True)
class Facts:
    """What a client said of itself at the start."""

    number: int
    node_id: int
    examples: int
    profile: DeviceProfile


@dataclass(frozen=True)
class _Sent:
    """What was sent to a node in the current exchange, for the ledger."""

    kind: str
    started: float
    bytes_down: int
    mask_bytes: int
    mask_version: str


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
        self.clients: dict[int, Facts] = {}
        self.dense_tally = Tally()
        self._dense = StateCodec(self.layout, Masks(), self.scenario.wire.values)
        self._held: dict[int, str] = {}
        self._numbers: dict[int, int] = {}
        self._sent: dict[int, _Sent] = {}
        self._mask_payload = b""
        self._again: Callable[[list[int]], list[Message]] = lambda numbers: []
        self._start_round()

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

    def observe(self, server_round: int, reply: TrainReply) -> None:
        """Look at a reply as it is aggregated; it is not kept."""

    def update_masks(self, server_round: int) -> None:
        """Move the masks after a round's aggregation, with ``set_masks``."""

    # What methods use --------------------------------------------------------------------

    def set_masks(self, masks: Masks) -> None:
        """Make ``masks`` the global ones; weights they prune become exactly 0."""
        self.masks = masks
        self.state = apply_masks(self.state, masks)
        self.codec = StateCodec(self.layout, masks, self.scenario.wire.values)
        self._mask_payload = encode_masks(masks) if masks else b""

    def exchange(self, grid: Grid, messages: Iterable[Message]) -> Iterator[Message]:
        """Send messages; yield one reply for each, in the order of client numbers.

        A client that answers that it does not hold the mask is sent it again. A message without
        any reply before the timeout gets an error reply. At most one message a node.
        """
        self._sent = {}
        forgot: list[int] = []
        later: list[Message] = []  # Replies of clients after the first that forgot; rarely any.
        for reply in self._ordered(grid, self._noted(messages)):
            if reply.has_error() and reply.error.code == UNKNOWN_MASK and self._mask_payload:
                forgot.append(self._numbers[reply.metadata.src_node_id])
                self._held.pop(forgot[-1], None)
            elif forgot:
                later.append(reply)
            else:
                yield reply
        again = self._ordered(grid, self._noted(self._again(forgot))) if forgot else ()
        yield from merge(again, later, key=lambda reply: self._numbers[reply.metadata.src_node_id])

    def accept(
        self, server_round: int, replies: Iterable[Message], read: Callable[[Message], _T]
    ) -> Iterator[_T]:
        """Yield what ``read`` makes of each good reply; enter every reply into the ledger.

        ``read`` raises ``WireError`` for a reply that cannot be used. A failed task costs what
        was sent to the client and what it replied.
        """
        for reply in replies:
            result: list[_T] = []
            reason = None
            if reply.has_error():
                reason = reply.error.reason or f"error {reply.error.code}"
            else:
                try:
                    _check_costs(reply)
                    result.append(read(reply))
                except WireError as error:
                    reason = f"WireError: {error}"
            self._settle(server_round, reply, reason)
            yield from result
        self._tally.end_phase()
        self.dense_tally.end_phase()

    def message(self, number: int, content: RecordDict, message_type: str, server_round: int) -> Message:
        """Return a message to a client."""
        node_id = self.clients[number].node_id
        return Message(content, node_id, message_type, group_id=str(server_round))

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
        if self._mask_payload:
            full = RecordDict({"arrays": with_masks(arrays, self._mask_payload), "config": bare["config"]})
        return lambda number: bare if self._held.get(number, "") == self.masks.version else full

    def public_batches(self) -> list[tuple[Tensor, Tensor]]:
        """Return the server's public examples in batches of the clients' size; [] without any."""
        size = self.scenario.clients.training.batch_size
        federation = self.federation
        return list(batches(federation.pictures, federation.public, federation.info, size))

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
        for reply in self.accept(server_round, replies, self._read_train):
            self.aggregator.add(reply)
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

        scores = list(self.accept(server_round, replies, read))
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
        rounds = num_rounds or self.scenario.rounds
        self._timeout = timeout or self.scenario.engine.timeout
        result = Result()
        self._start_round()
        self._meet(grid)
        if initial_arrays is not None:
            self.state = self.codec.unflatten(self.codec.decode(initial_arrays))
        self.prepare(grid)
        self._end_round(0, None, None)
        for server_round in range(1, rounds + 1):
            self._start_round()
            train = train_config or ConfigRecord()
            messages = self.configure_train(server_round, self.encode_state(server_round), train, grid)
            arrays, metrics = self.aggregate_train(server_round, self.exchange(grid, messages))
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
                    client_metrics = self.aggregate_evaluate(server_round, self.exchange(grid, messages))
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

    def _meet(self, grid: Grid) -> None:
        """Ask every node who it is; from here on a client's number is what counts."""
        wanted = self.scenario.clients.count
        deadline = time.monotonic() + self._timeout
        while len(nodes := list(grid.get_node_ids())) < wanted and time.monotonic() < deadline:
            time.sleep(0.2)
        content = RecordDict({"config": ConfigRecord({"codec": CODEC})})
        questions = (Message(content, node, "query.facts", group_id="0") for node in nodes)
        replies = list(self._ordered(grid, self._noted(questions)))
        unusable = Counter[str]()
        for reply in replies:
            try:
                facts = _read_facts(reply)
            except WireError as error:
                unusable[str(error)] += 1
                continue
            if facts.number in self.clients:
                raise RunError(
                    f"two nodes say that they are client {facts.number}; each needs its own number"
                )
            self.clients[facts.number] = facts
        if not self.clients:
            raise RunError(f"none of {len(nodes)} nodes says who it is: {_listed(unusable)}")
        self._numbers = {facts.node_id: number for number, facts in self.clients.items()}
        known = [reply for reply in replies if reply.metadata.src_node_id in self._numbers]
        known.sort(key=lambda reply: self._numbers[reply.metadata.src_node_id])
        for _ in self.accept(0, known, _read_facts):
            pass

    def _state_messages(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, message_type: str
    ) -> Iterator[Message]:
        numbers = self.sample(server_round)
        if message_type == MessageType.TRAIN:
            nodes = [self.clients[number].node_id for number in numbers]
            config = ConfigRecord({**self.aggregator.begin(server_round, self.state, nodes), **config})
        content = self.state_contents(server_round, config, arrays)
        self._again = lambda again: [
            self.message(number, content(number), message_type, server_round) for number in again
        ]
        for number in numbers:
            yield self.message(number, content(number), message_type, server_round)

    def _noted(self, messages: Iterable[Message]) -> Iterator[Message]:
        """Note what each message costs as it is sent; equal contents are measured once."""
        measured: dict[int, tuple[RecordDict, int, int]] = {}
        for message in messages:
            content, node_id = message.content, message.metadata.dst_node_id
            if id(content) not in measured:
                measured[id(content)] = (content, content_bytes(content), mask_bytes(content))
            _, length, of_mask = measured[id(content)]
            before = self._sent.get(node_id)
            if before is not None:  # Sent again: the client paid for both.
                length, of_mask = length + before.bytes_down, of_mask + before.mask_bytes
            config = content.config_records.get("config", ConfigRecord())
            self._sent[node_id] = _Sent(
                message.metadata.message_type,
                time.perf_counter(),
                length,
                of_mask,
                str(config.get("mask-version", "")),
            )
            yield message

    def _ordered(self, grid: Grid, messages: Iterable[Message]) -> Iterator[Message]:
        """Yield the replies in the order of client numbers, whatever order the grid has them in."""
        waiting: list[Metadata] = []  # Not the messages: their contents may be large.

        def taken() -> Iterator[Message]:
            for message in messages:
                waiting.append(message.metadata)
                yield message

        arrived: dict[int, Message] = {}
        position = 0
        for reply in grid.send_and_receive(taken(), timeout=self._timeout):
            arrived[reply.metadata.src_node_id] = reply
            del reply
            while position < len(waiting) and waiting[position].dst_node_id in arrived:
                yield arrived.pop(waiting[position].dst_node_id)
                position += 1
        for metadata in waiting[position:]:
            late = arrived.pop(metadata.dst_node_id, None)
            if late is None:
                asked = Message(metadata=metadata, content=RecordDict())  # type: ignore[call-overload]
                reason = f"no reply within {self._timeout:g} s"
                late = Message(Error(ErrorCode.MESSAGE_UNAVAILABLE, reason), reply_to=asked)
            yield late

    def _read_train(self, reply: Message) -> TrainReply:
        metrics = metrics_of(reply.content)
        return TrainReply(
            client=self._numbers[reply.metadata.src_node_id],
            weight=whole(metrics, "num-examples", least=1),
            loss=real(metrics, "loss"),
            values=self.codec.decode(arrays_of(reply.content)),
            codec=self.codec,
            message=reply,
        )

    def _settle(self, server_round: int, reply: Message, reason: str | None) -> None:
        """Enter a reply, good or not, into the ledger."""
        facts = self.clients[self._numbers[reply.metadata.src_node_id]]
        sent = self._sent[facts.node_id]
        metrics = MetricRecord()
        bytes_up = mask_up = 0
        if reply.has_content():
            bytes_up, mask_up = content_bytes(reply.content), mask_bytes(reply.content)
            if reason is None:
                metrics = reply.content.metric_records.get("metrics", metrics)
        if reason is None:
            self._held[facts.number] = sent.mask_version or self._held.get(facts.number, "")
            self._ok += 1
        else:
            self._failures[reason] += 1
        flops, peak, examples = (whole(metrics, key) if key in metrics else 0 for key in _COSTS)
        record = TaskRecord(
            round=server_round,
            type=sent.kind,
            client=facts.number,
            device=facts.profile.name,
            examples=examples,
            bytes_down=sent.bytes_down,
            bytes_up=bytes_up,
            mask_bytes_down=sent.mask_bytes,
            mask_bytes_up=mask_up,
            flops=flops,
            peak_memory_bytes=peak,
            device_seconds=task_seconds(facts.profile, sent.bytes_down, flops, bytes_up),
            wall_seconds=time.perf_counter() - sent.started,
            status="ok" if reason is None else "failed",
            reason=reason,
        )
        self._tally.add(
            bytes_down=record.bytes_down,
            bytes_up=record.bytes_up,
            flops=record.flops,
            peak_memory_bytes=record.peak_memory_bytes,
            device_seconds=record.device_seconds,
        )
        for listener in self.federation.listeners:
            listener.on_task(record)
        if reason is None:
            self._settle_dense(record, facts, reply)

    def _settle_dense(self, record: TaskRecord, facts: Facts, reply: Message) -> None:
        """Enter what the same task would have cost under dense FedAvg, which sends no queries."""
        down, up, flops, peak = record.bytes_down, record.bytes_up, record.flops, record.peak_memory_bytes
        metrics = reply.content.metric_records.get("metrics")
        if record.type in (MessageType.TRAIN, MessageType.EVALUATE) and metrics is not None:
            trains = record.type == MessageType.TRAIN
            flops, peak = self._dense_training(facts, metrics) if trains else self._dense_evaluation(metrics)
            config = ConfigRecord({"round": record.round, "mask-version": "", "codec": CODEC})
            down = content_bytes(RecordDict({"arrays": self._dense_arrays, "config": config}))
            replied = RecordDict(
                {"metrics": MetricRecord({**metrics, "flops": flops, "peak-memory-bytes": peak})}
            )
            if trains:
                replied["arrays"] = self._dense_arrays
            up = content_bytes(replied)
        elif record.type != "query.facts":
            return
        self.dense_tally.add(
            bytes_down=down,
            bytes_up=up,
            flops=flops,
            peak_memory_bytes=peak,
            device_seconds=task_seconds(facts.profile, down, flops, up),
        )

    def _dense_training(self, facts: Facts, metrics: MetricRecord) -> tuple[int, int]:
        """Return FLOPs and peak memory of a client's training if nothing were pruned."""
        spec = self.scenario.clients.training
        slots = optimizer_slots(spec.optimizer.name, spec.optimizer.momentum) + int(spec.proximal_mu > 0)
        memory = step_memory(self.cost, Masks(), min(spec.batch_size, facts.examples), slots=slots)
        return self.cost.training_flops(Masks(), whole(metrics, "examples-seen")), memory.total

    def _dense_evaluation(self, metrics: MetricRecord) -> tuple[int, int]:
        """Return FLOPs and peak memory of a client's evaluation if nothing were pruned."""
        examples = whole(metrics, "num-examples")
        memory = forward_memory(
            self.cost, Masks(), min(self.scenario.evaluation.batch_size, max(examples, 1))
        )
        return self.cost.forward_flops(Masks(), examples), memory.total

    @cached_property
    def _dense_arrays(self) -> ArrayRecord:
        """A dense state as it travels; only its size counts."""
        return self._dense.encode(self._dense.flatten(self.state))

    def _start_round(self) -> None:
        self._tally, self._ok, self._failures = Tally(), 0, Counter[str]()
        self._began = time.perf_counter()

    def _evaluates(self, server_round: int) -> bool:
        return server_round % self.scenario.evaluation.every == 0 or server_round == self.scenario.rounds

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
            clients_ok=self._ok,
            clients_failed=sum(self._failures.values()),
            bytes_down=self._tally.bytes_down,
            bytes_up=self._tally.bytes_up,
            flops=self._tally.flops,
            peak_memory_bytes=self._tally.peak_memory_bytes,
            device_seconds=self._tally.device_seconds,
        )
        for listener in self.federation.listeners:
            listener.on_round(record)
        return record

    def _no_reply(self, server_round: int) -> str:
        total = sum(self._failures.values())
        return f"round {server_round}: none of {total} clients gave a usable reply: {_listed(self._failures)}"


def _read_facts(reply: Message) -> Facts:
    if reply.has_error():
        raise WireError(reply.error.reason or f"error {reply.error.code}")
    facts = config_of(reply.content, "facts")
    try:
        profile = DeviceProfile(
            name=text(facts, "device"),
            memory=whole(facts, "memory"),
            compute=real(facts, "compute"),
            downlink=real(facts, "downlink"),
            uplink=real(facts, "uplink"),
        )
    except ScenarioError as error:
        raise WireError(str(error)) from error
    number, examples = whole(facts, "client"), whole(facts, "examples", least=1)
    return Facts(number, reply.metadata.src_node_id, examples, profile)


def _check_costs(reply: Message) -> None:
    """Refuse a reply whose costs cannot be entered into the ledger."""
    metrics = reply.content.metric_records.get("metrics", MetricRecord())
    needed = ("examples-seen",) if reply.metadata.message_type == MessageType.TRAIN else ()
    for key in (*needed, *(key for key in _COSTS if key in metrics)):
        whole(metrics, key)


def _listed(reasons: Counter[str]) -> str:
    return "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3)) or "no reply"


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
