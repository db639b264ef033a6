"""A client of split training: it holds head and tail of a model, and trains them with a body elsewhere.

`Session` is what a client does within a round, step by step. In a simulation the server's part runs in the
same process, and the steps follow one another there. On a device each step is the answer to a message of its
own, by what may be another process: the session is then kept in what Flower keeps for the client. The steps
are the same.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from fedprune import seeds, tasks
from fedprune.client.base import Client, ClientTask, FitResult
from fedprune.client.site import Site
from fedprune.data import augmentations, batches
from fedprune.errors import FedpruneError, WireError
from fedprune.models.cut import ClientPart, part
from fedprune.protocol.messages import config_of, text, whole
from fedprune.protocol.split import (
    CONVERSATION,
    HOSTED,
    SMASHED,
    Conversation,
    SplitOptions,
    answer,
    cut_of,
    pack,
    request,
    smashed_of,
    step_of,
    unpack,
)
from fedprune.scenario import Scenario
from fedprune.sparsity.frozen import freeze, training_mode
from fedprune.sparsity.masks import Masks
from fedprune.tasks import Score, Task
from fedprune.training.execution import with_memory
from fedprune.training.loop import make_optimizer
from fedprune.training.split import Body
from fedprune.wire import Layout, StateCodec, content_bytes, get_state, set_state

_STATE, _VALUES, _OPTIMIZER, _EXAMPLES = "split", "split-values", "split-optimizer", "split-examples"


@dataclass
class Progress:
    """How far a client has come in a round of split training.

    Parameters
    ----------
    step : int
        The batch at hand.
    loss : float
        The losses of all examples seen so far, added up.
    seen : int
        Their number.
    before : int
        Examples that went through head and tail before split training began, forward and backward.
    flops : int
        What else was computed before it.
    seconds : float
        Time spent so far.
    """

    step: int = 0
    loss: float = 0.0
    seen: int = 0
    before: int = 0
    flops: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Prepared:
    """What a client did before split training.

    Parameters
    ----------
    examples : np.ndarray
        int64 indices of the examples that it goes on with.
    before, flops
        As in `Progress`.
    """

    examples: np.ndarray
    before: int = 0
    flops: int = 0


class Session:
    """One client's steps in one round: batches, the optimizers of head and tail, losses.

    Parameters
    ----------
    client : SplitClient
        Whose round it is; its model holds the values at hand.
    task : ClientTask
        What the round's message asked for.
    examples : np.ndarray
        int64 indices of the examples to train on.
    progress : Progress
        How far it has come.
    """

    def __init__(
        self, client: SplitClient, task: ClientTask, examples: np.ndarray, progress: Progress
    ) -> None:
        self.client, self.task, self.examples, self.progress = client, task, examples, progress
        self.part = training_mode(client.part)
        spec, lr = client.scenario.clients.training.optimizer, client.learning_rate(task.round)
        head, tail = self.part.head_parameters(), self.part.tail_parameters()
        self.trains_head = bool(head)
        self.optimizers = [make_optimizer(group, spec, lr) for group in (head, tail) if group]
        self._plan = client.plan(task.round, examples)
        self._smashed: Tensor | None = None
        self._batch: tuple[int, Tensor, Tensor] | None = None

    @property
    def ended(self) -> bool:
        """Whether no batch is left."""
        return self.progress.step >= len(self._plan)

    def forward(self) -> Tensor:
        """Return what the head makes of the batch at hand, (B, ...)."""
        x, _ = self._at_hand()
        self._seed("head")
        with torch.set_grad_enabled(self.trains_head):
            self._smashed = self.part.run_head(x)
        return self._smashed.detach()

    def backward(self, outputs: Tensor) -> Tensor | None:
        """Train the tail on what the body made; return the gradient at it, where the server wants that.

        Parameters
        ----------
        outputs : Tensor
            (B, ...).
        """
        x, y = self._at_hand()
        wanted = self.trains_head or self.client.trains_body
        outputs = outputs.to(x.device).requires_grad_(wanted)
        self._seed("tail")
        # A stage may work in place, which no leaf of autograd's allows: it is given a copy.
        loss = self.client.site.task.loss(self.part.run_tail(outputs.clone() if wanted else outputs), y, x)
        tail = self.optimizers[-1] if self.part.tail_parameters() else None
        if tail is not None:
            tail.zero_grad(set_to_none=True)
        if tail is not None or wanted:
            loss.backward()  # type: ignore[no-untyped-call]
        if tail is not None:
            tail.step()
        self.progress.loss += float(loss.detach().double()) * len(y)
        self.progress.seen += len(y)
        return outputs.grad

    def finish_step(self, gradient: Tensor | None) -> None:
        """Train the head, where it is trained, by the gradient at the body's input; end the step."""
        if self.trains_head:
            assert gradient is not None
            with self._forward_again():
                assert self._smashed is not None
                self.optimizers[0].zero_grad(set_to_none=True)
                self._smashed.backward(gradient.to(self._smashed.device))  # type: ignore[no-untyped-call]
            self.optimizers[0].step()
        self._smashed = None
        self.progress.step += 1

    def fit(self) -> FitResult:
        """Return what came of it."""
        progress = self.progress
        return FitResult(
            values=self.task.model.values(),
            masks=self.task.masks,
            loss=progress.loss / max(progress.seen, 1),
            examples_seen=progress.before + progress.seen,
            flops=progress.flops,
        )

    @contextmanager
    def _forward_again(self) -> Iterator[None]:
        """Run the head forward where another process did, without a second effect on its statistics."""
        if self._smashed is not None:
            yield
            return
        buffers = [(buffer, buffer.clone()) for buffer in self.part.buffers()]
        self.forward()
        try:
            yield
        finally:
            for buffer, value in buffers:
                buffer.copy_(value)

    def _at_hand(self) -> tuple[Tensor, Tensor]:
        """Return the batch at hand, on the client's device."""
        if self._batch is None or self._batch[0] != self.progress.step:
            x, y = self.client.one_batch(self.task.round, self.progress.step, self._plan[self.progress.step])
            self._batch = self.progress.step, x, y
        return self._batch[1], self._batch[2]

    def _seed(self, purpose: str) -> None:
        """Seed draws, such as dropout's: a step draws the same in whatever process it runs."""
        seed = self.client.scenario.seed
        torch.manual_seed(
            seeds.derive(seed, f"split {purpose}", self.task.round, self.client.number, self.progress.step)
        )


