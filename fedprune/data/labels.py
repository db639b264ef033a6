"""Class numbers of labels as people have them: names, numbers from 1 on, yes or no, one-hot rows.

Everything else in fedprune takes classes 0 to K - 1. What a label was called stays as the class's name. Not
for targets that are no classes: see the tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprune.data.known import numbered
from fedprune.errors import DataError
from fedprune.wording import did_you_mean


def flat(labels: Any, where: str) -> NDArray[Any]:
    """Return labels one an example, (N,): whole numbers as int64, text and booleans as they are.

    One-hot rows, (N, K), become the numbers of their columns.

    Parameters
    ----------
    labels
        Numbers, booleans or text, (N,) or one-hot (N, K).
    where
        Whose labels they are, for messages.

    Raises
    ------
    DataError
        Where they are something else.
    """
    array = np.asarray(labels)
    if array.dtype == object and all(isinstance(value, str) for value in array.flat):
        array = array.astype(np.str_)
    if array.ndim == 2:
        return _columns(array, where)
    if array.ndim != 1:
        raise DataError(f"{where}: labels have shape {array.shape}, expected one an example")
    if array.dtype.kind in "UTb":
        return array
    if array.dtype.kind == "f" and np.array_equal(array, np.rint(array)):
        return array.astype(np.int64)
    if array.dtype.kind in "iu":
        return array.astype(np.int64)
    hint = "; for numbers that are to be predicted, say task: regression" if array.dtype.kind == "f" else ""
    raise DataError(
        f"{where}: labels are {array.dtype}, expected whole numbers, text, booleans or one-hot rows{hint}"
    )


def _columns(rows: NDArray[Any], where: str) -> NDArray[np.int64]:
    """Return the column of the one in each one-hot row."""
    one_hot = rows.dtype.kind in "biuf" and rows.shape[1] > 1
    if not one_hot or not ((rows != 0).sum(axis=1) == 1).all() or not (rows.max(axis=1) == 1).all():
        raise DataError(
            f"{where}: labels have shape {rows.shape}, and not every row is one-hot, a single 1 among zeros; "
            "for several labels an example, say task: multilabel"
        )
    columns: NDArray[np.int64] = np.argmax(rows, axis=1).astype(np.int64)
    return columns


def classes(*splits: NDArray[Any]) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Return the different labels in all splits, ascending, and what they are called.

    Parameters
    ----------
    splits
        As `flat` returns them, all of one kind.
    """
    found = np.unique(np.concatenate(splits))
    return found, tuple(map(str, found.tolist()))


def with_classes(
    splits: Sequence[Any], names: Sequence[str], where: str
) -> tuple[list[NDArray[np.int64]], tuple[str, ...]]:
    """Return the class numbers of several splits, and the classes' names.

    Labels that are class numbers already stay as they are. Others are names of classes; or they count from 1;
    or, where there are as many different ones as names, they stand for these in ascending order.

    Parameters
    ----------
    splits
        The labels of each, as `flat` takes them.
    names
        The classes' names, by number; () where a label is its class's name.
    where
        Whose labels they are, for messages.

    Raises
    ------
    DataError
        Where a label is of no class.
    """
    plain = [flat(labels, where) for labels in splits]
    if names and not {"False", "True"} <= set(names):
        plain = [labels.astype(np.int64) if labels.dtype.kind == "b" else labels for labels in plain]
    if len({labels.dtype.kind for labels in plain}) > 1:
        raise DataError(
            f"{where}: labels are of different kinds, {' and '.join(str(p.dtype) for p in plain)}"
        )
    found, called = classes(*plain)
    if not names:
        columns = {np.shape(labels)[1] for labels in splits if np.ndim(labels) == 2}
        names = numbered(max(columns)) if columns else called
    elif found.dtype.kind == "i" and len(found) and not set(called) <= set(names):
        if found[0] < 0 or found[-1] >= len(names):
            if found[0] >= 1 and found[-1] == len(names):
                plain = [labels - 1 for labels in plain]
            elif len(found) == len(names):
                plain = [np.searchsorted(found, labels) for labels in plain]
        return [_in_range(labels, len(names), where) for labels in plain], tuple(names)
    return [numbers(labels, names, where) for labels in plain], tuple(names)


def _in_range(labels: NDArray[Any], count: int, where: str) -> NDArray[np.int64]:
    """Return class numbers as int64; refuse any that is none."""
    if len(labels) and (labels.min() < 0 or labels.max() >= count):
        raise DataError(
            f"{where}: labels go from {labels.min()} to {labels.max()}, and there are {count} classes, "
            f"0 to {count - 1}"
        )
    return labels.astype(np.int64)


def numbers(labels: NDArray[Any], names: Sequence[str], where: str) -> NDArray[np.int64]:
    """Return class numbers, int64 (N,), of labels whose classes have names.

    Text and booleans are looked up among the names. So are whole numbers where every class is named by one;
    else they are class numbers already.

    Parameters
    ----------
    labels
        As `flat` returns them.
    names
        By class number.
    where
        Whose labels they are, for messages.

    Raises
    ------
    DataError
        Where a label is of no class.
    """
    whole = all(name.removeprefix("-").isdecimal() for name in names)
    by_number = not whole or tuple(names) == numbered(len(names))
    if labels.dtype.kind in "iu" and by_number:
        return _in_range(labels, len(names), where)
    found, places = np.unique(labels, return_inverse=True)
    number_of = {name: number for number, name in enumerate(names)}
    known = [number_of.get(str(value), -1) for value in found.tolist()]
    if -1 in known:
        unknown = found.tolist()[known.index(-1)]
        raise DataError(f"{where}: label {unknown!r} is none of the classes, {_some(names)}")
    return np.array(known, dtype=np.int64)[places]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def renumbered(wanted: Sequence[str], names: Sequence[str], where: str) -> NDArray[np.int64]:
    """Return the number of each class among those that are wanted, int64 (len(names),); -1 of the others.

    Parameters
    ----------
    wanted
        Names of classes, in the order of their new numbers.
    names
        Those of all classes, by number.
    where
        Whose classes they are, for messages.

    Raises
    ------
    DataError
        Where a wanted name is none of them.
    """
    number_of = np.full(len(names), -1, dtype=np.int64)
    for number, name in enumerate(wanted):
        if name not in names:
            raise DataError(
                f"data.classes: {where} has no class {name!r}{did_you_mean(name, names)} (its classes: "
                f"{_some(names)})"
            )
        number_of[names.index(name)] = number
    return number_of
