"""Outcomes made by hand: runs with known values, without running anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedprune.studies.outcomes import Metric, Outcome

ACCURACY = Metric()
PERPLEXITY = Metric("perplexity", higher_is_better=False)


def outcome(
    variant: str,
    seed: int,
    final: float | None,
    *,
    metric: Metric = ACCURACY,
    point: dict[str, Any] | None = None,
    status: str | None = "complete",
    curve: list[float | None] | None = None,
    directory: Path | None = None,
    loss: float | None = 1.0,
    **costs: Any,
) -> Outcome:
    """Return one run; ``curve`` has the headline metric of rounds 0, 1, ...; ``status`` None: not begun.

    Every round costs 10 bytes up, 20 down, 1000 FLOP, 2 device seconds and, unless said, 0.5 J.
    """
    values = [final] if curve is None else curve
    joules = costs.pop("joules_of_round", 0.5)
    rounds = [
        {
            "round": number,
            metric.name: value,
            "loss": None if value is None else loss,
            "bytes_up": 10,
            "bytes_down": 20,
            "flops": 1000,
            "device_seconds": 2.0,
            "joules": joules,
        }
        for number, value in enumerate(values)
    ]
    summary = {
        "status": status,
        "seed": seed,
        "headline": metric.name,
        "higher_is_better": metric.higher_is_better,
        metric.final: final,
        metric.best: final,
        "density": 0.1,
        "bytes_up": 100,
        "bytes_down": 200,
        "flops": 10_000,
        "device_seconds": 20.0,
        "peak_memory_bytes": 2**20,
        "joules": None,
        "wall_seconds": 3.0,
        **costs,
    }
    return Outcome(
        variant, point or {}, seed, None if status is None else summary, rounds, directory=directory
    )


def group(variant: str, values: list[float | None], **changes: Any) -> list[Outcome]:
    """Return a run for each value, of seeds 0, 1, ..."""
    return [outcome(variant, seed, value, **changes) for seed, value in enumerate(values)]
