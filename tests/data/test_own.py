"""A device's own data: every format against the same images in memory, and every refusal by its words."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from inprocess import federate, plan

from fedprune import data
from fedprune.client.app import FederatedClientApp
from fedprune.client.site import Site
from fedprune.data import Examples, expected, load_own, npz
from fedprune.data.inputs import Pixels
from fedprune.errors import DataError, PluginError
from fedprune.scenario import Scenario

Make = Callable[..., Scenario]
Write = Callable[[Path, Examples, tuple[str, ...]], str]

CIFAR10 = Path(__file__).parents[3] / "shared" / "data" / "cifar10"
CLIENT = 2
RNG = np.random.default_rng(0)


def made(count: int = 12, shape: tuple[int, ...] = (3, 5, 4), classes: int = 3) -> Examples:
    pixels = RNG.integers(0, 256, (count, *shape), dtype=np.uint8)
    return Examples(pixels, np.arange(count) % classes)


PETS = {"name": "pets", "path": "unread", "input_shape": [3, 5, 4], "classes": ["cat", "dog", "ox"]}


def as_image(pixels: np.ndarray) -> Any:
    import PIL.Image

    return PIL.Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def npz_file(folder: Path, images: Examples, names: tuple[str, ...]) -> str:
    np.savez(folder / "own.npz", pixels=images.inputs, labels=images.targets)
    return str(folder / "own.npz")


def compressed_file(folder: Path, images: Examples, names: tuple[str, ...]) -> str:
    np.savez_compressed(folder / "own.npz", labels=images.targets.astype(np.uint8), pixels=images.inputs)
    return str(folder / "own.npz")


def image_folder(folder: Path, images: Examples, names: tuple[str, ...]) -> str:
    for number, (pixels, label) in enumerate(zip(images.inputs, images.targets, strict=True)):
        (folder / "own" / names[label]).mkdir(parents=True, exist_ok=True)
        as_image(pixels).save(folder / "own" / names[label] / f"{number:06d}.png")
    return str(folder / "own")


def parquet_file(folder: Path, images: Examples, names: tuple[str, ...]) -> str:
    """A table as ``datasets`` writes it, with the names of the classes beside it."""
    datasets = pytest.importorskip("datasets")
    columns = {"img": [as_image(pixels) for pixels in images.inputs], "label": images.targets.tolist()}
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(folder / "own.parquet"))
    return str(folder / "own.parquet")


def parquet_of_text(folder: Path, images: Examples, names: tuple[str, ...]) -> str:
    """A table of another making, in several row groups, whose labels are the classes' names."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = []
    for pixels in images.inputs:
        as_image(pixels).save(encoded := io.BytesIO(), format="PNG")
        rows.append({"bytes": encoded.getvalue(), "path": None})
    column = pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    table = pa.table({"label": [names[label] for label in images.targets], "img": column})
    pq.write_table(table, folder / "own.parquet", row_group_size=max(1, len(images) // 3))
    return str(folder / "own.parquet")


def function(folder: Path, images: Examples, names: tuple[str, ...]) -> str:
    np.savez(folder / "hidden", pixels=images.inputs, labels=images.targets)
    (folder / "mine.py").write_text(
        "import numpy as np\n"
        "def load(info):\n"
        f"    found = np.load({str(folder / 'hidden.npz')!r})\n"
        "    assert found['pixels'].shape[1:] == info.input_shape\n"
        "    return found['pixels'], found['labels']\n"
    )
    return f"{folder / 'mine.py'}:load"


FORMATS = [npz_file, compressed_file, image_folder, parquet_file, parquet_of_text, function]


def check_same(found: data.ClientData, images: Examples, sort: bool) -> None:
    """A folder's images come by class; the other formats keep their order."""
    order = np.argsort(images.targets, kind="stable") if sort else np.arange(len(images))
    np.testing.assert_array_equal(found.train, np.arange(len(images)))
    np.testing.assert_array_equal(found.examples.inputs, images.inputs[order])
    np.testing.assert_array_equal(found.examples.targets, images.targets[order])
    assert found.examples.targets.dtype == np.int64
    assert len(found.test) == 0


@pytest.mark.usefixtures("no_cache_left")
@pytest.mark.parametrize("write", FORMATS)
@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_each_format_gives_the_images_that_the_scenario_s_own_data_has(
    write: Write, name: str, scenario: Make, tmp_path: Path
) -> None:
    if name == "cifar10" and not CIFAR10.exists():
        pytest.skip(f"no CIFAR-10 in {CIFAR10}")
    path = {"path": str(CIFAR10)} if name == "cifar10" else {}
    loaded = data.load(scenario({"name": name, "train_examples": 60, "test_examples": 1, **path}))
    where = write(tmp_path, loaded.train, loaded.info.class_names)
    own = load_own(where, scenario({"name": name}), CLIENT)
    assert own.info == loaded.info
    check_same(own.client(CLIENT), loaded.train, sort=write is image_folder)
    with pytest.raises(IndexError, match="client 0: this device is client 2"):
        own.client(0)


@given(
    pixels=arrays.arrays(np.uint8, st.tuples(st.integers(4, 9), st.just(3), st.just(5), st.just(4))),
    compressed=st.booleans(),
    fortran=st.booleans(),
)
def test_any_array_survives_its_npz_file(
    pixels: np.ndarray, compressed: bool, fortran: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("npz") / "own.npz"
    save = np.savez_compressed if compressed else np.savez
    save(path, pixels=np.asfortranarray(pixels) if fortran else pixels, labels=np.zeros(len(pixels), int))
    info = data.DataInfo("x", Pixels((3, 5, 4)), ("0", "1"))
    train, test = npz.read(path, expected.Expected(info))
    assert test is None
    np.testing.assert_array_equal(train.inputs, pixels)


def test_pixels_of_an_uncompressed_file_are_mapped_and_its_test_part_is_left_alone(
    scenario: Make, tmp_path: Path
) -> None:
    images = made(400, (3, 50, 40))
    tests = {"test_pixels": np.zeros(1), "test_labels": np.zeros(9)}  # wrong, and of no interest
    np.savez(tmp_path / "own.npz", pixels=images.inputs, labels=images.targets, **tests)
    own = load_own(str(tmp_path / "own.npz"), scenario({**PETS, "input_shape": [3, 50, 40]}), 0).client(0)
    base: Any = own.examples.inputs
    while base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)
    np.testing.assert_array_equal(own.examples.inputs[[7, 300]], images.inputs[[7, 300]])


@pytest.mark.parametrize("write", [npz_file, compressed_file, image_folder, parquet_file, function])
def test_grey_images_become_coloured_ones(write: Write, scenario: Make, tmp_path: Path) -> None:
    images = made(shape=(1, 5, 4))
    if write is function:
        (tmp_path / "mine.py").write_text(
            "import numpy as np\nfrom fedprune.data import Examples\n"
            f"def load(info):\n    return Examples(np.array({images.inputs[:, 0].tolist()}, 'u1'), "
            f"np.array({images.targets.tolist()}))\n"
        )
        where = f"{tmp_path / 'mine.py'}:load"
    else:
        where = write(tmp_path, images, ("cat", "dog", "ox"))
    found = load_own(where, scenario(PETS), CLIENT).client(CLIENT)
    check_same(found, Examples(np.repeat(images.inputs, 3, 1), images.targets), write is image_folder)


def test_a_client_on_its_own_data_trains_as_one_in_a_simulation_does(tmp_path: Path) -> None:
    """Given the images that a simulation gave it, it answers the same messages with the same values."""
    scenario = plan(strategy={"name": "static", "density": 0.3})
    made = federate(scenario)
    for number in range(2):
        share = made.data.client(number)
        shown = {"pixels": share.examples.inputs[share.train], "labels": share.examples.targets[share.train]}
        np.savez(tmp_path / f"{number}.npz", **shown)
        site = Site(scenario, load_own(str(tmp_path / f"{number}.npz"), scenario, number))
        context = Context(1, number + 2, {"partition-id": number}, RecordDict(), {})
        asked = [pair for pair in made.trained() if pair[0].metadata.dst_node_id == number + 2]
        assert asked
        for message, reply in asked:
            own = FederatedClientApp(lambda _, site=site: site)(message, context)
            assert own.content.array_records == reply.content.array_records


# --- what is held out ---


def test_held_out_part_follows_from_seed_and_number(scenario: Make, tmp_path: Path) -> None:
    where = npz_file(tmp_path, made(40), ())
    tested = {**PETS, "client_test_fraction": 0.25}
    first, again, other = (
        load_own(where, scenario(tested), number).client(number) for number in (CLIENT, CLIENT, CLIENT + 1)
    )
    np.testing.assert_array_equal(first.test, again.test)
    assert first.test.tolist() != other.test.tolist()
    assert len(first.test) == 10
    assert sorted([*first.train, *first.test]) == list(range(40))


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_a_test_part_of_its_own_is_held_out_instead(kind: str, scenario: Make, tmp_path: Path) -> None:
    train, test = made(12), made(5)
    names = ("cat", "dog", "ox")
    if kind == "npz":
        where = tmp_path / "own.npz"
        parts = {"pixels": train.inputs, "labels": train.targets}
        np.savez(where, **parts, test_pixels=test.inputs, test_labels=test.targets)
    else:
        where = tmp_path
        for part, images in (("train", train), ("test", test)):
            image_folder(tmp_path, images, names)
            (tmp_path / "own").rename(tmp_path / part)
    for fraction, tested in ((0.5, 5), (0.0, 0)):
        found = load_own(str(where), scenario({**PETS, "client_test_fraction": fraction}), 0).client(0)
        assert (len(found.train), len(found.test)) == (12, tested)
        held = {pixels.tobytes() for pixels in found.examples.inputs[found.test]}
        assert held == ({pixels.tobytes() for pixels in test.inputs} if tested else set())
        trained = {pixels.tobytes() for pixels in found.examples.inputs[found.train]}
        assert trained == {pixels.tobytes() for pixels in train.inputs}


# --- what is refused ---


def refused(where: object, asked: Scenario, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_own(str(where), asked, CLIENT)


def test_a_scenario_that_does_not_say_what_it_takes_is_refused(scenario: Make, tmp_path: Path) -> None:
    where = npz_file(tmp_path, made(), ())
    for key in ("input_shape", "classes"):
        lacking = {name: value for name, value in PETS.items() if name != key}
        refused(where, scenario(lacking), r"can't see data set 'pets'.*data\.input_shape.*data\.classes")


def test_paths_with_nothing_usable_are_named(scenario: Make, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("missing.npz", "missing.npz does not exist: expected a folder"),
        ("notes.txt", "notes.txt is of no known format: expected a folder"),
        ("empty", "empty has 0 images, and a client needs 1: add images"),
    ):
        refused(tmp_path / name, scenario(PETS), message)


@pytest.mark.parametrize("write", [npz_file, image_folder, parquet_file])
def test_what_may_not_be_read_is_said(
    write: Write, scenario: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = write(tmp_path, made(), ("cat", "dog", "ox"))

    def forbidden(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied", where)

    monkeypatch.setattr("os.scandir", forbidden)
    monkeypatch.setattr("zipfile.ZipFile.__init__", forbidden)
    if write is parquet_file:
        monkeypatch.setattr("pyarrow.parquet.ParquetFile", forbidden)
    refused(where, scenario(PETS), "can't be read .*Permission denied.*: it must be .*user of the SuperNode")


@pytest.mark.parametrize("write", FORMATS)
def test_less_than_a_batch_is_enough_unless_the_scenario_asks_for_more(
    write: Write, scenario: Make, tmp_path: Path
) -> None:
    where = write(tmp_path, made(7), ("cat", "dog", "ox"))
    assert len(load_own(where, scenario(PETS, batch_size=8), 0).client(0).train) == 7
    asked = {**PETS, "partition": {"min_examples": 8}}
    refused(where, scenario(asked), "has 7 images, and a client needs 8, as data.partition.min_examples says")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"pixels": np.zeros((12, 3, 5, 4))},
            "pixels are float64, expected uint8 from 0 to 255 .from 0 ",
        ),
        ({"pixels": np.zeros((12, 3, 5, 4), "i8")}, "pixels are int64, expected uint8"),
        ({"pixels": np.zeros((12, 5, 4, 3), "u1")}, r"its channels come last: save pixels.transpose"),
        ({"pixels": np.zeros((12, 3, 9, 4), "u1")}, r"shape \(12, 3, 9, 4\), expected \(N, 3, 5, 4\), or"),
        ({"pixels": np.zeros(12, "u1")}, r"pixels have shape \(12,\), expected"),
        ({"labels": np.arange(12)}, "labels go from 0 to 11, and there are 3 classes, 0 to 2"),
        ({"labels": -np.ones(12, int)}, "labels go from -1 to -1"),
        ({"labels": np.zeros(11, int)}, r"labels have shape \(11,\), expected \(12,\)"),
        ({"labels": np.full(12, 0.5)}, "labels are float64, expected whole numbers"),
        ({"labels": np.array(["cat"] * 12, object)}, "labels are pickled Python objects, .* never loaded"),
        ({"labels": None}, r"no array 'labels' \(it has 'pixels'\): make one with numpy.savez"),
        ({"test_labels": np.zeros(1, int)}, "has 'test_labels' alone"),
    ],
)
def test_wrong_arrays_are_refused(
    change: dict[str, Any], message: str, scenario: Make, tmp_path: Path
) -> None:
    right = made()
    given = {"pixels": right.inputs, "labels": right.targets, **change}
    np.savez(tmp_path / "own.npz", **{name: array for name, array in given.items() if array is not None})
    refused(tmp_path / "own.npz", scenario(PETS), message)


def member(header: bytes, body: bytes = b"") -> bytes:
    padded = header + b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + body


def test_a_file_that_claims_more_than_it_has_costs_nothing(scenario: Make, tmp_path: Path) -> None:
    claim = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 3, 5, 4)}"
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "own.npz", "w", method) as archive:
            archive.writestr("pixels.npy", member(claim, bytes(100)))
            archive.writestr("labels.npy", member(claim))
        refused(tmp_path / "own.npz", scenario(PETS), r"pixels claims shape \(10{12}, 3.*holds 100 B")


