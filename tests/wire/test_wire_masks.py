"""The mask codec: exact, near the entropy bound, and safe against any payload."""

from __future__ import annotations

import contextlib
import math
import random
import tracemalloc

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedprune.errors import WireError
from fedprune.sparsity.masks import Masks
from fedprune.wire import decode_bits, decode_masks, encode_bits, encode_masks
from fedprune.wire.bits import blob, varint

SHAPES = {
    "conv.weight": torch.Size([8, 4, 3, 3]),
    "norm.bias": torch.Size([8]),
    "scalar": torch.Size([]),
    "none": torch.Size([0, 5]),
    "fc.weight": torch.Size([100, 30]),
}


def entropy_bytes(mask: Tensor) -> float:
    """The least that random bits of this mask's density take on average: n * H(d) / 8."""
    density = mask.double().mean().item()
    if density in (0.0, 1.0):
        return 0.0
    rest = 1 - density
    return -mask.numel() * (density * math.log2(density) + rest * math.log2(rest)) / 8


def random_bits(count: int, density: float, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(count) < density)


def random_masks(density: float, seed: int, names: tuple[str, ...] = tuple(SHAPES)) -> Masks:
    generator = torch.Generator().manual_seed(seed)
    return Masks({name: torch.rand(SHAPES[name], generator=generator) < density for name in names})


densities = st.sampled_from([0.0, 0.001, 0.01, 0.05, 0.2, 0.4, 0.5, 0.6, 0.9, 0.999, 1.0]) | st.floats(0, 1)
seeds = st.integers(0, 2**32 - 1)
subsets = st.lists(st.sampled_from(list(SHAPES)), unique=True).map(tuple)


@given(st.lists(st.booleans(), max_size=70))
def test_bits_come_back(bits: list[bool]) -> None:
    tensor = torch.tensor(bits, dtype=torch.bool)
    assert torch.equal(decode_bits(encode_bits(tensor), len(bits)), tensor)


@given(st.integers(0, 20_000), densities, seeds)
def test_bits_of_any_density_come_back(count: int, density: float, seed: int) -> None:
    bits = random_bits(count, density, seed)
    payload = encode_bits(bits)
    assert torch.equal(decode_bits(payload, count), bits)
    assert len(payload) <= count / 8 + 8


@pytest.mark.parametrize("positions", [[0], [99_999], [0, 99_999], [254, 255, 256, 511, 767]])
@pytest.mark.parametrize("inverted", [False, True])
def test_bits_with_long_gaps_come_back(positions: list[int], inverted: bool) -> None:
    bits = torch.zeros(100_000, dtype=torch.bool)
    bits[positions] = True
    bits ^= inverted
    payload = encode_bits(bits)
    assert torch.equal(decode_bits(payload, 100_000), bits)
    assert len(payload) < 64


def test_bits_that_follow_a_pattern_take_next_to_nothing() -> None:
    channels = torch.zeros(256, 64, 9, dtype=torch.bool)
    channels[::3] = True
    assert len(encode_bits(channels.reshape(-1))) < 400


def test_encode_bits_refuses_what_is_not_bits() -> None:
    with pytest.raises(TypeError, match=r"torch\.uint8"):
        encode_bits(torch.zeros(3, dtype=torch.uint8))


@pytest.mark.parametrize("count", [100_000, 300_000, 1_000_000])
@pytest.mark.parametrize(
    "density", [0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5]
)
def test_random_masks_come_near_the_entropy_bound(count: int, density: float) -> None:
    mask = random_bits(count, density, seed=count)
    bound = 1.05 * entropy_bytes(mask) + 64
    assert len(encode_bits(mask)) <= bound
    assert len(encode_masks(Masks({"fc.weight": mask}))) <= bound


@pytest.mark.parametrize("density", [0.01, 0.1])
def test_tensors_of_different_densities_each_come_near_their_bound(density: float) -> None:
    masks = Masks({f"layer{i}.weight": random_bits(60_000, density * 1.3**i / 4, seed=i) for i in range(10)})
    bound = sum(entropy_bytes(mask) for mask in masks.values())
    assert len(encode_masks(masks)) <= 1.05 * bound + 200


@given(densities, seeds, subsets)
@settings(deadline=None)
def test_masks_come_back_with_names_order_and_version(
    density: float, seed: int, names: tuple[str, ...]
) -> None:
    masks = random_masks(density, seed, names)
    decoded = decode_masks(encode_masks(masks), SHAPES, version=masks.version)
    assert list(decoded) == list(masks)
    assert all(torch.equal(decoded[name], masks[name]) for name in masks)


@given(densities, densities, seeds, subsets, subsets)
@settings(deadline=None)
def test_masks_come_back_to_who_holds_any_others(
    density: float, held_density: float, seed: int, names: tuple[str, ...], held_names: tuple[str, ...]
) -> None:
    masks, held = random_masks(density, seed, names), random_masks(held_density, seed + 1, held_names)
    payload = encode_masks(masks, held)
    assert decode_masks(payload, SHAPES, held, version=masks.version) == masks
    assert len(payload) <= len(encode_masks(masks))


