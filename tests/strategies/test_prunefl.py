"""PruneFL: importance against autograd, the ratio against brute force, and what an adjustment may do."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from inprocess import assemble, federate, plan, same_state
from masked import Watched, assert_order_does_not_matter, assert_sound, average, losing, trained
from torch.nn import functional

from fedprune import seeds
from fedprune.client.site import Site
from fedprune.costs.clock import task_seconds
from fedprune.data import batches
from fedprune.errors import RunError
from fedprune.sparsity.masks import Masks
from fedprune.sparsity.ratio import best_ratio
from fedprune.strategies.prunefl import PruneFL
from fedprune.wire import set_state

OPTIONS = {
    "name": "prunefl",
    "density": 0.2,
    "distribution": "uniform",
    "adjust_every": 2,
    "importance_batches": 2,
}
ROUNDS = 4
DEVICES = [
    {"profile": "raspberry-pi-4", "share": 0.5},
    {
        "memory": "64 MiB",
        "compute": "2 GFLOP/s",
        "downlink": "20 Mbit/s",
        "uplink": "5 Mbit/s",
        "share": 0.5,
    },
]


def scenario(options=None, **changes):
    changes = {"rounds": ROUNDS, "clients__devices": DEVICES, **changes}
    return plan(strategy={**OPTIONS, **(options or {})}, **changes)


@pytest.fixture(scope="module")
def watched():
    return Watched(scenario())


def test_a_run_is_sound(watched):
    assert_sound(watched, ROUNDS)
    assert_order_does_not_matter(watched.made.scenario, watched.made)


def test_the_mask_moves_in_adjustments_alone_and_never_above_the_density(watched):
    masks = watched.masks
    assert [a == b for a, b in itertools.pairwise(masks)] == [True, False, True, False]
    for kept in masks:
        assert sum(kept.kept.values()) <= round(0.2 * kept.total)
        assert min(kept.kept.values()) >= 1


def gradients_of(made, state, client, server_round):
    """Return the mean of squared batch gradients by autograd over the whole model at once."""
    site = Site(made.scenario, made.data)
    module, data, count = copy.deepcopy(site.module), made.data.client(client), 2
    set_state(module, state)
    module.train()
    generator = seeds.torch_generator(made.scenario.seed, "growth", server_round, client)
    total = {}
    for x, y in itertools.islice(
        batches(data.examples, data.train, made.strategy.task, 16, generator), count
    ):
        module.zero_grad()
        functional.cross_entropy(module(x), y).backward()
        for name, parameter in module.named_parameters():
            total[name] = total.get(name, 0) + parameter.grad.double() ** 2 / count
    return total


def reported(record, masks):
    values, found, start = torch.from_numpy(record["values"].numpy().copy()), {}, 0
    for name in sorted(masks):
        size = masks[name].numel()
        found[name] = values[start : start + size].reshape(masks[name].shape)
        start += size
    assert start == len(values)
    return found


def test_a_client_reports_its_mean_squared_gradients(watched):
    made = watched.made
    asked = [entry for entry in trained(made) if "importance" in entry.reply.content.array_records]
    assert {entry.round for entry in asked} == {2, 4}
    for entry in asked:
        found = reported(entry.reply.content["importance"], entry.masks)
        expected = gradients_of(made, entry.state, entry.client, entry.round)
        for name, values in found.items():
            torch.testing.assert_close(values, expected[name].float(), rtol=1e-3, atol=1e-9, msg=name)


def brute_force(gains, seconds, fixed, required, most):
    """Return the best ratio over all subsets that have what is required, and no more than allowed."""
    places = range(len(gains))
    free = [place for place in places if not required[place]]
    best = -1.0
    for size in range(len(free) + 1):
        for chosen in itertools.combinations(free, size):
            kept = [p for p in places if required[p]] + list(chosen)
            if len(kept) <= most:
                best = max(best, sum(gains[p] for p in kept) / (fixed + sum(seconds[p] for p in kept)))
    return best


@given(
    st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=4, max_size=4),
    st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=4, max_size=4),
    st.tuples(st.floats(0.1, 5), st.floats(0.1, 5), st.floats(0.1, 20)),
)
@settings(max_examples=60, deadline=None)
def test_no_other_choice_has_a_better_ratio(one, two, times):
    required = Masks({"a": torch.tensor([r for _, r in one]), "b": torch.tensor([r for _, r in two])})
    gains = {"a": torch.tensor([float(g) for g, _ in one]), "b": torch.tensor([float(g) for g, _ in two])}
    seconds = {"a": times[0], "b": times[1]}
    kept = best_ratio(gains, seconds, fixed_seconds=times[2], required=required, density=1.0)
    assert all((kept[name] | ~required[name]).all() for name in kept)
    flat = [float(g) for g, _ in [*one, *two]]
    each = [times[0]] * 4 + [times[1]] * 4
    found = sum(float(gains[n][kept[n]].sum()) for n in kept)
    found /= times[2] + sum(seconds[n] * count for n, count in kept.kept.items())
    best = brute_force(flat, each, times[2], [r for _, r in [*one, *two]], 8)
    assert found == pytest.approx(best, rel=1e-9, abs=1e-12)


def test_the_ratio_stops_at_the_density_with_the_most_valuable():
    gains = {"a": torch.tensor([1.0, 9.0, 3.0, 8.0]), "b": torch.tensor([4.0, 5.0, 6.0, 7.0])}
    nothing = Masks({name: torch.zeros(4, dtype=torch.bool) for name in gains})
    found = best_ratio(gains, {"a": 1.0, "b": 0.5}, fixed_seconds=1e9, required=nothing, density=0.5)
    # Worth of a: 1, 9, 3, 8; of b: 8, 10, 12, 14. Of the 8s that of "a" comes first, but b's four fill up.
    assert [found[name].tolist() for name in gains] == [
        [False, True, False, False],
        [False, True, True, True],
    ]


def test_more_required_than_allowed_is_refused():
    ones = Masks({"a": torch.ones(4, dtype=torch.bool)})
    with pytest.raises(ValueError, match="4 weights are required, at most 2"):
        best_ratio({"a": torch.ones(4)}, {"a": 1.0}, fixed_seconds=1.0, required=ones, density=0.5)


def direct_choice(made, before, importance, state, share=0.3):
    """PruneFL's choice in plain Python, weight by weight."""
    strategy, density = made.strategy, 0.2
    clients = strategy.clients.values()
    positions = {layer.weight: layer for layer in strategy.cost.layers}
    epochs = made.scenario.clients.training.epochs

    def seconds(flops, length):
        each = [task_seconds(f.profile, length, flops * epochs * f.examples, length) for f in clients]
        return sum(each) / len(each)

    none = Masks({name: torch.zeros_like(mask) for name, mask in before.items()})
    rest = sum(tensor.numel() for name, tensor in state.items() if name not in before)
    fixed = seconds(strategy.cost.training_flops(none, 1), 4 * rest)
    weights = []
    for name, mask in before.items():
        layer = positions[name]
        flops = 2 * (2 * layer.positions + layer.input_gradient_positions)
        time = seconds(flops, 4)
        for place in range(mask.numel()):
            weights.append(
                {
                    "key": (name, place),
                    "gain": float(importance[name].flatten()[place]),
                    "time": time,
                    "kept": bool(mask.flatten()[place]),
                    "size": abs(float(state[name].flatten()[place])),
                }
            )
    most = round(density * len(weights))
    safe = set()
    for name in before:
        kept = [w for w in weights if w["kept"] and w["key"][0] == name]
        largest = sorted(kept, key=lambda w: -w["size"])[: len(kept) - round(share * len(kept))]
        safe |= {w["key"] for w in largest}
    ordered = sorted(weights, key=lambda w: (w["key"] not in safe, -w["gain"] / w["time"]))
    best, size, gain, time = -1.0, 0, 0.0, fixed
    for number, w in enumerate(ordered[:most], start=1):
        gain, time = gain + w["gain"], time + w["time"]
        if number >= len(safe) and gain / time > best:
            best, size = gain / time, number
    return {w["key"] for w in ordered[:size]}


