"""Every strategy on every built-in task; what tasks say of losses, batches and data that does not fit."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inprocess import SPLIT, SUBMODELS, density_of, federate, plan
from made_tasks import LENGTH, PADDING, TASKS, TEST, text
from torch import nn
from torch.nn import functional

from fedprune import registry
from fedprune.data import DataInfo, Examples, Request, batches
from fedprune.data.inputs import Numbers, Pixels, Tokens
from fedprune.errors import UserError
from fedprune.scenario import Scenario
from fedprune.server.check import check, resolve
from fedprune.tasks import TASKS as BUILT_IN
from fedprune.tasks import Accuracy, Classification, Metric, Task, build, check_model
from fedprune.tasks.multilabel import MultiLabel
from fedprune.tasks.reconstruction import Reconstruction
from fedprune.tasks.regression import Regression
from fedprune.tasks.segmentation import Segmentation
from fedprune.tasks.sequences import NextToken, Tagging
from fedprune.training.evaluation import score

HERE = Path(__file__).parent / "made_tasks.py"
OPTIONS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "feddst": {"adjust_every": 1, "stop_adjusting_at": 2},
    "fedmef": {"adjust_every": 1, "stop_adjusting_at": 2},
    "fedtiny": {"adjust_every": 1, "stop_adjusting_at": 2, "candidates": 2},
    "fedrts": {"adjust_every": 1},
    "flash": {"sensing_epochs": 2, "joint": True},
    "feddip": {"reconfigure_every": 2},
    "gradual": {"end": 1, "regrow": True},
    "lotteryfl": {"accuracy_threshold": 0.05, "prune_step": 0.5},
    "prunefl": {"adjust_every": 1},
}


def scenario(learnt: str, strategy: str, **changes: Any) -> Scenario:
    source, model, _ = TASKS[learnt]
    options = {**density_of(strategy), **OPTIONS.get(strategy, {})}
    return plan(
        model={"name": f"{HERE}:{model}"},
        strategy={"name": strategy, **options},
        **{
            "data__name": f"{HERE}:{source}",
            "data__train_examples": None,
            "data__test_examples": None,
            "data__partition": {"scheme": "iid"},
            "data__client_test_fraction": 0.25,
            "evaluation__clients": True,
            **changes,
        },
    )


def test_all_built_in_tasks_are_crossed():
    assert TASKS.keys() == BUILT_IN.keys()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("strategy", [name for name in registry.names("strategy") if name not in SPLIT])
def test_every_strategy_learns_every_task_or_says_why_not(strategy, task):
    headline = TASKS[task][2]
    if strategy == "lotteryfl" and task in ("multilabel", "regression", "reconstruction"):
        with pytest.raises(UserError, match=r"prune by their accuracy, and task .* has none"):
            federate(scenario(task, strategy))
        return
    made = federate(scenario(task, strategy))
    assert [record.clients_failed for record in made.rounds] == [0, 0, 0]
    last = made.rounds[-1]
    for scores in (last.scores, last.client_scores, last.personal_scores):
        assert next(iter(scores)) == headline
    assert last.scores[headline] is not None
    assert math.isfinite(last.loss)
    if headline != "auroc":  # Clients of a few hold out no anomalies.
        assert last.client_scores[headline] is not None
    if strategy != "fedavg" and strategy not in SUBMODELS:
        assert last.density < 1


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("strategy", SPLIT)
def test_split_training_learns_every_task_or_says_why_not(strategy, task):
    options = {"body": "1", "tail": "2"}
    if strategy == "sfprompt" and task != "classification":
        with pytest.raises(UserError, match=r"EL2N is of classes, and the task is .*: set prune: 0"):
            check(split(task, strategy, options).override(task__name=task))
        options["prune"] = 0.0
    asked = split(task, strategy, options)
    if TASKS[task][1] == "Words":
        with pytest.raises(UserError, match=r"a Words cannot be cut: it is no nn\.Sequential of stages"):
            federate(resolve(asked))
        return
    made = federate(resolve(asked))
    assert [record.clients_failed for record in made.rounds] == [0, 0, 0]
    assert made.rounds[-1].scores[TASKS[task][2]] is not None
    assert math.isfinite(made.rounds[-1].loss)


def split(task: str, strategy: str, options: dict[str, Any]) -> Scenario:
    whole = scenario(task, "fedavg", evaluation__clients=False)
    content = whole.model_dump(mode="json", exclude_unset=True)
    return Scenario.from_mapping({**content, "strategy": {"name": strategy, **options}}, whole.directory)


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_learnt(task):
    headline = TASKS[task][2]
    training = {"clients__training__epochs": 5, "clients__training__optimizer__lr": 0.03}
    made = federate(scenario(task, "fedavg", rounds=12, **training))
    first, last = made.rounds[0], made.rounds[-1]
    assert last.loss < 0.8 * first.loss
    better = made.strategy.task.metric(headline).higher_is_better
    gained = last.scores[headline] - (first.scores[headline] or 0.0)
    assert gained > 0.05 if better else gained < -0.05


@pytest.mark.parametrize("task", ["next_token", "regression"])
def test_results_name_the_tasks_metrics(task, tmp_path):
    from fedprune.engine.hosts import InProcess
    from fedprune.engine.simulation import run
    from fedprune.server.check import resolve

    made = run(resolve(scenario(task, "static")), out=tmp_path / "run", progress=False, host=InProcess())
    headline, better = TASKS[task][2], task != "regression"
    assert (made.summary["headline"], made.summary["higher_is_better"]) == (headline, better)
    known = [record[headline] for record in made.rounds]
    assert made.summary[f"final_{headline}"] == known[-1]
    assert made.summary[f"best_{headline}"] == (max if better else min)(known)
    assert (tmp_path / "run" / f"{headline}.png").exists()
    assert ("final_accuracy" in made.summary) == (task == "next_token")
    if task == "next_token":
        final = made.summary["final_perplexity"], made.summary["best_perplexity"]
        assert final == (made.rounds[-1]["perplexity"], min(r["perplexity"] for r in made.rounds))


def test_what_metrics_say_by_class_is_kept_and_drawn(tmp_path):
    from fedprune.engine.hosts import InProcess
    from fedprune.engine.simulation import run
    from fedprune.server.check import resolve

    asked = scenario(
        "classification", "static", evaluation__metrics=["confusion_matrix", "balanced_accuracy"]
    )
    made = run(resolve(asked), out=tmp_path / "run", progress=False, host=InProcess())
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())
    matrix = np.array([[row.get(str(taken), 0) for taken in range(3)] for row in found["confusion_matrix"]])
    assert found["class_names"] == ["a", "b", "c"]
    assert matrix.sum() == TEST
    assert made.summary["final_accuracy"] == pytest.approx(np.trace(matrix) / TEST)
    np.testing.assert_allclose(found["balanced_accuracy"], np.diag(matrix) / matrix.sum(axis=1))
    assert "final_confusion_matrix" not in made.summary
    assert (tmp_path / "run" / "confusion_matrix.png").exists()
    again = run(
        resolve(scenario("classification", "static")),
        out=tmp_path / "run",
        overwrite=True,
        progress=False,
        host=InProcess(),
    )
    assert not (again.directory / "metrics.json").exists()
    assert not (again.directory / "confusion_matrix.png").exists()


@pytest.mark.parametrize(("task", "chosen_on"), [("regression", "clients"), ("classification", "test")])
def test_the_best_model_is_kept_beside_the_last(task, chosen_on, tmp_path):
    from fedprune.engine.hosts import InProcess
    from fedprune.engine.simulation import run
    from fedprune.results.modelfile import load_model
    from fedprune.server.check import resolve

    rate = {"clients__training__optimizer__lr": 0.3}
    plan = resolve(scenario(task, "static", rounds=6, evaluation__keep_best=chosen_on, **rate))
    made = run(plan, out=tmp_path / "run", progress=False, host=InProcess(), figures=False)
    headline = TASKS[task][2]
    column = f"client_{headline}" if chosen_on == "clients" else headline
    known = [record[column] for record in made.rounds[1:]]
    best = (min if task == "regression" else max)(known)
    expected = {"round": known.index(best) + 1, column: best, "chosen_on": chosen_on}
    assert made.summary["best_model"] == expected
    again = resolve(plan.override(rounds=expected["round"], evaluation__keep_best=None))
    short = run(again, out=tmp_path / "short", progress=False, host=InProcess(), figures=False)
    kept, last = load_model(tmp_path / "run" / "best.safetensors"), short.model()
    assert all(torch.equal(kept.state_dict()[name], value) for name, value in last.state_dict().items())


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_the_summary_says_how_evenly_clients_are_served(task, tmp_path):
    from fedprune.engine.hosts import InProcess
    from fedprune.engine.simulation import run
    from fedprune.server.check import resolve

    plan = resolve(scenario(task, "static", evaluation__clients="all"))
    made = run(plan, out=tmp_path / "run", progress=False, host=InProcess(), figures=False)
    headline, rounds = TASKS[task][2], made.summary["rounds"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "clients.jsonl").read_text().splitlines()]
    last = [r[headline] for r in lines if (r["type"], r["round"]) == ("evaluate", rounds)]
    spread = made.summary["client_spread"]["global"]
    assert spread["clients"] == len(last) == 4
    assert spread["mean"] == pytest.approx(np.mean(last))
    assert spread["std"] == pytest.approx(np.std(last))
    assert spread["worst"] == (max if task == "regression" else min)(last)  # a tenth of 4, rounded up
    assert spread["jain"] == pytest.approx(np.sum(last) ** 2 / (4 * np.sum(np.square(last))))
    assert made.summary["client_spread"]["personal"]["clients"] == len(
        {r["client"] for r in lines if r["type"] == "train"}
    )


def test_the_best_on_clients_needs_clients_that_test():
    with pytest.raises(UserError, match=r"set evaluation\.clients"):
        scenario("regression", "static", evaluation__keep_best="clients", evaluation__clients=False)


# Losses -------------------------------------------------------------------------------------------

INFO = DataInfo("made", Numbers((4,)), ("a", "b", "c"), label_counts=(6, 3, 1))


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_the_loss_of_classes_counts_them_by_their_weights():
    outputs, targets = drawn(5, 3), torch.tensor([0, 1, 2, 0, 0])
    plain = functional.cross_entropy(outputs, targets, reduction="none")
    given = Classification(INFO, Classification.Options(class_weights=(1.0, 2.0, 0.5)))
    expected = plain * torch.tensor([1.0, 2.0, 0.5, 1.0, 1.0])
    torch.testing.assert_close(given.losses(outputs, targets, outputs), expected)
    torch.testing.assert_close(given.loss(outputs, targets, outputs), expected.mean())
    balanced = Classification(INFO, Classification.Options(class_weights="balanced"))
    torch.testing.assert_close(balanced.weights, torch.tensor([10 / 18, 10 / 9, 10 / 3]))
    smooth = Classification(INFO, Classification.Options(label_smoothing=0.2))
    uniform = -outputs.log_softmax(dim=1).mean(dim=1)
    torch.testing.assert_close(smooth.losses(outputs, targets, outputs), 0.8 * plain + 0.2 * uniform)
    for task in (smooth, Classification(INFO)):
        each = task.losses(outputs, targets, outputs)
        torch.testing.assert_close(task.loss(outputs, targets, outputs), each.mean())
        torch.testing.assert_close(task.loss(outputs, targets, outputs, "sum"), each.sum())


BALANCED = {"name": "classification", "class_weights": "balanced"}


def test_balanced_weights_are_those_of_all_training_examples():
    made = federate(scenario("classification", "fedavg", task=BALANCED))
    counts = np.bincount(made.data.train.targets, minlength=3)
    expected = counts.sum() / (3 * counts)
    np.testing.assert_allclose(made.strategy.task.weights.numpy(), expected, rtol=1e-6)


def test_balanced_weights_are_refused_where_labels_are_not_known():
    own = DataInfo("own", Numbers((4,)), ("a", "b"))
    unknown = Classification(own, Classification.Options(class_weights="balanced"))
    with pytest.raises(UserError, match="write the weights"):
        unknown.batch(torch.zeros(1, 4), torch.zeros(1))


def test_padding_has_no_part_in_the_loss_of_the_next_token():
    task = NextToken(DataInfo("text", Tokens((3,), 5, 0)))
    stored = torch.tensor([[1, 2, 3, 4], [4, 3, 0, 0], [0, 0, 0, 0]])
    x, y = task.batch(stored, torch.zeros(3))
    assert x.tolist() == [[1, 2, 3], [4, 3, 0], [0, 0, 0]]
    assert y.tolist() == [[2, 3, 4], [3, -100, -100], [-100] * 3]
    outputs = drawn(3, 3, 5)
    found = task.losses(outputs, y, x)
    first = functional.cross_entropy(outputs[0], y[0])
    second = functional.cross_entropy(outputs[1, :1], y[1, :1])
    torch.testing.assert_close(found, torch.stack([first, second, torch.tensor(0.0)]))
    logits, truth = task.compared(outputs, y, x)
    assert truth.tolist() == [2, 3, 4, 3]
    torch.testing.assert_close(logits, torch.cat([outputs[0], outputs[1, :1]]))


def test_a_batch_of_padding_alone_trains_nothing_and_breaks_nothing():
    task = NextToken(DataInfo("text", Tokens((3,), 5, 0)))
    module = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
    x, y = task.batch(torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2))
    loss = task.loss(module(x), y, x)
    loss.backward()
    assert loss == 0
    assert all(not parameter.grad.any() for parameter in module.parameters())


def test_ignored_pixels_have_no_part_in_the_loss():
    task = Segmentation(DataInfo("masks", Pixels((1, 2, 2)), ("a", "b")))
    outputs = drawn(2, 2, 2, 2)
    x, y = task.batch(
        torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([[[0, 1], [255, 255]], [[255] * 2] * 2])
    )
    expected = functional.cross_entropy(outputs[:1, :, :1], y[:1, :1])
    torch.testing.assert_close(task.losses(outputs, y, x), torch.stack([expected, torch.tensor(0.0)]))


def test_reconstruction_compares_with_the_input():
    task = Reconstruction(DataInfo("sounds", Numbers((2, 3))))
    x, y = task.batch(drawn(4, 2, 3), torch.tensor([0, 1, 0, 1]))
    outputs = torch.zeros(4, 6)
    expected = x.flatten(1).square().mean(dim=1)
    torch.testing.assert_close(task.losses(outputs, y, x), expected)
    errors, truth = task.compared(outputs, y, x)
    assert truth.tolist() == [0, 1, 0, 1]
    torch.testing.assert_close(errors, expected)


@pytest.mark.parametrize(
    ("task", "inputs", "targets", "message"),
    [
        (MultiLabel(INFO), np.zeros((2, 4)), np.zeros((2, 2)), r"expected \(N, 3\)"),
        (MultiLabel(INFO), np.zeros((2, 4)), np.full((2, 3), 2), "neither 0 nor 1"),
        (Regression(INFO), np.zeros((2, 4)), np.array(["a", "b"]), "expected numbers"),
        (Regression(INFO), np.zeros((2, 4)), np.zeros((2, 3)), "write task.values: 3"),
        (Regression(INFO), np.zeros((2, 4)), np.array([1, np.nan]), "1 targets that are NaN"),
        (Regression(INFO), np.zeros((2, 4)), np.array([np.inf, 1]), "1 targets that are NaN or infinite"),
        (Reconstruction(INFO), np.zeros((2, 4)), np.array([0, 2]), "nor 1, an anomaly"),
        (NextToken(DataInfo("t", Tokens((3,), 5))), np.zeros((2, 3)), np.zeros(2), r"expected \(N, 4\)"),
        (NextToken(DataInfo("t", Tokens((1,), 5))), np.full((2, 2), 5), np.zeros(2), "expected 0 to 4"),
        (Tagging(INFO), np.zeros((2, 4)), np.zeros((2, 3)), "a class at each position"),
        (Tagging(INFO), np.zeros((2, 4)), np.full((2, 4), 3), "expected 0 to 2, or -100"),
        (
            Segmentation(DataInfo("m", Pixels((1, 2, 2)), ("a", "b"))),
            np.zeros((2, 1, 2, 2)),
            np.zeros((2, 2)),
            "masks",
        ),
    ],
)
def test_data_that_does_not_fit_a_task_is_refused(task, inputs, targets, message):
    found = task.fault(Examples(inputs, targets))
    assert found is not None
    assert re.search(message, found)


@pytest.mark.parametrize(
    ("task", "info", "message"),
    [
        ("regression", DataInfo("t", Numbers((4,)), ("10", "20")), "are classes, 10 and others"),
        ("regression", DataInfo("t", Tokens((4,), 5), task="next_token"), "read without labels"),
        ("classification", DataInfo("t", Tokens((4,), 5), task="next_token"), "read without labels"),
        ("tagging", DataInfo("t", Tokens((4,), 5), task="next_token"), "needs classes"),
        ("multilabel", DataInfo("t", Numbers((4,))), "needs classes"),
        ("segmentation", DataInfo("t", Numbers((4,)), ("a", "b")), "expected images"),
    ],
)
def test_data_without_the_targets_of_a_task_is_refused(task, info, message):
    with pytest.raises(UserError, match=message):
        build(scenario("classification", "fedavg", task={"name": task}), info)


def test_numbers_of_classes_that_are_their_names_can_be_predicted():
    digits = DataInfo("digits", Numbers((4,)), ("0", "1", "2"))
    assert build(scenario("classification", "fedavg", task={"name": "regression"}), digits).outputs == 1


def test_no_words_no_next_word():
    with pytest.raises(UserError, match="has numbers, expected tokens"):
        NextToken(INFO)


# A user's own -------------------------------------------------------------------------------------

OWN = """
import torch
from fedprune.tasks import Metric, Task


