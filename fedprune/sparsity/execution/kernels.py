"""The kernels of sparse execution: a convolution whose weights are the kept ones, and its gradients.

All work on activations of shape (C, H, W, N), contiguous, so that one weight acts on N values side by
side. Nothing of the dense weight's shape is allocated. A linear layer is a convolution over one position.

The convolution and the gradient to its input are sums of rows: a row of the result is a position of an
output channel, and its terms are the kept weights of that channel times rows of the input. That is what
an embedding bag computes (`torch.nn.functional.embedding_bag` with weights per sample), and its kernel
holds a row's sum in registers until it is complete. The gradient to the weights is a product of which
only the kept entries are computed, `torch.sparse.sampled_addmm`, one for each tap.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fedprune.sparsity.execution.index import KernelIndex, Sweep, Window, input_sweeps, output_sweep

Slice = tuple[slice, int, Tensor]
"""Some outputs, a tap, and something about the weights from all inputs there, (outputs, in)."""

_TERMS = 2**17  # of a call of the embedding bag: their indices and weights fit a core's cache
_RESULTS = 2**18  # values that a call makes, for the same reason
_SLICES = 8  # of the outputs of one tap, in gradients of whole layers


def convolve(index: KernelIndex, values: Tensor, x: Tensor) -> Tensor:
    """Return the convolution of x with the kept weights, without a bias.

    Parameters
    ----------
    index : KernelIndex
        Where the weights are.
    values : Tensor
        (kept,), in row-major order.
    x : Tensor
        (in, H, W, N), contiguous.

    Returns
    -------
    Tensor
        (out, H', W', N), contiguous.
    """
    _, height, width, batch = x.shape
    out = x.new_empty(index.outputs, *index.window.output(height, width), batch)
    sweep = output_sweep(index.window, height, width)
    _gather(x, out, sweep, index.channels(), index.taps(), index.rows, values)
    return out


def input_gradient(index: KernelIndex, values: Tensor, gradient: Tensor, height: int, width: int) -> Tensor:
    """Return the gradient to the input, (in, height, width, N), of one to the output, (out, H', W', N)."""
    result = gradient.new_empty(index.inputs, height, width, gradient.shape[-1])
    order = index.by_input.int()
    channels, taps, values = index.output_channels()[order], index.taps()[order], values[order]
    for phase, sweep in enumerate(input_sweeps(index.window, height, width)):
        if sweep is None:
            continue
        rows = index.input_rows[phase * index.inputs : (phase + 1) * index.inputs + 1]
        part = result[:, sweep.lattice[0], sweep.lattice[1]]
        start, end = int(rows[0]), int(rows[-1])
        if start == end:
            part.zero_()
            continue
        own = slice(start, end)
        _gather(gradient, part, sweep, channels[own], taps[own], rows - start, values[own])
    return result


def weight_gradient(index: KernelIndex, x: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient to the kept weights, (kept,), from the input and the output's gradient.

    Parameters
    ----------
    index : KernelIndex
        Where the weights are.
    x, gradient : Tensor
        (in, H, W, N) and (out, H', W', N), contiguous.
    """
    if not index.kept:
        return x.new_empty(0)
    taps, channels = index.taps(), index.channels()
    places = {tap: own for tap in range(len(index.window.taps)) if len(own := (taps == tap).nonzero()[:, 0])}
    result = x.new_empty(index.kept)
    for tap, left, right in tap_operands(index.window, x, gradient, places):
        own = places[tap]
        pattern = torch.sparse_csr_tensor(
            torch.searchsorted(own, index.rows, out_int32=True),
            channels[own],
            x.new_zeros(len(own)),
            (index.outputs, index.inputs),
            check_invariants=False,
        )
        result[own] = torch.sparse.sampled_addmm(pattern, left, right, beta=0).values()
    return result


