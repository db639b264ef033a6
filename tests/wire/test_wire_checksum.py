"""No damage to the arrays of a reply goes unnoticed, and what was not damaged is taken."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from inprocess import copied

from fedprune.errors import WireError
from fedprune.wire import add_checksum, verify_checksum
from fedprune.wire.values import to_array


def reply() -> RecordDict:
    arrays = ArrayRecord({"values": to_array(np.linspace(0, 1, 50, dtype=np.float32))})
    extra = ArrayRecord({"indices": to_array(np.arange(9, dtype=np.uint32))})
    return RecordDict({"arrays": arrays, "growth": extra, "metrics": MetricRecord({"loss": 0.5})})


def test_it_survives_the_wire_and_any_order() -> None:
    sent = reply()
    add_checksum(sent)
    verify_checksum(copied(sent))
    verify_checksum(RecordDict(dict(reversed(sent.items()))))


@given(
    st.sampled_from([("arrays", "values"), ("growth", "indices")]),
    st.integers(0, 2**16),
    st.integers(1, 255),
    st.booleans(),
)
def test_any_byte_that_changes_or_is_missing_is_noticed(place, position, flip, cut) -> None:
    sent = reply()
    add_checksum(sent)
    record, name = place
    array = sent.array_records[record][name]
    data = bytearray(array.data)
    position %= len(data)
    if cut:
        del data[position:]
    else:
        data[position] ^= flip
    sent.array_records[record][name] = Array(array.dtype, array.shape, array.stype, bytes(data))
    with pytest.raises(WireError, match="the reply is damaged"):
        verify_checksum(sent)


def test_arrays_without_a_checksum_are_refused_and_replies_without_arrays_need_none() -> None:
    with pytest.raises(WireError, match="damaged"):
        verify_checksum(reply())
    for content in (RecordDict({"facts": ConfigRecord({"client": 1})}), RecordDict()):
        add_checksum(content)
        verify_checksum(content)
        assert "metrics" not in content


def test_swapped_arrays_are_noticed() -> None:
    sent = reply()
    add_checksum(sent)
    sent["arrays"], sent["growth"] = sent["growth"], sent["arrays"]
    with pytest.raises(WireError, match="damaged"):
        verify_checksum(sent)
