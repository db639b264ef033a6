"""The roll call: which nodes are there, and which client each of them is.

It is held at the start of a run and before every round, so that devices may join late, leave, and come back
under another node id. Clients are known by their own number, which they tell here: Flower's node ids are
random, and with numbers the order of messages and all draws are the same on any grid.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedprune.costs.devices import DeviceProfile
from fedprune.errors import RunError, ScenarioError, WireError
from fedprune.protocol.faults import Fault, fault_of
from fedprune.protocol.messages import config_of, real, share, text, whole
from fedprune.server.accounts import RoundAccounts, reason_of
from fedprune.server.client_registry import ClientInfo, ClientRegistry
from fedprune.server.exchange import Exchange
from fedprune.wire import CODEC

_logger = logging.getLogger(__name__)


class RollCall:
    """Finds out which clients are there, and keeps the registry up to date.

    Parameters
    ----------
    registry : ClientRegistry
        Where clients are entered.
    exchange : Exchange
        Which sends the questions.
    accounts : RoundAccounts
        Which accounts for the answers.
    count : int
        How many clients the scenario has.
    patience : float
        How long to wait for nodes, in seconds.
    announce : Callable[[str], None], optional
        Told what is waited for, and who is asked.

    Attributes
    ----------
    start_with : int
        How many nodes a run waits for before it starts; all clients unless changed.
    patience : float
        How long it waits for them, and a round for any, in seconds.
    """

    def __init__(
        self,
        registry: ClientRegistry,
        exchange: Exchange,
        accounts: RoundAccounts,
        *,
        count: int,
        patience: float,
        announce: Callable[[str], None] = lambda step: None,
    ) -> None:
        self._announce = announce
        self.start_with = count
        self.patience = patience
        self._registry = registry
        self._exchange = exchange
        self._accounts = accounts
        self._count = count
        self._refused: set[int] = set()
        self._started = False

    def open(self, grid: Grid) -> None:
        """Wait for the nodes that a run starts with, and ask each which client it is.

        Raises
        ------
        RunError
            When no node answers, or two claim to be the same client.
        """
        self.hold(grid, 0)
        if not self._registry.clients:
            raise RunError(f"no node says which client it is: {self._accounts.reasons}")

    def hold(self, grid: Grid, server_round: int) -> None:
        """Note which clients are there, and ask nodes that have come since which client they are.

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
            present = self._wait(grid, 1 if self._started else self.start_with, deadline)
            if not present:
                raise RunError(f"no node has been there for {self.patience:g} s")
            self._refused &= set(present)  # What comes back may have been mended.
            new = [
                node for node in present if not self._registry.has_node(node) and node not in self._refused
            ]
            if new:
                self._announce(f"round {server_round}: asking {len(new)} clients who they are")
            lost = bool(new) and self._ask(grid, new, set(present), server_round)
            # A SuperNode that was stopped counts as there until the SuperLink has missed it.
            lost = lost and not self._started and time.monotonic() < deadline
        self._started = True
        self._registry.note_present(present)

    def _wait(self, grid: Grid, wanted: int, deadline: float) -> list[int]:
        """Return the nodes that are there, when enough are that were not refused, or the time has come.

        None where all that are there were refused. Announced is how many are missing, when that changes.
        """
        missing = 0
        while True:
            nodes = list(grid.get_node_ids())
            usable = len(nodes) - len(self._refused.intersection(nodes))
            if usable >= wanted or time.monotonic() >= deadline:
                return nodes if usable else []
            if missing != wanted - usable:
                missing = wanted - usable
                devices = "1 device" if wanted == 1 else f"{wanted} devices"
                self._announce(f"waiting for {missing} of {devices}")
            time.sleep(0.2)

    def _ask(self, grid: Grid, nodes: Iterable[int], present: set[int], server_round: int) -> bool:
        """Ask nodes which client they are, and enter those that say; return whether any was lost."""
        content = RecordDict({"config": ConfigRecord({"codec": CODEC})})
        questions = (Message(content, node, "query.facts", group_id=str(server_round)) for node in nodes)
        replies = list(self._exchange.send_to_nodes(grid, questions))
        any_error = any(reply.has_error() for reply in replies)
        names = {node.node_id: node.name for node in grid.get_nodes()} if any_error else {}
        joined, lost = [], False
        for reply in replies:
            try:
                client = _read_client(reply)
                self._check_number(client, present)
            except WireError as error:
                lost |= self._refuse(server_round, reply, error, names)
                continue
            if self._registry.add(client):
                self._exchange.forget_masks(client.number)  # The same device, under another node id.
            joined.append(reply)
        joined.sort(key=self._registry.number_of)
        for _ in self._accounts.accept(server_round, joined, _read_client):
            pass
        return lost

    def _check_number(self, client: ClientInfo, present: set[int]) -> None:
        """Refuse a number that the client cannot have."""
        if not 0 <= client.number < self._count:
            raise WireError(
                f"says that it is client {client.number}: the scenario has clients 0 to {self._count - 1}"
            )
        known = self._registry.clients.get(client.number)
        if known is None or known.node_id not in present:
            return
        twice = f"two nodes say that they are client {client.number}; each needs its own number"
        if not self._started:
            raise RunError(twice)
        raise WireError(twice)

    def _refuse(self, server_round: int, reply: Message, error: WireError, names: Mapping[int, str]) -> bool:
        """Refuse a node that is no client; return whether it was lost, and said nothing.

        One that did is not asked again until it leaves and comes back.
        """
        node_id = reply.metadata.src_node_id
        fault = fault_of(reply.error.code) if reply.has_error() else error.fault
        lost = fault is Fault.GONE
        if not lost:
            self._refused.add(node_id)
        known_as = " ".join(filter(None, ("node", str(node_id), names.get(node_id))))
        _logger.warning("%s is no client: %s", known_as, error)
        self._accounts.refuse(server_round, reply, fault, error, known_as)
        return lost


def _read_client(reply: Message) -> ClientInfo:
    """Return what a client says of itself."""
    if reply.has_error():
        raise WireError(reason_of(reply))
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
    number, examples = whole(facts, "client"), whole(facts, "examples")
    return ClientInfo(number, reply.metadata.src_node_id, examples, profile)