def swapped(masks: Masks, share: float) -> Masks:
    """As many weights grown as dropped in each tensor, ``share`` of those kept."""
    generator = torch.Generator().manual_seed(5)
    tensors = {name: mask.clone() for name, mask in masks.items()}
    for mask in tensors.values():
        flat = mask.view(-1)
        kept, pruned = flat.nonzero().view(-1), flat.logical_not().nonzero().view(-1)
        count = int(share * len(kept))
        flat[kept[torch.randperm(len(kept), generator=generator)[:count]]] = False
        flat[pruned[torch.randperm(len(pruned), generator=generator)[:count]]] = True
    return Masks(tensors)


def test_an_update_is_as_short_as_what_changed() -> None:
    held = Masks({"fc.weight": random_bits(1_000_000, 0.01)})
    masks = swapped(held, 0.15)
    before, after = held["fc.weight"], masks["fc.weight"]
    bound = entropy_bytes(after[before]) + entropy_bytes(after[~before])
    payload = encode_masks(masks, held)
    assert len(payload) <= 1.05 * bound + 64
    assert len(payload) < len(encode_masks(masks)) / 3
    assert len(encode_masks(masks, masks)) < 16


def test_decoded_masks_share_no_memory() -> None:
    masks = random_masks(0.3, 0)
    decoded = decode_masks(encode_masks(masks), SHAPES)
    assert all(mask.untyped_storage().nbytes() == mask.numel() for mask in decoded.values())


@pytest.mark.parametrize(
    ("payload", "fault"),
    [
        (b"", "ends 1 bytes too early"),
        (b"\x07", "begins with 7"),
        (b"\x01" + blob(b"nobody.weight\0") + blob(b"\x00"), "'nobody.weight', which is not a tensor"),
        (b"\x01" + blob(b"norm.bias\0norm.bias\0") + blob(b"\x00\x00"), "damaged"),
        (b"\x01" + blob(b"norm.bias") + blob(b"\x00"), "damaged"),
        (b"\x01" + blob(b"\xff\0") + blob(b"\x00"), "not UTF-8"),
        (b"\x01" + blob(b"norm.bias\0") + blob(b"\x00") + b"!", "1 bytes too many"),
        (b"\x01" + blob(b"norm.bias\0") + blob(b"\x00\x00"), "has 2 bytes, expected 1 to 1"),
        (b"\x01" + b"\xff" * 20, "more than 63 bits"),
        (b"\x02" + bytes(8), "builds on masks of version '0000000000000000', held are none"),
    ],
)
def test_a_bad_payload_is_named(payload: bytes, fault: str) -> None:
    with pytest.raises(WireError, match=fault):
        decode_masks(payload, SHAPES)


def gaps(low_bits: int, high: bytes, low: bytes = b"") -> bytes:
    """A code of bits of class "about a quarter", as gaps."""
    return blob(bytes([4])) + bytes([1 + low_bits]) + blob(high) + low


@pytest.mark.parametrize(
    ("payload", "fault"),
    [
        (gaps(0, bytes([50, 49])), "cover 101 positions, expected at most 100"),
        (gaps(0, bytes([3, 255])), "cover 259 positions"),
        (gaps(200, bytes([1])), "have 200 low bits"),
        (gaps(6, bytes([1, 1]), bytes([192] * 6)), "cover 256 positions"),
        (gaps(6, bytes([1, 1]), bytes(5)), "too early"),
        (gaps(0, bytes(90)), "has 90 bytes, expected 1 to 25"),
    ],
)
def test_a_bad_gap_is_named(payload: bytes, fault: str) -> None:
    with pytest.raises(WireError, match=fault):
        decode_bits(payload, 100)


def test_a_gap_without_an_end_is_named() -> None:
    with pytest.raises(WireError, match="the last gap has no end"):
        decode_bits(gaps(0, bytes([1, 255])), 1_000)


def test_the_last_position_can_be_reached_by_a_gap() -> None:
    assert decode_bits(gaps(0, bytes([50, 48])), 100).nonzero().view(-1).tolist() == [50, 99]


def test_masks_of_another_version_are_refused() -> None:
    masks, others = random_masks(0.2, 1), random_masks(0.2, 2)
    with pytest.raises(WireError, match=f"version {masks.version!r}, expected {others.version!r}"):
        decode_masks(encode_masks(masks), SHAPES, version=others.version)
    update = encode_masks(swapped(masks, 0.01), masks)
    with pytest.raises(WireError, match=f"builds on masks of version {masks.version!r}"):
        decode_masks(update, SHAPES, others)
    with pytest.raises(WireError, match="held mask of 'norm"):
        decode_masks(update, {**SHAPES, "norm.bias": torch.Size([9])}, masks)


