"""Weights & Biases: a run that stays in the run folder, for ``wandb sync``, or goes to a server at once."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from fedprune.loggers.base import Logger, RunEnd, RunStart
from fedprune.results.folder import WANDB
from fedprune.results.records import write_atomically

if TYPE_CHECKING:
    from wandb import Run

# As the tracker itself says of a script that ended so.
_EXIT_CODES = {"complete": 0, "interrupted": 255, "failed": 1}
# How soon a round is on disk, where it outlives the process; the tracker's own default is 15.
_FLUSH_SECONDS = 0.1
# How long a run may take to end there before it can go on in the same process.
_IN_USE_SECONDS = 30.0
_STATE = "fedprune.json"  # The file that says which run of the tracker a run folder is, and how far it is.


class WandB(Logger):
    """A run of Weights & Biases: configuration, history, summary and files; offline if nothing else is said.

    A run that goes on from a checkpoint goes on with its run there. Credentials come from ``wandb login`` or
    WANDB_API_KEY.
    """

    needs = {"wandb": "fedprune[wandb]"}  # noqa: RUF012

    class Options(Logger.Options):
        """Where the run goes, and under what."""

        mode: Literal["offline", "online"] | None = Field(
            default=None,
            description="offline: into the run folder, for wandb sync; online: to the server; null: what "
            "WANDB_MODE says, else offline.",
        )
        project: str = Field(default="fedprune", min_length=1, description="The project.")
        entity: str | None = Field(default=None, description="The user or team; null: that of the login.")
        group: str | None = Field(default=None, description="What the run belongs to, such as a study.")
        tags: list[str] = Field(default=[], description="Tags of the run.")

    _run: Run

    def on_start(self, start: RunStart) -> None:
        """Make a run, or go on with it."""
        import wandb

        settings = wandb.Settings(console="off", silent=True, x_transaction_log_flush_interval=_FLUSH_SECONDS)
        home = start.directory / WANDB
        home.mkdir(exist_ok=True)
        self._state = home / _STATE
        known, self._last = _known(self._state) if start.last_round is not None else (None, -1)
        mode: Any = self.options.mode or os.environ.get("WANDB_MODE", "offline")
        self._run = _begun(
            project=self.options.project,
            entity=self.options.entity,
            group=self.options.group,
            tags=self.options.tags,
            name=start.name,
            dir=str(start.directory),
            config=start.scenario.model_dump(mode="json", exclude={"logging"}),
            mode=mode,
            id=known,
            resume="allow" if known is not None and mode == "online" else None,
            reinit="create_new",  # A run that the process has of its own is none of ours.
            settings=settings,
        )
        self._note()
        for number, scalars in start.earlier:
            self.on_round(number, scalars)

    def on_round(self, number: int, scalars: Mapping[str, float]) -> None:
        """Log a round. Steps only go up: one that comes again is there already."""
        if number > self._last:
            self._run.log(dict(scalars), step=number, commit=True)
            self._last = number
            self._note()

    def on_end(self, end: RunEnd) -> None:
        """Log the summary and the files, and say how the run ended."""
        try:
            self._run.summary.update({f"summary/{name}": value for name, value in end.scalars.items()})
            self._run.summary.update({"status": end.status, "reason": end.reason})
            for file in end.files:
                copy = shutil.copy(file, self._run.dir)  # A link would come with a warning, and break.
                self._run.save(copy, base_path=self._run.dir, policy="now")
        finally:
            self._run.finish(exit_code=_EXIT_CODES[end.status])

    def _note(self) -> None:
        """Write down which run this is, and the last step that it has."""
        state = {"id": self._run.id, "step": self._last}
        write_atomically(self._state, f"{json.dumps(state)}\n".encode())


def _begun(**settings: Any) -> Run:
    """Make a run; wait where the tracker's own process is still at the end of the same one."""
    import wandb

    until = time.monotonic() + _IN_USE_SECONDS
    while True:
        try:
            return wandb.init(**settings)
        except Exception as error:  # Its class is not public.
            if "is in use" not in str(error) or time.monotonic() > until:
                raise
        time.sleep(0.2)


def _known(file: Path) -> tuple[str | None, int]:
    """Return the id of a run and its last step, from a file that may not be there."""
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None, -1
    return state["id"], state["step"]
