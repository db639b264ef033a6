"""Extrusion by itself: which weights are marked, the term's gradient, and the learning rate's budget."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedprune.client.extrusion import Extrusion, budget_factor, smallest_kept
from fedprune.errors import WireError
from fedprune.protocol.extrusion import ExtrusionRequest
from fedprune.sparsity.masks import Masks


def request(count=3, strength=0.5, start=0.0, end=1.0, budget=True):
    return ExtrusionRequest({"weight": count}, strength, start, end, budget)


def layer(seed=0):
    torch.manual_seed(seed)
    module = nn.Linear(6, 4, bias=False)
    mask = torch.rand(4, 6) < 0.6
    module.weight.data *= mask
    return module, Masks({"weight": mask})


@given(seed=st.integers(0, 99), count=st.integers(0, 30))
def test_the_smallest_kept_weights_are_marked(seed, count):
    module, masks = layer(seed)
    places = smallest_kept(module.weight, masks["weight"], count)
    kept = masks["weight"].reshape(-1).numpy()
    sizes = np.where(kept, module.weight.detach().abs().reshape(-1).numpy(), np.inf)
    assert places.tolist() == sorted(np.argsort(sizes)[: min(count, kept.sum())].tolist())


def test_the_gradient_is_that_of_the_term_in_the_loss():
    module, masks = layer()
    extrusion = Extrusion(module, request(), masks, examples=1)
    x = torch.randn(5, 6)
    places = smallest_kept(module.weight, masks["weight"], 3)
    (module(x).square().sum() + 0.5 * module.weight.reshape(-1)[places].square().sum()).backward()
    expected = module.weight.grad.clone()
    module.zero_grad()
    module(x).square().sum().backward()
    extrusion.add_gradient()
    torch.testing.assert_close(module.weight.grad, expected)
    assert extrusion.count == 3


@pytest.mark.parametrize(
    ("progress", "size", "expected"),
    [
        (0.0, math.inf, 1.0),
        (0.5, math.inf, 2 / 3),
        (1.0, math.inf, 0.0),
        (0.0, 0.0, 0.0),
        (0.0, 1.0, math.tanh(0.5)),
        (0.75, 2.0, 0.4 * math.tanh(1.0)),
    ],
)
def test_the_budget_by_hand(progress, size, expected):
    assert budget_factor(progress, size) == pytest.approx(expected)


@pytest.mark.parametrize("budget", [True, False])
def test_each_step_has_its_learning_rate_and_the_batches_spend_the_budget(budget):
    module, masks = layer()
    extrusion = Extrusion(module, request(start=0.5, end=1.0, budget=budget), masks, examples=20)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    extrusion.register(optimizer)
    rates, expected = [], []
    for number, (x, _) in enumerate(extrusion.counted([(torch.randn(5, 6), torch.zeros(5))] * 4)):
        optimizer.zero_grad()
        module(x).sum().backward()
        spent = 0.5 + 0.5 * number / 4
        assert extrusion.progress == pytest.approx(spent)
        expected.append(0.1 * budget_factor(spent, extrusion.size()) if budget else 0.1)
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx(expected)


@given(count=st.integers(0, 9), strength=st.floats(0, 9), end=st.floats(0, 1), budget=st.booleans())
def test_a_request_survives_its_message(count, strength, end, budget):
    _, masks = layer()
    asked = request(count, strength, 0.0, end, budget)
    assert ExtrusionRequest.of(ConfigRecord(asked.config(masks)), masks) == asked
    assert ExtrusionRequest.of(ConfigRecord({}), masks) is None


@pytest.mark.parametrize(
    "change",
    [
        {"extrude-layers": [1]},
        {"extrude-counts": [1, 2]},
        {"extrude-strength": -1.0},
        {"extrude-start": 0.9, "extrude-end": 0.1},
        {"extrude-end": "late"},
    ],
    ids=str,
)
def test_a_request_that_makes_no_sense_is_refused(change):
    _, masks = layer()
    with pytest.raises(WireError):
        ExtrusionRequest.of(ConfigRecord({**request().config(masks), **change}), masks)
