"""Messages between the server and its clients: sent, ordered, answered, and entered into the ledger.

An ``Exchange`` knows who the clients are and which mask each of them holds. It sends a strategy's
messages on whatever grid there is, yields the replies in the order of client numbers, sends a mask
again to a client that lost it, and enters what every message cost. What messages say and what
becomes of the replies is for the strategy.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from heapq import merge
from math import inf
from typing import Any, Generic, TypeVar

import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fedprune import seeds
from fedprune.costs.clock import done_by, task_seconds
from fedprune.costs.devices import DeviceProfile, joules
from fedprune.costs.ledger import Tally, TaskRecord
from fedprune.errors import RunError, ScenarioError, WireError
from fedprune.protocol.faults import CODES, Fault, fault_of
from fedprune.protocol.messages import arrays_of, config_of, real, share, text, whole
from fedprune.server.columns import from_columns, to_columns
from fedprune.server.dense_baseline import DenseTwin
from fedprune.server.federation import Federation
from fedprune.server.participation import Attendance
from fedprune.sparsity.masks import Masks
from fedprune.wire import (
    CODEC,
    Layout,
    check_size,
    content_bytes,
    encode_masks,
    largest_reply,
    mask_bytes,
    verify_checksum,
    with_masks,
)

#: What a client may report of its costs.
_COSTS = ("flops", "peak-memory-bytes", "num-examples")
#: Faults of which the server hears nothing.
_SILENT = {Fault.NO_REPLY, Fault.LATE, Fault.DROPPED_OUT, Fault.GONE, Fault.WORKER_DIED}
#: How results call the device of a node that does not say who it is.
_UNKNOWN = "unknown"
_T = TypeVar("_T")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Facts:
    """What a client said of itself at the start."""

    number: int
    node_id: int
    examples: int
    profile: DeviceProfile


@dataclass(frozen=True)
class _Task(Generic[_T]):
    """What came of one message: its reply, good or not, and what it cost.

    ``result`` holds what was read of a good one. ``status`` is as in `TaskRecord`.
    """

    reply: Message
    result: tuple[_T, ...]
    status: str
    fault: Fault | None
    reason: str | None
    examples: int
    bytes_down: int
    bytes_up: int
    mask_bytes_up: int
    flops: int
    peak_memory_bytes: int
    seconds: float
    measured_seconds: float | None
    measured_memory_bytes: int | None
    end: float | None = None  # When the server stopped to wait for it, where it did.

    def until(self, end: float, profile: DeviceProfile) -> _Task[_T]:
        """Return the task as far as it had come at a time, in seconds of the phase."""
        down, flops, up = done_by(profile, self.bytes_down, self.flops, self.bytes_up, end)
        return replace(
            self,
            bytes_down=down,
            flops=flops,
            bytes_up=up,
            mask_bytes_up=min(self.mask_bytes_up, up),
            seconds=min(self.seconds, end),
            end=end,
        )


@dataclass(frozen=True)
class _Sent:
    """What was sent to a node in the current exchange, for the ledger."""

    kind: str
    started: float
    bytes_down: int
    mask_bytes: int
    mask_version: str


class Exchange:
    """The server's side of every message of a run.

    Parameters
    ----------
    federation : Federation
        What is run, and who hears of tasks.
    dense : DenseTwin
        Whose ledger is kept beside.
    masks_for : Callable[[int], Masks]
        The masks under which a client, by number, is sent values.

    Attributes
    ----------
    clients : dict[int, Facts]
        The clients by number, once they have been met.
    numbers : list[int]
        Their numbers, ascending.
    always_there : bool
        Whether all of them are online in every round, by their devices' availability.
    absent : frozenset[int]
        Those whose node the grid does not have at present; nodes of a simulation are always there.
    start_with : int
        How many nodes a run waits for before it starts.
    patience : float
        How long it waits for them, and a round for any, in seconds.
    tally : Tally
        What the current round has cost.
    failures : Counter[str]
        Why tasks of the current round failed.
    faults : Counter[Fault]
        The same by kind.
    vanished : set[int]
        The clients that have vanished in the current round.
    ok : int
        How many of them did not.
    timeout : float
        Longest time in seconds to wait for replies.
    attendance : Attendance
        How the current round's clients fared, by class of device.
    """

    def __init__(self, federation: Federation, dense: DenseTwin, masks_for: Callable[[int], Masks]) -> None:
        self.clients: dict[int, Facts] = {}
        self.numbers: list[int] = []
        self.always_there = True
        self.absent: frozenset[int] = frozenset()
        self._federation = federation
        self._dense = dense
        self.timeout = self.patience = federation.scenario.engine.timeout
        self.start_with = federation.scenario.clients.count
        self._refused: set[int] = set()
        self._started = False
        self._numbers: dict[int, int] = {}
        self._held: dict[int, str] = {}
        self._members = Counter[str]()
        self._sent: dict[int, _Sent] = {}
        self._known: dict[str, Any] | None = None
        self._masks_for = masks_for
        self._largest = largest_reply(Layout.of(federation.module))
        self._encoded = lru_cache(maxsize=1)(encode_masks)
        self.start_round()

    def start_round(self) -> None:
        """Start counting anew."""
        self.tally, self.ok = Tally(), 0
        self.failures, self.faults = Counter[str](), Counter[Fault]()
        self.vanished: set[int] = set()
        self.attendance = Attendance(self._members)

    def holds(self, number: int, masks: Masks) -> bool:
        """Return whether a client need not be sent these masks: it holds them, or there are none."""
        return not masks or self._held.get(number) == masks.version

    def note_held(self, number: int, masks: Masks) -> None:
        """Note that a client holds masks which it made itself."""
        self._held[number] = masks.version

    def with_masks(self, arrays: ArrayRecord, masks: Masks) -> ArrayRecord:
        """Return arrays with these masks beside them."""
        return with_masks(arrays, self._encoded(masks))

    def meet(self, grid: Grid) -> None:
        """Wait for nodes and ask each who it is; from here on a client's number is what counts.

        Raises
        ------
        RunError
            When no node answers, or two say that they are the same client.
        """
        self.call_roll(grid, 0)
        if not self.clients:
            raise RunError(f"no node says who it is: {listed(self.failures)}")

    def call_roll(self, grid: Grid, server_round: int) -> None:
        """Note which clients are there, and ask nodes that have come since who they are.

        Waits while there is no node at all; at the start of a run, or of what is left of one, for
        ``start_with`` of them.

        Raises
        ------
        RunError
            When no node has come in time.
        """
        deadline = time.monotonic() + self.patience
        lost = True
        while lost:
            wanted = 1 if self._started else self.start_with
            present = list(_waited(grid, wanted, deadline, self._refused))
            if not present:
                raise RunError(f"no node has been there for {self.patience:g} s")
            self._refused &= set(present)  # What comes back may have been mended.
            new = [node for node in present if node not in self._numbers and node not in self._refused]
            lost = bool(new) and self._ask(grid, new, set(present), server_round)
            # A SuperNode that was stopped counts as there until the SuperLink has missed it.
            lost = lost and not self._started and time.monotonic() < deadline
        self._started = True
        gone = self._numbers.keys() - set(present)
        self.absent = frozenset(self._numbers[node] for node in gone)

    def _ask(self, grid: Grid, nodes: Iterable[int], present: set[int], server_round: int) -> bool:
        """Ask nodes who they are, and take those that say it for clients; return whether any was lost."""
        self._sent = {}
        content = RecordDict({"config": ConfigRecord({"codec": CODEC})})
        questions = (Message(content, node, "query.facts", group_id=str(server_round)) for node in nodes)
        replies = list(self._ordered(grid, self._noted(questions)))
        profiles: dict[DeviceProfile, DeviceProfile] = {}  # Many clients are of one kind: hold it once.
        names = {node.node_id: node.name for node in grid.get_nodes()} if _any_fault(replies) else {}
        lost = False
        for reply in replies:
            try:
                facts = _read_facts(reply)
                self._check_number(facts, present)
            except WireError as error:
                lost |= self._refuse(server_round, reply, error, names)
                continue
            if known := self.clients.get(facts.number):
                del self._numbers[known.node_id]  # The same device, under another node id.
                self._held.pop(facts.number, None)
            profile = profiles.setdefault(facts.profile, facts.profile)
            self.clients[facts.number] = replace(facts, profile=profile)
            self._numbers[facts.node_id] = facts.number
            self._known = None
        if not self.clients:
            return lost
        self._take_stock()
        met = [reply for reply in replies if reply.metadata.src_node_id in self._numbers]
        met.sort(key=self.number_of)
        for _ in self.accept(server_round, met, _read_facts):
            pass
        return lost

    def _check_number(self, facts: Facts, present: set[int]) -> None:
        """Refuse a client that cannot be who it says it is."""
        count = self._federation.scenario.clients.count
        if not 0 <= facts.number < count:
            raise WireError(
                f"says that it is client {facts.number}: the scenario has clients 0 to {count - 1}"
            )
        known = self.clients.get(facts.number)
        if known is None or known.node_id not in present:
            return
        twice = f"two nodes say that they are client {facts.number}; each needs its own number"
        if not self._started:
            raise RunError(twice)
        raise WireError(twice)

    def _refuse(self, server_round: int, reply: Message, error: WireError, names: Mapping[int, str]) -> bool:
        """Enter a node that is no client into the ledger; return whether it was lost, and said nothing.

        One that did is not asked again until it leaves and comes back.
        """
        node_id = reply.metadata.src_node_id
        fault = fault_of(reply.error.code) if reply.has_error() else error.fault
        lost = fault is Fault.GONE
        if not lost:
            self._refused.add(node_id)
        known_as = " ".join(filter(None, ("node", str(node_id), names.get(node_id))))
        _logger.warning("%s is no client: %s", known_as, error)
        self.faults[fault] += 1
        self.failures[str(error)] += 1
        sent = self._sent[node_id]
        record = TaskRecord(
            round=server_round,
            type=sent.kind,
            client=None,
            device=_UNKNOWN,
            examples=0,
            bytes_down=sent.bytes_down,
            bytes_up=content_bytes(reply.content) if reply.has_content() else 0,
            mask_bytes_down=0,
            mask_bytes_up=0,
            flops=0,
            peak_memory_bytes=0,
            device_seconds=0.0,
            joules=None,
            wall_seconds=time.perf_counter() - sent.started,
            status="failed",
            fault=fault,
            reason=f"{known_as}: {error}",
        )
        self.tally.add_task(replace(record, joules=0.0))  # Its device is none of the run's.
        for listener in self._federation.listeners:
            listener.on_task(record)
        return lost

    def _take_stock(self) -> None:
        """Note what follows from who the clients are, so that no round has to look at all of them for it."""
        facts = self.clients.values()
        self.numbers = sorted(self.clients)
        self.always_there = all(known.profile.availability == 1 for known in facts)
        self._numbers = {known.node_id: known.number for known in facts}
        self._members = Counter(known.profile.name for known in facts)
        self.attendance = Attendance(self._members)

    def memory(self) -> dict[str, Any]:
        """Return what is known of the clients, for a checkpoint: who they are and which masks they hold."""
        if self._known is None:  # Who they are stays the same over a run.
            self._known = self._columns()
        held = {number: version for number, version in self._held.items() if version}
        return {"clients": self._known, "held": to_columns(held)}

    def _columns(self) -> dict[str, Any]:
        """Return who the clients are, in columns."""
        facts = self.clients.values()
        profiles = to_columns({known.number: known.profile for known in facts})
        return {
            "nodes": torch.tensor([known.node_id for known in facts], dtype=torch.uint64),
            "examples": torch.tensor([known.examples for known in facts]),
            "profiles": {**profiles, "values": [asdict(profile) for profile in profiles["values"]]},
        }

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Take back what ``memory`` returned.

        A client that comes under another node id than it had then is taken for a new one when it does.
        """
        known = memory["clients"]
        shared = [DeviceProfile(**profile) for profile in known["profiles"]["values"]]
        profiles = from_columns({**known["profiles"], "values": shared})
        nodes, examples = known["nodes"].tolist(), known["examples"].tolist()
        for (number, profile), node_id, held in zip(profiles.items(), nodes, examples, strict=True):
            self.clients[number] = Facts(number, node_id, held, profile)
        self._take_stock()
        self._held = from_columns(memory["held"])

    def forget_masks(self) -> None:
        """Take it that no client holds masks: what Flower keeps for a client ends with its run."""
        self._held.clear()

    def number_of(self, reply: Message) -> int:
        """Return the number of the client that a reply comes from."""
        return self._numbers[reply.metadata.src_node_id]

    def message(self, number: int, content: RecordDict, message_type: str, server_round: int) -> Message:
        """Return a message to a client."""
        return Message(content, self.clients[number].node_id, message_type, group_id=str(server_round))

    def send(self, grid: Grid, messages: Iterable[Message]) -> Iterator[Message]:
        """Send messages; yield one reply for each, in the order of the messages.

        At most one message a node, in the order of client numbers. A client that answers that it
        does not hold the mask is sent the message again with it. A message without any reply before
        the timeout gets an error reply; so does, after all others, one to a device that vanishes inside
        the round.
        """
        self._sent = {}
        vanished: list[Message] = []

        def to_those_that_stay() -> Iterator[Message]:
            for message in self._noted(messages):
                if self._vanishes(message):
                    vanished.append(message)
                else:
                    yield message

        again: list[Message] = []
        later: list[Message] = []  # Replies of clients after the first that forgot; rarely any.
        for message, reply in self._pairs(grid, to_those_that_stay()):
            if (
                reply.has_error()
                and reply.error.code == CODES[Fault.UNKNOWN_MASK]
                and self._names_masks(message)
            ):
                self._held.pop(self.number_of(reply), None)
                again.append(self._with_masks(message))
            elif again:
                later.append(reply)
            else:
                yield reply
        yield from merge(self._ordered(grid, self._noted(again)), later, key=self.number_of)
        for message in vanished:
            yield Message(Error(CODES[Fault.DROPPED_OUT], "vanished inside the round"), reply_to=message)

    def _vanishes(self, message: Message) -> bool:
        """Return whether a device is gone for the rest of a round: the same for all that it is sent in it."""
        facts = self.clients[self._numbers[message.metadata.dst_node_id]]
        chance, server_round = facts.profile.dropout, int(message.metadata.group_id)
        if chance == 0:
            return False
        draw = seeds.numpy_generator(self._federation.scenario.seed, "dropout", server_round, facts.number)
        if gone := bool(draw.random() < chance):
            self.vanished.add(facts.number)
        return gone

    def note_absent(self, offline: Iterable[int], excluded: Iterable[int]) -> None:
        """Count the clients, by number, that a round cannot have."""
        for what, numbers in (("offline", offline), ("excluded", excluded)):
            for number in numbers:
                self.attendance.note(self.clients[number].profile.name, what)

    def accept(
        self,
        server_round: int,
        replies: Iterable[Message],
        read: Callable[[Message], _T],
        *,
        deadline: float | None = None,
        wanted: int | None = None,
    ) -> Iterator[_T]:
        """Yield what ``read`` makes of each good reply; enter every reply into the ledger.

        ``read`` raises ``WireError`` for a reply that cannot be used. A failed task costs what
        was sent to the client and what it replied. At the end the phase's virtual time passes.

        Parameters
        ----------
        server_round : int
            The round.
        replies : Iterable of Message
            In the order in which they are to be used.
        read : Callable[[Message], T]
            Reads and checks one.
        deadline : float, optional
            Seconds of virtual time after which a reply is too late. What a client has done by then counts.
        wanted : int, optional
            How many replies are taken, the first in virtual time; the phase then ends. All of them are
            held until it is known which these are; without it one is, at a time.
        """
        tasks = (self._judged(reply, read, deadline) for reply in replies)
        for task in tasks if wanted is None else self._first(tasks, wanted):
            self._settle(server_round, task)
            yield from task.result
        for tally in (self.tally, self._dense.tally, self.attendance):
            tally.end_phase()

    def _judged(self, reply: Message, read: Callable[[Message], _T], deadline: float | None) -> _Task[_T]:
        """Return what came of a task: what a reply holds and what it cost, or what is wrong with it."""
        facts = self.clients[self.number_of(reply)]
        sent, metrics = self._sent[facts.node_id], MetricRecord()
        bytes_up = mask_up = 0
        result: tuple[_T, ...] = ()
        fault = reason = None
        if reply.has_content():
            bytes_up, mask_up = content_bytes(reply.content), mask_bytes(reply.content)
        if reply.has_error():
            fault, reason = fault_of(reply.error.code), _reason(reply)
        else:
            try:
                check_size(reply.content, self._largest)
                verify_checksum(reply.content)
                _check_costs(reply)
                metrics = reply.content.metric_records.get("metrics", metrics)
            except WireError as error:
                fault, reason = error.fault, f"WireError: {error}"
        flops, peak, examples = (whole(metrics, key) if key in metrics else 0 for key in _COSTS)
        seconds = task_seconds(facts.profile, sent.bytes_down, flops, bytes_up)
        if fault is None and deadline is not None and seconds > deadline:
            fault, reason = Fault.LATE, f"{seconds:.4g} s of virtual time, the deadline is {deadline:g} s"
        if fault is None:
            try:
                result = (read(reply),)
            except WireError as error:
                fault, reason, flops, peak, examples = error.fault, f"WireError: {error}", 0, 0, 0
                seconds = task_seconds(facts.profile, sent.bytes_down, flops, bytes_up)
        task = _Task(
            reply=reply,
            result=result,
            status="ok" if fault is None else "failed",
            fault=fault,
            reason=reason,
            examples=examples,
            bytes_down=sent.bytes_down,
            bytes_up=bytes_up,
            mask_bytes_up=mask_up,
            flops=flops,
            peak_memory_bytes=peak,
            seconds=seconds,
            **_measured(metrics),
        )
        if fault in _SILENT and deadline is not None:
            # The server cannot know that nothing will come: it waits.
            task = replace(task.until(deadline, facts.profile), seconds=deadline)
        return task

    def _first(self, tasks: Iterable[_Task[_T]], wanted: int) -> Iterator[_Task[_T]]:
        """Yield the tasks, in their order, with no more than the first ``wanted`` good ones as such."""
        held = list(tasks)
        by_time = sorted((task.seconds, self.number_of(task.reply)) for task in held if task.fault is None)
        if len(by_time) < wanted:
            yield from held
            return
        last = by_time[wanted - 1]
        for task in held:
            number = self.number_of(task.reply)
            if task.fault is None and (task.seconds, number) <= last:
                yield task
                continue
            status = "surplus" if task.fault is None else task.status
            cut = task.until(last[0], self.clients[number].profile)
            yield replace(cut, status=status, result=())

    def _names_masks(self, message: Message) -> bool:
        """Return whether a message has values under the client's current masks, which can be sent with it."""
        config = message.content.config_records.get("config", ConfigRecord())
        version = config.get("mask-version")
        same = bool(version) and version == self._masks_to(message).version
        return same and "arrays" in message.content.array_records

    def _masks_to(self, message: Message) -> Masks:
        return self._masks_for(self._numbers[message.metadata.dst_node_id])

    def _with_masks(self, message: Message) -> Message:
        """Return a message again, with the masks that it names."""
        content = RecordDict(dict(message.content))
        content["arrays"] = self.with_masks(arrays_of(content), self._masks_to(message))
        metadata = message.metadata
        return Message(content, metadata.dst_node_id, metadata.message_type, group_id=metadata.group_id)

    def _noted(self, messages: Iterable[Message]) -> Iterator[Message]:
        """Note what each message costs as it is sent; a content that clients share is measured once."""
        measured: dict[int, tuple[RecordDict, int, int]] = {}
        for message in messages:
            content, node_id = message.content, message.metadata.dst_node_id
            if id(content) not in measured:
                # Those shared come in two kinds, with masks and without; others must not pile up.
                while len(measured) > 2:
                    del measured[next(iter(measured))]
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
        """Send messages and yield the replies in their order, whatever order the grid has them in."""
        return (reply for _, reply in self._pairs(grid, messages))

    def _pairs(self, grid: Grid, messages: Iterable[Message]) -> Iterator[tuple[Message, Message]]:
        """Yield each message with its reply; a message is let go of with its reply."""
        waiting: dict[int, Message] = {}

        def taken() -> Iterator[Message]:
            for message in messages:
                waiting[message.metadata.dst_node_id] = message
                yield message

        arrived: dict[int, Message] = {}
        outgoing = taken()
        for reply in grid.send_and_receive(outgoing, timeout=self.timeout):
            arrived[reply.metadata.src_node_id] = reply
            del reply
            while waiting and (first := next(iter(waiting))) in arrived:
                yield waiting.pop(first), arrived.pop(first)
        for _ in outgoing:  # What the grid had no time to send gets no reply either.
            pass
        for node_id, message in waiting.items():
            late = arrived.pop(node_id, None)
            if late is None:
                reason = f"no reply within {self.timeout:g} s"
                late = Message(Error(ErrorCode.MESSAGE_UNAVAILABLE, reason), reply_to=message)
            yield message, late

    def _settle(self, server_round: int, task: _Task[Any]) -> None:
        """Enter a task into the ledger."""
        facts = self.clients[self.number_of(task.reply)]
        sent = self._sent[facts.node_id]
        if task.status == "ok":
            self._held[facts.number] = sent.mask_version or self._held.get(facts.number, "")
            self.ok += 1
        elif task.status == "surplus":
            self._held[facts.number] = sent.mask_version
        elif task.fault is not None:
            self.faults[task.fault] += 1
            self.failures[str(task.reason)] += 1
            if sent.mask_version != self._held.get(facts.number):
                self._held.pop(facts.number, None)  # It may hold either: it is sent what it needs.
        record = TaskRecord(
            round=server_round,
            type=sent.kind,
            client=facts.number,
            device=facts.profile.name,
            examples=task.examples,
            bytes_down=task.bytes_down,
            bytes_up=task.bytes_up,
            mask_bytes_down=min(sent.mask_bytes, task.bytes_down),
            mask_bytes_up=task.mask_bytes_up,
            flops=task.flops,
            peak_memory_bytes=task.peak_memory_bytes,
            device_seconds=task.seconds,
            joules=joules(facts.profile, task.flops, task.bytes_down + task.bytes_up),
            wall_seconds=time.perf_counter() - sent.started,
            measured_seconds=task.measured_seconds,
            measured_memory_bytes=task.measured_memory_bytes,
            status=task.status,
            fault=task.fault,
            reason=task.reason,
        )
        self.tally.add_task(record)
        self.attendance.note_task(record)
        for listener in self._federation.listeners:
            listener.on_task(record)
        self._dense.add(record, facts.profile, facts.examples, task.reply, task.end)


