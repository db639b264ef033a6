"""A client's images out of image files: a folder a class, or a parquet table in the form of the hub.

Pillow and pyarrow, which the extra ``fedprune[images]`` installs, are imported inside functions. All
images are decoded into one array; nothing else of a file stays in memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprune.data import decoding
from fedprune.data.dataset import Examples
from fedprune.data.expected import Expected
from fedprune.data.known import KNOWN, numbered
from fedprune.data.tables import called_labels, pick_column
from fedprune.errors import DataError
from fedprune.wording import did_you_mean

_SUFFIXES = (".png", ".jpg", ".jpeg")

# Rows of a table that are in memory at a time, still encoded.
_ROWS_AT_ONCE = 256


def read_folder(path: Path, expected: Expected) -> tuple[Examples, Examples | None]:
    """Return the images in ``<class>/``, or in ``train/<class>/`` and ``test/<class>/``.

    They come by class number, then by file name. Test images are read where the scenario's clients test.

    Raises
    ------
    DataError
        Where a folder is not named as a class, holds something else, or an image is not as expected.
    """
    root, test_root = _parts(path)
    wanted = test_root is not None and expected.test_fraction > 0
    files = _files(root, expected)
    expected.check_count(len(files), str(path))
    train = _decode_files(files, path, expected)
    if test_root is None or not wanted:
        return train, None
    files = _files(test_root, expected)
    if not files:
        raise DataError(f"{test_root} holds no images: leave it out, or put images in")
    return train, _decode_files(files, test_root, expected)


def _parts(path: Path) -> tuple[Path, Path | None]:
    """Return the folder whose folders are classes, and the same of test images where there is one."""
    train, test = path / "train", path / "test"
    if not (train.is_dir() and _entries(train, folders=True)):
        return path, None
    if others := {entry.name for entry in _entries(path, folders=True)} - {"train", "test"}:
        raise DataError(f"{path} has a folder {min(others)!r} beside train/: expected train/ and test/ alone")
    return train, test if test.is_dir() else None


def _entries(folder: Path, *, folders: bool) -> list[os.DirEntry[str]]:
    """Return the folders, or the files, in a folder by name; hidden ones count as not there."""
    with os.scandir(folder) as entries:
        found = [e for e in entries if not e.name.startswith(".") and e.is_dir() == folders]
    return sorted(found, key=lambda entry: entry.name)


def _files(root: Path, expected: Expected) -> list[tuple[str, int]]:
    """Return every image's path and class number."""
    if stray := [e.name for e in _entries(root, folders=False) if e.name.lower().endswith(_SUFFIXES)]:
        raise DataError(f"{root / stray[0]} is in no class: put images into folders named as their classes")
    number_of = {name: number for number, name in enumerate(expected.info.class_names)}
    files: list[tuple[str, int]] = []
    for folder in sorted(_entries(root, folders=True), key=lambda e: number_of.get(e.name, -1)):
        if folder.name not in number_of:
            raise _unknown_class(f"folder {folder.path}", folder.name, expected)
        for entry in sorted(os.scandir(folder.path), key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir() or not entry.name.lower().endswith(_SUFFIXES):
                raise DataError(f"{entry.path} is no {', '.join(_SUFFIXES)} file: take it out of there")
            files.append((entry.path, number_of[folder.name]))
    return files


def _unknown_class(what: str, name: str, expected: Expected) -> DataError:
    names = expected.info.class_names
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    return DataError(
        f"{what} is named as no class of the scenario{did_you_mean(name, names)} (its classes: {shown}; "
        "data.classes names them)"
    )


def _decode_files(files: Sequence[tuple[str, int]], where: Path, expected: Expected) -> Examples:
    expected.check_memory(len(files), str(where))
    decoded = np.empty((len(files), *expected.info.image_shape), expected.dtype)
    for number, (file, _) in enumerate(files):
        decoded[number] = _decode(file, expected, file)
    return Examples(decoded, np.array([label for _, label in files], dtype=np.int64))


def _decode(file: str | BytesIO, expected: Expected, what: str) -> NDArray[Any]:
    """Decode an image as ``datasets`` does, turned as its Exif tag says, to (C, H, W) as is expected."""
    try:
        from PIL import ExifTags, Image, ImageOps
    except ImportError as error:
        raise missing_package("images", "Pillow") from error
    shape, bits, form = expected.info.image_shape, expected.bits, expected.form
    try:
        with Image.open(file) as image:
            if image.height * image.width != shape[1] * shape[2]:
                decoding.check(image, shape, bits, form, what)  # before it takes memory
            image.load()
            turned: Any = image
            if image.getexif().get(ExifTags.Base.Orientation) is not None:
                turned = ImageOps.exif_transpose(image)
            decoding.check(turned, shape, bits, form, what)
            return form.array(turned, shape[0], bits)
    except DataError:
        raise
    except Exception as error:  # whatever Pillow's readers raise, from struct.error to SyntaxError
        raise DataError(
            f"{what} can't be read as an image ({decoding.why_unreadable(error)}): repair it or take it out"
        ) from error


def read_parquet(path: Path, expected: Expected) -> tuple[Examples, None]:
    """Return the images of a table with a column of images and one of labels.

    Images are structs {bytes, path}, or their bytes alone.

    Labels are class numbers, or the classes' names; see `fedprune.data.labels`.


    Raises
    ------
    DataError
        Where the file or an image can't be read, a column can't be told, or something is not as expected.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise missing_package(".parquet files", "pyarrow") from error
    try:
        with pq.ParquetFile(path, memory_map=True) as table:
            image, label = _columns(table.schema_arrow, path, expected)
            examples = table.metadata.num_rows
            expected.check_count(examples, str(path))
            labels = _labels(table, label, path, expected)
            expected.check_memory(examples, str(path))
            decoded = np.empty((examples, *expected.info.image_shape), expected.dtype)
            for number, encoded in enumerate(_encoded(table, image)):
                what = f"{path}, image {number}"
                if encoded is None:
                    raise DataError(f"{what} has no bytes: save the table with its images embedded")
                decoded[number] = _decode(BytesIO(encoded), expected, what)
    except PermissionError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is no .parquet file, or damaged ({error})") from error
    return Examples(decoded, labels), None


def _columns(schema: Any, path: Path, expected: Expected) -> tuple[str, str]:
    """Return the names of the columns of images and of labels."""
    from pyarrow import types

    known = KNOWN.get(expected.info.name)
    image = pick_column(
        schema.names,
        [field.name for field in schema if _holds_images(field.type)]
        or [field.name for field in schema if _holds_bytes(field.type)],
        expected.image_column,
        known.image_column if known else None,
        "images",
        "data.image_column",
    )
    kind = schema.field(image).type
    if not (_holds_images(kind) or _holds_bytes(kind)):
        raise DataError(
            f"{path}: column {image!r} is {kind}, expected images in the form of the hub, a struct of bytes "
            "and path, or their bytes alone"
        )
    others = [field for field in schema if field.name != image]
    numbers = [field.name for field in others if types.is_integer(field.type)]
    label = pick_column(
        schema.names,
        called_labels(field.name for field in others)
        or numbers
        or [field.name for field in others if _is_text(field.type)],
        expected.label_column,
        known.label_column if known else None,
        "class labels",
        "data.label_column",
    )
    return image, label


def _holds_images(kind: Any) -> bool:
    """Say whether an Arrow type is the hub's of images."""
    from pyarrow import types

    if not types.is_struct(kind):
        return False
    inner = {kind.field(number).name: kind.field(number).type for number in range(kind.num_fields)}
    return "bytes" in inner and _holds_bytes(inner["bytes"])


def _holds_bytes(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind))


