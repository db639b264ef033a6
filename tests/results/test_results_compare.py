"""Runs side by side: the numbers are the runs', ratios are to the first dense one, names stay apart."""

from __future__ import annotations

import csv
from io import StringIO

import pytest
from rich.console import Console

from fedprune.errors import UserError
from fedprune.results.compare import compare

from .made_runs import make_run


@pytest.fixture
def pair(tmp_path):
    sparse = make_run(
        tmp_path / "sparse",
        density=0.25,
        changes={"name": "sparse"},
        bytes_down=2**18,
        bytes_up=2**17,
        flops=10**9,
    )
    dense = make_run(
        tmp_path / "dense", changes={"name": "dense"}, bytes_down=2**20, bytes_up=2**20, flops=4 * 10**9
    )
    return [sparse, dense]


def as_rows(comparison) -> dict[str, list[str]]:
    return {row[0]: row[1:] for row in comparison.rows()}


def test_costs_are_relative_to_the_first_dense_run(pair):
    rows = as_rows(compare(pair))
    assert rows["run"] == ["sparse", "dense"]
    assert rows["accuracy, final"] == ["80%", "80%"]
    assert rows["bytes down"] == ["1 MiB (0.25x)", "4 MiB (1.00x)"]
    assert rows["bytes up"] == ["512 KiB (0.12x)", "4 MiB (1.00x)"]
    assert rows["FLOPs"] == ["4 GFLOP (0.25x)", "16 GFLOP (1.00x)"]
    assert rows["density"][1] == "100%"
    assert "relative to dense" in compare(pair).notes()


def test_without_a_dense_run_there_are_no_ratios(pair):
    comparison = compare(pair[:1])
    assert as_rows(comparison)["bytes down"] == ["1 MiB"]
    assert comparison.notes() == ""


def test_csv_holds_the_raw_numbers(pair, tmp_path):
    compare(pair).write_csv(tmp_path / "new" / "numbers.csv")
    with (tmp_path / "new" / "numbers.csv").open(newline="") as file:
        sparse, dense = csv.DictReader(file)
    assert (sparse["run"], dense["run"]) == ("sparse", "dense")
    for row, run in zip((sparse, dense), pair, strict=True):
        for key in ("bytes_up", "bytes_down", "flops", "peak_memory_bytes", "final_accuracy", "density"):
            assert float(row[key]) == run.summary[key]
    assert float(sparse["relative_bytes_up"]) == 0.125
    assert float(dense["relative_flops"]) == 1


