"""The most bytes that PyTorch's CPU allocator holds during a step, here or in a process of its own.

python traced_peak.py SHAPE BATCH NAME...   prints, as JSON, the peak of a step of each built-in model
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional


def traced_peak(step: Callable[[], Any]) -> int:
    """Return the most bytes that were held during a step, above what was held before."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profile.export_chrome_trace(str(path))
        events = [e for e in json.loads(path.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    changes = [event["args"]["Bytes"] for event in sorted(events, key=lambda event: event["ts"])]
    return int(np.cumsum(changes).max())


def main(shape: list[int], batch: int, names: list[str]) -> None:
    from fedprune.models import MODELS

    torch.set_num_threads(1)
    peaks = {}
    for name in names:
        module = MODELS[name](tuple(shape), 10)

        def step(module: torch.nn.Module = module) -> None:
            x, y = torch.randn(batch, *shape), torch.zeros(batch, dtype=torch.long)
            functional.cross_entropy(module(x), y).backward()

        peaks[name] = traced_peak(step)
    print(json.dumps(peaks))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
