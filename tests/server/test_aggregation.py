"""Aggregators: the weighted mean, and stock Flower strategies that are given dense arrays by name."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from fractions import Fraction

import flwr.serverapp.strategy as stock
import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st
from inprocess import SUBMODELS, density_of, federate, plan

from fedprune import registry
from fedprune.errors import PluginError, RunError, ScenarioError
from fedprune.server.aggregation import FlowerAggregator, OverlapMean, TrainReply, WeightedMean
from fedprune.server.check import check
from fedprune.sparsity.masks import Masks
from fedprune.wire import Layout, StateCodec, get_state

MODULE = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
LAYOUT = Layout.of(MODULE)
MASKS = Masks({"0.weight": torch.arange(12).reshape(4, 3) % 3 == 0})
CODEC = StateCodec(LAYOUT, MASKS)
PARAMETERS = [name for name, _ in MODULE.named_parameters()]
STATE = CODEC.unflatten(CODEC.flatten(get_state(MODULE)))


@dataclass
class Given:
    """A client's trained values and weight."""

    values: torch.Tensor
    weight: int


def drawn(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        Given(CODEC.flatten(STATE) + 0.1 * torch.randn(CODEC.size, generator=generator), 10 * (n + 1))
        for n in range(count)
    ]


def reply_of(number, client):
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    metrics = MetricRecord({"num-examples": client.weight, "loss": 1.0 / (number + 1), "train-seconds": 0.1})
    question = Message(RecordDict(), number + 2, "train")
    content = RecordDict({"arrays": CODEC.encode(client.values), "metrics": metrics})
    message = Message(content, reply_to=question)
    return TrainReply(number, client.weight, 1.0 / (number + 1), client.values, CODEC, {}, message)


def aggregated(aggregator, clients, server_round=1, state=STATE):
    aggregator.begin(server_round, state, list(range(2, 2 + len(clients))))
    for number, client in enumerate(clients):
        aggregator.add(reply_of(number, client))
    return aggregator.finish()


def flower(name, seed=0, **options):
    return FlowerAggregator(getattr(stock, name), options, PARAMETERS, seed)


def dense_record(values):
    state = CODEC.unflatten(values)
    return {name: state[name].numpy() for name in PARAMETERS}