def test_csv_has_no_cell_with_parts_and_a_column_for_each_kind_of_fault(pair, tmp_path):
    pair[0].summary["faults"] = {"late": 3, "gone": 1}
    compare(pair).write_csv(tmp_path / "numbers.csv")
    with (tmp_path / "numbers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["faults_late"], row["faults_gone"]) for row in rows] == [("3", "1"), ("", "")]
    assert not any(set("{}[]") & set(cell) for row in rows for key, cell in row.items() if key != "directory")


def test_shares_side_by_side_have_as_many_decimals(pair):
    pair[0].summary["best_accuracy"], pair[1].summary["best_accuracy"] = 0.95, 0.9567
    assert as_rows(compare(pair))["accuracy, best"] == ["95.00%", "95.67%"]
    pair[1].summary["best_accuracy"] = None
    assert as_rows(compare(pair))["accuracy, best"] == ["95%", "-"]


def test_personal_accuracy_is_shown_where_a_run_has_it(pair, tmp_path):
    personal = make_run(tmp_path / "personal", changes={"name": "personal"}, personal_accuracy=0.9)
    del pair[0].summary["final_personal_accuracy"], pair[0].summary["best_personal_accuracy"]  # an older run
    assert not any("personal" in label for label in as_rows(compare(pair)))
    rows = as_rows(compare([*pair, personal]))
    assert rows["personal accuracy, final"] == rows["personal accuracy, best"] == ["-", "-", "90%"]
    for runs, expected in ((pair, ["", ""]), ([*pair, personal], ["", "", "0.9"])):
        compare(runs).write_csv(tmp_path / "numbers.csv")
        with (tmp_path / "numbers.csv").open(newline="") as file:
            written = list(csv.DictReader(file))
        for key in ("final_personal_accuracy", "best_personal_accuracy"):
            assert [row[key] for row in written] == expected


def test_what_split_training_has_is_shown_where_a_run_is_one(pair):
    assert not any("smashed" in label or "server" in label for label in as_rows(compare(pair)))
    pair[0].summary.update(server_flops=10**9, smashed_bytes_up=2**20, smashed_bytes_down=2**21)
    rows = as_rows(compare(pair))
    assert rows["FLOPs, server"] == ["1 GFLOP", "0 FLOP"]
    assert rows["smashed bytes down"] == ["2 MiB", "0 B"]


def test_runs_of_the_same_name_are_told_apart_by_their_folders(tmp_path):
    runs = [make_run(tmp_path / folder) for folder in ("a/tiny", "b/tiny")]
    assert compare(runs).labels == ("tiny (a/tiny)", "tiny (b/tiny)")
    with pytest.raises(UserError, match="given 2 times"):
        compare([runs[0], runs[0]])


def test_unequal_conditions_are_said(tmp_path):
    runs = [
        make_run(tmp_path / "one", changes={"name": "one", "strategy__name": "other"}),
        make_run(tmp_path / "two", changes={"name": "two", "seed": 3, "clients__training__batch_size": 8}),
    ]
    assert compare(runs).differences == ("seed", "clients.training.batch_size")
    assert "seed, clients.training.batch_size" in compare(runs).notes()


def test_a_method_with_clients_of_its_own_is_compared_under_equal_conditions(tmp_path):
    runs = [
        make_run(tmp_path / "one", changes={"name": "one", "clients__algorithm": "sparse"}),
        make_run(tmp_path / "two", changes={"name": "two", "clients__algorithm": "supermask"}),
    ]
    assert compare(runs).differences == ()


def test_masks_of_frozen_weights_are_no_dense_reference(tmp_path):
    masks = make_run(tmp_path / "masks", density=1.0, changes={"name": "masks"})
    masks.summary["relative"] = {"bytes_up": 0.03}
    assert compare([masks]).reference is None
    dense = make_run(tmp_path / "dense", density=1.0, changes={"name": "dense"})
    assert compare([masks, dense]).reference == 1


def test_no_run_is_refused():
    with pytest.raises(UserError, match="no run"):
        compare([])


@pytest.mark.parametrize("count", [2, 6])
def test_the_table_fits_a_terminal_of_100_columns(tmp_path, count):
    runs = [
        make_run(tmp_path / str(n), density=1.0 if n == 0 else 0.1, changes={"name": f"fedtiny-cifar10-{n}"})
        for n in range(count)
    ]
    screen = StringIO()
    Console(file=screen, width=100).print(compare(runs).table())
    lines = screen.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    assert "…" not in screen.getvalue()
    text = screen.getvalue().replace("\n", " ")
    assert text.count("(1.00x)") >= 1


def test_the_figure_shows_each_run_over_rounds_and_against_each_cost(pair):
    figure = compare(pair).figure()
    assert [axes.get_xscale() for axes in figure.axes] == ["linear", "log", "log", "log"]
    over_rounds, traffic, flops, memory = figure.axes
    assert over_rounds.get_xlabel() == "round"
    assert "accuracy" in over_rounds.get_ylabel()
    for run, curve in zip(pair, over_rounds.lines[::2], strict=True):
        assert list(curve.get_xdata()) == [record["round"] for record in run.rounds]
        assert list(curve.get_ydata()) == [record["accuracy"] for record in run.rounds]
    assert traffic.get_xlabel() == "total traffic, down and up (MiB)"
    assert flops.get_xlabel() == "total computation (GFLOP)"
    assert memory.get_xlabel() == "peak memory of the largest client (MiB)"
    curve, point = traffic.lines[:2]
    assert list(curve.get_xdata()) == [0.75, 1.125, 1.5]  # Round 0 counts, but trains nothing.
    assert (list(point.get_xdata()), list(point.get_ydata())) == ([1.5], [0.8])
    assert list(flops.lines[3].get_xdata()) == [16]
    assert [len(line.get_xdata()) for line in memory.lines] == [1, 1, 1, 1]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["sparse", "dense"]


def test_a_run_that_was_never_evaluated_is_in_the_legend(tmp_path, pair):
    blind = make_run(tmp_path / "blind", changes={"name": "blind"}, accuracy=None)
    figure = compare([blind, *pair]).figure()
    assert figure.legends[0].get_texts()[0].get_text() == "blind (never evaluated)"
    assert as_rows(compare([blind]))["accuracy, final"] == ["-"]


def test_files_that_cannot_be_written_are_refused(pair, tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        compare(pair).write_csv(tmp_path)
    with pytest.raises(UserError, match="tiff2"):
        compare(pair).save_figure(tmp_path / "a.tiff2")
