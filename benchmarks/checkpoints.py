"""What checkpoints cost: their share of a run's time, and how fast a large model is written.

    python benchmarks/checkpoints.py [--json FILE] [--rounds N]

The run is scenarios/quickstart.yaml with a checkpoint after every round. The large model is random
values and masks as large as those of a ResNet-18, written five times without a run, beside a plain
write of as many bytes, flushed to the same disk.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from argparse import RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any, ClassVar

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import torch

import fedprune
from fedprune import models
from fedprune.costs.ledger import RoundRecord
from fedprune.engine.checkpoints import Checkpoints, listed, write
from fedprune.wire import get_state

QUICKSTART = Path(__file__).resolve().parents[1] / "scenarios" / "quickstart.yaml"
WRITES = 5


class Timed(Checkpoints):
    """Checkpoints that note how long each took."""

    seconds: ClassVar[list[float]] = []

    def on_round(self, round: RoundRecord) -> None:
        began = time.perf_counter()
        super().on_round(round)
        self.seconds.append(time.perf_counter() - began)


def of_a_run(rounds: int) -> dict[str, float]:
    """Return what checkpoints take of the quickstart."""
    from fedprune.engine import checkpoints

    checkpoints.Checkpoints = Timed  # type: ignore[misc]
    with tempfile.TemporaryDirectory(dir=".") as folder:
        run = fedprune.run(QUICKSTART, out=Path(folder) / "run", rounds=rounds, progress=False)
        size = sum(file.stat().st_size for file in listed(run.directory)[-1].iterdir())
        rounds_seconds = run.summary["wall_seconds"]
    written = sum(Timed.seconds)
    return {
        "share_of_run": written / (written + rounds_seconds),
        "median_ms": 1000 * statistics.median(Timed.seconds),
        "bytes": size,
    }


def of_a_large_model() -> dict[str, float]:
    """Return how long a ResNet-18 with masks takes, and a plain write of as many bytes."""
    state = get_state(models.build("resnet18", (3, 32, 32), 10, seed=0, options={"width": 1.0}))
    masks = {name: torch.rand(t.shape) < 0.05 for name, t in state.items() if t.dim() > 1}
    scenario = fedprune.load_scenario(QUICKSTART)
    ours, plain = [], []
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for number in range(WRITES):
            began = time.perf_counter()
            path = write(Path(folder), scenario, number, {"state": state, "masks": masks})
            ours.append(time.perf_counter() - began)
            content = (path / "tensors.safetensors").read_bytes()
            began = time.perf_counter()
            with (Path(folder) / "plain").open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            plain.append(time.perf_counter() - began)
    return {
        "bytes": len(content),
        "median_ms": 1000 * statistics.median(ours),
        "plain_write_ms": 1000 * statistics.median(plain),
    }


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--rounds", type=int, default=40, help="rounds of the quickstart")
    options = parser.parse_args()
    figures: dict[str, Any] = {"quickstart": of_a_run(options.rounds), "resnet18": of_a_large_model()}
    run, large = figures.values()
    print(f"quickstart, a checkpoint a round: {run['share_of_run']:.1%} of the run's time")
    print(f"  {run['median_ms']:.1f} ms each, {run['bytes'] / 1024:.0f} KiB")
    print(f"ResNet-18 with masks, {large['bytes'] / 2**20:.0f} MiB: {large['median_ms']:.0f} ms")
    print(f"  a plain write of as many bytes, flushed: {large['plain_write_ms']:.0f} ms")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
