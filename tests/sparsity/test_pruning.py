import copy
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from losses import cross_entropy
from torch import Tensor, nn
from torch.nn import functional

from fedprune.errors import UserError
from fedprune.models import MODELS
from fedprune.sparsity.criteria import CRITERIA, Batches, declare
from fedprune.sparsity.distributions import DISTRIBUTIONS, Shapes, rescale
from fedprune.sparsity.masks import Masks
from fedprune.sparsity.pruning import left_dense, prunable, prune

SHAPE = (1, 8, 8)


def data() -> Batches:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, *SHAPE, generator=generator), torch.arange(8) % 3)]


def model(name: str = "mlp", **options: float) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return MODELS[name](SHAPE, 3, **options)


def masks_of(
    module: nn.Module,
    criterion: str = "magnitude",
    distribution: str = "global",
    density: float = 0.1,
    names: Sequence[str] | None = None,
    iterations: int | None = None,
) -> Masks:
    return prune(
        module,
        prunable(module, keep=["last"]) if names is None else names,
        criterion=CRITERIA[criterion],
        distribution=DISTRIBUTIONS[distribution],
        density=density,
        example=torch.ones(1, *SHAPE),
        iterations=iterations,
        batches=data(),
        loss=cross_entropy,
        generator=torch.Generator().manual_seed(0),
    )


@pytest.mark.parametrize("distribution", sorted(DISTRIBUTIONS))
@pytest.mark.parametrize("criterion", sorted(CRITERIA))
@settings(max_examples=10, deadline=None)
@given(density=st.floats(1e-4, 1.0), iterations=st.integers(1, 4))
def test_every_pair_keeps_the_exact_number_and_no_empty_layer(
    criterion: str, distribution: str, density: float, iterations: int
) -> None:
    module = model("cnn", width=0.1)
    masks = masks_of(module, criterion, distribution, density, iterations=iterations)
    assert sum(masks.kept.values()) == max(round(density * masks.total), len(masks))
    assert min(masks.kept.values()) >= 1
    assert {name: mask.shape for name, mask in masks.items()} == {
        name: module.get_parameter(name).shape for name in prunable(module, keep=["last"])
    }


def test_global_magnitude_keeps_the_largest_weights_of_the_model() -> None:
    module = model(width=0.2)
    masks = masks_of(module, density=0.25)
    values = np.concatenate([module.get_parameter(name).detach().abs().numpy().ravel() for name in masks])
    kept = np.concatenate([mask.numpy().ravel() for mask in masks.values()])
    assert np.array_equal(np.sort(values[kept]), np.sort(values)[-kept.sum() :])


def test_uniform_magnitude_keeps_the_largest_weights_of_each_layer() -> None:
    module = model(width=0.2)
    for name, mask in masks_of(module, distribution="uniform", density=0.25).items():
        values = module.get_parameter(name).detach().abs().numpy().ravel()
        kept = mask.numpy().ravel()
        assert np.array_equal(np.sort(values[kept]), np.sort(values)[-kept.sum() :])
        assert kept.sum() == pytest.approx(0.25 * kept.size, abs=1)


@pytest.mark.parametrize("distribution", sorted(DISTRIBUTIONS))
def test_of_equal_weights_the_first_are_kept(distribution: str) -> None:
    module = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Linear(5, 4, bias=False))
    nn.init.ones_(module[0].weight)
    nn.init.ones_(module[1].weight)
    masks = masks_of(module, distribution=distribution, density=0.3, names=["0.weight", "1.weight"])
    for mask in masks.values():
        assert mask.reshape(-1).tolist() == sorted(mask.reshape(-1).tolist(), reverse=True)


def direct_synflow(module: nn.Module, names: Sequence[str], density: float, steps: int) -> dict[str, Tensor]:
    """Algorithm 1 of the paper, word for word: masks times absolute weights, one threshold over all."""
    masks = {name: torch.ones_like(module.get_parameter(name), dtype=torch.float64) for name in names}
    buffers = {name: torch.zeros_like(b) for name, b in module.double().named_buffers()}
    buffers |= {name: torch.ones_like(b) for name, b in buffers.items() if name.endswith("running_var")}
    for step in range(1, steps + 1):
        leaves = {name: p.detach().abs().requires_grad_() for name, p in module.named_parameters()}
        masked = {name: leaf * masks[name] if name in masks else leaf for name, leaf in leaves.items()}
        ones = torch.ones(1, *SHAPE, dtype=torch.float64)
        torch.func.functional_call(module.eval(), {**masked, **buffers}, ones).sum().backward()
        score = {name: (leaves[name].grad * leaves[name]).detach() * masks[name] for name in names}
        ranked = sorted(torch.cat([s.reshape(-1) for s in score.values()]).tolist(), reverse=True)
        threshold = ranked[round(density ** (step / steps) * len(ranked)) - 1]
        masks = {name: (s >= threshold).double() for name, s in score.items()}
    return {name: mask.bool() for name, mask in masks.items()}


