"""Records as lines of strict JSON, and the summary that follows from them.

What stands here works on plain dictionaries, so that a run can be read and summarised without
PyTorch, and a column that the ledger gains is written, read and kept without a change here.
Where the files lie is the matter of `fedprune.results.folder`.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from fedprune.costs.ledger import RoundRecord, TaskRecord
from fedprune.errors import UserError
from fedprune.results.spread import ClientValues

Record = dict[str, Any]

# What a run costs: column of `rounds.jsonl` -> how the rounds' values make the run's.
COSTS: dict[str, Callable[[Iterable[float]], float]] = {
    "bytes_down": sum,
    "bytes_up": sum,
    "flops": sum,
    "device_seconds": sum,
    "wall_seconds": sum,
    "peak_memory_bytes": max,
}


#: The metrics of runs that do not say which they have: those of classification.
ACCURACY: Mapping[str, bool | None] = {"accuracy": True}


def strict(value: Any) -> Any:
    """Return the value as strict JSON can hold it: NaN and infinities become None, records objects."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return strict(vars(value)) if is_dataclass(value) else value


def to_line(record: TaskRecord | RoundRecord) -> str:
    """Return the record as one line of JSON, a column a field; see its class."""
    return json.dumps(strict(record.columns()), allow_nan=False) + "\n"


def read_lines(path: Path) -> list[Record]:
    """Read a file of one JSON object a line: all of ``each_line``."""
    return list(each_line(path))


