"""Loggers: they tell trackers, such as TensorBoard, MLflow and Weights & Biases, of a run.

A logger (`fedprune.loggers.base`) hears of a run's start, its rounds and its end; one file here for each
built-in one, which imports its tracker when a run names it. `fedprune.loggers.channels` has each on a thread
of its own beside the run. What a run leaves in its folder is not their matter: see `fedprune.results`.
"""

from fedprune.loggers.base import Logger, RunEnd, RunStart
from fedprune.loggers.mlflow import MLflow
from fedprune.loggers.tensorboard import TensorBoard
from fedprune.loggers.wandb import WandB

LOGGERS = {"mlflow": MLflow, "tensorboard": TensorBoard, "wandb": WandB}

__all__ = ["LOGGERS", "Logger", "RunEnd", "RunStart"]