def gradient_slices(
    index: KernelIndex, passes: Sequence[tuple[Tensor, Tensor]], dtype: torch.dtype
) -> Iterator[Slice]:
    """Yield the gradient to all weights, the pruned ones too, in slices that are a small part of the layer.

    Parameters
    ----------
    index : KernelIndex
        Of the layer.
    passes : Sequence
        The inputs and the output's gradients of some backward passes, as of `weight_gradient`; the
        gradients are added.
    dtype : torch.dtype
        That of ``passes``.
    """
    taps = _by_phase(index.window, range(len(index.window.taps)))
    rows = -(-index.outputs // _SLICES)
    operands = (tap_operands(index.window, x, gradient, taps) for x, gradient in passes)
    for tap, *parts in zip(taps, *operands, strict=True):
        for first in range(0, index.outputs, rows):
            own = slice(first, min(first + rows, index.outputs))
            total = torch.zeros(own.stop - first, index.inputs, dtype=dtype)
            for _, left, right in parts:
                total.addmm_(left[own], right)
            yield own, tap, total


def tap_operands(
    window: Window, x: Tensor, gradient: Tensor, taps: Collection[int]
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield for each of these taps the two matrices, (out, M) and (M, in), whose product is its gradient.

    ``x`` and ``gradient`` are those of `weight_gradient`. The taps come lattice by lattice.
    """
    batch, output = x.shape[-1], gradient.shape[1:3]
    grid = _grid(window, (x.shape[1], x.shape[2]), (output[0], output[1]))
    left = gradient
    if grid != output:
        left = gradient.new_empty(len(gradient), *grid, batch)
        _put(gradient, left, 0, 0)
    left = left.view(len(gradient), -1)
    loaded, lattice = -1, x
    for tap in _by_phase(window, taps):
        if window.phases[tap] != loaded:
            loaded = window.phases[tap]
            lattice = _on_grid(window, x, loaded, grid)
        down, along = window.shifts[tap]
        moved = lattice[(down * grid[1] + along) * batch :][: len(x) * left.shape[1]]
        yield tap, left, moved.view(len(x), -1).t()


def _by_phase(window: Window, taps: Collection[int]) -> list[int]:
    """Return taps in the order of the lattices that they read, so that each is laid out once."""
    return sorted(taps, key=window.phases.__getitem__)


def _grid(window: Window, size: tuple[int, int], output: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width of a grid on which every tap's reads are those of one flat shift.

    What a tap reads to the right of a row is the next row's left padding, and below the last row the next
    channel's: with stride 1 the padding is needed once. With a larger one there is room for all reads.
    """
    height, width = (
        max(size[axis] + window.padding[axis], output[axis])
        if window.stride[axis] == 1
        else output[axis] + max(shift[axis] for shift in window.shifts)
        for axis in (0, 1)
    )
    return height, width


def _on_grid(window: Window, x: Tensor, phase: int, grid: tuple[int, int]) -> Tensor:
    """Return one lattice of the padded input on the grid, flat, with room for the longest shift."""
    batch = x.shape[-1]
    room = max(down * grid[1] + along for down, along in window.shifts) * batch
    if not room and window.stride == (1, 1) and x.shape[1:3] == grid:
        return x.view(-1)
    size = x.shape[0] * grid[0] * grid[1] * batch
    flat = x.new_empty(size + room)
    flat[size:] = 0
    residues = divmod(phase, window.stride[1])
    starts = []
    for axis in (0, 1):
        stride, padding = window.stride[axis], window.padding[axis]
        first = (residues[axis] - padding) % stride
        starts.append((first + padding) // stride)
        # What lies beyond the grid no output reads.
        reach = first + max(0, grid[axis] - starts[axis]) * stride
        x = x[:, first:reach:stride] if axis == 0 else x[:, :, first:reach:stride]
    _put(x, flat[:size].view(x.shape[0], *grid, batch), *starts)
    return flat


def _put(x: Tensor, target: Tensor, top: int, left: int) -> None:
    """Copy (C, H, W, N) into a larger tensor of which the rest becomes 0."""
    bottom, right = top + x.shape[1], left + x.shape[2]
    target[:, :top] = 0
    target[:, bottom:] = 0
    target[:, top:bottom, :left] = 0
    target[:, top:bottom, right:] = 0
    target[:, top:bottom, left:right] = x


def _gather(
    source: Tensor, out: Tensor, sweep: Sweep, channels: Tensor, taps: Tensor, rows: Tensor, values: Tensor
) -> None:
    """Write to ``out``, (R, H', W', N), for each row and position the sum of weights times what they read.

    ``channels``, ``taps`` and ``values`` are of the weights, row after row; ``rows``, (R + 1,), says where
    each row begins. ``source`` is (C, H, W, N), contiguous.
    """
    count, batch, terms, places = len(out), out.shape[-1], len(values), len(sweep.positions)
    if not terms:
        out.zero_()
        return
    table = source.view(-1, batch)
    base = channels * (source.shape[1] * source.shape[2]) + sweep.offsets[taps]
    # A tap that reads padding keeps its place in the sum, with the weight 0 and any row of the source.
    weights = values * sweep.reaches.to(values.dtype).index_select(1, taps)
    step = max(1, min(places, _TERMS // terms, _RESULTS // (count * batch)))
    starts = (torch.arange(step, dtype=torch.int32)[:, None] * terms + rows[:-1]).view(-1)
    result = out if out.is_contiguous() else torch.empty_like(out, memory_format=torch.contiguous_format)
    target = result.view(count, places, batch)
    for first in range(0, places, step):
        own = slice(first, first + step)
        indices = (sweep.positions[own, None] + base).clamp_(0, len(table) - 1)
        sums = functional.embedding_bag(
            indices.view(-1),
            table,
            starts[: len(indices) * count],
            mode="sum",
            per_sample_weights=weights.index_select(0, sweep.kinds[own]).view(-1),
        )
        target[:, own] = sums.view(-1, count, batch).transpose(0, 1)
    if result is not out:
        out.copy_(result)


def _silence_beta_warning() -> None:
    """Use up PyTorch's one warning that sparse CSR tensors are in beta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1), check_invariants=False)


_silence_beta_warning()
