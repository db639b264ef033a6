"""The training loop: what it reports, whose settings it takes, and what it leaves alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedprune.scenario import OptimizerSpec
from fedprune.sparsity.masks import Masks
from fedprune.tasks import classification_of
from fedprune.training.loop import train

CLASSIFICATION = classification_of((4,))

PLAIN = OptimizerSpec(name="sgd", lr=123.0)
"""Its learning rate is not the one that counts."""


def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).eval()


def drawn(*counts):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(count, 4, generator=generator), torch.randint(0, 3, (count,), generator=generator))
        for count in counts
    ]


def test_a_step_is_the_gradient_times_the_given_rate():
    module, ((x, y),) = net(), drawn(8)
    expected = copy.deepcopy(module).train()
    loss = functional.cross_entropy(expected(x), y)
    loss.backward()
    trained = train(module, [(x, y)], CLASSIFICATION, PLAIN, lr=0.25, masks=Masks())
    assert trained.loss == pytest.approx(loss.item())
    for found, before in zip(module.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, before - 0.25 * before.grad)


def test_the_loss_is_the_mean_over_examples_not_over_batches():
    module, batches = net(), drawn(8, 2, 5)
    losses = []
    for x, y in batches:
        losses.append(functional.cross_entropy(copy.deepcopy(module).train()(x), y).item())
    trained = train(module, iter(batches), CLASSIFICATION, PLAIN, lr=0.0, masks=Masks())
    assert trained.examples_seen == 15
    assert trained.loss == pytest.approx((8 * losses[0] + 2 * losses[1] + 5 * losses[2]) / 15)


def test_without_batches_nothing_happens():
    module = net()
    before = copy.deepcopy(module.state_dict())
    trained = train(module, [], CLASSIFICATION, PLAIN, lr=1.0, masks=Masks())
    assert (trained.loss, trained.examples_seen) == (0.0, 0)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize("mu", [0.0, 0.5])
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_pruned_weights_are_zero_even_where_they_were_not(name, mu):
    module = net()
    masks = Masks({"0.weight": torch.arange(24).reshape(6, 4) % 3 == 0})
    spec = OptimizerSpec(name=name, lr=1.0, weight_decay=0.1)
    assert module[0].weight[~masks["0.weight"]].any()
    train(module, drawn(8, 8, 8), CLASSIFICATION, spec, lr=0.1, masks=masks, proximal_mu=mu)
    assert not module[0].weight[~masks["0.weight"]].any()
    assert module[0].weight[masks["0.weight"]].all()


def test_a_frozen_parameter_stays_as_it_is():
    module = net()
    module[3].weight.requires_grad_(False)
    before = module[3].weight.clone()
    train(
        module,
        drawn(8, 8),
        CLASSIFICATION,
        OptimizerSpec(name="sgd", lr=1.0, weight_decay=0.5),
        lr=0.1,
        masks=Masks(),
    )
    assert torch.equal(module[3].weight, before)
