"""Settings as differences, and what a reader is warned of."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprune.studies.outcomes import Outcome
from fedprune.studies.report.cautions import cautions
from fedprune.studies.report.settings import NOT_SET, differences, flat, of_group, unequal, value_text
from fedprune.studies.statistics import group_outcomes

from .curved_outcomes import ACCURACY, PERPLEXITY, outcome, study

leaves = st.one_of(
    st.integers(), st.booleans(), st.text("abc", max_size=3), st.lists(st.integers(), max_size=2)
)
documents = st.recursive(
    st.dictionaries(st.sampled_from(["a", "b", "c"]), leaves, max_size=3),
    lambda inner: st.dictionaries(st.sampled_from(["a", "b", "c"]), st.one_of(leaves, inner), max_size=3),
    max_leaves=8,
)


def warned(outcomes, metric=ACCURACY):
    return "\n".join(cautions(group_outcomes(outcomes), metric))


@given(documents, documents)
def test_differences_make_the_document_from_the_base(document, base):
    made = {key: value_text(value) for key, value in flat(base).items()}
    for key, before, after in differences(document, base):
        assert before == made.get(key, NOT_SET)
        if after == NOT_SET and key not in flat(document):
            del made[key]
        else:
            made[key] = after
    assert made == {key: value_text(value) for key, value in flat(document).items()}


def test_options_of_another_strategy_are_left_out():
    base = {"strategy": {"name": "fedtiny", "density": 0.1, "candidates": 8}, "rounds": 3}
    document = {"strategy": {"name": "static", "density": 0.1, "criterion": "snip"}}
    found = [tuple(each) for each in differences(document, base)]
    assert found == [
        ("strategy.name", "fedtiny", "static"),
        ("strategy.criterion", NOT_SET, "snip"),
        ("rounds", "3", NOT_SET),
    ]


def test_seeds_of_a_group_are_one_entry_and_another_setting_a_second():
    runs = [outcome(seed=seed) for seed in range(3)]
    longer = replace(runs[2], document={**runs[2].document, "rounds": 9})
    (group,) = group_outcomes([*runs[:2], longer])
    (both, same), (one, other) = of_group(group, runs[0].document)
    assert (both, same) == ("seeds 0, 1", [])
    assert (one, [tuple(each) for each in other]) == ("seed 2", [("rounds", "6", "9")])


def test_only_what_may_not_differ_is_unequal():
    first = Outcome("A", {}, 0, None, document={"seed": 0, "strategy": {"name": "a"}, "rounds": 1})
    second = replace(first, document={"seed": 1, "strategy": {"name": "b"}, "rounds": 2})
    assert unequal([first, second], {"seed", "strategy"}) == ["rounds"]


def test_nothing_is_warned_of_in_equal_complete_runs():
    assert warned(study()) == ""
    assert warned(study(metric=PERPLEXITY), PERPLEXITY) == ""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"status": "failed", "reason": "disk full"}, "failed after round 6 of 6: disk full"),
        ({"status": "interrupted"}, "was interrupted"),
        ({"status": "unfinished", "rounds": 2}, "is unfinished after round"),
        ({"final_accuracy": None}, "diverged"),
        ({"clients_failed": 4, "failures": {"out of memory": 4}}, "4 of 184 tasks failed: out of memory (4)"),
        ({"clients_excluded": 7}, "lacked the memory or data to train 7 times"),
    ],
)
def test_what_went_wrong_is_named(changes, said):
    runs = [*study()[:-1], replace(study()[-1], summary=study()[-1].summary | changes)]
    assert said in warned(runs)
    assert "Static, density 0.5" in warned(runs)


def test_runs_that_got_worse_are_named_in_either_direction():
    good, bad = outcome("A", 0.1), outcome("B", 0.1)
    bad = replace(bad, rounds=bad.rounds[::-1])
    assert "B, density 0.1, seed 0, ended worse than it began" in warned([good, bad])
    assert "A, density 0.1, seed 0, ended" not in warned([good, bad])
    good, bad = (replace(each, rounds=outcome(metric=PERPLEXITY).rounds) for each in (good, bad))
    bad = replace(bad, rounds=bad.rounds[::-1])
    runs = [replace(each, summary=outcome(metric=PERPLEXITY).summary) for each in (good, bad)]
    assert "B, density 0.1, seed 0, ended worse than it began" in warned(runs, PERPLEXITY)
    assert "A, density 0.1, seed 0, ended" not in warned(runs, PERPLEXITY)


def test_one_seed_and_missing_seeds_are_named():
    said = warned([*study(), outcome("Single", 0.1, 1)])
    assert "One complete run only, so without an interval or a test: Single, density 0.1." in said
    assert "some are missing of Single, density 0.1" in said


def test_runs_that_have_not_begun_are_named():
    waiting = replace(outcome("Later", 0.1, 1), summary=None, rounds=())
    assert "Not begun: Later, density 0.1 (seed 1)." in warned([*study(), waiting])


def test_unequal_conditions_are_named_and_the_grid_is_not():
    runs = study()
    longer = replace(runs[-1], document={**runs[-1].document, "model": {"name": "vgg"}})
    said = warned([*runs[:-1], longer])
    assert "the runs differ in model.name." in said
    assert "Static, density 0.5: its runs differ in more than the seed, in model.name." in said
