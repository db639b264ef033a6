import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from losses import cross_entropy
from torch import Tensor, nn
from torch.nn import functional

from fedprune.models import MODELS
from fedprune.sparsity.criteria import (
    CRITERIA,
    GRASP_TEMPERATURE,
    Batches,
    default_iterations,
    needs_data,
    scores_scales,
)
from fedprune.sparsity.pruning import prunable

SHAPE = (2, 8, 8)
CLASSES = 4


def batches(sizes: Sequence[int] = (12, 5), shape: tuple[int, ...] = SHAPE) -> Batches:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(size, *shape, generator=generator),
            torch.randint(CLASSES, (size,), generator=generator),
        )
        for size in sizes
    ]


def scores(criterion: str, module: nn.Module, names: Sequence[str], data: Batches = ()) -> dict[str, Tensor]:
    example = torch.ones(1, *(data[0][0].shape[1:] if data else SHAPE))
    generator = torch.Generator().manual_seed(0)
    found = CRITERIA[criterion](
        module, names, example=example, batches=data, loss=cross_entropy, generator=generator
    )
    return dict(found)


def seeded(module_name: str, **options: float) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return MODELS[module_name](SHAPE, CLASSES, **options)


def tiny_mlp() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, CLASSES)).double()


def doubled(data: Batches) -> Batches:
    return [(inputs.double(), labels) for inputs, labels in data]


def test_magnitude_ranks_like_a_sort_of_the_absolute_values() -> None:
    module = seeded("mlp", width=0.1)
    for name, score in scores("magnitude", module, prunable(module)).items():
        weight = module.state_dict()[name].numpy()
        order = np.argsort(np.abs(weight).ravel(), kind="stable")
        assert np.array_equal(np.argsort(score.numpy().ravel(), kind="stable"), order)


def test_random_depends_on_the_generator_alone() -> None:
    first, second = (seeded("mlp", width=0.1) for _ in range(2))
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(1)
    a, b = (scores("random", module, prunable(module)) for module in (first, second))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert all(float(score.min()) >= 0 and float(score.max()) < 1 for score in a.values())


def test_random_needs_a_generator() -> None:
    module = tiny_mlp()
    with pytest.raises(ValueError, match="needs a generator"):
        CRITERIA["random"](
            module, ["0.weight"], example=torch.ones(1, 3), batches=(), loss=cross_entropy, generator=None
        )


def test_snip_by_the_chain_rule_written_out() -> None:
    module, data = tiny_mlp(), doubled(batches((7, 4), (3,)))
    inputs = torch.cat([x for x, _ in data])
    labels = torch.cat([y for _, y in data])
    w1, b1, w2, b2 = (parameter.detach() for parameter in module.parameters())
    hidden = torch.tanh(inputs @ w1.T + b1)
    error = torch.softmax(hidden @ w2.T + b2, 1) - functional.one_hot(labels, CLASSES)
    error = error / len(labels)
    grad2 = error.T @ hidden
    grad1 = ((error @ w2) * (1 - hidden**2)).T @ inputs

    found = scores("snip", module, ["0.weight", "2.weight"], data)
    torch.testing.assert_close(found["0.weight"], (w1 * grad1).abs())
    torch.testing.assert_close(found["2.weight"], (w2 * grad2).abs())


def test_grasp_by_an_explicit_hessian() -> None:
    module, data = tiny_mlp(), doubled(batches((7, 4), (3,)))
    inputs = torch.cat([x for x, _ in data])
    labels = torch.cat([y for _, y in data])
    w1, b1, w2, b2 = (parameter.detach() for parameter in module.parameters())

    def loss(flat: Tensor) -> Tensor:
        first, second = flat[: w1.numel()].reshape(w1.shape), flat[w1.numel() :].reshape(w2.shape)
        logits = torch.tanh(inputs @ first.T + b1) @ second.T + b2
        return functional.cross_entropy(logits / GRASP_TEMPERATURE, labels)

    flat = torch.cat([w1.reshape(-1), w2.reshape(-1)])
    gradient = torch.autograd.functional.jacobian(loss, flat)
    hessian = torch.autograd.functional.hessian(loss, flat)
    expected = flat * (hessian @ gradient)

    found = scores("grasp", module, ["0.weight", "2.weight"], data)
    torch.testing.assert_close(torch.cat([score.reshape(-1) for score in found.values()]), expected)


def test_grasp_keeps_the_weight_whose_removal_costs_most_gradient_flow() -> None:
    """The sign: to first order, removing w changes the squared gradient norm by -2 w (Hg)."""
    module, data = tiny_mlp(), doubled(batches((11,), (3,)))
    names = ["0.weight", "2.weight"]
    found = scores("grasp", module, names, data)

    def flow(network: nn.Module) -> float:
        (inputs, labels), = data  # fmt: skip
        loss = functional.cross_entropy(network(inputs) / GRASP_TEMPERATURE, labels)
        gradients = torch.autograd.grad(loss, [network.get_parameter(name) for name in names])
        return float(sum((gradient**2).sum() for gradient in gradients))

    shrink = 1e-4
    for name in names:
        for position in np.ndindex(*found[name].shape):
            shrunk = copy.deepcopy(module)
            with torch.no_grad():
                shrunk.get_parameter(name)[position] *= 1 - shrink
            change = (flow(shrunk) - flow(module)) / (-2 * shrink)
            assert change == pytest.approx(float(found[name][position]), rel=1e-2, abs=1e-12)


