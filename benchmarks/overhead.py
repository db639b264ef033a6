"""How much of a bare PyTorch loop's speed is left when the same clients train in the engine.

    python benchmarks/overhead.py [--data DIR] [--json FILE] [--rounds N]

One round is CIFAR-10, ResNet-18 at width 0.25, 10 clients with 200 images each, one epoch of SGD
with momentum. The bare loop is what one would write by hand: for each client load the global
weights, train, add the result up. Both run on the same cores, round by round in turn with fresh
images drawn from the same tensors, and neither evaluates. The loop is run twice: as one process
that uses all cores (``speed_of_bare_loop``), and as one single-threaded process per core that
shares out the clients (``speed_of_parallel_loop``), which is as fast as these cores get.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
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
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import torch
from torch.nn import functional

import fedprune
from fedprune import data as datasets
from fedprune import models
from fedprune.scenario import Scenario

CLIENTS, IMAGES, BATCH = 10, 200, 32
CORES = os.cpu_count() or 1
DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10"


def scenario(path: Path, rounds: int) -> Scenario:
    """Return the scenario; only its last round is evaluated, and that one is not counted."""
    return Scenario.from_mapping(
        {
            "name": "overhead",
            "rounds": rounds,
            "model": {"name": "resnet18", "width": 0.25},
            "data": {
                "name": "cifar10",
                "path": str(path),
                "train_examples": CLIENTS * IMAGES,
                "test_examples": 256,
                "partition": {"scheme": "iid"},
            },
            "clients": {
                "count": CLIENTS,
                "training": {"batch_size": BATCH, "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9}},
            },
            "strategy": {"name": "fedavg"},
            "evaluation": {"every": rounds},
            "engine": {"device": "cpu"},
        }
    )


class BareLoop:
    """Federated averaging as one would write it by hand."""

    def __init__(self, plan: Scenario) -> None:
        data = datasets.load(plan)
        info = data.info
        self.model = models.build("resnet18", info.input_shape, info.classes, seed=0, options={"width": 0.25})
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (info.inputs.mean, info.inputs.std))
        self.examples = []
        for number in range(CLIENTS):
            indices = data.client(number).train
            images = torch.from_numpy(data.train.inputs[indices]).float() / 255
            self.examples.append(((images - mean) / std, torch.from_numpy(data.train.targets[indices])))
        self.start = {name: value.clone() for name, value in self.model.state_dict().items()}

    def train(self, number: int) -> dict[str, torch.Tensor]:
        """Train one client from the global weights and return its own."""
        self.model.load_state_dict(self.start)
        self.model.train()
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        images, labels = self.examples[number]
        order = torch.randperm(len(labels))
        for begin in range(0, len(labels), BATCH):
            batch = order[begin : begin + BATCH]
            optimizer.zero_grad()
            functional.cross_entropy(self.model(images[batch]), labels[batch]).backward()
            optimizer.step()
        return {name: value.clone() for name, value in self.model.state_dict().items()}

    def round(self, numbers: range) -> dict[str, torch.Tensor]:
        """Train some clients and add their weights up."""
        total: dict[str, torch.Tensor] = {}
        for number in numbers:
            for name, value in self.train(number).items():
                total[name] = total[name] + value if name in total else value
        return total


def bare_seconds(plan: Scenario, threads: int, rounds: int) -> list[float]:
    """Return the seconds of each round of the loop in this process."""
    torch.set_num_threads(threads)
    loop = BareLoop(plan)
    return timed(lambda: loop.round(range(CLIENTS)), rounds)


def parallel_seconds(plan: Scenario, rounds: int) -> list[float]:
    """Return the seconds of each round of the loop in one process per core."""
    context = multiprocessing.get_context("spawn")
    pipes = []
    for core in range(CORES):
        ours, theirs = context.Pipe()
        context.Process(target=serve, args=(plan, core, theirs), daemon=True).start()
        pipes.append(ours)

    def one_round() -> None:
        for pipe in pipes:
            pipe.send("round")
        for pipe in pipes:
            pipe.recv()

    seconds = timed(one_round, rounds)
    for pipe in pipes:
        pipe.send("end")
    return seconds


def serve(plan: Scenario, core: int, pipe: Any) -> None:
    """Train every CORES-th client whenever the pipe asks."""
    torch.set_num_threads(1)
    loop = BareLoop(plan)
    while pipe.recv() == "round":
        loop.round(range(core, CLIENTS, CORES))
        pipe.send("done")


def timed(function: Callable[[], Any], rounds: int) -> list[float]:
    """Return the seconds of each call but the first."""
    seconds = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def engine_seconds(plan: Scenario) -> list[float]:
    """Return the seconds of each round in the engine but the first and the last."""
    with tempfile.TemporaryDirectory() as folder:
        run = fedprune.run(plan, out=Path(folder) / "run", progress=False)
        return [record["wall_seconds"] for record in run.rounds[2:-1]]


def main() -> None:
    """Measure, print the table, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="CIFAR-10 in the hub's parquet form")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--rounds", type=int, default=4, help="rounds of each kind in each of three turns")
    options = parser.parse_args()
    if not options.data.exists():
        sys.exit(f"no CIFAR-10 at {options.data}: say where it is with --data")
    plan = scenario(options.data, options.rounds + 2)
    seconds: dict[str, list[float]] = {"engine": [], "bare loop": [], "parallel loop": []}
    for _ in range(3):  # In turns: the speed of a shared machine drifts.
        seconds["engine"] += engine_seconds(plan)
        seconds["bare loop"] += bare_seconds(plan, CORES, options.rounds)
        seconds["parallel loop"] += parallel_seconds(plan, options.rounds)
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    print(f"{CORES} cores, {len(seconds['engine'])} rounds of each kind\n")
    print(f"{'':16}{'median s':>10}{'min':>8}{'max':>8}{'engine speed':>15}")
    for kind, values in seconds.items():
        ratio = f"{medians[kind] / medians['engine']:.2f} of it" if kind != "engine" else ""
        print(f"{kind:16}{medians[kind]:10.2f}{min(values):8.2f}{max(values):8.2f}{ratio:>15}")
    if options.json:
        figures = {
            "speed_of_bare_loop": medians["bare loop"] / medians["engine"],
            "speed_of_parallel_loop": medians["parallel loop"] / medians["engine"],
            "median_s": medians,
        }
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