def _labels(table: Any, column: str, path: Path, expected: Expected) -> NDArray[np.int64]:
    from pyarrow import types

    where = f"{path}, column {column!r}"
    names = expected.info.class_names
    own = _names_of_hub(table, column)
    if own is not None and names != numbered(len(names)) and own != names:
        raise DataError(
            f"{where} numbers the classes {', '.join(own)}, and the scenario's are {', '.join(names)}: "
            "number them alike, or give the labels as text"
        )
    # By DLPack, since `to_numpy` imports pandas where it is installed.
    values = table.read(columns=[column], use_threads=False).column(0).combine_chunks()
    if values.null_count:
        raise DataError(f"{where}: {values.null_count} images have no label: leave them out")
    if _is_text(values.type):
        number_of = {name: number for number, name in enumerate(names)}
        encoded = values.dictionary_encode()
        given = encoded.dictionary.to_pylist()
        for name in given:
            if name not in number_of:
                raise _unknown_class(f"{where}: label {name!r}", name, expected)
        numbers = np.array([number_of[name] for name in given], dtype=np.int64)
        return numbers[np.from_dlpack(encoded.indices).astype(np.int64)]
    plain = np.from_dlpack(values) if types.is_integer(values.type) else np.asarray(values.to_pylist())
    return expected.labels(plain, len(values), where)


def _names_of_hub(table: Any, column: str) -> tuple[str, ...] | None:
    """Return the names that ``datasets`` writes beside a column of class numbers, if it did."""
    try:
        features = json.loads(table.schema_arrow.metadata[b"huggingface"])["info"]["features"]
        return tuple(features[column]["names"])
    except (KeyError, TypeError, ValueError):
        return None


def _encoded(table: Any, column: str) -> Iterator[bytes | None]:
    """Yield the bytes of each image, a batch of rows in memory at a time."""
    alone = _holds_bytes(table.schema_arrow.field(column).type)
    wanted = column if alone else f"{column}.bytes"
    for batch in table.iter_batches(_ROWS_AT_ONCE, columns=[wanted], use_threads=False):
        for value in batch.column(0) if alone else batch.column(0).field("bytes"):
            yield value.as_py()


def missing_package(what: str, package: str) -> DataError:
    """Return the error for a format whose reader is not installed."""
    return DataError(f'{what} need {package}, which is not installed: pip install "fedprune[images]"')
