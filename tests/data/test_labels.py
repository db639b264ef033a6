"""Labels as people have them become class numbers, and what they were called stays."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedprune.data import load, load_own, open_shares
from fedprune.data.labels import flat, numbers, with_classes
from fedprune.errors import DataError
from fedprune.results.export import onnx_bytes
from fedprune.results.modelfile import described, read_info, read_model, save_model
from fedprune.scenario import Scenario
from fedprune.sparsity.masks import Masks
from fedprune.tasks import build, build_model

Make = Callable[..., Scenario]

KINDS = {
    "text": ["cat", "dog", "ox"],
    "from 1": [1, 2, 3],
    "with gaps": [10, -1, 7],
    "whole floats": [1.0, 2.0, 4.0],
    "small integers": np.array([3, 4, 5], np.uint8),
}


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_numbered_in_ascending_order_and_keep_their_names(kind: str) -> None:
    values = np.asarray(KINDS[kind])
    drawn = np.random.default_rng(0).integers(0, 3, 50)
    (train, test), names = with_classes([values[drawn[:40]], values[drawn[40:]]], (), "here")
    ascending = sorted(values.tolist())
    whole = [int(value) if isinstance(value, float) else value for value in ascending]
    assert names == tuple(map(str, whole))
    assert train.dtype == test.dtype == np.int64
    assert [ascending[n] for n in [*train, *test]] == values[drawn].tolist()


def test_yes_and_no_are_classes() -> None:
    (train, test), names = with_classes([np.array([True, False]), np.array([True])], (), "here")
    assert (train.tolist(), test.tolist(), names) == ([1, 0], [1], ("False", "True"))
    assert with_classes([np.array([True]), np.array([True])], ("no", "yes"), "here")[0][0].tolist() == [1]


def test_one_hot_rows_are_their_columns() -> None:
    rows = np.eye(4, dtype=np.float32)[[3, 0, 3]]
    (train, _), names = with_classes([rows, rows], (), "here")
    assert (train.tolist(), names) == ([3, 0, 3], ("0", "1", "2", "3"))
    with pytest.raises(DataError, match=r"not every row is one-hot.*task: multilabel"):
        flat(np.array([[1, 1, 0], [0, 1, 0]]), "here")


def test_a_class_that_only_the_test_split_has_is_one() -> None:
    assert with_classes([np.array([5, 6]), np.array([7])], (), "here")[1] == ("5", "6", "7")


@pytest.mark.parametrize(
    ("given", "names", "expected"),
    [
        ([0, 1, 2, 1], ("a", "b", "c"), [0, 1, 2, 1]),
        ([0, 1, 1, 1], ("a", "b", "c"), [0, 1, 1, 1]),
        ([1, 2, 3, 2], ("a", "b", "c"), [0, 1, 2, 1]),
        ([1, 3, 3, 3], ("a", "b", "c"), [0, 2, 2, 2]),
        ([2, 5, 9, 2], ("a", "b", "c"), [0, 1, 2, 0]),
        (["c", "a", "c", "b"], ("a", "b", "c"), [2, 0, 2, 1]),
        ([9, 5, 5, 2], ("5", "2", "9"), [2, 0, 0, 1]),
    ],
)
def test_names_that_a_source_gives_stay(
    given: list[Any], names: tuple[str, ...], expected: list[int]
) -> None:
    (train, test), kept = with_classes([np.array(given[:3]), np.array(given[3:])], names, "here")
    assert ([*train, *test], kept) == (expected, names)


@pytest.mark.parametrize(
    ("given", "names", "message"),
    [
        ([0.5, 1.0], (), "labels are float64, expected whole numbers.*task: regression"),
        ([0, 3], ("a", "b", "c"), "labels go from 0 to 3, and there are 3 classes, 0 to 2"),
        (["a", "x"], ("a", "b"), "label 'x' is none of the classes, a, b"),
        ([None, 1], (), "labels are object, expected whole numbers, text"),
    ],
)
def test_what_is_no_label_is_refused(given: list[Any], names: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=f"^here: {message}"):
        with_classes([np.array(given), np.array(given)], names, "here")


def test_numbers_are_names_where_every_class_is_called_by_one() -> None:
    assert numbers(np.array([3, 1]), ("1", "2", "3"), "here").tolist() == [2, 0]
    assert numbers(np.array([2, 0]), ("cat", "dog", "ox"), "here").tolist() == [2, 0]


# --- in a federation ---

OWN = """
import numpy as np
from fedprune import Examples, Source

