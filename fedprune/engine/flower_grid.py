"""Flower's own grid, whose nodes are real: they come and go, restart, and are lost in mid-task.

``FlowerGrid`` wraps the grid that Flower gives a ``ServerApp``. It sends messages one by one, so that a
round's are never all in memory, yields replies as they come, and has an error reply from each node that
will send no other, without waiting for the timeout:

- the SuperLink says that a node has missed its heartbeats, but signs that itself and not with the node;
- a SuperNode that was restarted has forgotten the message, of which the SuperLink knows nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

from fedprune.protocol.faults import CODES, Fault

_SHORTEST, _LONGEST = 0.1, 1.0  # Seconds from one look for replies to the next.
_LOOK_AT_NODES = 5.0  # Seconds from one look for restarted nodes to the next.


class FlowerGrid(Grid):
    """A grid that behaves as `fedprune.engine.grid.RayGrid` does where nodes are real.

    Parameters
    ----------
    grid : Grid
        Flower's.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    @property
    def run(self) -> Any:
        """The run's facts, as Flower has them."""
        return self._grid.run

    def set_run(self, run: Any) -> None:
        """Set the run's facts."""
        self._grid.set_run(run)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the nodes that are online."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return what the SuperLink knows of the nodes that are online."""
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; return their ids."""
        return self._grid.push_messages(list(messages))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there to messages of these ids."""
        return self._grid.pull_messages(list(message_ids))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Send messages and yield replies as they come, an error for each node that will send none.

        Parameters
        ----------
        messages : Iterable of Message
            Taken one by one.
        timeout : float, optional
            Seconds to wait, from when all are sent; messages without a reply by then get none.
        """
        waiting: dict[str, Message] = {}
        started = self._activations()
        for message in messages:
            sent = list(self._grid.push_messages([message]))
            if sent and sent[0]:
                waiting[sent[0]] = message
            else:
                yield _lost(message, "the SuperLink did not take the message: the node is gone")
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        pause, looked = _SHORTEST, time.monotonic()
        while waiting and time.monotonic() < deadline:
            replies = list(self._grid.pull_messages(list(waiting)))
            for reply in replies:
                yield _signed(reply, waiting.pop(reply.metadata.reply_to_message_id))
            del replies
            if waiting and time.monotonic() - looked > _LOOK_AT_NODES:
                looked, now = time.monotonic(), self._activations()
                for message_id in _restarted(waiting, started, now):
                    yield _lost(waiting.pop(message_id), "the SuperNode was restarted and lost the message")
            pause = min(1.5 * pause, _LONGEST)
            if waiting:
                time.sleep(pause)

    def _activations(self) -> dict[int, str]:
        """Return when each node that is online was last started, as far as Flower knows."""
        return {node.node_id: node.last_activated_at for node in self._grid.get_nodes()}


def _restarted(
    waiting: Mapping[str, Message], before: Mapping[int, str], now: Mapping[int, str]
) -> list[str]:
    """Return the ids of messages to nodes that were started again since."""
    return [
        message_id
        for message_id, message in waiting.items()
        if (node := message.metadata.dst_node_id) in before and now.get(node, before[node]) != before[node]
    ]


def _signed(reply: Message, message: Message) -> Message:
    """Return a reply as one of the node that the message went to; the SuperLink signs some itself."""
    if reply.metadata.src_node_id != SUPERLINK_NODE_ID or not reply.has_error():
        return reply
    code, reason = reply.error.code, reply.error.reason
    if code == ErrorCode.NODE_UNAVAILABLE:
        return _lost(message, "the SuperNode has stopped or is out of reach")
    return Message(Error(code, reason), reply_to=message)


def _lost(message: Message, reason: str) -> Message:
    """Return the reply of a node that sends none."""
    return Message(Error(CODES[Fault.GONE], reason), reply_to=message)
