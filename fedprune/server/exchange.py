"""Messages to clients and their replies, on whatever grid there is.

An ``Exchange`` sends a strategy's messages, yields the replies in the order of client numbers, and sends
a mask again to a client that lost it. It remembers which masks each client holds and what each message
cost to send. What messages say is for the strategy; what replies cost is for `fedprune.server.accounts`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from heapq import merge
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fedprune import seeds
from fedprune.protocol.faults import CODES, Fault
from fedprune.protocol.frozen import RECORD, FrozenValues, version_of
from fedprune.protocol.held_values import BASE, VERSION, named
from fedprune.protocol.messages import arrays_of
from fedprune.protocol.split import Conversation
from fedprune.server.client_registry import ClientRegistry
from fedprune.server.columns import from_columns, to_columns
from fedprune.server.sent_states import SentStates
from fedprune.sparsity.masks import Masks
from fedprune.wire import content_bytes, encode_masks, mask_bytes, with_masks


@dataclass(frozen=True)
class Sent:
    """What was sent to a node in the current exchange.

    Parameters
    ----------
    kind : str
        The message type.
    started : float
        When it was sent, by ``time.perf_counter``.
    bytes_down : int
        Length of its content, of both messages where it was sent again.
    mask_bytes : int
        That of its masks.
    mask_version : str
        Of the masks that it names, "" for none.
    frozen_version : str
        Of the frozen values that it names, "" for none.
    values_version : str
        Of the values that the client is to keep, "" for none.
    """

    kind: str
    started: float
    bytes_down: int
    mask_bytes: int
    mask_version: str
    frozen_version: str
    values_version: str = ""


class Held:
    """Which version of something each client holds, by its number."""

    def __init__(self) -> None:
        self._versions: dict[int, str] = {}

    def __getitem__(self, number: int) -> str:
        """Return the version that a client holds; "" where it is not known to hold any."""
        return self._versions.get(number, "")

    def __setitem__(self, number: int, version: str) -> None:
        self._versions[number] = version

    def note_task(self, number: int, version: str, status: str) -> None:
        """Note what a client holds after a task that named a version; see `Exchange.note_task`."""
        if status == "ok":
            self._versions[number] = version or self[number]
        elif status == "surplus":
            self._versions[number] = version
        elif version != self[number]:
            self.forget(number)  # It may hold either: it is sent what it needs.

    def forget(self, number: int | None = None) -> None:
        """Assume that a client, or no client at all, holds anything."""
        if number is None:
            self._versions.clear()
        else:
            self._versions.pop(number, None)

    def state_dict(self) -> dict[str, Any]:
        """Return what each client holds, for a checkpoint."""
        return to_columns({number: version for number, version in self._versions.items() if version})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._versions = from_columns(state)


class Exchange:
    """Sends messages to clients and yields their replies in order.

    Parameters
    ----------
    registry : ClientRegistry
        The clients.
    masks_for : Callable[[int], Masks]
        The masks under which a client, by number, is sent values.
    frozen : Callable[[], FrozenValues]
        What of the clients' model is frozen.
    seed : int
        The scenario's seed, for devices that vanish inside a round.
    timeout : float
        Longest time in seconds to wait for replies.
    states : SentStates, optional
        The states that clients may hold, where the server remembers some.

    Attributes
    ----------
    sent : dict[int, Sent]
        What was sent in the current exchange, by node id.
    vanished : set[int]
        The clients that have vanished in the current round.
    conversations : dict[int, Conversation]
        What else went to and fro in the current exchange, by node id; whoever carries on one notes it here.
    """

    def __init__(
        self,
        registry: ClientRegistry,
        masks_for: Callable[[int], Masks],
        frozen: Callable[[], FrozenValues],
        *,
        seed: int,
        timeout: float,
        states: SentStates | None = None,
    ) -> None:
        self.timeout = timeout
        self._states = states
        self.sent: dict[int, Sent] = {}
        self.vanished: set[int] = set()
        self.conversations: dict[int, Conversation] = {}
        self._registry = registry
        self._masks_for = masks_for
        self._frozen = frozen
        self._seed = seed
        self._held, self._held_frozen, self._held_values = Held(), Held(), Held()
        self._encoded = lru_cache(maxsize=1)(encode_masks)

    def start_round(self) -> None:
        """Forget which clients vanished in the last round."""
        self.vanished = set()

    # Messages ----------------------------------------------------------------------------

    def message(self, number: int, content: RecordDict, message_type: str, server_round: int) -> Message:
        """Return a message to a client."""
        node_id = self._registry.clients[number].node_id
        return Message(content, node_id, message_type, group_id=str(server_round))

    def send(self, grid: Grid, messages: Iterable[Message]) -> Iterator[Message]:
        """Send messages; yield one reply for each, in the order of the messages.

        At most one message a node, in the order of client numbers. A client that answers that it
        does not hold the mask is sent the message again with it. A message without any reply before
        the timeout gets an error reply; so does, after all others, one to a device that vanishes inside
        the round.
        """
        self.sent, self.conversations = {}, {}
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
                and self._names_what_there_is(message)
            ):
                self.forget_masks(self._registry.number_of(reply))
                again.append(self._with_all(message))
            elif again:
                later.append(reply)
            else:
                yield reply
        resent = (reply for _, reply in self._pairs(grid, self._noted(again)))
        yield from merge(resent, later, key=self._registry.number_of)
        for message in vanished:
            yield Message(Error(CODES[Fault.DROPPED_OUT], "vanished inside the round"), reply_to=message)

    def send_to_nodes(self, grid: Grid, messages: Iterable[Message]) -> Iterator[Message]:
        """Send messages to nodes that may not be clients yet; yield one reply for each, in their order."""
        self.sent, self.conversations = {}, {}
        return (reply for _, reply in self._pairs(grid, self._noted(messages)))

    # What clients hold -------------------------------------------------------------------

    def holds(self, number: int, masks: Masks) -> bool:
        """Return whether a client need not be sent these masks: it holds them, or there are none."""
        return not masks or self._held[number] == masks.version

    def holds_frozen(self, number: int, frozen: FrozenValues) -> bool:
        """Return whether a client need not be sent these frozen values: it holds them, or there are none."""
        return not frozen.version or self._held_frozen[number] == frozen.version

    def held_values(self, number: int) -> str:
        """Return the version of the values that a client holds; "" where it is not known to hold any."""
        return self._held_values[number]

    def note_held(self, number: int, masks: Masks) -> None:
        """Note that a client holds masks which it made itself."""
        self._held[number] = masks.version

    def note_task(self, number: int, node_id: int, status: str) -> None:
        """Note which masks and frozen values a client holds after a task.

        Parameters
        ----------
        number, node_id : int
            The client.
        status : str
            As in `TaskRecord`: "ok", "surplus" or "failed".
        """
        sent = self.sent[node_id]
        self._held.note_task(number, sent.mask_version, status)
        if sent.frozen_version:
            self._held_frozen.note_task(number, sent.frozen_version, status)
        if sent.values_version:
            self._held_values.note_task(number, sent.values_version, status)

    def forget_masks(self, number: int | None = None) -> None:
        """Assume that a client, or no client at all, holds masks and frozen values.

        What Flower keeps for a client ends with its run.
        """
        for held in (self._held, self._held_frozen, self._held_values):
            held.forget(number)

    def with_masks(self, arrays: ArrayRecord, masks: Masks) -> ArrayRecord:
        """Return arrays with these masks beside them."""
        return with_masks(arrays, self._encoded(masks))

    def state_dict(self) -> dict[str, Any]:
        """Return which masks and frozen values each client holds, for a checkpoint."""
        return {
            "masks": self._held.state_dict(),
            "frozen": self._held_frozen.state_dict(),
            "values": self._held_values.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._held.load_state_dict(state["masks"])
        self._held_frozen.load_state_dict(state["frozen"])
        self._held_values.load_state_dict(state["values"])

    # How it sends ------------------------------------------------------------------------

    def _vanishes(self, message: Message) -> bool:
        """Return whether a device is gone for the rest of a round: the same for all that it is sent in it."""
        client = self._registry.addressee(message)
        chance, server_round = client.profile.dropout, int(message.metadata.group_id)
        if chance == 0:
            return False
        draw = seeds.numpy_generator(self._seed, "dropout", server_round, client.number)
        if gone := bool(draw.random() < chance):
            self.vanished.add(client.number)
        return gone

    def _names_what_there_is(self, message: Message) -> bool:
        """Return whether a message has values for what can be sent with it: masks, frozen values, or both."""
        config = message.content.config_records.get("config", ConfigRecord())
        version, frozen = config.get("mask-version", ""), version_of(config)
        same = version == self._masks_to(message).version and frozen == self._frozen().version
        named_any = bool(version or frozen or named(config, BASE))
        return same and named_any and "arrays" in message.content.array_records

    def _masks_to(self, message: Message) -> Masks:
        return self._masks_for(self._registry.addressee(message).number)

    def _with_all(self, message: Message) -> Message:
        """Return a message again, with all values, and the masks and the frozen values that it names."""
        content = RecordDict(dict(message.content))
        config = content.config_records.get("config", ConfigRecord())
        if named(config, BASE) and self._states is not None:
            content["arrays"] = self._states.whole(named(config, VERSION))
            content["config"] = ConfigRecord({key: value for key, value in config.items() if key != BASE})
        if masks := self._masks_to(message):
            content["arrays"] = self.with_masks(arrays_of(content), masks)
        if (frozen := self._frozen()).version:
            content[RECORD] = frozen.record
        metadata = message.metadata
        return Message(content, metadata.dst_node_id, metadata.message_type, group_id=metadata.group_id)

    def _noted(self, messages: Iterable[Message]) -> Iterator[Message]:
        """Note what each message costs as it is sent; a content that clients share is measured once."""
        measured: dict[int, tuple[RecordDict, int, int]] = {}
        for message in messages:
            content, node_id = message.content, message.metadata.dst_node_id
            if id(content) not in measured:
                # Those shared come with and without masks and frozen values; others must not pile up.
                while len(measured) > 4:
                    del measured[next(iter(measured))]
                measured[id(content)] = (content, content_bytes(content), mask_bytes(content))
            _, length, of_mask = measured[id(content)]
            before = self.sent.get(node_id)
            if before is not None:  # Sent again: the client paid for both.
                length, of_mask = length + before.bytes_down, of_mask + before.mask_bytes
            config = content.config_records.get("config", ConfigRecord())
            self.sent[node_id] = Sent(
                kind=message.metadata.message_type,
                started=time.perf_counter(),
                bytes_down=length,
                mask_bytes=of_mask,
                mask_version=str(config.get("mask-version", "")),
                frozen_version=version_of(config),
                values_version=named(config, VERSION),
            )
            yield message

    def _pairs(self, grid: Grid, messages: Iterable[Message]) -> Iterator[tuple[Message, Message]]:
        """Yield each message with its reply, in the order of the messages, whatever order the grid has.

        A message is released with its reply.
        """
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
