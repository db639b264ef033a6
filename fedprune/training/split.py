"""The server's part in split training: the body of a model, run forward and backward for one client.

Head and tail are the client's (`fedprune.client.split`). Here is the same code wherever the body runs: on the
server of real devices or, in a simulation, beside the client in one process.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from fedprune import seeds
from fedprune.scenario import OptimizerSpec, Scenario
from fedprune.sparsity.frozen import training_mode
from fedprune.training.loop import learning_rate, make_optimizer


class Body:
    """A body at work for one client in one round.

    Between ``forward`` and ``backward`` it holds the activations of one batch, at no other time.

    Parameters
    ----------
    module : nn.Module
        The body; its values change where it is trained.
    spec : OptimizerSpec
        The optimizer; its state starts empty.
    lr : float
        Learning rate, in place of the spec's.
    returns_gradient : bool
        Whether the client wants the gradient at the body's input.
    seed : int
        Of draws in the body, such as dropout's: a step draws the same wherever it runs.
    """

    def __init__(
        self, module: nn.Module, spec: OptimizerSpec, *, lr: float, returns_gradient: bool, seed: int
    ) -> None:
        self.module = training_mode(module)
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.trains = bool(parameters)
        self._optimizer = make_optimizer(parameters, spec, lr) if parameters else None
        self._returns_gradient = returns_gradient
        self._seed = seed
        self._steps = 0
        self._held: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(
        cls,
        module: nn.Module,
        scenario: Scenario,
        *,
        server_round: int,
        client: int,
        returns_gradient: bool,
    ) -> Self:
        """Return the body that works for a client, by its number, in a round."""
        return cls(
            module,
            scenario.clients.training.optimizer,
            lr=learning_rate(scenario, server_round),
            returns_gradient=returns_gradient,
            seed=seeds.derive(scenario.seed, "split", server_round, client),
        )

    @property
    def wants_gradient(self) -> bool:
        """Whether ``forward`` has run, and ``backward`` is to follow."""
        return self._held is not None

    def forward(self, smashed: Tensor) -> Tensor:
        """Return what the body makes of a client's activations, (B, ...)."""
        smashed = smashed.detach().requires_grad_(self._returns_gradient)
        backward = self.trains or self._returns_gradient
        torch.manual_seed(seeds.derive(self._seed, "body", self._steps))
        self._steps += 1
        with torch.set_grad_enabled(backward):
            # A stage may work in place, which no leaf of autograd's allows: it is given a copy.
            outputs: Tensor = self.module(smashed.clone() if self._returns_gradient else smashed)
        self._held = (smashed, outputs) if backward else None
        return outputs.detach()

    def backward(self, gradient: Tensor) -> Tensor | None:
        """Take a step by the gradient at the outputs; return that at the inputs, where it is wanted."""
        assert self._held is not None
        smashed, outputs = self._held
        self._held = None
        if self._optimizer is not None:
            self._optimizer.zero_grad(set_to_none=True)
        outputs.backward(gradient)  # type: ignore[no-untyped-call]
        if self._optimizer is not None:
            self._optimizer.step()
        return smashed.grad