def each_line(path: Path) -> Iterator[Record]:
    """Yield the objects of a file of one JSON object a line; a file that does not exist has no lines.

    A last line without its end is what a killed process leaves, and is left out. Any other
    line that is not a JSON object raises ``UserError`` with its number.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}, line {number}: not JSON: {error}") from None
            if not isinstance(record, dict):
                raise UserError(f"{path}, line {number}: expected an object, found {line[:40]!r}")
            yield record


def total_costs(rounds: Sequence[Record]) -> dict[str, float]:
    """Return what all rounds together cost: sums, and for peak memory the largest."""
    return {cost: total([record.get(cost) or 0 for record in rounds] or [0]) for cost, total in COSTS.items()}


def relative_costs(costs: Mapping[str, float], dense: Mapping[str, float] | None) -> Record | None:
    """Return each cost divided by that of the dense run; None where there is nothing to divide by."""
    if dense is None:
        return None
    return {cost: value / dense[cost] if dense.get(cost) else None for cost, value in costs.items()}


#: What is measured on a device, each beside what is modelled -> how the tasks' values make the run's.
_MEASURED: dict[str, Callable[[Iterable[float]], float]] = {
    "measured_seconds": sum,
    "device_seconds": sum,
    "measured_memory_bytes": max,
    "peak_memory_bytes": max,
}


def client_totals(clients: Iterable[Record], metrics: Mapping[str, bool | None] = ACCURACY) -> Record:
    """Return what the records of tasks make of a run, in one pass.

    ``failures`` is how many tasks failed for each reason, the most frequent first. ``measured`` has, for
    each kind of device on which tasks were measured, their number, and what was measured beside what the
    cost model says of the same tasks: seconds in total, memory at most. ``client_spread`` is how the first
    metric is spread over the clients that hold examples out.
    """
    failures, measured = Counter[str](), dict[str, Record]()
    headline, higher = next(iter(metrics.items()))
    values = ClientValues(headline)
    for record in clients:
        values.add(record)
        if record.get("status") == "failed":
            failures[record.get("reason") or "no reason given"] += 1
        if record.get("measured_seconds") is None:
            continue
        of_device = measured.setdefault(record["device"], {"tasks": 0, **dict.fromkeys(_MEASURED, 0)})
        of_device["tasks"] += 1
        for key, total in _MEASURED.items():
            of_device[key] = total((of_device[key], record.get(key) or 0))
    return {
        "failures": dict(failures.most_common()),
        "measured": dict(sorted(measured.items())),
        "client_spread": values.summary(higher_is_better=higher is not False),
    }


def count_faults(rounds: Iterable[Record]) -> dict[str, int]:
    """Return how many tasks failed by kind of fault, the most frequent first."""
    total = Counter[str]()
    for record in rounds:
        total.update(record.get("faults") or {})
    return dict(total.most_common())


#: What a class of devices counts in a round -> how the rounds' values make the run's.
_CLASS_COUNTS = ("asked", "ok", "late", "surplus", "failed", "excluded", "offline")
_CLASS_COSTS = ("bytes_down", "bytes_up", "flops", "device_seconds")


def class_totals(rounds: Sequence[Record]) -> dict[str, Record]:
    """Return what each class of devices took part in and what that cost, over a run.

    Counts and costs are sums, peak memory is the largest. ``participation`` is the share of all
    (client, round of training) in which a client's training counted; ``excluded_share`` and
    ``offline_share`` are of these too, ``late_share`` is of those asked. Of metrics,
    such as ``accuracy``, the last known value counts.
    """
    metrics = metric_names(rounds)
    training = [record for record in rounds if record["round"] > 0 and record.get("classes")]
    totals: dict[str, Record] = {}
    for name in training[-1]["classes"] if training else ():
        of_class = [record["classes"][name] for record in rounds if name in (record.get("classes") or {})]
        joules = [part["joules"] for part in of_class]
        total: Record = {"clients": of_class[-1]["clients"]}
        total |= {key: sum(part[key] for part in of_class) for key in (*_CLASS_COUNTS, *_CLASS_COSTS)}
        chances = total["clients"] * len(training)
        totals[name] = total | {
            "peak_memory_bytes": max(part["peak_memory_bytes"] for part in of_class),
            "joules": None if None in joules else sum(joules),
            "participation": total["ok"] / chances,
            "excluded_share": total["excluded"] / chances,
            "offline_share": total["offline"] / chances,
            "late_share": total["late"] / total["asked"] if total["asked"] else 0.0,
            **{name: _last(part.get(name) for part in of_class) for name in metrics},
        }
    return totals


def _last(values: Iterable[float | None]) -> float | None:
    """Return the last value that is known."""
    return next((value for value in reversed(list(values)) if value is not None), None)


def metric_names(rounds: Iterable[Record]) -> tuple[str, ...]:
    """Return the task's metrics, the headline first: the columns that are there of clients' models, too."""
    first: Record = next(iter(rounds), {})
    return tuple(name for name in first if f"client_{name}" in first and f"personal_{name}" in first)


def total_joules(rounds: Sequence[Record]) -> float | None:
    """Return the energy of all rounds; None where that of one is unknown."""
    joules = [record.get("joules") for record in rounds]
    return None if None in joules or not joules else sum(filter(None, joules))


def summarise(
    rounds: Sequence[Record],
    clients: Iterable[Record],
    *,
    name: str,
    strategy: str,
    seed: int,
    planned_rounds: int,
    status: str,
    reason: str | None = None,
    metrics: Mapping[str, bool | None] = ACCURACY,
    dense: Mapping[str, float] | None = None,
    model: Mapping[str, float | None] | None = None,
    startup_seconds: float | None = None,
    total_seconds: float | None = None,
) -> Record:
    """Return the summary of a run, from its records.

    Parameters
    ----------
    rounds, clients
        The records of ``rounds.jsonl`` and ``clients.jsonl``. Round 0, what came before
        training, counts in every total.
    status, reason
        How the run ended: "complete", "interrupted", "failed" or "unfinished".
    metrics
        Whether higher is better, by the name of each metric of the task, the headline first.
    dense
        What dense FedAvg would have cost under the same scenario, by the names of ``COSTS``.
    model
        ``density``, ``density_all_weights`` and ``parameters`` of the final model. Without it
        the density is that of the last round and the others are None.
    startup_seconds, total_seconds
        Wall time until round 0 began, and until the run's files were written; None where not known.
        ``wall_seconds`` is that of the rounds alone.
    """
    last = rounds[-1] if rounds else {}
    model = model or {"density": last.get("density")}
    costs = total_costs(rounds)
    return {
        "name": name,
        "strategy": strategy,
        "seed": seed,
        "rounds": last.get("round", 0),
        "planned_rounds": planned_rounds,
        "status": status,
        "reason": reason,
        "headline": next(iter(metrics)),
        "higher_is_better": next(iter(metrics.values())),
        **_scores(rounds, metrics),
        "density": model.get("density"),
        "density_all_weights": model.get("density_all_weights"),
        "parameters": model.get("parameters"),
        **costs,
        "startup_seconds": startup_seconds,
        "total_seconds": total_seconds,
        "clients_ok": sum(record.get("clients_ok") or 0 for record in rounds),
        "clients_failed": sum(record.get("clients_failed") or 0 for record in rounds),
        **{
            key: sum(record.get(key) or 0 for record in rounds)
            for key in ("clients_surplus", "clients_excluded", "clients_offline")
        },
        "joules": total_joules(rounds),
        **{
            key: sum(record.get(key) or 0 for record in rounds)
            for key in ("server_flops", "smashed_bytes_down", "smashed_bytes_up")
        },
        "classes": class_totals(rounds),
        "faults": count_faults(rounds),
        **client_totals(clients, metrics),
        "relative": relative_costs(costs, dense),
    }


def best_round(rounds: Iterable[Record], column: str, higher_is_better: bool | None) -> Record | None:
    """Return the first round of training in which a column has its best value; None without any."""
    known = [record for record in rounds if record["round"] > 0 and record.get(column) is not None]
    best = min if higher_is_better is False else max
    return best(known, key=lambda record: record[column], default=None)


def _scores(rounds: Sequence[Record], metrics: Mapping[str, bool | None]) -> Record:
    """Return the last and the best value of each metric, of the global model and of the clients' own."""
    found: Record = {}
    for name, higher in metrics.items():
        best = min if higher is False else max
        for column in (name, f"personal_{name}"):
            values = [record[column] for record in rounds if record.get(column) is not None]
            found[f"final_{column}"] = values[-1] if values else None
            found[f"best_{column}"] = None if higher is None else best(values, default=None)
    return found


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees all of it or none of it."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink()
        error.filename = error.filename or str(path)  # That of a full disk has none.
        raise
