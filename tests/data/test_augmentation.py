"""Augmentations and clients' shifts: what they change, by whom they are drawn, and what they refuse."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedprune import registry
from fedprune.data import AUGMENTATIONS, DataInfo, Examples, augmentations, batches, load
from fedprune.data.augmentation import jitter, mixup, random_erasing, spec_augment
from fedprune.data.client_shift import CLIENT_SHIFTS, ClientShift, ShiftedRows
from fedprune.data.inputs import Pixels
from fedprune.errors import DataError, ScenarioError
from fedprune.scenario import Scenario
from fedprune.scenario.data import AugmentSpec, ShiftSpec
from fedprune.server.check import check
from fedprune.tasks import Classification

Make = Callable[..., Scenario]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_erased_is_one_rectangle_an_image_of_the_size_that_was_asked_for() -> None:
    pixels = torch.ones((400, 3, 20, 30))
    made = random_erasing(pixels, generator(), probability=0.75, smallest=0.1, largest=0.2)
    erased = (made == 0).all(dim=1)
    assert torch.equal(erased, (made == 0).any(dim=1))
    count = 0
    for image in erased:
        if not image.any():
            continue
        count += 1
        rows, columns = image.any(dim=1).nonzero().flatten(), image.any(dim=0).nonzero().flatten()
        assert image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert image.sum() == len(rows) * len(columns)
        # Sides are rounded, each by up to a half, and end with the image.
        assert 0.05 * 600 < int(image.sum()) < 0.28 * 600
    assert 260 < count < 340  # of 400 with probability 3/4: over four standard deviations


def test_jitter_is_noise_of_its_standard_deviation() -> None:
    values = torch.full((200, 50), 3.0)
    assert (jitter(values, generator(), std=0.2) - 3).std() == pytest.approx(0.2, rel=0.05)
    with pytest.raises(DataError, match=r"jitter is for measured values, and inputs are torch\.int64"):
        jitter(torch.zeros((2, 3), dtype=torch.int64), generator())


def test_spec_augment_masks_whole_bands_and_frames() -> None:
    spectrograms = torch.randn((100, 1, 60, 40), generator=generator(1))
    made = spec_augment(spectrograms, generator(), masks=1, frames=1 / 6, bands=0.2)
    means = spectrograms.mean(dim=(2, 3), keepdim=True).expand_as(spectrograms)
    masked = made != spectrograms
    assert torch.equal(made[masked], means[masked])
    frames, bands = masked.all(dim=3).sum(dim=2).flatten(), masked.all(dim=2).sum(dim=2).flatten()
    for number in range(100):
        b, f = int(bands[number]), int(frames[number])
        assert b <= 8
        assert f <= 10
        assert int(masked[number].sum()) == b * 60 + f * 40 - b * f
    assert len(set(bands.tolist())) > 5
    with pytest.raises(DataError, match="spec_augment is for spectrograms"):
        spec_augment(torch.zeros((2, 3, 8, 8)), generator())


@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if name != "mixup"])
def test_augmentations_are_decided_by_the_generator_and_leave_inputs_alone(name: str) -> None:
    given = torch.randn((6, 1, 16, 16), generator=generator(9))
    kept = given.clone()
    first, again, other = (AUGMENTATIONS[name](given, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(given, kept)
    assert first.shape == given.shape


def test_they_are_applied_before_or_after_normalisation_as_they_are_marked() -> None:
    pixels = Examples(np.full((8, 1, 16, 16), 255, np.uint8), np.zeros(8, np.int64))
    task = Classification(DataInfo("made", Pixels((1, 16, 16), (0.5,), (0.5,)), ("a",)))
    erase = augmentations([AugmentSpec(name="random_erasing", probability=1.0)])
    x, _ = next(batches(pixels, np.arange(8), task, 8, generator(), erase))
    assert set(x.unique().tolist()) == {0.0, 1.0}  # The mean, and white.


MINE = """
def brighter(inputs, generator, by=10):
    "Stored pixels, brighter."
    return (inputs + by).clamp(max=255)

