from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprune.costs.clock import round_seconds, task_seconds
from fedprune.costs.devices import DeviceProfile

DEVICE = DeviceProfile(name="x", memory=1, compute=2e9, downlink=1e6, uplink=5e5)


def test_a_task_by_hand():
    seconds = task_seconds(DEVICE, bytes_down=3_000_000, flops=8_000_000_000, bytes_up=1_000_000)
    assert seconds == 3 + 4 + 2


amounts = st.integers(0, 10**12)


@given(one=st.tuples(amounts, amounts, amounts), two=st.tuples(amounts, amounts, amounts))
def test_two_tasks_in_a_row_take_the_sum_of_their_times(one, two):
    together = task_seconds(DEVICE, *(a + b for a, b in zip(one, two, strict=True)))
    assert together == pytest.approx(task_seconds(DEVICE, *one) + task_seconds(DEVICE, *two))


def test_a_round_lasts_as_long_as_its_slowest_client():
    assert round_seconds(iter([1.0, 7.5, 3.0])) == 7.5
    assert round_seconds([]) == 0.0