@given(st.lists(st.tuples(st.integers(1, 10**6), st.integers(0, 2**31)), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_the_mean_is_exact_but_for_the_last_rounding(drawn_clients):
    clients = []
    for weight, seed in drawn_clients:
        values = torch.randn(CODEC.size, generator=torch.Generator().manual_seed(seed))
        clients.append(Given(values, weight))
    found = CODEC.flatten(aggregated(WeightedMean(), clients))
    total = sum(client.weight for client in clients)
    for index in range(CODEC.size):
        exact = sum(client.weight * float(client.values[index]) for client in clients) / total
        assert float(found[index]) == pytest.approx(exact, rel=2e-7, abs=1e-12)


def test_the_mean_of_one_is_that_one_and_rounds_do_not_mix():
    mean = WeightedMean()
    first, second = drawn(2)
    assert torch.equal(CODEC.flatten(aggregated(mean, [first])), first.values)
    assert torch.equal(CODEC.flatten(aggregated(mean, [second])), second.values)


def test_the_mean_keeps_no_reply():
    mean = WeightedMean()
    mean.begin(1, STATE, [2, 3])
    client = drawn(1)[0]
    mean.add(reply_of(0, client))
    before = client.values.clone()
    client.values.zero_()
    assert torch.equal(CODEC.flatten(mean.finish()), before)


@given(st.lists(st.tuples(st.integers(1, 10**6), st.integers(0, 2**31)), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_the_mean_of_overlaps_is_over_those_who_kept_a_weight(drawn_clients):
    """Weight by weight in exact fractions; what nobody kept stays as it was."""
    replies = []
    for number, (weight, seed) in enumerate(drawn_clients):
        generator = torch.Generator().manual_seed(seed)
        codec = StateCodec(LAYOUT, Masks({"0.weight": torch.rand(4, 3, generator=generator) < 0.4}))
        reply = reply_of(number, Given(torch.randn(CODEC.size, generator=generator), weight))
        values = torch.randn(codec.size, generator=generator)
        replies.append(replace(reply, codec=codec, values=values))
    mean = OverlapMean()
    mean.begin(1, STATE, [])
    for reply in replies:
        mean.add(reply)
    found = mean.finish()
    assert list(found) == list(STATE)
    states = [reply.codec.unflatten(reply.values) for reply in replies]
    for name, old in STATE.items():
        for place in range(old.numel()):
            held = [
                (reply.weight, Fraction(float(state[name].flatten()[place])))
                for reply, state in zip(replies, states, strict=True)
                if name not in reply.codec.masks or reply.codec.masks[name].flatten()[place]
            ]
            exact = float(sum(w * v for w, v in held) / sum(w for w, _ in held)) if held else None
            value = float(found[name].flatten()[place])
            if held:
                assert value == pytest.approx(exact, rel=2e-7, abs=1e-12)
            else:
                assert value == float(old.flatten()[place])


def test_the_mean_of_overlaps_under_one_mask_is_the_mean():
    clients = drawn(4)
    ours, plain = aggregated(OverlapMean(), clients), aggregated(WeightedMean(), clients)
    assert all(torch.equal(ours[name], plain[name]) for name in plain)


def test_rounds_of_overlaps_do_not_mix_and_no_reply_is_kept():
    mean, (first, second) = OverlapMean(), drawn(2)
    aggregated(mean, [first])
    before = second.values.clone()
    mean.begin(2, STATE, [])
    mean.add(reply_of(0, second))
    second.values.zero_()
    assert torch.equal(CODEC.flatten(mean.finish()), before)


def test_stock_fedavg_is_the_mean():
    clients = drawn(4)
    ours, theirs = aggregated(WeightedMean(), clients), aggregated(flower("FedAvg"), clients)
    assert list(ours) == list(theirs)
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], rtol=1e-6, atol=1e-7)
        assert theirs[name].dtype == torch.float32


def test_stock_median_is_the_median_of_the_parameters_and_the_mean_of_the_buffers():
    clients = drawn(5)
    found = aggregated(flower("FedMedian"), clients)
    dense = [dense_record(client.values) for client in clients]
    for name in PARAMETERS:
        expected = np.median([record[name] for record in dense], axis=0)
        np.testing.assert_allclose(found[name].numpy(), expected, rtol=1e-6)
    mean = aggregated(WeightedMean(), clients)
    for name in set(found) - set(PARAMETERS):
        assert torch.equal(found[name], mean[name])


def test_krum_chooses_the_client_in_the_middle():
    clients = drawn(5)
    clients[3].values += 100
    found = aggregated(flower("Krum", num_malicious_nodes=1), clients)
    dense = [dense_record(client.values) for client in clients]
    flat = np.array([np.concatenate([record[n].ravel() for n in PARAMETERS]) for record in dense])
    distances = ((flat[:, None] - flat[None]) ** 2).sum(axis=2)
    scores = [np.sort(np.delete(row, i))[: 5 - 1 - 2].sum() for i, row in enumerate(distances)]
    chosen = dense[int(np.argmin(scores))]
    assert all(np.allclose(found[name].numpy(), chosen[name]) for name in PARAMETERS)


def test_server_momentum_goes_on_over_rounds():
    """FedAvgM (Hsu et al. 2019): v = beta v + (x - mean), x' = x - lr v."""
    aggregator = flower("FedAvgM", server_learning_rate=0.5, server_momentum=0.9)
    state, velocity = STATE, dict.fromkeys(PARAMETERS, 0.0)
    expected = {name: STATE[name].double() for name in PARAMETERS}
    for server_round in (1, 2, 3):
        clients = drawn(3, seed=server_round)
        mean = aggregated(WeightedMean(), clients)
        for name in PARAMETERS:
            velocity[name] = 0.9 * velocity[name] + (expected[name] - mean[name].double())
            expected[name] = expected[name] - 0.5 * velocity[name]
        state = aggregated(aggregator, clients, server_round, state)
    for name in PARAMETERS:
        torch.testing.assert_close(state[name], expected[name].float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["FedAvg", "FedAdam", "FedYogi", "FedAdagrad", "FedMedian", "FedTrimmedAvg"])
def test_a_weight_that_is_pruned_everywhere_stays_zero(name):
    found = aggregated(flower(name), drawn(4))
    assert not found["0.weight"][~MASKS["0.weight"]].any()
    assert found["0.weight"][MASKS["0.weight"]].all()


def test_what_it_asks_of_clients_is_passed_on():
    config = flower("FedProx", proximal_mu=0.25).begin(7, STATE, [2, 3])
    assert config == {"server-round": 7, "proximal-mu": 0.25}


def test_it_leaves_the_global_generators_alone_and_draws_by_the_seed():
    class Noisy(stock.FedAvg):
        def aggregate_train(self, server_round, replies):
            arrays, metrics = super().aggregate_train(server_round, replies)
            shift = np.float32(np.random.normal() + random.random())
            return ArrayRecord({k: Array(v.numpy() + shift) for k, v in arrays.items()}), metrics

    def noisy(seed, server_round):
        before = random.getstate(), np.random.get_state()[1].tolist()
        aggregator = FlowerAggregator(Noisy, {}, PARAMETERS, seed)
        found = aggregated(aggregator, drawn(3), server_round)
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before
        return found["2.bias"].tolist()

    assert noisy(1, 1) == noisy(1, 1)
    assert len({tuple(noisy(seed, number)) for seed in (1, 2) for number in (1, 2)}) == 4


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda arrays: (None, None), "gave no model in round 1"),
        (
            lambda arrays: (ArrayRecord({k: Array(v.numpy() * np.nan) for k, v in arrays.items()}), None),
            "made '0.weight' not finite in round 1",
        ),
    ],
    ids=["nothing", "NaN"],
)
def test_a_strategy_that_gives_no_usable_model_ends_the_run(change, expected):
    class Broken(stock.FedAvg):
        def aggregate_train(self, server_round, replies):
            arrays, _ = super().aggregate_train(server_round, replies)
            return change(arrays)

    with pytest.raises(RunError, match=expected):
        aggregated(FlowerAggregator(Broken, {}, PARAMETERS, 0), drawn(2))


