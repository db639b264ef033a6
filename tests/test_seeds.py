"""Seeds: pure, pinned, and apart from each other."""

from __future__ import annotations

import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedprune import seeds

purposes = st.sampled_from(["batches", "sample", "wire", "train", "model", "devices"])
numbers = st.lists(st.integers(0, 10**6), max_size=3).map(tuple)
naturals = st.integers(0, 2**64)


def test_known_values():
    """Every result of every scenario follows from these: a change of one is a change of all results."""
    assert seeds.derive(0, "model") == 1977141789342320418
    assert seeds.derive(0, "sample", 1) == 8832741977565232591
    assert seeds.derive(7, "batches", 3, 12) == 8975752883107006206
    assert seeds.numpy_generator(0, "sample", 1).integers(0, 1000, 4).tolist() == [52, 237, 803, 579]
    generator = seeds.torch_generator(0, "prune")
    assert torch.randint(0, 1000, (4,), generator=generator).tolist() == [
        611,
        799,
        158,
        344,
    ]


@given(naturals, purposes, numbers)
def test_it_is_a_pure_function(seed, purpose, of):
    first = seeds.derive(seed, purpose, *of)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    assert seeds.derive(seed, purpose, *of) == first
    assert 0 <= first < 2**63
    one, other = (seeds.torch_generator(seed, purpose, *of) for _ in range(2))
    assert torch.equal(torch.rand(3, generator=one), torch.rand(3, generator=other))
    assert (seeds.numpy_generator(seed, purpose, *of).random(3)).tolist() == (
        seeds.numpy_generator(seed, purpose, *of).random(3)
    ).tolist()


@given(st.sets(st.tuples(naturals, purposes, numbers), min_size=2, max_size=20))
def test_different_draws_have_different_seeds(draws):
    assert len({seeds.derive(seed, purpose, *of) for seed, purpose, of in draws}) == len(draws)


def test_a_draw_touches_no_global_generator():
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    seeds.numpy_generator(0, "sample", 1).random(10)
    torch.rand(10, generator=seeds.torch_generator(0, "batches", 1))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]
    assert torch.equal(torch.get_rng_state(), states[2])
