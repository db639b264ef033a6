import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedprune.models import MODELS
from fedprune.sparsity.criteria import CRITERIA
from fedprune.sparsity.distributions import DISTRIBUTIONS
from fedprune.sparsity.execution import (
    always,
    dense_state,
    held_masks,
    index_masks,
    kept_state,
    sparse_copy,
)
from fedprune.sparsity.execution.layers import SparseConv2d, SparseLinear
from fedprune.sparsity.masks import Masks
from fedprune.sparsity.pruning import prunable, prune
from fedprune.sparsity.training import hold
from fedprune.wire import Layout, StateCodec, get_state, set_state

SHAPE = (3, 16, 16)
WIDTHS = {"resnet18": 0.1, "vgg11": 0.1, "cnn": 0.3, "lenet5": 1.0, "mlp": 0.5}


def built(name, **options):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return MODELS[name](SHAPE, 4, width=WIDTHS[name], **options)


def masks_of(module, density=0.1, keep=(), distribution="uniform"):
    return prune(
        module,
        prunable(module, keep),
        criterion=CRITERIA["magnitude"],
        distribution=DISTRIBUTIONS[distribution],
        density=density,
        example=torch.ones(1, *SHAPE),
    )


def train(module, masks, steps=4, batch=9):
    generator = torch.Generator().manual_seed(5)
    dtype = next(module.parameters()).dtype
    optimizer = torch.optim.SGD(
        module.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01, nesterov=True, foreach=True
    )
    losses = []
    with hold(module.train(), masks):
        for _ in range(steps):
            x = torch.randn(batch, *SHAPE, generator=generator).to(dtype)
            optimizer.zero_grad()
            loss = functional.cross_entropy(module(x), torch.arange(batch) % 4)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def assert_same(sparse, dense, indices):
    state = dense_state(sparse.state_dict(), indices)
    assert list(state) == list(dense.state_dict())
    for name, tensor in dense.state_dict().items():
        torch.testing.assert_close(state[name], tensor, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("keep", [(), ("first", "last")])
@pytest.mark.parametrize("name", sorted(WIDTHS))
def test_training_steps_are_those_of_the_dense_model_under_masks(name, keep):
    dense = built(name).double()
    masks = masks_of(dense, keep=keep)
    indices = index_masks(dense, masks)
    assert indices.keys() == masks.keys()
    sparse = sparse_copy(dense, indices)
    assert train(sparse, Masks()) == pytest.approx(train(dense, masks))
    assert_same(sparse, dense, indices)
    x = torch.randn(3, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(sparse.eval()(x), dense.eval()(x))


@pytest.mark.parametrize("name", ["resnet18", "cnn"])
def test_in_single_precision_they_agree_to_rounding(name):
    dense = built(name)
    masks = masks_of(dense)
    indices = index_masks(dense, masks)
    sparse = sparse_copy(dense, indices)
    assert train(sparse, Masks(), steps=3) == pytest.approx(train(dense, masks, steps=3), rel=1e-3)


def test_layers_that_a_rule_leaves_dense_train_under_their_masks():
    dense = built("resnet18", batch_norm=False).double()
    masks = masks_of(dense)
    indices = index_masks(dense, masks, lambda name, shape, kept: shape[0] == shape[1] > 6)
    held = held_masks(masks, indices)
    assert 0 < len(indices) < len(masks)
    assert {*indices, *held} == set(masks)
    sparse = sparse_copy(dense, indices)
    assert train(sparse, held) == pytest.approx(train(dense, masks))
    assert_same(sparse, dense, indices)


class Odd(nn.Module):
    """What no converter knows: concatenation, reshapes, a shared layer, a word for padding, groups, hooks."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.same = nn.Conv2d(8, 8, 3, padding="same")
        self.grouped = nn.Conv2d(8, 8, 3, groups=2, bias=False)
        self.plain = nn.BatchNorm2d(8, affine=False)
        self.norm = nn.GroupNorm(2, 16)
        self.mixed = nn.Conv2d(16, 8, (3, 1), stride=(2, 1), padding_mode="circular", padding=1)
        self.wide = nn.Conv2d(16, 8, 3, dilation=2, bias=False)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.shared = nn.Linear(8, 8)
        self.again = self.shared
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.first(x).relu_()
        x = self.norm(torch.cat([x, self.same(x)], dim=1))
        x = self.wide(x)[:, :, ::3] + self.pool(self.mixed(x))[:, :, :, :1]
        x = functional.relu(self.plain(self.grouped(x)), inplace=True)
        return self.head(self.again(self.shared(x.reshape(len(x), 8, -1).mean(-1)).tanh()))


def test_modules_that_are_not_known_work_as_they_are():
    torch.manual_seed(0)
    dense = Odd().double()
    masks = masks_of(dense, density=0.3)
    indices = index_masks(dense, masks)
    assert indices.keys() == {"first.weight", "wide.weight", "head.weight"}
    sparse = sparse_copy(dense, indices)
    assert sparse.again is sparse.shared
    held = held_masks(masks, indices)
    assert train(sparse, held) == pytest.approx(train(dense, masks))
    assert_same(sparse, dense, indices)


def test_a_copy_shares_nothing_with_the_model_but_takes_its_values():
    dense = built("cnn")
    masks = masks_of(dense)
    indices = index_masks(dense, masks)
    before = copy.deepcopy(dense.state_dict())
    sparse = sparse_copy(dense, indices)
    for name, tensor in sparse.state_dict().items():
        expected = before[name][masks[name]] if name in masks else before[name]
        assert torch.equal(tensor, expected)
    train(sparse, Masks())
    for name, tensor in dense.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert type(sparse.block1.conv) is SparseConv2d
    assert copy.deepcopy(sparse).block1.conv.index is sparse.block1.conv.index
    single = nn.Linear(2, 2)
    assert isinstance(sparse_copy(single, index_masks(single, masks_for((2, 2)))), SparseLinear)
    plain = sparse_copy(dense, {})
    assert [type(layer) for layer in plain.modules()] == [type(layer) for layer in dense.modules()]


def masks_for(shape):
    return Masks({"weight": torch.ones(shape, dtype=torch.bool)})


def test_the_state_of_a_copy_travels_as_the_same_values_as_the_dense_one():
    dense = built("cnn")
    masks = masks_of(dense)
    indices = index_masks(dense, masks, lambda name, shape, kept: len(shape) == 4)
    held = held_masks(masks, indices)
    sparse = sparse_copy(dense, indices)
    codec = StateCodec(Layout.of(dense), masks)
    own = StateCodec(Layout.of(sparse), held)
    flat = codec.flatten(get_state(dense))
    assert torch.equal(own.flatten(get_state(sparse)), flat)
    set_state(sparse, own.unflatten(2 * flat))
    back = dense_state(get_state(sparse), indices)
    assert torch.equal(codec.flatten(back), 2 * flat)
    assert kept_state(back, indices).keys() == get_state(sparse).keys()
    for name, tensor in kept_state(back, indices).items():
        assert torch.equal(tensor, get_state(sparse)[name])
    for name, tensor in codec.unflatten(2 * flat).items():
        assert torch.equal(back[name], tensor)


def test_a_model_without_memory_is_copied_and_given_a_state_later():
    dense = built("cnn")
    masks = masks_of(dense)
    indices = index_masks(dense, masks)
    with torch.device("meta"):
        skeleton = MODELS["cnn"](SHAPE, 4, width=WIDTHS["cnn"])
    sparse = sparse_copy(skeleton, indices).to_empty(device="cpu")
    sparse.load_state_dict(kept_state(dense.state_dict(), indices))
    x = torch.randn(2, *SHAPE)
    reference = sparse_copy(dense, indices)
    assert torch.equal(sparse(x), reference(x))


def test_masks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"'weight' has shape \(2, 3\), its parameter \(3, 2\)"):
        index_masks(nn.Linear(2, 3), masks_for((2, 3)), always)
    with pytest.raises(AttributeError):
        index_masks(nn.Linear(2, 3), Masks({"other": torch.ones(1, dtype=torch.bool)}))
