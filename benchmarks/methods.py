"""Every method under equal conditions: accuracy and costs, mean and deviation over seeds.

    python benchmarks/methods.py [--scenario FILE] [--density D ...] [--seeds N] [--rounds N]
        [--methods NAME ...] [--until ACCURACY] [--until-personal ACCURACY] [--pretrain EPOCHS]
        [--data DIR] [--set KEY=VALUE ...] [--out DIR]

All runs share the federation of a scenario file, scenarios/fedtiny-cifar10-small.yaml where none is
named: the same partition, initial weights, pretraining (where the server has data, and the method does
not rewind to or freeze the initial weights), rounds and local work for a seed; only the strategy
differs. A run that is there already, of the same scenario, is not repeated. The table (methods.md,
methods.csv) and the figures of accuracy against each cost (methods.png), over rounds (curves.png) and,
also the clients' own, against the bytes sent so far (traffic.png) are written to --out.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import statistics
import sys
from argparse import RawDescriptionHelpFormatter
from itertools import accumulate
from pathlib import Path
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import fedprune
from fedprune import registry
from fedprune.errors import UserError
from fedprune.results.figures import log_axis
from fedprune.results.run import Run
from fedprune.scenario import Scenario, load_scenario
from fedprune.server.check import resolve
from fedprune.units import format_bytes, format_flops, format_seconds

ROOT = Path(__file__).resolve().parent.parent
SMALL = ROOT / "scenarios" / "fedtiny-cifar10-small.yaml"
DEFAULT_DATA = ROOT.parent / "shared" / "data" / "cifar10"
REACHED = {
    "best_accuracy": "best accuracy",
    "final_accuracy": "final accuracy",
    "best_personal_accuracy": "best personal",
    "final_personal_accuracy": "final personal",
}
COSTS = {
    "bytes_up": ("up", format_bytes),
    "bytes_down": ("down", format_bytes),
    "flops": ("FLOPs", format_flops),
    "peak_memory_bytes": ("peak memory", format_bytes),
    "device_seconds": ("device time", format_seconds),
}
UNTIL = {
    "up until": ("up until", format_bytes),
    "down until": ("down until", format_bytes),
    "FLOPs until": ("FLOPs until", format_flops),
    "device seconds until": ("device time until", format_seconds),
}
UNTIL_PERSONAL = {f"{key} personal": (f"{name} personal", unit) for key, (name, unit) in UNTIL.items()}

#: Scores have no scale of their own. For every method the learning rate, and whether clients keep their
#: scores, are those of several that did best on digits of two classes a client (docs/results.md).
VOTED = {"name": "hidenseek", "train_dense": True, "score_lr": 0.01, "keep_scores": True}
AVERAGED = {"name": "hidenseek", "train_dense": True, "score_lr": 0.1, "aggregate": "mean"}
#: Methods that do not start from the server's pretraining: they rewind to, or keep, the initial weights.
UNTRAINED = ("lotteryfl", "hidenseek", "fedmask", "fedpm")


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
        "prunefl": {"name": "prunefl", **adjust},
        "lotteryfl": {"name": "lotteryfl"},
        "fedmef": {"name": "fedmef", **adjust},
        "hidenseek": VOTED,
        "hidenseek mean": AVERAGED,
        "hidenseek signs alone": {"name": "hidenseek", "score_lr": 0.3, "keep_scores": True},
        "fedmask": {"name": "fedmask", "score_lr": 0.3, "keep_scores": True},
        "fedpm": {"name": "fedpm", "score_lr": 30.0},
    }


def scenario(options: argparse.Namespace, strategy: dict[str, Any], density: float, seed: int) -> Scenario:
    """Return the scenario of one run."""
    changes: dict[str, object] = {"seed": seed, "data.path": str(options.data)}
    for assignment in options.set:
        key, _, value = assignment.partition("=")
        changes[key] = value
    changes["strategy"] = strategy if strategy["name"] == "fedavg" else {**strategy, "density": density}
    if options.rounds:
        changes["rounds"] = options.rounds
    plan = load_scenario(options.scenario, changes)
    if plan.data.server_fraction > 0 and strategy["name"] not in UNTRAINED:
        plan = plan.override(strategy__pretrain_epochs=options.pretrain)
    if strategy["name"] == "lotteryfl" and plan.data.client_test_fraction == 0:
        plan = plan.override(data__client_test_fraction=0.1)  # It prunes by the accuracy on held-out data.
    return plan


def run(plan: Scenario, folder: Path) -> Run:
    """Return the finished run of this scenario in a folder; run it where there is none."""
    if (folder / "summary.json").exists():
        done = fedprune.load_run(folder)
        if done.scenario == resolve(plan) and done.summary["status"] == "complete":
            return done
    return fedprune.run(plan, out=folder, overwrite=True)


def collect(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run what is missing; return one row a method and density, with a list of values a column."""
    rounds = options.rounds or load_scenario(options.scenario).rounds
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
                for key in (*REACHED, *COSTS):
                    row.setdefault(key, []).append(done.summary.get(key))
                row.setdefault("kept", []).append(done.summary["density"])
                row["curves"].append([record["accuracy"] for record in done.rounds])
                row.setdefault("rounds", []).append(done.rounds)
                reached = until(done, options.until, "accuracy")
                personal = until(done, options.until_personal, "personal_accuracy")
                for key, cost in (reached | {f"{key} personal": personal[key] for key in personal}).items():
                    row.setdefault(key, []).append(cost)
            rows.append(row)
    return rows


