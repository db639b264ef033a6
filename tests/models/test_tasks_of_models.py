"""A scenario names a task and a model, and they fit: each task with the built-in models that are for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fedprune.costs.flops import ModelCost
from fedprune.costs.memory import step_memory
from fedprune.data import DataInfo
from fedprune.data.inputs import Inputs, Numbers, Tokens
from fedprune.results.modelfile import described, load_model, save_model
from fedprune.scenario import Scenario
from fedprune.sparsity.masks import Masks
from fedprune.tasks import TASKS, Task, build_model, check_model
from fedprune.wire import get_state

_IMAGES, _SERIES, _ROWS = Numbers((3, 16, 16)), Numbers((3, 24)), Numbers((14,))
_TEXT, _PADDED = Tokens((7,), vocabulary=11), Tokens((7,), vocabulary=11, padding=0)
_SMALL = {"hidden": 8}
_NARROW = {"width": 0.1}

#: Task, inputs, and a model with its options.
PAIRS: list[tuple[str, Inputs, dict[str, Any]]] = [
    ("classification", _IMAGES, {"name": "mobilenet_v1"}),
    ("classification", _PADDED, {"name": "lstm", **_SMALL}),
    ("multilabel", _IMAGES, {"name": "resnet8"}),
    ("multilabel", _PADDED, {"name": "transformer", "size": 8}),
    ("regression", _ROWS, {"name": "mlp"}),
    ("regression", _PADDED, {"name": "gru", **_SMALL}),
    ("next_token", _TEXT, {"name": "lstm", **_SMALL}),
    ("next_token", _PADDED, {"name": "gru", **_SMALL}),
    ("next_token", _PADDED, {"name": "transformer", "size": 8}),
    ("tagging", _PADDED, {"name": "transformer", "size": 8}),
    ("tagging", _SERIES, {"name": "lstm", **_SMALL}),
    ("reconstruction", _SERIES, {"name": "autoencoder", **_NARROW}),
    ("segmentation", _IMAGES, {"name": "unet", **_NARROW}),
]
assert {name for name, *_ in PAIRS} == set(TASKS), "a task has no model here"


def made(name: str, inputs: Inputs, model: dict[str, Any]) -> tuple[Task, nn.Module]:
    task = TASKS[name](DataInfo("made", inputs, class_names=("a", "b", "c")))
    task.name = name
    scenario = Scenario.from_mapping(
        {"name": "pair", "rounds": 1, "model": model, "clients": {"count": 2}, "strategy": {"name": "fedavg"}}
    )
    module = build_model(scenario, task)
    check_model(scenario, task, module)
    return task, module


def label(value: object) -> str | None:
    return value["name"] if isinstance(value, dict) else getattr(value, "kind", None)


@pytest.mark.parametrize(("name", "inputs", "model"), PAIRS, ids=label)
def test_a_step_is_counted_and_lowers_the_loss(name: str, inputs: Inputs, model: dict[str, Any]) -> None:
    task, module = made(name, inputs, model)
    cost = ModelCost.of(module, task)
    assert cost.training_flops(Masks(), 2) > cost.forward_flops(Masks(), 2) > 0
    assert step_memory(cost, Masks(), 2).activations > 0
    x = inputs.random(4, torch.Generator().manual_seed(0))
    y = task.blank_targets(x)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = task.loss(module(x), y, x)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("model", [{"name": "transformer", "size": 8}, {"name": "gru", **_SMALL}], ids=label)
def test_what_a_task_told_its_model_is_in_the_model_s_file(model: dict[str, Any], tmp_path: Any) -> None:
    """Or the file's model would see later tokens, and answer once."""
    task, module = made("next_token", _PADDED, model)
    path = tmp_path / "model.safetensors"
    save_model(path, get_state(module), Masks(), model=model, **described(task))
    x = _PADDED.random(2, torch.Generator().manual_seed(0))
    assert torch.equal(load_model(path)(x), module.eval()(x))
