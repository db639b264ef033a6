"""Batches: normalisation, order and augmentation, each against a slow computation image by image."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedprune.data import DataInfo, Examples, augmentations, batches
from fedprune.data.augmentation import crop, crop_padding, flip
from fedprune.data.inputs import Pixels
from fedprune.tasks import Classification

RNG = np.random.default_rng(0)
SHAPE = (3, 16, 20)
IMAGES = Examples(RNG.integers(0, 256, (50, *SHAPE), dtype=np.uint8), RNG.integers(0, 5, 50))
INFO = DataInfo("made", Pixels(SHAPE, (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)), tuple("abcde"))
TASK = Classification(INFO)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_batch_is_normalised_and_in_order() -> None:
    indices = np.array([4, 49, 0, 7, 7])
    (x, y), (last_x, last_y) = batches(IMAGES, indices, TASK, 3)
    mean, std = (np.array(v)[:, None, None] for v in (INFO.inputs.mean, INFO.inputs.std))
    expected = (IMAGES.inputs[[4, 49, 0]] / 255 - mean) / std
    np.testing.assert_allclose(x.numpy(), expected, atol=1e-5)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert y.tolist() == IMAGES.targets[[4, 49, 0]].tolist()
    assert (len(last_x), len(last_y)) == (2, 2)


@given(st.integers(0, 40), st.integers(1, 12), st.booleans())
def test_sizes_of_batches(examples: int, batch_size: int, shuffled: bool) -> None:
    """All full but the last; a last one of a single image is dropped when shuffling, if it is not alone."""
    got = [
        len(y)
        for _, y in batches(IMAGES, np.arange(examples), TASK, batch_size, generator() if shuffled else None)
    ]
    full, rest = divmod(examples, batch_size)
    dropped = shuffled and rest == 1 and full > 0
    assert got == [batch_size] * full + ([rest] if rest and not dropped else [])


def test_shuffle_is_a_permutation_that_the_generator_decides() -> None:
    def order(seed: int) -> list[float]:
        return [v for x, _ in batches(IMAGES, np.arange(50), TASK, 8, generator(seed)) for v in x[:, 0, 0, 0]]

    plain = [v for x, _ in batches(IMAGES, np.arange(50), TASK, 8) for v in x[:, 0, 0, 0]]
    assert order(1) == order(1)
    assert order(1) != order(2)
    assert sorted(order(1)) == sorted(plain)


def test_images_and_labels_stay_together() -> None:
    pixels = np.repeat(np.arange(40, dtype=np.uint8), 64).reshape(40, 1, 8, 8)
    info = DataInfo("numbered", Pixels((1, 8, 8), (0.0,), (1.0,)), tuple(map(str, range(40))))
    for x, y in batches(
        Examples(pixels, np.arange(40)),
        np.arange(40),
        Classification(info),
        7,
        generator(),
        augmentations(["flip"]),
    ):
        np.testing.assert_allclose(x[:, 0, 3, 3].numpy() * 255, y.numpy(), rtol=1e-5)


def test_the_images_themselves_are_not_changed_and_may_be_read_only() -> None:
    pixels = IMAGES.inputs.copy()
    pixels.flags.writeable = False
    read_only = Examples(pixels, IMAGES.targets)
    for x, _ in batches(read_only, np.arange(50), TASK, 16, generator(), augmentations(["crop", "flip"])):
        x.zero_()
    np.testing.assert_array_equal(pixels, IMAGES.inputs)


@pytest.mark.parametrize(
    ("height", "width", "padding"), [(32, 32, 4), (64, 64, 4), (28, 28, 3), (8, 8, 1), (4, 40, 1)]
)
def test_crop_padding(height: int, width: int, padding: int) -> None:
    assert crop_padding(height, width) == padding


def test_crop_shifts_each_image_by_its_own_draw() -> None:
    """Every result is the image at one of the 25 places that a padding of 2 allows; all are met in time."""
    pixels = torch.from_numpy(IMAGES.inputs)
    met = set()
    for seed in range(10):
        for source, result in zip(IMAGES.inputs, crop(pixels, generator(seed)).numpy(), strict=True):
            padded = np.pad(source, [(0, 0), (2, 2), (2, 2)])
            places = [
                (top, left)
                for top in range(5)
                for left in range(5)
                if np.array_equal(padded[:, top : top + 16, left : left + 20], result)
            ]
            assert len(places) == 1
            met.update(places)
    assert len(met) == 25


def test_flip_mirrors_about_half_of_the_images() -> None:
    pixels = torch.from_numpy(IMAGES.inputs)
    mirrored = 0
    for seed in range(10):
        for source, result in zip(IMAGES.inputs, flip(pixels, generator(seed)).numpy(), strict=True):
            backwards = np.array([[row[::-1] for row in channel] for channel in source])
            assert np.array_equal(result, source) or np.array_equal(result, backwards)
            mirrored += np.array_equal(result, backwards)
    assert 180 < mirrored < 320  # of 500: six standard deviations


def test_augmentation_is_decided_by_the_generator_and_applied_before_normalisation() -> None:
    def epoch(seed: int) -> torch.Tensor:
        return torch.cat(
            [x for x, _ in batches(IMAGES, np.arange(50), TASK, 16, generator(seed), augmentations(["crop"]))]
        )

    assert torch.equal(epoch(3), epoch(3))
    assert not torch.equal(epoch(3), epoch(4))
    black = -np.array(INFO.inputs.mean) / np.array(INFO.inputs.std)
    corners = epoch(3)[:, :, 0, 0].numpy()
    assert np.isclose(corners, black, atol=1e-6).all(axis=1).any()


def test_augmentation_without_a_generator_is_refused() -> None:
    with pytest.raises(ValueError, match="generator"):
        next(batches(IMAGES, np.arange(5), TASK, 2, augment=augmentations(["flip"])))
