"""What a study of many small runs loses against the same runs by themselves, one after another.

The runs are those of studies/quickstart.yaml over some seeds. Bare: one after another in one process, on the
grid within that process, without the time to start it, read the data or draw figures; with files and
checkpoints, as a study has them. Study: `fedprune study run` from its start to its end. So

    python benchmarks/study.py --seeds 6 --rounds 40

prints the seconds of both, and their ratio; 1 is that of one bare loop, more is won by running side by side.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}

import fedprune
from fedprune.engine.hosts import InProcess
from fedprune.engine.simulation import run
from fedprune.scenario.yaml_file import read, write

ROOT = Path(__file__).resolve().parents[1]


def study_file(folder: Path, seeds: int, rounds: int) -> Path:
    """Write the quickstart's study with other seeds and rounds."""
    content, _ = read(ROOT / "studies" / "quickstart.yaml")
    base, _ = read(ROOT / "scenarios" / "quickstart-dense.yaml")
    path = folder / "study.yaml"
    path.write_text(write({**content, "base": {**base, "rounds": rounds}, "seeds": seeds}))
    return path


def bare(path: Path, folder: Path) -> tuple[int, float]:
    """Return how many runs there are, and the seconds that they take one after another in this process."""
    study = fedprune.study(path, out=folder / "bare")
    planned = study.planned()
    source = study.source(planned[0].scenario)
    host = InProcess(source, pretrained=None)
    run(planned[0].scenario, out=folder / "warm", progress=False, host=host, figures=False, rounds=1)
    began = time.perf_counter()
    for each in planned:
        run(each.scenario, out=study.folder.place(each), progress=False, host=host, figures=False)
    return len(planned), time.perf_counter() - began


def as_study(path: Path, folder: Path, jobs: str) -> float:
    """Return the seconds of the command, its start included."""
    command = [sys.executable, "-m", "fedprune.cli", "study", "run", str(path), "--quiet", "--jobs", jobs]
    began = time.perf_counter()
    subprocess.run([*command, "--out", str(folder / f"study-{jobs}")], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=6, help="seeds, for four runs each")
    parser.add_argument("--rounds", type=int, default=40, help="rounds of a run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = study_file(folder, options.seeds, options.rounds)
        side_by_side = as_study(path, folder, "auto")
        runs, alone = bare(path, folder)
        one = as_study(path, folder, "1")
    print(f"{runs} runs: bare {alone:.1f} s, study {side_by_side:.1f} s, with --jobs 1 {one:.1f} s")
    print(f"throughput of the study: {alone / side_by_side:.2f} of bare; with --jobs 1: {alone / one:.2f}")


if __name__ == "__main__":
    main()
