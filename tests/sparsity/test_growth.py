"""Growing and swapping: counts stay, what grows is what was voted for, ties are decided by position."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from losses import cross_entropy
from torch import nn
from torch.nn import functional

from fedprune.errors import WireError
from fedprune.sparsity.growth import (
    GrowthVotes,
    check_report,
    drop_smallest,
    largest_pruned,
    layer_gradient,
    mean_squared_gradient,
    regrow,
    swap_masks,
)
from fedprune.sparsity.masks import Masks


def net():
    """A small network with batch norm, so that its mode and its buffers matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
        ).eval()


def drawn(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 4, 4, generator=generator), torch.randint(
        0, 3, (count,), generator=generator
    )


def full_gradient(module, name, x, y):
    """Backward through all of a copy."""
    module = copy.deepcopy(module).train()
    functional.cross_entropy(module(x), y).backward()
    return module.get_parameter(name).grad


@pytest.mark.parametrize("name", ["0.weight", "1.weight", "4.weight"])
def test_the_gradient_of_one_layer_is_that_of_a_whole_backward_pass(name):
    module, (x, y) = net(), drawn(6)
    found = layer_gradient(module, name, [(x, y)], cross_entropy)
    torch.testing.assert_close(found, full_gradient(module, name, x, y))
    assert not found.requires_grad


def test_over_batches_it_is_the_mean_over_all_examples():
    module, batches = net(), [drawn(5, 1), drawn(2, 2)]
    parts = [full_gradient(module, "0.weight", x, y) for x, y in batches]
    found = layer_gradient(module, "0.weight", iter(batches), cross_entropy)
    torch.testing.assert_close(found, (5 * parts[0] + 2 * parts[1]) / 7)
    assert not layer_gradient(module, "0.weight", [], cross_entropy).any()


def test_importance_is_the_mean_of_squared_gradients():
    """Of each batch by itself: the square of a mean would be smaller."""
    module, batches = net(), [drawn(5, 1), drawn(2, 2)]
    parts = [full_gradient(module, "4.weight", x, y) for x, y in batches]
    found = mean_squared_gradient(module, "4.weight", ([batch] for batch in batches), cross_entropy)
    torch.testing.assert_close(found, (parts[0] ** 2 + parts[1] ** 2) / 2)
    assert not mean_squared_gradient(module, "4.weight", [], cross_entropy).any()


def test_the_module_comes_back_as_it_was():
    module = net()
    before = copy.deepcopy(module.state_dict())
    layer_gradient(module, "0.weight", [drawn(5)], cross_entropy)
    with pytest.raises(RuntimeError):
        layer_gradient(
            module, "0.weight", [drawn(5), (torch.zeros(1, 3, 4, 4), torch.zeros(1))], cross_entropy
        )
    after = module.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert not module.training
    assert all(parameter.grad is None for parameter in module.parameters())


@st.composite
def layers(draw):
    """A mask with gradients or weights of many equal magnitudes, and a count."""
    size = draw(st.integers(1, 12))
    mask = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    values = draw(st.lists(st.integers(-3, 3), min_size=size, max_size=size))
    return torch.tensor(mask), torch.tensor(values, dtype=torch.float32), draw(st.integers(0, size))


@given(layers())
def test_the_largest_pruned_are_those_of_a_sorted_list(layer):
    mask, gradient, count = layer
    indices, values = largest_pruned(gradient, mask, count)
    pruned = [place for place in range(len(mask)) if not mask[place]]
    ranked = sorted(pruned, key=lambda place: (-abs(float(gradient[place])), place))
    assert indices.tolist() == sorted(ranked[:count])
    assert values.tolist() == gradient[indices].tolist()
    check_report("w", indices, values, mask)


def test_positions_are_row_major():
    gradient = torch.tensor([[1.0, -9.0], [5.0, 2.0]])
    mask = torch.tensor([[False, False], [True, False]])
    indices, values = largest_pruned(gradient, mask, 2)
    assert (indices.tolist(), values.tolist()) == ([1, 3], [-9.0, 2.0])


@given(layers(), st.lists(st.integers(-3, 3), min_size=12, max_size=12))
def test_rigl_drops_by_magnitude_then_grows_by_gradient(layer, slopes):
    mask, weight, count = layer
    gradient = torch.tensor(slopes[: len(mask)], dtype=torch.float32)
    kept = sorted(
        (place for place in range(len(mask)) if mask[place]), key=lambda p: (abs(float(weight[p])), p)
    )
    count = min(count, len(kept))
    left = kept[count:]
    others = [place for place in range(len(mask)) if place not in left]
    grown = sorted(others, key=lambda p: (-abs(float(gradient[p])), p))[:count]
    before = mask.clone()
    assert drop_smallest(weight[mask], mask, count).nonzero().reshape(-1).tolist() == sorted(left)
    swapped = regrow(weight[mask], mask, count, partial(largest_pruned, gradient))
    assert swapped.nonzero().reshape(-1).tolist() == sorted(left + grown)
    assert torch.equal(mask, before)


