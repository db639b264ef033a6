"""Memory budgets: who trains, under which masks and in which batches, on the server and on the client."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from inprocess import SUBMODELS, assemble, density_of, federate, plan, same_state

from fedprune import registry
from fedprune.clients.sparse import Sparse
from fedprune.costs.fit import TrainingStep, micro_batch, nested_counts
from fedprune.costs.flops import ModelCost
from fedprune.data import parts
from fedprune.errors import RunError, ScenarioError, UserError
from fedprune.models import build
from fedprune.protocol.faults import Fault
from fedprune.protocol.training_step import training_step
from fedprune.server.budgets import Verdict, nested
from fedprune.server.check import check
from fedprune.server.strategy import PruningStrategy
from fedprune.sparsity.masks import Masks
from fedprune.sparsity.pruning import prunable

MLP = {"name": "mlp"}
STATIC = {"name": "static", "density": 0.5}
SPARSE = [
    name
    for name in registry.names("strategy")
    if issubclass(registry.load("strategy", name), PruningStrategy)
    and issubclass(registry.load("client", registry.load("strategy", name).client), Sparse)
]


def devices(small, *, count=2, of=4):
    """Return devices of which the first ``count`` clients have a small memory, in bytes."""
    speed = {"compute": 1e9, "downlink": 1e6, "uplink": 1e6}
    return [
        {"name": "small", "memory": int(small), "count": count, **speed},
        {"name": "large", "memory": 2**40, "count": of - count, **speed},
    ]


def needs(scenario, density=None):
    """Return the memory of a dense training step, and of one in which each layer keeps one weight."""
    made = assemble(scenario)
    step = training_step(Sparse, scenario, made.strategy.cost, {}, Masks())
    names = prunable(made.strategy.module, ("first", "last"))
    batch = scenario.clients.training.batch_size
    fewest = step.memory_of(dict.fromkeys(names, 1), batch).total
    return step.memory_of({}, batch).total, fewest


def between(scenario, share=0.5):
    """Return a memory that fits this share of what the weights of dense training take."""
    dense, fewest = needs(scenario)
    return fewest + share * (dense - fewest)


def within_budget(made):
    """Assert that no task was above its device's memory."""
    for task in made.tasks:
        assert task.peak_memory_bytes <= made.strategy.clients[task.client].profile.memory


def small_plan(policy, memory=None, **changes):
    """Return a federation with two clients whose memory is small."""
    base = {"model": MLP, "strategy": STATIC, "clients.per_round": 4, **changes}
    memory = between(plan(**base), 0.1) if memory is None else memory
    return plan(**base, **{"clients.over_budget": policy, "clients.devices": devices(memory)})


# The arithmetic --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def step():
    module = build("mlp", (1, 8, 8), 10, seed=0)
    return TrainingStep(ModelCost.of(module, (1, 8, 8)), slots=1)


