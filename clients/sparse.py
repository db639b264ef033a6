"""The sparse client: local training under a mask, and what pruning methods ask of it besides.

With empty masks it is the dense client of FedAvg. FedProx's term and a learning-rate schedule over
rounds are options of the scenario (``clients.training``). A training message may ask for the pruned
weights that should grow or for every weight's importance, and may let the client move its own mask;
queries ask for batch-norm statistics, for the loss of a candidate and for importance.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from fedprune import seeds
from fedprune.client.base import Client, ClientTask, FitResult, UnknownMaskError
from fedprune.costs.fit import TrainingStep
from fedprune.costs.memory import Overhead, forward_memory
from fedprune.data import batches, parts
from fedprune.errors import WireError
from fedprune.protocol.batch_norm import collect_statistics, put_statistics, statistics_record
from fedprune.protocol.client_masks import AdjustRequest, NextMasksRequest, TicketRequest
from fedprune.protocol.messages import arrays_of, config_of, text, whole
from fedprune.protocol.reports import GrowthRequest, ImportanceRequest, growth_record, importance_record
from fedprune.protocol.training_step import proximal_mu
from fedprune.scenario import Scenario
from fedprune.sparsity.distributions import global_
from fedprune.sparsity.growth import IMPORTANCE, largest_gradients, regrow
from fedprune.sparsity.masks import Masks
from fedprune.sparsity.pruning import prune_further
from fedprune.training.evaluation import score
from fedprune.training.execution import LocalModel
from fedprune.training.loop import Prepare, Trained, train
from fedprune.wire.values import MASK


class Sparse(Client):
    """Trains the kept weights on the client's own examples (SGD or Adam, FedProx's term)."""

    executes_sparse = True

    @classmethod
    def overhead(cls, proximal_mu: float, options: Mapping[str, Any]) -> Overhead:
        """Return what a step needs besides: FedProx's term the weights that training started from."""
        return Overhead(slots=int(proximal_mu > 0))

    @classmethod
    def overhead_of(cls, scenario: Scenario, config: ConfigRecord, masks: Masks) -> Overhead:
        """Return what a step needs besides, and the buffers of what the message asks for."""
        return replace(super().overhead_of(scenario, config, masks), buffers=buffers(config, masks))

    def train(self, content: RecordDict, state: RecordDict) -> RecordDict:
        """Train, and drop the candidate of an earlier query."""
        state.pop("candidate", None)
        return super().train(content, state)

    def fit(self, task: ClientTask) -> FitResult:
        """Train for ``clients.training.epochs`` epochs; see McMahan et al. 2017, algorithm 1."""
        if adjust := AdjustRequest.of(task.config):
            return self.fit_and_adjust(task, adjust)
        if ticket := TicketRequest.of(task.config):
            return self.fit_ticket(task, ticket)
        fit = self.fit_in(task, task.model)
        if growth := GrowthRequest.of(task.config, task.masks):
            return self.with_growth(fit, task, growth)
        if importance := ImportanceRequest.of(task.config):
            return self.with_importance(fit, task, importance)
        if next_masks := NextMasksRequest.of(task.config):
            return self.with_next_masks(fit, task, next_masks)
        return fit

    def fit_in(self, task: ClientTask, model: LocalModel) -> FitResult:
        """Train a model for a round's local epochs, from the values that it holds."""
        return self.fitted(model, [self.train_on(task, model, self.epochs("batches", task.round))])

    def train_on(
        self,
        task: ClientTask,
        model: LocalModel,
        steps: Iterable[tuple[Tensor, Tensor]],
        prepare: Prepare | None = None,
    ) -> Trained:
        """Take a step on each batch as the scenario says; ``prepare`` may hook into steps, see `train`."""
        return train(
            model.module,
            steps,
            self.site.task,
            self.scenario.clients.training.optimizer,
            lr=self.learning_rate(task.round),
            masks=model.held,
            proximal_mu=proximal_mu(self.scenario, task.config),
            prepare=prepare,
            micro_batch=self.batch,
        )

    def fitted(self, model: LocalModel, trained: Sequence[Trained]) -> FitResult:
        """Return what is in a model after training in one or several parts."""
        seen = sum(part.examples_seen for part in trained)
        loss = sum(part.loss * part.examples_seen for part in trained)
        return FitResult(
            values=model.values(),
            masks=model.masks,
            loss=loss / max(seen, 1) if len(trained) > 1 else trained[0].loss,
            examples_seen=seen,
        )

    def fit_and_adjust(self, task: ClientTask, request: AdjustRequest) -> FitResult:
        """Train, swap a share of each layer's weights as RigL does, and train on under the new masks.

        A weight that grew starts at 0, where pruned weights are. The optimizer, and FedProx's term,
        start anew at the swap. Of the layers' dense gradients one is held at a time, of a layer that is
        executed sparse a part of it.
        """
        model = task.model
        steps = self.epochs("batches", task.round)
        before = request.after * self.scenario.clients.training.epochs * len(self.data.train)
        first = self.train_on(task, model, up_to(steps, before))
        masks, flops = self.swapped(task, request.share, request.batches)
        values = model.values()
        codec = self.site.codec(masks)
        grown = self.model(masks, codec)
        grown.load(codec.taken_over(values, self.site.codec(task.masks)))
        second = self.train_on(task, grown, steps)
        return replace(self.fitted(grown, [first, second]), flops=flops)

    def swapped(self, task: ClientTask, share: float, count: int) -> tuple[Masks, int]:
        """Return the task's masks after RigL's swap of a share of each layer's weights, and its FLOPs.

        Gradients are judged on ``count`` batches, weights as they are in the task's model.
        """
        picked = self.growth_parts(task.round, count)
        examples = sum(len(y) for _, y in picked)
        swapped, kept = {}, task.masks.kept
        for name, mask in task.masks.items():
            module = task.model.module
            largest = partial(largest_gradients, module, name, picked, loss=self.site.task.loss)
            swapped[name] = regrow(task.model.kept(name), mask, math.floor(share * kept[name]), largest)
        return Masks(swapped), self.gradient_flops(task.masks, list(swapped), examples)

    def with_next_masks(self, fit: FitResult, task: ClientTask, request: NextMasksRequest) -> FitResult:
        """Add the masks under which this client takes part from now on, by a swap after training."""
        masks, flops = self.swapped(task, request.share, request.batches)
        return replace(fit, next_masks=masks, flops=flops)

    def fit_ticket(self, task: ClientTask, request: TicketRequest) -> FitResult:
        """Prune and rewind where the model is accurate enough on the held-out examples; then train.

        Pruning is by magnitude over the whole model; rewound is everything, to the initial state.
        """
        model, masks = task.model, task.masks
        size = self.fitting_forward(task.masks, self.whole_batch)
        found = self.held_out_score(model, size).values(self.site.task.metrics)
        accuracy = found.get("accuracy") or 0.0
        density = request.next_density(masks)
        if accuracy >= request.accuracy and density < masks.density:
            masks = prune_further(task.codec.unflatten(task.values), masks, global_, density)
        if masks != task.masks:
            codec = self.site.codec(masks)
            model = self.model(masks, codec)
            model.load(codec.flatten(self.site.travelling.select(self.site.initial)))
        fit = self.fit_in(task, model)
        return replace(fit, flops=self.site.cost.forward_flops(task.masks, len(self.data.test)))

    def with_importance(self, fit: FitResult, task: ClientTask, request: ImportanceRequest) -> FitResult:
        """Add the importance of every weight that has a mask, after training."""
        found, flops = self.importance(task, request)
        return replace(
            fit,
            extra=RecordDict({"importance": importance_record(found)}),
            flops=flops,
        )

    def importance(self, task: ClientTask, request: ImportanceRequest) -> tuple[dict[str, Tensor], int]:
        """Return the importance of every weight that has a mask, and the FLOPs it took.

        One layer's gradient is held at a time, besides the result.
        """
        module, masks = task.model.module, task.masks
        picked = [parts(x, y, self.batch) for x, y in self.growth_batches(task.round, request.batches)]
        found = {
            name: IMPORTANCE[request.measure](module, name, picked, self.site.task.loss).cpu()
            for name in masks
        }
        examples = sum(len(y) for batch in picked for _, y in batch)
        return found, self.gradient_flops(masks, list(masks), examples)

    def gradient_flops(self, masks: Masks, names: Sequence[str], examples: int) -> int:
        """Return the FLOPs of these layers' dense gradients over some examples, one layer at a time."""
        cost = self.site.cost
        dense = cost.dense_gradient_flops(masks, names, examples)
        return len(names) * cost.training_flops(masks, examples) + dense

    def query_importance(self, content: RecordDict, state: RecordDict) -> RecordDict:
        """Answer with the importance of every weight that has a mask, on the model as it was sent."""
        task = self._receive(content, state)
        began = time.perf_counter()
        torch.manual_seed(seeds.derive(self.scenario.seed, "importance", task.round, self.number))
        request = ImportanceRequest.of(task.config)
        if request is None:
            raise WireError("the message does not say how to measure importance")
        step = TrainingStep(self.site.cost, overhead=Overhead(buffers=buffers(task.config, task.masks)))
        self.batch = self.fitting_batch(step, task.masks)
        found, flops = self.importance(task, request)
        memory = step.memory_of(task.masks.kept, self.batch)
        metrics = MetricRecord(
            {
                "num-examples": len(self.data.train),
                "flops": flops,
                "peak-memory-bytes": memory.total,
                "train-seconds": time.perf_counter() - began,
            }
        )
        return RecordDict({"importance": importance_record(found), "metrics": metrics})

    def with_growth(self, fit: FitResult, task: ClientTask, request: GrowthRequest) -> FitResult:
        """Add the largest gradients of pruned weights, layer by layer, after training.

        At any time one layer's gradient is held, of one that is executed sparse a part of it, besides the
        entries that are replied.
        """
        picked = self.growth_parts(task.round, request.batches)
        examples = sum(len(y) for _, y in picked)
        found = [
            largest_gradients(task.model.module, name, picked, task.masks[name], count, self.site.task.loss)
            for name, count in request.counts.items()
        ]
        return replace(
            fit,
            extra=RecordDict({"growth": growth_record(found, request.values)}),
            flops=self.gradient_flops(task.masks, list(request.counts), examples),
        )

    def growth_batches(self, server_round: int, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield up to ``count`` batches on which growth is judged, without augmentation."""
        generator = seeds.torch_generator(self.scenario.seed, "growth", server_round, self.number)
        size = self.scenario.clients.training.batch_size
        device = self.site.device
        shuffled = batches(self.data.examples, self.data.train, self.site.task, size, generator=generator)
        for x, y in islice(shuffled, count):
            yield x.to(device), y.to(device)

    def growth_parts(self, server_round: int, count: int) -> list[tuple[Tensor, Tensor]]:
        """Return the batches on which growth is judged, in parts that go through the model at once."""
        return [part for x, y in self.growth_batches(server_round, count) for part in parts(x, y, self.batch)]

    def query_bn_statistics(self, content: RecordDict, state: RecordDict) -> RecordDict:
        """Answer with the statistics of every batch norm under a candidate, over own examples.

        Forward passes only. The candidate is kept until the next message that trains.
        """
        state.pop("candidate", None)
        task = self._receive(content, state)
        began = time.perf_counter()
        torch.manual_seed(seeds.derive(self.scenario.seed, "statistics", self.number))
        indices = self.calibration_examples(whole(task.config, "examples", least=1))
        at_once = self.forward_batch(task.masks, min(self.whole_batch, len(indices)))
        pieces = even_parts(indices, at_once)
        longest = len(pieces[0])  # May be one more than was asked for.
        self.refuse_over(
            forward_memory(self.site.cost, task.masks, longest).total, f"{longest} examples forward"
        )
        examples, site = self.data.examples, self.site
        inputs = (
            x.to(site.device) for piece in pieces for x, _ in batches(examples, piece, site.task, len(piece))
        )
        statistics = collect_statistics(task.model.module, inputs, task.masks)
        values = {key: array for key, array in arrays_of(content).items() if key != MASK}
        state["candidate"] = ArrayRecord(values)
        metrics = self._forward_metrics(task, len(indices), len(pieces[0]), began)
        return RecordDict({"statistics": statistics_record(statistics), "metrics": metrics})

    def query_loss(self, content: RecordDict, state: RecordDict) -> RecordDict:
        """Answer with the loss of the candidate that the last query left, under given statistics."""
        version = text(config_of(content), "mask-version")
        candidate = state.array_records.get("candidate")
        if candidate is None:
            raise UnknownMaskError(f"client {self.number} holds no candidate, the message names {version}")
        task = self._receive(RecordDict({"arrays": candidate, "config": config_of(content)}), state)
        began = time.perf_counter()
        put_statistics(task.model.module, content.array_records.get("statistics"), task.masks)
        # In batches of training's size: a forward pass then needs less memory than a training step.
        examples, size = len(self.data.train), self.fitting_forward(task.masks, self.whole_batch)
        module, data = task.model.module, self.data
        result = score(module, data.examples, data.train, self.site.task, batch_size=size)
        metrics = self._forward_metrics(task, examples, size, began)
        metrics["loss"] = result.loss
        return RecordDict({"metrics": metrics})

    def calibration_examples(self, count: int) -> np.ndarray:
        """Return up to ``count`` of the own training examples, the same ones each time."""
        own = self.data.train
        if count >= len(own):
            return own
        generator = seeds.numpy_generator(self.scenario.seed, "calibration", self.number)
        return np.sort(generator.choice(own, count, replace=False))

    def forward_batch(self, masks: Masks, batch: int) -> int:
        """Return how many examples go through the model at once where batch norm sees what does.

        All, unless ``clients.over_budget`` allows smaller batches.
        """
        if self.scenario.clients.over_budget == "shrink_batch":
            return self.fitting_forward(masks, batch)
        self.refuse_over(forward_memory(self.site.cost, masks, batch).total, f"{batch} examples forward")
        return batch

    def _forward_metrics(self, task: ClientTask, examples: int, batch: int, began: float) -> MetricRecord:
        return MetricRecord(
            {
                "num-examples": examples,
                "flops": self.site.cost.forward_flops(task.masks, examples),
                "peak-memory-bytes": forward_memory(self.site.cost, task.masks, batch).total,
                "train-seconds": time.perf_counter() - began,
            }
        )


def buffers(config: ConfigRecord, masks: Masks) -> int:
    """Return the bytes of what a message asks a client to find besides training.

    Of growth the entries that are replied, eight bytes each; of importance a float32 for each weight that
    has a mask; of an adjustment of the client's own the gradient of the largest layer.
    """
    if ImportanceRequest.of(config):
        return 4 * masks.total
    if AdjustRequest.of(config) or NextMasksRequest.of(config):
        return 4 * max((mask.numel() for mask in masks.values()), default=0)
    growth = GrowthRequest.of(config, masks)
    asked = growth.counts if growth else {}
    return 8 * sum(min(count, masks[name].numel() - masks.kept[name]) for name, count in asked.items())


def up_to(steps: Iterable[tuple[Tensor, Tensor]], examples: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches until they have that many examples; the others stay in ``steps``."""
    seen = 0
    for x, y in steps:
        seen += len(y)
        yield x, y
        if seen >= examples:
            return


def even_parts(indices: np.ndarray, size: int) -> list[np.ndarray]:
    """Cut indices into parts of about equal length, at most ``size``, none of one example alone.

    Batch norm in training mode can't take one value per channel, and statistics are to be over all
    examples. So a part is longer than ``size``, by one, where that can't be helped.
    """
    count = min(-(-len(indices) // size), max(len(indices) // 2, 1))
    return np.array_split(indices, count)
