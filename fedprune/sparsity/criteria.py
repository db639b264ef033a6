"""Criteria: how much each weight of a model matters, as one score per weight, the highest kept.

A criterion looks at a model and, where it needs them, at batches of data. It changes nothing: the
module's parameters, buffers, gradients and mode, and PyTorch's global generator, are the same
afterwards. How many weights are kept in which layer is not its matter.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedprune.sparsity.loss import Loss

Batches = Sequence[tuple[Tensor, Tensor]]
"""Pairs of inputs, (B, ...), and targets, (B, ...), as the task makes them."""


class Criterion(Protocol):
    """A function of a model to a score per weight.

    Any function with this signature is a criterion. What it asks of its caller it says with
    `declare`; a function that says nothing needs no data and scores once.
    """

    def __call__(
        self,
        module: nn.Module,
        names: Sequence[str],
        /,
        *,
        example: Tensor,
        batches: Batches,
        loss: Loss,
        generator: torch.Generator | None,
    ) -> Mapping[str, Tensor]:
        """Return the scores of the weights.

        Parameters
        ----------
        module
            The model; comes back unchanged.
        names
            Its parameters to be scored.
        example
            One input of ones, (1, ...), of the dtype that the model takes.
        batches
            Data, empty where there is none; the model is looked at in training mode.
        loss
            What is learnt.
        generator
            Source of every random draw.

        Returns
        -------
        Mapping[str, Tensor]
            Name -> floating-point scores of the parameter's shape.
        """


F = TypeVar("F", bound=Callable[..., object])


def declare(*, needs_data: bool = False, iterations: int = 1, scales: bool = False) -> Callable[[F], F]:
    """Say of a criterion whether it needs data, its default number of iterations, and what it scores.

    With ``scales`` it is given the names of batch norm's scales, one a channel, in the place of weights: it
    prunes channels alone.
    """

    def mark(function: F) -> F:
        vars(function).update(needs_data=needs_data, iterations=iterations, scales=scales)
        return function

    return mark


def needs_data(criterion: Criterion) -> bool:
    """Return whether a criterion needs batches: ask before a run, where data may be missing."""
    return bool(getattr(criterion, "needs_data", False))


def default_iterations(criterion: Criterion) -> int:
    """Return in how many iterations a criterion prunes unless it is told otherwise."""
    return int(getattr(criterion, "iterations", 1))


def scores_scales(criterion: Criterion) -> bool:
    """Return whether a criterion scores the scales of batch norm rather than weights."""
    return bool(getattr(criterion, "scales", False))


def random(
    module: nn.Module,
    names: Sequence[str],
    *,
    example: Tensor,
    batches: Batches,
    loss: Loss,
    generator: torch.Generator | None,
) -> dict[str, Tensor]:
    """Score weights at random, uniformly in [0, 1)."""
    if generator is None:
        raise ValueError("the criterion 'random' needs a generator")
    return {name: torch.rand(module.get_parameter(name).shape, generator=generator) for name in names}


def magnitude(
    module: nn.Module,
    names: Sequence[str],
    *,
    example: Tensor,
    batches: Batches,
    loss: Loss,
    generator: torch.Generator | None,
) -> dict[str, Tensor]:
    """Score weights by absolute value."""
    return {name: module.get_parameter(name).detach().abs() for name in names}


@declare(needs_data=True)
def snip(
    module: nn.Module,
    names: Sequence[str],
    *,
    example: Tensor,
    batches: Batches,
    loss: Loss,
    generator: torch.Generator | None,
) -> dict[str, Tensor]:
    """Score weights by what the loss would feel of their removal, |w * dL/dw| (Lee et al., ICLR 2019).

    L is the mean loss over all examples of the batches. The paper divides by the sum of
    all scores (equation 6), which changes no rank.
    """
    with _copied(module, names) as (network, weights):
        gradients = _gradient(network, weights, batches, loss)
    return {
        name: (weight.detach() * gradient).abs()
        for name, weight, gradient in zip(names, weights, gradients, strict=True)
    }


GRASP_TEMPERATURE = 200.0
"""What the model's outputs are divided by in `grasp`, as in the code of its authors."""


@declare(needs_data=True)
def grasp(
    module: nn.Module,
    names: Sequence[str],
    *,
    example: Tensor,
    batches: Batches,
    loss: Loss,
    generator: torch.Generator | None,
) -> dict[str, Tensor]:
    """Score weights by how much their removal would hurt the gradient flow, w * Hg (Wang et al., ICLR 2020).

    g is the gradient of the mean loss with respect to the named weights, H its Hessian,
    with outputs divided by `GRASP_TEMPERATURE`. The paper's score is -w * Hg (equation 8), of which
    it removes the highest: those whose removal raises the norm of the gradient. Here the highest
    are kept, so the sign is the opposite one. A score may well be negative.
    """
    with _copied(module, names) as (network, weights):
        gradients = _gradient(network, weights, batches, loss, GRASP_TEMPERATURE)
        products = [torch.zeros_like(weight) for weight in weights]
        for part in _losses(network, batches, loss, GRASP_TEMPERATURE):
            partial = torch.autograd.grad(
                part, weights, create_graph=True, allow_unused=True, materialize_grads=True
            )
            flow = torch.stack([(p * g).sum() for p, g in zip(partial, gradients, strict=True)]).sum()
            _accumulate(products, flow, weights)
    return {
        name: weight.detach() * product
        for name, weight, product in zip(names, weights, products, strict=True)
    }


