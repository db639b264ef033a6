"""FedMef: what clients are asked for, extrusion and centring as they act, and runs in the ledger."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from inprocess import assemble, federate, plan, same_state
from masked import (
    Watched,
    assert_ledger,
    assert_order_does_not_matter,
    assert_sound,
    losing,
    trained,
)

from fedprune.costs.memory import step_memory
from fedprune.errors import RunError, UserError
from fedprune.server.check import check

OPTIONS = {
    "name": "fedmef",
    "density": 0.2,
    "adjust_every": 2,
    "stop_adjusting_at": 6,
    "swap_fraction": 0.5,
    "extrusion_strength": 1.0,
    "extrusion_rounds": 2,
    "granularity": "model",
    "activation_density": 0.5,
}
BARE = {"name": "cnn", "width": 0.25, "hidden": 64, "batch_norm": False}
LAYERS = ["block2.conv.weight", "hidden.linear.weight"]
CONVOLUTIONS = ["block1.conv.weight", "block2.conv.weight"]
ROUNDS = 4


def scenario(rounds=ROUNDS, model=None, plan_changes=(), **options):
    changes = {"model": model} if model else {}
    return plan(strategy={**OPTIONS, **options}, rounds=rounds, **changes, **dict(plan_changes))


@pytest.fixture(scope="module", params=["batch norm", "bare"])
def watched(request):
    return Watched(scenario(model=BARE if request.param == "bare" else None))


def assert_pruned(state, masks):
    for name, mask in masks.items():
        assert not state[name][~mask].any(), name
        assert state[name][mask].any(), name


def test_pruned_weights_are_zero_and_the_density_stays(watched):
    made = watched.made
    assert_ledger(made)
    replies = trained(made)
    assert len(replies) == ROUNDS * 3
    for entry in replies:
        assert_pruned(entry.state, entry.masks)
    for state, masks, record in zip(made.states, watched.masks, made.rounds, strict=True):
        assert_pruned(state, masks)
        assert masks.kept == watched.masks[0].kept
        assert record.density == masks.density
        assert sum(masks.kept.values()) <= round(0.2 * masks.total)
    moved = [one != two for one, two in zip(watched.masks, watched.masks[1:], strict=False)]
    assert moved == [False, True, False, True]


def test_every_filter_is_centred(watched):
    """In each reply and in each evaluated model, over the kept weights of a filter alone."""
    sent = [(entry.state, entry.masks) for entry in trained(watched.made)]
    for state, masks in [*sent, *zip(watched.made.states, watched.masks, strict=True)]:
        for name in CONVOLUTIONS:
            weight = state[name].double().numpy().reshape(len(state[name]), -1)
            kept = masks[name].numpy().reshape(weight.shape) if name in masks else np.ones(weight.shape, bool)
            for row, keeps in zip(weight, kept, strict=True):
                if keeps.sum() > 1:
                    assert abs(row[keeps].mean()) < 1e-6


def test_without_standardisation_filters_have_means():
    made = federate(scenario(rounds=1, standardise=False))
    assert made.strategy.state[CONVOLUTIONS[0]].mean(dim=(1, 2, 3)).abs().max() > 1e-3


def test_neither_order_nor_node_ids_matter(watched):
    assert_order_does_not_matter(watched.made.scenario, watched.made)


@pytest.mark.slow
def test_without_batch_norm_it_learns_and_standardised_filters_help():
    changes = {"data__train_examples": 800, "clients__per_round": 4}

    def accuracy(standardise):
        made = federate(scenario(10, BARE, changes, standardise=standardise))
        return made.rounds[-1].scores["accuracy"]

    assert accuracy(True) > max(0.45, accuracy(False))


# What clients are asked for ----------------------------------------------------------------------


def configs(made):
    return {
        int(message.metadata.group_id): message.content["config"]
        for message, _ in made.grid.exchanges
        if message.metadata.message_type == "train"
    }


def test_extrusion_is_asked_for_before_each_adjustment():
    """Two rounds of extrusion end with an adjustment every three rounds; 7 is beyond the last one."""
    made = federate(scenario(rounds=7, adjust_every=3, stop_adjusting_at=7))
    asked = configs(made)
    windows = {n: (c["extrude-start"], c["extrude-end"]) for n, c in asked.items() if "extrude-layers" in c}
    assert windows == {2: (0.0, 0.5), 3: (0.5, 1.0), 5: (0.0, 0.5), 6: (0.5, 1.0)}
    for adjustment in (3, 6):
        assert asked[adjustment]["growth-counts"] == asked[adjustment]["extrude-counts"]
        assert asked[adjustment - 1]["extrude-counts"] == asked[adjustment]["extrude-counts"]
        assert "growth-counts" not in asked[adjustment - 1]
    kept = made.strategy.masks.kept
    share = 0.5 * (1 + math.cos(math.pi * 3 / 7))
    assert asked[3]["extrude-counts"] == [int(share * kept[name]) for name in LAYERS]


@pytest.mark.parametrize("off", [{"extrusion_rounds": 0}, {"extrusion_strength": 0.0}])
def test_extrusion_can_be_left_out(off):
    made = federate(scenario(**off))
    assert not any("extrude-layers" in config for config in configs(made).values())
    assert made.strategy.masks.density == made.rounds[0].density


def test_all_three_parts_off_it_is_plain_training_between_adjustments():
    """Then a round without an adjustment is one of static pruning at random."""
    off = {"extrusion_rounds": 0, "activation_density": 1.0, "standardise": False}
    made = federate(scenario(rounds=1, **off))
    static = {"name": "static", "density": 0.2, "criterion": "random", "distribution": "erk"}
    assert same_state(made.strategy.state, federate(plan(strategy=static, rounds=1)).strategy.state)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"extrusion_rounds": 3}, "do not fit between adjustments every 2 rounds"),
        ({"activation_density": 0}, "activation_density"),
        ({"activation_density": 1.5}, "activation_density"),
        ({"extrusion_strength": -1}, "extrusion_strength"),
        ({"extrusion_schedule": "rex"}, "extrusion_schedule"),
        ({"criterion": "magnitud"}, "magnitude"),
        ({"distribution": "ekr"}, "erk"),
    ],
    ids=str,
)
def test_options_that_cannot_work_are_refused(options, match):
    with pytest.raises(UserError, match=match):
        check(scenario(**options))


def test_pretraining_and_criteria_need_public_data():
    for options in ({"pretrain_epochs": 1}, {"criterion": "snip"}):
        with pytest.raises(UserError, match=r"public data|data on the server"):
            check(scenario(plan_changes={"data__server_fraction": 0.0}, **options))
    federate(scenario(rounds=1, pretrain_epochs=1))


# Extrusion ---------------------------------------------------------------------------------------


PLAIN = {"extrusion_schedule": "constant", "standardise": False, "adjust_every": 1, "extrusion_rounds": 1}
STEPS = {"clients__training__optimizer": {"name": "sgd", "lr": 0.05}}


def marked_of(state, mask, count):
    """The so many smallest kept weights, flat."""
    sizes = torch.where(mask, state.abs(), torch.inf).reshape(-1)
    marked = torch.zeros(sizes.shape, dtype=torch.bool)
    marked[sizes.argsort(stable=True)[:count]] = True
    return marked


def with_and_without(strength, **changes):
    """Replies of clients in round 1 with extrusion and without, and what is marked of each layer."""
    changes = {**STEPS, **changes}
    runs = [
        Watched(scenario(1, plan_changes=changes, extrusion_strength=given, **PLAIN))
        for given in (strength, 0.0)
    ]
    start, masks = runs[0].made.states[0], runs[0].masks[0]
    counts = dict(zip(sorted(LAYERS), configs(runs[0].made)[1]["extrude-counts"], strict=True))
    marked = {name: marked_of(start[name], masks[name], counts[name]) for name in LAYERS}
    return start, marked, list(zip(*(trained(run.made) for run in runs), strict=True))


def test_one_step_of_extrusion_moves_the_marked_weights_towards_zero_and_no_others():
    """By learning rate times 2 * strength * weight, whatever else the step does."""
    one_batch = {"data__partition": {"scheme": "iid"}, "clients__training__batch_size": 40}
    start, marked, pairs = with_and_without(2.0, **one_batch)
    for extruded, plain in pairs:
        for name, before in start.items():
            moved = (extruded.state[name] - plain.state[name]).reshape(-1)
            chosen = marked.get(name, torch.zeros(before.numel(), dtype=torch.bool))
            torch.testing.assert_close(moved[chosen], -0.05 * 4.0 * before.reshape(-1)[chosen])
            assert not moved[~chosen].any()


def test_a_round_of_extrusion_leaves_little_of_the_marked_weights_alone():
    _, marked, pairs = with_and_without(5.0, clients__training__epochs=4)
    for extruded, plain in pairs:
        for name, chosen in marked.items():
            one, two = extruded.state[name].reshape(-1), plain.state[name].reshape(-1)
            assert one[chosen].norm() < 0.2 * two[chosen].norm()
            assert one[~chosen].norm() > 0.8 * two[~chosen].norm()


def test_what_is_extruded_is_dropped():
    run = Watched(scenario(1, plan_changes={**STEPS, "clients__training__epochs": 4}, **PLAIN))
    counts = dict(zip(sorted(LAYERS), configs(run.made)[1]["extrude-counts"], strict=True))
    for name, count in counts.items():
        marked = marked_of(run.made.states[0][name], run.masks[0][name], count)
        dropped = (run.masks[0][name] & ~run.masks[1][name]).reshape(-1)
        assert int((dropped & marked).sum()) > 0.8 * count


# Costs and failures ------------------------------------------------------------------------------


def test_memory_in_the_ledger_counts_pruned_activations(watched):
    made = watched.made
    cost, training = made.strategy.cost, made.scenario.clients.training
    for task in (task for task in made.tasks if task.type == "train"):
        masks = watched.masks[task.round - 1]
        examples = len(made.data.client_train.of(task.client))
        config = configs(made)[task.round]
        grown = sum(config.get("growth-counts", []))
        marked = sum(config.get("extrude-counts", []))
        expected = step_memory(
            cost,
            masks,
            min(training.batch_size, examples),
            slots=1,
            buffers=8 * grown + 4 * marked,
            activation_density=0.5,
        )
        assert task.peak_memory_bytes == expected.total


def test_an_adjustment_costs_eight_bytes_an_entry_and_a_message_little_more_than_its_values():
    made = federate(scenario())
    values = 4 * made.strategy.codec.size
    for (message, reply), task in zip(
        made.trained(), [task for task in made.tasks if task.type == "train"], strict=True
    ):
        entries = sum(message.content["config"].get("growth-counts", []))
        assert values < task.bytes_down - task.mask_bytes_down < values + 2048
        assert values + 8 * entries < task.bytes_up < values + 8 * entries + 2048
        assert ("growth" in reply.content) == (entries > 0)


@pytest.mark.parametrize("lost", [{}, {"train"}], ids=["all", "without client 1"])
def test_replies_are_averaged_and_a_client_that_fails_is_left_out(lost):
    """Standardisation aside, the next model is the average of what arrived, under the new masks."""
    tamper = losing(1, lost, range(1, ROUNDS + 1))
    run = Watched(scenario(standardise=False, plan_changes={"clients__per_round": 4}), tamper=tamper)
    replies = assert_sound(run, ROUNDS)
    assert {entry.client for entry in replies} == ({0, 2, 3} if lost else {0, 1, 2, 3})
    assert [record.clients_failed for record in run.made.rounds[1:]] == [len(lost)] * ROUNDS


def test_messages_that_make_no_sense_are_refused():
    for key, value in (
        ("activation-density", 0.0),
        ("extrude-layers", [7, 8]),
        ("extrude-counts", [1]),
        ("extrude-strength", -1.0),
        ("extrude-end", 1.5),
    ):
        made = assemble(scenario(rounds=1))
        made.grid._before = lambda message, _, key=key, value=value: spoil(message, key, value)
        with pytest.raises(RunError, match="none of 3 clients gave a usable reply"):
            made.strategy.start(made.grid)


def spoil(message, key, value):
    if message.metadata.message_type == "train":
        message.content["config"][key] = value
