"""What can go wrong with a task, as kinds that results count: for machines, beside the reason for people.

A client, a grid and the server each know some of them. Across the wire a kind travels as the code of
Flower's error reply: Flower's own where it has one, else one of ours, from 1001 on.
"""

from __future__ import annotations

from enum import StrEnum


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


#: The code of an error reply for each kind that has one; the first two are Flower's.
CODES = {
    Fault.RAISED: 2,  # flwr.common.constant.ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    Fault.NO_REPLY: 3,  # ErrorCode.MESSAGE_UNAVAILABLE
    Fault.UNKNOWN_MASK: 1001,
    Fault.OVER_BUDGET: 1002,
    Fault.DROPPED_OUT: 1003,
    Fault.WORKER_DIED: 1004,
    Fault.LATE: 1005,
    Fault.NOT_FINITE: 1006,
    Fault.TOO_LARGE: 1007,
    Fault.UNREADABLE: 1008,
    Fault.WRONG_SHAPE: 1009,
    Fault.GONE: 1010,
}
_KINDS = {code: fault for fault, code in CODES.items()} | {
    1: Fault.RAISED,  # ErrorCode.LOAD_CLIENT_APP_EXCEPTION
    4: Fault.NO_REPLY,  # ErrorCode.REPLY_MESSAGE_UNAVAILABLE
    5: Fault.GONE,  # ErrorCode.NODE_UNAVAILABLE
    8: Fault.RAISED,  # ErrorCode.CLIENT_APP_CRASHED
}


def fault_of(code: int) -> Fault:
    """Return the kind of fault that the code of an error reply stands for."""
    return _KINDS.get(code, Fault.OTHER)
