"""Runs by themselves: which belong together, and `fedprune report`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest
from results.made_runs import make_run, write_run

from fedprune.cli import main
from fedprune.studies.report.single import outcomes_of


def made(folder: str, *, density: float = 0.5, **changes):
    return make_run(Path(folder), density=density, changes=changes)


def called(runs):
    return [(outcome.variant, dict(outcome.point), outcome.seed) for outcome in outcomes_of(runs)]


def test_runs_that_differ_in_the_seed_are_one_group():
    runs = [made(f"runs/{seed}", seed=seed) for seed in range(3)]
    assert called(runs) == [("tiny", {}, seed) for seed in range(3)]


def test_settings_that_differ_are_the_grid():
    runs = [made(f"{rounds}-{seed}", rounds=rounds, seed=seed) for rounds in (3, 5) for seed in (0, 1)]
    assert called(runs) == [("tiny", {"rounds": rounds}, seed) for rounds in (3, 5) for seed in (0, 1)]


def test_strategies_of_one_name_are_told_apart():
    other = made("b", strategy={"name": "fedavg"})
    other = replace(other, summary=other.summary | {"strategy": "static"})
    assert [name for name, *_ in called([made("a"), other])] == ["tiny, fedavg", "tiny, static"]


def test_repetitions_are_told_apart_by_their_folders():
    assert [name for name, *_ in called([made("a/x"), made("b/x")])] == ["tiny (a/x)", "tiny (b/x)"]


def test_runs_that_differ_in_much_are_told_apart_by_their_folders():
    much = made("b", rounds=5, model={"name": "mlp", "hidden": [8]}, clients={"count": 6})
    assert [name for name, *_ in called([made("a"), much])] == ["tiny (a)", "tiny (b)"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Write three complete runs, without their figures: dense, and a sparse one over two seeds."""
    directory = tmp_path_factory.mktemp("runs")
    write_run(directory / "dense", 1.0, {"name": "dense"})
    for seed in range(2):
        write_run(directory / f"sparse-{seed}", 0.25, {"name": "sparse", "seed": seed})
    return directory


@pytest.fixture
def folders(written, tmp_path):
    return [Path(copytree(written / name, tmp_path / name)) for name in ("dense", "sparse-0", "sparse-1")]


def test_the_report_of_one_run_lies_in_its_folder(folders, capsys):
    assert main(["report", str(folders[0])]) == 0
    page = folders[0] / "report.html"
    assert capsys.readouterr().out == f"{page}\n"
    text = page.read_text(encoding="utf-8")
    assert "<title>dense</title>" in text
    assert f"fedprune run {folders[0]}/scenario.yaml --out NEW_FOLDER" in text
    assert "torch" in text  # Of the versions.


def test_the_report_of_several_lies_here_and_compares_with_the_dense_one(
    folders, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *map(str, folders)]) == 0
    assert capsys.readouterr().out == "report.html\n"
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<title>dense, sparse</title>" in text
    assert '<tr class="reference"><th scope="row">dense</th>' in text
    assert "3 runs in 2 groups" in text


def test_what_is_asked_for_goes_into_the_page(folders, tmp_path, capsys):
    page = tmp_path / "new" / "page.html"
    options = ["--title", "Mine", "--reference", "sparse", "--target", "0.6", "--out", str(page)]
    assert main(["report", *map(str, folders), *options]) == 0
    text = page.read_text(encoding="utf-8")
    for part in (
        "<title>Mine</title>",
        '<tr class="reference"><th scope="row">sparse</th>',
        "Costs until accuracy 60%",
    ):
        assert part in text


@pytest.mark.parametrize("status", ["interrupted", "failed", None])
def test_runs_that_did_not_complete_have_a_report(folders, status, capsys):
    """None: the run was killed, and has no summary."""
    path = folders[1] / "summary.json"
    if status is None:
        path.unlink()
        with (folders[1] / "rounds.jsonl").open("a") as file:
            file.write('{"round": 4, "accu')
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"status": status, "reason": "no power"}))
    assert main(["report", str(folders[1])]) == 0
    text = (folders[1] / "report.html").read_text(encoding="utf-8")
    assert "1 run, 0 of 1 complete" in text
    assert ("no power" in text) is (status is not None)


def test_a_run_before_its_first_round_has_a_report(folders, capsys):
    for name in ("summary.json", "rounds.jsonl", "clients.jsonl"):
        (folders[1] / name).unlink()
    assert main(["report", str(folders[1])]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere: no such folder"),
        ([""], "not a run folder"),
        (["dense", "dense"], "given 2 times"),
        (["dense", "--out", ""], "is a folder"),
        (["dense", "sparse-0", "--reference", "spars"], "no run is called 'spars'; did you mean 'sparse'"),
    ],
)
def test_a_mistake_is_one_line(folders, tmp_path, capsys, arguments, said):
    names = {"nowhere", "dense", "sparse-0", ""}
    places = [str(tmp_path / each) if each in names else each for each in arguments]
    assert main(["report", *places]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert said in shown.err
