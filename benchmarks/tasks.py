"""What each scenario of an edge device's task reaches, dense and pruned: the table of docs/tasks.md.

    python benchmarks/tasks.py [--cifar10 DIR] [SCENARIO ...]

Runs each scenario as `fedprune run` does, as it is, dense, and by HideNseek, one after another, and prints a
row of the table for each. ``DIR`` has CIFAR-10 in parquet files; without it, picture classification is read
from the Hugging Face hub. About an hour on two cores. The figures are those of one seed, the same on every
processor with AVX2.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

from fedprune import Run, load_run
from fedprune.results.compare import compare
from fedprune.results.measures import known_measures

SCENARIOS = Path(__file__).resolve().parents[1] / "scenarios"
HIDENSEEK = "{name: hidenseek, density: 0.5, train_dense: true, keep_scores: true, score_lr: 0.3}"

#: Scenario -> what is set for its dense run.
TASKS = {
    "keyword-spotting": "strategy.density=1.0",
    "visual-wake-words": "strategy.density=1.0",
    "anomaly-detection": "strategy.density=1.0",
    "picture-classification": "strategy={name: fedavg, pretrain_epochs: 10}",
    "human-activity": "strategy={name: fedavg, pretrain_epochs: 5}",
    "next-character": "strategy.density=1.0",
    "tabular": "strategy.density=1.0",
}


def done(scenario: str, out: Path, changes: list[str]) -> Run:
    """Run a scenario with some values replaced."""
    command = [sys.executable, "-m", "fedprune.cli", "run", str(SCENARIOS / f"{scenario}.yaml")]
    command += ["--out", str(out), *(word for change in changes for word in ("--set", change))]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return load_run(out)


def method(run: Run) -> str:
    """Return a method as the table calls it."""
    options = run.document["strategy"]
    if options["name"] == "static":
        return f"Static, {'SynFlow' if options['criterion'] == 'synflow' else options['criterion']}"
    return {"fedtiny": "FedTiny", "hidenseek": "HideNseek"}[options["name"]]


def rows(scenario: str, runs: Sequence[Run]) -> Iterator[str]:
    """Yield a row of the table for each run; costs in brackets are relative to the first, which is dense."""
    summaries, against = [run.summary for run in runs], compare(runs)
    relative = [against.relative(run) for run in runs]
    texts = {each.key: each.texts(summaries, relative) for each in known_measures(summaries)}
    metrics = [key for key in texts if key.startswith("final_") and not key.startswith("final_personal_")]
    for place, run in enumerate(runs):
        cells = [f"`{scenario}`", method(run) if place else "dense", f"{run.summary['density']:.3g}"]
        cells += [", ".join(f"{key.removeprefix('final_')} {texts[key][place]}" for key in metrics)]
        keys = (f"best_{run.summary['headline']}", "bytes_up", "bytes_down", "peak_memory_bytes")
        yield f"| {' | '.join([*cells, *(texts[key][place] for key in keys)])} |"


def main() -> None:
    """Run what is asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="all where none is named")
    parser.add_argument("--cifar10", type=Path, metavar="DIR", help="where CIFAR-10 is")
    given = parser.parse_args()
    print("| scenario | method | density | final | best | up | down | peak memory |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for scenario in given.scenarios or TASKS:
        ways = [[TASKS[scenario]], [], [f"strategy={HIDENSEEK}"]]
        if given.cifar10 and scenario == "picture-classification":
            ways = [[*way, f"data.path={given.cifar10}"] for way in ways]
        with tempfile.TemporaryDirectory() as folder:
            runs = [done(scenario, Path(folder) / str(place), way) for place, way in enumerate(ways)]
            print(*rows(scenario, runs), sep="\n", flush=True)


if __name__ == "__main__":
    main()
