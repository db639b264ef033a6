"""A study as an object: what it says of its runs, from folders that are there."""

from __future__ import annotations

import itertools
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from inprocess import PLAN
from scipy import stats

import fedprune
from fedprune.cli import main
from fedprune.cli.arguments import parse_settings
from fedprune.engine.hosts import InProcess
from fedprune.engine.simulation import run as simulate
from fedprune.errors import UserError
from fedprune.scenario.yaml_file import write
from fedprune.studies import figures
from fedprune.studies.outcomes import Outcome, headline
from fedprune.studies.study import Study

SPEC: dict[str, Any] = {
    "name": "small",
    "base": {**PLAN, "rounds": 2},
    "seeds": 2,
    "runs": {"Dense": {"strategy": {"name": "fedavg"}}, "Static": {"strategy": {"name": "static"}}},
    "grid": {"strategy.density": [0.3, 0.1]},
    "reference": "Dense",
    "target_accuracy": 0.2,
}


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Study:
    """A study whose runs were done one after another in this process; the last of them is missing."""
    made = fedprune.study(SPEC, out=tmp_path_factory.mktemp("study"))
    for run in made.planned()[:-1]:
        simulate(run.scenario, out=made.folder.place(run), progress=False, host=InProcess(), figures=False)
    return made


def finals(done: Study, group: str) -> list[float]:
    return [o.summary["final_accuracy"] for o in done.outcomes if o.group == group and o.complete]


def test_it_knows_what_is_there(done):
    assert [run.title for run in done.missing()] == ["Static, density 0.1, seed 1"]
    assert len(done.runs) == 5
    assert [outcome.complete for outcome in done.outcomes] == [True] * 5 + [False]


def test_its_table_has_the_numbers_of_the_runs(done):
    table = done.table().set_index("group")
    for group in ("Dense", "Static, density 0.3"):
        assert table.loc[group, "final_accuracy_mean"] == pytest.approx(sum(finals(done, group)) / 2)
    assert table.loc["Static, density 0.1", "complete"] == 1
    assert "Static, density 0.1" in done._repr_html_()


def test_two_groups_are_compared_seed_by_seed(done):
    found = done.compare("Static, density 0.3", "Dense")
    ours, theirs = finals(done, "Static, density 0.3"), finals(done, "Dense")
    assert list(found.differences.values()) == pytest.approx(
        [a - b for a, b in zip(ours, theirs, strict=True)]
    )
    if ours != theirs:
        assert found.t_p == pytest.approx(float(stats.ttest_rel(ours, theirs).pvalue))
    assert done.compare("Static, density 0.1", "Dense").unpaired == (1,)
    sent = done.compare("Static, density 0.3", "Dense", "bytes_up")
    assert all(difference < 0 for difference in sent.differences.values())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("Static", "Dense"), "there is no group 'Static'"),
        (("Dense", "Dens"), "there is no group 'Dens'; did you mean 'Dense'"),
        (("Dense", "Dense", "bytesup"), "there is no quantity 'bytesup'; did you mean 'bytes_up'"),
    ],
)
def test_a_name_that_is_none_is_said(done, names, message):
    with pytest.raises(UserError, match=message):
        done.compare(*names)


def test_its_curves_are_means_over_seeds(done):
    axes = done.plot()
    drawn = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
    assert list(drawn) == ["Dense", "Static, density 0.3", "Static, density 0.1"]
    dense = [run.rounds for run in done.runs[:2]]
    expected = [(a["accuracy"] + b["accuracy"]) / 2 for a, b in zip(*dense, strict=True)]
    assert list(drawn["Dense"]) == pytest.approx(expected)
    assert axes.figure.get_size_inches()[0] == figures.COLUMN


