"""What portable instructions cost, and whether two machines compute the same bits with them.

    python benchmarks/instructions.py [--steps N] [--json FILE]

Trains small networks with PyTorch alone, once with the instructions that it chooses for this processor
(``engine.instructions: native``) and once with those of ``portable``, each in a process of its own, and
prints the ratio of their times and a digest of the trained weights. Run it on two machines with the same
version of PyTorch: the digests of ``portable`` are the same, those of ``native`` often are not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from argparse import RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

#: Shape of an image, channels and width of the hidden layer of each network.
NETWORKS = {
    "convolutions, 8x8": ((1, 8, 8), 16, 64),
    "convolutions, 32x32": ((3, 32, 32), 32, 256),
    "linear layers": ((1, 8, 8), 0, 512),
}
REPEATS = 5


def measure(steps: int) -> dict[str, Any]:
    """Train every network in this process; return seconds of the fastest repeat and digests."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    draw = torch.Generator().manual_seed(0)

    def network(shape: tuple[int, int, int], channels: int, hidden: int) -> nn.Module:
        layers: list[nn.Module] = []
        if channels:
            layers = [
                *(nn.Conv2d(shape[0], channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()),
                *(nn.Conv2d(channels, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()),
            ]
        width = channels * (shape[1] // 2) ** 2 if channels else shape[0] * shape[1] * shape[2]
        layers += [nn.Flatten(), nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 10)]
        module = nn.Sequential(*layers)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.05)
        return module

    found: dict[str, Any] = {"instructions": torch.backends.cpu.get_cpu_capability()}
    for name, (shape, channels, hidden) in NETWORKS.items():
        module = network(shape, channels, hidden)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
        seconds = []
        for _ in range(REPEATS):
            began = time.process_time()
            for _ in range(steps):
                images = torch.randn(32, *shape, generator=draw)
                loss = nn.functional.cross_entropy(module(images), torch.arange(32) % 10)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            seconds.append(time.process_time() - began)
        weights = b"".join(parameter.detach().numpy().tobytes() for parameter in module.parameters())
        found[name] = {"seconds": min(seconds), "digest": hashlib.sha256(weights).hexdigest()[:12]}
    return found


def in_a_process(instructions: str, steps: int) -> dict[str, Any]:
    """Return `measure` of a fresh process: instructions are chosen once."""
    from fedprune.determinism import PORTABLE

    others = {key: value for key, value in os.environ.items() if key not in PORTABLE}
    chosen = PORTABLE if instructions == "portable" else {}
    done = subprocess.run(
        [sys.executable, __file__, "--measure", "--steps", str(steps)],
        env={**others, **chosen},
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.steps)))
        return
    native, portable = (in_a_process(way, given.steps) for way in ("native", "portable"))
    print(f"{platform.processor() or platform.machine()}: native is {native['instructions']}")
    for name in NETWORKS:
        ratio = portable[name]["seconds"] / native[name]["seconds"]
        print(
            f"{name:20}  portable / native {ratio:.2f}  "
            f"digest native {native[name]['digest']}  portable {portable[name]['digest']}"
        )
    if given.json:
        given.json.write_text(json.dumps({"native": native, "portable": portable}, indent=2) + "\n")


if __name__ == "__main__":
    main()
