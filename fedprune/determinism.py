"""One setting for every process that trains, prunes or evaluates: the same bits every time.

On x86-64, PyTorch computes with the widest instructions that a processor has, and sums in another order with
each kind: results differ in the last bits from one processor to another, and after a few rounds in the first
digits. With ``"portable"`` instructions they are the same bits on all processors with AVX2, from any vendor.
`docs/concepts/determinism.md` says what that costs, and what still differs.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Instructions = Literal["portable", "native"]

#: What each of PyTorch's libraries reads when it first computes. MKL's AVX2 code takes other paths on
#: processors of other vendors; what it calls compatible does not.
PORTABLE = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "COMPATIBLE"}

_logger = logging.getLogger(__name__)


def make_deterministic(instructions: Instructions = "portable") -> None:
    """Make PyTorch compute the same bits every time: one thread, fixed algorithms, no TF32.

    Sums over several threads depend on their number; a second thread of the server also takes a
    core from the clients.

    Parameters
    ----------
    instructions : "portable" or "native"
        Portable: those that every x86-64 processor with AVX2 has, so that all of them give the same bits;
        effective where PyTorch has not computed in this process yet, else a warning is logged. Values that
        the environment has for the same settings stay. Native: the widest that this processor has.
    """
    if instructions == "portable":
        use_portable_instructions()
    torch.set_num_threads(1)
    # That is use_deterministic_algorithms(True, warn_only=True), which also imports PyTorch's compiler.
    torch.set_deterministic_debug_mode("warn")
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def use_portable_instructions() -> None:
    """Have this process, and those that it starts, use instructions that x86-64 processors share."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return
    for name, value in PORTABLE.items():
        os.environ.setdefault(name, value)
    chosen = torch.backends.cpu.get_cpu_capability()
    if os.environ["ATEN_CPU_CAPABILITY"] == "avx2" and chosen not in ("AVX2", "DEFAULT"):
        _logger.warning(
            "PyTorch computes with %s in this process since before fedprune was called: results may differ "
            "in the last bits from those of `fedprune run`",
            chosen,
        )


@contextmanager
def deterministic(instructions: Instructions = "portable") -> Iterator[None]:
    """Be deterministic inside the block, and afterwards as before: for a process that is not ours alone.

    The instructions stay as they are: a process chooses them once.
    """
    threads, strict = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    benchmark = torch.backends.cudnn.benchmark
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    make_deterministic(instructions)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode(strict)
        torch.backends.cudnn.benchmark = benchmark
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
