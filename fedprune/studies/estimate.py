"""How long runs should take, and how much memory one needs, before it has run.

The time of a run is its steps of training times that of one step, measured here; runs of the study that
have ended say by how much that is wrong. Not a promise: pruned runs are faster, other processes slow all
down.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import ceil
from statistics import median

from fedprune import tasks
from fedprune.costs.flops import ModelCost
from fedprune.costs.memory import optimizer_slots, step_memory
from fedprune.data import Source, info_of
from fedprune.determinism import deterministic
from fedprune.errors import FedpruneError
from fedprune.scenario import Scenario
from fedprune.sparsity.masks import Masks
from fedprune.studies.outcomes import Outcome
from fedprune.training.loop import train

#: What a process of fedprune holds before it has a model: Python, PyTorch and Ray.
PROCESS_BYTES = 600 * 2**20
#: States of the model in one process at a time: initial, global, trained, a reply, two of a checkpoint, ...
STATES = 8
#: Steps of a measurement.
STEPS = 4


@dataclass(frozen=True)
class Need:
    """What a run needs: seconds of one core, by the time of a step here, and bytes of memory."""

    seconds: float
    memory: int


class Needs:
    """What scenarios need; each model is measured once.

    Parameters
    ----------
    source : Callable[[Scenario], Source]
        Returns a scenario's data set, which says how many examples there are.
    """

    def __init__(self, source: Callable[[Scenario], Source]) -> None:
        self._source = source
        self._known: dict[str, tuple[float, int]] = {}

    def of(self, scenario: Scenario) -> Need:
        """Return what a scenario needs; nothing but a process, where its data or model cannot be had."""
        try:
            source = self._source(scenario)
            seconds, memory = self._step(scenario, source)
        except FedpruneError:  # The run will say so.
            return Need(0.0, PROCESS_BYTES)
        spec = scenario.clients
        examples = len(source.train) * (1 - scenario.data.server_fraction) / spec.count
        examples *= 1 - scenario.data.client_test_fraction
        batches = spec.training.epochs * ceil(examples / spec.training.batch_size)
        asked = ceil(spec.per_round * scenario.rounds)
        pretraining = scenario.strategy.options.get("pretrain_epochs", 0)
        public = ceil(len(source.train) * scenario.data.server_fraction / spec.training.batch_size)
        # A forward pass is a third of a step.
        tested = len(source.test) / spec.training.batch_size * scenario.rounds / scenario.evaluation.every / 3
        return Need(seconds * (asked * batches + pretraining * public + tested), memory)

    def _step(self, scenario: Scenario, source: Source) -> tuple[float, int]:
        """Return the seconds of a step of dense training, and the bytes that a process needs for a run."""
        training = scenario.clients.training
        key = f"{scenario.model.model_dump(mode='json')} {training.batch_size} {training.optimizer.name}"
        if key in self._known:
            return self._known[key]
        with deterministic(scenario.engine.instructions):
            self._known[key] = self._measured(scenario, source)
        return self._known[key]

    def _measured(self, scenario: Scenario, source: Source) -> tuple[float, int]:
        training = scenario.clients.training
        task = tasks.build(scenario, info_of(scenario, source))
        module = tasks.build_model(scenario, task)
        slots = optimizer_slots(training.optimizer.name, training.optimizer.momentum)
        step = step_memory(ModelCost.of(module, task), Masks(), training.batch_size, slots=slots)
        values = sum(parameter.numel() for parameter in module.parameters())
        memory = PROCESS_BYTES + STATES * 4 * values + step.total
        batch = task.placeholder(training.batch_size)
        times = []
        for _ in range(4):
            began = time.perf_counter()
            train(module, [batch] * STEPS, task, training.optimizer, lr=0.0, masks=Masks())
            times.append((time.perf_counter() - began) / STEPS)
        return median(times[1:]), memory


def remaining_seconds(
    needed: Mapping[str, list[tuple[float, float]]], ended: Iterable[tuple[str, float, float]], jobs: int
) -> float:
    """Return how long runs should take with ``jobs`` at a time.

    Parameters
    ----------
    needed : Mapping[str, list[tuple[float, float]]]
        By variant, for each run that is left, the seconds that it needs by its steps and the share of it that
        is still to do.
    ended : Iterable[tuple[str, float, float]]
        Of runs that ended: the variant, the seconds by its steps, and those that it took.
    """
    said, took = defaultdict[str, float](float), defaultdict[str, float](float)
    for variant, by_steps, seconds in ended:
        for name in (variant, ""):
            said[name] += by_steps
            took[name] += seconds
    overall = took[""] / said[""] if said[""] else 1.0
    total, longest = 0.0, 0.0
    for variant, runs in needed.items():
        factor = took[variant] / said[variant] if said[variant] else overall
        for by_steps, share in runs:
            total += factor * by_steps * share
            longest = max(longest, factor * by_steps * share)
    return max(total / max(jobs, 1), longest)


def seconds_of(outcome: Outcome) -> float | None:
    """Return the seconds that the rounds of a complete run took; None for others."""
    if not outcome.complete or outcome.summary is None:
        return None
    return float(outcome.summary["wall_seconds"])
