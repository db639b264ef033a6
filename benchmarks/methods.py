"""Every method under equal conditions: accuracy and costs, mean and deviation over seeds.

    python benchmarks/methods.py [--density D ...] [--seeds N] [--rounds N] [--methods NAME ...]
        [--pretrain EPOCHS] [--data DIR] [--set KEY=VALUE ...] [--out DIR]

All runs share the federation of scenarios/fedtiny-cifar10-small.yaml: the same partition, initial
weights, pretraining, rounds and local work for a seed; only the strategy differs. A run that is there
already, of the same scenario, is not repeated. The table (methods.md, methods.csv) and the picture of
accuracy against each cost (methods.png) are written to --out.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import sys
from argparse import RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import fedprune
from fedprune import registry
from fedprune.check import resolve
from fedprune.errors import UserError
from fedprune.results.run import Run
from fedprune.scenario import Scenario, load_scenario
from fedprune.units import format_bytes, format_flops, format_seconds

ROOT = Path(__file__).resolve().parent.parent
SCENARIO = ROOT / "scenarios" / "fedtiny-cifar10-small.yaml"
DEFAULT_DATA = ROOT.parent / "shared" / "data" / "cifar10"
COSTS = ("bytes_up", "bytes_down", "flops", "peak_memory_bytes", "device_seconds")


def adjusting(rounds: int) -> dict[str, int]:
    """Return the adjustments that fit: every other round, in the first two thirds."""
    return {"adjust_every": 2, "stop_adjusting_at": max(2, 2 * rounds // 3)}


def methods(rounds: int) -> dict[str, dict[str, Any]]:
    """Return the strategies to compare: label -> strategy, without its density."""
    wide = [["magnitude", "uniform"], ["magnitude", "erk"], ["magnitude", "global"], ["synflow", "global"]]
    adjust = adjusting(rounds)
    tiny = {"name": "fedtiny", **adjust}
    return {
        "fedavg": {"name": "fedavg"},
        "static magnitude erk": {"name": "static", "criterion": "magnitude", "distribution": "erk"},
        "static synflow": {"name": "static", "criterion": "synflow", "distribution": "global"},
        "static snip": {"name": "static", "criterion": "snip", "distribution": "global"},
        "fedtiny": tiny,
        "fedtiny wide pool": {**tiny, "candidates": 8, "bases": wide},
        "fedtiny selection only": {**tiny, "candidates": 8, "bases": wide, "adjust": False},
        "fedtiny progressive only": {**tiny, "selection": False, "bases": [["magnitude", "erk"]]},
        "gradual": {"name": "gradual", "start": 1, "end": max(2, 2 * rounds // 3)},
        "feddst": {"name": "feddst", **adjust},
        "prunefl": {"name": "prunefl", "adjust_every": 2},
        "lotteryfl": {"name": "lotteryfl"},
        "fedmef": {"name": "fedmef", **adjust},
    }


def scenario(options: argparse.Namespace, strategy: dict[str, Any], density: float, seed: int) -> Scenario:
    """Return the scenario of one run."""
    changes: dict[str, object] = {"seed": seed, "data.path": str(options.data)}
    for assignment in options.set:
        key, _, value = assignment.partition("=")
        changes[key] = value
    changes["strategy"] = strategy if strategy["name"] == "fedavg" else {**strategy, "density": density}
    if strategy["name"] != "lotteryfl":  # It rewinds to the initial weights.
        changes["strategy.pretrain_epochs"] = options.pretrain
    if options.rounds:
        changes["rounds"] = options.rounds
    if strategy["name"] == "lotteryfl":
        changes["data.client_test_fraction"] = 0.1  # It prunes by the accuracy on held-out data.
    return load_scenario(SCENARIO, changes)


def run(plan: Scenario, folder: Path) -> Run:
    """Return the finished run of this scenario in a folder; run it where there is none."""
    if (folder / "summary.json").exists():
        done = fedprune.load_run(folder)
        if done.scenario == resolve(plan) and done.summary["status"] == "complete":
            return done
    return fedprune.run(plan, out=folder, overwrite=True)


def collect(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run what is missing; return one row a method and density, with a list of values a column."""
    rounds = options.rounds or load_scenario(SCENARIO).rounds
    known = registry.names("strategy")
    rows: list[dict[str, Any]] = []
    for label, strategy in methods(rounds).items():
        if strategy["name"] not in known or (options.methods and label not in options.methods):
            continue
        for density in [1.0] if label == "fedavg" else options.density:
            row: dict[str, Any] = {"method": label, "density": density, "curves": []}
            for seed in range(options.seeds):
                folder = options.out / f"{label.replace(' ', '-')}-{density:g}-{rounds}r-{seed}"
                print(f"{label}, density {density:g}, seed {seed}", file=sys.stderr)
                try:
                    done = run(scenario(options, strategy, density, seed), folder)
                except UserError as error:
                    sys.exit(f"{label}: {error}")
                for key in ("best_accuracy", "final_accuracy", *COSTS):
                    row.setdefault(key, []).append(done.summary[key])
            rows.append(row)
    return rows


