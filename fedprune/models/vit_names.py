"""What the tensors of a `vit` are called in checkpoints that people have, and positions at another size.

Known are the names of timm and of Hugging Face's ``transformers`` (as it saves ``ViTModel`` and
``ViTForImageClassification``, and as version 5 has them in memory). Not for other transformers, of language
or with distillation tokens: what a `vit` has no place for keeps its name, and whoever loads it refuses it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional

POSITIONS = "embedding.positions"

_TIMM = (
    (r"cls_token$", "embedding.class_token"),
    (r"pos_embed$", POSITIONS),
    (r"patch_embed\.proj\.", "embedding.patch."),
    (r"(blocks\.\d+)\.attn\.proj\.", r"\1.attention.out."),
    (r"(blocks\.\d+)\.mlp\.fc(\d)\.", r"\1.forward_layers.linear\2."),
)
_TRANSFORMERS = (
    (r"embeddings\.cls_token$", "embedding.class_token"),
    (r"embeddings\.position_embeddings$", POSITIONS),
    (r"embeddings\.patch_embeddings\.projection\.", "embedding.patch."),
    (r"layernorm\.", "norm."),
    (r"classifier\.", "head."),
)
_IN_TRANSFORMERS_LAYER = (
    (r"layernorm_before\.", "norm1."),
    (r"layernorm_after\.", "norm2."),
    (r"attention\.attention\.(query|key|value)\.", r"attention.\1."),
    (r"attention\.output\.dense\.", "attention.out."),
    (r"intermediate\.dense\.", "forward_layers.linear1."),
    (r"output\.dense\.", "forward_layers.linear2."),
    (r"attention\.q_proj\.", "attention.query."),
    (r"attention\.k_proj\.", "attention.key."),
    (r"attention\.v_proj\.", "attention.value."),
    (r"attention\.o_proj\.", "attention.out."),
    (r"mlp\.fc(\d)\.", r"forward_layers.linear\1."),
)


def vit_named(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, Tensor]]:
    """Return the tensors of a checkpoint under a `vit`'s own names, each with the name that it had.

    The fused matrix of timm's attention is cut into query, key and value. The pooler of ``ViTModel`` is left
    out: what stands at the class token goes into the classifier as it is.
    """
    if "cls_token" in tensors:
        pairs = _of_timm(tensors)
    elif any(name.endswith("embeddings.cls_token") for name in tensors):
        pairs = _of_transformers(tensors)
    else:
        pairs = ((name, name, tensor) for name, tensor in tensors.items())
    return {own: (name, tensor) for own, name, tensor in pairs}


def resampled(positions: Tensor, grid: tuple[int, int]) -> Tensor | None:
    """Return position embeddings at another number of patches; None where theirs form no square.

    Those of the patches are interpolated as timm does (``resample_abs_pos_embed``): bicubic, with
    antialiasing; that of the class token stays. ``transformers`` (``interpolate_pos_encoding``) does so
    without antialiasing, for which PyTorch has another cubic kernel (a = -0.75, not -0.5), also where there
    are more patches: values then differ a little.

    Parameters
    ----------
    positions
        (1, 1 + patches, size), the class token's first, of square pictures. What is returned is float32.
    grid
        Rows and columns of patches that are wanted.
    """
    first, patches = positions[:, :1].float(), positions[:, 1:].float()
    side = math.isqrt(patches.shape[1])
    if len(positions) != 1 or side < 1 or side * side != patches.shape[1]:
        return None
    picture = patches.transpose(1, 2).reshape(1, -1, side, side)
    found = functional.interpolate(picture, size=grid, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([first, found.flatten(2).transpose(1, 2)], dim=1)


def _of_timm(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, str, Tensor]]:
    for name, tensor in tensors.items():
        fused = re.fullmatch(r"(blocks\.\d+)\.attn\.qkv\.(weight|bias)", name)
        if fused is None or tensor.shape[0] % 3:
            yield _renamed(name, _TIMM), name, tensor
            continue
        for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
            yield f"{fused[1]}.attention.{part}.{fused[2]}", name, piece


def _of_transformers(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, str, Tensor]]:
    for name, tensor in tensors.items():
        short = name.removeprefix("vit.")
        if short.startswith("pooler."):
            continue
        layer = re.match(r"(?:encoder\.layer|layers)\.(\d+)\.", short)
        if layer is None:
            yield _renamed(short, _TRANSFORMERS), name, tensor
        else:
            inner = _renamed(short[layer.end() :], _IN_TRANSFORMERS_LAYER)
            yield f"blocks.{layer[1]}.{inner}", name, tensor


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    """Return a name with the first rule applied whose pattern it begins with."""
    for pattern, own in rules:
        if found := re.match(pattern, name):
            return found.expand(own) + name[found.end() :]
    return name
