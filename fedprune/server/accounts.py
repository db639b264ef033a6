"""The result of every task of a round, and its costs: good, late, surplus or failed.

``RoundAccounts`` reads what replies report of their costs, decides which replies count, and enters every
task into the round's totals, the totals of the dense baseline, and participation by device class.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Generic, TypeVar

from flwr.app import Message, MessageType, MetricRecord

from fedprune.costs.clock import ServerPart, done_by, task_seconds
from fedprune.costs.devices import DeviceProfile, joules
from fedprune.costs.ledger import Listener, Scores, Tally, TaskRecord
from fedprune.errors import WireError
from fedprune.protocol.faults import Fault, fault_of
from fedprune.protocol.messages import whole
from fedprune.protocol.scores import PERSONAL, read_score
from fedprune.protocol.split import Conversation
from fedprune.server.client_registry import ClientRegistry
from fedprune.server.dense_baseline import DenseBaseline
from fedprune.server.exchange import Exchange
from fedprune.server.participation import Participation
from fedprune.tasks import Metric, columns
from fedprune.wire import check_size, content_bytes, mask_bytes, verify_checksum

#: What a client may report of its costs.
_COSTS = ("flops", "peak-memory-bytes", "num-examples")
#: By a task's type, what comes before the names of what a client says of how well a model does.
_SCORES = {MessageType.EVALUATE: "", MessageType.TRAIN: PERSONAL}
#: Faults of which the server hears nothing.
_SILENT = {Fault.NO_REPLY, Fault.LATE, Fault.DROPPED_OUT, Fault.GONE, Fault.WORKER_DIED}
#: How results call the device of a node that never joined.
_UNKNOWN = "unknown"
_T = TypeVar("_T")


@dataclass(frozen=True)
class _Task(Generic[_T]):
    """The result of one message: its reply, good or not, and its costs.

    ``result`` holds what was read of a good one. ``status`` is as in `TaskRecord`.
    """

    reply: Message
    result: tuple[_T, ...]
    status: str
    fault: Fault | None
    reason: str | None
    examples: int
    scores: Scores
    bytes_down: int
    bytes_up: int
    mask_bytes_up: int
    flops: int
    peak_memory_bytes: int
    seconds: float
    measured_seconds: float | None
    measured_memory_bytes: int | None
    waiting: float = 0.0  # Of the seconds, those that the client waited for the server.
    server_flops: int = 0
    smashed_bytes_down: int = 0
    smashed_bytes_up: int = 0
    smashed_error: float | None = None
    end: float | None = None  # When the server stopped to wait for it, where it did.

    def until(self, end: float, profile: DeviceProfile) -> _Task[_T]:
        """Return the task as far as it had come at a time, in seconds of the phase."""
        own = max(end - self.waiting, 0.0)
        down, flops, up = done_by(profile, self.bytes_down, self.flops, self.bytes_up, own)
        return replace(
            self,
            bytes_down=down,
            flops=flops,
            bytes_up=up,
            mask_bytes_up=min(self.mask_bytes_up, up),
            smashed_bytes_down=min(self.smashed_bytes_down, down),
            smashed_bytes_up=min(self.smashed_bytes_up, up),
            seconds=min(self.seconds, end),
            end=end,
        )


class RoundAccounts:
    """The accounts of the current round: the result and the costs of every task.

    Parameters
    ----------
    registry : ClientRegistry
        The clients.
    exchange : Exchange
        Which knows what was sent to them.
    dense : DenseBaseline
        Whose totals are kept beside.
    judged_by : Sequence[Metric]
        By what models are judged.
    largest_reply : int
        Bytes above which a reply is refused.
    listeners : Sequence[Listener]
        Told of every task.

    Attributes
    ----------
    tally : Tally
        What the round has cost.
    ok : int
        Tasks that ended well.
    faults : Counter[Fault]
        Tasks that failed, by kind.
    failures : Counter[str]
        The same by reason.
    participation : Participation
        How the round's clients fared, by device class.
    """

    def __init__(
        self,
        registry: ClientRegistry,
        exchange: Exchange,
        dense: DenseBaseline,
        *,
        judged_by: Sequence[Metric],
        largest_reply: int,
        listeners: Sequence[Listener],
    ) -> None:
        self._registry = registry
        self._exchange = exchange
        self._dense = dense
        self._judged_by = judged_by
        self._largest = largest_reply
        #: What the server does of a client's training, where it takes part in it.
        self.server: ServerPart | None = None
        self._listeners = listeners
        self.start_round()

    def start_round(self) -> None:
        """Start counting anew."""
        self.tally, self.ok = Tally(), 0
        self.failures, self.faults = Counter[str](), Counter[Fault]()
        self.participation = Participation(self._registry.class_sizes, self._judged_by)

    @property
    def reasons(self) -> str:
        """The most frequent reasons of failures, on one line."""
        most = self.failures.most_common(3)
        return "; ".join(f"{count} x {reason}" for reason, count in most) or "no reply"

    def note_unable(self, offline: Iterable[int], excluded: Iterable[int]) -> None:
        """Count the clients, by number, that cannot take part in a round."""
        for what, numbers in (("offline", offline), ("excluded", excluded)):
            for number in numbers:
                self.participation.note(self._registry.clients[number].profile.name, what)

    def accept(
        self,
        server_round: int,
        replies: Iterable[Message],
        read: Callable[[Message], _T],
        *,
        deadline: float | None = None,
        wanted: int | None = None,
    ) -> Iterator[_T]:
        """Yield what ``read`` makes of each good reply; account for every reply.

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
        for tally in (self.tally, self._dense.tally, self.participation):
            tally.end_phase()

    def refuse(self, server_round: int, reply: Message, fault: Fault, error: WireError, node: str) -> None:
        """Account for a node that is no client of the run: it costs, but belongs to no device class."""
        self.faults[fault] += 1
        self.failures[str(error)] += 1
        sent = self._exchange.sent[reply.metadata.src_node_id]
        record = TaskRecord(
            round=server_round,
            type=sent.kind,
            client=None,
            device=_UNKNOWN,
            examples=0,
            scores=self._scores(None, MetricRecord()),
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
            reason=f"{node}: {error}",
        )
        self.tally.add_task(replace(record, joules=0.0))  # Its device is none of the run's.
        self._tell(record)

    def _judged(self, reply: Message, read: Callable[[Message], _T], deadline: float | None) -> _Task[_T]:
        """Return the result of a task: what a reply holds and its costs, or what is wrong with it."""
        client = self._registry.clients[self._registry.number_of(reply)]
        sent, metrics = self._exchange.sent[client.node_id], MetricRecord()
        bytes_up = mask_up = 0
        result: tuple[_T, ...] = ()
        fault = reason = None
        if reply.has_content():
            bytes_up, mask_up = content_bytes(reply.content), mask_bytes(reply.content)
        if reply.has_error():
            fault, reason = fault_of(reply.error.code), reason_of(reply)
        else:
            try:
                check_size(reply.content, self._largest)
                verify_checksum(reply.content)
                _check_costs(reply)
                metrics = reply.content.metric_records.get("metrics", metrics)
            except WireError as error:
                fault, reason = error.fault, f"WireError: {error}"
        flops, peak, examples = (whole(metrics, key) if key in metrics else 0 for key in _COSTS)
        took = self._exchange.conversations.get(client.node_id, Conversation(trips=0))
        bytes_down, bytes_up = sent.bytes_down + took.bytes_down, bytes_up + took.bytes_up
        server = self.server
        waiting = 0.0 if server is None else server.seconds(took.examples, took.trips)
        seconds = waiting + task_seconds(client.profile, bytes_down, flops, bytes_up)
        if fault is None and deadline is not None and seconds > deadline:
            fault, reason = Fault.LATE, f"{seconds:.4g} s of virtual time, the deadline is {deadline:g} s"
        if fault is None:
            try:
                result = (read(reply),)
            except WireError as error:
                fault, reason, flops, peak, examples = error.fault, f"WireError: {error}", 0, 0, 0
                seconds = waiting + task_seconds(client.profile, bytes_down, flops, bytes_up)
        task = _Task(
            reply=reply,
            result=result,
            status="ok" if fault is None else "failed",
            fault=fault,
            reason=reason,
            examples=examples,
            scores=self._scores(sent.kind, metrics if fault is None else MetricRecord()),
            bytes_down=bytes_down,
            bytes_up=bytes_up,
            mask_bytes_up=mask_up,
            flops=flops,
            peak_memory_bytes=peak,
            seconds=seconds,
            waiting=waiting,
            server_flops=0 if server is None else server.flops(took.examples),
            smashed_bytes_down=took.bytes_down,
            smashed_bytes_up=took.bytes_up,
            smashed_error=took.error,
            **_measured(metrics),
        )
        if fault in _SILENT and deadline is not None:
            # The server cannot know that nothing will come: it waits.
            task = replace(task.until(deadline, client.profile), seconds=deadline)
        return task

    def _first(self, tasks: Iterable[_Task[_T]], wanted: int) -> Iterator[_Task[_T]]:
        """Yield the tasks, in their order, with no more than the first ``wanted`` good ones as such."""
        number_of = self._registry.number_of
        held = list(tasks)
        by_time = sorted((task.seconds, number_of(task.reply)) for task in held if task.fault is None)
        if len(by_time) < wanted:
            yield from held
            return
        last = by_time[wanted - 1]
        for task in held:
            number = number_of(task.reply)
            if task.fault is None and (task.seconds, number) <= last:
                yield task
                continue
            status = "surplus" if task.fault is None else task.status
            cut = task.until(last[0], self._registry.clients[number].profile)
            yield replace(cut, status=status, result=(), scores=self._scores(None, MetricRecord()))

    def _scores(self, kind: str | None, metrics: MetricRecord) -> Scores:
        """Return how well a model did on what the client holds out, as a reply that has been read says."""
        prefix = None if kind is None else _SCORES.get(kind)
        found = None if prefix is None else read_score(metrics, self._judged_by, prefix)
        return dict.fromkeys(columns(self._judged_by)) if found is None else found.values(self._judged_by)

    def _settle(self, server_round: int, task: _Task[Any]) -> None:
        """Enter a task into the accounts."""
        client = self._registry.clients[self._registry.number_of(task.reply)]
        sent = self._exchange.sent[client.node_id]
        self._exchange.note_task(client.number, client.node_id, task.status)
        if task.status == "ok":
            self.ok += 1
        elif task.status == "failed" and task.fault is not None:
            self.faults[task.fault] += 1
            self.failures[str(task.reason)] += 1
        record = TaskRecord(
            round=server_round,
            type=sent.kind,
            client=client.number,
            device=client.profile.name,
            examples=task.examples,
            scores=task.scores,
            bytes_down=task.bytes_down,
            bytes_up=task.bytes_up,
            mask_bytes_down=min(sent.mask_bytes, task.bytes_down),
            mask_bytes_up=task.mask_bytes_up,
            flops=task.flops,
            peak_memory_bytes=task.peak_memory_bytes,
            device_seconds=task.seconds,
            joules=joules(client.profile, task.flops, task.bytes_down + task.bytes_up),
            wall_seconds=time.perf_counter() - sent.started,
            server_flops=task.server_flops,
            smashed_bytes_down=task.smashed_bytes_down,
            smashed_bytes_up=task.smashed_bytes_up,
            smashed_error=task.smashed_error,
            measured_seconds=task.measured_seconds,
            measured_memory_bytes=task.measured_memory_bytes,
            status=task.status,
            fault=task.fault,
            reason=task.reason,
        )
        self.tally.add_task(record)
        self.participation.note_task(record)
        self._tell(record)
        self._dense.add(record, client.profile, client.examples, task.reply, task.end)

    def _tell(self, record: TaskRecord) -> None:
        for listener in self._listeners:
            listener.on_task(record)


def reason_of(reply: Message) -> str:
    """Return why a client replied with an error."""
    return reply.error.reason or f"error {reply.error.code}"


def _check_costs(reply: Message) -> None:
    """Refuse a reply whose costs cannot be accounted for."""
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
