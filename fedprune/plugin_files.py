"""Plug-in files, named "file.py:Name": where such a path leads, how the file is imported, what belongs to it.

A file is imported as a module of a package that stands for its folder, so that two files of one name in two
folders are two modules. Its ``import helper`` finds a ``helper.py`` beside it before an installed package of
that name, in every process and also when the import runs late, inside a function; nothing is added to
``sys.path``. What kinds of plug-ins there are is the matter of `fedprune.registry`.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import importlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

_NAME = re.compile(r".+\.py:\w+(\.\w+)*")
_PACKAGE = "fedprune_plugins_"


def is_in_file(name: object) -> bool:
    """Return whether a value is the name of a plug-in in a file: "file.py:Name"."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def path_in(name: str) -> Path:
    """Return the path in a name "file.py:Name"."""
    return Path(name.rpartition(":")[0]).expanduser()


def placed(value: Any, folder: Path) -> Any:
    """Return a value with the path of every "file.py:Name" in it made absolute, from a folder.

    Parameters
    ----------
    value : Any
        Text, or lists, tuples and dictionaries that hold some; anything else is returned as it is.
    folder : Path
        Where a relative path starts.
    """
    if isinstance(value, str) and is_in_file(value):
        return f"{os.path.abspath(folder / path_in(value))}:{value.rpartition(':')[2]}"
    if isinstance(value, list | tuple):
        return type(value)(placed(item, folder) for item in value)
    if isinstance(value, dict):
        return {key: placed(item, folder) for key, item in value.items()}
    return value


def names_in(value: Any) -> Iterator[str]:
    """Yield every "file.py:Name" in a tree of plain values."""
    if isinstance(value, str) and is_in_file(value):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from names_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from names_in(item)


def folder_of(plugin: Any) -> Path | None:
    """Return the folder of the file that a class or a function was written in; None without a file."""
    module = sys.modules.get(getattr(plugin, "__module__", None) or "")
    file = getattr(module, "__file__", None)
    return None if file is None else Path(file).parent


# Importing ---------------------------------------------------------------------------------------


def load(path: Path) -> ModuleType:
    """Import a file, once a process; what it raises is the caller's matter."""
    path = path.resolve()
    package = f"{_PACKAGE}{_digest(str(path.parent))}"
    if package not in sys.modules:
        if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
            sys.meta_path.insert(0, _Finder())
        sys.modules[package] = folder = ModuleType(package)
        folder.__path__ = [str(path.parent)]
    if path.stem.isidentifier():
        return importlib.import_module(f"{package}.{path.stem}")
    # No import statement can mean it, so it is not found by its name.
    name = f"{package}.file_{_digest(path.name)}"
    if name not in sys.modules:
        loader = _Loader(name, str(path))
        spec = spec_from_file_location(name, path, loader=loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        # Before it runs: dataclasses and pydantic look their own module up there.
        sys.modules[name] = module
        try:
            loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


class _Finder(MetaPathFinder):
    """Finds the modules of a plug-in's folder, for its own import statements and relative ones."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(_PACKAGE) or path is None:
            return None
        for folder in map(Path, path):
            if (found := _sibling(folder, fullname.rpartition(".")[2])) is not None:
                return spec_from_file_location(
                    fullname,
                    found,
                    loader=_Loader(fullname, str(found)),
                    submodule_search_locations=[str(found.parent)] if found.name == "__init__.py" else None,
                )
        return PathFinder.find_spec(fullname, path, target)


class _Loader(SourceFileLoader):
    """Runs a module with an ``import`` statement that looks in its plug-in's folder first."""

    def exec_module(self, module: ModuleType) -> None:
        package = module.__name__.partition(".")[0]
        finds = partial(_import, package, Path(sys.modules[package].__path__[0]), Path(self.path).stem)
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": finds}
        super().exec_module(module)


def _import(
    package: str,
    folder: Path,
    own: str,
    name: str,
    globals: Mapping[str, object] | None = None,
    locals: Mapping[str, object] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    """Do what an import statement does in a file of a plug-in's folder; see `builtins.__import__`."""
    top = name.partition(".")[0]
    if level or top == own or _sibling(folder, top) is None:
        return __import__(name, globals, locals, fromlist or (), level)
    found = __import__(f"{package}.{name}", globals, locals, fromlist or (), 0)
    return found if fromlist else sys.modules[f"{package}.{top}"]


def _sibling(folder: Path, name: str) -> Path | None:
    """Return the file that ``import name`` means in a folder; None where it is none of that folder.

    The standard library and fedprune come first: a criterion may stand in a file ``random.py``.
    """
    if name == "fedprune" or name in sys.stdlib_module_names:
        return None
    places = (folder / name / "__init__.py", folder / f"{name}.py")
    return next((place for place in places if place.is_file()), None)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


# What belongs to a file --------------------------------------------------------------------------


def sources(files: Iterable[Path]) -> list[Path]:
    """Return plug-in files with all that they import or name from folders of their own, sorted.

    Found without running anything: import statements that a file beside answers, also those inside
    functions, and texts "file.py:Name" that lead to a file. A package beside is there as a whole.
    """
    found: set[Path] = set()
    # With each, the folder of the plug-in that it belongs to, where its own imports look.
    waiting = [(path, path.parent) for path in (file.resolve() for file in files)]
    while waiting:
        path, home = waiting.pop()
        if path in found or not path.is_file():
            continue
        found.add(path)
        waiting += _mentioned(path, home)
        if path.name == "__init__.py":
            waiting += ((inner.resolve(), home) for inner in path.parent.rglob("*.py"))
    return sorted(found)


def _mentioned(path: Path, home: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the files that one imports or names, each with the folder in which its own imports look."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # Its import says so better.
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from ((file, home) for file in _imported(home, alias.name))
        elif isinstance(node, ast.ImportFrom):
            folder = path.parents[node.level - 1] if node.level else home
            start = f"{node.module}." if node.module else ""
            for alias in node.names:
                yield from ((file, home) for file in _imported(folder, f"{start}{alias.name}"))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and is_in_file(node.value):
            named = (path.parent / path_in(node.value)).resolve()
            if named.is_file():
                yield named, named.parent


def _imported(folder: Path, name: str) -> Iterator[Path]:
    """Yield the files that importing a dotted name from a folder runs."""
    for part in name.split("."):
        if (file := _sibling(folder, part)) is None:
            return
        yield file.resolve()
        folder = folder / part
