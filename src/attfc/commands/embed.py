"""`attfc embed` and `attfc verify`: embeddings of aligned faces as a file, and two faces compared."""

import io
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

from typer import Argument, Option

from attfc.commands.common import (
    AlignOption,
    BatchSizeOption,
    CacheOption,
    DetectorOption,
    DeviceOption,
    FileOption,
    JsonOption,
    ModelIsOption,
    ShareOption,
    WorkersOption,
    out,
    print_notes,
    progress_bar,
    write_json,
)
from attfc.errors import UserError
from attfc.files import written_whole

if TYPE_CHECKING:
    from attfc.data import Store
    from attfc.export import FaceModel
    from attfc.typing import Float32

__all__ = ["ModelArgument", "embed", "faces_of", "open_with_notes", "several_faces", "verify"]

ModelArgument = Annotated[
    Path,
    Argument(
        help="a run's folder, a folder with model.safetensors and config.json, a state dict (.pt, .pth), or an .onnx file"
    ),
]


def embed(
    model: ModelArgument,
    images: Annotated[list[str], Argument(metavar="IMAGES")],
    output: Annotated[Path, Option("--output", "-o", dir_okay=False)],
    overwrite: bool = False,
    flip: bool = True,
    align: AlignOption = False,
    detector: DetectorOption = None,
    broken_limit: ShareOption = 0.01,
    batch_size: BatchSizeOption = 256,
    workers: WorkersOption = 0,
    device: DeviceOption = "auto",
    model_is: ModelIsOption = None,
    cache: CacheOption = None,
    json_file: JsonOption = None,
) -> None:
    """Write unit-length embeddings of aligned faces, with the images' names. After an interruption, run it again to continue.

    Args:
        images: aligned faces: image files, folders of images, or stores as `attfc train` takes them
        output: OUT.npy: float32, a row per image, names in OUT.names.txt; or OUT.csv: a line per image, name first
        overwrite: replace an existing output
        flip: add the embedding of the mirror image before normalizing, as evaluation does
        broken_limit: largest share of broken images (with --align also photos without a face) to leave out; above it the command stops
    """
    if output.suffix not in (".npy", ".csv"):
        raise UserError(f"--output {output}: embeddings are written as .npy or .csv; name it {output.stem}.npy")
    files = (output, output.with_suffix(".names.txt")) if output.suffix == ".npy" else (output,)
    for path in files:
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists: name another output, or add --overwrite")

    from attfc.evaluation.embed import Embedder, Kept
    from attfc.export.face_list import open_faces
    from attfc.export.model_inputs import contents_digest

    opened = open_with_notes(model, model_is, device)
    with progress_bar("index") as bar:
        store = open_faces(images, cache=cache, progress=bar)
    store, notes = faces_of(store, opened.facts.image_size, align, detector)
    output.parent.mkdir(parents=True, exist_ok=True)
    kept = Kept(output.with_name(f".{output.name}.embeddings"), contents_digest(opened.module, opened.facts))
    with progress_bar("faces") as bar:
        embedder = Embedder(opened.module, batch_size, flip, opened.device, workers)
        found = embedder.embed_within(store, None, broken_limit, progress=bar, kept=kept)
    rows = found.valid.nonzero()[0]
    names = [store.where(int(position)) for position in found.positions[rows]]
    for path in files:
        with written_whole(path) as file:
            WRITERS[path.suffix](file, found.vectors[rows], names)
    shutil.rmtree(kept.folder)
    if found.broken:
        notes.append(f"left out {len(found.broken):,} broken of {len(store):,} images; {found.first_left_out}")
    notes += several_faces(store, workers)
    print_notes(notes)
    size = opened.facts.embedding_size
    beside = "".join(f", names in {path}" for path in files[1:])
    out.print(f"{output}: {len(names):,} embeddings of {size} numbers{beside}")
    write_json(
        json_file,
        {
            "model": opened.facts.to_dict(),
            "output": str(output),
            "images": len(names),
            "embedding_size": size,
            "flip": flip,
            "broken": [{"where": where, "reason": reason} for _, where, reason in found.left_out],
            "seconds": found.seconds,
            "notes": notes,
        },
    )


