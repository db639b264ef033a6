"""Federations within the test's own process: a Flower grid that runs the client app at once.

What goes through the grid goes through Flower's own serialisation, is recorded, and can be
shuffled, lost or tampered with. It knows nothing of Ray.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from torch import nn

from fedprune import data as datasets
from fedprune.costs.ledger import RoundRecord, TaskRecord
from fedprune.data import ClientData, FederatedData
from fedprune.engine.hosts import build_client_app
from fedprune.engine.simulation import make_strategy, score_locally
from fedprune.protocol.faults import CODES, Fault
from fedprune.scenario import Scenario
from fedprune.server.strategy import PruningStrategy
from fedprune.tasks import Task
from fedprune.training.evaluation import score
from fedprune.wire import add_checksum

SERVER = 1

PLAN: dict[str, Any] = {
    "name": "test",
    "seed": 3,
    "rounds": 2,
    "model": {"name": "cnn", "width": 0.25, "hidden": 64},
    "data": {
        "name": "digits",
        "train_examples": 200,
        "test_examples": 100,
        "server_fraction": 0.2,
        "partition": {"scheme": "dirichlet", "alpha": 1.0},
    },
    "clients": {
        "count": 4,
        "per_round": 3,
        "training": {"batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9}},
    },
    "strategy": {"name": "fedavg"},
}

#: Strategies of split training, which prune nothing, and where they cut the model of `PLAN`.
SPLIT: dict[str, dict[str, Any]] = {
    "sfprompt": {"body": "block1.norm", "tail": "block1.relu", "local_epochs": 1},
    "splitfed": {"body": "block2", "tail": "hidden"},
}

#: Strategies whose clients have submodels, and which prune nothing of the global one.
SUBMODELS = ("fedrolex", "heterofl")

Tamper = Callable[[Message, Message], Message | None]
"""Given a message and its reply, what arrives instead of the reply; None: nothing does."""


def plan(directory: Any = None, **changes: Any) -> Scenario:
    """Return a small federation with some values replaced; ``strategy={...}`` replaces the whole of it."""
    whole = {key: changes.pop(key) for key in ("strategy", "model") if key in changes}
    return Scenario.from_mapping({**PLAN, **whole}, directory).override(**changes)


def density_of(strategy: str, density: float = 0.5) -> dict[str, Any]:
    """Return options with which a strategy prunes, where it does, and runs on the model of `PLAN`."""
    if strategy in SPLIT:
        return SPLIT[strategy]
    if strategy in SUBMODELS:
        return {"shares": [0.5]}
    return {} if strategy == "fedavg" else {"density": density}


def copied(content: RecordDict) -> RecordDict:
    """Return what is left of a content when Flower has sent it."""
    return recorddict_from_proto(recorddict_to_proto(content))


class InProcessGrid(Grid):
    """Flower's grid around one client app that is called at once, node by node.

    Parameters
    ----------
    app
        What every node runs.
    nodes
        Node id to node config.
    run_config
        The app's run config.
    shuffle
        Draws the order in which replies arrive; without it, that of the messages.
    before
        Called with each message and the context of its node before the node gets it.
    tamper
        What becomes of a reply.
    """

    def __init__(
        self,
        app: ClientApp,
        nodes: Mapping[int, Mapping[str, Any]],
        *,
        run_config: Mapping[str, Any] | None = None,
        shuffle: random.Random | None = None,
        before: Callable[[Message, Context], None] | None = None,
        tamper: Tamper | None = None,
    ) -> None:
        self._app, self._shuffle, self._before, self._tamper = app, shuffle, before, tamper
        self.contexts = {
            node_id: Context(1, node_id, dict(config), RecordDict(), dict(run_config or {}))
            for node_id, config in nodes.items()
        }
        self._pushed: dict[str, Message | None] = {}
        self.exchanges: list[tuple[Message, Message | None]] = []
        """Every message with what arrived as its reply."""
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, SERVER

    def get_node_ids(self) -> Iterable[int]:
        return list(self.contexts)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        replies = [self._exchange(message) for message in messages]
        if self._shuffle is not None:
            self._shuffle.shuffle(replies)
        yield from (reply for reply in replies if reply is not None)

    def _exchange(self, message: Message) -> Message | None:
        context = self.contexts.get(message.metadata.dst_node_id)
        if context is None:
            return Message(Error(CODES[Fault.GONE], "there is no such node"), reply_to=message)
        if self._before is not None:
            self._before(message, context)
        given = Message(metadata=message.metadata, content=copied(message.content))  # type: ignore[call-overload]
        reply: Message | None = self._app(given, context)
        assert reply is not None
        if reply.has_content():
            reply = Message(copied(reply.content), reply_to=message)
        if self._tamper is not None:
            reply = self._tamper(message, reply)
            if reply is not None and reply.has_content():
                add_checksum(reply.content)  # As a client that means it.
        self.exchanges.append((message, reply))
        return reply

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(self, *args: Any, **options: Any) -> Message:
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        message_id = message.metadata.__dict__["_message_id"] = str(len(self.exchanges))
        self._pushed[message_id] = self._exchange(message)
        return message_id

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = [self._pushed.pop(message_id, None) for message_id in message_ids]
        return [reply for reply in replies if reply is not None]


@dataclass
class Federated:
    """A federation in this process: what it consists of, and what its ledger holds."""

    scenario: Scenario
    data: FederatedData
    strategy: PruningStrategy
    grid: InProcessGrid
    tasks: list[TaskRecord] = field(default_factory=list)
    rounds: list[RoundRecord] = field(default_factory=list)
    states: list[dict[str, torch.Tensor]] = field(default_factory=list)
    """What the server evaluated."""

    def on_task(self, task: TaskRecord) -> None:
        self.tasks.append(task)

    def on_round(self, round: RoundRecord) -> None:
        self.rounds.append(round)

    def trained(self) -> list[tuple[Message, Message]]:
        """Return the training messages with the replies that have content."""
        return [
            (message, reply)
            for message, reply in self.grid.exchanges
            if message.metadata.message_type == "train" and reply is not None and reply.has_content()
        ]


def assemble(
    scenario: Scenario,
    *,
    node_ids: Iterable[int] | None = None,
    numbers: Iterable[int] | None = None,
    app: ClientApp | None = None,
    **grid_options: Any,
) -> Federated:
    """Build a federation without running it.

    ``node_ids`` are the nodes' ids, in an order in which the grid lists them, and ``numbers`` the
    client number that each of them has; the options are those of `InProcessGrid`.
    """
    data = datasets.load(scenario)
    numbers = list(numbers if numbers is not None else range(scenario.clients.count))
    node_ids = node_ids if node_ids is not None else range(2, 2 + len(numbers))
    nodes = {node_id: {"partition-id": n} for node_id, n in zip(node_ids, numbers, strict=True)}
    grid = InProcessGrid(app or build_client_app(scenario, data, "cpu"), nodes, **grid_options)
    local = score_locally(scenario, data)

    def evaluate(state, masks):
        made.states.append({name: tensor.clone() for name, tensor in state.items()})
        return local(state, masks)

    listeners: list[Any] = []
    strategy = make_strategy(scenario, data, evaluate, listeners)
    made = Federated(scenario, data, strategy, grid)
    listeners.append(made)
    return made


def federate(scenario: Scenario, **options: Any) -> Federated:
    """Run a federation; the options are those of `assemble`."""
    made = assemble(scenario, **options)
    made.strategy.start(made.grid)
    return made


def same_state(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Say whether two states are the same bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def accuracy_of(task: Task, module: nn.Module, data: ClientData) -> float:
    """Return the accuracy of a module on what a client holds out."""
    accuracy = score(module, data.examples, data.test, task, batch_size=256).values(task.metrics)["accuracy"]
    assert accuracy is not None
    return accuracy