def plain_synflow(module: nn.Module, name: str, positions: Sequence[tuple[int, ...]]) -> Tensor:
    """SynFlow by its definition, with |w| dR/dw as what doubling that one weight adds to R.

    R is linear in every single weight where none is used twice on a path, so the difference is
    exact up to rounding.
    """
    network = copy.deepcopy(module).double().eval()
    state = {key: value.abs() for key, value in network.state_dict().items()}
    for key, value in state.items():
        if key.endswith(("running_mean", "running_var")):
            state[key] = torch.full_like(value, float(key.endswith("running_var")))
    network.load_state_dict(state)
    ones = torch.ones(1, *SHAPE, dtype=torch.float64)
    weight = network.get_parameter(name)
    added = []
    with torch.no_grad():
        base = network(ones).sum()
        for position in positions:
            before = weight[position].clone()
            weight[position] = 2 * before
            added.append(network(ones).sum() - base)
            weight[position] = before
    return torch.stack(added)


@pytest.mark.parametrize(
    ("name", "options"),
    [("mlp", {"width": 0.1}), ("cnn", {"width": 0.1}), ("resnet18", {"width": 1 / 16})],
)
def test_synflow_is_what_doubling_one_weight_at_a_time_adds(name: str, options: dict[str, float]) -> None:
    module = seeded(name, **options)
    module(batches()[0][0])  # running statistics that SynFlow must not use
    names = prunable(module, keep=[])
    for weight, score in scores("synflow", module, names).items():
        positions = [tuple(p) for p in np.argwhere(np.ones(score.shape))[:: score.numel() // 8 + 1].tolist()]
        expected = plain_synflow(module, weight, positions)
        found = torch.stack([score[position] for position in positions])
        assert score.dtype == torch.float64
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8 * float(expected.max()))


def test_synflow_ignores_batch_norm_that_would_take_the_statistics_of_the_input() -> None:
    with_statistics = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 3))
    without = copy.deepcopy(with_statistics)
    without[1] = nn.BatchNorm2d(3, track_running_stats=False)
    names = ["0.weight", "3.weight"]
    a, b = scores("synflow", with_statistics, names), scores("synflow", without, names)
    assert all(torch.equal(a[name], b[name]) and bool((a[name] > 0).all()) for name in names)


@pytest.mark.parametrize("criterion", ["snip", "grasp"])
def test_scores_of_data_do_not_depend_on_how_it_is_cut_into_batches(criterion: str) -> None:
    module = seeded("mlp", width=0.05).double()
    whole = doubled(batches((16,)))
    inputs, labels = whole[0]
    cut = [(inputs[:3], labels[:3]), (inputs[3:], labels[3:])]
    names = prunable(module, keep=[])
    a, b = scores(criterion, module, names, whole), scores(criterion, module, names, cut)
    for name in names:
        torch.testing.assert_close(a[name], b[name])


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
@pytest.mark.parametrize("training", [True, False])
def test_nothing_changes_in_the_module_or_in_the_global_generator(criterion: str, training: bool) -> None:
    module = nn.Sequential(seeded("cnn", width=0.1), nn.Dropout(0.5), nn.Linear(CLASSES, CLASSES))
    data = batches()
    functional.cross_entropy(module(data[0][0]), data[0][1]).backward()
    module[2].bias.requires_grad_(False)
    module.train(training)
    module[0].eval()
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    gradients = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    objects = [id(parameter) for parameter in module.parameters()]
    flags = [parameter.requires_grad for parameter in module.parameters()]
    modes = [part.training for part in module.modules()]
    generator = torch.get_rng_state()

    names = prunable(module)
    with torch.no_grad():  # whoever prunes need not be recording gradients
        found = scores(criterion, module, names, data)

    assert list(found) == names
    assert all(found[name].shape == state[name].shape and not found[name].requires_grad for name in names)
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    after = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    assert after.keys() == gradients.keys()
    assert all(torch.equal(after[name], gradients[name]) for name in after)
    assert [id(parameter) for parameter in module.parameters()] == objects
    assert [parameter.requires_grad for parameter in module.parameters()] == flags
    assert [part.training for part in module.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_twice_the_same_call_gives_twice_the_same_scores(criterion: str) -> None:
    module = nn.Sequential(seeded("cnn", width=0.1), nn.Dropout(0.5), nn.Linear(CLASSES, CLASSES))
    names = prunable(module)
    a, b = (scores(criterion, module, names, batches()) for _ in range(2))
    assert all(torch.equal(a[name], b[name]) for name in names)


@pytest.mark.parametrize("criterion", ["snip", "grasp", "synflow"])
def test_a_weight_that_the_output_does_not_use_scores_zero(criterion: str) -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Linear(3, CLASSES)
            self.spare = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    found = scores(criterion, Unused(), ["used.weight", "spare.weight"], batches((6,), (3,)))
    assert not found["spare.weight"].any()
    assert found["used.weight"].any()


def test_what_criteria_declare() -> None:
    assert {name for name, criterion in CRITERIA.items() if needs_data(criterion)} == {
        "snip",
        "grasp",
        "taylor",
    }
    assert {name: default_iterations(c) for name, c in CRITERIA.items() if default_iterations(c) > 1} == {
        "synflow": 100
    }
    assert {name for name, criterion in CRITERIA.items() if scores_scales(criterion)} == {"batch_norm_scale"}


def test_a_plain_function_is_a_criterion_that_needs_no_data() -> None:
    def mine(module: nn.Module, names: Sequence[str], **_: object) -> dict[str, Tensor]:
        return {name: module.get_parameter(name).detach() for name in names}

    assert not needs_data(mine)
    assert default_iterations(mine) == 1