@given(share=st.floats(0.0, 1.2), density=st.floats(0.05, 1.0))
def test_nested_counts_are_as_large_as_fits(step, share, density):
    shapes = {p.name: p.elements for p in step.cost.parameters if p.name.endswith("weight")}
    kept = {name: max(1, int(density * elements)) for name, elements in shapes.items()}
    fewest, all_of_them = (step.memory_of(counts, 8).total for counts in (dict.fromkeys(kept, 1), kept))
    memory = int(fewest + share * (all_of_them - fewest))
    counts = nested_counts(step, kept, 8, memory)
    assert counts is not None
    assert step.memory_of(counts, 8).total <= memory
    total = sum(kept.values())
    if counts == kept:
        return
    # The next larger nested mask, of all shares k / total, does not fit.
    for k in range(1, total + 1):
        larger = {name: max(1, count * k // total) for name, count in kept.items()}
        if sum(larger.values()) > sum(counts.values()):
            assert step.memory_of(larger, 8).total > memory
            break


def test_nothing_is_nested_where_one_weight_a_layer_is_too_much(step):
    kept = {p.name: p.elements for p in step.cost.parameters if p.name.endswith("weight")}
    fewest = step.memory_of(dict.fromkeys(kept, 1), 8).total
    assert nested_counts(step, kept, 8, fewest - 1) is None
    assert nested_counts(step, kept, 8, fewest) is not None


@given(batch=st.integers(2, 200), size=st.integers(1, 200))
def test_parts_cover_a_batch_and_are_no_larger_than_asked(batch, size):
    x = torch.arange(batch)
    cut = parts(x, x, size)
    assert torch.equal(torch.cat([part for part, _ in cut]), x)
    assert max(len(part) for part, _ in cut) <= size
    if size >= 3:
        assert min(len(part) for part, _ in cut) >= 2


def test_the_micro_batch_is_the_largest_that_fits(step):
    kept, memory = {}, step.memory_of({}, 20).total
    assert micro_batch(step, kept, 64, memory) == 20
    assert micro_batch(step, kept, 16, memory) == 16
    assert micro_batch(step, kept, 64, step.memory_of({}, 1).total - 1) is None


def test_nested_masks_keep_the_largest_of_what_is_kept():
    weight = torch.tensor([[3.0, -4.0], [0.0, 9.0]])
    masks = Masks({"w": torch.tensor([[True, True], [True, False]])})
    assert nested(masks, {"w": 1}, {"w": weight})["w"].tolist() == [[False, True], [False, False]]
    assert nested(masks, {"w": 3}, {"w": weight}) == masks


# Policies --------------------------------------------------------------------------------


def test_error_refuses_the_run_with_the_clients_and_what_would_fit():
    with pytest.raises(
        UserError, match=r"2 of 4 clients .*: 0 \(small\), 1 \(small\)\..* density .* is 0\."
    ) as found:
        federate(small_plan("error"))
    fits = float(str(found.value).split("fits them all is ")[1].split(" ")[0])
    # With the density that the message names the run goes through.
    scenario = small_plan("error").override(strategy__density=fits * 0.98)
    within_budget(federate(scenario))
    with pytest.raises(UserError, match="too little memory"):
        federate(scenario.override(strategy__density=fits * 1.05))


def test_a_run_that_cannot_fit_is_refused_before_it_computes(monkeypatch):
    scenario = small_plan("error", memory=1024, **{"strategy": {**STATIC, "pretrain_epochs": 3}})
    made = assemble(scenario)
    monkeypatch.setattr(made.strategy, "pretrain", lambda epochs: pytest.fail("it has begun to train"))
    with pytest.raises(UserError, match="no density fits"):
        made.strategy.start(made.grid)


def test_excluded_clients_are_counted_and_never_asked():
    made = federate(small_plan("exclude"))
    trained = {task.client for task in made.tasks if task.type == "train"}
    assert trained == {2, 3}
    for record in made.rounds[1:]:
        assert record.clients_excluded == 2
        assert record.classes["small"].excluded == 2
        assert record.classes["small"].asked == 0
        assert record.classes["large"].ok == 2
    within_budget(made)


def test_a_run_in_which_nobody_fits_is_refused():
    scenario = small_plan("exclude").override(**{"clients.devices": devices(1024, count=3, of=4)})
    assert federate(scenario).rounds[-1].clients_excluded == 3
    with pytest.raises(UserError, match="4 of 4 clients"):
        federate(scenario.override(**{"clients.devices": devices(1024, count=4, of=5)[:1]}))


def test_shrunk_batches_change_a_step_by_rounding_alone():
    """Under a model without batch norm; with it a part sees its own statistics."""
    class_of = {"model": MLP, "strategy": {"name": "fedavg"}, "rounds": 1, "clients.per_round": 4}
    whole = plan(**class_of)
    made = assemble(whole)
    step = training_step(Sparse, whole, made.strategy.cost, {}, Masks())
    memory = step.memory_of({}, 5).total
    shrunk = whole.override(**{"clients.over_budget": "shrink_batch", "clients.devices": devices(memory)})
    small, large = federate(shrunk), federate(whole)
    assert max(task.peak_memory_bytes for task in small.tasks if task.client < 2) == memory
    within_budget(small)
    assert not same_state(small.strategy.state, large.strategy.state)
    for name, tensor in large.strategy.state.items():
        torch.testing.assert_close(small.strategy.state[name], tensor, rtol=1e-4, atol=1e-5)


def test_nested_masks_are_parts_of_the_global_one_and_as_large_as_fits():
    made = assemble(small_plan("nest"))
    sent = []
    made.grid._before = lambda message, context: sent.append(
        (message, dict(made.strategy.nested), made.strategy.masks)
    )
    made.strategy.start(made.grid)
    seen = [entry for entry in sent if entry[0].metadata.message_type == "train"]
    assert seen
    for _, of_round, masks in seen:
        assert set(of_round) == {0, 1}
        own = of_round[0]
        assert all(not (own[name] & ~mask).any() for name, mask in masks.items())
        facts = made.strategy.clients[0]
        step = training_step(Sparse, made.scenario, made.strategy.cost, {}, masks)
        batch = min(made.scenario.clients.training.batch_size, facts.examples)
        assert own.kept == nested_counts(step, masks.kept, batch, facts.profile.memory)
        shares = [own.kept[name] / masks.kept[name] for name in masks]
        assert max(shares) - min(shares) < 0.02
    within_budget(made)
    assert {task.client for task in made.tasks if task.type == "train"} == {0, 1, 2, 3}


def test_nested_masks_are_sent_once_while_the_global_ones_stay():
    made = federate(small_plan("nest", **{"rounds": 3, "evaluation.every": 3}))
    masks = [task.mask_bytes_down for task in made.tasks if task.type == "train" and task.client == 0]
    assert masks[0] > 0
    assert masks[1:] == [0, 0]


@pytest.mark.parametrize("name", ["static", "fedtiny"])
def test_nesting_with_budgets_that_suffice_is_no_nesting_bit_for_bit(name):
    scenario = plan(model=MLP, strategy={"name": name, "density": 0.3})
    one, other = federate(scenario), federate(scenario.override(**{"clients.over_budget": "nest"}))
    assert same_state(one.strategy.state, other.strategy.state)
    assert [r.bytes_up for r in one.rounds] == [r.bytes_up for r in other.rounds]


def test_each_weight_is_averaged_over_those_that_held_it():
    made = assemble(small_plan("nest", rounds=1))
    strategy, accepted = made.strategy, []
    add = strategy.aggregator.add
    strategy.aggregator.add = lambda reply: (accepted.append(reply), add(reply))
    strategy.start(made.grid)
    name = next(iter(strategy.masks))
    replies = []
    for reply in accepted:
        replies.append((reply.weight, reply.codec.masks[name], reply.codec.unflatten(reply.values)[name]))
    total = sum(torch.where(mask, weight * value.double(), 0.0) for weight, mask, value in replies)
    held = sum(torch.where(mask, weight, 0).double() for weight, mask, _ in replies)
    before = strategy.model.initial[name].double() * strategy.masks[name]
    expected = torch.where(held > 0, total / held, before).float()
    assert torch.equal(strategy.state[name], expected)
    assert {int(mask.sum()) for _, mask, _ in replies} != {int(strategy.masks[name].sum())}


@pytest.mark.parametrize("policy", ["exclude", "shrink_batch", "nest"])
@pytest.mark.parametrize("name", SPARSE)
def test_no_task_is_above_its_budget(name, policy):
    base = {
        "model": MLP,
        "strategy": {"name": name, **density_of(name, 0.3)},
        "clients.per_round": 4,
        "data.client_test_fraction": 0.2,
        "evaluation.clients": "all",
    }
    if policy == "nest" and name in SUBMODELS:
        with pytest.raises(ScenarioError, match="have submodels by their memory"):
            check(plan(**base, **{"clients.over_budget": policy}))
        return
    dense, fewest = needs(plan(**base))
    memory = fewest + 0.3 * (dense - fewest)
    scenario = plan(
        **base, **{"clients.over_budget": policy, "clients.devices": devices(memory), "rounds": 2}
    )
    if policy == "nest" and name in ("complement", "feddip"):
        with pytest.raises(ScenarioError, match="all weights of a model, not a nested part"):
            check(scenario)
        return
    made = federate(scenario)
    within_budget(made)
    refused = [task for task in made.tasks if task.fault == Fault.OVER_BUDGET]
    assert all(task.type != "train" for task in refused)
    assert sum(record.faults.get(Fault.OVER_BUDGET, 0) for record in made.rounds) == len(refused)


def test_who_is_away_does_not_make_a_run_hopeless():
    """Two have too little memory, and the others are not there in every round."""
    small, large = devices(1024)
    scenario = small_plan("exclude", memory=1024, rounds=8).override(
        **{"clients.devices": [small, {**large, "availability": 0.5}]}
    )
    made = federate(scenario)
    assert 0 in {record.clients_ok - record.clients_failed for record in made.rounds[1:]}
    assert {record.clients_excluded for record in made.rounds[1:]} == {2}


def test_a_device_that_is_away_at_first_is_refused_at_once():
    small, large = devices(1024)
    rare = [{**small, "availability": 0.01}, large]
    with pytest.raises(UserError, match="2 of 4 clients"):
        federate(small_plan("error", memory=1024, rounds=1).override(**{"clients.devices": rare}))


def test_the_memory_of_a_stock_proximal_term_counts_on_the_server_too():
    base = {"model": MLP, "strategy": {"name": "flwr.serverapp.strategy.FedProx", "proximal_mu": 0.1}}
    dense, _ = needs(plan(model=MLP))
    scenario = plan(
        **base,
        **{
            "clients.per_round": 4,
            "clients.over_budget": "exclude",
            "clients.devices": devices(dense + 1000),
        },
    )
    made = federate(scenario)
    assert not made.rounds[1].faults
    assert made.rounds[1].clients_excluded == 2


def test_nesting_of_what_prunes_nothing_takes_parts_of_the_whole_model():
    scenario = small_plan("nest", strategy={"name": "fedavg"})
    made = federate(scenario)
    assert made.rounds[-1].clients_excluded == 0
    within_budget(made)
    assert {task.client for task in made.tasks if task.type == "train" and task.status == "ok"} == {
        0,
        1,
        2,
        3,
    }


def test_nested_parts_are_not_what_a_client_has_pruned():
    """No client of LotteryFL may prune here: its own masks stay whole, whatever fits its device."""
    strategy = {"name": "lotteryfl", "density": 0.5, "accuracy_threshold": 1.0}
    made = federate(small_plan("nest", strategy=strategy, **{"data.client_test_fraction": 0.2, "rounds": 3}))
    assert made.strategy.masks.density == 1
    within_budget(made)


def test_a_strategy_may_not_sample_who_is_not_there():
    scenario = small_plan("exclude")
    made = assemble(scenario)
    made.strategy.sample = lambda server_round: [0, 3]
    with pytest.raises(RunError, match=r"sample\(1\) gave \[0, 3\]: expected clients of self.eligible"):
        made.strategy.start(made.grid)


# The client's own check ------------------------------------------------------------------


def test_a_client_refuses_what_its_device_has_no_memory_for():
    """The server knows the devices wrongly here, so it sends a task that does not fit."""
    made = assemble(small_plan("exclude"))
    made.strategy.budgets.judge = lambda *arguments: Verdict()
    made.strategy.start(made.grid)
    refused = [task for task in made.tasks if task.status == "failed"]
    assert {task.client for task in refused} == {0, 1}
    assert {task.fault for task in refused} == {Fault.OVER_BUDGET}
    assert all("small has" in task.reason for task in refused)
    assert made.rounds[1].faults == {"over-budget": 2}
    within_budget(made)


@pytest.mark.parametrize(
    ("strategy", "option"),
    [
        ({"name": "static", "density": 0.5, "aggregator": "flwr.serverapp.strategy.FedAdam"}, "aggregator"),
        ({"name": "hidenseek", "density": 0.5}, "name"),
        ({"name": "flwr.serverapp.strategy.FedAvg"}, "over_budget"),
    ],
)
def test_nest_is_refused_where_nested_masks_cannot_be_averaged(strategy, option):
    with pytest.raises(ScenarioError, match=rf"\.{option}.*nested.*exclude or shrink_batch"):
        check(plan(strategy=strategy, **{"clients.over_budget": "nest"}))
