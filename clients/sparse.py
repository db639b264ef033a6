"""The sparse client: local training under a mask, and what pruning methods ask of it besides.

With empty masks it is the dense client of FedAvg. FedProx's term and a learning-rate schedule over
rounds are options of the scenario (``clients.training``). A training message may ask for the pruned
weights that should grow; queries ask for batch-norm statistics and for the loss of a candidate.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from torch import Tensor

from fedprune import seeds
from fedprune.batch_norm import collect_statistics, put_statistics, statistics_record
from fedprune.client import Client, Fit, Order, UnknownMaskError
from fedprune.costs.memory import forward_memory
from fedprune.data import batches
from fedprune.evaluation import score
from fedprune.messages import config_of, real, text, whole
from fedprune.reports import GrowthRequest, growth_record
from fedprune.sparsity.growth import largest_pruned, layer_gradient
from fedprune.sparsity.schedules import SCHEDULES
from fedprune.training import train
from fedprune.wire import get_state


class Sparse(Client):
    """Trains the kept weights on the client's own examples (SGD or Adam, FedProx's term)."""

    def train(self, content: RecordDict, state: RecordDict) -> RecordDict:
        """Train, and let go of the candidate of an earlier query."""
        state.pop("candidate", None)
        return super().train(content, state)

    def fit(self, order: Order) -> Fit:
        """Train for ``clients.training.epochs`` epochs; see McMahan et al. 2017, algorithm 1."""
        module, mu = self.site.module, self.proximal_mu(order)
        trained = train(
            module,
            self.epochs("batches", order.round),
            self.scenario.clients.training.optimizer,
            lr=self.learning_rate(order.round),
            masks=order.masks,
            proximal_mu=mu,
        )
        fit = Fit(
            values=order.codec.flatten(get_state(module)),
            masks=order.masks,
            loss=trained.loss,
            examples_seen=trained.examples_seen,
            extra_slots=int(mu > 0),
        )
        request = GrowthRequest.of(order.config, order.masks)
        return self.with_growth(fit, order, request) if request else fit

    def epochs(self, purpose: str, server_round: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the shuffled batches of a round's local epochs."""
        training = self.scenario.clients.training
        generator = seeds.torch_generator(self.scenario.seed, purpose, server_round, self.number)
        for _ in range(training.epochs):
            yield from batches(
                self.data.pictures,
                self.data.train,
                self.site.data.info,
                training.batch_size,
                generator=generator,
                augment=self.scenario.data.augment,
            )

    def with_growth(self, fit: Fit, order: Order, request: GrowthRequest) -> Fit:
        """Add the largest gradients of pruned weights, layer by layer, after training.

        At any time one layer's gradient is held, besides the entries that are replied.
        """
        found, examples = [], 0
        for name, count in request.counts.items():
            picked = list(self.growth_batches(order.round, request.batches))
            gradient = layer_gradient(self.site.module, name, picked)
            found.append(largest_pruned(gradient, order.masks[name].to(gradient.device), count))
            examples = sum(len(y) for _, y in picked)
        names, cost = list(request.counts), self.site.cost
        flops = len(names) * cost.training_flops(order.masks, examples)
        flops += cost.dense_gradient_flops(order.masks, names, examples)
        record = growth_record(found)
        return Fit(
            values=fit.values,
            masks=fit.masks,
            loss=fit.loss,
            examples_seen=fit.examples_seen,
            extra_slots=fit.extra_slots,
            extra=RecordDict({"growth": record}),
            buffer_bytes=8 * sum(len(indices) for indices, _ in found),
            flops=flops,
        )

    def growth_batches(self, server_round: int, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches on which growth is judged: the same ones for every layer."""
        generator = seeds.torch_generator(self.scenario.seed, "growth", server_round, self.number)
        size = self.scenario.clients.training.batch_size
        device = self.site.device
        shuffled = batches(
            self.data.pictures, self.data.train, self.site.data.info, size, generator=generator
        )
        for (x, y), _ in zip(shuffled, range(count), strict=False):
            yield x.to(device), y.to(device)

    def query_bn_statistics(self, content: RecordDict, state: RecordDict) -> RecordDict:
        """Answer with the statistics of every batch norm under a candidate, over own examples.

        Forward passes only. The candidate is kept until the next message that trains.
        """
        order = self._receive(content, state)
        began = time.perf_counter()
        indices = self.calibration_examples(whole(order.config, "examples", least=1))
        size = self.scenario.clients.training.batch_size
        statistics = collect_statistics(
            self.site.module,
            (
                x.to(self.site.device)
                for x, _ in batches(self.data.pictures, indices, self.site.data.info, size)
            ),
        )
        state["candidate"] = ArrayRecord({"values": content.array_records["arrays"]["values"]})
        reply = RecordDict({"statistics": statistics_record(statistics)})
        reply["metrics"] = self._forward_metrics(order, len(indices), began)
        return reply

    def query_loss(self, content: RecordDict, state: RecordDict) -> RecordDict:
        """Answer with the loss of the candidate that the last query left, under given statistics."""
        version = text(config_of(content), "mask-version")
        candidate = state.array_records.get("candidate")
        if candidate is None:
            raise UnknownMaskError(f"client {self.number} holds no candidate, the message names {version}")
        order = self._receive(RecordDict({"arrays": candidate, "config": config_of(content)}), state)
        began = time.perf_counter()
        put_statistics(self.site.module, content.array_records["statistics"])
        result = score(
            self.site.module,
            self.data.pictures,
            self.data.train,
            self.site.data.info,
            batch_size=self.scenario.evaluation.batch_size,
        )
        metrics = self._forward_metrics(order, len(self.data.train), began)
        metrics["loss"] = result.loss
        return RecordDict({"metrics": metrics})

    def calibration_examples(self, count: int) -> np.ndarray:
        """Return up to ``count`` of the own training examples, the same ones each time."""
        own = self.data.train
        if count >= len(own):
            return own
        generator = seeds.numpy_generator(self.scenario.seed, "calibration", self.number)
        return np.sort(generator.choice(own, count, replace=False))

    def _forward_metrics(self, order: Order, examples: int, began: float) -> MetricRecord:
        batch = min(self.scenario.clients.training.batch_size, examples)
        return MetricRecord(
            {
                "num-examples": examples,
                "flops": self.site.cost.forward_flops(order.masks, examples),
                "peak-memory-bytes": forward_memory(self.site.cost, order.masks, batch).total,
                "train-seconds": time.perf_counter() - began,
            }
        )

    def proximal_mu(self, order: Order) -> float:
        """Return the weight of FedProx's term: the message's (Flower's FedProx has one) or the scenario's."""
        if "proximal-mu" in order.config:
            return real(order.config, "proximal-mu")
        return self.scenario.clients.training.proximal_mu

    def learning_rate(self, server_round: int) -> float:
        """Return the learning rate of a round by the schedule over rounds."""
        training, rounds = self.scenario.clients.training, self.scenario.rounds
        start = training.optimizer.lr
        progress = (server_round - 1) / rounds  # Below 1, or a schedule that ends at 0 wastes a round.
        return SCHEDULES[training.schedule.name](progress, start, start * training.schedule.end_factor)