@declare(iterations=100)
def synflow(
    module: nn.Module,
    names: Sequence[str],
    *,
    example: Tensor,
    batches: Batches,
    loss: Loss,
    generator: torch.Generator | None,
) -> dict[str, Tensor]:
    """Score weights by synaptic flow, |w * dR/dw|, without data (Tanaka et al., NeurIPS 2020).

    R is the sum of the outputs for an input of ones, with every parameter replaced by its absolute
    value and batch normalisation by its initial statistics (mean 0, variance 1), in double
    precision: R of a deep network overflows float32. Scores are float64. Meant to be iterated, as
    by default: a single pass cuts off whole layers.
    """
    with _copied(module, names) as (network, weights):
        network.double().eval()
        for layer in network.modules():
            if isinstance(layer, _BatchNorm):
                # Also where a layer keeps no statistics: it would take those of the one input.
                layer.running_mean = torch.zeros(
                    layer.num_features, dtype=torch.float64, device=weights[0].device
                )
                layer.running_var = torch.ones_like(layer.running_mean)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.abs_()
        ones = example.to(weights[0].device)
        ones = ones.double() if ones.is_floating_point() else ones
        gradients = [torch.zeros_like(weight) for weight in weights]
        _accumulate(gradients, network(ones).sum(), weights)
    return {
        name: (weight.detach() * gradient).abs()
        for name, weight, gradient in zip(names, weights, gradients, strict=True)
    }


@declare(needs_data=True)
def taylor(
    module: nn.Module,
    names: Sequence[str],
    *,
    example: Tensor,
    batches: Batches,
    loss: Loss,
    generator: torch.Generator | None,
) -> dict[str, Tensor]:
    """Score weights by the first-order estimate of what their removal costs, (w * dL/dw)^2.

    Molchanov et al., CVPR 2019, equation 8, summed over a channel's weights (``reduction: sum``). L is the
    mean loss over all examples of the batches; the paper averages over batches of training.
    """
    scores = snip(module, names, example=example, batches=batches, loss=loss, generator=generator)
    return {name: score.square() for name, score in scores.items()}


@declare(scales=True)
def batch_norm_scale(
    module: nn.Module,
    names: Sequence[str],
    *,
    example: Tensor,
    batches: Batches,
    loss: Loss,
    generator: torch.Generator | None,
) -> dict[str, Tensor]:
    """Score channels by the absolute scale of their batch norm (network slimming, Liu et al., ICCV 2017)."""
    return {name: module.get_parameter(name).detach().abs() for name in names}


CRITERIA: dict[str, Criterion] = {
    "batch_norm_scale": batch_norm_scale,
    "grasp": grasp,
    "magnitude": magnitude,
    "random": random,
    "snip": snip,
    "synflow": synflow,
    "taylor": taylor,
}


@contextmanager
def _copied(module: nn.Module, names: Sequence[str]) -> Iterator[tuple[nn.Module, list[nn.Parameter]]]:
    """Lend a copy of the module in training mode, of which only the named weights need gradients.

    Random layers such as dropout draw from a generator of the copy's own, always the same.
    """
    network = copy.deepcopy(module).train().requires_grad_(False)
    weights = [network.get_parameter(name) for name in names]
    for weight in weights:
        weight.requires_grad_()
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed GPUs as well
        yield network, weights


def _losses(network: nn.Module, batches: Batches, loss: Loss, temperature: float) -> Iterator[Tensor]:
    """Yield each batch's part of the mean loss over all examples: their sum is the mean."""
    device = next(network.parameters()).device
    examples = sum(len(targets) for _, targets in batches)
    for inputs, targets in batches:
        inputs = inputs.to(device)
        yield loss(network(inputs) / temperature, targets.to(device), inputs, "sum") / examples


def _gradient(
    network: nn.Module, weights: Sequence[Tensor], batches: Batches, loss: Loss, temperature: float = 1.0
) -> list[Tensor]:
    gradients = [torch.zeros_like(weight) for weight in weights]
    for part in _losses(network, batches, loss, temperature):
        _accumulate(gradients, part, weights)
    return gradients


def _accumulate(totals: Sequence[Tensor], value: Tensor, weights: Sequence[Tensor]) -> None:
    """Add the gradient of a value to the totals; a weight that the value does not use adds 0."""
    for total, gradient in zip(
        totals, torch.autograd.grad(value, weights, allow_unused=True, materialize_grads=True), strict=True
    ):
        total += gradient
