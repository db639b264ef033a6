"""Really sparse execution of local training, in plain PyTorch on a CPU.

A pruned layer's parameter is the 1-D tensor of its kept weights, in the order in which they travel, and
so are its gradient and the optimizer's state. `index_masks` says once per mask where they are,
`sparse_copy` makes a model that trains so, and `rule.pays` chooses the layers for which that is faster.
"""

from fedprune.sparsity.execution.convert import (
    Indices,
    Rule,
    always,
    dense_state,
    held_masks,
    index_masks,
    kept_state,
    sparse_copy,
)
from fedprune.sparsity.execution.index import KernelIndex, Window
from fedprune.sparsity.execution.kernels import Slice, gradient_slices
from fedprune.sparsity.execution.layers import SparseConv2d
from fedprune.sparsity.execution.rule import pays

__all__ = [
    "Indices",
    "KernelIndex",
    "Rule",
    "Slice",
    "SparseConv2d",
    "Window",
    "always",
    "dense_state",
    "gradient_slices",
    "held_masks",
    "index_masks",
    "kept_state",
    "pays",
    "sparse_copy",
]