@st.composite
def elections(draw):
    """A layer, its weights, a count, and what each of up to three clients reports with what weight."""
    mask, weight, count = draw(layers())
    pruned = (~mask).nonzero().reshape(-1).tolist()
    reports = draw(
        st.lists(
            st.tuples(
                st.lists(st.sampled_from(pruned), unique=True).map(sorted) if pruned else st.just([]),
                st.integers(1, 4),
                st.lists(st.integers(-3, 3), min_size=len(pruned), max_size=len(pruned)),
            ),
            max_size=3,
        )
    )
    return mask, weight * mask, count, reports


def votes_of(mask, reports):
    votes = GrowthVotes(mask)
    for indices, share, values in reports:
        reported = torch.tensor(values[: len(indices)], dtype=torch.float32)
        votes.add(torch.tensor(indices, dtype=torch.int64), reported, share)
    return votes


@given(elections())
def test_a_swap_is_that_of_averages_by_hand(election):
    mask, weight, count, reports = election
    found = votes_of(mask, reports).swap(weight, count)
    total = sum(share for _, share, _ in reports)
    means = {}
    for indices, share, values in reports:
        for place, value in zip(indices, values, strict=False):
            means[place] = means.get(place, 0) + share / total * value
    kept = [place for place in range(len(mask)) if mask[place]]
    count = min(count, len(means), len(kept))
    # Thirds and sevenths: what is equal by arithmetic is equal after rounding.
    grown = sorted(means, key=lambda place: (-round(abs(means[place]), 9), place))[:count]
    dropped = sorted(kept, key=lambda place: (abs(float(weight[place])), place))[:count]
    expected = (set(kept) - set(dropped)) | set(grown)
    assert set(found.nonzero().reshape(-1).tolist()) == expected
    assert int(found.sum()) == int(mask.sum())
    assert all(found[place] for place in grown)


@given(elections(), st.randoms())
def test_the_order_of_whole_votes_does_not_matter(election, random):
    mask, weight, count, reports = election
    shuffled = random.sample(reports, len(reports))
    assert torch.equal(
        votes_of(mask, reports).swap(weight, count), votes_of(mask, shuffled).swap(weight, count)
    )


def test_a_missing_entry_counts_as_nought():
    """3 from one of two equal clients is an average of 1.5, less than 2 from both."""
    mask = torch.tensor([True, False, False])
    votes = GrowthVotes(mask)
    votes.add(torch.tensor([1, 2]), torch.tensor([3.0, 2.0]), 10)
    votes.add(torch.tensor([2]), torch.tensor([2.0]), 10)
    assert votes.swap(torch.tensor([1.0, 0.0, 0.0]), 1).tolist() == [False, False, True]


def test_opposite_votes_cancel():
    votes = GrowthVotes(torch.tensor([True, False, False]))
    votes.add(torch.tensor([1, 2]), torch.tensor([9.0, 1.0]), 1)
    votes.add(torch.tensor([1, 2]), torch.tensor([-9.0, 1.0]), 1)
    assert votes.swap(torch.ones(3), 1).tolist() == [False, False, True]


def test_what_grows_now_is_not_dropped_now():
    """Its weight is 0, the smallest there is."""
    votes = GrowthVotes(torch.tensor([[True, False], [True, False]]))
    votes.add(torch.tensor([1, 3]), torch.tensor([0.1, 0.2]), 1)
    swapped = votes.swap(torch.tensor([[5.0, 0.0], [6.0, 0.0]]), 2)
    assert swapped.tolist() == [[False, True], [False, True]]


def test_a_mask_that_has_shrunk_since_the_vote_keeps_its_count():
    """Of [kept, kept, pruned, pruned] the first was pruned in the meantime: it does not come back."""
    votes = GrowthVotes(torch.tensor([True, True, False, False]))
    votes.add(torch.tensor([2, 3]), torch.tensor([2.0, 1.0]), 1)
    mask = torch.tensor([False, True, False, False])
    assert votes.swap(torch.ones(4), 2, mask).tolist() == [False, False, True, False]
    assert mask.tolist() == [False, True, False, False]


def test_only_voted_layers_move():
    masks = Masks({"a": torch.tensor([True, False]), "b": torch.tensor([True, False])})
    votes = GrowthVotes(masks["b"])
    votes.add(torch.tensor([1]), torch.tensor([1.0]), 1)
    state = {"a": torch.ones(2), "b": torch.ones(2), "bias": torch.ones(3)}
    swapped = swap_masks(masks, {"b": votes}, state, {"b": 1})
    assert {name: mask.tolist() for name, mask in swapped.items()} == {"a": [True, False], "b": [False, True]}
    assert masks["b"].tolist() == [True, False]


@pytest.mark.parametrize(
    ("indices", "values", "reason"),
    [
        ([1, 4], [1.0, 1.0], "not within its 4 weights"),
        ([-1, 1], [1.0, 1.0], "not within its 4 weights"),
        ([3, 1], [1.0, 1.0], "do not ascend"),
        ([1, 1], [1.0, 1.0], "do not ascend"),
        ([0, 1], [1.0, 1.0], "kept weight"),
        ([1, 3], [1.0, float("nan")], "not finite"),
        ([1, 3], [float("-inf"), 1.0], "not finite"),
    ],
)
def test_an_impossible_report_is_refused(indices, values, reason):
    mask = torch.tensor([[True, False], [True, False]])
    with pytest.raises(WireError, match=rf"growth of 'conv': .*{reason}"):
        check_report("conv", torch.tensor(indices), torch.tensor(values), mask)
