"""How much memory does a worker need for data that is larger? A table read lazily, under a limit of memory.

    python benchmarks/lazy.py [--bytes SIZE] [--limit SIZE] [--whole]

Makes a table of images of noise, 256 x 256 in colour and not compressed, as `datasets` saves it, in a
temporary folder that is removed at the end. A process of its own, whose anonymous memory (heap, stacks; not
the file's pages, which the kernel takes back) is limited by ``RLIMIT_DATA``, is sent what a worker of a
simulation is sent under ``data.lazy: true``, and goes through every client's batches once. Printed are the
peak of its anonymous memory, what it had before it was sent the data, and images a second. ``--whole`` tries
the same with ``data.lazy: false``. On Linux, one PyTorch thread.
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
from pathlib import Path
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

import numpy as np

from fedprune.data import batches, load
from fedprune.scenario import Scenario
from fedprune.tasks import build
from fedprune.units import format_bytes, parse_bytes

SIDE = 256
HEADER = 54  # Bytes of a BMP file before its pixels.
ROWS_AT_ONCE = 50
ROWS_A_FILE = 5000
CLIENTS = 100


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
            "strategy": {"name": "fedavg"},
        }
    )


def anonymous() -> int:
    """Return the bytes of anonymous memory of this process that are resident."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise RuntimeError("no RssAnon in /proc/self/status: this needs Linux")


def work(folder: Path, lazy: bool, limit: int) -> dict[str, Any]:
    """Go through every client's batches, as a worker does."""
    import torch

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    before = peak = anonymous()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began, images = time.perf_counter(), 0
    try:
        plan = scenario(folder, lazy)
        data = pickle.loads((folder / "data.pickle").read_bytes()) if lazy else load(plan)
        task = build(plan, data.info)
        for number in range(CLIENTS):
            client = data.client(number)
            generator = torch.Generator().manual_seed(number)
            for x, _ in batches(client.examples, client.train, task, 32, generator=generator):
                images += len(x)
    finally:
        done.set()
        watcher.join()
    return {"before": before, "peak": peak, "images": images, "seconds": time.perf_counter() - began}


def main() -> None:
    """Measure, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=parse_bytes, default=parse_bytes("10 GB"), help="of the table")
    parser.add_argument("--limit", type=parse_bytes, default=parse_bytes("1 GB"), help="of anonymous memory")
    parser.add_argument("--whole", action="store_true", help="try it not lazily, too")
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
