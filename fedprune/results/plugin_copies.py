"""The plug-in files that a run used: copies in its folder, and whether a file has changed since.

``plugins/`` of a run folder holds each plug-in file and what it imports from beside it, in the folders in
which they lie relative to each other. ``plugins/index.json`` says for each where it was (``file``), where its
copy is (``copy``) and its SHA-256 (``sha256``). A run with no plug-in files has no such folder. The copies
are for reading and comparing: a run, also a resumed one, imports the files where they were.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fedprune import plugin_files
from fedprune.results.records import write_atomically
from fedprune.scenario import Scenario

PLUGINS = "plugins"
INDEX = "index.json"
_KEYS = ("file", "copy", "sha256")

_logger = logging.getLogger(__name__)


def files_of(scenario: Scenario) -> list[Path]:
    """Return the plug-in files that a resolved scenario names, and what they import or name from beside."""
    names = plugin_files.names_in(scenario.model_dump(mode="json"))
    return plugin_files.sources(plugin_files.path_in(name) for name in names)


def copied(files: Iterable[Path], target: Path) -> dict[Path, Path]:
    """Copy files below a folder, in the folders in which they lie relative to each other.

    Returns
    -------
    dict[Path, Path]
        The path of each file -> that of its copy, relative to ``target``.
    """
    files = list(files)
    if not files:
        return {}
    common = os.path.commonpath([file.parent for file in files])
    places = {file: file.relative_to(common) for file in files}
    for file, place in places.items():
        (target / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target / place)
    return places


def keep(directory: Path, scenario: Scenario) -> None:
    """Put the plug-in files of a new run into its folder, with their digests; nothing where it has none."""
    home = directory / PLUGINS
    places = copied(files_of(scenario), home)
    if places:
        index = [
            {"file": str(file), "copy": place.as_posix(), "sha256": _digest(home / place)}
            for file, place in places.items()
        ]
        write_atomically(home / INDEX, f"{json.dumps(index, indent=2)}\n".encode())


def remove(directory: Path) -> None:
    """Remove what `keep` put into a run folder, and only that."""
    home = directory / PLUGINS
    folders = set()
    for entry in _index(directory):
        copy = home / entry["copy"]
        copy.unlink(missing_ok=True)
        folders |= {folder for folder in copy.parents if folder.is_relative_to(home)}
    (home / INDEX).unlink(missing_ok=True)
    for folder in sorted(folders, reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def changes(directory: Path) -> Iterator[str]:
    """Yield a sentence for each plug-in file that is not as it was when the run in a folder started."""
    for entry in _index(directory):
        file, copy = Path(entry["file"]), directory / PLUGINS / entry["copy"]
        if not file.is_file():
            yield f"{file} is no longer there; {copy} is what the run in {directory} started with"
        elif _digest(file) != entry["sha256"]:
            yield f"{file} has changed since the run in {directory} started, which {copy} still shows"


def warn_of_changes(*directories: Path) -> None:
    """Log a warning for each plug-in file that has changed since the run in one of the folders started."""
    for directory in dict.fromkeys(path.absolute() for path in directories):
        for change in changes(directory):
            _logger.warning("%s: results may differ", change)


def _index(directory: Path) -> list[dict[str, str]]:
    """Return the index of a run folder; nothing where there is none, or it is not what `keep` wrote."""
    try:
        index = json.loads((directory / PLUGINS / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [entry for entry in index if _is_entry(entry)] if isinstance(index, list) else []


def _is_entry(entry: Any) -> bool:
    if not (isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in _KEYS)):
        return False
    copy = Path(entry["copy"])
    return not copy.is_absolute() and ".." not in copy.parts


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
