"""`attfc export`: a trained model as ONNX or as a folder for the Hugging Face hub."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from attfc.commands.common import (
    JsonOption,
    ModelIsOption,
    open_with_bar,
    out,
    print_notes,
    progress_bar,
    refuse_idle,
    write_json,
)
from attfc.errors import UserError

if TYPE_CHECKING:
    from attfc.data import Store

__all__ = ["export"]

MOST_LOSS = 0.2


def export(
    model: Path,
    output: Annotated[Path, Argument(metavar="OUT")],
    format_name: Annotated[str, Option("--format")] = "onnx",
    half: bool = False,
    int8: bool = False,
    calibration: str | None = None,
    fmr: float | None = None,
    most_loss: float = MOST_LOSS,
    check_images: str | None = None,
    model_is: ModelIsOption = None,
    json_file: JsonOption = None,
) -> None:
    """Write a trained model as ONNX or in Hugging Face layout, checked against the model itself.

    Args:
        model: a run's folder, a folder with model.safetensors and config.json, or a state dict (.pt, .pth)
        output: FILE.onnx, or the folder to make with --format hf
        format_name: onnx, or hf (Hugging Face: safetensors, config.json, model card)
        half: store the weights in float16
        int8: compute in 8 bits; written only if it loses no more than --most-loss on the faces of --check-images
        calibration: int8: store whose faces set the number ranges; default: the run's training set
        fmr: int8: false match rate (FMR) of the operating point; default: that of attfc calibrate, else 0.001
        most_loss: int8: largest rise of the false non-match rate (FNMR) there, in percentage points; more is accepted where
            its interval includes 0
        check_images: store whose images check the export against torch; default: the run's evaluation set, else synthetic faces
    """
    if format_name not in ("onnx", "hf"):
        raise UserError(f"unknown format {format_name!r}: use one of onnx, hf")

    if int8 and (half or format_name != "onnx"):
        raise UserError("--int8 needs --format onnx and no --half")
    if not int8:
        of_int8 = {"--calibration": calibration, "--fmr": fmr is not None, "--most-loss": most_loss != MOST_LOSS}
        refuse_idle(of_int8, "is for --int8: add it, or leave both out")
    if fmr is not None and not 0 < fmr < 1:
        raise UserError(
            f"--fmr {fmr:g} is not a false match rate: give a number above 0 and below 1, such as --fmr 1e-3"
        )
    if not 0 <= most_loss <= 100:
        raise UserError(f"--most-loss {most_loss:g}: give percentage points from 0 to 100, such as --most-loss 0.2")
    from attfc.evaluation.operating_point.point import point_of
    from attfc.export import export_hub_folder, export_onnx, open_model
    from attfc.export.cost import Terms
    from attfc.export.model_inputs import read_statements

    module, facts = open_model(model, read_statements(model_is or []))
    print_notes(facts.notes)
    training, held_out = _images_of(model) if check_images is None or (int8 and calibration is None) else (None, None)
    own = training if held_out is None else held_out
    store = own if check_images is None else open_with_bar(check_images)
    write: Any = export_onnx if format_name == "onnx" else export_hub_folder
    with progress_bar("faces") if int8 else nullcontext(None) as bar:
        terms = {}
        if int8:
            shown = training if calibration is None else open_with_bar(calibration)
            faces = store if check_images is not None else held_out
            if shown is None or faces is None:
                missing = "--calibration" if shown is None else "--check-images"
                raise UserError(f"--int8 needs faces, and those of {model} were not found: give {missing} STORE")
            point = point_of(facts) if fmr is None else None
            fmr, threshold = (point.asked_fmr, point.threshold) if point is not None else (fmr or 1e-3, None)
            terms["int8"] = Terms(shown, faces, fmr, most_loss, bar, threshold)
        done = write(module, facts, output, half=half, check_images=store, **terms)
    opset = f", opset {done.opset}" if done.opset is not None else ""
    out.print(
        f"{done.path}: {facts.network}, {done.precision}{opset}, {done.bytes / 2**20:.1f} MiB; "
        f"lowest cosine to the torch model {done.least_cosine:.7f} on "
        f"{done.images} images of {done.images_from}",
    )
    if done.cost is not None:
        out.print(done.cost.text())
        print_notes(done.cost.notes)
    write_json(json_file, {**done.to_dict(), "model": facts.to_dict()})


def _images_of(model: Path) -> "tuple[Store | None, Store | None]":
    """Return the sets that a run was trained and evaluated on; None for each that it has not, or that is not at hand."""
    if not (model / "config.yaml").is_file():
        return None, None
    from attfc.run.data import open_data
    from attfc.run.saved import saved_configuration, with_found_data

    try:
        with progress_bar("index") as bar:
            return open_data(with_found_data(saved_configuration(model), model)[0], bar)
    except (UserError, OSError) as error:
        print_notes([f"the run's images cannot be opened ({error}): the export is checked on synthetic faces"])
        return None, None
