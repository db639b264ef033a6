"""Aggregation rules: how the clients' trained states become the next global state.

``WeightedMean`` adds replies up as they arrive and keeps nothing of them; ``OverlapMean`` does so for
clients with masks of their own, ``ZeroFilledMean`` where a weight that one of them pruned counts as 0.
``FlowerAggregator`` hands decoded dense arrays to a stock Flower strategy, whatever it is, and takes back
what that strategy makes of them.

``strategy.aggregator`` in a scenario names a rule: one of `AGGREGATORS`, a stock Flower strategy by its
dotted name, or a custom rule as "file.py:Class". That one is a subclass of `Aggregator`, or of
`WeightedMean` where it only weighs clients in another way:

>>> class ByLoss(WeightedMean):
...     "Clients with a higher loss count more."
...
...     def weight(self, reply):
...         return reply.weight * reply.metrics["loss"]
"""

from __future__ import annotations

import pickle
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.serverapp import strategy as stock
from flwr.serverapp.strategy import Strategy
from flwr.supercore.run import Run
from torch import Tensor

from fedprune import seeds
from fedprune.errors import PluginError, RunError
from fedprune.protocol.reports import Report
from fedprune.tasks import Score
from fedprune.wire import Codec

State = dict[str, Tensor]


@dataclass(frozen=True)
class TrainReply:
    """A client's trained state, checked and decoded.

    Parameters
    ----------
    client : int
        Client number.
    weight : int
        Examples the client trained on: its weight in the mean.
    loss : float
        Its mean training loss.
    values : Tensor
        float32, shape (codec.size,): the state, flat under the codec's masks.
    codec : Codec
        How ``values`` is laid out.
    growth : Report
        The growth report by layer, where one was asked for.
    message : Message
        The reply itself.
    report : Any
        What the strategy's ``read`` made of what else it asked for.
    personal : Score, optional
        How well the trained model does on what the client holds out; None where it holds out nothing.
    update : Tensor, optional
        Where updates are compressed, the one that arrived, laid out as ``values``: these are what the client
        was sent plus it. It is 0 where values travel whole, as batch-norm statistics do.
    """

    client: int
    weight: int
    loss: float
    values: Tensor
    codec: Codec
    growth: Report
    message: Message
    report: Any = None
    personal: Score | None = None
    update: Tensor | None = None

    @property
    def metrics(self) -> Mapping[str, Any]:
        """What the client measured, by the names that `fedprune.client.base.Client.train` lists.

        Reading one that is not there, also with ``get``, ends the run with the names of those that are.
        """
        return _Metrics(self.message.content.metric_records["metrics"], f"the reply of client {self.client}")


class _Metrics(MetricRecord):
    """Metrics that refuse a name they do not have: a rule must not continue without it."""

    def __init__(self, metrics: Mapping[str, Any], whose: str) -> None:
        super().__init__(dict(metrics))
        self.__dict__["_whose"] = whose

    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise RunError(
                f"there is no metric {name!r} in {self.__dict__['_whose']}: there are {', '.join(self)}"
            )
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        return self[name]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self.items()), self.__dict__["_whose"])


class Aggregator(ABC):
    """What turns the replies of a round into the next global state.

    A custom one has ``add`` and ``finish``; its constructor's arguments are options in a scenario:
    ``aggregator: {name: "./mine.py:Trimmed", share: 0.1}``. In every strategy that has no aggregation of
    its own, all replies of a round are under the same masks.

    Examples
    --------
    >>> class Median(Aggregator):
    ...     "The median of each value over the clients."
    ...
    ...     def begin(self, server_round, state, nodes):
    ...         self.replies = []
    ...         return {}
    ...
    ...     def add(self, reply):
    ...         self.replies.append(reply)
    ...
    ...     def finish(self):
    ...         values = torch.stack([reply.values for reply in self.replies])
    ...         return self.replies[0].codec.unflatten(values.median(dim=0).values)
    """

    def client_config(self) -> Mapping[str, Any]:
        """Return config that every training message carries for this aggregator; none by default."""
        return {}

    def begin(self, server_round: int, state: State, messages: list[int]) -> Mapping[str, Any]:
        """Start a round with the global state and the sampled node ids; return config for clients."""
        return {}

    @abstractmethod
    def add(self, reply: TrainReply) -> None:
        """Take in one reply; called in the order of client numbers."""

    @abstractmethod
    def finish(self) -> State:
        """Return the new global state, float32; called after at least one reply."""

    def state_dict(self) -> dict[str, Any]:
        """Return what is kept from one round to the next, for a checkpoint; by default nothing.

        See `PruningStrategy.state_dict`.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        return


class WeightedMean(Aggregator):
    """The mean of the replies, weighted by examples (McMahan et al. 2017), in double precision."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._weight: float = 0
        self._codec: Codec | None = None

    def begin(self, server_round: int, state: State, messages: list[int]) -> Mapping[str, Any]:
        """Forget the last round."""
        self._sum, self._weight, self._codec = None, 0, None
        return {}

    def weight(self, reply: TrainReply) -> float:
        """Return the weight of a reply in the mean: its examples."""
        return reply.weight

    def add(self, reply: TrainReply) -> None:
        """Add one reply; its values are not kept."""
        if self._sum is None:
            self._sum, self._codec = torch.zeros(reply.codec.size, dtype=torch.float64), reply.codec
        weight = self.weight(reply)
        self._sum.add_(reply.values, alpha=weight)
        self._weight += weight

    def mean(self) -> Tensor:
        """Return the mean of the flat values, float32."""
        assert self._sum is not None
        if not self._weight > 0:
            raise RunError(f"{type(self).__name__} gave all replies together the weight {self._weight:g}")
        return (self._sum / self._weight).float()

    def finish(self) -> State:
        """Return the state that the mean stands for."""
        assert self._codec is not None
        return self._codec.unflatten(self.mean())


