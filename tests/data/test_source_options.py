"""What stands under ``data.options`` is checked with the scenario, before anything is read."""

from collections.abc import Callable

import pytest

from fedprune.data.sources import OPTIONS, SOURCES
from fedprune.errors import UserError
from fedprune.scenario import Scenario
from fedprune.server.check import check


def test_options_belong_to_sources() -> None:
    assert OPTIONS.keys() <= SOURCES.keys()
    for kind in OPTIONS.values():
        assert all(field.description for field in kind.model_fields.values())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "digits", "options": {"length": 3}}, "data.options.length"),
        ({"name": "mine/pictures", "options": {"length": 3}}, "data.options.length"),
        ({"name": "synthetic_people", "options": {"sides": 32}}, "did you mean 'side'"),
        ({"name": "synthetic_people", "options": {"side": 4}}, "data.options.side"),
        ({"name": "tabular"}, "data.options.target"),
    ],
)
def test_mistakes_are_found_with_the_scenario(
    scenario: Callable[..., Scenario], data: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check(scenario(data))
