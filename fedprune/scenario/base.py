"""What the sections of a scenario share: their base models, names of plug-ins, and paths."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    model_serializer,
    model_validator,
)

from fedprune.plugin_files import is_in_file, path_in
from fedprune.scenario.validation import refuse
from fedprune.wording import did_you_mean


def _directory(info: ValidationInfo) -> Path:
    """Return the folder that relative paths start from: the scenario file's, else the working directory."""
    directory: Path | None = (info.context or {}).get("directory")
    return directory or Path.cwd()


def absolute_path(path: Path, info: ValidationInfo) -> Path:
    """Resolve a path against the scenario's folder or, where nothing is there, the working directory.

    The latter is what a path after ``--set`` means.
    """
    beside = Path(os.path.abspath(_directory(info) / path.expanduser()))
    here = Path(os.path.abspath(path.expanduser()))
    return here if here.exists() and not beside.exists() else beside


def absolute_plugins(value: Any, info: ValidationInfo) -> Any:
    """Make the path of every "file.py:Name" absolute, so that it names the same file everywhere."""
    if isinstance(value, str) and is_in_file(value):
        return f"{absolute_path(path_in(value), info)}:{value.rpartition(':')[2]}"
    if isinstance(value, list):
        return [absolute_plugins(item, info) for item in value]
    if isinstance(value, dict):
        return {key: absolute_plugins(item, info) for key, item in value.items()}
    return value


def existing_file(path: Path, info: ValidationInfo) -> Path:
    """Make the path of a file that is read with the scenario absolute; refuse one that does not exist."""
    absolute = absolute_path(path, info)
    if not absolute.is_file():
        near = did_you_mean(absolute.name, (file.name for file in absolute.parent.glob("*")))
        raise ValueError(f"{absolute} is no file{near or ': correct it'}")
    return absolute


PluginName = Annotated[str, Field(min_length=1), AfterValidator(absolute_plugins)]
"""A built-in name, an entry point, "package.module:Name" or "file.py:Name", whose path becomes absolute."""

Fraction = Annotated[float, Field(ge=0, lt=1)]


class Spec(BaseModel):
    """What all parts of a scenario share: no unknown keys, no silent conversions, no changes afterwards."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, ser_json_inf_nan="constants"
    )


def defaults_left_out(spec: Spec, keys: Collection[str]) -> dict[str, Any]:
    """Return those of the keys at which a spec has its default, with it."""
    fields = type(spec).model_fields
    return {key: fields[key].default for key in keys if getattr(spec, key) == fields[key].default}


class PluginSpec(Spec):
    """A plug-in's name with options of its own, which are checked against the plug-in, not here."""

    model_config = ConfigDict(extra="allow")

    __pydantic_extra__: dict[str, Annotated[Any, AfterValidator(absolute_plugins)]] = Field(init=False)

    @property
    def options(self) -> dict[str, Any]:
        """The plug-in's own options: every key that is no field of the spec, as ``name`` is."""
        return dict(self.model_extra or {})


class ChoiceSpec(Spec):
    """A spec in which some keys belong to one choice: refused, and left out of a dump, under another."""

    chooser: ClassVar[str]
    """The field that chooses."""
    keys_of: ClassVar[Mapping[str, tuple[str, ...]]]
    """Choice to the keys that belong to it; keys named nowhere belong to all."""

    def _foreign(self) -> dict[str, str]:
        """Return every key that does not belong to the choice made, with the choices that it belongs to."""
        chosen = self.keys_of.get(getattr(self, self.chooser), ())
        owners: dict[str, list[str]] = {}
        for choice, keys in self.keys_of.items():
            for key in keys:
                owners.setdefault(key, []).append(choice)
        return {key: " or ".join(choices) for key, choices in owners.items() if key not in chosen}

    @model_validator(mode="after")
    def _refuse_foreign_keys(self) -> Self:
        for key, owners in self._foreign().items():
            if key in self.model_fields_set:
                raise refuse(
                    key,
                    f"belongs to {self.chooser} {owners}, but {self.chooser} is "
                    f"{getattr(self, self.chooser)}: leave it out",
                )
        return self

    #: Keys that a dump leaves out where they have their default: what came later changes no older digest.
    left_out: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_foreign_keys(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        foreign = self._foreign() | defaults_left_out(self, self.left_out)
        return {key: value for key, value in handler(self).items() if key not in foreign}