def test_more_than_the_machine_holds_is_refused(
    scenario: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (npz, expected):
        monkeypatch.setattr(module, "physical_memory", lambda: 500)
    images = made()
    folder = image_folder(tmp_path, images, ("cat", "dog", "ox"))
    refused(folder, scenario(PETS), "12 images, 720 B when decoded, and this machine has 500 B")
    refused(compressed_file(tmp_path, images, ()), scenario(PETS), "pixels takes 720 B.*save it with numpy")
    load_own(npz_file(tmp_path, images, ()), scenario(PETS), CLIENT)


def test_damaged_files_are_refused(scenario: Make, tmp_path: Path) -> None:
    images = made(400)
    for write in (npz_file, compressed_file, parquet_file):
        path = Path(write(tmp_path, images, ("cat", "dog", "ox")))
        whole = path.read_bytes()
        half = len(whole) // 2
        for wrong in (b"", b"not this", whole[:half]):
            path.write_bytes(wrong)
            refused(path, scenario(PETS), r"is no \.(npz|parquet) file, or damaged")
    path = Path(compressed_file(tmp_path, images, ()))
    whole = path.read_bytes()
    path.write_bytes(whole[:9000] + bytes(200) + whole[9200:])
    refused(path, scenario(PETS), r"is no \.npz file, or damaged")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("cow/1.png", made(1).inputs[0], r"folder .*cow is named as no class .*\(its classes: cat, dog, ox"),
        ("cats/1.png", made(1).inputs[0], r"cats is named as no class .*; did you mean 'cat'"),
        ("1.png", made(1).inputs[0], r"1\.png is in no class"),
        ("cat/notes.txt", b"hello", r"notes\.txt is no \.png, \.jpg, \.jpeg file: take it out"),
        ("cat/x.png", b"hello", r"x\.png can't be read as an image .*: repair it or take it out"),
        ("cat/x.png", b"", r"x\.png can't be read as an image"),
        ("dog/x.png", made(1, (3, 9, 4)).inputs[0], r"x\.png is 9x4 .*images are 5x4: data.resize"),
        ("dog/x.png", made(1, (3, 10, 2)).inputs[0], r"x\.png is 10x2"),
    ],
)
def test_wrong_images_in_a_folder_are_refused(
    file: str, content: Any, message: str, scenario: Make, tmp_path: Path
) -> None:
    folder = Path(image_folder(tmp_path, made(), ("cat", "dog", "ox")))
    (folder / file).parent.mkdir(exist_ok=True)
    if isinstance(content, bytes):
        (folder / file).write_bytes(content)
    else:
        as_image(content).save(folder / file)
    refused(folder, scenario(PETS), message)


