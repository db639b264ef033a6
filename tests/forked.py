"""Commands of fedprune in processes that are killed: forks of one process that has everything imported.

A process started anew takes seconds to import PyTorch and Flower. Clients run in the fork
itself, without Ray; what a command needs of Ray is tested with real commands.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from fedprune.cli import main
from fedprune.costs.ledger import RoundRecord
from fedprune.engine import simulation
from fedprune.engine.hosts import InProcess
from fedprune.results.folder import RunFolder

# What a run imports by and by, and a fork has already: PyTorch's compiler, and what draws the figures.
for _module in ("torch._inductor.config", "matplotlib.figure", "matplotlib.backends.backend_pdf"):
    import_module(_module)

#: How a process ends that was killed.
KILLED = -signal.SIGALRM


@dataclass(frozen=True)
class Kill:
    """Ends a process some seconds after a round of its run has ended, in whatever it then does.

    Where the round had ended before, the seconds count from the process's start.
    """

    run: Path
    round: int
    seconds: float


def start(arguments: Sequence[str], log: Path, *, kill: Kill | None = None) -> BaseProcess:
    """Start a command; what it writes is appended to ``log``."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        process = context.Process(target=_run, args=(list(arguments), log, kill))
        process.start()
    return process


def rounds_of(directory: Path) -> int:
    """Return the last round that has a line in a run folder; -1 before round 0 has one."""
    file = directory / "rounds.jsonl"
    return file.read_bytes().count(b"\n") - 1 if file.exists() else -1


def _run(arguments: list[str], log: Path, kill: Kill | None) -> None:
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(written, stream)
    simulation.OnRay = InProcess  # type: ignore[misc,assignment]
    if kill is not None:
        _arm(kill)
    sys.exit(main(arguments))


def _arm(kill: Kill) -> None:
    """Have the system end this process: Python has no say in what SIGALRM does, as with SIGKILL.

    The clock runs here rather than in a process that looks at the folder: however busy the machine is, the
    run comes no further than it can in that time.
    """

    def begin() -> None:
        signal.setitimer(signal.ITIMER_REAL, max(kill.seconds, 1e-6))

    if rounds_of(kill.run) >= kill.round:
        begin()
        return
    on_round = RunFolder.on_round

    def counting(folder: RunFolder, record: RoundRecord) -> None:
        on_round(folder, record)
        if record.round == kill.round:
            begin()

    RunFolder.on_round = counting  # type: ignore[method-assign]
