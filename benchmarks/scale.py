"""What registered clients cost: 100, 1,000 and 10,000 of them, 100 sampled a round, and 1,000 of 10,000.

    python benchmarks/scale.py [--strategies fedavg static] [--turns N] [--json FILE] [--check]

Each federation runs in a process of its own, in turns, as a user runs it: with a checkpoint after
every round and its run folder. A client holds 16 made-up images of 8x8, the model is a small
fully connected one, so that what counts is the work besides training. Measured are

- start-up: from the call of ``fedprune.run`` to round 1, in seconds, the imports of fedprune left out;
- time: seconds from one round to the next, all that the driver does included, per sampled client, and
  the processor time of the driver alone in these, which other programs on the machine disturb less;
- driver memory: anonymous resident memory (``RssAnon`` of /proc/self/status, so without what is shared
  with workers and without mapped files), at its peak over the whole run, and between rounds.

Rounds that warm up, and the last, which alone is evaluated, do not count. With ``--check`` the exit status
is 1 where time or memory at 10,000 registered clients is more than 20 % above that at 100, or start-up
takes longer than 15 s.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from argparse import RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np

import fedprune
from fedprune.costs.ledger import RoundRecord, TaskRecord
from fedprune.data import Examples, Request, Source
from fedprune.engine import simulation
from fedprune.scenario import Scenario
from fedprune.server.roll_call import RollCall
from fedprune.server.strategy import PruningStrategy

#: (registered, sampled a round); the first is what the others are compared with.
FEDERATIONS = ((100, 100), (1_000, 100), (10_000, 100), (10_000, 1_000))
STRATEGIES: dict[str, dict[str, Any]] = {
    "fedavg": {"name": "fedavg"},
    "static": {"name": "static", "density": 0.2},
}
IMAGES, CLASSES = 16, 10
WARM, MEASURED = 5, 10
MOST_GROWTH, MOST_SECONDS = 1.2, 15.0
PARTS = ("data", "Ray", "clients", "evaluation")
KEYS = ("driver_s", "peak", "steady", "growth_a_round")
MIB = 2**20


def made_up(request: Request) -> Source:
    """A data source: noisy images of ten patterns, as many as are asked for."""
    generator = np.random.default_rng(request.seed)
    patterns = generator.integers(0, 156, size=(CLASSES, 1, 8, 8), dtype=np.uint8)

    def images(count: int) -> Examples:
        labels = generator.integers(0, CLASSES, size=count)
        noise = generator.integers(0, 100, size=(count, 1, 8, 8), dtype=np.uint8)
        return Examples(patterns[labels] + noise, labels)

    names = tuple(map(str, range(CLASSES)))
    return Source(images(request.train_examples or 1), images(request.test_examples or 1), names)


def scenario(registered: int, sampled: int, strategy: str) -> Scenario:
    """Return the scenario; each client has one batch, whatever their number."""
    return Scenario.from_mapping(
        {
            "name": "scale",
            "rounds": WARM + MEASURED + 1,
            "model": {"name": "mlp", "hidden": [64, 64]},
            "data": {
                "name": f"{Path(__file__).resolve()}:made_up",
                "train_examples": IMAGES * registered,
                "test_examples": 1000,
                "partition": {"scheme": "iid"},
            },
            "clients": {
                "count": registered,
                "per_round": sampled,
                "training": {"batch_size": IMAGES, "optimizer": {"name": "sgd", "lr": 0.05}},
            },
            "strategy": STRATEGIES[strategy],
            "evaluation": {"every": WARM + MEASURED + 1},
            "engine": {"device": "cpu"},
        }
    )


class Watch(threading.Thread):
    """Notes when rounds end, and the memory of this process; a `fedprune.costs.ledger.Listener`."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.rounds: list[float] = []
        self.processor: list[float] = []
        self.memory: list[int] = []
        self.peak = 0

    def run(self) -> None:
        while True:
            self.peak = max(self.peak, private_memory())
            time.sleep(0.01)

    def on_task(self, task: TaskRecord) -> None:
        """Nothing is of interest but the round."""

    def on_round(self, round: RoundRecord) -> None:
        assert not round.clients_failed, round
        self.rounds.append(time.perf_counter())
        self.processor.append(time.process_time())
        self.memory.append(private_memory())


def private_memory() -> int:
    """Return this process's anonymous resident memory in bytes."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("RssAnon"))


class Startup:
    """The seconds of the parts of a run's start, and when its first round begins."""

    def __init__(self) -> None:
        self.parts: Counter[str] = Counter()
        self.round_1 = 0.0

    def watch(self) -> None:
        """Put clocks around what a run calls before round 1."""
        from fedprune.engine.grid import RayGrid

        for owner, name, part in (
            (simulation.datasets, "load", "data"),
            (RayGrid, "__init__", "Ray"),
            (RollCall, "open", "clients"),
            (simulation.SpreadEvaluation, "__call__", "evaluation"),
        ):
            setattr(owner, name, self._timed(getattr(owner, name), part))
        simulation.cluster = self._timed_entry(simulation.cluster, "Ray")  # type: ignore[attr-defined]
        configure = PruningStrategy.configure_train

        def configure_train(strategy: PruningStrategy, server_round: int, *rest: Any) -> Any:
            if server_round == 1:
                self.round_1 = time.perf_counter()
            return configure(strategy, server_round, *rest)

        PruningStrategy.configure_train = configure_train  # type: ignore[method-assign]

    def _timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            result = function(*arguments, **options)
            if not self.round_1:
                self.parts[part] += time.perf_counter() - began
            return result

        return call

    def _timed_entry(self, manager: Callable[..., Any], part: str) -> Callable[..., Any]:
        @contextmanager
        def enter(*arguments: Any) -> Iterator[Any]:
            began = time.perf_counter()
            with manager(*arguments) as value:
                self.parts[part] += time.perf_counter() - began
                yield value

        return enter


