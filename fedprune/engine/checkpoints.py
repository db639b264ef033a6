"""Checkpoints: all that the later rounds of a run depend on, on disk, whole or not at all.

A checkpoint is a folder ``checkpoints/round-000012`` of a run folder with three plain files:
``manifest.json`` (versions, the scenario, and what is remembered as a tree of plain values),
``tensors.safetensors`` (the tensors and byte strings of that tree) and ``SHA256SUMS``, which
``sha256sum -c`` checks, too. It is written beside, flushed to disk and then renamed, after the
records of its round: whenever a run is killed, its newest checkpoint is whole and its records go at
least as far. The newest two are kept. What is remembered is for those who remember it:
`fedprune.server.strategy` and the grid.

Nothing here is pickled. One part of the tree may be: the stock Flower strategy of a
`FlowerAggregator` hands over bytes that it pickled itself. So resume only runs that you trust.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
from torch import Tensor

from fedprune import __version__
from fedprune.costs.ledger import RoundRecord, TaskRecord
from fedprune.errors import UserError
from fedprune.results.folder import CHECKPOINTS, CLIENTS, ROUNDS, RunFolder
from fedprune.scenario import Scenario
from fedprune.wording import show

#: Another format is refused; count it up with every change of what a checkpoint holds.
FORMAT = 4
KEPT = 2

_MANIFEST, _TENSORS, _SUMS = "manifest.json", "tensors.safetensors", "SHA256SUMS"
_TENSOR, _BYTES = "$tensor", "$bytes"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it was read: its folder, the round after which it was made, and what it holds."""

    path: Path
    round: int
    content: dict[str, Any]


class Checkpoints:
    """Writes the checkpoints of a run; a `fedprune.costs.ledger.Listener`, to be told last.

    Parameters
    ----------
    folder : RunFolder
        The run's folder, which has heard of the round before.
    content : Callable[[], dict[str, Any]]
        Returns what is to be remembered, called when a round has ended: see `write`.
    """

    def __init__(self, folder: RunFolder, content: Callable[[], dict[str, Any]]) -> None:
        self._folder = folder
        self._content = content

    def on_task(self, task: TaskRecord) -> None:
        """Do nothing: a checkpoint is made between rounds."""

    def on_round(self, round: RoundRecord) -> None:
        """Write a checkpoint, every ``engine.checkpoint_every`` rounds and after the last."""
        plan = self._folder.scenario
        every = plan.engine.checkpoint_every
        if every and (round.round % every == 0 or round.round == plan.rounds):
            write(self._folder.directory, plan, round.round, self._content())


