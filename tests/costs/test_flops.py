from __future__ import annotations

import copy
import itertools
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import RowByRow
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from fedprune.costs.flops import ModelCost, Work
from fedprune.sparsity.masks import Masks
from fedprune.tasks import Classification, classification_of

from .nets import NETS, SHAPE


def counted(module: nn.Module, shape: tuple[int, ...], examples: int) -> Work:
    """What PyTorch's own counter says of a real training step."""
    x, y = torch.randn(examples, *shape), torch.zeros(examples, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        loss = functional.cross_entropy(module(x), y)
        forward = counter.get_total_flops()
        loss.backward()
    module.zero_grad()
    return Work(forward, counter.get_total_flops() - forward)


def full_masks(cost: ModelCost, module: nn.Module) -> Masks:
    parameters = dict(module.named_parameters())
    return Masks({layer.weight: torch.ones_like(parameters[layer.weight]).bool() for layer in cost.layers})


@cache
def shared_weight_cost() -> ModelCost:
    return ModelCost.of(NETS["shared"](), SHAPE)


@pytest.mark.parametrize("examples", [2, 3])
def test_dense_products_are_those_of_flop_counter_mode(case, examples):
    module, cost = case
    expected = counted(module, cost.input_shape, examples)
    assert cost.matmul_flops(Masks(), examples) == expected
    assert cost.matmul_flops(full_masks(cost, module), examples) == expected


def test_every_weight_matrix_of_the_model_is_a_layer(case):
    module, cost = case
    matrices = {name for name, parameter in module.named_parameters() if parameter.ndim > 1} - {"position"}
    assert {layer.weight for layer in cost.layers} == matrices


@given(seed=st.integers(0, 2**32), density=st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_a_mask_and_its_complement_share_the_dense_cost(seed, density):
    module = NETS["shared"]()
    cost = shared_weight_cost()
    draw = torch.Generator().manual_seed(seed)
    weights = {name: p for name, p in module.named_parameters() if p.ndim > 1}
    some = {name: torch.rand(p.shape, generator=draw) < density for name, p in weights.items()}
    kept = cost.matmul_flops(Masks(some), 3)
    pruned = cost.matmul_flops(Masks({name: ~mask for name, mask in some.items()}), 3)
    dense = cost.matmul_flops(Masks(), 3)
    assert (kept.forward + pruned.forward, kept.backward + pruned.backward) == (dense.forward, dense.backward)
    # What an adjustment adds for all layers is the pruned weights' share of the weight gradient,
    # which is as large as their share of the forward pass.
    assert cost.dense_gradient_flops(Masks(some), weights, 3) == pruned.forward


@pytest.mark.parametrize(("groups", "stride", "padding"), [(1, 1, 0), (1, 2, 1), (2, 1, 1), (4, 2, 0)])
def test_masked_convolution_against_a_loop_over_its_multiplications(groups, stride, padding):
    conv = nn.Conv2d(4, 8, 3, stride=stride, padding=padding, groups=groups, bias=False)
    module = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), conv, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    mask = torch.rand(conv.weight.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    masks = Masks({"1.weight": mask})
    cost = ModelCost.of(module, (1, 7, 7))

    # Every place of the padded input where the filter is laid, and every weight of each filter.
    places = range(0, 7 + 2 * padding - 2, stride)
    multiplications = 0
    for channel, _row, _column in itertools.product(range(8), places, places):
        for index in itertools.product(range(4 // groups), range(3), range(3)):
            multiplications += bool(mask[(channel, *index)])
    first = 4 * 7 * 7  # the 1x1 convolution below: multiplications per example, one per output

    examples = 5
    expected = Work(
        forward=2 * examples * (first + multiplications),
        backward=2 * examples * (first + 2 * multiplications),  # the first layer has no input gradient
    )
    assert cost.matmul_flops(masks, examples) == expected
    assert [layer.first for layer in cost.layers] == [True, False]


def test_grouped_convolution_costs_what_its_groups_cost_apart():
    """Guards what FlopCounterMode gets wrong: it counts every group's weight gradient over all channels."""

    class Apart(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.parts = nn.ModuleList(nn.Conv2d(2, 4, 3) for _ in range(4))

        def forward(self, x):
            pieces = zip(self.parts, self.stem(x).chunk(4, dim=1), strict=True)
            return torch.cat([part(piece) for part, piece in pieces], dim=1).mean((2, 3))

    together = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 3, groups=4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    cost = ModelCost.of(together, SHAPE)
    assert cost.matmul_flops(Masks(), 3) == counted(Apart(), SHAPE, 3)


def test_biases_activations_and_loss_by_hand():
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    cost = ModelCost.of(module, (3,))
    forward = 4 + 4 + 2 + 5 * 2 + 1  # bias, ReLU, bias, log-softmax, picking the label's term
    backward = 1 + 4 * 2 + 2 + 4 + 4  # the same the other way
    assert cost.elementwise == Work(forward, backward)
    products = Work(2 * (12 + 8), 2 * (12 + 2 * 8))
    assert cost.matmul_flops(Masks(), 1) == products
    assert cost.forward_flops(Masks(), 7) == 7 * (forward + products.forward)
    assert cost.training_flops(Masks(), 7) == 7 * (forward + backward + products.total)


def test_normalisation_and_pooling_by_hand():
    head = ModelCost.of(nn.Sequential(nn.Flatten(), nn.Linear(8, 2)), (2, 2, 2)).elementwise
    normed = ModelCost.of(
        nn.Sequential(nn.BatchNorm2d(2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 2)), (2, 4, 4)
    ).elementwise
    assert normed.forward - head.forward == 8 * 32 + 4 * 8  # 32 values normalised, 8 windows of 4
    assert normed.backward - head.backward == 9 * 32 + 8


@pytest.mark.parametrize(
    "kind",
    [nn.ELU, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.PReLU, nn.ReLU6, nn.Softplus],
)
def test_an_activation_is_a_step_per_element_each_way(kind):
    """As ReLU is; of PReLU there is besides a gradient of its slope, a sum over all elements."""
    found, relu = (
        ModelCost.of(nn.Sequential(nn.Linear(3, 8), activation(), nn.Linear(8, 2)), (3,)).elementwise
        for activation in (kind, nn.ReLU)
    )
    slope = 8 if kind is nn.PReLU else 0
    assert (found.forward, found.backward) == (relu.forward, relu.backward + slope)


@pytest.mark.parametrize("loss", ["mse_loss", "huber_loss", "smooth_l1_loss"])
def test_a_loss_of_regression_is_a_step_per_output_and_their_mean(loss):
    class Regression(Classification):
        def losses(self, outputs, targets, inputs):
            return getattr(functional, loss)(outputs, torch.zeros_like(outputs), reduction="none").mean(dim=1)

        def loss(self, outputs, targets, inputs, reduction="mean"):
            return self.losses(outputs, targets, inputs).mean()

    cost = ModelCost.of(nn.Linear(3, 5, bias=False), Regression(classification_of((3,)).info)).elementwise
    # Each output's loss, their mean, and one example's share of the mean over examples; backward the same.
    assert cost == Work(5 + 5 + 1, 5 + 5 + 1)


def test_masks_leave_everything_but_products_alone():
    cost = shared_weight_cost()
    nothing = Masks({layer.weight: torch.zeros(layer.weights, dtype=torch.bool) for layer in cost.layers})
    assert cost.matmul_flops(nothing, 4).total == 0
    assert cost.training_flops(nothing, 4) == 4 * cost.elementwise.total > 0


def test_a_weight_used_twice_counts_twice():
    conv, head = shared_weight_cost().layers
    assert (conv.positions, conv.input_gradient_positions) == (2 * 256, 256)
    assert (head.positions, head.input_gradient_positions) == (1, 1)


def test_frozen_weights_have_no_gradient():
    stem, head = ModelCost.of(NETS["frozen"](), SHAPE).layers
    assert stem.work(1, 1) == Work(2 * 14 * 14, 0)
    assert head.work(1, 1) == Work(2, 2)  # nothing below is trained: the weight gradient alone


def test_measuring_a_model_does_not_disturb_it(build):
    make, shape = build
    module = make().eval()
    first = next(module.parameters())
    first.grad = torch.ones_like(first)
    before = copy.deepcopy(module.state_dict())
    drawn = torch.get_rng_state()
    with torch.inference_mode():  # nor does the caller's mode matter
        ModelCost.of(module, shape)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not any(part.training for part in module.modules())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(first.grad, torch.ones_like(first))
    assert all(p.grad is None for p in module.parameters() if p is not first)


def test_only_layers_have_a_dense_gradient():
    with pytest.raises(KeyError, match=r"head\.bias"):
        shared_weight_cost().dense_gradient_flops(Masks(), ["head.bias"], 1)


def test_a_model_that_cannot_run_says_why():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        ModelCost.of(nn.Sequential(nn.Flatten(), nn.Linear(5, 2)), SHAPE)


@pytest.mark.parametrize("reads_values", [False, True])
@pytest.mark.parametrize("projection", [0, 5])
def test_masked_lstm_by_hand(reads_values, projection):
    """Also of a model that needs data: on the CPU PyTorch has one operation for the layer."""

    class Reads(RowByRow):
        def forward(self, x):
            return super().forward(x + x.sum().item() if reads_values else x)

    rows, width, hidden, fed = 8, 8, 16, projection or 16
    module = Reads((1, rows, width), 10, proj_size=projection)
    kept = {"rnn.weight_ih_l0": 100, "rnn.weight_hh_l0": 70, "rnn.weight_hr_l0": 30, "h.weight": 11}
    shapes = {name: p.shape for name, p in module.named_parameters() if name in kept}
    masks = Masks(
        {name: (torch.arange(shape.numel()) < kept[name]).reshape(shape) for name, shape in shapes.items()}
    )
    assert shapes["rnn.weight_hh_l0"] == (4 * hidden, fed)
    ih, hh, hr, head = (kept[name] if name in shapes else 0 for name in kept)
    cost, examples = ModelCost.of(module, (1, rows, width)), 3
    # The image needs no gradient, nor does the state before the first row.
    assert cost.matmul_flops(masks, examples) == Work(
        forward=2 * examples * (rows * (ih + hh + hr) + head),
        backward=2 * examples * (rows * (ih + hh + hr) + (rows - 1) * hh + rows * hr + 2 * head),
    )


def test_pooling_in_three_dimensions_and_embeddings_by_hand():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = nn.MaxPool3d(2)
            self.words = nn.Embedding(4, 3)
            self.head = nn.Linear(3, 2)

        def forward(self, x):
            return self.head(self.words(self.pool(x.unsqueeze(1)).flatten(1).long())[:, 0])

    cost = ModelCost.of(Pooled(), (4, 4, 4)).elementwise
    bare = ModelCost.of(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), (3,)).elementwise
    assert cost.forward - bare.forward == 8 * 8  # eight windows of eight
    assert cost.backward - bare.backward == 8 * 3  # a gradient for each row that was looked up
