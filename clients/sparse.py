"""Training under a mask: local SGD or Adam in which pruned weights stay exactly zero.

With empty masks this is the dense client of FedAvg. FedProx's proximal term and a learning-rate
schedule over rounds are options of the scenario (``clients.training``).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedprune import seeds
from fedprune.client import Client, Fit, Order
from fedprune.data import batches
from fedprune.messages import real
from fedprune.scenario import OptimizerSpec
from fedprune.sparsity.schedules import SCHEDULES
from fedprune.sparsity.training import hold
from fedprune.wire import get_state


class Sparse(Client):
    """Trains the kept weights on the client's own examples (SGD or Adam, FedProx's term)."""

    def fit(self, order: Order) -> Fit:
        """Train for ``clients.training.epochs`` epochs; see McMahan et al. 2017, algorithm 1."""
        module, training = self.site.module, self.scenario.clients.training
        module.train()
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        optimizer = make_optimizer(parameters, training.optimizer, self.learning_rate(order.round))
        mu = self.proximal_mu(order)
        anchor = [p.detach().clone() for p in parameters] if mu > 0 else None
        generator = seeds.torch_generator(self.scenario.seed, "batches", order.round, self.number)
        total, seen = torch.zeros((), dtype=torch.float64), 0
        with hold(module, order.masks):
            for _ in range(training.epochs):
                for x, y in batches(
                    self.data.pictures,
                    self.data.train,
                    self.site.data.info,
                    training.batch_size,
                    generator=generator,
                    augment=self.scenario.data.augment,
                ):
                    x, y = x.to(self.site.device), y.to(self.site.device)
                    optimizer.zero_grad(set_to_none=True)
                    loss = functional.cross_entropy(module(x), y)
                    loss.backward()  # type: ignore[no-untyped-call]
                    if anchor is not None:
                        add_proximal_gradient(parameters, anchor, mu)
                    optimizer.step()
                    total += loss.detach().double().cpu() * len(y)
                    seen += len(y)
        values = order.codec.flatten(get_state(module))
        return Fit(
            values=values,
            masks=order.masks,
            loss=float(total / seen),
            examples_seen=seen,
            extra_slots=int(anchor is not None),
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
