"""How a command ends: exit statuses, errors on one line, and runs that a signal stops."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedprune.errors import FedpruneError, UserError

if TYPE_CHECKING:
    from fedprune.costs.ledger import RoundRecord, TaskRecord

_INTERRUPTED = 130

# What only an extra installs.
_EXTRAS = {
    **dict.fromkeys(("datasets", "flwr_datasets", "matplotlib", "ray", "sklearn"), "sim"),
    **dict.fromkeys(("pandas", "scipy"), "study"),
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "export"),
}


def exit_status(command: Callable[[], object]) -> int:
    """Call a command and return its exit status; say on standard error why it failed, in one line."""
    try:
        status = command()
    except FedpruneError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        print(f"error: this needs {error.name}: pip install 'fedprune[{extra}]' adds it", file=sys.stderr)
        return UserError.exit_status
    except (KeyboardInterrupt, click.Abort):
        status = _INTERRUPTED
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return FedpruneError.exit_status
    # Some versions of typer turn Ctrl-C into this status themselves.
    if status == _INTERRUPTED:
        print("interrupted", file=sys.stderr)
    return status if isinstance(status, int) else 0


class Ending:
    """Ends a run on a signal, as Ctrl-C does; listens to the run for the case that nobody heard it.

    Python drops an exception that a signal's handler raises inside a finalizer or a weak reference's
    callback, of which Ray has many: the run then ends with its next task.
    """

    def __init__(self) -> None:
        self._asked = False

    def __call__(self, number: int, frame: object) -> None:
        """Handle the signal."""
        self._asked = True
        raise KeyboardInterrupt

    def on_task(self, task: TaskRecord) -> None:
        """End the run if it was to end."""
        if self._asked:
            raise KeyboardInterrupt

    def on_round(self, round: RoundRecord) -> None:
        """End the run if it was to end."""
        if self._asked:
            raise KeyboardInterrupt


@contextmanager
def endable(folder: Path) -> Iterator[Ending]:
    """Let SIGTERM end a run as Ctrl-C does, and say then what is left of it."""
    ending = Ending()
    before = {number: signal.signal(number, ending) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield ending
    except KeyboardInterrupt:
        from fedprune.engine.checkpoints import listed

        more = f"; fedprune resume {folder} goes on with it" if listed(folder) else ""
        print(f"the run folder {folder} holds the rounds that ended{more}", file=sys.stderr)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
