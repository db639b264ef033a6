"""States on the wire: what comes back, what a stock strategy sees, and what is refused."""

from __future__ import annotations

import random
import tracemalloc

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedprune.errors import WireError
from fedprune.sparsity.masks import Masks, apply_masks
from fedprune.wire import (
    Layout,
    StateCodec,
    ValueType,
    content_bytes,
    get_state,
    mask_bytes,
    set_state,
    take_masks,
    with_masks,
)

VALUE_TYPES: list[ValueType] = ["float32", "float16", "bfloat16", "int8"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Layout, Masks, dict[str, Tensor]]:
    """A layout of any shapes and dtypes, masks of some of its tensors, and a state."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    shapes, dtypes, masks, state = {}, {}, {}, {}
    for number, shape in enumerate(draw(st.lists(st.lists(st.integers(0, 5), max_size=4), max_size=5))):
        name = f"layer{number}.weight"
        shapes[name], dtypes[name] = torch.Size(shape), draw(st.sampled_from(DTYPES))
        scale = draw(st.sampled_from([0.0, 1e-6, 1.0, 1e4]))
        state[name] = (scale * torch.randn(shape, generator=generator)).to(dtypes[name])
        if draw(st.booleans()):
            density = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
            masks[name] = torch.rand(shape, generator=generator) < density
    return Layout(shapes, dtypes), Masks(masks), state


@given(cases())
@settings(deadline=None)
def test_float32_values_come_back_bit_for_bit(case: tuple[Layout, Masks, dict[str, Tensor]]) -> None:
    layout, masks, state = case
    codec = StateCodec(layout, masks)
    decoded = codec.unflatten(codec.decode(codec.encode(codec.flatten(state))))
    pruned = apply_masks(state, masks)
    assert list(decoded) == list(state)
    for name, tensor in decoded.items():
        assert tensor.dtype == state[name].dtype
        assert torch.equal(tensor, pruned[name])
    assert codec.size == sum(masks.kept.get(name, shape.numel()) for name, shape in layout.shapes.items())


@given(cases(), st.sampled_from(VALUE_TYPES))
@settings(deadline=None)
def test_values_come_back_as_near_as_their_type_allows(
    case: tuple[Layout, Masks, dict[str, Tensor]], values: ValueType
) -> None:
    layout, masks, state = case
    codec = StateCodec(layout, masks, values)
    decoded = codec.unflatten(codec.decode(codec.encode(codec.flatten(state))))
    for name, pruned in apply_masks(state, masks).items():
        error = (decoded[name].double() - pruned.double()).abs()
        kept = pruned.double()[masks[name]] if name in masks else pruned.double()
        if values == "int8":  # one step of the scale, and what rounding to a float loses
            step = (kept.max() - kept.min()) / 255 if kept.numel() else 0.0
            allowed = step + pruned.double().abs() * 2**-8 + 1e-7
        else:
            significand = {"float32": 24, "float16": 11, "bfloat16": 8}[values]
            allowed = pruned.double().abs() * 2.0**-significand + 2**-24
        assert (error <= allowed).all()
        if name in masks:
            assert not decoded[name][~masks[name]].any()


def codec_of(values: ValueType = "float32") -> StateCodec:
    layout = Layout(
        {"conv.weight": torch.Size([4, 25]), "norm.bias": torch.Size([7]), "fc.weight": torch.Size([10, 10])},
        dict.fromkeys(["conv.weight", "norm.bias", "fc.weight"], torch.float32),
    )
    masks = Masks({"conv.weight": torch.arange(100).reshape(4, 25) % 3 == 0})
    return StateCodec(layout, masks, values)


def test_values_are_in_layout_order_and_row_major() -> None:
    codec = codec_of()
    state = {
        "fc.weight": torch.full((10, 10), 3.0),
        "conv.weight": torch.arange(100.0).reshape(4, 25),
        "norm.bias": torch.full((7,), 2.0),
    }
    expected = [*map(float, range(0, 100, 3)), *[2.0] * 7, *[3.0] * 100]
    assert codec.flatten(state).tolist() == expected
    permuted = state["conv.weight"].T.contiguous().T  # the same tensor, in other memory order
    assert codec.flatten({**state, "conv.weight": permuted}).tolist() == expected


@pytest.mark.parametrize("values", ["float32", "float16"])
def test_a_stock_strategy_sees_plain_arrays(values: ValueType) -> None:
    codec = codec_of(values)
    flats = [torch.randn(codec.size, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    arrays = [codec.encode(flat)["values"] for flat in flats]
    average = ArrayRecord({"values": Array((arrays[0].numpy() + arrays[1].numpy()) / 2)})
    torch.testing.assert_close(codec.decode(average), (flats[0] + flats[1]) / 2, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("values", VALUE_TYPES)
def test_an_array_is_what_flower_would_write(values: ValueType) -> None:
    for array in codec_of(values).encode(torch.linspace(-1, 1, 141)).values():
        assert array == Array(array.numpy())


def test_int8_rounds_without_bias_and_depends_on_the_seed_alone() -> None:
    codec = codec_of("int8")
    flat = torch.linspace(-1, 1, codec.size)
    draws = torch.stack([codec.decode(codec.encode(flat, seed=seed)) for seed in range(500)])
    step = 2 / 255
    assert (draws.mean(0) - flat).abs().max() < 5 * step / 2 / 500**0.5
    assert draws.std(0).max() > step / 4
    assert torch.equal(draws[7], codec.decode(codec.encode(flat, seed=7)))


def test_decoding_copies_nothing_where_it_need_not() -> None:
    codec = codec_of()
    data = bytearray(codec.encode(torch.ones(codec.size))["values"].data)
    record = ArrayRecord({"values": Array(np.ones(codec.size, np.float32))})
    record["values"].data = memoryview(data)
    flat = codec.decode(record)
    data[-4:] = np.float32(5).tobytes()
    assert flat[-1] == 5
    dense = codec.unflatten(flat)
    data[-4:] = np.float32(6).tobytes()
    assert dense["fc.weight"][-1, -1] == 5


def test_data_that_is_not_aligned_is_read() -> None:
    codec = codec_of()
    record = codec.encode(torch.arange(float(codec.size)))
    record["values"].data = memoryview(b"!" + record["values"].data)[1:]
    assert torch.equal(codec.decode(record), torch.arange(float(codec.size)))


@given(st.binary(max_size=300))
def test_masks_travel_beside_the_values(payload: bytes) -> None:
    codec = codec_of()
    record = codec.encode(torch.ones(codec.size))
    both = with_masks(record, payload)
    assert take_masks(both) == payload
    assert take_masks(record) is None
    assert codec.decode(both).sum() == codec.size
    content = RecordDict({"arrays": both, "config": ConfigRecord({"round": 1})})
    assert mask_bytes(content) == len(payload)
    assert mask_bytes(RecordDict({"arrays": record})) == 0
    assert len(payload) < content_bytes(content) - content_bytes(RecordDict({"arrays": record}))


def test_a_sparse_message_has_a_small_envelope() -> None:
    codec = codec_of()
    record = with_masks(codec.encode(torch.ones(codec.size)), bytes(100))
    assert content_bytes(RecordDict({"arrays": record})) - 4 * codec.size - 100 < 2048


def test_a_module_gives_its_state_and_takes_one() -> None:
    torch.manual_seed(0)
    modules = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)) for _ in range(2)]
    modules[0](torch.randn(5, 3))
    state = get_state(modules[0])
    assert list(state) == list(Layout.of(modules[0]).shapes)
    assert "1.num_batches_tracked" not in state
    assert {"0.weight", "1.running_var"} <= set(state)
    set_state(modules[1], state)
    assert all(torch.equal(tensor, modules[1].state_dict()[name]) for name, tensor in state.items())
    state["0.weight"].zero_()
    assert all(module[0].weight.any() for module in modules)


def test_set_state_refuses_another_models_state_and_changes_nothing() -> None:
    module = nn.Linear(3, 4)
    before = get_state(module)
    for state, fault in [
        ({"weight": torch.zeros(4, 3)}, "'bias' is missing"),
        ({"weight": torch.zeros(4, 3), "bias": torch.zeros(5)}, r"'bias' has shape \(5,\), expected \(4,\)"),
        ({**before, "gain": torch.zeros(1)}, "'gain' is not a tensor of this model"),
    ]:
        with pytest.raises(WireError, match=fault):
            set_state(module, state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in get_state(module).items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_a_layout_refuses_what_would_not_come_back(dtype: torch.dtype) -> None:
    with pytest.raises(WireError, match=f"'weight' has dtype {dtype}"):
        Layout.of(nn.Linear(2, 2, dtype=dtype))


def test_a_codec_refuses_masks_of_another_model() -> None:
    layout = Layout.of(nn.Linear(3, 4))
    for name, shape in [("weight", (3, 4)), ("other", (4, 3))]:
        with pytest.raises(WireError, match=name):
            StateCodec(layout, Masks({name: torch.ones(shape, dtype=torch.bool)}))


@pytest.mark.parametrize("values", VALUE_TYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_named(values: ValueType, bad: float) -> None:
    flat = torch.zeros(codec_of().size)
    flat[34 + 3] = bad
    with pytest.raises(WireError, match=r"'norm.bias' has a value that is not finite .* number 3"):
        codec_of(values).encode(flat)
    if values in ("float32", "float16"):
        record = ArrayRecord({"values": Array(flat.numpy().astype(values))})
        with pytest.raises(WireError, match=r"'norm.bias' has a value that is not finite .* number 3"):
            codec_of(values).decode(record)


def test_a_value_beyond_float16_is_refused_before_it_is_sent() -> None:
    with pytest.raises(WireError, match=r"'conv.weight' has a value that is not finite as float16"):
        codec_of("float16").encode(torch.full((codec_of().size,), 70_000.0))


def altered(**changes: object) -> ArrayRecord:
    record = codec_of().encode(torch.ones(codec_of().size))
    for field, value in changes.items():
        setattr(record["values"], field, value)
    return record


GOOD = altered()["values"].data
FORGED = GOOD.replace(b"(141,), }" + 13 * b" ", b"(9999999999999999,), }")


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        (ArrayRecord(), r"has the arrays \[\], expected \['values'\]"),
        (ArrayRecord([np.ones(141, np.float32)]), r"has the arrays \['0'\]"),
        (altered(stype="pickle"), "serialization type 'pickle'"),
        (altered(dtype="float64"), "dtype 'float64', expected 'float32'"),
        (altered(shape=(142,)), r"shape \(142,\), expected \(141,\)"),
        (altered(shape=141), "no readable data or shape"),
        (altered(data=7), "no readable data"),
        (altered(data=b""), "header"),
        (altered(data=GOOD[:-1]), "length in bytes 563, expected 564"),
        (altered(data=GOOD + b"!"), "length in bytes 565"),
        (altered(data=GOOD.replace(b"<f4", b"<f8")), "dtype '<f8', expected '<f4'"),
        (altered(data=GOOD.replace(b"<f4", b"|O8")), "header"),
        (altered(data=FORGED), r"shape \(9999999999999999,\), expected \(141,\)"),
        (altered(data=GOOD.replace(b"False", b"True")), "header"),
        (altered(data=GOOD.replace(b"NUMPY", b"NUMPI")), "header"),
    ],
)
def test_a_bad_record_is_named(record: ArrayRecord, fault: str) -> None:
    with pytest.raises(WireError, match=fault):
        codec_of().decode(record)


def test_a_forged_shape_allocates_nothing() -> None:
    records = [altered(data=FORGED), altered(data=FORGED, shape=(9999999999999999,))]
    tracemalloc.start()
    try:
        for record in records:
            with pytest.raises(WireError):
                codec_of().decode(record)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_a_mask_entry_that_is_no_payload_is_refused() -> None:
    record = ArrayRecord({"__mask__": Array(np.zeros((2, 2), np.uint8))})
    with pytest.raises(WireError, match="'__mask__'"):
        take_masks(record)
    with pytest.raises(WireError, match="'__mask__' has dtype 'float32'"):
        take_masks(ArrayRecord({"__mask__": Array(np.zeros(2, np.float32))}))


def test_damaged_records_give_a_wire_error_or_finite_values() -> None:
    dice = random.Random(0)
    codecs = [codec_of(values) for values in VALUE_TYPES]
    originals = [codec.encode(torch.linspace(-2, 3, codec.size)) for codec in codecs]
    refused = 0
    for turn in range(10_000):
        record = originals[turn % 4].copy()
        name = dice.choice(list(record))
        other = dice.choice([array for original in originals for array in original.values()])
        array = record[name] = Array("", (), "", b"")
        array.dtype, array.shape, array.stype, data = damaged(originals[turn % 4][name], other, dice)
        array.data = dice.choice([bytes, bytearray, memoryview])(data)
        try:
            flat = codecs[turn % 4].decode(record)
        except WireError:
            refused += 1
        else:
            assert flat.shape == (codecs[0].size,)
            assert flat.isfinite().all()
    assert 1_000 < refused < 10_000


def damaged(array: Array, other: Array, dice: random.Random) -> tuple[str, tuple[int, ...], str, bytes]:
    """The fields of an array: a bit or byte of its data changed, its data cut, or swapped in part."""
    dtype, shape, stype, data = array.dtype, array.shape, array.stype, bytearray(array.data)
    at = dice.randrange(len(data))
    match dice.randrange(7):
        case 0:
            data[at] ^= 1 << dice.randrange(8)
        case 1:
            del data[at:]
        case 2:
            data[dice.randrange(128)] = dice.randrange(256)
        case 3:
            shape = dice.choice([(), (0,), (-1,), (10**18,), (141, 1), other.shape])
        case 4:
            dtype = dice.choice(["float64", "object", "", other.dtype])
        case 5:
            data = bytearray(other.data)
        case 6:
            data[at:] = dice.randbytes(len(data) - at)
    return dtype, shape, stype, bytes(data)
