"""Scores: in chunks, in batches, or all at once, they are those of a direct computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from inprocess import plan
from torch.nn import functional

from fedprune import data as datasets
from fedprune.client.site import Site
from fedprune.engine.simulation import score_locally
from fedprune.sparsity.masks import Masks
from fedprune.tasks import Accuracy, Score, combine
from fedprune.training import evaluation
from fedprune.training.evaluation import chunks, score
from fedprune.wire import get_state


@pytest.fixture(scope="module")
def site():
    scenario = plan(data__train_examples=200, data__test_examples=297)
    made = Site(scenario, datasets.load(scenario))
    with torch.no_grad():  # Statistics that are not those of any batch: evaluation must use them.
        for name, buffer in made.module.named_buffers():
            if buffer.is_floating_point():
                buffer.add_(torch.rand(buffer.shape, generator=torch.Generator().manual_seed(len(name))))
    return made


def direct(site):
    """Accuracy and mean cross entropy over the whole test set in one forward pass, in float64."""
    info, test = site.data.info, site.data.test
    mean, std = (
        torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (info.inputs.mean, info.inputs.std)
    )
    x = ((torch.from_numpy(test.inputs).double() / 255 - mean) / std).float()
    site.module.eval()
    with torch.no_grad():
        logits = site.module(x)
    labels = torch.from_numpy(test.targets)
    loss = functional.cross_entropy(logits.double(), labels).item()
    return (logits.argmax(dim=1) == labels).double().mean().item(), loss


@pytest.mark.parametrize("batch_size", [1000, 64, 7])
@pytest.mark.parametrize("chunk", [1024, 100, 297])
def test_the_servers_score_is_that_of_the_whole_test_set(site, chunk, batch_size, monkeypatch):
    monkeypatch.setattr(evaluation, "CHUNK_EXAMPLES", chunk)
    scenario = site.scenario.override(evaluation__batch_size=batch_size)
    state = get_state(site.module)
    found = score_locally(scenario, site.data)(state, Masks())
    accuracy, loss = direct(site)
    assert found.examples == 297
    assert found.values(site.task.metrics) == {"accuracy": accuracy}
    assert found.loss == pytest.approx(loss, rel=1e-6)
    assert 0 < accuracy < 1


def test_chunks_may_be_scored_by_anyone(site):
    """The sum over chunks does not depend on who scored which, in which order."""
    data = site.data
    parts = [np.arange(start, min(start + 50, 297)) for start in range(0, 297, 50)]

    def scored(order):
        done = {i: score(site.module, data.test, parts[i], site.task, batch_size=32) for i in order}
        return combine([done[i] for i in range(len(parts))])

    assert scored(range(len(parts))) == scored(reversed(range(len(parts))))


def test_scoring_changes_nothing(site):
    site.module.train()
    before = {name: tensor.clone() for name, tensor in site.module.state_dict().items()}
    score(site.module, site.data.test, np.arange(50), site.task, batch_size=16)
    after = site.module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@given(st.integers(0, 10_000))
def test_chunks_are_all_examples_in_order(examples):
    parts = chunks(examples)
    assert np.concatenate([np.arange(0), *parts]).tolist() == list(range(examples))
    assert all(0 < len(part) <= evaluation.CHUNK_EXAMPLES for part in parts)
    assert len(parts) == -(-examples // evaluation.CHUNK_EXAMPLES)


def test_no_examples():
    nothing = combine([])
    assert nothing == Score(0, 0.0, {})
    assert (nothing.values([Accuracy()]), nothing.loss) == ({"accuracy": None}, 0.0)
