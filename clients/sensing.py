"""The sensing client: a sparse client that finds out, before round 1, how sensitive its layers are.

It trains on its own for some epochs, and after each of them moves weights from layer to layer: those whose
weights are larger get more. What it replies is how many weights each layer then keeps.
"""

from __future__ import annotations

import time

from flwr.app import MetricRecord, RecordDict

from fedprune import seeds
from fedprune.clients.sparse import Sparse, up_to
from fedprune.protocol.sensitivity import RECORD, SensitivityRequest, kept_record
from fedprune.sparsity.redistribution import redistribute


class Sensing(Sparse):
    """Answers a query for the sensitivity of layers (FLASH; Babakniya et al., TMLR 2023)."""

    def query_sensitivity(self, content: RecordDict, state: RecordDict) -> RecordDict:
        """Answer with how many weights each layer keeps after training that moves them between layers."""
        task = self._receive(content, state)
        began = time.perf_counter()
        request, step = SensitivityRequest.of(task.config), self.begin_training(task)
        generator = seeds.torch_generator(self.scenario.seed, "redistribute", task.round, self.number)
        steps = self.epochs("sensitivity", task.round, request.epochs)
        model, flops, memory = task.model, 0, 0
        for epoch in range(1, request.epochs + 1):
            seen = self.train_on(task, model, up_to(steps, len(self.data.train))).examples_seen
            flops += self.site.cost.training_flops(model.masks, seen)
            memory = max(memory, step.memory_of(model.masks.kept, self.batch).total)
            if (rate := request.rate_after(epoch)) > 0:
                before = model
                kept = {name: before.kept(name) for name in before.masks}
                masks = redistribute(kept, before.masks, rate, generator)
                codec = self.site.codec(masks)
                values = codec.taken_over(before.values(), self.site.codec(before.masks))
                model = self.model(masks, codec)
                model.load(values)
        metrics = MetricRecord(
            {
                "num-examples": len(self.data.train),
                "flops": flops,
                "peak-memory-bytes": memory,
                "train-seconds": time.perf_counter() - began,
            }
        )
        return RecordDict({RECORD: kept_record(model.masks), "metrics": metrics})
