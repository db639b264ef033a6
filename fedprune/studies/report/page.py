"""The report of some runs: one HTML page that holds everything it needs, and loads nothing.

It puts together what the other modules of the package make, and what `fedprune.studies.statistics` says. It
knows no study file: whoever runs a study calls `write_report` with its outcomes. The same outcomes give the
same bytes; no time is in the page but what the records have.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import fedprune
from fedprune.errors import UserError
from fedprune.results.records import write_atomically
from fedprune.studies.outcomes import Outcome, headline
from fedprune.studies.report import figures, sections, tables
from fedprune.studies.report.cautions import cautions
from fedprune.studies.report.looks import Look, grid_of, looks_of
from fedprune.studies.statistics import summarise_groups
from fedprune.studies.table import claim_table, client_table, seed_table


def write_report(
    outcomes: Sequence[Outcome],
    path: str | Path,
    *,
    title: str,
    reference: str | None = None,
    target: float | None = None,
    base: Mapping[str, Any] | None = None,
    command: str | None = None,
    refresh: int | None = None,
    progress: str | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write the report of some runs as one HTML page.

    Parameters
    ----------
    outcomes
        The runs, also those that have not ended or not begun; at least one.
    path
        The page. Its folder is made; a page that is there is replaced in one step.
    title
        Its heading.
    reference
        The variant that the others are compared with; None compares with none.
    target
        The value of the headline metric for "cost until"; None leaves that table out.
    base
        The scenario that settings are shown as a difference to, resolved as those of the runs are; None
        takes that of the first run.
    command
        What makes the runs and this page again, shown as it is.
    refresh
        Seconds after which the page loads itself again; None for a page that stays as it is.
    progress
        How far the runs are, in words.
    notes
        What a reader of the claim has to know besides, such as on which seeds values were searched.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    UserError
        Where there is no run, runs have different headline metrics, no run is called ``reference``, or the
        page cannot be written.
    """
    path = Path(path)
    text = page(
        outcomes,
        title=title,
        reference=reference,
        target=target,
        base=base,
        command=command,
        refresh=refresh,
        progress=progress,
        notes=notes,
    )
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    return path


def page(
    outcomes: Sequence[Outcome],
    *,
    title: str,
    reference: str | None = None,
    target: float | None = None,
    base: Mapping[str, Any] | None = None,
    command: str | None = None,
    refresh: int | None = None,
    progress: str | None = None,
    notes: Sequence[str] = (),
) -> str:
    """Return the text of the page that `write_report` writes."""
    if not outcomes:
        raise UserError("there is no run to report on")
    claim = claim_table(outcomes, reference=reference, target=target)
    claim = replace(claim, notes=(*claim.notes, *notes))
    metric, summaries = headline(outcomes), summarise_groups(outcomes)
    groups = [each.group for each in summaries]
    looks, versions = looks_of(groups), sections.versions_that_made(outcomes)
    plots: sections.Plots = {"curves": figures.headline_curves(looks, metric)}
    context: dict[str, Any] = {
        "title": title,
        "lead": sections.lead(outcomes, groups),
        "refresh": refresh,
        "progress": progress,
        "contents": sections.contents(len(groups)),
        "metric_name": tables.metric_words(metric),
        "claim": claim,
        "marked": {group.name for group in groups if group.variant == reference},
        "runs": seed_table(outcomes),
        "variants": sections.variants(looks),
        "grid": grid_of(looks),
        "groups": groups,
        "curves": {
            "note": sections.curves_note(outcomes, metric),
            "text": f"Line plot of {tables.metric_words(metric)} over the rounds, a line a group.",
            "table": tables.rounds_part(looks, metric),
        },
        "pareto": sections.pareto(looks, summaries, metric, plots),
        "layers": sections.layers(looks, plots),
        "classes": sections.classes(looks, summaries, metric, plots),
        "clients": client_table(outcomes),
        "base": sections.base_of(outcomes, base),
        "settings": sections.settings(groups, outcomes, base),
        "cautions": [*cautions(groups, metric), *sections.cautions_of_versions(versions)],
        "command": command,
        "versions": versions,
        "version": fedprune.__version__,
    }
    return _rendered(context | {"data": _packed(_data(looks, plots))})


def _data(looks: Sequence[Look], plots: sections.Plots) -> str:
    """Return what the page's script draws, as JSON."""
    groups = [
        {
            "name": look.name,
            "variant": look.group.variant,
            "values": look.values,
            "colour": look.colour,
            "dash": look.dash,
            "symbol": look.symbol,
        }
        for look in looks
    ]
    return json.dumps({"groups": groups, "plots": plots}, separators=(",", ":"), allow_nan=False)


def _rendered(context: Mapping[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("fedprune.studies.report", "template"),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    folder = files("fedprune.studies.report") / "template"
    own = {name: Markup((folder / f"report.{name}").read_text(encoding="utf-8")) for name in ("css", "js")}
    return environment.get_template("page.html.j2").render(
        context, style=own["css"], script=own["js"], plotly=_packed(get_plotlyjs())
    )


def _packed(text: str) -> str:
    """Return a text gzipped and in base64: safe within HTML, and plotly.js is 2 MB in place of 4.8."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
