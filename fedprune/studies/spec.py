"""The study file: which runs a study has, and what they are compared with.

Not for what the runs are made of: every one is a scenario, which `fedprune.studies.plan` makes of these keys.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, ValidationError, model_validator

from fedprune.errors import ScenarioError
from fedprune.scenario import yaml_file
from fedprune.scenario.base import Spec
from fedprune.scenario.validation import explain, refuse
from fedprune.scenario.yaml_file import KeyPath, Origin
from fedprune.studies.objectives import column_of, direction_of, refuse_unknown
from fedprune.wording import known_here, show


def _each_once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    for number, value in enumerate(values):
        if value in values[:number]:
            raise ValueError(f"{show(value)} is given twice: leave one of them out")
    return values


Values = Annotated[tuple[Any, ...], Field(min_length=1, strict=False), AfterValidator(_each_once)]
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


def _number(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{show(value)} is not a number")
    if not isfinite(value):
        raise ValueError(f"{show(value)} is not a finite number")
    return value


Number = Annotated[int | float, BeforeValidator(_number)]
"""A bound of a range: whole numbers where both are whole."""


class RangeSpec(Spec):
    """What a search may set a key to: numbers from one to another, or one of a list."""

    low: Number | None = Field(default=None, description="The least value.")
    high: Number | None = Field(
        default=None, description="The greatest value. Where both are whole numbers, so are all between."
    )
    log: bool = Field(default=False, description="Whether orders of magnitude count alike.")
    step: Number | None = Field(default=None, description="Only every such value from the least one on.")
    choices: Annotated[tuple[Any, ...], Field(min_length=1, strict=False)] | None = Field(
        default=None, description="The values, in place of a range; a list by itself means the same."
    )

    @property
    def whole(self) -> bool:
        """Whether the values are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int) and not isinstance(self.step, float)

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that say whether all of them are possible: the bounds, or every choice."""
        return self.choices if self.choices is not None else (self.low, self.high)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.choices is not None:
            others = [key for key in ("low", "high", "log", "step") if key in self.model_fields_set]
            if others:
                raise refuse(others[0], "a list of choices has no bounds: leave it out")
            if len({repr(value) for value in self.choices}) < len(self.choices):
                raise refuse("choices", "a value is given twice: leave one of them out")
            for value in self.choices:
                if not isinstance(value, str | int | float | None):
                    raise refuse("choices", f"{show(value)} is neither text, a number, true nor false")
            return self
        for key in ("low", "high"):
            if getattr(self, key) is None:
                raise refuse(key, "this key is missing: write {low: 1, high: 20}, or a list of values")
        assert self.low is not None
        assert self.high is not None
        if self.low >= self.high:
            raise refuse("high", f"{self.high} must be more than low, {self.low}")
        if self.step is not None and self.step <= 0:
            raise refuse("step", f"{self.step} is out of range: must be more than 0")
        if self.log and self.low <= 0:
            raise refuse("low", f"{self.low} is out of range: with log it must be more than 0")
        if self.log and self.step is not None:
            raise refuse("step", "a range has either log or step: leave one of them out")
        return self


def _range(value: object) -> object:
    """Take a list for the choices that it has."""
    return {"choices": value} if isinstance(value, list | tuple) else value


def _objective(value: object) -> object:
    """Take a figure's name for the figure and the direction in which it is better."""
    return {value: direction_of(value)} if isinstance(value, str) else value


class SearchSpec(Spec):
    """How values of a run are searched before the comparison, on seeds that the comparison does not use."""

    run: str = Field(description="The run whose values are searched.", examples=["FedTiny"])
    ranges: dict[str, Annotated[RangeSpec, BeforeValidator(_range)]] = Field(
        min_length=1,
        description="Dotted key to {low, high}, with log or step where wanted, or to a list of choices.",
        examples=[{"clients.training.optimizer.lr": {"low": 0.001, "high": 0.3, "log": True}}],
    )
    trials: int = Field(default=20, ge=1, description="How many values are tried, pruned ones included.")
    seeds: Seeds = Field(
        default=(1000,),
        description="Seeds to search on; a trial's value is the mean over them. None may be one of the "
        "study's own.",
    )
    objective: Annotated[dict[str, Literal["maximize", "minimize"]], BeforeValidator(_objective)] = Field(
        default={"final_accuracy": "maximize"},
        min_length=1,
        description="A figure of summary.json, or several, each with maximize or minimize.",
        examples=[{"final_accuracy": "maximize", "bytes_up": "minimize"}],
    )
    sampler: Literal["tpe", "random"] = Field(
        default="tpe",
        description="How values are chosen: by Optuna's tree-structured Parzen estimator, or at random.",
    )
    seed: int = Field(
        default=0, ge=0, le=2**31, description="What the sampler draws from; trial n has seed + n."
    )
    prune: Literal["asha", "none"] = Field(
        default="none",
        description="Whether hopeless trials are ended early, by asynchronous successive halving: of those "
        "that came to a rung, the best third goes on. Needs one objective that has a value each round.",
    )
    prune_from: int | None = Field(
        default=None,
        ge=1,
        description="The round of the first rung; each further one is at three times the rounds. A ninth of "
        "all rounds where not given.",
    )
    at: dict[str, Any] = Field(
        default={},
        description="The grid's values at which is searched, dotted key to value; the first of each where "
        "not given.",
    )
    take: int | None = Field(
        default=None,
        ge=0,
        description="The number of the trial whose values the comparison has. The best where not given and "
        "there is one objective; none, where there are several.",
    )

    @property
    def column(self) -> str | None:
        """The column of ``rounds.jsonl`` that says of each round how good it is; None where there is none."""
        return column_of(next(iter(self.objective))) if len(self.objective) == 1 else None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for key in self.objective:
            refuse_unknown(key)
        if self.prune != "none" and self.column is None:
            raise refuse(
                "prune", "needs one objective that has a value each round, such as final_accuracy: write none"
            )
        if self.prune_from is not None and self.prune == "none":
            raise refuse("prune_from", "belongs to prune asha, but prune is none: leave it out")
        if self.take is not None and self.take >= self.trials:
            raise refuse("take", f"there are {self.trials} trials, from 0 on: no trial {self.take}")
        return self


