"""FedPM: a Beta posterior of every weight's chance, sampled masks near their entropy."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from inprocess import federate, plan, same_state
from masked import assert_order_does_not_matter, losing
from supermasked import altered, entropy_bytes, learned, statistics

from fedprune.strategies.fedpm import FedPM
from fedprune.wire import content_bytes, mask_bytes
from fedprune.wire.supermasks import Grid
from fedprune.wire.values import to_array

OPTIONS = {"name": "fedpm", "reset_every": 2, "prior": 1.5}
TRAINING = {"batch_size": 16, "optimizer": {"name": "sgd", "lr": 5.0, "momentum": 0.9}}
ROUNDS = 5


def scenario(strategy=OPTIONS, **changes):
    changes = {"rounds": ROUNDS, "clients__training": TRAINING, "clients__per_round": 3, **changes}
    return plan(strategy=strategy, data__client_test_fraction=0.25, evaluation__clients=True, **changes)


@pytest.fixture(scope="module")
def made():
    return federate(scenario())


@pytest.fixture(scope="module")
def without_client_1():
    return federate(scenario(rounds=2, clients__per_round=4), tamper=losing(1, ("train",), (1, 2)))


def posterior(entries, server_round):
    """The chances after a round, written out: of the masks since the last reset, every one counting the same.

    A reset comes before rounds 1, 3, 5, so that 2 rounds are counted together.
    """
    since = server_round - (server_round - 1) % 2
    masks = [entry.found for entry in entries if since <= entry.round <= server_round]
    ones, zeros = (sum((mask == value).double() for mask in masks) for value in (1, 0))
    return (1.5 + ones) / (1.5 + ones + 1.5 + zeros)


def test_the_state_is_the_posteriors_mean(made):
    entries = learned(made)
    codec = entries[0].uplink
    is_chance = codec.is_number
    assert codec.grid == Grid(0.0, 1)
    for server_round in range(1, ROUNDS + 1):
        replies = [entry for entry in entries if entry.round == server_round]
        assert len(replies) == 3
        found = codec.flatten(made.states[server_round]).double()
        expected = posterior(entries, server_round)
        torch.testing.assert_close(found[is_chance], expected[is_chance], rtol=0, atol=1e-6)
        mean = sum(e.weight * e.found.double() for e in replies) / sum(e.weight for e in replies)
        torch.testing.assert_close(found[~is_chance], mean[~is_chance], rtol=1e-6, atol=1e-7)
        for entry in (entry for entry in entries if entry.round == server_round + 1):
            distance = (entry.given - expected)[is_chance].abs().max()
            assert 1e-5 < distance <= 0.5 / 255 + 1e-6  # As near as 8 bits come.
    halves = learned(made)[0].given[is_chance]
    assert (halves - 0.5).abs().max() <= 0.5 / 255 + 1e-6


def test_weights_are_those_that_were_drawn_times_a_chance(made):
    frozen = made.strategy.model.frozen(made.strategy.masks)
    assert made.strategy.masks.density == 1
    for entry in learned(made):
        for name in entry.masks:
            used = entry.after[name]
            assert torch.equal(used, torch.where(used == 0, 0, frozen.factors[name]))
            share = entry.before[name] / frozen.factors[name]
            assert ((share >= 0) & (share <= 1)).all()
        for name in frozen.state.keys() - set(entry.masks):
            if not name.endswith(("_mean", "_var")):
                assert torch.equal(entry.after[name], frozen.state[name])
                assert torch.equal(entry.before[name], frozen.state[name])


class Skewed(FedPM):
    """Starts the weights of convolutions at a chance of 30 %, others at 5 %."""

    def prepare(self, grid):
        super().prepare(grid)
        for name in self.masks:
            self.state[name] = self.state[name] * (0.6 if "conv" in name else 0.1)


@pytest.mark.parametrize(
    ("strategy", "model", "density"),
    [
        ("fedpm", {"name": "cnn"}, 0.5),
        ("test_fedpm:Skewed", {"name": "cnn"}, 0.14),
        ("test_fedpm:Skewed", {"name": "resnet18", "width": 0.125}, 0.3),
    ],
    ids=["CNN", "CNN, skewed", "ResNet, skewed"],
)
def test_a_sampled_mask_takes_little_more_than_its_entropy(strategy, model, density):
    training = {**TRAINING, "optimizer": {"name": "sgd", "lr": 0.1}}
    changes = {"clients__training": training, "data__test_examples": 20, "clients__per_round": 2}
    run = federate(scenario({"name": strategy}, model=model, rounds=1, **changes))
    for entry in learned(run):
        bits = entry.found[entry.uplink.is_number]
        assert bits.mean().item() == pytest.approx(density, abs=0.02)
        bound = 1.05 * entropy_bytes(bits) + 4 * statistics(run) + 1024
        assert content_bytes(entry.reply.content) <= bound


def test_a_chance_takes_eight_bits_at_most(made):
    for entry in learned(made):
        if entry.round > 1:
            numbers = int(entry.downlink.is_number.sum())
            assert mask_bytes(entry.message.content) == 0 or entry.round == 2
            down = content_bytes(entry.message.content) - mask_bytes(entry.message.content)
            assert down <= 1.02 * numbers + 4 * statistics(made) + 1024 + 512 * (entry.round == 2)


def test_it_learns():
    """Chance is 0.1."""
    model = {"name": "mlp", "width": 0.5}
    training = {**TRAINING, "epochs": 3, "optimizer": {"name": "adam", "lr": 0.1}}
    changes = {"clients__training": training, "data__train_examples": 800}
    run = federate(scenario({"name": "fedpm"}, model=model, rounds=4, **changes))
    assert run.rounds[-1].scores["accuracy"] > 0.5


@pytest.mark.parametrize(
    ("forge", "expected"),
    [
        (lambda data: data[:-1], "ends 1 bytes too early"),
        (lambda data: data[:-4] + np.float32(np.inf).tobytes(), "not finite"),
    ],
    ids=["cut off", "not finite"],
)
def test_a_reply_that_is_not_right_is_no_part_of_the_posterior(forge, expected, without_client_1):
    def tamper(message, reply):
        if (message.metadata.message_type, message.metadata.dst_node_id) != ("train", 3):
            return reply
        data = forge(bytes(reply.content["arrays"]["values"].data)[128:])
        return altered(reply, message, ArrayRecord({"values": to_array(np.frombuffer(data, np.uint8))}))

    run = federate(without_client_1.scenario, tamper=tamper)
    failed = [task for task in run.tasks if task.status == "failed"]
    assert [(task.round, task.client) for task in failed] == [(1, 1), (2, 1)]
    assert all(re.search(f"^WireError: .*{expected}", task.reason) for task in failed)
    assert same_state(run.strategy.state, without_client_1.strategy.state)


def test_a_network_that_is_pruned_first():
    run = federate(scenario({**OPTIONS, "density": 0.2, "keep": ["first"], "train_dense": True}, rounds=2))
    masks = run.strategy.masks
    assert masks.density == pytest.approx(0.2, abs=1e-3)
    assert list(masks) == ["block2.conv.weight", "hidden.linear.weight"]
    entry = learned(run)[0]
    still = run.strategy.model.frozen(masks).state["block1.conv.weight"]
    assert torch.equal(entry.after["block1.conv.weight"], still)
    for name in ("head.weight", "head.bias", "block1.norm.bias"):
        assert (entry.after[name] != entry.before[name]).any()


def test_order_does_not_matter(made):
    assert_order_does_not_matter(made.scenario, made)


def test_accuracies_are_there(made):
    for record in made.rounds[1:]:
        assert 0 <= record.personal_scores["accuracy"] <= 1
        assert 0 <= record.client_scores["accuracy"] <= 1
