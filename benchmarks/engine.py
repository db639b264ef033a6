"""What the engine costs besides training, beside Flower's own simulation runtime, in one run.

    python benchmarks/engine.py [--json FILE] [--repeats N]

Three figures, each measured in fresh processes on the same cores, ours and Flower's in turn:

- milliseconds per client that does nothing, at 10, 100 and 1,000 clients a round;
- seconds per round for 10 clients that send 11 million float32 parameters back;
- the driver's peak resident memory for 50 and for 200 replies of 1 million parameters.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
warnings.filterwarnings("ignore", category=FutureWarning)

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

CLIENTS = (10, 100, 1000)
PARAMETERS = 11_000_000
REPLY_PARAMETERS = 1_000_000
WORKERS = os.cpu_count() or 1


def make_app() -> ClientApp:
    """Return an app whose clients send back what they received."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 1, "loss": 0.0})
        return Message(
            RecordDict({"arrays": message.content["arrays"], "metrics": metrics}), reply_to=message
        )

    return app


def send_rounds(grid: Grid, clients: int, parameters: int, repeats: int) -> list[float]:
    """Return the seconds of each round; the first, which warms up, is left out."""
    content = RecordDict(
        {
            "arrays": ArrayRecord({"values": Array(np.zeros(parameters, np.float32))}),
            "config": ConfigRecord({"round": 1}),
        }
    )
    while len(nodes := list(grid.get_node_ids())) < clients:
        time.sleep(0.05)
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        replies = 0
        for reply in grid.send_and_receive(Message(content, node, "train") for node in nodes[:clients]):
            replies += reply.has_content()
        seconds.append(time.perf_counter() - began)
        assert replies == clients, f"{replies} of {clients} replies"
    return seconds[1:]


def in_fedprune(clients: int, parameters: int, repeats: int) -> list[float]:
    """Measure rounds on ``RayGrid``."""
    with fedprune_grid(clients) as grid:
        return send_rounds(grid, clients, parameters, repeats)


@contextmanager
def fedprune_grid(clients: int) -> Iterator[Grid]:
    """Start Ray and a grid of clients on it, as a run does."""
    from fedprune.engine.cluster import cluster
    from fedprune.scenario import EngineSpec

    with cluster(EngineSpec()) as placement:
        from fedprune.engine.grid import RayGrid

        with RayGrid(make_app, [{}] * clients, workers=placement.workers) as grid:
            yield grid


def in_flower(clients: int, parameters: int, repeats: int) -> list[float]:
    """Measure rounds on Flower's own simulation runtime."""
    from flwr.simulation import run_simulation

    measured: list[float] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        measured.extend(send_rounds(grid, clients, parameters, repeats))

    run_simulation(
        server_app=server,
        client_app=make_app(),
        num_supernodes=clients,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": WORKERS, "log_to_driver": False, "logging_level": "ERROR"},
        },
    )
    return measured


def driver_peak(replies: int) -> float:
    """Return the driver's peak resident memory in MiB while it adds up ``replies`` replies."""
    with fedprune_grid(replies) as grid:
        arrays = ArrayRecord({"values": Array(np.zeros(REPLY_PARAMETERS, np.float32))})
        content = RecordDict({"arrays": arrays, "config": ConfigRecord({"round": 1})})
        total, count = torch.zeros(REPLY_PARAMETERS, dtype=torch.float64), 0
        for reply in grid.send_and_receive(Message(content, node, "train") for node in grid.get_node_ids()):
            total += torch.from_numpy(reply.content["arrays"]["values"].numpy())
            count += 1
        assert count == replies
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


MEASUREMENTS = {"fedprune": in_fedprune, "flower": in_flower}


def fresh(*arguments: object) -> object:
    """Run one measurement in a process of its own and return what it printed last."""
    command = [sys.executable, __file__, "--measure", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(what: str, *numbers: str) -> None:
    """Carry out one measurement and print it as JSON (in a process of its own)."""
    values = [int(number) for number in numbers]
    print(json.dumps(driver_peak(*values) if what == "memory" else MEASUREMENTS[what](*values)))


def main() -> None:
    """Run every measurement and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count, after one that warms up")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure)
        return
    per_client: dict[str, dict[str, float]] = {"fedprune": {}, "flower": {}}
    whole_round: dict[str, float] = {}
    for clients in CLIENTS:
        for runtime in MEASUREMENTS:
            seconds = fresh(runtime, clients, 10, options.repeats)
            per_client[runtime][str(clients)] = statistics.median(seconds) / clients * 1000
    for runtime in MEASUREMENTS:
        whole_round[runtime] = statistics.median(fresh(runtime, 10, PARAMETERS, options.repeats))
    peaks = {str(replies): fresh("memory", replies) for replies in (50, 200)}
    print(f"{WORKERS} workers, median of {options.repeats} rounds\n")
    print(f"{'':34}{'fedprune':>12}{'flower':>12}{'ratio':>8}")
    for clients in CLIENTS:
        ours, theirs = (per_client[runtime][str(clients)] for runtime in ("fedprune", "flower"))
        label = f"ms per client, {clients:,} clients"
        print(f"{label:34}{ours:12.3f}{theirs:12.3f}{theirs / ours:7.1f}x")
    ours, theirs = whole_round["fedprune"], whole_round["flower"]
    print(f"{'s per round, 10 x 11 M float32':34}{ours:12.3f}{theirs:12.3f}{theirs / ours:7.1f}x")
    growth = peaks["200"] / peaks["50"] - 1
    print(f"\ndriver's peak memory, replies of 1 M float32: 50: {peaks['50']:.0f} MiB, ", end="")
    print(f"200: {peaks['200']:.0f} MiB ({growth:+.1%})")
    if options.json:
        figures = {"per_client_ms": per_client, "round_11m_s": whole_round, "driver_peak_mib": peaks}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
