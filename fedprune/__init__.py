"""fedprune: run federated pruning from one YAML file, and know what it costs every client.

What a user runs (`run`, `resume`, `study`, `load_run`, `load_model`, `load_scenario`) and what the author of
a plug-in subclasses or calls is importable from here. Everything else is internal and may change.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

# In a checkout, `strategies/` and `clients/` stand beside this package; an installed package
# holds them itself. This line makes `fedprune.strategies` the same module in both.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file():
    __path__.append(str(_checkout))

if TYPE_CHECKING:
    __version__: str
    from fedprune.client.base import Client, ClientTask, FitResult
    from fedprune.compression import Compressor
    from fedprune.data.dataset import DataInfo, Examples
    from fedprune.data.source import Request, Source, SourceOptions
    from fedprune.engine.simulation import resume, run
    from fedprune.errors import FedpruneError, RunError, UserError, WireError
    from fedprune.loggers import Logger, RunEnd, RunStart
    from fedprune.protocol.reports import GrowthRequest
    from fedprune.results.modelfile import load_model
    from fedprune.results.run import Run, load_run
    from fedprune.scenario import Scenario, load_scenario
    from fedprune.server.aggregation import Aggregator, OverlapMean, TrainReply, WeightedMean
    from fedprune.server.strategy import PruningStrategy
    from fedprune.sparsity.masks import Masks
    from fedprune.sparsity.pruning import prunable, prune
    from fedprune.studies.study import Study, study
    from fedprune.tasks.base import Task
    from fedprune.tasks.metrics import Metric

# Imported when first used: `fedprune --help` needs no PyTorch, a device nothing of the server.
_EXPORTS = {
    "Aggregator": "fedprune.server.aggregation",
    "Client": "fedprune.client.base",
    "ClientTask": "fedprune.client.base",
    "Compressor": "fedprune.compression",
    "DataInfo": "fedprune.data.dataset",
    "FedpruneError": "fedprune.errors",
    "FitResult": "fedprune.client.base",
    "GrowthRequest": "fedprune.protocol.reports",
    "Examples": "fedprune.data.dataset",
    "Logger": "fedprune.loggers",
    "Masks": "fedprune.sparsity.masks",
    "Metric": "fedprune.tasks.metrics",
    "OverlapMean": "fedprune.server.aggregation",
    "PruningStrategy": "fedprune.server.strategy",
    "Request": "fedprune.data.source",
    "Run": "fedprune.results.run",
    "RunEnd": "fedprune.loggers",
    "RunError": "fedprune.errors",
    "RunStart": "fedprune.loggers",
    "Scenario": "fedprune.scenario",
    "Source": "fedprune.data.source",
    "SourceOptions": "fedprune.data.source",
    "Study": "fedprune.studies.study",
    "Task": "fedprune.tasks.base",
    "TrainReply": "fedprune.server.aggregation",
    "UserError": "fedprune.errors",
    "WeightedMean": "fedprune.server.aggregation",
    "WireError": "fedprune.errors",
    "load_model": "fedprune.results.modelfile",
    "load_run": "fedprune.results.run",
    "load_scenario": "fedprune.scenario",
    "prunable": "fedprune.sparsity.pruning",
    "prune": "fedprune.sparsity.pruning",
    "resume": "fedprune.engine.simulation",
    "run": "fedprune.engine.simulation",
    "study": "fedprune.studies.study",
}
__all__ = [
    "Aggregator",
    "Client",
    "ClientTask",
    "Compressor",
    "DataInfo",
    "Examples",
    "FedpruneError",
    "FitResult",
    "GrowthRequest",
    "Logger",
    "Masks",
    "Metric",
    "OverlapMean",
    "PruningStrategy",
    "Request",
    "Run",
    "RunEnd",
    "RunError",
    "RunStart",
    "Scenario",
    "Source",
    "SourceOptions",
    "Study",
    "Task",
    "TrainReply",
    "UserError",
    "WeightedMean",
    "WireError",
    "__version__",
    "load_model",
    "load_run",
    "load_scenario",
    "prunable",
    "prune",
    "resume",
    "run",
    "study",
]


def __getattr__(name: str) -> object:
    """Import what the package exports when it is first used."""
    if name == "__version__":  # pyproject.toml alone says it; Flower reads it there, too.
        return _version()
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def _version() -> str:
    """Return the version: of the installed package or, where nothing is installed, of the checkout."""
    from importlib import metadata

    try:
        return metadata.version("fedprune")
    except metadata.PackageNotFoundError:
        import tomllib

        with (_checkout / "pyproject.toml").open("rb") as file:
            return str(tomllib.load(file)["project"]["version"])


def __dir__() -> list[str]:
    return __all__
