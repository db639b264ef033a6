"""The scenario's task, by its name and for its data."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import count

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from fedprune import models, registry
from fedprune.data.augmentation import augmentations
from fedprune.data.batches import batches
from fedprune.data.dataset import DataInfo, Examples
from fedprune.data.known import numbered
from fedprune.errors import FedpruneError, PluginError, UserError
from fedprune.scenario import Scenario
from fedprune.sparsity.frozen import freeze, frozen_by
from fedprune.tasks.base import OwnLoss, Task
from fedprune.tasks.classification import Classification
from fedprune.tasks.losses import focal, huber, mae
from fedprune.tasks.metrics import Metric
from fedprune.tasks.multilabel import MultiLabel
from fedprune.tasks.named import named
from fedprune.tasks.reconstruction import Reconstruction
from fedprune.tasks.regression import Regression
from fedprune.tasks.segmentation import Segmentation
from fedprune.tasks.sequences import NextToken, Tagging
from fedprune.wording import one_line

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
    """Return the scenario's model with its initial weights, for a task; see `fedprune.models.build`.

    What the scenario freezes is frozen.

    Raises
    ------
    UserError
        Where it freezes what the model does not have, or everything.
    """
    module = models.build(
        scenario.model.name,
        task.info.input_shape,
        task.outputs,
        seed=scenario.seed,
        options=scenario.model.options,
        known=task.known(),
        directory=scenario.directory,
    )
    spec = scenario.model
    if spec.frozen or spec.trainable is not None:
        freeze(module, frozen_by(module, spec.frozen, spec.trainable))
    return module


def check_model(scenario: Scenario, task: Task, module: nn.Module) -> None:
    """Refuse a model that cannot be trained on a task, see `fedprune.models.check`, or a loss of no use."""
    example, _ = task.placeholder(2)
    models.check(module, example, task.output_shape(2), scenario.model.name)
    _check_losses(task)


def check_examples(task: Task, examples: Examples, where: str) -> None:
    """Refuse examples from which a task makes no batch that its model takes.

    Parameters
    ----------
    task
        What is learnt.
    examples
        As they are stored.
    where
        Whose they are, for messages.

    Raises
    ------
    UserError
        For the first fault.
    """
    few = np.arange(min(2, len(examples)))
    try:
        if fault := task.fault(examples):
            raise UserError(f"{where} has {fault}")
        x, _ = next(iter(batches(examples, few, task, len(few))))
    except FedpruneError:
        raise
    except Exception as error:  # Inputs and tasks may be a user's own.
        raise UserError(f"{where}: task {task.name!r} makes no batch of it: {one_line(error)}") from error
    inputs = task.info.inputs
    found, wanted = tuple(x.shape), (len(few), *inputs.shape)
    if found != wanted or x.dtype != inputs.dtype:
        raise UserError(
            f"{where}: {len(few)} examples become inputs of shape {found}, {x.dtype}, and its {inputs.kind} "
            f"are declared as shape {wanted}, {inputs.dtype}: correct one of them"
        )


def check_metrics(task: Task, examples: Examples) -> None:
    """Refuse metrics that cannot be measured on a task, by a trial on a few examples and outputs of zeros.

    Raises
    ------
    UserError
        For the first that fails.
    """
    few = np.arange(min(4, len(examples)))
    x, y = next(iter(batches(examples, few, task, len(few))))
    for metric in task.metrics:
        name = f"metric {metric.name!r} of task {task.name!r}"
        try:
            predictions, truth = task.compared(torch.zeros(task.output_shape(len(few))), y, x)
            sums = metric.statistics(predictions, truth)
            if not isinstance(sums, Tensor) or sums.ndim != 1:
                made = f"shape {tuple(sums.shape)}" if isinstance(sums, Tensor) else type(sums).__name__
                raise UserError(f"{name}: its statistics are {made}, expected a tensor (S,)")
            statistics = sums.double().numpy()
            if metric.has_value:
                float(metric.value(statistics))
            json.dumps(metric.details(statistics))
        except FedpruneError:
            raise
        except Exception as error:  # Task and metric may be a user's own.
            raise UserError(f"{name} fails on {len(few)} examples: {one_line(error)}") from error


def check_mixing(scenario: Scenario, task: Task, examples: Examples) -> None:
    """Refuse augmentations of inputs and targets together where task or loss can't take what they make.

    Raises
    ------
    UserError
        For the first that fails.
    """
    mixing = [
        change for change in augmentations(scenario.data.augment, scenario.directory) if change.on_batches
    ]
    if not mixing:
        return
    few = np.arange(min(4, len(examples)))
    x, y = next(iter(batches(examples, few, task, len(few))))
    for change in mixing:
        try:
            mixed, targets = change.mixed(x, task.soft(y), torch.Generator().manual_seed(0))
            loss = task.loss(torch.zeros(task.output_shape(len(few))), targets, mixed)
        except FedpruneError:
            raise
        except Exception as error:  # Augmentation, task and loss may be a user's own.
            raise UserError(
                f"data.augment: {change.name} does not go with task {task.name!r}: {one_line(error)}"
            ) from error
        if mixed.shape != x.shape or not bool(torch.isfinite(loss)):
            raise UserError(
                f"data.augment: {change.name} made inputs of shape {tuple(mixed.shape)} of those of "
                f"{tuple(x.shape)}, with a loss of {float(loss):g}: expected the same shape, and a number"
            )


def _check_losses(task: Task) -> None:
    """Refuse a loss that does not give a number for each example; a task's own, too."""
    # So many that no other dimension is of that size: it could be broadcast, or taken for them.
    examples = next(number for number in count(2) if number not in task.output_shape(1)[1:])
    outputs, (inputs, targets) = torch.zeros(task.output_shape(examples)), task.placeholder(examples)
    own, wanted = task.own_loss, "expected a tensor (B,), the loss of each example"
    name = f"the loss of task {task.name!r}" if own is None else f"loss {task.options.loss!r}"
    try:
        found = task.losses(outputs, targets, inputs) if own is None else own(outputs, targets)
    except Exception as error:  # whatever a user's own raises
        raise UserError(
            f"{name} does not take outputs of shape {tuple(outputs.shape)} and targets of shape "
            f"{tuple(targets.shape)}{f', of task {task.name!r}' if own else ''}: {one_line(error)}"
        ) from error
    if not isinstance(found, Tensor) or found.shape != (examples,):
        made = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise UserError(f"{name} makes {made} of {examples} examples: {wanted}")


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
    if missing := sorted(getattr(kind, "__abstractmethods__", ())):
        raise PluginError(f"task {name!r} has no {' and no '.join(missing)}: see fedprune.tasks.Task")
    task = kind(info, chosen)
    task.name = name
    _check_targets(task)
    if task.options.loss is not None:
        task.own_loss = registry.load("loss", task.options.loss, scenario.directory)
    asked = [named(each, task, scenario.directory) for each in scenario.evaluation.metrics]
    if not all(isinstance(metric, Metric) for metric in task.metrics):
        raise PluginError(f"task {name!r}: headline and others must return fedprune.tasks.Metric")
    task.metrics = _once((*task.metrics, *asked))
    return task


def _once(metrics: Sequence[Metric]) -> tuple[Metric, ...]:
    """Return each metric once; refuse names that are no column's, or that two different metrics have."""
    by_name: dict[str, Metric] = {}
    for metric in metrics:
        if not re.fullmatch(r"\w[\w-]*", metric.name):
            raise PluginError(
                f"metric {metric.name!r}: a name is a column of results, letters, digits, _ and - alone: "
                "rename it"
            )
        if type(by_name.setdefault(metric.name, metric)) is not type(metric):
            raise PluginError(f"two different metrics are called {metric.name!r}: rename one of your own")
    return tuple(by_name.values())


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