def measure(registered: int, sampled: int, strategy: str) -> dict[str, Any]:
    """Run one federation in this process and return its figures, in seconds and bytes."""
    startup, watch = Startup(), Watch()
    startup.watch()
    plan = scenario(registered, sampled, strategy)
    watch.start()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        fedprune.run(plan, out=Path(folder) / "run", progress=False, listeners=[watch])
    total = startup.round_1 - began
    ends, processor = watch.rounds[WARM:-1], watch.processor[WARM:-1]
    steady = watch.memory[WARM:-1]
    return {
        "startup_s": total,
        "startup_parts_s": {**startup.parts, "rest": total - startup.parts.total()},
        "per_client_s": [(end - start) / sampled for start, end in pairwise(ends)],
        "driver_s": (processor[-1] - processor[0]) / (len(processor) - 1) / sampled,
        "peak": watch.peak,
        "steady": statistics.median(steady),
        "growth_a_round": (steady[-1] - steady[0]) / (len(steady) - 1),
    }


def fresh(*arguments: object) -> dict[str, Any]:
    """Measure in a process of its own and return the figures that it printed last."""
    command = [sys.executable, __file__, "--measure", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def summarise(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the median of each figure over the turns, and over all rounds of all turns for time."""
    median = statistics.median
    parts = (*PARTS, "rest")
    return {
        "startup_s": median(turn["startup_s"] for turn in turns),
        "startup_parts_s": {part: median(turn["startup_parts_s"][part] for turn in turns) for part in parts},
        "per_client_s": median(second for turn in turns for second in turn["per_client_s"]),
        **{key: median(turn[key] for turn in turns) for key in KEYS},
    }


def table(figures: list[dict[str, Any]]) -> str:
    """Return the figures as a Markdown table, with ratios to the first row."""
    lines = [
        "| registered | sampled | start-up s | data | Ray | clients | evaluation | rest "
        "| ms per client | ratio | driver ms | ratio | peak MiB | ratio | steady MiB | ratio | KiB a round |",
        "|" + " ---: |" * 17,
    ]
    first = figures[0]
    for row in figures:
        cells = [f"{row['registered']:,}", f"{row['sampled']:,}", f"{row['startup_s']:.1f}"]
        cells += [f"{row['startup_parts_s'][part]:.1f}" for part in (*PARTS, "rest")]
        for key, unit in (("per_client_s", 1e-3), ("driver_s", 1e-3), ("peak", MIB), ("steady", MIB)):
            digits = 0 if unit == MIB else 2
            cells += [f"{row[key] / unit:.{digits}f}", f"{row[key] / first[key]:.2f}"]
        cells.append(f"{row['growth_a_round'] / 1024:.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def misses(figures: list[dict[str, Any]]) -> Iterator[str]:
    """Yield each bound that is missed."""
    first = figures[0]
    for row in figures:
        size = f"{row['sampled']:,} of {row['registered']:,} clients"
        if row["startup_s"] > MOST_SECONDS:
            yield f"{size}: start-up takes {row['startup_s']:.1f} s, more than {MOST_SECONDS:g}"
        for key in ("per_client_s", "driver_s", "peak", "steady"):
            if (ratio := row[key] / first[key]) > MOST_GROWTH:
                yield f"{size}: {key} is {ratio:.2f} of that with {first['registered']}"


def main() -> None:
    """Measure all federations and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--turns", type=int, default=3, help="runs of each federation")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a bound is missed")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        registered, sampled, strategy = options.measure
        print(json.dumps(measure(int(registered), int(sampled), strategy)))
        return
    all_figures: dict[str, list[dict[str, Any]]] = {}
    for strategy in options.strategies:
        # In turns: the speed of a shared machine drifts.
        turns = [[fresh(*size, strategy) for size in FEDERATIONS] for _ in range(options.turns)]
        all_figures[strategy] = [
            {"registered": registered, "sampled": sampled, **summarise(list(runs))}
            for (registered, sampled), *runs in zip(FEDERATIONS, *turns, strict=True)
        ]
        print(f"{strategy}, {os.cpu_count()} cores, {options.turns} runs of {MEASURED} rounds\n")
        print(table(all_figures[strategy]), end="\n\n", flush=True)
    if options.json:
        options.json.write_text(json.dumps(all_figures, indent=2) + "\n")
    missed = [f"{strategy}: {miss}" for strategy, rows in all_figures.items() for miss in misses(rows)]
    print("\n".join(missed) or "all bounds hold")
    if options.check and missed:
        sys.exit(1)


if __name__ == "__main__":
    main()
