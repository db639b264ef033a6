import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from fedprune.errors import UserError
from fedprune.sparsity.distributions import DISTRIBUTIONS, Shapes, kept_counts, rescale, total_kept

RESNET_LIKE = {
    "stem": (64, 3, 3, 3),
    "conv1": (64, 64, 3, 3),
    "conv2": (128, 64, 3, 3),
    "shortcut": (128, 64, 1, 1),
    "conv3": (512, 512, 3, 3),
    "head": (10, 512),
}
densities = st.floats(0.0005, 1.0)


@st.composite
def models(draw: st.DrawFn) -> dict[str, tuple[int, ...]]:
    shape = st.lists(st.integers(1, 8), min_size=2, max_size=4).map(tuple)
    return dict(enumerate_names(draw(st.lists(shape, min_size=1, max_size=6))))


def enumerate_names(shapes: list[tuple[int, ...]]) -> list[tuple[str, tuple[int, ...]]]:
    return [(f"layer{number}", shape) for number, shape in enumerate(shapes)]


def random_scores(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def size(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


def naive_erk(shapes: Shapes, density: float) -> dict[str, float]:
    """The loop of the paper: one factor for all; who exceeds 1 becomes dense; again for the others."""
    dense: set[str] = set()
    while True:
        budget = density * sum(map(size, shapes.values())) - sum(size(shapes[name]) for name in dense)
        sparse = {name: shape for name, shape in shapes.items() if name not in dense}
        factor = budget / sum(sum(shape) for shape in sparse.values())
        result = {name: factor * sum(shape) / size(shape) for name, shape in sparse.items()}
        exceeding = {name for name, share in result.items() if share > 1}
        if not exceeding:
            return {**result, **dict.fromkeys(dense, 1.0)}
        dense |= exceeding


@pytest.mark.parametrize("density", [0.01, 0.05, 0.3, 0.9])
def test_erk_is_the_loop_of_the_paper(density: float) -> None:
    found = DISTRIBUTIONS["erk"](RESNET_LIKE, density, {})
    assert found == pytest.approx(naive_erk(RESNET_LIKE, density), rel=1e-4)
    kept = sum(found[name] * size(shape) for name, shape in RESNET_LIKE.items())
    assert round(kept) == round(density * sum(map(size, RESNET_LIKE.values())))


def test_uniform_gives_every_layer_the_density_of_the_model() -> None:
    found = DISTRIBUTIONS["uniform"](RESNET_LIKE, 0.05, {})
    assert found == pytest.approx(dict.fromkeys(RESNET_LIKE, 0.05), rel=1e-4)


def test_uniform_leaves_a_small_layer_one_weight() -> None:
    assert DISTRIBUTIONS["uniform"]({"small": (2, 5), "large": (10, 99)}, 0.01, {}) == pytest.approx(
        {"small": 1 / 10, "large": 9 / 990}
    )


@pytest.mark.parametrize("name", sorted(DISTRIBUTIONS))
@given(shapes=models(), density=densities)
def test_counts_add_up_and_stay_within_every_layer(name: str, shapes: Shapes, density: float) -> None:
    found = DISTRIBUTIONS[name](shapes, density, random_scores(shapes))
    counts = kept_counts(found, shapes, density)
    expected = max(round(density * sum(map(size, shapes.values()))), len(shapes))
    assert list(counts) == list(shapes)
    assert sum(counts.values()) == expected
    for layer, shape in shapes.items():
        assert 1 <= counts[layer] <= size(shape)
        assert abs(counts[layer] - found[layer] * size(shape)) < 1 + 1e-9


@given(shapes=models(), density=densities, seed=st.integers(0, 100))
def test_global_counts_what_one_threshold_keeps(shapes: Shapes, density: float, seed: int) -> None:
    scores = random_scores(shapes, seed)
    ranked = sorted((float(v) for score in scores.values() for v in score.reshape(-1)), reverse=True)
    threshold = ranked[total_kept(shapes, density) - 1]
    above = {name: int((score >= threshold).sum()) for name, score in scores.items()}
    assume(min(above.values()) > 0)
    assert kept_counts(DISTRIBUTIONS["global"](shapes, density, scores), shapes, density) == above


def test_global_keeps_one_weight_of_a_layer_below_the_threshold() -> None:
    scores = {"low": torch.arange(4.0), "high": torch.arange(10.0, 16.0)}
    shapes = {name: tuple(score.shape) for name, score in scores.items()}
    found = DISTRIBUTIONS["global"](shapes, 0.4, scores)
    assert kept_counts(found, shapes, 0.4) == {"low": 1, "high": 3}
    assert scores["low"].tolist() == [0, 1, 2, 3]  # what was handed in is not written to


@given(shapes=models(), density=densities, data=st.data())
def test_rescaled_densities_keep_their_ratios_between_the_bounds(
    shapes: Shapes, density: float, data: st.DataObject
) -> None:
    proportions = {name: data.draw(st.floats(0.01, 100)) for name in shapes}
    found = rescale(proportions, shapes, density)
    kept = sum(found[name] * size(shape) for name, shape in shapes.items())
    assert kept == pytest.approx(total_kept(shapes, density))
    free = {
        name: share / proportions[name]
        for name, share in found.items()
        if 1 / size(shapes[name]) + 1e-9 < share < 1 - 1e-9
    }
    factors = list(free.values())
    assert factors == pytest.approx([factors[0]] * len(factors) if factors else [], rel=1e-6)


@given(shapes=models(), density=densities)
def test_rescale_leaves_densities_that_already_fit(shapes: Shapes, density: float) -> None:
    once = rescale(dict.fromkeys(shapes, 1.0), shapes, density)
    assert rescale(once, shapes, density) == pytest.approx(once)


def test_largest_fractions_get_the_weights_left_over() -> None:
    shapes = {"a": (10, 1), "b": (10, 1), "c": (10, 1)}
    assert kept_counts({"a": 0.52, "b": 0.59, "c": 0.59}, shapes, 17 / 30) == {"a": 5, "b": 6, "c": 6}
    assert kept_counts({"a": 0.55, "b": 0.55, "c": 0.55}, shapes, 16 / 30) == {"a": 6, "b": 5, "c": 5}


@given(shapes=models(), density=densities)
def test_the_plain_density_for_every_layer_is_good_enough(shapes: Shapes, density: float) -> None:
    counts = kept_counts(dict.fromkeys(shapes, density), shapes, density)
    assert sum(counts.values()) == total_kept(shapes, density)
    assert all(1 <= counts[name] <= size(shape) for name, shape in shapes.items())


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, math.nan])
def test_impossible_densities_are_refused(density: float) -> None:
    with pytest.raises(UserError, match=r"expected a number above 0 and at most 1"):
        total_kept({"a": (4, 4)}, density)


@pytest.mark.parametrize(
    ("given_densities", "message"),
    [
        ({"a": 0.5}, r"gave densities for \['a'\], expected \['a', 'b'\]"),
        ({"a": 0.5, "b": 0.0}, r"gave 'b' density 0\.0"),
        ({"a": 0.5, "b": math.nan}, r"gave 'b' density nan"),
        ({"a": 0.9, "b": 0.9}, r"keeps 180 weights, expected 100"),
        ({"a": 0.2, "b": 0.2}, r"keeps 40 weights, expected 100"),
    ],
)
def test_a_distribution_that_does_not_add_up_is_refused(
    given_densities: Mapping[str, float], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        kept_counts(given_densities, {"a": (10, 10), "b": (10, 10)}, 0.5)


@pytest.mark.parametrize("proportion", [0.0, -1.0, math.inf, math.nan])
def test_rescale_refuses_what_is_no_proportion(proportion: float) -> None:
    with pytest.raises(ValueError, match="must be positive and finite"):
        rescale({"a": proportion, "b": 1.0}, {"a": (2, 2), "b": (2, 2)}, 0.5)