@pytest.mark.parametrize("cost", figures.COSTS)
def test_it_draws_every_cost(done, cost, tmp_path):
    figure = done.plot("costs", cost=cost).figure
    figure.savefig(tmp_path / "costs.pdf")
    assert (tmp_path / "costs.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("cost", ["bytes", "flops", "device_seconds"])
def test_what_was_spent_so_far_is_the_sum_of_the_rounds(done, cost):
    lines = {line.get_label(): line for line in done.plot("spent", cost=cost).get_lines()}
    assert list(lines) == ["Dense", "Static, density 0.3", "Static, density 0.1"]
    run = done.runs[-1]  # The one run of its group.
    columns = ("bytes_up", "bytes_down") if cost == "bytes" else (cost,)
    spent = list(itertools.accumulate(sum(record[c] for c in columns) for record in run.rounds))
    best = list(itertools.accumulate((record["accuracy"] for record in run.rounds), max))
    drawn = lines["Static, density 0.1"]
    points = list(zip(spent, best, strict=True))[1:]
    assert list(drawn.get_ydata()) == [y for _, y in points]
    factor = drawn.get_xdata()[0] / points[0][0]
    assert list(drawn.get_xdata()) == pytest.approx([factor * x for x, _ in points])


def test_a_figure_may_be_of_one_point_of_the_grid(done):
    axes = done.plot("costs", at={"strategy.density": 0.1})
    assert axes.get_legend_handles_labels()[1] == ["Dense", "Static, density 0.1"]
    with pytest.raises(UserError, match=r"the grid has no strategy.density: 0.2"):
        done.plot(at={"strategy.density": 0.2})


def test_a_figure_may_be_of_the_clients_own_models(done):
    with pytest.raises(UserError, match="no run has a personal_accuracy"):
        done.plot("spent", personal=True)
    held_out = {**SPEC, "set": {"data.client_test_fraction": 0.2}}
    with_own = fedprune.study(held_out, out=done.directory)
    run = with_own.planned()[0]
    simulate(run.scenario, out=with_own.folder.place(run), progress=False, host=InProcess(), figures=False)
    (line,) = with_own.plot(personal=True).get_lines()
    known = [r["personal_accuracy"] for r in with_own.runs[0].rounds if r["personal_accuracy"] is not None]
    assert known
    assert list(line.get_ydata()) == known


@pytest.mark.parametrize(("suffix", "begins"), [("pdf", b"%PDF"), ("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_the_command_draws_it(done, tmp_path, capsys, suffix, begins):
    file, to = tmp_path / "study.yaml", tmp_path / "figures" / f"it.{suffix}"
    file.write_text(write(SPEC))
    command = ["study", "plot", str(file), "--out", str(done.directory), "--what", "spent"]
    assert main([*command, "--cost", "flops", "--at", "strategy.density=0.3", "--to", str(to)]) == 0
    assert capsys.readouterr().out == f"{to}\n"
    assert to.read_bytes().startswith(begins)
    assert main([*command, "--to", "it.doc"]) == 2
    assert "name a file that ends in .pdf, .svg or .png" in capsys.readouterr().err


def test_an_unknown_figure_or_cost_is_refused(done):
    with pytest.raises(UserError, match="there is no figure 'curve'; there are curves, costs, spent"):
        done.plot("curve")
    with pytest.raises(UserError, match="rounds do not add up to a cost 'peak_memory_bytes'"):
        done.plot("spent", cost="peak_memory_bytes")
    with pytest.raises(UserError, match="there is no cost 'money'"):
        done.plot("costs", cost="money")


def test_a_target_of_another_metric_is_refused(done):
    spec = {key: value for key, value in SPEC.items() if key != "target_accuracy"}
    other = fedprune.study({**spec, "target_perplexity": 10}, out=done.directory)
    with pytest.raises(UserError, match="target_perplexity: the headline metric is accuracy"):
        other.claims()


@pytest.mark.parametrize("target", [0, 1.5, 80, -1])
def test_a_target_that_no_share_can_be_is_refused_before_anything_runs(tmp_path, target):
    made = fedprune.study({**SPEC, "target_accuracy": target}, out=tmp_path / "out")
    with pytest.raises(UserError, match=f"target_accuracy: {target} is out of range"):
        made.run(progress=False)
    assert not made.directory.exists()


def test_runs_of_two_names_and_one_content_are_counted_and_named(done):
    runs = {**SPEC["runs"], "Also": SPEC["runs"]["Dense"]}
    made = fedprune.study({**SPEC, "runs": runs}, out=done.directory)
    assert made.progress_text().startswith("7 of 8 runs are complete")
    assert [note for note in made.claims().notes if "several names" in note] == [
        "The same runs under several names, since their scenarios do not differ: Dense, Also."
    ]
    assert not any("several names" in note for note in done.claims().notes)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("summary.json", '{"status": "comp', "summary.json: damaged: "),
        ("summary.json", '{"status": "complete"}', "summary.json: damaged: it has no seed"),
        ("rounds.jsonl", "{}\nround\n", "rounds.jsonl, line 2: not JSON"),
    ],
)
def test_a_run_that_cannot_be_read_is_said_and_the_others_are_shown(done, tmp_path, file, content, message):
    shutil.copytree(done.directory, tmp_path, dirs_exist_ok=True)
    made = fedprune.study(SPEC, out=tmp_path)
    place = made.folder.place(made.planned()[0])
    (place / file).write_text(content)
    assert [outcome.complete for outcome in made.outcomes] == [False] + [True] * 4 + [False]
    notes = "\n".join(made.claims().notes)
    assert "Runs that failed, and are in no estimate: Dense (1)." in notes
    assert f"Dense, seed {made.planned()[0].seed}: {place}/{message}" in notes
    assert f"without the folder {place.name} the study does the run again" in notes
    assert message in made.report().read_text()


def test_a_run_that_could_not_begin_has_failed_for_the_table_too(done, tmp_path):
    shutil.copytree(done.directory, tmp_path, dirs_exist_ok=True)
    made = fedprune.study(SPEC, out=tmp_path)
    made.folder.note_failure(made.planned()[-1], "no such data")
    assert "Static, density 0.1, seed 1: no such data" in made.claims().notes
    place = made.folder.place(made.planned()[-1])
    place.mkdir()  # One that another's files keep the run from.
    again = f"without the folder {place.name} the study does the run again"
    assert f"Static, density 0.1, seed 1: no such data; {again}" in made.claims().notes
    summary = made.outcomes[-1].summary
    assert summary is not None
    assert summary["status"] == "failed"
    # It names no metric, so it does not stand against those of another task.
    other = Outcome("A", {}, 0, {"headline": "perplexity", "higher_is_better": False, "status": "complete"})
    assert headline([other, made.outcomes[-1]]).name == "perplexity"


def test_a_lower_is_better_metric_chooses_the_lowest(tmp_path, monkeypatch):
    """Which values won is a matter of the metric that the runs name, and of its direction."""
    tune = {"grid": {"clients.training.epochs": [1, 2, 3]}, "seeds": [9]}
    spec = {
        **SPEC,
        "runs": {"A": {"strategy": {"name": "fedavg"}, "tune": tune}},
        "grid": {},
        "reference": "A",
    }
    made = fedprune.study(spec, out=tmp_path)
    for run, loss in zip(made.trials(), (3.0, 1.0, 2.0), strict=True):
        place = made.folder.place(run)
        simulate(run.scenario, out=place, progress=False, host=InProcess(), figures=False)
        summary = json.loads((place / "summary.json").read_text())
        summary |= {"headline": "perplexity", "higher_is_better": False, "final_perplexity": loss}
        (place / "summary.json").write_text(json.dumps(summary))
    assert made.won("A") == {"clients.training.epochs": 2}


def test_remaining_time_follows_the_runs_that_ended(done):
    from fedprune.studies.estimate import remaining_seconds

    left = {"A": [(10.0, 1.0), (10.0, 0.5)], "B": [(4.0, 1.0)]}
    assert remaining_seconds(left, [], 1) == 19.0
    assert remaining_seconds(left, [], 4) == 10.0  # The longest alone takes as long.
    assert remaining_seconds(left, [("A", 10.0, 30.0)], 1) == 57.0
    assert remaining_seconds(left, [("A", 10.0, 30.0), ("B", 4.0, 4.0)], 1) == 49.0
    assert remaining_seconds({}, [], 2) == 0.0
    assert 0 < done.remaining_seconds(1) < 600


def test_a_folder_of_anothers_is_not_taken_for_a_run(tmp_path):
    made = fedprune.study(SPEC, out=tmp_path)
    run = made.planned()[0]
    place: Path = tmp_path / "runs" / f"mine-{run.identity}"
    place.mkdir(parents=True)
    assert made.folder.status(run) == "missing"
    assert made.folder.rounds_done(run) == 0


def test_its_command_sets_what_was_set(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(write({**SPEC, "set": {"rounds": 2}}))
    overrides = {"clients.training.epochs": 3, "model": "{name: cnn, width: 0.5}", "data.augment": "[]"}
    made = fedprune.study(file, out=tmp_path / "out", overrides=overrides)
    words = shlex.split(made.command)
    settings = [word for before, word in itertools.pairwise(words) if before == "--set"]
    again = fedprune.study(file, out=tmp_path / "out", overrides=parse_settings(settings))
    assert again.spec.set == made.spec.set
    assert [run.identity for run in again.planned()] == [run.identity for run in made.planned()]
    assert made.planned()[0].identity != fedprune.study(file, out=tmp_path).planned()[0].identity
