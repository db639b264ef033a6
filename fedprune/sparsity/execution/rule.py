"""Which layers are executed sparse: the rule of ``execution: auto``.

It knows a layer's shape, its positions, how much of it is kept, and the batch; it never measures. Of the
machine it looks at the CPU's instruction set, on which the bits of any matrix product depend as well; so what
a run computes depends on its scenario and the kind of processor alone. ``benchmarks/sparse.py --layers``
measures the densities at which a step of a layer takes as long sparse as dense, to which the constants here
are fitted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

_MEASURED = ("AVX2", "AVX512")
"""Instruction sets for which PyTorch has the kernels that were measured; on others all layers are dense."""


def pays(name: str, shape: tuple[int, ...], kept: int, *, batch: int, positions: Mapping[str, int]) -> bool:
    """Whether a layer's training step is faster sparse than dense under a mask.

    Parameters
    ----------
    name
        Of the weight.
    shape
        Of the dense weight, (out, in) or (out, in, height, width).
    kept
        Number of kept weights.
    batch
        Examples in a batch.
    positions
        Positions of the output for each example, by name.
    """
    if torch.backends.cpu.get_cpu_capability() not in _MEASURED or name not in positions:
        return False
    return kept < break_even(shape, batch, positions[name]) * math.prod(shape)


def break_even(shape: tuple[int, ...], batch: int, positions: int) -> float:
    """Return the density below which a layer is executed sparse, 0 where it never is.

    Three things lower it. A kept weight acts on the examples of a position side by side, and in a small
    batch these are few. A layer with many inputs usually has few positions. What a call costs, however
    little there is to compute, is worth its while only for a layer with many weights, and a convolution that
    has much to do; a linear one, which has a single position, must be larger by far.
    """
    convolution = len(shape) == 4
    highest, least = (0.25, 5e4) if convolution else (0.16, 1e7)
    examples = batch / (batch + 24)
    inputs = math.sqrt(min(1.0, 1536 / math.prod(shape[1:]))) if convolution else 1.0
    calls = max(0.0, 1 - least / ((batch + 16) * math.prod(shape)))
    work = max(0.0, 1 - 1.5e7 / (batch * positions * math.prod(shape))) if convolution else 1.0
    return highest * examples * inputs * calls * work