def write(directory: Path, scenario: Scenario, server_round: int, content: Mapping[str, Any]) -> Path:
    """Write a checkpoint into a run folder, remove all but the newest two, and return its path.

    It and the records of the run are on disk before it has its name.

    Parameters
    ----------
    directory : Path
        The run folder.
    scenario : Scenario
        What is run; only the same scenario, but for ``engine`` and ``logging``, goes on from the checkpoint.
    server_round : int
        The round that has ended.
    content : Mapping[str, Any]
        A tree of dictionaries with text as keys, lists, text, numbers, None, bytes and tensors.
        Tensors are written from where they are, equal byte strings once.

    Raises
    ------
    TypeError
        For anything else in the tree.
    """
    home = directory / CHECKPOINTS
    name = f"round-{server_round:06d}"
    finished, unfinished = home / name, home / f".{name}.unfinished"
    packed = _Packed()
    manifest = {
        "format": FORMAT,
        "round": server_round,
        "versions": _versions(),
        "scenario": _identity(scenario),
        "content": packed.plain(content, "content"),
    }
    home.mkdir(exist_ok=True)
    for left_over in home.glob(".round-*.unfinished"):
        shutil.rmtree(left_over)
    unfinished.mkdir()
    (unfinished / _MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    safetensors.numpy.save_file(packed.arrays, unfinished / _TENSORS)
    shutil.copymode(unfinished / _MANIFEST, unfinished / _TENSORS)  # It is private as safetensors makes it.
    sums = "".join(f"{_digest(unfinished / file)}  {file}\n" for file in (_MANIFEST, _TENSORS))
    (unfinished / _SUMS).write_text(sums, encoding="utf-8")
    written = [unfinished / file for file in (_MANIFEST, _TENSORS, _SUMS)]
    records = [path for path in (directory / ROUNDS, directory / CLIENTS) if path.exists()]
    with ThreadPoolExecutor() as pool:  # Each waits for the disk, which answers them together.
        list(pool.map(_sync, (*written, unfinished, *records, directory)))
    unfinished.rename(finished)
    for path in listed(directory)[:-KEPT]:
        shutil.rmtree(path)
    _sync(home)
    return finished


def newest(directory: Path, scenario: Scenario) -> Checkpoint | None:
    """Return the newest checkpoint of a run folder that is whole; None where there is none at all.

    A damaged one is reported as a warning, and the one before it taken.

    Raises
    ------
    UserError
        Where all are damaged, or the one to take is of another scenario or version.
    """
    found = listed(directory)
    for path in reversed(found):
        try:
            manifest, arrays = _read(path)
        except _DamagedError as error:
            _logger.warning("%s is damaged: %s", path, error)
            continue
        _check(path, manifest, scenario)
        if path != found[-1]:
            _logger.warning("going on from the one before: %s", path)
        return Checkpoint(path, manifest["round"], _rebuilt(manifest["content"], arrays))
    if found:
        raise UserError(f"{directory}: all checkpoints are damaged; run it anew (--overwrite)")
    return None


def listed(directory: Path) -> list[Path]:
    """Return the checkpoints of a run folder, whole or not, from the oldest to the newest."""
    found = (path for path in (directory / CHECKPOINTS).glob("round-*") if path.is_dir())
    return sorted((path for path in found if path.name[6:].isdecimal()), key=_round_of)


def discard_after(directory: Path, server_round: int) -> None:
    """Remove the checkpoints of later rounds: a run that goes on from this one makes them again."""
    for path in listed(directory):
        if _round_of(path) > server_round:
            shutil.rmtree(path)


def _round_of(path: Path) -> int:
    return int(path.name.removeprefix("round-"))


class _DamagedError(Exception):
    """A checkpoint that is not what was written."""


class _Packed:
    """A tree taken apart: plain values, and the arrays that they refer to by name."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray[Any, Any]] = {}
        self._names: dict[bytes, str] = {}

    def plain(self, value: Any, path: str) -> Any:
        """Return a value as JSON can hold it; ``path`` says where in the tree it is."""
        if isinstance(value, Tensor):
            return {_TENSOR: self._add(value.detach().cpu().contiguous().numpy(), path)}
        if isinstance(value, bytes):
            if value not in self._names:
                self._names[value] = self._add(np.frombuffer(value, dtype=np.uint8), path)
            return {_BYTES: self._names[value]}
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, str):
                    raise TypeError(f"{path}: a checkpoint's keys are text, not {key!r}")
            return {_escaped(key): self.plain(item, f"{path}/{key}") for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.plain(item, f"{path}/{number}") for number, item in enumerate(value)]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(
            f"{path}: a checkpoint holds text, numbers, None, bytes, tensors, and lists and dictionaries "
            f"of these, not {type(value).__name__}"
        )

    def _add(self, array: np.ndarray[Any, Any], path: str) -> str:
        name = f"{len(self.arrays)}:{path}"  # The number: "a/b" may be one key or two.
        self.arrays[name] = array
        return name


def _rebuilt(value: Any, arrays: Mapping[str, Tensor]) -> Any:
    """Return the tree that was taken apart; its tuples have become lists."""
    if isinstance(value, list):
        return [_rebuilt(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return arrays[value[_TENSOR]]
    if _BYTES in value:
        return arrays[value[_BYTES]].numpy().tobytes()
    return {key.removeprefix("$"): _rebuilt(item, arrays) for key, item in value.items()}


def _escaped(key: str) -> str:
    """Return a key that is none of our own: a key that starts with "$" gets another one."""
    return f"${key}" if key.startswith("$") else key


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a checkpoint's manifest and arrays.

    Raises
    ------
    _DamagedError
        Where a file is missing or is not what was written.
    """
    try:
        content = {name: (path / name).read_bytes() for name in (_MANIFEST, _TENSORS, _SUMS)}
    except OSError as error:
        raise _DamagedError(f"{Path(error.filename).name}: {error.strerror}") from None
    sums = content.pop(_SUMS)
    for name, data in content.items():
        if f"{hashlib.sha256(data).hexdigest()}  {name}\n".encode() not in sums:
            raise _DamagedError(f"{name} is not what was written, by {_SUMS}")
    return json.loads(content[_MANIFEST]), safetensors.torch.load(content[_TENSORS])


def _check(path: Path, manifest: Mapping[str, Any], scenario: Scenario) -> None:
    """Refuse a checkpoint that this program cannot go on from, or that is of another scenario."""
    ours, theirs = _versions(), manifest["versions"]
    if manifest["format"] != FORMAT or theirs["fedprune"] != ours["fedprune"]:
        raise UserError(
            f"{path}: written by fedprune {theirs['fedprune']} (checkpoint format {manifest['format']}), but "
            f"this is {ours['fedprune']} (format {FORMAT}): resume it with that version, or run it anew"
        )
    for name in ours:
        if theirs.get(name) != ours[name]:
            _logger.warning(
                "%s was written with %s %s, this is %s: results may differ from those of an unbroken run",
                *(path, name, theirs.get(name), ours[name]),
            )
    if differences := list(_differences(_identity(scenario), manifest["scenario"], "")):
        raise UserError(f"{path}: is of another scenario: {'; '.join(differences)}")


def _differences(ours: Any, theirs: Any, key: str) -> Iterator[str]:
    """Yield a text for each value in which two documents differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in {**ours, **theirs}:
            yield from _differences(ours.get(name), theirs.get(name), f"{key}.{name}" if key else name)
    elif ours != theirs:
        yield f"{key} is {show(ours)}, there {show(theirs)}"


def _identity(scenario: Scenario) -> dict[str, Any]:
    """Return what results depend on: the scenario but for its engine and its loggers."""
    return scenario.model_dump(mode="json", exclude={"engine", "logging"})


@cache
def _versions() -> dict[str, str]:
    packages = {name: metadata.version(name) for name in ("flwr", "torch", "numpy")}
    return {"fedprune": __version__, **packages}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Have the system put a file, or the entries of a folder, on the disk."""
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
