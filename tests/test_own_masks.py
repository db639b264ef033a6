"""Requests that let clients move their masks: they travel as they are, and nothing else is accepted."""

from __future__ import annotations

import pytest
import torch
from flwr.app import ConfigRecord
from hypothesis import given
from hypothesis import strategies as st

from fedprune.errors import WireError
from fedprune.own_masks import AdjustRequest, TicketRequest
from fedprune.sparsity.masks import Masks

SENT = Masks({"a": torch.arange(20).reshape(4, 5) % 2 == 0, "b": torch.arange(10) < 6})
SHARES = st.floats(0, 1)


def changed(**flips):
    """Return the masks with some positions of some tensors turned over."""
    tensors = {name: mask.clone() for name, mask in SENT.items()}
    for name, places in flips.items():
        tensors[name].view(-1)[list(places)] ^= True
    return Masks(tensors)


@given(SHARES, SHARES, SHARES, st.integers(1, 9))
def test_requests_come_out_as_they_went_in(one, two, three, count):
    for request in (AdjustRequest(one, two, count), TicketRequest(one, two, three)):
        assert type(request).of(ConfigRecord(request.config())) == request


def test_without_a_request_there_is_none():
    assert AdjustRequest.of(ConfigRecord()) is None
    assert TicketRequest.of(ConfigRecord()) is None


@pytest.mark.parametrize(
    ("request_", "key", "value"),
    [
        (AdjustRequest(0.1, 0.5, 1), "adjust-share", 1.5),
        (AdjustRequest(0.1, 0.5, 1), "adjust-after", -0.1),
        (AdjustRequest(0.1, 0.5, 1), "adjust-batches", 0),
        (AdjustRequest(0.1, 0.5, 1), "adjust-batches", 0.5),
        (TicketRequest(0.1, 0.5, 0.2), "ticket-share", float("nan")),
        (TicketRequest(0.1, 0.5, 0.2), "ticket-density", "much"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(request_, key, value):
    config = ConfigRecord({**request_.config(), key: value})
    with pytest.raises(WireError, match=key):
        type(request_).of(config)


def test_an_adjustment_keeps_the_number_of_each_layer():
    request = AdjustRequest(0.5, 0.5, 1)
    request.check(changed(a=[0, 1], b=[0, 6]), SENT)
    with pytest.raises(WireError, match="'a' keeps 11 weights, expected 10"):
        request.check(changed(a=[1], b=[0]), SENT)


def test_a_ticket_is_a_part_of_the_former_one_of_just_the_right_size():
    """16 of 30 are kept; a quarter less is 12; the density stops it at 15."""
    quarter, nearly = TicketRequest(0.25, 0, 0.1), TicketRequest(0.25, 0, 0.5)
    quarter.check(changed(a=[0, 2, 4], b=[5]), SENT)
    nearly.check(changed(a=[0]), SENT)
    with pytest.raises(WireError, match="keep 13 weights, expected 12"):
        quarter.check(changed(a=[0, 2, 4]), SENT)
    with pytest.raises(WireError, match="keep 12 weights, expected 15"):
        nearly.check(changed(a=[0, 2, 4], b=[5]), SENT)
    with pytest.raises(WireError, match="'b' keeps a weight that was pruned"):
        quarter.check(changed(a=[0, 2, 4, 6], b=[5, 9]), SENT)
