"""Windows of time series: CSV and parquet tables of readings, ``.npz`` arrays, and the layout of UCI HAR.

A window is stored as float32 (C, L), channels first, and standardised channel by channel batch by batch, with
constants fitted to the clients' pooled sums (``standard``). Windows never cross from one client, or one
recording, into the next.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from fedprune.data import columns
from fedprune.data.dataset import Examples, Indices
from fedprune.data.partition import TEST_PART, choose, split_without_test
from fedprune.data.source import Request, Source, SourceOptions
from fedprune.data.standard import Standardised
from fedprune.errors import DataError

_HAR_FOLDER = "Inertial Signals"


@dataclass(frozen=True)
class Windows(Standardised):
    """Windows of readings, stored as float32 (N, C, L).

    Attributes
    ----------
    shape
        (C, L): channels, and readings of each.
    mean, std
        By channel.
    channels
        Their names; () where they have none.
    """

    channels: tuple[str, ...] = ()

    kind: ClassVar = "windows"

    def measured(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Return the readings as they are."""
        return stored

    def tensor(self, stored: Tensor) -> Tensor:
        """Return windows as float32 (B, C, L)."""
        return self.standardised(stored)

    def settings(self) -> dict[str, object]:
        """Return the channels besides mean and standard deviation."""
        return super().settings() | {"channels": list(self.channels)}


class SeriesOptions(SourceOptions):
    """What ``data.options`` may say of time series."""

    columns: tuple[str, ...] | None = Field(
        default=None,
        description="Those with readings, the channels; by default every column of numbers that is not "
        "named otherwise.",
    )
    label: str | None = Field(
        default=None,
        description="The column with the class of each reading. data.label_column means the same.",
    )
    window: int = Field(
        default=128,
        ge=1,
        description="Readings in a window, and from the start of one to the next; by default windows do "
        "not overlap.",
    )
    stride: int | None = Field(
        default=None,
        ge=1,
        description="Readings in a window, and from the start of one to the next; by default windows do "
        "not overlap.",
    )
    label_of: Literal["majority", "last"] = Field(
        default="majority",
        description="Which of a window's labels counts: that of the majority of its readings, or of the "
        "last.",
    )
    recording: str | None = Field(
        default=None, description="A column that numbers recordings, besides the one with the clients."
    )
    ignore: tuple[str, ...] = Field(default=(), description="Columns of numbers that are no channels.")
    hub: str | None = Field(
        default=None, description="Where the Hugging Face hub has the table, without data.path."
    )


def series(request: Request) -> Source:
    """Windows of time series: a table with a column a channel (CSV, parquet), or arrays in an .npz file."""
    if request.path is not None and request.path.suffix == ".npz":
        return _from_npz(request, request.path)
    options = request.read_options(SeriesOptions)
    label = options.label or request.label_column
    if label is None:
        raise DataError(
            f"data set {request.name!r} needs data.options.label, the column with the class of each reading"
        )
    train, test = columns.read(request, options.hub)
    named = (label, request.client_column, options.recording, *options.ignore)
    free = [name for name in train.column_names if name not in named]
    columns.check(train, free, "a column of readings")
    channels = options.columns or tuple(name for name in free if columns.is_number(train, name))
    for key, names in (
        ("data.options.columns", channels),
        ("data.options.label", (label,)),
        ("data.options.recording", (options.recording,) if options.recording else ()),
        ("data.partition.column", (request.client_column,) if request.client_column else ()),
    ):
        columns.check(train, names, key)
    if label in channels:
        raise DataError(f"data.options.columns has {label!r}, the label: take it out")
    if not channels:
        raise DataError(
            f"data set {request.name!r} has no columns of numbers: name some in data.options.columns"
        )
    read = _Reader(channels, label, request.client_column, options)
    if test is None:
        whole, class_names = read.windows(train, held_out=TEST_PART)
        parts = whole.select(~whole.late), whole.select(whole.late)
    else:
        whole, class_names = read.windows(train)
        parts = whole, read.windows(test, names=class_names)[0]
    return _source(request, *parts, class_names, tuple(channels))


