"""FLASH: layer densities are the mean of what clients report; one random mask by them, on initial weights."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from inprocess import assemble, federate, plan
from masked import Watched, assert_order_does_not_matter, assert_sound, losing

from fedprune.errors import RunError
from fedprune.sparsity.masks import Masks

OPTIONS = {"name": "flash", "density": 0.2, "keep": ["first"], "sensing_share": 0.75, "sensing_epochs": 2}
KIND = "query.sensitivity"


@pytest.fixture(scope="module")
def watched():
    return Watched(plan(strategy=OPTIONS))


def answers(made):
    """Return what clients replied to the query, by layer."""
    found = []
    for message, reply in made.grid.exchanges:
        if message.metadata.message_type == KIND and reply is not None and reply.has_content():
            found.append(
                dict(zip(sorted(made.strategy.masks), reply.content["sensitivity"]["kept"], strict=True))
            )
    return found


def test_a_run_is_sound(watched):
    assert_sound(watched, 2)
    assert_order_does_not_matter(watched.made.scenario, watched.made)
    assert watched.masks[0] == watched.masks[2]


@pytest.mark.parametrize("lost", [None, 0])
def test_layers_keep_the_mean_of_what_clients_found(lost):
    tamper = None if lost is None else losing(lost, (KIND,), (0,))
    options = {**OPTIONS, "sensing_share": 1.0, "sensing_epochs": 6, "move_rate": 0.5}
    made = federate(plan(strategy=options, rounds=1, clients__training__batch_size=4), tamper=tamper)
    found, masks = answers(made), made.strategy.masks
    assert len(found) == 4 - (lost is not None)
    assert {sum(kept.values()) for kept in found} == {sum(masks.kept.values())}
    assert masks.density == pytest.approx(0.2, abs=1e-3)
    for name, kept in masks.kept.items():
        assert kept == pytest.approx(np.mean([one[name] for one in found]), abs=1), name
    assert len({str(one) for one in found}) > 1  # They differ, by data and draws.


def test_clients_move_weights_to_layers_whose_weights_are_larger(watched):
    """Every layer starts alike; the one with the larger initial weights gains."""
    made = watched.made
    state, sizes = made.strategy.model.initial, {n: m.numel() for n, m in made.strategy.masks.items()}
    order = sorted(sizes, key=lambda name: float(state[name].abs().mean()))
    for kept in answers(made):
        assert kept[order[-1]] / sizes[order[-1]] > 0.2 > kept[order[0]] / sizes[order[0]]


def test_training_starts_from_the_initial_weights(watched):
    initial, first = assemble(watched.made.scenario).strategy.state, watched.made.states[0]
    for name, mask in watched.masks[0].items():
        assert torch.equal(first[name], torch.where(mask, initial[name], torch.zeros(())))
    alike = Masks({name: first[name] != 0 for name in watched.masks[0]})
    assert alike == watched.masks[0]


@pytest.mark.parametrize(
    ("forged", "expected"),
    [([1], "has 1 layers"), ([10**9, 1, 1], r"it has \d+ weights"), ([1, 1, 1], "is 3 in all")],
)
def test_an_answer_that_cannot_be_right_is_refused(forged, expected):
    def tamper(message, reply):
        if message.metadata.message_type != KIND or message.metadata.dst_node_id != 2:
            return reply
        content = {**reply.content, "sensitivity": ConfigRecord({"kept": forged})}
        return Message(RecordDict(content), reply_to=message)

    made = federate(plan(strategy={**OPTIONS, "sensing_share": 1.0}, rounds=1), tamper=tamper)
    (failed,) = [task for task in made.tasks if task.status == "failed"]
    assert re.search(expected, failed.reason)


def test_without_any_answer_the_run_ends():
    def tamper(message, reply):
        return None if message.metadata.message_type == KIND else reply

    with pytest.raises(RunError, match="no client found out"):
        federate(plan(strategy=OPTIONS), tamper=tamper)
