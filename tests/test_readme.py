"""What the README shows works: its scenario, its strategy, its error message."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import fedprune
from fedprune import registry
from fedprune.errors import ScenarioError
from fedprune.scenario import load_scenario
from fedprune.server.check import check

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_scenario_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "readme.yaml"
    path.write_text(blocks("yaml")[0], encoding="utf-8")
    check(load_scenario(path))


@pytest.mark.parametrize("block", [block for block in blocks("yaml") if block.startswith("strategy:")])
def test_the_strategies_shown_are_valid(block: str) -> None:
    check(load_scenario(ROOT / "scenarios/quickstart.yaml", yaml.safe_load(block)))


def test_the_faults_shown_are_valid() -> None:
    (block,) = (block for block in blocks("yaml") if block.startswith("faults:"))
    overrides = {**yaml.safe_load(block), "engine.task_timeout": 60.0}
    assert load_scenario(ROOT / "scenarios/quickstart.yaml", overrides).faults.any


def test_the_error_message_is_the_one_shown() -> None:
    shown = re.search(r"^error: (.*)$", README, flags=re.MULTILINE)
    assert shown is not None
    with pytest.raises(ScenarioError) as caught:
        check(load_scenario(ROOT / "scenarios/quickstart.yaml", {"strategy.denstiy": "0.1"}))
    assert str(caught.value) == shown.group(1)


@pytest.mark.xdist_group("ray")
@pytest.mark.slow
def test_the_strategy_runs_and_prunes_in_steps(tmp_path: Path) -> None:
    code = next(block for block in blocks("python") if "class Stepwise" in block)
    assert len([line for line in code.splitlines() if line.strip()]) <= 30
    (tmp_path / "stepwise.py").write_text(code, encoding="utf-8")
    run = fedprune.run(
        ROOT / "scenarios/quickstart.yaml",
        out=tmp_path / "run",
        rounds=4,
        strategy={"name": f"{tmp_path}/stepwise.py:Stepwise", "density": 0.1, "until": 3},
    )
    densities = [record["density"] for record in run.rounds]
    assert densities == sorted(densities, reverse=True)
    assert densities[0] == 1.0
    assert densities[3] == densities[4] == pytest.approx(0.1, abs=1e-3)


def test_every_strategy_is_in_the_table() -> None:
    table = set(re.findall(r"^\| `(\w+)` \|", README, flags=re.MULTILINE))
    assert set(registry.names("strategy")) <= table
