"""Updates on both sides: error feedback, masks that move, and payloads that are damaged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedprune.compression import COMPRESSORS, Compressor, Frame, Memory, Source, Writer
from fedprune.errors import NotFiniteError, WireError
from fedprune.protocol.updates import Kept, Updates
from fedprune.sparsity.masks import Masks
from fedprune.wire import Layout, StateCodec
from fedprune.wire.values import VALUES, to_array

MODEL = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(24, 10))
LAYOUT = Layout.of(MODEL)
PARAMETERS = {name for name, _ in MODEL.named_parameters()}


def masks(seed: int, density: float = 0.4) -> Masks:
    generator = torch.Generator().manual_seed(seed)
    names = ("0.weight", "3.weight")
    return Masks({name: torch.rand(LAYOUT.shapes[name], generator=generator) < density for name in names})


def flat(codec: StateCodec, seed: int, size: float = 1.0) -> Tensor:
    return torch.randn(codec.size, generator=torch.Generator().manual_seed(seed)) * size


def made(name: str, **options: Any) -> Updates:
    kind = COMPRESSORS[name]
    return Updates(kind(kind.Options(**options)), PARAMETERS)


def parameters(codec: StateCodec) -> Tensor:
    places = torch.zeros(codec.size, dtype=torch.bool)
    for name, part in codec.parts(places):
        part.fill_(name in PARAMETERS)
    return places


@pytest.mark.parametrize("name", COMPRESSORS)
@pytest.mark.parametrize("pruned", [False, True])
def test_what_arrives_is_what_was_sent_plus_the_update(name: str, pruned: bool) -> None:
    codec = StateCodec(LAYOUT, masks(0) if pruned else Masks())
    sent, trained = flat(codec, 0), flat(codec, 1)
    updates, kept = made(name), Kept()
    record = updates.encode(trained, sent, codec, seed=3, kept=kept)
    values, update = updates.decode(record, sent, codec, seed=3)
    assert torch.equal(values[~parameters(codec)], trained[~parameters(codec)])  # Batch norm's statistics.
    assert torch.equal(values[parameters(codec)], (sent + update)[parameters(codec)])
    assert not update[~parameters(codec)].any()
    assert (values - trained).norm() < 3.5 * (sent - trained).norm()


class Whole(Compressor):
    """Nothing is left out."""

    def write(self, update: Tensor, frame: Frame, out: Writer, memory: Memory) -> None:
        out.floats(update)

    def read(self, frame: Frame, source: Source) -> Tensor:
        return source.floats(frame.size)


def test_an_update_that_is_whole_gives_the_trained_state() -> None:
    codec = StateCodec(LAYOUT, masks(0))
    sent, trained = flat(codec, 0), flat(codec, 1)
    updates = Updates(Whole(), PARAMETERS)
    record = updates.encode(trained, sent, codec, seed=0, kept=Kept())
    values, _ = updates.decode(record, sent, codec, seed=0)
    assert torch.allclose(values, trained, atol=1e-6)


# Error feedback --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["topk", "randomk", "compeft", "powersgd"])
def test_with_ef_what_arrived_so_far_is_all_that_was_meant_but_for_what_is_kept(name: str) -> None:
    codec = StateCodec(LAYOUT, Masks())
    updates, kept = made(name, feedback="ef"), Kept()
    sent, arrived, meant = flat(codec, 0), torch.zeros(codec.size), torch.zeros(codec.size)
    places = parameters(codec)
    for number in range(1, 30):
        trained = sent + flat(codec, number)
        record = updates.encode(trained, sent, codec, seed=number, kept=kept)
        kept.round = number
        _, update = updates.decode(record, sent, codec, seed=number)
        arrived += update
        meant += trained - sent
    assert kept.residual is not None
    assert torch.allclose((arrived + kept.residual)[places], meant[places], atol=1e-4)
    assert kept.residual.norm() < meant.norm() * 5


@pytest.mark.parametrize("name", ["topk", "randomk", "compeft", "powersgd"])
def test_with_ef21_the_estimate_comes_to_an_update_that_stays_the_same(name: str) -> None:
    codec = StateCodec(LAYOUT, Masks())
    share = {"density": 0.1} if name != "powersgd" else {}
    updates, kept = made(name, feedback="ef21", **share), Kept()
    sent, trained, places = flat(codec, 0), flat(codec, 1), parameters(codec)
    estimate, errors = None, []
    for number in range(1, 200):
        record = updates.encode(trained, sent, codec, seed=number, kept=kept, held=number - 1)
        kept.round = number
        _, estimate = updates.decode(record, sent, codec, seed=number, estimate=estimate)
        errors.append(float((sent + estimate - trained)[places].norm()))
    assert kept.residual is not None
    assert torch.equal(estimate, kept.residual)  # Both sides have the same, bit for bit.
    assert errors[-1] < 0.01 * errors[0]


def test_a_client_whose_estimate_the_server_lacks_starts_anew() -> None:
    codec = StateCodec(LAYOUT, Masks())
    updates, kept = made("topk", density=0.1, feedback="ef21"), Kept()
    sent, trained = flat(codec, 0), flat(codec, 1)
    first = updates.encode(trained, sent, codec, seed=1, kept=kept, held=0)
    kept.round = 1
    _, estimate = updates.decode(first, sent, codec, seed=1)
    updates.encode(trained, sent, codec, seed=2, kept=kept, held=1)  # Gets lost.
    kept.round = 2
    anew = updates.encode(trained, sent, codec, seed=3, kept=kept, held=1)
    _, found = updates.decode(anew, sent, codec, seed=3, estimate=estimate)
    assert torch.equal(found, estimate)  # The first step from 0 once more.
    assert kept.residual is not None
    assert torch.equal(kept.residual, found)


def test_an_update_that_goes_on_from_an_unknown_estimate_is_refused() -> None:
    codec = StateCodec(LAYOUT, Masks())
    sent, trained, kept = flat(codec, 0), flat(codec, 1), Kept()
    for feedback in ("ef21", "ef"):
        updates = made("topk", feedback=feedback)
        record = updates.encode(trained, sent, codec, seed=1, kept=kept)
        payload = bytearray(record[VALUES].numpy().tobytes())
        payload[0] = 1
        with pytest.raises(WireError, match="goes on from an estimate"):
            updates.decode(as_record(payload), sent, codec, seed=1)


# Damage ----------------------------------------------------------------------------------


def as_record(payload: bytes | bytearray) -> ArrayRecord:
    return ArrayRecord({VALUES: to_array(np.frombuffer(bytes(payload), dtype=np.uint8))})


@given(
    st.sampled_from(sorted(COMPRESSORS)),
    st.sampled_from(["cut", "flip", "more", "random"]),
    st.integers(0, 2**31),
)
def test_a_damaged_update_is_refused_or_a_state(name: str, damage: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    codec = StateCodec(LAYOUT, masks(0))
    sent, updates = flat(codec, 0), made(name)
    record = updates.encode(flat(codec, 1), sent, codec, seed=seed, kept=Kept())
    payload = bytearray(record[VALUES].numpy().tobytes())
    place = int(random.integers(len(payload)))
    if damage == "cut":
        del payload[place:]
    elif damage == "flip":
        payload[place] ^= 1 << int(random.integers(8))
    elif damage == "more":
        payload += b"\0"
    else:
        payload[1:] = random.bytes(len(payload) - 1)
    try:
        values, _ = updates.decode(as_record(payload), sent, codec, seed=seed)
    except WireError:
        return
    assert damage in ("flip", "random")
    assert values.shape == (codec.size,)
    assert values.isfinite().all()


def test_other_records_are_refused() -> None:
    codec = StateCodec(LAYOUT, Masks())
    sent, updates = flat(codec, 0), made("topk")
    with pytest.raises(WireError, match="expected \\['values'\\]"):
        updates.decode(ArrayRecord(), sent, codec, seed=0)
    with pytest.raises(WireError):
        updates.decode(codec.encode(sent), sent, codec, seed=0)
    with pytest.raises(WireError, match="begins with"):
        updates.decode(as_record(b""), sent, codec, seed=0)


def test_what_is_not_finite_is_not_sent() -> None:
    codec = StateCodec(LAYOUT, Masks())
    sent = flat(codec, 0)
    trained = sent.clone()
    trained[5] = torch.nan
    with pytest.raises(NotFiniteError):
        made("topk").encode(trained, sent, codec, seed=0, kept=Kept())


@pytest.mark.parametrize("fault", [IndexError("no"), ValueError("no"), None])
def test_a_compressor_that_fails_on_a_reply_costs_that_reply(fault: Exception | None) -> None:
    class Failing(Whole):
        """Fails where it reads."""

        def read(self, frame: Frame, source: Source) -> Tensor:
            found = super().read(frame, source)
            if fault is not None:
                raise fault
            return found[1:]

    codec = StateCodec(LAYOUT, Masks())
    sent, updates = flat(codec, 0), Updates(Failing(), PARAMETERS)
    record = updates.encode(flat(codec, 1), sent, codec, seed=0, kept=Kept())
    with pytest.raises(WireError, match="Failing cannot read" if fault else "the update has dtype"):
        updates.decode(record, sent, codec, seed=0)
