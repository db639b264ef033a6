"""FedRTS: posteriors by a direct count of votes, masks of the highest draws, positions alone on the wire."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from inprocess import plan
from masked import Watched, assert_order_does_not_matter, assert_sound, average, losing, trained

from fedprune import seeds

OPTIONS = {"name": "fedrts", "density": 0.2, "adjust_every": 2, "stop_adjusting_at": 4, "swap_fraction": 0.4}
ROUNDS, GAMMA, STRENGTH = 5, 0.25, 3.0


def scenario(**changes):
    options = {**OPTIONS, "gamma": GAMMA, "strength": STRENGTH}
    return plan(strategy=options, rounds=ROUNDS, **changes)


@pytest.fixture(scope="module", params=[None, losing(1, ("train",), (2, 3))], ids=["all", "one lost"])
def watched(request):
    return Watched(scenario(clients__per_round=4), tamper=request.param)


def open_to_change(server_round, kept):
    return math.floor(0.4 * (1 + math.cos(math.pi * server_round / 4)) / 2 * kept)


def largest(values, among, count):
    """The ``count`` positions among some whose values are largest, of equal ones the first."""
    return among[np.argsort(-values[among], kind="stable")[:count]]


def posteriors(watched):
    """Count votes position by position, from what was sent; return the posteriors after each round."""
    made, first = watched.made, watched.masks[0]
    alpha = {name: np.ones(mask.numel()) for name, mask in first.items()}
    beta = {name: np.ones(mask.numel()) for name, mask in first.items()}
    after = []
    for number in range(1, 5):
        masks = watched.masks[number - 1]
        replies = [entry for entry in trained(made) if entry.round == number]
        weight = sum(entry.weight for entry in replies)
        mean = average(made.states[number - 1], replies)
        for name, mask in masks.items():
            places, outcome = np.flatnonzero(mask.numpy()), np.zeros(mask.numel())
            core = len(places) - open_to_change(number, len(places))
            for entry in replies:
                size = entry.state[name].abs().flatten().numpy()
                outcome[largest(size, places, core)] += GAMMA * entry.weight / weight
            outcome[largest(mean[name].abs().flatten().numpy(), places, core)] += 1 - GAMMA
            alpha[name][places] += STRENGTH * outcome[places]
            beta[name][places] += STRENGTH * (1 - outcome[places])
        for name, votes in reported(replies, masks).items():
            places = np.flatnonzero(~masks[name].flatten().numpy())
            outcome = GAMMA * votes / weight + (1 - GAMMA) / 2
            alpha[name][places] += STRENGTH * outcome[places]
            beta[name][places] += STRENGTH * (1 - outcome[places])
        after.append(({n: a.copy() for n, a in alpha.items()}, {n: b.copy() for n, b in beta.items()}))
    return after


def reported(replies, masks):
    """Add up the examples of the clients that reported each position."""
    votes = {}
    for entry in replies:
        config = entry.message.content["config"]
        if "growth-layers" not in config:
            continue
        assert set(entry.reply.content["growth"]) == {"indices"}
        indices, start = entry.reply.content["growth"]["indices"].numpy(), 0
        for place, count in zip(config["growth-layers"], config["growth-counts"], strict=True):
            name = sorted(masks)[place]
            layer = votes.setdefault(name, np.zeros(masks[name].numel()))
            layer[indices[start : start + count]] += entry.weight
            start += count
        assert start == len(indices)
    return votes


def test_a_run_is_sound():
    made = Watched(scenario())
    assert_sound(made, ROUNDS)
    assert_order_does_not_matter(made.made.scenario, made.made)


def test_posteriors_and_masks_are_those_of_a_direct_count(watched):
    after, seed = posteriors(watched), watched.made.scenario.seed
    assert [a == b for a, b in zip(watched.masks, watched.masks[1:], strict=False)] == [
        True,
        False,
        True,
        True,  # In round 4 the share has fallen to 0, and nothing is asked for.
        True,
    ]
    alpha, beta = after[1]
    generator = seeds.numpy_generator(seed, "thompson", 2)
    for name, mask in watched.masks[2].items():
        draws = generator.beta(alpha[name], beta[name])
        kept = watched.masks[1].kept[name]
        found = np.flatnonzero(mask.numpy())
        assert set(found) == set(np.argsort(-draws, kind="stable")[:kept]), name
        assert set(found) != set(np.flatnonzero(watched.masks[1][name].numpy()))
    method = watched.made.strategy.state_dict()
    for name, (found, expected) in {
        key: (method[key], after[3][place]) for place, key in enumerate(("alpha", "beta"))
    }.items():
        for layer, values in expected.items():
            np.testing.assert_allclose(found[layer].flatten().numpy(), values, rtol=1e-12, err_msg=name)


def test_a_round_adds_the_strength_to_what_was_voted_on(watched):
    """Kept weights are voted on in each of four rounds; what grew once had votes as a pruned one before."""
    alpha, beta = (watched.made.strategy.state_dict()[key] for key in ("alpha", "beta"))
    for name, mask in watched.masks[0].items():
        rounds = (alpha[name] + beta[name] - 2) / STRENGTH
        torch.testing.assert_close(rounds, rounds.round())
        always = mask & watched.masks[2][name]
        assert (rounds[always].round() == 4).all()
        assert rounds.max().round() == 4
        assert ((rounds.round() == 2) == (mask & ~always)).all()
