"""One way to find a plug-in: a built-in name, an entry point, "package.module:Name" or "file.py:Name".

A model may also be one of a zoo, "timm:name".

A strategy, aggregator, client, model, task, data set, augmentation, client shift, criterion, layer
distribution, schedule, update compressor or logger is looked up here by its kind and name; a built-in one has
no privilege but its short name. This module imports a plug-in when it is asked for, and knows nothing about
what it does. A process that needs one that another process has loaded loads it by the same kind, name and
directory.

A relative "file.py" starts from the folder of the file that names it: the scenario's, or that of the class
whose attribute (`named_by`) or whose option's default (`place_defaults`) it is.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from pydantic import BaseModel

from fedprune import plugin_files
from fedprune.errors import PluginError
from fedprune.wording import did_you_mean, known_here

_Options = TypeVar("_Options", bound=BaseModel)


@dataclass(frozen=True)
class _Kind:
    """Where the plug-ins of one kind are found.

    ``home`` is a package with one file a plug-in where ``table`` is None, else the module whose dictionary
    ``table`` has them by name. ``zoos`` is a dictionary there, too: under the ZOO of a "ZOO:name" it has the
    function that makes a plug-in of the name. ``bases`` are the "module:Class" of which a plug-in must be a
    subclass of one; where there are none, any callable will do.
    """

    what: str
    group: str
    home: str
    table: str | None = None
    zoos: str | None = None
    bases: tuple[str, ...] = ()


_KINDS = {
    "strategy": _Kind(
        "strategy", "fedprune.strategies", "fedprune.strategies", bases=("flwr.serverapp.strategy:Strategy",)
    ),
    "aggregator": _Kind(
        "aggregator",
        "fedprune.aggregators",
        "fedprune.server.aggregation",
        table="AGGREGATORS",
        bases=("fedprune.server.aggregation:Aggregator", "flwr.serverapp.strategy:Strategy"),
    ),
    "client": _Kind("client", "fedprune.clients", "fedprune.clients", bases=("fedprune.client:Client",)),
    "model": _Kind("model", "fedprune.models", "fedprune.models", table="MODELS", zoos="ZOOS"),
    "task": _Kind("task", "fedprune.tasks", "fedprune.tasks", table="TASKS", bases=("fedprune.tasks:Task",)),
    "loss": _Kind("loss", "fedprune.losses", "fedprune.tasks", table="LOSSES"),
    "metric": _Kind("metric", "fedprune.metrics", "fedprune.tasks", table="METRICS"),
    "data": _Kind("data set", "fedprune.data", "fedprune.data.sources", table="SOURCES"),
    "augmentation": _Kind(
        "augmentation", "fedprune.augmentations", "fedprune.data.augmentation", table="AUGMENTATIONS"
    ),
    "client_shift": _Kind(
        "client shift", "fedprune.client_shifts", "fedprune.data.client_shift", table="CLIENT_SHIFTS"
    ),
    "criterion": _Kind("criterion", "fedprune.criteria", "fedprune.sparsity.criteria", table="CRITERIA"),
    "distribution": _Kind(
        "distribution", "fedprune.distributions", "fedprune.sparsity.distributions", table="DISTRIBUTIONS"
    ),
    "schedule": _Kind("schedule", "fedprune.schedules", "fedprune.sparsity.schedules", table="SCHEDULES"),
    "compressor": _Kind(
        "compressor",
        "fedprune.compressors",
        "fedprune.compression",
        table="COMPRESSORS",
        bases=("fedprune.compression:Compressor",),
    ),
    "logger": _Kind(
        "logger", "fedprune.loggers", "fedprune.loggers", table="LOGGERS", bases=("fedprune.loggers:Logger",)
    ),
}


def load(kind: str, name: str, directory: Path | None = None) -> Any:
    """Return the plug-in of a kind that a name stands for.

    Parameters
    ----------
    kind : str
        "strategy", "aggregator", "client", "model", "task", "loss", "metric", "data", "augmentation",
        "client_shift", "criterion", "distribution", "schedule", "compressor" or "logger".
    name : str
        A built-in name, an entry point in the group of the kind ("fedprune.strategies" and so on),
        "package.module:Name", "package.module.Name", "file.py:Name", or of a model "timm:name".
    directory : Path, optional
        The folder that a relative "file.py" starts from; the working directory where not given.

    Returns
    -------
    Any
        The class or function: for a strategy a subclass of Flower's ``Strategy``, for a client one of
        `fedprune.client.Client`, for a logger one of `fedprune.loggers.Logger`, for a compressor one of
        `fedprune.compression.Compressor`, for an aggregator one of
        `fedprune.server.aggregation.Aggregator` or of Flower's ``Strategy``, else a callable.

    Raises
    ------
    PluginError
        Where nothing has that name, two things have it, it cannot be imported, or it is something else.
    """
    spec = _spec(kind)
    return _checked(spec, name, _find(spec, name, directory or Path.cwd()))


def names(kind: str) -> list[str]:
    """Return what can be named without a file or a module, sorted; nothing is loaded."""
    return _names(_spec(kind))


def available(kind: str) -> dict[str, str]:
    """Return what can be named without a file or a module: name -> one line of what it is, sorted.

    What cannot be loaded, such as a broken plug-in of another package, is listed with the reason.
    """
    lines = {}
    for name in names(kind):
        try:
            lines[name] = _first_line(load(kind, name))
        except PluginError as error:
            lines[name] = f"(cannot be loaded: {error})"
    return lines


def named_by(owner: type, attribute: str, default: str) -> str:
    """Return the plug-in that a class names in an attribute, such as ``client``, its own or inherited.

    Parameters
    ----------
    owner : type
        The class.
    attribute : str
        The attribute.
    default : str
        What is returned where the class has none.

    Returns
    -------
    str
        The name; the path of a "file.py:Name" starts from the folder of the class that has the attribute,
        and is absolute.
    """
    for kind in owner.__mro__:
        if attribute in vars(kind):
            return str(plugin_files.placed(vars(kind)[attribute], plugin_files.folder_of(kind) or Path.cwd()))
    return default


def place_defaults(options: _Options) -> _Options:
    """Return options in which the path of every "file.py:Name" that is a default is absolute.

    It starts from the folder of the class that has the option. What was given is left as it is.
    """
    changes = {}
    for name in type(options).model_fields.keys() - options.model_fields_set:
        kinds = (kind for kind in type(options).__mro__ if name in vars(kind).get("__annotations__", ()))
        value, owner = getattr(options, name), next(kinds, type(options))
        placed = plugin_files.placed(value, plugin_files.folder_of(owner) or Path.cwd())
        if placed != value:
            changes[name] = placed
    return options.model_copy(update=changes) if changes else options


def beside(owner: type, name: str) -> str:
    """Return a name that the code of a class wrote: the path of a "file.py:Name" starts from its file.

    A class that another one inherits from may have written it: the first of them beside which there is such
    a file counts.
    """
    if not plugin_files.is_in_file(name):
        return name
    folders = (folder for kind in owner.__mro__ if (folder := plugin_files.folder_of(kind)) is not None)
    found = (str(plugin_files.placed(name, folder)) for folder in folders)
    return next((each for each in found if plugin_files.path_in(each).is_file()), name)


def in_file(name: str) -> Any:
    """Return what "file.py:Name" names, of whatever kind it is.

    Raises
    ------
    PluginError
        Where there is no such file, it cannot be imported, or it has no such name.
    """
    return _attribute(_module_of_file(plugin_files.path_in(name)), name.rpartition(":")[2])


def _spec(kind: str) -> _Kind:
    try:
        return _KINDS[kind]
    except KeyError:
        raise PluginError(f"no kind of plug-in {kind!r}{did_you_mean(kind, _KINDS)}") from None


def _names(spec: _Kind) -> list[str]:
    return sorted({*_builtin_names(spec), *_entry_points(spec)})


def _find(spec: _Kind, name: str, directory: Path) -> Any:
    """Return what a name stands for, not yet checked to be of the right kind."""
    place, colon, attribute = name.rpartition(":")
    if plugin_files.is_in_file(name):
        return in_file(str(plugin_files.placed(name, directory)))
    if colon and (zoo := _zoos(spec).get(place)) is not None:
        return zoo(attribute)
    if colon:
        return _attribute(_module(place, f"{spec.what} {name!r}"), attribute)
    candidates = _candidates(spec, name)
    if len(candidates) > 1:
        raise PluginError(
            f"{spec.what} {name!r} is ambiguous: it is {' and '.join(candidates)}; write the one that you "
            "mean as 'package.module:Name'"
        )
    for found in candidates.values():
        return found()
    place, dot, attribute = name.rpartition(".")
    if dot and re.fullmatch(r"\w+(\.\w+)+", name):
        return _attribute(_module(place, f"{spec.what} {name!r}"), attribute)
    known = _names(spec)
    raise PluginError(
        f"no {spec.what} {name!r}{known_here(name, known, '`fedprune list`')}; "
        "or write 'package.module:Name' or './file.py:Name'"
    )


def _candidates(spec: _Kind, name: str) -> dict[str, Callable[[], Any]]:
    """Return everything that a short name stands for: what it is, in words, -> how to load it."""
    candidates: dict[str, Callable[[], Any]] = {}
    if name in _builtin_names(spec):
        candidates[f"fedprune's own (in {_home_of(spec, name)})"] = partial(_builtin, spec, name)
    for point in _entry_points(spec).get(name, ()):
        candidates[_described(point)] = partial(_of_entry_point, spec, point)
    return candidates


def _builtin_names(spec: _Kind) -> Iterable[str]:
    home = importlib.import_module(spec.home)
    if spec.table is not None:
        table: Mapping[str, Any] = getattr(home, spec.table)
        return table.keys()
    return {module.name for module in pkgutil.iter_modules(home.__path__) if not module.name.startswith("_")}


def _zoos(spec: _Kind) -> Mapping[str, Callable[[str], Any]]:
    found: Mapping[str, Callable[[str], Any]] = (
        {} if spec.zoos is None else getattr(importlib.import_module(spec.home), spec.zoos)
    )
    return found


def _home_of(spec: _Kind, name: str) -> str:
    return spec.home if spec.table is not None else f"{spec.home}.{name}"


def _builtin(spec: _Kind, name: str) -> Any:
    """Return a built-in plug-in: an entry of its kind's table, or the one public class of its own file."""
    home = _home_of(spec, name)
    if spec.table is not None:
        return getattr(importlib.import_module(home), spec.table)[name]
    module = _module(home, f"{spec.what} {name!r}")
    bases = _bases(spec)
    classes = [
        value
        for own, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, bases)
        and value.__module__ == home
        and not own.startswith("_")
    ]
    if len(classes) != 1:
        raise PluginError(f"{home} defines {len(classes)} classes that are a {spec.what}, it must define one")
    return classes[0]


