"""From a study to its runs: variants crossed with the grid and the seeds, each a resolved scenario.

A run is known by the content of its scenario, not by its name: what is in the study's folder under the same
content is that run, however the study file called it then. Not for running any of them.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from fedprune import registry
from fedprune.costs.ledger import Listener
from fedprune.errors import PluginError, ScenarioError
from fedprune.plugin_files import is_in_file, path_in
from fedprune.results.plugin_copies import files_of
from fedprune.scenario import Scenario, yaml_file
from fedprune.scenario.yaml_file import KeyPath, Origin
from fedprune.server.check import resolve
from fedprune.server.strategy import PruningStrategy
from fedprune.studies.outcomes import label
from fedprune.studies.spec import SearchSpec, StudySpec, VariantSpec
from fedprune.wording import known_here, one_line

#: Scenario keys that hold paths; those of a study start from its own folder.
PATHS = (("data", "path"), ("model", "weights"), ("clients", "profiles"), ("clients", "trace"))
#: Keys of a study, besides its runs, that hold keys of the scenario.
_HOLD_KEYS = ("set", "grid")
#: Parts of a scenario that results do not depend on.
_INDIFFERENT = {"name", "engine", "logging"}
#: Characters of a text in a folder's name, which file systems let have 255 bytes in all.
_LONGEST = 120


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study.

    Attributes
    ----------
    variant
        Its name in the study file.
    point
        The grid's values in it, dotted key to value.
    seed
        Its seed.
    scenario
        The scenario, resolved.
    tuned
        Values of the variant's ``tune`` grid in it: those that are tried, or that won.
    trial
        Whether it is run to tune, and no part of the comparison.
    number
        The number of the trial where it is one of a search.
    listeners
        Told in its process of every task and round; they are pickled.
    """

    variant: str
    point: Mapping[str, Any]
    seed: int
    scenario: Scenario = field(repr=False)
    tuned: Mapping[str, Any] = field(default_factory=dict)
    trial: bool = False
    number: int | None = None
    listeners: tuple[Listener, ...] = field(default=(), repr=False)

    @property
    def group(self) -> str:
        """What it is called together with those of other seeds."""
        if self.number is not None:
            return f"{label(self.variant, self.point)}, trial {self.number}"
        return label(self.variant, {**self.point, **(self.tuned if self.trial else {})})

    @property
    def title(self) -> str:
        """What a person calls it."""
        tuning = self.trial and self.number is None
        return f"{self.group}, seed {self.seed}{' (tuning)' if tuning else ''}"

    @cached_property
    def identity(self) -> str:
        """Sixteen hexadecimal digits of all that its results depend on: see `identity_of`."""
        return identity_of(self.scenario)

    @property
    def folder(self) -> str:
        """The name of its run folder: a person's words, and its identity."""
        return f"{slug(self.group)}-seed-{self.seed}-{self.identity}"


def identity_of(scenario: Scenario) -> str:
    """Return sixteen hexadecimal digits of all that the results of a resolved scenario depend on.

    That is every value but the name, the loggers and the section ``engine``, of which ``instructions``
    counts; and the content of the plug-in files that it names.
    """
    if scenario.logging:
        scenario = scenario.override(logging=[])  # And so without their files.
    content = scenario.model_dump(mode="json", exclude=_INDIFFERENT)
    content["instructions"] = scenario.engine.instructions
    content["files"] = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files_of(scenario)]
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


