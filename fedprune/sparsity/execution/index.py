"""Where the kept weights of a layer are, in the orders in which the kernels need them.

A `KernelIndex` depends on a mask and a layer's stride alone and is never written to: all clients that
use a mask share it. Not for values, which are each client's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Window:
    """How a convolution's kernel moves over its input; each pair is for height and width."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def taps(self) -> list[tuple[int, int]]:
        """Offset in the padded input of each weight of the kernel, row-major."""
        (height, width), (down, right) = self.kernel, self.dilation
        return [(y * down, x * right) for y in range(height) for x in range(width)]

    @property
    def phases(self) -> list[int]:
        """Which of the ``stride[0] * stride[1]`` lattices of the padded input each tap reads."""
        (down, right) = self.stride
        return [y % down * right + x % right for y, x in self.taps]

    @property
    def shifts(self) -> list[tuple[int, int]]:
        """By how many positions of its lattice each tap is away from the output's position."""
        return [(y // self.stride[0], x // self.stride[1]) for y, x in self.taps]

    @classmethod
    def of(cls, layer: nn.Conv2d) -> Window | None:
        """Return the window of a convolution; None where its padding is a word ("same", "valid")."""
        if isinstance(layer.padding, str):
            return None
        pairs = layer.kernel_size, layer.stride, layer.padding, layer.dilation
        return cls(*((int(height), int(width)) for height, width in pairs))

    def output(self, height: int, width: int) -> tuple[int, int]:
        """Return the output's height and width."""
        sizes = zip((height, width), self.kernel, self.stride, self.padding, self.dilation, strict=True)
        rows, columns = ((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in sizes)
        return rows, columns


class KernelIndex:
    """The positions of the kept weights of a convolution, or of a linear layer, which is one with one tap.

    Kept weights are numbered in row-major order of the mask, as they travel. The orders are by output
    channel, which is that order itself, and by input channel.

    Parameters
    ----------
    mask : Tensor
        bool (out, in) or (out, in, height, width), True = kept; not held on to.
    window : Window
        The convolution's; the default is that of a linear layer.

    Raises
    ------
    ValueError
        If the mask has neither two nor four dimensions, or its kernel is not the window's.
    """

    def __init__(self, mask: Tensor, window: Window = Window()) -> None:
        if mask.dim() not in (2, 4) or (*mask.shape[2:], 1, 1)[:2] != window.kernel:
            raise ValueError(f"a mask of shape {tuple(mask.shape)} does not fit a kernel of {window.kernel}")
        self.shape = mask.shape
        self.window = window
        self.outputs, self.inputs = mask.shape[:2]
        taps = len(window.taps)
        places = mask.detach().cpu().reshape(self.outputs, -1).nonzero()
        rows, columns = places[:, 0], places[:, 1]
        channels, tap = columns.div(taps, rounding_mode="floor"), columns % taps
        by_phase = torch.tensor(window.phases)[tap] * self.inputs + channels
        order = torch.argsort(by_phase, stable=True)
        phases = window.stride[0] * window.stride[1]
        self.columns = _narrow(columns, self.inputs * taps)
        """int16 or int32 (kept,): input channel * taps + tap."""
        self.rows = _starts(rows, self.outputs)
        """int32 (out + 1,): where each output channel begins."""
        self.by_input = _narrow(order, len(order))
        """int16 or int32 (kept,): the order by phase, then input channel."""
        self.input_rows = _starts(by_phase[order], phases * self.inputs)
        """int32 (phases * in + 1,): where each input channel of each phase begins in that order."""

    def __deepcopy__(self, memo: object) -> KernelIndex:
        """Return the index itself: copies of a model share it."""
        return self

    @property
    def kept(self) -> int:
        """Number of kept weights."""
        return len(self.columns)

    @property
    def bytes(self) -> int:
        """Bytes of the index."""
        return sum(part.nbytes for part in self.tensors())

    def tensors(self) -> list[Tensor]:
        """Return the tensors of the index."""
        return [part for part in vars(self).values() if isinstance(part, Tensor)]

    def positions(self) -> Tensor:
        """Return the place of each kept weight in the flat dense one, int64 (kept,), ascending."""
        row = self.inputs * len(self.window.taps)
        return self.output_channels().long() * row + self.columns

    def channels(self) -> Tensor:
        """Return the input channel of each kept weight, int32 (kept,)."""
        return self.columns.int().div(len(self.window.taps), rounding_mode="floor")

    def taps(self) -> Tensor:
        """Return the tap of each kept weight, int32 (kept,)."""
        return self.columns.int() % len(self.window.taps)

    def output_channels(self) -> Tensor:
        """Return the output channel of each kept weight, int32 (kept,)."""
        return torch.arange(self.outputs, dtype=torch.int32).repeat_interleave(
            self.rows.diff(), output_size=self.kept
        )


def _narrow(numbers: Tensor, bound: int) -> Tensor:
    """Return integers below a bound in as few bytes as PyTorch can index with: two, or four."""
    return numbers.to(torch.int16 if bound <= 2**15 else torch.int32)


def _starts(sorted_rows: Tensor, count: int) -> Tensor:
    """Return where each of the rows 0 ... count begins in a sorted list of rows, int32 (count + 1,)."""
    return torch.searchsorted(sorted_rows.contiguous(), torch.arange(count + 1)).int()


@dataclass(frozen=True)
class Sweep:
    """One pass over positions that a gather kernel makes: what it reads at each of them.

    Parameters
    ----------
    offsets : Tensor
        int32 (taps,): what a tap adds to a position, for all taps.
    positions : Tensor
        int32 (P,): where in the source a position of the result starts to read.
    kinds : Tensor
        int64 (P,): row of ``reaches`` that holds at the position.
    reaches : Tensor
        bool (kinds, taps): which taps stay inside the source; the others read padding.
    lattice : tuple
        Slices of height and width of the result that the positions stand for.
    """

    offsets: Tensor
    positions: Tensor
    kinds: Tensor
    reaches: Tensor
    lattice: tuple[slice, slice]


@lru_cache(maxsize=1024)
def output_sweep(window: Window, height: int, width: int) -> Sweep:
    """Return the pass over all output positions that reads the input, (height, width)."""
    rows, columns = window.output(height, width)
    axes = [
        _axis(range(-p, (count - 1) * s - p + 1, s), taps, size)
        for count, p, s, taps, size in zip(
            (rows, columns),
            window.padding,
            window.stride,
            zip(*window.taps, strict=True),
            (height, width),
            strict=True,
        )
    ]
    return _sweep(axes, width, (slice(None), slice(None)))


@lru_cache(maxsize=1024)
def input_sweeps(window: Window, height: int, width: int) -> tuple[Sweep | None, ...]:
    """Return, for each phase, the pass over its input positions that reads the output's gradient.

    None where the input has no position of that phase.
    """
    output = window.output(height, width)
    shifts = list(zip(*window.shifts, strict=True))
    sweeps: list[Sweep | None] = []
    for phase in range(window.stride[0] * window.stride[1]):
        residues = divmod(phase, window.stride[1])
        axes, lattice = [], []
        for axis, size in enumerate((height, width)):
            stride, padding = window.stride[axis], window.padding[axis]
            first = (residues[axis] - padding) % stride
            starts = [(place + padding) // stride for place in range(first, size, stride)]
            axes.append(_axis(starts, [-shift for shift in shifts[axis]], output[axis]))
            lattice.append(slice(first, None, stride))
        empty = not axes[0][0].numel() or not axes[1][0].numel()
        sweeps.append(None if empty else _sweep(axes, output[1], (lattice[0], lattice[1])))
    return tuple(sweeps)


def _axis(starts: range | list[int], offsets: tuple[int, ...] | list[int], size: int) -> tuple[Tensor, ...]:
    """Return along one axis the starts, the taps' offsets and, (starts, taps), what lies in [0, size)."""
    start, offset = torch.tensor(list(starts), dtype=torch.int64), torch.tensor(offsets)
    reads = start[:, None] + offset
    return start, offset, (reads >= 0) & (reads < size)


def _sweep(axes: list[tuple[Tensor, ...]], width: int, lattice: tuple[slice, slice]) -> Sweep:
    (rows, down, inside), (columns, right, within) = axes
    # Few rows of positions differ in what they reach, and few columns.
    row_kinds, row_kind = torch.unique(inside, dim=0, return_inverse=True)
    column_kinds, column_kind = torch.unique(within, dim=0, return_inverse=True)
    return Sweep(
        offsets=(down * width + right).int(),
        positions=(rows[:, None] * width + columns).reshape(-1).int(),
        kinds=(row_kind[:, None] * len(column_kinds) + column_kind).reshape(-1),
        reaches=(row_kinds[:, None] & column_kinds).flatten(0, 1),
        lattice=lattice,
    )
