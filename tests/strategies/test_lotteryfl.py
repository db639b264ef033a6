"""LotteryFL: who prunes, what, rewinds to what; every client is sent its own weights and nothing else."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from inprocess import accuracy_of, assemble, federate, plan, same_state
from masked import Watched, assert_order_does_not_matter, assert_sound, losing, trained

from fedprune import seeds
from fedprune.client.site import Site
from fedprune.data import batches
from fedprune.sparsity.masks import Masks, apply_masks
from fedprune.strategies.lotteryfl import LotteryFL
from fedprune.training.loop import train
from fedprune.wire import StateCodec, get_state, mask_bytes, set_state

OPTIONS = {"name": "lotteryfl", "density": 0.2, "prune_step": 0.5, "accuracy_threshold": 0.3}
KEEN = {**OPTIONS, "accuracy_threshold": 0.0}
ROUNDS = 5
TRAINING = {
    "batch_size": 16,
    "epochs": 2,
    "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
}


def scenario(strategy, **changes):
    changes = {"rounds": ROUNDS, "clients__training": TRAINING, **changes}
    return plan(strategy=strategy, data__client_test_fraction=0.25, **changes)


@pytest.fixture(scope="module")
def watched():
    return Watched(scenario(OPTIONS, evaluation__clients=True))


@pytest.fixture(scope="module")
def keen():
    return Watched(scenario(KEEN, clients__per_round=4))


def sent_state(made, entry):
    codec = StateCodec(made.strategy.layout, entry.sent)
    return codec.unflatten(codec.decode(entry.message.content["arrays"]))


def test_a_run_is_sound(watched, keen):
    for run in (watched, keen):
        assert_sound(run, ROUNDS)
    assert_order_does_not_matter(watched.made.scenario, watched.made)


def test_the_global_model_has_what_any_client_keeps(watched, keen):
    for run in (watched, keen):
        entries, first = trained(run.made), run.masks[0]
        assert first.density == 1
        own = dict.fromkeys(range(4), first)
        for number in range(1, ROUNDS + 1):
            own |= {entry.client: entry.masks for entry in entries if entry.round == number}
            for name, mask in run.masks[number].items():
                assert torch.equal(mask, torch.stack([masks[name] for masks in own.values()]).any(dim=0))
        assert {number: run.made.strategy.masks_for(number) for number in own} == own


def test_a_client_is_sent_what_it_kept_and_makes_its_masks_itself(keen):
    own = {}
    for entry in trained(keen.made):
        assert entry.sent == own.get(entry.client, keen.masks[0])
        assert (mask_bytes(entry.message.content) > 0) == (entry.round == 1)
        own[entry.client] = entry.masks


def test_every_client_gets_to_the_density_in_steps_and_stays(keen):
    found = {n: {e.masks.density for e in trained(keen.made) if e.round == n} for n in range(1, ROUNDS + 1)}
    for number, density in enumerate((0.5, 0.25, 0.2, 0.2, 0.2), start=1):
        assert list(found[number]) == pytest.approx([density], abs=1e-3)


def test_clients_come_to_have_masks_of_their_own(watched):
    own = {entry.client: entry.masks for entry in trained(watched.made)}
    assert len(set(own.values())) > 1


def test_a_client_prunes_if_and_only_if_it_is_accurate_enough(watched):
    made, pruned = watched.made, []
    module = Site(made.scenario, made.data).module
    for entry in trained(made):
        set_state(module, sent_state(made, entry))
        data = made.data.client(entry.client)
        accuracy = accuracy_of(made.strategy.task, module, data)
        pruned.append(entry.masks != entry.sent)
        assert pruned[-1] == (accuracy >= 0.3 and entry.sent.density > 0.2001)
    assert any(pruned)
    assert not all(pruned)


def test_it_prunes_the_smallest_and_trains_from_the_initial_weights(keen):
    made = keen.made
    site, initial = Site(made.scenario, made.data), assemble(made.scenario).strategy.state
    optimizer = made.scenario.clients.training.optimizer
    for entry in trained(made):
        state = sent_state(made, entry)
        if entry.masks != entry.sent:
            kept = np.concatenate([state[n][entry.masks[n]].abs().numpy() for n in entry.masks])
            gone = np.concatenate(
                [state[n][m & ~entry.masks[n]].abs().numpy() for n, m in entry.sent.items()]
            )
            alone = [n for n, count in entry.masks.kept.items() if count == 1]
            assert not alone
            assert gone.max() <= kept.min()
            state = initial
        module = copy.deepcopy(site.module)
        set_state(module, apply_masks(state, entry.masks))
        generator = seeds.torch_generator(made.scenario.seed, "batches", entry.round, entry.client)
        data = made.data.client(entry.client)
        steps = [
            step
            for _ in range(2)
            for step in batches(data.examples, data.train, made.strategy.task, 16, generator)
        ]
        train(module, steps, made.strategy.task, optimizer, lr=0.05, masks=entry.masks)
        assert same_state(get_state(module), entry.state)


@pytest.mark.parametrize("server_round", [1, 2])
def test_a_lost_reply_takes_a_clients_pruning_with_it(server_round):
    """The client holds masks that the server never saw; it is sent the former ones again."""
    tamper = losing(1, ("train",), (server_round,))
    run = Watched(scenario(KEEN, clients__per_round=4), tamper=tamper)
    replies = assert_sound(run, ROUNDS)
    assert [e.client for e in replies if e.round == server_round] == [0, 2, 3]
    densities = [round(entry.masks.density, 2) for entry in replies if entry.client == 1]
    assert densities == [0.5, 0.25, 0.2, 0.2]
    assert run.masks[server_round].density > max(e.masks.density for e in replies if e.round == server_round)


def test_a_client_that_lost_its_state_changes_nothing(keen):
    def before(message, context):
        if message.metadata.message_type == "train":
            context.state.clear()

    again = federate(scenario(KEEN, clients__per_round=4), before=before)
    assert same_state(again.strategy.state, keen.made.strategy.state)


def test_a_lost_evaluation_changes_no_model(watched):
    tamper = losing(1, ("evaluate",), (2, 3))
    again = federate(watched.made.scenario, tamper=tamper)
    assert same_state(again.strategy.state, watched.made.strategy.state)
    assert sum(record.clients_failed for record in again.rounds) > 0


def test_clients_are_evaluated_on_their_own_models(watched):
    made, own = watched.made, {}
    module = Site(made.scenario, made.data).module
    entries = trained(made)
    for record, state in zip(made.rounds[1:], made.states[1:], strict=True):
        own |= {entry.client: entry.masks for entry in entries if entry.round == record.round}
        right = examples = 0
        for task in made.tasks:
            if (task.type, task.round) == ("evaluate", record.round):
                set_state(module, apply_masks(state, own.get(task.client, Masks())))
                data = made.data.client(task.client)
                accuracy = accuracy_of(made.strategy.task, module, data)
                right, examples = right + accuracy * len(data.test), examples + len(data.test)
        assert record.client_scores["accuracy"] == pytest.approx(right / examples, abs=1e-9)


def test_it_needs_held_out_examples():
    options = LotteryFL.Options(density=0.5)
    assert [key for key, _ in LotteryFL.validation_errors(plan(), options)] == ["accuracy_threshold"]
    assert list(LotteryFL.validation_errors(plan(data__client_test_fraction=0.2), options)) == []
