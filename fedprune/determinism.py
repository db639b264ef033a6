"""One setting for every process that trains or evaluates: the same bits every time."""

from __future__ import annotations

import torch


def make_deterministic() -> None:
    """Make PyTorch compute the same bits every time: one thread, fixed algorithms, no TF32."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
