"""Standardised convolution weights under masks: each filter's kept weights have mean 0.

A filter whose weights sum to 0 has outputs around 0 where its inputs have a common mean, as those of a
ReLU have; that is what weight standardisation (Qiao et al. 2019) and normalised sparse convolution
(Huang et al., CVPR 2024) do. Here it is done to the weights themselves and not inside the layer. So a
model runs anywhere as it is, averages of standardised models are centred again, and what pruned weights
are, exactly 0, they stay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedprune.sparsity.masks import Masks

#: Keeps the variance of activations through a centred filter and a ReLU (Brock et al., ICLR 2021).
RELU_GAIN = math.sqrt(2 / (1 - 1 / math.pi))


def convolutions(module: nn.Module) -> list[str]:
    """Return the names of the weights of a model's 2-d convolutions that are trained, each once."""
    weights = {id(layer.weight) for layer in module.modules() if isinstance(layer, nn.Conv2d)}
    return [
        name
        for name, parameter in module.named_parameters()
        if id(parameter) in weights and parameter.requires_grad
    ]


def centred(weight: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return a weight less the mean of the kept weights of each filter; pruned weights become 0.

    A filter with a single kept weight stays as it is: without its mean it would be nothing.

    Parameters
    ----------
    weight : Tensor
        (filters, ...).
    mask : Tensor, optional
        Boolean of the same shape, True = kept; without it all are kept.
    """
    kept = (torch.ones_like(weight) if mask is None else mask.to(weight)).flatten(1)
    values, counts = weight.flatten(1) * kept, kept.sum(dim=1, keepdim=True)
    mean = values.sum(dim=1, keepdim=True) / counts.clamp(min=1)
    return (values - mean * (counts > 1) * kept).reshape(weight.shape)


def standardised(weight: Tensor, mask: Tensor | None = None, gain: float = RELU_GAIN) -> Tensor:
    """Return a weight whose filters are `centred` and have sum of squares gain^2 over the kept weights.

    That is gain * (w - mean) / (std * sqrt(n)) for n kept weights. A filter that is all 0 stays so.
    """
    values = centred(weight, mask).flatten(1)
    size = values.norm(dim=1, keepdim=True)
    return torch.where(size > 0, gain * values / size, values).reshape(weight.shape)


def centre(module: nn.Module, masks: Masks) -> None:
    """Centre the weights of a module's 2-d convolutions that are trained, in place."""
    with torch.no_grad():
        for name in convolutions(module):
            weight = module.get_parameter(name)
            weight.copy_(centred(weight, _on(weight, masks.get(name))))


def centred_state(state: Mapping[str, Tensor], names: list[str], masks: Masks) -> dict[str, Tensor]:
    """Return a state with the named weights centred under masks."""
    return {**state, **{name: centred(state[name], masks.get(name)) for name in names}}


def standardised_state(state: Mapping[str, Tensor], names: list[str], masks: Masks) -> dict[str, Tensor]:
    """Return a state with the named weights standardised under masks."""
    return {**state, **{name: standardised(state[name], masks.get(name)) for name in names}}


def _on(weight: Tensor, mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.to(weight.device)
