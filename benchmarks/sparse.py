"""How fast is a training step on the kept weights alone, and what does it hold, beside dense under a mask?

    python benchmarks/sparse.py [--models NAME ...] [--distributions NAME ...] [--densities D ...]
        [--batches N ...] [--repeats N] [--json FILE]
    python benchmarks/sparse.py --layers [--batches N ...] [--repeats N]

For each case three copies of one model take the same steps of SGD with momentum in turn, one step each at a
time: "dense" (as PyTorch does it, pruned weights held at 0), "sparse" (every layer that can be) and "auto"
(see `fedprune.training.execution.rule_of`). ``step_ms`` is the median of a step's processor
time on one thread, which others on the machine disturb less than time on the clock; speeds are medians of
ratios of neighbouring steps. ``peak_mib`` is the most that PyTorch's allocator holds in a step: parameters,
gradients, the optimizer's state, an index of the kept weights and activations; not the bits that hold
pruned weights at 0. Beside it is what `fedprune.costs.memory.executed_memory` predicts.

With ``--layers``, steps of single layers, dense and sparse at several densities, and the density at which
both are equally fast, beside the rule's. Times are the least of all repeats.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity

from fedprune import models
from fedprune.costs.flops import ModelCost
from fedprune.costs.memory import executed_memory, index_bytes, optimizer_slots, step_memory
from fedprune.scenario import TrainingSpec
from fedprune.sparsity.criteria import magnitude
from fedprune.sparsity.distributions import DISTRIBUTIONS
from fedprune.sparsity.execution import KernelIndex, held_masks, index_masks, sparse_copy
from fedprune.sparsity.execution.layout import batch_first, batch_last
from fedprune.sparsity.execution.rule import break_even
from fedprune.sparsity.masks import Masks
from fedprune.sparsity.pruning import prunable, prune
from fedprune.sparsity.training import hold
from fedprune.tasks import classification_of
from fedprune.training.execution import rule_of

SHAPE, CLASSES, MOMENTUM = (3, 32, 32), 10, 0.9
EXECUTIONS = ("dense", "sparse", "auto")
# Input channels, output channels, kernel, stride, side of the input; or a linear layer's inputs and outputs.
LAYERS: list[tuple[int, ...]] = [
    (64, 64, 3, 1, 32),
    (128, 128, 3, 1, 16),
    (256, 256, 3, 1, 8),
    (512, 512, 3, 1, 4),
    (512, 512, 3, 1, 2),
    (64, 128, 3, 2, 32),
    (256, 512, 3, 2, 8),
    (64, 128, 1, 2, 32),
    (256, 512, 1, 2, 8),
    (32, 64, 3, 1, 16),
    (16, 16, 3, 1, 32),
    (8, 16, 3, 1, 16),
    (4096, 128),
    (512, 512),
    (784, 200),
]
LAYER_DENSITIES = (0.4, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005)

Row = dict[str, Any]


class Trainee:
    """One execution of a model, ready to take steps on one batch."""

    def __init__(self, module: nn.Module, masks: Masks, indices: dict[str, KernelIndex], batch: int) -> None:
        self.module = sparse_copy(module, indices)
        self.held = held_masks(masks, indices)
        self.index_bytes = index_bytes(self.module)
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=0.01, momentum=MOMENTUM, foreach=True)
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(batch, *SHAPE, generator=generator)
        self.y = torch.randint(CLASSES, (batch,), generator=generator)
        self.seconds: list[float] = []

    def step(self) -> None:
        """Take a step, and note its processor time."""
        began = time.process_time()
        self.optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(self.module(self.x), self.y).backward()
        self.optimizer.step()
        self.seconds.append(time.process_time() - began)

    def state_bytes(self) -> int:
        """Return the bytes of parameters, gradients, the optimizer's state and the index."""
        tensors: list[Tensor | None] = [*self.module.parameters()]
        tensors += [parameter.grad for parameter in self.module.parameters()]
        tensors += [value for state in self.optimizer.state.values() for value in state.values()]
        return self.index_bytes + sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))

    def peak_bytes(self) -> int:
        """Return the most bytes that are held at one time of a step."""
        self.optimizer.zero_grad(set_to_none=True)
        fixed = self.state_bytes() + sum(buffer.nbytes for buffer in self.module.buffers()) + self.x.nbytes
        with torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profile:
            self.step()
        self.seconds.pop()
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / "trace.json"
            profile.export_chrome_trace(str(trace))
            events = json.loads(trace.read_text())["traceEvents"]
        changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
        return fixed + max(itertools.accumulate(change for _, change in changes))