def verify(
    model: ModelArgument,
    first: Annotated[str, Argument(metavar="A")],
    second: Annotated[str, Argument(metavar="B")],
    align: AlignOption = False,
    detector: DetectorOption = None,
    evaluation: FileOption = None,
    device: DeviceOption = "auto",
    model_is: ModelIsOption = None,
    json_file: JsonOption = None,
) -> None:
    """Compare two aligned faces: their cosine, and what it means at the model's thresholds.

    Args:
        first: image file of an aligned face
        second: the face to compare it with
        evaluation: file of `attfc evaluate MODEL all-pairs FOLDER --json FILE` or of attfc calibrate; default: the model's operating
            point, else the last evaluation of its run
    """
    from attfc.evaluation.report.thresholds import thresholds_of
    from attfc.export.face_list import open_faces

    opened = open_with_notes(model, model_is, device)
    faces = open_faces([first, second])
    if len(faces) != 2:
        raise UserError(
            f"verify compares two images, and {first} and {second} hold {len(faces):,}: name one image file each"
        )
    faces, notes = faces_of(faces, opened.facts.image_size, align, detector)
    vectors = opened.embed(faces)
    cosine = float(vectors[0] @ vectors[1])
    notes += several_faces(faces)
    thresholds, source, point = thresholds_of(opened.facts, evaluation)
    if evaluation is not None:
        notes.append(f"thresholds of {source}")
    print_notes(notes)
    out.print(f"cosine {cosine:.4f}   (1: the same direction; about 0: unrelated)")
    verdicts = {f"{far:g}": cosine > threshold for far, threshold in thresholds.items()}
    for far, threshold in thresholds.items():
        word = "accepted" if cosine > threshold else "rejected"
        out.print(f"  at FAR {far:g}, threshold {threshold:.4f}: {word} as the same person")
    if point is not None:
        out.print(
            f"{point.sentence}\nP(same person) {point.probability.at(cosine):.3f}, where same and different are equally likely beforehand"
        )
    elif thresholds:
        out.print(
            "FAR, the false accept rate, is the share of pairs of different people\n"
            f"that a threshold accepts, here among the people of\n{source}.\n"
            "Other people have other rates.",
        )
    else:
        out.print(
            "No threshold is known for this model, so the cosine alone decides nothing.\n"
            "To get one, calibrate it on people it was not trained on:\n"
            f"attfc calibrate {shlex.quote(str(model))} FOLDER --fmr 1e-4",
        )
    write_json(
        json_file,
        {
            "model": opened.facts.to_dict(),
            "images": [first, second],
            "cosine": cosine,
            "threshold_at_far": {f"{far:g}": threshold for far, threshold in thresholds.items()},
            "thresholds_of": source,
            "same_person_at_far": verdicts,
            "same_person_probability": None if point is None else point.probability.at(cosine),
            "notes": notes,
        },
    )


def faces_of(store: "Store", image_size: int, align: bool, detector: Path | None) -> "tuple[Store, list[str]]":
    """Return the store to embed, of photos with `align`, and notes about its images."""
    from attfc.export.face_list import notes_of_images

    if not align:
        if detector is not None:
            raise UserError("--detector finds faces in photos: add --align")
        return store, notes_of_images(store, image_size)
    from attfc.photos.store import AlignedPhotos

    return AlignedPhotos(store, detector), []


def several_faces(store: "Store", workers: int = 0) -> list[str]:
    """Return notes about photos with several faces, once they were read; of a store that aligns."""
    several: dict[int, int] | None = getattr(store, "several", None)
    if several and len(several) <= 2:
        return [f"{store.where(place)} has {count} faces: the largest was taken" for place, count in several.items()]
    if several:
        return [
            f"{len(several):,} photos have several faces: the largest was taken; one is {store.where(min(several))}"
        ]
    return [] if several is None or not workers else ["photos with several faces are not counted with --workers"]


def open_with_notes(model: Path, model_is: list[str] | None, device: str) -> "FaceModel":
    """Open a model and print notes about it."""
    from attfc.export import load
    from attfc.export.model_inputs import read_statements

    opened = load(model, device=device, **read_statements(model_is or []))
    print_notes(opened.facts.notes)
    return opened


def _write_npy(file: BinaryIO, vectors: "Float32", names: list[str]) -> None:
    import numpy as np

    np.save(file, vectors, allow_pickle=False)


def _write_names(file: BinaryIO, vectors: "Float32", names: list[str]) -> None:
    # A name with a line break stays one line, so that rows and lines agree.
    lines = [name.replace("\n", "\\n").replace("\r", "\\r") for name in names]
    file.write("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))


def _write_csv(file: BinaryIO, vectors: "Float32", names: list[str]) -> None:
    import csv

    text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
    writer = csv.writer(text)
    writer.writerow(["name", *(f"e{number}" for number in range(vectors.shape[1]))])
    for name, vector in zip(names, vectors, strict=True):
        writer.writerow([name, *(f"{value:.9g}" for value in vector.tolist())])
    text.detach()


WRITERS = {".npy": _write_npy, ".txt": _write_names, ".csv": _write_csv}