def own_windows(
    path: Path, inputs: Windows, names: Sequence[str], options: SeriesOptions, label: str
) -> list[Examples]:
    """Return windows of a device's own recordings, for training and, if it has some apart, for testing.

    Parameters
    ----------
    path
        A table with the channels' columns, CSV or parquet, or a folder with ``train`` and, maybe, ``test``.
    inputs
        What the model takes.
    names
        The classes.
    options
        Those of the scenario's data set.
    label
        The column with the class of each reading.

    Raises
    ------
    DataError
        Where it can't be read, lacks a column, or has a label of no class.
    """
    options = options.model_copy(update={"window": inputs.shape[1]})
    reader = _Reader(inputs.channels, label, None, options)
    made = []
    for table in columns.at(path):
        if table is not None:
            columns.check(table, [*inputs.channels, label], f"a column of {path}")
            cut, _ = reader.windows(table, names=names)
            made.append(Examples(cut.inputs, cut.labels))
    return made


@dataclass(frozen=True)
class _Cut:
    """Windows: their readings, labels and clients, and whether they are the last part of a recording."""

    inputs: NDArray[np.float32]
    labels: Indices
    clients: NDArray[Any] | None
    late: NDArray[np.bool_]

    def select(self, chosen: NDArray[Any]) -> _Cut:
        """Return some of the windows."""
        clients = None if self.clients is None else self.clients[chosen]
        return _Cut(self.inputs[chosen], self.labels[chosen], clients, self.late[chosen])


@dataclass(frozen=True)
class _Reader:
    """Cuts a table into windows."""

    channels: Sequence[str]
    label: str
    client: str | None
    options: SeriesOptions

    def windows(
        self, table: Any, *, names: Sequence[str] | None = None, held_out: float = 0.0
    ) -> tuple[_Cut, tuple[str, ...]]:
        """Return a table's windows, and the names of the classes.

        ``late`` are those of the last readings of each recording, ``held_out`` of them; none has readings of
        both parts.
        """
        length, stride = self.options.window, self.options.stride or self.options.window
        readings = np.stack([columns.numbers(table, name) for name in self.channels]).astype(np.float32)
        labels, class_names = columns.labels(table, self.label, names)
        keys: list[Sequence[object]] = []
        if self.client:
            keys.append(columns.owners(table, self.client).tolist())
        if self.options.recording:
            keys.append(columns.texts(table, self.options.recording))
        starts, late = [], []
        for begin, end in _runs(keys, len(labels)):
            split = end - round((end - begin) * held_out)
            early = range(begin, split - length + 1, stride)
            rest = range(split, end - length + 1, stride)
            starts += [*early, *rest]
            late += [False] * len(early) + [True] * len(rest)
        if not starts:
            raise DataError(
                f"no recording has {length} readings, a window: take a smaller data.options.window"
            )
        places = np.array(starts)[:, None] + np.arange(length)
        chosen = _majority(labels[places]) if self.options.label_of == "majority" else labels[places[:, -1]]
        clients = np.array(keys[0], dtype=np.str_)[starts] if self.client else None
        cut = _Cut(readings[:, places].transpose(1, 0, 2).copy(), chosen, clients, np.array(late))
        return cut, class_names


def _runs(keys: Sequence[Sequence[object]], rows: int) -> Iterator[tuple[int, int]]:
    """Yield where each run of rows with equal keys begins and ends."""
    if not rows:
        return
    rows_of = list(zip(*keys, strict=True)) if keys else [()] * rows
    begin = 0
    for row in range(1, rows + 1):
        if row == rows or rows_of[row] != rows_of[begin]:
            yield begin, row
            begin = row


def _majority(labels: Indices) -> Indices:
    """Return the most frequent of each row's labels, the smallest of those that are equally frequent."""
    counts = np.stack([(labels == number).sum(1) for number in range(labels.max() + 1)])
    winners: Indices = counts.argmax(0).astype(np.int64)
    return winners


def _from_npz(request: Request, path: Path) -> Source:
    """Read ``inputs`` (N, C, L), ``labels`` and, if there, ``clients``, ``test_inputs``, ``test_labels``."""
    request.read_options(SourceOptions)
    try:
        with zipfile.ZipFile(path):  # Or NumPy might take it for a single array.
            pass
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"data.path {path} is no .npz file, or damaged ({error})") from error
    tests = ("test_inputs", "test_labels")
    wanted = ("inputs", "labels", *(tests if any(name in arrays for name in tests) else ()))
    if missing := [name for name in wanted if name not in arrays]:
        raise DataError(
            f"{path} has no array {missing[0]!r} (there are {', '.join(arrays)}): make one with "
            "numpy.savez(file, inputs=..., labels=..., clients=...), inputs of shape (N, channels, readings)"
        )
    whole = _checked(path, arrays["inputs"], arrays["labels"], arrays.get("clients"))
    names, numbers = np.unique(whole.labels, return_inverse=True)
    whole = _Cut(whole.inputs, numbers.astype(np.int64), whole.clients, whole.late)
    if "test_inputs" in arrays:
        test = _checked(path, arrays["test_inputs"], arrays["test_labels"], None)
        if unknown := sorted(set(test.labels.tolist()) - set(names.tolist())):
            raise DataError(f"{path}: test_labels have {unknown[0]!r}, which labels have not")
        test = _Cut(test.inputs, np.searchsorted(names, test.labels).astype(np.int64), None, test.late)
        return _source(request, whole, test, tuple(map(str, names)), ())
    train, held = split_without_test(len(whole.labels))
    return _source(request, whole.select(train), whole.select(held), tuple(map(str, names)), ())