@pytest.mark.parametrize(
    ("name", "options", "density"),
    [("mlp", {"width": 0.1}, 0.05), ("cnn", {"width": 0.2}, 0.05), ("resnet18", {"width": 1 / 16}, 0.2)],
)
@pytest.mark.parametrize("steps", [1, 10])
def test_synflow_masks_are_those_of_a_direct_computation(
    name: str, options: dict[str, float], density: float, steps: int
) -> None:
    module = model(name, **options)
    names = prunable(module) if name != "mlp" else prunable(module, keep=["last"])
    masks = masks_of(module, "synflow", "global", density, names, steps)
    expected = direct_synflow(copy.deepcopy(module), names, density, steps)
    # One weight a layer is kept here and not there: leave that to the tests above.
    assert all(bool(mask.any()) for mask in expected.values())
    for layer, mask in expected.items():
        assert torch.equal(masks[layer], mask), layer


def test_synflow_iterates_a_hundred_times_by_default_and_the_density_falls_exponentially() -> None:
    seen: list[float] = []

    def watching(shapes: Shapes, density: float, scores: Mapping[str, Tensor]) -> dict[str, float]:
        seen.append(density)
        return DISTRIBUTIONS["global"](shapes, density, scores)

    module = model(width=0.05)
    prune(
        module,
        prunable(module),
        criterion=CRITERIA["synflow"],
        distribution=watching,
        density=0.01,
        example=torch.ones(1, *SHAPE),
    )
    assert len(seen) == 100
    assert seen[-1] == 0.01
    assert np.diff(np.log(seen)) == pytest.approx([math.log(0.01) / 100] * 99)


def test_later_iterations_see_the_pruned_model_and_bring_nothing_back() -> None:
    module = model(width=0.1)
    seen: list[dict[str, Tensor]] = []

    def spying(network: nn.Module, names: Sequence[str], **_: object) -> dict[str, Tensor]:
        seen.append({name: network.get_parameter(name).detach() != 0 for name in names})
        # Weights that were pruned before would now score highest.
        return {name: -network.get_parameter(name).detach().abs() for name in names}

    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    masks = prune(
        module,
        prunable(module),
        criterion=spying,
        distribution=DISTRIBUTIONS["global"],
        density=0.1,
        example=torch.ones(1, *SHAPE),
        iterations=3,
    )
    nested = [*seen, dict(masks)]
    for larger, smaller in pairwise(nested):
        assert all(not (smaller[name] & ~larger[name]).any() for name in masks)
        assert sum(int(m.sum()) for m in smaller.values()) < sum(int(m.sum()) for m in larger.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_a_distribution_of_ones_own_is_a_function() -> None:
    def first_layer_double(shapes: Shapes, density: float, scores: Mapping[str, Tensor]) -> dict[str, float]:
        return rescale({name: 1.0 if i else 2.0 for i, name in enumerate(shapes)}, shapes, density)

    module = model(width=0.2)
    names = prunable(module, keep=[])
    masks = prune(
        module,
        names,
        criterion=CRITERIA["magnitude"],
        distribution=first_layer_double,
        density=0.1,
        example=torch.ones(1, *SHAPE),
    )
    share = masks.densities()
    assert share[names[0]] == pytest.approx(2 * share[names[1]], rel=0.05)


@pytest.mark.parametrize("criterion", ["snip", "grasp"])
def test_a_criterion_without_its_data_is_refused(criterion: str) -> None:
    module = model()
    with pytest.raises(UserError, match=rf"'{criterion}' needs data.*data\.server_fraction"):
        prune(
            module,
            prunable(module),
            criterion=CRITERIA[criterion],
            distribution=DISTRIBUTIONS["erk"],
            density=0.1,
            example=torch.ones(1, *SHAPE),
        )


@pytest.mark.parametrize("density", [0.0, -0.5, 1.5])
def test_an_impossible_density_is_refused(density: float) -> None:
    with pytest.raises(UserError, match=f"density is {density}"):
        masks_of(model(), "synflow", density=density)


def test_no_iterations_are_refused() -> None:
    with pytest.raises(ValueError, match="iterations is 0"):
        masks_of(model(), iterations=0)


@pytest.mark.parametrize("wrong", ["missing", "shape", "nan"])
def test_wrong_scores_are_refused(wrong: str) -> None:
    @declare(iterations=2)
    def mine(module: nn.Module, names: Sequence[str], **_: object) -> dict[str, Tensor]:
        if wrong == "missing":
            return {}
        if wrong == "shape":
            return {name: torch.zeros(2) for name in names}
        return {name: torch.full_like(module.get_parameter(name), torch.nan) for name in names}

    error: type[Exception] = ValueError if wrong == "nan" else UserError
    with pytest.raises(error, match=r"hidden2\.linear\.weight|'scores' has scores that are not a number"):
        prune(
            model(),
            ["hidden2.linear.weight"],
            criterion=mine,
            distribution=DISTRIBUTIONS["global"],
            density=0.1,
            example=torch.ones(1, *SHAPE),
        )


# What may be pruned.


def test_prunable_weights_are_those_of_convolutions_and_linear_layers_between_first_and_last() -> None:
    module = model("resnet18", width=1 / 16)
    expected = [
        f"{name}.weight" for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    assert prunable(module, keep=[]) == expected
    assert prunable(module) == expected[1:-1]
    assert expected[0].startswith("stem")
    assert expected[-1] == "head.weight"


@pytest.mark.parametrize("pattern", ["layer1.*", "layer1*", "layer1.0.conv?.weight", "layer1.0.conv[12]"])
def test_patterns_match_layers_and_weights(pattern: str) -> None:
    module = model("resnet18", width=1 / 16)
    kept = set(prunable(module, keep=[])) - set(prunable(module, keep=[pattern]))
    expected = {"layer1.0.conv1.weight", "layer1.0.conv2.weight"}
    if pattern.endswith("*"):
        expected |= {"layer1.1.conv1.weight", "layer1.1.conv2.weight"}
    assert kept == expected


def test_a_pattern_that_matches_nothing_gets_the_nearest_names() -> None:
    with pytest.raises(UserError, match=r"'hiden1.linear' matches no layer.*hidden1\.linear"):
        prunable(model(), keep=["first", "hiden1.linear"])


def test_nothing_left_to_prune_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"nothing is left to prune; left dense: 0.weight \(keep: 'first'\), 2.weight \("
    ):
        prunable(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2)))


