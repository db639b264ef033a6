"""Windows against the readings that they are cut from."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fedprune.data import SOURCES, Request, Source
from fedprune.data.series import Windows
from fedprune.errors import DataError

RNG = np.random.default_rng(0)


def write(path: Path, clients: list[tuple[str, int]]) -> np.ndarray:
    """Write a table of readings, so many for each client in turn; return it by row: (client, x, y, label)."""
    names = np.concatenate([np.repeat(name, rows) for name, rows in clients])
    rows = len(names)
    columns = {
        "who": names,
        "x": np.arange(rows) / 4,
        "y": RNG.integers(0, 100, rows),
        "activity": RNG.choice(["run", "sit", "walk"], rows),
    }
    lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    path.write_text("\n".join(lines) + "\n")
    return np.array(list(zip(*columns.values(), strict=True)), dtype=object)


def read(path: Path, **options: object) -> Source:
    pytest.importorskip("pyarrow")
    return SOURCES["series"](
        Request("series", path, client_column="who", options={"label": "activity", "window": 8, **options})
    )


@pytest.mark.parametrize("label_of", ["majority", "last"])
def test_windows_are_runs_of_one_clients_readings(tmp_path: Path, label_of: str) -> None:
    rows = write(tmp_path / "train.csv", [("b", 30), ("a", 21), ("b", 9), ("c", 5)])
    write(tmp_path / "test.csv", [("d", 20)])
    made = read(tmp_path, stride=5, label_of=label_of)
    assert isinstance(made.inputs, Windows)
    assert made.inputs == Windows((2, 8), channels=("x", "y"))
    assert made.class_names == ("run", "sit", "walk")
    assert made.clients is not None
    expected = []
    for begin, end in ((0, 30), (30, 51), (51, 60), (60, 65)):
        for start in range(begin, end, 5):
            if start + 8 <= end:
                labels = rows[start : start + 8, 3].tolist()
                most = max(sorted(set(labels)), key=labels.count)
                expected.append((start, rows[start, 0], most if label_of == "majority" else labels[-1]))
    assert [start for start, *_ in expected] == (made.train.inputs[:, 0, 0] * 4).astype(int).tolist()
    for window, target, client, (start, who, label) in zip(
        made.train.inputs, made.train.targets, made.clients, expected, strict=True
    ):
        np.testing.assert_array_equal(window, rows[start : start + 8, 1:3].T.astype(np.float32))
        assert (client, made.class_names[target]) == (who, label)
    assert len(made.test) == 3


def test_of_one_table_the_last_readings_of_each_client_are_for_testing(tmp_path: Path) -> None:
    write(tmp_path / "all.csv", [("a", 240), ("b", 120)])
    made = read(tmp_path / "all.csv", stride=1)
    trained, tested = ((part.inputs[:, 0] * 4).astype(int) for part in (made.train, made.test))
    assert trained.shape[1] == 8
    assert not set(trained.ravel()) & set(tested.ravel())
    assert set(tested.ravel()) == {*range(200, 240), *range(340, 360)}


def test_recordings_are_not_mixed(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", [("a", 12), ("b", 12)])
    write(tmp_path / "test.csv", [("a", 12)])
    assert len(read(tmp_path).train) == 2
    one = SOURCES["series"](
        Request("series", tmp_path, options={"label": "activity", "window": 8, "ignore": ["y"]})
    )
    assert one.train.inputs.shape == (3, 1, 8)
    assert one.clients is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 200}, "no recording has 200 readings"),
        ({"label": "activty"}, "did you mean 'activity'"),
        ({"columns": ["x", "z"]}, "data.options.columns is 'z'"),
        ({"columns": ["x", "who"]}, "'who' holds string, expected numbers"),
        ({"window": 0}, "data.options.window"),
    ],
)
def test_mistakes_in_options_are_explained(tmp_path: Path, options: dict[str, object], message: str) -> None:
    write(tmp_path / "train.csv", [("a", 40)])
    with pytest.raises(DataError, match=message):
        read(tmp_path / "train.csv", **options)


def test_arrays_of_an_npz_file(tmp_path: Path) -> None:
    inputs, labels = RNG.normal(0, 1, (12, 3, 5)), RNG.choice([2, 5], 12)
    labels[:2] = [2, 5]
    clients = np.repeat(["a", "b"], 6)
    file = tmp_path / "windows.npz"
    np.savez(
        file, inputs=inputs, labels=labels, clients=clients, test_inputs=inputs[:4], test_labels=labels[:4]
    )
    made = SOURCES["series"](Request("series", file))
    np.testing.assert_array_equal(made.train.inputs, inputs.astype(np.float32))
    assert made.class_names == ("2", "5")
    assert [made.class_names[number] for number in made.train.targets] == list(map(str, labels))
    np.testing.assert_array_equal(made.test.targets, made.train.targets[:4])
    assert made.clients is not None
    assert made.clients.tolist() == clients.tolist()
    np.savez(file, inputs=inputs, labels=labels)
    split = SOURCES["series"](Request("series", file))
    assert (len(split.train), len(split.test)) == (10, 2)
    np.savez(file, inputs=inputs[0], labels=labels)
    with pytest.raises(DataError, match="expected numbers of shape"):
        SOURCES["series"](Request("series", file))
    np.savez(file, labels=labels)
    with pytest.raises(DataError, match="no array 'inputs'"):
        SOURCES["series"](Request("series", file))


def lay_out_har(root: Path) -> dict[str, np.ndarray]:
    """Write the layout of UCI HAR with few windows; return body_gyro_y of each split."""
    (root / "activity_labels.txt").parent.mkdir(parents=True)
    (root / "activity_labels.txt").write_text("1 WALKING\n2 SITTING\n")
    kept = {}
    for split, rows in (("train", 7), ("test", 3)):
        folder = root / split / "Inertial Signals"
        folder.mkdir(parents=True)
        for name in ("total_acc_x", "body_gyro_y", "body_acc_z"):
            values = RNG.normal(0, 1, (rows, 16))
            np.savetxt(folder / f"{name}_{split}.txt", values, fmt="%16.7e")
            if name == "body_gyro_y":
                kept[split] = values
        np.savetxt(root / split / f"y_{split}.txt", np.arange(rows) % 2 + 1, fmt="%d")
        np.savetxt(root / split / f"subject_{split}.txt", np.arange(rows) // 2 + 1, fmt="%d")
    return kept


def test_layout_of_uci_har(tmp_path: Path) -> None:
    kept = lay_out_har(tmp_path / "UCI HAR Dataset")
    made = SOURCES["uci_har"](Request("uci_har", tmp_path))
    assert isinstance(made.inputs, Windows)
    assert made.inputs == Windows((3, 16), channels=("body_acc_z", "body_gyro_y", "total_acc_x"))
    assert made.class_names == ("WALKING", "SITTING")
    np.testing.assert_allclose(made.train.inputs[:, 1], kept["train"], rtol=1e-6)
    np.testing.assert_allclose(made.test.inputs[:, 1], kept["test"], rtol=1e-6)
    assert made.train.targets.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert made.clients is not None
    assert made.clients.tolist() == [1, 1, 2, 2, 3, 3, 4]
    (tmp_path / "UCI HAR Dataset" / "activity_labels.txt").unlink()
    with pytest.raises(DataError, match="not as UCI HAR is laid out"):
        SOURCES["uci_har"](Request("uci_har", tmp_path))
    with pytest.raises(DataError, match=r"needs data.path"):
        SOURCES["uci_har"](Request("uci_har"))


def test_windows_are_standardised_by_channel() -> None:
    inputs = Windows((2, 3), mean=(1.0, -2.0), std=(2.0, 4.0))
    made = inputs.tensor(torch.tensor([[[1.0, 3.0, 5.0], [2.0, -2.0, 6.0]]]))
    assert made.tolist() == [[[0.0, 1.0, 2.0], [1.0, 0.0, 2.0]]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.array([0, np.nan, 1, 1])}, "1 labels are NaN"),
        ({"clients": np.array([np.nan] * 4)}, "4 clients are NaN"),
        ({"test_labels": np.zeros(4)}, "no array 'test_inputs'"),
    ],
)
def test_windows_that_lack_a_part_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    np.savez(tmp_path / "cut.npz", **{"inputs": np.ones((4, 1, 3)), "labels": np.arange(4), **changes})
    with pytest.raises(DataError, match=message):
        SOURCES["series"](Request("series", tmp_path / "cut.npz"))


def test_a_damaged_archive_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "cut.npz"
    np.savez(path, inputs=np.ones((4, 1, 3)), labels=np.arange(4))
    whole = path.read_bytes()
    np.save(tmp_path / "array.npy", np.ones(3))
    for held in (whole[: len(whole) // 2], (tmp_path / "array.npy").read_bytes(), b""):
        path.write_bytes(held)
        with pytest.raises(DataError, match=r"no \.npz file, or damaged"):
            SOURCES["series"](Request("series", path))


def test_the_label_is_no_channel(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", [("a", 60)])
    with pytest.raises(DataError, match=r"data.options.columns has 'y', the label"):
        read(tmp_path, columns=["x", "y"], label="y")


def test_readings_that_are_infinite_count_as_missing() -> None:
    windows = Windows((1, 3), mean=(2.0,), std=(1.0,))
    assert windows.tensor(torch.tensor([[[3.0, torch.inf, torch.nan]]])).tolist() == [[[1, 0, 0]]]
