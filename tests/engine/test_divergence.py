"""Training that diverges: refused updates are counted by their kind, and what to try is said once."""

from pathlib import Path

import pytest
from inprocess import plan

from fedprune.engine.hosts import InProcess
from fedprune.engine.simulation import run
from fedprune.errors import RunError
from fedprune.results.run import load_run

HUGE = """
import numpy as np
from fedprune import Examples, Source
from fedprune.data.inputs import Numbers

def made(request):
    x = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    return Source(*(Examples(part, 1e30 * part[:, 0]) for part in (x[:200], x[200:])), inputs=Numbers((4,)),
                  task="regression")
"""


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [text for text in caplog.messages if text.startswith("training diverges")]


def test_a_rate_that_is_too_high_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    high = plan(clients__training__optimizer__lr=1e6)
    with pytest.raises(RunError, match="none of 3 clients gave a usable reply"):
        run(high, out=tmp_path / "run", host=InProcess(), progress=False, figures=False, rounds=4)
    (text,) = said(caplog)
    assert "a clients.training.optimizer.lr below 1e+06, clients.training.optimizer {name: adam" in text
    assert "standardised" not in text
    assert set(load_run(tmp_path / "run").summary["faults"]) == {"not-finite"}


def test_numbers_that_are_too_large_are_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "huge.py").write_text(HUGE)
    data = {"data.name": f"{tmp_path}/huge.py:made", "data.partition": {"scheme": "iid"}}
    wide = {"data.train_examples": None, "data.test_examples": None, "model": {"name": "mlp", "hidden": [8]}}
    with pytest.raises(RunError, match="none of 3 clients"):
        run(
            plan().override(**data, **wide),
            out=tmp_path / "run",
            host=InProcess(),
            progress=False,
            figures=False,
        )
    (text,) = said(caplog)
    assert "numbers to predict that are divided by their standard deviation, inputs that are stand" in text


def test_injected_faults_are_no_sign(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    faulty = plan(faults={"at": [{"round": 1, "client": n, "fault": "not_finite"} for n in range(2)]})
    done = run(faulty, out=tmp_path / "run", host=InProcess(), progress=False, figures=False)
    assert done.summary["faults"]["not-finite"] >= 1
    assert not said(caplog)
