"""One federation under every policy for clients with too little memory: what it reaches, by class of device.

    python benchmarks/budgets.py [--scenario FILE] [--policies NAME ...] [--seeds N] [--data DIR]
        [--set KEY=VALUE ...] [--out DIR]

Runs scenarios/heterogeneous-digits.yaml, or the scenario that is named, once for each policy and, as the
yardstick, with memory enough for everyone ("no budgets"). A run that is there already, of the same
scenario, is not repeated. The table (budgets.md) and the figure (budgets.png) are written to --out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from argparse import RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import fedprune
from fedprune.errors import UserError
from fedprune.results.figures import COLOURS
from fedprune.results.measures import format_share
from fedprune.results.run import Run
from fedprune.scenario import Scenario, load_scenario
from fedprune.server.check import resolve
from fedprune.server.sizing import clients_of
from fedprune.units import format_bytes, format_seconds

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ROOT / "scenarios" / "heterogeneous-digits.yaml"
UNLIMITED = "no budgets"
POLICIES = (UNLIMITED, "nest", "shrink_batch", "exclude", "error")
ENOUGH = 2**50  # Bytes.


def scenario(options: argparse.Namespace, policy: str, seed: int) -> Scenario:
    """Return the scenario of one run."""
    changes: dict[str, object] = {"seed": seed}
    if options.data is not None:
        changes["data.path"] = str(options.data)
    for assignment in options.set:
        key, _, value = assignment.partition("=")
        changes[key] = value
    plan = load_scenario(options.scenario, changes)
    if policy != UNLIMITED:
        return plan.override(clients__over_budget=policy)
    numbers = ("name", "compute", "downlink", "uplink", "availability", "dropout")
    devices = [
        {"memory": ENOUGH, "count": 1, **{key: getattr(device, key) for key in numbers}}
        for device in clients_of(plan)
    ]
    return plan.override(clients__devices=devices, clients__over_budget="exclude")


def run(plan: Scenario, folder: Path) -> Run | None:
    """Return the finished run of this scenario in a folder, run where there is none; None: refused."""
    if (folder / "summary.json").exists():
        done = fedprune.load_run(folder)
        if done.scenario == resolve(plan) and done.summary["status"] == "complete":
            return done
    try:
        return fedprune.run(plan, out=folder, overwrite=True)
    except UserError as error:
        if plan.clients.over_budget != "error":
            sys.exit(str(error))
        print(f"refused: {error}", file=sys.stderr)
        return None


def table(runs: dict[str, list[Run]]) -> str:
    """Return a Markdown table with a row for each policy and class, means over the seeds."""
    heads = ("policy", "device", "took part", "excluded", "accuracy", "up", "peak memory", "device time")
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]

    def mean(records: list[dict[str, Any]], key: str) -> float | None:
        values = [record[key] for record in records]
        return None if None in values else statistics.mean(values)

    for policy, done in runs.items():
        if not done:
            lines.append(f"| {policy} | all | refused" + " | " * 5 + " |")
            continue
        overall = [run.summary for run in done]
        cells = [
            policy,
            "all, on test data",
            "",
            "",
            format_share(mean(overall, "final_accuracy") or 0),
            format_bytes(mean(overall, "bytes_up") or 0),
            format_bytes(max(summary["peak_memory_bytes"] for summary in overall)),
            format_seconds(mean(overall, "device_seconds") or 0),
        ]
        lines.append("| " + " | ".join(cells) + " |")
        for name in overall[0]["classes"]:
            records = [summary["classes"][name] for summary in overall]
            score = mean(records, "accuracy")
            cells = [
                policy,
                name,
                format_share(mean(records, "participation") or 0),
                format_share(mean(records, "excluded_share") or 0),
                "-" if score is None else format_share(score),
                format_bytes(mean(records, "bytes_up") or 0),
                format_bytes(max(record["peak_memory_bytes"] for record in records)),
                format_seconds(mean(records, "device_seconds") or 0),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figure(runs: dict[str, list[Run]], path: Path) -> None:
    """Draw accuracy and participation of each class, in groups of policies."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    done = {policy: found for policy, found in runs.items() if found}
    names = list(next(iter(done.values()))[0].summary["classes"])
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    width = 0.8 / len(names)
    panels = (
        ("accuracy", "global model on the class's own held-out data", "accuracy (%)"),
        ("participation", "clients of the class whose training counted, mean over rounds", "share (%)"),
    )
    for axes, (key, title, label) in zip(figure.subplots(1, 2), panels, strict=True):
        for place, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
            heights, deviations = [], []
            for found in done.values():
                values = [run.summary["classes"][name][key] or 0.0 for run in found]
                heights.append(statistics.mean(values))
                deviations.append(statistics.stdev(values) if len(values) > 1 else 0.0)
            left = [group + (place - (len(names) - 1) / 2) * width for group in range(len(done))]
            bars = axes.bar(left, heights, width * 0.92, yerr=deviations, color=colour, label=name)
            axes.bar_label(
                bars, [f"{100 * height:.0f}" if height else "none" for height in heights], fontsize=8
            )
        axes.set_xticks(range(len(done)), list(done))
        axes.set_title(title, fontsize=10)
        axes.set_ylabel(label)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=""))
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylim(0, 1.06)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(names))
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run what is missing, print the table, write table and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", type=Path, default=DIGITS, help="the federation")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=POLICIES)
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, from 0 on")
    parser.add_argument("--data", type=Path, help="where the data set lies")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="as in `fedprune run`"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "budgets", help="where all goes")
    options = parser.parse_args()
    runs: dict[str, list[Run]] = {}
    for policy in options.policies:
        found = []
        for seed in range(options.seeds):
            plan = scenario(options, policy, seed)
            print(f"{policy}, seed {seed}", file=sys.stderr)
            name = f"{plan.name}-{policy.replace(' ', '-')}-{seed}"
            found.append(run(plan, options.out / name))
        runs[policy] = [done for done in found if done is not None]
    text = table(runs)
    print(text)
    (options.out / "budgets.md").write_text(text + "\n", encoding="utf-8")
    figure(runs, options.out / "budgets.png")


if __name__ == "__main__":
    main()
