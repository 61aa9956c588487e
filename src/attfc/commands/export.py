"""`attfc export`: a trained model as ONNX or as a folder for the Hugging Face hub."""

from pathlib import Path
from typing import Annotated, Any

import typer

from attfc.commands.common import JsonOption, ModelIsOption, err, open_with_bar, out, write_json
from attfc.errors import UserError

__all__ = ["export"]


def export(
    model: Annotated[
        Path,
        typer.Argument(
            help="a run's folder, a folder with model.safetensors and config.json, or a state dict (.pt, .pth)"
        ),
    ],
    output: Annotated[Path, typer.Argument(help="FILE.onnx, or the folder to make with --format hf", metavar="OUT")],
    format_name: Annotated[
        str, typer.Option("--format", help="onnx | hf (safetensors, config.json, model card)")
    ] = "onnx",
    half: Annotated[bool, typer.Option("--half", help="weights in float16")] = False,
    check_images: Annotated[
        str | None,
        typer.Option(help="store whose images are compared between torch and the export; default: synthetic faces"),
    ] = None,
    model_is: ModelIsOption = None,
    json_file: JsonOption = None,
) -> None:
    """Write a trained model as ONNX or in Hugging Face layout, checked against the model itself."""
    formats = ("onnx", "hf")
    if format_name not in formats:
        raise UserError(f"unknown format {format_name!r}: use one of {', '.join(formats)}")

    from attfc.export import export_hub_folder, export_onnx, open_model
    from attfc.export.model_inputs import read_statements

    module, facts = open_model(model, read_statements(model_is or []))
    for note in facts.notes:
        err.print(f"note: {note}", markup=False)
    store = None
    if check_images is not None:
        store = open_with_bar(check_images)
    write: Any = export_onnx if format_name == "onnx" else export_hub_folder
    done = write(module, facts, output, half=half, check_images=store)
    opset = f", opset {done.opset}" if done.opset is not None else ""
    out.print(
        f"{done.path}: {facts.network}, {done.precision}{opset}, {done.bytes / 2**20:.1f} MiB; "
        f"least cosine to the torch module {done.least_cosine:.7f} on "
        f"{done.images} images of {done.images_from}",
        markup=False,
    )
    write_json(json_file, {**done.to_dict(), "model": facts.to_dict()})
