"""What the grids of a simulation share: nodes, what each keeps between messages, tasks and replies.

Not for how a message is computed: `fedprune.engine.grid` gives it to Ray's workers,
`fedprune.engine.local_grid` to one in this process.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from flwr.app import ArrayRecord, Error, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedprune.engine.records import INLINE_BYTES, pack_arrays, pack_values, unpack_content
from fedprune.engine.worker import Outcome, Task

RUN_ID = 1


class SimulatedGrid(Grid):
    """Flower's grid around simulated nodes.

    Parameters
    ----------
    nodes : Sequence[Mapping]
        The node config of each node; Flower's key ``partition-id`` is added where it is missing.
    """

    #: Whether a worker can do the server's part of a client's training: nothing of it is far away.
    hosts_server_part = True

    def __init__(self, nodes: Sequence[Mapping[str, Any]]) -> None:
        first = SUPERLINK_NODE_ID + 1
        self._node_configs = {
            first + number: {"partition-id": number, "num-partitions": len(nodes), **config}
            for number, config in enumerate(nodes)
        }
        self._states: dict[int, bytes] = {}
        self._state_pool: dict[bytes, bytes] = {}
        self._run = Run.create_empty(RUN_ID)
        self._messages_sent = 0
        identify_server()

    @property
    def states(self) -> dict[int, bytes]:
        """What each client keeps between messages, by node id, serialized as Flower does it.

        Equal states are mostly the same object. May be set when no message is on its way: to that of
        another grid with as many nodes.
        """
        return dict(self._states)

    @states.setter
    def states(self, states: Mapping[int, bytes]) -> None:
        self._state_pool = {state: state for state in states.values()}
        self._states = {node_id: self._state_pool[state] for node_id, state in states.items()}

    @abstractmethod
    def map(self, function: Callable[..., Any], common: Any, items: Sequence[Any]) -> list[Any]:
        """Return ``function(resources, common, item)`` for every item, in their order."""

    @abstractmethod
    def _share(self, record: ArrayRecord) -> tuple[str, Any]:
        """Keep a large record for all messages that carry it; return its name and what stands for it."""

    # Flower's interface ------------------------------------------------------------------

    def set_run(self, run: Run) -> None:
        """Set the run whose messages the grid carries."""
        self._run = run
        TaskIdentity.run_id = run.run_id

    @property
    def run(self) -> Run:
        """Information about the run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message; Flower deprecates this in favour of ``Message(...)``."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes, in the order of their numbers."""
        return list(self._node_configs)

    # For those that carry messages -------------------------------------------------------

    def _give_id(self, message: Message) -> None:
        if not message.metadata.message_id:
            self._messages_sent += 1
            message.metadata.__dict__["_message_id"] = f"{RUN_ID}-{self._messages_sent}"

    def _task(self, message: Message, shared: dict[str, Any]) -> Task:
        """Return a message as a task; what it shares with others is added to ``shared`` by its name."""
        self._give_id(message)
        node_id = message.metadata.dst_node_id
        content: list[tuple[str, str, Any]] = []
        for key, record in message.content.items():
            if not isinstance(record, ArrayRecord):
                content.append((key, *pack_values(record)))
            elif sum(len(array.data) for array in record.values()) < INLINE_BYTES:
                content.append((key, "arrays", pack_arrays(record)))
            else:
                name, reference = self._share(record)
                shared[name] = reference
                content.append((key, "shared", list(shared).index(name)))
        return Task(message.metadata, content, self._node_configs[node_id], self._states.get(node_id, b""))

    def _reply(self, message: Message, outcome: Outcome) -> Message:
        if outcome.state is not None:
            # Clients often keep the same thing, a mask for instance: hold it once.
            state = self._state_pool.setdefault(outcome.state, outcome.state)
            self._states[message.metadata.dst_node_id] = state
            if len(self._state_pool) > 2 * len(self._states) + 16:
                self._state_pool = {held: held for held in self._states.values()}
        if outcome.content is None:
            return Message(Error(outcome.code, outcome.reason), reply_to=message)
        return Message(unpack_content(outcome.content), reply_to=message)


def identify_server() -> None:
    """Have Flower take this process for the server's: it notes who makes a message."""
    TaskIdentity.task_id, TaskIdentity.run_id = 1, RUN_ID
    TaskIdentity.node_id = SUPERLINK_NODE_ID
