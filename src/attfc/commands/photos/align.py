"""`attfc align`: from a folder of photos to a folder of aligned faces."""

import os
from pathlib import Path
from typing import Annotated

from typer import Argument, BadParameter, Option

from attfc.commands.common import (
    SHEET,
    FileOption,
    JsonOption,
    err,
    out,
    print_notes,
    progress_bar,
    save_sheet,
    write_json,
)
from attfc.errors import UserError, nearest

__all__ = ["align"]

_LISTED = 10


def align(
    photos: Annotated[Path | None, Argument(metavar="PHOTOS", file_okay=False)] = None,
    output: Annotated[Path | None, Option("--output", "-o", file_okay=False, metavar="ALIGNED")] = None,
    faces: str = "largest",
    boxes: FileOption = None,
    detector: FileOption = None,
    workers: Annotated[int | None, Option(min=0)] = None,
    refused: Annotated[Path | None, Option(dir_okay=False, metavar="FILE.png", callback=SHEET)] = None,
    version: Annotated[bool, Option("--version")] = False,
    json_file: JsonOption = None,
) -> None:
    """Find faces in photos and align them to the ArcFace template, 112 x 112. Run it again to continue, or after adding photos.

    Args:
        photos: folder of photos; subfolders are searched too
        output: folder for the aligned faces, with the same subfolders, and manifest.tsv
        faces: faces to take from a photo: largest, central, all, or box (nearest to that of --boxes)
        boxes: file with a line per photo: path, left, top, right, bottom, separated by tabs, in pixels
        detector: ONNX file of SCRFD, RetinaFace, YuNet or CenterFace; default: MTCNN
        workers: processes; 0: the main process; default: one per processor core
        refused: also write an overview of the photos without an aligned face; it shows people; an older one is replaced
        version: print detector, digest, licences and training data, and exit
    """
    from attfc.photos.faces import POLICIES
    from attfc.photos.folder import align_folder, read_boxes
    from attfc.photos.opening import open_detector

    if version:
        out.print(open_detector(detector).facts.to_text(), soft_wrap=True)
        return
    if photos is None or output is None:
        raise BadParameter("name the folder of photos and -o ALIGNED")
    policy = next((each for each in POLICIES if each == faces), None)
    if policy is None:
        raise UserError(f"--faces {faces}: use one of {', '.join(POLICIES)}{nearest(faces, POLICIES)}")
    if (policy == "box") != (boxes is not None):
        raise UserError("--faces box and --boxes FILE go together: give both or neither")
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with progress_bar("photos") as bar:
        done = align_folder(
            photos,
            output,
            detector=detector,
            policy=policy,
            boxes=None if boxes is None else read_boxes(boxes),
            workers=workers,
            progress=bar,
        )
    for row in done.refused[:_LISTED]:
        err.print(f"{photos / row.photo}: {row.reason}")
    if len(done.refused) > _LISTED:
        err.print(f"... and {len(done.refused) - _LISTED:,} more: column reason of {output / 'manifest.tsv'}")
    if done.gone:
        print_notes(
            [f"{done.gone:,} photos of an earlier run are not in {photos} any more; their faces stay in {output}"]
        )
    out.print(f"{output}: {done.faces:,} faces, in {done.aligned:,} of {done.photos:,} photos")
    out.print(
        f"no face: {done.no_face:,}; several faces: {done.several:,}; refused otherwise: {len(done.refused) - done.no_face:,}"
    )
    if refused is not None and done.refused:
        from attfc.photos.sheet import refused_sheet

        save_sheet(refused_sheet(photos, done.refused), refused)
        out.print(f"{refused}: photos without an aligned face")
    write_json(json_file, {"photos_folder": str(photos), "output": str(output), **done.to_dict()})
    if not done.aligned:
        raise UserError(f"no photo of {photos} has a face that was found")
