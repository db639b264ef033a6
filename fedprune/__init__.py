"""fedprune: run federated pruning from one YAML file, and know what it costs every client."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

__version__ = "0.1.0"

# In a checkout, `strategies/` and `clients/` stand beside this package; an installed package
# holds them itself. This line makes `fedprune.strategies` the same module in both.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file():
    __path__.append(str(_checkout))

_EXPORTS = {
    "Scenario": "fedprune.scenario",
    "load_scenario": "fedprune.scenario",
    "load_model": "fedprune.results.modelfile",
    "load_run": "fedprune.results.run",
    "resume": "fedprune.engine.simulation",
    "run": "fedprune.engine.simulation",
}
__all__ = ["Scenario", "__version__", "load_model", "load_run", "load_scenario", "resume", "run"]


def __getattr__(name: str) -> object:
    """Import what the package exports when it is first used: `fedprune --help` needs no PyTorch."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__
