"""What a federation learns: one class a task, and the metrics by which models are judged."""

from fedprune.tasks.base import Reduction, Task
from fedprune.tasks.build import (
    LOSSES,
    TASKS,
    build,
    build_model,
    check_examples,
    check_metrics,
    check_mixing,
    check_model,
)
from fedprune.tasks.classification import Classification, classification_of
from fedprune.tasks.metrics import Accuracy, Metric, Statistics, columns
from fedprune.tasks.named import METRICS
from fedprune.tasks.score import Score, combine

__all__ = [
    "LOSSES",
    "METRICS",
    "TASKS",
    "Accuracy",
    "Classification",
    "Metric",
    "Reduction",
    "Score",
    "Statistics",
    "Task",
    "build",
    "build_model",
    "check_examples",
    "check_metrics",
    "check_mixing",
    "check_model",
    "classification_of",
    "columns",
    "combine",
]
