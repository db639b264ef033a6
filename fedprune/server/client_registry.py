"""The clients of a federation, as the server knows them: their numbers, nodes and devices.

Only what clients said of themselves is here. `fedprune.server.roll_call` asks them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from flwr.app import Message

from fedprune import seeds
from fedprune.costs.devices import DeviceProfile
from fedprune.server.columns import from_columns, to_columns


@dataclass(frozen=True)
class ClientInfo:
    """What a client said of itself at the start.

    Parameters
    ----------
    number : int
        Its client number, from 0.
    node_id : int
        The id of its node on Flower's grid.
    examples : int
        Examples that it trains on.
    profile : DeviceProfile
        Its device.
    """

    number: int
    node_id: int
    examples: int
    profile: DeviceProfile


class ClientRegistry:
    """The clients of a run, by number.

    Parameters
    ----------
    fewest_examples : Callable[[], int]
        Returns how many examples a client needs to train.

    Attributes
    ----------
    clients : dict[int, ClientInfo]
        Every client that has joined.
    absent : frozenset[int]
        Those whose node the grid does not have at present; nodes of a simulation are always there.
    class_sizes : Counter[str]
        Number of clients by the name of their device; changed in place as clients join.
    """

    def __init__(self, fewest_examples: Callable[[], int] = lambda: 1) -> None:
        self._fewest_examples = fewest_examples
        self._able: Mapping[int, ClientInfo] | None = None
        self.clients: dict[int, ClientInfo] = {}
        self.absent: frozenset[int] = frozenset()
        self.class_sizes = Counter[str]()
        self._by_node: dict[int, int] = {}
        self._profiles: dict[DeviceProfile, DeviceProfile] = {}
        # What follows from all clients is worked out once, not in every round.
        self._numbers: list[int] | None = None
        self._columns: dict[str, Any] | None = None

    @property
    def numbers(self) -> list[int]:
        """The clients' numbers, ascending."""
        if self._numbers is None:
            self._numbers = sorted(self.clients)
        return self._numbers

    @property
    def able(self) -> Mapping[int, ClientInfo]:
        """The clients with examples enough to train, by number; mostly all of them."""
        if self._able is None:
            # What a model needs takes a step of it to find out; one example is rarely all that a client has.
            alone = any(info.examples == 1 for info in self.clients.values())
            fewest = self._fewest_examples() if alone else 1
            self._able = {n: info for n, info in self.clients.items() if info.examples >= fewest}
        return self._able

    @property
    def idle(self) -> frozenset[int]:
        """The numbers of the clients with too few examples to train."""
        few = len(self.able) < len(self.clients)
        return frozenset(self.clients.keys() - self.able.keys() if few else ())

    @property
    def always_available(self) -> bool:
        """Whether every device is online in every round."""
        return all(profile.availability == 1 for profile in self._profiles)

    def number_of(self, reply: Message) -> int:
        """Return the number of the client that a reply comes from."""
        return self._by_node[reply.metadata.src_node_id]

    def addressee(self, message: Message) -> ClientInfo:
        """Return the client that a message goes to."""
        return self.clients[self._by_node[message.metadata.dst_node_id]]

    def has_node(self, node_id: int) -> bool:
        """Return whether a client has joined from a node."""
        return node_id in self._by_node

    def add(self, info: ClientInfo) -> bool:
        """Add a client; return whether it has joined before, and now has another node."""
        before = self.clients.get(info.number)
        if before is not None:
            del self._by_node[before.node_id]
            self.class_sizes -= Counter([before.profile.name])  # In place, and without names that nobody has.
        # Many clients have the same device: its profile is held once.
        info = replace(info, profile=self._profiles.setdefault(info.profile, info.profile))
        self.clients[info.number] = info
        self._by_node[info.node_id] = info.number
        self.class_sizes[info.profile.name] += 1
        self._numbers = self._columns = self._able = None
        return before is not None

    def note_present(self, nodes: Iterable[int]) -> None:
        """Note which nodes the grid has; clients at other nodes are absent."""
        gone = self._by_node.keys() - set(nodes)
        self.absent = frozenset(self._by_node[node] for node in gone)

    def online(self, seed: int, server_round: int) -> list[int]:
        """Return the numbers of the clients that are online in a round, ascending.

        Each is with the probability of its device's ``availability``, drawn from the seed and the round.
        """
        numbers = [number for number in self.numbers if number not in self.absent]
        if self.always_available or not numbers:
            return numbers
        chances = [self.clients[number].profile.availability for number in numbers]
        draws = seeds.numpy_generator(seed, "availability", server_round).random(numbers[-1] + 1)
        return [number for number, chance in zip(numbers, chances, strict=True) if draws[number] < chance]

    def state_dict(self) -> dict[str, Any]:
        """Return the clients in columns, for a checkpoint."""
        if self._columns is None:
            infos = self.clients.values()
            profiles = to_columns({info.number: info.profile for info in infos})
            self._columns = {
                "nodes": torch.tensor([info.node_id for info in infos], dtype=torch.uint64),
                "examples": torch.tensor([info.examples for info in infos]),
                "profiles": {**profiles, "values": [asdict(profile) for profile in profiles["values"]]},
            }
        return self._columns

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the clients from what ``state_dict`` returned.

        A client that comes back under another node id is a new one when it does.
        """
        shared = [DeviceProfile(**profile) for profile in state["profiles"]["values"]]
        profiles = from_columns({**state["profiles"], "values": shared})
        nodes, examples = state["nodes"].tolist(), state["examples"].tolist()
        for (number, profile), node_id, count in zip(profiles.items(), nodes, examples, strict=True):
            self.add(ClientInfo(number, node_id, count, profile))