@pytest.mark.parametrize("options", [{"etaa": 1.0}, {"eta": 1.0, "nodes": 3}])
def test_options_that_it_does_not_have_are_refused(options):
    with pytest.raises(PluginError, match="cannot build FedAdam"):
        flower("FedAdam", **options)


@pytest.mark.parametrize(
    ("aggregator", "expected"),
    [
        ("static", "static is a pruning strategy: name a rule, or a stock Flower one"),
        ({"eta": 1.0}, "it needs the name of an aggregation rule as 'name'"),
        ("flwr.serverapp.strategy.FedAdm", "no 'FedAdm'; did you mean 'FedAdam'"),
        ("fedadm", "no aggregator 'fedadm'; did you mean 'fedadam'"),
        ("sparse:Sparse", "there is no module 'sparse'"),
        ("fedprune.errors:UserError", "must be a subclass of .*Aggregator or .*Strategy"),
        ({"name": "weighted_mean", "eta": 1.0}, "cannot build WeightedMean: .*'eta'"),
    ],
)
def test_what_is_no_aggregator_is_refused(aggregator, expected):
    with pytest.raises(PluginError, match=expected):
        federate(plan(strategy={"name": "static", "density": 0.5, "aggregator": aggregator}))


def test_every_reply_reaches_a_stock_strategy_in_the_order_of_clients():
    seen = []

    class Watching(stock.FedAvg):
        def aggregate_train(self, server_round, replies):
            replies = list(replies)
            seen.extend((reply.content["metrics"]["num-examples"]) for reply in replies)
            assert all(list(reply.content["arrays"]) == PARAMETERS for reply in replies)
            return super().aggregate_train(server_round, replies)

    aggregated(FlowerAggregator(Watching, {}, PARAMETERS, 0), drawn(4))
    assert seen == [10, 20, 30, 40]


