import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprune.sparsity.schedules import SCHEDULES

values = st.floats(-10, 10)
decaying = sorted(set(SCHEDULES) - {"constant"})


@pytest.mark.parametrize(
    ("name", "at_a_quarter"),
    [
        ("constant", 8.0),
        ("linear", 8 - 0.25 * 6),
        ("cubic", 2 + 6 * 27 / 64),
        ("cosine", 2 + 6 * (1 + math.sqrt(0.5)) / 2),
    ],
)
def test_value_at_a_quarter_of_the_way_from_8_to_2(name: str, at_a_quarter: float) -> None:
    assert SCHEDULES[name](0.25, 8.0, 2.0) == pytest.approx(at_a_quarter)


@pytest.mark.parametrize("name", decaying)
@given(start=values, end=values, beyond=st.floats(0, 5))
def test_starts_at_the_start_ends_at_the_end_and_stays_there(
    name: str, start: float, end: float, beyond: float
) -> None:
    schedule = SCHEDULES[name]
    assert schedule(-beyond, start, end) == pytest.approx(start, abs=1e-12)
    assert schedule(1 + beyond, start, end) == end


@pytest.mark.parametrize("name", decaying)
@given(early=st.floats(0, 1), late=st.floats(0, 1))
def test_falls_throughout_when_the_end_is_lower(name: str, early: float, late: float) -> None:
    early, late = sorted([early, late])
    assert SCHEDULES[name](early, 1.0, 0.1) >= SCHEDULES[name](late, 1.0, 0.1) - 1e-12


@given(progress=st.floats(-1, 2), start=values, end=values)
def test_constant_never_moves(progress: float, start: float, end: float) -> None:
    assert SCHEDULES["constant"](progress, start, end) == start
