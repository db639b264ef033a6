"""What every way of training shares on a device: messages in, messages out, nothing lost between.

A ``Site`` is what a process holds once: the scenario, the data it may read and a model. A
``Client`` is one client at work in it, for one message. It agrees on the mask with the server,
decodes what was sent, lets the subclass train, and replies with values and costs. A way of
training is a subclass with one method, ``fit``; see ``fedprune.clients.sparse`` for the first.

Nothing here knows whether the site is a device or a process that simulates a thousand of them.
"""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import torch
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from torch import Tensor, nn

from fedprune import __version__, models, registry, seeds
from fedprune.costs.devices import DeviceProfile, client_profiles
from fedprune.costs.fit import TrainingStep, last, micro_batch
from fedprune.costs.flops import ModelCost
from fedprune.costs.memory import Overhead, forward_memory, optimizer_slots
from fedprune.data import ClientData, LocalData, batches
from fedprune.errors import (
    DivergedError,
    FedpruneError,
    OverBudgetError,
    TaskRefusedError,
    WireError,
)
from fedprune.evaluation import Score, score
from fedprune.execution import LocalModel, rule_of, sparse_model, why_not_sparse, without_values
from fedprune.faults import CODES, Fault
from fedprune.messages import arrays_of, config_of, payload, real, text, whole
from fedprune.node_config import client_number
from fedprune.own_masks import with_own_masks
from fedprune.scenario import Scenario
from fedprune.sparsity.masks import Masks
from fedprune.sparsity.schedules import SCHEDULES
from fedprune.supermask import FrozenNetwork, Supermasks
from fedprune.units import format_bytes
from fedprune.wire import (
    CODEC,
    Codec,
    Layout,
    StateCodec,
    add_checksum,
    decode_masks,
    encode_masks,
    get_state,
    take_masks,
)

_logger = logging.getLogger(__name__)


class UnknownMaskError(TaskRefusedError):
    """The client does not hold the mask that the message names; the server must send it again."""

    fault = Fault.UNKNOWN_MASK


@dataclass(frozen=True, eq=False)
class Site:
    """What a process holds for its clients: scenario, data, one model that each in turn fills."""

    scenario: Scenario
    data: LocalData
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    #: What the device of this process is, where a scenario does not say it.
    profile: DeviceProfile | None = None

    def profile_of(self, number: int) -> DeviceProfile:
        """Return the device of a client."""
        return self.profile or self.profiles[number]

    @cached_property
    def module(self) -> nn.Module:
        """The dense model; its values are those of whichever client used it last."""
        return self._build().to(self.device)

    @cached_property
    def sparse(self) -> Callable[[Masks], LocalModel | None]:
        """The model with layers executed sparse, under masks; None where all of them stay dense."""
        on_cpu = self.device.type == "cpu"
        rule = rule_of(self.scenario.clients.training, self.cost) if on_cpu else None

        @lru_cache(maxsize=4)
        def make(masks: Masks) -> LocalModel | None:
            if not (rule and masks):
                return None
            found = sparse_model(self._outline[0], masks, rule, self.data.info.input_shape)
            return found if found is None or self._can_be_sparse else None

        return make

    @cached_property
    def _can_be_sparse(self) -> bool:
        """Whether the model computes the same where layers are executed sparse."""
        fault = why_not_sparse(self._outline[0], self._build(), self.data.info.input_shape)
        if fault:
            _logger.warning("the model is executed dense, since it cannot work with sparse layers: %s", fault)
        return fault is None

    @cached_property
    def initial(self) -> dict[str, Tensor]:
        """The state of the model with its initial weights, which follow from the scenario's seed."""
        return get_state(self._build())

    def _build(self) -> nn.Module:
        return models.build(
            self.scenario.model.name,
            self.data.info.input_shape,
            self.data.info.classes,
            seed=self.scenario.seed,
            options=self.scenario.model.options,
            directory=self.scenario.directory,
        )

    @cached_property
    def _outline(self) -> tuple[nn.Module, ModelCost]:
        """The model without values, and its costs: of one that is built for these and let go of."""
        module = self._build()
        return without_values(module), ModelCost.of(module, self.data.info.input_shape)

    @property
    def cost(self) -> ModelCost:
        """The model's cost model."""
        return self._outline[1]

    @cached_property
    def layout(self) -> Layout:
        """What the model's state looks like on the wire."""
        return Layout.of(self._outline[0])

    @cached_property
    def profiles(self) -> list[DeviceProfile]:
        """The device that the scenario gives each client, by client number."""
        clients = self.scenario.clients
        return client_profiles(clients.devices, clients.count, self.scenario.seed, clients.churn)

    @cached_property
    def client_class(self) -> type[Client]:
        """The way of training that the scenario's strategy names; a look-up in all that is installed."""
        directory = self.scenario.directory
        strategy = registry.load("strategy", self.scenario.strategy.name, directory)
        found: type[Client] = registry.load("client", getattr(strategy, "client", "sparse"), directory)
        return found

    @cached_property
    def masks(self) -> Callable[[bytes, str], Masks]:
        """Decode a mask payload; the clients of a site mostly hold the same few."""

        @lru_cache(maxsize=8)
        def decode(payload: bytes, version: str) -> Masks:
            return decode_masks(payload, self.layout.shapes, version=version)

        return decode

    @cached_property
    def codec(self) -> Callable[[Masks], StateCodec]:
        """The codec of a mask."""

        @lru_cache(maxsize=8)
        def make(masks: Masks) -> StateCodec:
            return StateCodec(self.layout, masks, self.scenario.wire.values)

        return make

    @cached_property
    def frozen(self) -> Callable[[Masks, Supermasks], FrozenNetwork]:
        """The frozen weights under masks, for clients that learn supermasks."""

        @lru_cache(maxsize=8)
        def make(masks: Masks, settings: Supermasks) -> FrozenNetwork:
            return FrozenNetwork(self.module, self.initial, masks, settings)

        return make