# Rules of one's own ------------------------------------------------------------------------------

RULES = """
import torch

from fedprune import Aggregator, WeightedMean
from flwr.serverapp.strategy import FedAvg


class Median(Aggregator):
    def begin(self, server_round, state, nodes):
        self.replies = []
        return {}

    def add(self, reply):
        self.replies.append(reply)

    def finish(self):
        values = torch.stack([reply.values for reply in self.replies])
        return self.replies[0].codec.unflatten(values.median(dim=0).values)


class By(WeightedMean):
    def __init__(self, metric="loss"):
        super().__init__()
        self.metric = metric

    def weight(self, reply):
        return reply.weight * reply.metrics.get(self.metric, 1.0)


class Flowers(FedAvg):
    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        for reply in replies:
            reply.content["metrics"]["num-examples"] *= reply.content["metrics"].get(self.by, 1.0)
        return super().aggregate_train(server_round, replies)

    by = "loss"


class Wrong(Flowers):
    by = "train-loss"
"""


@pytest.fixture
def rules(tmp_path):
    (tmp_path / "mine.py").write_text(RULES)
    return tmp_path


def test_a_rule_of_ones_own_aggregates(rules):
    """The median and a mean by loss, in a federation, against their definitions on the recorded replies."""
    for named in ("./mine.py:Median", {"name": "mine.py:By", "metric": "loss"}, "mine.py:Flowers"):
        made = federate(plan(rules, rounds=1, strategy={"name": "fedavg", "aggregator": named}))
        codec = made.strategy.codec
        replies = [reply.content for _, reply in made.trained()]
        trained = torch.stack([codec.decode(reply.array_records["arrays"]) for reply in replies]).double()
        if named == "./mine.py:Median":
            expected = trained.median(dim=0).values
        else:
            metrics = [reply.metric_records["metrics"] for reply in replies]
            weights = torch.tensor([m["num-examples"] * m["loss"] for m in metrics], dtype=torch.float64)
            expected = weights @ trained / weights.sum()
        wanted = codec.unflatten(expected.float())
        # What stands beside the parameters, Flower's strategies leave to the mean.
        names = dict(made.strategy.module.named_parameters()) if named == "mine.py:Flowers" else wanted
        for name in names:
            torch.testing.assert_close(made.strategy.state[name], wanted[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("named", [{"name": "mine.py:By", "metric": "train-loss"}, "mine.py:Wrong"])
def test_a_metric_that_no_reply_has_ends_the_run_with_those_there_are(rules, named):
    scenario = plan(rules, strategy={"name": "fedavg", "aggregator": named})
    check(scenario)
    with pytest.raises(
        RunError, match=r"no metric 'train-loss' .*: there are num-examples, loss, .*train-sec"
    ):
        federate(scenario)


OWN = {
    *SUBMODELS,
    "complement",
    "dispfl",
    "feddip",
    "feddst",
    "fedmask",
    "fedpm",
    "fedspa",
    "flash",
    "hidenseek",
    "lotteryfl",
}


@pytest.mark.parametrize("name", registry.names("strategy"))
def test_every_strategy_takes_a_rule_or_refuses_it_in_a_sentence(rules, name):
    strategy = {"name": name, "aggregator": "./mine.py:Median", **density_of(name)}
    scenario = plan(rules, strategy=strategy, data__client_test_fraction=0.2, rounds=20)
    if name not in OWN:
        check(scenario)
        return
    sentence = r"^strategy\.aggregator: \w+ has an aggregation of its own, which no other can replace$"
    with pytest.raises(ScenarioError, match=sentence):
        check(scenario)


def test_rules_for_nested_masks(rules):
    """A rule that knows what each client kept can average nested masks; no other can."""
    nested = plan(rules, clients__over_budget="nest", strategy={"name": "static", "density": 0.5})
    check(nested.override(strategy__aggregator="overlap_mean"))
    with pytest.raises(ScenarioError, match="cannot average nested masks"):
        check(nested.override(strategy__aggregator="./mine.py:Median"))
