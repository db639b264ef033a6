"""Each compressor against a direct computation of its paper's rule, and what all have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedprune.compression import COMPRESSORS, Compressor, Frame, Part, Source, Writer
from fedprune.errors import NotFiniteError, WireError

SHAPES = {"conv.weight": (6, 3, 3, 3), "conv.bias": (6,), "fc.weight": (40, 30), "fc.bias": (40,)}


def made(name: str, **options: Any) -> Compressor:
    kind = COMPRESSORS[name]
    return kind(kind.Options(**options))


def frame(seed: int = 0, density: float = 1.0) -> Frame:
    """Two matrices, pruned where density is below 1, and two vectors."""
    generator = torch.Generator().manual_seed(1)
    parts = []
    for name, shape in SHAPES.items():
        mask = torch.rand(shape, generator=generator) < density if len(shape) > 1 and density < 1 else None
        size = int(mask.sum()) if mask is not None else int(np.prod(shape))
        parts.append(Part(name, torch.Size(shape), mask, size))
    return Frame(tuple(parts), seed)


def update_of(known: Frame, seed: int = 5) -> Tensor:
    return torch.randn(known.size, generator=torch.Generator().manual_seed(seed)) * 0.01


def sent(compressor: Compressor, update: Tensor, known: Frame, memory: Any = None) -> tuple[Tensor, bytes]:
    """Return what arrives of an update, and its bytes."""
    out = Writer()
    compressor.write(update, known, out, {} if memory is None else memory)
    source = Source(out.payload)
    arrived = compressor.read(known, source)
    source.end()
    return arrived, out.payload


def assert_right_on_average(compressor: Compressor, update: Tensor, draws: int = 300) -> None:
    """The mean of what arrives is the update, as far as the draws can tell, in any direction."""
    directions = torch.randn(50, len(update), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = torch.stack(
        [directions @ (sent(compressor, update, frame(seed))[0] - update).double() for seed in range(draws)]
    )
    deviations = found.mean(dim=0) / (found.std(dim=0) / draws**0.5)
    assert deviations.abs().max() < 4.5
    assert deviations.abs().mean() < 1.2  # Of a normal distribution it is 0.8.


# Each by its rule ------------------------------------------------------------------------


@pytest.mark.parametrize("density", [1.0, 0.3])
def test_topk_sends_the_largest_of_the_kept_weights(density: float) -> None:
    known = frame(density=density)
    update = update_of(known)
    arrived, _ = sent(made("topk", density=0.1), update, known)
    values = update.numpy()
    largest = np.argsort(-np.abs(values), kind="stable")[: round(0.1 * len(values))]
    expected = np.zeros_like(values)
    expected[largest] = values[largest]
    assert np.array_equal(arrived.numpy(), expected)


def test_randomk_sends_other_values_each_time_and_is_right_on_average() -> None:
    known = frame()
    update, compressor = update_of(known), made("randomk", density=0.1, feedback="none")
    arrived, _ = sent(compressor, update, known)
    count = round(0.1 * known.size)
    assert int((arrived != 0).sum()) == count
    chosen = arrived != 0
    assert torch.allclose(arrived[chosen], update[chosen] * (known.size / count))
    assert not torch.equal(sent(compressor, update, frame(seed=1))[0] != 0, chosen)
    assert_right_on_average(compressor, update)


def test_randomk_with_error_feedback_does_not_scale() -> None:
    known = frame()
    update = update_of(known)
    arrived, payload = sent(made("randomk", density=0.1, feedback="ef"), update, known)
    chosen = arrived != 0
    assert torch.equal(arrived[chosen], update[chosen])
    assert len(payload) <= 4 * int(chosen.sum()) + 16  # Positions cost nothing.


@pytest.mark.parametrize("norm", ["max", "l2"])
@pytest.mark.parametrize("density", [1.0, 0.3])
def test_qsgd_rounds_to_a_level_next_to_each_value(norm: str, density: float) -> None:
    known = frame(density=density)
    update, levels, bucket = update_of(known), 5, 64
    arrived, _ = sent(made("qsgd", levels=levels, bucket=bucket, norm=norm), update, known)
    for (_, values), (_, found) in zip(known.split(update), known.split(arrived), strict=True):
        for part, got in zip(values.split(bucket), found.split(bucket), strict=True):
            size = part.abs().max() if norm == "max" else part.double().norm()
            steps = part.double() / size * levels
            taken = got.double() / size * levels
            assert torch.allclose(taken, taken.round(), atol=1e-4)
            assert ((taken.round() == steps.floor()) | (taken.round() == steps.ceil())).all()


def test_qsgd_is_right_on_average() -> None:
    update = update_of(frame())
    for norm in ("max", "l2"):
        assert_right_on_average(made("qsgd", levels=3, bucket=100, norm=norm), update)


def test_signsgd_sends_signs_and_each_tensors_mean_magnitude() -> None:
    known = frame(density=0.3)
    update = update_of(known)
    arrived, payload = sent(made("signsgd"), update, known)
    for (_, values), (_, found) in zip(known.split(update), known.split(arrived), strict=True):
        expected = values.sign() * values.abs().mean()
        assert torch.allclose(found, expected)
    assert len(payload) <= known.size / 8 + 4 * len(SHAPES) + 32
    stepped, _ = sent(made("signsgd", step=0.25), update, known)
    assert torch.equal(stepped, 0.25 * update.sign())


def test_signsgd_lets_what_has_not_moved_vote_at_random() -> None:
    known = frame()
    arrived, _ = sent(made("signsgd", step=1.0), torch.zeros(known.size), known)
    assert 0.4 < (arrived > 0).double().mean() < 0.6


def test_dare_drops_rescales_and_is_right_on_average() -> None:
    known = frame()
    update, compressor = update_of(known), made("dare", drop=0.8)
    arrived, payload = sent(compressor, update, known)
    left = arrived != 0
    assert torch.allclose(arrived[left], update[left] / 0.2)
    assert abs(int(left.sum()) - 0.2 * known.size) < 5 * (known.size * 0.16) ** 0.5
    assert len(payload) <= 4 * int(left.sum()) + 16
    assert_right_on_average(compressor, update)


@pytest.mark.parametrize("alpha", [None, 2.0])
def test_compeft_sends_the_signs_of_the_largest_and_one_magnitude(alpha: float | None) -> None:
    known = frame(density=0.5)
    update = update_of(known)
    arrived, _ = sent(made("compeft", density=0.05, alpha=alpha), update, known)
    values = update.double().numpy()
    largest = np.argsort(-np.abs(values), kind="stable")[: round(0.05 * len(values))]
    size = np.abs(values[largest]).mean() if alpha is None else alpha * values.std()
    expected = np.zeros_like(values)
    expected[largest] = np.sign(values[largest]) * size
    assert np.allclose(arrived.numpy(), expected, rtol=1e-6)


def test_powersgd_of_a_matrix_of_its_rank_loses_nothing_and_sends_vectors_whole() -> None:
    known, generator = frame(), torch.Generator().manual_seed(0)
    update = update_of(known)
    for part, values in known.split(update):
        if part.name == "fc.weight":
            low = torch.randn(40, 2, generator=generator) @ torch.randn(2, 30, generator=generator)
            values.copy_(low.reshape(-1))
    arrived, payload = sent(made("powersgd", rank=2), update, known)
    found, expected = dict(by_name(known, arrived)), dict(by_name(known, update))
    assert torch.allclose(found["fc.weight"], expected["fc.weight"], atol=1e-4)
    for name in ("conv.bias", "fc.bias"):
        assert torch.equal(found[name], expected[name])
    conv, fc = 2 * (6 + 27), 2 * (40 + 30)
    assert len(payload) <= 4 * (conv + fc + 6 + 40) + 64


def test_powersgd_warm_starts_so_that_it_comes_to_the_best_matrix_of_its_rank() -> None:
    known, memory = frame(), {}
    update, compressor = update_of(known), made("powersgd", rank=2, feedback="none")
    matrix = dict(by_name(known, update))["fc.weight"].double().reshape(40, 30)
    singular = torch.linalg.svdvals(matrix)
    best = float((singular[2:] ** 2).sum().sqrt())
    errors = []
    for _ in range(60):
        arrived, _ = sent(compressor, update, known, memory)
        found = dict(by_name(known, arrived))["fc.weight"].double().reshape(40, 30)
        errors.append(float((matrix - found).norm()))
    assert errors[-1] < errors[0]
    assert best * 0.9999 <= errors[-1] <= best * 1.02


def test_powersgd_leaves_out_rows_and_columns_without_a_kept_weight() -> None:
    mask = torch.zeros(40, 30, dtype=torch.bool)
    mask[:20, :10] = True
    pruned = Frame((Part("fc.weight", torch.Size((40, 30)), mask, 200),))
    update = update_of(pruned)
    arrived, payload = sent(made("powersgd", rank=1), update, pruned)
    assert len(payload) <= 4 * (20 + 10) + 32
    alone = Frame((Part("fc.weight", torch.Size((20, 10)), None, 200),))
    error, same = (arrived - update).norm(), sent(made("powersgd", rank=1), update, alone)[0]
    assert error < update.norm()
    assert same.shape == arrived.shape


def test_powersgd_finds_its_way_out_of_a_round_without_an_update() -> None:
    known, memory, compressor = frame(), {}, made("powersgd", rank=1)
    assert not sent(compressor, torch.zeros(known.size), known, memory)[0].any()
    assert dict(by_name(known, sent(compressor, update_of(known), known, memory)[0]))["fc.weight"].any()


def by_name(known: Frame, flat: Tensor) -> list[tuple[str, Tensor]]:
    return [(part.name, values) for part, values in known.split(flat)]


# What all have in common -----------------------------------------------------------------


@pytest.mark.parametrize("name", COMPRESSORS)
@pytest.mark.parametrize("density", [1.0, 0.3])
def test_an_update_arrives_in_its_shape_and_smaller(name: str, density: float) -> None:
    known = frame(density=density)
    update = update_of(known)
    before = update.clone()
    arrived, payload = sent(made(name), update, known)
    assert torch.equal(update, before)
    assert arrived.shape == (known.size,)
    assert arrived.dtype == torch.float32
    assert len(payload) < 0.7 * 4 * known.size
    assert (arrived * update).sum() > 0  # It goes the same way.


@pytest.mark.parametrize("name", COMPRESSORS)
@pytest.mark.parametrize("size", [0, 1, 2])
def test_a_model_of_next_to_no_weights_has_updates(name: str, size: int) -> None:
    known = Frame((Part("w", torch.Size((size,)), None, size), Part("none", torch.Size((0, 3)), None, 0)))
    arrived, _ = sent(made(name), torch.full((size,), 0.5), known)
    assert arrived.shape == (size,)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_floats_travel_in_the_scenarios_format(kind: Any) -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    out = Writer(kind)
    out.floats(values)
    out.floats(values, "float32")
    source = Source(out.payload, kind)
    assert torch.equal(source.floats(1000), values.to(getattr(torch, kind)).float())
    assert torch.equal(source.floats(1000, "float32"), values)
    with pytest.raises(NotFiniteError):
        Writer("float16").floats(torch.tensor([1e6]))


def test_equal_signs_and_exponents_take_little() -> None:
    """Of what lies between 1 and 2 the first byte is the same, and half of the second is not random."""
    values = 1 + torch.rand(10_000, generator=torch.Generator().manual_seed(0))
    out = Writer()
    out.floats(values)
    assert len(out.payload) < 3.01 * 10_000


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_payload_that_is_cut_is_refused(name: str) -> None:
    known = frame(density=0.5)
    out = Writer()
    compressor = made(name)
    compressor.write(update_of(known), known, out, {})
    for end in range(0, len(out.payload), max(1, len(out.payload) // 20)):
        with pytest.raises(WireError):
            compressor.read(known, Source(out.payload[:end]))
