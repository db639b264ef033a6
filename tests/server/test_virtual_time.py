"""Deadlines, over-sampling, availability and dropout: on virtual time, by the seed alone."""

from __future__ import annotations

import math
import random

import pytest
from inprocess import federate, plan, same_state

from fedprune import seeds
from fedprune.costs.clock import done_by, task_seconds
from fedprune.costs.devices import resolve
from fedprune.protocol.faults import Fault

SPEED = {"memory": 2**40, "downlink": 1e5, "uplink": 1e5}


def devices(**changes):
    """Return a fast device for clients 0 and 1, and one far slower for 2 and 3."""
    return [
        {"name": "fast", "compute": 1e9, "count": 2, **SPEED},
        {"name": "slow", "compute": 1e5, "count": 2, **SPEED, **changes},
    ]


def federation(**changes):
    base = {"clients.per_round": 4, "clients.devices": devices(), "model": {"name": "mlp"}}
    return plan(**{**base, **changes})


def trains(made, server_round=None):
    return [t for t in made.tasks if t.type == "train" and server_round in (None, t.round)]


@pytest.fixture(scope="module")
def unhurried():
    return federate(federation())


def test_what_is_done_of_a_task_by_a_time():
    device = resolve(label="x", memory=1, compute=10.0, downlink=100.0, uplink=50.0)
    whole = (200, 30, 100)  # 2 s, 3 s and 2 s.
    assert done_by(device, *whole, 7.0) == whole
    assert done_by(device, *whole, 100.0) == whole
    assert done_by(device, *whole, 1.0) == (100, 0, 0)
    assert done_by(device, *whole, 4.0) == (200, 20, 0)
    assert done_by(device, *whole, 6.0) == (200, 30, 50)
    assert done_by(device, *whole, 0.0) == (0, 0, 0)


def test_who_is_late_is_dropped_and_counts_as_far_as_it_had_come(unhurried):
    seconds = {t.client: t.device_seconds for t in trains(unhurried, 1)}
    deadline = (max(seconds[0], seconds[1]) + min(seconds[2], seconds[3])) / 2
    made = federate(federation(**{"clients.deadline": deadline}))
    for task in trains(made):
        before = next(t for t in trains(unhurried) if (t.round, t.client) == (task.round, task.client))
        if task.client < 2:
            assert (task.status, task.device_seconds) == ("ok", before.device_seconds)
            continue
        assert (task.status, task.fault) == ("failed", Fault.LATE)
        assert "the deadline is" in task.reason
        assert task.device_seconds == deadline
        profile = made.strategy.clients[task.client].profile
        assert (task.bytes_down, task.bytes_up) == (before.bytes_down, 0)
        assert task.flops == math.floor((deadline - task.bytes_down / profile.downlink) * profile.compute)
    for record in made.rounds[1:]:
        assert record.device_seconds == deadline
        assert record.faults == {"late": 2}
        assert record.classes["slow"].late == record.classes["slow"].asked == 2
        assert record.classes["fast"].ok == 2


def test_a_deadline_that_all_meet_changes_nothing(unhurried):
    made = federate(federation(**{"clients.deadline": 1e9}))
    assert same_state(made.strategy.state, unhurried.strategy.state)
    assert [r.device_seconds for r in made.rounds] == [r.device_seconds for r in unhurried.rounds]


def test_the_late_count_for_nothing_in_the_model(unhurried):
    """It is that of a run in which they were never asked."""
    seconds = {t.client: t.device_seconds for t in trains(unhurried, 1)}
    deadline = (max(seconds[0], seconds[1]) + min(seconds[2], seconds[3])) / 2
    late = federate(federation(**{"clients.deadline": deadline}))
    away = federate(federation(**{"clients.devices": devices(availability=0.0)}))
    assert same_state(late.strategy.state, away.strategy.state)


def test_a_round_in_which_all_are_late_leaves_the_model_as_it_is():
    made = federate(federation(**{"clients.deadline": 1e-6}))
    assert same_state(made.strategy.state, made.strategy.model.initial)
    assert [record.clients_ok for record in made.rounds[1:]] == [0, 0]
    assert made.rounds[-1].scores["accuracy"] is not None
    assert made.rounds[-1].train_loss is None


