"""Complement Sparsification: clients reply what was pruned, the server adds it and prunes again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict
from inprocess import assemble, federate, plan
from masked import Watched, assert_ledger, assert_order_does_not_matter, average, losing, trained

from fedprune.wire import encode_masks, mask_bytes, with_masks

RATIO, ROUNDS = 1.5, 3
OPTIONS = {"name": "complement", "density": 0.2, "aggregation_ratio": RATIO}


def scenario(**changes):
    return plan(strategy=OPTIONS, rounds=ROUNDS, clients__training__epochs=8, **changes)


@pytest.fixture(scope="module")
def watched():
    return Watched(scenario(), tamper=losing(2, ("train",), (3,)))


def test_round_1_is_dense_and_then_clients_reply_the_complement(watched):
    for entry in trained(watched.made):
        for name, mask in entry.sent.items():
            assert torch.equal(entry.masks[name], mask if entry.round == 1 else ~mask)
        if entry.round > 1:
            assert entry.masks.density == pytest.approx(0.8, abs=1e-3)
            # Pruned weights start at 0, and are all trained.
            assert all(
                (entry.state[name][mask] != 0).float().mean() > 0.2 for name, mask in entry.masks.items()
            )
            assert (
                mask_bytes(entry.reply.content) < 200
            )  # The complement of what was sent takes next to none.
    assert_ledger(watched.made)
    plain = federate(scenario())
    assert_order_does_not_matter(plain.scenario, plain)


def test_the_server_keeps_the_largest_of_its_weights_and_the_mean_complement(watched):
    made = watched.made
    for number in range(1, ROUNDS + 1):
        before, masks = made.states[number - 1], watched.masks[number - 1]
        mean = average(before, [entry for entry in trained(made) if entry.round == number])
        full = {name: tensor.clone() for name, tensor in mean.items()}
        for name, mask in masks.items():
            full[name] = torch.where(mask, mean[name] if number == 1 else before[name], RATIO * mean[name])
        size = np.concatenate([full[name].abs().numpy().ravel() for name in masks])
        least = np.sort(size)[-round(0.2 * masks.total)]
        for name, tensor in full.items():
            if name in masks:
                tensor = torch.where(tensor.abs() >= least, tensor, torch.zeros(()))
            torch.testing.assert_close(made.states[number][name], tensor, rtol=1e-5, atol=1e-7)
    assert watched.masks[1] != watched.masks[2]


def test_a_model_of_ones_own_is_scored_whole():
    made = federate(scenario(data__client_test_fraction=0.3))
    assert made.rounds[-1].personal_scores["accuracy"] > 0.5


def test_a_memory_budget_counts_the_dense_copy():
    sparse = federate(plan(strategy={"name": "static", "density": 0.2}, rounds=1))
    dense = federate(scenario())
    peak = {
        name: max(
            task.peak_memory_bytes for task in made.tasks if (task.type, task.round) == ("train", number)
        )
        for name, made, number in (("sparse", sparse, 1), ("dense", dense, 1), ("complement", dense, 2))
    }
    assert peak["sparse"] < peak["dense"]
    assert peak["complement"] == pytest.approx(peak["dense"], rel=0.02)


def test_other_masks_than_the_complement_are_refused(watched):
    def tamper(message, reply):
        told = message.metadata
        if (told.message_type, told.group_id, told.dst_node_id) != ("train", "2", 3):
            return reply
        arrays = with_masks(reply.content["arrays"], encode_masks(made.strategy.masks, made.strategy.masks))
        return Message(RecordDict({**reply.content, "arrays": arrays}), reply_to=message)

    made = assemble(scenario(clients__per_round=4), tamper=tamper)
    made.strategy.start(made.grid)
    (failed,) = [task for task in made.tasks if task.status == "failed"]
    assert (failed.round, failed.client) == (2, 1)
    assert "is not the complement" in failed.reason
