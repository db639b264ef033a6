"""Sources against direct readings of the same files, and what is said where there is nothing to read."""

import builtins
import io
import socket
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedprune.data import SOURCES, Request
from fedprune.data.sources import find, hugging_face
from fedprune.errors import DataError, PluginError

CIFAR10 = Path(__file__).parents[3] / "shared" / "data" / "cifar10"
needs_cifar10 = pytest.mark.skipif(not CIFAR10.exists(), reason=f"no CIFAR-10 in {CIFAR10}")

pytestmark = pytest.mark.usefixtures("no_cache_left")
RNG = np.random.default_rng(0)


# --- scikit-learn's digits ---


def test_digits_are_those_of_scikit_learn() -> None:
    bunch = pytest.importorskip("sklearn.datasets").load_digits()
    source = SOURCES["digits"](Request("digits"))
    assert source.train.inputs.shape == (1497, 1, 8, 8)
    assert source.test.inputs.shape == (300, 1, 8, 8)
    assert source.class_names == tuple("0123456789")
    ours = [
        (label, *image.ravel().tolist())
        for images in (source.train, source.test)
        for label, image in zip(images.targets, images.inputs, strict=True)
    ]
    theirs = [
        (label, *(round(v * 255 / 16) for v in image.ravel()))
        for label, image in zip(bunch.target, bunch.images, strict=True)
    ]
    assert sorted(ours) == sorted(theirs)
    every = np.concatenate([source.train.inputs, source.test.inputs]) / 255
    assert (every.mean(), every.std()) == pytest.approx((source.mean[0], source.std[0]), abs=1e-4)


def test_digits_are_split_alike_whatever_the_seed_and_chosen_by_it() -> None:
    first, second = (SOURCES["digits"](Request("digits", seed=seed, train_examples=50)) for seed in (0, 1))
    np.testing.assert_array_equal(first.test.inputs, second.test.inputs)
    assert len(first.train) == len(second.train) == 50
    assert not np.array_equal(first.train.inputs, second.train.inputs)


# --- CIFAR-10 in the form of the hub ---


def decoded_directly(split: str) -> list[tuple[int, bytes]]:
    """Return label and RGB bytes of every image, in the order of the file."""
    import PIL.Image
    import pyarrow.parquet as pq

    rows = pq.read_table(CIFAR10 / f"{split}-00000-of-00001.parquet").to_pylist()
    return [(row["label"], PIL.Image.open(io.BytesIO(row["img"]["bytes"])).tobytes()) for row in rows]


@needs_cifar10
def test_cifar10_images_are_those_of_a_direct_decoding() -> None:
    source = SOURCES["cifar10"](Request("cifar10", path=CIFAR10, train_examples=100, test_examples=200))
    assert source.train.inputs.shape == (100, 3, 32, 32)
    assert source.test.inputs.shape == (200, 3, 32, 32)
    assert source.class_names[:2] == ("airplane", "automobile")
    # PIL has pixels as (32, 32, 3); a chosen image must be one of the file, with its label.
    chosen = [
        (label, pixels.transpose(1, 2, 0).tobytes())
        for label, pixels in zip(source.test.targets.tolist(), source.test.inputs, strict=True)
    ]
    everything = decoded_directly("test")
    assert len(set(chosen)) == 200
    assert set(chosen) <= set(everything)
    assert chosen == [row for row in everything if row in set(chosen)]  # in the order of the file


@needs_cifar10
def test_cifar10_mean_and_std_are_those_of_its_pixels() -> None:
    source = SOURCES["cifar10"](Request("cifar10", path=CIFAR10, train_examples=3000, test_examples=1))
    pixels = source.train.inputs / 255
    np.testing.assert_allclose(pixels.mean((0, 2, 3)), source.mean, atol=0.01)
    np.testing.assert_allclose(pixels.std((0, 2, 3)), source.std, atol=0.01)


