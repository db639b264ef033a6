"""Files that describe devices: profiles by name in YAML, and a trace with a row for each client in CSV.

This module reads them into plain validated numbers, and complains by file and line. Which client has which
device is said in a scenario (`fedprune.scenario`) and worked out in `fedprune.costs.devices`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedprune.errors import ScenarioError
from fedprune.scenario import yaml_file as documents
from fedprune.scenario.validation import explain
from fedprune.scenario.yaml_file import KeyPath
from fedprune.units import ByteRate, Bytes, FlopRate
from fedprune.wording import known_here, show


class DeviceNumbers(BaseModel):
    """What is known of a device, in bytes, FLOP/s, bytes/s, joules and chances."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    memory: Bytes = Field(description="Memory in bytes, or with a unit: 64 MiB.")
    compute: FlopRate = Field(description="Sustained rate in FLOP per second, or with a unit: 2 GFLOP/s.")
    downlink: ByteRate = Field(description="Receiving rate in bytes per second, or with a unit: 20 Mbit/s.")
    uplink: ByteRate = Field(description="Sending rate in bytes per second, or with a unit: 5 Mbit/s.")
    availability: float = Field(1.0, ge=0, le=1, description="Chance of being online in a round.")
    dropout: float = Field(0.0, ge=0, le=1, description="Chance of vanishing inside a round.")
    joules_per_flop: float | None = Field(None, ge=0, description="Energy of a FLOP in joules.")
    joules_per_byte: float | None = Field(None, ge=0, description="Energy of a byte sent or received.")


class _Entry(DeviceNumbers):
    """An entry of a profiles file, without the sources of its numbers."""

    device: str = Field("", description="What the device is.")


class _Row(DeviceNumbers):
    """A row of a trace."""

    name: str | None = Field(None, min_length=1, description="How results call the device.")


@dataclass(frozen=True)
class ProfileEntry:
    """A profile as a file has it: its numbers, and where they come from."""

    numbers: DeviceNumbers
    source: str


def read_profiles(path: Path) -> dict[str, ProfileEntry]:
    """Read a file of device profiles, in the form of the built-in ``costs/profiles.yaml``.

    A number is given as it is or, with its source, as ``{value: 64 MiB, source: datasheet}``.

    Raises
    ------
    ScenarioError
        Where it can't be read or an entry is not right; a line for each mistake, with file and line.
    """
    content, origin = documents.read(path)
    entries: dict[str, ProfileEntry] = {}
    mistakes: list[tuple[KeyPath, str]] = []
    for name, written in content.items():
        plain, sources, wrong = _unwrapped(written)
        mistakes += [((name, *key), message) for key, message in wrong]
        if wrong:
            continue
        try:
            entry = _Entry.model_validate(plain)
        except ValidationError as error:
            mistakes += [((name, *key), message) for key, message in explain(error, _Entry)]
            continue
        told = "; ".join(f"{key}: {source}" for key, source in sources.items())
        numbers = DeviceNumbers(**entry.model_dump(exclude={"device"}))
        entries[name] = ProfileEntry(numbers, ". ".join(text for text in (entry.device, told) if text))
    if mistakes:
        raise ScenarioError("\n".join(origin.complaint(*mistake) for mistake in mistakes))
    return entries


def _unwrapped(entry: object) -> tuple[object, dict[str, str], list[tuple[KeyPath, str]]]:
    """Return an entry with plain numbers, the sources of these, and what is wrong with how they are given."""
    if not isinstance(entry, Mapping):
        example = "{memory: 64 MiB, compute: 2 GFLOP/s, downlink: 20 Mbit/s, uplink: 5 Mbit/s}"
        return entry, {}, [((), f"{show(entry)} is no device: write its numbers, for example {example}")]
    plain: dict[str, Any] = {}
    sources: dict[str, str] = {}
    wrong: list[tuple[KeyPath, str]] = []
    for key, given in entry.items():
        if not isinstance(given, Mapping):
            plain[key] = given
        elif "value" not in given or given.keys() - {"value", "source"}:
            message = f"{show(given)} has other keys than value and source: write {{value: ..., source: ...}}"
            wrong.append(((key,), message))
        else:
            plain[key] = given["value"]
            sources[key] = str(given.get("source", "no source given"))
    return plain, sources, wrong


def read_trace(path: Path) -> list[dict[str, Any]]:
    """Read a trace: a CSV file with a row for each client, in the order of their numbers.

    The columns are ``memory``, ``compute``, ``downlink`` and ``uplink``, in bytes, FLOP/s and bytes/s or with
    units, and where wanted ``availability``, ``dropout``, ``joules_per_flop``, ``joules_per_byte`` and
    ``name``. An empty field is one that is not given.

    Returns
    -------
    list
        For each client, column -> value of what its row gives, in base units.

    Raises
    ------
    ScenarioError
        Where it can't be read or a row is not right; a line for each mistake, with file and line.
    """
    rows = _rows(path)
    line, header = next(rows, (1, []))
    columns = [column.strip() for column in header]
    _check_header(columns, f"{path}:{line}")
    clients: list[dict[str, Any]] = []
    mistakes: list[str] = []
    for line, fields in rows:
        place = f"{path}:{line}"
        if len(fields) != len(columns):
            mistakes.append(
                f"{place}: has {len(fields)} fields, expected {len(columns)}: {', '.join(columns)}"
            )
            continue
        given = {
            column: text if column == "name" else _number(text)
            for column, field in zip(columns, fields, strict=True)
            if (text := field.strip())
        }
        try:
            clients.append(_Row.model_validate(given).model_dump(exclude_unset=True))
        except ValidationError as error:
            mistakes += [f"{place}: {documents.dotted(key)}: {what}" for key, what in explain(error, _Row)]
    if not clients and not mistakes:
        mistakes.append(f"{path}: has no rows below its header: write a row for each client")
    if mistakes:
        raise ScenarioError("\n".join(mistakes))
    return clients


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, fields) of every row of a CSV file that is not empty."""
    reader = csv.reader(io.StringIO(documents.read_text(path), newline=""), strict=True)
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                yield reader.line_num, fields
    except csv.Error as error:
        raise ScenarioError(f"{path}:{reader.line_num}: not valid CSV: {error}") from None


def _check_header(columns: list[str], place: str) -> None:
    known = list(_Row.model_fields)
    needed = [name for name, field in _Row.model_fields.items() if field.is_required()]
    mistakes = [
        f"no such column {column!r}{known_here(column, known, '')}"
        for column in dict.fromkeys(columns)
        if column not in known
    ]
    mistakes += [f"column {column} is there twice" for column in known if columns.count(column) > 1]
    if missing := [column for column in needed if column not in columns]:
        mistakes.append(f"the header lacks {', '.join(missing)}: the first line names the columns")
    if mistakes:
        raise ScenarioError("\n".join(f"{place}: {mistake}" for mistake in mistakes))


def _number(text: str) -> float | str:
    """Return a number for text that is one; what has a unit stays text."""
    try:
        return float(text)
    except ValueError:
        return text
