"""Figures say what they show: labels with units, the right scale, every layer, for any length of run."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from matplotlib.image import imread

from fedprune.results import figures

from .made_runs import round_of


def rounds(count: int, layers: int = 2, density: float = 0.3, **changes):
    named = {f"layer{n}.weight": density for n in range(layers)}
    return [
        asdict(round_of(n, accuracy=n / count, density=density, layer_densities=named, **changes))
        for n in range(count + 1)
    ]


@pytest.mark.parametrize(("count", "layers"), [(1, 2), (5, 0), (300, 40)])
def test_all_figures_are_drawn(tmp_path, count, layers):
    figures.draw(rounds(count, layers)[1:], tmp_path, title="tiny")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["accuracy.png", "costs.png", "density.png"]
    for path in tmp_path.iterdir():
        height, width, _ = imread(path).shape
        assert width >= 1000
        assert height >= 600


def test_drawing_leaves_pyplot_alone(tmp_path):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    figures.draw(rounds(2), tmp_path, title="tiny")
    assert plt.get_fignums() == before


def test_cost_axes_name_the_unit_and_hold_cumulative_values():
    figure = figures.costs_figure(
        rounds(5, bytes_down=2**20, bytes_up=2**19, flops=10**9, device_seconds=30.0), "tiny"
    )
    traffic, flops, seconds, memory = figure.axes
    assert traffic.get_ylabel() == "traffic so far (MiB)"
    assert flops.get_ylabel() == "computation so far (GFLOP)"
    assert seconds.get_ylabel() == "device time so far (min)"
    assert memory.get_ylabel() == "peak memory of the largest client (MiB)"
    assert list(traffic.lines[0].get_ydata()) == [1, 2, 3, 4, 5, 6]
    assert list(traffic.lines[1].get_ydata()) == [0.5, 1, 1.5, 2, 2.5, 3]
    assert list(seconds.lines[0].get_ydata()) == [0.5, 1, 1.5, 2, 2.5, 3]
    assert [axes.get_yscale() for axes in figure.axes] == ["linear"] * 4


def test_costs_of_nothing_are_drawn():
    nothing = dict.fromkeys(("bytes_down", "bytes_up", "flops", "peak_memory_bytes", "device_seconds"), 0)
    for axes in figures.costs_figure(rounds(3, **nothing), "tiny").axes:
        assert axes.get_ylim() == (0, 1)


def test_accuracy_leaves_out_rounds_without_evaluation_and_names_the_best():
    records = rounds(4)
    records[1]["accuracy"], records[3]["accuracy"], records[4]["accuracy"] = 0.97, None, 0.6
    axes = figures.accuracy_figure(records, "tiny").axes[0]
    assert list(axes.lines[0].get_xdata()) == [0, 1, 2, 4]
    labels = axes.get_legend_handles_labels()[1]
    assert labels[1:] == ["best: 97.00% in round 1", "last: 60.00% in round 4"]
    assert "(%)" in axes.get_ylabel()
    assert axes.get_xlabel() == "round"


def test_accuracy_on_the_clients_own_data_is_a_line_of_its_own():
    records = rounds(3)
    for record in records[1:]:
        record["client_accuracy"] = 0.4
    axes = figures.accuracy_figure(records, "tiny").axes[0]
    line = next(
        line for line in axes.lines if line.get_label() == "global model, on the clients' held-out data"
    )
    assert list(line.get_xdata()) == [1, 2, 3]


def test_personal_accuracy_is_dashed():
    records = rounds(3)
    for record in records[1:]:
        record["personal_accuracy"] = 1.0
    axes = figures.accuracy_figure(records, "tiny").axes[0]
    (line,) = (line for line in axes.lines if line.get_linestyle() == "--")
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([1, 2, 3], [1.0] * 3)
    assert line.get_label() == "clients' own models, on their held-out data"
    assert axes.get_ylim()[1] > 1


def test_accuracy_of_a_run_without_evaluation_says_so():
    records = [{**record, "accuracy": None} for record in rounds(2)]
    assert "no round" in figures.accuracy_figure(records, "tiny").axes[0].texts[0].get_text()


@pytest.mark.parametrize(("density", "scale"), [(0.5, "linear"), (0.02, "log")])
def test_density_draws_every_layer_and_the_model(density, scale):
    figure = figures.density_figure(rounds(5, layers=3, density=density), "tiny")
    axes = figure.axes[0]
    assert [line.get_label() for line in axes.lines] == [
        *(f"layer{n}.weight" for n in range(3)),
        "all prunable weights",
    ]
    assert axes.get_yscale() == scale
    assert "(%)" in axes.get_ylabel()


def test_many_layers_are_told_apart_by_a_colour_bar():
    figure = figures.density_figure(rounds(5, layers=40), "tiny")
    assert len(figure.axes[0].lines) == 41
    assert figure.axes[1].get_ylabel() == "pruned layer, from layer0.weight to layer39.weight"


def test_a_figure_shows_itself_in_a_notebook():
    assert figures.accuracy_figure(rounds(2), "tiny")._repr_png_().startswith(b"\x89PNG")
