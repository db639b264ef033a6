"""FLASH: layer densities are the mean of what clients report; one random mask by them, on initial weights."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from inprocess import assemble, federate, plan
from masked import Watched, assert_ledger, assert_order_does_not_matter, assert_sound, losing, trained

from fedprune.errors import RunError, WireError
from fedprune.protocol.sensitivity import MoveRequest
from fedprune.sparsity.masks import Masks
from fedprune.strategies.flash import Flash

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


@pytest.mark.parametrize("epochs", [1, 3])
def test_jmwst_keeps_the_largest_of_the_mean_by_the_clients_mean_shares(epochs):
    options = {**OPTIONS, "joint": True, "joint_every": 2, "move_rate": 0.4}
    tamper = losing(2, ("train",), (2,))
    watched = Watched(plan(strategy=options, rounds=2, clients__training__epochs=epochs), tamper=tamper)
    made, masks = watched.made, watched.masks
    first, second = ([entry for entry in trained(made) if entry.round == number] for number in (1, 2))
    assert all(entry.masks == entry.sent == masks[0] for entry in first)
    assert masks[1] == masks[0] != masks[2]
    for entry in second:
        assert sum(entry.masks.kept.values()) == sum(entry.sent.kept.values())
        assert entry.masks != entry.sent
    weights = [entry.weight for entry in second]
    for name, mask in masks[2].items():
        share = np.mean([entry.masks.kept[name] for entry in second])
        assert masks[2].kept[name] == pytest.approx(share, abs=1)
        mean = np.average([entry.state[name].double().numpy() for entry in second], 0, weights)
        kept = mask.numpy()
        assert np.abs(mean[kept]).min() >= np.abs(mean[~kept]).max()
        np.testing.assert_allclose(made.states[2][name].numpy(), mean * kept, rtol=1e-5, atol=1e-7)
    assert_ledger(made)


def test_masks_that_keep_another_number_in_all_are_refused():
    request = MoveRequest(0.2)
    sent = Masks({"a": torch.tensor([True, False]), "b": torch.tensor([False, True])})
    request.check(Masks({"a": torch.tensor([True, True]), "b": torch.tensor([False, False])}), sent)
    with pytest.raises(WireError, match="keep 3 weights, expected 2"):
        request.check(Masks({"a": torch.tensor([True, True]), "b": torch.tensor([False, True])}), sent)


def test_nested_masks_do_not_move():
    for joint, expected in ((True, ["joint"]), (False, [])):
        options = Flash.Options(density=0.2, joint=joint)
        found = Flash.validation_errors(plan(clients__over_budget="nest"), options)
        assert [key for key, _ in found] == expected
