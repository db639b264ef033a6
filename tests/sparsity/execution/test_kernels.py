import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedprune.models import MODELS
from fedprune.sparsity.execution import index_masks, sparse_copy
from fedprune.sparsity.execution.index import KernelIndex, Window
from fedprune.sparsity.execution.layers import (
    BatchLastBatchNorm2d,
    BatchLastMaxPool2d,
    SparseConv2d,
    SparseLinear,
    UnfoldedConv2d,
)
from fedprune.sparsity.execution.layout import batch_first, batch_last
from fedprune.sparsity.masks import Masks

PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def convolutions(draw):
    """A window, a size that it fits into, a batch, and a mask that may have empty rows or be empty."""
    window = Window(
        kernel=draw(st.tuples(st.integers(1, 4), st.integers(1, 4))),
        stride=draw(PAIRS),
        padding=draw(st.tuples(st.integers(0, 3), st.integers(0, 3))),
        dilation=draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
    )
    extents = [d * (k - 1) + 1 for d, k in zip(window.dilation, window.kernel, strict=True)]
    least = [max(1, extent - 2 * p) for extent, p in zip(extents, window.padding, strict=True)]
    size = tuple(draw(st.integers(low, low + 6)) for low in least)
    outputs, inputs, batch = (draw(st.integers(1, 5)) for _ in range(3))
    density = draw(st.sampled_from([0.0, 0.05, 0.3, 1.0]))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    mask = torch.rand(outputs, inputs, *window.kernel) < density
    mask[draw(st.integers(0, outputs - 1))] &= draw(st.booleans())
    return window, size, batch, mask, draw(st.booleans())


def layer_of(mask, window, bias=None, dtype=torch.float64):
    index = KernelIndex(mask, window)
    weight = nn.Parameter(torch.randn(index.kept, dtype=dtype))
    kind = SparseConv2d if mask.dim() == 4 else SparseLinear
    return kind(index, weight, None if bias is None else nn.Parameter(bias))


def dense_of(layer, mask):
    return torch.zeros(mask.shape, dtype=layer.weight.dtype).masked_scatter_(mask, layer.weight.detach())


@settings(max_examples=150, deadline=None)
@given(convolutions())
def test_a_convolution_and_its_gradients_are_those_of_a_dense_one_under_the_mask(case):
    window, size, batch, mask, biased = case
    bias = torch.randn(len(mask), dtype=torch.float64) if biased else None
    layer = layer_of(mask, window, bias)
    x = torch.randn(batch, mask.shape[1], *size, dtype=torch.float64, requires_grad=True)
    dense = dense_of(layer, mask).requires_grad_()
    expected = functional.conv2d(x, dense, layer.bias, window.stride, window.padding, window.dilation)
    upstream = torch.randn_like(expected)
    sources = [x, dense] + [layer.bias] * biased
    gradients = torch.autograd.grad(expected, sources, upstream)

    y = layer(x)
    found = torch.autograd.grad(y, [x, layer.weight] + [layer.bias] * biased, upstream)

    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(found[0], gradients[0])
    torch.testing.assert_close(found[1], gradients[1][mask])
    torch.testing.assert_close(found[2:], gradients[2:])


@pytest.mark.parametrize(
    ("shape", "window"),
    [
        ((3, 2, 3, 3), Window((3, 3), (1, 1), (1, 1))),
        ((3, 2, 3, 3), Window((3, 3), (2, 2), (1, 1))),
        ((3, 2, 1, 1), Window((1, 1), (2, 2))),
        ((3, 5), Window()),
    ],
)
def test_gradients_are_those_of_finite_differences(shape, window):
    torch.manual_seed(1)
    mask = torch.rand(shape) < 0.5
    layer = layer_of(mask, window, torch.randn(3, dtype=torch.float64))
    x = torch.randn(2, shape[1], *([4, 5] if len(shape) == 4 else []), dtype=torch.float64)

    def run(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, x)

    parameters = [p.detach().requires_grad_() for p in layer.parameters()]
    assert torch.autograd.gradcheck(run, (x.requires_grad_(), *parameters))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 6), st.integers(1, 6), st.integers(1, 5), st.sampled_from([0.0, 0.3, 1.0]), st.booleans()
)
def test_a_linear_layer_is_a_dense_one_under_the_mask(outputs, inputs, batch, density, nested):
    torch.manual_seed(outputs * 7 + inputs)
    mask = torch.rand(outputs, inputs) < density
    layer = layer_of(mask, Window(), torch.randn(outputs, dtype=torch.float64))
    dense = dense_of(layer, mask).requires_grad_()
    x = torch.randn(*([2] if nested else []), batch, inputs, dtype=torch.float64, requires_grad=True)
    expected = functional.linear(x, dense, layer.bias)
    gradients = torch.autograd.grad(expected.square().sum(), [x, dense])
    y = layer(x)
    found = torch.autograd.grad(y.square().sum(), [x, layer.weight])
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(found[0], gradients[0])
    torch.testing.assert_close(found[1], gradients[1][mask])


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_a_large_convolution_in_single_precision_agrees_over_many_calls_of_the_kernel(density):
    torch.manual_seed(0)
    mask = torch.rand(96, 96, 3, 3) < density
    layer = layer_of(mask, Window((3, 3), (1, 1), (1, 1)), dtype=torch.float32)
    x = torch.randn(33, 96, 12, 12, requires_grad=True)
    dense = dense_of(layer, mask).requires_grad_()
    expected = functional.conv2d(x, dense, padding=1)
    upstream = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, [x, dense], upstream)
    found = torch.autograd.grad(layer(x), [x, layer.weight], upstream)
    assert layer.index.by_input.dtype == (torch.int16 if density == 0.1 else torch.int32)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found[0], gradients[0], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found[1], gradients[1][mask], rtol=1e-4, atol=5e-3)


