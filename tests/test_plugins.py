"""What a user writes runs like what is built in: from a file of theirs, or from a package they installed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from inprocess import PLAN, federate, same_state

from fedprune import load_run, load_scenario, resume, run
from fedprune.cli import main
from fedprune.engine.hosts import InProcess
from fedprune.errors import ScenarioError
from fedprune.server.check import resolve
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
        found = json.loads(json.dumps(record.columns()))
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


# Paths -------------------------------------------------------------------------------------------

HELPED = """
from fedprune import Client, FitResult


class Counting(Client):
    \"\"\"Adds what a sibling says to every value.\"\"\"

    def fit(self, task):
        from helper import STEP  # Late: an import inside a function finds the same sibling.

        examples = len(self.data.train)
        return FitResult(values=task.values + STEP, masks=task.masks, loss=0.5, examples_seen=examples)
"""

PRUNING = """
from fedprune import PruningStrategy

import helper


class Scored(PruningStrategy):
    \"\"\"Prunes once, by a criterion beside this file.\"\"\"

    client = "./clients/ours.py:Counting"

    class Options(PruningStrategy.Options):
        \"\"\"What scores.\"\"\"

        criterion: str = "scores.py:last"

    def prepare(self, grid):
        assert helper.WHO == "method"
        self.prune_to(self.options.density, self.options.criterion)
        chosen = self.masks
        self.prune_to(self.options.density, "./scores.py:last")  # Named in the code itself.
        assert self.masks == chosen
"""

SCORES = """
def last(module, names, **others):
    \"\"\"The last weights of a layer are the best.\"\"\"
    weights = {name: module.get_parameter(name).detach() for name in names}
    return {name: w.new_tensor(range(w.numel())).reshape(w.shape) for name, w in weights.items()}
