"""What is written into a run folder can be read back by anything, and nothing foreign is ever lost."""

from __future__ import annotations

import errno
import json
import os
import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml

from fedprune.costs.ledger import RoundRecord
from fedprune.errors import UserError
from fedprune.results.folder import RunFolder
from fedprune.results.records import write_atomically
from fedprune.results.run import load_run
from fedprune.scenario import load_scenario
from fedprune.sparsity.masks import apply_masks

from .made_runs import INFO, TASK, pruned_state, round_of, scenario, task


def strict_json(text: str) -> object:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def finish(folder: RunFolder, *, status: str = "complete", reason: str | None = None, dense=None) -> Path:
    state, masks = pruned_state(0.25)
    folder.draws = False  # Figures take most of the time, and have tests of their own.
    return folder.finish(status=status, reason=reason, state=state, masks=masks, task=TASK, dense=dense)


def written_run(directory: Path, **kwargs) -> Path:
    folder = RunFolder.create(directory, scenario())
    for number in range(4):
        folder.on_task(task(round=number))
        folder.on_task(
            task(round=number, client=1, status="failed", reason="timed out" if number else "lost")
        )
        folder.on_round(round_of(number))
    return finish(folder, **kwargs)


def test_records_read_back_as_written(tmp_path):
    rounds, tasks = [round_of(n) for n in range(3)], [task(client=n) for n in range(5)]
    folder = RunFolder.create(tmp_path / "run", scenario())
    for each in tasks:
        folder.on_task(each)
    for each in rounds:
        folder.on_round(each)
    finish(folder)
    lines = (tmp_path / "run/rounds.jsonl").read_text().splitlines()
    assert [strict_json(line) for line in lines] == [record.columns() for record in rounds]
    lines = (tmp_path / "run/clients.jsonl").read_text().splitlines()
    assert [strict_json(line) for line in lines] == [record.columns() for record in tasks]
    run = load_run(tmp_path / "run")
    assert run.rounds == [r.columns() for r in rounds]
    assert run.clients == [t.columns() for t in tasks]
    assert set(run.rounds[0]) == {"accuracy", "client_accuracy", "personal_accuracy"} | {
        field.name for field in fields(RoundRecord) if not field.name.endswith("scores")
    }


def test_what_is_not_finite_is_null(tmp_path):
    folder = RunFolder.create(tmp_path / "run", scenario())
    folder.on_round(round_of(0, loss=float("nan"), train_loss=float("inf"), device_seconds=float("-inf")))
    directory = finish(folder, dense={"flops": 0.0, "bytes_up": 50.0})
    for name in ("rounds.jsonl", "summary.json"):
        strict_json((directory / name).read_text())
    run = load_run(directory)
    assert [run.rounds[0][key] for key in ("loss", "train_loss", "device_seconds")] == [None] * 3
    assert run.summary["device_seconds"] == 0
    assert run.summary["relative"]["flops"] is None


def test_records_are_on_disk_after_every_round(tmp_path):
    folder = RunFolder.create(tmp_path / "run", scenario())
    folder.on_task(task(round=1))
    folder.on_round(round_of(1))
    assert [r["round"] for r in load_run(tmp_path / "run").rounds] == [1]
    assert len(load_run(tmp_path / "run").clients) == 1
    folder.close()


def test_scenario_is_loadable_and_says_versions(tmp_path):
    plan = scenario(strategy__density=0.1, **{"clients.training.optimizer.lr": 1e-5})
    RunFolder.create(tmp_path / "run", plan).close()
    path = tmp_path / "run/scenario.yaml"
    assert load_scenario(path) == plan
    for what in ("fedprune", "flwr", "torch", "ray", "python", "numpy"):
        assert re.search(rf"^#   {what}: \d+\.\d+", path.read_text(), re.MULTILINE), what
    assert yaml.safe_load(path.read_text())["rounds"] == 3