@needs_cifar10
def test_a_single_parquet_file_is_split_and_needs_no_known_name() -> None:
    file = CIFAR10 / "test-00000-of-00001.parquet"
    source = hugging_face(Request("anything", path=file, train_examples=20, test_examples=20))
    everything = hugging_face(Request("anything", path=file, train_examples=8333, test_examples=1667))
    assert source.mean is None
    assert len(everything.train) + len(everything.test) == 10_000
    with pytest.raises(DataError, match="no more than 1667 test"):
        hugging_face(Request("anything", path=file, train_examples=1, test_examples=1668))


# --- folders of images and tables made here ---


def image(colour: bool = False, side: int = 8) -> np.ndarray:
    return RNG.integers(0, 256, (side, side, 3) if colour else (side, side), dtype=np.uint8)


def save(folder: Path, images: dict[str, list[np.ndarray]]) -> None:
    import PIL.Image

    for name, arrays in images.items():
        (folder / name).mkdir(parents=True)
        for number, array in enumerate(arrays):
            PIL.Image.fromarray(array).save(folder / name / f"{number}.png")


def test_folder_of_images(tmp_path: Path) -> None:
    train = {"cat": [image() for _ in range(3)], "dog": [image() for _ in range(2)]}
    test = {"cat": [image()], "dog": [image()]}
    save(tmp_path / "pets" / "train", train)
    save(tmp_path / "pets" / "test", test)
    source = hugging_face(Request("pets", path=tmp_path / "pets"))
    assert source.class_names == ("cat", "dog")
    for images, expected in ((source.train, train), (source.test, test)):
        ours = sorted(
            (source.class_names[label], pixels.tolist())
            for label, pixels in zip(images.targets, images.inputs, strict=True)
        )
        assert ours == sorted(
            (name, [array.tolist()]) for name, arrays in expected.items() for array in arrays
        )


def test_grey_images_among_coloured_ones_become_coloured(tmp_path: Path) -> None:
    grey, colour, test = image(), image(colour=True), image()
    save(tmp_path / "mixed" / "train", {"a": [grey, colour], "b": [grey]})
    save(tmp_path / "mixed" / "test", {"a": [test], "b": [test]})
    source = hugging_face(Request("mixed", path=tmp_path / "mixed"))
    ours = sorted(pixels.tolist() for pixels in source.train.inputs)
    expected = [np.stack([grey] * 3).tolist()] * 2 + [colour.transpose(2, 0, 1).tolist()]
    assert ours == sorted(expected)
    np.testing.assert_array_equal(source.test.inputs[0], np.stack([test] * 3))


def test_images_of_several_sizes_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "sizes" / "train", {"a": [image(), image(side=9)], "b": [image()]})
    save(tmp_path / "sizes" / "test", {"a": [image()], "b": [image()]})
    with pytest.raises(DataError, match=r"9x9 and the first is 8x8: all must .*; data\.resize: \[8, 8\]"):
        hugging_face(Request("sizes", path=tmp_path / "sizes"))


def test_images_of_another_size_in_the_test_split_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "sizes" / "train", {"a": [image()], "b": [image()]})
    save(tmp_path / "sizes" / "test", {"a": [image(side=9)], "b": [image(side=9)]})
    with pytest.raises(DataError, match="test image 0 is 9x9 and the first is 8x8"):
        hugging_face(Request("sizes", path=tmp_path / "sizes"))