def made(request):
    "Sixty images, of classes {labels}."
    given = np.array({labels})[np.arange(60) % 3]
    images = Examples(np.zeros((60, 1, 8, 8), dtype=np.uint8), given)
    return Source(images, images)
"""


@pytest.mark.parametrize("given", [[1, 2, 3], ["x", "y", "z"], [1.0, 2.0, 4.0]], ids=str)
def test_a_users_source_may_have_any_labels(given: list[Any], scenario: Make, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN.format(labels=given))
    plan = scenario({"name": f"{tmp_path / 'mine.py'}:made"})
    data = load(plan)
    assert data.train.targets.tolist() == [0, 1, 2] * 20
    assert data.info.class_names == tuple(
        str(int(value)) if isinstance(value, float) else str(value) for value in given
    )


@pytest.fixture
def table(tmp_path: Path, no_cache_left: None) -> Callable[..., Path]:
    """Write a table of images with labels as pandas does."""
    pandas = pytest.importorskip("pandas")
    image = pytest.importorskip("PIL.Image")

    def write(labels: list[Any], name: str = "label", form: str = "struct", **others: Any) -> Path:
        rng = np.random.default_rng(0)
        rows = []
        for number in range(len(labels)):
            image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / "one.png")
            encoded = (tmp_path / "one.png").read_bytes()
            rows.append(encoded if form == "bytes" else {"bytes": encoded, "path": f"{number}.png"})
        path = tmp_path / f"{name}.parquet"
        pandas.DataFrame({"photo": rows, name: labels, **others}).to_parquet(path)
        return path

    return write


@pytest.mark.parametrize("form", ["struct", "bytes"])
@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([1, 2, 3], ("1", "2", "3")),
        ([1.0, 2.0, 3.0], ("1", "2", "3")),
        (["b", "a", "c"], ("a", "b", "c")),
        ([True, False, True], ("False", "True")),
        ([[0, 0, 1], [1, 0, 0], [0, 1, 0]], ("0", "1", "2")),
    ],
    ids=["from 1", "floats", "text", "booleans", "one-hot"],
)
def test_a_table_of_pandas_needs_no_names_of_columns(
    values: list[Any], names: tuple[str, ...], form: str, table: Callable[..., Path], scenario: Make
) -> None:
    """Also as a device's own, where its labels become the same classes."""
    path = table(values * 12, form=form, weight=[0.5] * 36)
    plan = scenario({"name": "mine", "path": str(path)}, count=2)
    data = load(plan)
    assert data.info.class_names == names
    in_order = sorted(zip(data.train.inputs.tolist(), data.train.targets.tolist(), strict=True))
    declared = {"name": "mine", "input_shape": [1, 8, 8], "classes": list(names)}
    own = load_own(str(path), scenario(declared, count=2), 1).client(1).examples
    everything = dict(zip(map(str, own.inputs.tolist()), own.targets.tolist(), strict=True))
    assert [everything[str(pixels)] for pixels, _ in in_order] == [label for _, label in in_order]
    share = open_shares(plan).client(1)
    assert share.examples.targets[share.train].tolist() == data.train.targets[data.client(1).train].tolist()


@pytest.mark.parametrize("name", ["label", "Labels", "target", "class", "y"])
def test_columns_that_are_called_as_labels_are_found(
    name: str, table: Callable[..., Path], scenario: Make
) -> None:
    path = table([0, 1] * 12, name=name, age=[3, 4] * 12)
    assert load(scenario({"name": "mine", "path": str(path)})).info.classes == 2


def test_two_columns_of_labels_are_listed(table: Callable[..., Path], scenario: Make) -> None:
    path = table([0, 1] * 12, target=[0, 1] * 12)
    with pytest.raises(DataError, match=r"label, target all hold class labels: name the right one.*photo"):
        load(scenario({"name": "mine", "path": str(path)}))


def test_names_of_classes_are_exported_with_the_model(
    table: Callable[..., Path], scenario: Make, tmp_path: Path
) -> None:
    plan = scenario({"name": "mine", "path": str(table([1, 2, 5] * 12))})
    task = build(plan, load(plan).info)
    module = build_model(plan, task)
    file = tmp_path / "model.safetensors"
    options = plan.model.model_dump()
    save_model(file, module.state_dict(), Masks(), model=options, **described(task))
    assert read_info(file).class_names == ("1", "2", "5")
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    made = onnx.load_from_string(onnx_bytes(read_model(file)))
    metadata = {entry.key: entry.value for entry in made.metadata_props}
    assert json.loads(metadata["classes"]) == ["1", "2", "5"]
