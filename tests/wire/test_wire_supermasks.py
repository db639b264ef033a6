"""Supermasks on the wire: what comes back, how long it is, and what is refused."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import torch
import zstandard
from flwr.app import Array, ArrayRecord
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedprune.errors import WireError
from fedprune.sparsity.masks import Masks, apply_masks
from fedprune.wire import Layout, SupermaskCodec, with_masks
from fedprune.wire.bits import encode_vectors, varint
from fedprune.wire.supermasks import Grid
from fedprune.wire.values import from_array, to_array

BITS = st.integers(1, 16)
LOWS = st.sampled_from([-1.0, 0.0])


@st.composite
def cases(draw: st.DrawFn) -> tuple[SupermaskCodec, dict[str, Tensor], dict[str, Tensor]]:
    """A codec of any tensors, masks and grid, the whole frozen state, and a state that was learned of it."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    grid = Grid(draw(LOWS), draw(BITS))
    shapes, masks, sent, frozen, state = {}, {}, set(), {}, {}
    for number, shape in enumerate(
        draw(st.lists(st.lists(st.integers(0, 5), max_size=4), min_size=1, max_size=5))
    ):
        name = f"layer{number}.weight"
        shapes[name] = torch.Size(shape)
        magnitude = torch.rand(shape, generator=generator) + draw(st.sampled_from([1e-6, 0.1, 100.0]))
        frozen[name] = state[name] = magnitude * torch.where(
            torch.rand(shape, generator=generator) < 0.5, 1, -1
        )
        what = draw(st.sampled_from(["masked", "sent", "still"])) if number else "masked"
        if what == "masked":
            density = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
            masks[name] = torch.rand(shape, generator=generator) < density
            state[name] = frozen[name] * (3 * torch.rand(shape, generator=generator) - 1.5)
        elif what == "sent":
            sent.add(name)
            state[name] = torch.randn(shape, generator=generator)
    layout = Layout(shapes, dict.fromkeys(shapes, torch.float32))
    return SupermaskCodec(layout, Masks(masks), frozen, sent, grid), frozen, state


def sendable(grid: Grid) -> np.ndarray:
    return np.linspace(grid.low, 1, 2**grid.bits)


@given(cases())
def test_a_state_comes_back_with_the_nearest_numbers(
    case: tuple[SupermaskCodec, dict[str, Tensor], dict[str, Tensor]],
) -> None:
    codec, frozen, state = case
    flat = codec.flatten(state)
    came = codec.decode(codec.encode(flat))
    found = codec.unflatten(came)
    assert list(found) == list(state)
    assert torch.equal(came[~codec.is_number], flat[~codec.is_number])
    for name, tensor in apply_masks(state, codec.masks).items():
        if name not in codec.masks:
            assert torch.equal(found[name], tensor)
            continue
        mask = codec.masks[name]
        assert not found[name][~mask].any()
        wanted = (tensor[mask].double() / frozen[name][mask].double()).numpy()
        numbers = codec.numbers(came)[name].double().numpy()
        assert torch.equal(found[name][mask], codec.numbers(came)[name] * frozen[name][mask])
        if len(wanted):
            grid = sendable(codec.grid)
            nearest = abs(wanted[:, None] - grid).min(axis=1)
            assert (abs(numbers - wanted) <= nearest + 1e-6).all()
            assert abs(numbers[:, None] - grid).min() <= 1e-7
    # What came is on the grid: it comes back bit for bit, as a state and as it travels.
    assert torch.equal(codec.decode(codec.encode(came)), came)
    assert codec.encode(codec.flatten(found)) == codec.encode(came)


@given(cases(), st.integers(1, 9))
def test_a_state_is_added_where_it_has_values(
    case: tuple[SupermaskCodec, dict[str, Tensor], dict[str, Tensor]], weight: int
) -> None:
    codec, frozen, state = case
    sums, weights = ({name: torch.zeros(t.shape).double() for name, t in state.items()} for _ in range(2))
    flat = codec.decode(codec.encode(codec.flatten(state)))
    codec.add(flat, sums, weights, weight)
    for name, tensor in codec.unflatten(flat).items():
        travels = codec.masks.get(name, torch.tensor(not torch.equal(tensor, frozen[name])))
        assert torch.equal(weights[name], (weight * travels).double().expand(tensor.shape))
        assert torch.equal(sums[name], torch.where(travels, weight * tensor.double(), 0))


