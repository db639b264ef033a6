"""Checks the options that a scenario gives a model against the signature of the model's factory.

Not for the scenario's own fields, which its pydantic models check: what a model takes is known to the model
alone.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from fedprune.errors import PluginError, UserError
from fedprune.plugin_files import folder_of, is_in_file, placed
from fedprune.wording import did_you_mean

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def checked(factory: Callable[..., object], options: Mapping[str, object], model: str) -> dict[str, Any]:
    """Return ``options`` as arguments for ``factory(input_shape, outputs, **options)``.

    An option's type is that of its annotation; one without an annotation may be anything. As in JSON, whole
    numbers pass as floats and lists as any sequence; nothing else is converted. A default "file.py:Name" is
    added with an absolute path, which starts from the factory's file.

    Raises
    ------
    PluginError
        Where the factory can't be called with an input shape and a number of outputs.
    UserError
        For an option that the factory does not have, one that it needs and is not given, or a wrong type.
    """
    parameters = _parameters(factory, model)
    open_ended = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    known = {parameter.name: parameter for parameter in parameters if parameter.kind in _NAMED}
    missing = [
        name for name, p in known.items() if p.default is inspect.Parameter.empty and name not in options
    ]
    if missing:
        raise UserError(f"model {model!r} needs the option {missing[0]!r} ({_listed(known)})")
    folder = folder_of(factory)
    arguments = {
        name: placed(p.default, folder)
        for name, p in known.items()
        if folder is not None and is_in_file(p.default) and name not in options
    }
    for name, value in options.items():
        if name in known:
            arguments[name] = _converted(value, known[name].annotation, f"model {model!r}: option {name!r}")
        elif open_ended:
            arguments[name] = value
        else:
            raise UserError(
                f"model {model!r} has no option {name!r}{did_you_mean(name, known)} ({_listed(known)})"
            )
    return arguments


def wanted(factory: Callable[..., object], known: Mapping[str, object]) -> dict[str, object]:
    """Return what of the ``known`` values a factory has arguments for."""
    named = {p.name for p in inspect.signature(factory).parameters.values() if p.kind in _NAMED}
    return {name: value for name, value in known.items() if name in named}


def _parameters(factory: Callable[..., object], model: str) -> list[inspect.Parameter]:
    """Return what the factory takes after the input shape and the number of outputs."""
    signature = inspect.signature(factory)
    try:
        signature = inspect.signature(factory, eval_str=True)
    except NameError:  # an annotation that exists for the type checker alone: it can't be checked here
        signature = signature.replace(
            parameters=[p.replace(annotation=p.empty) for p in signature.parameters.values()]
        )
    try:
        taken = signature.bind_partial((1, 1, 1), 1)
    except TypeError as error:
        raise PluginError(
            f"model {model!r} can't be called as {model}(input_shape, outputs, **options): {error}"
        ) from error
    filled = [
        name
        for name in taken.arguments
        if signature.parameters[name].kind is not inspect.Parameter.VAR_POSITIONAL
    ]
    return [parameter for name, parameter in signature.parameters.items() if name not in filled]


def _converted(value: object, annotation: Any, what: str) -> Any:
    if annotation is inspect.Parameter.empty:
        return value
    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(strict=True, arbitrary_types_allowed=True))
    except PydanticUserError:  # a type that pydantic has no check for
        return value
    try:
        return _validated(adapter, value)
    except ValidationError as error:
        expected = error.errors()[0]["msg"]
        raise UserError(f"{what} is {value!r}: {expected[0].lower()}{expected[1:]}") from error


def _validated(adapter: TypeAdapter[Any], value: object) -> Any:
    try:
        text = json.dumps(value)
    except TypeError:  # not from a scenario file but from a program, which may pass any object
        return adapter.validate_python(value)
    return adapter.validate_json(text)


def _listed(known: Iterable[str]) -> str:
    return f"its options: {', '.join(known) or 'none'}"
