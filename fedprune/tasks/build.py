"""The scenario's task, by its name and for its data."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError
from torch import nn

from fedprune import models, registry
from fedprune.data.dataset import DataInfo
from fedprune.data.known import numbered
from fedprune.errors import UserError
from fedprune.scenario import Scenario
from fedprune.tasks.base import OwnLoss, Task
from fedprune.tasks.classification import Classification
from fedprune.tasks.losses import focal, huber, mae
from fedprune.tasks.multilabel import MultiLabel
from fedprune.tasks.named import named
from fedprune.tasks.reconstruction import Reconstruction
from fedprune.tasks.regression import Regression
from fedprune.tasks.segmentation import Segmentation
from fedprune.tasks.sequences import NextToken, Tagging

LOSSES: Mapping[str, OwnLoss] = {"focal": focal, "huber": huber, "mae": mae}

TASKS: Mapping[str, type[Task]] = {
    "classification": Classification,
    "multilabel": MultiLabel,
    "next_token": NextToken,
    "reconstruction": Reconstruction,
    "regression": Regression,
    "segmentation": Segmentation,
    "tagging": Tagging,
}


def build_model(scenario: Scenario, task: Task) -> nn.Module:
    """Return the scenario's model with its initial weights, for a task; see `fedprune.models.build`."""
    return models.build(
        scenario.model.name,
        task.info.input_shape,
        task.outputs,
        seed=scenario.seed,
        options=scenario.model.options,
        known=task.known(),
        directory=scenario.directory,
    )


def check_model(scenario: Scenario, task: Task, module: nn.Module) -> None:
    """Refuse a model that cannot be trained on a task; see `fedprune.models.check`."""
    example, _ = task.placeholder(2)
    models.check(module, example, task.output_shape(2), scenario.model.name)


def build(scenario: Scenario, info: DataInfo) -> Task:
    """Return the scenario's task; where it names none, that which its data set is usually for.

    Raises
    ------
    PluginError
        Where there is no task of that name.
    UserError
        Where it has no such options, or cannot be learnt from this data.
    """
    spec = scenario.task
    name, options = (info.task, {}) if spec is None else (spec.name, spec.options)
    kind: type[Task] = registry.load("task", name, scenario.directory)
    try:
        chosen = kind.Options(**options)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("task", *first["loc"])))
        known = ", ".join(kind.Options.model_fields) or "none"
        raise UserError(f"{where}: {first['msg']} (options of task {name!r}: {known})") from error
    task = kind(info, chosen)
    task.name = name
    _check_targets(task)
    if task.options.loss is not None:
        task.own_loss = registry.load("loss", task.options.loss, scenario.directory)
    asked = [named(each, task, scenario.directory) for each in scenario.evaluation.metrics]
    there = {metric.name for metric in task.metrics}
    task.metrics += tuple(metric for metric in asked if metric.name not in there)
    return task


def _check_targets(task: Task) -> None:
    """Refuse a task whose targets the data set has not, as far as is known of it."""
    name, info = task.name, task.info
    if info.task == "next_token" and isinstance(task, Classification | Regression):
        raise UserError(
            f"task {name}: data set {info.name!r} is read without labels: name their column in "
            "data.options.label, or take the task next_token"
        )
    if isinstance(task, Regression) and info.class_names not in ((), numbered(info.classes)):
        # Their numbers would be predicted, not the values that are their names.
        raise UserError(
            f"task {name}: the targets of data set {info.name!r} are classes, {info.class_names[0]} and "
            "others: expected numbers (of a table, with data.options.predict: number)"
        )
    if task.outputs < 1:
        raise UserError(f"task {name} needs classes, and data set {info.name!r} has none: take another task")