def test_a_shared_weight_appears_once_and_a_bare_layer_has_a_name() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    module[2].weight = module[1].weight
    assert prunable(module) == ["1.weight"]
    assert prunable(nn.Linear(3, 3), keep=[]) == ["weight"]


def test_what_stays_dense_is_named_with_the_reason() -> None:
    module = nn.Sequential(
        OrderedDict(
            words=nn.Embedding(9, 4),
            rnn=nn.LSTM(4, 8),
            normed=nn.utils.parametrizations.weight_norm(nn.Linear(8, 6)),
            mixed=nn.Bilinear(6, 6, 3, bias=False),
            head=nn.Linear(6, 2),
        )
    )
    module.register_parameter("scale", nn.Parameter(torch.ones(1, 2)))
    assert prunable(module, ["last"]) == ["rnn.weight_ih_l0", "rnn.weight_hh_l0"]
    assert left_dense(module, ["last"]) == (
        "left dense: scale (Sequential: not a type of layer that can be pruned), "
        "words.weight (Embedding: rows are looked up, not multiplied), "
        "normed.parametrizations.weight.original0 and normed.parametrizations.weight.original1 "
        "(ParametrizationList: a weight is computed from it), "
        "mixed.weight (Bilinear: its products are not counted by weight), "
        f"head.weight (keep: 'last'), {2 * 32 + 6 + 2} in biases and normalisation"
    )
    assert left_dense(nn.Sequential(nn.Linear(2, 2, bias=False)), []) == ""


def test_many_layers_that_stay_dense_for_one_reason_are_not_all_named() -> None:
    module = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(7)))
    assert left_dense(module, ["[0-5]"]) == (
        "left dense: 0.weight, 1.weight, 2.weight, 3.weight and 2 more (keep: '[0-5]')"
    )


def test_a_pattern_for_a_layer_that_is_never_pruned_says_so() -> None:
    module = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    with pytest.raises(
        UserError, match=r"'0' matches no layer that could be pruned: 0.weight is never pruned \(E"
    ):
        prunable(module, keep=["0"])


def test_a_model_without_layers_to_prune_says_what_it_has() -> None:
    with pytest.raises(
        UserError, match=r"has nothing to prune; left dense: 0.weight \(Embedding: .*density: 1"
    ):
        prunable(nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm(4)))


def test_a_pruned_model_still_computes_something_at_one_percent_with_synflow() -> None:
    """Why SynFlow is iterated: a path from input to output is left."""
    module = model("cnn", width=0.5)
    masks = masks_of(module, "synflow", density=0.01)
    pruned = copy.deepcopy(module).eval()
    with torch.no_grad():
        for name, mask in masks.items():
            pruned.get_parameter(name).mul_(mask)
        out = pruned(data()[0][0])
    assert not functional.softmax(out, 1).std(0).eq(0).any()
