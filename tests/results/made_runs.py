"""Runs made by hand: a scenario, records with known totals, and a model of each kind of layer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedprune.costs.ledger import RoundRecord, TaskRecord
from fedprune.data import DataInfo
from fedprune.data.inputs import Pixels
from fedprune.models import build
from fedprune.results.folder import RunFolder
from fedprune.results.modelfile import ModelInfo, StoredModel
from fedprune.results.records import summarise
from fedprune.results.run import Run
from fedprune.scenario import Scenario
from fedprune.sparsity.masks import Masks, apply_masks
from fedprune.tasks import Classification
from fedprune.wire import get_state

INFO = DataInfo("digits", Pixels((1, 8, 8), (0.3,), (0.35,)), tuple("0123456789"))
TASK = Classification(INFO)


def scenario(**changes: Any) -> Scenario:
    plan = {
        "name": "tiny",
        "seed": 7,
        "rounds": 3,
        "model": {"name": "cnn"},
        "clients": {"count": 4},
        "strategy": {"name": "fedavg"},
    }
    return Scenario.from_mapping(plan).override(**changes)


def task(**changes: Any) -> TaskRecord:
    values = {
        "round": 1,
        "type": "train",
        "client": 3,
        "device": "raspberry-pi-4",
        "examples": 50,
        "bytes_down": 1000,
        "bytes_up": 900,
        "mask_bytes_down": 10,
        "mask_bytes_up": 0,
        "flops": 10**6,
        "peak_memory_bytes": 4096,
        "device_seconds": 1.5,
        "joules": 0.25,
        "wall_seconds": 0.1,
        "status": "ok",
        "fault": None,
        "reason": None,
        "scores": {"accuracy": changes.pop("accuracy", None)},
    }
    return TaskRecord(**(values | changes))


def round_of(number: int, **changes: Any) -> RoundRecord:
    values = {
        "round": number,
        "loss": 1.25,
        "train_loss": 1.5,
        "density": 0.25,
        "layer_densities": {"stem.conv.weight": 0.5, "head.weight": 0.2},
        "bytes_down": 1000,
        "bytes_up": 100,
        "flops": 2 * 10**9,
        "peak_memory_bytes": 5 * 2**20 + number,
        "device_seconds": 2.5,
        "joules": None,
        "wall_seconds": 0.5,
        "clients_ok": 4,
        "clients_failed": 1,
        "clients_surplus": 0,
        "clients_excluded": 0,
        "clients_offline": 0,
        "classes": {},
        "faults": {"raised": 1},
        "scores": {"accuracy": changes.pop("accuracy", 0.5 + number / 10)},
        "client_scores": {"accuracy": changes.pop("client_accuracy", None)},
        "personal_scores": {"accuracy": changes.pop("personal_accuracy", None)},
    }
    return RoundRecord(**(values | changes))


def pruned_state(density: float, name: str = "cnn") -> tuple[dict[str, Tensor], Masks]:
    """Return a model's float state and random masks of its matrices and kernels."""
    module = build(name, INFO.input_shape, INFO.classes, seed=0)
    state = {k: v.clone() for k, v in module.state_dict().items() if v.is_floating_point()}
    generator = torch.Generator().manual_seed(0)
    masks = Masks(
        {k: torch.rand(v.shape, generator=generator) < density for k, v in state.items() if v.dim() > 1}
    )
    return state, masks if density < 1 else Masks()


def stored_model(
    name: str, density: float, shape: tuple[int, int, int] = (3, 32, 32), **options
) -> StoredModel:
    """Return a model as a file would hold it, with random masks, and batch norms as after training."""
    module = build(name, shape, 10, seed=0, options=options).eval()
    state = get_state(module)
    generator = torch.Generator().manual_seed(0)
    for tensor in state.values():
        if tensor.dim() == 1:
            tensor.uniform_(0.5, 1.5, generator=generator)
    masks = Masks(
        {k: torch.rand(v.shape, generator=generator) < density for k, v in state.items() if v.dim() > 1}
    )
    module.load_state_dict(apply_masks(state, masks), strict=False)
    mean, std = (0.5,) * shape[0], (0.25,) * shape[0]
    names = tuple(f"class {number}" for number in range(10))
    info = ModelInfo(
        model={"name": name, **options}, input_shape=shape, classes=10, class_names=names, mean=mean, std=std
    )
    return StoredModel(info, module, masks)


def entropy_bound(stored: StoredModel) -> float:
    """Return the bytes of a model's kept values, and of its masks by the binary entropy of each layer's."""
    total = 0.0
    for name, tensor in get_state(stored.module).items():
        size = tensor.numel()
        kept = int(stored.masks[name].sum()) if name in stored.masks else size
        total += kept * tensor.element_size()
        for share in (kept / size, 1 - kept / size):
            total -= size * share * math.log2(share) / 8 if share else 0
    return total


def make_run(
    directory: Path, *, density: float = 1.0, changes: dict[str, Any] | None = None, **of_rounds: Any
) -> Run:
    """Return a run of rounds 0 to 3, without writing it."""
    plan = scenario(**(changes or {}))
    rounds = [round_of(number, density=density, **of_rounds).columns() for number in range(4)]
    summary = summarise(
        rounds,
        [],
        name=plan.name,
        strategy=plan.strategy.name,
        seed=plan.seed,
        planned_rounds=plan.rounds,
        status="complete",
    )
    return Run(directory, rounds, [], summary, plan.model_dump(mode="json"))


def write_run(directory: Path, density: float, changes: dict[str, Any], **of_rounds: Any) -> None:
    """Write a finished run of rounds 0 to 3 into a folder, without its figures."""
    folder = RunFolder.create(directory, scenario(**changes))
    folder.draws = False
    for number in range(4):
        folder.on_round(round_of(number, density=density, **of_rounds))
    state, masks = pruned_state(density)
    folder.finish(status="complete", reason=None, state=state, masks=masks, task=TASK, dense=None)
