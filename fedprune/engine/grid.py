"""``RayGrid``: Flower's ``Grid`` over Ray actors. It carries messages; it knows no strategy.

Any Flower app runs on it: a ``ServerApp``'s strategy is given the grid, each worker process
builds the ``ClientApp``. Three things make it fast: one shared copy of what many clients
receive, several small tasks in one Ray call, and no polling. Three make it predictable: replies
come in the order of the messages, the number of replies that wait is bounded, and a task that
hangs or kills its worker costs no other: what shared the worker is run once more, each task alone.
"""

from __future__ import annotations

import time
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

import ray
from flwr.app import ArrayRecord, Message
from flwr.clientapp import ClientApp

from fedprune.engine.cluster import return_freed_memory
from fedprune.engine.records import pack_arrays
from fedprune.engine.simulated_grid import RUN_ID, SimulatedGrid
from fedprune.engine.worker import Outcome, Worker
from fedprune.errors import RunError
from fedprune.protocol.faults import CODES, Fault
from fedprune.wording import one_line

#: A Ray call is filled with tasks until it should last this long, or reply with this much, ...
CHUNK_SECONDS = 0.02
CHUNK_BYTES = 2 * 2**20
CHUNK_TASKS = 64
#: ... and a worker is given its next call while it runs one, where tasks are shorter than this.
CALLS_PER_WORKER = 2
PREFETCH_SECONDS = 0.1
#: A worker that holds several messages should answer in a moment; after this long, one of them hangs.
PATIENCE_SECONDS = 30.0
#: The workers have this long to start; on a cluster where others hold the cores they never do.
START_SECONDS = 300.0
#: How many shared records stay in the object store; a strategy sends one or two at a time.
SHARED_KEPT = 4


@dataclass(eq=False, slots=True)
class _Worker:
    """A Ray actor, how many calls it has been given and not answered, and since when it works on the first.

    ``ready`` is answered once it has started; ``proven`` says that this is known.
    """

    actor: Any
    ready: Any
    calls: int = 0
    alone: bool = False
    proven: bool = False
    since: float = 0.0

    @property
    def load(self) -> tuple[int, bool]:
        """Whom to give work first: who has least of it, and of those not one that still starts."""
        return self.calls, not self.proven


@dataclass(eq=False, slots=True)
class _Call:
    """A Ray call that runs: its worker and the messages it carries, by their position."""

    worker: _Worker
    positions: list[int]
    retry: bool


@dataclass(slots=True)
class _Pace:
    """Running means of how long a task takes and how many bytes it replies, for one message type."""

    seconds: float = PREFETCH_SECONDS  # Until it is known better, a worker has one task at a time.
    bytes: float = 0.0

    @property
    def chunk(self) -> int:
        """How many tasks make a call."""
        by_time = CHUNK_SECONDS / max(self.seconds, 1e-6)
        by_bytes = CHUNK_BYTES / max(self.bytes, 1.0)
        return max(1, min(CHUNK_TASKS, int(by_time), int(by_bytes)))

    @property
    def depth(self) -> int:
        """How many calls a worker is given; what waits behind a long task could run elsewhere."""
        return CALLS_PER_WORKER if self.seconds < PREFETCH_SECONDS else 1


@dataclass(eq=False, slots=True)
class _Exchange:
    """Messages on their way and the replies that wait for their turn."""

    source: Iterator[Message]
    bounded: bool  # Whether replies that wait hold back new work.
    message_type: str = ""
    exhausted: bool = False
    sent: dict[int, Message] = field(default_factory=dict)
    fresh: deque[int] = field(default_factory=deque)
    retries: deque[int] = field(default_factory=deque)
    calls: dict[Any, _Call] = field(default_factory=dict)
    replies: dict[int, Message] = field(default_factory=dict)
    next_position: int = 0
    next_reply: int = 0

    def take(self) -> int | None:
        """Return the position of the next message from the source, or None at its end."""
        if self.exhausted:
            return None
        message = next(self.source, None)
        if message is None:
            self.exhausted = True
            return None
        position = self.next_position
        self.message_type = message.metadata.message_type
        self.sent[position] = message
        self.next_position += 1
        return position

    @property
    def open(self) -> bool:
        return bool(not self.exhausted or self.fresh or self.retries or self.calls or self.replies)


