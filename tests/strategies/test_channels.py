"""Whole channels pruned in a federation: what clients train, what crosses, what it costs, what is shipped."""

from __future__ import annotations

import json

import pytest
import torch
from inprocess import assemble, federate, plan, same_state

from fedprune.costs.flops import ModelCost
from fedprune.costs.ledger import Listener
from fedprune.engine.hosts import InProcess
from fedprune.engine.simulation import run as simulate
from fedprune.errors import ScenarioError
from fedprune.results.export import program_bytes
from fedprune.results.modelfile import read_model
from fedprune.server.check import check
from fedprune.sparsity.masks import Masks
from fedprune.sparsity.structure import shrink
from fedprune.wire import Layout, encode_masks
from fedprune.wire.values import MASK

STATIC = {"name": "static", "density": 0.3, "unit": "channel"}
FEDTINY = {"name": "fedtiny", "density": 0.3, "unit": "channel", "adjust": False, "candidates": 3}


@pytest.fixture
def trained_modules(monkeypatch):
    """Return the second convolution's channels of every module that a client trains."""
    from fedprune.client import base

    seen = []
    begin = base.Client.begin_training

    def noted(self, task):
        seen.append(task.model.module.get_submodule("block2.conv").out_channels)
        return begin(self, task)

    monkeypatch.setattr(base.Client, "begin_training", noted)
    return seen


@pytest.mark.parametrize("strategy", [STATIC, FEDTINY], ids=["static", "fedtiny"])
def test_clients_train_the_smaller_model_and_the_server_has_the_whole_one(strategy, trained_modules):
    """The same as training the whole model under the masks, and clients hold nothing of what is pruned."""
    small = federate(plan(strategy=strategy))
    (kept,) = set(trained_modules)
    assert kept < 16
    assert kept == small.strategy.masks["block2.norm.weight"].sum()
    trained_modules.clear()
    whole = federate(plan(strategy=strategy, clients__training__execution="dense"))
    assert set(trained_modules) == {16}
    assert small.strategy.masks == whole.strategy.masks
    for name, value in small.strategy.state.items():
        torch.testing.assert_close(value, whole.strategy.state[name], rtol=1e-3, atol=1e-5)
        if name in small.strategy.masks:
            assert not value[~small.strategy.masks[name]].any()
    ledger = ("bytes_down", "bytes_up", "flops", "peak_memory_bytes", "mask_bytes_down")
    for one, other in zip(small.tasks, whole.tasks, strict=True):
        assert [getattr(one, key) for key in ledger] == [getattr(other, key) for key in ledger]


def test_costs_are_those_of_the_smaller_model():
    made = federate(plan(strategy=STATIC))
    strategy = made.strategy
    small = ModelCost.of(shrink(strategy.module, strategy.masks), strategy.task)
    for task in made.tasks:
        if task.type == "train":
            assert task.flops == small.training_flops(Masks(), task.examples)
    values = sum(
        shape.numel() for shape in Layout.of(shrink(strategy.module, strategy.masks)).shapes.values()
    )
    for message, reply in made.trained():
        for content in (message.content, reply.content):
            sent = {key: len(array.data) for key, array in content["arrays"].items() if key != MASK}
            assert 4 * values <= sum(sent.values()) < 4 * values + 200  # With the heads of arrays.


def test_masks_of_channels_take_bytes_by_the_channel():
    masks = assemble(plan(strategy=STATIC)).strategy.pruned("magnitude", "erk")
    channels = 16 + 64
    names = sum(len(name) + 1 for name in masks)
    assert len(encode_masks(masks)) < channels / 8 + names + 2 * 2 * len(masks)


class Stopping(Listener):
    """Interrupts a run in its second round."""

    def on_task(self, task):
        if task.round == 2:
            raise KeyboardInterrupt

    def on_round(self, record):
        return


@pytest.mark.parametrize("strategy", [STATIC, FEDTINY], ids=["static", "fedtiny"])
def test_a_run_goes_on_where_it_stopped(strategy, tmp_path):
    scenario, host = plan(strategy=strategy, rounds=3), InProcess()
    quiet = {"progress": False, "figures": False}
    whole = simulate(scenario, out=tmp_path / "whole", host=host, **quiet)
    with pytest.raises(KeyboardInterrupt):
        simulate(scenario, out=tmp_path / "cut", host=host, listeners=[Stopping()], **quiet)
    rest = simulate(scenario, out=tmp_path / "cut", host=host, resume=True, **quiet)
    assert same_state(rest.model().state_dict(), whole.model().state_dict())
    assert [record["accuracy"] for record in rest.rounds] == [record["accuracy"] for record in whole.rounds]


def test_the_smaller_model_is_what_is_exported(tmp_path):
    run = simulate(
        plan(strategy=STATIC), out=tmp_path / "run", host=InProcess(), progress=False, figures=False
    )
    stored = read_model(run.model_file)
    (tmp_path / "model.pt2").write_bytes(program_bytes(stored))
    program = torch.export.load(tmp_path / "model.pt2")
    x = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), stored.module(x), rtol=1e-5, atol=1e-6)
    kept = {name: tuple(value.shape) for name, value in program.state_dict.items()}
    assert kept["block2.conv.weight"] == (stored.masks["block2.norm.weight"].sum(), 8, 3, 3)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["density"] == stored.masks.density


@pytest.mark.parametrize(
    ("strategy", "what"),
    [
        ({"name": "feddst", "density": 0.5, "unit": "channel"}, "FedDST prunes single weights alone"),
        ({"name": "fedtiny", "density": 0.5, "unit": "channel"}, "a pruned channel has no gradient"),
        ({"name": "static", "density": 0.5, "criterion": "batch_norm_scale"}, "set unit: channel"),
        ({"name": "fedavg", "unit": "channel"}, "prunes single weights alone"),
    ],
)
def test_what_does_not_go_with_channels_is_refused(strategy, what):
    with pytest.raises(ScenarioError, match=what):
        check(plan(strategy=strategy))


def test_nested_masks_of_channels_are_refused():
    with pytest.raises(ScenarioError, match="nested masks are of single weights"):
        check(plan(strategy=STATIC, clients__over_budget="nest"))
