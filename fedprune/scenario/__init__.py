"""The scenario: a federation described in one YAML file, as typed, validated, immutable models.

Everything that a run depends on is a field here, with its unit and its range; a wrong value is refused
before anything runs, with the file, the line and what would be right. Files of devices are read with the
scenario, which from then on holds what they say. Whether a named strategy, model, data set or device
exists is not looked up here: `fedprune.server.check` does that.
"""

from fedprune.scenario.base import Fraction, PluginName
from fedprune.scenario.clients import ClientsSpec
from fedprune.scenario.data import ChannelsOrSide, Classes, DataSpec, PartitionSpec
from fedprune.scenario.devices import DeviceShare
from fedprune.scenario.engine import EngineSpec
from fedprune.scenario.evaluation import EvaluationSpec
from fedprune.scenario.faults import FaultAt, FaultName, FaultsSpec, Share
from fedprune.scenario.logging import LoggerSpec
from fedprune.scenario.model import ModelSpec
from fedprune.scenario.scenario import Scenario, load_scenario
from fedprune.scenario.schema import json_schema
from fedprune.scenario.strategy import StrategySpec
from fedprune.scenario.training import OptimizerSpec, ScheduleSpec, TrainingSpec
from fedprune.scenario.wire import UpdatesSpec, WireSpec

__all__ = [
    "ChannelsOrSide",
    "Classes",
    "ClientsSpec",
    "DataSpec",
    "DeviceShare",
    "EngineSpec",
    "EvaluationSpec",
    "FaultAt",
    "FaultName",
    "FaultsSpec",
    "Fraction",
    "LoggerSpec",
    "ModelSpec",
    "OptimizerSpec",
    "PartitionSpec",
    "PluginName",
    "Scenario",
    "ScheduleSpec",
    "Share",
    "StrategySpec",
    "TrainingSpec",
    "UpdatesSpec",
    "WireSpec",
    "json_schema",
    "load_scenario",
]
