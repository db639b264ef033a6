"""How long a run takes to start, beside another checkout's.

Runs one round of a scenario by turns in this checkout and in another, and prints wall time, processor time of
all its processes (Ray's included) and what the summary says of start-up, each as a median and as a ratio:

    python benchmarks/startup.py --other ../before --repeats 3

Processor time is the fairer number on a machine that others use.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
_PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--scenario", default="scenarios/quickstart-static.yaml")
    parser.add_argument("--other", type=Path, help="another checkout")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    # Ray's processes outlive their parents: as their reaper this process hears what they took.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    checkouts = {"here": HERE} | ({"other": arguments.other.resolve()} if arguments.other else {})
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    for _ in range(arguments.repeats):
        for name, checkout in checkouts.items():
            taken[name].append(one(checkout, arguments.scenario))
            print(name, {key: round(value, 2) for key, value in taken[name][-1].items()}, flush=True)
    medians = {name: dict(_medians(runs)) for name, runs in taken.items()}
    for key, value in medians["here"].items():
        other = medians.get("other", {}).get(key)
        print(f"{key}: {value:.2f} s" + (f", {value / other:.2f} of the other" if other else ""))


def one(checkout: Path, scenario: str) -> dict[str, float]:
    """Return what one run takes, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "fedprune.cli", "run", scenario, "--set", "rounds=1"]
        before, began = os.times(), time.perf_counter()
        subprocess.run(
            [*command, "--out", f"{folder}/run", "--quiet"],
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout)},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        wall = time.perf_counter() - began
        _reap()
        after = os.times()
        summary = json.loads(Path(folder, "run", "summary.json").read_text())
    processor = sum(after[2:4]) - sum(before[2:4])
    clocks = {key: summary[key] for key in ("startup_seconds", "total_seconds") if summary.get(key)}
    return {"wall": wall, "processor": processor, "rounds": summary["wall_seconds"], **clocks}


def _reap() -> None:
    """Wait for every process that a run has left, for ten seconds at most."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.05)
        except ChildProcessError:
            return


def _medians(runs: list[dict[str, float]]) -> Iterator[tuple[str, float]]:
    for key in runs[0]:
        yield key, statistics.median(run[key] for run in runs)


if __name__ == "__main__":
    main()
