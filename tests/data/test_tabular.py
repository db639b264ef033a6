"""Tables against what they say: columns, categories, missing values, classes, and pooled standardisation."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fedprune import data
from fedprune.data import SOURCES, Request
from fedprune.data.tabular import Columns
from fedprune.errors import DataError
from fedprune.scenario import Scenario

pytest.importorskip("pyarrow")

TABLE = """age,job,income,urban,id
30,cook,1000.5,true,a
40,,2000,false,b
,smith,1500,true,a
25,cook,800,true,c
60,judge,5000,false,b
33,smith,1200,false,c
"""
ROWS = 6


def tables(folder: Path, train: str = TABLE, test: str = TABLE) -> Path:
    for name, text in (("train", train), ("test", test)):
        (folder / f"{name}.csv").write_text(text)
    return folder


def source(path: Path, client: str | None = None, **options: object) -> data.Source:
    return SOURCES["tabular"](
        Request("tabular", path, client_column=client, options={"target": "job", **options})
    )


def test_columns_are_numbers_and_one_hot_categories(tmp_path: Path) -> None:
    made = source(tables(tmp_path), target="urban", ignore=["id"])
    assert isinstance(made.inputs, Columns)
    assert made.inputs.numeric == ("age", "income")
    assert made.inputs.categories == (("job", ("", "cook", "judge", "smith")),)
    assert made.class_names == ("False", "True")
    np.testing.assert_array_equal(made.train.targets, [1, 0, 1, 1, 0, 0])
    rows = made.inputs.tensor(torch.from_numpy(made.train.inputs))
    assert rows.shape == (ROWS, *made.inputs.shape) == (ROWS, 6)
    assert rows[0].tolist() == [30, 1000.5, 0, 1, 0, 0]
    assert rows[1].tolist() == [40, 2000, 1, 0, 0, 0]  # a missing category is one of its own
    assert rows[2].tolist() == [0, 1500, 0, 0, 0, 1]  # a missing number is the mean


@pytest.mark.parametrize("coding", ["utf-16", "utf-16-le"])
def test_utf_16_is_refused_in_a_sentence(coding: str, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(TABLE, encoding=coding)
    with pytest.raises(DataError, match=r"train\.csv is not UTF-8 text, maybe UTF-16: convert it before"):
        source(tmp_path)


def test_missing_numbers_can_be_flagged(tmp_path: Path) -> None:
    made = source(tables(tmp_path), target="urban", numeric=["age"], categorical=[], missing="flag")
    rows = made.inputs.tensor(torch.from_numpy(made.train.inputs))
    assert rows[:, 1].tolist() == [0, 0, 1, 0, 0, 0]


def test_a_category_without_training_rows_gives_zeros(tmp_path: Path) -> None:
    test = TABLE.replace("judge", "pilot")
    made = source(tables(tmp_path, test=test), target="urban", numeric=[], categorical=["job"])
    rows = made.inputs.tensor(torch.from_numpy(made.test.inputs))
    assert rows[4].tolist() == [0, 0, 0, 0]
    assert (rows.sum(1) == torch.tensor([1, 1, 1, 1, 0, 1])).all()


def test_numbers_are_predicted_where_the_target_has_fractions(tmp_path: Path) -> None:
    made = source(tables(tmp_path), target="income")
    assert (made.task, made.class_names) == ("regression", ())
    assert made.train.targets.dtype == np.float32
    assert made.train.targets[0] == np.float32(1000.5)


def test_a_row_without_a_target_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'age': 1 rows have no number"):
        source(tables(tmp_path), target="age", predict="number")
    with pytest.raises(DataError, match="'job': row 1 has no label"):
        source(tables(tmp_path))


def test_a_label_that_no_training_row_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="row 0 has the label 'z', which is none of the classes to train on, a, b, c"
    ):
        source(tables(tmp_path, test=TABLE.replace("true,a", "true,z", 1)), target="id")


def test_clients_are_those_of_their_column_which_predicts_nothing(tmp_path: Path) -> None:
    made = source(tables(tmp_path), client="id", target="urban")
    assert made.clients is not None
    assert made.clients.tolist() == list("abacbc")
    assert isinstance(made.inputs, Columns)
    assert "id" not in dict(made.inputs.categories)


def test_one_file_is_split_and_parquet_is_csv(tmp_path: Path) -> None:
    csv, parquet = pytest.importorskip("pyarrow.csv"), pytest.importorskip("pyarrow.parquet")
    tables(tmp_path)
    parquet.write_table(csv.read_csv(tmp_path / "train.csv"), tmp_path / "all.parquet")
    one = source(tmp_path / "train.csv", target="id")
    two = source(tmp_path / "all.parquet", target="id", numeric=["age", "income"])
    assert (len(one.train), len(one.test)) == (5, 1)
    np.testing.assert_array_equal(one.train.inputs[:, :2], two.train.inputs[:, :2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "jobb"}, "did you mean 'job'"),
        ({"targt": "job"}, "data.options.targt.*did you mean 'target'"),
        ({"ignore": ["wage"]}, "data.options.ignore is 'wage'"),
        ({"target": "urban", "numeric": ["job"], "categorical": []}, "'job' holds string, expected numbers"),
        ({"numeric": [], "categorical": []}, "no columns to predict 'job' from"),
    ],
)
def test_mistakes_in_options_are_explained(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        source(tables(tmp_path), **options)


def test_files_that_are_missing_or_damaged_are_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a .csv"):
        source(tmp_path)
    (tmp_path / "all.csv").write_text("a,b\n1,2\n3\n")
    with pytest.raises(DataError, match="can't be read"):
        source(tmp_path / "all.csv")
    with pytest.raises(DataError, match=r"needs data.path"):
        SOURCES["tabular"](Request("tabular", options={"target": "a"}))


@pytest.mark.parametrize("name", ["breast_cancer", "diabetes"])
def test_sets_of_scikit_learn_are_its_own(name: str) -> None:
    sets = pytest.importorskip("sklearn.datasets")
    bunch = getattr(sets, f"load_{name}")(**({"scaled": False} if name == "diabetes" else {}))
    made = SOURCES[name](Request(name))
    rows = np.concatenate([made.train.inputs, made.test.inputs])
    targets = np.concatenate([made.train.targets, made.test.targets])
    theirs = (
        bunch.data
        if name == "breast_cancer"
        else np.c_[bunch.data[:, :1], bunch.data[:, 2:], bunch.data[:, 1] - 1]
    )
    ours = sorted(map(tuple, np.c_[rows, targets].tolist()))
    assert ours == sorted(map(tuple, np.c_[theirs, bunch.target].tolist()))
    if name == "breast_cancer":
        assert isinstance(made.inputs, Columns)
        assert made.class_names == tuple(bunch.target_names)
        assert [n.replace("standard ", "") for n in made.inputs.numeric[:2]] == [
            "mean radius",
            "mean texture",
        ]


def test_a_federation_standardises_by_what_its_clients_train_on(scenario: Callable[..., Scenario]) -> None:
    made = scenario({"name": "breast_cancer", "client_test_fraction": 0.2, "server_fraction": 0.1})
    federation = data.load(made)
    union = federation.train.inputs[federation.client_train.indices]
    inputs = federation.info.inputs
    assert isinstance(inputs, Columns)
    np.testing.assert_allclose(inputs.mean, union.mean(0), rtol=1e-12)
    np.testing.assert_allclose(inputs.std, union.std(0), rtol=1e-9)
    shown = inputs.tensor(torch.from_numpy(union))
    assert shown.mean(0).abs().max() < 1e-5
    assert (shown.std(0, correction=0) - 1).abs().max() < 1e-4


def test_rows_of_a_devices_own_must_be_described(scenario: Callable[..., Scenario], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not describe what it has"):
        data.load_own(str(tmp_path), scenario({"name": "breast_cancer"}), 0)


def test_constants_of_images_are_refused(scenario: Callable[..., Scenario]) -> None:
    with pytest.raises(DataError, match=r"data.mean and data.std are for images"):
        data.load(scenario({"name": "breast_cancer", "mean": [0.5], "std": [0.5]}))


@pytest.mark.parametrize(
    ("train", "options", "message"),
    [
        (TABLE.replace("age", "income"), {"target": "urban"}, "several columns have that name"),
        (TABLE, {"target": "income", "numeric": ["age", "income"]}, "also named as a column to predict from"),
        (TABLE.replace("cook", "caf\xe9"), {}, "not UTF-8"),
    ],
)
def test_ambiguous_tables_are_explained(tmp_path: Path, train: str, options: dict, message: str) -> None:
    (tmp_path / "train.csv").write_bytes(train.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        source(tmp_path, **options)


def test_rows_without_a_client_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 1 has no client"):
        source(tables(tmp_path, TABLE.replace("false,b\n,", "false,\n,")), target="urban", client="id")


def test_files_of_a_split_are_joined_where_they_have_one_form(tmp_path: Path) -> None:
    first, second = tables(tmp_path) / "train.csv", tmp_path / "train-1.csv"
    second.write_text(TABLE.replace("40,,", "40.5,,"))
    made = source(tmp_path, target="urban")
    assert len(made.train) == 2 * ROWS
    assert made.train.inputs[:, 0].tolist().count(40.5) == 1
    second.write_text(TABLE.replace("age", "years"))
    with pytest.raises(DataError, match="other columns than"):
        source(tmp_path, target="urban")
    second.write_text(TABLE.replace("30,cook", "old,cook"))
    with pytest.raises(DataError, match="differ in type"):
        source(tmp_path, target="urban")
    assert first.exists()


@pytest.mark.parametrize("value", ["inf", "-inf", "1e300"])
def test_what_float32_cannot_hold_counts_as_missing(tmp_path: Path, value: str) -> None:
    train = TABLE.replace("1500", value)
    made = source(tables(tmp_path, train), target="urban", numeric=["income"], categorical=[], missing="flag")
    rows = made.inputs.tensor(torch.from_numpy(made.train.inputs))
    assert rows[2].tolist() == [0, 1]
    assert made.inputs.sums(made.train.inputs)[0].tolist() == [ROWS - 1]


def test_labels_that_are_nan_or_lists_are_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    for labels, message in (([1.0, float("nan"), 2.0], "row 1 has no label"), ([[1, 0]] * 3, "holds list")):
        parquet.write_table(pa.table({"x": [1, 2, 3], "y": labels}), tmp_path / "labels.parquet")
        with pytest.raises(DataError, match=message):
            source(tmp_path / "labels.parquet", target="y", predict="class")
