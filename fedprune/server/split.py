"""``SplitStrategy``: federated training of models whose body runs on the server.

The exchange of activations and gradients is the same for all methods, and so is the result wherever the body
runs. On a grid of real devices this process runs it, a few clients at a time. In a simulation a worker runs
it beside the client, so that no batch crosses a process; what would have been sent is made and counted all
the same. `fedprune.protocol.split` says what is exchanged.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from math import ceil
from typing import Any, ClassVar, Protocol

import torch
from flwr.app import ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedprune import seeds
from fedprune.costs.clock import ServerPart
from fedprune.costs.flops import ModelCost
from fedprune.errors import NotFiniteError, WireError
from fedprune.models.cut import ClientPart, part
from fedprune.protocol.faults import CODES, Fault
from fedprune.protocol.split import (
    BACKWARD,
    CONVERSATION,
    FORWARD,
    HOSTED,
    SMASHED,
    Conversation,
    SplitOptions,
    add_rounding,
    cut_of,
    examples_of,
    is_final,
    pack,
    request,
    smashed_of,
    unpack,
)
from fedprune.scenario import Scenario
from fedprune.server.aggregation import TrainReply
from fedprune.server.federation import Federation
from fedprune.server.strategy import PruningStrategy
from fedprune.sparsity.frozen import freeze
from fedprune.sparsity.masks import Masks
from fedprune.training.split import Body
from fedprune.wire import Layout, StateCodec, add_checksum, content_bytes, get_state, verify_checksum


class SplitStrategy(PruningStrategy):
    """A model's head and tail are trained by clients, with a body that the server runs.

    A subclass names a `SplitClient` subclass, and says what is trained; see there.
    """

    no_updates = "a client exchanges what its part of the model computes, batch by batch"
    #: Whether the server trains the body.
    trains_body: ClassVar[bool] = True
    #: Whether one client after the other trains the same body, or each a copy; the copies are averaged.
    in_turn: bool = False

    class Options(SplitOptions, PruningStrategy.Options):
        """Where the model is cut, and how activations travel."""

    options: Options

    def __init__(self, federation: Federation, options: Options, **arguments: Any) -> None:
        module = federation.module
        self.body = part(module, cut_of(options.model_dump(), module).body)
        self._body_layout = Layout.of(self.body)
        if not self.trains_body:
            freeze(self.body, list(self._body_layout.shapes))
        super().__init__(federation, options, **arguments)
        self._body_codec = StateCodec(self._body_layout, Masks())
        #: The bodies of clients whose reply has not been taken yet, flat, by client number.
        self._bodies: dict[int, Tensor] = {}
        self._sum = torch.zeros(0, dtype=torch.float64)
        self._weight = 0
        whole = ModelCost.of(module, federation.task)
        self.accounts.server = ServerPart(
            flops=lambda examples: (
                whole.training_flops(Masks(), examples) - self.cost.training_flops(Masks(), examples)
            ),
            compute=self.scenario.server.compute,
            round_trip=self.scenario.server.round_trip,
        )

    @classmethod
    def validation_errors(cls, scenario: Scenario, options: Any) -> Iterator[tuple[str, str]]:
        """Yield (option, what is wrong) for what split training has no place for."""
        yield from super().validation_errors(scenario, options)
        training = scenario.clients.training
        if options.density < 1:
            yield "density", "split training prunes no weights: leave it out"
        if scenario.evaluation.clients:
            yield "body", "a client holds no whole model to evaluate: leave evaluation.clients out"
        if training.proximal_mu > 0:
            yield "body", "split training has no proximal term: leave clients.training.proximal_mu out"
        if scenario.clients.over_budget in ("shrink_batch", "nest"):
            yield (
                "body",
                "what a client exchanges is a whole batch of a dense model: clients.over_budget can be error "
                "or exclude",
            )
        if scenario.model.frozen or scenario.model.trainable is not None:
            yield "body", f"{cls.__name__} says what is trained: leave model.frozen and model.trainable out"

    # The body ----------------------------------------------------------------------------

    def body_state(self) -> dict[str, Tensor]:
        """Return the values of the body, by name."""
        return self._body_layout.select(self.state)

    def observe(self, server_round: int, reply: TrainReply) -> None:
        """Add a client's body to those of the round."""
        body = self._bodies.pop(reply.client, None)
        if body is not None and not self.in_turn:
            self._sum.add_(body, alpha=reply.weight)
            self._weight += reply.weight

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate clients' parts as any strategy does, and bodies, by examples, as well."""
        self._bodies.clear()
        self._sum, self._weight = torch.zeros(self._body_codec.size, dtype=torch.float64), 0
        found = super().aggregate_train(server_round, replies)
        if self._weight:
            self.model.take(self._body_codec.unflatten((self._sum / self._weight).float()))
        self._bodies.clear()
        return found

    # The conversation --------------------------------------------------------------------

    def converse(self, grid: Grid, server_round: int, messages: Iterable[Message]) -> Iterator[Message]:
        """Carry on each client's conversation; yield what ends it."""
        line = _Line(self, server_round)
        hosts = getattr(grid, "hosts_server_part", False)
        through: Any = _Hosted(grid, line) if hosts else _Remote(grid, line)
        return self.exchange.send(through, messages)


