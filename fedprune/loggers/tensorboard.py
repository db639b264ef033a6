"""TensorBoard: event files in ``tensorboard/`` of the run folder, for ``tensorboard --logdir runs``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fedprune.loggers.base import Logger, RunEnd, RunStart
from fedprune.results.folder import TENSORBOARD

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_TOLD = "last_round"  # The file that says up to which round the event files are whole.


class TensorBoard(Logger):
    """Event files for TensorBoard: scalars, the scenario, figures and hyperparameters with what they reached.

    A run that goes on from a checkpoint writes another file, which has TensorBoard drop the rounds after the
    checkpoint from the ones before.
    """

    needs = {"tensorboard": "fedprune[tensorboard]"}  # noqa: RUF012
    _writer: SummaryWriter

    def on_start(self, start: RunStart) -> None:
        """Open an event file."""
        from torch.utils.tensorboard import SummaryWriter

        home = start.directory / TENSORBOARD
        self._told = home / _TOLD
        self._last = 0
        self._parameters = start.parameters
        first = 0 if start.last_round is None else min(start.last_round, _last_told(self._told)) + 1
        self._writer = SummaryWriter(str(home), purge_step=None if start.last_round is None else first)
        if first == 0:
            text = "".join(f"    {line}\n" for line in start.scenario.to_yaml().splitlines())
            self._writer.add_text("scenario", text, 0)
        for number, scalars in start.earlier:
            if number >= first:
                self.on_round(number, scalars)
        self._writer.flush()

    def on_round(self, number: int, scalars: Mapping[str, float]) -> None:
        """Write a round, to disk: a run that is killed loses none."""
        self._last = number
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, number)
        self._writer.flush()
        self._told.write_text(f"{number}\n", encoding="utf-8")

    def on_end(self, end: RunEnd) -> None:
        """Write the summary, the figures and how the run ended."""
        try:
            for file in end.files:
                if file.suffix == ".png":
                    self._add_figure(file)
            status = f"{end.status}: {end.reason}" if end.reason else end.status
            self._writer.add_text("status", status, self._last)
            summary = {f"summary/{name}": value for name, value in end.scalars.items()}
            self._writer.add_hparams(
                {**self._parameters, "status": end.status}, summary, run_name=".", global_step=self._last
            )
        finally:
            self._writer.close()

    def _add_figure(self, file: Path) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(file) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._writer.add_image(f"figures/{file.stem}", pixels, self._last, dataformats="HWC")


def _last_told(file: Path) -> int:
    """Return the round that a file says; -1 where it does not, or is not there."""
    try:
        return int(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return -1
