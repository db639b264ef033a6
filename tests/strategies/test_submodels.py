"""HeteroFL and FedRolex: who trains which channels, and how what overlaps is averaged."""

from __future__ import annotations

import pytest
import torch
from inprocess import assemble, federate, plan

from fedprune.costs.fit import TrainingStep
from fedprune.errors import ScenarioError
from fedprune.models import build
from fedprune.protocol import batch_norm
from fedprune.server.check import check
from fedprune.sparsity.masks import Masks
from fedprune.sparsity.structure import shrink
from fedprune.wire import Layout, get_state

SPEED = {"compute": 1e9, "downlink": 1e6, "uplink": 1e6}
SHARES = [1.0, 0.5, 0.25]


def devices(*memories, **speed):
    return [
        {"name": f"device-{number}", "memory": int(memory), "count": 1, **SPEED, **speed}
        for number, memory in enumerate(memories)
    ]


def hetero(name="heterofl", options=None, **changes):
    return plan(strategy={"name": name, "shares": SHARES, **(options or {})}, clients__per_round=4, **changes)


def needs(share):
    """Return the memory of a training step of the model of that width, as it is built."""
    scenario = plan(model={"name": "cnn", "width": 0.25 * share, "hidden": 64})
    strategy = assemble(scenario).strategy
    return TrainingStep(strategy.cost, slots=1).memory_of({}, 16).total


def test_a_client_has_the_largest_submodel_that_fits_its_memory():
    made = federate(hetero(clients__devices=devices(2**30, needs(0.5), needs(0.5) - 1, needs(0.25))))
    assert [made.strategy.share(number) for number in range(4)] == [1.0, 0.5, 0.25, 0.25]
    assert made.strategy.shares_now() == {1.0: 1, 0.5: 1, 0.25: 2}
    peaks = {task.client: task.peak_memory_bytes for task in made.tasks if task.type == "train"}
    assert peaks == {0: needs(1.0), 1: needs(0.5), 2: needs(0.25), 3: needs(0.25)}
    assert not [task for task in made.tasks if task.status != "ok"]


def test_a_deadline_counts_too():
    large = devices(2**30, 2**30, 2**30, 2**30)
    free = federate(hetero(rounds=1, clients__devices=large))
    seconds = [task.device_seconds for task in free.tasks if task.type == "train"]
    half = federate(hetero(options={"shares": [0.5]}, rounds=1, clients__devices=large))
    slowest = max(task.device_seconds for task in half.tasks if task.type == "train")
    assert slowest < min(seconds)
    bound = hetero(rounds=1, clients__devices=large, clients__deadline=slowest * 1.001)
    made = federate(bound)
    assert {made.strategy.share(number) for number in range(4)} == {0.5}
    assert made.rounds[-1].clients_ok == 4


def test_a_device_can_be_given_its_share():
    options = {"share_of": {"device-1": 0.25}}
    made = assemble(hetero(options=options, clients__devices=devices(*[2**30] * 4)))
    made.strategy.roll_call.hold(made.grid, 0)
    assert [made.strategy.share(number) for number in range(4)] == [1.0, 0.25, 1.0, 1.0]


def test_submodels_are_those_of_the_narrower_model():
    """Nested, of the first channels, and the model that is built with that width."""
    strategy = assemble(hetero()).strategy
    half, quarter = strategy.part(0.5, 1), strategy.part(0.25, 1)
    assert strategy.part(1.0, 1) == Masks()
    assert all((quarter[name] <= half[name]).all() for name in half)
    small = shrink(strategy.module, half)
    built = build("cnn", (1, 8, 8), 10, seed=0, options={"width": 0.125, "hidden": 64})
    assert Layout.of(small).shapes == Layout.of(built).shapes
    for name, value in get_state(small).items():
        whole = strategy.state[name]
        assert torch.equal(value, whole[tuple(slice(size) for size in value.shape)]), name


@pytest.mark.parametrize("name", ["heterofl", "fedrolex"])
def test_each_weight_is_averaged_over_those_who_have_it(name):
    memories = devices(needs(0.5), needs(0.25), needs(0.25), needs(0.25))
    made = federate(hetero(name, rounds=1, clients__devices=memories))
    strategy = made.strategy
    strategy.completed_round = 0  # As it was when replies came.
    weights = {task.client: task.examples for task in made.tasks if task.type == "train"}
    replies = [(message, reply) for message, reply in made.trained()]
    totals = {key: torch.zeros(value.shape).double() for key, value in strategy.state.items()}
    held = {key: torch.zeros(value.shape).double() for key, value in strategy.state.items()}
    for message, reply in replies:
        number = message.metadata.dst_node_id - 2
        masks = strategy.masks_for(number)
        codec = strategy.model.codec_of(masks)
        state = codec.unflatten(codec.decode(reply.content["arrays"]))
        for key, value in state.items():
            mask = masks[key] if key in masks else torch.ones(value.shape, dtype=torch.bool)
            totals[key] += weights[number] * value * mask
            held[key] += weights[number] * mask
    for key, value in strategy.state.items():
        expected = torch.where(held[key] > 0, totals[key] / held[key], made.states[0][key].double())
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-7)
    assert any((mass == 0).any() for mass in held.values())  # What nobody had stays.


def test_a_window_rolls_over_all_channels():
    strategy = assemble(hetero("fedrolex")).strategy
    group = next(group for group in strategy.groups if group.name == "block2.conv.weight")
    assert group.units == 16
    times = torch.zeros(16)
    for server_round in range(1, 17):
        kept = strategy.channels(group, 0.25, server_round)
        assert kept.nonzero().reshape(-1).tolist() == sorted((server_round - 1 + n) % 16 for n in range(4))
        times += kept
    assert times.tolist() == [4.0] * 16


def test_statistics_of_batch_norm_are_measured_by_those_who_hold_the_whole_model():
    options = {"static_batch_norm": True}
    memories = devices(2**30, 2**30, needs(0.5), needs(0.25))
    made = federate(hetero(options=options, rounds=1, clients__devices=memories))
    asked = [task for task in made.tasks if task.type == "query.bn_statistics"]
    assert [(task.round, task.client, task.status) for task in asked] == [(1, 0, "ok"), (1, 1, "ok")]
    plain = federate(hetero(rounds=1, clients__devices=memories))
    changed = {
        key for key, value in made.strategy.state.items() if not torch.equal(value, plain.strategy.state[key])
    }
    norms = batch_norm.layers(made.strategy.module)
    assert {key.rpartition(".")[2] for key in changed} == {"running_mean", "running_var"}
    assert len(changed) == 2 * len(norms)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"density": 0.5}, "submodels are chosen by shares"),
        ({"shares": [0.5, 0.5]}, "each once"),
        ({"shares": [1.5]}, "at most 1"),
        ({"share_of": {"phone": 0.3}}, r"phone has 0\.3, which is none of shares"),
        ({"unit": "weight"}, "unit"),
    ],
)
def test_mistakes_are_named(options, what):
    with pytest.raises(ScenarioError, match=what):
        check(hetero(options=options))