def slug(text: str) -> str:
    """Return a text as a name of a folder or a scenario.

    Examples
    --------
    >>> slug("FedTiny, density 0.05")
    'FedTiny-density-0.05'
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:_LONGEST].strip("-._") or "run"


class Plan:
    """What a study consists of.

    Parameters
    ----------
    study : StudySpec
        The study.

    Raises
    ------
    ScenarioError
        Where a run's scenario is none; one line for each mistake, which says where it stands.
    """

    def __init__(self, study: StudySpec) -> None:
        self.study = study
        content, origin, self._directory = _base(study)
        changes = [(key, value, ("set", key)) for key, value in study.set.items()]
        self._content, self._origin = self._changed(content, origin, changes)
        self._crossed = {name: list(self._points(name)) for name in study.runs}
        mistakes: dict[str, None] = {}
        self._scenarios: dict[tuple[str, int], Scenario] = {}
        for name, points in self._crossed.items():
            for number, point in enumerate(points):
                try:
                    self._scenarios[name, number] = self._scenario(name, point)
                except ScenarioError as error:
                    mistakes |= dict.fromkeys(str(error).splitlines())
        if not mistakes:  # Else each search would repeat those of its run.
            mistakes |= dict.fromkeys(self._mistakes_in_ranges())
        if mistakes:
            raise ScenarioError("\n".join(mistakes))
        self._refuse_idle_keys()

    @property
    def base(self) -> Mapping[str, Any]:
        """What all runs start from, as plain data: resolved, where it is a scenario by itself."""
        try:
            scenario = resolve(Scenario._validated(self._content, self._directory, self._origin))
        except ScenarioError:
            return self._content
        return scenario.model_dump(mode="json")

    def document(self) -> dict[str, Any]:
        """Return the study as plain data that reads back to the same study from any folder."""
        content, home = dict(self.study.content), self.study.directory
        if isinstance(content["base"], str):
            content["base"] = str((home / Path(content["base"]).expanduser()).resolve())
        content["runs"] = {name: _all_located(each, home) for name, each in content["runs"].items()}
        return {
            key: _all_located(value, home) if key in _HOLD_KEYS else value for key, value in content.items()
        }

    def runs(self) -> list[PlannedRun]:
        """Return the runs of the comparison, variant by variant; those to be tuned have no tuned values."""
        return list(self._runs)

    @cached_property
    def _runs(self) -> tuple[PlannedRun, ...]:
        """The same, made once: whoever asks how far a study is asks for them every moment."""
        return tuple(
            PlannedRun(name, point, seed, _seeded(self._scenarios[name, number], seed))
            for name, points in self._crossed.items()
            for number, point in enumerate(points)
            for seed in self.study.seeds
        )

    def trials(self, variant: str) -> list[PlannedRun]:
        """Return the runs that tune a variant; none where it is not to be tuned."""
        tune = self.study.runs[variant].tune
        if tune is None:
            return []
        at = self._at(variant, tune.at)
        made = []
        for values in itertools.product(*tune.grid.values()):
            tuned = dict(zip(tune.grid, values, strict=True))
            scenario = self._scenario(variant, at, tuned)
            made += [
                PlannedRun(variant, at, seed, _seeded(scenario, seed), tuned, trial=True)
                for seed in tune.seeds
            ]
        return made

    def searched(
        self, search: SearchSpec, values: Mapping[str, Any], number: int | None = None
    ) -> list[PlannedRun]:
        """Return the runs of a trial of a search, one a seed.

        Raises
        ------
        ScenarioError
            Where the values do not go together.
        """
        at = self._at(search.run, search.at)
        scenario = self._scenario(search.run, at, values)
        return [
            PlannedRun(search.run, at, seed, _seeded(scenario, seed), dict(values), trial=True, number=number)
            for seed in search.seeds
        ]

    def _at(self, variant: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Return the point of the grid at which a variant is tuned: the first, where none is chosen."""
        return {key: chosen.get(key, value) for key, value in self._crossed[variant][0].items()}

    def _mistakes_in_ranges(self) -> Iterator[str]:
        """Yield what is wrong with the ends of searched ranges, each by itself."""
        for search in self.study.search:
            for key, values in search.ranges.items():
                for value in values.ends:
                    try:
                        self.searched(search, {key: value})
                    except ScenarioError as error:
                        yield from str(error).splitlines()

    def tuned(self, runs: Iterable[PlannedRun], variant: str, tuned: Mapping[str, Any]) -> list[PlannedRun]:
        """Return those of the runs that are of a variant, with the values that won."""
        return [
            replace(
                run, scenario=_seeded(self._scenario(variant, run.point, tuned), run.seed), tuned=dict(tuned)
            )
            for run in runs
            if run.variant == variant
        ]

    def _points(self, name: str) -> Iterator[dict[str, Any]]:
        """Yield the grid's points that a variant takes part in; one without keys where that is none."""
        variant = self.study.runs[name]
        axes: dict[str, list[Any]] = {}
        for key, values in self.study.grid.items():
            left_out = variant.leave_out.get(key, ())
            chosen = [v for v in variant.only.get(key, values) if left_out is not None and v not in left_out]
            if chosen and not _sets(variant, key) and self._takes(variant, key):
                axes[key] = chosen
        for point in itertools.product(*axes.values()):
            yield dict(zip(axes, point, strict=True))

    def _takes(self, variant: VariantSpec, key: str) -> bool:
        """Say whether a variant has a key: whether its strategy has that option, for one of a strategy's."""
        section, _, option = key.partition(".")
        if section != "strategy" or not option:
            return True
        content, _ = yaml_file.override(self._content, self._origin, variant.set)
        strategy: Any = content.get("strategy")
        try:
            name = _located(strategy["name"], self.study.directory)
            found = registry.load("strategy", name, self._directory)
        except (PluginError, KeyError, TypeError):
            return True  # Its own check says what is wrong.
        if not issubclass(found, PruningStrategy):
            return option in inspect.signature(found).parameters
        known = found.Options.model_fields.get(option.partition(".")[0])
        return known is not None and not _is_constant(known)

    def _scenario(
        self, name: str, point: Mapping[str, Any], tuned: Mapping[str, Any] | None = None
    ) -> Scenario:
        """Return the scenario of a variant at a point of the grid, resolved."""
        changes: list[tuple[str, Any, KeyPath]] = []
        changes += [(key, value, ("runs", name, key)) for key, value in self.study.runs[name].set.items()]
        changes += [(key, value, ("grid", key)) for key, value in point.items()]
        search = self.study.search_of(name)
        tried: KeyPath = ("runs", name, "tune", "grid")
        if search is not None:
            tried = (*self.study.place_of(search), "ranges")
        changes += [(key, value, (*tried, key)) for key, value in (tuned or {}).items()]
        content, origin = self._changed(self._content, self._origin, changes)
        content["name"] = slug(label(name, {**point, **(tuned or {})}))
        return resolve(Scenario._validated(content, self._directory, origin))

    def _changed(
        self, content: Mapping[str, Any], origin: Origin, changes: Iterable[tuple[str, Any, KeyPath]]
    ) -> tuple[dict[str, Any], Origin]:
        """Return a scenario's content with other values: the key of each, the value, and where it stands."""
        content = dict(content)
        for key, value, stands in changes:
            labels = self._labels(tuple(key.split(".")), stands)
            content, _ = yaml_file.override(
                content, origin, {key: _located_under(key, value, self.study.directory)}, _prefix(labels, key)
            )
            kept = {
                k: v for k, v in origin.overrides.items() if k[: len(key.split("."))] != tuple(key.split("."))
            }
            origin = replace(origin, overrides=kept | labels)
        return content, origin

    def _labels(self, key: KeyPath, stands: KeyPath) -> dict[KeyPath, str]:
        """Return what to call a changed value, and all that is inside it, in messages."""
        written = self.study.origin
        inner = [found for found in written.lines if found[: len(stands)] == stands] or [stands]
        return {(*key, *found[len(stands) :]): written.complaint(found, "").rstrip(": ") for found in inner}

    def _refuse_idle_keys(self) -> None:
        for key in self.study.grid:
            if key.partition(".")[0] in _INDIFFERENT:
                raise ScenarioError(
                    self.study.complaint(("grid", key), "no result depends on it: take it out of the grid")
                )
            if not any(key in point for points in self._crossed.values() for point in points):
                raise ScenarioError(
                    self.study.complaint(
                        ("grid", key), "no run has this key, or each sets it itself: take it out of the grid"
                    )
                )


