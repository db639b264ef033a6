"""The study file: which runs a study has, and what they are compared with.

Not for what the runs are made of: every one is a scenario, which `fedprune.studies.plan` makes of these keys.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError, model_validator

from fedprune.errors import ScenarioError
from fedprune.scenario import yaml_file
from fedprune.scenario.base import Spec
from fedprune.scenario.validation import explain, refuse
from fedprune.scenario.yaml_file import KeyPath, Origin
from fedprune.wording import known_here

Values = Annotated[tuple[Any, ...], Field(min_length=1, strict=False)]
"""What a key of a grid is set to, one after the other."""


def _seeds(value: object) -> object:
    """Return the seeds that a number stands for: those from 0 on."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return tuple(range(value))
    if not isinstance(value, list | tuple):
        raise ValueError(f"{value!r} is neither a number of seeds from 1 on nor a list of them, as [0, 1, 2]")
    if len(set(map(str, value))) < len(value):
        raise ValueError("a seed is given twice: leave one of them out")
    return tuple(value)


Seeds = Annotated[
    tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_seeds), Field(min_length=1, strict=False)
]


class TuneSpec(Spec):
    """How a variant is tuned before the comparison, on seeds that the comparison does not use."""

    grid: dict[str, Values] = Field(
        min_length=1,
        description="Dotted key to the values to try; all of their combinations are run.",
        examples=[{"strategy.score_lr": [0.01, 0.1]}],
    )
    seeds: Seeds = Field(
        default=(1000,), description="Seeds to tune on; none of them may be one of the study's own."
    )
    at: dict[str, Any] = Field(
        default={},
        description="The grid's values at which the variant is tuned, dotted key to value; the first of each "
        "where not given.",
    )


class VariantSpec(Spec):
    """One named run: keys of the scenario to set, and how it is crossed with the grid."""

    set: dict[str, Any] = Field(default={}, description="Dotted key to value, as for --set.")
    only: dict[str, Values] = Field(
        default={}, description="Of the grid: dotted key to the values that this run takes part in."
    )
    leave_out: dict[str, Values | None] = Field(
        default={},
        alias="except",
        description="Of the grid: keys that this run is not crossed with, or values.",
    )
    tune: TuneSpec | None = Field(default=None, description="A small grid to tune this run on beforehand.")


#: Keys of a run that are not the scenario's.
_OWN = ("only", "except", "tune")


