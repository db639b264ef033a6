"""The complement client: it trains the whole model, and replies what the server has pruned of it.

Complement Sparsification's local training (Jiang and Borcea, AAAI 2023). The reply is the pruned weights,
trained from 0, and what is never pruned; the server has the kept ones, as they were sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flwr.app import ConfigRecord

from fedprune.client.base import ClientTask, FitResult
from fedprune.client.dense import dense_copy, dense_copy_bytes, dense_copy_slots
from fedprune.clients.sparse import Sparse
from fedprune.costs.memory import Overhead
from fedprune.protocol.client_masks import ComplementRequest
from fedprune.scenario import Scenario
from fedprune.sparsity.masks import Masks
from fedprune.tasks import Score


class Complement(Sparse):
    """Trains a dense copy of what it is sent; replies the complement of the masks where it is asked to."""

    executes_sparse = False

    @classmethod
    def overhead(cls, proximal_mu: float, options: Mapping[str, Any]) -> Overhead:
        """Return what a step needs besides: a dense copy."""
        plain = super().overhead(proximal_mu, options)
        return replace(plain, slots=plain.slots + dense_copy_slots(options.get("density", 1.0)))

    @classmethod
    def overhead_of(cls, scenario: Scenario, config: ConfigRecord, masks: Masks) -> Overhead:
        """Return what a step needs besides: a dense copy, to the byte."""
        plain = Sparse.overhead_of(scenario, config, masks)
        return replace(plain, buffers=plain.buffers + dense_copy_bytes(scenario, masks))

    def fit(self, task: ClientTask) -> FitResult:
        """Train all weights, from those that were sent and 0 for the others."""
        if not ComplementRequest.of(task.config):
            return super().fit(task)
        self.whole = model = dense_copy(self, task)
        fit, cost = self.fit_in(task, model), self.site.cost
        masks = Masks({name: ~mask for name, mask in task.masks.items()})
        seen = fit.examples_seen
        return replace(
            fit,
            values=self.site.codec(masks).taken_over(fit.values, self.site.codec(model.masks)),
            masks=masks,
            trained_under=task.masks,
            flops=cost.training_flops(model.masks, seen) - cost.training_flops(task.masks, seen),
        )

    def personal_score(self, task: ClientTask, fit: FitResult) -> Score | None:
        """Score all that was trained, not its complement alone."""
        if fit.masks == task.masks:
            return super().personal_score(task, fit)
        return self.held_out_score(self.whole, self.scenario.evaluation.batch_size)
