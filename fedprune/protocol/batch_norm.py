"""Batch-norm statistics: measured over many batches, pooled over clients, put into a model.

The statistics of a model's batch-norm layers are one mean and one variance per channel. Here they
travel and are combined as one flat vector: of every layer in order its means, then its variances.
Channels that masks prune have none, whether the model at hand still has them or is the smaller one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from flwr.app import ArrayRecord
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedprune.errors import NotFiniteError, WireError
from fedprune.sparsity.frozen import is_frozen, training_mode
from fedprune.sparsity.masks import Masks
from fedprune.wire.values import from_array, to_array

Vector = NDArray[np.float64]
NO_MASKS = Masks()


def layers(module: nn.Module) -> list[_BatchNorm]:
    """Return the batch-norm layers that keep statistics which change, in the order of registration."""
    return [
        layer
        for layer in module.modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None and not is_frozen(layer)
    ]


def _channels(module: nn.Module, masks: Masks) -> list[tuple[_BatchNorm, Tensor]]:
    """Return each layer with the positions of its channels that are not pruned."""
    names = {layer: name for name, layer in module.named_modules()}
    found = []
    for norm in layers(module):
        kept = masks.get(f"{names[norm]}.running_mean")
        if kept is None or len(kept) != norm.num_features:  # The smaller model has them alone.
            kept = torch.ones(norm.num_features, dtype=torch.bool)
        found.append((norm, kept.nonzero().reshape(-1)))
    return found


def collect_statistics(module: nn.Module, inputs: Iterable[Tensor], masks: Masks = NO_MASKS) -> Vector:
    """Return the exact mean and variance of every batch norm's input over all inputs.

    Forward passes in training mode: each batch is normalised by its own statistics. The variance is
    that of the population. The module's buffers, mode and gradients stay as they are.

    Parameters
    ----------
    module : nn.Module
        The model.
    inputs : Iterable[Tensor]
        float32 (B, C, H, W) batches on the module's device.
    masks : Masks
        What is kept.
    """
    channels = _channels(module, masks)
    norms = [norm for norm, _ in channels]
    sums = {norm: torch.zeros(2, norm.num_features, dtype=torch.float64) for norm in norms}
    counts = dict.fromkeys(norms, 0)

    def note(norm: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, _BatchNorm)
        values = arguments[0].detach().double().transpose(0, 1).flatten(1)
        sums[norm] += torch.stack([values.sum(dim=1), values.square().sum(dim=1)]).cpu()
        counts[norm] += values.shape[1]

    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    mode = module.training
    handles = [norm.register_forward_pre_hook(note) for norm in norms]
    training_mode(module)
    try:
        with torch.no_grad():
            for x in inputs:
                module(x)
    finally:
        module.train(mode)
        for handle in handles:
            handle.remove()
        for buffer, value in before:
            buffer.copy_(value)
    parts = []
    for norm, kept in channels:
        mean, square = sums[norm][:, kept] / max(counts[norm], 1)
        parts += [mean, (square - mean.square()).clamp(min=0)]
    return torch.cat(parts).numpy() if parts else np.zeros(0)


def pool(
    statistics: Sequence[Vector], weights: Sequence[float], sizes: Sequence[int], *, pool_variance: bool
) -> Vector:
    """Combine the clients' statistics (FedTiny, section on adaptive batch-norm selection).

    mean = sum p_k mean_k; variance = sum p_k (var_k + mean_k^2) - mean^2, the pooled variance, or
    with ``pool_variance`` False the mean of the variances, as the paper has it.

    Parameters
    ----------
    statistics : Sequence of vectors
        One a client, all of one length.
    weights : Sequence[float]
        The clients' examples; p_k is proportional to them.
    sizes : Sequence[int]
        Channels of each layer.
    pool_variance : bool
        Whether the spread of the means counts.
    """
    shares = np.asarray(weights, dtype=np.float64) / sum(weights)
    stacked = np.stack(statistics)
    combined: Vector = shares @ stacked
    if not pool_variance:
        return combined
    start = 0
    for size in sizes:
        means = stacked[:, start : start + size]
        spread = shares @ (means - combined[start : start + size]) ** 2
        combined[start + size : start + 2 * size] += spread
        start += 2 * size
    return combined


def sizes(module: nn.Module, masks: Masks = NO_MASKS) -> list[int]:
    """Return how many channels of each batch-norm layer are not pruned."""
    return [len(kept) for _, kept in _channels(module, masks)]


def statistics_record(vector: Vector) -> ArrayRecord:
    """Return statistics as they travel, float32."""
    return ArrayRecord({"values": to_array(vector.astype(np.float32))})


def read_statistics(record: ArrayRecord | None, module: nn.Module, masks: Masks = NO_MASKS) -> Vector:
    """Return the statistics of a record that came from outside.

    Raises
    ------
    WireError
        If they are not there, not as many as the model has, not finite, or a variance is negative.
    """
    channels = sizes(module, masks)
    if record is None or "values" not in record:
        raise WireError("the message has no batch-norm statistics")
    vector = from_array("statistics", record["values"], "<f4", (2 * sum(channels),)).astype(np.float64)
    if not np.isfinite(vector).all():
        raise NotFiniteError("batch-norm statistics are not finite")
    start = 0
    for size in channels:
        if (vector[start + size : start + 2 * size] < 0).any():
            raise WireError("a batch-norm variance is negative")
        start += 2 * size
    return vector


def put_statistics(module: nn.Module, record: ArrayRecord | None, masks: Masks = NO_MASKS) -> None:
    """Put the statistics of a record into the model."""
    vector = torch.from_numpy(read_statistics(record, module, masks)).float()
    start = 0
    with torch.no_grad():
        for norm, kept in _channels(module, masks):
            size = len(kept)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            held = vector[start : start + 2 * size].to(norm.running_mean.device)
            norm.running_mean[kept] = held[:size]
            norm.running_var[kept] = held[size:]
            start += 2 * size