def _searches(value: object) -> object:
    """Take one search for a list of it."""
    return (value,) if isinstance(value, Mapping) else value


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
        own["except"] = dict.fromkeys(map(str, own["except"]))
    return {**own, "set": {key: item for key, item in value.items() if key not in _OWN}}


def _file_or_mapping(value: object) -> object:
    if not isinstance(value, str | Mapping):
        raise ValueError(f"{show(value)} is neither a scenario file nor a mapping of a scenario's keys")
    return value


class StudySpec(Spec):
    """A study: read one with `load_study`."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Name of the study and of its folder: letters, digits, '.', '_' and '-', the first a "
        "letter or a digit.",
        examples=["my-study"],
    )
    base: Annotated[str | dict[str, Any], BeforeValidator(_file_or_mapping)] = Field(
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
    search: Annotated[tuple[SearchSpec, ...], BeforeValidator(_searches), Field(strict=False)] = Field(
        default=(), description="A search for a run's values, or a list of searches, one a run."
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
    _content: dict[str, Any] = PrivateAttr(default_factory=dict)

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
        self._check_names()
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
                for key in variant.tune.grid:
                    self._refuse_of_grid(key, f"runs.{name}.tune.grid")
                self._check_trials(f"runs.{name}.tune", "tune", variant.tune)
        self._check_searches()
        return self

    def _check_names(self) -> None:
        """Refuse runs without a name of one line, and a seed that is not under ``seeds``."""
        for name in self.runs:
            if not name.strip() or not name.isprintable():
                raise refuse("runs", f"{name!r} is no name of a run: write some characters on one line")
        places: dict[str, Mapping[str, Any]] = {"set": self.set, "grid": self.grid}
        for name, variant in self.runs.items():
            places[f"runs.{name}"] = variant.set
            if variant.tune is not None:
                places[f"runs.{name}.tune.grid"] = variant.tune.grid
        places |= {f"search.{number}.ranges": search.ranges for number, search in enumerate(self.search)}
        for where, keys in places.items():
            if "seed" in keys:
                raise refuse(
                    f"{where}.seed", "the runs have the seeds of the study: write them under `seeds`"
                )

    def _check_trials(self, where: str, verb: str, trials: TuneSpec | SearchSpec) -> None:
        shared = sorted(set(trials.seeds) & set(self.seeds))
        if shared:
            raise refuse(
                f"{where}.seeds",
                f"{', '.join(map(str, shared))} is a seed of the comparison, too: {verb} on others",
            )
        for key, value in trials.at.items():
            if key not in self.grid or value not in self.grid[key]:
                raise refuse(f"{where}.at", f"the grid has no {key}: {value!r}")

    def _check_searches(self) -> None:
        for number, search in enumerate(self.search):
            where = f"search.{number}"
            if search.run not in self.runs:
                raise refuse(f"{where}.run", f"no run {search.run!r}{known_here(search.run, self.runs, '')}")
            if search.run in [other.run for other in self.search[:number]]:
                raise refuse(f"{where}.run", f"{search.run} is searched already: put all its ranges together")
            if self.runs[search.run].tune is not None:
                raise refuse(f"{where}.run", f"{search.run} has a tune grid of its own: keep one of them")
            for key in search.ranges:
                self._refuse_of_grid(key, f"{where}.ranges")
            self._check_trials(where, "search", search)

    def _refuse_of_grid(self, key: str, where: str) -> None:
        if key in self.grid:
            raise refuse(where, f"{key} is in the grid, too: take it out of one of them")

    def search_of(self, run: str) -> SearchSpec | None:
        """Return the search for a run's values; None where there is none."""
        return next((search for search in self.search if search.run == run), None)

    def place_of(self, search: SearchSpec) -> KeyPath:
        """Return where a search stands in the file."""
        number = self.search.index(search)
        return ("search", number) if ("search", number) in self._origin.lines else ("search",)

    @property
    def directory(self) -> Path:
        """The folder of the study's file, which relative paths in it start from."""
        return self._directory

    @property
    def origin(self) -> Origin:
        """Where the study's keys stand."""
        return self._origin

    @property
    def content(self) -> Mapping[str, Any]:
        """The study as it was given, as plain data."""
        return self._content

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
    if "strategy" in content and "runs" not in content:
        where = "" if isinstance(source, Mapping) else f"{source}: "
        raise ScenarioError(f"{where}this is a scenario, of one run: write it under `base` of a study")
    if overrides:
        content, origin = _overridden(content, origin, overrides)
    context = {"directory": Path(os.path.abspath(folder)), "origin": origin, "content": content}
    try:
        return StudySpec.model_validate(content, context=context)
    except ValidationError as error:
        one = isinstance(content.get("search"), Mapping)
        mistakes = [(_as_written(key, one), text) for key, text in explain(error, StudySpec)]
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


def _as_written(key: KeyPath, one_search: bool) -> KeyPath:
    """Return a key path as the file has it.

    The keys that a run sets stand in the run itself, and one search is not in a list.
    """
    if key[:1] == ("search",) and one_search:
        return key[:1] + key[2:]
    return key[:2] + key[3:] if key[:1] == ("runs",) and key[2:3] == ("set",) else key
