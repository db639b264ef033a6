"""PowerSGD: the update of each matrix as a product of two thin ones, found by one step of power iteration.

With M the update of a matrix, reshaped to (outputs, all else), and Q what the last round found, P = M Q is
made orthonormal and Q = M' P; the server has P Q'. Q is kept for the next round (a warm start), and error
feedback keeps what a low rank leaves out. Vectors, and matrices that it would not make smaller, travel whole.

Differences from the paper
--------------------------
- Compressed is the update of a round's local training, not a gradient.
- The paper averages P and Q over all workers between the two steps, so that all have one basis. Clients of a
  federation do not meet inside a round: each has a basis of its own, sends both matrices, and the server
  averages products.
- In a pruned matrix a pruned weight counts as 0 and is 0 after. Rows and columns without a kept weight are
  left out of P and Q.

References
----------
- T. Vogels, S. P. Karimireddy, M. Jaggi: PowerSGD: Practical Low-Rank Gradient Compression for Distributed
  Optimization. NeurIPS 2019, arXiv 1905.13727.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from fedprune.compression.base import Compressor, FeedbackOptions, Frame, Memory, Part
from fedprune.compression.message import Source, Writer


class PowerSGD(Compressor):
    """The update of each matrix as a product of two thin ones (Vogels et al., NeurIPS 2019)."""

    class Options(FeedbackOptions):
        """How thin they are."""

        rank: int = Field(2, ge=1, description="Columns of each of the two matrices.")

    def write(self, update: Tensor, frame: Frame, out: Writer, memory: Memory) -> None:
        """Write the two thin matrices of each tensor, or its values."""
        generator = frame.generator()
        for part, values in frame.split(update):
            rows, columns = used(part)
            if not self._thin(part, rows, columns):
                out.floats(values)
                continue
            matrix = part.dense(values.double()).reshape(len(rows), -1)
            drawn = torch.randn(len(columns), self.options.rank, generator=generator)
            start = memory.get(part.name, drawn)
            # A column in which nothing was found would find nothing again.
            start = torch.where(start.any(dim=0), start, drawn)
            left = orthonormal(matrix @ start.double())
            right = matrix.T @ left
            memory[part.name] = right.float()
            out.floats(left[rows])
            out.floats(right[columns])

    def read(self, frame: Frame, source: Source) -> Tensor:
        """Return the kept weights of the products."""
        rank, found = self.options.rank, [torch.zeros(0)]
        for part in frame.parts:
            rows, columns = used(part)
            if not self._thin(part, rows, columns):
                found.append(source.floats(part.size))
                continue
            left, right = torch.zeros(len(rows), rank), torch.zeros(len(columns), rank)
            left[rows] = source.floats(int(rows.sum()) * rank).reshape(-1, rank)
            right[columns] = source.floats(int(columns.sum()) * rank).reshape(-1, rank)
            found.append(part.kept((left @ right.T).reshape(part.shape)))
        return torch.cat(found)

    def _thin(self, part: Part, rows: Tensor, columns: Tensor) -> bool:
        """Return whether two thin matrices have fewer values than the kept weights."""
        return len(part.shape) > 1 and self.options.rank * int(rows.sum() + columns.sum()) < part.size


def used(part: Part) -> tuple[Tensor, Tensor]:
    """Return which rows and columns of a tensor, as a matrix, hold a kept weight: two boolean tensors."""
    if not part.shape or not part.shape.numel():
        return torch.zeros(0, dtype=torch.bool), torch.zeros(0, dtype=torch.bool)
    kept = torch.ones(part.shape, dtype=torch.bool) if part.mask is None else part.mask
    matrix = kept.reshape(part.shape[0], -1)
    return matrix.any(dim=1), matrix.any(dim=0)


def orthonormal(matrix: Tensor) -> Tensor:
    """Return a matrix whose columns span the same space, each of norm 1, or of 0 where nothing is left.

    Gram and Schmidt's, one column after the other.
    """
    columns: list[Tensor] = []
    for column in matrix.unbind(dim=1):
        before = column.norm()
        for other in columns:
            column = column - (other @ column) * other
        norm = column.norm()
        # What rounding has left of a column that the others span has no direction of its own.
        columns.append(column / norm if norm > 1e-9 * before else torch.zeros_like(column))
    return torch.stack(columns, dim=1)
