"""Kinds of faults of a task, which results count; the reason beside is free text.

A client, a grid and the server each know some of them. Across the wire a kind travels as the code of
Flower's error reply: Flower's own where it has one, else one of ours, from 1001 on.
"""

from __future__ import annotations

from fedprune.errors import Fault as Fault

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