@pytest.mark.parametrize("aggregator", [None, "flwr.serverapp.strategy.FedAdam"])
def test_a_round_in_which_nobody_is_there_leaves_the_model_as_it_is(aggregator):
    everyone = [{"name": "shy", "compute": 1e9, "availability": 0.0, "count": 4, **SPEED}]
    made = federate(
        federation(**{"clients.devices": everyone}, strategy={"name": "fedavg", "aggregator": aggregator})
    )
    assert same_state(made.strategy.state, made.strategy.model.initial)
    assert [(r.clients_ok, r.clients_offline, r.bytes_down) for r in made.rounds[1:]] == [(0, 4, 0)] * 2


def test_of_more_that_are_asked_the_first_in_virtual_time_are_taken(unhurried):
    seconds = {t.client: t.device_seconds for t in trains(unhurried, 1)}
    made = federate(federation(**{"clients.per_round": 3, "clients.over_sample": 1.34}))
    third = sorted(seconds.values())[2]
    tasks = trains(made, 1)
    assert {t.client for t in tasks} == {0, 1, 2, 3}
    assert {t.client for t in tasks if t.status == "ok"} == {c for c, s in seconds.items() if s <= third}
    (surplus,) = [t for t in tasks if t.status == "surplus"]
    assert surplus.fault is None
    assert surplus.device_seconds == third
    record = made.rounds[1]
    assert (record.device_seconds, record.clients_surplus, record.clients_failed) == (third, 1, 0)
    assert record.classes["slow"].surplus == 1


def test_over_sampling_makes_up_for_those_that_are_missing():
    """With nobody missing too many are asked, with one missing just as many as are wanted."""
    settings = {"clients.per_round": 3, "clients.over_sample": 1.34}
    gone = federate(federation(**settings, **{"clients.devices": devices(dropout=0.5), "rounds": 6}))
    for record in gone.rounds[1:]:
        vanished = record.faults.get(Fault.DROPPED_OUT, 0)
        ok = sum(t.status == "ok" for t in trains(gone, record.round))
        assert ok == min(3, 4 - vanished)
    assert {r.faults.get(Fault.DROPPED_OUT, 0) for r in gone.rounds[1:]} >= {0, 1}


def test_who_is_away_is_not_asked_and_comes_as_often_as_its_chance():
    made = federate(
        federation(**{"clients.devices": devices(availability=0.5), "rounds": 40, "evaluation.every": 40})
    )
    for record in made.rounds[1:]:
        draws = seeds.numpy_generator(3, "availability", record.round).random(4)
        expected = {0, 1} | {number for number in (2, 3) if draws[number] < 0.5}
        assert {t.client for t in trains(made, record.round)} == expected
        assert record.clients_offline == 4 - len(expected)
        assert record.classes["slow"].offline == 4 - len(expected)
    share = sum(r.clients_offline for r in made.rounds[1:]) / 80
    assert abs(share - 0.5) < 0.2


def test_who_vanishes_costs_what_it_was_sent_and_is_gone_for_the_round():
    made = federate(
        federation(
            **{
                "clients.devices": devices(dropout=0.5),
                "rounds": 6,
                "data.client_test_fraction": 0.2,
                "evaluation.clients": True,
            }
        )
    )
    gone = {(t.round, t.client) for t in trains(made) if t.fault == Fault.DROPPED_OUT}
    asked_again = {(t.round, t.client) for t in made.tasks if t.type == "evaluate"}
    assert gone
    assert not gone & asked_again
    sent = {t.client: t.bytes_down for t in trains(made) if t.status == "ok"}
    for task in trains(made):
        if (task.round, task.client) in gone:
            profile = made.strategy.clients[task.client].profile
            assert (task.bytes_up, task.flops) == (0, 0)
            assert task.bytes_down == sent[0]
            assert task.device_seconds == task_seconds(profile, task.bytes_down, 0, 0)


def test_with_a_deadline_the_server_waits_for_those_that_vanish():
    changes = {"clients.devices": devices(dropout=1.0), "clients.deadline": 1e4, "rounds": 1}
    made = federate(federation(**changes))
    assert made.rounds[1].device_seconds == 1e4
    assert made.rounds[1].faults == {"dropped-out": 2}


