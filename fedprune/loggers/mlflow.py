"""MLflow: a run with parameters, metrics and artifacts, in a database of the run folder or at a URI.

MLflow's own store for single files is in maintenance; a database of SQLite takes its place here.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from fedprune.loggers.base import Logger, RunEnd, RunStart
from fedprune.results.folder import MLFLOW, MLFLOW_RUN

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

_STATES = {"complete": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
_EVERY_ROUND = "density"  # A metric that all rounds have.

# What MLflow takes at once.
_METRICS, _PARAMETERS = 1000, 100
# A database takes as long for a round as for ten: rounds that are shorter than this go together.
_SECONDS = 5.0


class MLflow(Logger):
    """A run of MLflow: parameters, metrics, artifacts and how it ended; in the run folder, or at a URI.

    A run that goes on from a checkpoint goes on with its run of MLflow, where that still is.
    """

    needs = {"mlflow": "fedprune[mlflow]", "sqlalchemy": "fedprune[mlflow]"}  # noqa: RUF012

    class Options(Logger.Options):
        """Where the run goes."""

        uri: str | None = Field(
            default=None,
            min_length=1,
            description="Where MLflow keeps runs, such as http://host:5000 or sqlite:////data/mlflow.db; "
            "null: what MLFLOW_TRACKING_URI says, else mlflow/mlflow.db in the run folder.",
        )
        experiment: str = Field(default="fedprune", min_length=1, description="The experiment.")
        tags: dict[str, str] = Field(default={}, description="Tags of the run.")

    _client: MlflowClient
    _run: str

    def on_start(self, start: RunStart) -> None:
        """Make a run, or find the one that goes on."""
        from mlflow.tracking import MlflowClient

        # It tells how it makes its tables, and shows whole tracebacks of what it raises, too.
        logging.getLogger("mlflow.store.db").setLevel(logging.CRITICAL)
        home = start.directory / MLFLOW
        home.mkdir(exist_ok=True)
        uri = self.options.uri or os.environ.get("MLFLOW_TRACKING_URI")
        self._client = MlflowClient(tracking_uri=uri or f"sqlite:///{home / 'mlflow.db'}")
        self._waiting: list[Metric] = []
        self._sent = 0.0
        self._last = 0
        # A metric keeps every value that it is given: what comes again must not be given again.
        self._told: set[int] = set()
        file = start.directory / MLFLOW_RUN  # It says which run of MLflow's this is.
        known = self._known(file) if start.last_round is not None else None
        if known is None:
            self._run = self._make(start, home if uri is None else None)
            file.write_text(f"{self._run}\n", encoding="utf-8")
        else:
            self._run = known
            self._client.update_run(known, status="RUNNING")
            self._told = {metric.step for metric in self._client.get_metric_history(known, _EVERY_ROUND)}
        for number, scalars in start.earlier:
            self.on_round(number, scalars)
        self._send()

    def on_round(self, number: int, scalars: Mapping[str, float]) -> None:
        """Log a round's metrics, or keep them for a moment where rounds are short."""
        self._last = max(number, self._last)
        if number not in self._told:
            self._told.add(number)
            self._keep(scalars, number)
        if time.monotonic() - self._sent > _SECONDS:
            self._send()

    def on_end(self, end: RunEnd) -> None:
        """Log the summary and the files, and say how the run ended."""
        try:
            self._keep({f"summary/{name}": value for name, value in end.scalars.items()}, self._last)
            self._send()
            self._client.set_tag(self._run, "fedprune.status", end.status)
            self._client.set_tag(self._run, "fedprune.reason", end.reason or "")
            for file in end.files:
                self._client.log_artifact(self._run, str(file))
        finally:
            self._client.set_terminated(self._run, _STATES[end.status])

    def _known(self, file: Path) -> str | None:
        """Return the run that a file names; None where MLflow does not have it, or not here."""
        from mlflow.exceptions import MlflowException

        try:
            known = file.read_text(encoding="utf-8").strip()
            self._client.get_run(known)
        except FileNotFoundError:
            return None
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return known

    def _make(self, start: RunStart, home: Path | None) -> str:
        """Make a run with its parameters; return its id. Only one stays in a store of its own, ``home``."""
        from mlflow.entities import Param

        experiment = self._experiment((home / "artifacts").as_uri() if home is not None else None)
        if home is not None:
            for replaced in self._client.search_runs([experiment]):
                self._client.delete_run(replaced.info.run_id)
        run = self._client.create_run(experiment, run_name=start.name, tags=dict(self.options.tags))
        found = [Param(_name(key), str(value)) for key, value in start.parameters.items()]
        for first in range(0, len(found), _PARAMETERS):
            self._client.log_batch(run.info.run_id, params=found[first : first + _PARAMETERS])
        return str(run.info.run_id)

    def _experiment(self, artifacts: str | None) -> str:
        """Return the id of the experiment, which another run may be making just now."""
        from mlflow.exceptions import MlflowException

        name = self.options.experiment
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name, artifact_location=artifacts))
            except MlflowException:
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _keep(self, scalars: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._waiting += [Metric(_name(key), float(value), now, step) for key, value in scalars.items()]

    def _send(self) -> None:
        """Log what waits; what cannot be sent now waits for the next time."""
        self._sent = time.monotonic()
        while self._waiting:
            self._client.log_batch(self._run, metrics=self._waiting[:_METRICS])
            del self._waiting[:_METRICS]


def _name(key: str) -> str:
    """Return a key as MLflow takes it."""
    return re.sub(r"[^\w\-. :/]", "_", key)
