"""Metrics: parts merge to the union, and the values are scikit-learn's."""

from __future__ import annotations

import json
import resource
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor

from fedprune.data.dataset import DataInfo
from fedprune.data.inputs import Numbers
from fedprune.errors import UserError
from fedprune.tasks import METRICS, Classification, Metric, Task
from fedprune.tasks.metrics import ConfusionMatrix
from fedprune.tasks.multilabel import MultiLabel
from fedprune.tasks.named import named
from fedprune.tasks.ranking import ErrorAuroc
from fedprune.tasks.regression import Regression

CLASSES, EXAMPLES = 5, 400
INFO = DataInfo("made", Numbers((3,)), tuple("abcde"))
TASKS: dict[str, Task] = {
    "classes": Classification(INFO),
    "labels": MultiLabel(INFO),
    "numbers": Regression(INFO, Regression.Options(values=2)),
}


def drawn(answers: str, missing: bool = False) -> tuple[Tensor, Tensor]:
    """Return predictions that have something to do with the truth; of classes, maybe, without one of them."""
    draws = torch.Generator().manual_seed(3)
    if answers == "classes":
        truth = torch.randint(CLASSES - missing, (EXAMPLES,), generator=draws)
        hint = torch.nn.functional.one_hot(truth, CLASSES).float()
    elif answers == "labels":
        truth = torch.randint(2, (EXAMPLES, CLASSES), generator=draws).float()
        hint = truth - 0.5
    else:
        truth = torch.randn(EXAMPLES, 2, generator=draws)
        hint = truth
    return 1.5 * hint + torch.randn(hint.shape, generator=draws), truth


def total(metric: Metric, predictions: Tensor, truth: Tensor, parts: int = 1) -> np.ndarray:
    """Return the statistics of all examples, summed over so many unequal parts."""
    cuts = sorted(np.random.default_rng(0).choice(np.arange(1, EXAMPLES), parts - 1, replace=False).tolist())
    pieces = zip(predictions.tensor_split(cuts), truth.tensor_split(cuts), strict=True)
    return np.sum([metric.statistics(p, t).double().numpy() for p, t in pieces], axis=0)


def judged() -> list[tuple[str, str]]:
    found = []
    for name in [*METRICS, "top2_accuracy"]:
        for answers, task in TASKS.items():
            try:
                named(name, task)
            except UserError:
                continue
            found.append((name, answers))
    return found


def expected(name: str, answers: str, predictions: Tensor, truth: Tensor) -> Any:
    p, t = predictions.double().numpy(), truth.numpy()
    if answers == "numbers":
        return {
            "mae": sk.mean_absolute_error(t, p),
            "rmse": np.sqrt(sk.mean_squared_error(t, p)),
            "r2": sk.r2_score(t, p),
        }[name]
    if answers == "labels":
        chances = 1 / (1 + np.exp(-p))
        return {
            "micro_f1": lambda: sk.f1_score(t, p > 0, average="micro"),
            "macro_f1": lambda: sk.f1_score(t, p > 0, average="macro"),
            "auroc": lambda: sk.roc_auc_score(t, chances, average="macro"),
            "average_precision": lambda: sk.average_precision_score(t, chances, average="macro"),
        }[name]()
    answer, chances = p.argmax(axis=1), predictions.double().softmax(dim=1).numpy()
    there = sorted(set(t.tolist()))
    return {
        "balanced_accuracy": lambda: sk.balanced_accuracy_score(t, answer),
        "confusion_matrix": lambda: sk.confusion_matrix(t, answer, labels=range(CLASSES)),
        "ece": lambda: ece(chances, t),
        "macro_f1": lambda: sk.f1_score(t, answer, average="macro"),
        "mean_iou": lambda: sk.jaccard_score(t, answer, average="macro"),
        "perplexity": lambda: np.exp(sk.log_loss(t, chances, labels=range(CLASSES))),
        "top5_accuracy": lambda: 1.0,
        "top2_accuracy": lambda: sk.top_k_accuracy_score(t, p, k=2, labels=range(CLASSES)),
        "auroc": lambda: np.mean([sk.roc_auc_score(t == k, chances[:, k]) for k in there]),
        "average_precision": lambda: np.mean(
            [sk.average_precision_score(t == k, chances[:, k]) for k in there]
        ),
    }[name]()


