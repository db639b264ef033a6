"""Images that are decoded when they are asked for: the same bits, from processes that hold little of them."""

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedprune.data import load, open_shares, read
from fedprune.data.decoding import Form
from fedprune.data.mapped import give_back
from fedprune.errors import DataError
from fedprune.scenario import Scenario

datasets = pytest.importorskip("datasets")
PIL = pytest.importorskip("PIL.Image")
pytestmark = pytest.mark.usefixtures("no_cache_left")

Make = Callable[..., Scenario]
SIDE = 32


@pytest.fixture(params=["marked", "bytes"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A data set as ``save_to_disk`` leaves it, with images that do not compress."""
    rng = np.random.default_rng(0)
    images = []
    for number in range(60):
        PIL.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(tmp_path / "one.png")
        encoded = (tmp_path / "one.png").read_bytes()
        images.append({"bytes": encoded, "path": f"{number}.png"} if request.param == "marked" else encoded)
    table = datasets.Dataset.from_dict({"image": images, "label": [number % 3 for number in range(60)]})
    if request.param == "marked":
        table = table.cast_column("image", datasets.Image())
    table.save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


def plans(scenario: Make, path: Path, **data: Any) -> tuple[Scenario, Scenario]:
    """Return the same scenario read lazily, and at once."""
    asked = {"name": "mine", "path": str(path), "client_test_fraction": 0.25, **data}
    lazy, whole = (scenario({**asked, "lazy": each}, count=3) for each in (True, False))
    return lazy, whole


@pytest.mark.parametrize("data", [{}, {"resize": [8, 12], "channels": 1, "bits": 16}], ids=["plain", "made"])
def test_lazy_images_are_the_same(data: dict[str, Any], saved: Path, scenario: Make) -> None:
    lazy, whole = (load(plan) for plan in plans(scenario, saved, **data))
    assert lazy.info == whole.info
    everything = np.arange(len(whole.train))
    np.testing.assert_array_equal(lazy.train.inputs[everything], whole.train.inputs)
    np.testing.assert_array_equal(lazy.test.inputs[np.array([3, 0, 3])], whole.test.inputs[[3, 0, 3]])
    assert lazy.train.inputs[everything[:0]].shape == whole.train.inputs[:0].shape
    assert (lazy.train.inputs.shape, lazy.train.inputs.dtype) == (
        whole.train.inputs.shape,
        whole.train.inputs.dtype,
    )
    np.testing.assert_array_equal(lazy.train.targets, whole.train.targets)
    share, theirs = open_shares(plans(scenario, saved, **data)[0]).client(1), whole.client(1)
    np.testing.assert_array_equal(share.examples.inputs[share.test], whole.train.inputs[theirs.test])


def test_what_is_asked_for_alone_is_decoded(
    saved: Path, scenario: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load(plans(scenario, saved)[0])
    made = []
    array = Form.array
    monkeypatch.setattr(Form, "array", lambda *given: made.append(1) or array(*given))
    client = data.client(2)
    assert not made
    assert len(client.examples.inputs[client.train[:4]]) == len(made) == 4


def test_a_process_is_sent_little(saved: Path, scenario: Make) -> None:
    data = load(plans(scenario, saved)[0])
    sent = pickle.dumps(data)
    assert len(sent) < 60 * SIDE * SIDE  # A third of the pixels.
    there = pickle.loads(sent)
    rows = np.arange(5)
    np.testing.assert_array_equal(there.train.inputs[rows], data.train.inputs[rows])
    assert len(pickle.dumps(there)) < 60 * SIDE * SIDE  # Nor what it has read since.


def test_a_study_reads_it_lazily_too(saved: Path, scenario: Make) -> None:
    assert not isinstance(read(plans(scenario, saved)[0]).train.inputs, np.ndarray)


def test_a_broken_image_is_named_when_it_is_met(tmp_path: Path, scenario: Make) -> None:
    rng = np.random.default_rng(0)
    PIL.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "one.png")
    images = [{"bytes": (tmp_path / "one.png").read_bytes(), "path": None} for _ in range(30)]
    images[7]["bytes"] = b"broken"
    for name, count in (("train", 30), ("test", 6)):
        table = datasets.Dataset.from_dict({"image": images[-count:], "label": [0, 1] * (count // 2)})
        table.cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "saved" / name))
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    data = load(scenario({"name": "mine", "path": str(tmp_path / "saved"), "lazy": True}))
    assert len(data.train.inputs[np.array([6, 8])]) == 2
    with pytest.raises(DataError, match="image 7 can't be read as an image: it is none of the formats"):
        data.train.inputs[np.array([7])]


def resident(file: Path) -> int:
    """Return the bytes of a mapped file that count as this process's."""
    mappings = Path("/proc/self/smaps").read_text().split("VmFlags:")
    lines = "\n".join(each for each in mappings if str(file) in each).splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Rss:"))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere pages are not given back")
def test_what_was_read_of_a_mapped_file_does_not_stay_resident(
    saved: Path, scenario: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = saved.glob("*.arrow")
    images = load(plans(scenario, saved)[0]).train.inputs
    everything = np.arange(len(images))
    first = images[everything]
    assert resident(file) > 0
    monkeypatch.setattr("fedprune.data.mapped._BYTES", 0)
    again = images[everything]
    assert resident(file) == 0
    np.testing.assert_array_equal(again, first)
    np.testing.assert_array_equal(images[everything], first)


def test_memory_that_is_no_file_s_is_not_given_back() -> None:
    kept = np.arange(1 << 20)
    assert give_back([kept.ctypes.data, kept.ctypes.data + kept.nbytes // 2]) == 0
    np.testing.assert_array_equal(kept, np.arange(1 << 20))
