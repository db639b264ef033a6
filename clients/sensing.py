"""The sensing client: a sparse client that moves weights from layer to layer while it trains.

Layers whose weights are larger get more. Before round 1 it does so on its own, and replies only how many
weights each layer then keeps; in a round, where it is asked to, it replies values under its new masks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from flwr.app import MetricRecord, RecordDict

from fedprune import seeds
from fedprune.client.base import ClientTask, FitResult
from fedprune.clients.sparse import Sparse, up_to
from fedprune.protocol.sensitivity import RECORD, MoveRequest, SensitivityRequest, kept_record
from fedprune.sparsity.redistribution import redistribute
from fedprune.training.execution import LocalModel
from fedprune.training.loop import Trained


class Sensing(Sparse):
    """Finds how much each layer should keep by training that moves weights (Babakniya et al., TMLR 2023)."""

    def fit(self, task: ClientTask) -> FitResult:
        """Train, and move weights between layers where the message asks for it."""
        request = MoveRequest.of(task.config)
        if request is None:
            return super().fit(task)
        epochs = self.scenario.clients.training.epochs
        parts = list(self.train_and_move(task, "batches", epochs, request.rate))
        model = parts[-1].model
        flops = sum(part.flops for part in parts) - self.site.cost.training_flops(
            model.masks, sum(part.trained.examples_seen for part in parts)
        )
        return replace(self.fitted(model, [part.trained for part in parts]), flops=flops)

    def query_sensitivity(self, content: RecordDict, state: RecordDict) -> RecordDict:
        """Answer with how many weights each layer keeps after training that moves them between layers."""
        task = self._receive(content, state)
        began = time.perf_counter()
        request, step = SensitivityRequest.of(task.config), self.begin_training(task)
        parts = list(self.train_and_move(task, "sensitivity", request.epochs, request.rate))
        metrics = MetricRecord(
            {
                "num-examples": len(self.data.train),
                "flops": sum(part.flops for part in parts),
                "peak-memory-bytes": max(
                    step.memory_of(part.model.masks.kept, self.batch).total for part in parts
                ),
                "train-seconds": time.perf_counter() - began,
            }
        )
        return RecordDict({RECORD: kept_record(parts[-1].model.masks), "metrics": metrics})

    def train_and_move(self, task: ClientTask, purpose: str, epochs: int, rate: float) -> Iterator[Part]:
        """Train for some epochs; after each but the last, or half-way through the only one, move weights.

        The share that moves falls linearly, from ``rate`` to 0 at the end. The optimizer starts anew after a
        move. What is yielded is each part of the training.
        """
        generator = seeds.torch_generator(self.scenario.seed, "move", task.round, self.number)
        steps, size = self.epochs(purpose, task.round, epochs), len(self.data.train)
        model = task.model
        moves = [epoch / epochs for epoch in range(1, epochs)] or [0.5]
        for progress in [*moves, 1.0]:
            trained = self.train_on(task, model, up_to(steps, size * epochs / (len(moves) + 1)))
            yield Part(model, trained, self.site.cost.training_flops(model.masks, trained.examples_seen))
            if progress < 1:
                kept = {name: model.kept(name) for name in model.masks}
                masks = redistribute(kept, model.masks, rate * (1 - progress), generator)
                codec = self.site.codec(masks)
                values = codec.taken_over(model.values(), self.site.codec(model.masks))
                model = self.model(masks, codec)
                model.load(values)


class Part(NamedTuple):
    """A part of the training, under one model's masks."""

    model: LocalModel
    trained: Trained
    flops: int
