"""``model.weights``: read on the server alone, refused with the scenario's line, not needed to resume."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from flwr.app import Context, Message, RecordDict
from inprocess import PLAN, InProcessGrid, assemble, federate, plan, same_state
from safetensors.torch import save_file
from torch import Tensor

from fedprune import client_app, load_run, run, server_app, tasks
from fedprune import data as datasets
from fedprune.client.site import Site
from fedprune.costs.ledger import RoundRecord, TaskRecord
from fedprune.data import DataInfo
from fedprune.data.inputs import Numbers
from fedprune.engine.hosts import InProcess
from fedprune.errors import ScenarioError, UserError
from fedprune.results.modelfile import described, load_model, save_model
from fedprune.scenario import Scenario, load_scenario
from fedprune.server.check import check, check_model
from fedprune.sparsity.masks import Masks, apply_masks
from fedprune.sparsity.pruning import prunable
from fedprune.wire import get_state

VIT: dict[str, Any] = {"name": "vit", "patch": 2, "size": 16, "layers": 2, "heads": 2}
NETWORKS = Path(__file__).resolve().parents[1] / "networks.py"


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take longer than these runs, and have tests of their own."""
    monkeypatch.setattr("fedprune.results.figures.draw", lambda *_, **__: None)


def stored(path: Path, scenario: Scenario, density: float, info: DataInfo | None = None) -> dict[str, Tensor]:
    """Write a model of a scenario, for its data or other, as a run does; return its state."""
    task = tasks.build(scenario, info or datasets.describe(scenario))
    module, draws = tasks.build_model(scenario, task), torch.Generator().manual_seed(1)
    state = {name: value.uniform_(-1, 1, generator=draws) for name, value in get_state(module).items()}
    names = prunable(module, ()) if density < 1 else []
    masks = Masks({name: torch.rand(state[name].shape, generator=draws) < density for name in names})
    state = apply_masks(state, masks)
    save_model(path, state, masks, model=scenario.model.factory, **described(task))
    return state


