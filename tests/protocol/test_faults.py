"""Kinds of faults and the codes by which they travel."""

from __future__ import annotations

from flwr.common.constant import ErrorCode

from fedprune.protocol.faults import CODES, Fault, fault_of


def test_codes_are_flowers_where_it_has_one_and_none_of_its_others():
    assert CODES[Fault.RAISED] == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert CODES[Fault.NO_REPLY] == ErrorCode.MESSAGE_UNAVAILABLE
    taken = {value for key, value in vars(ErrorCode).items() if key.isupper()}
    own = {code for fault, code in CODES.items() if fault not in (Fault.RAISED, Fault.NO_REPLY)}
    assert not own & taken


def test_every_code_stands_for_its_kind():
    assert {fault_of(code) for code in CODES.values()} == set(CODES)
    assert fault_of(ErrorCode.UNKNOWN) == Fault.OTHER