class OverlapMean(Aggregator):
    """The mean of each weight over the clients that kept it, weighted by examples, in double precision.

    A weight that nobody kept has the value that it had. Where all clients have the same masks, and
    with the weights these prune at 0, it is `WeightedMean`. Held: two float64 values a weight.
    """

    def begin(self, server_round: int, state: State, messages: list[int]) -> Mapping[str, Any]:
        """Forget the last round; remember the state for the weights that nobody keeps."""
        self._state = state
        self._sums = {name: torch.zeros(t.shape, dtype=torch.float64) for name, t in state.items()}
        self._weights = {name: torch.zeros_like(total) for name, total in self._sums.items()}
        return {}

    def add(self, reply: TrainReply) -> None:
        """Add one reply where its masks keep; its values are not kept."""
        reply.codec.add(reply.values, self._sums, self._weights, reply.weight)

    def finish(self) -> State:
        """Return the means."""
        return {
            name: torch.where(self._weights[name] > 0, total / self._weights[name], held.double()).to(
                held.dtype
            )
            for (name, total), held in zip(self._sums.items(), self._state.values(), strict=True)
        }


class ZeroFilledMean(OverlapMean):
    """The mean of each weight over all clients, weighted by examples; one that pruned it counts as 0."""

    def begin(self, server_round: int, state: State, messages: list[int]) -> Mapping[str, Any]:
        """Forget the last round."""
        self._weight = 0
        return super().begin(server_round, state, messages)

    def add(self, reply: TrainReply) -> None:
        """Add one reply."""
        super().add(reply)
        self._weight += reply.weight

    def finish(self) -> State:
        """Return the means."""
        return {
            name: (total / self._weight).to(self._state[name].dtype) for name, total in self._sums.items()
        }


