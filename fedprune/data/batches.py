"""Batches as a model takes them: pixels become normalised float tensors here, and augmentation happens here.

Not for reading or splitting. Images stay uint8 until a batch is made, so a client costs a quarter of the
memory that float images would.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fedprune.data.dataset import DataInfo, Images, Indices


def batches(
    images: Images,
    indices: Indices,
    info: DataInfo,
    batch_size: int,
    generator: torch.Generator | None = None,
    augment: Sequence[str] = (),
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch over ``indices`` as (x, y): float32 (B, C, H, W), normalised, and int64 (B,).

    With a generator the images are shuffled, for training; without one they come in the order of
    ``indices``. The last batch may be smaller. When shuffling, a last batch of a single image is left out
    where others came before it: batch norm in training mode can't take one value per channel.

    Parameters
    ----------
    batch_size
        Images in a batch, at least 1.
    generator
        Source of every random number drawn, on the CPU.
    augment
        Names from ``AUGMENTATIONS``, applied in this order; they need a generator.

    Raises
    ------
    ValueError
        Where ``augment`` is given without a generator.
    """
    if augment and generator is None:
        raise ValueError("augmentation draws random numbers: pass a generator")
    scale, shift = normalisation(info.mean, info.std)
    order = indices
    if generator is not None:
        order = indices[torch.randperm(len(indices), generator=generator).numpy()]
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        if generator is not None and len(chosen) == 1 and start > 0 and batch_size > 1:
            return
        x = torch.from_numpy(images.pixels[chosen])
        for name in augment:
            assert generator is not None
            x = AUGMENTATIONS[name](x, generator)
        yield x.float().mul_(scale).add_(shift), torch.from_numpy(images.labels[chosen])


def parts(x: Tensor, y: Tensor, size: int | None) -> list[tuple[Tensor, Tensor]]:
    """Cut a batch into parts of about equal length, at most ``size``; None: it stays whole.

    From a size of 3 on, no part of two or more examples is cut into single ones.
    """
    count = 1 if size is None else -(-len(y) // size)
    if count <= 1:
        return [(x, y)]
    return list(zip(x.tensor_split(count), y.tensor_split(count), strict=True))


def normalisation(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return scale and shift, (C, 1, 1), for which pixel * scale + shift = (pixel / 255 - mean) / std."""
    means, stds = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (mean, std))
    return (1 / (255 * stds)).float(), (-means / stds).float()


def crop_padding(height: int, width: int) -> int:
    """Return by how many black pixels ``crop`` may shift an image: an eighth of its smaller side, 1 to 4."""
    return min(4, max(1, min(height, width) // 8))


def crop(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Return images (B, C, H, W), each padded with black and cut back to H x W at a place of its own."""
    count, _, height, width = pixels.shape
    padding = crop_padding(height, width)
    top, left = torch.randint(0, 2 * padding + 1, (2, count), generator=generator)
    padded = functional.pad(pixels, [padding] * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: (B, C, 2 padding + 1, same, H, W)
    return windows[torch.arange(count), :, top, left]


def flip(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Return images (B, C, H, W), each mirrored left to right with probability 1/2."""
    mirrored = torch.rand(len(pixels), generator=generator) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1), pixels.flip(-1), pixels)


AUGMENTATIONS = {"crop": crop, "flip": flip}
