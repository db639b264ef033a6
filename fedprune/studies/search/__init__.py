"""Searches for a run's values by Optuna: what is tried next, which trials are hopeless, what is found.

The trials are in Optuna's journal in the study's folder, from which a search goes on. What the runs of a
trial do is the executor's matter; a ``tune`` grid, which is known beforehand, needs nothing of this.
"""

from fedprune.studies.search.search import Search, Trial

__all__ = ["Search", "Trial"]
