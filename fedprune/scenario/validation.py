"""What to tell a person about a value that a pydantic model refused, and about a name that is not known.

The texts say what was given, what is wrong with it and what would be right. Where in which file it
stands is added by `fedprune.scenario.yaml_file.Origin`.
"""

from __future__ import annotations

import re
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from fedprune.scenario.yaml_file import KeyPath
from fedprune.wording import did_you_mean, known_here, show

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
    "dict_type": "a mapping of keys to values",
    "tuple_type": "a list",
    "list_type": "a list",
}
_BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}
_REFUSED = "refused"
# Says only that another field of the same model is wrong, which has its own error.
_ECHO = "default_factory_not_called"


def refuse(key: str, message: str) -> PydanticCustomError:
    """Return what a model's validator raises to complain about one of its keys, dotted where it is nested."""
    # Braces in the message would be read as a template.
    return PydanticCustomError(_REFUSED, "{message}", {"key": key, "message": message})


def explain(error: ValidationError, spec: type[BaseModel], listed_in: str = "") -> list[tuple[KeyPath, str]]:
    """Return, for every mistake, the key path in the model and one line that says what would be right.

    Parameters
    ----------
    error : ValidationError
        What validating against ``spec`` raised.
    spec : type[BaseModel]
        The model; the known keys, ranges and descriptions are taken from its fields.
    listed_in : str
        Where a person finds all its keys, such as "`fedprune schema`".
    """
    return [_explain(details, spec, listed_in) for details in error.errors() if details["type"] != _ECHO]


def _explain(details: ErrorDetails, spec: type[BaseModel], listed_in: str) -> tuple[KeyPath, str]:
    key, given, context = details["loc"], details["input"], details.get("ctx", {})
    what = details["type"]
    field = _field(spec, key)
    if what == _REFUSED:
        return (*key, *context["key"].split(".")), context["message"]
    if what == "extra_forbidden":
        owner = _model(spec, key[:-1])
        known = list(owner.model_fields) if owner else []
        return key, f"no such key{known_here(str(key[-1]), known, listed_in)}"
    if what == "missing":
        return _missing(key, field)
    if what == "literal_error":
        # Names stand there in quotes, numbers without: "'iid', 'shard' or 'natural'", "1 or 2".
        choices = re.findall(r"'([^']*)'", context["expected"]) or re.findall(r"\d+", context["expected"])
        return key, f"{show(given)} is none of {', '.join(choices)}{did_you_mean(str(given), choices)}"
    if what in _BOUNDS:
        return key, f"{show(given)} is out of range: must be {_range(what, context, field)}"
    if what == "value_error":
        return key, str(context["error"])
    if what == "string_pattern_mismatch" and field is not None:
        return key, f"{show(given)} does not fit: {field.description}"
    if what in ("too_long", "too_short"):
        bound = context.get("max_length", context.get("min_length"))
        return key, f"has {context['actual_length']} entries, must have {bound}"
    if what in _EXPECTED:
        return key, f"{show(given)} is not {_EXPECTED[what]}{_hint(what, given, field)}"
    return key, f"{show(given)}: {details['msg']}"


def _hint(what: str, given: object, field: FieldInfo | None) -> str:
    """Return how to write a value of the right type, where that is worth saying."""
    if what == "string_type" and isinstance(given, int | float):
        return f': put it in quotes, "{show(given)}"'
    if what == "model_type" and field and field.examples:
        return f": write for example {show(field.examples[0])}"
    return ""


def _missing(key: KeyPath, field: FieldInfo | None) -> tuple[KeyPath, str]:
    if isinstance(key[-1], int):
        return key[:-1], f"has too few entries: {key[-1]}"
    description = f": {field.description}" if field and field.description else ""
    example = f" Example: {key[-1]}: {show(field.examples[0])}" if field and field.examples else ""
    return key, f"this key is missing{description}{example}"


def _range(what: str, context: dict[str, Any], field: FieldInfo | None) -> str:
    """Return the whole range of a field where it is known, else the bound that was broken."""
    bounds = []
    for limit in field.metadata if field else ():
        bounds += [
            f"{words} {getattr(limit, name):g}" for name, words in _BOUNDS.values() if hasattr(limit, name)
        ]
    attribute, words = _BOUNDS[what]
    return " and ".join(bounds) or f"{words} {context[attribute]:g}"


def _model(spec: type[BaseModel], key: KeyPath) -> type[BaseModel] | None:
    """Return the model that validates the mapping at a key path, None where there is none."""
    for part in key:
        if isinstance(part, int):
            continue
        field = spec.model_fields.get(part)
        inner = _model_in(field.annotation) if field else None
        if inner is None:
            return None
        spec = inner
    return spec


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model in an annotation such as ``Spec``, ``Spec | None`` or ``tuple[Spec, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)


def _field(spec: type[BaseModel], key: KeyPath) -> FieldInfo | None:
    owner = _model(spec, key[:-1]) if key else None
    return owner.model_fields.get(str(key[-1])) if owner else None