def _entry_points(spec: _Kind) -> dict[str, list[EntryPoint]]:
    """Return the entry points of a kind by name; one found twice, say in a checkout too, counts once."""
    points: dict[str, list[EntryPoint]] = {}
    for point in _installed(spec.group, tuple(sys.path)):
        same_name = points.setdefault(point.name, [])
        if point.value not in [other.value for other in same_name]:
            same_name.append(point)
    return points


@lru_cache(maxsize=32)
def _installed(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Return a group's entry points of all that is installed on the import path.

    Finding them reads a file of every package, and a study's plan asks some hundred times.
    """
    return tuple(entry_points(group=group))


def _described(point: EntryPoint) -> str:
    package = f"package {point.dist.name}" if point.dist else "an installed package"
    return f"an entry point of {package} ({point.value})"


def _of_entry_point(spec: _Kind, point: EntryPoint) -> Any:
    wanted = f"{spec.what} {point.name!r}, {_described(point)},"
    if not point.attr:
        raise PluginError(f"{wanted} names a module: it must be 'package.module:Name'")
    return _attribute(_module(point.module, wanted), point.attr)


def _module(name: str, wanted: str) -> ModuleType:
    """Import a module; ``wanted`` says what for."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise PluginError(f"{wanted} cannot be imported: {_import_fault(error)}") from error


def _module_of_file(path: Path) -> ModuleType:
    """Import a file once a process."""
    if not path.is_file():
        near = did_you_mean(path.name, (file.name for file in path.parent.glob("*.py")))
        raise PluginError(f"no file {path.resolve()}{near}")
    try:
        return plugin_files.load(path)
    except Exception as error:
        raise PluginError(f"{path.resolve()} cannot be imported: {_import_fault(error)}") from error


def _import_fault(error: Exception) -> str:
    """Return, in one line, why an import failed and where."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    # Not where an import statement of a plug-in was carried out, but where it stands.
    last = [frame for frame in frames if frame.filename != plugin_files.__file__][-1]
    place = "" if last.filename.startswith("<frozen") else f" ({last.filename}:{last.lineno})"
    if isinstance(error, ModuleNotFoundError):
        return f"there is no module {error.name!r}: install it or correct its name{place}"
    return f"{type(error).__name__}: {error}{place}"


def _attribute(module: ModuleType, name: str) -> Any:
    """Return what a module calls by a name, or by a dotted name inside a class."""
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            public = [known for known in vars(value) if not known.startswith("_")]
            where = module.__file__ or module.__name__
            raise PluginError(f"{where} has no {name!r}{did_you_mean(part, public)}")
        value = getattr(value, part)
    return value


def _bases(spec: _Kind) -> tuple[type, ...]:
    places = (base.partition(":") for base in spec.bases)
    return tuple(getattr(importlib.import_module(module), name) for module, _, name in places)


def _checked(spec: _Kind, name: str, found: Any) -> Any:
    """Return what was found; refuse what cannot be a plug-in of its kind."""
    if not spec.bases:
        if not callable(found):
            raise PluginError(f"{spec.what} {name!r} is {found!r}: it must be a function or a class")
    elif not (inspect.isclass(found) and issubclass(found, _bases(spec))):
        wanted = " or ".join(base.replace(":", ".") for base in spec.bases)
        raise PluginError(f"{spec.what} {name!r} is {found!r}: it must be a subclass of {wanted}")
    return found


def _first_line(plugin: Any) -> str:
    return (inspect.getdoc(plugin) or "(no description)").splitlines()[0]
