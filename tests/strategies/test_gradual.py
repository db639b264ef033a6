"""Gradual pruning: the cubic schedule, the smallest weights go, and GraNet's regrowth by votes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from inprocess import federate, plan, same_state
from masked import Watched, assert_order_does_not_matter, assert_sound, average, losing, trained

from fedprune.sparsity.distributions import DISTRIBUTIONS
from fedprune.strategies.gradual import Gradual

OPTIONS = {"name": "gradual", "density": 0.1, "initial_density": 0.8, "start": 2, "end": 5}
GRANET = {**OPTIONS, "regrow": True, "growth_batches": 2}
ROUNDS = 6
#: Zhu and Gupta 2017, equation 1: 0.1 + 0.7 * (1 - (t - 2) / 3) ** 3.
CUBIC = [0.8, 0.8, 0.8, 0.1 + 0.7 * 8 / 27, 0.1 + 0.7 / 27, 0.1, 0.1]


def scenario(strategy, **changes):
    return plan(strategy=strategy, rounds=ROUNDS, **changes)


@pytest.fixture(scope="module", params=[OPTIONS, GRANET], ids=["plain", "GraNet"])
def watched(request):
    return Watched(scenario(request.param))


def test_a_run_is_sound(watched):
    assert_sound(watched, ROUNDS)
    assert_order_does_not_matter(watched.made.scenario, watched.made)


def test_the_density_follows_the_schedule(watched):
    total = watched.masks[0].total
    for masks, density in zip(watched.masks, CUBIC, strict=True):
        assert sum(masks.kept.values()) <= round(density * total)
        assert masks.density == pytest.approx(density, abs=len(masks) / total)


def test_in_between_the_density_stays():
    strategy = {**OPTIONS, "start": 1, "prune_every": 3, "end": 6}
    watched = Watched(scenario(strategy))
    step = 0.1 + 0.7 * (1 - 3 / 5) ** 3
    expected = [0.8, 0.8, 0.8, 0.8, step, step, 0.1]
    assert [masks.density for masks in watched.masks] == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_smallest_weights_of_the_average_go(distribution):
    strategy = {**OPTIONS, "distribution": distribution}
    watched = Watched(plan(strategy=strategy, rounds=3))
    replies = trained(watched.made)
    mean = average(watched.made.states[2], [entry for entry in replies if entry.round == 3])
    before, after = watched.masks[2], watched.masks[3]
    sizes = {name: mask.numel() for name, mask in after.items()}
    if distribution == "uniform":
        assert all(abs(after.kept[name] - CUBIC[3] * size) <= 1 for name, size in sizes.items())
    gone, stayed = [], []
    for name, mask in after.items():
        assert not (mask & ~before[name]).any()
        size = mean[name].abs()
        gone.append(size[before[name] & ~mask].numpy())
        stayed.append(size[mask].numpy())
        assert gone[-1].max() <= stayed[-1].min()
    if distribution == "global":
        assert np.concatenate(gone).max() <= min(part.min() for part in stayed if len(part) > 1)


def test_granet_swaps_the_smallest_for_what_clients_voted_for():
    watched = Watched(scenario(GRANET))
    made = watched.made
    shares = [0.5 * (1 + math.cos(math.pi * (t - 2) / 3)) / 2 for t in range(7)]
    for number in (2, 3, 4):
        replies = [entry for entry in trained(made) if entry.round == number]
        mean = average(made.states[number - 1], replies)
        votes = reported(replies, watched.masks[number - 1])
        for name, before in watched.masks[number - 1].items():
            kept, size = np.flatnonzero(before.numpy()), mean[name].abs().flatten().numpy()
            left = int(watched.masks[number][name].sum())
            pruned = kept[np.argsort(-size[kept], kind="stable")[:left]]
            found = np.flatnonzero(watched.masks[number][name].numpy())
            count = min(math.floor(shares[number] * left), len(votes[name]))
            grown = sorted(votes[name], key=lambda place: (-abs(votes[name][place]), place))[:count]
            smallest = pruned[np.lexsort((pruned, size[pruned]))[:count]]
            assert set(found) == set(pruned) - set(smallest) | set(grown), (number, name)
            assert count > 0


def reported(replies, masks):
    """Average the clients' reports by position; nothing of the server's reading of them is used."""
    votes = {name: {} for name in masks}
    for entry in replies:
        config, report = entry.message.content["config"], entry.reply.content["growth"]
        indices, values = report["indices"].numpy(), report["values"].numpy()
        start = 0
        for place, count in zip(config["growth-layers"], config["growth-counts"], strict=True):
            layer = votes[sorted(masks)[place]]
            for index in range(start, start + count):
                position = int(indices[index])
                layer[position] = layer.get(position, 0.0) + entry.weight * float(values[index])
            start += count
    return votes


def test_nothing_regrows_once_the_schedule_has_ended():
    watched = Watched(scenario(GRANET))
    asked = {e.round for e in trained(watched.made) if "growth-layers" in e.message.content["config"]}
    assert asked == {2, 3, 4}
    assert watched.masks[6] == watched.masks[5]


@pytest.mark.parametrize("server_round", [2, 3, 6])
def test_a_lost_reply_leaves_the_average_of_the_others(server_round):
    watched = Watched(scenario(GRANET, clients__per_round=4), tamper=losing(1, ("train",), (server_round,)))
    replies = assert_sound(watched, ROUNDS)
    assert [e.client for e in replies if e.round == server_round] == [0, 2, 3]


def test_from_the_first_round_at_density_one():
    made = federate(plan(strategy={"name": "gradual", "density": 0.3}, rounds=4))
    assert [record.density for record in made.rounds[:2]] == [1.0, 1.0]
    assert [record.density for record in made.rounds[3:]] == pytest.approx([0.3, 0.3], abs=1e-3)
    dense = federate(plan(rounds=1))
    assert same_state(
        federate(plan(strategy={"name": "gradual", "density": 1}, rounds=1)).strategy.state,
        dense.strategy.state,
    )


def test_options_that_do_not_fit_are_found():
    def found(**options):
        given = Gradual.Options(**{"density": 0.1, **options})
        return [key for key, _ in Gradual.validation_errors(plan(rounds=8), given)]

    assert found() == found(start=6) == found(end=8) == []
    assert found(end=9) == ["end"]
    assert found(start=5, end=4) == ["start"]
    assert found(density=0.5, initial_density=0.4) == ["density"]
    assert found(distribution="none") == ["distribution"]
