"""FedDIP: local training against its rule written out, schedules, the mean and the masks of a round."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from inprocess import federate, plan
from masked import Watched, assert_ledger, assert_order_does_not_matter, losing, trained
from torch.func import functional_call
from torch.nn import functional

from fedprune import seeds
from fedprune.client.site import Site
from fedprune.data import batches
from fedprune.strategies.feddip import FedDIP
from fedprune.wire import set_state

ROUNDS, LARGEST = 4, 0.05
OPTIONS = {
    "name": "feddip", "density": 0.1, "initial_density": 0.4, "reconfigure_every": 2,
    "regularisation": LARGEST, "regularisation_steps": 2,
}  # fmt: skip
#: 0.1 + 0.3 * (1 - t / 4) ** 3 after rounds 2 and 4.
DENSITY = [0.4, 0.4, 0.1 + 0.3 / 8, 0.1 + 0.3 / 8, 0.1]


def scenario(**changes):
    return plan(strategy=OPTIONS, rounds=ROUNDS, **changes)


@pytest.fixture(scope="module")
def watched():
    return Watched(scenario(), tamper=losing(2, ("train",), (2,)))


def test_the_density_follows_the_cubic_curve_where_masks_move(watched):
    assert [masks.density for masks in watched.masks] == pytest.approx(DENSITY, abs=1e-3)
    assert watched.masks[0] == watched.masks[1]
    assert_ledger(watched.made)
    plain = federate(scenario())
    assert_order_does_not_matter(plain.scenario, plain)


def test_weights_come_back_that_dense_training_has_made_large():
    made = Watched(plan(strategy={**OPTIONS, "initial_density": 0.1}, rounds=2, clients__training__epochs=8))
    before, after = made.masks[1:]
    assert sum(int((after[name] & ~before[name]).sum()) for name in after) > 0


def dense_after(made, entry):
    """Train dense weights by the pruned model's gradients: SGD with momentum, written out."""
    site, data = Site(made.scenario, made.data), made.data.client(entry.client)
    module = copy.deepcopy(site.module).train()
    set_state(module, made.states[entry.round - 1])
    dense = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    speed = {name: torch.zeros_like(weight) for name, weight in dense.items()}
    strength = LARGEST * ((entry.round - 1) * 2 // ROUNDS) / 2
    generator = seeds.torch_generator(made.scenario.seed, "batches", entry.round, entry.client)
    for x, y in batches(data.examples, data.train, site.task, 16, generator=generator):
        pruned = {
            name: (weight * entry.sent[name] if name in entry.sent else weight).clone().requires_grad_()
            for name, weight in dense.items()
        }
        loss = functional.cross_entropy(functional_call(module, {**pruned, **buffers}, (x,)), y)
        loss = loss + strength * sum(pruned[name].norm() for name in entry.sent)
        for (name, _), slope in zip(
            pruned.items(), torch.autograd.grad(loss, list(pruned.values())), strict=True
        ):
            speed[name] = 0.9 * speed[name] + slope
            dense[name] = dense[name] - 0.05 * speed[name]
    return dense


@pytest.mark.parametrize("server_round", [1, 2, 3, 4])
def test_clients_train_dense_weights_by_the_pruned_models_gradients(watched, server_round):
    entry = next(entry for entry in trained(watched.made) if entry.round == server_round)
    dense = dense_after(watched.made, entry)
    if server_round % 2:
        assert entry.masks == entry.sent
    else:
        size = np.concatenate([dense[name].abs().numpy().ravel() for name in entry.sent])
        least = np.sort(size)[-sum(entry.sent.kept.values())]
        found = np.concatenate([mask.numpy().ravel() for mask in entry.masks.values()])
        assert (found != (size >= least)).mean() < 1e-3  # But for rounding.
        assert entry.masks != entry.sent
    for name, weight in dense.items():
        kept = entry.masks.get(name, torch.ones(weight.shape, dtype=torch.bool))
        torch.testing.assert_close(entry.state[name][kept], weight[kept], rtol=1e-3, atol=1e-5)


def test_a_weight_that_a_client_pruned_counts_as_0(watched):
    made = watched.made
    for number in (1, 2, 3, 4):
        replies = [entry for entry in trained(made) if entry.round == number]
        weights = [entry.weight for entry in replies]
        mean = {
            name: torch.from_numpy(np.average([e.state[name].double().numpy() for e in replies], 0, weights))
            for name in made.states[number]
        }
        after = watched.masks[number]
        for name, tensor in mean.items():
            expected = tensor.float() * after[name] if name in after else tensor.float()
            torch.testing.assert_close(made.states[number][name], expected, rtol=1e-5, atol=1e-7)
        if number % 2 == 0:
            size = np.concatenate([mean[name].abs().float().numpy().ravel() for name in after])
            kept = np.concatenate([mask.numpy().ravel() for mask in after.values()])
            assert size[kept].min() >= size[~kept].max()


def test_lambda_grows_in_steps():
    made = plan(strategy={**OPTIONS, "regularisation_steps": 4, "regularisation": 1.0}, rounds=8)
    strategy = FedDIP.__new__(FedDIP)
    strategy.options, strategy.scenario = FedDIP.Options(**dict(made.strategy.options)), made
    assert [strategy.strength(number) for number in range(1, 9)] == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75]


def test_options_that_do_not_fit_are_found():
    def found(**options):
        return [key for key, _ in FedDIP.validation_errors(plan(), FedDIP.Options(**options))]

    assert found(density=0.1) == []
    assert found(density=0.6) == ["density"]
    assert found(density=0.1, distribution="none") == ["distribution"]