def _base(study: StudySpec) -> tuple[dict[str, Any], Origin, Path]:
    """Return what all runs start from, where it stands, and the folder that its paths start from."""
    if isinstance(study.base, str):
        try:
            path = study.directory / Path(study.base).expanduser()
            there = path.exists()
        except (OSError, RuntimeError, ValueError) as error:  # Too long, or the home of an unknown person.
            raise ScenarioError(study.complaint(("base",), f"no such file: {one_line(error)}")) from None
        if path.is_dir():
            raise ScenarioError(study.complaint(("base",), f"{path} is a folder: name a scenario file"))
        if not there:
            near = known_here(path.name, (file.name for file in path.parent.glob("*.y*ml")), "")
            raise ScenarioError(study.complaint(("base",), f"no such file {path}{near}"))
        content, origin = yaml_file.read(path)
        return content, origin, path.parent
    lines = {key[1:]: line for key, line in study.origin.lines.items() if key[:1] == ("base",) and key[1:]}
    return study.base, Origin(study.origin.name, lines), study.directory


def _is_constant(option: FieldInfo) -> bool:
    """Say whether an option can have one value alone, as the density of a dense method."""
    bounds = {
        name: getattr(limit, name)
        for limit in option.metadata
        for name in ("ge", "le")
        if hasattr(limit, name)
    }
    return len(bounds) == 2 and bounds["ge"] == bounds["le"]


def _seeded(scenario: Scenario, seed: int) -> Scenario:
    return scenario.override(seed=seed)


def _sets(variant: VariantSpec, key: str) -> bool:
    """Say whether a variant sets a key itself, or a part of it that holds the key."""
    words = key.split(".")
    for written, value in variant.set.items():
        parts = written.split(".")
        if parts[: len(words)] == words:
            return True
        if parts == words[: len(parts)]:
            for word in words[len(parts) :]:
                value = value.get(word) if isinstance(value, Mapping) else None
            if value is not None:
                return True
    return False


def _prefix(labels: Mapping[KeyPath, str], key: str) -> str:
    """Return what errors about a change begin with: its label, of which the key is the end."""
    return labels.get(tuple(key.split(".")), key).removesuffix(key)


def _all_located(values: Mapping[str, Any] | None, folder: Path) -> dict[str, Any]:
    """Return dotted keys with the paths in their values made absolute."""
    return {key: _located_under(key, value, folder) for key, value in (values or {}).items()}


def _located_under(key: str, value: Any, folder: Path) -> Any:
    """Return the value of a dotted key with paths in it that start from a folder made absolute."""
    words = tuple(key.split("."))
    if isinstance(value, Mapping):
        return {inner: _located_under(f"{key}.{inner}", item, folder) for inner, item in value.items()}
    if isinstance(value, list):
        return [_located(item, folder) for item in value]
    if words in PATHS and isinstance(value, str) and (folder / value).exists():
        return str((folder / value).resolve())
    return _located(value, folder)


def _located(value: Any, folder: Path) -> Any:
    """Return a "file.py:Name" with its path absolute, where the file is in the folder."""
    if isinstance(value, str) and is_in_file(value) and (folder / path_in(value)).is_file():
        return f"{(folder / path_in(value)).resolve()}:{value.rpartition(':')[2]}"
    return value
