"""What it costs a simulation that a model is split: beside the same computation in one plain loop.

    python benchmarks/split.py [--data DIR] [--json FILE] [--rounds N]

A round is CIFAR-10 with 4 clients of 128 images each, in batches of 32, in one process with one thread. In
fedprune head, body and tail are trained apart, everything that would cross between client and server is
made, measured and read, and values are decoded, aggregated and accounted for. The plain loop trains the
whole model on as many batches: of SFPrompt first the shortcut, then a forward pass for the scores, then half
of the images with the body. Both take turns, round by round; the figure is the ratio of medians of processor
time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

import torch
from torch import nn
from torch.nn import functional

from fedprune import tasks
from fedprune.client.site import Site
from fedprune.data import load
from fedprune.determinism import make_deterministic
from fedprune.engine.hosts import InProcess
from fedprune.engine.simulation import run
from fedprune.models.cut import ClientPart
from fedprune.scenario import Scenario
from fedprune.server.check import resolve
from fedprune.sparsity.frozen import freeze

CLIENTS, IMAGES, BATCH = 4, 128, 32
DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10"
VIT = {"name": "vit", "patch": 4, "size": 96, "layers": 6, "heads": 4, "prompts": 8}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sfprompt, vit, float32": (VIT, {"name": "sfprompt"}),
    "sfprompt, vit, int8": (VIT, {"name": "sfprompt", "smashed": "int8"}),
    "splitfed, vit, float32": (VIT, {"name": "splitfed"}),
    "splitfed, vit, int8": (VIT, {"name": "splitfed", "smashed": "int8"}),
    "splitfed, resnet18 at 0.25, float32": (
        {"name": "resnet18", "width": 0.25},
        {"name": "splitfed", "body": "layer2", "tail": "layer4"},
    ),
    "splitfed, cnn, float32": ({"name": "cnn"}, {"name": "splitfed", "body": "block2", "tail": "hidden"}),
}


def scenario(path: Path, rounds: int, model: dict[str, Any], strategy: dict[str, Any]) -> Scenario:
    """Return a case's scenario; only its last round is evaluated, and that one is not counted."""
    return resolve(
        Scenario.from_mapping(
            {
                "name": "split",
                "rounds": rounds,
                "model": model,
                "data": {
                    "name": "cifar10",
                    "path": str(path),
                    "train_examples": CLIENTS * IMAGES,
                    "test_examples": 256,
                    "partition": {"scheme": "iid"},
                },
                "clients": {
                    "count": CLIENTS,
                    "training": {
                        "batch_size": BATCH,
                        "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9},
                    },
                },
                "strategy": strategy,
                "evaluation": {"every": rounds},
                "engine": {"checkpoint_every": 0},
            }
        )
    )


def plain(plan: Scenario) -> Callable[[], None]:
    """Return a round of the plain loop."""
    data = load(plan)
    task = tasks.build(plan, data.info)
    site = Site(plan, data)
    model = tasks.build_model(plan, task)
    prompts = plan.strategy.name == "sfprompt"
    part = site.client_class.local_model(plan, task, model)
    assert isinstance(part, ClientPart)
    if prompts:
        own = {name for name, _ in part.named_parameters()}
        freeze(model, [name for name, _ in model.named_parameters() if name not in own])
    start = {name: value.clone() for name, value in model.state_dict().items()}
    examples = torch.from_numpy(data.train.inputs[: CLIENTS * IMAGES])
    labels = torch.from_numpy(data.train.targets[: CLIENTS * IMAGES])

    def epoch(module: nn.Module, count: int, first: int) -> None:
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.01, momentum=0.9, foreach=True)
        module.train()
        for at in range(first, first + count, BATCH):
            x, y = task.batch(examples[at : at + BATCH], labels[at : at + BATCH])
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(module(x), y).backward()
            optimizer.step()

    def round_() -> None:
        for client in range(CLIENTS):
            first = client * IMAGES
            model.load_state_dict(start)
            if prompts:
                epoch(part, IMAGES, first)
                with torch.no_grad():
                    for at in range(first, first + IMAGES, BATCH):
                        part.eval()(task.batch(examples[at : at + BATCH], labels[at : at + BATCH])[0])
            epoch(model, IMAGES // 2 if prompts else IMAGES, first)

    return round_


class InTurn:
    """Runs the plain loop after each round of fedprune's, and keeps the processor seconds of both."""

    def __init__(self, loop: Callable[[], None], rounds: int) -> None:
        self.loop, self.rounds = loop, rounds
        self.fedprune: list[float] = []
        self.plain: list[float] = []
        self._began = 0.0

    def on_task(self, task: Any) -> None:
        """Hear of a task: nothing is done."""

    def on_round(self, record: Any) -> None:
        """Time a round of the plain loop; the first and the last round are left out."""
        ended = time.process_time()
        if 1 < record.round < self.rounds:
            self.fedprune.append(ended - self._began)
            self.loop()
            self.plain.append(time.process_time() - ended)
        self._began = time.process_time()


def measured(path: Path, rounds: int, case: str) -> dict[str, float]:
    """Return the medians of a case, and their ratio."""
    plan = scenario(path, rounds, *CASES[case])
    turns = InTurn(plain(plan), rounds)
    with tempfile.TemporaryDirectory() as folder:
        run(
            plan, out=Path(folder) / "run", host=InProcess(), progress=False, listeners=[turns], figures=False
        )
    ours, theirs = statistics.median(turns.fedprune), statistics.median(turns.plain)
    return {"fedprune_seconds": ours, "plain_seconds": theirs, "ratio": ours / theirs}


def main() -> int:
    """Measure all cases and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    make_deterministic()
    found = {}
    for case in CASES:
        found[case] = measured(options.data, options.rounds, case)
        seconds = found[case]
        print(
            f"{case:38} fedprune {seconds['fedprune_seconds']:.3f} s, plain loop "
            f"{seconds['plain_seconds']:.3f} s: {seconds['ratio']:.2f}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
