"""Activation pruning: what is kept, what gradients come of it, and what autograd really saves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from built_in import PICTURES
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from fedprune.costs.flops import ModelCost
from fedprune.costs.memory import step_memory
from fedprune.models import MODELS
from fedprune.sparsity.activations import (
    compress,
    kept_entries,
    pack_bits,
    restore,
    sparse_activations,
    unpack_bits,
)
from fedprune.sparsity.masks import Masks


def largest(x: torch.Tensor, density: float) -> torch.Tensor:
    """The tensor with all but the largest entries of each example set to 0, by a sort."""
    rows = x.detach().numpy().reshape(len(x), -1).copy()
    for row in rows:
        row[np.argsort(-np.abs(row))[math.ceil(density * row.size) :]] = 0
    return torch.from_numpy(rows).reshape(x.shape)


@given(bits=st.lists(st.tuples(*[st.booleans()] * 11), min_size=1, max_size=5))
def test_bits_pack_eight_to_a_byte_and_unpack(bits):
    packed = pack_bits(torch.tensor(bits))
    assert packed.numpy().tolist() == np.packbits(bits, axis=1, bitorder="little").tolist()
    assert unpack_bits(packed, 11).tolist() == [list(row) for row in bits]


@given(seed=st.integers(0, 99), rows=st.integers(1, 9), density=st.floats(0.01, 0.99))
def test_exactly_the_asked_share_of_largest_entries_is_kept(seed, rows, density):
    x = torch.randn(rows, 7, generator=torch.Generator().manual_seed(seed))
    values, bitmaps = compress(x, density)
    assert values.shape == (rows, kept_entries(7, density)) == (rows, math.ceil(density * 7))
    assert (bitmaps.dtype, bitmaps.shape) == (torch.uint8, (rows, 1))
    assert torch.equal(restore(values, bitmaps, x.shape), largest(x, density))


def gradients(layer, x, density):
    x = x.clone().requires_grad_()
    layer.zero_grad()
    with sparse_activations(density):
        y = layer(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    (y * weights).sum().backward()
    return y.detach(), x.grad, {name: p.grad.clone() for name, p in layer.named_parameters()}


LAYERS = {
    "convolution": (lambda: nn.Conv2d(4, 6, 3, padding=1), (3, 4, 8, 8)),
    "strided": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), (3, 4, 8, 8)),
    "grouped": (lambda: nn.Conv2d(4, 8, (3, 1), groups=2, dilation=2), (3, 4, 8, 8)),
    "linear": (lambda: nn.Linear(12, 5), (7, 12)),
    "linear of sequences": (lambda: nn.Linear(12, 5, bias=False), (7, 3, 12)),
}


@pytest.mark.parametrize("density", [0.1, 0.5])
@pytest.mark.parametrize("name", LAYERS)
def test_forward_is_exact_and_weights_learn_from_the_pruned_input(name, density):
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer, x = make(), torch.randn(shape)
    exact, exact_input, exact_weights = gradients(layer, x, 1.0)
    y, to_input, found = gradients(layer, x, density)
    _, _, pruned = gradients(layer, largest(x, density), 1.0)
    assert torch.equal(y, exact)
    torch.testing.assert_close(to_input, exact_input)
    torch.testing.assert_close(found["weight"], pruned["weight"])
    assert (found["weight"] - exact_weights["weight"]).abs().max() > 1e-2
    if "bias" in found:
        torch.testing.assert_close(found["bias"], exact_weights["bias"])


@pytest.mark.parametrize(
    "relu", [nn.ReLU(), functional.relu, torch.relu], ids=["module", "function", "torch"]
)
def test_relu_is_exact_from_one_bit_a_value(relu):
    x = torch.randn(5, 9).requires_grad_()
    saved = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t)
    with hooks, sparse_activations(0.5):
        y = relu(x)
    (y * torch.arange(9)).sum().backward()
    assert torch.equal(y, x.clamp(min=0))
    assert torch.equal(x.grad, (x > 0) * torch.arange(9.0))
    assert [(t.dtype, t.numel()) for t in saved] == [(torch.uint8, 5 * 2)]


def saved_bytes(module, x, y, density):
    """What autograd saves in a real step: every storage once, but for the model's own."""
    own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    kept = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)
    with hooks, sparse_activations(density):
        functional.cross_entropy(module(x), y)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    return sum(size for address, size in storages.items() if address not in own)


BARE = {"batch_norm": False}


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in PICTURES), ("resnet18", BARE), ("vgg11", BARE), ("cnn", BARE)],
    ids=str,
)
@pytest.mark.parametrize("density", [0.1, 0.5])
def test_the_memory_model_counts_what_autograd_saves_to_the_byte(name, options, density):
    shape, batch = (3, 16, 16), 3
    module = MODELS[name](shape, 10, width=0.125, **options)
    memory = step_memory(ModelCost.of(module, shape), Masks(), batch, activation_density=density)
    x, y = torch.randn(batch, *shape), torch.zeros(batch, dtype=torch.long)
    assert memory.activations == saved_bytes(module, x, y, density)


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_without_batch_norm_or_pooling_activations_are_values_and_bits(density):
    """Of a fully connected network by hand: inputs as values and bitmap, ReLU one bit, then the loss."""
    module = MODELS["mlp"]((1, 8, 8), 10, hidden=[24, 16])
    batch = 5
    memory = step_memory(ModelCost.of(module, (1, 8, 8)), Masks(), batch, activation_density=density)
    sparse = batch * sum(4 * math.ceil(density * n) + math.ceil(n / 8) for n in (64, 24, 16))
    bits = batch * sum(math.ceil(n / 8) for n in (24, 16))
    loss = 4 * batch * 10 + 8 * batch + 4
    assert memory.activations == sparse + bits + loss


@pytest.mark.parametrize("density", [0.0, -1.0, 1.1, math.nan])
def test_a_density_that_is_none_is_refused(density):
    with pytest.raises(ValueError, match="density of activations"), sparse_activations(density):
        pass


def test_a_step_needs_less_memory():
    """What a layer no longer saves it still holds while it computes; what is left is still less."""
    cost = ModelCost.of(MODELS["resnet18"]((3, 32, 32), 10, width=0.125, batch_norm=False), (3, 32, 32))
    dense, sparse = (step_memory(cost, Masks(), 32, activation_density=share) for share in (1.0, 0.1))
    assert sparse.activations < 0.25 * dense.activations
    assert sparse.total < 0.75 * dense.total


def test_outside_of_it_nothing_is_changed():
    layer, x = nn.Conv2d(2, 3, 3), torch.randn(2, 2, 5, 5)
    with sparse_activations(0.1):
        assert "_Convolution" in type(layer(x).grad_fn).__name__
        with torch.no_grad():
            assert layer(x).grad_fn is None
    assert "_Convolution" not in type(layer(x).grad_fn).__name__