def test_broken_image_is_named(tmp_path: Path) -> None:
    for split in ("train", "test"):
        save(tmp_path / "broken" / split, {"a": [image()], "b": [image()]})
    (tmp_path / "broken" / "train" / "a" / "1.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"no image.*1\.png"):
        hugging_face(Request("broken", path=tmp_path / "broken"))


def table(**columns: Any) -> Any:
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_dict(columns)


def images_column(count: int) -> list[Any]:
    import PIL.Image

    return [PIL.Image.fromarray(image()) for _ in range(count)]


def test_columns_are_found_by_their_types_and_named_where_that_fails(tmp_path: Path) -> None:
    file = tmp_path / "table.parquet"
    table(photo=images_column(12), kind=["b", "a", "c"] * 4, size=[1] * 12).to_parquet(str(file))
    with pytest.raises(DataError, match=r"no column is marked as class labels: .*data\.label_column.*kind"):
        hugging_face(Request("t", path=file))
    with pytest.raises(DataError, match="label_column is 'kidn': no such column; did you mean 'kind'"):
        hugging_face(Request("t", path=file, label_column="kidn"))
    source = hugging_face(Request("t", path=file, label_column="kind"))
    assert source.class_names == ("a", "b", "c")
    labels = [source.class_names[label] for label in [*source.train.targets, *source.test.targets]]
    assert sorted(labels) == sorted(["b", "a", "c"] * 4)


def test_a_column_that_holds_no_images_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "table.parquet"
    table(photo=["x"] * 12, kind=[0, 1] * 6).to_parquet(str(file))
    with pytest.raises(DataError, match="no column is marked as images"):
        hugging_face(Request("t", path=file, label_column="kind"))
    with pytest.raises(DataError, match="column 'photo' holds something that is no image"):
        hugging_face(Request("t", path=file, label_column="kind", image_column="photo"))


def test_saved_data_sets_and_validation_splits_are_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    label = datasets.ClassLabel(names=["x", "y"])
    splits = {
        name: table(image=images_column(count), label=[0, 1] * (count // 2)).cast_column("label", label)
        for name, count in (("train", 6), ("validation", 4))
    }
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    source = hugging_face(Request("t", path=tmp_path / "saved"))
    assert (len(source.train), len(source.test)) == (6, 4)
    assert source.test.targets.tolist() == [0, 1, 0, 1]


def test_images_without_labels_are_refused(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    made = table(image=images_column(6), label=[0, 1, -1, 0, 1, -1])
    made.cast_column("label", datasets.ClassLabel(names=["x", "y"])).to_parquet(str(tmp_path / "t.parquet"))
    with pytest.raises(DataError, match="have no label of the 2 classes"):
        hugging_face(Request("t", path=tmp_path / "t.parquet"))


# --- nothing to read ---


def test_paths_with_nothing_usable_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    for name, message in (
        ("missing", "does not exist: expected"),
        ("empty", "can't be read.*expected"),
        ("notes.txt", "no known format: expected"),
    ):
        with pytest.raises(DataError, match=rf"{name} .*{message}"):
            hugging_face(Request("t", path=tmp_path / name))


def test_hub_out_of_reach_is_said_soon_and_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown_host(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown_host)
    datasets = pytest.importorskip("datasets")
    offline = datasets.config.HF_HUB_OFFLINE
    start = time.monotonic()
    with pytest.raises(DataError, match=r"hub can't be reached.*data: \{name: cifar10, path: \.\.\.\}"):
        SOURCES["cifar10"](Request("cifar10"))
    assert time.monotonic() - start < 15
    assert datasets.config.HF_HUB_OFFLINE is offline


@pytest.mark.parametrize(("name", "package"), [("digits", "sklearn"), ("cifar10", "datasets")])
def test_reader_that_is_not_installed_names_the_extra(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(module: str, *args: Any, **kwargs: Any) -> Any:
        if module.split(".")[0] == package:
            raise ModuleNotFoundError(module)
        return real(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setitem(sys.modules, package, None)  # What is looked for, and not imported.
    with pytest.raises(DataError, match=r"fedprune\[sim\]"):
        SOURCES[name](Request(name))


# --- names ---


def test_names_stand_for_built_in_ones_files_or_the_hub(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def made(request):\n    'Made.'\n    return request\n")
    assert find("digits") is SOURCES["digits"]
    assert find("cifar10", path=tmp_path) is SOURCES["cifar10"]
    assert find("owner/images") is hugging_face
    assert find("my-images", path=tmp_path) is hugging_face
    assert find("./mine.py:made", directory=tmp_path)(Request("x")) == Request("x")
    with pytest.raises(PluginError, match="cifar10"):
        find("cifra10")


@pytest.mark.parametrize("name", SOURCES)
def test_sources_say_in_one_line_what_they_are(name: str) -> None:
    assert (SOURCES[name].__doc__ or "").splitlines()[0].endswith(".")
