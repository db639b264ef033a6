"""Pictures of any size, of 1 or 3 channels, of 8 or 16 bits: what they become, here and on a device."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedprune.data import FederatedData, describe, load, load_own, open_shares
from fedprune.data.batches import batches
from fedprune.data.decoding import Form
from fedprune.errors import DataError
from fedprune.scenario import Scenario
from fedprune.tasks import build, check_examples

PIL = pytest.importorskip("PIL.Image")
pytestmark = pytest.mark.usefixtures("no_cache_left")

Make = Callable[..., Scenario]
RNG = np.random.default_rng(0)
SIZES = [(8, 8), (9, 12), (20, 6), (8, 8)]


def drawn(height: int, width: int, mode: str) -> Any:
    if mode == "I;16":
        return PIL.fromarray(RNG.integers(0, 65536, (height, width), dtype=np.uint16))
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return PIL.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Write a folder of images of two classes, so many of each mode and size."""

    def write(modes: list[str], sizes: list[tuple[int, int]], each: int = 6) -> Path:
        for split in ("train", "test"):
            for name in ("a", "b"):
                place = tmp_path / "pictures" / split / name
                place.mkdir(parents=True)
                for number in range(each):
                    mode, size = modes[number % len(modes)], sizes[number % len(sizes)]
                    drawn(*size, mode).save(place / f"{number}.png")
        return tmp_path / "pictures"

    return write


def as_arrays(folder: Path, split: str, convert: Callable[[Any], np.ndarray]) -> list[np.ndarray]:
    """Return the images of a split in the order in which they are read, each converted."""
    files = sorted((folder / split).rglob("*.png"))
    return [convert(PIL.open(file)) for file in files]


def agrees(plan: Scenario, own: Scenario, folder: Path, expected: list[np.ndarray]) -> FederatedData:
    """Compare a simulation's images with those expected, a device's and an open share's with the former."""
    data = load(plan)
    np.testing.assert_array_equal(data.train.inputs, np.stack(expected))
    share, whole = open_shares(plan).client(1), data.client(1)
    np.testing.assert_array_equal(share.examples.inputs[share.train], whole.examples.inputs[whole.train])
    mine = load_own(str(folder), own, 0).client(0)
    assert mine.examples.inputs.dtype == data.train.inputs.dtype
    np.testing.assert_array_equal(mine.examples.inputs, data.train.inputs)
    x, y = next(batches(data.train, np.arange(12), build(plan, data.info), 12))
    own_x, own_y = next(
        batches(mine.examples, mine.train, build(own, load_own(str(folder), own, 0).info), 12)
    )
    assert torch.equal(x, own_x)
    assert torch.equal(y, own_y)
    return data


def test_uneven_sizes_are_refused_with_the_option_that_makes_them_even(
    folder: Callable[..., Path], scenario: Make
) -> None:
    path = folder(["L"], SIZES)
    with pytest.raises(DataError, match=r"image 1 is 9x12 .*first is 8x8.*data\.resize: \[8, 8\]"):
        load(scenario({"name": "mine", "path": str(path)}, count=2))
    with pytest.raises(DataError, match=r"is 9x12 .*images are 8x8: data\.resize: \[8, 8\] makes them so"):
        load_own(str(path), scenario({"name": "mine", "input_shape": [1, 8, 8], "classes": ["a", "b"]}), 0)