class _Line:
    """What both ways of carrying on conversations share: the round, bodies, and what they note."""

    def __init__(self, strategy: SplitStrategy, server_round: int) -> None:
        self.strategy, self.round = strategy, server_round
        self.in_turn = strategy.in_turn
        self.at_once = strategy.options.at_once
        self.precision = strategy.options.smashed
        local = strategy.local
        assert isinstance(local, ClientPart)
        self.shapes = local.body_shapes
        self._returns = bool(local.head_parameters())
        self._codec = strategy._body_codec

    def number_of(self, message: Message) -> int:
        """Return the client that a message is for."""
        return self.strategy.registry.addressee(message).number

    def note(self, message: Message, conversation: Conversation) -> None:
        """Note what a conversation took."""
        self.strategy.exchange.conversations[message.metadata.dst_node_id] = conversation

    def body(self, number: int) -> Body:
        """Return a body for a client: a copy, where it is trained."""
        module = self.strategy.body
        return Body.of(
            copy.deepcopy(module) if self.strategy.trains_body else module,
            self.strategy.scenario,
            server_round=self.round,
            client=number,
            returns_gradient=self._returns,
        )

    def record(self) -> ArrayRecord:
        """Return the body's values, for a worker that runs it."""
        return self._codec.encode(self._codec.flatten(self.strategy.body_state()))

    def most_batches(self, number: int) -> int:
        """Return how many batches a client has examples for in a round, at most."""
        training = self.strategy.scenario.clients.training
        return training.epochs * ceil(self.strategy.registry.clients[number].examples / training.batch_size)

    def ended(self, number: int, values: Tensor) -> None:
        """Note the body that a client's conversation ended with.

        Raises
        ------
        NotFiniteError
            For one that training has spoilt: it must not get into the model.
        """
        if not values.isfinite().all():
            raise NotFiniteError("training made values of the body that are not finite")
        self.strategy._bodies[number] = values
        if self.in_turn:
            self.strategy.model.take(self._codec.unflatten(values))
            self.strategy.model.load_into_module()

    def flat(self, body: Body) -> Tensor:
        """Return a body's values."""
        return self._codec.flatten(get_state(body.module))

    def decoded(self, record: ArrayRecord) -> Tensor:
        """Return the values that a worker's body ended with."""
        return self._codec.decode(record)

    def in_order(self, messages: Iterable[Message]) -> Iterable[Message]:
        """Return messages in the order in which they are sent: where clients take turns, a random one."""
        if not self.in_turn:
            return messages
        every = list(messages)
        generator = seeds.numpy_generator(self.strategy.scenario.seed, "turns", self.round)
        return [every[place] for place in generator.permutation(len(every))]


