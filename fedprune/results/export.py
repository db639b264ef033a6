"""A run's model as a file to ship: ONNX, a program of ``torch.export``, or safetensors.

The first two hold the computation and need neither fedprune nor the model's code where they run;
safetensors is what `fedprune.load_model` reads. What a file holds is the model as the run left it:
the same logits, but for quantisation; where whole channels are pruned, the smaller model that is left of it
(safetensors, which goes with the model's code, has the whole one). How an ONNX file stores weights is for
`fedprune.results.onnx_weights`.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import fedprune
from fedprune.data.inputs import Pixels, normalisation
from fedprune.errors import UserError
from fedprune.results.modelfile import StoredModel, depth_of, example_of, read_model, save_model
from fedprune.results.records import write_atomically
from fedprune.results.run import load_run
from fedprune.sparsity.structure.smaller import shrink
from fedprune.wire.layout import get_state

if TYPE_CHECKING:
    from onnx import ModelProto

SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2", "safetensors": ".safetensors"}
"""The formats, and how their files' names end."""


def export(
    directory: str | Path,
    form: str,
    *,
    out: str | Path | None = None,
    pixels: bool = False,
    quantize: str | None = None,
    dense: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write the final model of a run as a file to ship; return its path.

    Parameters
    ----------
    directory
        The run folder.
    form
        A key of ``SUFFIXES``.
    out
        The file; where not given, the run folder's name with the format's ending, in the working
        directory.
    pixels
        Put the normalisation into the model: its input is then ``pixels``, uint8 of shape
        (N, C, H, W), of images of 16 bits uint16; without, ``input``, float32 and normalised. Not for
        safetensors.
    quantize
        "int8": weights in 8 bits (`fedprune.results.onnx_weights.pack`); for ONNX alone.
    dense
        Store pruned weights with their zeros, as plain initializers; for ONNX alone.
    overwrite
        Replace a file that is there.

    Raises
    ------
    UserError
        For an unknown format, or an option that it does not have; where the file is there already,
        the run left no model, or PyTorch cannot export it.
    ModuleNotFoundError
        For ONNX without the extra ``export``.
    """
    if form not in SUFFIXES:
        raise UserError(f"there is no format {form!r}; write one of: {', '.join(SUFFIXES)}")
    if quantize not in (None, "int8"):
        raise UserError(f"weights cannot be quantised to {quantize!r}; write int8")
    if form != "onnx" and (quantize or dense):
        raise UserError(f"quantised or dense weights are for onnx, not for {form}")
    if form == "safetensors" and pixels:
        raise UserError("safetensors holds weights, so the normalisation cannot be part of it")
    path = Path(out) if out is not None else Path(Path(directory).resolve().name + SUFFIXES[form])
    if path.exists() and not overwrite:
        raise UserError(f"{path}: is there already; give another file (--out) or replace it (--overwrite)")
    if not path.parent.is_dir():
        raise UserError(f"{path}: the folder {path.parent} is not there")
    stored = read_model(load_run(directory).model_file)
    if form == "safetensors":
        save_model(path, get_state(stored.module), stored.masks, **vars(stored.info))
    elif form == "onnx":
        content = onnx_bytes(stored, pixels=pixels, quantize=quantize is not None, dense=dense)
        write_atomically(path, content)
    else:
        write_atomically(path, program_bytes(stored, pixels=pixels))
    return path


def program_bytes(stored: StoredModel, *, pixels: bool = False) -> bytes:
    """Return the file of a ``torch.export`` program.

    Its weights are dense. PyTorch promises to read it in the version that wrote it, and no other.
    """
    module, example, shapes = _traceable(stored, pixels)
    buffer = io.BytesIO()
    with _quiet():
        program = torch.export.export(module, example, dynamic_shapes=shapes)
        torch.export.save(program, buffer, extra_files={"fedprune.json": json.dumps(_metadata(stored))})
    return buffer.getvalue()


def onnx_bytes(
    stored: StoredModel, *, pixels: bool = False, quantize: bool = False, dense: bool = False
) -> bytes:
    """Return the ONNX file of a model, which `onnx.checker` has accepted."""
    import onnx
    import onnxscript  # noqa: F401  # PyTorch needs it, and would say so in words of its own.

    from fedprune.results import onnx_weights

    model = _onnx_model(stored, pixels)
    if quantize or not dense:
        onnx_weights.pack(model, quantize=quantize, sparse=not dense)
    onnx.helper.set_model_props(model, {key: str(value) for key, value in _metadata(stored).items()})
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _onnx_model(stored: StoredModel, pixels: bool) -> ModelProto:
    """Return the model as PyTorch exports it, dense and without notes on the Python code behind it."""
    from fedprune.results.onnx_weights import OPSET

    module, example, shapes = _traceable(stored, pixels)
    with _quiet():
        # The exporter by torch.export: the older one, by TorchScript, is deprecated.
        program = torch.onnx.export(
            module,
            example,
            input_names=["pixels" if pixels else "input"],
            output_names=["logits"],
            dynamic_shapes=shapes,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model: ModelProto = program.model_proto
    graph = model.graph
    parts: list[Any] = [model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer]
    for part in parts:
        del part.metadata_props[:]
    for node in graph.node:
        node.ClearField("name")
        node.ClearField("doc_string")
    del graph.value_info[:]
    return model


class _FromPixels(nn.Module):
    """A model behind its normalisation, as `fedprune.data.inputs` computes it."""

    scale: Tensor
    shift: Tensor

    def __init__(self, stored: StoredModel) -> None:
        super().__init__()
        self.model = stored.module
        if stored.info.inputs["kind"] != Pixels.kind:
            raise UserError("the model takes no images: leave out --pixels")
        scale, shift = normalisation(stored.info.mean, stored.info.std, depth_of(stored.info))
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.model(pixels.float() * self.scale + self.shift)
        return logits


def _traceable(stored: StoredModel, pixels: bool) -> tuple[nn.Module, tuple[Tensor], tuple[dict[int, Any]]]:
    """Return the module to export, an example of its input, and that its batch may have any size."""
    if stored.masks.density < 1 and stored.masks.axes is not None:
        stored = replace(stored, module=shrink(stored.module, stored.masks))
    module = _FromPixels(stored).eval() if pixels else stored.module
    # Two: PyTorch takes an example's size of 1 for one that never changes.
    example = example_of(stored.info, 2)
    if pixels:
        example = example.to(torch.uint8 if depth_of(stored.info) < 256 else torch.uint16)
    return module, (example,), ({0: torch.export.Dim("batch")},)


def _metadata(stored: StoredModel) -> dict[str, Any]:
    """Return what a file says of its model besides its computation."""
    info = stored.info
    return {
        "fedprune": fedprune.__version__,
        "model": info.model["name"],
        "density": stored.masks.density,
        "classes": json.dumps(info.class_names),
        "mean": json.dumps(info.mean),
        "std": json.dumps(info.std),
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Let PyTorch export without its notes; say in a line where it cannot."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)  # It warns that torchvision is missing, which nothing here needs.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # Whatever tracing a user's model raises.
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"PyTorch cannot export this model: {type(error).__name__}: {reason}") from error
    finally:
        exporter.setLevel(level)