def _variant(value: object) -> object:
    """Part the scenario's keys from the run's own."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError("write a mapping of dotted keys to values, such as {strategy: {name: fedavg}}")
    own = {key: item for key, item in value.items() if key in _OWN}
    if isinstance(own.get("except"), list):
        own["except"] = dict.fromkeys(own["except"])
    return {**own, "set": {key: item for key, item in value.items() if key not in _OWN}}


class StudySpec(Spec):
    """A study: read one with `load_study`."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Name of the study and of its folder: letters, digits, '.', '_' and '-', the first a "
        "letter or a digit.",
        examples=["my-study"],
    )
    base: str | dict[str, Any] = Field(
        description="The scenario that all runs start from: a file, relative to the study's, or the mapping "
        "itself.",
        examples=["../scenarios/quickstart.yaml"],
    )
    set: dict[str, Any] = Field(
        default={},
        description="Dotted key to value, put in the base before runs change it; `--set` adds to it.",
        examples=[{"rounds": 12}],
    )
    seeds: Seeds = Field(
        default=(0,),
        description="Seeds of every run: a list, or how many from 0 on. Runs of one seed share data split, "
        "initial weights, client sampling and devices.",
        examples=[3],
    )
    runs: dict[str, Annotated[VariantSpec, BeforeValidator(_variant)]] = Field(
        min_length=1,
        description="The methods or settings to compare: a name, and the keys of the scenario that make it.",
        examples=[{"FedAvg": {"strategy": {"name": "fedavg"}}}],
    )
    grid: dict[str, Values] = Field(
        default={}, description="Dotted key to a list of values; crossed with every run that has the key."
    )
    reference: str | None = Field(
        default=None, description="The run that the others are compared with.", examples=["FedAvg"]
    )
    target: float | None = Field(
        default=None,
        description="A value of the headline metric: what runs cost until they reach it is compared. Written "
        "target_accuracy where the metric is accuracy.",
    )
    target_metric: str | None = Field(default=None, description="The metric that the target is one of.")

    _directory: Path = PrivateAttr(default_factory=Path.cwd)
    _origin: Origin = PrivateAttr(default_factory=Origin)

    def model_post_init(self, context: Any, /) -> None:
        """Keep where the study came from, given as the validation context."""
        for name, value in (context or {}).items():
            setattr(self, f"_{name}", value)

    @model_validator(mode="before")
    @classmethod
    def _read_target(cls, content: Any) -> Any:
        """Take ``target_<metric>: value`` for a target and the metric it is one of."""
        if not isinstance(content, Mapping):
            return content
        named = [key for key in content if key.startswith("target_") and key not in cls.model_fields]
        if not named:
            return content
        if len(named) > 1 or "target" in content:
            raise refuse(named[-1], "the study has another target already: keep one of them")
        rest = {key: value for key, value in content.items() if key != named[0]}
        return {**rest, "target": content[named[0]], "target_metric": named[0].removeprefix("target_")}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if "seed" in self.set:
            raise refuse("set.seed", "the runs have the seeds of the study: write them under `seeds`")
        if self.reference is not None and self.reference not in self.runs:
            raise refuse("reference", f"no run {self.reference!r}{known_here(self.reference, self.runs, '')}")
        for name, variant in self.runs.items():
            for own, given in (("only", variant.only), ("except", variant.leave_out)):
                for key, values in given.items():
                    where = f"runs.{name}.{own}"
                    if key not in self.grid:
                        raise refuse(where, f"the grid has no key {key!r}{known_here(key, self.grid, '')}")
                    for value in values or ():
                        if value not in self.grid[key]:
                            raise refuse(where, f"{value!r} is none of the grid's values of {key}")
            if variant.tune is not None:
                self._check_tuning(name, variant.tune)
        return self

    def _check_tuning(self, name: str, tune: TuneSpec) -> None:
        shared = sorted(set(tune.seeds) & set(self.seeds))
        if shared:
            raise refuse(
                f"runs.{name}.tune.seeds",
                f"{', '.join(map(str, shared))} is a seed of the comparison, too: tune on others",
            )
        for key, value in tune.at.items():
            if key not in self.grid or value not in self.grid[key]:
                raise refuse(f"runs.{name}.tune.at", f"the grid has no {key}: {value!r}")

    @property
    def directory(self) -> Path:
        """The folder of the study's file, which relative paths in it start from."""
        return self._directory

    @property
    def origin(self) -> Origin:
        """Where the study's keys stand."""
        return self._origin

    def complaint(self, key: KeyPath, message: str) -> str:
        """Return one line that says where the value at a key path stands, and the message."""
        return self._origin.complaint(key, message)


def load_study(
    source: Path | str | Mapping[str, Any],
    directory: Path | str | None = None,
    overrides: Mapping[str, object] | None = None,
) -> StudySpec:
    """Read a study.

    Parameters
    ----------
    source : Path, str or Mapping
        A YAML file, or what one holds.
    directory : Path or str, optional
        The folder that relative paths of a mapping start from; the working directory where not given.
    overrides : Mapping[str, object], optional
        Dotted key of the base to value, over what ``set`` has; text is read as YAML.

    Raises
    ------
    ScenarioError
        Where the file cannot be read or describes no study; one line for each mistake, with the file, the
        line, the key and what would be right. The runs' scenarios are not looked at yet.
    """
    if isinstance(source, Mapping):
        content, origin, folder = dict(source), Origin(), Path(directory or ".")
    else:
        content, origin = yaml_file.read(Path(source))
        folder = Path(source).parent
    if overrides:
        content, origin = _overridden(content, origin, overrides)
    context = {"directory": Path(os.path.abspath(folder)), "origin": origin}
    try:
        return StudySpec.model_validate(content, context=context)
    except ValidationError as error:
        mistakes = [(_as_written(key), text) for key, text in explain(error, StudySpec)]
        raise ScenarioError("\n".join(origin.complaint(*mistake) for mistake in mistakes)) from None


def _overridden(
    content: Mapping[str, Any], origin: Origin, overrides: Mapping[str, object]
) -> tuple[dict[str, Any], Origin]:
    """Return a study's content with more in its ``set``, after what the file has there."""
    values = {
        key: yaml_file.parse(value, f"--set {key}") if isinstance(value, str) else value
        for key, value in overrides.items()
    }
    own = content.get("set")
    if own is not None and not isinstance(own, Mapping):
        return dict(content), origin  # Refused as it stands.
    kept = {key: value for key, value in (own or {}).items() if key not in values}
    labels: dict[KeyPath, str] = {("set", key): f"--set {key}" for key in values}
    return {**content, "set": {**kept, **values}}, replace(origin, overrides=labels)


def _as_written(key: KeyPath) -> KeyPath:
    """Return a key path as the file has it: the keys that a run sets stand in the run itself."""
    return key[:2] + key[3:] if key[:1] == ("runs",) and key[2:3] == ("set",) else key
