"""The plots: valid for plotly, true to the records, and safe for any name."""

from __future__ import annotations

import json

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprune.studies.outcomes import Metric, headline
from fedprune.studies.report import figures
from fedprune.studies.report.looks import grid_of, looks_of
from fedprune.studies.statistics import Estimate, group_outcomes, pareto_fronts, quantities, summarise_groups

from .curved_outcomes import ACCURACY, PERPLEXITY, outcome, study

both = pytest.mark.parametrize("metric", [ACCURACY, PERPLEXITY], ids=["higher", "lower"])
values = st.floats(0.01, 1.0).map(lambda value: round(value, 3))


def every_plot(outcomes):
    """Return all plots of a report of some outcomes, by a name."""
    metric, summaries = headline(outcomes), summarise_groups(outcomes)
    looks = looks_of([each.group for each in summaries])
    known = {quantity.key: quantity for quantity in quantities(metric)}
    plots = {"curves": figures.headline_curves(looks, metric)}
    for cost, front in pareto_fronts(summaries, metric).items():
        if cost != "wall_seconds":
            plots[cost] = figures.pareto(looks, summaries, metric, known[cost], front)
    for look in looks:
        if traces := figures.layer_traces(look):
            plots[f"layers {look.name}"] = {"data": traces, "layout": figures.layers_layout(traces)}
    totals = {look.name: {"phone": 1e9, "board": 2e9} for look in looks}
    plots["classes"] = figures.class_bars(looks, known["flops"], totals)
    return plots


@both
def test_plotly_takes_every_plot(metric: Metric):
    """plotly checks names and values of all properties."""
    plots = every_plot(study(metric=metric))
    assert len(plots) == 1 + 7 + 4 + 1
    for plot in plots.values():
        go.Figure(plot)
        json.dumps(plot, allow_nan=False)


@given(st.lists(values, min_size=1, max_size=60))
def test_a_thinned_curve_is_the_same_curve(heights):
    points = list(enumerate(heights))
    kept = figures.thinned(points)
    assert set(kept) <= set(points)
    xs, ys = zip(*kept, strict=True)
    assert np.interp(range(len(points)), xs, ys) == pytest.approx(heights, abs=1e-4)


@given(st.lists(values, min_size=1, max_size=300), st.integers(2, 40))
def test_a_thinned_curve_keeps_its_ends_and_its_limit(heights, most):
    points = list(enumerate(heights))
    kept = figures.thinned(points, most)
    assert len(kept) <= most
    assert (kept[0], kept[-1]) == (points[0], points[-1])


def test_a_straight_curve_has_two_points():
    assert figures.thinned([(n, 0.25) for n in range(100)]) == [(0, 0.25), (99, 0.25)]


@both
def test_curves_are_means_and_bands_their_intervals(metric: Metric):
    runs = [outcome("A", 0.1, seed, metric=metric) for seed in range(3)]
    plot = figures.headline_curves(looks_of(group_outcomes(runs)), metric)
    band, line = plot["data"]
    number = 4
    estimate = Estimate.of([run.rounds[number][metric.name] for run in runs])
    assert line["y"][line["x"].index(number)] == pytest.approx(estimate.mean, rel=1e-4)
    ends = [y for x, y in zip(band["x"], band["y"], strict=True) if x == number]
    assert ends == pytest.approx([estimate.t_interval.high, estimate.t_interval.low], rel=1e-4)


@pytest.mark.parametrize("rounds", [1, 3, 10])
def test_few_rounds_have_a_tick_each(rounds):
    plot = figures.headline_curves(looks_of(group_outcomes([outcome(rounds=rounds)])), ACCURACY)
    assert plot["layout"]["xaxis"]["dtick"] == 1


def test_one_seed_has_no_band():
    plot = figures.headline_curves(looks_of(group_outcomes([outcome()])), ACCURACY)
    assert [trace["mode"] for trace in plot["data"]] == ["lines+markers"]
    assert set(plot["data"][0]["customdata"]) == {", one seed"}