class FlowerAggregator(Aggregator):
    """A stock Flower strategy as the aggregator; it sees dense arrays by name, as in dense training.

    Its optimizer acts on the model's parameters. Buffers (batch-norm statistics) are averaged:
    a server-side step on a running variance could make it negative.

    Parameters
    ----------
    strategy_class : type[Strategy]
        For example ``flwr.serverapp.strategy.FedAdam``.
    options : Mapping
        Keyword arguments of its constructor.
    parameters : Iterable[str]
        Names of the model's parameters.
    seed : int
        Scenario seed, for strategies that draw random numbers.
    """

    def __init__(
        self, strategy_class: type[Strategy], options: Mapping[str, Any], parameters: Iterable[str], seed: int
    ) -> None:
        accepted = signature(strategy_class).parameters
        # The sampled clients are the only nodes it sees: it must take them all and wait for none.
        everyone = {
            "fraction_train": 1.0,
            "min_train_nodes": 1,
            "min_available_nodes": 1,
            "fraction_evaluate": 0.0,
            "min_evaluate_nodes": 0,
        }
        if taken := sorted(everyone.keys() & options.keys()):
            raise PluginError(f"{taken[0]} is not for the aggregator: clients.per_round says who takes part")
        try:
            self.strategy = strategy_class(
                **{**{k: v for k, v in everyone.items() if k in accepted}, **options}
            )
        except Exception as error:  # Whatever a strategy of Flower's or of a user's raises.
            raise PluginError(f"cannot build {strategy_class.__name__}: {error}") from error
        self._parameters = frozenset(parameters)
        self._seed = seed
        self._buffers = WeightedMean()

    def client_config(self) -> Mapping[str, Any]:
        """Return the weight of the proximal term, of Flower's FedProx: clients need memory for it."""
        mu = getattr(self.strategy, "proximal_mu", None)
        return {} if mu is None else {"proximal-mu": float(mu)}

    def begin(self, server_round: int, state: State, messages: list[int]) -> Mapping[str, Any]:
        """Let the strategy see the global state; return the config it has for clients."""
        self._round, self._state = server_round, state
        self._replies: list[Message] = []
        self._buffers.begin(server_round, state, messages)
        config = ConfigRecord({})
        with self._working("configure"):
            planned = list(
                self.strategy.configure_train(
                    server_round, self._dense(state), config, _SampledNodes(messages)
                )
            )
        for record in planned[0].content.config_records.values() if planned else ():
            return dict(record)
        return {}

    def add(self, reply: TrainReply) -> None:
        """Keep a reply, dense, until the round ends: a stock strategy takes them all at once."""
        self._buffers.add(reply)
        arrays = self._dense(reply.codec.unflatten(reply.values))
        metrics = reply.message.content.metric_records["metrics"]
        content = RecordDict({"arrays": arrays, "metrics": MetricRecord(dict(metrics))})
        copy = Message(metadata=reply.message.metadata, content=content)  # type: ignore[call-overload]
        self._replies.append(copy)

    def finish(self) -> State:
        """Let the strategy aggregate; take its parameters and the averaged buffers."""
        _keep_common_metrics([reply.content for reply in self._replies])
        for reply in self._replies:
            common = reply.content.metric_records["metrics"]
            reply.content["metrics"] = _Metrics(common, "the replies of all clients")
        with self._working("aggregate"):
            arrays, _ = self.strategy.aggregate_train(self._round, self._replies)
        name = type(self.strategy).__name__
        if arrays is None:
            raise RunError(f"{name} gave no model in round {self._round}")
        means, result = self._buffers.finish(), {}
        for key, before in self._state.items():
            if key not in self._parameters:
                result[key] = means[key]
                continue
            after = torch.from_numpy(np.array(arrays[key].numpy(), dtype=np.float32)).reshape(before.shape)
            if not torch.isfinite(after).all():
                raise RunError(f"{name} made {key!r} not finite in round {self._round}")
            result[key] = after
        self._replies = []
        return result

    def state_dict(self) -> dict[str, Any]:
        """Return the strategy, pickled: whatever it keeps, such as moments, stands in its attributes.

        Nothing else works for every stock strategy: none says what it keeps.

        Raises
        ------
        RunError
            For a strategy that cannot be pickled.
        """
        try:
            return {"strategy": pickle.dumps(self.strategy)}
        except Exception as error:  # An attribute's own way of being pickled may raise anything.
            name = type(self.strategy).__name__
            raise RunError(
                f"{name} cannot be kept in a checkpoint: {error}; engine.checkpoint_every: 0 runs without"
            ) from error

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the strategy back."""
        self.strategy = pickle.loads(state["strategy"])

    @contextmanager
    def _working(self, purpose: str) -> Iterator[None]:
        """Let the strategy work, with seeded generators; what it raises ends the run with its name."""
        try:
            with _seeded(self._seed, self._round, purpose):
                yield
        except Exception as error:
            name = type(self.strategy).__name__
            raise RunError(
                f"{name} failed in round {self._round}: {type(error).__name__}: {error}"
            ) from error

    def _dense(self, state: State) -> ArrayRecord:
        return ArrayRecord(
            {name: Array(tensor.numpy()) for name, tensor in state.items() if name in self._parameters}
        )


#: The rules that a scenario can name, besides custom ones.
AGGREGATORS: dict[str, type[Aggregator] | type[Strategy]] = {
    "weighted_mean": WeightedMean,
    "overlap_mean": OverlapMean,
    "fedadagrad": stock.FedAdagrad,
    "fedadam": stock.FedAdam,
    "fedavgm": stock.FedAvgM,
    "fedmedian": stock.FedMedian,
    "fedtrimmedavg": stock.FedTrimmedAvg,
    "fedyogi": stock.FedYogi,
    "krum": stock.Krum,
}


def _keep_common_metrics(contents: list[RecordDict]) -> None:
    """Leave each reply the plain numbers that all report: Flower refuses replies that differ in them."""
    records = [content.metric_records["metrics"] for content in contents]
    for name in {name for record in records for name in record}:
        if any(isinstance(record.get(name, []), list) for record in records):
            for record in records:
                record.pop(name, None)


@contextmanager
def _seeded(seed: int, server_round: int, purpose: str) -> Iterator[None]:
    """Seed the global generators that stock strategies draw from, and put them back afterwards."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    value = seeds.derive(seed, f"aggregator {purpose}", server_round)
    random.seed(value)
    np.random.seed(value % 2**32)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


class _SampledNodes(Grid):
    """A grid on which only the sampled nodes are online; it carries no messages."""

    def __init__(self, node_ids: list[int]) -> None:
        self._node_ids = node_ids

    def get_node_ids(self) -> Iterable[int]:
        return list(self._node_ids)

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=node_id) for node_id in self._node_ids]

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(self, *args: Any, **options: Any) -> Message:
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        raise NotImplementedError
