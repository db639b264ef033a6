"""Which layers are executed sparse: the rule of ``execution: auto``.

It knows a layer's shape, how much of it is kept, and the batch; it never measures, so what a run computes
depends on its scenario alone. ``benchmarks/sparse.py --layers`` measures the densities at which a step of a
layer takes as long sparse as dense, which the constants here are fitted to.
"""

from __future__ import annotations

import math

import torch

from fedprune.sparsity.execution.index import Window

_MEASURED = ("AVX2", "AVX512")
"""Instruction sets for which PyTorch has the kernels that were measured; on others all layers are dense."""


def pays(shape: tuple[int, ...], window: Window, kept: int, *, batch: int) -> bool:
    """Whether a layer's training step is faster sparse than dense under a mask.

    Parameters
    ----------
    shape
        Of the dense weight, (out, in) or (out, in, height, width).
    window
        The convolution's; it does not count.
    kept
        Number of kept weights.
    batch
        Examples in a batch.
    """
    if torch.backends.cpu.get_cpu_capability() not in _MEASURED:
        return False
    return kept < break_even(shape, batch) * math.prod(shape)


def break_even(shape: tuple[int, ...], batch: int) -> float:
    """Return the density below which a layer is executed sparse, 0 where it never is.

    Three things lower it. A kept weight acts on the examples of a position side by side, and in a small
    batch these are few. A layer with many inputs usually has few positions. What a call costs, however
    little there is to compute, is worth its while for a large layer only; a linear one, which has a single
    position, must be larger by far.
    """
    convolution = len(shape) == 4
    highest, least = (0.25, 5e4) if convolution else (0.16, 1e7)
    examples = batch / (batch + 24)
    positions = math.sqrt(min(1.0, 1536 / math.prod(shape[1:]))) if convolution else 1.0
    calls = max(0.0, 1 - least / ((batch + 16) * math.prod(shape)))
    return highest * examples * positions * calls