@given(LOWS, BITS)
def test_a_grid_spans_from_its_low_to_1_evenly(low: float, bits: int) -> None:
    grid = Grid(low, bits)
    levels = torch.arange(2**bits, dtype=torch.int32)
    numbers = grid.numbers(levels)
    np.testing.assert_allclose(numbers.numpy(), sendable(grid), atol=1e-7)
    assert torch.equal(grid.levels(numbers), levels)
    assert grid.nearest(torch.tensor([low - 3, 1 + 3.0])).tolist() == [low, 1]


# Length -----------------------------------------------------------------------------------------

COUNTS = {"conv.weight": 30_000, "fc.weight": 90_000, "head.weight": 500}
LAYOUT = Layout(
    {name: torch.Size([count]) for name, count in COUNTS.items()} | {"norm.running_mean": torch.Size([64])},
    dict.fromkeys([*COUNTS, "norm.running_mean"], torch.float32),
)
WHOLE = Masks({name: torch.ones(count, dtype=torch.bool) for name, count in COUNTS.items()})
FROZEN = {name: torch.full(shape, 2.0) for name, shape in LAYOUT.shapes.items()}
TOTAL = sum(COUNTS.values())


def codec_of(bits: int = 1, low: float = 0.0, masks: Masks = WHOLE) -> SupermaskCodec:
    return SupermaskCodec(LAYOUT, masks, FROZEN, ["norm.running_mean"], Grid(low, bits))


def payload_of(record: ArrayRecord) -> bytes:
    return from_array("values", record["values"], "|u1", (-1,)).tobytes()


@pytest.mark.parametrize("density", [0.0, 0.01, 0.1, 0.2, 0.3, 0.36, 0.4, 0.5, 0.7, 0.95, 1.0])
def test_bits_take_little_more_than_their_entropy(density: float) -> None:
    codec = codec_of()
    flat = torch.ones(codec.size)
    flat[codec.is_number] = (torch.rand(TOTAL, generator=torch.Generator().manual_seed(1)) < density).float()
    ones = flat[codec.is_number].mean().item()
    entropy = -sum(p * math.log2(p) for p in (ones, 1 - ones) if p) * TOTAL / 8
    length = len(payload_of(codec.encode(flat))) - 4 * 64
    assert length <= 1.05 * entropy + 64
    assert length <= 1.01 * TOTAL / 8


@pytest.mark.parametrize("bits", [1, 2, 8, 16])
def test_a_vote_takes_no_more_than_its_bits(bits: int) -> None:
    codec = codec_of(bits, -1.0)
    flat = 2 * torch.rand(codec.size, generator=torch.Generator().manual_seed(1)) - 1
    assert len(payload_of(codec.encode(flat))) <= bits * TOTAL / 8 + 4 * 64 + 64
    assert codec.itemsize == bits / 8


# What is refused --------------------------------------------------------------------------------


def record_of(payload: bytes) -> ArrayRecord:
    return ArrayRecord({"values": to_array(np.frombuffer(payload, dtype=np.uint8))})


SMALL = Layout(
    {"a": torch.Size([40]), "b": torch.Size([3, 4]), "mean": torch.Size([5])},
    dict.fromkeys(("a", "b", "mean"), torch.float32),
)
MASKS = Masks({"a": torch.arange(40) % 3 > 0, "b": torch.ones(3, 4, dtype=torch.bool)})
CODEC = SupermaskCodec(
    SMALL, MASKS, {name: torch.ones(shape) for name, shape in SMALL.shapes.items()}, ["mean"], Grid(-1.0, 1)
)
FLAT = torch.cat([torch.where(torch.arange(38) % 5 < 2, 1.0, -1.0), torch.arange(5.0)])
GOOD = payload_of(CODEC.encode(FLAT))
VERSION, REST = bytes.fromhex(MASKS.version), GOOD[-20:]


def bits_of(*lengths: int) -> bytes:
    return encode_vectors([np.arange(length) % 5 < 2 for length in lengths])