def test_summary_totals_and_ratios(tmp_path):
    dense = {"bytes_down": 40_000.0, "bytes_up": 4_000.0, "flops": 16e9, "peak_memory_bytes": 10 * 2**20 + 6}
    summary = json.loads((written_run(tmp_path / "run", dense=dense) / "summary.json").read_text())
    expected = {
        "name": "tiny",
        "strategy": "fedavg",
        "seed": 7,
        "rounds": 3,
        "planned_rounds": 3,
        "status": "complete",
        "reason": None,
        "final_accuracy": 0.8,
        "best_accuracy": 0.8,
        "final_personal_accuracy": None,
        "best_personal_accuracy": None,
        "bytes_down": 4000,
        "bytes_up": 400,
        "flops": 8 * 10**9,
        "device_seconds": 10.0,
        "wall_seconds": 2.0,
        "peak_memory_bytes": 5 * 2**20 + 3,
        "clients_ok": 16,
        "clients_failed": 4,
    }
    assert summary["failures"] == {"timed out": 3, "lost": 1}
    assert {key: summary[key] for key in expected} == pytest.approx(expected)
    assert summary["relative"] == {
        "bytes_down": 0.1,
        "bytes_up": 0.1,
        "flops": 0.5,
        "peak_memory_bytes": 0.5,
        "device_seconds": None,
        "wall_seconds": None,
    }


def test_summary_of_the_model_counts_parameters_and_not_buffers(tmp_path):
    from fedprune.models import build

    summary = load_run(written_run(tmp_path / "run")).summary
    state, masks = pruned_state(0.25)
    parameters = dict(build("cnn", INFO.input_shape, INFO.classes, seed=1).named_parameters())
    total = sum(p.numel() for p in parameters.values())
    zeros = sum(int((apply_masks(state, masks)[name] == 0).sum()) for name in masks)
    assert summary["parameters"] == total
    assert summary["density"] == masks.density
    assert summary["density_all_weights"] == pytest.approx((total - zeros) / total)
    assert summary["relative"] is None


def test_rounds_without_evaluation_do_not_count_as_accuracy(tmp_path):
    folder = RunFolder.create(tmp_path / "run", scenario())
    measured = ((0.1, None), (0.9, 0.75), (0.6, 0.95), (None, 0.5))
    for number, (accuracy, personal) in enumerate(measured):
        folder.on_round(round_of(number, accuracy=accuracy, personal_accuracy=personal))
    summary = load_run(finish(folder)).summary
    assert (summary["final_accuracy"], summary["best_accuracy"]) == (0.6, 0.9)
    assert (summary["final_personal_accuracy"], summary["best_personal_accuracy"]) == (0.5, 0.95)


def test_a_run_without_rounds_finishes(tmp_path):
    folder = RunFolder.create(tmp_path / "run", scenario())
    run = load_run(finish(folder, status="failed", reason="no client replied"))
    assert (run.summary["status"], run.summary["reason"]) == ("failed", "no client replied")
    assert (run.summary["rounds"], run.summary["final_accuracy"], run.summary["flops"]) == (0, None, 0)


def test_finished_run_is_refused_and_replaced_when_asked(tmp_path):
    directory = written_run(tmp_path / "run")
    (directory / "notes.txt").write_text("mine")
    for ours in ("round-000002", ".round-000003.unfinished"):
        (directory / "checkpoints" / ours).mkdir(parents=True)
        (directory / "checkpoints" / ours / "manifest.json").write_text("ours")
    (directory / "checkpoints/best.pt").write_text("mine")
    with pytest.raises(UserError, match="--overwrite"):
        RunFolder.create(directory, scenario())
    assert (directory / "summary.json").exists()
    RunFolder.create(directory, scenario(rounds=9), overwrite=True).close()
    left = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
    assert left == {
        "notes.txt",
        "checkpoints/best.pt",
        "scenario.yaml",
        "task.json",
        "rounds.jsonl",
        "clients.jsonl",
    }
    assert (directory / "rounds.jsonl").read_text() == ""
    assert load_scenario(directory / "scenario.yaml").rounds == 9


def test_a_killed_run_is_not_replaced_unasked_but_one_without_a_round_is(tmp_path):
    RunFolder.create(tmp_path / "run", scenario()).close()
    folder = RunFolder.create(tmp_path / "run", scenario())
    folder.on_round(round_of(0))
    folder.close()
    with pytest.raises(UserError, match="holds a run already"):
        RunFolder.create(tmp_path / "run", scenario())