class Largest(TorchDispatchMode):
    """The most bytes of any storage that comes to be inside."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor) and value.layout == torch.strided:
                self.bytes = max(self.bytes, value.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize(("shape", "size"), [((128, 128, 3, 3), [2, 2]), ((600, 500), [])])
def test_nothing_of_the_dense_weights_size_is_allocated_in_a_step(shape, size):
    torch.manual_seed(0)
    mask = torch.rand(shape) < 0.01
    window = Window((3, 3), (1, 1), (1, 1)) if size else Window()
    layer = layer_of(mask, window, dtype=torch.float32)
    x = torch.randn(2, shape[1], *size, requires_grad=True)
    assert largest_storage(layer, x) < 4 * mask.numel() / 4  # a quarter of the dense weight
    assert layer.index.bytes < 4 * mask.sum() + 4 * (sum(shape[:2]) + 3)


def test_nor_in_a_step_of_a_whole_model():
    torch.manual_seed(0)
    module = MODELS["resnet18"]((3, 8, 8), 10, width=0.5)
    weights = {name: p for name, p in module.named_parameters() if p.dim() > 1}
    masks = Masks({name: torch.rand(weight.shape) < 0.01 for name, weight in weights.items()})
    sparse = sparse_copy(module, index_masks(module, masks))
    assert largest_storage(sparse, torch.randn(2, 3, 8, 8)) < max(w.nbytes for w in weights.values()) / 4


def largest_storage(module, x):
    """Return the bytes of the largest storage of two steps, forward, backward and update."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, foreach=True)
    with Largest() as largest:
        for _ in range(2):
            module(x).square().sum().backward()
            optimizer.step()
    for parameter, state in optimizer.state.items():
        assert parameter.shape == parameter.grad.shape == state["momentum_buffer"].shape
    return largest.bytes


@settings(max_examples=60, deadline=None)
@given(convolutions())
def test_a_dense_convolution_by_unfolding_is_the_same(case):
    window, size, batch, mask, biased = case
    reference = nn.Conv2d(
        mask.shape[1], len(mask), window.kernel, window.stride, window.padding, window.dilation, bias=biased
    ).double()
    layer = UnfoldedConv2d.__new__(UnfoldedConv2d)
    layer.__dict__ = reference.__dict__
    x = torch.randn(batch, mask.shape[1], *size, dtype=torch.float64)
    same(nn.Sequential(layer, nn.ReLU(inplace=True)), nn.Sequential(reference, nn.ReLU()), x)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm_is_pytorchs_with_its_statistics(momentum):
    torch.manual_seed(0)
    reference, layer = (nn.BatchNorm2d(4, momentum=momentum).double() for _ in range(2))
    layer.__class__ = BatchLastBatchNorm2d
    with torch.no_grad():
        for norm in (reference, layer):
            norm.weight.copy_(torch.arange(4))
            norm.bias.copy_(-torch.arange(4))
    for _ in range(2):
        x = 3 + 2 * torch.randn(5, 4, 3, 2, dtype=torch.float64)
        x[:, 2] = 7  # no variance
        same(nn.Sequential(layer, nn.ReLU(inplace=True)), nn.Sequential(reference, nn.ReLU()), x)
    for name, buffer in reference.named_buffers():
        torch.testing.assert_close(layer.get_buffer(name), buffer)
    same(layer.eval(), reference.eval(), x)
    with pytest.raises(ValueError, match="more than 1 value"):
        layer.train()(batch_first(torch.zeros(4, 1, 1, 1, dtype=torch.float64)))


@settings(max_examples=40, deadline=None)
@given(st.tuples(st.integers(1, 3), st.integers(1, 3)), st.integers(3, 8), st.integers(3, 8))
def test_max_pooling_gives_the_gradient_to_the_first_of_equal_values(kernel, height, width):
    torch.manual_seed(height)
    x = torch.randint(-1, 2, (4, 2, height, width)).double()
    layer = BatchLastMaxPool2d(kernel)
    assert BatchLastMaxPool2d.takes(layer)
    same(layer, nn.MaxPool2d(kernel), x)


def same(layer, reference, x):
    """Results and all gradients agree, the first on memory that is batch-last."""
    moved = batch_first(batch_last(x)).requires_grad_()
    x = x.clone().requires_grad_()
    expected, found = reference(x), layer(moved)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(expected)
    parameters = list(reference.parameters())
    gradients = torch.autograd.grad(expected, [x, *parameters], upstream)
    others = torch.autograd.grad(found, [moved, *layer.parameters()], upstream)
    torch.testing.assert_close(others, gradients)
