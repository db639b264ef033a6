"""SalientGrads: the mask is that of the clients' SNIP scores, averaged; who is lost counts in no way."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from inprocess import assemble, federate, plan, same_state
from masked import Watched, assert_order_does_not_matter, assert_sound, losing
from torch.nn import functional

from fedprune import seeds
from fedprune.client.site import Site
from fedprune.data import batches
from fedprune.errors import RunError
from fedprune.wire import set_state

OPTIONS = {"name": "salientgrads", "density": 0.1, "saliency_batches": 2}


def saliency(made, client):
    """SNIP's score of every weight by one backward pass over the whole model, batch by batch."""
    site = Site(made.scenario, made.data)
    module, data = copy.deepcopy(site.module), made.data.client(client)
    set_state(module, assemble(made.scenario).strategy.state)
    module.train()
    generator = seeds.torch_generator(made.scenario.seed, "growth", 0, client)
    picked = batches(data.examples, data.train, site.task, 16, generator=generator)
    total = dict.fromkeys(made.strategy.masks, 0.0)
    for (x, y), _ in zip(picked, range(2), strict=False):
        module.zero_grad()
        functional.cross_entropy(module(x), y).backward()
        for name in total:
            weight = module.get_parameter(name)
            total[name] = total[name] + (weight * weight.grad).abs().detach().double().numpy() / 2
    return total


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("lost", [None, 2])
def test_the_mask_keeps_the_highest_of_the_mean_saliency(weighted, lost):
    tamper = None if lost is None else losing(lost, ("query.importance",), (0,))
    made = federate(plan(strategy={**OPTIONS, "weighted": weighted}, rounds=1), tamper=tamper)
    asked = [n for n in range(4) if n != lost]
    scores = [saliency(made, number) for number in asked]
    weights = [made.strategy.clients[n].examples if weighted else 1 for n in asked]
    masks = made.strategy.masks
    mean = np.concatenate([np.average([s[n].ravel() for s in scores], 0, weights) for n in masks])
    kept = np.concatenate([mask.numpy().ravel() for mask in masks.values()])
    assert kept.sum() == round(0.1 * masks.total)
    # But for rounding: each layer has a kept weight among the highest of the model here.
    assert mean[kept].min() >= mean[~kept].max() * (1 - 1e-4)


def test_a_run_is_sound():
    made = Watched(plan(strategy=OPTIONS))
    assert_sound(made, 2)
    assert_order_does_not_matter(made.made.scenario, made.made)
    assert made.masks[0] == made.masks[2]


def test_how_clients_count_changes_the_mask():
    one = federate(plan(strategy={**OPTIONS, "weighted": True}, rounds=1)).strategy
    other = federate(plan(strategy={**OPTIONS, "weighted": False}, rounds=1)).strategy
    assert one.masks != other.masks
    assert not same_state(one.state, other.state)


def test_without_any_answer_the_run_ends():
    with pytest.raises(RunError, match="no client measured the saliency"):
        federate(plan(strategy=OPTIONS), tamper=lambda message, reply: _only_facts(message, reply))


def _only_facts(message, reply):
    return None if message.metadata.message_type == "query.importance" else reply
