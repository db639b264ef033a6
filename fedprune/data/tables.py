"""Labelled images out of Hugging Face ``datasets``: the hub, or local parquet, arrow and image files.

Not for knowing single data sets: their names and columns are in ``sources``. ``datasets`` is imported inside
functions, since only the extra ``fedprune[sim]`` installs it. Its tables are ``Any``: it ships no types.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprune.data import decoding, labels
from fedprune.data.decoding import Form
from fedprune.data.known import numbered
from fedprune.data.mapped import MappedColumn
from fedprune.data.partition import split_without_test
from fedprune.errors import DataError
from fedprune.wording import did_you_mean

# Seconds that the hub may take to say that it is there.
HUB_TIMEOUT = 5.0

# Images decoded at a time: enough to hide the cost of reading a slice, few enough to need no memory.
_DECODED_AT_ONCE = 256

# Images read at a time where the first often tells all.
_LOOKED_AT_AT_ONCE = 16

# Names of columns that hold labels, in small letters.
_LABEL_NAMES = {"label", "labels", "target", "class", "y"}

# Rows in which the first image is looked for, to tell what a column holds.
_ROWS_TO_TELL = 100

_EXPECTED = (
    "expected a .parquet or .arrow file, a folder of such files, or one of images in train/<class>/ and "
    "test/<class>/"
)


def missing_extra(what: str, package: str) -> DataError:
    """Return the error for a data set whose reader is not installed."""
    return DataError(
        f'data set {what!r} needs {package}, which is not installed: pip install "fedprune[sim]"'
    )


def read(name: str, hub_name: str, path: Path | None) -> tuple[Any, Any]:
    """Return the training and the test images as two ``datasets.Dataset``; nothing is decoded yet.

    Parameters
    ----------
    name
        What a person calls the data set, for messages.
    hub_name
        Where the hub has it, read if ``path`` is None.
    path
        A local file or folder.

    Raises
    ------
    DataError
        Where there is nothing usable, or the hub can't be reached (within some seconds).
    """
    try:
        import datasets
    except ImportError as error:
        raise missing_extra(name, "datasets") from error
    with quiet():
        splits = _from_hub(datasets, name, hub_name) if path is None else _from_path(datasets, path)
    return _train_and_test(splits, path or hub_name)


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the progress bars of ``datasets``."""
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _from_path(datasets: ModuleType, path: Path) -> dict[str, Any]:
    if not path.exists():
        raise DataError(f"data.path {path} does not exist: {_EXPECTED}")
    try:
        if path.is_file():
            return _from_file(datasets, path)
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            saved = datasets.load_from_disk(str(path))
            return dict(saved) if isinstance(saved, dict) else {"train": saved}
        return dict(datasets.load_dataset(str(path)))
    except DataError:
        raise
    except Exception as error:  # whatever a reader of any format raises, from pyarrow's to PIL's
        raise DataError(f"data.path {path} can't be read ({_first_line(error)}): {_EXPECTED}") from error


def _from_file(datasets: ModuleType, path: Path) -> dict[str, Any]:
    if path.suffix not in {".parquet", ".arrow"}:
        raise DataError(f"data.path {path} is of no known format: {_EXPECTED}")
    return dict(datasets.load_dataset(path.suffix[1:], data_files={"train": str(path)}))


def _from_hub(datasets: ModuleType, name: str, hub_name: str) -> dict[str, Any]:
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    # `load_dataset` tries an unreachable hub for half a minute or more; one request tells as much at once.
    try:
        HfApi().dataset_info(hub_name, timeout=HUB_TIMEOUT)
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise DataError(f"there is no public data set {hub_name!r} on the Hugging Face hub") from error
    except (OSError, httpx.HTTPError) as error:
        return _from_cache(datasets, name, hub_name, _first_line(error))
    try:
        return dict(datasets.load_dataset(hub_name))
    except Exception as error:  # whatever the hub's client, a reader or the data set's own making raises
        raise DataError(f"the hub's data set {hub_name!r} can't be loaded: {_first_line(error)}") from error