def test_colour_and_depth_are_not_thrown_away(scenario: Make, tmp_path: Path) -> None:
    grey = scenario({**PETS, "input_shape": [1, 5, 4]})
    folder = Path(image_folder(tmp_path, made(), ("cat", "dog", "ox")))
    refused(folder, grey, r"000000\.png is coloured, and the scenario's images are grey")
    as_image(np.zeros((1, 5, 4), np.uint16)).save(folder / "cat" / "000000.png")
    refused(folder, grey, r"000000\.png has 16 bits a channel .*data\.bits")
    two = scenario({**PETS, "input_shape": [2, 5, 4]})
    refused(folder, two, "images have 2 channels, and files hold 1 or 3|more than 8 bits")


def test_a_image_is_turned_as_its_exif_tag_says(scenario: Make, tmp_path: Path) -> None:
    """As ``datasets`` does, so that a device sees the images that a simulation saw."""
    import PIL.Image

    folder = Path(image_folder(tmp_path, made(), ("cat", "dog", "ox")))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    wide = made(1, (3, 4, 5)).inputs[0]
    as_image(wide).save(folder / "cat" / "000000.png", exif=exif)
    found = load_own(str(folder), scenario(PETS), CLIENT).client(CLIENT)
    np.testing.assert_array_equal(found.examples.inputs[0], np.rot90(wide, -1, (1, 2)))


