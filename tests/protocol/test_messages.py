"""Reading messages from outside: what is not there or not of its kind is a ``WireError``."""

from __future__ import annotations

import math

import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedprune.errors import WireError
from fedprune.protocol.messages import arrays_of, config_of, metrics_of, payload, real, share, text, whole

numbers = st.integers(-(2**63), 2**64 - 1) | st.floats()
values = numbers | st.booleans() | st.text(max_size=5) | st.binary(max_size=5)
listed = st.lists(st.integers(0, 5), max_size=3) | st.lists(st.text(max_size=2), max_size=3)


def outcome(read, *arguments, **options):
    """Return what is read, or the class of what is raised; any other error is a failure."""
    try:
        return read(*arguments, **options)
    except WireError as error:
        return WireError if "'x'" in str(error) else error


@given(values | listed, st.integers(0, 3))
def test_each_reader_takes_its_kind_and_no_other(value, least):
    record = ConfigRecord({"x": value})
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_whole = is_number and isinstance(value, int) and least <= value < 2**63
    is_real = is_number and math.isfinite(value)
    assert outcome(whole, record, "x", least=least) == (value if is_whole else WireError)
    assert outcome(real, record, "x") == (float(value) if is_real else WireError)
    is_share = is_real and 0 <= value <= 1
    assert outcome(share, record, "x") == (float(value) if is_share else WireError)
    assert outcome(text, record, "x") == (value if isinstance(value, str) else WireError)
    assert outcome(payload, record, "x") == (value if isinstance(value, bytes) else WireError)


@pytest.mark.parametrize("read", [whole, real, share, text, payload])
def test_what_is_missing_is_named(read):
    assert outcome(read, ConfigRecord({"y": 1}), "x") is WireError


def test_numbers_in_metrics():
    record = MetricRecord({"n": 3, "loss": 0.5, "many": [1, 2], "nan": math.nan})
    assert (whole(record, "n", least=3), real(record, "loss"), real(record, "n")) == (3, 0.5, 3.0)
    for read, key in ((whole, "loss"), (whole, "many"), (real, "many"), (real, "nan")):
        with pytest.raises(WireError, match=f"'{key}'"):
            read(record, key)
    for value in (0.0, 1, 0.25):
        assert share(MetricRecord({"x": value}), "x") == value
    for value in (-1e-9, 1.0 + 1e-9, 2):
        with pytest.raises(WireError, match=r"'x' is .*, expected a number from 0 to 1"):
            share(MetricRecord({"x": value}), "x")
    with pytest.raises(WireError, match=r"'n' is 3, expected a whole number from 4"):
        whole(record, "n", least=4)


def test_records_are_found_by_name_and_kind():
    arrays, config, metrics = ArrayRecord(), ConfigRecord({"a": 1}), MetricRecord({"b": 2})
    content = RecordDict({"arrays": arrays, "config": config, "metrics": metrics, "facts": ConfigRecord()})
    assert arrays_of(content) == arrays
    assert config_of(content) == config
    assert config_of(content, "facts") == ConfigRecord()
    assert metrics_of(content) == metrics
    swapped = RecordDict({"arrays": config, "config": metrics, "metrics": arrays})
    for wrong in (swapped, RecordDict()):
        for read, name in ((arrays_of, "arrays"), (config_of, "config"), (metrics_of, "metrics")):
            with pytest.raises(WireError, match=f"no record '{name}'"):
                read(wrong)
