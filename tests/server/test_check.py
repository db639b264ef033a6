"""The check before a run: what a scenario names is looked up, and a wrong name or option has its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedprune.errors import ScenarioError, UserError
from fedprune.scenario import load_scenario
from fedprune.server.check import check, check_model

SCENARIO = """\
name: checked
rounds: 3
model:
  name: cnn
  width: 1.0
data:
  name: digits
clients:
  count: 4
  devices:
    - {profile: raspberry-pi-4}
strategy:
  name: ./mine.py:Mine
  density: 0.1
"""
STRATEGY = '''\
from fedprune.server.strategy import PruningStrategy

class Mine(PruningStrategy):
    """A strategy with an option of its own."""

    class Options(PruningStrategy.Options):
        adjust_every: int = 10
'''


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(STRATEGY)
    path = tmp_path / "checked.yaml"
    path.write_text(SCENARIO)
    return path


def test_what_exists_passes(path: Path) -> None:
    check(load_scenario(path))
    check(load_scenario(path, {"strategy": {"name": "flwr.serverapp.strategy.FedAdam", "eta": 0.1}}))
    check(load_scenario(path, {"data.name": "someone/images"}))


MISTAKES = {
    "strategy": ("./mine.py:Mine", "flwr.serverapp.strategy.FedAvgg", "13: strategy.name", "'FedAvg'"),
    "strategy's file": ("./mine.py:Mine", "./mien.py:Mine", "13: strategy.name", "'mine.py'"),
    "strategy's option": ("density:", "denstiy:", "14: strategy.denstiy", "did you mean 'density'?"),
    "option's type": ("density: 0.1", "density: low", "14: strategy.density", "'low' is not a number"),
    "option's range": ("density: 0.1", "density: 0", "14: strategy.density", "more than 0 and at most 1"),
    "Flower's option": (
        "./mine.py:Mine\n  density: 0.1",
        "flwr.serverapp.strategy.FedAdam\n  beta1: 0.1",
        "14: strategy.beta1",
        "'beta_1'",
    ),
    "model": ("name: cnn", "name: cnm", "4: model.name", "'cnn'"),
    "model's option": ("width: 1.0", "wdith: 1.0", "5: model.wdith", "'width'"),
    "model's option's type": ("width: 1.0", "width: wide", "5: model.width", "wide"),
    "data set": ("name: digits", "name: digit", "7: data.name", "'digits'"),
    "data's path": ("name: digits", "name: digits\n  path: mine.pyy", "8: data.path", "'mine.py'"),
    "profile": ("raspberry-pi-4", "raspberrypi4", "11: clients.devices.0.profile", "'raspberry-pi-4'"),
}


@pytest.mark.parametrize(("old", "new", "place", "remedy"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_wrong_name_or_option_is_named_with_its_line(
    path: Path, old: str, new: str, place: str, remedy: str
) -> None:
    path.write_text(SCENARIO.replace(old, new))
    with pytest.raises(ScenarioError) as refused:
        check(load_scenario(path))
    complaints = str(refused.value).splitlines()
    assert len(complaints) == 1
    assert complaints[0].startswith(f"{path}:{place}: ")
    assert remedy in complaints[0]


def test_all_mistakes_are_listed_and_an_override_is_named(path: Path) -> None:
    scenario = load_scenario(path, {"model.name": "cnm", "strategy.density": 2})
    with pytest.raises(ScenarioError) as refused:
        check(scenario)
    first, second = str(refused.value).splitlines()
    assert first.startswith("--set model.name: no model 'cnm'")
    assert second.startswith("--set strategy.density: 2 is out of range")
    with pytest.raises(ScenarioError, match=r"^clients\.devices\.0\.profile: no device profile 'toaster'"):
        check(load_scenario(path).override(**{"clients.devices.0.profile": "toaster"}))


def test_a_metric_is_not_called_as_another_column(path: Path) -> None:
    (path.parent / "mine.py").write_text(
        STRATEGY
        + """
from fedprune.tasks import Metric

class Density(Metric):
    name = "density"

    def __init__(self, task):
        pass

    def statistics(self, predictions, truth):
        return predictions.sum(dim=0)

    def value(self, statistics):
        return statistics[0]
"""
    )
    plan = load_scenario(path, {"evaluation.metrics": ["./mine.py:Density"]})
    with pytest.raises(UserError, match=r"'density' has the name of another column of rounds\.jsonl"):
        check_model(plan)
