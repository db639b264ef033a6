"""Gradients of the pruned weights of a layer that is executed sparse: found in slices, as in a dense one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from losses import cross_entropy
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedprune.models import MODELS
from fedprune.sparsity.execution import index_masks, sparse_copy
from fedprune.sparsity.growth import (
    IMPORTANCE,
    largest_gradients,
    largest_of,
    largest_pruned,
    layer_gradient,
)
from fedprune.sparsity.masks import Masks, apply_masks
from fedprune.sparsity.pruning import prunable

SHAPE = (3, 12, 12)


def pruned(module, density):
    """Masks of about a density, with the module's pruned weights at 0."""
    torch.manual_seed(1)
    shapes = {name: module.get_parameter(name).shape for name in prunable(module, ())}
    masks = Masks({name: torch.rand(shape) < density for name, shape in shapes.items()})
    module.load_state_dict(apply_masks(module.state_dict(), masks))
    return masks


@pytest.fixture(scope="module")
def models():
    """A dense model under masks, its sparse copy, the masks and two batches."""
    torch.manual_seed(0)
    dense = MODELS["resnet18"](SHAPE, 4, width=0.1).double()
    masks = pruned(dense, 0.1)
    batches = [(torch.randn(size, *SHAPE).double(), torch.arange(size) % 4) for size in (5, 3)]
    return dense, sparse_copy(dense, index_masks(dense, masks)).eval(), masks, batches


def test_gradients_of_whole_layers_are_those_of_the_dense_model(models):
    dense, sparse, masks, batches = models
    before = {name: tensor.clone() for name, tensor in sparse.state_dict().items()}
    for name in masks:
        torch.testing.assert_close(
            layer_gradient(sparse, name, batches, cross_entropy),
            layer_gradient(dense, name, batches, cross_entropy),
        )
    assert all(torch.equal(before[name], tensor) for name, tensor in sparse.state_dict().items())
    assert not sparse.training
    assert all(p.requires_grad and p.grad is None for p in sparse.parameters())
    name = next(iter(masks))
    parts = [[batch] for batch in batches]
    for measure in IMPORTANCE.values():
        torch.testing.assert_close(
            measure(sparse, name, parts, cross_entropy), measure(dense, name, parts, cross_entropy)
        )


@pytest.mark.parametrize("count", [40, 10**6])
def test_the_largest_are_those_of_the_dense_model(models, count):
    dense, sparse, masks, batches = models
    for name, mask in masks.items():
        indices, values = largest_gradients(sparse, name, batches, mask, count, cross_entropy)
        expected, of_dense = largest_gradients(dense, name, batches, mask, count, cross_entropy)
        assert torch.equal(indices, expected), name
        torch.testing.assert_close(values, of_dense)


def test_without_batches_the_first_weights_are_named_as_in_the_dense_model(models):
    dense, sparse, masks, _ = models
    name = list(masks)[3]
    for model in (dense, sparse):
        indices, values = largest_gradients(model, name, [], masks[name], 7, cross_entropy)
        assert indices.tolist() == (~masks[name]).flatten().nonzero()[:7, 0].tolist()
        assert not values.any()


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(0, 50), st.randoms())
def test_of_slices_in_any_order_the_largest_are_found_and_ties_go_to_the_first(
    outputs, inputs, taps, count, draw
):
    shape = (outputs, inputs, taps)
    total = outputs * inputs * taps
    numbers = [draw.choice([-2.0, -1.0, 0.0, 1.0, 2.0, float("nan")]) for _ in range(total)]
    gradient = torch.tensor(numbers).view(shape)
    mask = torch.tensor([draw.random() < 0.4 for _ in range(total)]).view(shape)
    slices = [
        (slice(row, row + 1), tap, gradient[row : row + 1, :, tap])
        for row in range(outputs)
        for tap in range(taps)
    ]
    draw.shuffle(slices)
    indices, values = largest_of(slices, mask, count)
    expected, of_all = largest_pruned(gradient, mask, count)
    assert torch.equal(indices, expected)
    assert torch.equal(values.nan_to_num(9.0), of_all.nan_to_num(9.0))


class Largest(TorchDispatchMode):
    """The most bytes of any storage that comes to be inside."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor) and value.layout == torch.strided:
                self.bytes = max(self.bytes, value.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("kind", ["convolution", "linear"])
def test_no_more_than_a_part_of_the_layer_is_ever_allocated(kind):
    torch.manual_seed(0)
    layer = nn.Linear(400, 300) if kind == "linear" else nn.Conv2d(100, 120, 3, padding=1)
    size = () if kind == "linear" else (2, 2)
    module = nn.Sequential(layer, nn.Flatten())
    masks = pruned(module, 0.01)
    sparse = sparse_copy(module, index_masks(module, masks))
    batches = [(torch.randn(2, layer.weight.shape[1], *size), torch.arange(2))]
    with Largest() as largest:
        indices, _ = largest_gradients(sparse, "0.weight", batches, masks["0.weight"], 50, cross_entropy)
    assert len(indices) == 50
    assert largest.bytes < layer.weight.nbytes / 3
