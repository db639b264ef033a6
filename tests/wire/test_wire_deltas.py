"""What has changed between two states: exact in every format, small, and safe against any payload."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedprune.errors import WireError
from fedprune.wire.deltas import decode_delta, encode_delta

KINDS = ("float32", "float16", "bfloat16")


def values(kind: str, count: int, seed: int) -> Tensor:
    """Return values of any size, as they come out of a format."""
    generator = torch.Generator().manual_seed(seed)
    scale = 2.0 ** torch.randint(-12, 12, (count,), generator=generator)
    drawn = torch.randn(count, generator=generator) * scale
    drawn[::7] = 0.0
    drawn[::11] *= -0.0
    return drawn.to(getattr(torch, kind)).float()


@given(st.sampled_from(KINDS), st.integers(0, 300), st.integers(0, 2**31), st.floats(0, 1))
def test_the_new_values_come_back_bit_for_bit(kind: Any, count: int, seed: int, share: float) -> None:
    held, other = values(kind, count, seed), values(kind, count, seed + 1)
    changed = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < share
    new = torch.where(changed, other, held)
    found = decode_delta(encode_delta(new, held, kind), held, kind)
    assert np.array_equal(found.numpy().view(np.int32), new.numpy().view(np.int32))


def test_the_smaller_the_changes_the_smaller_the_delta() -> None:
    held = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(100_000, generator=torch.Generator().manual_seed(1))
    lengths = [
        len(encode_delta(held * (1 + size * noise), held, "float32")) for size in (0.1, 0.01, 1e-4, 0.0)
    ]
    assert sorted(lengths, reverse=True) == lengths
    assert lengths[1] < 0.65 * 4 * 100_000
    assert lengths[-1] < 16
    few = torch.where(torch.rand(100_000, generator=torch.Generator().manual_seed(2)) < 0.01, -held, held)
    assert len(encode_delta(few, held, "float32")) < 0.015 * 4 * 100_000 + 1100


@given(st.sampled_from(KINDS), st.integers(0, 2**31), st.sampled_from(["cut", "flip", "more", "random"]))
def test_any_other_payload_is_refused_or_read_as_finite_values(kind: Any, seed: int, damage: str) -> None:
    random = np.random.default_rng(seed)
    held, new = values(kind, 60, seed), values(kind, 60, seed + 1)
    payload = bytearray(encode_delta(new, held, kind))
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
        found = decode_delta(bytes(payload), held, kind)
    except WireError:
        return
    assert damage in ("flip", "random")
    assert found.shape == held.shape
    assert found.isfinite().all()


def test_a_delta_of_another_number_of_values_is_refused() -> None:
    held = values("float32", 50, 0)
    payload = encode_delta(values("float32", 50, 1), held, "float32")
    with pytest.raises(WireError):
        decode_delta(payload, held[:40], "float32")
