"""Figures say what they show: labels with units, the right scale, every layer, for any length of run."""

from __future__ import annotations

import pytest
from matplotlib.image import imread

from fedprune.results import figures, folder

from .made_runs import round_of

FORMS = ("png", "pdf")


def rounds(count: int, layers: int = 2, density: float = 0.3, **changes):
    named = {f"layer{n}.weight": density for n in range(layers)}
    return [
        round_of(n, accuracy=n / count, density=density, layer_densities=named, **changes).columns()
        for n in range(count + 1)
    ]


@pytest.mark.parametrize(("count", "layers"), [(1, 2), (5, 0), (300, 40)])
def test_all_figures_are_drawn(tmp_path, count, layers):
    figures.draw(rounds(count, layers)[1:], tmp_path, title="tiny")
    names = "accuracy", "costs", "density"
    assert {p.name for p in tmp_path.iterdir()} == {f"{name}.{form}" for name in names for form in FORMS}
    for name in names:
        assert imread(tmp_path / f"{name}.png").shape[1] >= 1000
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_a_run_folder_makes_room_for_every_figure_that_is_drawn():
    assert set(folder.FIGURES) == {
        f"{name}.{form}" for name in ("accuracy", *figures.FIGURES) for form in FORMS
    }


def test_the_same_rounds_give_the_same_files(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        figures.draw(rounds(3), tmp_path / name, title="tiny")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes()


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
    assert memory.get_ylabel() == "largest client's peak (MiB)"
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
    axes = figures.metric_figure(records, "tiny", metric="accuracy").axes[0]
    assert list(axes.lines[0].get_xdata()) == [0, 1, 2, 4]
    labels = axes.get_legend_handles_labels()[1]
    assert labels[1:] == ["best: 97.00% in round 1", "last: 60.00% in round 4"]
    assert "(%)" in axes.get_ylabel()
    assert axes.get_xlabel() == "round"


def test_accuracy_on_the_clients_own_data_is_a_line_of_its_own():
    records = rounds(3)
    for record in records[1:]:
        record["client_accuracy"] = 0.4
    axes = figures.metric_figure(records, "tiny", metric="accuracy").axes[0]
    line = next(
        line for line in axes.lines if line.get_label() == "global model, on the clients' held-out data"
    )
    assert list(line.get_xdata()) == [1, 2, 3]


def test_personal_accuracy_is_dashed():
    records = rounds(3)
    for record in records[1:]:
        record["personal_accuracy"] = 1.0
    axes = figures.metric_figure(records, "tiny", metric="accuracy").axes[0]
    (line,) = (line for line in axes.lines if line.get_linestyle() == "--")
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([1, 2, 3], [1.0] * 3)
    assert line.get_label() == "clients' own models, on their held-out data"
    assert axes.get_ylim()[1] > 1


def test_accuracy_of_a_run_without_evaluation_says_so():
    records = [{**record, "accuracy": None} for record in rounds(2)]
    assert "no round" in figures.metric_figure(records, "tiny", metric="accuracy").axes[0].texts[0].get_text()


def pruned_gradually(layers: int, last: float):
    """Rounds from density 1 down to ``last``, in layer n times n + 1."""
    records = rounds(4, layers=layers, density=1.0)
    for record, density in zip(records[2:], (0.5, last, last), strict=True):
        record["density"] = density
        record["layer_densities"] = {f"layer{n}.weight": min(1.0, density * (n + 1)) for n in range(layers)}
    return records


def bars(axes):
    return [[bar.get_width() for bar in container] for container in axes.containers]


def test_density_that_stays_is_a_bar_for_each_layer():
    records = rounds(5, layers=3, density=0.3)
    for record in records:
        record["layer_densities"] = {"a": 0.1, "b": 0.5, "c": 0.3}
    (axes,) = figures.density_figure(records, "tiny").axes
    assert bars(axes) == [[0.1, 0.5, 0.3]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    assert axes.yaxis_inverted()
    assert [text.get_text() for text in axes.texts] == ["10", "50", "30"]
    (line,) = axes.lines
    assert line.get_label() == "all prunable weights: 30 %"
    assert axes.get_xlabel() == "density: kept share of weights (%)"


@pytest.mark.parametrize(("last", "scale"), [(0.3, "linear"), (0.02, "log")])
def test_density_that_moves_is_a_line_for_each_layer_and_the_model(last, scale):
    (axes,) = figures.density_figure(pruned_gradually(3, last), "tiny").axes
    model, *layers = axes.lines
    assert [line.get_label() for line in axes.lines] == [
        "all prunable weights",
        *(f"layer{n}.weight" for n in range(3)),
    ]
    assert list(model.get_ydata()) == [1.0, 1.0, 0.5, last, last]
    assert layers[1].get_ydata()[-1] == 2 * last
    assert axes.get_yscale() == scale
    assert "(%)" in axes.get_ylabel()


def test_of_many_layers_that_move_bars_show_before_and_after():
    model, by_layer = figures.density_figure(pruned_gradually(40, 0.02), "tiny").axes
    assert [line.get_label() for line in model.lines] == ["all prunable weights"]
    before, after = bars(by_layer)
    assert before == [1.0] * 40
    assert after == [0.02 * (n + 1) for n in range(40)]
    assert [container.get_label() for container in by_layer.containers] == ["round 0", "round 4"]


def test_density_of_a_run_without_pruned_layers_is_one_line():
    (axes,) = figures.density_figure(rounds(3, layers=0, density=1.0), "tiny").axes
    assert [line.get_label() for line in axes.lines] == ["all prunable weights"]


def in_classes(accuracy):
    """Rounds of two classes of devices."""
    records = rounds(4)
    counts = dict.fromkeys(("asked", "ok", "late", "surplus", "failed", "excluded", "offline"), 0)
    costs = dict.fromkeys(
        ("bytes_down", "bytes_up", "flops", "device_seconds", "joules", "peak_memory_bytes"), 0
    )
    for record in records:
        trained = int(record["round"] > 0)
        one = {**counts, **costs, "clients": 4, "asked": 2 * trained, "ok": 2 * trained, "accuracy": accuracy}
        record["classes"] = {"board": one, "phone": {**one, "ok": trained, "failed": trained}}
    return records


def test_classes_have_one_panel_where_clients_did_not_evaluate():
    (attendance,) = figures.classes_figure(in_classes(None), "tiny").axes
    shares = dict(zip(attendance.get_legend_handles_labels()[1], bars(attendance), strict=True))
    assert shares == {"took part": [0.5, 0.25], "failed": [0.0, 0.25], "not asked": [0.5, 0.5]}


def test_classes_have_their_accuracies_beside_where_clients_evaluated():
    accuracy, attendance = figures.classes_figure(in_classes(0.75), "tiny").axes
    assert [line.get_label() for line in accuracy.lines] == ["board", "phone"]
    assert len(bars(attendance)) == 3


def test_memory_leaves_out_rounds_in_which_nobody_computed():
    records = rounds(3)
    records[0]["peak_memory_bytes"] = 0
    memory = figures.costs_figure(records, "tiny").axes[3]
    assert list(memory.lines[0].get_xdata()) == [1, 2, 3]


def test_a_figure_shows_itself_in_a_notebook():
    assert figures.metric_figure(rounds(2), "tiny", metric="accuracy")._repr_png_().startswith(b"\x89PNG")
