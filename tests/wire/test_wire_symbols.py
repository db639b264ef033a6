"""The code of whole numbers: exact, near their entropy, and safe against any payload."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprune.errors import WireError
from fedprune.wire.bits import Reader
from fedprune.wire.symbols import decode_symbols, encode_symbols


def decoded(payload: bytes, count: int, alphabet: int) -> np.ndarray:
    reader = Reader(payload)
    found = decode_symbols(reader, count, alphabet)
    reader.end()
    return found


def entropy_bytes(symbols: np.ndarray) -> float:
    shares = np.bincount(symbols) / len(symbols)
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum() * len(symbols) / 8)


@given(st.integers(1, 300).flatmap(lambda a: st.tuples(st.just(a), st.lists(st.integers(0, a - 1)))))
def test_numbers_come_back(drawn: tuple[int, list[int]]) -> None:
    alphabet, numbers = drawn
    symbols = np.array(numbers, dtype=np.int64)
    assert np.array_equal(decoded(encode_symbols(symbols, alphabet), len(symbols), alphabet), symbols)


@pytest.mark.parametrize("alphabet", [2, 3, 16, 100, 256])
@pytest.mark.parametrize("spread", [0.05, 0.3, 3.0])
def test_they_take_little_more_than_their_entropy(alphabet: int, spread: float) -> None:
    """Drawn from half a normal distribution, as the levels of a quantiser are."""
    drawn = np.abs(np.random.default_rng(alphabet).normal(size=300_000)) * spread * alphabet / 4
    symbols = np.minimum(drawn.astype(np.int64), alphabet - 1)
    assert len(encode_symbols(symbols, alphabet)) <= 1.03 * entropy_bytes(symbols) + 8 * alphabet


def test_what_is_out_of_range_is_refused() -> None:
    for numbers in ([3], [-1]):
        with pytest.raises(ValueError, match="expected 0 to 2"):
            encode_symbols(np.array(numbers), 3)
    for alphabet in (0, 2**16 + 1):
        with pytest.raises(ValueError, match="an alphabet of"):
            encode_symbols(np.array([0]), alphabet)
    with pytest.raises(WireError, match="a symbol is 3"):
        decoded(encode_symbols(np.array([3, 0]), 4), 2, 3)


@given(st.integers(0, 2**31), st.integers(0, 400), st.sampled_from(["cut", "flip", "more", "random"]))
def test_any_other_payload_is_refused_or_read_as_numbers(seed: int, count: int, damage: str) -> None:
    random = np.random.default_rng(seed)
    payload = bytearray(encode_symbols(random.integers(0, 5, count), 5))
    place = int(random.integers(len(payload)))
    if damage == "cut":
        del payload[place:]
    elif damage == "flip":
        payload[place] ^= 1 << int(random.integers(8))
    elif damage == "more":
        payload += b"\0"
    else:
        payload = bytearray(random.bytes(len(payload)))
    try:
        found = decoded(bytes(payload), count, 5)
    except WireError:
        return
    assert found.shape == (count,)
    assert not count or 0 <= found.min() <= found.max() < 5
