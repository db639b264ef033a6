"""Standardised filters: mean and norm over kept weights, and centred activations that come of it."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedprune.models import MODELS
from fedprune.sparsity.standardisation import RELU_GAIN, centred, convolutions, standardised


@given(seed=st.integers(0, 99), density=st.floats(0, 1))
def test_only_kept_weights_count_and_pruned_ones_are_zero(seed, density):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 3, 2, 2, generator=generator) + 1
    mask = torch.rand(weight.shape, generator=generator) < density
    middle, whole = centred(weight, mask), standardised(weight, mask)
    assert not middle[~mask].any()
    assert not whole[~mask].any()
    for row, keeps, less, unit in zip(weight, mask, middle, whole, strict=True):
        kept = row[keeps].double().numpy()
        expected = kept - kept.mean() if len(kept) > 1 else kept
        np.testing.assert_allclose(less[keeps].numpy(), expected, atol=1e-6)
        if len(kept) > 1:
            expected = RELU_GAIN * (kept - kept.mean()) / (kept.std() * math.sqrt(len(kept)))
            np.testing.assert_allclose(unit[keeps].numpy(), expected, rtol=1e-3, atol=1e-5)


def test_averages_of_centred_filters_are_centred():
    one, two = centred(torch.randn(4, 9)), centred(torch.randn(4, 9))
    torch.testing.assert_close((0.3 * one + 0.7 * two).mean(dim=1), torch.zeros(4))


def test_activations_keep_mean_and_variance_through_standardised_layers():
    torch.manual_seed(0)
    x = torch.randn(64, 256)
    for _ in range(8):
        weight = torch.randn(256, 256)
        x = x.relu() @ standardised(weight, torch.rand(256, 256) < 0.3).T
    assert abs(x.mean()) < 0.2
    assert 0.6 < x.std() < 1.5


def test_the_convolutions_of_a_model_are_found_and_no_other_weights():
    module = MODELS["cnn"]((1, 8, 8), 10)
    assert convolutions(module) == ["block1.conv.weight", "block2.conv.weight"]
    shared = nn.Conv2d(1, 1, 1)
    assert convolutions(nn.Sequential(shared, shared, nn.Linear(1, 1))) == ["0.weight"]
