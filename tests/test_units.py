"""Units: what people write is read as the number that it means, and what is written is read back."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from fedprune import units


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("64 MiB", 67_108_864),
        ("512KiB", 524_288),
        ("1.5 GB", 1_500_000_000),
        ("1 KB", 1_000),
        ("1 kB", 1_000),
        ("2e3 B", 2_000),
        (" 7 ", 7),
        (".5 KiB", 512),
        (12, 12),
        (12.0, 12),
        (2**60 + 1, 2**60 + 1),
    ],
)
def test_bytes_are_read(text: object, expected: int) -> None:
    assert units.parse_bytes(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("8 Mbit/s", 1e6), ("8 Mbps", 1e6), ("8 bit/s", 1.0), ("2 MB/s", 2e6), ("1 KiB/s", 1024.0), (2.5, 2.5)],
)
def test_byte_rates_are_read(text: object, expected: float) -> None:
    assert units.parse_byte_rate(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2 GFLOP/s", 2e9), ("500 MFLOPS", 5e8), ("3 FLOP/s", 3.0), ("1.5 TFLOPS", 1.5e12), (7, 7.0)],
)
def test_flop_rates_are_read(text: object, expected: float) -> None:
    assert units.parse_flop_rate(text) == expected


@pytest.mark.parametrize("parse", [units.parse_bytes, units.parse_byte_rate, units.parse_flop_rate])
@pytest.mark.parametrize(
    "value",
    ["", "MiB", "12 parsecs", "-3", "1 2", "0", 0, -1, True, None, [1], float("nan"), float("inf"), "1e999"],
)
def test_what_is_no_amount_is_refused_with_what_was_given_and_what_would_do(parse, value: object) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(value))) as refused:
        parse(value)
    assert re.search(r"such as '[0-9.]+ \w+", str(refused.value))


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        # A bit is no byte, a size is no rate, and a frequency is no amount of work.
        (units.parse_bytes, "5 Mb"),
        (units.parse_bytes, "5 Mbit"),
        (units.parse_bytes, "5 MB/s"),
        (units.parse_bytes, "0.1 B"),
        (units.parse_byte_rate, "5 MB"),
        (units.parse_byte_rate, "5 Mb/s"),
        (units.parse_flop_rate, "5 GFLOP"),
        (units.parse_flop_rate, "5 GHz"),
    ],
)
def test_units_of_another_kind_are_refused(parse, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        parse(text)


@given(st.integers(min_value=1, max_value=10**18))
def test_bytes_survive_text_to_three_digits(count: int) -> None:
    assert units.parse_bytes(units.format_bytes(count)) == pytest.approx(count, rel=0.0051)


@given(st.floats(min_value=1, max_value=1e17))
def test_rates_survive_text_to_three_digits(rate: float) -> None:
    assert units.parse_byte_rate(units.format_byte_rate(rate)) == pytest.approx(rate, rel=0.0051)
    assert units.parse_flop_rate(units.format_flop_rate(rate)) == pytest.approx(rate, rel=0.0051)


@given(st.integers(min_value=1, max_value=2**70))
def test_a_whole_number_of_bytes_is_exact(count: int) -> None:
    assert units.parse_bytes(count) == count


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1_258_291, "1.2 MiB"),
        (2**20 - 1, "1 MiB"),
        (-2048, "-2 KiB"),
    ],
)
def test_bytes_are_written_in_the_unit_that_fits(count: int, text: str) -> None:
    assert units.format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (4.2e-5, "42 µs"),
        (0.85, "850 ms"),
        (0.99999, "1 s"),
        (59.9, "59.9 s"),
        (59.99, "1 min"),
        (125, "2 min 5 s"),
        (3599.9, "1 h"),
        (5400, "1 h 30 min"),
        (86_399, "1 d"),
        (187_200, "2 d 4 h"),
        (-90, "-1 min 30 s"),
    ],
)
def test_durations_are_written_in_two_units(seconds: float, text: str) -> None:
    assert units.format_seconds(seconds) == text


_SECONDS = {"µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}


@given(st.floats(min_value=1e-6, max_value=1e8))
def test_durations_mean_what_they_say(seconds: float) -> None:
    words = units.format_seconds(seconds).split()
    meant = sum(float(number) * _SECONDS[unit] for number, unit in zip(words[::2], words[1::2], strict=True))
    # Half of the smaller unit: at most 1 in 48, for a day and some hours.
    assert meant == pytest.approx(seconds, rel=1 / 48)
    assert "60 s" not in words
    assert "60 min" not in words


@pytest.mark.parametrize(
    ("amount", "good", "bad"),
    [
        (units.Bytes, "64 MiB", "64 Mb"),
        (units.ByteRate, "5 Mbit/s", "5 Mbit"),
        (units.FlopRate, "2 GFLOP/s", "2 GHz"),
    ],
)
def test_the_schema_and_the_field_agree(amount: object, good: str, bad: str) -> None:
    adapter = TypeAdapter(amount)
    number, text = adapter.json_schema()["anyOf"]
    assert number == {"type": "number", "exclusiveMinimum": 0}
    assert re.search(text["pattern"], good)
    assert adapter.validate_python(good) > 0
    assert not re.search(text["pattern"], bad)
    with pytest.raises(ValidationError):
        adapter.validate_python(bad)