@dataclass(frozen=True)
class Order:
    """What a message asks of a client, decoded: ``model`` holds ``values``, flat under ``masks``."""

    round: int
    config: ConfigRecord
    masks: Masks
    codec: Codec
    values: Tensor
    model: LocalModel


@dataclass(frozen=True)
class Fit:
    """What came of local training.

    Parameters
    ----------
    values : Tensor
        The trained state, float32, flat under ``masks``.
    masks : Masks
        The masks of ``values``; those of the order unless the client moved them, as it was asked to.
    loss : float
        Mean training loss over all examples seen.
    examples_seen : int
        Examples that went through forward and backward, repetitions included.
    extra : RecordDict
        What else the method replies.
    flops : int
        What the method computed besides training.
    trained_under : Masks, optional
        The masks that say what training cost, where these are not ``masks``.
    """

    values: Tensor
    masks: Masks
    loss: float
    examples_seen: int
    extra: RecordDict = field(default_factory=RecordDict)
    flops: int = 0
    trained_under: Masks | None = None


class Client(ABC):
    """One client at work on one message.

    A message of type ``train`` is answered by ``train``, one of type ``query.facts`` by
    ``query_facts``, and so on: a subclass answers a new message by having the method.
    """

    #: Whether this way of training can do with layers that hold their kept weights alone.
    executes_sparse: ClassVar[bool] = False

    def __init__(self, site: Site, number: int) -> None:
        self.site = site
        self.scenario = site.scenario
        self.number = number
        self.data: ClientData = site.data.client(number)
        #: Examples that go through the model at once in a training step.
        self.batch = self.whole_batch

    @classmethod
    def overhead(cls, proximal_mu: float, options: Mapping[str, Any]) -> Overhead:
        """Return what a training step needs besides a plain one, before any message: for predictions.

        Parameters
        ----------
        proximal_mu : float
            Weight of FedProx's term.
        options : Mapping
            Those of the strategy.
        """
        return Overhead()

    @classmethod
    def overhead_of(cls, scenario: Scenario, config: ConfigRecord, masks: Masks) -> Overhead:
        """Return what a training step needs besides a plain one, as a message asks for it.

        Server and client both predict by it whether a device has the memory.

        Parameters
        ----------
        scenario : Scenario
            What is run.
        config : ConfigRecord
            The message's.
        masks : Masks
            Under which the client trains.
        """
        return cls.overhead(proximal_mu(scenario, config), scenario.strategy.options)

    @abstractmethod
    def fit(self, order: Order) -> Fit:
        """Train on this client's examples; ``order.model`` already holds the order's values."""

    def handle(self, message: Message, state: RecordDict) -> RecordDict:
        """Answer a message; ``state`` is what the client keeps between messages."""
        category, _, action = message.metadata.message_type.partition(".")
        answer = getattr(self, f"{category}_{action}" if action else category, None)
        if answer is None:
            raise FedpruneError(
                f"a {type(self).__name__} client has no answer to {message.metadata.message_type!r} messages"
            )
        content: RecordDict = answer(message.content, state)
        return content

    def query_facts(self, content: RecordDict, state: RecordDict) -> RecordDict:
        """Say who this is: client number, examples, device. The node id says nothing of it."""
        config = content.config_records.get("config", ConfigRecord())
        check_codec(config)
        profile = self.site.profile_of(self.number)
        facts = ConfigRecord(
            {
                "client": self.number,
                "examples": len(self.data.train),
                "test-examples": len(self.data.test),
                "device": profile.name,
                "memory": profile.memory,
                "compute": profile.compute,
                "downlink": profile.downlink,
                "uplink": profile.uplink,
                "availability": profile.availability,
                "dropout": profile.dropout,
            }
        )
        for key in ("joules_per_flop", "joules_per_byte"):
            if (value := getattr(profile, key)) is not None:
                facts[key] = value
        return RecordDict({"facts": facts})

    def train(self, content: RecordDict, state: RecordDict) -> RecordDict:
        """Train from what was sent; reply the trained values, the loss and what it cost.

        A client that holds out examples also replies its model's accuracy on them. That is a
        measurement, as the server's evaluation is: no part of what training costs.
        """
        order = self._receive(content, state)
        began = time.perf_counter()
        step = training_step(type(self), self.scenario, self.site.cost, order.config, order.masks)
        self.batch = self.fitting_batch(step, order.masks)
        torch.manual_seed(seeds.derive(self.scenario.seed, "train", order.round, self.number))
        fit = self.fit(order)
        trained_under = fit.trained_under or fit.masks
        memory = step.memory_of(trained_under.kept, self.batch)
        self.refuse_over(memory.total, "what came of training")
        flops = self.site.cost.training_flops(trained_under, fit.examples_seen) + fit.flops
        seed = seeds.derive(self.scenario.seed, "wire", order.round, self.number)
        metrics = MetricRecord(
            {
                "num-examples": len(self.data.train),
                "loss": fit.loss,
                "examples-seen": fit.examples_seen,
                "flops": flops,
                "peak-memory-bytes": memory.total,
                "train-seconds": time.perf_counter() - began,
            }
        )
        if len(self.data.test):
            personal = self.personal_score(order, fit)
            metrics.update({"test-examples": personal.examples, "test-accuracy": personal.accuracy})
        arrays = self.reply_codec(order.config, fit.masks).encode(fit.values, seed=seed)
        if fit.masks != order.masks:
            arrays = with_own_masks(arrays, fit.masks, order.masks)
            self._hold(fit.masks, state)
        reply = RecordDict({"arrays": arrays, "metrics": metrics})
        reply.update(fit.extra)
        return reply

    def personal_score(self, order: Order, fit: Fit) -> Score:
        """Score the model that came of training, before wire rounding, on this client's held-out examples."""
        model = self.model(fit.masks, self.reply_codec(order.config, fit.masks))
        model.load(fit.values)
        return self.held_out_score(model, self.scenario.evaluation.batch_size)

    def evaluate(self, content: RecordDict, state: RecordDict) -> RecordDict:
        """Evaluate what was sent on this client's held-out examples."""
        order = self._receive(content, state)
        began = time.perf_counter()
        examples = len(self.data.test)
        size = self.fitting_forward(order.masks, min(self.scenario.evaluation.batch_size, max(examples, 1)))
        result = self.held_out_score(order.model, size)
        memory = forward_memory(self.site.cost, order.masks, size)
        metrics = MetricRecord(
            {
                "num-examples": examples,
                "loss": result.loss,
                "accuracy": result.accuracy,
                "flops": self.site.cost.forward_flops(order.masks, examples),
                "peak-memory-bytes": memory.total,
                "train-seconds": time.perf_counter() - began,
            }
        )
        return RecordDict({"metrics": metrics})

    def held_out_score(self, model: LocalModel, batch_size: int) -> Score:
        """Score a model as it stands on this client's held-out examples."""
        data = self.data
        return score(model.module, data.pictures, data.test, self.site.data.info, batch_size=batch_size)

    # The device's memory -----------------------------------------------------------------

    @property
    def whole_batch(self) -> int:
        """Examples in the largest batch of training."""
        return min(self.scenario.clients.training.batch_size, len(self.data.train))

    def fitting_batch(self, step: TrainingStep, masks: Masks) -> int:
        """Return how many examples go through the model at once in a training step on this device.

        The whole batch or, where ``clients.over_budget`` says so, the largest part of it that fits.

        Raises
        ------
        OverBudgetError
            Where the step does not fit the device's memory.
        """
        memory, batch = self.site.profile_of(self.number).memory, self.whole_batch
        needed = step.memory_of(masks.kept, batch).total
        if needed > memory and self.scenario.clients.over_budget == "shrink_batch":
            shrunk = micro_batch(step, masks.kept, batch, memory)
            if shrunk is not None:
                return shrunk
        self.refuse_over(needed, f"a training step on {batch} examples")
        return batch

    def fitting_forward(self, masks: Masks, batch: int) -> int:
        """Return how many examples, at most ``batch``, go through the model at once without gradients.

        Raises
        ------
        OverBudgetError
            Where not even one fits the device's memory.
        """
        memory, cost = self.site.profile_of(self.number).memory, self.site.cost
        found = last(lambda size: forward_memory(cost, masks, size).total <= memory, 1, batch)
        if found is None:
            self.refuse_over(forward_memory(cost, masks, 1).total, "a forward pass on one example")
        assert found is not None
        return found

    def refuse_over(self, needed: int, what: str) -> None:
        """Raise an ``OverBudgetError`` for a need above the device's memory, in bytes."""
        profile = self.site.profile_of(self.number)
        if needed > profile.memory:
            raise OverBudgetError(
                f"{what} needs {format_bytes(needed)}, {profile.name} has {format_bytes(profile.memory)}"
            )

    # Messages ----------------------------------------------------------------------------

    def _receive(self, content: RecordDict, state: RecordDict) -> Order:
        """Agree on the mask, decode the values and load them into the model."""
        config, arrays = config_of(content), arrays_of(content)
        check_codec(config)
        masks = self._agree(text(config, "mask-version"), take_masks(arrays), state)
        codec = self.codec_of(config, masks)
        values = codec.decode(arrays)
        model = self.model(masks, codec)
        model.load(values)
        return Order(whole(config, "round"), config, masks, codec, values, model)

    def model(self, masks: Masks, codec: Codec) -> LocalModel:
        """Return the model under masks, whose values travel by a codec, as this client executes it."""
        found = self.site.sparse(masks) if self.executes_sparse else None
        return found or LocalModel(self.site.module, codec, masks)

    def codec_of(self, config: ConfigRecord, masks: Masks) -> Codec:
        """Return how the state travels that is sent with a config, under masks."""
        return self.site.codec(masks)

    def reply_codec(self, config: ConfigRecord, masks: Masks) -> Codec:
        """Return how the trained state travels in the reply to a message with a config."""
        return self.codec_of(config, masks)

    def epochs(self, purpose: str, server_round: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the shuffled batches of a round's local epochs."""
        training = self.scenario.clients.training
        generator = seeds.torch_generator(self.scenario.seed, purpose, server_round, self.number)
        for _ in range(training.epochs):
            yield from batches(
                self.data.pictures,
                self.data.train,
                self.site.data.info,
                training.batch_size,
                generator=generator,
                augment=self.scenario.data.augment,
            )

    def learning_rate(self, server_round: int) -> float:
        """Return the learning rate of a round by the schedule over rounds."""
        training, rounds = self.scenario.clients.training, self.scenario.rounds
        start = training.optimizer.lr
        progress = (server_round - 1) / rounds  # Below 1, or a schedule that ends at 0 wastes a round.
        return SCHEDULES[training.schedule.name](progress, start, start * training.schedule.end_factor)

    def _agree(self, version: str, sent: bytes | None, state: RecordDict) -> Masks:
        """Return the masks of a version: those just sent, or those kept; never any others."""
        if not version:
            return Masks()
        if sent is not None:
            masks = self.site.masks(sent, version)
            self._hold(masks, state, sent)
            return masks
        held = state.config_records.get("mask")
        have = text(held, "version") if held is not None else "none"
        if held is None or have != version:
            raise UnknownMaskError(f"client {self.number} holds mask {have}, the message names {version}")
        return self.site.masks(payload(held, "payload"), version)

    @staticmethod
    def _hold(masks: Masks, state: RecordDict, encoded: bytes | None = None) -> None:
        """Keep masks for the next message: those last sent, or those made of them.

        The server takes a client whose reply it has accepted to hold the latter. Where it does not
        name these, or the reply got lost, it sends others or is asked for them.
        """
        encoded = encode_masks(masks) if encoded is None else encoded
        state["mask"] = ConfigRecord({"version": masks.version, "payload": encoded})


def check_codec(config: ConfigRecord) -> None:
    """Refuse what a server of another version of fedprune sends.

    Raises
    ------
    WireError
        Where it speaks another codec than this client.
    """
    if config.get("codec") != CODEC:
        raise WireError(
            f"the server speaks codec {config.get('codec')!r}, this client {CODEC!r} (it is fedprune "
            f"{__version__}): install the same version on both"
        )


def proximal_mu(scenario: Scenario, config: ConfigRecord) -> float:
    """Return the weight of FedProx's term: the message's (Flower's FedProx has one) or the scenario's."""
    if "proximal-mu" in config:
        return real(config, "proximal-mu")
    return scenario.clients.training.proximal_mu


def training_step(
    client: type[Client], scenario: Scenario, cost: ModelCost, config: ConfigRecord, masks: Masks
) -> TrainingStep:
    """Return the training step that a message asks of a client, for predictions of its memory."""
    optimizer = scenario.clients.training.optimizer
    return TrainingStep(
        cost,
        slots=optimizer_slots(optimizer.name, optimizer.momentum),
        overhead=client.overhead_of(scenario, config, masks),
    )


class FederatedClientApp(ClientApp):
    """Flower's ``ClientApp`` for a scenario: finds the client that a message is for.

    Parameters
    ----------
    find_site : Callable[[Context], Site]
        Returns the site of a context; called for every message, so it should remember.
    peak_memory : Callable[[], float], optional
        Returns the most memory in bytes that a device has needed so far, where a device is what it runs on.
    """

    def __init__(
        self, find_site: Callable[[Context], Site], peak_memory: Callable[[], float] | None = None
    ) -> None:
        super().__init__()
        self._find_site = find_site
        self._peak_memory = peak_memory

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message; whatever goes wrong becomes an error reply with its reason."""
        try:
            site = self._find_site(context)
            client = site.client_class(site, client_number(context.node_config))
            content = client.handle(message, context.state)
            self._measure(content)
            _check_finite(content)
            add_checksum(content)
        except TaskRefusedError as error:
            return Message(Error(CODES[error.fault], str(error)), reply_to=message)
        except (Exception, SystemExit) as error:
            first = (str(error).strip().splitlines() or [""])[0]
            reason = f"{type(error).__name__}: {first}" if first else type(error).__name__
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
        return Message(content, reply_to=message)

    def _measure(self, content: RecordDict) -> None:
        """Add the memory that a device's process has needed; 0, which takes as many bytes, for no device."""
        if (metrics := content.metric_records.get("metrics")) is not None:
            metrics["peak-rss"] = 0.0 if self._peak_memory is None else self._peak_memory()


def _check_finite(content: RecordDict) -> None:
    """Training can diverge; say so on the device rather than send it."""
    for record in content.metric_records.values():
        for name, value in record.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise DivergedError(f"{name} is {value}: training diverged")
