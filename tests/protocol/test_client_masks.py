"""Requests that let clients move their masks: they travel as they are, and nothing else is accepted."""

from __future__ import annotations

import pytest
import torch
from flwr.app import ConfigRecord
from hypothesis import given
from hypothesis import strategies as st

from fedprune.errors import WireError
from fedprune.protocol.client_masks import (
    AdjustRequest,
    ComplementRequest,
    NextMasksRequest,
    OneShotRequest,
    PruneAnewRequest,
    TicketRequest,
)
from fedprune.protocol.sensitivity import MoveRequest, SensitivityRequest
from fedprune.server.client_masks import PersonalMasks
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
    for request in (
        AdjustRequest(one, two, count),
        ComplementRequest(),
        MoveRequest(one),
        NextMasksRequest(one, count),
        OneShotRequest(one),
        PruneAnewRequest(),
        SensitivityRequest(count, one),
        TicketRequest(one, two, three),
    ):
        assert type(request).of(ConfigRecord(request.config())) == request


def test_without_a_request_there_is_none():
    for kind in (
        AdjustRequest,
        ComplementRequest,
        MoveRequest,
        NextMasksRequest,
        OneShotRequest,
        PruneAnewRequest,
        TicketRequest,
    ):
        assert kind.of(ConfigRecord()) is None


@pytest.mark.parametrize(
    ("request_", "key", "value"),
    [
        (AdjustRequest(0.1, 0.5, 1), "adjust-share", 1.5),
        (AdjustRequest(0.1, 0.5, 1), "adjust-after", -0.1),
        (AdjustRequest(0.1, 0.5, 1), "adjust-batches", 0),
        (AdjustRequest(0.1, 0.5, 1), "adjust-batches", 0.5),
        (TicketRequest(0.1, 0.5, 0.2), "ticket-share", float("nan")),
        (TicketRequest(0.1, 0.5, 0.2), "ticket-density", "much"),
        (OneShotRequest(0.1), "one-shot-density", 2),
        (MoveRequest(0.1), "move-rate", -0.1),
        (NextMasksRequest(0.1, 1), "next-share", 1.5),
        (NextMasksRequest(0.1, 1), "next-batches", 0),
        (SensitivityRequest(2, 0.1), "sensitivity-epochs", 0),
        (SensitivityRequest(2, 0.1), "sensitivity-rate", "much"),
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


def test_masks_anew_are_the_largest_of_the_model_and_as_many_as_before():
    weights = {"a": torch.arange(-10.0, 10).reshape(4, 5), "b": torch.linspace(-1, 1, 10)}
    found = PruneAnewRequest().masks(weights, SENT)
    PruneAnewRequest().check(found, SENT)
    assert found.kept == {"a": 15, "b": 1}  # 16 in all, and at least one of each layer.
    assert not found["a"].flatten()[8:13].any()  # -2 to 2.
    with pytest.raises(WireError, match="keep 15 weights, expected 16"):
        PruneAnewRequest().check(changed(a=[0]), SENT)


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


def test_one_shot_keeps_the_highest_scores_of_each_layer():
    """Half of 20 and of 10 are 10 and 5, of which "a" keeps 10 already; a fifth is 4 and 2."""
    scores = {"a": torch.arange(10.0) % 7, "b": torch.tensor([0.0, 5, -1, 5, 5, 2])}
    half = OneShotRequest(0.5).masks(scores, SENT)
    assert half == changed(b=[2])
    fifth = OneShotRequest(0.2).masks(scores, SENT)
    assert fifth["a"].flatten().nonzero().flatten().tolist() == [6, 8, 10, 12]  # scores 3, 4, 5 and 6
    assert fifth["b"].nonzero().flatten().tolist() == [1, 3]  # of equal scores the first
    for request, masks in ((OneShotRequest(0.5), half), (OneShotRequest(0.2), fifth)):
        request.check(masks, SENT)
        assert request.masks({name: torch.zeros(n) for name, n in masks.kept.items()}, masks) is masks


def test_one_shot_masks_are_nested_and_of_just_the_right_size():
    request = OneShotRequest(0.5)
    request.check(changed(b=[0]), SENT)
    with pytest.raises(WireError, match="'b' keeps 4 weights, expected 5"):
        request.check(changed(b=[0, 1]), SENT)
    with pytest.raises(WireError, match="'b' keeps 6 weights, expected 5"):
        request.check(SENT, SENT)
    with pytest.raises(WireError, match="'b' keeps a weight that was pruned"):
        request.check(changed(b=[0, 1, 6]), SENT)


def test_personal_masks_are_each_clients_own_and_their_union_what_any_keeps():
    mine = PersonalMasks(SENT, 3)
    own = {0: changed(a=[0, 2]), 2: changed(a=[0, 4], b=[1])}
    for number, masks in own.items():
        mine.note(number, masks)
    assert [mine.of(number) for number in range(3)] == [own[0], SENT, own[2]]
    assert mine.union() == SENT  # Client 1 has all of it.
    own |= {1: changed(a=[0, 6], b=[1, 2]), 2: changed(a=[0, 2, 4], b=[1])}
    for number in (1, 2, 2):
        mine.note(number, own[number])
    assert mine.union() == changed(a=[0])
    assert [mine.of(number) for number in range(3)] == [own[0], own[1], own[2]]
