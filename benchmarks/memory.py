"""Is the memory model true? What it predicts beside what PyTorch allocates in a client's training step.

    python benchmarks/memory.py [--models NAME ...] [--densities D ...] [--batches N ...]
        [--optimizer NAME] [--shape C H W] [--full] [--csv FILE]

Each (model, density, batch size) is measured in a process of its own: the model is built and pruned by
magnitude, and `fedprune.training.loop.train`, the loop of every client, takes two steps. What is counted are
the events of PyTorch's allocator in the second one, when the optimizer has its state. A second witness,
before that and without the profiler, is the peak of the process's resident memory during two steps,
above what interpreter and libraries take.

The simulation computes dense tensors under a mask, so for a density below 1 there are two predictions:
for a device that stores only what is kept ("kept"), and by the same model at density 1 ("dense"), which
is what is allocated here. Ends with exit status 1 where the activations, or the dense weights, gradients
or optimizer state, are off by more than 5 %. On Linux, one PyTorch thread.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import gc
import itertools
import json
import os
import subprocess
import sys
import tempfile
from argparse import RawDescriptionHelpFormatter
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, record_function

from fedprune import models
from fedprune.costs.flops import ModelCost
from fedprune.costs.memory import MemoryBreakdown, optimizer_slots, step_memory
from fedprune.scenario import OptimizerSpec
from fedprune.sparsity.criteria import magnitude
from fedprune.sparsity.distributions import erk
from fedprune.sparsity.masks import Masks
from fedprune.sparsity.pruning import prunable, prune
from fedprune.tasks import classification_of
from fedprune.training.loop import Prepare, train
from fedprune.units import format_bytes

TOLERANCE = 0.05
CLASSES = 10
SHAPES = {
    "resnet18": (3, 32, 32),
    "vgg11": (3, 32, 32),
    "cnn": (3, 32, 32),
    "lenet5": (1, 28, 28),
    "mlp": (1, 28, 28),
}
OPTIMIZERS = {
    "sgd": OptimizerSpec(name="sgd"),
    "momentum": OptimizerSpec(name="sgd", momentum=0.9),
    "adam": OptimizerSpec(name="adam"),
}
CHECKED = ("weights", "gradients", "optimizer", "activations")

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One row of the table: what is trained, how sparse, on how many examples a step, with what."""

    model: str
    density: float
    batch: int
    shape: tuple[int, int, int]
    optimizer: str

    def build(self, width: float = 1.0) -> nn.Module:
        return models.build(self.model, self.shape, CLASSES, seed=0, options={"width": width})

    def prune(self, module: nn.Module) -> Masks:
        if self.density == 1:
            return Masks()
        return prune(
            module,
            prunable(module),
            criterion=magnitude,
            distribution=erk,
            density=self.density,
            example=torch.ones(1, *self.shape),
        )

    def train(
        self, module: nn.Module, masks: Masks, *, batch: int | None = None, prepare: Prepare | None = None
    ) -> None:
        """Take two steps as a client does."""
        steps = self.batches(batch or self.batch)
        task = classification_of(self.shape)
        train(module, steps, task, OPTIMIZERS[self.optimizer], lr=0.01, masks=masks, prepare=prepare)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        for examples in (min(2, size), size):  # the first gives the optimizer its state
            mark("batch")
            batch = torch.randn(examples, *self.shape), torch.randint(CLASSES, (examples,))
            mark("batch made")
            yield batch


def mark(name: str) -> None:
    """Leave a named point in the profiler's trace, where one is running."""
    with record_function(f"memory: {name}"):
        pass


class Balance:
    """Bytes that PyTorch's CPU allocator has given out and not got back, over time.

    Parameters
    ----------
    trace
        A Chrome trace of a profile with ``profile_memory``: allocations, operators and marks on one clock.
    """

    def __init__(self, trace: Path) -> None:
        events = sorted(json.loads(trace.read_text())["traceEvents"], key=lambda event: event.get("ts", 0))
        changes = [event for event in events if event.get("name") == "[memory]"]
        self.times = [event["ts"] for event in changes]
        self.held = [0, *itertools.accumulate(event["args"]["Bytes"] for event in changes)]
        self.ends: dict[str, list[float]] = {}
        for event in events:
            if event.get("ph") == "X":
                self.ends.setdefault(event["name"], []).append(event["ts"] + event["dur"])

    def at(self, name: str, occurrence: int = 0) -> int:
        """Return the bytes held when an operator, or a mark, ended."""
        return self.held[self._index(name, occurrence)]

    def peak(self, start: str, end: str, occurrence: int) -> int:
        """Return the most bytes held between two marks."""
        return max(self.held[self._index(start, occurrence) : self._index(end, occurrence) + 1])

    def _index(self, name: str, occurrence: int) -> int:
        return bisect_right(self.times, self.ends[name][occurrence])


