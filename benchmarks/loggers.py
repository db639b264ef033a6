"""What loggers add to a run of the quickstart: to its start-up, its rounds, and the driver's processor time.

    python benchmarks/loggers.py [--turns N] [--json FILE] [--set KEY=VALUE ...]
    python benchmarks/loggers.py --records RUN_DIR

Each run is a process of its own, as `fedprune run` is, with no logger, each built-in one, and all of them: by
turns, in an order that moves on, since the speed of a shared machine drifts. The seconds of the clock are
medians, beside them the smallest. "CPU" is processor time of the process that drives the run, with all its
threads, which depends least on what else the machine does: from round 0 to the last, and of the whole run
with its imports.

The second form gives each logger the rounds of a run that has ended, four a second, and shows the processor
time that they take beside the seconds of the run's rounds: on a busy machine it tells more than the first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import RawDescriptionHelpFormatter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCENARIO = ROOT / "scenarios" / "quickstart.yaml"
KINDS = {
    "none": "[]",
    "tensorboard": "[tensorboard]",
    "mlflow": "[mlflow]",
    "wandb": "[wandb]",
    "all": "[tensorboard, mlflow, wandb]",
}
#: What a run is measured by, and its heading.
FIGURES = {
    "startup": "start-up s",
    "rounds": "rounds s",
    "total": "total s",
    "rounds_cpu": "rounds, CPU s",
    "cpu": "total, CPU s",
}
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_MODE": "offline",
}


class Clock:
    """Reads the processor time of this process as each round ends."""

    def __init__(self) -> None:
        self.read: list[float] = []

    def on_task(self, task: object) -> None:
        pass

    def on_round(self, round: object) -> None:
        self.read.append(time.process_time())


def run_once(settings: dict[str, str], out: Path) -> dict[str, float]:
    """Run the quickstart in this process; return what it took."""
    began = time.perf_counter()
    import fedprune

    clock = Clock()
    done = fedprune.run(SCENARIO, out=out, overrides=settings, progress=False, began=began, listeners=[clock])
    keys = {"startup": "startup_seconds", "rounds": "wall_seconds", "total": "total_seconds"}
    taken = {name: float(done.summary[key]) for name, key in keys.items()}
    # What comes after the run's own total: the end of the loggers, and of Ray.
    taken["total"] = time.perf_counter() - began
    return {**taken, "rounds_cpu": clock.read[-1] - clock.read[0], "cpu": time.process_time()}


def measured(settings: dict[str, str]) -> dict[str, float]:
    """Return what a run took in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--one", json.dumps(settings), str(Path(folder) / "run")]
        done = subprocess.run(
            command, env={**os.environ, **QUIET}, capture_output=True, text=True, check=False
        )
    if done.returncode:
        sys.exit(done.stderr)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def fed(run_folder: Path, kind: str) -> str:
    """Return the processor time that a logger takes for the rounds of a run."""
    from fedprune.loggers import LOGGERS, RunStart
    from fedprune.loggers.base import scalars
    from fedprune.results.run import load_run

    run = load_run(run_folder)
    rounds = sum(record["wall_seconds"] for record in run.rounds)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        logger = LOGGERS[kind](LOGGERS[kind].Options())
        logger.on_start(RunStart(Path(folder), run.scenario))
        began = time.process_time()
        for record in run.rounds:
            logger.on_round(record["round"], scalars(record))
            time.sleep(0.25)
        taken = time.process_time() - began
    share = f"{taken / rounds:.1%} of their {rounds:.1f} s"
    return f"{kind:12} {len(run.rounds)} rounds: CPU {taken:.3f} s, {share}"


def table(taken: dict[str, list[dict[str, float]]]) -> str:
    """Return medians and smallest values, and the medians' ratio to a run without loggers."""
    lines = [f"{'':12}" + "".join(f"{head:>28}" for head in FIGURES.values())]
    for kind, runs in taken.items():
        cells = []
        for name in FIGURES:
            middle, least = (of(run[name] for run in runs) for of in (statistics.median, min))
            ratio = middle / statistics.median(run[name] for run in taken["none"]) - 1
            cells.append(f"{middle:10.2f} (least {least:.2f}){ratio:+7.1%}")
        lines.append(f"{kind:12}" + "".join(f"{cell:>28}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="runs of each kind")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="as of `fedprune run`"
    )
    parser.add_argument("--records", type=Path, metavar="RUN_DIR", help="give loggers the rounds of this run")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run_once(json.loads(options.one[0]), Path(options.one[1]))))
        return
    if options.records:
        os.environ.update(QUIET)
        for kind in ("tensorboard", "mlflow", "wandb"):
            print(fed(options.records, kind))
        return
    settings = dict(setting.partition("=")[::2] for setting in options.set)
    taken: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    order = list(KINDS)
    for turn in range(options.turns):
        for kind in order[turn % len(order) :] + order[: turn % len(order)]:
            taken[kind].append(measured({**settings, "logging": KINDS[kind]}))
            print(f"turn {turn + 1}, {kind}: {taken[kind][-1]['total']:.1f} s", file=sys.stderr)
    print(f"{os.cpu_count()} cores, {options.turns} runs of each kind\n\n{table(taken)}")
    if options.json:
        options.json.write_text(json.dumps(taken, indent=2) + "\n")


if __name__ == "__main__":
    main()