"""


@pytest.fixture
def spread(tmp_path):
    """A scenario, a method, its client and a model, each in a folder of its own; three have a ``helper``."""
    for folder, files in {
        "plans": {},
        "method": {"mine.py": PRUNING, "scores.py": SCORES, "helper.py": 'WHO = "method"\n'},
        "method/clients": {
            "ours.py": HELPED,
            "helper.py": "from more import STEP\n",
            "more.py": "STEP = 2\n",
        },
        "nets": {
            "nets.py": "import helper\n" + MODEL.replace("hidden: int = 8", "hidden: int = helper.HIDDEN"),
            "helper.py": "HIDDEN = 12\n",
            "unused.py": "",
        },
    }.items():
        (tmp_path / folder).mkdir()
        for name, text in files.items():
            (tmp_path / folder / name).write_text(text)
    written(
        tmp_path / "plans",
        strategy={"name": "../method/mine.py:Scored", "density": 0.25},
        model={"name": "../nets/nets.py:Net"},
    )
    return tmp_path


USED = [
    "method/clients/helper.py",
    "method/clients/more.py",
    "method/clients/ours.py",
    "method/helper.py",
    "method/mine.py",
    "method/scores.py",
    "nets/helper.py",
    "nets/nets.py",
]


def test_a_path_starts_beside_the_file_that_names_it(spread, monkeypatch):
    monkeypatch.chdir("/")
    given = load_scenario(spread / "plans" / "plan.yaml")
    known = resolve(given)
    assert known.clients.algorithm == f"{spread}/method/clients/ours.py:Counting"
    assert known.strategy.options["criterion"] == f"{spread}/method/scores.py:last"
    for scenario in (given, known):
        done = federate(scenario)
        start = federate(scenario.override(rounds=1)).states[0]
        torch.testing.assert_close(done.states[-1]["5.bias"], start["5.bias"] + 2 * scenario.rounds)
        mask = done.strategy.masks["3.weight"].flatten()
        assert mask.tolist() == sorted(mask.tolist())  # False first: the last weights are kept.
        assert mask.numel() == 12 * 12


@pytest.mark.usefixtures("shared_ray")
@pytest.mark.slow
def test_a_run_keeps_its_plug_ins_and_a_later_one_says_what_has_changed(spread, monkeypatch, caplog):
    monkeypatch.chdir(spread / "nets")
    plan, out = spread / "plans" / "plan.yaml", spread / "out"
    with pytest.raises(KeyboardInterrupt):
        run(plan, out=out, rounds=3, listeners=[Stop(after=1)])
    index = json.loads((out / "plugins" / "index.json").read_text())
    assert [entry["copy"] for entry in index] == USED
    for entry in index:
        source = (spread / entry["copy"]).read_bytes()
        assert entry["file"] == str(spread / entry["copy"])
        assert (out / "plugins" / entry["copy"]).read_bytes() == source
        assert entry["sha256"] == hashlib.sha256(source).hexdigest()
    monkeypatch.chdir(out)
    caplog.clear()
    done = resume(out)
    assert "has changed" not in caplog.text
    assert done.summary["status"] == "complete"
    assert done.summary["clients_failed"] == 0
    whole = run(plan, out=spread / "whole", rounds=3, host=InProcess())
    assert same_state(get_state(done.model()), get_state(whole.model()))
    with (spread / "nets" / "helper.py").open("a") as file:
        file.write("# changed\n")
    (spread / "method" / "scores.py").rename(spread / "method" / "gone.py")
    with pytest.raises(ScenarioError, match=r"strategy\.criterion: no file .*scores\.py"):
        run(plan, out=out, overwrite=True)
    assert f"{spread}/nets/helper.py has changed since the run in {out} started" in caplog.text
    assert f"{spread}/method/scores.py is no longer there; {out}/plugins/method/scores.py" in caplog.text
    plain = {"rounds": 1, "strategy": {"name": "fedavg"}, "model": {"name": "cnn"}}
    run(plan, out=out, overwrite=True, host=InProcess(), **plain)
    assert not (out / "plugins").exists()


class Stop:
    """Ends a run after a round, as Ctrl-C does."""

    def __init__(self, after):
        self.after = after

    def on_task(self, task):
        pass

    def on_round(self, round):
        if round.round == self.after:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        (
            "mine.py",
            "./clients/ours.py",
            "./ours.py",
            r"strategy\.name: .*Scored names: no file .*/ours",
        ),
        ("mine.py", ":Counting", ":Countin", r"ours\.py has no 'Countin'; did you mean 'Counting'"),
        (
            "mine.py",
            "scores.py:last",
            "score.py:last",
            r"strategy\.criterion: no file .*did you mean 'scores",
        ),
        ("mine.py", "scores.py:last", "scores.py:first", r"strategy\.criterion: .*has no 'first'"),
        ("clients/ours.py", "import Client", "import Clint", r"strategy\.name: .*ours\.py:2"),
        (
            "mine.py",
            '        criterion: str = "scores.py:last"',
            '        criterion: str = "scores.py:last"\n        ramps: tuple[str, ...] = ("ramp.py:x",)',
            r"strategy\.ramps: no file .*/method/ramp\.py",
        ),
    ],
)
def test_a_path_in_a_plug_in_is_checked_before_anything_runs(spread, file, old, new, words, capsys):
    path = spread / "method" / file
    path.write_text(path.read_text().replace(old, new))
    assert main(["validate", str(spread / "plans" / "plan.yaml")]) == 2
    error = capsys.readouterr().err
    assert re.search(words, error)
    assert len(error.splitlines()) == 1


def test_a_device_needs_nothing_of_the_server(spread, monkeypatch):
    """A deployment's devices load the scenario, its client and its model from the app alone."""
    monkeypatch.chdir(spread)
    assert main(["deploy", "init", "edge", "plans/plan.yaml"]) == 0
    app = spread / "edge" / "app"
    found = [str(path.relative_to(app / "plugins")) for path in app.rglob("*.py")]
    assert sorted(found) == USED
    for folder in ("method", "nets", "plans"):
        (spread / folder).rename(spread / f"away-{folder}")
    app.rename(spread / "app")
    code = f"""
import sys
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from fedprune.client_app import app
from fedprune.client.site import Site
from fedprune.sparsity.masks import Masks
from fedprune.wire import CODEC, StateCodec
from fedprune import client_app

TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
config = {{"scenario": {str(spread / "app" / "scenario.yaml")!r}}}
context = Context(1, 2, {{"partition-id": 1}}, RecordDict(), config)
site = client_app._find_site(context)
values = StateCodec(site.layout, Masks(), "float32")
arrays = values.encode(values.flatten(site.initial), seed=1)
asked = ConfigRecord({{"round": 1, "mask-version": "", "codec": CODEC}})
reply = app(Message(RecordDict({{"arrays": arrays, "config": asked}}), 2, "train"), context)
assert not reply.has_error(), reply.error
assert reply.content["metrics"]["loss"] == 0.5
server = {{"server", "engine", "results", "cli", "deployment", "strategies", "server_app"}}
print(sorted(name for name in sys.modules if name.startswith("fedprune.") and name.split(".")[1] in server))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"
