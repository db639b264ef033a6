"""The study files of the repository are what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedprune.scenario import load_scenario
from fedprune.server.check import resolve
from fedprune.studies.plan import Plan, identity_of
from fedprune.studies.spec import load_study

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_file_is_one(path):
    assert load_study(path).name == path.stem
    assert Plan(load_study(path)).runs()


def test_the_quickstart_study_has_the_four_scenarios_of_the_demo():
    runs = Plan(load_study(ROOT / "studies" / "quickstart.yaml")).runs()
    names = ("quickstart-dense", "quickstart-static", "quickstart", "hidenseek-digits")
    scenarios = [resolve(load_scenario(ROOT / "scenarios" / f"{name}.yaml")) for name in names]
    assert [run.identity for run in runs if run.seed == 0] == [identity_of(each) for each in scenarios]
