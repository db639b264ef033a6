"""What a study file may say, and what is said of one that says something else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedprune.errors import ScenarioError
from fedprune.scenario import load_scenario
from fedprune.studies.spec import load_study

STUDY = """\
name: small
base: base.yaml
seeds: 2
runs:
  Dense: {strategy: {name: fedavg}}
  Static:
    strategy:
      name: static
grid: {strategy.density: [0.2, 0.1]}
"""


def written(folder: Path, text: str = STUDY, **changes: str) -> Path:
    """Write a study file with some of its lines replaced, or more of them."""
    blocks = [block for block in re.split(r"\n(?=\w)", text.strip()) if block.split(":")[0] not in changes]
    path = folder / "study.yaml"
    path.write_text("\n".join([*blocks, *(f"{key}: {value}" for key, value in changes.items())]) + "\n")
    return path


def complaint(folder: Path, **changes: str) -> str:
    with pytest.raises(ScenarioError) as caught:
        load_study(written(folder, **changes))
    return str(caught.value).replace(f"{folder}/", "")


def test_seeds_are_a_list_or_their_number(tmp_path):
    assert load_study(written(tmp_path)).seeds == (0, 1)
    assert load_study(written(tmp_path, seeds="[4, 2]")).seeds == (4, 2)


def test_keys_of_a_run_are_the_scenarios_but_for_its_own(tmp_path):
    text = STUDY + "    only: {strategy.density: [0.1]}\n"
    text = text.replace("grid:", "    clients.training.epochs: 2\n    except: [strategy.density]\ngrid:")
    text = text.replace("    only: {strategy.density: [0.1]}\n", "")
    static = load_study(written(tmp_path, text)).runs["Static"]
    assert static.set == {"strategy": {"name": "static"}, "clients.training.epochs": 2}
    assert static.leave_out == {"strategy.density": None}


def test_a_target_names_its_metric(tmp_path):
    spec = load_study(written(tmp_path, target_perplexity="12.5"))
    assert (spec.target, spec.target_metric) == (12.5, "perplexity")
    assert load_study(written(tmp_path, target="0.6")).target_metric is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seeds": "[1, 1]"}, "study.yaml:9: seeds: a seed is given twice: leave one of them out"),
        ({"seeds": "0"}, "study.yaml:9: seeds: 0 is neither a number of seeds from 1 on nor a list of them"),
        ({"seeds": "[-1]"}, "study.yaml:9: seeds.0: -1 is out of range: must be at least 0"),
        ({"reference": "Dens"}, "study.yaml:10: reference: no run 'Dens'; did you mean 'Dense'?"),
        ({"runz": "{}"}, "study.yaml:10: runz: no such key; did you mean 'runs'?"),
        ({"grid": "{strategy.density: []}"}, "grid.strategy.density: "),
        ({"grid": "{strategy.density: 0.1}"}, "study.yaml:9: grid.strategy.density: 0.1 is not a list"),
        ({"name": "a/b"}, "study.yaml:9: name: 'a/b' does not fit: Name of the study"),
        ({"target_accuracy": "high"}, "'high' is not a number"),
        (
            {"target_accuracy": "0.5", "target_loss": "1"},
            "target_loss: the study has another target already: keep one of them",
        ),
        ({"runs": "{Dense: 3}"}, "runs.Dense: write a mapping of dotted keys to values"),
        ({"runs": "{}"}, "study.yaml:5: runs: has 0 entries, must have 1"),
        (
            {"runs": "{Dense: {only: {strategy.densty: [1]}}}"},
            "runs.Dense.only: the grid has no key 'strategy.densty'; did you mean 'strategy.density'?",
        ),
        (
            {"runs": "{Dense: {except: {strategy.density: [0.5]}}}"},
            "runs.Dense.except: 0.5 is none of the grid's values of strategy.density",
        ),
        (
            {"runs": "{Dense: {tune: {grid: {strategy.lr: [1]}, seeds: [1]}}}"},
            "runs.Dense.tune.seeds: 1 is a seed of the comparison, too: tune on others",
        ),
        (
            {"runs": "{Dense: {tune: {grid: {strategy.lr: [1]}, at: {strategy.density: 0.3}}}}"},
            "runs.Dense.tune.at: the grid has no strategy.density: 0.3",
        ),
        (
            {"runs": "{Dense: {tune: {grid: {strategy.density: [0.3]}}}}"},
            "runs.Dense.tune.grid: strategy.density is in the grid, too: take it out of one of them",
        ),
        ({"runs": "{Dense: {seed: 3}}"}, "runs.Dense.seed: the runs have the seeds of the study"),
        ({"grid": "{seed: [1, 2]}"}, "study.yaml:9: grid.seed: the runs have the seeds of the study"),
        ({"search": "{run: Dense, ranges: {seed: [1, 2]}}"}, "search.ranges.seed: the runs have the seeds"),
        ({"grid": "{rounds: [2, 2]}"}, "study.yaml:9: grid.rounds: 2 is given twice: leave one of them out"),
        ({"runs": "{Dense: {except: [[strategy.density]]}}"}, "runs.Dense.except: the grid has no key"),
        ({"runs": "{' ': {}}"}, "runs: ' ' is no name of a run"),
        ({"runs": '{"a\\nb": {}}'}, "runs: 'a\\nb' is no name of a run"),
        ({"base": "3"}, "study.yaml:9: base: 3 is neither a scenario file nor a mapping"),
        (
            {"search": "{run: Dense, ranges: {clients.training.epochs: {low: .nan, high: 3}}}"},
            "study.yaml:10: search.ranges.clients.training.epochs.low: nan is not a finite number",
        ),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path, changes, expected):
    assert expected in complaint(tmp_path, **changes)


def test_a_missing_key_is_explained(tmp_path):
    (tmp_path / "study.yaml").write_text("name: x\nbase: b.yaml\n")
    with pytest.raises(ScenarioError, match=r"runs: this key is missing: The methods or settings to compare"):
        load_study(tmp_path / "study.yaml")


def test_a_mapping_is_a_study_as_well(tmp_path):
    spec = load_study({"name": "m", "base": {"name": "b"}, "runs": {"A": {}}}, tmp_path)
    assert spec.directory == tmp_path
    assert spec.runs["A"].set == {}


def test_a_study_is_told_from_a_scenario(tmp_path):
    with pytest.raises(ScenarioError, match="this is a study, of several runs: fedprune study run"):
        load_scenario(written(tmp_path))
    (tmp_path / "scenario.yaml").write_text("name: x\nrounds: 1\nstrategy: {name: fedavg}\n")
    with pytest.raises(
        ScenarioError, match="this is a scenario, of one run: write it under `base` of a study"
    ):
        load_study(tmp_path / "scenario.yaml")