def allocations(case: Case) -> Row:
    """Return the bytes that PyTorch allocates in the second training step, by what they are for.

    ``total`` is the most that forward and backward pass need with weights and optimizer state, ``update``
    the most that the optimizer's step needs, ``masking`` what the simulation's masks take besides.
    """

    def prepare(optimizer: torch.optim.Optimizer) -> None:
        optimizer.register_step_pre_hook(lambda *_: mark("update begins"))
        optimizer.register_step_post_hook(lambda *_: mark("update ends"))
        mark("prepared")

    with torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profile:
        mark("start")
        module = case.build()
        mark("built")
        module.register_forward_pre_hook(lambda *_: mark("forward"))
        masks = case.prune(module)
        mark("pruned")
        case.train(module, masks, prepare=prepare)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        balance = Balance(trace)

    at = balance.at
    batch = at("memory: batch made", 1) - at("memory: batch", 1)
    # The masks, and the bits with which `hold` clears gradients: of the simulation, not of the step.
    masking = at("memory: pruned") - at("memory: built") + at("memory: batch", 0) - at("memory: prepared")
    others = at("memory: start") + masking
    return {
        "weights": at("memory: built") - at("memory: start"),
        # The call that computes the loss still holds the logits, which autograd may not need.
        "activations": at("aten::cross_entropy_loss", 1) - at("memory: forward", 1) + batch,
        # The loss of the step before is held when the forward pass begins, as this step's is at its end.
        "gradients": at("memory: update begins", 1) - at("memory: forward", 1),
        "optimizer": at("memory: update ends", 0) - at("memory: update begins", 0),
        "masking": masking,
        "total": balance.peak("memory: forward", "memory: update begins", 1) - others,
        "update": balance.peak("memory: update begins", "memory: update ends", 1) - others,
    }


def residence(case: Case) -> Row:
    """Return the process's resident bytes before the model is built, and above these at the step's peak."""
    # A narrow model first: what PyTorch imports and loads at its first step belongs to the libraries.
    case.train(case.build(width=0.1), Masks(), batch=2)
    give_back()
    libraries = resident("VmRSS")
    module = case.build()
    masks = case.prune(module)
    give_back()
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak, VmHWM, back to what is resident now
    case.train(module, masks)
    return {"resident_libraries": libraries, "resident_above": resident("VmHWM") - libraries}


def resident(name: str) -> int:
    """Return VmRSS or VmHWM of this process, in bytes."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status[name].split()[0])


def give_back() -> None:
    """Return freed memory to the system: what comes next would take from it unseen."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def predictions(case: Case) -> tuple[MemoryBreakdown, MemoryBreakdown]:
    """Return the model's prediction for a device that stores what is kept, and for a dense one."""
    module = case.build()
    spec = OPTIMIZERS[case.optimizer]
    cost, slots = ModelCost.of(module, case.shape), optimizer_slots(spec.name, spec.momentum)
    kept, dense = (step_memory(cost, m, case.batch, slots=slots) for m in (case.prune(module), Masks()))
    return kept, dense


def measure(case: Case) -> Row:
    """Return one row: to be called once in a fresh process."""
    torch.set_num_threads(1)  # as the workers do
    row: Row = asdict(case) | {
        "shape": "x".join(map(str, case.shape)),
        "execution": "dense" if case.density == 1 else "dense under a mask",
        "refused": "",
    }
    try:
        in_process = residence(case)
    except ValueError as error:  # a batch norm over a single value
        return row | {"refused": str(error)}
    allocated = allocations(case)
    kept, dense = predictions(case)
    parts = ("weights", "gradients", "optimizer", "activations", "workspace", "total")
    for name, prediction in (("kept", kept), ("dense", dense)):
        row |= {f"{name}_{part}": getattr(prediction, part) for part in parts}
        row[f"{name}_weights"] += prediction.batch_norm  # built with the weights, and allocated with them
    row |= {f"allocated_{part}": count for part, count in allocated.items()}
    for part in CHECKED:
        if allocated[part]:
            row[f"error_{part}"] = row[f"dense_{part}"] / allocated[part] - 1
    return row | in_process


def measure_afresh(case: Case) -> Row:
    """Return one row, measured in a process of its own."""
    command = [sys.executable, __file__, "--case", json.dumps(asdict(case))]
    # glibc keeps freed blocks for later ones, which is resident and of no use: with a fixed threshold every
    # tensor of more than 64 KiB goes back to the system when it is freed.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:  # Only then: the profiler's own messages are of no interest.
        raise RuntimeError(f"{case} could not be measured:\n{done.stderr}")
    row: Row = json.loads(done.stdout)
    return row


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def off(rows: Sequence[Row], parts: Sequence[str]) -> str:
    """Return the relative error of some parts that is largest in size."""
    errors = [row[f"error_{part}"] for row in rows for part in parts if f"error_{part}" in row]
    return f"{max(errors, key=abs, default=0):+.2%}"


