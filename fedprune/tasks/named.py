"""Metrics by name, as ``evaluation.metrics`` in a scenario asks for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fedprune import registry
from fedprune.errors import PluginError, UserError
from fedprune.tasks import library
from fedprune.tasks.metrics import (
    R2,
    BalancedAccuracy,
    CalibrationError,
    ConfusionMatrix,
    LabelF1,
    MeanAbsoluteError,
    MeanIoU,
    Metric,
    Perplexity,
    TopK,
)

if TYPE_CHECKING:
    from fedprune.tasks.base import Task

#: Makes a metric for a task.
Make = Callable[["Task"], Metric]


def _of_kind(name: str, **makers: Callable[[int], Metric]) -> Make:
    """Return how a metric is made for each of the kinds of answers that it judges."""

    def make(task: Task) -> Metric:
        if task.answers not in makers:
            raise UserError(f"metric {name!r} does not judge what task {task.name!r} predicts")
        return makers[task.answers](task.outputs)

    make.__doc__ = _LINES[name]
    return make


_LINES = {
    "auroc": "Area under the ROC curve, one class against the rest, mean over classes.",
    "average_precision": "Average precision, one class against the rest, mean over classes.",
    "balanced_accuracy": "Mean over classes of the share that is recognised.",
    "confusion_matrix": "How often each class was taken for each, as a table and a figure.",
    "ece": "Expected calibration error, in 15 bins of confidence.",
    "macro_f1": "F1, mean over classes.",
    "mae": "Mean absolute error.",
    "mean_iou": "Intersection over union, mean over classes.",
    "micro_f1": "F1 of all labels together.",
    "perplexity": "Exponential of the mean cross entropy.",
    "r2": "Coefficient of determination.",
    "rmse": "Root of the mean squared error.",
    "top5_accuracy": "Share of labels among the five largest logits; any number in the place of 5.",
}

METRICS: Mapping[str, Make] = {
    "auroc": _of_kind(
        "auroc",
        classes=lambda k: library.of_classes("auroc", k),
        labels=lambda k: library.of_labels("auroc", k),
    ),
    "average_precision": _of_kind(
        "average_precision",
        classes=lambda k: library.of_classes("average_precision", k),
        labels=lambda k: library.of_labels("average_precision", k),
    ),
    "balanced_accuracy": _of_kind("balanced_accuracy", classes=BalancedAccuracy),
    "confusion_matrix": _of_kind("confusion_matrix", classes=ConfusionMatrix),
    "ece": _of_kind("ece", classes=lambda _: CalibrationError()),
    "macro_f1": _of_kind(
        "macro_f1",
        classes=lambda k: library.of_classes("macro_f1", k),
        labels=lambda k: library.of_labels("macro_f1", k),
    ),
    "mae": _of_kind("mae", numbers=lambda _: MeanAbsoluteError()),
    "mean_iou": _of_kind("mean_iou", classes=MeanIoU),
    "micro_f1": _of_kind("micro_f1", labels=lambda _: LabelF1()),
    "perplexity": _of_kind("perplexity", classes=lambda _: Perplexity()),
    "r2": _of_kind("r2", numbers=R2),
    "rmse": _of_kind("rmse", numbers=lambda _: library.root_mean_squared_error()),
    "top5_accuracy": _of_kind("top5_accuracy", classes=lambda _: TopK(5)),
}


def named(name: str, task: Task, directory: Path | None = None) -> Metric:
    """Return the metric of a name for a task.

    Raises
    ------
    PluginError
        Where there is none of that name, or it is no metric.
    UserError
        Where it does not judge what the task predicts, or torchmetrics is missing.
    """
    if (found := re.fullmatch(r"top([1-9]\d*)_accuracy", name)) and task.answers == "classes":
        return TopK(int(found[1]))
    make = registry.load("metric", name, directory)
    try:
        metric = make(task)
    except TypeError as error:
        raise PluginError(f"metric {name!r} can't be made for a task, its one argument: {error}") from error
    if not isinstance(metric, Metric):
        raise PluginError(
            f"metric {name!r} made a {type(metric).__name__}: it must be a fedprune.tasks.Metric"
        )
    if not getattr(metric, "name", ""):
        raise PluginError(f"metric {name!r} has no name, its column in results")
    return metric
