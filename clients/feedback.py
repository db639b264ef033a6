"""The feedback client: it trains dense weights by the gradients of the pruned model.

FedDIP's local training (Long et al., ICDM 2023), which is dynamic pruning with feedback (Lin et al., ICLR
2020) and a norm in the loss: a forward and a backward pass see the pruned model, the step moves the dense
weights. So a pruned weight that should be large grows unseen, and can come back when the client prunes anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from flwr.app import ConfigRecord
from torch import nn

from fedprune.client.base import ClientTask, FitResult
from fedprune.client.dense import dense_copy, dense_copy_bytes, dense_copy_slots
from fedprune.clients.sparse import Sparse
from fedprune.costs.memory import Overhead
from fedprune.protocol.client_masks import PruneAnewRequest
from fedprune.protocol.messages import real
from fedprune.scenario import Scenario
from fedprune.sparsity.masks import Masks


class Feedback(Sparse):
    """Trains dense weights on the pruned model's gradients; replies them pruned."""

    executes_sparse = False

    @classmethod
    def overhead(cls, proximal_mu: float, options: Mapping[str, Any]) -> Overhead:
        """Return what a step needs besides: a dense copy, and the kept weights of the pruned one."""
        plain = super().overhead(proximal_mu, options)
        return replace(plain, slots=plain.slots + 1 + dense_copy_slots(options.get("density", 1.0)))

    @classmethod
    def overhead_of(cls, scenario: Scenario, config: ConfigRecord, masks: Masks) -> Overhead:
        """Return what a step needs besides: the same, to the byte."""
        plain = Sparse.overhead_of(scenario, config, masks)
        copies = dense_copy_bytes(scenario, masks) + 4 * sum(masks.kept.values())
        return replace(plain, buffers=plain.buffers + copies)

    def fit(self, task: ClientTask) -> FitResult:
        """Train with feedback; reply the weights under the masks, or under new ones where asked to."""
        model = dense_copy(self, task)
        feedback = ErrorFeedback(model.module, task.masks, real(task.config, "norm-strength"))
        trained = self.train_on(task, model, self.epochs("batches", task.round), feedback.register)
        feedback.finish()
        fit = self.fitted(model, [trained])
        anew = PruneAnewRequest.of(task.config)
        masks = anew.masks(model.codec.unflatten(fit.values), task.masks) if anew else task.masks
        dense = self.site.cost.dense_gradient_flops(task.masks, list(task.masks), trained.examples_seen)
        return replace(
            fit,
            values=self.site.codec(masks).taken_over(fit.values, self.site.codec(model.masks)),
            masks=masks,
            trained_under=task.masks,
            flops=dense,
        )


class ErrorFeedback:
    """Keeps dense weights beside a module whose weights are pruned whenever it computes.

    Parameters
    ----------
    module : nn.Module
        Its weights that have masks are pruned; gradients are those of all of them.
    masks : Masks
        What is kept.
    strength : float
        Factor of the sum of these pruned weights' 2-norms in the loss.
    """

    def __init__(self, module: nn.Module, masks: Masks, strength: float) -> None:
        self._weights = [(module.get_parameter(name), mask) for name, mask in masks.items()]
        self._strength = strength
        self._dense = [weight.detach().clone() for weight, _ in self._weights]

    def register(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the optimizer step on the dense weights."""
        optimizer.register_step_pre_hook(self._restore)
        optimizer.register_step_post_hook(self._prune)

    @torch.no_grad()
    def finish(self) -> None:
        """Leave the dense weights in the module."""
        for (weight, _), dense in zip(self._weights, self._dense, strict=True):
            weight.copy_(dense)

    @torch.no_grad()
    def _restore(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Add the norm's gradient, that of the pruned weights; then put the dense ones back."""
        for weight, _ in self._weights:
            if self._strength and weight.grad is not None and (norm := weight.norm()) > 0:
                weight.grad.add_(weight / norm, alpha=self._strength)
        self.finish()

    @torch.no_grad()
    def _prune(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for (weight, mask), dense in zip(self._weights, self._dense, strict=True):
            dense.copy_(weight)
            weight.masked_fill_(~mask.to(weight.device), 0)
