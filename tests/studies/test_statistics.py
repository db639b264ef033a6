"""Statistics against SciPy, against formulas written out here, and by properties that hold for all values."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.errors import UserError
from fedprune.studies.outcomes import Metric
from fedprune.studies.statistics import (
    Estimate,
    client_spreads,
    compare_groups,
    costs_until,
    group_outcomes,
    group_spreads,
    holm,
    pareto_front,
    pareto_fronts,
    quantities,
    rank_groups,
    reference_for,
    spread_of,
    summarise_groups,
    undominated,
)

from .made_outcomes import ACCURACY, PERPLEXITY, group, outcome

finite = st.floats(-1e6, 1e6, allow_subnormal=False).map(lambda value: round(value, 6))
samples = st.lists(finite, min_size=2, max_size=8)
metrics = pytest.mark.parametrize("metric", [ACCURACY, PERPLEXITY], ids=["higher", "lower"])


class TestEstimate:
    def test_by_hand(self):
        # Mean 4, squares 4 + 0 + 4 over 2; t of 0.975 with 2 degrees of freedom from a printed table.
        estimate = Estimate.of([6.0, 2.0, 4.0])
        assert (estimate.n, estimate.mean, estimate.std) == (3, 4.0, 2.0)
        half = 4.302653 * 2.0 / math.sqrt(3)
        assert estimate.half_width == pytest.approx(half, rel=1e-6)
        assert estimate.t_interval == pytest.approx((4 - half, 4 + half), rel=1e-6)

    @given(samples)
    def test_agrees_with_numpy_and_scipy(self, values):
        estimate = Estimate.of(values)
        scale = max(map(abs, values))
        assert estimate.mean == pytest.approx(np.mean(values), abs=1e-12 * scale)
        assert estimate.std == pytest.approx(np.std(values, ddof=1), abs=1e-9 * scale)
        if not estimate.constant:
            expected = scipy.stats.t.interval(
                0.95, len(values) - 1, loc=np.mean(values), scale=scipy.stats.sem(values)
            )
            assert estimate.t_interval == pytest.approx(expected, rel=1e-9, abs=1e-9 * scale)

    @given(samples, st.randoms(use_true_random=False))
    def test_the_order_changes_not_one_bit(self, values, draw):
        shuffled = random.Random(draw.random()).sample(values, len(values))
        one, two = Estimate.of(values), Estimate.of(shuffled)
        assert (one.mean, one.std, one.t_interval) == (two.mean, two.std, two.t_interval)

    def test_the_bootstrap_is_seeded_and_lies_within_the_values(self):
        values = [0.61, 0.64, 0.62, 0.70, 0.58, 0.66]
        low, high = Estimate.of(values).bootstrap_interval
        assert (low, high) == Estimate.of(values[::-1]).bootstrap_interval
        assert min(values) < low < np.mean(values) < high < max(values)
        # The other ways to make an interval of the same values come near.
        t_low, t_high = Estimate.of(values).t_interval
        assert t_low < low
        assert high < t_high
        assert high - low == pytest.approx(2 * 1.96 * np.std(values) / math.sqrt(6), rel=0.15)

    def test_the_bootstrap_covers_the_mean_about_as_often_as_it_says(self):
        draws = np.random.default_rng(3).normal(size=(60, 30))
        covered = 0
        for values in draws:
            low, high = Estimate.of(values).bootstrap_interval
            covered += low <= 0 <= high
        assert 50 <= covered <= 60

    def test_one_value_has_no_interval(self):
        estimate = Estimate.of([0.6])
        assert (estimate.n, estimate.mean) == (1, 0.6)
        assert [estimate.std, estimate.t_interval, estimate.bootstrap_interval] == [None] * 3

    def test_equal_values_have_an_interval_without_width(self):
        estimate = Estimate.of([0.1] * 3)
        assert (estimate.mean, estimate.std, estimate.t_interval) == (0.1, 0.0, (0.1, 0.1))
        assert estimate.bootstrap_interval is None

    @pytest.mark.parametrize("values", [[], [math.nan], [1.0, math.inf]])
    def test_what_is_no_number_is_refused(self, values):
        with pytest.raises(ValueError, match="finite"):
            Estimate.of(values)


class TestGroups:
    def test_a_group_is_a_variant_at_a_point(self):
        at = [{"strategy.density": 0.1}, {"strategy.density": 0.05}]
        outcomes = [outcome("Tiny", seed, 0.5 + seed / 10, point=point) for seed in (1, 0) for point in at]
        outcomes += group("Dense", [0.7, 0.8])
        found = summarise_groups(outcomes)
        assert [each.name for each in found] == ["Tiny, density 0.1", "Tiny, density 0.05", "Dense"]
        assert all(each.seeds == (0, 1) for each in found)
        assert found[0].estimates["final_accuracy"].mean == pytest.approx(0.55)

    def test_runs_that_did_not_end_well_are_counted_and_not_averaged(self):
        outcomes = [
            outcome("A", 0, 0.6),
            outcome("A", 1, 0.1, status="failed"),
            outcome("A", 2, 0.2, status="interrupted"),
            outcome("A", 3, 0.3, status="unfinished"),
            outcome("A", 4, None, status=None),
        ]
        (found,) = summarise_groups(outcomes)
        assert (found.planned, found.complete, found.failed, found.unfinished) == (5, 1, 1, 2)
        assert found.estimates["final_accuracy"].values == (0.6,)

    def test_a_diverged_run_is_counted_and_averaged_where_it_has_a_value(self):
        outcomes = [
            outcome("A", 0, 0.6),
            outcome("A", 1, 0.1, loss=None),  # The loss was NaN; guessing is right one time in ten.
            outcome("A", 2, None),
            outcome("A", 3, math.nan),
        ]
        (found,) = summarise_groups(outcomes)
        assert (found.complete, found.diverged) == (4, 3)
        assert found.estimates["final_accuracy"].values == (0.1, 0.6)

    def test_costs_of_both_directions_are_one_quantity(self):
        (found,) = summarise_groups(group("A", [0.6, 0.7]))
        assert found.estimates["bytes"].mean == 300
        assert "joules" not in found.estimates  # They are not known.

    def test_personal_values_are_there_where_measured(self):
        runs = [outcome("A", seed, 0.6, final_personal_accuracy=0.8 + seed / 10) for seed in (0, 1)]
        (found,) = summarise_groups([*runs, outcome("A", 2, 0.6)])
        assert found.estimates["final_personal_accuracy"].n == 2

    def test_a_seed_twice_is_refused(self):
        with pytest.raises(UserError, match="A: 2 runs have seed 0"):
            summarise_groups([*group("A", [0.5]), *group("A", [0.6])])

    def test_different_tasks_are_refused(self):
        with pytest.raises(UserError, match="headline"):
            summarise_groups([*group("A", [0.5]), *group("B", [9.0], metric=PERPLEXITY)])

    @given(st.randoms(use_true_random=False))
    @settings(max_examples=20)
    def test_the_order_of_outcomes_changes_nothing(self, draw):
        outcomes = [*group("A", [0.1, 0.2, 0.4]), *group("B", [0.3, 0.5, 0.35]), *group("C", [0.2, 0.3, 0.1])]
        mixed = draw.sample(outcomes, len(outcomes))

        def everything(of):
            return (
                {each.name: each.estimates for each in summarise_groups(of)},
                {name: (each.t_p, each.t_holm) for name, each in compare_groups(of, "A").items()},
                rank_groups(of).mean_ranks,
                costs_until(of, 0.3),
            )

        assert everything(mixed) == everything(outcomes)


class TestComparisons:
    def test_paired_by_seed_as_scipy_does(self):
        dense, sparse = [0.60, 0.70, 0.65, 0.71, 0.62], [0.58, 0.69, 0.60, 0.69, 0.61]
        outcomes = [*group("Dense", dense), *group("Sparse", sparse)[::-1]]
        found = compare_groups(outcomes, "Dense")["Sparse"]
        assert found.seeds == (0, 1, 2, 3, 4)
        assert found.t_p == pytest.approx(scipy.stats.ttest_rel(sparse, dense).pvalue)
        assert found.difference.mean == pytest.approx(-0.022)
        expected = scipy.stats.ttest_rel(sparse, dense).confidence_interval(0.95)
        assert found.difference.t_interval == pytest.approx((expected.low, expected.high))

    def test_by_hand(self):
        # Differences 1, 2, 3: t = 2 / (1 / sqrt(3)); of 2 degrees, P(|T| > t) = 1 - t / sqrt(t^2 + 2).
        outcomes = [*group("A", [10.0, 10.0, 10.0]), *group("B", [11.0, 12.0, 13.0])]
        found = compare_groups(outcomes, "A")["B"]
        t = 2 * math.sqrt(3)
        assert found.t_p == pytest.approx(1 - t / math.sqrt(t**2 + 2))
        # Of 2^3 equally likely patterns of signs two are as far off as + + +.
        assert found.wilcoxon_p == pytest.approx(2 / 8)

    def test_holm_by_hand(self):
        # 0.010, 0.011, 0.02, 0.04 times 4, 3, 2, 1 is 0.040, 0.033, 0.04, 0.04; none is below the last.
        assert holm([0.04, 0.010, None, 0.02, 0.011]) == pytest.approx([0.04, 0.04, None, 0.04, 0.04])
        assert holm([0.5, 0.6]) == [1.0, 1.0]
        assert holm([]) == []

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
    def test_holm_lies_between_no_correction_and_bonferroni(self, p_values):
        adjusted = holm(p_values)
        assert all(
            p <= a <= min(1.0, p * len(p_values)) + 1e-12 for p, a in zip(p_values, adjusted, strict=True)
        )
        by_p = sorted(zip(p_values, adjusted, strict=True))
        assert [a for _, a in by_p] == sorted(a for _, a in by_p)

    def test_holm_is_over_all_groups_compared(self):
        base = [0.5, 0.6, 0.55, 0.52]
        outcomes = group("Ref", base)
        for name, shifts in {"A": [1, 2, 3, 4], "B": [1, -1, 2, 3], "C": [-5, -4, -6, -5]}.items():
            outcomes += group(name, [value + shift / 100 for value, shift in zip(base, shifts, strict=True)])
        found = compare_groups(outcomes, "Ref")
        smallest = min(found.values(), key=lambda each: each.t_p)
        assert smallest.group == "C"
        assert smallest.t_holm == pytest.approx(3 * smallest.t_p)
        assert max(each.t_holm for each in found.values()) == max(each.t_p for each in found.values())

    def test_seeds_that_only_one_has_are_left_out_and_named(self):
        outcomes = [*group("A", [0.1, 0.2, None, 0.4]), *group("B", [0.2, 0.4, 0.6])]
        found = compare_groups(outcomes, "A")["B"]
        assert (found.seeds, found.unpaired) == ((0, 1), (2, 3))
        assert found.difference.n == 2

    def test_a_failed_run_is_not_compared(self):
        outcomes = [*group("A", [0.1, 0.2]), outcome("B", 0, 0.3), outcome("B", 1, 0.0, status="failed")]
        found = compare_groups(outcomes, "A")["B"]
        assert (found.seeds, found.unpaired) == ((0,), (1,))
        assert (found.t_p, found.wilcoxon_p, found.t_holm) == (None, None, None)

    def test_no_common_seed(self):
        found = compare_groups([outcome("A", 0, 0.1), outcome("B", 1, 0.2)], "A")["B"]
        assert (found.difference, found.t_p, found.wilcoxon_p) == (None, None, None)

    def test_equal_runs_do_not_differ(self):
        found = compare_groups([*group("A", [0.1, 0.2, 0.3]), *group("B", [0.1, 0.2, 0.3])], "A")["B"]
        assert (found.difference.mean, found.t_p, found.wilcoxon_p) == (0.0, 1.0, 1.0)

    def test_equal_differences_have_no_t_test(self):
        # In floating point they differ in the last bits: a t test of that would be sure of anything.
        values = [0.1, 0.2, 0.3, 0.7]
        found = compare_groups([*group("A", values), *group("B", [v + 0.1 for v in values])], "A")["B"]
        assert found.t_p is None
        assert found.difference.t_interval == pytest.approx((0.1, 0.1))
        assert found.wilcoxon_p == pytest.approx(2 / 2**4)

    def test_another_quantity(self):
        outcomes = [*group("A", [0.1, 0.2], flops=100), *group("B", [0.1, 0.2], flops=40)]
        assert compare_groups(outcomes, "A", "flops")["B"].difference.mean == -60

    def test_mistakes_are_said(self):
        outcomes = group("FedAvg", [0.1, 0.2])
        with pytest.raises(UserError, match="did you mean 'FedAvg'"):
            compare_groups([*outcomes, *group("B", [0.1])], "fedavg")
        with pytest.raises(UserError, match="did you mean 'flops'"):
            compare_groups(outcomes, "FedAvg", "flop")

    def test_the_reference_is_at_the_same_point(self):
        points = [{"density": 0.1}, {"density": 0.05}]
        outcomes = [outcome(name, 0, 0.5, point=point) for name in ("A", "B") for point in points]
        groups = group_outcomes(outcomes)
        names = {each.name: reference_for(each, groups, "A").name for each in groups if each.variant == "B"}
        assert names == {"B, density 0.1": "A, density 0.1", "B, density 0.05": "A, density 0.05"}

    def test_a_reference_without_a_grid_is_for_all_points(self):
        outcomes = [outcome("B", 0, 0.5, point={"density": d}) for d in (0.1, 0.05)] + group("A", [0.6])
        assert {each.reference for each in compare_groups(outcomes, "A").values()} == {"A"}
        assert len(compare_groups(outcomes, "A")) == 2

    def test_a_reference_with_part_of_the_grid(self):
        at = [{"rate": 0.1}, {"rate": 0.2}]
        outcomes = [outcome("A", 0, 0.5, point=point) for point in at]
        outcomes += [outcome("B", 0, 0.5, point={"density": 0.1, **point}) for point in at]
        found = {each.group: each.reference for each in compare_groups(outcomes, "A").values()}
        assert found == {"B, density 0.1, rate 0.1": "A, rate 0.1", "B, density 0.1, rate 0.2": "A, rate 0.2"}

    def test_no_reference_at_any_of_several_points(self):
        outcomes = [outcome("A", 0, 0.5, point={"density": d}) for d in (0.1, 0.2)] + group("B", [0.6])
        assert compare_groups(outcomes, "A") == {}

    def test_points_may_be_mappings(self):
        point = {"strategy": {"name": "static"}}
        outcomes = [outcome(name, 0, 0.5, point=point) for name in ("A", "B")]
        assert list(compare_groups(outcomes, "A")) == ["B, strategy static"]


class TestRanks:
    @metrics
    def test_one_is_best_and_equals_share(self, metric):
        sign = 1 if metric.higher_is_better else -1
        values = {"A": [3.0, 3.0, 1.0], "B": [2.0, 3.0, 2.0], "C": [1.0, 1.0, 3.0]}
        outcomes = [
            run for name, of in values.items() for run in group(name, [sign * v for v in of], metric=metric)
        ]
        found = rank_groups(outcomes)
        # Seed 0: A B C; seed 1: A and B share 1 and 2; seed 2: C B A.
        assert found.mean_ranks == pytest.approx({"A": 5.5 / 3, "B": 5.5 / 3, "C": 7 / 3})
        assert found.friedman_p == pytest.approx(scipy.stats.friedmanchisquare(*values.values()).pvalue)

    def test_friedman_by_hand(self):
        # Ranks 1, 2, 3 in each of 4 seeds: 12 / (n k (k + 1)) * sum R^2 - 3 n (k + 1) = 8; exp(-8 / 2).
        outcomes = [*group("A", [0.9] * 4), *group("B", [0.8] * 4), *group("C", [0.7] * 4)]
        assert rank_groups(outcomes).friedman_p == pytest.approx(math.exp(-4))

    def test_only_seeds_that_all_have_are_ranked(self):
        outcomes = [*group("A", [0.9, 0.1, 0.5]), *group("B", [0.8, 0.2]), *group("None", [None, None])]
        found = rank_groups(outcomes)
        assert (found.seeds, found.friedman_p) == ((0, 1), None)
        assert found.mean_ranks == {"A": 1.5, "B": 1.5}

    def test_nothing_to_rank(self):
        assert rank_groups([]).mean_ranks == {}
        assert rank_groups([outcome("A", 0, 0.5), outcome("B", 1, 0.5)]).mean_ranks == {}

    def test_all_equal_has_no_test(self):
        outcomes = [run for name in "ABC" for run in group(name, [0.5, 0.6])]
        found = rank_groups(outcomes)
        assert found.friedman_p is None
        assert set(found.mean_ranks.values()) == {2.0}

    def test_what_has_no_better_way_has_no_ranks(self):
        with pytest.raises(UserError, match="density"):
            rank_groups(group("A", [0.5]), "density")

    @given(st.lists(st.lists(finite, min_size=3, max_size=3), min_size=2, max_size=4))
    @settings(max_examples=30, deadline=None)
    def test_negated_values_the_other_way_round_are_the_same(self, table):
        def ranks(sign, metric):
            runs = [
                run
                for place, row in enumerate(table)
                for run in group(f"G{place}", [sign * value for value in row], metric=metric)
            ]
            compared = compare_groups(runs, "G0")
            front = pareto_front(summarise_groups(runs), metric, "flops")
            differences = {name: sign * each.difference.mean for name, each in compared.items()}
            return rank_groups(runs).mean_ranks, front, differences, [each.t_p for each in compared.values()]

        assert ranks(1, ACCURACY) == ranks(-1, PERPLEXITY)


class TestTargets:
    def test_costs_up_to_the_first_round_that_reaches_it(self):
        runs = [outcome("A", 0, 0.5, curve=[0.1, None, 0.6, 0.5])]
        reach = costs_until(runs, 0.6)["A"].reaches[0]
        assert reach.round == 2
        # Rounds 0, 1 and 2.
        assert reach.costs == {
            "rounds": 2, "bytes": 90, "flops": 3000, "device_seconds": 6.0, "joules": 1.5
        }  # fmt: skip

    def test_lower_is_better(self):
        runs = [outcome("A", 0, 8.0, metric=PERPLEXITY, curve=[90.0, 20.0, 8.0, 12.0])]
        assert costs_until(runs, 20.0)["A"].reaches[0].round == 1
        assert costs_until(runs, 7.0)["A"].reaches[0] is None

    def test_runs_that_never_reach_it_are_counted_as_such(self):
        curves = [[0.1, 0.6], [0.1, 0.2, 0.6], [0.1, 0.2, 0.3, 0.6], [0.1, 0.2], [0.1, 0.1]]
        runs = [outcome("A", seed, curve[-1], curve=curve) for seed, curve in enumerate(curves)]
        found = costs_until(runs, 0.6)["A"]
        assert (found.reached, found.ended) == (3, 5)
        # In order 1, 2, 3, never, never: the median is 3, though those that reached it took 2 on average.
        assert found.median("rounds") == 3
        assert found.of_reached("rounds").mean == 2
        assert found.of_reached("rounds").n == 3

    def test_where_half_never_reach_it_the_median_is_infinite(self):
        runs = [outcome("A", 0, 0.6, curve=[0.1, 0.6]), outcome("A", 1, 0.2, curve=[0.1, 0.2])]
        assert costs_until(runs, 0.6)["A"].median("bytes") == math.inf
        none = costs_until(runs, 0.9)["A"]
        assert (none.reached, none.median("bytes"), none.of_reached("bytes")) == (0, math.inf, None)

    def test_which_runs_count(self):
        runs = [
            outcome("A", 0, 0.6, curve=[0.6]),
            outcome("A", 1, 0.1, curve=[0.1], status="failed"),
            outcome("A", 2, 0.6, curve=[0.6], status="unfinished"),
            outcome("A", 3, None, status=None),
        ]
        found = costs_until(runs, 0.5)["A"]
        assert (list(found.reaches), found.reached) == ([0, 1], 1)
        assert costs_until(runs[2:], 0.5)["A"].median("rounds") is None

    def test_unknown_energy_stays_unknown(self):
        found = costs_until([outcome("A", 0, 0.6, curve=[0.6], joules_of_round=None)], 0.5)["A"]
        assert (found.median("joules"), found.of_reached("joules")) == (None, None)
        assert found.median("bytes") == 30

    @given(st.floats(0, 1), st.lists(st.floats(0, 1), min_size=1, max_size=6))
    def test_a_harder_target_costs_no_less(self, target, curve):
        runs = [outcome("A", 0, curve[-1], curve=curve)]
        easier, harder = (costs_until(runs, each)["A"].median("bytes") for each in (target / 2, target))
        assert easier <= harder


class TestPareto:
    @given(
        st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.tuples(finite, finite), max_size=9),
        st.booleans(),
    )
    def test_the_front_is_what_no_other_point_dominates(self, points, higher):
        def dominates(one, two):
            better = one[0] >= two[0] if higher else one[0] <= two[0]
            return better and one[1] <= two[1] and one != two

        expected = {
            name
            for name, point in points.items()
            if not any(dominates(other, point) for other in points.values())
        }
        front = undominated(points, higher_is_better=higher)
        assert set(front) == expected
        assert len(front) == len(expected)
        assert [points[name][1] for name in front] == sorted(points[name][1] for name in front)

    def test_equals_are_all_on_the_front_or_none(self):
        points = {"A": (0.5, 1.0), "B": (0.5, 1.0), "C": (0.5, 2.0), "D": (0.4, 1.0)}
        assert set(undominated(points)) == {"A", "B"}

    def test_of_groups(self):
        outcomes = [
            *group("Dense", [0.8, 0.7], flops=100),
            *group("Sparse", [0.7, 0.6], flops=10),
            *group("Poor", [0.5, 0.6], flops=20),
            *group("Broken", [None, None], flops=1),
        ]
        summaries = summarise_groups(outcomes)
        assert pareto_front(summaries, ACCURACY, "flops") == ["Sparse", "Dense"]
        fronts = pareto_fronts(summaries, ACCURACY)
        assert fronts["bytes"] == ["Dense"]  # All cost the same: the best alone.
        assert "joules" not in fronts


class TestClients:
    def test_by_hand(self):
        spread = spread_of([0.2, 0.4, 0.6, 0.8])
        assert spread.mean == pytest.approx(0.5)
        assert spread.worst == 0.2
        assert spread.variance == pytest.approx((0.09 + 0.01 + 0.01 + 0.09) / 4)
        assert spread.jain == pytest.approx(2.0**2 / (4 * 1.2))

    @pytest.mark.parametrize(("n", "worst"), [(1, 1), (9, 1), (10, 1), (11, 2), (20, 2), (30, 3), (31, 4)])
    def test_the_worst_tenth_is_whole_clients(self, n, worst):
        values = [float(value) for value in range(1, n + 1)]
        assert spread_of(values).worst == pytest.approx(sum(values[:worst]) / worst)
        assert spread_of(values, higher_is_better=False).worst == pytest.approx(sum(values[-worst:]) / worst)

    @given(st.lists(st.floats(0.01, 1), min_size=1, max_size=30))
    def test_agrees_with_numpy(self, values):
        spread = spread_of(values)
        assert spread.std == pytest.approx(np.std(values), abs=1e-9)
        assert 1 / len(values) - 1e-9 <= spread.jain <= 1 + 1e-9
        assert spread.worst <= spread.mean + 1e-12

    def test_no_correct_answer_at_all(self):
        assert spread_of([0.0, 0.0]).jain is None

    def test_of_a_run(self, tmp_path):
        lines = [
            (1, "train", 2, "pi", "ok", 0.7),
            (1, "evaluate", 0, "phone", "ok", 0.1),
            (1, "evaluate", 3, "pi", "ok", 0.0),  # Not there in the last evaluation: of another model.
            (2, "train", 0, "phone", "ok", 0.9),
            (2, "evaluate", 0, "phone", "ok", 0.4),
            (2, "evaluate", 1, "phone", "ok", 0.6),
            (2, "evaluate", 2, "pi", "ok", 0.8),
            (2, "train", 2, "pi", "failed", None),
            (2, "query.growth", 0, "phone", "ok", None),
        ]
        run = outcome("A", 0, 0.6, directory=_clients(tmp_path, lines))
        spreads = client_spreads(run, ACCURACY)
        found, personal = spreads["global"], spreads["personal"]
        assert (found.overall.clients, found.overall.mean) == (3, pytest.approx(0.6))
        assert {name: each.mean for name, each in found.by_device.items()} == {"phone": 0.5, "pi": 0.8}
        assert (personal.overall.clients, personal.overall.mean) == (2, pytest.approx(0.8))

    def test_the_worst_of_a_lower_is_better_metric_is_the_highest(self, tmp_path):
        lines = [(1, "evaluate", number, "pi", "ok", value) for number, value in enumerate([10.0, 30.0])]
        run = outcome("A", 0, 20.0, metric=PERPLEXITY, directory=_clients(tmp_path, lines, "perplexity"))
        assert client_spreads(run, PERPLEXITY)["global"].overall.worst == 30.0

    def test_without_values_there_is_no_spread(self, tmp_path):
        lines = [(1, "train", 0, "pi", "ok", None)]
        runs = [
            outcome("A", 0, 0.6),
            outcome("A", 1, 0.6, directory=_clients(tmp_path, lines)),
            outcome("A", 2, 0.6, directory=tmp_path / "empty"),
        ]
        assert [client_spreads(run, ACCURACY) for run in runs] == [{}] * 3
        assert group_spreads(group_outcomes(runs)[0], ACCURACY) == {}

    def test_records_of_older_runs_have_no_column(self, tmp_path):
        (tmp_path / "clients.jsonl").write_text('{"type": "evaluate", "status": "ok", "client": 0}\n')
        assert client_spreads(outcome("A", 0, 0.6, directory=tmp_path), ACCURACY) == {}

    def test_over_seeds(self, tmp_path):
        runs = []
        for seed, values in enumerate([[0.2, 0.6], [0.4, 0.8, 0.6]]):
            lines = [(1, "evaluate", number, "pi", "ok", value) for number, value in enumerate(values)]
            runs.append(outcome("A", seed, 0.5, directory=_clients(tmp_path / str(seed), lines)))
        runs.append(outcome("A", 2, 0.5))
        found = group_spreads(group_outcomes(runs)[0], ACCURACY)["global"]
        assert found.overall["worst"].values == (0.2, 0.4)
        assert found.by_device["pi"]["mean"].mean == pytest.approx(0.5)
        assert found.overall["clients"].values == (2, 3)


def _clients(directory, lines, column="accuracy"):
    directory.mkdir(exist_ok=True)
    keys = ("round", "type", "client", "device", "status", column)
    text = "".join(json.dumps(dict(zip(keys, line, strict=True))) + "\n" for line in lines)
    (directory / "clients.jsonl").write_text(text)
    return directory


@pytest.mark.parametrize("metric", [ACCURACY, PERPLEXITY, Metric("macro_f1")])
def test_a_share_is_written_in_percent_and_other_metrics_are_not(metric):
    first = quantities(metric)[0]
    assert first.form(0.5) == ("0.5" if metric is PERPLEXITY else "50%")
    assert first.label == f"{metric.name.replace('_', ' ')}, final"
    assert first.higher_is_better == metric.higher_is_better
