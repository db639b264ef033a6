"""The errors that fedprune raises on purpose.

A ``UserError`` is a mistake that a person made in a scenario, a command or a path: the
command line prints its message alone, without a traceback, and ends with exit status 2.
Every other ``FedpruneError`` is a fault of a run or of a message: exit status 1.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class Fault(StrEnum):
    """A kind of fault, by the name that it has in results."""

    RAISED = "raised"  #: The client's code raised an error.
    NO_REPLY = "no-reply"  #: There was no reply in time: the client hangs, or is gone.
    GONE = "gone"  #: The device's SuperNode stopped, was restarted or lost its connection, in mid-task.
    WORKER_DIED = "worker-died"  #: The process that ran the client died.
    LATE = "late"  #: The reply came after the round's deadline.
    DROPPED_OUT = "dropped-out"  #: The device vanished inside the round.
    OVER_BUDGET = "over-budget"  #: The task needs more memory than the device has; the client refused it.
    UNKNOWN_MASK = "unknown-mask"  #: The client does not hold the mask, and did not take it either.
    NOT_FINITE = "not-finite"  #: Training diverged, or the reply holds values that are not finite.
    WRONG_SHAPE = "wrong-shape"  #: The reply is that of another model or mask.
    TOO_LARGE = "too-large"  #: The reply is larger than any good one.
    UNREADABLE = "unreadable"  #: The reply cannot be decoded, or lacks what was asked for.
    OTHER = "other"  #: An error reply whose code says nothing.


class FedpruneError(Exception):
    """Base of every error that fedprune raises on purpose."""

    exit_status = 1


class UserError(FedpruneError):
    """A mistake in what a person wrote; the message says what would be right."""

    exit_status = 2


class ScenarioError(UserError):
    """A scenario that cannot be read or does not describe a federation."""


class PluginError(UserError):
    """A strategy, client, model, data set or criterion that cannot be found or loaded."""


class DataError(UserError):
    """A data set that cannot be read or cannot be split as asked."""


class WireError(FedpruneError):
    """A message whose content is not what the format allows; names the tensor and the fault."""

    #: What results count a reply as that is refused for this.
    fault: ClassVar[Fault] = Fault.UNREADABLE


class ShapeError(WireError):
    """A message with more or fewer values than the model and mask have."""

    fault = Fault.WRONG_SHAPE


class NotFiniteError(WireError):
    """A message with values that are not finite."""

    fault = Fault.NOT_FINITE


class TooLargeError(WireError):
    """A message that is larger than any good one."""

    fault = Fault.TOO_LARGE


class TaskRefusedError(FedpruneError):
    """A task that a client does not do, or whose result it does not send; counted by its kind."""

    fault: ClassVar[Fault] = Fault.RAISED


class OverBudgetError(TaskRefusedError):
    """A task that needs more memory than the device has."""

    fault = Fault.OVER_BUDGET


class DivergedError(TaskRefusedError):
    """Training that ended with values that are not finite."""

    fault = Fault.NOT_FINITE


class RunError(FedpruneError):
    """A run that cannot go on."""
