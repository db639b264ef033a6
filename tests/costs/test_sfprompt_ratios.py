"""The benchmark of SFPrompt's ratios says of a small model what a run of it counts."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from inprocess import federate, plan

from fedprune.models.vit import vit
from fedprune.server.check import resolve

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "sfprompt_ratios.py"
MODEL = {"patch": 2, "size": 32, "layers": 3, "heads": 2}
CUT = {"body": "blocks.0", "tail": "norm"}


@pytest.fixture(scope="module")
def ratios() -> ModuleType:
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[SCRIPT.stem] = module  # Where dataclasses look for it.
    spec.loader.exec_module(module)
    return module


def test_it_counts_what_runs_count(ratios: ModuleType) -> None:
    whole, split = (vit((1, 8, 8), 10, **MODEL, prompts=prompts) for prompts in (0, 2))
    found = ratios.parts("small", "cut", whole, split, (1, 8, 8), CUT["body"], CUT["tail"])
    method = {"name": "sfprompt", "local_epochs": 2, "prune": 0.5, **CUT}
    made = federate(resolve(plan(model={"name": "vit", "prompts": 2, **MODEL}, strategy=method)))
    dense = federate(
        resolve(
            plan(model={"name": "vit", **MODEL}, strategy={"name": "fedavg"}, clients__training__epochs=2)
        )
    )
    seen = {task.client for task in made.tasks if task.type == "train" and task.round == 1}
    again = [task for task in made.tasks if task.round == 2 and task.client in seen and task.type == "train"]
    assert again  # Whoever has the frozen head already.
    for task in again:
        held = {t.examples for t in dense.tasks if t.client == task.client and t.type == "train"}
        (examples,) = held
        row = ratios.row(found, examples, 0.5, 2)
        assert row.flops == pytest.approx(task.flops, rel=0.02)  # A batch of one example is left out.
        assert row.bytes < task.bytes_down + task.bytes_up < 1.2 * row.bytes
        full = next(t for t in dense.tasks if t.client == task.client and t.type == "train")
        assert row.flops / row.flops_ratio == pytest.approx(full.flops, rel=0.02)


def test_the_kept_examples_that_it_finds_give_the_bytes_asked_for(ratios: ModuleType) -> None:
    whole = vit((1, 8, 8), 10, **MODEL)
    found = ratios.parts("small", "cut", whole, whole, (1, 8, 8), CUT["body"], CUT["tail"])
    kept = ratios.kept_for(found, 0.47)
    assert ratios.row(found, round(kept), 0.0, 1).bytes_ratio == pytest.approx(0.47, abs=0.5 / kept)