def _waited(grid: Grid, wanted: int, deadline: float, refused: set[int]) -> Iterable[int]:
    """Return the nodes that are there, when enough are that were not refused, or the time has come.

    None where all that are there were refused.
    """
    while True:
        nodes = list(grid.get_node_ids())
        usable = len(nodes) - len(refused.intersection(nodes))
        if usable >= wanted or time.monotonic() >= deadline:
            return nodes if usable else []
        time.sleep(0.2)


def _any_fault(replies: Iterable[Message]) -> bool:
    return any(reply.has_error() for reply in replies)


def _read_facts(reply: Message) -> Facts:
    if reply.has_error():
        raise WireError(_reason(reply))
    facts = config_of(reply.content, "facts")
    try:
        profile = DeviceProfile(
            name=text(facts, "device"),
            memory=whole(facts, "memory"),
            compute=real(facts, "compute"),
            downlink=real(facts, "downlink"),
            uplink=real(facts, "uplink"),
            joules_per_flop=real(facts, "joules_per_flop") if "joules_per_flop" in facts else None,
            joules_per_byte=real(facts, "joules_per_byte") if "joules_per_byte" in facts else None,
            availability=share(facts, "availability"),
            dropout=share(facts, "dropout"),
        )
    except ScenarioError as error:
        raise WireError(str(error)) from error
    number, examples = whole(facts, "client"), whole(facts, "examples", least=1)
    return Facts(number, reply.metadata.src_node_id, examples, profile)


def _reason(reply: Message) -> str:
    return reply.error.reason or f"error {reply.error.code}"


def _check_costs(reply: Message) -> None:
    """Refuse a reply whose costs cannot be entered into the ledger."""
    metrics = reply.content.metric_records.get("metrics", MetricRecord())
    needed = ("examples-seen",) if reply.metadata.message_type == MessageType.TRAIN else ()
    for key in (*needed, *(key for key in _COSTS if key in metrics)):
        whole(metrics, key)


def _measured(metrics: MetricRecord) -> dict[str, Any]:
    """Return what a real device has measured; a simulated one says that its process took no memory."""
    seconds, memory = metrics.get("train-seconds"), metrics.get("peak-rss")
    numbers = isinstance(seconds, float) and isinstance(memory, float)
    real_device = numbers and 0 <= seconds < inf and 0 < memory < inf  # type: ignore[operator]
    return {
        "measured_seconds": seconds if real_device else None,
        "measured_memory_bytes": round(memory) if real_device else None,  # type: ignore[arg-type]
    }


def listed(reasons: Counter[str]) -> str:
    """Return the most frequent reasons on one line."""
    return "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3)) or "no reply"