class Within(Metric):
    name = "within_accuracy"

    def statistics(self, predictions, truth):
        near = ((predictions - truth).abs() < 1).float()
        return torch.stack([near.sum(), torch.tensor(near.numel())])

    def value(self, statistics):
        return float(statistics[0] / statistics[1])


class Quantile(Task):
    answers = "numbers"
    outputs = 1

    def batch(self, inputs, targets):
        return self.info.inputs.tensor(inputs), targets.float()[:, None]

    def losses(self, outputs, targets, inputs):
        error = (targets - outputs)[:, 0]
        return torch.maximum(0.9 * error, -0.1 * error)

    def headline(self):
        return Within()

    def blank_targets(self, inputs):
        return inputs.new_zeros((len(inputs), 1))


def cubed(outputs, targets):
    return (outputs - targets).abs().pow(3).mean(dim=1)


def every_other(task):
    return Within()
"""


def test_a_task_of_ones_own(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    own = {"name": f"{tmp_path}/mine.py:Quantile"}
    made = federate(scenario("regression", "static", task=own, rounds=4, clients__training__epochs=4))
    first, last = made.rounds[0], made.rounds[-1]
    assert last.loss < first.loss
    assert set(last.scores) == {"within_accuracy"}
    # Nine in ten truths lie below what is predicted, more or less.
    task, data = made.strategy.task, made.data
    made.strategy.model.load_into_module()
    ((x, y),) = batches(data.test, np.arange(len(data.test)), task, len(data.test))
    with torch.no_grad():
        below = (y < made.strategy.module.eval()(x)).float().mean()
    assert below > 0.6


def test_a_loss_and_a_metric_of_ones_own(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    task = {"name": "regression", "loss": f"{tmp_path}/mine.py:cubed"}
    metrics = ["rmse", f"{tmp_path}/mine.py:every_other"]
    made = federate(scenario("regression", "fedtiny", task=task, evaluation__metrics=metrics))
    assert set(made.rounds[-1].scores) == {"mae", "rmse", "within_accuracy"}
    found = made.strategy.task.loss(torch.ones(2, 1), torch.tensor([[3.0], [0.0]]), torch.zeros(2, 4))
    assert found == pytest.approx((8 + 1) / 2)


def test_unknown_options_and_metrics_are_refused_with_what_there_is():
    data = DataInfo("made", Numbers((4,)), ("a", "b"))
    wrong = scenario("classification", "fedavg", task={"name": "classification", "smoothing": 0.1})
    with pytest.raises(UserError, match=r"task\.smoothing.*label_smoothing"):
        build(wrong, data)
    with pytest.raises(UserError, match="no metric 'makro_f1'; did you mean 'macro_f1'"):
        build(scenario("classification", "fedavg", evaluation__metrics=["makro_f1"]), data)
    with pytest.raises(UserError, match="'rmse' does not judge what task 'classification' predicts"):
        build(scenario("classification", "fedavg", evaluation__metrics=["rmse"]), data)


def without_examples(outputs, targets):
    return ((outputs - targets) ** 2).mean()


def whole(outputs, targets):
    return (outputs - targets) ** 2


def nothing(outputs, targets):
    return None


def fails(outputs, targets):
    raise ValueError("no such thing")


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (without_examples, r"makes shape \(\) of 2 examples"),
        (whole, r"makes shape \(2, 1\) of 2 examples"),
        (nothing, "makes NoneType of 2 examples"),
        (fails, "ValueError: no such thing"),
    ],
)
def test_a_loss_that_is_none_of_each_example_is_refused(loss, message):
    asked = scenario("regression", "fedavg", task={"name": "regression"})
    task = build(asked, DataInfo("made", Numbers((4,))))
    task.own_loss = loss
    with pytest.raises(UserError, match=message):
        check_model(asked, task, nn.Linear(4, 1))


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_a_loss_of_numbers_is_refused_for_classes(classes):
    asked = scenario("classification", "fedavg", task={"name": "classification", "loss": "mae"})
    task = build(asked, DataInfo("made", Numbers((4,)), tuple(map(str, range(classes)))))
    with pytest.raises(UserError, match="loss 'mae' does not take outputs"):
        check_model(asked, task, nn.Linear(4, classes))


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2}, {"class_weights": (1.0, 2.0, 0.5)}])
def test_a_mixed_target_has_the_mean_of_its_classes_losses(options):
    """Zhang et al. 2018, section 2: the loss is linear in the target, also with weights and smoothing."""
    task = Classification(INFO, Classification.Options(**options))
    outputs, shares = drawn(5, 3), drawn(5, 3).softmax(dim=1)
    by_class = [task.losses(outputs, torch.full((5,), k), outputs) for k in range(3)]
    expected = sum(shares[:, k] * by_class[k] for k in range(3))
    torch.testing.assert_close(task.losses(outputs, shares, outputs), expected)
    torch.testing.assert_close(task.loss(outputs, shares, outputs), expected.mean())
    labels = torch.tensor([0, 2, 1, 1, 0])
    hard = task.losses(outputs, labels, outputs)
    torch.testing.assert_close(task.losses(outputs, task.soft(labels), outputs), hard)


@pytest.mark.parametrize("task", TASKS)
def test_mixup_goes_with_a_task_or_is_refused_in_a_sentence(task):
    asked = scenario(task, "static", data__augment=["mixup"], rounds=1)
    if task in ("classification", "multilabel", "regression"):
        made = federate(asked)
        assert made.rounds[-1].clients_failed == 0
        return
    with pytest.raises(UserError, match="cannot be mixed"):
        federate(asked)


def by_number(outputs, targets):
    return functional.nll_loss(outputs.log_softmax(dim=1), targets, reduction="none")


def test_a_loss_that_takes_no_shares_is_refused_with_mixup():
    task = {"name": "classification", "loss": f"{Path(__file__)}:by_number"}
    with pytest.raises(UserError, match="mixup does not go with task 'classification'"):
        federate(scenario("classification", "fedavg", task=task, data__augment=["mixup"]))
    federate(scenario("classification", "fedavg", task={**task, "loss": "focal"}, data__augment=["mixup"]))


@pytest.mark.parametrize("options", [{"label_smoothing": 0.1}, {"class_weights": "balanced"}])
def test_another_loss_knows_nothing_of_weights_and_smoothing(options):
    task = {"name": "classification", "loss": "focal", **options}
    with pytest.raises(UserError, match="leave these out"):
        build(scenario("classification", "fedavg", task=task), DataInfo("t", Numbers((4,)), ("a", "b")))


class Nameless(Metric):
    def __init__(self, task: Task) -> None:
        pass

    def statistics(self, predictions, truth):
        return torch.ones(len(predictions))

    def value(self, statistics):
        return 1.0


class Uneven(Nameless):
    name = "uneven"


class Headless(Task):
    def losses(self, outputs, targets, inputs):
        return outputs.mean(dim=1)


def test_metrics_and_tasks_that_are_incomplete_are_refused():
    data = DataInfo("made", Numbers((4,)), ("a", "b"))
    here = str(Path(__file__))
    with pytest.raises(UserError, match="has no name"):
        build(scenario("classification", "fedavg", evaluation__metrics=[f"{here}:Nameless"]), data)
    with pytest.raises(UserError, match="can't be made for a task"):
        build(scenario("classification", "fedavg", evaluation__metrics=[f"{here}:whole"]), data)
    with pytest.raises(UserError, match="has no headline"):
        build(scenario("classification", "fedavg", task={"name": f"{here}:Headless"}), data)


class Scalar(Task):
    """A loss that is the mean already: examples could not be told apart."""

    def losses(self, outputs, targets, inputs):
        return functional.cross_entropy(outputs, targets)

    def headline(self):
        return Accuracy()


def test_a_tasks_own_loss_must_be_that_of_each_example():
    asked = scenario("classification", "fedavg", task={"name": f"{Path(__file__)}:Scalar"})
    task = build(asked, DataInfo("made", Numbers((4,)), ("a", "b")))
    with pytest.raises(UserError, match=r"the loss of task '.*:Scalar' makes shape \(\) of 3 examples"):
        check_model(asked, task, nn.Linear(4, 2))


class Spaced(Nameless):
    name = "my metric"


class Slashed(Nameless):
    name = "top/1"


class Masked(Nameless):
    name = "accuracy"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("Spaced", "'my metric': a name is a column"),
        ("Slashed", "'top/1': a name is a column"),
        ("Masked", "two different metrics are called 'accuracy'"),
    ],
)
def test_a_metric_is_called_as_no_other_and_as_a_column_can_be(kind, said):
    asked = scenario("classification", "fedavg", evaluation__metrics=[f"{Path(__file__)}:{kind}"])
    with pytest.raises(UserError, match=said):
        build(asked, DataInfo("made", Numbers((4,)), ("a", "b")))


class Fails(Nameless):
    name = "fails"

    def statistics(self, predictions, truth):
        raise ValueError("oh no")


class Listed(Fails):
    def statistics(self, predictions, truth):
        return [1, 2]


class Valueless(Fails):
    def statistics(self, predictions, truth):
        return torch.ones(2)

    def value(self, statistics):
        return None


class Undescribed(Valueless):
    def value(self, statistics):
        return 1.0

    def details(self, statistics):
        return object()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("Fails", "'fails' of task 'classification' fails on 4 examples: ValueError: oh no"),
        ("Listed", r"its statistics are list, expected a tensor \(S,\)"),
        ("Valueless", "fails on 4 examples: TypeError"),
        ("Undescribed", "fails on 4 examples: TypeError: Object of type object is not JSON"),
    ],
)
def test_a_metric_that_cannot_be_measured_is_refused_before_a_run(kind, said):
    with pytest.raises(UserError, match=said):
        federate(scenario("classification", "fedavg", evaluation__metrics=[f"{Path(__file__)}:{kind}"]))


def test_a_metric_asked_for_twice_is_measured_once():
    asked = scenario("classification", "fedavg", evaluation__metrics=["ece", "ece", "top2_accuracy"])
    task = build(asked, DataInfo("made", Numbers((4,)), ("a", "b")))
    assert [metric.name for metric in task.metrics] == ["accuracy", "ece", "top2_accuracy"]


def test_statistics_of_changing_size_are_refused():
    asked = scenario("classification", "fedavg", evaluation__metrics=[f"{Path(__file__)}:Uneven"])
    task = build(asked, DataInfo("made", Numbers((4,)), ("a", "b")))
    examples = Examples(np.zeros((3, 4), dtype=np.float32), np.zeros(3, dtype=np.int64))
    with pytest.raises(
        UserError, match="the same S for every batch"
    ):  # of 2, then of 1: they would broadcast
        score(nn.Linear(4, 2), examples, np.arange(3), task, batch_size=2)


@pytest.mark.parametrize("weights", [[-1.0, 1.0], [0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_weights_that_weigh_nothing_are_refused(weights):
    asked = scenario("classification", "fedavg", task={"name": "classification", "class_weights": weights})
    with pytest.raises(UserError, match="none may be negative"):
        build(asked, DataInfo("made", Numbers((4,)), ("a", "b")))


def test_text_has_sequences_of_every_length():
    lengths = (text(Request("text")).train.inputs != PADDING).sum(axis=1)
    assert {0, 1, LENGTH} <= set(lengths.tolist())


def test_every_task_is_a_task():
    assert all(issubclass(kind, Task) for kind in BUILT_IN.values())


def test_clients_without_most_classes_learn_all_the_same():
    """Two classes a client, weighted by all clients' counts; what a client lacks counts as 0 of 0."""
    made = federate(
        plan(
            data__partition={"scheme": "pathological", "classes_per_client": 2},
            data__client_test_fraction=0.25,
            task__name="classification",
            task__class_weights="balanced",
            evaluation__clients=True,
            evaluation__metrics=["balanced_accuracy"],
            clients__count=5,
            clients__per_round=5,
        )
    )
    assert [record.clients_failed for record in made.rounds] == [0, 0, 0]
    for number in range(5):
        client = made.data.client(number)
        pairs = batches(client.examples, client.train, made.strategy.task, 16)
        assert len({int(label) for _, y in pairs for label in y}) == 2
    last = made.rounds[-1]
    assert math.isfinite(last.loss)
    assert math.isfinite(last.train_loss)
    assert last.client_scores["balanced_accuracy"] is not None