def spread(values: list[float]) -> tuple[float, float]:
    """Return mean and standard deviation (0 for a single value)."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table; costs are relative to dense FedAvg in brackets."""
    dense = next((row for row in rows if row["method"] == "fedavg"), None)
    units = (format_bytes, format_bytes, format_flops, format_bytes, format_seconds)
    lines = [
        "| method | density | best accuracy | final accuracy "
        "| up | down | FLOPs | peak memory | device time |",
        "| --- " * 9 + "|",
    ]
    for row in rows:
        cells = [row["method"], f"{row['density']:g}"]
        for key in ("best_accuracy", "final_accuracy"):
            mean, deviation = spread(row[key])
            cells.append(f"{mean:.2%}" + (f" ± {deviation:.2%}" if len(row[key]) > 1 else ""))
        for key, unit in zip(COSTS, units, strict=True):
            mean = statistics.mean(row[key])
            part = f" ({mean / statistics.mean(dense[key]):.3f}x)" if dense else ""
            cells.append(f"{unit(mean)}{part}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw accuracy against each cost, a point a method and density."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = {
        "traffic, both ways (MiB)": lambda row: (
            (statistics.mean(row["bytes_up"]) + statistics.mean(row["bytes_down"])) / 2**20
        ),
        "computation (TFLOP)": lambda row: statistics.mean(row["flops"]) / 1e12,
        "peak memory (MiB)": lambda row: statistics.mean(row["peak_memory_bytes"]) / 2**20,
    }
    labels = list(dict.fromkeys(row["method"] for row in rows))
    densities = sorted({row["density"] for row in rows}, reverse=True)
    figure = Figure(figsize=(13, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    colours = [f"C{n % 10}" for n in range(len(labels))]
    markers = "osD^v<>"
    for axes, (name, cost) in zip(figure.subplots(1, 3, sharey=True), panels.items(), strict=True):
        for row in rows:
            mean, deviation = spread(row["best_accuracy"])
            axes.errorbar(
                cost(row),
                100 * mean,
                yerr=100 * deviation,
                fmt=markers[densities.index(row["density"]) % len(markers)],
                color=colours[labels.index(row["method"])],
                ms=8,
                mfc="none" if labels.index(row["method"]) >= 10 else None,
                label=f"{row['method']}, {row['density']:g}",
            )
        axes.set_xscale("log")
        axes.set_xlabel(name)
        axes.grid(alpha=0.3, which="both")
    figure.axes[0].set_ylabel("best accuracy (%)")
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right", fontsize=8, title="method, density")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run what is missing, print the table, write table and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--density", type=float, nargs="+", default=[0.05, 0.01])
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, from 0 on")
    parser.add_argument("--rounds", type=int, help="rounds; the scenario's own where not given")
    parser.add_argument("--pretrain", type=int, default=10, help="epochs on public data, for every method")
    parser.add_argument("--methods", nargs="+", help="labels to run; all where not given")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="CIFAR-10 in the hub's parquet form")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="as in `fedprune run`"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "methods", help="where runs and table go")
    options = parser.parse_args()
    if not options.data.exists():
        sys.exit(f"no CIFAR-10 at {options.data}: say where it is with --data")
    rows = collect(options)
    text = table(rows)
    print(text)
    (options.out / "methods.md").write_text(text + "\n", encoding="utf-8")
    with (options.out / "methods.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        keys = ("best_accuracy", "final_accuracy", *COSTS)
        writer.writerow(["method", "density", "seed", *keys])
        for row in rows:
            for seed in range(options.seeds):
                writer.writerow([row["method"], row["density"], seed, *(row[key][seed] for key in keys)])
    picture(rows, options.out / "methods.png")


if __name__ == "__main__":
    main()
