"""The small model that is left where whole channels are pruned: the same modules, with smaller tensors.

Its state is the kept part of the large one's, tensor by tensor, in the same order. Only masks are needed for
it, so a device makes its model without knowing how the channels were found.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fedprune.sparsity.masks import Masks


def shrink(module: nn.Module, masks: Masks) -> nn.Module:
    """Return a copy of a model without what masks prune; tensors may be on the device "meta".

    Parameters
    ----------
    module
        The model; it is not changed.
    masks
        With ``Masks.axes``: of whole channels.

    Raises
    ------
    ValueError
        For masks of single weights, and where a tensor keeps nothing.
    """
    if masks.axes is None:
        raise ValueError("the masks are of single weights: only whole channels leave a smaller model")
    memo: dict[int, object] = {}
    state = module.state_dict(keep_vars=True)
    for name, axes in masks.axes.items():
        if not all(len(positions) for positions in axes):
            raise ValueError(f"nothing is left of {name!r}")
        tensor = state[name]
        cut = _cut(tensor.detach(), axes)
        memo[id(tensor)] = (
            nn.Parameter(cut, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else cut
        )
    result = copy.deepcopy(module, memo)
    for layer in result.modules():
        _resize(layer)
    return result


def _cut(tensor: Tensor, axes: tuple[Tensor, ...]) -> Tensor:
    if tensor.is_meta:
        return tensor.new_empty([len(positions) for positions in axes])
    for dim, positions in enumerate(axes):
        if len(positions) < tensor.shape[dim]:
            tensor = tensor.index_select(dim, positions.to(tensor.device))
    return tensor.clone()


def _resize(layer: nn.Module) -> None:
    """Let a layer's sizes say what its tensors have."""
    for kinds, resize in _SIZES:
        if isinstance(layer, kinds):
            resize(layer)
            return


def _convolution(layer: nn.Module) -> None:
    assert isinstance(layer, _ConvNd)
    outputs, inputs = layer.weight.shape[:2]
    if layer.groups > 1 and layer.groups == layer.in_channels:  # Each channel by itself.
        layer.groups = outputs
    if isinstance(layer, _ConvTransposeNd):
        inputs, outputs = outputs, inputs
    layer.in_channels, layer.out_channels = inputs * (layer.groups if not layer.transposed else 1), outputs


def _linear(layer: nn.Module) -> None:
    assert isinstance(layer, nn.Linear)
    layer.out_features, layer.in_features = layer.weight.shape


def _norm(layer: nn.Module) -> None:
    assert isinstance(layer, _NormBase)
    held = layer.weight if layer.weight is not None else layer.running_mean
    if held is not None:
        layer.num_features = len(held)


def _prelu(layer: nn.Module) -> None:
    assert isinstance(layer, nn.PReLU)
    layer.num_parameters = len(layer.weight)


def _embedding(layer: nn.Module) -> None:
    assert isinstance(layer, nn.Embedding)
    layer.embedding_dim = layer.weight.shape[1]


_SIZES: tuple[tuple[type[nn.Module], Callable[[nn.Module], None]], ...] = (
    (_ConvNd, _convolution),
    (nn.Linear, _linear),
    (_NormBase, _norm),
    (nn.PReLU, _prelu),
    (nn.Embedding, _embedding),
)