def until(done: Run, accuracy: float | None, key: str) -> dict[str, float]:
    """Return what a run cost up to the first round that reached an accuracy; nan where none did."""
    if accuracy is None:
        return {}
    totals = dict.fromkeys(UNTIL, 0.0)
    for record in done.rounds:
        totals["up until"] += record["bytes_up"]
        totals["down until"] += record["bytes_down"]
        totals["device seconds until"] += record["device_seconds"]
        totals["FLOPs until"] += record["flops"]
        if (record[key] or 0) >= accuracy:
            return totals
    return dict.fromkeys(UNTIL, math.nan)


def spread(values: list[float]) -> tuple[float, float]:
    """Return mean and standard deviation (0 for a single value)."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table; costs are relative to dense FedAvg in brackets."""
    dense = next((row for row in rows if row["method"] == "fedavg"), None)
    reached = {key: name for key, name in REACHED.items() if any(None not in row[key] for row in rows)}
    until = UNTIL | UNTIL_PERSONAL
    costs = COSTS | {key: until[key] for key in until if any(key in row for row in rows)}
    names = ["method", "density", *reached.values(), *(name for name, _ in costs.values())]
    lines = ["| " + " | ".join(names) + " |", "| --- " * len(names) + "|"]
    for row in rows:
        cells = [row["method"], f"{row['density']:g}"]
        if (kept := statistics.mean(row["kept"])) > 1.1 * row["density"]:
            cells[1] += f" ({kept:.2g} reached)"
        for key in reached:
            if None in row[key]:  # Nothing held out.
                cells.append("-")
                continue
            mean, deviation = spread(row[key])
            cells.append(f"{mean:.2%}" + (f" ± {deviation:.2%}" if len(row[key]) > 1 else ""))
        for key, (_, unit) in costs.items():
            mean = statistics.mean(row[key])
            yardstick = statistics.mean(dense[key]) if dense else math.nan
            part = "" if math.isnan(yardstick) else f" ({mean / yardstick:.3g}x)"
            cells.append("never" if math.isnan(mean) else f"{unit(mean)}{part}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figure(rows: list[dict[str, Any]], path: Path) -> None:
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
            mean, deviation = spread(row["final_accuracy"])
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
        log_axis(axes, [cost(row) for row in rows])
        axes.set_xlabel(name)
        axes.grid(alpha=0.3, which="both")
    figure.axes[0].set_ylabel("final accuracy (%)")
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right", fontsize=8, title="method, density")
    figure.savefig(path, dpi=110)


def curves(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw accuracy over rounds, the mean over seeds, a line a method and a panel a density."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    labels = list(dict.fromkeys(row["method"] for row in rows))
    densities = sorted({row["density"] for row in rows if row["method"] != "fedavg"}, reverse=True)
    figure = Figure(figsize=(6.5 * len(densities) + 2, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(densities), sharey=True, squeeze=False)[0]
    for axes, density in zip(panels, densities, strict=True):
        for row in rows:
            if row["density"] not in (density, 1.0):
                continue
            number = labels.index(row["method"])
            seeds = enumerate(zip(*row["curves"], strict=True))
            means = {n: 100 * statistics.mean(values) for n, values in seeds if None not in values}
            line = "--" if number >= 10 else "-"
            axes.plot(*zip(*means.items(), strict=True), line, color=f"C{number % 10}", label=row["method"])
        axes.set_title(f"density {density:g} (fedavg: 1)")
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy (%)")
    figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside right", fontsize=8)
    figure.savefig(path, dpi=110)


def traffic(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the best accuracy so far against the bytes sent so far, both ways, by all clients; one seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = {"accuracy": "global model", "personal_accuracy": "clients' own models, on their own data"}
    panels = {key: name for key, name in panels.items() if rows[0]["rounds"][0][-1][key] is not None}
    figure = Figure(figsize=(6.0 * len(panels) + 2, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (key, name) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        drawn: list[float] = []
        for number, row in enumerate(rows):
            rounds = [record for record in row["rounds"][0] if record["round"] > 0]
            sent = list(accumulate((record["bytes_up"] + record["bytes_down"]) / 2**20 for record in rounds))
            best = list(accumulate((100 * (record[key] or 0) for record in rounds), max))
            axes.plot(sent, best, "--" if number >= 10 else "-", color=f"C{number % 10}", label=row["method"])
            drawn += sent
        log_axis(axes, drawn)
        axes.set_xlabel("sent so far, both ways (MiB)")
        axes.set_title(name)
        axes.grid(alpha=0.3, which="both")
    figure.axes[0].set_ylabel("best accuracy so far (%)")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right", fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run what is missing, print the table, write table and figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", type=Path, default=SMALL, help="the federation to compare on")
    parser.add_argument("--until", type=float, help="also say what it cost to reach this accuracy")
    parser.add_argument("--until-personal", type=float, help="the same for personal accuracy")
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
        keys = [key for key in (*REACHED, *COSTS, *UNTIL, *UNTIL_PERSONAL) if key in rows[0]]
        writer.writerow(["method", "density", "seed", *keys])
        for row in rows:
            for seed in range(options.seeds):
                writer.writerow([row["method"], row["density"], seed, *(row[key][seed] for key in keys)])
    figure(rows, options.out / "methods.png")
    curves(rows, options.out / "curves.png")
    traffic(rows, options.out / "traffic.png")


if __name__ == "__main__":
    main()
