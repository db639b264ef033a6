"""What a user writes runs like what is built in: from a file of theirs, or from a package they installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from inprocess import PLAN, federate, same_state

from fedprune import load_run, load_scenario, run
from fedprune.errors import ScenarioError
from fedprune.wire import get_state

ROOT = Path(__file__).resolve().parent.parent

STRATEGY = '''
"""A method of a user's own: keeps every n-th weight of each layer, another one after every round."""

from pydantic import Field

from fedprune.sparsity.masks import Masks
from fedprune.sparsity.pruning import prunable
from fedprune.server.strategy import PruningStrategy


class Combing(PruningStrategy):
    """Keeps every n-th weight."""

    client = CLIENT

    class Options(PruningStrategy.Options):
        """How many."""

        every: int = Field(ge=2)

    def prepare(self, grid):
        self.comb(0)

    def update_masks(self, server_round):
        self.comb(server_round)

    def comb(self, shift):
        masks = {}
        for name in prunable(self.module):
            weight = self.module.get_parameter(name)
            kept = weight.new_zeros(weight.numel(), dtype=bool)
            kept[shift % self.options.every :: self.options.every] = True
            masks[name] = kept.reshape(weight.shape)
        self.set_masks(Masks(masks))
'''

CLIENT = '''
"""A client training algorithm of a user's own: no training at all, but every kept value grows by one."""

from fedprune.client.base import Client, FitResult


class Counting(Client):
    """Adds 1 to every value."""

    def fit(self, task):
        examples = len(self.data.train)
        return FitResult(values=task.values + 1, masks=task.masks, loss=0.5, examples_seen=examples)
'''

MODEL = '''
"""A model of a user's own."""

import math

from torch import nn


class Net(nn.Sequential):
    """Three linear layers."""

    def __init__(self, input_shape, classes, *, hidden: int = 8):
        pixels = math.prod(input_shape)
        layers = [nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()]
        super().__init__(nn.Flatten(), *layers, nn.Linear(hidden, classes))
'''


def written(folder: Path, **changes) -> Path:
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump({**PLAN, "engine": {"workers": 2}, **changes}))
    return path


@pytest.fixture
def project(tmp_path):
    """A folder of a user's own, outside the repository and on no path."""
    (tmp_path / "mine.py").write_text(STRATEGY.replace("CLIENT", 'f"{__file__[:-7]}clients.py:Counting"'))
    (tmp_path / "clients.py").write_text(CLIENT)
    (tmp_path / "nets.py").write_text(MODEL)
    return tmp_path


@pytest.mark.usefixtures("shared_ray")
@pytest.mark.slow
def test_a_strategy_a_client_and_a_model_in_files(project):
    path = written(
        project,
        rounds=3,
        strategy={"name": "./mine.py:Combing", "every": 4},
        model={"name": "nets.py:Net", "hidden": 16},
    )
    done = run(path, out=project / "out")
    trained = get_state(done.model())
    assert list(trained) == ["1.weight", "1.bias", "3.weight", "3.bias", "5.weight", "5.bias"]
    assert done.summary["density"] == done.rounds[0]["density"] == 0.25
    # Counting adds 1 in each round to all that is kept then: the first and the last layer in each of three.
    start = federate(load_scenario(path, {"rounds": 1})).strategy.module.state_dict()
    for name in ("1.weight", "1.bias", "3.bias", "5.weight", "5.bias"):
        torch.testing.assert_close(trained[name], start[name] + 3)
    # Of the layer between, what the last mask keeps was pruned before, so it is 0.
    assert not trained["3.weight"].any()
    assert done.rounds[-1]["train_loss"] == 0.5


@pytest.mark.usefixtures("shared_ray")
@pytest.mark.slow
def test_ray_and_this_process_give_the_same_results(project):
    (project / "mine.py").write_text(STRATEGY.replace("CLIENT", "'sparse'"))
    path = written(
        project,
        strategy={"name": "./mine.py:Combing", "every": 3, "aggregator": "flwr.serverapp.strategy.FedYogi"},
    )
    done = run(path, out=project / "out")
    here = federate(load_scenario(path))
    assert same_state(get_state(done.model()), here.strategy.state)
    timed = ("wall_seconds", "accuracy", "loss")
    for record, line in zip(here.rounds, done.rounds, strict=True):
        found = json.loads(json.dumps(vars(record)))
        assert {k: v for k, v in found.items() if k not in timed} == {
            k: v for k, v in line.items() if k not in timed
        }
        assert (found["accuracy"], found["loss"]) == (line["accuracy"], line["loss"])


def test_options_of_ones_own_are_checked_before_anything_runs(project):
    path = written(project, strategy={"name": "./mine.py:Combing", "every": 1, "evry": 3})
    with pytest.raises(ScenarioError, match=r"(?s)every.*evry.*did you mean 'every'"):
        run(path, out=project / "out")
    assert not (project / "out").exists()


def test_a_file_that_is_not_there_is_told_with_the_nearest(project):
    path = written(project, strategy={"name": "./mime.py:Combing", "every": 2})
    with pytest.raises(ScenarioError, match=r"mime\.py.*did you mean 'mine\.py'"):
        run(path, out=project / "out")


@pytest.mark.slow
def test_a_strategy_of_an_installed_package(tmp_path):
    """By entry points, in a process of its own, with a Ray whose workers must find the package too."""
    installed = tmp_path / "site"
    package = installed / "combs"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "strategy.py").write_text(STRATEGY.replace("CLIENT", '"counting"'))
    (package / "client.py").write_text(CLIENT)
    (package / "nets.py").write_text(MODEL)
    metadata = installed / "combs-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: combs\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[fedprune.strategies]\ncombing = combs.strategy:Combing\n"
        "[fedprune.clients]\ncounting = combs.client:Counting\n"
        "[fedprune.models]\ncombed = combs.nets:Net\n"
    )
    path = written(tmp_path, strategy={"name": "combing", "every": 4}, model={"name": "combed"})
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    code = "import sys; from fedprune.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "run", str(path), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = load_run(tmp_path / "out")
    assert found.summary["density"] == 0.25
    assert [record["train_loss"] for record in found.rounds] == [None, 0.5, 0.5]
    assert [record["clients_failed"] for record in found.rounds] == [0, 0, 0]
