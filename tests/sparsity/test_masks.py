import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedprune.sparsity.masks import Masks, apply_masks, highest, keep_highest


@st.composite
def mask_dicts(draw: st.DrawFn) -> dict[str, Tensor]:
    names = draw(st.lists(st.text("ab.()", min_size=1, max_size=4), unique=True, min_size=1, max_size=3))
    masks = {}
    for name in names:
        rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 4))
        bits = draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns))
        masks[name] = torch.tensor(bits).reshape(rows, columns)
    return masks


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@given(mask_dicts(), mask_dicts())
def test_version_and_equality_follow_the_content(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert (Masks(a).version == Masks(b).version) == same(a, b)
    assert (Masks(a) == Masks(b)) == same(a, b)


@given(mask_dicts(), st.data())
def test_version_changes_with_any_bit_name_or_shape(masks: dict[str, Tensor], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(masks)))
    flipped = masks[name].clone().reshape(-1)
    flipped[data.draw(st.integers(0, flipped.numel() - 1))] ^= True
    others = {key: mask for key, mask in masks.items() if key != name}
    for changed in (
        {**masks, name: flipped.reshape(masks[name].shape)},
        {**masks, name: masks[name].unsqueeze(0)},
        {**others, name + "'": masks[name]},
        others,
    ):
        assert Masks(changed).version != Masks(masks).version


@given(mask_dicts())
def test_version_does_not_depend_on_order_copying_layout_or_process(masks: dict[str, Tensor]) -> None:
    version = Masks(masks).version
    assert Masks(dict(reversed(masks.items()))).version == version
    assert Masks({name: mask.t().contiguous().t() for name, mask in masks.items()}).version == version
    assert pickle.loads(pickle.dumps(Masks(masks))).version == version


@given(mask_dicts())
def test_counts_are_those_of_the_bits(masks: dict[str, Tensor]) -> None:
    bits = np.concatenate([mask.numpy().ravel() for mask in masks.values()])
    made = Masks(masks)
    assert made.total == bits.size
    assert made.density == pytest.approx(bits.mean())
    assert made.kept == {name: np.count_nonzero(mask.numpy()) for name, mask in masks.items()}
    assert made.densities() == pytest.approx({name: mask.numpy().mean() for name, mask in masks.items()})


def test_empty_masks_prune_nothing() -> None:
    assert (Masks().version, Masks().density, Masks().total, len(Masks())) == ("", 1.0, 0, 0)


def test_masks_must_be_boolean() -> None:
    with pytest.raises(TypeError, match=r"'w' has dtype torch\.float32"):
        Masks({"w": torch.ones(2)})


def test_apply_masks_zeroes_pruned_weights_even_where_they_are_not_finite() -> None:
    state = {"w": torch.tensor([torch.nan, 1.0, -2.0, torch.inf]), "b": torch.tensor([3.0])}
    masked = apply_masks(state, Masks({"w": torch.tensor([False, True, True, False])}))
    assert torch.equal(masked["w"], torch.tensor([0.0, 1.0, -2.0, 0.0]))
    assert masked["b"] is state["b"]
    assert state["w"][3] == torch.inf


def test_apply_masks_keeps_the_dtype_and_refuses_another_shape() -> None:
    masks = Masks({"w": torch.tensor([True, False])})
    assert apply_masks({"w": torch.ones(2, dtype=torch.float16)}, masks)["w"].dtype == torch.float16
    with pytest.raises(ValueError, match=r"'w' has shape \(2,\), its tensor \(3, 2\)"):
        apply_masks({"w": torch.ones(3, 2)}, masks)


# Few distinct values, so that ties are common; infinities, since pruned weights score -inf.
scores = st.lists(st.sampled_from([-torch.inf, -1.0, 0.0, 0.5, 2.0, torch.inf]), min_size=1, max_size=30)


@given(scores, st.data())
def test_highest_keeps_what_a_stable_sort_puts_first(values: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(values)))
    first = np.argsort(-np.array(values), kind="stable")[:count]
    mask = highest(torch.tensor(values), count)
    assert sorted(first) == mask.nonzero().squeeze(1).tolist()


def test_keep_highest_counts_and_shapes() -> None:
    masks = keep_highest({"a": torch.tensor([[1.0, 3.0], [2.0, 0.0]]), "b": torch.zeros(3)}, {"a": 2, "b": 1})
    assert masks["a"].tolist() == [[False, True], [True, False]]
    assert masks["b"].tolist() == [True, False, False]


@pytest.mark.parametrize("count", [-1, 4])
def test_highest_refuses_an_impossible_count(count: int) -> None:
    with pytest.raises(ValueError, match=f"cannot keep {count} of the 3 entries of 'fc'"):
        highest(torch.zeros(3), count, "fc")


def test_highest_refuses_nan() -> None:
    with pytest.raises(ValueError, match="'fc' has scores that are not a number"):
        highest(torch.tensor([1.0, torch.nan]), 1, "fc")