def measure(model: str, distribution: str, density: float, batch: int, repeats: int) -> list[Row]:
    """Return a row for each execution of one case."""
    module = models.build(model, SHAPE, CLASSES, seed=0)
    masks = prune(
        module,
        prunable(module),
        criterion=magnitude,
        distribution=DISTRIBUTIONS[distribution],
        density=density,
        example=torch.ones(1, *SHAPE),
    )
    cost, slots = ModelCost.of(module, SHAPE), optimizer_slots("sgd", MOMENTUM)
    training = TrainingSpec(batch_size=batch)
    chosen = {
        "dense": {},
        "sparse": index_masks(module, masks),
        "auto": index_masks(module, masks, rule_of(training, cost)),
    }
    trainees = {name: Trainee(module, masks, indices, batch) for name, indices in chosen.items()}
    with ExitStack() as stack:
        for trainee in trainees.values():
            stack.enter_context(hold(trainee.module, trainee.held))
        for _ in range(repeats + 1):
            for trainee in trainees.values():
                trainee.step()
        peaks = {name: trainee.peak_bytes() for name, trainee in trainees.items()}
        states = {name: trainee.state_bytes() for name, trainee in trainees.items()}
        foreseen = {
            name: executed_memory(trainee.module, classification_of(SHAPE), batch, slots=1).total
            for name, trainee in trainees.items()
        }
    predicted = step_memory(cost, masks, batch, slots=slots)
    dense = trainees["dense"].seconds[1:]  # the first gives the optimizer its state
    rows = []
    for name, trainee in trainees.items():
        seconds = trainee.seconds[1:]
        ratios = sorted(ours / theirs for ours, theirs in zip(dense, seconds, strict=True))
        rows.append(
            {
                "model": model,
                "distribution": distribution,
                "density": density,
                "batch": batch,
                "execution": name,
                "step_ms": round(1000 * statistics.median(seconds), 1),
                "peak_mib": round(peaks[name] / 2**20, 1),
                "speed": round(statistics.median(ratios), 2),
                "speed_range": [round(ratios[0], 2), round(ratios[-1], 2)],
                "sparse_layers": len(chosen[name]),
                "layers": len(masks),
                "state_bytes": states[name],
                "index_bytes": trainee.index_bytes,
                "model_state_bytes": predicted.weights + predicted.gradients + predicted.optimizer,
                "predicted_mib": round(foreseen[name] / 2**20, 1),
            }
        )
    return rows


