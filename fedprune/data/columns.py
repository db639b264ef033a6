"""Columns out of tables: CSV and parquet files, and data sets of the hub, as NumPy arrays.

Not for what the columns mean: ``tabular``, ``series``, ``text`` and ``audio`` ask for those that they need.
pyarrow, which the extras ``fedprune[sim]`` and ``fedprune[images]`` bring, is imported inside functions; its
tables are ``Any``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprune.data.source import Request
from fedprune.errors import DataError
from fedprune.wording import did_you_mean

SUFFIXES = (".csv", ".parquet")

_EXPECTED = "expected a .csv or .parquet file, or a folder with train.csv and test.csv (or .parquet)"


def read(request: Request, hub: str | None = None) -> tuple[Any, Any | None]:
    """Return the training table and, where there is one, the test table, as pyarrow has them.

    ``request.path`` is a file, or a folder with files that begin with ``train`` and, maybe, with ``test``.

    Parameters
    ----------
    request
        What the scenario asks for.
    hub
        Where the hub has the data set, for a request without a path.

    Raises
    ------
    DataError
        Where there is nothing to read, or it can't be read.
    """
    return _from_hub(request, hub) if request.path is None else at(request.path)


def at(path: Path) -> tuple[Any, Any | None]:
    """Return the tables that a path holds, as `read` does."""
    if path.is_file():
        return _file(path), None
    train, test = (_files(path, split) for split in ("train", "test"))
    if not train:
        trouble = "has no such files" if path.is_dir() else "does not exist"
        raise DataError(f"data.path {path} {trouble}: {_EXPECTED}")
    return _joined(train), _joined(test) if test else None


def _from_hub(request: Request, hub: str | None) -> tuple[Any, Any | None]:
    from fedprune.data import tables

    if hub is None:
        raise DataError(
            f"data set {request.name!r} needs data.path, a file or folder, or data.options.hub, the name of "
            "a data set on the Hugging Face hub"
        )
    train, test = tables.read(request.name, hub, None)
    return train.with_format("arrow")[:], test.with_format("arrow")[:]


def _files(folder: Path, split: str) -> list[Path]:
    """Return a split's files: ``train.csv``, ``train-00000-of-00002.parquet``, also in a folder ``data``."""
    found = [
        f for place in (folder, folder / "data") for f in place.glob(f"{split}*") if f.suffix in SUFFIXES
    ]
    return sorted(found)


def _joined(files: Sequence[Path]) -> Any:
    import pyarrow as pa

    parts = [_file(file) for file in files]
    for file, part in zip(files, parts, strict=True):
        if set(part.column_names) != set(parts[0].column_names):
            raise DataError(f"{file} has other columns than {files[0].name}: make them the same")
    if len(parts) == 1:
        return parts[0]
    try:
        return pa.concat_tables(parts, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(
            f"{files[0].parent}: columns of {files[0].name} and the files like it differ in type "
            f"({str(error).strip().splitlines()[0]}): make them the same"
        ) from error


def _file(path: Path) -> Any:
    try:
        import pyarrow as pa
        from pyarrow import csv, parquet
    except ImportError as error:
        raise DataError(
            f'{path} needs pyarrow, which is not installed: pip install "fedprune[sim]"'
        ) from error
    if path.suffix not in SUFFIXES:
        raise DataError(f"data.path {path} is of no known format: {_EXPECTED}")
    try:
        if path.suffix == ".parquet":
            return parquet.read_table(path, use_threads=False)
        with path.open("rb") as file:
            if b"\0" in file.read(4096):  # Every other byte of English in UTF-16 is one.
                raise DataError(f"data.path {path} is not UTF-8 text, maybe UTF-16: convert it before")
        # In one block: a column's type is then told by all of its values, not by those of the first megabyte.
        whole = csv.ReadOptions(use_threads=False, block_size=max(1, path.stat().st_size))
        empty = csv.ConvertOptions(strings_can_be_null=True)
        table = csv.read_csv(path, read_options=whole, convert_options=empty)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"data.path {path} can't be read: {str(error).strip().splitlines()[0]}") from error
    for field in table.schema:
        if pa.types.is_binary(field.type):
            raise DataError(f"data.path {path}: column {field.name!r} is not UTF-8 text: convert it before")
    return table