def test_the_payload_is_version_bits_and_the_rest() -> None:
    assert GOOD[:8] == VERSION
    assert np.frombuffer(REST, "<f4").tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(CODEC.decode(record_of(GOOD)), FLAT)
    both = with_masks(CODEC.encode(FLAT), b"masks")
    assert torch.equal(CODEC.decode(both), FLAT)


def with_mean(value: float) -> bytes:
    return GOOD[:-4] + np.float32(value).tobytes()


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        (ArrayRecord(), r"has the arrays \[\], expected \['values'\]"),
        (ArrayRecord({**record_of(GOOD), "more": Array(np.ones(1))}), r"has the arrays \['more', 'values'\]"),
        (ArrayRecord({"values": Array(np.ones(9, np.float32))}), "dtype 'float32', expected 'uint8'"),
        (record_of(b""), "ends 8 bytes too early"),
        (record_of(bytes(8) + GOOD[8:]), f"for the mask {'00' * 8}, expected {MASKS.version}"),
        (record_of(VERSION + bits_of(26, 12, 3) + REST), "expected 2 to 2"),
        (record_of(VERSION + bits_of(26) + REST), "expected 2 to 2"),
        (record_of(VERSION + bits_of(260, 120) + REST), "bytes, expected 5 to 5"),
        (record_of(VERSION + bits_of(10, 4) + REST), "bytes, expected 5 to 5"),
        (record_of(GOOD[:-1]), "ends 1 bytes too early"),
        (record_of(GOOD[:-20]), "ends 20 bytes too early"),
        (record_of(GOOD + b"!"), "1 bytes too many"),
        (record_of(GOOD + bytes(4)), "4 bytes too many"),
        (record_of(with_mean(math.nan)), "'mean' has a value that is not finite .*, number 4"),
        (record_of(with_mean(math.inf)), "'mean' has a value that is not finite"),
    ],
)
def test_a_damaged_record_is_refused(record: ArrayRecord, fault: str) -> None:
    with pytest.raises(WireError, match=fault):
        CODEC.decode(record)


def test_every_shorter_payload_is_refused() -> None:
    for length in range(len(GOOD)):
        with pytest.raises(WireError):
            CODEC.decode(record_of(GOOD[:length]))


@given(st.binary(max_size=200), st.integers(0, len(GOOD)), st.booleans())
@settings(max_examples=300)
def test_garbage_is_refused_or_is_numbers(garbage: bytes, at: int, versioned: bool) -> None:
    for payload in (VERSION * versioned + garbage, GOOD[:at] + garbage + GOOD[at + len(garbage) :]):
        try:
            flat = CODEC.decode(record_of(payload))
        except WireError:
            continue
        assert flat.shape == (43,)
        assert flat.isfinite().all()
        assert set(flat[CODEC.is_number].tolist()) <= {-1, 1}


def test_a_payload_that_promises_much_takes_no_memory() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(100_000_000))
    # Two tensors of one class, as a bitmap, compressed.
    payload = VERSION + b"\x04\x02\x02" + b"\x00" + varint(len(bomb) << 1 | 1) + bomb
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match="has 100000000 bytes, expected 5 to 5"):
            CODEC.decode(record_of(payload))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_what_cannot_be_sent_is_refused() -> None:
    flat = FLAT.clone()
    for at, name in ((3, "'a'"), (40, "'mean'")):
        flat[at] = math.nan
        with pytest.raises(WireError, match=f"{name} has a value that is not finite"):
            CODEC.encode(flat)
        flat[at] = 0
    zero = {name: torch.zeros(shape) for name, shape in SMALL.shapes.items()}
    with pytest.raises(WireError, match="a frozen weight that is kept is 0"):
        SupermaskCodec(SMALL, MASKS, zero, [], Grid(0.0, 1))
    with pytest.raises(WireError, match="needs masks"):
        SupermaskCodec(SMALL, Masks(), zero, [], Grid(0.0, 1))
    with pytest.raises(WireError, match=r"mask of 'c' has shape \(2,\)"):
        SupermaskCodec(SMALL, Masks({"c": torch.ones(2, dtype=torch.bool)}), zero, [], Grid(0.0, 1))
