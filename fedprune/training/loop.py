"""Local training: the one loop in which clients, and a server that pretrains, take their steps.

Plain SGD or Adam on batches under masks, with FedProx's proximal term where asked. What is trained,
on which batches and for how long is for the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedprune.data import parts
from fedprune.scenario import OptimizerSpec, Scenario
from fedprune.sparsity.frozen import training_mode
from fedprune.sparsity.masks import Masks
from fedprune.sparsity.schedules import SCHEDULES
from fedprune.sparsity.training import hold
from fedprune.tasks import Task

Batches = Iterable[tuple[Tensor, Tensor]]
Prepare = Callable[[torch.optim.Optimizer], None]


@dataclass(frozen=True)
class Trained:
    """Mean loss over all examples seen, and how many those were, repetitions included."""

    loss: float
    examples_seen: int


def train(
    module: nn.Module,
    batches: Batches,
    task: Task,
    spec: OptimizerSpec,
    *,
    lr: float,
    masks: Masks,
    proximal_mu: float = 0.0,
    prepare: Prepare | None = None,
    micro_batch: int | None = None,
) -> Trained:
    """Take one optimizer step on the task's loss for each batch; pruned weights stay exactly 0.

    Parameters
    ----------
    module : nn.Module
        Trained in place, in training mode.
    batches : Iterable
        (x, y), as the task makes them; moved to the module's device.
    task : Task
        What is learnt.
    spec : OptimizerSpec
        The optimizer; its state starts empty.
    lr : float
        Learning rate, in place of the spec's.
    masks : Masks
        What is kept.
    proximal_mu : float
        Weight of mu/2 * |w - w_start|^2 (Li et al., MLSys 2020, equation 2).
    prepare : Callable, optional
        Called with the optimizer before the first step; it may register hooks on steps.
    micro_batch : int, optional
        Most examples that go through the model at once: a larger batch goes in parts, whose gradients are
        added up. But for batch norm, which sees a part alone, a step is the same up to rounding.
    """
    training_mode(module)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    device = parameters[0].device
    optimizer = make_optimizer(parameters, spec, lr)
    if prepare is not None:
        prepare(optimizer)
    total, seen = torch.zeros((), dtype=torch.float64), 0
    with hold(module, masks):
        # Inside: a pruned weight is 0 by now, or the term would pull it back to what it was.
        anchor = [p.detach().clone() for p in parameters] if proximal_mu > 0 else None
        for x, y in batches:
            optimizer.zero_grad(set_to_none=True)
            pieces = parts(x, y, micro_batch)
            for part_x, part_y in pieces:
                part_x, part_y = part_x.to(device), part_y.to(device)
                loss = task.loss(module(part_x), part_y, part_x)
                if len(pieces) > 1:
                    loss = loss * (len(part_y) / len(y))
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.detach().double().cpu() * len(y)
            if anchor is not None:
                add_proximal_gradient(parameters, anchor, proximal_mu)
            optimizer.step()
            seen += len(y)
    return Trained(float(total / max(seen, 1)), seen)


def learning_rate(scenario: Scenario, server_round: int) -> float:
    """Return the learning rate of a round, from 1, by the scenario's schedule over rounds."""
    training = scenario.clients.training
    start = training.optimizer.lr
    progress = (server_round - 1) / scenario.rounds  # Below 1, or a schedule that ends at 0 wastes a round.
    return SCHEDULES[training.schedule.name](progress, start, start * training.schedule.end_factor)


def make_optimizer(parameters: list[nn.Parameter], spec: OptimizerSpec, lr: float) -> torch.optim.Optimizer:
    """Build PyTorch's SGD or Adam as the scenario asks."""
    if spec.name == "adam":
        return torch.optim.Adam(
            parameters, lr=lr, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay, foreach=True
        )
    return torch.optim.SGD(
        parameters,
        lr=lr,
        momentum=spec.momentum,
        weight_decay=spec.weight_decay,
        nesterov=spec.nesterov,
        foreach=True,
    )


def add_proximal_gradient(parameters: list[nn.Parameter], anchor: list[Tensor], mu: float) -> None:
    """Add the gradient of mu/2 * |w - w_global|^2 (Li et al., MLSys 2020, equation 2).

    A pruned weight is 0 on both sides, so its gradient stays 0.
    """
    pairs = [(p, a) for p, a in zip(parameters, anchor, strict=True) if p.grad is not None]
    with torch.no_grad():
        gradients = [p.grad for p, _ in pairs if p.grad is not None]
        drift = torch._foreach_sub([p.detach() for p, _ in pairs], [a for _, a in pairs])
        torch._foreach_add_(gradients, drift, alpha=mu)