def _checked(path: Path, inputs: NDArray[Any], labels: NDArray[Any], clients: NDArray[Any] | None) -> _Cut:
    if inputs.ndim != 3 or inputs.dtype.kind not in "fiu":
        raise DataError(
            f"{path}: inputs are {inputs.dtype} of shape {inputs.shape}, expected numbers of shape "
            "(N, channels, readings)"
        )
    for name, array in (("labels", labels), ("clients", clients)):
        if array is not None and array.shape != (len(inputs),):
            raise DataError(f"{path}: {name} have shape {array.shape}, expected ({len(inputs)},)")
        if array is not None and (missing := int(np.sum(array != array))):  # NaN differs from itself
            raise DataError(f"{path}: {missing} {name} are NaN: leave out windows without one")
    return _Cut(inputs.astype(np.float32), labels, clients, np.zeros(len(inputs), dtype=bool))


def uci_har(request: Request) -> Source:
    """UCI HAR (Anguita et al. 2013), its folder: 6 activities by 9 channels of a phone, 30 subjects."""
    request.read_options(SourceOptions)
    if request.path is None:
        raise DataError(
            f"data set {request.name!r} needs data.path: the unpacked folder 'UCI HAR Dataset' with its "
            "train/ and test/"
        )
    inner = request.path / "UCI HAR Dataset"
    root = inner if inner.is_dir() else request.path
    files = sorted((root / "train" / _HAR_FOLDER).glob("*_train.txt"))
    if not files:
        raise DataError(
            f"data.path {root} has no {Path('train') / _HAR_FOLDER}: expected the layout of UCI HAR"
        )
    channels = tuple(file.name.removesuffix("_train.txt") for file in files)
    try:
        names = [line.split()[1] for line in (root / "activity_labels.txt").read_text().splitlines() if line]
        train, test = (_har_part(root / split, split, channels) for split in ("train", "test"))
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f"data.path {root} is not as UCI HAR is laid out: {error}") from error
    for part in (train, test):
        if not len(part.labels) or part.labels.min() < 0 or part.labels.max() >= len(names):
            raise DataError(f"data.path {root}: its activities must have the numbers 1 to {len(names)}")
    return _source(request, train, test, tuple(names), channels)


def _har_part(folder: Path, split: str, channels: Sequence[str]) -> _Cut:
    signals = [
        np.loadtxt(folder / _HAR_FOLDER / f"{name}_{split}.txt", dtype=np.float32, ndmin=2)
        for name in channels
    ]
    labels = np.loadtxt(folder / f"y_{split}.txt", dtype=np.int64, ndmin=1) - 1
    subjects = np.loadtxt(folder / f"subject_{split}.txt", dtype=np.int64, ndmin=1)
    return _Cut(np.stack(signals, axis=1), labels, subjects, np.zeros(len(labels), dtype=bool))


def _source(
    request: Request, train: _Cut, test: _Cut, class_names: tuple[str, ...], channels: tuple[str, ...]
) -> Source:
    if train.inputs.shape[1:] != test.inputs.shape[1:]:
        raise DataError(
            f"training and test windows must have one shape, and these have {train.inputs.shape[1:]} and "
            f"{test.inputs.shape[1:]}"
        )
    train = train.select(choose(np.arange(len(train.labels)), request.train_examples, request.seed, "train"))
    test = test.select(choose(np.arange(len(test.labels)), request.test_examples, request.seed, "test"))
    _, count, length = train.inputs.shape
    return Source(
        Examples(train.inputs, train.labels),
        Examples(test.inputs, test.labels),
        class_names,
        inputs=Windows((count, length), channels=channels),
        clients=train.clients,
    )
