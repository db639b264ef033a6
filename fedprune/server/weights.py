"""The values that a scenario's model begins with, where ``model.weights`` names a file of them.

They are read on the server alone: devices get values from it. What fits a model is for
`fedprune.models.weights`; here fedprune's own files are unpacked, and a person is told what is wrong where.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fedprune import models
from fedprune.errors import ScenarioError, UserError, WireError
from fedprune.models.weights import begin_with, read_tensors
from fedprune.scenario import Scenario
from fedprune.wire.layout import Layout
from fedprune.wire.packed import document_of, unpack

_logger = logging.getLogger(__name__)


def begin(scenario: Scenario, module: nn.Module, class_names: Sequence[str]) -> None:
    """Put the values of ``model.weights`` into a scenario's model; nothing where it names no file.

    A classifier for other classes than these, by number, is left as drawn; () where outputs are none. What of
    the file is not taken over as it is, is said in one line of the log.

    Raises
    ------
    ScenarioError
        For a file that is missing, cannot be read or is not of this model: one sentence, with the line of
        the scenario.
    """
    path = scenario.model.weights
    if path is None:
        return
    try:
        tensors, metadata = read_tensors(path)
        document = _document(metadata)
        same_classes = True
        if document is not None:
            tensors = _unpacked(scenario, tensors, document)
            same_classes = list(document.get("class_names", ())) in ([], list(class_names))
        notes = begin_with(module, tensors, same_classes=same_classes)
    except UserError as error:
        said = str(error)
        message = said if said.startswith(str(path)) else f"{path}: {said}"
        raise ScenarioError(scenario.complaint(("model", "weights"), message)) from error
    if notes:
        _logger.warning("%s: %s", path, "; ".join(notes))


def _document(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    try:
        return document_of(metadata)
    except ValueError as error:
        raise UserError(f"damaged description of its model: {error}") from None


def _unpacked(
    scenario: Scenario, tensors: Mapping[str, Tensor], document: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return the tensors by name of a file that fedprune wrote; what is pruned in it is 0."""
    try:
        state, _ = unpack(tensors, document, lambda: Layout.of(_stored_model(scenario, document)))
    except (ValueError, KeyError, IndexError, TypeError, RuntimeError, WireError, AttributeError) as error:
        raise UserError(f"damaged, or made with another version of its model: {error}") from None
    return state


def _stored_model(scenario: Scenario, document: Mapping[str, Any]) -> nn.Module:
    """Build the model of a packed file, for the shapes of what is packed.

    Code that a file names is not run: a model of a user's own is the scenario's.
    """
    stored = document["model"]
    name = stored["name"] if stored["name"] in models.MODELS else scenario.model.name
    return models.build(
        name,
        tuple(document["input_shape"]),
        document["classes"],
        seed=0,
        options={key: value for key, value in stored.items() if key != "name"},
        known={k: v for k, v in document.get("inputs", {}).items() if k not in ("kind", "settings")},
        directory=scenario.directory,
    )
