"""Which runs a study has, and by what each is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from inprocess import PLAN
from pydantic import BaseModel

from fedprune import registry
from fedprune.errors import ScenarioError
from fedprune.scenario import Scenario
from fedprune.scenario.yaml_file import write
from fedprune.studies.plan import PATHS, Plan, identity_of, slug
from fedprune.studies.spec import load_study


def plan_of(folder: Path, **changes: Any) -> Plan:
    """Return the plan of a small study in a folder."""
    content = {
        "name": "small",
        "base": dict(PLAN),
        "seeds": 2,
        "runs": {
            "Dense": {"strategy": {"name": "fedavg"}},
            "Static": {"strategy": {"name": "static"}},
        },
        "grid": {"strategy.density": [0.2, 0.1]},
        **changes,
    }
    return Plan(load_study(content, folder))


def test_the_grid_is_crossed_with_the_runs_that_have_its_keys(tmp_path):
    runs = plan_of(tmp_path).runs()
    assert [(run.variant, run.point.get("strategy.density"), run.seed) for run in runs] == [
        ("Dense", None, 0),
        ("Dense", None, 1),
        ("Static", 0.2, 0),
        ("Static", 0.2, 1),
        ("Static", 0.1, 0),
        ("Static", 0.1, 1),
    ]
    assert [run.scenario.strategy.options["density"] for run in runs] == [1, 1, 0.2, 0.2, 0.1, 0.1]
    assert [run.scenario.seed for run in runs] == [0, 1] * 3
    assert runs[-1].title == "Static, density 0.1, seed 1"
    assert len({run.identity for run in runs}) == len({run.folder for run in runs}) == 6


def test_several_keys_are_crossed_and_a_key_of_the_scenario_applies_to_all(tmp_path):
    runs = plan_of(
        tmp_path, grid={"strategy.density": [0.2, 0.1], "clients.training.epochs": [1, 2, 3]}
    ).runs()
    assert len(runs) == 2 * (3 + 6)
    assert {run.scenario.clients.training.epochs for run in runs if run.variant == "Dense"} == {1, 2, 3}


@pytest.mark.parametrize(
    ("own", "densities"),
    [
        ({}, [0.2, 0.1]),
        ({"only": {"strategy.density": [0.1]}}, [0.1]),
        ({"except": {"strategy.density": [0.1]}}, [0.2]),
        ({"except": ["strategy.density"]}, [0.4]),
        ({"strategy.density": 0.5}, [0.5]),
    ],
)
def test_a_run_says_how_it_is_crossed(tmp_path, own, densities):
    static = {"strategy": {"name": "static"}} if "strategy.density" in own else {}
    base = {**PLAN, "strategy": {"name": "static", "density": 0.4}}
    runs = plan_of(tmp_path, base=base, seeds=1, runs={"Static": {**static, **own}, "Other": {}}).runs()
    assert [run.scenario.strategy.options["density"] for run in runs if run.variant == "Static"] == densities


def test_the_base_may_be_a_file_from_whose_folder_its_paths_start(tmp_path):
    home, away = tmp_path / "studies", tmp_path / "scenarios"
    home.mkdir()
    away.mkdir()
    (away / "base.yaml").write_text(write(PLAN))
    (home / "mine.py").write_text("from strategies.fedavg import FedAvg\n\n\nclass Mine(FedAvg):\n    pass\n")
    runs = plan_of(
        home, base="../scenarios/base.yaml", runs={"Mine": {"strategy": {"name": "mine.py:Mine"}}}, grid={}
    ).runs()
    assert runs[0].scenario.strategy.name == f"{home}/mine.py:Mine"
    assert runs[0].scenario.directory == away


def test_every_path_of_a_scenario_starts_from_the_study():
    def paths(spec: type[BaseModel], around: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
        found = set()
        for name, known in spec.model_fields.items():
            kinds = [known.annotation]
            while kinds:
                kind = kinds.pop()
                kinds += get_args(kind)
                if kind is Path:
                    found.add((*around, name))
                if isinstance(kind, type) and issubclass(kind, BaseModel):
                    found |= paths(kind, (*around, name))
        return found

    assert paths(Scenario) == set(PATHS)


def test_a_path_in_a_run_starts_from_the_study(tmp_path):
    (tmp_path / "table.parquet").write_bytes(b"")
    runs = {"Own": {"data": {"name": "mine", "path": "table.parquet"}}}
    assert plan_of(tmp_path, runs=runs, grid={}).runs()[0].scenario.data.path == tmp_path / "table.parquet"


def complaint(folder: Path, text: str) -> str:
    (folder / "base.yaml").write_text(write(PLAN))
    (folder / "study.yaml").write_text(text)
    with pytest.raises(ScenarioError) as caught:
        Plan(load_study(folder / "study.yaml"))
    return str(caught.value).replace(f"{folder}/", "")


def test_mistakes_in_runs_and_grid_are_named_where_they_stand_each_once(tmp_path):
    text = "\n".join(
        [
            "name: x",
            "base: base.yaml",
            "runs:",
            "  A:",
            "    strategy:",
            "      name: static",
            "      density: 0.1",
            "      criterium: snip",
            "  B: {clients.training.epochs: 0}",
            "  C: {strategy: {name: statik}}",
            "grid: {rounds: [2, two]}",
        ]
    )
    assert complaint(tmp_path, text).splitlines() == [
        "study.yaml:8: runs.A.strategy.criterium: no such key; did you mean 'criterion'? (the method's "
        f"documentation has all {len(registry.load('strategy', 'static').Options.model_fields)})",
        "study.yaml:11: grid.rounds: 'two' is not a whole number",
        "study.yaml:9: runs.B.clients.training.epochs: 0 is out of range: must be at least 1",
        "study.yaml:10: runs.C.strategy.name: no strategy 'statik'; did you mean 'static'? (`fedprune list` "
        f"has all {len(registry.names('strategy'))}); or write 'package.module:Name' or './file.py:Name'",
    ]


def test_a_mistake_in_the_base_is_named_there(tmp_path):
    (tmp_path / "base.yaml").write_text(write({**PLAN, "rounds": 0}))
    (tmp_path / "study.yaml").write_text("name: x\nbase: base.yaml\nruns: {A: {}}\n")
    with pytest.raises(ScenarioError, match=r"base.yaml:3: rounds: 0 is out of range"):
        Plan(load_study(tmp_path / "study.yaml"))
    (tmp_path / "study.yaml").write_text("name: x\nbase: bas.yaml\nruns: {A: {}}\n")
    with pytest.raises(ScenarioError, match=r"study.yaml:2: base: no such file .*did you mean 'base.yaml'"):
        Plan(load_study(tmp_path / "study.yaml"))


def test_what_is_set_is_put_in_the_base_before_runs_change_it(tmp_path):
    runs = plan_of(
        tmp_path,
        set={"rounds": 7, "clients.training.epochs": 2},
        runs={"A": {"strategy": {"name": "fedavg"}}, "B": {"rounds": 3}},
        grid={},
        seeds=1,
    ).runs()
    assert [(run.scenario.rounds, run.scenario.clients.training.epochs) for run in runs] == [(7, 2), (3, 2)]
    written_out = plan_of(tmp_path, base={**PLAN, "rounds": 3}, runs={"B": {}}, grid={}, seeds=1).runs()
    same = plan_of(tmp_path, set={"rounds": 3}, runs={"C": {}}, grid={}, seeds=1).runs()
    assert [run.identity for run in same] == [run.identity for run in written_out]


def test_overrides_come_after_what_the_file_sets(tmp_path):
    (tmp_path / "base.yaml").write_text(write(PLAN))
    file = tmp_path / "study.yaml"
    file.write_text("name: x\nbase: base.yaml\nset: {rounds: 7, model.width: 0.5}\nruns: {A: {}}\n")
    spec = load_study(file, overrides={"rounds": "5", "model": "{name: cnn}"})
    (run,) = Plan(spec).runs()
    assert run.scenario.rounds == 5
    assert run.scenario.model.options.get("width") != 0.5


@pytest.mark.parametrize(
    ("line", "overrides", "message"),
    [
        ("set: {rounds: two}", {}, "study.yaml:4: set.rounds: 'two' is not a whole number"),
        ("set: {}", {"rounds": "two"}, "--set rounds: 'two' is not a whole number"),
        ("set: {}", {"clients.cuont": "1"}, "--set clients.cuont: no such key; did you mean 'count'"),
        ("set: {seed: 3}", {}, "study.yaml:4: set.seed: the runs have the seeds of the study"),
        ("set: {}", {"seed": "3"}, "--set seed: the runs have the seeds of the study"),
        ("set: [rounds]", {"rounds": "2"}, "study.yaml:4: set: "),
    ],
)
def test_a_mistake_in_what_is_set_is_named_where_it_stands(tmp_path, line, overrides, message):
    (tmp_path / "base.yaml").write_text(write(PLAN))
    (tmp_path / "study.yaml").write_text(f"name: x\nbase: base.yaml\nruns: {{A: {{}}}}\n{line}\n")
    with pytest.raises(ScenarioError) as caught:
        Plan(load_study(tmp_path / "study.yaml", overrides=overrides))
    assert str(caught.value).replace(f"{tmp_path}/", "").startswith(message)


def test_a_key_that_no_run_has_is_refused(tmp_path):
    with pytest.raises(ScenarioError, match=r"grid.strategy.score_lr: no run has this key"):
        plan_of(tmp_path, runs={"Dense": {}}, grid={"strategy.score_lr": [0.1]})


@pytest.mark.parametrize(
    ("key", "value"),
    [("name", "a"), ("engine.workers", 1), ("engine.instructions", "native"), ("logging", [])],
)
def test_a_key_that_no_result_depends_on_is_refused(tmp_path, key, value):
    with pytest.raises(ScenarioError, match=f"grid.{key}: no result depends on it"):
        plan_of(tmp_path, runs={"Dense": {}}, grid={key: [value]})


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("b" * 300, "base: no such file: OSError: "),
        ("~nobody-of-this-name/base.yaml", "base: no such file: RuntimeError: "),
        ("", " is a folder: name a scenario file"),
    ],
)
def test_a_base_that_is_no_file_is_named(tmp_path, base, message):
    with pytest.raises(ScenarioError, match=message):
        plan_of(tmp_path, base=base)


def test_a_run_is_known_by_what_its_results_depend_on(tmp_path):
    scenario = plan_of(tmp_path).runs()[-1].scenario
    same = [
        {"name": "other"},
        {"engine.workers": 1},
        {"engine.checkpoint_every": 5},
        {"logging": ["tensorboard"]},
    ]
    other = [{"seed": 9}, {"rounds": 5}, {"strategy.density": 0.3}, {"engine.instructions": "native"}]
    known = identity_of(scenario)
    assert {identity_of(scenario.override(**change)) for change in same} == {known}
    assert len({known, *(identity_of(scenario.override(**change)) for change in other)}) == 5


def test_a_changed_plugin_is_another_run(tmp_path):
    code = "from fedprune.strategies.fedavg import FedAvg\n\n\nclass Mine(FedAvg):\n    pass\n"
    (tmp_path / "mine.py").write_text(code)
    runs = {"Mine": {"strategy": {"name": "mine.py:Mine"}}}
    before = plan_of(tmp_path, runs=runs, grid={}).runs()[0].identity
    assert plan_of(tmp_path, runs={"Renamed": runs["Mine"]}, grid={}).runs()[0].identity == before
    (tmp_path / "mine.py").write_text(code + "    # changed\n")
    assert plan_of(tmp_path, runs=runs, grid={}).runs()[0].identity != before


def test_trials_are_the_products_of_a_variants_own_grid_on_seeds_of_their_own(tmp_path):
    tune = {"grid": {"clients.training.optimizer.lr": [0.1, 0.01], "clients.training.epochs": [1, 2]}}
    runs = {"Static": {"strategy": {"name": "static"}, "tune": {**tune, "seeds": [7, 8]}}}
    plan = plan_of(tmp_path, runs=runs)
    trials = plan.trials("Static")
    assert len(trials) == 8
    assert {trial.seed for trial in trials} == {7, 8}
    assert {trial.scenario.strategy.options["density"] for trial in trials} == {0.2}
    tried = {(t.scenario.clients.training.optimizer.lr, t.scenario.clients.training.epochs) for t in trials}
    assert tried == {(0.1, 1), (0.1, 2), (0.01, 1), (0.01, 2)}
    won = plan.tuned(plan.runs(), "Static", {"clients.training.epochs": 2})
    assert {run.scenario.clients.training.epochs for run in won} == {2}
    assert [run.point for run in won] == [run.point for run in plan.runs()]


@pytest.mark.parametrize("text", ["FedTiny, density 0.05", "  ../x", "é", "", "a" * 300])
def test_a_slug_is_a_name_for_a_folder(text):
    assert slug(text)
    assert "/" not in slug(text)
    assert len(slug(text)) < 200
    assert not slug(text).startswith((".", "-"))


def test_a_study_reads_back_from_what_is_kept_of_it(tmp_path):
    home, away = tmp_path / "studies", tmp_path / "elsewhere"
    home.mkdir()
    away.mkdir()
    (home / "base.yaml").write_text(write(PLAN))
    (home / "mine.py").write_text(
        "from fedprune.strategies.static import Static\n\n\nclass Mine(Static):\n    pass\n"
    )
    (home / "study.yaml").write_text(
        "name: x\nbase: base.yaml\nseeds: 2\nset: {rounds: 1}\ntarget_accuracy: 0.5\nruns:\n"
        "  Dense: {}\n"
        "  Mine: {strategy: {name: 'mine.py:Mine'}, except: {strategy.density: [0.3]}}\n"
        "  Tuned:\n    strategy: {name: static}\n    tune: {grid: {clients.training.epochs: [1, 2]}}\n"
        "grid: {strategy.density: [0.3, 0.2]}\n"
    )
    plan = Plan(load_study(home / "study.yaml", overrides={"clients.count": "5"}))
    (away / "study.yaml").write_text(write(plan.document()))
    again = Plan(load_study(away / "study.yaml"))
    assert [run.identity for run in again.runs()] == [run.identity for run in plan.runs()]
    assert again.trials("Tuned")[1].identity == plan.trials("Tuned")[1].identity
    assert again.study.target_metric == "accuracy"