def test_a_name_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(WireError, match="null character"):
        encode_masks(Masks({"a\0b": torch.ones(2, dtype=torch.bool)}))


def frame_that_claims(size: int) -> bytes:
    """A zstandard frame whose header says that it holds ``size`` bytes, behind its length."""
    frame = bytearray(zstandard.ZstdCompressor().compress(bytes(300_000)))
    assert frame[4] >> 6 == 2  # the header's size field has four bytes
    frame[4] |= 0xC0  # now it has eight
    frame[5:9] = size.to_bytes(8, "little")
    return varint(len(frame) << 1 | 1) + bytes(frame)


@pytest.mark.parametrize("size", [4_000, 2**20, 2**40, 2**63])
def test_a_forged_size_allocates_nothing(size: int) -> None:
    payload = blob(bytes([2])) + b"\x00" + frame_that_claims(size)
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            decode_bits(payload, 8 * 4_000)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def mutated(payload: bytes, other: bytes, dice: random.Random) -> bytes:
    """The payload with a bit flipped, a part cut out, doubled, overwritten, or taken from another."""
    data = bytearray(payload)
    at, length = dice.randrange(len(data)), dice.choice([1, 2, 8, dice.randrange(1, len(data) + 1)])
    match dice.randrange(6):
        case 0:
            data[at] ^= 1 << dice.randrange(8)
        case 1:
            del data[at : at + length]
        case 2:
            data[at:at] = data[at : at + length]
        case 3:
            data[at : at + length] = dice.randbytes(length)
        case 4:
            data[at:] = other[at:]
        case 5:
            for _ in range(4):
                data[dice.randrange(len(data))] = dice.randrange(256)
    return bytes(data)


def test_damaged_payloads_give_a_wire_error_or_masks_of_the_right_shapes() -> None:
    dice = random.Random(0)
    held = random_masks(0.1, 0)
    payloads = [encode_masks(random_masks(density, 1)) for density in (0.01, 0.1, 0.4, 0.97)]
    payloads += [encode_masks(swapped(held, share), held) for share in (0.05, 0.3)]
    assert {payload[0] for payload in payloads} == {1, 2}
    refused = 0
    for _ in range(10_000):
        payload = mutated(dice.choice(payloads), dice.choice(payloads), dice)
        try:
            masks = decode_masks(payload, SHAPES, held)
        except WireError:
            refused += 1
        else:
            assert all(mask.shape == SHAPES[name] for name, mask in masks.items())
    assert 1_000 < refused < 10_000


def test_damaged_payloads_allocate_at_most_twice_the_model() -> None:
    dice = random.Random(1)
    count = 200_000
    shapes = {"fc.weight": torch.Size([count])}
    payloads = [
        encode_masks(Masks({"fc.weight": random_bits(count, density)})) for density in (0.01, 0.249, 0.7)
    ]
    tracemalloc.start()
    try:
        for _ in range(300):
            tracemalloc.reset_peak()
            with contextlib.suppress(WireError):
                decode_masks(mutated(dice.choice(payloads), dice.choice(payloads), dice), shapes)
            assert tracemalloc.get_traced_memory()[1] < 2 * 4 * count
    finally:
        tracemalloc.stop()


def channels(keep=0.5, seed=0):
    """Return masks of whole rows and columns, of which one set of rows is shared."""
    generator = torch.Generator().manual_seed(seed)
    rows = {size: torch.rand(size, generator=generator) < keep for size in (8, 4, 100, 30)}
    conv = rows[8].view(-1, 1, 1, 1) & rows[4].view(1, -1, 1, 1) & torch.ones(8, 4, 3, 3, dtype=torch.bool)
    return Masks(
        {
            "conv.weight": conv,
            "norm.bias": rows[8],
            "fc.weight": rows[100].view(-1, 1) & rows[30].view(1, -1),
        }
    )


@pytest.mark.parametrize("seed", range(5))
def test_masks_of_channels_take_a_bit_a_channel(seed):
    masks = channels(seed=seed)
    assert masks.axes is not None
    payload = encode_masks(masks)
    assert payload[0] == 3
    names = sum(len(name) + 1 for name in masks)
    # Each set once: 8 + 4 + 100 + 30 bits; two bytes for each of seven dimensions; heads of streams.
    assert len(payload) <= names + 142 / 8 + 2 * 7 + 40
    assert decode_masks(payload, SHAPES, version=masks.version) == masks
    dropped = Masks({**masks, "norm.bias": masks["norm.bias"] & (torch.arange(8) < 7)})
    assert decode_masks(encode_masks(dropped, masks), SHAPES, masks, version=dropped.version) == dropped


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_masks_of_channels_are_refused_or_masks(data):
    payload = bytearray(encode_masks(channels(seed=data.draw(st.integers(0, 3)))))
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(WireError):
        masks = decode_masks(bytes(payload), SHAPES)
        assert decode_masks(encode_masks(masks), SHAPES) == masks
