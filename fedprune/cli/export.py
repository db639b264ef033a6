"""`fedprune export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedprune.cli.arguments import RunFolder


def export(
    directory: RunFolder,
    form: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="onnx, torch-export or safetensors.")
    ] = "onnx",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The file.  [default: the run folder's name]")
    ] = None,
    pixels: Annotated[
        bool, typer.Option("--pixels", help="Take uint8 pixels: the normalisation is part of the model.")
    ] = False,
    quantize: Annotated[
        str | None, typer.Option(metavar="TYPE", help="int8: weights in 8 bits; for onnx.")
    ] = None,
    dense: Annotated[
        bool, typer.Option("--dense", help="Store zeros too, as plain ONNX constants; for onnx.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Write the final model of the run in RUN_DIR as a file to ship."""
    from fedprune.results.export import export as export_model
    from fedprune.units import format_bytes

    path = export_model(
        directory, form, out=out, pixels=pixels, quantize=quantize, dense=dense, overwrite=overwrite
    )
    print(f"{path}: {format_bytes(path.stat().st_size)}")
