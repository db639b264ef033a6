"""Masks against the files that they are in."""

from pathlib import Path

import numpy as np
import pytest

from fedprune.data import SOURCES, Request, Source
from fedprune.errors import DataError

Image = pytest.importorskip("PIL.Image")
RNG = np.random.default_rng(0)


def lay_out(root: Path, count: int, side: int = 6) -> tuple[list[np.ndarray], list[np.ndarray]]:
    pictures, masks = [], []
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number in range(count):
        pictures.append(RNG.integers(0, 256, (side, side + 2, 3), dtype=np.uint8))
        masks.append(RNG.choice([0, 1, 2, 255], (side, side + 2)).astype(np.uint8))
        Image.fromarray(pictures[-1]).save(root / "images" / f"{number:02}.png")
        Image.fromarray(masks[-1]).save(root / "masks" / f"{number:02}.png")
    return pictures, masks


def read(path: Path, **options: object) -> Source:
    return SOURCES["masks"](Request("masks", path, options=options))


def test_pictures_have_the_masks_of_their_names(tmp_path: Path) -> None:
    pictures, masks = lay_out(tmp_path / "train", 5)
    lay_out(tmp_path / "test", 2)
    made = read(tmp_path)
    assert (made.task, made.class_names) == ("segmentation", ("0", "1", "2"))
    np.testing.assert_array_equal(made.train.inputs, np.stack(pictures).transpose(0, 3, 1, 2))
    expected = np.stack(masks)  # 255 is what has no class, in the files and in targets
    np.testing.assert_array_equal(made.train.targets, expected)
    one = SOURCES["masks"](Request("masks", tmp_path, train_examples=1, test_examples=1))
    assert one.class_names == made.class_names
    assert read(tmp_path, classes=["road", "car", "sky"]).class_names == ("road", "car", "sky")


def test_without_folders_for_testing_a_part_is_held_out(tmp_path: Path) -> None:
    lay_out(tmp_path, 12)
    made = read(tmp_path)
    assert (len(made.train), len(made.test)) == (10, 2)


def test_what_does_not_fit_is_explained(tmp_path: Path) -> None:
    lay_out(tmp_path, 12)
    with pytest.raises(DataError, match="has the number 255, and there are 3 classes"):
        read(tmp_path, ignored=None, classes=["a", "b", "c"])
    Image.fromarray(np.zeros((3, 3), dtype=np.uint8)).save(tmp_path / "masks" / "03.png")
    with pytest.raises(DataError, match="is 3x3 and the first picture 6x8"):
        read(tmp_path)
    Image.fromarray(np.zeros((6, 8, 3), dtype=np.uint8)).save(tmp_path / "masks" / "03.png")
    with pytest.raises(DataError, match=r"is coloured \(RGB\)"):
        read(tmp_path)
    (tmp_path / "masks" / "03.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="can't be read as an image"):
        read(tmp_path)
    (tmp_path / "masks" / "03.png").unlink()
    with pytest.raises(DataError, match="has no mask"):
        read(tmp_path)
    with pytest.raises(DataError, match="has no images/ and masks/"):
        read(tmp_path / "images")


def test_masks_have_no_more_classes_than_they_can_hold(tmp_path: Path) -> None:
    lay_out(tmp_path, 6)
    with pytest.raises(DataError, match="has 256 classes"):  # 255 would count as a pixel without a class
        read(tmp_path, ignored=None)
