"""Seeds for every random draw: a pure function of (scenario seed, purpose, numbers).

Nothing in fedprune draws from a global generator. A draw is named by its purpose and by the
numbers it belongs to, usually a round and a client, so it does not depend on what was drawn
before it, in which process, or in which order.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive(seed: int, purpose: str, *numbers: int) -> int:
    """Return a seed in [0, 2**63) for one purpose.

    Examples
    --------
    >>> derive(0, "batches", 3, 7) == derive(0, "batches", 3, 7)
    True
    >>> derive(0, "batches", 3, 7) == derive(0, "batches", 7, 3)
    False
    """
    key = ":".join([str(seed), purpose, *map(str, numbers)])
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def numpy_generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """Return a NumPy generator (Philox, the same bits on every platform) for one purpose."""
    return np.random.Generator(np.random.Philox(derive(seed, purpose, *numbers)))


def torch_generator(seed: int, purpose: str, *numbers: int) -> torch.Generator:
    """Return a PyTorch generator on the CPU for one purpose."""
    return torch.Generator().manual_seed(derive(seed, purpose, *numbers))
