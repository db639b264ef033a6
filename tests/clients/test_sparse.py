"""The sparse client: its optimizers, FedProx's term and the learning rate over rounds."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from flwr.app import ConfigRecord
from inprocess import assemble, plan
from torch.nn import functional

from fedprune import data as datasets
from fedprune import seeds
from fedprune.client.base import ClientTask
from fedprune.client.site import Site
from fedprune.clients import sparse
from fedprune.data import batches
from fedprune.sparsity.masks import Masks
from fedprune.training import loop as training
from fedprune.wire import get_state, set_state

PROXIMAL = {"clients__training__proximal_mu": 0.7}
ADAM = {"clients__training__optimizer": {"name": "adam", "lr": 0.01, "weight_decay": 0.1}}
NESTEROV = {
    "clients__training__optimizer": {
        "name": "sgd",
        "lr": 0.05,
        "momentum": 0.8,
        "nesterov": True,
        "weight_decay": 0.1,
    }
}


def half(module):
    """Masks that prune about half of each of two layers."""
    generator = torch.Generator().manual_seed(0)
    names = ("block2.conv.weight", "hidden.linear.weight")
    return Masks(
        {name: torch.rand(module.get_parameter(name).shape, generator=generator) < 0.5 for name in names}
    )


def order_for(site, masks, server_round=1):
    codec = site.codec(masks)
    values = codec.flatten(get_state(site.module))
    set_state(site.module, codec.unflatten(values))
    model = sparse.Sparse(site, 0).model(masks, codec)
    model.load(values)
    return ClientTask(server_round, ConfigRecord(), masks, codec, values, model)


def plain_training(site, number, masks, epochs):
    """Masked training in which FedProx's term is a part of the loss and autograd does the rest.

    Of the gradient of a pruned weight only that of the loss is masked, by multiplication.
    """
    training, optimizer = site.scenario.clients.training, site.scenario.clients.training.optimizer
    module = copy.deepcopy(site.module).train()
    start = [p.detach().clone() for p in module.parameters()]
    kind = torch.optim.Adam if optimizer.name == "adam" else torch.optim.SGD
    settings = {"lr": optimizer.lr, "weight_decay": optimizer.weight_decay}
    if optimizer.name == "sgd":
        settings |= {"momentum": optimizer.momentum, "nesterov": optimizer.nesterov}
    stepper = kind(module.parameters(), **settings)
    generator = seeds.torch_generator(site.scenario.seed, "batches", 1, number)
    indices, seen, total = site.data.client_train.of(number), 0, 0.0
    for _ in range(epochs):
        for x, y in batches(site.data.train, indices, site.task, training.batch_size, generator):
            module.zero_grad()
            loss = functional.cross_entropy(module(x), y)
            drift = sum(((p - s) ** 2).sum() for p, s in zip(module.parameters(), start, strict=True))
            (loss + training.proximal_mu / 2 * drift).backward()
            for name, mask in masks.items():
                module.get_parameter(name).grad.mul_(mask)
            stepper.step()
            total, seen = total + loss.item() * len(y), seen + len(y)
    return module, total / seen, seen


@pytest.mark.parametrize(
    "changes",
    [{}, PROXIMAL, NESTEROV, {**NESTEROV, **PROXIMAL}, ADAM, {**ADAM, **PROXIMAL}],
    ids=["SGD", "SGD, FedProx", "Nesterov", "Nesterov, FedProx", "Adam", "Adam, FedProx"],
)
@pytest.mark.parametrize("execution", ["unpruned", "dense", "sparse"])
def test_it_is_plain_pytorch_under_a_mask(changes, execution):
    scenario = plan(clients__training__epochs=2, **changes)
    if execution == "sparse":
        scenario = scenario.override(clients__training__execution="sparse")
    site = Site(scenario, datasets.load(scenario))
    masks = Masks() if execution == "unpruned" else half(site.module)
    task = order_for(site, masks)
    assert (task.model.module is site.module) == (execution != "sparse")
    expected, loss, seen = plain_training(site, 2, masks, epochs=2)
    fit = sparse.Sparse(site, 2).fit(task)
    assert fit.examples_seen == seen
    assert fit.loss == pytest.approx(loss, rel=1e-5)
    found = task.codec.unflatten(fit.values)
    for name, tensor in get_state(expected).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    for name, mask in masks.items():
        assert not found[name][~mask].any()


def test_the_proximal_gradient_is_that_of_its_term():
    generator = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 2), (4,))]
    anchor = [torch.randn(w.shape, generator=generator) for w in weights]
    inputs = [torch.randn(w.shape, generator=generator) for w in weights]

    def loss():
        return sum((w * x).sin().sum() for w, x in zip(weights, inputs, strict=True))

    term = 0.3 / 2 * sum(((w - a) ** 2).sum() for w, a in zip(weights, anchor, strict=True))
    expected = torch.autograd.grad(loss() + term, weights)
    loss().backward()
    training.add_proximal_gradient(weights, anchor, 0.3)
    for weight, gradient in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient)


def test_a_weight_without_a_gradient_is_left_alone():
    weights = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))]
    weights[1].sum().backward()
    training.add_proximal_gradient(weights, [torch.zeros(2)] * 2, 0.5)
    assert weights[0].grad is None
    assert weights[1].grad.tolist() == [1.5, 1.5]


def test_fedprox_stays_closer_to_the_global_model():
    def drift(mu):
        made = assemble(plan(clients__training__proximal_mu=mu, clients__training__epochs=5))
        start = made.strategy.codec.flatten(made.strategy.state)
        made.strategy.start(made.grid, num_rounds=1)
        ends = [made.strategy.codec.decode(reply.content["arrays"]) for _, reply in made.trained()]
        names = [n for n, _ in made.strategy.module.named_parameters()]
        unflatten = made.strategy.codec.unflatten
        return sum(
            float((unflatten(end)[name] - unflatten(start)[name]).norm()) for end in ends for name in names
        )

    assert drift(10.0) < 0.5 * drift(0.0)


#: Of four rounds, from 0.4 down to 0.1, which a fifth round would have.
SCHEDULED = {
    "constant": [0.4, 0.4, 0.4, 0.4],
    "linear": [0.4, 0.325, 0.25, 0.175],
    "cosine": [0.4, 0.1 + 0.15 * (1 + math.sqrt(0.5)), 0.25, 0.1 + 0.15 * (1 - math.sqrt(0.5))],
    "cubic": [0.4, 0.1 + 0.3 * 27 / 64, 0.1 + 0.3 / 8, 0.1 + 0.3 / 64],
}


@pytest.mark.parametrize(("name", "rates"), SCHEDULED.items())
def test_the_learning_rate_follows_its_schedule_over_the_rounds(name, rates, monkeypatch):
    used = []
    make = training.make_optimizer

    def watched(parameters, spec, lr):
        used.append(lr)
        return make(parameters, spec, lr)

    monkeypatch.setattr(training, "make_optimizer", watched)
    schedule = {"name": name} if name == "constant" else {"name": name, "end_factor": 0.25}
    made = assemble(
        plan(
            rounds=4,
            clients__training__schedule=schedule,
            clients__training__optimizer={"name": "sgd", "lr": 0.4},
        )
    )
    made.strategy.start(made.grid)
    assert used == pytest.approx([rate for rate in rates for _ in range(3)])


def test_one_round_has_the_first_learning_rate():
    scenario = plan(rounds=1, clients__training__schedule={"name": "cosine"})
    assert sparse.Sparse(Site(scenario, datasets.load(scenario)), 0).learning_rate(1) == 0.05


def test_only_fedprox_keeps_the_weights_it_started_from():
    """It shows in the peak memory by one value a weight."""

    def peak(**changes):
        made = assemble(plan(rounds=1, **changes))
        made.strategy.start(made.grid)
        tasks = [task for task in made.tasks if task.type == "train"]
        weights = sum(p.numel() for p in made.strategy.module.parameters())
        return tasks[0].peak_memory_bytes, 4 * weights

    plain, weights = peak()
    assert peak(**PROXIMAL)[0] - plain == weights
    assert peak(**ADAM)[0] - plain == weights  # two slots, where SGD with momentum has one