def shrunk(inputs, generator):
    return inputs[:, :, 1:]

def sideways(shape, generator, most=3):
    "Images shifted to the side."
    by = int(generator.integers(1, most + 1))
    return lambda values: values[..., list(range(by, values.shape[-1])) + list(range(by))]
"""


def test_one_of_a_users_own(scenario: Make, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    own = {"name": f"{tmp_path / 'mine.py'}:brighter", "by": 20}
    plan = scenario({"augment": ["flip", own]})
    check(plan)
    load(plan)
    change = augmentations(plan.data.augment)[1]
    assert change(torch.tensor([1, 250]), generator()).tolist() == [21, 255]
    again = Scenario.from_mapping(plan.model_dump(mode="json"))
    assert again.data == plan.data
    with pytest.raises(DataError, match=r"shrunk made inputs of shape .*: it must keep the shape"):
        load(scenario({"augment": [f"{tmp_path / 'mine.py'}:shrunk"]}))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"augment": ["flop"]}, r"data\.augment\.0: no augmentation 'flop'; did you mean 'flip'"),
        ({"client_shift": {"name": "rotate"}}, r"data\.client_shift\.name: no client shift 'rotate'"),
    ],
)
def test_names_that_do_not_exist(data: dict[str, Any], message: str, scenario: Make) -> None:
    with pytest.raises(ScenarioError, match=message):
        check(scenario(data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"augment": ["spec_augment", {"name": "jitter", "sdt": 1}]},
            r"data\.augment: jitter: TypeError.*sdt",
        ),
        ({"client_shift": {"name": "gain", "hi": 2}}, r"data\.client_shift: gain: TypeError: .*'hi'"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(
    data: dict[str, Any], message: str, scenario: Make
) -> None:
    with pytest.raises(DataError, match=message):
        load(scenario(data))


# --- what differs from client to client ---


def test_rotation_by_a_right_angle_is_numpys() -> None:
    """A generator whose every draw is the angle that is asked for."""

    class Fixed:
        def uniform(self, low: float, high: float) -> float:
            return high

    images = np.random.default_rng(0).normal(size=(4, 2, 9, 9))
    turned = CLIENT_SHIFTS["rotation"]((2, 9, 9), Fixed(), degrees=90)(images)
    closest = [np.abs(turned - np.rot90(images, k, axes=(2, 3))).max() for k in range(4)]
    assert min(closest[1], closest[3]) < 1e-9
    unturned = CLIENT_SHIFTS["rotation"]((2, 9, 9), Fixed(), degrees=0)(images)
    np.testing.assert_allclose(unturned, images, atol=1e-12)


def test_a_microphone_changes_tones_by_their_frequency_alone() -> None:
    time = np.arange(800) / 800
    tones = np.stack([np.sin(2 * np.pi * f * time) for f in (20, 100, 300)])
    heard = CLIENT_SHIFTS["microphone"]((800,), np.random.default_rng(3), decibels=12)(tones)
    factors = (heard * tones).sum(axis=1) / (tones * tones).sum(axis=1)
    np.testing.assert_allclose(heard, tones * factors[:, None], atol=1e-9)
    assert len(set(factors.round(6))) == 3
    assert (np.abs(20 * np.log10(factors)) <= 12).all()


@pytest.mark.parametrize("name", CLIENT_SHIFTS)
def test_a_clients_shift_is_its_own_and_always_the_same(name: str, scenario: Make) -> None:
    plan = scenario({"client_shift": {"name": name}, "client_test_fraction": 0.2})
    data, again, plain = load(plan), load(plan), load(scenario({"client_test_fraction": 0.2}))
    one, same, other = data.client(0).examples, again.client(0).examples, data.client(1).examples
    rows = np.arange(20)
    np.testing.assert_array_equal(one.inputs[rows], same.inputs[rows])
    # Not by the batch that it comes in.
    np.testing.assert_array_equal(one.inputs[rows][7:8], one.inputs[np.array([7])])
    assert (one.inputs[rows] != other.inputs[rows]).any()
    assert (one.inputs[rows] != plain.train.inputs[rows]).any()
    assert one.inputs[rows].dtype == np.uint8
    elsewhere = pickle.loads(pickle.dumps(data)).client(0).examples  # As a worker has it.
    np.testing.assert_array_equal(one.inputs[rows], elsewhere.inputs[rows])
    np.testing.assert_array_equal(one.targets, plain.train.targets)
    np.testing.assert_array_equal(data.test.inputs, plain.test.inputs)  # The server's is nobody's.
    assert data.client_train.indices.tolist() == plain.client_train.indices.tolist()


def test_whole_numbers_end_at_their_limits() -> None:
    rows = ShiftedRows(np.array([[0, 100, 250]], np.uint8), lambda values: values * 1.5 - 20)
    assert rows[np.array([0])].tolist() == [[0, 130, 255]]


def test_a_shift_of_a_users_own(scenario: Make, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    plan = scenario({"client_shift": {"name": f"{tmp_path / 'mine.py'}:sideways", "most": 1}})
    check(plan)
    data = load(plan)
    chosen = np.arange(5)
    np.testing.assert_array_equal(
        data.client(3).examples.inputs[chosen], np.roll(data.train.inputs[chosen], -1, axis=-1)
    )


def test_tokens_have_no_shift() -> None:
    shift = ClientShift(ShiftSpec(name="gain"), 0, Path())
    with pytest.raises(DataError, match="client_shift is for measured values, and inputs are int64"):
        shift.check(np.zeros((4, 5), np.int64))


def test_they_are_kinds_of_plugins() -> None:
    assert set(registry.names("augmentation")) == set(AUGMENTATIONS)
    assert all(line.endswith(".") for line in registry.available("augmentation").values())
    assert set(registry.names("client_shift")) == set(CLIENT_SHIFTS)


def test_mixup_mixes_inputs_and_targets_by_one_share() -> None:
    x, y = torch.eye(6)[:, None], torch.eye(6)
    mixed, targets = mixup(x, y, generator(1), alpha=1.0)
    torch.testing.assert_close(mixed[:, 0], targets)  # Inputs that are their targets stay so.
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(6))
    torch.testing.assert_close(targets.sum(dim=0), torch.ones(6))  # Each is another's partner once.
    own = targets.diagonal()
    assert len({round(float(share), 5) for share in own if share < 1}) == 1
    shares = [float(mixup(x, y, generator(n), alpha=0.2)[1].max(dim=1).values.min()) for n in range(300)]
    beta = np.random.default_rng(0).beta(0.2, 0.2, 100_000)
    assert np.mean(shares) == pytest.approx(np.maximum(beta, 1 - beta).mean(), abs=0.03)


def test_a_batch_is_mixed_after_other_changes_and_alike_for_a_seed() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 1, 8, 8)).astype(np.uint8)
    task = Classification(DataInfo("t", Pixels((1, 8, 8)), ("a", "b", "c")))
    examples = Examples(pixels, np.arange(8) % 3)
    changes = augmentations(["flip", "mixup"])
    (one,), (other,) = (list(batches(examples, np.arange(8), task, 8, generator(5), changes)) for _ in "ab")
    assert torch.equal(one[0], other[0])
    assert one[1].shape == (8, 3)
    torch.testing.assert_close(one[1].sum(dim=1), torch.ones(8))


def test_tokens_cannot_be_mixed() -> None:
    with pytest.raises(DataError, match="mixup is for measured values"):
        mixup(torch.zeros((2, 3), dtype=torch.int64), torch.zeros(2, 1), generator())
