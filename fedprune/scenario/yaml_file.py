"""YAML documents that know where each of their keys stands, and overrides of their values.

This module turns a file into plain dictionaries, lists, text, numbers and booleans, by the rules of
YAML 1.2 (`1e-3` is a number; only `true` and `false` are booleans), and back. It knows nothing of what
a scenario may contain: that is `fedprune.scenario`'s matter.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from fedprune.errors import ScenarioError

KeyPath = tuple[str | int, ...]
"""Where a value stands: ("clients", "devices", 0, "share")."""

_T = TypeVar("_T")

_INT = r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"
_FLOAT = (
    r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_RESOLVERS: tuple[tuple[str, str, list[str | None]], ...] = (
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", _INT, list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
    ("merge", r"<<", ["<"]),
    # PyYAML looks an empty scalar up under the first letter "".
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
)


class _Loader(yaml.SafeLoader):
    """A safe loader with the scalars of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


class _Dumper(yaml.SafeDumper):
    """A safe dumper that quotes text which either version of YAML would read as something else."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        # PyYAML folds Unicode's own line breaks in single quotes, and reads back a space.
        style = '"' if re.search("[\x85\u2028\u2029]", text) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _Dumper.represent_text)


for _tag, _pattern, _first in _RESOLVERS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, 0) if text[:2] in ("0x", "0o") else int(text)


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node)).lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


# More than any scenario has; an alias of aliases of aliases has more in a few lines.
_MOST_VALUES = 100_000


def dotted(key: KeyPath) -> str:
    """Return a key path as people write it: "clients.devices.0.share"."""
    return ".".join(map(str, key))


@dataclass(frozen=True)
class Origin:
    """Where the values of a document came from: a file's lines, and overrides.

    ``name`` is the file as it was named, "" for values that came from no file; ``lines`` has the line of
    every key; ``overrides`` has a label for every key path that was overridden, such as "--set rounds".
    """

    name: str = ""
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    overrides: Mapping[KeyPath, str] = field(default_factory=dict)

    def complaint(self, key: KeyPath, message: str) -> str:
        """Return one line: where the value at a key path came from, the key, and what is wrong with it.

        A number in the path stands for a place in a list, or for a key of a mapping.
        """
        overrides = _by_words(self.overrides)
        for length in range(len(key), 0, -1):
            label = overrides.get(_words(key[:length]))
            if label is not None:
                parts = [label, dotted(key) if length < len(key) else ""]
                break
        else:
            parts = [self._line(key), dotted(key)]
        return ": ".join([part for part in parts if part] + [message])

    def _line(self, key: KeyPath) -> str:
        """Return "file:line" of a key, or of the innermost key around it that stands in the file."""
        lines = _by_words(self.lines)
        for length in range(len(key), 0, -1):
            if (line := lines.get(_words(key[:length]))) is not None:
                return f"{self.name}:{line}"
        return self.name


def _words(key: KeyPath) -> tuple[str, ...]:
    return tuple(map(str, key))


def _by_words(found: Mapping[KeyPath, _T]) -> dict[tuple[str, ...], _T]:
    return {_words(key): value for key, value in found.items()}


def read(path: Path) -> tuple[dict[str, Any], Origin]:
    """Read a YAML file whose top level is a mapping.

    Returns
    -------
    tuple
        The content, and where it came from.

    Raises
    ------
    ScenarioError
        Where the file is missing or cannot be read, is not UTF-8, is not YAML, repeats a key, or is not a
        mapping; the message has the file, the line and what would be right.
    """
    name = str(path)
    text = read_text(path)
    lines: dict[KeyPath, int] = {}
    content = _compose(text, name, lines)
    if content is None:
        raise ScenarioError(f"{name}: the file is empty: write a mapping such as 'name: my-run'")
    if not isinstance(content, dict):
        raise ScenarioError(
            f"{name}:1: the top level is {kind(content)}: write a mapping of keys such as 'name: my-run'"
        )
    return content, Origin(name, lines)


def read_text(path: Path) -> str:
    """Return the text of a file; say what else is there when it is none.

    Raises
    ------
    ScenarioError
        Where the file is missing or cannot be read, or is not UTF-8.
    """
    if path.is_dir():
        found = sorted(file.name for pattern in ("*.yaml", "*.yml") for file in path.glob(pattern))
        hint = f"name a file in it: {', '.join(found)}" if found else "it has no YAML files"
        raise ScenarioError(f"{path}: this is a directory, not a file; {hint}")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ScenarioError(f"{path}: no such file{_near_files(path)}") from None
    except UnicodeDecodeError as error:
        raise ScenarioError(
            f"{path}: byte {error.start + 1} is not UTF-8 text: save the file in UTF-8"
        ) from None
    except OSError as error:
        raise ScenarioError(f"{path}: cannot be read: {error.strerror}") from error


def _near_files(path: Path) -> str:
    """Return "; did you mean ..." for files beside a missing one, or that its folder is missing too."""
    folder = path.parent
    if not folder.is_dir():
        return f": its folder {folder} does not exist either"
    files = [file.name for file in folder.iterdir() if file.suffix in (".yaml", ".yml", path.suffix)]
    near = difflib.get_close_matches(path.name, files, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(str(folder / name) for name in near)}?" if near else ""


def _compose(text: str, name: str, lines: dict[KeyPath, int]) -> Any:
    """Return the value of a YAML text, and note the line of every key."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _written_out(node, {}) > _MOST_VALUES:
            raise ScenarioError(f"{name}: its aliases stand for more than {_MOST_VALUES:,} values")
        return _Composer(loader, name, lines).value(node)
    except RecursionError:
        raise ScenarioError(f"{name}: nested too deeply to be a scenario") from None
    except (ValueError, KeyError, OverflowError) as error:
        # A tag such as !!int on what is none, or a number with thousands of digits.
        raise ScenarioError(f"{name}: a value is not what its tag says, or too large: {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        hint = " (indent with spaces, not tabs)" if "'\\t'" in str(error.problem) else ""
        problem = error.problem or error.context
        raise ScenarioError(f"{place}: not valid YAML: {problem}{hint}") from error
    except yaml.YAMLError as error:
        raise ScenarioError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from error


def _written_out(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values a node holds when every alias is written out; an alias to itself counts once."""
    if id(node) not in known:
        known[id(node)] = 1
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        pairs = [child if isinstance(child, tuple) else (child,) for child in children]
        known[id(node)] = 1 + sum(_written_out(child, known) for pair in pairs for child in pair)
    return known[id(node)]


@dataclass(frozen=True)
class _Composer:
    """Makes values of the nodes of one document, and notes where their keys stand."""

    loader: _Loader
    name: str
    lines: dict[KeyPath, int]

    def value(self, node: yaml.Node, key: KeyPath = (), around: tuple[yaml.Node, ...] = ()) -> Any:
        """Return the value of a node at a key path; ``around`` holds the nodes that it stands in."""
        if any(node is outer for outer in around):
            raise self._error(node, key, "this alias contains itself")
        around = (*around, node)
        if isinstance(node, yaml.SequenceNode):
            return [
                self.value(item, self._noted((*key, index), item), around)
                for index, item in enumerate(node.value)
            ]
        if isinstance(node, yaml.MappingNode):
            self._refuse_repeated_keys(node, key)
            # Puts the pairs of `<<: *other` in front, so that the mapping's own keys win.
            self.loader.flatten_mapping(node)
            return {
                (word := self._word(key_node)): self.value(inner, self._noted((*key, word), key_node), around)
                for key_node, inner in node.value
            }
        return self.loader.construct_object(node)

    def _noted(self, key: KeyPath, node: yaml.Node) -> KeyPath:
        self.lines[key] = node.start_mark.line + 1
        return key

    def _word(self, node: yaml.Node) -> str:
        return str(self.loader.construct_object(node))

    def _refuse_repeated_keys(self, node: yaml.MappingNode, key: KeyPath) -> None:
        first: dict[str, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._error(key_node, key, "a key is a word, not a list or a mapping")
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            word = self._word(key_node)
            if word in first:
                message = f"given a second time, first on line {first[word]}: keep one of them"
                raise self._error(key_node, (*key, word), message)
            first[word] = key_node.start_mark.line + 1

    def _error(self, node: yaml.Node, key: KeyPath, message: str) -> ScenarioError:
        place = f"{self.name}:{node.start_mark.line + 1}"
        return ScenarioError(": ".join(part for part in (place, dotted(key), message) if part))


def parse(text: str, label: str) -> Any:
    """Return the value of a YAML text such as "0.1", "true", "[1, 2]" or "some words".

    Raises
    ------
    ScenarioError
        Where the text is not YAML; the message begins with the label.
    """
    return _compose(text, label, {})


def write(content: Mapping[str, Any]) -> str:
    """Return a mapping of plain values as YAML text, which `read` reads back unchanged."""
    return yaml.dump(dict(content), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def override(
    content: Mapping[str, Any], origin: Origin, changes: Mapping[str, object], prefix: str = ""
) -> tuple[dict[str, Any], Origin]:
    """Return the content with some values replaced, and where it then came from.

    Parameters
    ----------
    changes : Mapping[str, object]
        Dotted key ("strategy.density", "clients.devices.0.share") to value. Keys that lead to it and do not
        exist are made; an index one past the end of a list appends to it.
    prefix : str
        What an override's key is called by in errors: "--set " on the command line.

    Raises
    ------
    ScenarioError
        Where a key leads through a value that has no keys, or past the end of a list.
    """
    changed: Any = dict(content)
    labels = dict(origin.overrides)
    for written, value in changes.items():
        label = f"{prefix}{written}"
        keys = written.split(".")
        if not all(keys):
            raise ScenarioError(f"{label}: write keys with dots between them, such as strategy.density")
        changed, key = _replaced(changed, keys, value, (), label)
        labels[key] = label
    return changed, replace(origin, overrides=labels)


def _replaced(
    place: object, keys: list[str], value: object, around: KeyPath, label: str
) -> tuple[object, KeyPath]:
    """Return a place with the value under its keys replaced, and the key path of that value."""
    if not keys:
        return value, around
    key, *rest = keys
    if isinstance(place, list):
        index = _index(place, key, around, label)
        old = place[index] if index < len(place) else None
        new, path = _replaced(old, rest, value, (*around, index), label)
        return [*place[:index], new, *place[index + 1 :]], path
    if isinstance(place, dict) or place is None:
        entries = place or {}
        new, path = _replaced(entries.get(key), rest, value, (*around, key), label)
        return {**entries, key: new}, path
    raise ScenarioError(f"{label}: {dotted(around)} is {kind(place)}, it has no key {key!r}")


def _index(items: list[Any], key: str, path: KeyPath, label: str) -> int:
    if not key.isdecimal() or int(key) > len(items):
        raise ScenarioError(
            f"{label}: {dotted(path)} is a list of {len(items)}: write a number from 0 to {len(items)}, "
            f"not {key!r}"
        )
    return int(key)


def kind(value: object) -> str:
    """Return what a value of a document is, in a person's words."""
    if value is None:
        return "empty"
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true or false"}
    return names.get(type(value), "a number")
