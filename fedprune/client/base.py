"""What every client training algorithm shares: messages in, local training, messages out.

A ``Site`` is what a process holds once: the scenario, the data it may read and a model. A
``Client`` is one client at work in it, for one message. It agrees on the mask with the server,
decodes what was sent, lets the subclass train, and replies with values and costs. A way of
training is a subclass with one method, ``fit``; see ``fedprune.clients.sparse`` for the first.

Nothing here knows whether the site is a device or a process that simulates a thousand of them.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor, nn

from fedprune import __version__, seeds, tasks
from fedprune.client.held_values import received_values
from fedprune.client.site import Site
from fedprune.client.updates import encode_update
from fedprune.costs.fit import TrainingStep, last, micro_batch
from fedprune.costs.memory import Overhead, forward_memory
from fedprune.data import ClientData, augmentations, batches
from fedprune.errors import (
    FedpruneError,
    OverBudgetError,
    TaskRefusedError,
    WireError,
)
from fedprune.protocol.client_masks import NEXT_MASKS, next_masks_record, with_own_masks
from fedprune.protocol.faults import Fault
from fedprune.protocol.frozen import RECORD, read_frozen, version_of
from fedprune.protocol.messages import arrays_of, config_of, payload, text, whole
from fedprune.protocol.scores import PERSONAL, score_entries
from fedprune.protocol.training_step import proximal_mu, training_step
from fedprune.scenario import Scenario
from fedprune.sparsity.masks import Masks
from fedprune.tasks import Score, Task
from fedprune.training.evaluation import score
from fedprune.training.execution import LocalModel
from fedprune.training.loop import learning_rate
from fedprune.units import format_bytes
from fedprune.wire import (
    CODEC,
    Codec,
    encode_masks,
    take_masks,
)


class UnknownMaskError(TaskRefusedError):
    """The client does not hold the mask, or frozen values, of the message: they must be sent again."""

    fault = Fault.UNKNOWN_MASK


@dataclass(frozen=True)
class ClientTask:
    """What a message asks of a client, decoded: ``model`` holds ``values``, flat under ``masks``."""

    round: int
    config: ConfigRecord
    masks: Masks
    codec: Codec
    values: Tensor
    model: LocalModel


@dataclass(frozen=True)
class FitResult:
    """The result of local training.

    Parameters
    ----------
    values : Tensor
        The trained state, float32, flat under ``masks``.
    masks : Masks
        The masks of ``values``; those of the task unless the client moved them, as it was asked to.
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
    next_masks : Masks, optional
        The masks under which the client takes part from now on, as it was asked to choose them.
    """

    values: Tensor
    masks: Masks
    loss: float
    examples_seen: int
    extra: RecordDict = field(default_factory=RecordDict)
    flops: int = 0
    trained_under: Masks | None = None
    next_masks: Masks | None = None


class Client(ABC):
    """One client at work on one message.

    A message of type ``train`` is answered by ``train``, one of type ``query.facts`` by
    ``query_facts``, and so on: a subclass answers a new message by having the method.

    A strategy names the class of its clients in its attribute ``client``: a name that `fedprune list clients`
    shows, or "./file.py:Class" beside the strategy's file. ``clients.algorithm`` in a scenario chooses
    another, from "./file.py:Class" beside the scenario's file; one for a strategy that names a class itself
    must be a subclass of that. A class in a file of its own, apart from the strategy's, is loaded on a device
    without anything of the server.
    """

    #: Whether this algorithm works with layers that hold their kept weights alone.
    executes_sparse: ClassVar[bool] = False

    def __init__(self, site: Site, number: int) -> None:
        self.site = site
        self.scenario = site.scenario
        self.number = number
        self.data: ClientData = site.data.client(number)
        #: Examples that go through the model at once in a training step.
        self.batch = self.whole_batch
        #: The frozen part of the model, by name, as the message at hand has it.
        self.frozen: Mapping[str, Tensor] = {}

    @classmethod
    def local_model(cls, scenario: Scenario, task: Task, module: nn.Module) -> nn.Module:
        """Return what of the scenario's model a client holds: by default all of it.

        Server and clients both call it, with a model of their own; the result shares its tensors.
        """
        return module

    @classmethod
    def build_model(cls, scenario: Scenario, task: Task) -> nn.Module:
        """Return what a client holds of the scenario's model, with initial weights."""
        return cls.local_model(scenario, task, tasks.build_model(scenario, task))

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
    def fit(self, task: ClientTask) -> FitResult:
        """Train on this client's examples; ``task.model`` already holds the values that were sent."""

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
        """Tell the server this client's number, examples and device. The node id says nothing of it."""
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

        A client that holds out examples also replies how well its model does on them. That is a
        measurement, as the server's evaluation is: no part of what training costs.

        Returns
        -------
        RecordDict
            ``arrays``, the trained values, what ``fit`` has put into ``FitResult.extra``, and ``metrics``, of
            which an aggregation rule reads (`fedprune.server.aggregation.TrainReply.metrics`):

            - ``num-examples``: the client's training examples.
            - ``loss``: mean training loss.
            - ``examples-seen``: examples that went through the model, repetitions included.
            - ``flops``: of training, by the cost model.
            - ``peak-memory-bytes``: of a training step, by the cost model.
            - ``train-seconds``: measured time of training.
            - ``test-examples`` and, of each metric, such as ``test-accuracy``, its statistics: of the trained
              model on held-out examples, from clients that have some; see
              `fedprune.protocol.scores`.
            - ``peak-rss``: most bytes that a device's process has had, measured; 0 in a simulation.

            A subclass adds a number of its own to ``super().train(content, state)["metrics"]``.
        """
        task = self._receive(content, state)
        began = time.perf_counter()
        step = self.begin_training(task)
        return self.trained(task, step, self.fit(task), began, state)

    def begin_training(self, task: ClientTask) -> TrainingStep:
        """Return the training step that a message asks for; refuse one for which the device has no memory."""
        step = training_step(type(self), self.scenario, self.site.cost, task.config, task.masks)
        self.batch = self.fitting_batch(step, task.masks)
        torch.manual_seed(seeds.derive(self.scenario.seed, "train", task.round, self.number))
        return step

    def trained(
        self, task: ClientTask, step: TrainingStep, fit: FitResult, began: float, state: RecordDict
    ) -> RecordDict:
        """Return the reply to a training message: what came of it, and what it cost since it ``began``."""
        trained_under = fit.trained_under or fit.masks
        memory = step.memory_of(trained_under.kept, self.batch)
        self.refuse_over(memory.total, "what came of training")
        flops = self.site.cost.training_flops(trained_under, fit.examples_seen) + fit.flops
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
        if len(self.data.test) and (personal := self.personal_score(task, fit)) is not None:
            metrics.update(score_entries(personal, PERSONAL))
        arrays = self._encoded(task, fit, state)
        if fit.masks != task.masks:
            arrays = with_own_masks(arrays, fit.masks, task.masks)
            self._hold(fit.masks, state)
        reply = RecordDict({"arrays": arrays, "metrics": metrics})
        if fit.next_masks is not None:
            reply[NEXT_MASKS] = next_masks_record(fit.next_masks, task.masks)
            self._hold(fit.next_masks, state)
        reply.update(fit.extra)
        return reply

    def _encoded(self, task: ClientTask, fit: FitResult, state: RecordDict) -> ArrayRecord:
        """Return what came of training as it travels: as an update where the scenario has them compressed."""
        if (updates := self.site.updates) is not None:
            return encode_update(updates, self.site, self.number, task, fit, state)
        seed = seeds.derive(self.scenario.seed, "wire", task.round, self.number)
        return self.reply_codec(task.config, fit.masks).encode(fit.values, seed=seed)

    def personal_score(self, task: ClientTask, fit: FitResult) -> Score | None:
        """Score the trained model, before wire rounding, on this client's held-out examples."""
        model = self.model(fit.masks, self.reply_codec(task.config, fit.masks))
        model.load(fit.values)
        return self.held_out_score(model, self.scenario.evaluation.batch_size)

    def evaluate(self, content: RecordDict, state: RecordDict) -> RecordDict:
        """Evaluate what was sent on this client's held-out examples."""
        task = self._receive(content, state)
        began = time.perf_counter()
        examples = len(self.data.test)
        size = self.fitting_forward(task.masks, min(self.scenario.evaluation.batch_size, max(examples, 1)))
        result = self.held_out_score(task.model, size)
        memory = forward_memory(self.site.cost, task.masks, size)
        metrics = MetricRecord(
            {
                **score_entries(result),
                "flops": self.site.cost.forward_flops(task.masks, examples),
                "peak-memory-bytes": memory.total,
                "train-seconds": time.perf_counter() - began,
            }
        )
        return RecordDict({"metrics": metrics})

    def held_out_score(self, model: LocalModel, batch_size: int) -> Score:
        """Score a model as it stands on this client's held-out examples."""
        data = self.data
        return score(model.module, data.examples, data.test, self.site.task, batch_size=batch_size)

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

    def _receive(self, content: RecordDict, state: RecordDict) -> ClientTask:
        """Agree on the mask, decode the values and load them into the model."""
        config, arrays = config_of(content), arrays_of(content)
        check_codec(config)
        self.frozen = self._frozen_of(content, config, state)
        masks = self._agree(text(config, "mask-version"), take_masks(arrays), state)
        codec = self.codec_of(config, masks)
        values = received_values(arrays, config, codec, state, self.site)
        model = self.model(masks, codec)
        model.load(values)
        return ClientTask(whole(config, "round"), config, masks, codec, values, model)

    def model(self, masks: Masks, codec: Codec) -> LocalModel:
        """Return the model under masks, whose values travel by a codec, as this client executes it."""
        found = self.site.sparse(masks) if self.executes_sparse else None
        return replace(found or LocalModel(self.site.module, codec, masks), frozen=self.frozen)

    def codec_of(self, config: ConfigRecord, masks: Masks) -> Codec:
        """Return how the state travels that is sent with a config, under masks."""
        return self.site.codec(masks)

    def reply_codec(self, config: ConfigRecord, masks: Masks) -> Codec:
        """Return how the trained state travels in the reply to a message with a config."""
        return self.codec_of(config, masks)

    def epochs(
        self, purpose: str, server_round: int, count: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the shuffled batches of a round's local epochs: ``clients.training.epochs``, or ``count``."""
        training = self.scenario.clients.training
        generator = seeds.torch_generator(self.scenario.seed, purpose, server_round, self.number)
        augment = augmentations(self.scenario.data.augment, self.scenario.directory)
        for _ in range(training.epochs if count is None else count):
            yield from batches(
                self.data.examples,
                self.data.train,
                self.site.task,
                training.batch_size,
                generator=generator,
                augment=augment,
            )

    def learning_rate(self, server_round: int) -> float:
        """Return the learning rate of a round by the schedule over rounds."""
        return learning_rate(self.scenario, server_round)

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

    def _frozen_of(
        self, content: RecordDict, config: ConfigRecord, state: RecordDict
    ) -> Mapping[str, Tensor]:
        """Return the frozen values that a message names: those just sent, or those kept; never any others.

        Clients that a process simulates keep the version alone: the process has the values.
        """
        version, own = version_of(config), self.site.frozen_state
        if not version:
            return {}
        sent = read_frozen(content, self.site.once)
        if sent is not None:
            state["frozen-version"] = ConfigRecord({"version": version})
            if own is None:
                state[RECORD] = content.array_records[RECORD]
        held = state.config_records.get("frozen-version")
        have = text(held, "version") if held is not None else "none"
        if have != version:
            raise UnknownMaskError(
                f"client {self.number} holds frozen values {have}, the message names {version}"
            )
        if own is not None:
            return own
        found = sent if sent is not None else read_frozen(state, self.site.once)
        assert found is not None
        return found

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
