"""The extruding client: FedMef's local training under masks (Huang et al., CVPR 2024).

A sparse client that, where the message asks for it, keeps pruned activations for the backward pass,
keeps the filters of convolutions centred, and drives the weights that are about to be dropped towards
zero. What it is asked for it does in all of the round's training, the growth report included.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from flwr.app import ConfigRecord
from torch import Tensor

from fedprune.client.base import ClientTask, FitResult
from fedprune.client.extrusion import Extrusion
from fedprune.clients.sparse import Sparse
from fedprune.costs.memory import Overhead
from fedprune.protocol.extrusion import ExtrusionRequest
from fedprune.protocol.messages import real
from fedprune.scenario import Scenario
from fedprune.sparsity.activations import sparse_activations
from fedprune.sparsity.masks import Masks
from fedprune.sparsity.standardisation import centre
from fedprune.training.execution import LocalModel
from fedprune.training.loop import Prepare, Trained


class Extruding(Sparse):
    """Trains with pruned activations and centred filters, and extrudes what is about to be dropped."""

    executes_sparse = False  # It prunes what dense layers save, and centres dense filters.

    @classmethod
    def overhead(cls, proximal_mu: float, options: Mapping[str, Any]) -> Overhead:
        """Return what a step needs besides; pruned activations need less."""
        density = options.get("activation_density", 1.0)
        return replace(super().overhead(proximal_mu, options), activation_density=density)

    @classmethod
    def overhead_of(cls, scenario: Scenario, config: ConfigRecord, masks: Masks) -> Overhead:
        """Return what a step needs besides: also the marked weights, a position of four bytes each."""
        sparse = super().overhead_of(scenario, config, masks)
        marked = ExtrusionRequest.of(config, masks)
        positions = 4 * sum(marked.counts.values()) if marked else 0
        return replace(
            sparse,
            activation_density=real(config, "activation-density"),
            buffers=sparse.buffers + positions,
        )

    def fit(self, task: ClientTask) -> FitResult:
        """Train as the sparse client does, with pruned activations."""
        with sparse_activations(real(task.config, "activation-density")):
            return super().fit(task)

    def train_on(
        self,
        task: ClientTask,
        model: LocalModel,
        steps: Iterable[tuple[Tensor, Tensor]],
        prepare: Prepare | None = None,
    ) -> Trained:
        """Take a step on each batch, each with what the message asks for."""
        module, masks, extrusion = model.module, model.masks, None
        if request := ExtrusionRequest.of(task.config, masks):
            examples = self.scenario.clients.training.epochs * len(self.data.train)
            extrusion = Extrusion(module, request, masks, examples)
            steps = extrusion.counted(steps)

        def recentre(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            centre(module, masks)

        def register(optimizer: torch.optim.Optimizer) -> None:
            if extrusion is not None:
                extrusion.register(optimizer)
            if task.config.get("standardise", False):
                optimizer.register_step_post_hook(recentre)

        return super().train_on(task, model, steps, register)
