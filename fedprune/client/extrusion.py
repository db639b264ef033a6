"""Budget-aware extrusion: training that drives the weights that are about to be dropped towards zero.

FedMef (Huang et al., CVPR 2024): before an adjustment the loss gets a term
strength * |w_low|^2 on the smallest weights of the layers to be adjusted, so that what they carry moves
to the others, and the learning rate follows a schedule that ends with the budget of steps. Here are the
request that a training message makes and the step hooks that follow it; when, and for how many weights,
is for a strategy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.protocol.extrusion import ExtrusionRequest
from fedprune.sparsity.masks import Masks

_Step = tuple[Tensor, Tensor]


def smallest_kept(weight: Tensor, mask: Tensor, count: int) -> Tensor:
    """Return the row-major positions, int64 and ascending, of the kept weights of smallest magnitude.

    Of equal ones the first; all kept weights, where there are not so many.
    """
    kept = mask.reshape(-1).nonzero().reshape(-1)
    task = weight.detach().reshape(-1)[kept].abs().argsort(stable=True)[:count]
    return kept[task].sort().values


def budget_factor(progress: float, size: float) -> float:
    """Return the factor of the learning rate: p(z) * (2 * sigmoid(size) - 1).

    p(z) = (1 - z) / (1/2 + (1 - z) / 2), the REX schedule (Chen et al., MLSys 2022), with z the share of the
    budget that is spent; ``size`` is the norm of the extruded weights, with which steps fade.
    """
    rex = (1 - progress) / (0.5 + 0.5 * (1 - progress))
    return rex * (2 * float(torch.sigmoid(torch.tensor(size, dtype=torch.float64))) - 1)


class Extrusion:
    """Extrusion in one round's training: which weights, and what is done in each step.

    Parameters
    ----------
    module : nn.Module
        Holds the weights as the round found them: those marked are its smallest.
    request : ExtrusionRequest
        What is asked.
    masks : Masks
        What is kept.
    examples : int
        Examples that the round's training goes through, repetitions included.
    """

    def __init__(self, module: nn.Module, request: ExtrusionRequest, masks: Masks, examples: int) -> None:
        self.request = request
        self.marked: list[tuple[nn.Parameter, Tensor]] = []
        for name, count in request.counts.items():
            weight = module.get_parameter(name)
            places = smallest_kept(weight, masks[name].to(weight.device), count)
            self.marked.append((weight, places))
        self._examples, self._seen = examples, 0

    @property
    def count(self) -> int:
        """How many weights are marked."""
        return sum(len(places) for _, places in self.marked)

    def counted(self, steps: Iterable[_Step]) -> Iterator[_Step]:
        """Yield the batches, and count them once their step is done."""
        for x, y in steps:
            yield x, y
            self._seen += len(y)

    def register(self, optimizer: torch.optim.Optimizer) -> None:
        """Act before each step of an optimizer."""
        rates = [group["lr"] for group in optimizer.param_groups]

        def before(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            if self.request.budget:
                factor = budget_factor(self.progress, self.size())
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = factor * rate
            self.add_gradient()

        optimizer.register_step_pre_hook(before)

    @property
    def progress(self) -> float:
        """Share of the budget that is spent."""
        done = min(self._seen / max(self._examples, 1), 1.0)
        return self.request.start + (self.request.end - self.request.start) * done

    def size(self) -> float:
        """Return the norm of the marked weights."""
        parts = [weight.detach().reshape(-1)[places].double() for weight, places in self.marked]
        return float(torch.cat(parts).norm()) if parts else 0.0

    def add_gradient(self) -> None:
        """Add the gradient of strength * |w_low|^2."""
        with torch.no_grad():
            for weight, places in self.marked:
                if weight.grad is not None:
                    pull = 2 * self.request.strength * weight.reshape(-1)[places]
                    weight.grad.view(-1).index_add_(0, places, pull)
