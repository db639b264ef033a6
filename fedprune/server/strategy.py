"""``PruningStrategy``: what every method shares on the server.

It is a Flower ``Strategy``. It owns the global state (values and masks), samples clients, speaks
the wire format, adds replies up as they arrive, keeps the ledger and evaluates. A method is a
subclass with options and a few hooks:

- ``prepare``: before round 1; choose the first masks.
- ``sample``: which clients, of those that can, take part in a round.
- ``growth``: which layers may grow after a round; clients then report candidates.
- ``mask_request``: how clients may move their own masks in a round.
- ``masks_for``: under which masks a client is sent values, where each has its own.
- ``supermasks``: how clients learn signs or masks of frozen weights, where they do.
- ``configure_train``: what a round's messages ask for besides training.
- ``read``: read, from a reply, what else was asked for.
- ``observe``: look at each reply as it is aggregated.
- ``update_masks``: after a round's aggregation; move the masks.
- ``memory`` and ``recall``: what a checkpoint holds, where a method keeps more than state and masks.

Used as it is, without hooks, it is FedAvg. Clients are known by their own number, which they tell
at the start; Flower's node ids are random. So sampling, order and seeds are the same on any grid.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from math import ceil, isfinite
from typing import Any, ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from fedprune import registry, seeds
from fedprune.costs.flops import ModelCost
from fedprune.costs.ledger import RoundRecord, Tally
from fedprune.costs.memory import forward_memory
from fedprune.data import batches
from fedprune.errors import PluginError, RunError, UserError
from fedprune.protocol.client_masks import MaskRequest, read_own_masks
from fedprune.protocol.faults import Fault
from fedprune.protocol.messages import arrays_of, metrics_of, real, share, whole
from fedprune.protocol.reports import GrowthRequest, read_growth
from fedprune.protocol.supermasks import FrozenNetwork, LearningOptions, Supermasks, drawn_weights
from fedprune.protocol.training_step import TrainingAlgorithm
from fedprune.scenario import Scenario
from fedprune.server.aggregation import Aggregator, FlowerAggregator, OverlapMean, TrainReply, WeightedMean
from fedprune.server.budgets import Budgets
from fedprune.server.dense_baseline import DenseTwin
from fedprune.server.exchange import Exchange, Facts, listed
from fedprune.server.federation import Federation
from fedprune.sparsity.criteria import Criterion, needs_data
from fedprune.sparsity.distributions import Distribution
from fedprune.sparsity.growth import GrowthVotes
from fedprune.sparsity.masks import Masks, apply_masks
from fedprune.sparsity.pruning import all_kept, prunable, prune
from fedprune.training.loop import train
from fedprune.wire import (
    CODEC,
    Codec,
    Layout,
    StateCodec,
    get_state,
    set_state,
)

_logger = logging.getLogger(__name__)

#: Faults of devices, not of code: a round in which there are no others may end without a reply.
_OF_DEVICES = {Fault.LATE, Fault.DROPPED_OUT, Fault.GONE}


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

    #: The way of training that clients of this strategy run: a name in the registry.
    client: ClassVar[str] = "sparse"

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
        pretrain_epochs: int = Field(
            0, ge=0, description="Epochs on the server's public data, before masks are chosen."
        )
        aggregator: str | dict[str, Any] | None = Field(
            None,
            description="A stock Flower strategy that aggregates: its dotted name, or a mapping "
            "with 'name' and its own options.",
        )

    def __init__(
        self, federation: Federation, options: Options, *, aggregator: Aggregator | None = None
    ) -> None:
        self.federation = federation
        self.options = options
        self.scenario = federation.scenario
        self.module = federation.module
        self.layout = Layout.of(federation.module)
        self.cost = ModelCost.of(federation.module, federation.info.input_shape)
        self.state: dict[str, Tensor] = get_state(federation.module)
        self.initial = self.state
        self.masks = Masks()
        #: The last round that ended; -1 before any has.
        self.ended = -1
        self.codec: Codec = StateCodec(self.layout, self.masks, self.scenario.wire.values)
        stock = stock_aggregator(self.scenario, options.aggregator)
        self.aggregator: Aggregator = aggregator or (
            self.make_mean() if stock is None else flower_aggregator(federation, *stock)
        )
        if options.density < 1:
            prunable(self.module, options.keep)  # What it refuses is refused before anything runs.
        self.dense = DenseTwin(self.scenario, self.layout, self.cost)
        self.exchange = Exchange(federation, self.dense, self.sent_masks)
        way = client_class(self.scenario, type(self))
        self.budgets = Budgets(self.scenario, self.cost, way, prunable_masks(self.module, options.keep))
        #: The masks of a round's clients that train a part of theirs, by number.
        self.nested: Mapping[int, Masks] = {}
        #: The clients that can take part in the current round, by number, ascending.
        self.able: list[int] = []
        #: Those of them that were asked to train.
        self.asked: list[int] = []
        #: What dense FedAvg would have cost up to the last round that ended.
        self.dense_totals = self.dense.tally.totals()
        self.votes: dict[str, GrowthVotes] = {}
        self.request: GrowthRequest | None = None
        self.move: MaskRequest | None = None

    def make_mean(self) -> Aggregator:
        """Return what averages replies where no stock Flower strategy does it; of the class ``mean``.

        Where clients may train nested masks, each weight is averaged over those that held it.
        """
        nests = self.scenario.clients.over_budget == "nest" and self.mean is WeightedMean
        return OverlapMean() if nests else self.mean()

    @classmethod
    def mistakes(cls, scenario: Scenario, options: Any) -> Iterator[tuple[str, str]]:
        """Yield (option, what is wrong) for options that do not fit the scenario, before it runs.

        ``options`` are valid by themselves. Found here: a criterion or distribution that does not
        exist, and what needs public data where the server has none. An override starts with
        ``yield from super().mistakes(...)``.
        """
        for kind in ("criterion", "distribution"):
            if (name := getattr(options, kind, None)) is not None:
                yield from plugin_mistakes(scenario, kind, kind, name)
        if options.pretrain_epochs > 0 and scenario.data.server_fraction == 0:
            yield "pretrain_epochs", "pretraining needs public data: set data.server_fraction, or 0 epochs"
        try:
            stock = stock_aggregator(scenario, options.aggregator)
            if stock is not None:
                FlowerAggregator(*stock, (), scenario.seed)
        except PluginError as error:
            yield "aggregator", str(error)
        if isinstance(options, LearningOptions):
            yield from options.mistakes(scenario)
        if options.aggregator is not None and cls.mean is not WeightedMean:
            yield "aggregator", f"{cls.__name__} has an average of its own over the weights that clients keep"
        if scenario.clients.over_budget == "nest":
            over = "set clients.over_budget to exclude or shrink_batch"
            if options.aggregator is not None:
                yield (
                    "aggregator",
                    f"it cannot average nested masks, of which each client has its own: {over}",
                )
            elif isinstance(options, LearningOptions):
                yield (
                    "name",
                    f"the scale of frozen weights is that of the whole mask, not of a nested one: {over}",
                )
            elif not issubclass(cls.mean, WeightedMean | OverlapMean):
                yield "name", f"{cls.__name__} has an average of its own, which knows no nested masks: {over}"

    # Hooks -------------------------------------------------------------------------------

    def prepare(self, grid: Grid) -> None:
        """Choose the first masks, with ``set_masks``; may exchange messages through ``exchange``.

        ``self.module`` holds the global state, pretrained where that is asked for.
        """

    def sample(self, server_round: int) -> list[int]:
        """Return the client numbers of a round, ascending: of ``self.able``, as many as are to be asked."""
        generator = seeds.numpy_generator(self.scenario.seed, "sample", server_round)
        clients = self.scenario.clients
        wanted = min(clients.over_sample * clients.per_round, len(self.able))
        count = ceil(wanted - 1e-9)  # 1.1 times 100 is a little more than 110.
        return sorted(int(n) for n in generator.choice(self.able, size=count, replace=False))

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

    def read(self, server_round: int, reply: Message) -> Any:
        """Read what else a training message asked for; raise ``WireError`` for a reply that is not right.

        The result is in ``reply.report`` when ``observe`` is called.
        """
        return None

    def observe(self, server_round: int, reply: TrainReply) -> None:
        """Look at a reply as it is aggregated; it is not kept."""

    def update_masks(self, server_round: int) -> None:
        """Move the masks after a round's aggregation, with ``set_masks``."""

    def memory(self) -> dict[str, Any]:
        """Return what the method keeps from one round to the next, besides the global state and masks.

        A checkpoint holds it: dictionaries with text as keys, lists, text, numbers, None, bytes and
        tensors. What follows from the scenario and the round need not be in it.
        """
        return {}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Take back what ``memory`` returned; where a run is resumed, this takes the place of ``prepare``.

        Clients, global state and masks are there again; tuples have become lists.
        """

    # What methods use --------------------------------------------------------------------

    @property
    def clients(self) -> Mapping[int, Facts]:
        """What each client said of itself, by client number."""
        return self.exchange.clients

    def sent_masks(self, number: int) -> Masks:
        """Return the masks under which a client is sent values in this round.

        Those of ``masks_for`` or, where its device has no memory for these, a part of them.
        """
        return self.nested.get(number) or self.masks_for(number)

    def set_masks(self, masks: Masks) -> None:
        """Make ``masks`` the global ones; weights they prune become exactly 0.

        Raises
        ------
        TypeError, ValueError
            For what is no ``Masks``, or does not fit the model.
        """
        if not isinstance(masks, Masks):
            raise TypeError(f"set_masks takes a fedprune.sparsity.masks.Masks, not {type(masks).__name__}")
        for name, mask in masks.items():
            if mask.shape != self.layout.shapes.get(name):
                known = self.layout.shapes.get(name)
                expected = f"expected {tuple(known)}" if known is not None else "the model has no such weight"
                raise ValueError(f"mask of {name!r} has shape {tuple(mask.shape)}: {expected}")
        self.masks = masks
        self.state = apply_masks(self.state, masks)
        self.codec = self._new_codec(masks)

    def draw(self) -> None:
        """Put the weights that the seed of ``supermasks`` draws into the state and ``self.module``."""
        settings = self.supermasks()
        assert settings is not None
        self.state = {**self.state, **drawn_weights(self.module, settings.seed)}
        set_state(self.module, self.state)

    def freeze(self, masks: Masks) -> None:
        """Make ``masks`` the global ones and the frozen weights under them, as drawn, the state.

        For a strategy with ``supermasks``.
        """
        self.set_masks(masks)
        self.state = self.frozen(masks).state

    @cached_property
    def frozen(self) -> Callable[[Masks], FrozenNetwork]:
        """Return the frozen weights under masks, for a strategy with ``supermasks``."""

        @lru_cache(maxsize=4)
        def make(masks: Masks) -> FrozenNetwork:
            settings = self.supermasks()
            assert settings is not None
            return FrozenNetwork(self.module, self.initial, masks, settings)

        return make

    def state_contents(
        self, server_round: int, config: Mapping[str, Any], arrays: ArrayRecord | None = None
    ) -> Callable[[int], RecordDict]:
        """Return a function from client number to content: the global state, and masks where needed.

        All clients under the global masks share one record of values (two, where some need the
        masks), so that the engine carries it once.
        """
        shared_arrays = self.encode_state(server_round) if arrays is None else arrays

        def content_of(masks: Masks, values: ArrayRecord, holds: bool) -> RecordDict:
            own: dict[str, Any] = {"round": server_round, "mask-version": masks.version, "codec": CODEC}
            if settings is not None:
                own |= settings.config()
            with_all = values if holds else self.exchange.with_masks(values, masks)
            return RecordDict({"arrays": with_all, "config": ConfigRecord({**config, **own})})

        shared_masks, settings = self.masks, self.supermasks()

        @lru_cache(maxsize=2)
        def shared(holds: bool) -> RecordDict:
            return content_of(shared_masks, shared_arrays, holds)

        def content(number: int) -> RecordDict:
            masks = self.sent_masks(number)
            holds = self.exchange.holds(number, masks)
            if masks == shared_masks:
                return shared(holds)
            return content_of(masks, self.encode_state(server_round, self.codec_of(masks)), holds)

        return content

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
        scored_by: Criterion = registry.load("criterion", criterion, self.scenario.directory)
        shared_out: Distribution = (
            registry.load("distribution", distribution, self.scenario.directory)
            if isinstance(distribution, str)
            else distribution
        )
        return prune(
            self.module,
            prunable(self.module, self.options.keep),
            criterion=scored_by,
            distribution=shared_out,
            density=self.options.density if density is None else density,
            iterations=iterations,
            input_shape=self.federation.info.input_shape,
            batches=self.public_batches() if needs_data(scored_by) else (),
            generator=seeds.torch_generator(self.scenario.seed, "prune", *(() if draw is None else (draw,))),
        )

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
        set_state(self.module, self.state)
        self.set_masks(self.pruned(criterion, distribution, density=density))

    def public_batches(self) -> list[tuple[Tensor, Tensor]]:
        """Return the server's public examples in batches of the clients' size; [] without any."""
        size = self.scenario.clients.training.batch_size
        federation = self.federation
        return list(batches(federation.images, federation.public, federation.info, size))

    def pretrain(self, epochs: int) -> None:
        """Train the global model on the server's public data, as a client trains, from where it is."""
        spec = self.scenario.clients.training
        federation, module = self.federation, self.module
        generator = seeds.torch_generator(self.scenario.seed, "pretrain")
        set_state(module, self.state)

        def public() -> Iterator[tuple[Tensor, Tensor]]:
            for _ in range(epochs):
                yield from batches(
                    federation.images,
                    federation.public,
                    federation.info,
                    spec.batch_size,
                    generator=generator,
                    augment=self.scenario.data.augment,
                )

        trained = train(module, public(), spec.optimizer, lr=spec.optimizer.lr, masks=self.masks)
        self.state = get_state(module)
        if not (isfinite(trained.loss) and all(tensor.isfinite().all() for tensor in self.state.values())):
            raise RunError(
                f"pretraining diverged (loss {trained.loss:g}): lower clients.training.optimizer.lr"
            )

    def encode_state(self, server_round: int, codec: Codec | None = None) -> ArrayRecord:
        """Return the global state as it travels, under the global masks or those of another codec."""
        seed = seeds.derive(self.scenario.seed, "wire", server_round)
        codec = codec or self.codec
        return codec.encode(codec.flatten(self.state), seed=seed)

    def codec_of(self, masks: Masks) -> Codec:
        """Return how the state travels under masks; the global ones have theirs ready."""
        return self.codec if masks == self.masks else self._new_codec(masks)

    def reply_codec(self, masks: Masks) -> Codec:
        """Return how a client's trained state travels under masks."""
        return self.codec_of(masks) if self.supermasks() is None else self.frozen(masks).uplink

    def _new_codec(self, masks: Masks) -> Codec:
        if self.supermasks() is None or not masks:
            return StateCodec(self.layout, masks, self.scenario.wire.values)
        return self.frozen(masks).downlink

    # Checkpoints -------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """Return all that later rounds depend on, when a round has ended; nothing is copied.

        A tree as ``memory`` describes it. What clients keep is for the grid.
        """
        return {
            "round": self.ended,
            "state": self.state,
            "masks": self.masks,
            "exchange": self.exchange.memory(),
            "nested": self.budgets.memory(),
            "dense": self.dense.tally.totals(),
            "aggregator": self.aggregator.memory(),
            "method": self.memory(),
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Be where a strategy of the same scenario was at its ``snapshot``; ``start`` then goes on.

        Draws need no memory: each is seeded by the scenario's seed and the round.
        """
        self.ended = snapshot["round"]
        self.exchange.recall(snapshot["exchange"])
        self.budgets.recall(snapshot["nested"], self.layout.shapes)
        self.layout.check(snapshot["state"])
        self.state = snapshot["state"]
        self.masks = Masks(snapshot["masks"])
        self.codec = self._new_codec(self.masks)
        self.dense.tally = Tally.of(snapshot["dense"])
        self.dense_totals = self.dense.tally.totals()
        self.aggregator.recall(snapshot["aggregator"])
        self.recall(snapshot["method"])

    # Flower's interface ------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the training messages of a round: the global state to each sampled client."""
        return self._state_messages(server_round, arrays, config, MessageType.TRAIN)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate replies as they arrive; the new state is ``self.state``, under the masks.

        The metrics are ``train-loss``, weighted by examples, and, where clients hold out examples,
        ``personal-accuracy``, weighted by these.
        """
        weight, loss = 0, 0.0
        held_out, right = 0, 0.0
        clients = self.scenario.clients
        accepted = self.exchange.accept(
            server_round,
            replies,
            partial(self._read_train, server_round),
            deadline=clients.deadline,
            wanted=clients.per_round if clients.over_sample > 1 else None,
        )
        for reply in accepted:
            self.aggregator.add(reply)
            if self.move is not None:
                self.exchange.note_held(reply.client, reply.codec.masks)
            for name, (indices, values) in reply.growth.items():
                self.votes[name].add(indices, values, reply.weight)
            self.observe(server_round, reply)
            weight += reply.weight
            loss += reply.weight * reply.loss
            held_out += reply.held_out
            right += reply.held_out * reply.held_out_accuracy
        if weight == 0:
            return None, None
        self.state = self.aggregator.finish()
        if self.move is None:
            # An aggregator that knows no masks may move a pruned weight: it is put back to 0.
            self.state = apply_masks(self.state, self.masks)
        metrics = MetricRecord({"train-loss": loss / weight})
        if held_out:
            metrics["personal-accuracy"] = right / held_out
        return self.encode_state(server_round), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the evaluation messages of a round, if the scenario asks clients to evaluate."""
        if not self.scenario.evaluation.clients:
            return []
        return self._state_messages(server_round, arrays, config, MessageType.EVALUATE)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the clients' mean accuracy, weighted by held-out examples."""

        def read(reply: Message) -> tuple[int, float]:
            metrics = metrics_of(reply.content)
            examples, accuracy = whole(metrics, "num-examples"), share(metrics, "accuracy")
            device = self.clients[self.exchange.number_of(reply)].profile.name
            self.exchange.attendance.note_score(device, examples, accuracy)
            return examples, accuracy

        scores = list(self.exchange.accept(server_round, replies, read))
        examples = sum(count for count, _ in scores)
        correct = sum((count * accuracy for count, accuracy in scores), 0.0)
        return MetricRecord({"accuracy": correct / examples}) if examples else None

    def summary(self) -> None:
        """Log what is run."""
        _logger.info("%s: %s, %s", self.scenario.name, type(self).__name__, self.options)

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
        """Run the federation on a grid; after ``restore``, what is left of it.

        All arguments but the grid default to what the scenario says. The result has the rounds that
        were run here.

        Raises
        ------
        UserError
            When clients have too little memory, and ``clients.over_budget`` does not say what to do.
        RunError
            When a round ends without a single good reply, and not because devices were away or too slow:
            the model then stays as it is for a round.
        """
        self.summary()
        self._rounds = num_rounds or self.scenario.rounds
        if timeout is not None:
            self.exchange.timeout = timeout
        result = Result()
        if self.ended < 0:
            self._begin(grid, initial_arrays)
        for server_round in range(self.ended + 1, self._rounds + 1):
            self._start_round()
            self.exchange.call_roll(grid, server_round)
            set_state(self.module, self.state)  # What a hook finds there must not depend on earlier rounds.
            train = train_config or ConfigRecord()
            messages = self.configure_train(server_round, self.encode_state(server_round), train, grid)
            arrays, metrics = self.aggregate_train(server_round, self.exchange.send(grid, messages))
            trained_under = self.masks
            if metrics is not None:
                self.update_masks(server_round)
            elif self.exchange.faults.keys() - _OF_DEVICES:
                raise RunError(self._no_reply(server_round))
            self.nested = {}  # From here on the round is about the global model again.
            if arrays is None or self.masks != trained_under:
                arrays = self.encode_state(server_round)
            evaluate = evaluate_config or ConfigRecord()
            client_metrics = None
            if self._evaluates(server_round):
                messages = list(self.configure_evaluate(server_round, arrays, evaluate, grid))
                if messages:
                    client_metrics = self.aggregate_evaluate(server_round, self.exchange.send(grid, messages))
            record = self._end_round(server_round, metrics, client_metrics)
            result.arrays = arrays
            if metrics is not None:
                result.train_metrics_clientapp[server_round] = metrics
            if client_metrics is not None:
                result.evaluate_metrics_clientapp[server_round] = client_metrics
            if record.accuracy is not None and record.loss is not None:
                measured = MetricRecord({"accuracy": record.accuracy, "loss": record.loss})
                result.evaluate_metrics_serverapp[server_round] = measured
            if evaluate_fn is not None and (extra := evaluate_fn(server_round, arrays)) is not None:
                result.evaluate_metrics_serverapp[server_round] = extra
        return result

    # How it does it ----------------------------------------------------------------------

    def _begin(self, grid: Grid, initial_arrays: ArrayRecord | None) -> None:
        """Do what comes before training: round 0."""
        self._start_round()
        self.exchange.meet(grid)
        config = ConfigRecord(dict(self.aggregator.client_config()))
        self.budgets.refuse_hopeless(list(self.clients.values()), config, self.options.model_dump())
        if initial_arrays is not None:
            self.state = self.codec.unflatten(self.codec.decode(initial_arrays))
        if self.options.pretrain_epochs:
            self.pretrain(self.options.pretrain_epochs)
        set_state(self.module, self.state)
        self.prepare(grid)
        self._end_round(0, None, None)

    def _state_messages(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, message_type: str
    ) -> Iterator[Message]:
        if message_type == MessageType.TRAIN:
            config = self._asked_of_clients(server_round, config)
            numbers = self._taking_part(server_round, config)
            if numbers:  # A stock strategy would wait for nodes.
                nodes = [self.clients[number].node_id for number in numbers]
                config = ConfigRecord({**self.aggregator.begin(server_round, self.state, nodes), **config})
        else:
            everyone = self.scenario.evaluation.clients == "all"
            asked = self._online(server_round) if everyone else self.asked
            gone = self.exchange.vanished
            numbers = [number for number in asked if number not in gone and self._can_evaluate(number)]
        content = self.state_contents(server_round, config, arrays)
        for number in numbers:
            yield self.exchange.message(number, content(number), message_type, server_round)

    def _asked_of_clients(self, server_round: int, config: ConfigRecord) -> ConfigRecord:
        """Return a round's config with what the method asks for besides training."""
        self.request = self.growth(server_round)
        asked = self.request.counts if self.request else ()
        self.votes = {name: GrowthVotes(self.masks[name]) for name in asked}
        self.move = self.mask_request(server_round)
        config = ConfigRecord({**self.aggregator.client_config(), **config})
        if self.request:
            config.update(self.request.config(self.masks))
        if self.move:
            config.update(self.move.config())
        if settings := self.supermasks():
            config.update(settings.config())
        return config

    def _taking_part(self, server_round: int, config: ConfigRecord) -> list[int]:
        """Return the numbers of the clients that are asked to train in a round, ascending."""
        online = self._online(server_round)
        verdict = self.budgets.judge(list(self.clients.values()), config, self.masks_for)
        self.able = [number for number in online if number not in verdict.excluded]
        away = self.clients.keys() - set(online) - verdict.excluded if len(online) < len(self.clients) else ()
        self.exchange.note_absent(away, verdict.excluded)
        numbers = self.sample(server_round) if self.able else []
        if len(set(numbers)) < len(numbers) or not set(numbers) <= set(self.able):
            raise RunError(f"sample({server_round}) gave {numbers}: expected clients of self.able, each once")
        self.nested = self.budgets.nest(numbers, verdict, self.masks_for, self.state)
        self.asked = numbers
        return numbers

    def _can_evaluate(self, number: int) -> bool:
        """Return whether a client has the memory for the whole model, and one example."""
        return (
            forward_memory(self.cost, self.masks_for(number), 1).total <= self.clients[number].profile.memory
        )

    def _online(self, server_round: int) -> list[int]:
        """Return the numbers of the clients that are there in a round, ascending."""
        absent = self.exchange.absent
        numbers = [number for number in self.exchange.numbers if number not in absent]
        if self.exchange.always_there or not numbers:
            return numbers
        chances = [self.clients[number].profile.availability for number in numbers]
        generator = seeds.numpy_generator(self.scenario.seed, "availability", server_round)
        draws = generator.random(numbers[-1] + 1)
        return [number for number, chance in zip(numbers, chances, strict=True) if draws[number] < chance]

    def _read_train(self, server_round: int, reply: Message) -> TrainReply:
        metrics, growth = metrics_of(reply.content), {}
        number, arrays = self.exchange.number_of(reply), arrays_of(reply.content)
        sent = self.sent_masks(number)
        if self.request is not None:
            growth = read_growth(reply.content.array_records.get("growth"), self.request, sent)
        codec = self.reply_codec(read_own_masks(arrays, self.layout, sent, self.move) or sent)
        held_out, held_out_accuracy = _read_held_out(metrics)
        return TrainReply(
            client=number,
            weight=whole(metrics, "num-examples", least=1),
            loss=real(metrics, "loss"),
            values=codec.decode(arrays),
            codec=codec,
            growth=growth,
            message=reply,
            report=self.read(server_round, reply),
            held_out=held_out,
            held_out_accuracy=held_out_accuracy,
        )

    def _start_round(self) -> None:
        self.exchange.start_round()
        self._began = time.perf_counter()

    def _evaluates(self, server_round: int) -> bool:
        return server_round % self.scenario.evaluation.every == 0 or server_round == self._rounds

    def _end_round(
        self, server_round: int, train: MetricRecord | None, clients: MetricRecord | None
    ) -> RoundRecord:
        score = self.federation.evaluate(self.state, self.masks) if self._evaluates(server_round) else None
        record = RoundRecord(
            round=server_round,
            accuracy=score.accuracy if score else None,
            loss=score.loss if score else None,
            train_loss=real(train, "train-loss") if train else None,
            client_accuracy=real(clients, "accuracy") if clients else None,
            personal_accuracy=real(train, "personal-accuracy")
            if train and "personal-accuracy" in train
            else None,
            density=self.masks.density,
            layer_densities=self.masks.densities(),
            wall_seconds=time.perf_counter() - self._began,
            clients_ok=self.exchange.ok,
            clients_failed=self.exchange.faults.total(),
            clients_surplus=self.exchange.attendance.total["surplus"],
            clients_excluded=self.exchange.attendance.total["excluded"],
            clients_offline=self.exchange.attendance.total["offline"],
            faults=dict(sorted(self.exchange.faults.items())),
            classes=self.exchange.attendance.records(),
            bytes_down=self.exchange.tally.bytes_down,
            bytes_up=self.exchange.tally.bytes_up,
            flops=self.exchange.tally.flops,
            peak_memory_bytes=self.exchange.tally.peak_memory_bytes,
            device_seconds=self.exchange.tally.device_seconds,
            joules=self.exchange.tally.joules,
        )
        self.dense_totals = self.dense.tally.totals()
        self.ended = server_round
        for listener in self.federation.listeners:
            listener.on_round(record)
        return record

    def _no_reply(self, server_round: int) -> str:
        total = sum(self.exchange.failures.values())
        reasons = listed(self.exchange.failures)
        return f"round {server_round}: none of {total} clients gave a usable reply: {reasons}"


