"""``LocalGrid``: Flower's ``Grid`` within this process, for many small runs side by side.

Its one worker is that of `fedprune.engine.grid`, called at once: the same messages, states and refusals, and
the same results bit for bit, without processes to start. What hangs or ends the process is not caught.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from math import inf
from typing import Any

from flwr.app import ArrayRecord, Message
from flwr.clientapp import ClientApp

from fedprune.engine.records import pack_arrays
from fedprune.engine.simulated_grid import RUN_ID, SimulatedGrid, identify_server
from fedprune.engine.worker import SHARED_KEPT, Worker


class LocalGrid(SimulatedGrid):
    """Flower's grid around an app that runs in this process, one message after another.

    Parameters
    ----------
    make_app, nodes, resources, run_config, same_shapes, largest_reply
        As for `fedprune.engine.grid.RayGrid`; ``make_app`` is called once.
    """

    def __init__(
        self,
        make_app: Callable[..., ClientApp],
        nodes: Sequence[Mapping[str, Any]],
        *,
        resources: Mapping[str, Any] | None = None,
        run_config: Mapping[str, Any] | None = None,
        same_shapes: bool = True,
        largest_reply: int | None = None,
    ) -> None:
        super().__init__(nodes)
        resources = dict(resources or {})
        self._worker = Worker(
            make_app,
            RUN_ID,
            dict(run_config or {}),
            same_shapes,
            inf if largest_reply is None else largest_reply,
            tuple(resources),
            *resources.values(),
        )
        self._shared: OrderedDict[int, tuple[str, ArrayRecord]] = OrderedDict()
        self._names = count()
        self._replies: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Answer the messages and return their ids."""
        ids = []
        for message in messages:
            reply = self._answer(message)
            ids.append(message.metadata.message_id)
            self._replies[ids[-1]] = reply
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to pushed messages."""
        return [self._replies.pop(name) for name in message_ids if name in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Yield the reply to each message, computed when it is asked for.

        After ``timeout`` seconds no further message is answered; the one that runs then comes to its end.
        """
        self._shared.clear()  # A strategy may have changed a record of the last exchange in place.
        deadline = time.monotonic() + (inf if timeout is None else timeout)
        for message in messages:
            if time.monotonic() >= deadline:
                return
            yield self._answer(message)

    def map(self, function: Callable[..., Any], common: Any, items: Sequence[Any]) -> list[Any]:
        """Return ``function(resources, common, item)`` for every item, in their order."""
        return self._worker.call(function, common, list(items))

    def _answer(self, message: Message) -> Message:
        shared: dict[str, Any] = {}
        task = self._task(message, shared)
        packed = [pack_arrays(record) for record in shared.values()]
        try:
            (outcome,), _ = self._worker.run([task], list(shared), *packed)
        finally:
            identify_server()
        return self._reply(message, outcome)

    def _share(self, record: ArrayRecord) -> tuple[str, Any]:
        """Name a large record, once for all messages that carry it."""
        if id(record) not in self._shared:
            self._shared[id(record)] = (str(next(self._names)), record)  # Holding it keeps its id its own.
        self._shared.move_to_end(id(record))
        while len(self._shared) > SHARED_KEPT:
            self._shared.popitem(last=False)
        return self._shared[id(record)]