def test_pareto_has_each_run_and_each_mean_in_one_unit():
    runs = study(variants=("A",), densities=(0.5,))
    plot = every_plot(runs)["flops"]
    drawn = [trace for trace in plot["data"] if "meta" in trace]
    single, mean = (trace for trace in drawn if trace["name"] == "A, density 0.5")
    of_a = [run.summary for run in runs if run.variant == "A"]
    assert single["y"] == pytest.approx([of["final_accuracy"] for of in of_a], rel=1e-4)
    assert single["x"] == pytest.approx([of["flops"] / 1e9 for of in of_a], rel=1e-4)
    assert plot["layout"]["xaxis"]["title"]["text"].endswith("(GFLOP)")
    assert mean["y"][0] == pytest.approx(np.mean(single["y"]), rel=1e-4)
    assert [label for label, _ in single["customdata"]] == ["seed 0", "seed 1", "seed 2"]


def test_the_front_goes_through_the_groups_that_are_on_it():
    plot = every_plot(study())["flops"]
    (front,) = (trace for trace in plot["data"] if "meta" not in trace)
    summaries = summarise_groups(study())
    names = pareto_fronts(summaries, ACCURACY)["flops"]
    means = {each.name: each.estimates["flops"].mean / 1e9 for each in summaries}
    assert front["x"] == pytest.approx([means[name] for name in names], rel=1e-4)


@both
def test_ticks_of_a_logarithmic_axis_lie_on_it(metric: Metric):
    plot = every_plot(study(densities=(0.01, 0.1), metric=metric))["bytes"]
    axis = plot["layout"]["xaxis"]
    assert axis["type"] == "log"
    ticks = np.log10(axis["tickvals"])
    assert len(ticks) >= 2
    assert axis["range"][0] <= ticks.min()
    assert ticks.max() <= axis["range"][1]


def test_a_wide_interval_leaves_room_for_the_values():
    runs = [outcome("A", 0.1, 0, final_accuracy=0.2), outcome("A", 0.1, 1, final_accuracy=0.9)]
    plot = every_plot(runs)["bytes"]
    limits = plot["layout"]["yaxis"]["autorangeoptions"]
    assert -0.1 < limits["clipmin"] <= 0
    assert 1 <= limits["clipmax"] < 1.1
    assert Estimate.of([0.2, 0.9]).t_interval.high > 4


def test_layers_are_means_over_seeds_and_none_are_dense():
    runs = [outcome("A", 0.1, seed) for seed in range(2)]
    (look,) = looks_of(group_outcomes(runs))
    whole, *layers = figures.layer_traces(look)
    assert [trace["name"] for trace in layers] == [f"block{n}.conv.weight" for n in range(3)]
    expected = np.mean([run.rounds[0]["layer_densities"]["block1.conv.weight"] for run in runs])
    assert layers[1]["y"][0] == pytest.approx(expected, rel=1e-4)
    assert set(whole["y"]) == {0.1}
    assert figures.layer_traces(looks_of(group_outcomes([outcome("FedAvg", None)]))[0]) == []


def test_names_are_text_to_plotly():
    plots = every_plot([outcome("<b>A</b> & <script>", 0.1, seed) for seed in range(2)])
    texts = json.dumps({name: plot for name, plot in plots.items() if not name.startswith("layers")})
    assert "<script" not in texts
    assert "<b>" not in texts
    assert "&lt;b&gt;A&lt;/b&gt; &amp; &lt;script&gt;" in texts


def test_no_two_groups_look_the_same():
    variants = tuple(f"variant {n}" for n in range(9))
    looks = looks_of(group_outcomes(study(variants, (0.1, 0.2, 0.3), seeds=1)))
    drawn = [(look.colour, look.symbol, look.dash) for look in looks]
    assert len(set(drawn)) == len(drawn) == 28


def test_without_a_grid_variants_differ_in_marker_and_dash_too():
    looks = looks_of(group_outcomes([outcome(name, None) for name in "ABCDEF"]))
    for part in ("colour", "symbol", "dash"):
        assert len({getattr(look, part) for look in looks}) == 6


def test_the_grid_has_every_value_once():
    looks = looks_of(group_outcomes(study()))
    assert grid_of(looks) == {"strategy.density": ["0.1", "0.5"]}