def test_tables_that_cannot_be_told_are_refused(scenario: Make, tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "own.parquet"
    images = pa.array([{"bytes": b"x", "path": "x"}] * 12, pa.struct({"bytes": pa.binary(), "path": "str"}))
    nothing = pa.array([{"bytes": None, "path": "x"}] * 12, images.type)
    numbers = pa.array([0] * 12)
    for columns, given_keys, message in (
        ({"a": images, "b": images, "y": numbers}, {}, "a, b all hold images: .*data.image_column"),
        ({"y": numbers}, {}, "no column is marked as images"),
        ({"a": images}, {}, "no column is marked as class labels: name the right one in data.label_column"),
        ({"a": images, "y": numbers}, {"label_column": "z"}, "data.label_column is 'z': no such column"),
        ({"a": images, "y": numbers}, {"image_column": "y"}, "column 'y' is int64, expected images"),
        ({"a": images, "y": numbers}, {}, "image 0 can't be read as an image"),
        ({"a": nothing, "y": numbers}, {}, "image 0 has no bytes"),
        ({"a": images, "y": pa.array([None, *[0] * 11])}, {}, "1 images have no label"),
        ({"a": images, "y": pa.array([7] * 12)}, {}, "labels go from 7 to 7"),
        ({"a": images, "y": pa.array([True] * 12)}, {}, "label True is none of the classes, cat, dog, ox"),
        ({"a": images, "y": pa.array([0.5] * 12)}, {}, "labels are float64, expected whole numbers"),
        ({"a": images, "y": pa.array(["cow"] * 12)}, {"label_column": "y"}, "label 'cow' is named as no"),
    ):
        pq.write_table(pa.table(columns), path)
        refused(path, scenario({**PETS, **given_keys}), message)


def test_a_table_that_numbers_the_classes_otherwise_is_refused(scenario: Make, tmp_path: Path) -> None:
    where = parquet_file(tmp_path, made(), ("dog", "cat", "ox"))
    refused(where, scenario(PETS), "numbers the classes dog, cat, ox, and the scenario's are cat, dog, ox")
    load_own(where, scenario({**PETS, "classes": 3}), CLIENT)


def test_functions_that_fail_are_named(scenario: Make, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def fails(info):\n    raise OSError('the camera is off')\n"
        "def three(info):\n    return 1, 2, 3\n"
        "def ragged(info):\n    return [[1], [2, 3]], 2\n"
        "def floats(info):\n    return np.zeros((12, 3, 5, 4)), np.zeros(12, int)\n"
    )
    for name, message in (
        ("fails", r"mine\.py:fails raised OSError: the camera is off"),
        ("three", r"mine\.py:three returned tuple: expected Examples or \(pixels, labels\)"),
        ("ragged", r"mine\.py:ragged raised ValueError: .*shape"),
        ("floats", r"mine\.py:floats: pixels are float64"),
    ):
        refused(f"{tmp_path / 'mine.py'}:{name}", scenario(PETS), message)
    for where in (f"{tmp_path / 'mine.py'}:lod", "no_such_module:load"):
        with pytest.raises(PluginError, match=r"has no 'lod'|there is no module"):
            load_own(where, scenario(PETS), CLIENT)


# --- what is installed ---

DEVICE = """
import sys
for name in ("datasets", "flwr_datasets", "sklearn", "PIL", "pyarrow", "pandas", "matplotlib", "ray"):
    sys.modules[name] = None
from fedprune.data import load_own
from fedprune.errors import DataError
from fedprune.scenario import Scenario
training = {"batch_size": 4, "optimizer": {"name": "sgd", "lr": 0.1}}
plan = Scenario.from_mapping({
    "name": "t", "rounds": 1, "model": {"name": "cnn"}, "strategy": {"name": "fedavg"},
    "data": {"name": "pets", "input_shape": [3, 5, 4], "classes": ["cat", "dog", "ox"],
             "client_test_fraction": 0.25},
    "clients": {"count": 5, "training": training},
})
for where in sys.argv[1:]:
    try:
        print(len(load_own(where, plan, 3).client(3).train))
    except DataError as error:
        print(error)
"""


def test_a_device_needs_nothing_of_the_extras_but_for_image_files(tmp_path: Path) -> None:
    names = ("cat", "dog", "ox")
    wheres = [write(tmp_path, made(), names) for write in (function, npz_file, image_folder, parquet_file)]
    command = [sys.executable, "-c", DEVICE, *wheres]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.splitlines() == [
        "9",
        "9",
        'images need Pillow, which is not installed: pip install "fedprune[images]"',
        '.parquet files need pyarrow, which is not installed: pip install "fedprune[images]"',
    ]
