"""What a study's process says of a run, without Ray around it."""

from __future__ import annotations

from io import StringIO
from typing import Any

from inprocess import PLAN

import fedprune
from fedprune import data as datasets
from fedprune.studies.execute import Ended, Job, Runner
from fedprune.studies.progress import Progress

LOGGER = """\
from fedprune import Logger


class Fails(Logger):
    def on_round(self, number, scalars):
        raise OSError("disk quota")
"""
STRATEGY = """\
import sys

from fedprune.strategies.fedavg import FedAvg


class Exits(FedAvg):
    def update_masks(self, server_round):
        sys.exit(3)
"""


def ended(folder: Any, **changes: Any) -> tuple[Ended, str]:
    """Do the one run of a study as its process does; return how it ended and what the progress wrote."""
    base = {**PLAN, "rounds": 1, **changes}
    made = fedprune.study({"name": "one", "base": base, "runs": {"A": {}}}, out=folder / "out")
    (run,) = made.planned()
    job = Job(run.scenario, made.folder.place(run), made.folder.pretrained, "cpu", 0)
    status, reason, warnings = Runner("portable").run(job, datasets.read(run.scenario))
    stream = StringIO()
    result = Ended(run, status, reason, 1.0, warnings)
    with Progress(made, stream=stream) as progress:
        progress.on_end(result)
    return result, stream.getvalue()


def test_what_a_run_warns_of_is_shown_once(tmp_path):
    (tmp_path / "mine.py").write_text(LOGGER)
    result, shown = ended(tmp_path, logging=[f"{tmp_path}/mine.py:Fails"])
    assert result.status == "complete"
    assert len(result.warnings) == 1
    assert "A, seed 0: warning: logger " in shown
    assert "failed, and the run goes on; this is said once: OSError: disk quota" in shown


def test_a_plugin_that_exits_ends_its_run_alone(tmp_path):
    (tmp_path / "mine.py").write_text(STRATEGY)
    result, shown = ended(tmp_path, strategy={"name": f"{tmp_path}/mine.py:Exits"})
    assert (result.status, result.reason) == ("failed", "SystemExit: 3")
    assert shown == "[0/1] A, seed 0: failed: SystemExit: 3\n"
