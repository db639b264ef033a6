"""Tables: what they say of known outcomes, and that every form of them can be read back."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.errors import UserError
from fedprune.studies.digits import difference_texts, estimate_texts, format_p
from fedprune.studies.rendering import Part, Table, latex
from fedprune.studies.statistics import Estimate, compare_groups
from fedprune.studies.table import claim_table, client_table, seed_table

from .made_outcomes import PERPLEXITY, group, outcome

DENSE, SPARSE = [0.70, 0.72, 0.71, 0.69], [0.66, 0.69, 0.66, 0.66]


def study():
    """Return a reference, two points of a grid, a run that failed, one that diverged and one seed too few."""
    outcomes = group("FedAvg", DENSE, curve=[0.1, 0.7], density=1.0)
    at = {"strategy.density": 0.1}
    outcomes += group(
        "Tiny", SPARSE, point=at, flops=1000, bytes_up=10, bytes_down=20, curve=[0.1, 0.65, 0.7]
    )
    at = {"strategy.density": 0.05}
    outcomes += group("Tiny", SPARSE[:2], point=at, curve=[0.1, 0.2])
    outcomes += [
        outcome("Tiny", 2, 0.1, point=at, status="failed"),
        outcome("Tiny", 3, 0.1, point=at, loss=None),
    ]
    return outcomes


def column(part, head):
    place = next(number for number, each in enumerate(part.heads) if each.startswith(head))
    return {row[0]: row[place] for row in part.rows}


class TestClaim:
    def test_what_it_says(self):
        table = claim_table(study(), reference="FedAvg", target=0.7)
        result, costs, until = table.parts
        assert (result.title, until.title) == ("Accuracy (%)", "Costs until accuracy 70%")
        assert list(column(result, "runs").values()) == ["4", "4", "3"]
        # 70.5 ± 3.182 * 1.291 / 2 and 66.75 ± 3.182 * 1.5 / 2; the narrowest of the column has two digits.
        assert column(result, "final")["FedAvg"] == "70.5 ± 2.1"
        assert column(result, "final")["Tiny, density 0.1"] == "66.8 ± 2.4"
        # Differences -4, -3, -5, -3: mean -3.75, ± 3.182 * 0.957 / 2.
        assert column(result, "minus")["Tiny, density 0.1"] == "-3.8 [-5.3, -2.2]"
        assert column(result, "minus")["FedAvg"] == "reference"
        assert column(result, "p, t")["FedAvg"] == "-"
        assert column(result, "mean rank")["FedAvg"] == "1.0"
        assert column(costs, "FLOPs") == {
            "FedAvg": "10 kFLOP (1.00x)",
            "Tiny, density 0.1": "1 kFLOP (0.10x)",
            "Tiny, density 0.05": "10 kFLOP (1.00x)",
        }
        assert list(column(until, "reached").values()) == ["4 of 4", "4 of 4", "0 of 4"]
        assert list(column(until, "bytes").values()) == ["60 B", "90 B", "∞"]

    def test_p_values_are_those_adjusted(self):
        outcomes = study()
        found = compare_groups(outcomes, "FedAvg")["Tiny, density 0.1"]
        assert found.t_holm == pytest.approx(2 * found.t_p)
        result = claim_table(outcomes, reference="FedAvg").parts[0]
        assert column(result, "p, t")["Tiny, density 0.1"] == format_p(found.t_holm)
        assert column(result, "p, Wilcoxon")["Tiny, density 0.1"] == "0.25"

    def test_the_notes_say_what_is_missing(self):
        notes = "\n".join(claim_table([*study(), *group("Lone", [0.5])], reference="FedAvg").notes)
        assert "One run, so without an interval or a test: Lone." in notes
        assert "Runs that failed, and are in no estimate: Tiny, density 0.05 (1)." in notes
        assert re.search(r"Runs that diverged.*: Tiny, density 0.05 \(1\)\.", notes)
        assert "only one side has them: Tiny, density 0.05 (2), Lone (1, 2, 3)." in notes
        assert "Holm for 2 comparisons" in notes
        assert "Wilcoxon's p of 3 seeds is at least 0.25" in notes

    def test_runs_that_have_not_begun(self):
        outcomes = [*group("A", [0.5, 0.6]), outcome("A", 2, None, status=None)]
        outcomes += [outcome("B", seed, None, status=None) for seed in (0, 1)]
        table = claim_table(outcomes, reference="A", target=0.5)
        assert "Runs that have not begun, and are in no estimate: A (1), B (2)." in table.notes
        assert column(table.parts[0], "final")["B"] == "-"
        assert column(table.parts[2], "rounds")["B"] == "-"

    def test_before_any_run_has_begun(self):
        outcomes = [outcome(name, 0, None, status=None) for name in "AB"]
        table = claim_table(outcomes, reference="A", target=0.5)
        assert column(table.parts[0], "final") == {"A": "-", "B": "-"}
        assert [row["complete"] for row in table.records] == [0, 0]
        assert table.text()
        assert table.latex()
        assert seed_table(outcomes).parts[0].rows == (("A", "0", "not begun"), ("B", "0", "not begun"))

    def test_a_metric_of_which_less_is_better(self):
        outcomes = group("Dense", [20.1, 20.5, 20.9], metric=PERPLEXITY, curve=[90.0, 20.0])
        outcomes += group("Sparse", [22.0, 22.7, 22.6], metric=PERPLEXITY, curve=[90.0, 22.0])
        table = claim_table(outcomes, reference="Dense", target=21.0)
        result, _, until = table.parts
        assert result.title == "Perplexity, lower is better"
        assert column(result, "final") == {"Dense": "20.50 ± 0.99", "Sparse": "22.43 ± 0.94"}
        assert column(result, "minus Dense")["Sparse"].startswith("+1.93 [")
        assert column(result, "mean rank") == {"Dense": "1.0", "Sparse": "2.0"}
        assert until.title == "Costs until perplexity 21"
        assert column(until, "reached") == {"Dense": "3 of 3", "Sparse": "0 of 3"}
        assert not any("accuracy" in head or "%" in head or "points" in head for head in result.heads)
        assert "accuracy" not in table.csv()

    def test_without_a_reference_nothing_is_compared(self):
        table = claim_table(study())
        assert not any("minus" in head or head.startswith("p,") for head in table.parts[0].heads)
        assert "(" not in "".join(column(table.parts[1], "FLOPs").values())
        assert len(table.parts) == 2

    def test_a_group_without_a_counterpart(self):
        outcomes = [outcome("A", 0, 0.5, point={"density": d}) for d in (0.1, 0.2)] + group("B", [0.6])
        table = claim_table(outcomes, reference="A")
        assert "Not compared, since A has no run at their point of the grid: B." in table.notes
        assert column(table.parts[0], "minus")["B"] == "-"

    def test_nothing_to_show(self):
        with pytest.raises(UserError, match="no run"):
            claim_table([])

    def test_equal_differences_are_said_to_have_no_test(self):
        table = claim_table([*group("A", [0.5, 0.6, 0.7]), *group("B", [0.4, 0.5, 0.6])], reference="A")
        assert column(table.parts[0], "minus")["B"] == "-10.00 [-10.00, -10.00]"
        assert column(table.parts[0], "p, t")["B"] == "-"
        assert "No t test, since all seeds differ by the same amount: B." in table.notes

    def test_energy_has_a_column_where_it_is_known(self):
        assert "energy" not in claim_table(group("A", [0.5])).parts[1].heads
        assert column(claim_table(group("A", [0.5], joules=2.0)).parts[1], "energy") == {"A": "2 J"}

    def test_what_split_training_has_has_columns_where_a_run_is_one(self):
        split = group(
            "Split", SPARSE, server_flops=2 * 10**9, smashed_bytes_up=2**20, smashed_bytes_down=2**21
        )
        dense = group("FedAvg", DENSE, server_flops=0, smashed_bytes_up=0, smashed_bytes_down=0)
        part = claim_table([*split, *dense], reference="FedAvg").parts[1]
        assert column(part, "FLOPs, server") == {"Split": "2 GFLOP", "FedAvg": "-"}
        assert column(part, "smashed bytes up") == {"Split": "1 MiB", "FedAvg": "-"}
        assert "FLOPs, server" not in claim_table(dense).parts[1].heads

    def test_personal_values_have_a_column_where_they_are_known(self):
        own = {"final_personal_accuracy": 0.9, "best_personal_accuracy": 0.95}
        table = claim_table(group("A", [0.5], **own))
        assert column(table.parts[0], "personal, final") == {"A": "90.00"}
        assert column(table.parts[0], "personal, best") == {"A": "95.00"}
        assert "personal, best" not in claim_table(group("A", [0.5])).parts[0].heads


class TestNumbers:
    def test_csv_has_every_number_in_full(self):
        rows = list(csv.DictReader(io.StringIO(claim_table(study(), reference="FedAvg", target=0.7).csv())))
        assert [row["group"] for row in rows] == ["FedAvg", "Tiny, density 0.1", "Tiny, density 0.05"]
        tiny = rows[1]
        assert (tiny["strategy.density"], rows[0]["strategy.density"]) == ("0.1", "")
        assert list(tiny)[:3] == ["group", "variant", "strategy.density"]
        expected = Estimate.of(SPARSE)
        assert float(tiny["final_accuracy_mean"]) == expected.mean
        assert float(tiny["final_accuracy_std"]) == expected.std
        assert float(tiny["final_accuracy_t_low"]) == expected.t_interval.low
        assert float(tiny["final_accuracy_bootstrap_high"]) == expected.bootstrap_interval.high
        assert float(tiny["bytes_relative"]) == 30 / 300
        assert float(tiny["difference_mean"]) == pytest.approx(-0.0375)
        assert (tiny["pareto_flops"], rows[2]["pareto_flops"]) == ("True", "False")
        assert rows[2]["until_bytes_median"] == "inf"
        assert (rows[2]["reached"], rows[2]["ended"], rows[2]["until_bytes_of_reached_mean"]) == (
            "0",
            "4",
            "",
        )
        assert rows[0]["t_p"] == ""
        assert tiny["seeds"] == "0 1 2 3"

    def test_the_reference_page_has_these_columns(self):
        page = Path(__file__).parents[2] / "docs" / "reference" / "files.md"
        section = page.read_text(encoding="utf-8").partition("## The CSV of a study's table")[2]
        table, _, below = section.partition("\n\n`KEY` is")
        words = re.findall(r"`(\w+)`", below.replace("METRIC", "accuracy"))
        keys = [word for word in words[: words.index("wall_seconds") + 1] if word != "accuracy"]
        costs, until = keys[keys.index("bytes") :], words[words.index("wall_seconds") + 1 :]
        first = "".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))
        named = re.findall(r"`([\w.]+)`", first)
        kinds = [name.removeprefix("KEY") for name in named if name.startswith("KEY")]
        columns = []
        for name in named:
            some = until if name.startswith("until") else costs
            for each in [name.replace("_...", kind) for kind in kinds] if "..." in name else [name]:
                places = {"KEY": keys, "COST": some}
                mark = next((mark for mark in places if mark in each), None)
                columns += [each] if mark is None else [each.replace(mark, key) for key in places[mark]]
        found = claim_table(group("A", [0.5]), reference="A", target=0.7).csv().splitlines()[0].split(",")
        assert sorted(columns) == sorted(found)

    def test_values_of_the_grid_with_parts_are_json(self):
        table = claim_table(group("A", [0.5], point={"strategy": {"name": "static", "density": 0.1}}))
        (row,) = csv.DictReader(io.StringIO(table.csv()))
        assert json.loads(row["strategy"]) == {"name": "static", "density": 0.1}

    def test_the_frame_has_the_same_columns(self):
        table = claim_table(study(), reference="FedAvg", target=0.7)
        frame = table.frame()
        assert list(frame.columns) == table.csv().splitlines()[0].split(",")
        assert frame.set_index("group").loc["FedAvg", "final_accuracy_mean"] == pytest.approx(0.705)
        assert math.isinf(frame["until_bytes_median"].iloc[2])

    def test_every_seed(self):
        table = seed_table([*study(), outcome("Late", 0, None, status=None)])
        assert len(table.records) == len(table.parts[0].rows) == 13
        assert [row["status"] for row in table.records].count("failed") == 1
        assert table.parts[0].rows[-1][:4] == ("Late", "0", "not begun", "-")
        assert table.notes == ("Diverged: Tiny, density 0.05 (seed 3).",)
        assert table.records[0]["final_accuracy"] == 0.70

    def test_every_client(self, tmp_path):
        values = {"pi": [0.5, 0.7], "phone": [0.9]}
        lines = [
            {"round": 1, "type": "evaluate", "client": 10 * place + number, "device": device, "status": "ok",
             "accuracy": value}
            for place, (device, of) in enumerate(values.items())
            for number, value in enumerate(of)
        ]  # fmt: skip
        (tmp_path / "clients.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        table = client_table(group("A", [0.6, 0.7], directory=tmp_path))
        (part,) = table.parts
        assert [row[:4] for row in part.rows] == [
            ("A", "global", "all", "3"), ("A", "global", "phone", "1"), ("A", "global", "pi", "2")
        ]  # fmt: skip
        assert part.rows[0][4] == "70.00 ± 0.00"
        assert part.rows[2][5] == "50.00 ± 0.00"
        assert table.records[0]["worst_mean"] == 0.5

    def test_without_values_of_clients_it_says_what_gives_them(self):
        table = client_table(group("A", [0.6]))
        assert table.parts == ()
        assert "evaluation.clients: all" in table.text()
        assert table.csv() == "\n"


class TestDigits:
    def test_a_column_has_the_same_decimals(self):
        texts = estimate_texts([Estimate.of([0.5, 0.6]), Estimate.of([0.611, 0.613]), None], "accuracy")
        assert texts == ["55.0 ± 63.5", "61.2 ± 1.3", "-"]

    def test_differences_have_signs_but_nothing_does_not(self):
        found = compare_groups([*group("A", [0.5, 0.5]), *group("B", [0.51, 0.49])], "A")["B"]
        assert difference_texts([found, None], "accuracy", ["", "none"]) == ["0.0 [-12.7, +12.7]", "none"]

    @given(st.floats(0, 1))
    def test_no_p_value_is_written_as_nothing(self, p):
        text = format_p(p)
        assert float(text.lstrip("<")) > 0
        assert text.startswith("<") == (p < 0.001)

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
    @settings(max_examples=50)
    def test_a_text_is_near_its_number(self, values):
        (text,) = estimate_texts([Estimate.of(values)], "accuracy")
        assert float(text.partition(" ±")[0]) == pytest.approx(100 * Estimate.of(values).mean, abs=0.5)


class TestForms:
    NASTY = (r"a_b & 50% #1 {x} ~^\ $5 | *b* <i> `c`", "[1, 2]")

    @pytest.fixture
    def table(self):
        part = Part("Title_1", ("variant", "x | y"), (self.NASTY, ("plain", "-1.2 ± 0.3")))
        return Table(
            "All", (part,), ("Note: 5% & more.",), lambda: [{"a": 1, "b": None}, {"a": 2.5, "c": "x,y"}]
        )

    def test_markdown_keeps_its_columns(self, table):
        lines = [line for line in table.markdown().splitlines() if line.startswith("|")]
        assert len(lines) == 4
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {3}
        assert len({len(line) for line in lines}) == 1  # Aligned.
        assert re.fullmatch(r"\| -+ \| -+: \|", lines[1])
        assert r"\*b\* &lt;i>" in lines[2]

    def test_latex_is_escaped(self):
        text = latex(self.NASTY[0])
        assert text.startswith(
            r"a\_b \& 50\% \#1 \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{} \$5"
        )
        assert latex("p <0.001, 0.06x, -1.2, 3-4") == r"p $<$0.001, 0.06$\times$, $-$1.2, 3-4"

    def test_latex_rows_have_as_many_cells_as_columns(self):
        text = claim_table(study(), reference="FedAvg", target=0.7).latex()
        for tabular in re.findall(r"\\begin{tabular}.*?\\end{tabular}", text, re.DOTALL):
            columns = re.search(r"{tabular}{(\w+)}", tabular)[1]
            rows = [line for line in tabular.splitlines() if line.endswith(r"\\")]
            assert rows
            assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(columns)}
        assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == 3
        assert text.isascii()

    @pytest.mark.slow
    @pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
    def test_latex_compiles(self, table, tmp_path):
        body = claim_table(study(), reference="FedAvg", target=0.7).latex() + table.latex()
        head = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n"
        (tmp_path / "table.tex").write_text(f"{head}{body}\\end{{document}}\n")
        done = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"],
            cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        assert (tmp_path / "table.pdf").stat().st_size > 1000

    def test_csv_quotes(self, table):
        assert table.csv() == 'a,b,c\n1,,\n2.5,,"x,y"\n'

    def test_html_is_escaped(self, table):
        assert "&lt;i&gt;" in table._repr_html_()

    @pytest.mark.parametrize("width", [60, 100, None])
    def test_text_fits_and_loses_no_cell(self, width):
        table = claim_table(study(), reference="FedAvg", target=0.7)
        text = table.text(width)
        if width is not None:
            assert max(map(len, text.splitlines())) <= width
        for part in table.parts:
            for row in part.rows:
                assert all(cell in text for cell in row)
        assert ("continued" in text) == (width is not None)

    def test_text_shows_markup_as_it_is(self):
        table = Table("All", (Part("[b]t", ("[red]head",), (("[link=x]y",),)),), (), list)
        assert all(each in table.text() for each in ("[b]t", "[red]head", "[link=x]y"))

    def test_a_ragged_part_is_refused(self):
        with pytest.raises(ValueError, match="another number of cells"):
            Part("x", ("a", "b"), (("1",),))
