"""The README is short, complete and true: its table is held by full runs of what it shows.

What its blocks show runs in tests/docs.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import fedprune
from fedprune import registry

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_a_screen_and_a_half() -> None:
    assert len(README.splitlines()) <= 200


def test_every_strategy_is_in_the_table() -> None:
    table = set(re.findall(r"^\| `(\w+)` \|", README, flags=re.MULTILINE))
    assert table == set(registry.names("strategy"))


def test_its_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)", README):
        assert (ROOT / target).exists(), target


def test_make_knows_every_target_that_the_documents_name() -> None:
    named = {
        target
        for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
        for target in re.findall(r"(?:`|\$ )make ([a-z-]+)", page.read_text(encoding="utf-8"))
    }
    assert {"demo", "docs", "install", "test"} <= named
    for target in named:  # Printed, not done.
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_package_is_in_the_layout(page: str) -> None:
    layout = next(
        block for block in (ROOT / page).read_text(encoding="utf-8").split("```") if "\nfedprune/" in block
    )
    packages = {path.parent.name for path in (ROOT / "fedprune").glob("*/__init__.py")}
    assert packages <= set(re.findall(r"\b(\w+)/", layout))


def rows(text: str, title: str) -> dict[str, dict[str, str]]:
    """Return a part of the table of a study as it is printed: variant -> head -> cell."""
    part = text.split(f"{title}\n\n")[1].split("\n\n")[0]
    heads, *lines = [re.split(r" {2,}", line.strip()) for line in part.splitlines() if "─" not in line]
    return {cells[0]: dict(zip(heads, cells, strict=True)) for cells in lines if len(cells) > 1}


def number(cell: str) -> float:
    """Return the number of "5.71 MiB (0.07x)" in its unit."""
    found = re.match(r"-?[\d.]+", cell)
    assert found is not None, cell
    return float(found[0])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_its_table_is_what_the_study_reaches(tmp_path: Path, shared_ray: None) -> None:
    """Within what the README states: another kind of processor gives other last digits."""
    assert "by up to 2 points and costs by up to 2 %" in README
    # As many workers as jobs, as where there are two cores: each run in one process.
    study = fedprune.study(
        ROOT / "studies" / "quickstart.yaml", out=tmp_path, overrides={"engine.workers": 2}
    )
    study.run(jobs=2, progress=False)
    made = study.claims().text(None)
    (shown,) = re.findall(r"```text\n(Accuracy.*?)```", README, flags=re.DOTALL)
    reached, claimed = rows(made, "Accuracy (%)"), rows(shown, "Accuracy (%)")
    assert reached.keys() == claimed.keys()
    for variant, cells in claimed.items():
        for head in ("final", "best"):
            assert number(reached[variant][head]) == pytest.approx(number(cells[head]), abs=2)
        assert [reached[variant][head] for head in ("runs", "density")] == [cells["runs"], cells["density"]]
    spent, said = rows(made, "Costs of a run"), rows(shown, "Costs of a run")
    for variant, cells in said.items():
        for head, cell in list(cells.items())[1:]:
            assert number(spent[variant][head]) == pytest.approx(number(cell), rel=0.02), (variant, head)
            assert spent[variant][head].split()[1] == cell.split()[1]
