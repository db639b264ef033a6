"""The memory layout of sparse execution: batch last.

A batch of activations keeps its shape (N, C, H, W), but its memory is ordered (C, H, W, N), as
``torch.channels_last`` orders it (N, H, W, C). So a module that knows nothing of this computes the same
as ever, and only the kernels here, which need all examples of a position side by side, look beneath.
"""

from __future__ import annotations

from torch import Tensor


def batch_last(x: Tensor) -> Tensor:
    """Return (N, ...) as a contiguous (..., N): a view where the memory is batch-last, else a copy."""
    moved = x.movedim(0, -1)
    if moved.is_contiguous():
        return moved
    # As a matrix: PyTorch transposes these in blocks, and tensors of more dimensions value by value.
    return x.reshape(len(x), -1).t().contiguous().view(moved.shape)


def batch_first(y: Tensor) -> Tensor:
    """Return (..., N) as a view of shape (N, ...); what `batch_last` undoes without a copy."""
    return y.movedim(-1, 0)


def is_batch_last(x: Tensor) -> bool:
    """Whether the memory of (N, ...) is ordered (..., N)."""
    return x.movedim(0, -1).is_contiguous()
