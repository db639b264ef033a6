"""``PruningStrategy``: what a method says, and what it can use to say it.

A method is a subclass with options and a few hooks:

- ``prepare``: before round 1; choose the first masks.
- ``sample``: which of the eligible clients take part in a round.
- ``growth``: which layers may grow after a round; clients then report candidates.
- ``mask_request``: how clients may move their own masks in a round.
- ``masks_for``: under which masks a client is sent values, where each has its own.
- ``supermasks``: how clients learn signs or masks of frozen weights, where they do.
- ``train_config``: what a round's training messages say besides, for instance what else they ask for.
- ``read``: read, from a reply, what else was asked for.
- ``observe``: look at each reply as it is aggregated.
- ``update_masks``: after a round's aggregation; move the masks.
- ``settle``: after that; ask clients something about the new global model.
- ``state_dict`` and ``load_state_dict``: what a checkpoint holds, where a method keeps more than values
  and masks.

Without hooks it is FedAvg. Everything else is done for all methods alike, each in a module of its own: the
rounds in `round_loop`, the global values and masks in `global_model`, who takes part in `client_selection`,
messages in `exchange`, what they cost in `accounts`, checkpoints in `snapshot`.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, partial
from math import ceil
from typing import Any, ClassVar, Literal, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from fedprune import registry, seeds
from fedprune.costs.fit import fewest_examples
from fedprune.costs.flops import ModelCost
from fedprune.data import batches
from fedprune.errors import UserError
from fedprune.protocol.client_masks import MaskRequest
from fedprune.protocol.messages import metrics_of
from fedprune.protocol.reports import GrowthRequest
from fedprune.protocol.scores import read_score
from fedprune.protocol.supermasks import Supermasks
from fedprune.scenario import Scenario
from fedprune.server.accounts import RoundAccounts
from fedprune.server.aggregation import Aggregator, OverlapMean, TrainReply, WeightedMean
from fedprune.server.aggregator_choice import flower_aggregator, named_aggregator
from fedprune.server.algorithm import client_class
from fedprune.server.budgets import Budgets
from fedprune.server.client_registry import ClientInfo, ClientRegistry
from fedprune.server.client_selection import ClientSelection
from fedprune.server.dense_baseline import DenseBaseline
from fedprune.server.exchange import Exchange
from fedprune.server.federation import Federation
from fedprune.server.global_model import GlobalModel
from fedprune.server.majority_vote import MajorityVote
from fedprune.server.option_checks import option_errors
from fedprune.server.pretraining import pretrain
from fedprune.server.roll_call import RollCall
from fedprune.server.round_loop import RoundLoop
from fedprune.server.sent_states import SentStates
from fedprune.server.state_messages import state_contents
from fedprune.server.train_replies import TrainMetrics, read_train_reply
from fedprune.server.updates import ClientUpdates
from fedprune.sparsity.criteria import Criterion, needs_data
from fedprune.sparsity.distributions import Distribution
from fedprune.sparsity.frozen import thawed
from fedprune.sparsity.growth import GrowthVotes
from fedprune.sparsity.masks import Masks
from fedprune.sparsity.pruning import prunable, prunable_masks, prune
from fedprune.sparsity.structure import Group, Reduction, channel_groups, prune_units
from fedprune.tasks import Score, Task, combine
from fedprune.wire import Codec, Layout, largest_reply

_T = TypeVar("_T")
_logger = logging.getLogger(__name__)


class PruningStrategy(Strategy):
    """Federated training under masks; the base of every method, and FedAvg as it stands.

    Parameters
    ----------
    federation : Federation
        What is trained, on what, and who evaluates.
    options : Options
        The method's options, validated.
    aggregator : Aggregator, optional
        How replies become the next state; by default what ``options.aggregator`` names, or the
        mean weighted by examples.
    """

    #: The training algorithm of this strategy's clients: a name in `fedprune list clients`, or
    #: "./file.py:Class" beside this strategy's file; ``clients.algorithm`` in a scenario chooses another.
    client: ClassVar[str] = "sparse"

    #: Why clients have no updates that could be compressed (``wire.updates``); "" where they have.
    no_updates: ClassVar[str] = ""

    #: What the method can prune: "weight", and "channel" where all its masks are of `pruned`.
    units: ClassVar[tuple[str, ...]] = ("weight",)

    #: How replies are averaged where no stock Flower strategy does it.
    mean: ClassVar[type[Aggregator]] = WeightedMean

    class Options(BaseModel):
        """Options that every method has."""

        model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

        density: float = Field(1.0, gt=0, le=1, description="Kept share of the prunable weights.")
        keep: tuple[str, ...] = Field(
            ("first", "last"),
            strict=False,
            description="Weights that are never pruned: name patterns, or 'first' and 'last'.",
        )
        unit: Literal["weight", "channel"] = Field(
            "weight",
            description="What is pruned: single weights, or whole channels, neurons and attention heads. The "
            "density is then that of all tensors that these are part of.",
        )
        reduction: Reduction = Field(
            "sum",
            description="How a channel's score is made of its weights': sum, mean or norm.",
        )
        pretrain_epochs: int = Field(
            0, ge=0, description="Epochs on the server's public data, before masks are chosen."
        )
        aggregator: str | dict[str, Any] | None = Field(
            None,
            description="The aggregation rule: a name in `fedprune list aggregators`, 'file.py:Class', the "
            "dotted name of a stock Flower strategy, or a mapping with 'name' and its own options.",
        )

    def __init__(
        self, federation: Federation, options: Options, *, aggregator: Aggregator | None = None
    ) -> None:
        self.federation = federation
        self.options = options
        self.scenario = scenario = federation.scenario
        #: The last round that ended; -1 before any has.
        self.completed_round = -1
        #: How well the global model did when it was tested last.
        self.score: Score | None = None
        #: What clients are asked to report of growth in the current round, and what they voted for.
        self.request: GrowthRequest | None = None
        self.votes: dict[str, GrowthVotes] = {}
        #: How clients may move their own masks in the current round.
        self.move: MaskRequest | None = None
        algorithm = client_class(scenario, type(self))
        #: What a client holds of the model: the model's own parts.
        self.local = local = algorithm.local_model(scenario, federation.task, federation.module)
        self.model = GlobalModel(federation.module, scenario, self.supermasks, Layout.of(local))
        #: What it costs to train what a client holds of the model.
        self.cost = ModelCost.of(local, federation.task)
        parameters = [name for name, _ in federation.module.named_parameters()]
        named = named_aggregator(scenario, options.aggregator, parameters, not_a=PruningStrategy)
        #: Reads the clients' updates, where these are compressed.
        self.updates = ClientUpdates.of(scenario, self.model)
        self.aggregator: Aggregator = aggregator or named or self.make_mean()
        self.dense = DenseBaseline(scenario, self.layout, self._cost_of_the_whole())
        self.registry = ClientRegistry(partial(fewest_examples, self.cost))
        timeout, wire = scenario.engine.timeout, scenario.wire
        #: The states that clients may hold, where they are sent what has changed.
        self.states = SentStates(wire.history, wire.values) if wire.history else None
        self.exchange = Exchange(
            self.registry,
            self.sent_masks,
            lambda: self.model.frozen_values,
            seed=scenario.seed,
            timeout=timeout,
            states=self.states,
        )
        self.accounts = RoundAccounts(
            self.registry,
            self.exchange,
            self.dense,
            judged_by=federation.task.metrics,
            largest_reply=largest_reply(self.layout),
            listeners=federation.listeners,
        )
        self.roll_call = RollCall(
            self.registry,
            self.exchange,
            self.accounts,
            count=scenario.clients.count,
            patience=timeout,
            announce=federation.announce,
        )
        if options.density < 1:
            assert self.places  # What cannot be pruned is refused before anything runs.
        self.budgets = Budgets(scenario, self.cost, algorithm, prunable_masks(self.module, options.keep))
        self.selection = ClientSelection(
            self.registry,
            self.exchange,
            self.accounts,
            self.budgets,
            self.cost,
            seed=scenario.seed,
            masks_for=self.masks_for,
        )

    def _cost_of_the_whole(self) -> ModelCost:
        """Return what the model costs where all of it is trained, on the client."""
        module = self.federation.module
        if self.model.travelling == self.layout:
            return self.cost
        return ModelCost.of(thawed(copy.deepcopy(module)), self.federation.task)

    def make_mean(self) -> Aggregator:
        """Return what averages replies where no stock Flower strategy does it; of the class ``mean``.

        Where clients may train nested masks, each weight is averaged over those that held it. Where their
        updates are votes, as with signSGD, these are counted.
        """
        votes = self.updates is not None and self.updates.compressor.majority
        if votes and self.mean in (WeightedMean, OverlapMean):
            return MajorityVote([name for name, _ in self.federation.module.named_parameters()])
        nests = self.scenario.clients.over_budget == "nest" and self.mean is WeightedMean
        return OverlapMean() if nests else self.mean()

    # Hooks -------------------------------------------------------------------------------

    @classmethod
    def validation_errors(cls, scenario: Scenario, options: Any) -> Iterator[tuple[str, str]]:
        """Yield (option, what is wrong) for options that do not fit the scenario, before it runs.

        ``options`` are valid by themselves. Found here: a criterion or distribution that does not
        exist, and what needs public data where the server has none. An override starts with
        ``yield from super().validation_errors(...)``.
        """
        yield from option_errors(scenario, options, cls, base=PruningStrategy)

    def prepare(self, grid: Grid) -> None:
        """Choose the first masks, with ``set_masks``; may exchange messages with clients through ``ask``.

        ``self.module`` holds the global state, pretrained where that is asked for.
        """

    def sample(self, server_round: int) -> list[int]:
        """Return the clients that are asked to train in a round: numbers of ``self.eligible``, ascending."""
        generator = seeds.numpy_generator(self.scenario.seed, "sample", server_round)
        clients = self.scenario.clients
        wanted = min(clients.over_sample * clients.per_round, len(self.eligible))
        count = ceil(wanted - 1e-9)  # 1.1 times 100 is a little more than 110.
        return sorted(int(n) for n in generator.choice(self.eligible, size=count, replace=False))

    def growth(self, server_round: int) -> GrowthRequest | None:
        """Return which layers may grow how many weights after this round; clients report candidates.

        The request is in ``self.request`` and what they reported in ``self.votes`` when
        ``update_masks`` is called.
        """
        return None

    def mask_request(self, server_round: int) -> MaskRequest | None:
        """Return how clients may move their own masks in this round; None: not at all.

        What a client made of its masks is in ``reply.codec.masks`` when ``observe`` is called. The
        aggregated state is then left as the aggregator made it: ``update_masks`` has to put it
        under masks, with ``set_masks``.
        """
        return None

    def supermasks(self) -> Supermasks | None:
        """Return how clients learn signs or masks of frozen weights; None: they train weights.

        It stays the same over a run. The weights are those that ``freeze`` puts into the state.
        """
        return None

    def masks_for(self, number: int) -> Masks:
        """Return the masks under which a client is sent values: the global ones, or its own."""
        return self.masks

    def train_config(self, server_round: int) -> Mapping[str, Any]:
        """Return what a round's training messages say for the method's sake: values of a ``ConfigRecord``.

        Called once a round, before clients are selected.
        """
        return {}

    def read(self, server_round: int, reply: Message) -> Any:
        """Read what else a training message asked for; raise ``WireError`` for a reply that is not right.

        The result is in ``reply.report`` when ``observe`` is called.
        """
        return None

    def observe(self, server_round: int, reply: TrainReply) -> None:
        """Look at a reply as it is aggregated; it is not kept."""

    def update_masks(self, server_round: int) -> None:
        """Move the masks after a round's aggregation, with ``set_masks``."""

    def settle(self, grid: Grid, server_round: int) -> None:
        """Ask clients, through ``ask``, something about the global model as the round has left it."""

    def state_dict(self) -> dict[str, Any]:
        """Return what the method keeps from one round to the next, besides the global state and masks.

        A checkpoint holds it: dictionaries with text as keys, lists, text, numbers, None, bytes and
        tensors. What follows from the scenario and the round need not be in it.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned; where a run is resumed, this takes the place of ``prepare``.

        Clients, global state and masks have been restored; tuples have become lists.
        """

    # What methods use: the global model --------------------------------------------------

    @property
    def module(self) -> nn.Module:
        """The model; it holds the global state where a hook is called, and may be changed there."""
        return self.model.module

    @property
    def task(self) -> Task:
        """What is learnt."""
        return self.federation.task

    @property
    def layout(self) -> Layout:
        """Names and shapes of the model's state."""
        return self.model.layout

    @property
    def state(self) -> dict[str, Tensor]:
        """The global values: every parameter and buffer by name."""
        return self.model.state

    @state.setter
    def state(self, state: dict[str, Tensor]) -> None:
        self.model.state = state

    @property
    def masks(self) -> Masks:
        """The global masks; ``set_masks`` changes them."""
        return self.model.masks

    @property
    def codec(self) -> Codec:
        """How the global state travels under the global masks."""
        return self.model.codec

    def set_masks(self, masks: Masks) -> None:
        """Make ``masks`` the global ones; weights they prune become exactly 0.

        Raises
        ------
        TypeError, ValueError
            For what is no ``Masks``, or does not fit the model.
        """
        self.model.set_masks(masks)

    def draw(self) -> None:
        """Put the weights that the seed of ``supermasks`` draws into the state and ``self.module``."""
        self.model.draw()

    def freeze(self, masks: Masks) -> None:
        """Make ``masks`` the global ones and the frozen weights under them, as drawn, the state.

        For a strategy with ``supermasks``.
        """
        self.model.freeze(masks)

    def pruned(
        self,
        criterion: str,
        distribution: str | Distribution,
        *,
        density: float | None = None,
        iterations: int | None = None,
        draw: int | None = None,
    ) -> Masks:
        """Return masks that prune what ``self.module`` holds, by default to the target density.

        Parameters
        ----------
        criterion : str
            Its name; one that needs data is given the server's public examples.
        distribution : str or Distribution
            Its name, or one made on the way.
        density : float, optional
            Kept share of the prunable weights, in (0, 1]; ``options.density`` where not given.
        iterations : int, optional
            Pruning steps; the criterion's own number where not given.
        draw : int, optional
            Which of several random draws this is.
        """
        here, folder = type(self), self.scenario.directory
        scored_by: Criterion = registry.load("criterion", registry.beside(here, criterion), folder)
        shared_out: Distribution = (
            registry.load("distribution", registry.beside(here, distribution), folder)
            if isinstance(distribution, str)
            else distribution
        )
        how: dict[str, Any] = {
            "criterion": scored_by,
            "distribution": shared_out,
            "density": self.options.density if density is None else density,
            "iterations": iterations,
            "example": self.task.info.inputs.filled(1, 1),
            "batches": self.public_batches() if needs_data(scored_by) else (),
            "loss": self.task.loss,
            "generator": seeds.torch_generator(
                self.scenario.seed, "prune", *(() if draw is None else (draw,))
            ),
        }
        if self.options.unit == "channel":
            return prune_units(self.module, self.groups, reduction=self.options.reduction, **how)
        return prune(self.module, prunable(self.module, self.options.keep), **how)

    @cached_property
    def groups(self) -> list[Group]:
        """The channels that belong together, where whole ones may be pruned; see `channel_groups`."""
        inputs = self.task.info.inputs.random(2, seeds.torch_generator(self.scenario.seed, "channels"))
        return channel_groups(self.federation.module, inputs, self.options.keep)

    @property
    def traced_groups(self) -> list[Group] | None:
        """The same; None where single weights are pruned."""
        return self.groups if self.options.unit == "channel" else None

    @property
    def places(self) -> list[str]:
        """The weights among which a distribution shares out what is kept, by name."""
        if self.options.unit == "channel":
            return [group.name for group in self.groups]
        return prunable(self.module, self.options.keep)

    def prune_to(
        self, density: float, criterion: str = "magnitude", distribution: str | Distribution = "uniform"
    ) -> None:
        """Prune the global model to a density: choose masks for the current weights and set them.

        Parameters
        ----------
        density : float
            Kept share of the prunable weights, in (0, 1].
        criterion : str
            Scores the weights; see `pruned`.
        distribution : str or Distribution
            Density of each layer; see `pruned`.
        """
        self.model.load_into_module()
        self.set_masks(self.pruned(criterion, distribution, density=density))

    def public_batches(self) -> list[tuple[Tensor, Tensor]]:
        """Return the server's public examples in batches of the clients' size; [] without any."""
        size = self.scenario.clients.training.batch_size
        federation = self.federation
        return list(batches(federation.examples, federation.public, self.task, size))

    def pretrain(self, epochs: int) -> None:
        """Train the global model on the server's public data, as a client trains, from where it is."""
        self.model.load_into_module()
        self.state = pretrain(self.federation, epochs, self.masks)

    # What methods use: the clients -------------------------------------------------------

    @property
    def clients(self) -> Mapping[int, ClientInfo]:
        """The clients with examples enough to train, by number: their devices, and how many they have."""
        return self.registry.able

    @property
    def eligible(self) -> list[int]:
        """The clients that can take part in the current round, by number, ascending."""
        return self.selection.eligible

    @property
    def nested(self) -> Mapping[int, Masks]:
        """The masks, by number, of the round's clients that train a part of theirs to fit their memory."""
        return self.selection.nested

    def sent_masks(self, number: int) -> Masks:
        """Return the masks under which a client is sent values in this round.

        Those of ``masks_for`` or, where its device has no memory for these, a part of them.
        """
        return self.nested.get(number) or self.masks_for(number)

    def state_contents(
        self,
        server_round: int,
        config: Mapping[str, Any],
        arrays: ArrayRecord | None = None,
        *,
        states: SentStates | None = None,
    ) -> Callable[[int], RecordDict]:
        """Return a function from client number to message content: the global state, and masks if needed.

        Of the state only what has changed, for a client that holds one of ``states``.
        """
        return state_contents(
            self.model,
            self.exchange,
            self.sent_masks,
            server_round=server_round,
            config=config,
            settings=self.supermasks(),
            arrays=arrays,
            states=states,
        )

    def converse(self, grid: Grid, server_round: int, messages: Iterable[Message]) -> Iterator[Message]:
        """Send a round's training messages; yield what ends each client's training, in their order.

        That is the reply to each message. A strategy whose clients ask something of the server while they
        train carries on their conversations here.
        """
        return self.exchange.send(grid, messages)

    def ask(
        self,
        grid: Grid,
        numbers: Iterable[int],
        message_type: str,
        content: Callable[[int], RecordDict],
        read: Callable[[Message], _T],
        *,
        server_round: int = 0,
    ) -> dict[int, _T]:
        """Ask clients something besides training; return what was read of each good reply, by number.

        Parameters
        ----------
        grid : Grid
            Who carries messages.
        numbers : Iterable[int]
            The clients, ascending.
        message_type : str
            What is asked, such as "query.loss".
        content : Callable[[int], RecordDict]
            What a client is sent, such as ``state_contents`` returns.
        read : Callable[[Message], T]
            Reads and checks a reply; raises ``WireError`` for one that cannot be used.
        server_round : int
            The round; 0 in ``prepare``.
        """
        messages = (
            self.exchange.message(number, content(number), message_type, server_round) for number in numbers
        )

        def numbered(reply: Message) -> tuple[int, _T]:
            return self.registry.number_of(reply), read(reply)

        return dict(self.accounts.accept(server_round, self.exchange.send(grid, messages), numbered))

    # Flower's interface ------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the training messages of a round: the global state to each selected client."""
        self.request, self.move = self.growth(server_round), self.mask_request(server_round)
        self.votes = (
            {name: GrowthVotes(self.masks[name]) for name in self.request.counts} if self.request else {}
        )
        own = self.train_config(server_round)
        config = ConfigRecord({**self.aggregator.client_config(), **config, **own})
        if self.request:
            config.update(self.request.config(self.masks))
        if self.move:
            config.update(self.move.config())
        if settings := self.supermasks():
            config.update(settings.config())
        numbers = self.selection.select(server_round, config, self.sample, self.state)
        if numbers:  # A stock strategy would wait for nodes.
            nodes = [self.clients[number].node_id for number in numbers]
            config = ConfigRecord(
                {**self.aggregator.begin(server_round, self.model.travelling_state, nodes), **config}
            )
        content = self.state_contents(server_round, config, arrays, states=self.states)
        for number in numbers:
            own = content(number) if self.updates is None else self.updates.addressed(content(number), number)
            yield self.exchange.message(number, own, MessageType.TRAIN, server_round)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate replies as they arrive; the new state is ``self.state``, under the masks.

        The metrics are ``train-loss``, weighted by examples, and, where clients hold out examples, how well
        their models do on all of these together, such as ``personal-accuracy``.
        """

        def read(reply: Message) -> TrainReply:
            number = self.registry.number_of(reply)
            return read_train_reply(
                reply,
                number,
                self.sent_masks(number),
                self.model,
                growth=self.request,
                move=self.move,
                judged_by=self.task.metrics,
                report=lambda: self.read(server_round, reply),
                updates=self.updates,
            )

        totals = TrainMetrics()
        clients = self.scenario.clients
        wanted = clients.per_round if clients.over_sample > 1 else None
        for reply in self.accounts.accept(
            server_round, replies, read, deadline=clients.deadline, wanted=wanted
        ):
            self.aggregator.add(reply)
            if self.updates is not None:
                self.updates.note(server_round, reply)
            if self.move is not None:
                self.exchange.note_held(reply.client, reply.codec.masks)
            for name, (indices, values) in reply.growth.items():
                self.votes[name].add(indices, values, reply.weight)
            self.observe(server_round, reply)
            totals.add(reply)
        metrics = totals.record(self.task.metrics)
        if metrics is None:
            return None, None
        self.model.take(self.aggregator.finish())
        if self.move is None:
            # An aggregator that knows no masks may move a pruned weight: it is put back to 0.
            self.model.apply_masks()
        return self.model.encode(server_round), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the evaluation messages of a round, if the scenario asks clients to evaluate."""
        who = self.scenario.evaluation.clients
        if not who:
            return
        content = self.state_contents(server_round, config, arrays, states=self.states)
        for number in self.selection.evaluators(server_round, everyone=who == "all"):
            yield self.exchange.message(number, content(number), MessageType.EVALUATE, server_round)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return how well the model does on all clients' held-out examples together: the task's metrics."""

        def read(reply: Message) -> Score | None:
            found = read_score(metrics_of(reply.content), self.task.metrics)
            if found is not None:
                device = self.clients[self.registry.number_of(reply)].profile.name
                self.accounts.participation.note_score(device, found)
            return found

        found = [score for score in self.accounts.accept(server_round, replies, read) if score is not None]
        values = combine(found).values(self.task.metrics)
        known = {name: value for name, value in values.items() if value is not None}
        return MetricRecord(dict(known)) if known else None

    def summary(self) -> None:
        """Log what is run."""
        _logger.info("%s: %s, %s", self.scenario.name, type(self).__name__, self.options)

    def check_budgets(self) -> None:
        """Refuse a run whose clients lack the memory (`Budgets.refuse_hopeless`) or the examples to train.

        Raises
        ------
        UserError
            Where their memory is too small, or none has examples enough.
        """
        if idle := self.registry.idle:
            what = f"{len(idle)} of {len(self.registry.clients)} clients have too few examples to train"
            if not self.clients:
                raise UserError(f"{what}: give them more, or take fewer clients (clients.count)")
            _logger.warning("%s, and are left out", what)
        config = ConfigRecord(dict(self.aggregator.client_config()))
        self.budgets.refuse_hopeless(list(self.clients.values()), config, self.options.model_dump())

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int | None = None,
        timeout: float | None = None,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run the federation on a grid, or what is left of it where a snapshot was restored.

        All arguments but the grid default to what the scenario says. The result has the rounds that
        were run here. See `RoundLoop.run` for what is raised.
        """
        self.summary()
        if timeout is not None:
            self.exchange.timeout = timeout
        loop = RoundLoop(
            strategy=self,
            grid=grid,
            rounds=num_rounds or self.scenario.rounds,
            train_config=train_config or ConfigRecord(),
            evaluate_config=evaluate_config or ConfigRecord(),
            evaluate_fn=evaluate_fn,
        )
        return loop.run(initial_arrays)


def build_strategy(federation: Federation) -> PruningStrategy:
    """Return the scenario's strategy: a pruning strategy, or a stock Flower one as the aggregator."""
    spec = federation.scenario.strategy
    kind = registry.load("strategy", spec.name, federation.scenario.directory)
    if issubclass(kind, PruningStrategy):
        options = registry.place_defaults(kind.Options(**spec.options))
        strategy: PruningStrategy = kind(federation, options)
        return strategy
    aggregator = flower_aggregator(federation, kind, spec.options)
    return PruningStrategy(federation, PruningStrategy.Options(), aggregator=aggregator)
