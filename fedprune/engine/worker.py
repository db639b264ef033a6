"""What runs in a Ray worker process: Flower's ``ClientApp``, one message after another.

A worker knows nothing of strategies, rounds or scenarios. It is given tasks, runs the app that
it built at its start, and hands back outcomes; a task that raises is an outcome like any other.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.app.metadata import Metadata
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.supercore.task_identity import TaskIdentity

from fedprune.compiler import leave_out
from fedprune.engine.records import (
    PackedArrays,
    content_fault,
    pack_content,
    pack_state,
    shapes_of,
    unpack_arrays,
    unpack_state,
    unpack_values,
)
from fedprune.protocol.faults import CODES, Fault
from fedprune.wire import payload_bytes
from fedprune.wording import one_line

#: How many shared records a worker keeps unpacked: the global model, with and without its mask,
#: of this round and the last.
SHARED_KEPT = 4


@dataclass(frozen=True, slots=True)
class Task:
    """One message for one node. In ``content`` a shared record is the index of its reference."""

    metadata: Metadata
    content: list[tuple[str, str, Any]]
    node_config: dict[str, Any]
    state: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a task: content, or an error code and a reason; the state if it changed."""

    content: list[tuple[str, str, Any]] | None
    code: int
    reason: str
    state: bytes | None


class Worker:
    """A process that runs one app; ``RayGrid`` turns this class into a Ray actor."""

    def __init__(
        self,
        make_app: Callable[..., ClientApp],
        run_id: int,
        run_config: dict[str, Any],
        same_shapes: bool,
        largest_reply: float,
        names: tuple[str, ...],
        *resources: Any,
    ) -> None:
        import torch  # Here: the engine runs any Flower app, but a thread count must be set first.

        torch.set_num_threads(1)
        leave_out()
        self._resources: Mapping[str, Any] = dict(zip(names, resources, strict=True))
        self._app = make_app(**self._resources)
        self._run_config = run_config
        self._same_shapes = same_shapes
        self._largest_reply = largest_reply
        self._shared: OrderedDict[str, ArrayRecord] = OrderedDict()
        TaskIdentity.task_id = 1
        TaskIdentity.run_id = run_id

    def ready(self) -> int:
        """Return the process id, once the app has been built."""
        return os.getpid()

    def call(self, function: Callable[..., Any], common: Any, items: list[Any]) -> list[Any]:
        """Return ``function(resources, common, item)`` for each item."""
        return [function(self._resources, common, item) for item in items]

    def run(
        self, tasks: list[Task], shared_ids: list[str], *shared: PackedArrays
    ) -> tuple[list[Outcome], float]:
        """Run the tasks in order; return their outcomes and the seconds they took together."""
        started = time.perf_counter()
        records = [self._unpacked(name, packed) for name, packed in zip(shared_ids, shared, strict=True)]
        outcomes = [self._outcome(task, records) for task in tasks]
        return outcomes, time.perf_counter() - started

    def _unpacked(self, name: str, packed: PackedArrays) -> ArrayRecord:
        """Unpack a shared record once for all tasks that use it."""
        record = self._shared.pop(name, None)
        if record is None:
            record = ArrayRecord(unpack_arrays(packed))
        self._shared[name] = record
        while len(self._shared) > SHARED_KEPT:
            self._shared.popitem(last=False)
        return record

    def _outcome(self, task: Task, shared: list[ArrayRecord]) -> Outcome:
        node_id = TaskIdentity.node_id = task.metadata.dst_node_id
        try:
            content = RecordDict()
            for key, kind, record in task.content:
                if kind == "shared":
                    # A record of its own, so that an app may empty it; the arrays are shared.
                    content[key] = ArrayRecord(dict(shared[record]))
                elif kind == "arrays":
                    content[key] = ArrayRecord(unpack_arrays(record))
                else:
                    content[key] = unpack_values(kind, record)
            message = Message(metadata=task.metadata, content=content)  # type: ignore[call-overload]
            shapes = shapes_of(content) if self._same_shapes else {}  # Now: an app may change what it got.
            context = Context(
                run_id=TaskIdentity.run_id,
                node_id=node_id,
                node_config=task.node_config,
                state=unpack_state(task.state),
                run_config=self._run_config,
            )
            reply = self._app(message, context)
            state = pack_state(context.state)
            changed = state if state != task.state else None
            if reply.has_error():
                return Outcome(None, reply.error.code, reply.error.reason or "", changed)
            size = payload_bytes(reply.content)
            if size > self._largest_reply:  # Before it is copied once more, or crosses to the driver.
                reason = f"unusable reply: it has {size} bytes, expected at most {self._largest_reply}"
                return Outcome(None, CODES[Fault.TOO_LARGE], reason, changed)
            fault = content_fault(reply.content, shapes)
            if fault is not None:
                kind, reason = fault
                return Outcome(None, CODES[kind], f"unusable reply: {reason}", changed)
            return Outcome(pack_content(reply.content), 0, "", changed)
        except (Exception, SystemExit) as error:  # An app must not end a process that others use.
            return Outcome(None, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, one_line(error), None)