def table(rows: Sequence[Row]) -> str:
    """One line a case: step time, speed relative to dense, and peak memory of each execution."""
    header = ["model", "distribution", "density", "batch", "dense ms", "sparse", "auto", "auto / better"]
    header += ["auto's sparse layers", "peak MiB (predicted) dense", "sparse", "auto"]
    header += ["state KiB (index)", "modelled"]
    lines = [header, ["---"] * len(header)]
    for case in zip(*[iter(rows)] * len(EXECUTIONS), strict=True):
        dense, sparse, auto = case
        speeds = [f"{row['speed']:.2f} ({row['speed_range'][0]}-{row['speed_range'][1]})" for row in case[1:]]
        state = f"{sparse['state_bytes'] / 1024:.0f} ({sparse['index_bytes'] / 1024:.0f})"
        lines.append(
            [
                *(str(dense[key]) for key in ("model", "distribution", "density", "batch", "step_ms")),
                *speeds,
                f"{auto['speed'] / max(1.0, sparse['speed']):.2f}",
                f"{auto['sparse_layers']} of {auto['layers']}",
                *(f"{row['peak_mib']} ({row['predicted_mib']})" for row in case),
                state,
                f"{sparse['model_state_bytes'] / 1024:.0f}",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def measure_layer(sizes: tuple[int, ...], batch: int, repeats: int) -> str:
    """Return a line: dense time, sparse speed at each density, where they cross, and the rule's limit."""
    torch.manual_seed(0)
    if len(sizes) == 2:
        layer: nn.Module = nn.Linear(*sizes)
        x = torch.randn(batch, sizes[0])
    else:
        inputs, outputs, kernel, stride, side = sizes
        layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        x = torch.randn(batch, inputs, side, side)
    shape = tuple(layer.get_parameter("weight").shape)
    with torch.no_grad():
        upstream = torch.randn_like(layer(x))
    moved = batch_first(batch_last(x)), batch_first(batch_last(upstream))
    with ExitStack() as stack:
        masks = Masks({"weight": torch.rand(shape) < LAYER_DENSITIES[0]})
        stack.enter_context(hold(layer, masks))
        steps = {1.0: layer_step(layer, x, upstream)}
        for density in LAYER_DENSITIES:
            masks = Masks({"weight": torch.rand(shape) < density})
            steps[density] = layer_step(sparse_copy(layer, index_masks(layer, masks)), *moved)
        times: dict[float, list[float]] = {density: [] for density in steps}
        for _ in range(repeats + 1):
            for density, step in steps.items():
                began = time.process_time()
                step()
                times[density].append(time.process_time() - began)
    best = {density: min(seconds[1:]) for density, seconds in times.items()}
    speeds = {density: best[1.0] / best[density] for density in LAYER_DENSITIES}
    limit = break_even(shape, batch, upstream[0, 0].numel())
    shown = [f"{speeds[density]:.2f}" for density in LAYER_DENSITIES]
    cells = ["x".join(map(str, sizes)), str(batch), f"{1000 * best[1.0]:.2f}", *shown, crossing(speeds)]
    return f"| {' | '.join([*cells, f'{limit:.3f}'])} |"


def crossing(speeds: dict[float, float]) -> str:
    """Return the density at which the speed is 1, between two measured ones on logarithmic axes."""
    for (above, slow), (below, fast) in itertools.pairwise(speeds.items()):
        if slow < 1 <= fast:
            share = math.log(fast) / (math.log(fast) - math.log(slow))
            return f"{below * (above / below) ** share:.3f}"
    return f"> {LAYER_DENSITIES[0]}" if speeds[LAYER_DENSITIES[0]] >= 1 else f"< {LAYER_DENSITIES[-1]}"


def layer_step(layer: nn.Module, x: Tensor, upstream: Tensor) -> Callable[[], None]:
    """Return a function that takes a training step of a layer, the gradient to its input included."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-6, momentum=MOMENTUM, foreach=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        layer(x.detach().requires_grad_()).backward(upstream)
        optimizer.step()

    return step


def main() -> int:
    """Measure, print, write; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet18", "vgg11", "cnn"])
    parser.add_argument("--distributions", nargs="+", default=["uniform", "erk"])
    parser.add_argument("--densities", nargs="+", type=float, default=[0.1, 0.05, 0.01, 0.005], metavar="D")
    parser.add_argument("--batches", nargs="+", type=int, default=[64, 16], metavar="N")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="steps of each (default 5)")
    parser.add_argument(
        "--layers", action="store_true", help="single layers, and where the rule's limits lie"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as a list of objects")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.layers:
        header = ["layer", "batch", "dense ms", *map(str, LAYER_DENSITIES), "crossing", "limit"]
        print(f"| {' | '.join(header)} |\n|{' --- |' * len(header)}")
        for batch, sizes in itertools.product(args.batches, LAYERS):
            print(measure_layer(sizes, batch, args.repeats), flush=True)
        return 0
    rows: list[Row] = []
    cases = itertools.product(args.models, args.batches, args.distributions, args.densities)
    for model, batch, distribution, density in cases:
        rows += measure(model, distribution, density, batch, args.repeats)
        print(json.dumps(copy.copy(rows[-3:])), file=sys.stderr, flush=True)
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1))
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
