"""How much memory does a worker need for data that is larger? A table read lazily, under a limit of memory.

    python benchmarks/lazy.py [--bytes SIZE] [--limit SIZE] [--whole | --train]

Makes a table of images of noise, 256 x 256 in colour and not compressed, as `datasets` saves it, in a
temporary folder that is removed at the end. A process of its own, whose anonymous memory (heap, stacks; not
the file's pages, which the kernel takes back) is limited by ``RLIMIT_DATA``, is sent what a worker of a
simulation is sent under ``data.lazy: true``, and goes through every client's batches once. Printed are the
peak of its anonymous memory, what it had before it was sent the data, and images a second. ``--whole`` tries
the same with ``data.lazy: false``.

``--train`` runs a simulation instead, on Ray with two workers under that limit, in which every client trains
on all of its images once. Printed are the peaks of each worker and of the process that is the server. It
fails where a client's task failed, or more than the limit was resident in a worker, pages of files included.
On Linux, one PyTorch thread a process.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import threading
import time
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
# Arrow's own allocator reserves 1 GiB of addresses at its start, which RLIMIT_DATA counts, used or not.
os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"

import numpy as np

from fedprune import run
from fedprune.costs.ledger import RoundRecord, TaskRecord
from fedprune.data import batches, load
from fedprune.engine.hosts import OnRay
from fedprune.scenario import Scenario
from fedprune.tasks import build
from fedprune.units import format_bytes, parse_bytes

SIDE = 256
HEADER = 54  # Bytes of a BMP file before its pixels.
ROWS_AT_ONCE = 50
ROWS_A_FILE = 5000
CLIENTS = 100
WORKERS = 2


def make(folder: Path, rows: int) -> None:
    """Write the table: BMP files of noise, with labels from 0 to 9."""
    import pyarrow as pa
    from datasets import ClassLabel, Dataset, Features, Image
    from PIL import Image as Pillow

    generator = np.random.default_rng(0)
    first = folder / "one.bmp"
    Pillow.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(first)
    header = first.read_bytes()[:HEADER]
    features = Features({"image": Image(), "label": ClassLabel(num_classes=10)})
    saved = folder / "table"
    start = {"image": [{"bytes": first.read_bytes(), "path": None}], "label": [0]}
    Dataset.from_dict(start, features=features).save_to_disk(str(saved))
    schema = Dataset.load_from_disk(str(saved)).data.schema
    state = json.loads((saved / "state.json").read_text())
    for file in state["_data_files"]:
        (saved / file["filename"]).unlink()
    state["_data_files"] = []
    for number, begin in enumerate(range(0, rows, ROWS_A_FILE)):
        name = f"data-{number:05d}.arrow"
        state["_data_files"].append({"filename": name})
        with (saved / name).open("wb") as file, pa.ipc.new_stream(file, schema) as writer:
            for place in range(begin, min(begin + ROWS_A_FILE, rows), ROWS_AT_ONCE):
                count = min(ROWS_AT_ONCE, rows - place)
                images = [
                    {"bytes": header + generator.bytes(SIDE * SIDE * 3), "path": None} for _ in range(count)
                ]
                labels = generator.integers(0, 10, count).tolist()
                writer.write_batch(
                    pa.record_batch(
                        [pa.array(images, schema.field("image").type), pa.array(labels, pa.int64())],
                        schema=schema,
                    )
                )
    (saved / "state.json").write_text(json.dumps(state))


def scenario(folder: Path, lazy: bool) -> Scenario:
    """Return a federation of the table's images, made small."""
    return Scenario.from_mapping(
        {
            "name": "lazy",
            "rounds": 1,
            "model": {"name": "cnn"},
            "data": {
                "name": "noise",
                "path": str(folder / "table"),
                "lazy": lazy,
                "resize": [32, 32],
                "channels": 3,
                "bits": 8,
            },
            "clients": {
                "count": CLIENTS,
                "training": {"batch_size": 32, "optimizer": {"name": "sgd", "lr": 0.1}},
            },
            "strategy": {"name": "static", "density": 0.2},
            "engine": {"workers": WORKERS, "device": "cpu"},
        }
    )


def memory(of: str, pid: int | None = None) -> int:
    """Return bytes of a process: ``RssAnon``, anonymous and resident; ``VmHWM``, the most resident so far."""
    for line in Path(f"/proc/{pid or 'self'}/status").read_text().splitlines():
        if line.startswith(f"{of}:"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"no {of} in /proc/{pid or 'self'}/status: this needs Linux")