@pytest.mark.parametrize("name", ["thesis.tex", "scenario.yaml", "summary.json", "rounds.jsonl"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_not_a_runs_is_left_alone(tmp_path, name, overwrite):
    (tmp_path / name).write_text("name: mine\n")
    with pytest.raises(UserError, match="not a run's"):
        RunFolder.create(tmp_path, scenario(), overwrite=overwrite)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {name: "name: mine\n"}


def test_a_run_that_was_killed_in_its_first_write_can_be_begun_again(tmp_path):
    (tmp_path / ".scenario.yaml.unfinished").write_text("# A run of fed")
    RunFolder.create(tmp_path, scenario()).close()
    assert "name: " in (tmp_path / "scenario.yaml").read_text()
    assert not (tmp_path / ".scenario.yaml.unfinished").exists()


def test_a_full_disk_is_said_with_the_file_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "it").write_text("before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=re.escape(f"No space left on device: '{tmp_path / 'it'}'")):
        write_atomically(tmp_path / "it", b"after")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"it": "before"}


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="cannot be a run folder"):
        RunFolder.create(tmp_path / "run", scenario())


def test_reopening_drops_what_came_after_the_checkpoint(tmp_path):
    folder = RunFolder.create(tmp_path / "run", scenario())
    for number in range(4):
        folder.on_task(task(round=number))
        folder.on_round(round_of(number))
    folder.close()
    again = RunFolder.reopen(tmp_path / "run", scenario(), last_round=1)
    again.on_task(task(round=2, client=9))
    again.on_round(round_of(2, accuracy=0.33))
    run = load_run(finish(again))
    assert [r["round"] for r in run.rounds] == [0, 1, 2]
    assert run.rounds[:2] == [round_of(n).columns() for n in (0, 1)]
    assert [(c["round"], c["client"]) for c in run.clients] == [(0, 3), (1, 3), (2, 9)]
    assert run.summary["final_accuracy"] == 0.33


def test_reopening_needs_a_run_with_that_round_and_an_end_to_come(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        RunFolder.reopen(tmp_path, scenario(), last_round=1)
    broken_off = written_run(tmp_path / "run", status="failed", reason="lost")
    with pytest.raises(UserError, match="no round 9"):
        RunFolder.reopen(broken_off, scenario(), last_round=9)
    assert (broken_off / "summary.json").exists()
    with pytest.raises(UserError, match="the run is complete"):
        RunFolder.reopen(written_run(tmp_path / "complete"), scenario(), last_round=1)


def test_a_reopened_folder_is_held_by_one_run(tmp_path):
    directory = written_run(tmp_path / "run", status="interrupted", reason="stopped")
    held = RunFolder.reopen(directory, scenario(), last_round=1)
    with pytest.raises(UserError, match="another run is writing here"):
        RunFolder.reopen(directory, scenario(), last_round=1)
    held.close()
    RunFolder.reopen(directory, scenario(), last_round=1).close()


def test_unfinished_run_is_read_up_to_its_last_whole_line(tmp_path):
    directory = written_run(tmp_path / "run")
    (directory / "summary.json").unlink()
    with (directory / "rounds.jsonl").open("a") as file:
        file.write('{"round": 4, "accu')
    run = load_run(directory)
    assert run.summary["status"] == "unfinished"
    assert (run.summary["rounds"], run.summary["bytes_down"], run.summary["density"]) == (3, 4000, 0.25)
    assert run.summary["failures"] == {"timed out": 3, "lost": 1}


def test_damaged_line_is_named(tmp_path):
    directory = written_run(tmp_path / "run")
    (directory / "rounds.jsonl").write_text('{"round": 0}\nnonsense\n{"round": 2}\n')
    with pytest.raises(UserError, match=r"rounds\.jsonl, line 2"):
        load_run(directory)


def test_what_is_not_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        load_run(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        load_run(tmp_path / "missing")


def test_run_gives_scenario_model_figures_and_a_table(tmp_path):
    run = load_run(written_run(tmp_path / "run", dense={"bytes_up": 4000.0}))
    assert run.scenario == scenario()
    assert run.model()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert run.plot("density").axes[0].get_xlabel().startswith("density")
    assert "400 B (0.10x)" in run._repr_html_()
    (run.directory / "model.safetensors").unlink()
    with pytest.raises(UserError, match="left no model"):
        run.model()
