"""How small and how fast the wire format is: ``python benchmarks/wire.py [--json FILE]``.

Masks: random bits of a given density. ``ratio`` is the payload over the entropy bound n * H(d) / 8,
``goal`` whether it is within 1.05 times the bound plus 64 bytes. Speeds are in millions of positions
a second, which is MB/s of the mask as it is in memory, one byte a position. Values: 4 million
weights; speeds are in MB/s of the values as float32. Updates: what each compressor sends of the update of
a million weights, and that over the entropy of what it writes: of bits and whole numbers that of how often
each occurs, of floats that of each of their bytes. Sizes: how long it takes to count the bytes of a message.
All on one core, each time the best of several runs.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from fedprune.compression import COMPRESSORS, FloatType, Frame, Part, Source, Writer
from fedprune.sparsity.masks import Masks
from fedprune.wire import Layout, StateCodec, ValueType, content_bytes, decode_bits, encode_bits

DENSITIES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
POSITIONS = (100_000, 1_000_000, 10_000_000)
WEIGHTS = torch.Size([512, 1024, 8])
UPDATED = torch.Size([1000, 1000])
UPDATES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("topk", {"density": 0.01}),
    ("topk", {"density": 0.1}),
    ("randomk", {}),
    ("qsgd", {"levels": 1}),
    ("qsgd", {"levels": 15}),
    ("signsgd", {}),
    ("dare", {}),
    ("compeft", {}),
    ("powersgd", {}),
)

Row = dict[str, Any]


def seconds(call: Callable[[], object], budget: float = 0.3) -> float:
    """Return the shortest time of a call, over at least three of them."""
    times: list[float] = []
    while len(times) < 3 or sum(times) < budget:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def random_bits(count: int, density: float) -> Tensor:
    return torch.from_numpy(np.random.default_rng(count).random(count) < density)


def measure_mask(count: int, density: float) -> Row:
    bits = random_bits(count, density)
    payload = encode_bits(bits)
    assert torch.equal(decode_bits(payload, count), bits)
    share = float(bits.double().mean())
    bound = -count * (share * math.log2(share) + (1 - share) * math.log2(1 - share)) / 8
    kind = payload[2]  # after the length of the list of classes, and the only class
    return {
        "positions": count,
        "density": density,
        "bytes": len(payload),
        "ratio": len(payload) / bound,
        "goal": "holds" if len(payload) <= 1.05 * bound + 64 else "MISSED",
        "coded as": f"gaps, {kind - 1} low bits" if kind else "bitmap",
        "encode M/s": count / seconds(lambda: encode_bits(bits)) / 1e6,
        "decode M/s": count / seconds(lambda: decode_bits(payload, count)) / 1e6,
    }


def measure_values(density: float, values: ValueType) -> Row:
    layout = Layout({"weight": WEIGHTS}, {"weight": torch.float32})
    masks = Masks({"weight": random_bits(WEIGHTS.numel(), density).reshape(WEIGHTS)} if density < 1 else {})
    codec = StateCodec(layout, masks, values)
    state = {"weight": torch.randn(WEIGHTS, generator=torch.Generator().manual_seed(0))}
    flat = codec.flatten(state)
    record = codec.encode(flat)
    calls: dict[str, Callable[[], object]] = {
        "flatten": lambda: codec.flatten(state),
        "encode": lambda: codec.encode(flat),
        "decode": lambda: codec.decode(record),
        "unflatten": lambda: codec.unflatten(flat),
    }
    speeds = {f"{name} MB/s": 4 * codec.size / seconds(call) / 1e6 for name, call in calls.items()}
    return {
        "density": density,
        "values": values,
        "bytes": content_bytes(RecordDict({"arrays": record})),
        "new codec ms": 1e3 * seconds(lambda: StateCodec(layout, masks, values)),
        **speeds,
    }


class Bound(Writer):
    """Adds up the entropy of what is written, in bits."""

    def __init__(self) -> None:
        super().__init__()
        self.entropy = 0.0

    def bits(self, bits: Tensor) -> None:
        self.entropy += entropy(bits.numpy())

    def symbols(self, symbols: Tensor, alphabet: int) -> None:
        self.entropy += entropy(symbols.numpy())

    def floats(self, values: Tensor, kind: FloatType | None = None) -> None:
        columns = values.float().contiguous().numpy().reshape(-1).view(np.uint8).reshape(-1, 4).T
        self.entropy += sum(entropy(column) for column in columns)


def entropy(values: np.ndarray) -> float:
    """Return the bits that values take on average, if each is drawn by how often it occurs."""
    counts = np.unique(values, return_counts=True)[1]
    return float((counts * np.log2(counts.sum() / counts)).sum())


def measure_update(name: str, kept: float, options: dict[str, Any]) -> Row:
    """Measure a compressor on an update with heavy tails, of a matrix that may be pruned."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(UPDATED, generator=generator) < kept if kept < 1 else None
    size = UPDATED.numel() if mask is None else int(mask.sum())
    frame = Frame((Part("weight", UPDATED, mask, size),))
    scale = torch.rand(size, generator=generator).clamp(min=1e-3) ** -0.5
    update = 0.001 * scale * torch.randn(size, generator=generator)
    kind = COMPRESSORS[name]
    compressor = kind(kind.Options(**options))
    bound = Bound()
    compressor.write(update, frame, bound, {})

    def written() -> bytes:
        out = Writer()
        compressor.write(update, frame, out, {})
        return out.payload

    payload = written()
    return {
        "compressor": name,
        "options": ", ".join(f"{key} {value}" for key, value in options.items()) or "as they are",
        "kept": kept,
        "bytes": len(payload),
        "bits a weight": 8 * len(payload) / size,
        "of float32": len(payload) / (4 * size),
        "ratio": 8 * len(payload) / bound.entropy,
        "write ms": 1e3 * seconds(written),
        "read ms": 1e3 * seconds(lambda: compressor.read(frame, Source(payload))),
    }


def measure_size(count: int) -> Row:
    arrays = {"values": Array(np.random.default_rng(0).standard_normal(count, dtype=np.float32))}
    config = {"round": 3, "mask-version": "0123456789abcdef", "lr": 0.1, "epochs": 1, "codec": "fedprune-2"}
    metrics = {"num-examples": 500, "loss": 0.5, "flops": 10**12, "train-seconds": 3.5}
    content = RecordDict(
        {"arrays": ArrayRecord(arrays), "config": ConfigRecord(config), "metrics": MetricRecord(metrics)}
    )
    return {
        "values": count,
        "bytes": content_bytes(content),
        "content_bytes µs": 1e6 * seconds(lambda: content_bytes(content)),
    }


def table(rows: list[Row]) -> str:
    """Return the rows as aligned text, headed by their keys."""
    cells = [
        [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row.values()] for row in rows
    ]
    cells.insert(0, list(rows[0]))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the wire format.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    target = parser.parse_args().json
    torch.set_num_threads(1)
    results = {
        "masks": [measure_mask(count, density) for count in POSITIONS for density in DENSITIES],
        "values": [
            measure_values(density, values) for density in (0.01, 0.1, 1.0) for values in get_args(ValueType)
        ],
        "updates": [measure_update(name, kept, options) for kept in (1.0, 0.1) for name, options in UPDATES],
        "sizes": [measure_size(count) for count in (1_000, 10_000_000)],
    }
    for name, rows in results.items():
        print(f"{name}\n{table(rows)}\n")
    if target:
        target.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
