"""Outcomes with everything that a report shows: curves, layers, device classes; always the same."""

from __future__ import annotations

import math
from typing import Any

from fedprune.studies.outcomes import Metric, Outcome

ACCURACY = Metric()
PERPLEXITY = Metric("perplexity", higher_is_better=False)


def outcome(
    variant: str = "FedTiny",
    density: float | None = 0.1,
    seed: int = 0,
    *,
    rounds: int = 6,
    layers: int = 3,
    metric: Metric = ACCURACY,
    document: dict[str, Any] | None = None,
    **summary: Any,
) -> Outcome:
    """Return a run whose metric improves with rounds and density, and differs a little with the seed."""
    kept = 1.0 if density is None else density
    records = [
        {
            "round": number,
            metric.name: value_at(number, kept, seed, metric),
            "loss": 2.0 / (number + 1),
            "density": kept,
            "layer_densities": {
                f"block{layer}.conv.weight": kept * (1 + 0.1 * math.sin(layer + number * (1 + seed)))
                for layer in range(layers if density is not None else 0)
            },
            "bytes_down": int(1e6 * kept),
            "bytes_up": int(9e5 * kept) + seed,
            "flops": int(1e9 * kept),
            "peak_memory_bytes": int(1e7 * kept),
            "device_seconds": 3.0 * kept,
            "joules": 2.5,
        }
        for number in range(rounds + 1)
    ]
    values = [record[metric.name] for record in records]
    totals = {
        key: sum(record[key] for record in records)
        for key in ("bytes_down", "bytes_up", "flops", "device_seconds", "joules")
    }
    made = {
        "name": variant.lower(),
        "strategy": variant.lower(),
        "seed": seed,
        "rounds": rounds,
        "planned_rounds": rounds,
        "status": "complete",
        "reason": None,
        "headline": metric.name,
        "higher_is_better": metric.higher_is_better,
        metric.final: values[-1],
        metric.best: max(values) if metric.higher_is_better else min(values),
        "density": kept,
        **totals,
        "peak_memory_bytes": int(1e7 * kept),
        "wall_seconds": 12.5 + seed,
        "clients_ok": 10 * rounds,
        "clients_failed": 0,
        "clients_excluded": 0,
        "failures": {},
        "classes": {name: device_class(share, kept) for name, share in (("phone", 0.7), ("board", 0.3))},
    }
    strategy = {"name": variant.lower(), **({} if density is None else {"density": density})}
    plain = {
        "name": variant.lower(),
        "seed": seed,
        "rounds": rounds,
        "model": {"name": "cnn"},
        "strategy": strategy,
    }
    point = {} if density is None else {"strategy.density": density}
    return Outcome(variant, point, seed, made | summary, tuple(records), None, document or plain)


def value_at(number: int, kept: float, seed: int, metric: Metric) -> float:
    """Return the metric in a round: accuracies up to 0.9, perplexities down to 20."""
    share = (1 - math.exp(-(number + 1) / 3)) * (0.5 + 0.4 * kept) + 0.01 * math.sin(7 * seed + number)
    return share if metric.higher_is_better else 20 + 80 * (1 - share)


def device_class(share: float, kept: float) -> dict[str, Any]:
    """Return what a class of devices came to in a run."""
    counts = dict.fromkeys(("asked", "ok", "late", "surplus", "failed", "excluded", "offline"), 3)
    shares = dict.fromkeys(("participation", "excluded_share", "offline_share", "late_share"), 0.25)
    costs = {
        "bytes_down": int(6e6 * kept * share),
        "bytes_up": int(5e6 * kept * share),
        "flops": int(6e9 * kept * share),
        "peak_memory_bytes": int(1e7 * kept),
        "device_seconds": 18.0 * kept * share,
        "joules": None,
        "accuracy": 0.6 + share / 10,
    }
    return {"clients": int(10 * share), **counts, **shares, **costs}


def study(
    variants: tuple[str, ...] = ("FedTiny", "Static"),
    densities: tuple[float, ...] = (0.1, 0.5),
    seeds: int = 3,
    **of_each: Any,
) -> list[Outcome]:
    """Return dense FedAvg, without a grid, and every variant at every density, over seeds."""
    dense = [outcome("FedAvg", None, seed, **of_each) for seed in range(seeds)]
    return dense + [
        outcome(variant, density, seed, **of_each)
        for variant in variants
        for density in densities
        for seed in range(seeds)
    ]
