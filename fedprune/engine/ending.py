"""How a signal, or a listener, ends a run: in order, with its folder complete up to the last round."""

from __future__ import annotations

from fedprune.costs.ledger import RoundRecord, TaskRecord


class Halted(KeyboardInterrupt):
    """Raised by a listener to end a run in order, as a signal does; its text says why."""


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
