"""Which layers are executed sparse: the rule of ``execution: auto``.

It knows a layer's shape, how much of it is kept, and the batch; it never measures, so what a run computes
depends on its scenario alone. ``benchmarks/sparse.py --layers`` measures where the two are equally fast.
"""

from __future__ import annotations

import math

import torch

from fedprune.sparsity.execution.index import Window

_MEASURED = ("AVX2", "AVX512")
"""Instruction sets for which PyTorch has the kernels that the limits below were measured with."""


def pays(shape: tuple[int, ...], window: Window, kept: int, *, batch: int) -> bool:
    """Whether a layer's training step is faster sparse than dense under a mask.

    Parameters
    ----------
    shape
        Of the dense weight.
    window
        The convolution's; one of a single tap and no stride is a linear layer's.
    kept
        Number of kept weights.
    batch
        Examples in a batch.
    """
    if torch.backends.cpu.get_cpu_capability() not in _MEASURED:
        return False
    return kept <= break_even(shape, batch) * math.prod(shape)


def break_even(shape: tuple[int, ...], batch: int) -> float:
    """Return the density below which a layer is executed sparse, 0 where it never is.

    A kept weight acts on the examples of a position side by side, so small batches use less of a
    processor's width; layers of many inputs have few positions, over which what a call costs is spread.
    """
    inputs = math.prod(shape[1:])
    width: float = min(batch / 64, 1.0) ** 0.4
    if len(shape) == 2:
        return 0.05 * width if batch * math.prod(shape) >= 2**24 else 0.0
    if batch * math.prod(shape) < 2**16:
        return 0.0
    spread: float = min(1.0, 1152 / inputs) ** 0.4
    return 0.18 * width * spread
