"""Growth on the wire: a request and a report arrive as they were sent, or are refused with a reason."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given
from hypothesis import strategies as st

from fedprune.errors import WireError
from fedprune.protocol.reports import GrowthRequest, ImportanceRequest, growth_record, read_growth
from fedprune.sparsity.growth import IMPORTANCE, largest_pruned
from fedprune.sparsity.masks import Masks

MASKS = Masks(
    {
        "b": torch.tensor([[True, False, False], [True, False, True]]),
        "a": torch.tensor([False, False, True, True]),
    }
)
REQUEST = GrowthRequest({"b": 2, "a": 1}, batches=3)


def sent(request, masks):
    """The request as a client reads it off a message."""
    content = RecordDict({"config": ConfigRecord(request.config(masks))})
    return GrowthRequest.of(recorddict_from_proto(recorddict_to_proto(content))["config"], masks)


@given(
    st.dictionaries(st.sampled_from(["a", "b", "c.d", "e"]), st.integers(0, 9), min_size=1),
    st.integers(1, 99),
    st.randoms(),
)
def test_a_request_arrives_as_it_was_sent(counts, batches, random):
    """Also where the client's masks have their names in another order."""
    names = ["a", "b", "c.d", "e"]
    masks = Masks({name: torch.ones(3, dtype=torch.bool) for name in random.sample(names, 4)})
    request = GrowthRequest(counts, batches, values=random.random() < 0.5)
    found = sent(request, masks)
    assert found == request
    assert list(found.counts) == list(counts)


def test_a_report_of_positions_alone_counts_each_as_1():
    request = GrowthRequest({"b": 2, "a": 1}, 3, values=False)
    found = [(torch.tensor([1, 5]), torch.tensor([0.5, -2.0])), (torch.tensor([0]), torch.tensor([3.0]))]
    masks = Masks({**MASKS, "b": torch.tensor([[True, False, False], [True, False, False]])})
    report = read_growth(growth_record(found, with_values=False), request, masks)
    assert {name: (at.tolist(), values.tolist()) for name, (at, values) in report.items()} == {
        "b": ([1, 5], [1.0, 1.0]),
        "a": ([0], [1.0]),
    }
    for record, asked in ((growth_record(found), request), (growth_record(found, False), REQUEST)):
        with pytest.raises(WireError, match="no growth report"):
            read_growth(record, asked, masks)


@pytest.mark.parametrize("measure", IMPORTANCE)
def test_importance_is_asked_for_by_a_measure(measure):
    request = ImportanceRequest(2, measure)
    assert ImportanceRequest.of(ConfigRecord(request.config())) == request
    with pytest.raises(WireError, match="'importance' is 'beauty', expected one of"):
        ImportanceRequest.of(ConfigRecord({**request.config(), "importance": "beauty"}))


def test_most_messages_ask_for_nothing():
    assert ImportanceRequest.of(ConfigRecord({"round": 1})) is None
    assert GrowthRequest.of(ConfigRecord({"round": 1}), MASKS) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"growth-layers": [0, 2]},
        {"growth-layers": [0]},
        {"growth-layers": [-1, 0]},
        {"growth-layers": ["b", "a"]},
        {"growth-layers": 1},
        {"growth-counts": [1, -1]},
        {"growth-counts": [1.5, 1.0]},
        {"growth-counts": [1]},
        {"growth-batches": 0},
        {"growth-batches": "1"},
        {"growth-counts": None},
        {"growth-batches": None},
    ],
)
def test_a_request_that_does_not_fit_is_refused(changes):
    config = {**REQUEST.config(MASKS), **changes}
    config = ConfigRecord({key: value for key, value in config.items() if value is not None})
    with pytest.raises(WireError, match="growth"):
        GrowthRequest.of(config, MASKS)


@given(st.integers(0, 2**32), st.integers(0, 30), st.integers(0, 30))
def test_a_report_arrives_as_it_was_sent(seed, first, second):
    """Eight bytes an entry, as many as were asked for or as are pruned."""
    generator = torch.Generator().manual_seed(seed)
    masks = Masks(
        {n: torch.rand(shape, generator=generator) < 0.5 for n, shape in (("x", (4, 5)), ("y", (7,)))}
    )
    request = GrowthRequest({"y": first, "x": second}, 1)
    found = [
        largest_pruned(torch.randn(masks[name].shape, generator=generator), masks[name], count)
        for name, count in request.counts.items()
    ]
    record = growth_record(found)
    report = read_growth(record, request, masks)
    assert list(report) == ["y", "x"]
    for (indices, numbers), (read_indices, read_numbers) in zip(found, report.values(), strict=True):
        assert torch.equal(indices, read_indices)
        assert torch.equal(numbers, read_numbers)
    entries = sum(len(indices) for indices, _ in found)
    pruned = {name: int((~mask).sum()) for name, mask in masks.items()}
    assert entries == min(first, pruned["y"]) + min(second, pruned["x"])
    assert sum(array.numpy().nbytes for array in record.values()) == 8 * entries


def report(indices, values, index_type=np.uint32, value_type=np.float32):
    return ArrayRecord(
        {"indices": Array(np.array(indices, index_type)), "values": Array(np.array(values, value_type))}
    )


def test_this_report_is_good():
    """The ones below each differ from it in one thing."""
    found = read_growth(report([1, 4, 0], [1, -2, 3]), REQUEST, MASKS)
    assert {name: (i.tolist(), v.tolist()) for name, (i, v) in found.items()} == {
        "b": ([1, 4], [1, -2]),
        "a": ([0], [3]),
    }


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (None, "no growth report"),
        (ArrayRecord({"indices": Array(np.array([1, 4, 0], np.uint32))}), "no growth report"),
        (report([1, 4], [1, -2]), "shape"),
        (report([1, 2, 4, 0], [1, 1, -2, 3]), "shape"),
        (report([1, 4, 0], [1, -2]), "shape"),
        (report([[1, 4, 0]], [[1, -2, 3]]), "shape"),
        (report([1, 4, 0], [1, -2, 3], np.int64), "int64|i8"),
        (report([1, 4, 0], [1, -2, 3], value_type=np.float16), "float16|f2"),
        (report([1, 6, 0], [1, -2, 3]), "growth of 'b': .*not within its 6"),
        (report([1, 4, 2**32 - 1], [1, -2, 3]), "growth of 'a': .*not within its 4"),
        (report([4, 1, 0], [1, -2, 3]), "growth of 'b': .*ascend"),
        (report([4, 4, 0], [1, -2, 3]), "growth of 'b': .*ascend"),
        (report([1, 4, 2], [1, -2, 3]), "growth of 'a': .*kept"),
        (report([1, 4, 0], [1, np.nan, 3]), "growth of 'b': .*finite"),
        (report([1, 4, 0], [1, -2, np.inf]), "growth of 'a': .*finite"),
    ],
)
def test_an_impossible_report_is_refused(record, reason):
    with pytest.raises(WireError, match=reason):
        read_growth(record, REQUEST, MASKS)
