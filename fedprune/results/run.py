"""A run as it is read back from its folder: its records, its summary, its model and its figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedprune.errors import UserError
from fedprune.results import folder
from fedprune.results.measures import known_measures
from fedprune.results.records import Record, read_lines, summarise
from fedprune.scenario import yaml_file as documents

if TYPE_CHECKING:
    from torch import nn

    from fedprune.results.figures import RunFigure
    from fedprune.scenario import Scenario


@dataclass(frozen=True)
class Run:
    """One run.

    ``rounds`` and ``clients`` are the lines of ``rounds.jsonl`` and ``clients.jsonl``,
    ``summary`` is ``summary.json``. ``document`` is ``scenario.yaml`` as plain data.

    Examples
    --------
    >>> run = load_run("runs/quickstart")  # doctest: +SKIP
    >>> run.summary["best_accuracy"], run.rounds[-1]["density"]  # doctest: +SKIP
    (0.912, 0.05)
    """

    directory: Path
    rounds: list[Record] = field(repr=False)
    clients: list[Record] = field(repr=False)
    summary: Record = field(repr=False)
    document: Mapping[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        """The scenario's name."""
        return str(self.summary["name"])

    @cached_property
    def scenario(self) -> Scenario:
        """The scenario as it was resolved."""
        from fedprune.scenario import load_scenario

        return load_scenario(self.directory / folder.SCENARIO)

    def model(self) -> nn.Module:
        """Return the final model in eval mode (see `fedprune.results.modelfile.load_model`)."""
        from fedprune.results.modelfile import load_model

        return load_model(self.model_file)

    @property
    def model_file(self) -> Path:
        """The final model's file; a ``UserError`` where the run left none."""
        path = self.directory / folder.MODEL
        if not path.exists():
            raise UserError(f"{self.directory}: the run is {self.summary['status']} and left no model")
        return path

    def plot(self, what: str | None = None) -> RunFigure:
        """Return one of the run's figures; a notebook shows it.

        Parameters
        ----------
        what : str, optional
            One of the task's metrics, such as "accuracy"; "costs", "density" or "classes". The headline
            metric where not given.
        """
        from fedprune.results.figures import figures_of

        figures = figures_of(folder.metrics_of(self.directory))
        what = next(iter(figures)) if what is None else what
        if what not in figures:
            raise UserError(f"there is no figure {what!r}; there are {', '.join(figures)}")
        return figures[what](self.rounds, self.name)

    def _repr_html_(self) -> str:
        """Return the summary as a small table, for notebooks."""
        rows = "".join(
            f"<tr><th>{escape(measure.label)}</th>"
            f"<td>{escape(measure.text(self.summary, self.summary.get('relative')))}</td></tr>"
            for measure in known_measures([self.summary])
        )
        return f"<table><caption>{escape(self.name)}</caption>{rows}</table>"


def load_run(directory: str | Path) -> Run:
    """Read a run folder.

    A run that was killed has no ``summary.json``: its records are read up to its last round,
    and its summary is computed from them, with status "unfinished".

    Raises
    ------
    UserError
        Where the folder is missing, is not a run's, or a file in it cannot be read.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: no such folder")
    if not folder.is_run_folder(directory):
        raise UserError(f"{directory}: not a run folder (no {folder.SCENARIO} that a run of fedprune wrote)")
    document = documents.read(directory / folder.SCENARIO)[0]
    rounds = read_lines(directory / folder.ROUNDS)
    clients = read_lines(directory / folder.CLIENTS)
    if (directory / folder.SUMMARY).exists():
        summary = _read_json(directory / folder.SUMMARY)
    else:
        from fedprune.scenario import load_scenario

        scenario = load_scenario(directory / folder.SCENARIO)
        summary = summarise(
            rounds,
            clients,
            name=scenario.name,
            strategy=scenario.strategy.name,
            seed=scenario.seed,
            planned_rounds=scenario.rounds,
            status="unfinished",
            metrics=folder.metrics_of(directory),
        )
    return Run(directory, rounds, clients, summary, document)


def _read_json(path: Path) -> Record:
    try:
        record = {**json.loads(path.read_text(encoding="utf-8"))}
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: damaged: {error}") from None
    if missing := [key for key in ("seed", "status") if key not in record]:
        raise UserError(f"{path}: damaged: it has no {missing[0]}")
    return record