def keys(masks):
    return {(name, int(place)) for name, mask in masks.items() for place in np.flatnonzero(mask.numpy())}


def test_an_adjustment_is_the_choice_over_all_clients(watched):
    made = watched.made
    for number in (2, 4):
        entries = [entry for entry in trained(made) if entry.round == number]
        total, weight = {}, sum(entry.weight for entry in entries)
        for entry in entries:
            for name, values in reported(entry.reply.content["importance"], entry.masks).items():
                total[name] = total.get(name, 0) + entry.weight * values.double()
        importance = {name: values / weight for name, values in total.items()}
        state = average(made.states[number - 1], entries)
        before = watched.masks[number - 1]
        assert keys(watched.masks[number]) == direct_choice(made, before, importance, state)


def asked_first(made):
    return [
        (message, reply)
        for message, reply in made.grid.exchanges
        if message.metadata.message_type == "query.importance"
    ]


def test_the_fastest_client_prunes_first(watched):
    made = watched.made
    ((message, reply),) = asked_first(made)
    fastest = max(made.strategy.clients.values(), key=lambda facts: (facts.profile.compute, -facts.number))
    assert message.metadata.dst_node_id == fastest.node_id
    start = assemble(made.scenario)
    whole = Masks({name: torch.ones_like(mask) for name, mask in watched.masks[0].items()})
    importance = reported(reply.content["importance"], whole)
    expected = gradients_of(made, start.strategy.state, fastest.number, 0)
    for name, values in importance.items():
        torch.testing.assert_close(values, expected[name].float(), rtol=1e-3, atol=1e-9)
    state = start.strategy.state
    by_magnitude = Masks({name: largest_fifth(state[name]) for name in whole})
    assert keys(watched.masks[0]) == direct_choice(made, by_magnitude, importance, state)


