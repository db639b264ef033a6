"""What does one message cost a device: resident memory and processor time of a client's process, by part?

    python benchmarks/client.py [--data DIR] [--federations NAME ...] [--strategies NAME ...]
        [--set KEY=VALUE ...] [--repeats N] [--json FILE]

Flower starts a process for each message, so this is what a device pays each time. For each federation and
strategy the server's side runs until it sends its first training message; message, client state and the
client's images (an ``.npz`` file, as a device has them) are kept, and a fresh process answers the message
with the client's own code on one thread.

MiB: "libraries" is what is resident when Python, PyTorch, Flower and fedprune are imported; "data" and
"model" what reading the images and building the model add; "training" by how much the most that was
resident while the message was answered is above that; "peak" the most that was ever resident; "modelled" the
memory model's prediction for the step on a device that has nothing else. "message" is the training message.
Seconds are processor time. All are medians of ``--repeats`` processes. On Linux.
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
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

# Nothing but the standard library is imported up here: what the rest takes is measured.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10"
MIB = 2**20
CLIENT = 0

FEDERATIONS: dict[str, dict[str, Any]] = {
    "digits cnn": {"model": {"name": "cnn"}, "data": {"name": "digits", "server_fraction": 0.1}},
    "cifar10 resnet18/4": {
        "model": {"name": "resnet18", "width": 0.25},
        "data": {
            "name": "cifar10",
            "train_examples": 5000,
            "test_examples": 1,
            "server_fraction": 0.1,
            "augment": ["crop", "flip"],
        },
    },
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "fedavg": {"name": "fedavg"},
    "static": {"name": "static", "density": 0.05, "criterion": "synflow", "distribution": "erk"},
    # Every round adjusts: what that asks of a client is in the figures.
    "fedtiny": {"name": "fedtiny", "density": 0.05, "pretrain_epochs": 1, "candidates": 2, "adjust_every": 1},
    "hidenseek": {"name": "hidenseek", "density": 0.5, "train_dense": True, "keep_scores": True},
}
PARTS = ("libraries", "data", "model", "training")

Row = dict[str, Any]


def plan(federation: str, strategy: str, data: Path, changes: dict[str, Any]) -> Any:
    """Return the scenario of a case."""
    from fedprune.scenario import Scenario

    training = {"batch_size": 32, "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9}}
    mapping: dict[str, Any] = {
        "name": "client",
        "rounds": 40,
        **FEDERATIONS[federation],
        "clients": {"count": 10, "training": training},
        "strategy": STRATEGIES[strategy],
    }
    if mapping["data"]["name"] == "cifar10":
        mapping["data"] = {**mapping["data"], "path": str(data)}
    return Scenario.from_mapping(mapping).override(**changes)


class RecordedError(Exception):
    """The server has sent what is to be replayed."""


class Recorder:
    """A grid of clients in this process, up to the first training message, which it writes to a folder."""

    def __init__(self, app: Any, clients: int, folder: Path) -> None:
        from flwr.app import Context, RecordDict
        from flwr.supercore.task_identity import TaskIdentity

        self._app, self._folder = app, folder
        self._contexts = {
            number + 2: Context(1, number + 2, {"partition-id": number}, RecordDict(), {})
            for number in range(clients)
        }
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1

    def get_node_ids(self) -> list[int]:
        return list(self._contexts)

    def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None) -> Iterator[Any]:
        from flwr.common.serde import context_to_proto, message_from_proto, message_to_proto

        for message in messages:
            context, sent = self._contexts[message.metadata.dst_node_id], message_to_proto(message)
            if message.metadata.message_type != "train":
                yield self._app(message_from_proto(sent), context)
            elif context.node_config["partition-id"] == CLIENT:
                (self._folder / "message").write_bytes(sent.SerializeToString())
                (self._folder / "context").write_bytes(context_to_proto(context).SerializeToString())
                raise RecordedError


def record(scenario: Any, folder: Path) -> None:
    """Write to a folder what a device has and is sent: images, client state, message, scenario."""
    import numpy as np

    from fedprune import data as datasets
    from fedprune.engine.hosts import build_client_app
    from fedprune.engine.simulation import make_strategy, score_locally

    data = datasets.load(scenario)
    strategy = make_strategy(scenario, data, score_locally(scenario, data), [])
    grid: Any = Recorder(build_client_app(scenario, data, "cpu"), scenario.clients.count, folder)
    try:
        strategy.start(grid)
    except RecordedError:
        own = data.client(CLIENT)
        np.savez(
            folder / "own", pixels=own.examples.inputs[own.train], labels=own.examples.targets[own.train]
        )
        (folder / "scenario").write_text(json.dumps(scenario.model_dump(mode="json", exclude_unset=True)))


class Stages:
    """What this process takes, stage by stage."""

    def __init__(self) -> None:
        self.row: Row = {}
        self._resident, self._peak, self._seconds = 0, 0, 0.0

    def end(self, name: str, *, at_peak: bool = False) -> None:
        """End a stage: what it added to resident memory, at its end or at its peak, and its time."""
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        resident, peak = (1024 * int(status[key].split()[0]) for key in ("VmRSS", "VmHWM"))
        now = time.process_time()
        self.row[f"{name}_bytes"] = (peak if at_peak else resident) - self._resident
        self.row[f"{name}_seconds"] = now - self._seconds
        self._resident, self._peak, self._seconds = resident, max(self._peak, peak), now
        self.row["peak_bytes"], self.row["total_seconds"] = self._peak, now
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to what is resident now


def replay(folder: Path) -> Row:
    """Answer a recorded message and say what that took: to be called once in a fresh process."""
    stages = Stages()

    from flwr.common.serde import context_from_proto, message_from_proto
    from flwr.proto.message_pb2 import Context, Message
    from flwr.supercore.task_identity import TaskIdentity

    from fedprune import data as datasets
    from fedprune import registry
    from fedprune.client.app import FederatedClientApp
    from fedprune.client.site import Site
    from fedprune.determinism import make_deterministic
    from fedprune.scenario import Scenario

    make_deterministic()
    scenario = Scenario.from_mapping(json.loads((folder / "scenario").read_text()))
    strategy = registry.load("strategy", scenario.strategy.name)
    registry.load("client", getattr(strategy, "client", "sparse"))
    stages.end("libraries")
    site = Site(scenario, datasets.load_own(str(folder / "own.npz"), scenario, CLIENT))
    stages.end("data")
    site.layout, site.cost  # both of the module  # noqa: B018
    stages.end("model")
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, CLIENT + 2
    encoded = (folder / "message").read_bytes()
    size = len(encoded)
    message = message_from_proto(Message.FromString(encoded))
    context = context_from_proto(Context.FromString((folder / "context").read_bytes()))
    del encoded
    reply = FederatedClientApp(lambda _: site)(message, context)
    stages.end("training", at_peak=True)
    if reply.has_error():
        raise RuntimeError(reply.error.reason)
    (metrics,) = reply.content.metric_records.values()
    examples, modelled = metrics["num-examples"], metrics["peak-memory-bytes"]
    return stages.row | {"message_bytes": size, "examples": examples, "modelled_bytes": modelled}


def measure(folder: Path, repeats: int) -> Row:
    """Return the medians over fresh processes."""
    command = [sys.executable, __file__, "--replay", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    rows = []
    for _ in range(repeats):
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise RuntimeError(f"the client failed:\n{done.stderr}")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def table(rows: list[Row]) -> str:
    """Return one line a case, in markdown."""
    memory = [*PARTS, "peak", "modelled"]
    header = ["federation", "strategy", "examples", "message KiB", *(f"{part} MiB" for part in memory)]
    header += [f"{part} s" for part in (*PARTS, "total")]
    lines = [header, ["---"] * len(header)]
    for row in rows:
        sizes = [f"{row[f'{part}_bytes'] / MIB:.1f}" for part in memory]
        seconds = [f"{row[f'{part}_seconds']:.2f}" for part in (*PARTS, "total")]
        asked = [f"{row['examples']:.0f}", f"{row['message_bytes'] / 1024:.0f}"]
        lines.append([row["federation"], row["strategy"], *asked, *sizes, *seconds])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Measure, print the table, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="CIFAR-10 in the hub's parquet form")
    parser.add_argument("--federations", nargs="+", default=list(FEDERATIONS), choices=list(FEDERATIONS))
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=list(STRATEGIES))
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="change every scenario")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each case")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--replay", type=Path, help=argparse.SUPPRESS)  # how a fresh process is told its case
    options = parser.parse_args()
    if options.replay:
        print(json.dumps(replay(options.replay)))
        return
    if any("cifar10" in name for name in options.federations) and not options.data.exists():
        sys.exit(f"no CIFAR-10 at {options.data}: say where it is with --data")

    from fedprune.scenario import yaml_file as documents

    changes = {
        key: documents.parse(value, f"--set {key}")
        for key, _, value in (assignment.partition("=") for assignment in options.set)
    }
    rows = []
    for federation in options.federations:
        for strategy in options.strategies:
            print(f"{federation}, {strategy}", file=sys.stderr)
            with tempfile.TemporaryDirectory() as name:
                record(plan(federation, strategy, options.data, changes), Path(name))
                found = measure(Path(name), options.repeats)
            rows.append({"federation": federation, "strategy": strategy, **found})
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