def client_class(scenario: Scenario, strategy: type[PruningStrategy]) -> type[TrainingAlgorithm]:
    """Return the class of the clients of a strategy."""
    found: type[TrainingAlgorithm] = registry.load("client", strategy.client, scenario.directory)
    return found


def prunable_masks(module: nn.Module, keep: Sequence[str]) -> Masks:
    """Return the masks that keep every weight which may be pruned; empty ones where none may."""
    try:
        return all_kept(module, prunable(module, keep))
    except UserError:
        return Masks()


def _read_held_out(metrics: MetricRecord) -> tuple[int, float]:
    """Return how many examples a client scored its trained model on, and its accuracy; (0, 0.0) for none."""
    if "test-examples" not in metrics and "test-accuracy" not in metrics:
        return 0, 0.0
    return whole(metrics, "test-examples", least=1), share(metrics, "test-accuracy")


def plugin_mistakes(scenario: Scenario, option: str, kind: str, name: str) -> Iterator[tuple[str, str]]:
    """Yield (option, what is wrong) for a criterion or distribution that an option names."""
    try:
        found = registry.load(kind, name, scenario.directory)
    except PluginError as error:
        yield option, str(error)
        return
    if kind == "criterion" and needs_data(found) and scenario.data.server_fraction == 0:
        yield (
            option,
            f"{name} needs data on the server: set data.server_fraction, or take a criterion without data "
            "(random, magnitude, synflow)",
        )