def _from_cache(datasets: ModuleType, name: str, hub_name: str, trouble: str) -> dict[str, Any]:
    try:
        with _offline(datasets):
            return dict(datasets.load_dataset(hub_name))
    except Exception as error:
        raise DataError(
            f"data set {name!r} was not loaded before, and the Hugging Face hub can't be reached "
            f"({trouble}). Give local files, `data: {{name: {name}, path: ...}}`: {_EXPECTED}"
        ) from error


@contextmanager
def _offline(datasets: ModuleType) -> Iterator[None]:
    """Have ``datasets`` look in its cache only."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _train_and_test(splits: dict[str, Any], where: Path | str) -> tuple[Any, Any]:
    if "train" not in splits and len(splits) == 1:
        splits = {"train": next(iter(splits.values()))}
    if "train" not in splits:
        raise DataError(f"{where} has no split 'train', only {', '.join(map(repr, splits))}")
    train = splits["train"]
    test = splits.get("test", splits.get("validation"))
    if test is None:
        train_indices, test_indices = split_without_test(len(train))
        train, test = train.select(train_indices), train.select(test_indices)
    if test.features != train.features:
        raise DataError(f"{where}: the columns of its test split, {test.features}, are not those of train")
    if not (len(train) and len(test)):
        raise DataError(f"{where} has {len(train)} training and {len(test)} test images: both need some")
    return train, test


def image_column(table: Any, wanted: str | None, usual: str | None) -> str:
    """Return the name of the column with images: as wanted, as usual, or the only one that holds any.

    Those are columns of the type of images, of structs ``{bytes, path}`` as other writers of parquet leave
    them, or of bytes that an image begins with.
    """
    from datasets import Image

    features = table.features
    fitting = [name for name, feature in features.items() if isinstance(feature, Image)]
    fitting = fitting or [name for name in features if _encoded_images(table, name)]
    return pick_column(list(features), fitting, wanted, usual, "images", "data.image_column")


def _encoded_images(table: Any, column: str) -> bool:
    """Say whether a column that is not marked as images holds encoded ones: the first that is there tells."""
    feature = table.features[column]
    kind = feature.get("bytes") if isinstance(feature, dict) else feature
    if getattr(kind, "dtype", None) not in ("binary", "large_binary"):
        return False
    for value in islice(table.select_columns([column]), _ROWS_TO_TELL):
        encoded = value[column]["bytes"] if isinstance(feature, dict) and value[column] else value[column]
        if encoded:
            return decoding.is_image(encoded)
    return False


def label_column(table: Any, wanted: str | None, usual: str | None) -> str:
    """Return the name of the column with labels: as wanted, as usual, or the only one that has any.

    Those are columns of the type of class labels or, without any, that are called as labels usually are.
    """
    from datasets import ClassLabel

    features = table.features
    fitting = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    fitting = fitting or called_labels(features)
    return pick_column(list(features), fitting, wanted, usual, "class labels", "data.label_column")


def called_labels(columns: Iterable[str]) -> list[str]:
    """Return those of the columns that are called as labels usually are."""
    return [name for name in columns if name.lower() in _LABEL_NAMES]


def pick_column(
    columns: Sequence[str],
    fitting: Sequence[str],
    wanted: str | None,
    usual: str | None,
    what: str,
    setting: str,
) -> str:
    """Return a column: as wanted, as usual, or the only fitting one.

    Parameters
    ----------
    columns
        All there are.
    fitting
        Those whose type or name marks them as ``what``.
    wanted, usual
        Names that the scenario and the data set's source give, if they do.
    what, setting
        What the column holds and the scenario's key for its name, for messages.

    Raises
    ------
    DataError
        Where the wanted one is not there, or none or several fit.
    """
    there = ", ".join(columns)
    if wanted is not None:
        if wanted not in columns:
            raise DataError(
                f"{setting} is {wanted!r}: no such column{did_you_mean(wanted, columns)} (there are {there})"
            )
        return wanted
    if usual in columns:
        return str(usual)
    if len(fitting) != 1:
        trouble = f"{', '.join(fitting)} all hold {what}" if fitting else f"no column is marked as {what}"
        raise DataError(f"{trouble}: name the right one in {setting} (there are {there})")
    return fitting[0]


def owners(table: Any, column: str) -> NDArray[Any]:
    """Return whose each row is, (N,), as text or numbers.

    Raises
    ------
    DataError
        Where there is no such column, or it leaves a row out.
    """
    pick_column(list(table.features), (), column, None, "clients", "data.partition.column")
    values = table.select_columns([column])[column][:]
    if missing := sum(value is None for value in values):
        raise DataError(
            f"data.partition.column {column!r}: {missing} examples have no client: leave them out"
        )
    found = np.asarray(values)
    if found.ndim != 1 or found.dtype.kind not in "iufUb":
        raise DataError(
            f"data.partition.column {column!r} holds {table.features[column]}: expected text or numbers"
        )
    return found


def class_names(train: Any, test: Any, column: str) -> tuple[str, ...]:
    """Return the names of the classes, in the order of their numbers.

    A column that does not know its classes has the values that are in either split, sorted; one of one-hot
    rows has the numbers of their columns.

    Raises
    ------
    DataError
        Where they are no labels.
    """
    if hasattr(train.features[column], "names"):
        return tuple(train.features[column].names)
    where = _where(column)
    if hasattr(train.features[column], "feature"):  # A list in each row.
        labels.flat(train[column][:], where)
        return numbered(len(train[0][column]))
    # Alone: to find them among the images, `datasets` would copy these.
    with quiet():
        different = [split.select_columns([column]).unique(column) for split in (train, test)]
    found = [[value for value in values if value is not None] for values in different]
    return labels.classes(*(labels.flat(values, where) for values in found if values))[1]


def _where(column: str) -> str:
    return f"data.label_column {column!r}"


def class_numbers(table: Any, column: str, names: Sequence[str]) -> NDArray[np.int64]:
    """Return the class numbers, int64 (N,).

    Raises
    ------
    DataError
        Where an image has no label, or one that is not among ``names``.
    """
    values = table[column][:]
    missing = np.array([value is None for value in values], dtype=bool)
    if hasattr(table.features[column], "names"):
        numbers = np.asarray([-1 if value is None else value for value in values], dtype=np.int64)
        missing |= (numbers < 0) | (numbers >= len(names))
    if missing.any():
        raise DataError(
            f"{missing.sum()} images, the first of them image {missing.argmax()}, have no label of the "
            f"{len(names)} classes in column {column!r}: leave out a split without labels"
        )
    if hasattr(table.features[column], "names"):
        return numbers
    where = _where(column)
    return labels.numbers(labels.flat(values, where), names, where)


def numbers(table: Any, column: str) -> NDArray[np.float32]:
    """Return numbers to predict, float32 (N,) or, of lists of equal length, (N, D).

    Raises
    ------
    DataError
        Where the column holds something else, or an image has none.
    """
    where = f"{_where(column)} of numbers to predict"
    if hasattr(table.features[column], "names"):
        raise DataError(f"{where}: holds classes; for these, leave out task, or name another one")
    values = table[column][:]
    if missing := sum(value is None for value in values):
        raise DataError(f"{where}: {missing} images have none: leave them out")
    try:
        return np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: holds {table.features[column]}") from error


def pixels(table: Any, column: str, shape: tuple[int, int, int], bits: int, form: Form) -> NDArray[Any]:
    """Decode a column to (N, C, H, W) of ``shape``, uint8 or uint16 by its bits.

    Raises
    ------
    DataError
        Where an image can't be decoded, or does not become that by the form.
    """
    fitted = np.empty((len(table), *shape), np.uint8 if bits == 8 else np.uint16)
    for number, image in enumerate(_decoded(table, column)):
        decoding.check(image, shape, bits, form, f"image {number}")
        fitted[number] = form.array(image, shape[0], bits)
    return fitted


@dataclass(frozen=True, eq=False)
class LazyImages:
    """A column of images that are decoded as they are asked for; of a mapped table nothing else is read.

    Attributes
    ----------
    table
        ``datasets.Dataset``.
    column
        Its column.
    image_shape, bits
        (C, H, W) and bits of a value of the images.
    form
        What they are made.
    """

    table: Any
    column: str
    image_shape: tuple[int, int, int]
    bits: int
    form: Form

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""
        return (len(self.table), *self.image_shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8 or uint16."""
        return np.dtype(np.uint8 if self.bits == 8 else np.uint16)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, chosen: NDArray[np.int64]) -> NDArray[Any]:
        """Return the images at ``chosen``, decoded."""
        made = np.empty((len(chosen), *self.image_shape), self.dtype)
        for place, value in enumerate(self._stored.values(chosen)):
            what = f"image {chosen[place]}"
            image = _image(value, what)
            decoding.check(image, self.image_shape, self.bits, self.form, what)
            made[place] = self.form.array(image, self.image_shape[0], self.bits)
        return made

    @cached_property
    def _stored(self) -> MappedColumn:
        """The column as it is stored, encoded."""
        return MappedColumn(_encoded(self.table, self.column), self.column)