@pytest.mark.parametrize("density", [1.0, 0.2])
@pytest.mark.parametrize("model", [VIT, {"name": "cnn", "width": 0.25}, {"name": f"{NETWORKS}:Tied"}])
def test_a_run_begins_with_a_model_of_an_earlier_one(
    model: dict[str, Any], density: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "model.safetensors"
    state = stored(path, plan(model=model), density)
    made = assemble(plan(model={**model, "weights": str(path)}))
    assert same_state(made.strategy.state, state)
    assert caplog.text == ""


@pytest.mark.parametrize("density", [1.0, 0.2])
def test_a_packed_model_of_other_classes_picture_size_and_prompts_fits_as_any_other(
    density: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "model.safetensors"
    letters = DataInfo("letters", Numbers((1, 28, 28)), class_names=tuple(map(str, range(47))))
    state = stored(path, plan(model=VIT), density, letters)
    made = assemble(plan(model={**VIT, "prompts": 2, "weights": str(path)}))
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        f"{path}: positions are interpolated from 14x14 patches to 4x4; as drawn: embedding.prompts "
        "(the file has none); as drawn: head.weight and head.bias (the file has 47 outputs, the model 10)"
    )
    drawn = assemble(plan(model={**VIT, "prompts": 2})).strategy.state
    for name, value in made.strategy.state.items():
        if name in ("head.weight", "head.bias", "embedding.prompts"):
            assert torch.equal(value, drawn[name])
        elif name != "embedding.positions":
            assert torch.equal(value, state[name])


def test_a_classifier_for_as_many_other_classes_stays_as_drawn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "model.safetensors"
    letters = DataInfo("letters", Numbers((1, 8, 8)), class_names=tuple("abcdefghij"))
    state = stored(path, plan(model=VIT), 1.0, letters)
    made = assemble(plan(model={**VIT, "weights": str(path)})).strategy.state
    assert caplog.messages == [
        f"{path}: as drawn: head.weight and head.bias (the file's is for other classes)"
    ]
    drawn = assemble(plan(model=VIT)).strategy.state
    for name, value in made.items():
        assert torch.equal(value, (drawn if name.startswith("head.") else state)[name])


def test_the_code_that_a_file_names_is_not_run(tmp_path: Path) -> None:
    shutil.copy(NETWORKS, tmp_path / "nets.py")
    path = tmp_path / "model.safetensors"
    state = stored(path, plan(model={"name": f"{tmp_path}/nets.py:Tied"}), 0.2)
    (tmp_path / "nets.py").write_text("raise RuntimeError")
    made = assemble(plan(model={"name": f"{NETWORKS}:Tied", "weights": str(path)}))
    assert same_state(made.strategy.state, state)


def test_a_run_trains_on_from_the_file_and_its_own_file_says_nothing_of_it(tmp_path: Path) -> None:
    path, out = tmp_path / "model.safetensors", tmp_path / "run"
    stored(path, plan(model=VIT), 1.0)
    scenario = plan(model={**VIT, "weights": str(path)}, strategy={"name": "static", "density": 0.5})
    run(scenario, out=out, progress=False, host=InProcess())
    path.unlink()
    assert load_model(out / "model.safetensors")(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_what_is_frozen_stays_as_the_file_has_it_and_clients_have_it_from_the_server(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    state = stored(path, plan(model=VIT), 1.0)
    losses = []
    for scale in (1.0, 0.5):  # Were a client to draw what is frozen, it could not tell the files apart.
        scaled = {k: v * scale if k.startswith("blocks.0.") else v for k, v in state.items()}
        save_file(scaled, path)
        made = federate(plan(model={**VIT, "weights": str(path), "trainable": ["blocks.1", "head"]}))
        assert [record.clients_failed for record in made.rounds] == [0, 0, 0]
        moved = {name for name, value in made.strategy.state.items() if not torch.equal(value, scaled[name])}
        assert "head.weight" in moved
        assert all(name.startswith(("blocks.1.", "head.")) for name in moved)
        losses.append(made.rounds[1].train_loss)
    assert losses[0] != losses[1]


SCENARIO = """\
name: pretrained
rounds: 2
model:
  name: vit
  patch: 2
  weights: begin.safetensors
clients:
  count: 2
strategy:
  name: fedavg
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "pretrained.yaml"
    path.write_text(SCENARIO)
    return path


def test_a_file_that_is_missing_or_none_is_refused_with_its_line(path: Path) -> None:
    where = path.parent / "begin.safetensors"
    with pytest.raises(ScenarioError) as refused:
        check(load_scenario(path))
    assert str(refused.value).startswith(
        f"{path}:6: model.weights: {where} is no file: correct it (a relative"
    )
    (path.parent / "begni.safetensors").touch()
    with pytest.raises(ScenarioError, match=r"is no file; did you mean 'begni.safetensors'\?$"):
        check(load_scenario(path))
    torch.save({}, where)
    with pytest.raises(ScenarioError) as refused:
        check(load_scenario(path))
    assert str(refused.value).startswith(f"{path}:6: model.weights: {where} is no safetensors file")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("density", [1.0, 0.2])
def test_a_file_of_another_model_is_refused_with_its_line(path: Path, density: float) -> None:
    where = path.parent / "begin.safetensors"
    stored(where, plan(model={**VIT, "size": 24}), density)
    check(load_scenario(path))  # It does not look into the file.
    expected = f"^{path}:6: model.weights: {where}: '[a-z0-9._]+' has shape .*, and the model .*: take the "
    with pytest.raises(ScenarioError, match=expected):
        check_model(load_scenario(path))
    with pytest.raises(ScenarioError, match=expected):
        run(path, out=path.parent / "run", progress=False, host=InProcess())
    assert not (path.parent / "run").exists()


@pytest.mark.parametrize("document", ["{", "[1]", '{"pruned": [0], "layout": "0"}'])
def test_a_damaged_file_of_fedprune_s_is_refused_with_its_line(path: Path, document: str) -> None:
    where = path.parent / "begin.safetensors"
    save_file({"float32": torch.zeros(3)}, where, metadata={"fedprune-model-2": document})
    with pytest.raises(ScenarioError, match=f"^{path}:6: model.weights: {where}: damaged"):
        check_model(load_scenario(path))


@pytest.mark.parametrize(
    "strategy",
    [
        {"name": "hidenseek", "density": 0.3},
        {"name": "fedmask", "density": 0.3},
        {"name": "fedpm"},
        {"name": "lotteryfl", "density": 0.3},
    ],
    ids=lambda strategy: strategy["name"],
)
def test_methods_whose_clients_draw_the_initial_weights_refuse_others(
    path: Path, strategy: dict[str, Any]
) -> None:
    scenario = load_scenario(path, {"strategy": strategy, "data.client_test_fraction": 0.2})
    save_file({}, path.parent / "begin.safetensors")
    with pytest.raises(ScenarioError, match=r"strategy.name: .* leave model.weights out$"):
        check(scenario)
    site = Site(scenario, datasets.load(scenario))
    with pytest.raises(UserError, match="which the server alone reads"):
        _ = site.initial


class StopsAfter:
    """Ends a run as a round ends, before its checkpoint is written."""

    def __init__(self, last: int) -> None:
        self.last = last

    def on_task(self, task: TaskRecord) -> None:
        pass

    def on_round(self, round: RoundRecord) -> None:
        if round.round == self.last:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_run_resumes_though_the_file_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "begin.safetensors"
    stored(path, plan(model=VIT), 1.0)
    strategy = {"name": "feddst", "density": 0.3, "adjust_every": 1, "stop_adjusting_at": 3}
    scenario = plan(
        model={**VIT, "weights": str(path)}, strategy=strategy, rounds=3, engine__checkpoint_every=1
    )
    whole = run(scenario, out=tmp_path / "whole", progress=False, host=InProcess())
    with pytest.raises(KeyboardInterrupt):
        run(scenario, out=tmp_path / "cut", progress=False, host=InProcess(), listeners=[StopsAfter(2)])
    path.unlink()
    cut = tmp_path / "cut"
    again = run(cut / "scenario.yaml", out=cut, resume=True, progress=False, host=InProcess())
    assert same_state(get_state(again.model()), get_state(whole.model()))
    assert len(again.rounds) == len(whole.rounds)
    # A run that has to begin anew needs it.
    with pytest.raises(ScenarioError, match=r"model.weights: .* is no file"):
        run(cut / "scenario.yaml", out=tmp_path / "anew", progress=False, host=InProcess())


def test_under_flower_the_server_reads_it_from_beside_the_scenario_and_devices_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    stored(tmp_path / "begin.safetensors", plan(model=VIT), 1.0)
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump({**PLAN, "model": {**VIT, "weights": "begin.safetensors"}}))
    config: dict[str, Any] = {"scenario": str(path), "out": str(tmp_path / "apps")}

    def clients_have_no_file(message: Message, _: Context) -> None:
        (tmp_path / "begin.safetensors").unlink(missing_ok=True)
        if message.metadata.message_type == "train" and message.content["config"]["round"] == 2 and breaks:
            raise KeyboardInterrupt

    nodes = {number + 2: {"partition-id": number} for number in range(4)}
    expected = run(path, out=tmp_path / "run", progress=False, host=InProcess())
    for breaks in (True, False):  # The second goes on where the first was broken off.
        config = {**config, "resume": not breaks}
        grid = InProcessGrid(client_app.app, nodes, run_config=config, before=clients_have_no_file)
        with pytest.raises(KeyboardInterrupt) if breaks else nullcontext():
            server_app.main(grid, Context(1, 1, {}, RecordDict(), config))
    assert same_state(get_state(load_run(tmp_path / "apps").model()), get_state(expected.model()))


def test_without_the_key_a_scenario_is_what_it_was() -> None:
    dumped = plan(model=VIT).model_dump(mode="json")
    assert dumped["model"] == VIT