def stock_aggregator(
    scenario: Scenario, spec: str | dict[str, Any] | None
) -> tuple[type[Strategy], dict[str, Any]] | None:
    """Return the stock Flower strategy that ``strategy.aggregator`` names, and its options.

    Raises
    ------
    PluginError
        If it names none, or a pruning strategy.
    """
    if spec is None:
        return None
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise PluginError("it needs the dotted name of a Flower strategy as 'name'")
    stock: type[Strategy] = registry.load("strategy", name, scenario.directory)
    if issubclass(stock, PruningStrategy):
        raise PluginError(f"{name} is a pruning strategy: name a stock Flower one, which aggregates")
    return stock, options


def flower_aggregator(
    federation: Federation, stock: type[Strategy], options: Mapping[str, Any]
) -> FlowerAggregator:
    """Return a stock Flower strategy as an aggregator for a federation."""
    names = [name for name, _ in federation.module.named_parameters()]
    return FlowerAggregator(stock, options, names, federation.scenario.seed)


def build_strategy(federation: Federation) -> PruningStrategy:
    """Return the scenario's strategy: a pruning strategy, or a stock Flower one as the aggregator."""
    spec = federation.scenario.strategy
    kind = registry.load("strategy", spec.name, federation.scenario.directory)
    if issubclass(kind, PruningStrategy):
        strategy: PruningStrategy = kind(federation, kind.Options(**spec.options))
        return strategy
    aggregator = flower_aggregator(federation, kind, spec.options)
    return PruningStrategy(federation, PruningStrategy.Options(), aggregator=aggregator)