class _Sender(Protocol):
    """What carries messages: of a grid the one method that is used here."""

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages; return replies."""


class _Hosted:
    """A simulation's grid, whose workers run the body beside the client."""

    def __init__(self, grid: _Sender, line: _Line) -> None:
        self._grid, self._line = grid, line

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Send each message with the body; yield each reply without what the worker tells of it."""
        line = self._line
        if line.in_turn:
            for message in line.in_order(messages):
                yield from self._through(
                    self._grid.send_and_receive([self._with_body(message, line.record())])
                )
            return
        record = line.record()
        with_body = (self._with_body(message, record) for message in messages)
        yield from self._through(self._grid.send_and_receive(with_body, timeout=timeout))

    @staticmethod
    def _with_body(message: Message, record: ArrayRecord) -> Message:
        content, metadata = RecordDict({**message.content, HOSTED: record}), message.metadata
        return Message(content, metadata.dst_node_id, metadata.message_type, group_id=metadata.group_id)

    def _through(self, replies: Iterable[Message]) -> Iterator[Message]:
        line = self._line
        for reply in replies:
            number = line.strategy.registry.number_of(reply)
            if reply.has_content():
                content = reply.content
                damaged = False
                try:
                    verify_checksum(content)
                except WireError:
                    damaged = True
                told = content.config_records.get(CONVERSATION)
                body = content.array_records.get(HOSTED)
                for key in (CONVERSATION, HOSTED):
                    content.pop(key, None)
                if told is not None:
                    node = reply.metadata.src_node_id
                    line.strategy.exchange.conversations[node] = Conversation.of(told)
                if not damaged:  # The checksum was of what has been taken out, too.
                    add_checksum(content)
                    if body is not None:
                        try:
                            line.ended(number, line.decoded(body))
                        except WireError as error:
                            content.clear()
                            reply = Message(metadata=reply.metadata, error=_error_of(error))  # type: ignore[call-overload]
            yield reply


@dataclass
class _Open:
    """A conversation that goes on: what the client was sent first, its body, what it took so far.

    ``examples`` is how many the batch at hand has.
    """

    message: Message
    number: int
    body: Body
    took: Conversation
    step: int = 0
    examples: int = 0


class _Remote:
    """A grid of real devices: the body runs here, for a few clients at a time."""

    def __init__(self, grid: _Sender, line: _Line) -> None:
        self._grid, self._line = grid, line

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Carry on the conversations that messages begin; yield the last reply of each."""
        line = self._line
        coming = iter(line.in_order(messages))
        while group := tuple(islice(coming, 1 if line.in_turn else line.at_once)):
            yield from self._group(group, timeout)

    def _group(self, messages: tuple[Message, ...], timeout: float | None) -> Iterator[Message]:
        by_node = {message.metadata.dst_node_id: message for message in messages}
        running: dict[int, _Open] = {}
        smashed: dict[int, Message] = {}
        for reply in self._grid.send_and_receive(messages, timeout=timeout):
            node = reply.metadata.src_node_id
            if reply.has_error():
                yield reply
                continue
            number = self._line.number_of(by_node[node])
            running[node] = _Open(by_node[node], number, self._line.body(number), Conversation())
            smashed[node] = reply
        while running:
            # Forward: what clients sent becomes the body's outputs.
            backward: dict[int, RecordDict] = {}
            for node, reply in smashed.items():
                content, failure = self._tried(self._outputs, running[node], reply)
                if content is None:
                    yield self._failed(running.pop(node), failure)
                else:
                    backward[node] = content
            gradients, failed = self._asked(running, BACKWARD, backward, timeout)
            yield from failed
            onward: dict[int, RecordDict] = {}
            for node, reply in gradients.items():
                content, failure = self._tried(self._input_gradient, running[node], reply)
                if content is None:
                    yield self._failed(running.pop(node), failure)
                else:
                    onward[node] = content
            replies, failed = self._asked(running, FORWARD, onward, timeout)
            yield from failed
            smashed = {}
            for node, reply in replies.items():
                if not is_final(reply.content):
                    smashed[node] = reply
                    continue
                done = running.pop(node)
                last, failure = self._tried(self._ended, done, reply)
                if last is None:
                    yield self._failed(done, failure)
                else:
                    self._line.note(done.message, done.took)
                    yield Message(last, reply_to=done.message)

    def _outputs(self, open_: _Open, reply: Message) -> RecordDict:
        """Return the message with the body's outputs."""
        line, took, content = self._line, open_.took, reply.content
        self._count(took, content)
        examples, largest = examples_of(content), line.strategy.scenario.clients.training.batch_size
        if examples > largest:
            raise WireError(f"a batch of {examples} examples, expected at most {largest}")
        if open_.step >= (most := line.most_batches(open_.number)):
            raise WireError(f"more batches than its examples make: {most} in a round")
        values = unpack(smashed_of(content), line.precision, (examples, *line.shapes[0]))
        took.examples, open_.examples = took.examples + examples, examples
        outputs = open_.body.forward(values)
        return request(pack(outputs, line.precision), server_round=line.round, step=open_.step)

    def _input_gradient(self, open_: _Open, reply: Message) -> RecordDict:
        """Return the message with the gradient at the body's input."""
        line, content = self._line, reply.content
        self._count(open_.took, content)
        onward = request(None, server_round=line.round, step=open_.step)
        if open_.body.wants_gradient:
            shape = (open_.examples, *line.shapes[1])
            gradient = open_.body.backward(unpack(smashed_of(content), line.precision, shape))
            if gradient is not None:
                onward[SMASHED] = pack(gradient, line.precision)
        open_.step += 1
        return onward

    def _ended(self, open_: _Open, reply: Message) -> RecordDict:
        """Note the body that a conversation ended with; return its last reply's content."""
        if self._line.strategy.trains_body:
            self._line.ended(open_.number, self._line.flat(open_.body))
        return reply.content

    def _asked(
        self,
        running: dict[int, _Open],
        message_type: str,
        contents: Mapping[int, RecordDict],
        timeout: float | None,
    ) -> tuple[dict[int, Message], list[Message]]:
        """Send each client its content; return the good replies by node, and what ends the others' rounds.

        A client that does not answer has its body's state freed.
        """
        messages = []
        for node, content in contents.items():
            open_ = running[node]
            open_.took.bytes_down += content_bytes(content)
            open_.took.trips += 1
            group = open_.message.metadata.group_id
            messages.append(Message(content, node, message_type, group_id=group))
        good: dict[int, Message] = {}
        failed: list[Message] = []
        if messages:
            for reply in self._grid.send_and_receive(messages, timeout=timeout):
                node = reply.metadata.src_node_id
                if reply.has_error():
                    failed.append(self._failed(running.pop(node), reply.error))
                else:
                    good[node] = reply
        for node in contents.keys() - good.keys() & running.keys():
            reason = f"no reply within {timeout:g} s" if timeout is not None else "no reply"
            failed.append(self._failed(running.pop(node), Error(CODES[Fault.NO_REPLY], reason)))
        return good, failed

    def _tried(
        self, make: Callable[[_Open, Message], RecordDict], open_: _Open, reply: Message
    ) -> tuple[RecordDict | None, Error]:
        """Return a content made of a reply, or what is wrong with the reply."""
        try:
            verify_checksum(reply.content)
            return make(open_, reply), Error(0)
        except WireError as error:
            return None, _error_of(error)
        except (RuntimeError, ValueError) as error:  # The body's code: as a batch norm's of one value.
            return None, Error(CODES[Fault.RAISED], f"in the body: {type(error).__name__}: {error}")

    def _failed(self, open_: _Open, error: Error) -> Message:
        """Return the reply that ends a conversation which failed."""
        self._line.note(open_.message, open_.took)
        return Message(error, reply_to=open_.message)

    def _count(self, took: Conversation, content: RecordDict) -> None:
        """Count a client's reply within a batch."""
        took.bytes_up += content_bytes(content)
        add_rounding(took, content)


def _error_of(error: WireError) -> Error:
    return Error(CODES[error.fault], f"WireError: {error}")
