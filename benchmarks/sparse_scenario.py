"""How much faster is a whole scenario with layers executed sparse, beside dense under a mask?

    python benchmarks/sparse_scenario.py [--scenario FILE] [--data DIR] [--set KEY=VALUE ...] [--repeats N]
        [--executions NAME ...] [--json FILE]

Runs two rounds of scenarios/fedtiny-cifar10-small.yaml with a ResNet-18 of full width, pruned once, before
training, to a density of 0.01 (its static equivalent), or a scenario that is named, with each value of
``clients.training.execution`` in turn. A row has the wall time of the whole run, from start to summary,
and of its rounds alone, which is training, aggregation and evaluation. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from argparse import RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import fedprune
from fedprune.scenario import Scenario, load_scenario

SMALL = Path(__file__).resolve().parent.parent / "scenarios" / "fedtiny-cifar10-small.yaml"
STATIC: dict[str, object] = {
    "model.width": "1",
    "rounds": "2",
    "strategy": "{name: static, criterion: magnitude, distribution: uniform, density: 0.01}",
}


def measure(plan: Scenario) -> dict[str, Any]:
    """Return the seconds that a run takes, and what it reached."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = fedprune.run(plan, out=Path(folder) / "run", progress=False)
    return {
        "execution": plan.clients.training.execution,
        "run_seconds": round(time.perf_counter() - began, 1),
        "rounds_seconds": round(sum(record["wall_seconds"] for record in run.rounds[1:]), 1),
        "final_accuracy": run.summary["final_accuracy"],
        "clients_failed": run.summary["clients_failed"],
    }


def table(rows: list[dict[str, Any]], executions: list[str]) -> str:
    """Return a Markdown table: medians over the repetitions, and how much faster than the first execution."""
    heads = ("execution", "run", "speed", "rounds", "speed", "accuracy", "failed")
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    of = {name: [row for row in rows if row["execution"] == name] for name in executions}
    for own in of.values():
        cells = [own[0]["execution"]]
        for key in ("run_seconds", "rounds_seconds"):
            seconds, first = (
                statistics.median(row[key] for row in each) for each in (own, of[executions[0]])
            )
            cells += [f"{seconds:.1f} s", f"{first / seconds:.2f}"]
        cells += [f"{own[0]['final_accuracy']:.2%}", str(own[0]["clients_failed"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Run, print, write; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", type=Path, metavar="FILE", help="in place of the static equivalent")
    parser.add_argument("--data", metavar="DIR", help="data.path of the scenario")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="as in `fedprune run`"
    )
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="runs of each (default 1)")
    parser.add_argument("--executions", nargs="+", default=["dense", "auto"], metavar="NAME")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as a list of objects")
    args = parser.parse_args()
    changes = {} if args.scenario else dict(STATIC)
    if args.data is not None:
        changes["data.path"] = str(Path(args.data).resolve())
    changes |= dict(assignment.split("=", 1) for assignment in args.set)
    plan = load_scenario(args.scenario or SMALL, changes)
    rows: list[dict[str, Any]] = []
    for _ in range(args.repeats):
        for execution in args.executions:
            rows.append(measure(plan.override(clients__training__execution=execution)))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    print(table(rows, args.executions))
    return 0


if __name__ == "__main__":
    sys.exit(main())