@contextmanager
def peaks(pids: Sequence[int]) -> Iterator[dict[int, int]]:
    """Yield the most anonymous memory of each process so far, looked at 20 times a second."""
    found = {pid: memory("RssAnon", pid) for pid in pids}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            for pid in pids:
                found[pid] = max(found[pid], memory("RssAnon", pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()


def work(folder: Path, lazy: bool, limit: int) -> dict[str, Any]:
    """Go through every client's batches, as a worker does."""
    import torch

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    before = memory("RssAnon")
    with peaks([os.getpid()]) as peak:
        began, images = time.perf_counter(), 0
        plan = scenario(folder, lazy)
        data = pickle.loads((folder / "data.pickle").read_bytes()) if lazy else load(plan)
        task = build(plan, data.info)
        for number in range(CLIENTS):
            client = data.client(number)
            generator = torch.Generator().manual_seed(number)
            for x, _ in batches(client.examples, client.train, task, 32, generator=generator):
                images += len(x)
    seconds = time.perf_counter() - began
    return {"before": before, "peak": peak[os.getpid()], "images": images, "seconds": seconds}


@dataclass(frozen=True)
class Limited(OnRay):
    """Ray with a limit of memory for its workers, once they have started; notes what they come to.

    ``before``, ``peak`` and ``resident`` are bytes by process: anonymous memory at the start and at most, and
    the most that was resident, with the pages of files.
    """

    limit: int = 0
    before: dict[int, int] = field(default_factory=dict)
    peak: dict[int, int] = field(default_factory=dict)
    resident: dict[int, int] = field(default_factory=dict)

    @contextmanager
    def grid(self, *arguments: Any) -> Iterator[Any]:
        """Start the workers, limit them, and watch them and this process."""
        with super().grid(*arguments) as grid:
            for pid in grid.worker_pids:
                self.before[pid] = memory("RssAnon", pid)
                resource.prlimit(pid, resource.RLIMIT_DATA, (self.limit, self.limit))
            with peaks([*grid.worker_pids, os.getpid()]) as found:
                yield grid
                self.resident.update({pid: memory("VmHWM", pid) for pid in found})
            self.peak.update(found)


class Trained:
    """Counts clients' tasks of training, and the images that they trained on: a listener."""

    def __init__(self) -> None:
        self.tasks = self.images = 0

    def on_task(self, task: TaskRecord) -> None:
        """Count a task of training."""
        if task.type == "train" and task.status == "ok":
            self.tasks += 1
            self.images += task.examples

    def on_round(self, round: RoundRecord) -> None:
        """Nothing is to be done."""


def train(folder: Path, limit: int) -> None:
    """Run a simulation of the table's clients, and print what its processes came to."""
    host, trained = Limited(limit=limit), Trained()
    done = run(
        scenario(folder, lazy=True),
        out=folder / "run",
        host=host,
        listeners=[trained],
        progress=False,
        figures=False,
    ).summary
    seconds = done["wall_seconds"]
    print(f"{trained.tasks} clients trained on {trained.images:,} images; rounds took {seconds:.0f} s")
    for number, pid in enumerate(host.before, start=1):
        print(
            f"worker {number}: anonymous memory {format_bytes(host.before[pid])} before, "
            f"{format_bytes(host.peak[pid])} at most; resident {format_bytes(host.resident[pid])} at most"
        )
    own = os.getpid()
    print(f"server: {format_bytes(host.peak[own])}; resident {format_bytes(host.resident[own])} at most")
    if done["clients_failed"]:
        raise SystemExit(f"{done['clients_failed']} tasks of clients failed: {done['failures']}")
    if too_much := [pid for pid in host.before if host.resident[pid] > limit]:
        raise SystemExit(f"{len(too_much)} workers had more than {format_bytes(limit)}")


def main() -> None:
    """Measure, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=parse_bytes, default=parse_bytes("10 GB"), help="of the table")
    parser.add_argument("--limit", type=parse_bytes, default=parse_bytes("1 GB"), help="of anonymous memory")
    parser.add_argument("--whole", action="store_true", help="try it not lazily, too")
    parser.add_argument("--train", action="store_true", help="run a simulation, on Ray with two workers")
    parser.add_argument("--work", metavar="FOLDER", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--not-lazy", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work is not None:
        print(json.dumps(work(given.work, not given.not_lazy, given.limit)))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        rows = given.bytes // (SIDE * SIDE * 3 + HEADER)
        make(folder, rows)
        size = sum(file.stat().st_size for file in (folder / "table").glob("*.arrow"))
        print(f"table: {format_bytes(size)}, {rows:,} images; limit {format_bytes(given.limit)}", flush=True)
        if given.train:
            train(folder, given.limit)
            return
        sent = pickle.dumps(load(scenario(folder, lazy=True)))
        (folder / "data.pickle").write_bytes(sent)
        print(f"sent to a worker: {format_bytes(len(sent))}", flush=True)
        for lazy in (True, False) if given.whole else (True,):
            command = [sys.executable, __file__, "--work", place, "--limit", str(given.limit)]
            done = subprocess.run(
                command + ([] if lazy else ["--not-lazy"]), stdout=subprocess.PIPE, text=True, check=False
            )
            what = "lazily" if lazy else "at once"
            if done.returncode:
                print(f"read {what}: failed")
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            before, peak = format_bytes(found["before"]), format_bytes(found["peak"])
            rate = found["images"] / found["seconds"]
            print(f"read {what}: {found['images']:,} images, {rate:.0f} a second")
            print(f"anonymous memory: {before} before, {peak} at most")


if __name__ == "__main__":
    main()