def test_nothing_of_it_depends_on_the_order_of_replies():
    settings = {
        "clients.devices": devices(dropout=0.3, availability=0.8),
        "clients.per_round": 3,
        "clients.over_sample": 1.34,
        "rounds": 4,
    }
    one = federate(federation(**settings))
    other = federate(federation(**settings), shuffle=random.Random(1), node_ids=[90, 14, 52, 7])
    assert same_state(one.strategy.state, other.strategy.state)
    keep = ("round", "client", "status", "fault", "bytes_down", "flops", "device_seconds")
    assert [[getattr(t, key) for key in keep] for t in one.tasks if t.type == "train"] == [
        [getattr(t, key) for key in keep] for t in other.tasks if t.type == "train"
    ]


def chances(made):
    profiles = [facts.profile for facts in made.strategy.clients.values()]
    return {(profile.availability, profile.dropout) for profile in profiles}


def test_built_in_chances_count_under_churn_alone():
    kinds = [{"profile": "phone-low-end"}]
    without = federation(**{"clients.devices": kinds})
    made = federate(without)
    assert chances(made) == {(1, 0)}
    churning = federate(without.override(clients__churn=True))
    assert chances(churning) == {(0.33, 0.08)}
    given = federate(federation(**{"clients.devices": [{"profile": "phone-low-end", "availability": 0.9}]}))
    assert {(f.profile.availability, f.profile.dropout) for f in given.strategy.clients.values()} == {
        (0.9, 0)
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"clients.per_round": 2, "clients.over_sample": 2.0},
        {"clients.deadline": 5.0},
        {"clients.devices": devices(dropout=0.5), "clients.deadline": 50.0},
    ],
)
def test_dense_training_costs_what_dense_training_costs(changes):
    """What was asked of clients that were late, not needed or gone counts on both sides."""
    made = federate(federation(**changes, rounds=4))
    dense = made.strategy.dense.totals
    for key in ("bytes_down", "bytes_up", "flops", "device_seconds"):
        assert sum(getattr(record, key) for record in made.rounds) == pytest.approx(dense[key], rel=1e-3), key


@pytest.mark.parametrize("name", ["gradual"])
def test_a_schedule_catches_up_with_rounds_in_which_nobody_was_there(name):
    """The last rounds of the schedule have no reply: those after it prune in their place."""
    away = [{"name": "shy", "compute": 1e9, "availability": 0.3, "count": 4, **SPEED}]
    strategy = {"name": name, "density": 0.1, "start": 1, "end": 4}
    for seed in range(20):
        chance = [seeds.numpy_generator(seed, "availability", n).random(4).min() < 0.3 for n in range(1, 11)]
        if not chance[3] and any(chance[4:]):
            break
    changes = {"clients.devices": away, "strategy": strategy, "rounds": 10, "seed": seed}
    made = federate(federation(**changes, **{"evaluation.every": 10}))
    assert made.rounds[4].clients_ok == 0
    assert made.rounds[4].density > 0.11
    assert made.rounds[-1].density <= 0.1


def test_energy_is_that_of_computing_and_of_the_radio():
    joules = {"joules_per_flop": 1e-9, "joules_per_byte": 1e-6}
    both = [{**device, **joules} for device in devices()]
    made = federate(federation(**{"clients.devices": both}))
    for task in made.tasks:
        assert task.joules == pytest.approx(1e-9 * task.flops + 1e-6 * (task.bytes_down + task.bytes_up))
    assert made.rounds[1].joules == pytest.approx(sum(t.joules for t in made.tasks if t.round == 1))
    half = federate(federation(**{"clients.devices": devices(**joules)}))
    assert half.rounds[1].joules is None
    assert half.rounds[1].classes["fast"].joules is None
    assert half.rounds[1].classes["slow"].joules > 0


def test_a_class_has_the_accuracy_on_its_own_data():
    made = federate(
        federation(**{"data.client_test_fraction": 0.3, "evaluation.clients": "all", "rounds": 1})
    )
    evaluated = [(m, r) for m, r in made.grid.exchanges if m.metadata.message_type == "evaluate"]
    assert len(evaluated) == 4
    for name, members in (("fast", {0, 1}), ("slow", {2, 3})):
        scores = [
            dict(reply.content.metric_records["metrics"])
            for message, reply in evaluated
            if made.strategy.registry.number_of(reply) in members
        ]
        examples = sum(score["num-examples"] for score in scores)
        right = sum(score["accuracy"][0] for score in scores)
        assert made.rounds[1].classes[name].scores["accuracy"] == pytest.approx(right / examples)