def ece(chances: np.ndarray, truth: np.ndarray) -> float:
    """Guo et al. 2017, equation 3, bin by bin."""
    confidence, right = chances.max(axis=1), chances.argmax(axis=1) == truth
    found = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            found += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return found


@pytest.mark.parametrize(("name", "answers"), judged())
@pytest.mark.parametrize("missing", [False, True])
def test_values_are_those_of_scikit_learn_on_the_union_of_parts(name, answers, missing):
    metric = named(name, TASKS[answers])
    predictions, truth = drawn(answers, missing)
    statistics = total(metric, predictions, truth, parts=7)
    if metric.has_value:
        found = metric.value(statistics)
    else:
        found = [[row.get(str(taken), 0) for taken in range(CLASSES)] for row in metric.details(statistics)]
    # Curves are taken at 500 thresholds.
    tolerance = 5e-3 if name in ("auroc", "average_precision") else 1e-6
    np.testing.assert_allclose(found, expected(name, answers, predictions, truth), atol=tolerance)


@pytest.mark.parametrize(("name", "answers"), judged())
def test_parts_merge_to_the_whole(name, answers):
    metric = named(name, TASKS[answers])
    predictions, truth = drawn(answers)
    whole, merged = total(metric, predictions, truth), total(metric, predictions, truth, parts=23)
    if np.array_equal(whole, np.rint(whole)):
        np.testing.assert_array_equal(merged, whole)  # Counts are exact.
    else:
        np.testing.assert_allclose(merged, whole, rtol=1e-5)


def test_how_well_an_error_tells_anomalies_is_the_area_under_the_curve():
    draws = np.random.default_rng(0)
    truth = draws.integers(0, 2, 1000)
    errors = np.exp(draws.normal(size=1000) + truth)
    metric = ErrorAuroc()
    statistics = metric.statistics(torch.from_numpy(errors), torch.from_numpy(truth)).numpy()
    assert metric.fault(statistics, 1000) is None
    assert metric.fault(statistics, 999)
    assert metric.value(statistics) == pytest.approx(sk.roc_auc_score(truth, errors), abs=2e-3)
    alone = metric.statistics(torch.ones(3), torch.zeros(3)).numpy()
    assert np.isnan(metric.value(alone))


def test_details_are_by_class():
    metric = named("macro_f1", TASKS["classes"])
    predictions, truth = drawn("classes", missing=True)
    statistics = total(metric, predictions, truth)
    each = sk.f1_score(truth.numpy(), predictions.argmax(dim=1).numpy(), average=None, labels=range(CLASSES))
    np.testing.assert_allclose(metric.details(statistics), each, atol=1e-6)


def test_a_metric_that_does_not_fit_the_task_is_refused():
    with pytest.raises(UserError, match=r"'rmse' does not judge what task '' predicts"):
        named("rmse", TASKS["classes"])


def test_areas_are_counted_in_little_memory_in_a_process_that_is_deterministic():
    """As the processes of a run are; what is counted is the same."""
    metric = named("auroc", TASKS["classes"])
    predictions, truth = drawn("classes")
    expected = total(metric, predictions, truth)
    torch.use_deterministic_algorithms(True)
    try:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        np.testing.assert_array_equal(total(metric, predictions, truth), expected)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # 1 GiB


def test_a_matrix_of_many_classes_is_small():
    metric = ConfusionMatrix(1000)
    truth = torch.arange(2000) % 1000
    statistics = metric.statistics(torch.nn.functional.one_hot(truth.roll(1), 1000), truth).double().numpy()
    rows = metric.details(statistics)
    assert len(rows) == 1000
    assert rows[7] == {"6": 2}
    assert len(json.dumps(rows)) < 20_000