class RayGrid(SimulatedGrid):
    """Flower's grid on Ray actors, for ``nodes`` that run the app that ``make_app`` returns.

    Parameters
    ----------
    make_app : Callable[..., ClientApp]
        Called once in every worker, with ``resources`` as keyword arguments.
    nodes : Sequence[Mapping]
        The node config of each node; Flower's key ``partition-id`` is added where it is missing.
    workers : int
        Worker processes; results do not depend on it.
    resources : Mapping[str, object]
        What every worker needs, put into Ray's object store once. NumPy arrays in it are read
        by all workers without a copy.
    run_config : Mapping
        The app's run config, as in ``Context.run_config``.
    gpus_per_worker : float
        Share of a GPU that each worker asks Ray for.
    same_shapes : bool
        Refuse a reply whose array has another shape than the array of that name in the message.
        Strategies that average arrays by name rely on it.
    task_timeout : float, optional
        Longest time in seconds that a message of ``send_and_receive`` may take a worker. Then the worker
        is ended and the message gets an error reply; what shared the worker with it runs again.
    largest_reply : int, optional
        Refuse a reply with more bytes, in the worker: it does not reach the memory of this process.

    Ray must have been initialised. Use it as a context manager: its workers end with it.
    """

    def __init__(
        self,
        make_app: Callable[..., ClientApp],
        nodes: Sequence[Mapping[str, Any]],
        *,
        workers: int,
        resources: Mapping[str, Any] | None = None,
        run_config: Mapping[str, Any] | None = None,
        gpus_per_worker: float = 0.0,
        same_shapes: bool = True,
        task_timeout: float | None = None,
        largest_reply: int | None = None,
    ) -> None:
        return_freed_memory()
        self._task_timeout = inf if task_timeout is None else task_timeout
        resources = dict(resources or {})
        super().__init__(nodes)
        self._actor_class = ray.remote(num_cpus=1, num_gpus=gpus_per_worker, max_restarts=0)(Worker)
        self._actor_arguments = (
            make_app,
            RUN_ID,
            dict(run_config or {}),
            same_shapes,
            inf if largest_reply is None else largest_reply,
            tuple(resources),
            *(ray.put(value) for value in resources.values()),
        )
        self._shared: OrderedDict[int, tuple[ArrayRecord, Any]] = OrderedDict()
        self._paces: defaultdict[str, _Pace] = defaultdict(_Pace)
        self._exchanges: list[_Exchange] = []
        self._workers = [self._new_worker() for _ in range(workers)]
        self._await_workers()

    def _new_worker(self) -> _Worker:
        actor: Any = self._actor_class.remote(*self._actor_arguments)
        return _Worker(actor, actor.ready.remote())

    def _await_workers(self) -> None:
        """Wait until every worker has built its app; an app that cannot be built ends the run."""
        try:
            ready = [worker.ready for worker in self._workers]
            self.worker_pids = ray.get(ready, timeout=START_SECONDS)
        except ray.exceptions.GetTimeoutError as error:
            self.close()
            reason = f"not all of {len(ready)} started within {START_SECONDS:g} s; is the Ray cluster busy?"
            raise RunError(f"the workers could not start: {reason}") from error
        except ray.exceptions.RayActorError as error:
            self.close()
            cause = str(error).strip().splitlines()[-1]  # Above it, Ray shows the worker's traceback.
            raise RunError(f"the workers could not start: {cause}") from error

    def __enter__(self) -> RayGrid:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            ray.kill(worker.actor)
        self._workers = []

    # Flower's interface ------------------------------------------------------------------

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Start the messages on their way and return their ids."""
        exchange = _Exchange(iter(list(messages)), bounded=False)
        self._shared.clear()
        while exchange.take() is not None:
            exchange.fresh.append(exchange.next_position - 1)
        for message in exchange.sent.values():
            self._give_id(message)
        ids = [message.metadata.message_id for message in exchange.sent.values()]
        self._exchanges.append(exchange)
        self._pump(exchange, timeout=0.0)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to pushed messages that are there by now; never waits for others."""
        wanted = set(message_ids)
        found = []
        for exchange in [each for each in self._exchanges if not each.bounded]:
            self._pump(exchange, timeout=0.0)
            for position, reply in sorted(exchange.replies.items()):
                if reply.metadata.reply_to_message_id in wanted:
                    found.append(exchange.replies.pop(position))
            if not exchange.open:
                self._exchanges.remove(exchange)
        return found

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Send the messages; yield each reply once all earlier ones, in their order, are in.

        Messages are taken from the iterable as workers become free, and no new work starts while
        more replies wait than the workers can produce in a moment. So memory is bounded by the
        number of workers, whatever the number of messages. After ``timeout`` seconds the workers
        that still run are ended, and the messages they had get no reply, as in Flower.
        """
        exchange = _Exchange(iter(messages), bounded=True)
        self._exchanges.append(exchange)
        self._shared.clear()  # A strategy may have changed a record of the last exchange in place.
        left = inf if timeout is None else timeout
        deadline = time.monotonic() + left
        patience = min(PATIENCE_SECONDS, left / 4, self._task_timeout)
        try:
            while (left := deadline - time.monotonic()) > 0:
                self._pump(exchange, timeout=min(left, patience / 4))
                self._end_stuck(exchange, patience)
                while exchange.next_reply in exchange.replies:
                    reply = exchange.replies.pop(exchange.next_reply)
                    exchange.next_reply += 1
                    yield reply
                    del reply
                if not exchange.open:
                    return
            for position in sorted(exchange.replies):
                yield exchange.replies.pop(position)
        finally:
            self._exchanges.remove(exchange)
            self._abandon(exchange)

    def map(self, function: Callable[..., Any], common: Any, items: Sequence[Any]) -> list[Any]:
        """Return ``function(resources, common, item)`` for every item, computed on the workers.

        ``function`` must be importable; ``common`` is put into the object store once. The order
        is that of the items, whichever worker computed them.
        """
        common = ray.put(common)
        for attempt in (1, 2):
            share = max(1, -(-len(items) // len(self._workers)))
            calls = [
                worker.actor.call.remote(function, common, list(items[start : start + share]))
                for worker, start in zip(self._workers, range(0, len(items), share), strict=False)
            ]
            try:
                return [value for values in ray.get(calls) for value in values]
            except ray.exceptions.RayActorError as error:
                if attempt == 2:
                    raise RunError(f"a worker died twice: {one_line(error)}") from error
                for worker in list(self._workers):
                    self._replace(worker)
        raise AssertionError("unreachable")

    # The mechanism ----------------------------------------------------------------------

    def _pump(self, exchange: _Exchange, *, timeout: float) -> None:
        """Give work to free workers, then wait (at most ``timeout``) until a call has ended."""
        if not self._workers:
            raise RunError("the grid is closed: it carries no messages any more")
        self._dispatch(exchange)
        # Those of other exchanges too: they have the workers that this one may wait for.
        calls = {reference: other for other in self._exchanges for reference in other.calls}
        if not calls:
            return
        done, _ = ray.wait(list(calls), num_returns=1, timeout=timeout)
        if done:
            # What else has ended by now costs no further wait.
            more, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
            done = more or done
        for reference in done:
            self._collect(calls[reference], reference)
        if done:
            self._dispatch(exchange)

    def _dispatch(self, exchange: _Exchange) -> None:
        while exchange.retries:
            # A message whose worker died runs alone, so that only the guilty one can fail twice.
            worker = min(self._workers, key=lambda w: w.load)
            if worker.calls:
                return
            self._call(exchange, worker, [exchange.retries.popleft()], retry=True)
        while True:
            pace = self._paces[exchange.message_type]
            limit = 2 * CALLS_PER_WORKER * len(self._workers) * pace.chunk
            if exchange.bounded and exchange.next_position - exchange.next_reply >= limit:
                return
            free = [w for w in self._workers if w.calls < pace.depth and not w.alone]
            if not free:
                return
            positions: list[int] = []
            while len(positions) < pace.chunk:
                position = exchange.fresh.popleft() if exchange.fresh else exchange.take()
                if position is None:
                    break
                positions.append(position)
            if not positions:
                return
            self._call(exchange, min(free, key=lambda w: w.load), positions, retry=False)

    def _end_stuck(self, exchange: _Exchange, patience: float) -> None:
        """End each worker that has not answered for too long: a message of its hangs.

        One that the worker had for itself has had its time, and gets an error reply. Of several, any
        may be the one that hangs: as after any death of a worker they all run again, each alone.
        """
        for worker in {call.worker for call in exchange.calls.values()}:
            silence = self._silence(worker)
            if silence < patience:
                continue
            calls = [reference for reference, call in exchange.calls.items() if call.worker is worker]
            positions = [position for call in calls for position in exchange.calls[call].positions]
            alone = len(positions) == worker.calls == 1
            if alone and silence < self._task_timeout:
                continue
            for call in calls:
                del exchange.calls[call]
            if alone:
                reason = f"no reply within {self._task_timeout:g} s; the worker that ran the task was ended"
                self._answer(exchange, positions[0], Outcome(None, CODES[Fault.NO_REPLY], reason, None))
            else:
                # What only waited behind a hanging task comes before it.
                exchange.retries.extendleft(positions)
            self._replace(worker)

    def _silence(self, worker: _Worker) -> float:
        """Return for how many seconds a worker has worked without an answer; its start does not count."""
        now = time.monotonic()
        if not worker.proven:
            worker.proven = bool(ray.wait([worker.ready], timeout=0)[0])
            worker.since = now
        return now - worker.since

    def _call(self, exchange: _Exchange, worker: _Worker, positions: list[int], *, retry: bool) -> None:
        shared: dict[str, Any] = {}
        tasks = [self._task(exchange.sent[position], shared) for position in positions]
        reference = worker.actor.run.remote(tasks, list(shared), *shared.values())
        if not worker.calls:
            worker.since = time.monotonic()
        worker.calls += 1
        worker.alone = retry
        exchange.calls[reference] = _Call(worker, positions, retry)

    def _share(self, record: ArrayRecord) -> tuple[str, Any]:
        """Put a large record into the object store once for all messages that carry it."""
        entry = self._shared.pop(id(record), None)
        if entry is None:
            entry = (record, ray.put(pack_arrays(record)))
        self._shared[id(record)] = entry  # Holding the record keeps its id its own.
        while len(self._shared) > SHARED_KEPT:
            self._shared.popitem(last=False)
        return entry[1].hex(), entry[1]

    def _collect(self, exchange: _Exchange, reference: Any) -> None:
        call = exchange.calls.pop(reference)
        call.worker.calls -= 1
        call.worker.since = time.monotonic()
        call.worker.alone = False
        try:
            outcomes, seconds = ray.get(reference)
        except ray.exceptions.RayError as error:
            self._replace(call.worker)
            if not call.retry:
                exchange.retries.extend(call.positions)
                return
            reason = f"the worker died twice: {one_line(error)}"
            outcomes = [Outcome(None, CODES[Fault.WORKER_DIED], reason, None) for _ in call.positions]
        else:
            call.worker.proven = True
            kind = exchange.sent[call.positions[0]].metadata.message_type
            self._learn(self._paces[kind], outcomes, seconds)
        for position, outcome in zip(call.positions, outcomes, strict=True):
            self._answer(exchange, position, outcome)

    def _answer(self, exchange: _Exchange, position: int, outcome: Outcome) -> None:
        exchange.replies[position] = self._reply(exchange.sent.pop(position), outcome)

    def _learn(self, pace: _Pace, outcomes: list[Outcome], seconds: float) -> None:
        """Let the means follow what a call took."""
        size = sum(
            len(data)
            for outcome in outcomes
            for _, kind, record in outcome.content or ()
            if kind == "arrays"
            for *_, data in record
        )
        pace.seconds += 0.5 * (seconds / len(outcomes) - pace.seconds)
        pace.bytes += 0.5 * (size / len(outcomes) - pace.bytes)

    def _replace(self, worker: _Worker) -> None:
        """Put a fresh worker in the place of one that failed or hangs."""
        if worker in self._workers:
            ray.kill(worker.actor)
            self._workers[self._workers.index(worker)] = self._new_worker()

    def _abandon(self, exchange: _Exchange) -> None:
        """End the workers of calls that nobody waits for any more, and start fresh ones."""
        for worker in {call.worker for call in exchange.calls.values()}:
            self._replace(worker)
        exchange.calls.clear()