def density_table(rows: Sequence[Row]) -> str:
    """By model and density: the dense parts, and the whole step with the largest batch."""
    lines = []
    for (model, density), group in grouped(rows, "model", "density"):
        dense = [kinds(group[0], part) for part in CHECKED[:3]]
        largest = max(group, key=lambda row: int(row["batch"]))
        step = f"{kinds(largest, 'total')} ({largest['batch']})"
        lines.append([model, f"{density:g}", group[0]["execution"], *dense, off(group, CHECKED[:3]), step])
    header = ["model", "density", "execution", *CHECKED[:3], "worst error", "whole step (batch)"]
    return markdown(header, lines)


def kinds(row: Row, part: str) -> str:
    """Return a part as predicted for kept weights alone, as predicted dense, and as allocated."""
    return " / ".join(format_bytes(row[f"{kind}_{part}"]) for kind in ("kept", "dense", "allocated"))


def batch_table(rows: Sequence[Row]) -> str:
    """What depends on the batch: activations, the whole step, and the process, by model and batch size."""
    lines = []
    for (model, batch), group in grouped(rows, "model", "batch"):
        first = group[0]
        sizes = [
            format_bytes(first[name])
            for name in ("dense_activations", "allocated_activations", "dense_total", "allocated_total")
        ]
        ratio = f"{first['dense_total'] / first['allocated_total']:.2f}"
        process = [format_bytes(first[name]) for name in ("resident_above", "resident_libraries")]
        error = off(group, ["activations"])
        lines.append([model, str(batch), *sizes[:2], error, *sizes[2:], ratio, *process])
    header = ["model", "batch", "activations", "allocated", "worst error", "whole step", "allocated"]
    return markdown([*header, "predicted / allocated", "resident", "libraries"], lines)


def full_table(rows: Sequence[Row]) -> str:
    """Every row and every figure, in bytes."""
    shown = [
        [f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows
    ]
    return markdown(list(rows[0]), shown)


def grouped(rows: Sequence[Row], *keys: str) -> list[tuple[tuple[Any, ...], list[Row]]]:
    """Return the rows by the values of some columns, in order of appearance."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return list(groups.items())


def missed(row: Row) -> list[str]:
    """Return, in words, the parts of a row that are off by more than the tolerance."""
    case = f"{row['model']}, density {row['density']:g}, batch {row['batch']}"
    return [
        f"{case}: {part} predicted {row[f'dense_{part}']}, allocated {row[f'allocated_{part}']}"
        for part in CHECKED
        if abs(row[f"dense_{part}"] - row[f"allocated_{part}"]) > TOLERANCE * row[f"allocated_{part}"]
    ]


def main() -> int:
    """Measure, print, write; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--densities", nargs="+", type=float, default=[1.0, 0.1, 0.01], metavar="D")
    parser.add_argument("--batches", nargs="+", type=int, default=[2**n for n in range(8)], metavar="N")
    parser.add_argument("--optimizer", default="momentum", choices=list(OPTIMIZERS))
    parser.add_argument("--shape", nargs=3, type=int, metavar=("C", "H", "W"), help="of an image")
    parser.add_argument("--full", action="store_true", help="print every row and figure, in bytes")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write every row and figure here")
    parser.add_argument("--case", help=argparse.SUPPRESS)  # how a fresh process is told what to measure
    options = parser.parse_args()
    if options.case:
        fields = json.loads(options.case)
        print(json.dumps(measure(Case(**fields | {"shape": tuple(fields["shape"])}))))
        return 0

    rows: list[Row] = []
    cases = list(itertools.product(options.models, options.densities, options.batches))
    for number, (model, density, batch) in enumerate(cases, start=1):
        shape = tuple(options.shape or SHAPES[model])
        print(f"{number}/{len(cases)}: {model}, density {density:g}, batch {batch}", file=sys.stderr)
        rows.append(measure_afresh(Case(model, density, batch, shape, options.optimizer)))
    trained = [row for row in rows if not row["refused"]]
    if trained and options.full:
        print(full_table(trained))
    elif trained:
        print("Predicted for kept weights alone / predicted dense / allocated\n")
        print(density_table(trained))
        print(f"\nAt density {options.densities[0]:g}; the worst error is that at any density\n")
        print(batch_table(trained))
    for row in rows:
        if row["refused"]:
            print(f"\n{row['model']}, batch {row['batch']}: cannot be trained: {row['refused']}")
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, list((trained or rows)[0]), restval="")
            writer.writeheader()
            writer.writerows(rows)
    mistakes = [mistake for row in trained for mistake in missed(row)]
    print(f"\nOff by more than {TOLERANCE:.0%}: {'; '.join(mistakes) or 'nothing'}")
    return 1 if mistakes else 0


if __name__ == "__main__":
    sys.exit(main())
