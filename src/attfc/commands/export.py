"""`attfc export`: a trained model as ONNX or as a folder for the Hugging Face hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from attfc.commands.common import JsonOption, ModelIsOption, open_with_bar, out, print_notes, progress_bar, write_json
from attfc.errors import UserError

if TYPE_CHECKING:
    from attfc.data import Store

__all__ = ["export"]


def export(
    model: Path,
    output: Annotated[Path, Argument(metavar="OUT")],
    format_name: Annotated[str, Option("--format")] = "onnx",
    half: bool = False,
    check_images: str | None = None,
    model_is: ModelIsOption = None,
    json_file: JsonOption = None,
) -> None:
    """Write a trained model as ONNX or in Hugging Face layout, checked against the model itself.

    Args:
        model: a run's folder, a folder with model.safetensors and config.json, or a state dict (.pt, .pth)
        output: FILE.onnx, or the folder to make with --format hf
        format_name: onnx | hf (safetensors, config.json, model card)
        half: weights in float16
        check_images: store whose images are compared between torch and the export; default: those that a run was evaluated on, else synthetic faces
    """
    if format_name not in ("onnx", "hf"):
        raise UserError(f"unknown format {format_name!r}: use one of onnx, hf")

    from attfc.export import export_hub_folder, export_onnx, open_model
    from attfc.export.model_inputs import read_statements

    module, facts = open_model(model, read_statements(model_is or []))
    print_notes(facts.notes)
    store = _images_of(model) if check_images is None else open_with_bar(check_images)
    write: Any = export_onnx if format_name == "onnx" else export_hub_folder
    done = write(module, facts, output, half=half, check_images=store)
    opset = f", opset {done.opset}" if done.opset is not None else ""
    out.print(
        f"{done.path}: {facts.network}, {done.precision}{opset}, {done.bytes / 2**20:.1f} MiB; "
        f"least cosine to the torch module {done.least_cosine:.7f} on "
        f"{done.images} images of {done.images_from}",
    )
    write_json(json_file, {**done.to_dict(), "model": facts.to_dict()})


def _images_of(model: Path) -> "Store | None":
    """Return the set that a run was evaluated on, or trained on if on none; None: the model is no run, or its sets are not at hand."""
    if not (model / "config.yaml").is_file():
        return None
    from attfc.run.data import open_data
    from attfc.run.saved import saved_configuration, with_found_data

    try:
        with progress_bar("index") as bar:
            training, held_out = open_data(with_found_data(saved_configuration(model), model)[0], bar)
    except (UserError, OSError) as error:
        print_notes([f"the images of the run cannot be opened ({error}): the export is checked on synthetic faces"])
        return None
    return training if held_out is None else held_out
