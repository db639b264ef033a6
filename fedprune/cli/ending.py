"""How a command ends: exit statuses, errors on one line, and runs that a signal stops."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedprune.errors import FedpruneError, UserError

if TYPE_CHECKING:
    from fedprune.engine.ending import Ending
    from fedprune.studies.study import Study

_INTERRUPTED = 130

# What only an extra installs.
_EXTRAS = {
    **dict.fromkeys(("datasets", "matplotlib", "ray", "sklearn"), "sim"),
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "export"),
    **dict.fromkeys(("jinja2", "optuna", "pandas", "plotly", "scipy"), "study"),
    **{tracker: tracker for tracker in ("tensorboard", "mlflow", "wandb")},
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


@contextmanager
def endable(folder: Path) -> Iterator[Ending]:
    """Let SIGTERM end a run as Ctrl-C does, and say then what is left of it."""
    from fedprune.engine.ending import Ending

    ending = Ending()
    try:
        with _on_signals(ending):
            yield ending
    except KeyboardInterrupt:
        from fedprune.engine.checkpoints import listed

        more = f"; fedprune resume {folder} goes on with it" if listed(folder) else ""
        print(f"the run folder {folder} holds the rounds that ended{more}", file=sys.stderr)
        raise


@contextmanager
def endable_study(study: Study) -> Iterator[None]:
    """Let SIGTERM end a study as Ctrl-C does, and say then what is left of it."""

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    try:
        with _on_signals(end):
            yield
    except KeyboardInterrupt:
        again = "the same command goes on with it"
        print(f"the study's folder {study.directory} holds the runs so far; {again}", file=sys.stderr)
        raise


@contextmanager
def _on_signals(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Have Ctrl-C and SIGTERM handled inside the block, and as before afterwards."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)
