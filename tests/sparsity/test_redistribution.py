"""Redistribution against a direct computation on few weights, and its sums for any."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from fedprune.sparsity.masks import Masks
from fedprune.sparsity.redistribution import redistribute


def test_the_smallest_go_and_layers_grow_by_their_mean_magnitude():
    masks = Masks({"a": torch.arange(20) < 8, "b": (torch.arange(40) < 8).reshape(4, 10)})
    # Means 3 and 1: of the 2 + 2 weights that go, three quarters grow in "a".
    kept = {"a": torch.tensor([3.0, -5, 0.1, 4, 3, -0.2, 4, 4.7]), "b": torch.tensor([1.0] * 6 + [0.9, 1.1])}
    moved = redistribute(kept, masks, 0.25, torch.Generator().manual_seed(0))
    assert moved.kept == {"a": 9, "b": 7}
    assert moved["a"][[0, 1, 3, 4, 6, 7]].all()
    assert moved["b"].flatten()[[1, 2, 3, 4, 5, 7]].all()  # 0.9 goes, and of equal ones the first.


def test_a_full_layer_gives_what_it_cannot_take_to_the_others():
    masks = Masks({"a": torch.ones(10, dtype=torch.bool), "b": torch.arange(100) < 10})
    kept = {"a": torch.full((10,), 100.0), "b": torch.full((10,), 0.01)}
    moved = redistribute(kept, masks, 0.2, torch.Generator().manual_seed(0))
    assert moved.kept == {"a": 10 - 2 + 2, "b": 10 - 2 + 2}


@given(
    st.lists(st.tuples(st.integers(1, 30), st.floats(0, 5)), min_size=1, max_size=4),
    st.floats(0.01, 1),
    st.integers(0, 9),
)
def test_as_many_grow_as_go(layers, rate, seed):
    generator = torch.Generator().manual_seed(seed)
    masks = Masks({str(n): torch.arange(size) < max(1, size // 2) for n, (size, _) in enumerate(layers)})
    kept = {str(n): torch.full((masks.kept[str(n)],), scale) for n, (_, scale) in enumerate(layers)}
    moved = redistribute(kept, masks, rate, generator)
    assert sum(moved.kept.values()) == sum(masks.kept.values())
    assert min(moved.kept.values()) >= 1
