"""A data source of a user's own: what is wrong with it is one sentence that names it, before a run."""

import pytest

from fedprune.cli import main

SOURCE = """
import numpy as np
import torch
from fedprune import Examples, Request, Source
from fedprune.data.inputs import Numbers

x = np.random.default_rng(0).normal(size=(80, 4)).astype(np.float32)
y = (x[:, 0] > 0).astype(np.int64)
good = Examples(x, y)
inputs = Numbers((4,))


def made(request):
    return RETURNED
"""
PLAN = """
name: own
rounds: 1
model: {name: mlp, hidden: [8]}
data: {name: "./mine.py:made"}
clients: {count: 4, training: {batch_size: 4}}
strategy: {name: fedavg}
"""


def validated(tmp_path, returned, *settings):
    (tmp_path / "mine.py").write_text(SOURCE.replace("RETURNED", returned))
    path = tmp_path / "own.yaml"
    path.write_text(PLAN)
    return main(["validate", str(path), *(part for each in settings for part in ("--set", each))])


def test_a_good_one_passes(tmp_path, capsys):
    assert validated(tmp_path, "Source(good, good, ['a', 'b'], inputs=inputs)") == 0
    assert capsys.readouterr().out.startswith("ok: ")


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("1 / 0", "raised ZeroDivisionError: division by zero"),
        ("[good, good]", "is a list: expected fedprune.data.Source"),
        ("Source((x, y), good, inputs=inputs)", "train is a tuple: expected fedprune.data.Examples"),
        (
            "Source(Examples(x.tolist(), y), good, inputs=inputs)",
            "train has inputs as a list: expected a NumPy array",
        ),
        (
            "Source(good, Examples(x, y.tolist()), inputs=inputs)",
            "test has targets as a list: expected a NumPy array",
        ),
        (
            "Source(Examples(torch.zeros(80, 4), y), good, inputs=inputs)",
            "train has inputs as a Tensor: expected a NumPy array",
        ),
        (
            "Source(good, good, inputs=Numbers((5,)))",
            "2 examples become inputs of shape (2, 4), torch.float32, and its numbers are declared as shape "
            "(2, 5)",
        ),
        ("Source(good, good, inputs=inputs, task='regresion')", "no task 'regresion'"),
        (
            "Source(good, Examples(x, np.full(80, 0.5)), inputs=inputs, task='reconstruction')",
            "test has targets that are neither 0, normal, nor 1, an anomaly",
        ),
    ],
)
def test_validate_says_what_is_wrong_in_one_sentence(returned, said, tmp_path, capsys):
    assert validated(tmp_path, returned) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.out == ""
    assert "no task" in said or "mine.py:made'" in shown.err
    assert shown.err.count("\n") == 1


def test_validate_refuses_a_division_that_a_run_would_refuse(tmp_path, capsys):
    returned = "Source(good, good, inputs=inputs)"
    assert validated(tmp_path, returned, "data.partition={scheme: iid, min_examples: 50}") == 2
    assert "80 training examples can't give 4 clients 50 each" in capsys.readouterr().err


def test_a_label_of_no_class_is_refused(tmp_path, capsys):
    returned = "Source(good, Examples(x, y + 7), ('a', 'b'), inputs=inputs)"
    assert validated(tmp_path, returned) == 2
    assert "labels go from 7 to 8, and there are 2 classes" in capsys.readouterr().err