def _encoded(table: Any, column: str) -> Any:
    """Return a column alone, whose rows come as tables of Arrow, not decoded."""
    return table.select_columns([column]).with_format("arrow")


def _image(value: Any, what: str) -> Any:
    """Return the PIL image of a stored value: bytes, or a struct of bytes and path."""
    from datasets import Image

    found = {"bytes": value, "path": None} if isinstance(value, bytes) else value
    try:
        return Image().decode_example(found)
    except (OSError, TypeError, ValueError) as error:
        raise DataError(f"{what} can't be read as an image: {decoding.why_unreadable(error)}") from error


def all_pixels(splits: Sequence[Any], column: str, form: Form) -> list[NDArray[Any]]:
    """Decode a column of all splits to arrays (N, C, H, W), alike but for N.

    C = 1 where all images are grey, else 3 (red, green, blue); uint16 where they are grey and one has 16
    bits, else uint8; or as the form says.

    Raises
    ------
    DataError
        Where an image can't be decoded, has no whole numbers, or another size than the first.
    """
    growing = decoding.Growing(map(len, splits), form)
    for part, (split, name) in enumerate(zip(splits, ("", "test "), strict=True)):
        for number, image in enumerate(_decoded(split, column)):
            growing.put(part, number, image, f"{name}image {number}")
    return growing.arrays


def shape(splits: Sequence[Any], column: str, form: Form) -> tuple[tuple[int, int, int], int]:
    """Return (C, H, W) and bits of the images of all splits, decoding up to the first in colour.

    Raises
    ------
    DataError
        As `all_pixels`.
    """
    growing = decoding.Growing((), form)
    values = (
        value
        for split in splits
        for few in _encoded(split, column).iter(_LOOKED_AT_AT_ONCE)
        for value in few[column].to_pylist()
    )
    for number, value in enumerate(values):
        if growing.see(_image(value, f"image {number}"), f"image {number}"):
            break
    return growing.shape, growing.stored[1]


def _decoded(table: Any, column: str) -> Iterator[Any]:
    """Yield the images of a column as PIL images."""
    from datasets import Image

    try:
        with quiet():
            images = table.select_columns([column]).cast_column(column, Image())
        for slice_ in images.iter(_DECODED_AT_ONCE):
            yield from slice_[column]
    except (OSError, TypeError, ValueError) as error:
        raise DataError(
            f"column {column!r} holds something that is no image: {decoding.why_unreadable(error)}"
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