def check(table: Any, names: Sequence[str], setting: str) -> None:
    """Refuse columns that a table has not once; ``setting`` is the scenario's key that names them."""
    for name in names:
        if table.column_names.count(name) > 1:
            raise DataError(f"{setting} is {name!r}: several columns have that name: rename or remove one")
        if name not in table.column_names:
            raise DataError(
                f"{setting} is {name!r}: no such column{did_you_mean(name, table.column_names)} (there are "
                f"{', '.join(table.column_names)})"
            )


def is_number(table: Any, name: str) -> bool:
    """Say whether a column holds numbers; true and false are none."""
    from pyarrow import types

    kind = table.schema.field(name).type
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind))


def is_whole(table: Any, name: str) -> bool:
    """Say whether a column holds whole numbers."""
    from pyarrow import types

    return bool(types.is_integer(table.schema.field(name).type))


def numbers(table: Any, name: str) -> NDArray[np.float64]:
    """Return a column of numbers, float64 (N,), NaN where there is none or none that float32 can hold.

    Raises
    ------
    DataError
        Where it holds something else.
    """
    import pyarrow as pa

    try:
        column = table.column(name).cast(pa.float64())
    except pa.ArrowException as error:
        kind = table.schema.field(name).type
        raise DataError(f"column {name!r} holds {kind}, expected numbers ({error})") from error
    # By DLPack, since `to_numpy` imports pandas where it is installed.
    values = np.asarray(np.from_dlpack(column.combine_chunks().fill_null(float("nan"))), dtype=np.float64)
    return np.where(np.abs(values) <= np.finfo(np.float32).max, values, np.nan)


def texts(table: Any, name: str) -> list[str | None]:
    """Return a column as text, None where there is nothing; whole numbers without a point."""
    values = table.column(name).to_pylist()
    return [None if value is None else str(value) for value in values]


def owners(table: Any, name: str) -> NDArray[np.str_]:
    """Return whose each row is, text (N,).

    Raises
    ------
    DataError
        Where there is no such column, or it leaves a row out.
    """
    check(table, [name], "data.partition.column")
    found = texts(table, name)
    if None in found:
        raise DataError(
            f"data.partition.column {name!r}: row {found.index(None)} has no client: leave out rows without "
            "one"
        )
    return np.array(found, dtype=np.str_)


def labels(
    table: Any, name: str, names: Sequence[str] | None = None
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return class numbers, int64 (N,), and the classes' names, which are the column's values, sorted.

    Parameters
    ----------
    table, name
        The column.
    names
        The classes, where they are known from another table.

    Raises
    ------
    DataError
        Where a value is missing or is none of ``names``.
    """
    values = table.column(name).to_pylist()
    if any(isinstance(value, list | dict) for value in values):
        kind = table.schema.field(name).type
        raise DataError(f"column {name!r} holds {kind}, expected one label a row: text or a number")
    values = [None if value != value else value for value in values]  # NaN alone differs from itself
    if None in values:
        raise DataError(f"column {name!r}: row {values.index(None)} has no label: leave out rows without one")
    if all(isinstance(value, float) and value.is_integer() for value in values):
        values = [int(value) for value in values]  # pandas writes whole numbers so where some are missing
    if names is None:
        names = tuple(map(str, sorted(set(values))))
    number_of = {label: number for number, label in enumerate(names)}
    found = [number_of.get(str(value), -1) for value in values]
    if -1 in found:
        row = found.index(-1)
        shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        raise DataError(
            f"column {name!r}: row {row} has the label {values[row]!r}, which is none of the classes "
            f"to train on, {shown}: leave such rows out"
        )
    return np.array(found, dtype=np.int64), tuple(names)
