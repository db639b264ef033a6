"""SGD and Adam, as PyTorch computes them, without PyTorch's compiler.

``torch.optim.Optimizer`` imports ``torch._dynamo`` when it is made: a second of processor time and 70 MiB, in
every process of a device, which lives for one message. The functions of ``torch.optim`` that compute a step
import nothing; the classes here call them. A step gives the same bits, which the tests hold.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

Group = dict[str, Any]
Hook = Callable[["Optimizer", tuple[Any, ...], dict[str, Any]], None]


class Optimizer(ABC):
    """What `fedprune.training.loop.train` steps with; the part of ``torch.optim.Optimizer`` that it needs.

    Attributes
    ----------
    param_groups : list[dict]
        Parameters under "params", with settings of their own, such as "lr".
    state : dict
        What is kept of each parameter between steps; empty at first.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], **settings: Any) -> None:
        self.param_groups: list[Group] = [{"params": list(parameters), **settings}]
        self.state: dict[nn.Parameter, dict[str, Any]] = {}
        self._settings = settings
        self._before: list[Hook] = []
        self._after: list[Hook] = []

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add parameters that have settings of their own; what is not given is as in the first group."""
        self.param_groups.append({**self._settings, **group})

    def register_step_pre_hook(self, hook: Hook) -> None:
        """Call ``hook(optimizer, (), {})`` before every step."""
        self._before.append(hook)

    def register_step_post_hook(self, hook: Hook) -> None:
        """Call ``hook(optimizer, (), {})`` after every step."""
        self._after.append(hook)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients; or set them to 0."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if set_to_none:
                    parameter.grad = None
                elif parameter.grad is not None:
                    parameter.grad.detach_().zero_()

    def step(self) -> None:
        """Move every parameter that has a gradient."""
        for hook in self._before:
            hook(self, (), {})
        with torch.no_grad():
            for group in self.param_groups:
                moved = [parameter for parameter in group["params"] if parameter.grad is not None]
                self._step(group, moved, [parameter.grad for parameter in moved])
        for hook in self._after:
            hook(self, (), {})

    @abstractmethod
    def _step(self, group: Group, parameters: list[nn.Parameter], gradients: list[Tensor]) -> None:
        """Move the parameters of a group."""


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum: ``torch.optim.SGD``."""

    def _step(self, group: Group, parameters: list[nn.Parameter], gradients: list[Tensor]) -> None:
        buffers = [self.state.get(parameter, {}).get("momentum_buffer") for parameter in parameters]
        sgd(
            list(parameters),
            gradients,
            buffers,
            lr=group["lr"],
            momentum=group["momentum"],
            weight_decay=group["weight_decay"],
            nesterov=group["nesterov"],
            dampening=0.0,
            maximize=False,
            foreach=True,
        )
        if group["momentum"]:
            for parameter, buffer in zip(parameters, buffers, strict=True):
                self.state[parameter] = {"momentum_buffer": buffer}


class Adam(Optimizer):
    """Adam: ``torch.optim.Adam``."""

    def _step(self, group: Group, parameters: list[nn.Parameter], gradients: list[Tensor]) -> None:
        for parameter in parameters:
            if parameter not in self.state:
                self.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32),
                    "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                }
        states = [self.state[parameter] for parameter in parameters]
        beta1, beta2 = group["betas"]
        adam(
            list(parameters),
            gradients,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            amsgrad=False,
            maximize=False,
            foreach=True,
        )