def largest_fifth(values):
    """The fifth with the largest magnitudes, of a layer whose weights a fifth of is a whole number."""
    count, ordered = round(values.numel() / 5), values.abs().flatten().sort(descending=True).values
    return values.abs() >= ordered[count - 1]


def test_the_first_pruning_leaves_every_layer_of_a_deep_model_its_largest_weights():
    """By importance alone, layers of a ResNet would be left a weight in a thousand."""
    deep = scenario({"density": 0.05}, model={"name": "resnet18", "width": 0.125}, rounds=1)
    initial, strategy = assemble(deep).strategy.state, federate(deep).strategy  # It adjusts from round 2 on.
    for name, mask in strategy.masks.items():
        count = int(0.7 * 0.05 * mask.numel())
        largest = initial[name].abs().flatten().argsort(descending=True, stable=True)[:count]
        assert mask.flatten()[largest].all(), name
    assert 0.03 <= strategy.masks.density <= 0.051


def test_where_it_fails_the_next_one_prunes():
    made = assemble(scenario(rounds=1))
    order = sorted(range(4), key=lambda n: (-Site(made.scenario, made.data).profiles[n].compute, n))
    watched = Watched(scenario(rounds=1), tamper=losing(order[0], ("query.importance",), (0,)))
    assert [m.metadata.dst_node_id - 2 for m, _ in asked_first(watched.made)] == order[:2]
    assert_sound(watched, 1)
    with pytest.raises(RunError, match="no client measured the importance of weights: 4 x no reply"):
        federate(
            scenario(rounds=1),
            tamper=lambda m, r: None if m.metadata.message_type == "query.importance" else r,
        )


def test_the_server_prunes_first_on_its_own_data():
    watched = Watched(scenario({"initial": "server"}, rounds=1))
    assert not asked_first(watched.made)
    assert_sound(watched, 1)
    assert 0 < watched.masks[0].density <= 0.2


@pytest.mark.parametrize("server_round", [1, 2])
def test_a_lost_reply_leaves_the_average_of_the_others(server_round):
    run = Watched(scenario(clients__per_round=4), tamper=losing(1, ("train",), (server_round,)))
    replies = assert_sound(run, ROUNDS)
    assert [e.client for e in replies if e.round == server_round] == [0, 2, 3]


def without(content):
    return RecordDict({k: v for k, v in content.items() if k != "importance"})


def with_importance(content, change):
    values = content["importance"]["values"].numpy().copy()
    return RecordDict({**content, "importance": ArrayRecord({"values": Array(change(values))})})


def first_as(value):
    def change(values):
        values[0] = value
        return values

    return change


FAULTS = {
    "missing": without,
    "negative": lambda c: with_importance(c, first_as(-1.0)),
    "NaN": lambda c: with_importance(c, first_as(math.nan)),
    "short": lambda c: with_importance(c, lambda values: values[:-1]),
    "float64": lambda c: with_importance(c, lambda values: values.astype(np.float64)),
}


def test_a_report_that_is_not_right_is_as_if_the_reply_were_absent():
    def run(tamper):
        return federate(scenario(clients__per_round=4, rounds=2), tamper=tamper)

    lost = run(losing(1, ("train",), (2,)))
    for fault in FAULTS.values():

        def tamper(message, reply, fault=fault):
            told = message.metadata
            if (told.message_type, told.group_id, told.dst_node_id) != ("train", "2", 3):
                return reply
            return Message(fault(reply.content), reply_to=message)

        made = run(tamper)
        (failed,) = [task for task in made.tasks if task.status == "failed"]
        assert failed.reason.startswith("WireError: ")
        assert same_state(made.strategy.state, lost.strategy.state)


def test_it_needs_public_data_to_prune_on_the_server():
    options = PruneFL.Options(density=0.5, initial="server")
    assert [k for k, _ in PruneFL.validation_errors(plan(data__server_fraction=0.0), options)] == ["initial"]
    assert list(PruneFL.validation_errors(plan(), options)) == []