@pytest.mark.parametrize("fit", ["crop", "stretch"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_resized_images_are_pillows(fit: str, mode: str, folder: Callable[..., Path], scenario: Make) -> None:
    path = folder([mode], SIZES)

    def expected(image: Any) -> np.ndarray:
        width, height = image.size
        box = None
        if fit == "crop":  # The largest part in the middle with the proportions 6 to 10.
            across, down = min(width, height * 10 / 6), min(height, width * 6 / 10)
            box = ((width - across) / 2, (height - down) / 2, (width + across) / 2, (height + down) / 2)
        pixels = np.asarray(image.resize((10, 6), PIL.Resampling.BILINEAR, box))
        return pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)

    asked = {"name": "mine", "resize": [6, 10], "fit": fit}
    channels = 1 if mode == "L" else 3
    data = agrees(
        scenario({**asked, "path": str(path)}, count=2),
        scenario({**asked, "input_shape": [channels, 6, 10], "classes": ["a", "b"]}),
        path,
        as_arrays(path, "train", expected),
    )
    assert data.info.input_shape == (channels, 6, 10)


def test_channels_are_made_as_asked(folder: Callable[..., Path], scenario: Make) -> None:
    path = folder(["L", "RGB"], [(8, 8)])
    for channels in (1, 3):
        mode = "L" if channels == 1 else "RGB"
        asked = {"name": "mine", "channels": channels}
        agrees(
            scenario({**asked, "path": str(path)}, count=2),
            scenario({**asked, "input_shape": [channels, 8, 8], "classes": ["a", "b"]}),
            path,
            as_arrays(
                path,
                "train",
                lambda i, mode=mode: np.asarray(i.convert(mode)).reshape(8, 8, -1).transpose(2, 0, 1),
            ),
        )


@pytest.mark.parametrize("modes", [["I;16"], ["I;16", "L"]], ids=["deep", "some deep"])
def test_sixteen_bits_stay(modes: list[str], folder: Callable[..., Path], scenario: Make) -> None:
    path = folder(modes, [(8, 8)])

    def deep(image: Any) -> np.ndarray:
        values = np.asarray(image).astype(np.uint16)
        return (values * np.uint16(257) if image.mode == "L" else values)[None]

    normal = {"mean": [0.25], "std": [0.5], "bits": 16}
    data = agrees(
        scenario({"name": "mine", "path": str(path), "mean": [0.25], "std": [0.5]}, count=2),
        scenario({"name": "mine", "input_shape": [1, 8, 8], "classes": ["a", "b"], **normal}),
        path,
        as_arrays(path, "train", deep),
    )
    assert data.train.inputs.dtype == np.uint16
    x, _ = next(batches(data.train, np.arange(5), build(scenario({}), data.info), 5))
    np.testing.assert_allclose(x.numpy(), (data.train.inputs[:5] / 65535 - 0.25) / 0.5, atol=1e-6)


def test_sixteen_bits_are_resized_and_reduced(folder: Callable[..., Path], scenario: Make) -> None:
    path = folder(["I;16"], [(12, 12)])

    def quarters(image: Any) -> np.ndarray:
        """Return the image in half its size; bilinear, smoothed: weights 1, 3, 3, 1 but at the edges."""
        return np.asarray(
            PIL.fromarray(np.asarray(image).astype("f4")).resize((6, 6), PIL.Resampling.BILINEAR)
        )

    asked = {"name": "mine", "resize": [6, 6]}
    half = as_arrays(path, "train", lambda i: np.rint(quarters(i)).astype(np.uint16)[None])
    declared = {**asked, "input_shape": [1, 6, 6], "classes": ["a", "b"]}
    agrees(scenario({**asked, "path": str(path)}, count=2), scenario({**declared, "bits": 16}), path, half)
    few = as_arrays(path, "train", lambda i: np.rint(quarters(i) / 257).astype(np.uint8)[None])
    eight = {"bits": 8}
    agrees(
        scenario({**asked, **eight, "path": str(path)}, count=2), scenario({**declared, **eight}), path, few
    )


def test_sixteen_bits_among_coloured_images_become_eight(folder: Callable[..., Path], scenario: Make) -> None:
    data = load(scenario({"name": "mine", "path": str(folder(["I;16", "RGB"], [(8, 8)]))}, count=2))
    assert (data.train.inputs.dtype, data.info.input_shape) == (np.uint8, (3, 8, 8))
    assert data.info.inputs.depth == 255  # type: ignore[attr-defined]


def test_a_device_that_is_not_told_of_sixteen_bits_refuses_them(
    folder: Callable[..., Path], scenario: Make
) -> None:
    path = folder(["I;16"], [(8, 8)])
    told = {"name": "mine", "input_shape": [1, 8, 8], "classes": ["a", "b"]}
    with pytest.raises(DataError, match=r"has 16 bits a channel .*data\.bits"):
        load_own(str(path), scenario(told), 0)
    with pytest.raises(DataError, match=r"has bits 16, .* write data\.bits: 16"):
        load(scenario({**told, "path": str(path)}, count=2))


def test_arrays_are_made_as_asked(scenario: Make) -> None:
    plan = scenario({"name": "digits", "resize": [12, 16], "channels": 3})
    data, plain = load(plan), load(scenario({"name": "digits"}))
    assert data.info.inputs == describe(plan).inputs
    assert data.info.input_shape == (3, 12, 16)
    size = (16, 12)
    box = (0.0, 1.0, 8.0, 7.0)
    expected = (
        PIL.fromarray(plain.train.inputs[0, 0]).convert("RGB").resize(size, PIL.Resampling.BILINEAR, box)
    )
    np.testing.assert_array_equal(data.train.inputs[0], np.asarray(expected).transpose(2, 0, 1))


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_that_has_the_size_is_left_alone(channels: int) -> None:
    pixels = RNG.integers(0, 256, (4, channels, 5, 7), dtype=np.uint8)
    for form in (Form(), Form(size=(5, 7)), Form(channels=channels), Form(bits=8)):
        assert form.arrays(pixels, "here") is pixels


def test_values_that_are_no_pixels_are_refused(folder: Callable[..., Path], scenario: Make) -> None:
    path = folder(["L"], [(8, 8)])
    PIL.fromarray(np.zeros((8, 8), np.float32)).save(path / "train" / "a" / "9.tiff")
    with pytest.raises(DataError, match=r"values beyond 8 or 16 bits a channel \(F\)"):
        load(scenario({"name": "mine", "path": str(path)}, count=2))


def test_only_images_are_resized(scenario: Make) -> None:
    with pytest.raises(DataError, match=r"has columns: data\.resize"):
        load(scenario({"name": "breast_cancer", "resize": [8, 8]}))


@pytest.mark.parametrize("values", [None, 2])
def test_numbers_of_pictures_are_predicted_as_they_are(
    values: int | None, tmp_path: Path, scenario: Make
) -> None:
    """Of 64 pictures in a table, one number each or a list of them; ``values`` is the list's length."""
    pd = pytest.importorskip("pandas")

    def row(number: int) -> dict[str, Any]:
        held = io.BytesIO()
        drawn(8, 8, "L").save(held, "PNG")
        target = number / 8 if values is None else [number / 8, -number]
        return {"picture": {"bytes": held.getvalue(), "path": None}, "label": target}

    pd.DataFrame([row(number) for number in range(64)]).to_parquet(tmp_path / "table.parquet")
    plan = scenario({"name": "mine", "path": str(tmp_path / "table.parquet"), "partition": {"scheme": "iid"}})
    with pytest.raises(DataError, match="task: regression" if values is None else "task: multilabel"):
        load(plan)
    asked = plan.override(task={"name": "regression", **({} if values is None else {"values": values})})
    data, opened = load(asked), open_shares(asked)
    assert data.info.class_names == ()
    task = build(asked, data.info)
    check_examples(task, data.train, "train")
    everything = np.concatenate([data.train.targets, data.test.targets])
    numbers = np.arange(64, dtype=np.float32)
    expected = numbers / 8 if values is None else np.stack([numbers / 8, -numbers], axis=1)
    np.testing.assert_array_equal(np.sort(everything, axis=0), np.sort(expected, axis=0))
    for number in range(asked.clients.count):
        one, other = data.client(number), opened.client(number)
        np.testing.assert_array_equal(one.examples.targets[one.train], other.examples.targets[other.train])
