"""Inputs that are no images as plain values: how a scenario tells devices what its model takes.

A device with data of its own does not see the data set, and so neither its columns, categories and characters
nor what its values are standardised by. Not for images: ``data.input_shape``, mean and std describe them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fedprune.data.audio import Waveforms
from fedprune.data.dataset import DataInfo
from fedprune.data.inputs import Inputs
from fedprune.data.known import numbered
from fedprune.data.series import Windows
from fedprune.data.standard import Standardised
from fedprune.data.tabular import Columns
from fedprune.data.text import PADDING, UNKNOWN, Characters
from fedprune.errors import DataError
from fedprune.scenario import DataSpec

_KINDS: Mapping[str, type[Inputs]] = {
    "columns": Columns,
    "tokens": Characters,
    "waveforms": Waveforms,
    "windows": Windows,
}


def described(info: DataInfo) -> dict[str, Any] | None:
    """Return what ``data.inputs`` says of a data set; None where a device can't have its like."""
    inputs = info.inputs
    if type(inputs) not in _KINDS.values():
        return None
    return {"kind": inputs.kind, "shape": list(inputs.shape), "task": info.task, **inputs.settings()}


def info_of(spec: DataSpec) -> DataInfo:
    """Return what is known of a data set whose inputs a scenario describes.

    Raises
    ------
    DataError
        Where the description is none that `described` makes.
    """
    settings = dict(spec.inputs or {})
    kind, shape, task = (settings.pop(key, None) for key in ("kind", "shape", "task"))
    try:
        if kind == "tokens":
            settings |= {"vocabulary": len(settings["characters"]) + UNKNOWN + 1, "padding": PADDING}
        values = {name: _frozen(value) for name, value in settings.items()}
        inputs = _KINDS[kind](shape=_frozen(shape), **values)
    except (KeyError, TypeError) as error:
        raise DataError(
            f"data.inputs is not as `fedprune deploy init` writes it ({error}): leave it out there"
        ) from error
    classes = numbered(spec.classes) if isinstance(spec.classes, int) else spec.classes or ()
    return DataInfo(spec.name, inputs, classes, str(task))


def _frozen(value: Any) -> Any:
    """Return plain values as dataclasses have them: tuples of lists, and of the items of mappings."""
    if isinstance(value, dict):
        return tuple((key, _frozen(each)) for key, each in value.items())
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def same_but_for_standardisation(one: Inputs, other: Inputs) -> bool:
    """Say whether inputs are alike but for what they are standardised by."""
    if isinstance(one, Standardised) and isinstance(other, Standardised):
        one, other = (replace(each, mean=(), std=()) for each in (one, other))
    return one == other