class SplitClient(Client):
    """A client that trains head and tail of a model; a strategy of split training has a subclass.

    The subclass says what of the model is trained, and what is done before split training begins.
    """

    #: Whether the server trains the body, and wants the gradient at its outputs for that.
    trains_body: ClassVar[bool] = True
    #: Which of the strategy's options a client knows.
    options_class: ClassVar[type[SplitOptions]] = SplitOptions

    def __init__(self, site: Site, number: int) -> None:
        super().__init__(site, number)
        self._line = Conversation()

    # What a subclass says ------------------------------------------------------------------

    @classmethod
    def frozen_names(cls, options: Mapping[str, Any], part: ClientPart) -> list[str]:
        """Return the names of the client's parameters and buffers that are not trained; by default none."""
        return []

    def prepare(self, task: ClientTask) -> Prepared:
        """Do what comes before split training; ``self.part`` holds the values that were sent."""
        return Prepared(self.data.train)

    # What it works with --------------------------------------------------------------------

    @classmethod
    def local_model(cls, scenario: Scenario, task: Task, module: torch.nn.Module) -> ClientPart:
        """Return head and tail of the model."""
        options = scenario.strategy.options
        example, _ = task.placeholder(2)
        found = ClientPart(module, cut_of(options, module), example)
        freeze(found, cls.frozen_names(options, found))
        return found

    @classmethod
    def build_model(cls, scenario: Scenario, task: Task) -> torch.nn.Module:
        """Return head and tail, with zeros for weights: the server sends all of them.

        The body never has memory, where the model's code can be built without values.
        """
        try:
            with torch.device("meta"):
                outline = cls.local_model(scenario, task, tasks.build_model(scenario, task))
        except (RuntimeError, NotImplementedError):
            return super().build_model(scenario, task)
        known = Layout.of(outline).shapes
        if any(buffer.is_floating_point() and name not in known for name, buffer in outline.named_buffers()):
            return super().build_model(scenario, task)  # A table that no state has: only its code knows it.
        return with_memory(outline)

    @property
    def part(self) -> ClientPart:
        """Head and tail, as this process holds them."""
        module = self.site.module
        assert isinstance(module, ClientPart)
        return module

    @cached_property
    def options(self) -> SplitOptions:
        """The strategy's options, as far as a client knows them."""
        kind, given = self.options_class, self.scenario.strategy.options
        return kind(**{key: value for key, value in given.items() if key in kind.model_fields})

    def plan(self, server_round: int, examples: np.ndarray) -> list[np.ndarray]:
        """Return the examples of each batch of a round's epochs, shuffled.

        A last batch of one example is left out where others came before it, as in `fedprune.data.batches`.
        """
        training = self.scenario.clients.training
        generator = seeds.torch_generator(self.scenario.seed, "split", server_round, self.number)
        found: list[np.ndarray] = []
        for _ in range(training.epochs):
            order = examples[torch.randperm(len(examples), generator=generator).numpy()]
            parts = [order[at : at + training.batch_size] for at in range(0, len(order), training.batch_size)]
            if len(parts) > 1 and len(parts[-1]) == 1 and training.batch_size > 1:
                parts.pop()
            found += parts
        return found

    def one_batch(self, server_round: int, step: int, chosen: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return a batch of a round, on the client's device; its random changes are the step's own."""
        seed, data = self.scenario.seed, self.data
        generator = seeds.torch_generator(seed, "split batch", server_round, self.number, step)
        augment = augmentations(self.scenario.data.augment, self.scenario.directory)
        every = batches(
            data.examples, chosen, self.site.task, len(chosen), generator=generator, augment=augment
        )
        x, y = next(iter(every))
        return x.to(self.site.device), y.to(self.site.device)

    def personal_score(self, task: ClientTask, fit: FitResult) -> Score | None:
        """A client alone cannot score a model of which it holds a part."""
        return None

    def evaluate(self, content: RecordDict, state: RecordDict) -> RecordDict:
        """Refuse: a client holds no whole model."""
        raise FedpruneError("a client of split training holds no whole model to evaluate")

    # In a simulation -----------------------------------------------------------------------

    def train(self, content: RecordDict, state: RecordDict) -> RecordDict:
        """Train a round, where the server's part is here; else begin one, and reply the first activations."""
        if HOSTED not in content:
            return self._begin(content, state)
        sent = content.array_records[HOSTED]
        del content[HOSTED]
        hosted = HostedBody.of(self)
        hosted.load(sent)
        server_round = whole(config_of(content), "round")
        self._body = Body.of(
            hosted.module,
            self.scenario,
            server_round=server_round,
            client=self.number,
            returns_gradient=bool(self.part.head_parameters()),
        )
        self._line = Conversation()
        reply = super().train(content, state)
        reply[CONVERSATION] = self._line.record()
        if self._body.trains:
            reply[HOSTED] = hosted.record()
        return reply

    def fit(self, task: ClientTask) -> FitResult:
        """Train a round with the server's part in this process."""
        session = self._session(task)
        line, precision, server_round = self._line, self.options.smashed, task.round
        while not session.ended:
            step = session.progress.step
            smashed = session.forward()
            up = self._answer(smashed, len(smashed))
            received = unpack(smashed_of(up), precision, smashed.shape)
            outputs = self._body.forward(received.to(smashed.device))
            down = request(pack(outputs, precision), server_round=server_round, step=step)
            gradient = session.backward(unpack(smashed_of(down), precision, outputs.shape))
            back = self._answer(gradient, len(smashed))
            onward = request(None, server_round=server_round, step=step)
            wanted = None
            if gradient is not None:
                sent = unpack(smashed_of(back), precision, gradient.shape).to(gradient.device)
                wanted = self._body.backward(sent)
                if wanted is not None:
                    packed = pack(wanted, precision)
                    onward[SMASHED] = packed
                    wanted = unpack(packed, precision, wanted.shape)
            session.finish_step(wanted)
            line.bytes_up += content_bytes(up) + content_bytes(back)
            line.bytes_down += content_bytes(down) + content_bytes(onward)
            line.trips += 2
            line.examples += len(smashed)
        return session.fit()

    def _session(self, task: ClientTask) -> Session:
        prepared = self.prepare(task)
        if not len(prepared.examples):
            raise FedpruneError("no example is left to train on")
        return Session(self, task, prepared.examples, Progress(before=prepared.before, flops=prepared.flops))

    def _answer(self, values: Tensor | None, examples: int) -> RecordDict:
        """Return a reply within a batch, and note what rounding took from it."""
        if values is None:
            return answer(None, examples, 0.0, 0.0)
        precision = self.options.smashed
        packed = pack(values, precision)
        lost = 0.0
        sent = float(values.double().square().sum())
        if precision != "float32":
            received = unpack(packed, precision, values.shape)
            lost = float((received - values.cpu()).double().square().sum())
        self._line.lost += lost
        self._line.sent += sent
        return answer(packed, examples, lost, sent)

    # On a device ---------------------------------------------------------------------------

    def _begin(self, content: RecordDict, state: RecordDict) -> RecordDict:
        """Prepare a round, and reply the first activations."""
        forget(state)
        task = self._receive(content, state)
        began = time.perf_counter()
        self.begin_training(task)
        session = self._session(task)
        return self._next(session, began, state)

    def train_split_backward(self, content: RecordDict, state: RecordDict) -> RecordDict:
        """Train the tail on what the body made of the last activations; reply the gradient at it."""
        began = time.perf_counter()
        session = self._restored(content, state)
        step = session.progress.step
        examples = len(session._plan[step])
        shape = (examples, *self.part.body_shapes[1])
        gradient = session.backward(unpack(smashed_of(content), self.options.smashed, shape))
        session.progress.seconds += time.perf_counter() - began
        self._keep(session, state)
        return self._answer(gradient, examples)

    def train_split_forward(self, content: RecordDict, state: RecordDict) -> RecordDict:
        """Train the head by the gradient that a message may have; reply the next activations, or the end."""
        began = time.perf_counter()
        session = self._restored(content, state)
        gradient = None
        if session.trains_head:
            shape = (len(session._plan[session.progress.step]), *self.part.body_shapes[0])
            gradient = unpack(smashed_of(content), self.options.smashed, shape)
        session.finish_step(gradient)
        return self._next(session, began, state)

    def _next(self, session: Session, began: float, state: RecordDict) -> RecordDict:
        """Reply the next activations of a round or, where none are left, what came of it."""
        task, progress = session.task, session.progress
        if session.ended:
            forget(state)
            step = self.begin_training(task)
            return self.trained(task, step, session.fit(), began - progress.seconds, state)
        smashed = session.forward()
        reply = self._answer(smashed, len(smashed))
        progress.seconds += time.perf_counter() - began
        self._keep(session, state)
        return reply

    def _keep(self, session: Session, state: RecordDict) -> None:
        """Keep a session for the next message, which another process may answer."""
        task, codec = session.task, StateCodec(self.site.travelling, Masks())
        progress = json.dumps(vars(session.progress))
        state[_STATE] = ConfigRecord({"config": json.dumps(dict(task.config)), "progress": progress})
        state[_VALUES] = codec.encode(task.model.values())
        state[_EXAMPLES] = ArrayRecord({"examples": Array(session.examples)})
        state[_OPTIMIZER] = ArrayRecord(
            {
                f"{number}.{parameter}.{key}": Array(torch.as_tensor(value).cpu().numpy())
                for number, optimizer in enumerate(session.optimizers)
                for parameter, values in optimizer.state_dict()["state"].items()
                for key, value in values.items()
                if value is not None
            }
        )

    def _restored(self, content: RecordDict, state: RecordDict) -> Session:
        """Return the session that was kept, with its values in the model.

        Raises
        ------
        WireError
            Where none was kept, or the message is about another step.
        """
        kept = state.config_records.get(_STATE)
        if kept is None:
            raise WireError(f"client {self.number} is in no round of split training: it was started anew")
        config = ConfigRecord(json.loads(text(kept, "config")))
        progress = Progress(**json.loads(text(kept, "progress")))
        here = whole(config, "round"), progress.step
        asked = whole(config_of(content), "round"), step_of(content)
        if asked != here:
            raise WireError(
                f"client {self.number} is at step {here[1]} of round {here[0]}, the message is about step "
                f"{asked[1]} of round {asked[0]}"
            )
        codec = StateCodec(self.site.travelling, Masks())
        self.frozen = self._frozen_of(RecordDict(), config, state)
        model = self.model(Masks(), codec)
        values = codec.decode(state.array_records[_VALUES])
        model.load(values)
        task = ClientTask(here[0], config, Masks(), codec, values, model)
        examples = state.array_records[_EXAMPLES]["examples"].numpy()
        session = Session(self, task, examples, progress)
        restore_optimizers(session.optimizers, state.array_records[_OPTIMIZER])
        return session


class HostedBody:
    """The server's part, where a simulation runs it beside its clients: one for all clients of a process."""

    def __init__(self, client: SplitClient) -> None:
        site = client.site
        model = tasks.build_model(site.scenario, site.task)
        self.module = part(model, cut_of(site.scenario.strategy.options, model).body).to(site.device)
        layout = Layout.of(self.module)
        if not client.trains_body:
            freeze(self.module, list(layout.shapes))
        self._codec = StateCodec(layout, Masks())
        self._trained = client.trains_body
        self._loaded: ArrayRecord | None = None

    @classmethod
    def of(cls, client: SplitClient) -> HostedBody:
        """Return the body of a client's process, which is built once."""
        shelf = client.site.shelf
        if HOSTED not in shelf:
            shelf[HOSTED] = cls(client)
        found: HostedBody = shelf[HOSTED]
        return found

    def load(self, record: ArrayRecord) -> None:
        """Put the server's values into the body; those that nothing changes are put there once."""
        data = record["values"].data
        if self._trained or self._loaded is None or self._loaded["values"].data is not data:
            set_state(self.module, self._codec.unflatten(self._codec.decode(record)))
            self._loaded = record

    def record(self) -> ArrayRecord:
        """Return the values of the body as they are."""
        return self._codec.encode(self._codec.flatten(get_state(self.module)))


def forget(state: RecordDict) -> None:
    """Drop what was kept of a session."""
    for key in (_STATE, _VALUES, _OPTIMIZER, _EXAMPLES):
        state.pop(key, None)


def restore_optimizers(optimizers: Sequence[torch.optim.Optimizer], kept: ArrayRecord) -> None:
    """Put the state of optimizers back, from a record of "<optimizer>.<parameter>.<key>"."""
    for number, optimizer in enumerate(optimizers):
        states: dict[int, dict[str, Tensor]] = {}
        for name, array in kept.items():
            which, parameter, key = name.split(".")
            if int(which) == number:
                states.setdefault(int(parameter), {})[key] = torch.from_numpy(np.array(array.numpy()))
        optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
