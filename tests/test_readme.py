"""The README is short, complete and true: its table is held by full runs of what it shows.

What its blocks show runs in tests/docs.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import fedprune
from fedprune import registry
from fedprune.results.compare import compare

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RUNS = ("quickstart-dense", "quickstart-static", "quickstart", "hidenseek-digits")


def test_it_is_a_screen_and_a_half() -> None:
    assert len(README.splitlines()) <= 200


def test_every_strategy_is_in_the_table() -> None:
    table = set(re.findall(r"^\| `(\w+)` \|", README, flags=re.MULTILINE))
    assert table == set(registry.names("strategy"))


def test_its_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_package_is_in_the_layout(page: str) -> None:
    layout = next(
        block for block in (ROOT / page).read_text(encoding="utf-8").split("```") if "\nfedprune/" in block
    )
    packages = {path.parent.name for path in (ROOT / "fedprune").glob("*/__init__.py")}
    assert packages <= set(re.findall(r"\b(\w+)/", layout))


def shown() -> dict[str, list[str]]:
    """Return the table of the README: what is measured -> a cell for each run."""
    (table,) = re.findall(r"```text\n( run +quickstart-dense.*?)```", README, flags=re.DOTALL)
    rows = [re.split(r" {2,}", line.strip()) for line in table.splitlines() if "─" not in line]
    return {name: cells for name, *cells in rows}


def number(cell: str) -> float:
    """Return the number of "5.71 MiB (0.07x)" in its unit, or the text itself of another cell."""
    found = re.match(r"[\d.]+", cell)
    assert found is not None, cell
    return float(found[0])


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.timeout(600)
def test_its_table_is_what_the_scenarios_reach(tmp_path: Path, shared_ray: None) -> None:
    """Within what the README states: another kind of processor gives other last digits."""
    assert "up to 2 points" in README
    assert "costs by up to 2 %" in README
    runs = [
        fedprune.run(ROOT / "scenarios" / f"{name}.yaml", out=tmp_path / name, progress=False)
        for name in RUNS
    ]
    measured = {name: cells for name, *cells in compare(runs).rows()}
    table = shown()
    assert all(name.startswith("wall time") for name in measured.keys() - table.keys())
    for name, cells in table.items():
        for cell, other in zip(cells, measured[name], strict=True):
            if name.startswith("accuracy"):
                assert number(other) == pytest.approx(number(cell), abs=2), name
            elif "(" in cell:
                assert number(other) == pytest.approx(number(cell), rel=0.02), name
                assert cell.split()[1] == other.split()[1], name
            else:
                assert other == cell, name
