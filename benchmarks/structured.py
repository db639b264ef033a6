"""How much faster and smaller is a model without the pruned channels, beside the one that is built by hand?

    python benchmarks/structured.py [--models NAME ...] [--shares S ...] [--batch N] [--repeats N]
        [--json FILE]

Of each model the first channels are kept, so many in every place as ``width`` has them: so the same small
model can be built from its code. Four models take the same steps of SGD with momentum in turn, one step each
at a time: "dense", whole; "masked", whole with the pruned channels held at 0; "smaller", as clients train it;
and "by hand". ``step_ms`` is the median of a step's processor time on one thread, which others on the machine
disturb less than time on the clock; speeds are medians of ratios of neighbouring steps. ``peak_mib`` is the
most that PyTorch's allocator holds in a step, model, gradients and the optimizer's state included.
``difference`` is the largest one between the outputs of "smaller" and "by hand" with the same weights.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

import torch
from sparse import CLASSES, SHAPE, Trainee
from torch import nn

from fedprune import models
from fedprune.sparsity.masks import Masks
from fedprune.sparsity.structure import channel_groups, masks_of, shrink
from fedprune.sparsity.training import hold

Row = dict[str, Any]


def first_channels(module: nn.Module, share: float) -> Masks:
    """Return masks that keep the first channels of every place, as many as the model of that width has."""
    groups = channel_groups(module, torch.rand(2, *SHAPE))
    return masks_of(
        {group: torch.arange(group.units) < round(share * group.units) for group in groups}, module
    )


def measure(name: str, width: float, share: float, batch: int, repeats: int) -> list[Row]:
    """Return a row for each of the four models."""
    dense = models.build(name, SHAPE, CLASSES, seed=0, options={"width": width})
    masks = first_channels(dense, share)
    small = shrink(dense, masks)
    by_hand = models.build(name, SHAPE, CLASSES, seed=0, options={"width": share * width})
    by_hand.load_state_dict(small.state_dict())
    with torch.no_grad():
        x = torch.rand(8, *SHAPE)
        difference = float((small.eval()(x) - by_hand.eval()(x)).abs().max())
    chosen = {"dense": dense, "masked": copy.deepcopy(dense), "smaller": small, "by hand": by_hand}
    trainees = {kind: Trainee(module, Masks(), {}, batch) for kind, module in chosen.items()}
    with ExitStack() as stack:
        stack.enter_context(hold(trainees["masked"].module, masks))
        for _ in range(repeats + 1):
            for trainee in trainees.values():
                trainee.step()
        peaks = {kind: trainee.peak_bytes() for kind, trainee in trainees.items()}
    seconds = {kind: trainee.seconds[1:] for kind, trainee in trainees.items()}  # The first makes the state.

    def speed(kind: str, than: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[than], seconds[kind], strict=True))

    return [
        {
            "model": f"{name} {width:g}",
            "share": share,
            "density": round(masks.density, 3),
            "kind": kind,
            "step_ms": round(1000 * statistics.median(seconds[kind]), 2),
            "speed": round(speed(kind, "dense"), 2),
            "of_by_hand": round(speed(kind, "by hand"), 2),
            "peak_mib": round(peaks[kind] / 2**20, 2),
            "difference": difference,
        }
        for kind in chosen
    ]


def table(rows: Sequence[Row]) -> str:
    """One line a case."""
    keys = ["model", "share", "density"]
    header = ["model", "channels", "weights", "dense ms", "masked", "smaller", "by hand", "smaller / by hand"]
    header += ["peak MiB dense", "smaller", "by hand", "largest difference"]
    lines = [header, ["---"] * len(header)]
    for case in zip(*[iter(rows)] * 4, strict=True):
        dense, masked, small, by_hand = case
        lines.append(
            [
                *(str(dense[key]) for key in keys),
                str(dense["step_ms"]),
                *(f"{row['speed']:.2f}x" for row in (masked, small, by_hand)),
                f"{small['of_by_hand']:.2f}",
                *(str(row["peak_mib"]) for row in (dense, small, by_hand)),
                f"{small['difference']:.1e}",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Measure every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["cnn:1", "resnet18:0.25", "resnet18:1"])
    parser.add_argument("--shares", nargs="+", type=float, default=[0.25, 0.5])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for model in asked.models:
        name, _, width = model.partition(":")
        for share in asked.shares:
            rows += measure(name, float(width or 1), share, asked.batch, asked.repeats)
            print(f"{model}, {share:g} of the channels: done", file=sys.stderr)
    print(table(rows))
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
