"""`attfc gallery create|add|remove|search|stats`: people whom a model can name, kept in a folder."""

import shlex
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from attfc.commands.common import (
    AlignOption,
    BatchSizeOption,
    CacheOption,
    DetectorOption,
    DeviceOption,
    FolderOption,
    JsonOption,
    ModelIsOption,
    PositiveOption,
    Table,
    WorkersOption,
    out,
    print_notes,
    print_table,
    progress_bar,
    write_json,
)
from attfc.commands.embed import ModelArgument, faces_of, open_with_notes, several_faces
from attfc.commands.help import Commands
from attfc.errors import UserError

if TYPE_CHECKING:
    from attfc.gallery import Gallery, Match

__all__ = ["app"]

app = Commands(help="Keep templates of known people, and search photos for them.", no_args_is_help=True)

GalleryArgument = Annotated[
    Path, Argument(metavar="GALLERY", help="folder of the gallery", file_okay=False, show_default=False)
]
ImagesArgument = Annotated[list[str], Argument(metavar="IMAGES", show_default=False)]
ModelOption = Annotated[Path | None, Option("--model", help="the gallery's model, if it was moved", show_default=False)]


@app.command()
def create(
    gallery: GalleryArgument,
    model: ModelArgument,
    far: Annotated[float | None, Option(min=0, max=1)] = None,
    evaluation: Annotated[Path | None, Option(dir_okay=False)] = None,
    flip: bool = True,
    device: DeviceOption = "auto",
    model_is: ModelIsOption = None,
    json_file: JsonOption = None,
) -> None:
    """Make an empty gallery for a model, or give an existing one other thresholds.

    Args:
        far: false accept rate (FAR) of one comparison at which a search answers with a name, such as 1e-4. Default: that of the model's
            operating point; if there is none, a search gives scores only
        evaluation: file of `attfc evaluate MODEL all-pairs FOLDER --json FILE` or of attfc calibrate; default: the model's operating point,
            else the last evaluation of its run
        flip: add the embedding of the mirror image before normalizing, as evaluation does
    """
    from attfc.gallery import Gallery

    opened = open_with_notes(model, model_is, device)
    with Gallery.create(gallery, opened, far=far, evaluation=evaluation, flip=flip) as made:
        facts, stats = made.facts, made.stats()
    out.print(f"{gallery}: a gallery of {facts.embedding_size} numbers per template, for {facts.model}")
    if facts.threshold is not None:
        out.print(
            f"a search answers with a name above cosine {facts.threshold:.4f}: FAR {facts.far:g} by {facts.thresholds_of}"
        )
    else:
        stated = ", ".join(f"{rate:g}" for rate, _ in facts.threshold_at_far)
        out.print(
            "no FAR (false accept rate) was chosen, so a search gives scores but no names: "
            + (f"{facts.thresholds_of} states thresholds at FAR {stated}, for --far" if stated else NO_THRESHOLD)
        )
    write_json(json_file, stats)


NO_THRESHOLD = "no evaluation of this model states one: attfc evaluate MODEL all-pairs FOLDER --json far.json, then --evaluation far.json"


@app.command()
def add(
    gallery: GalleryArgument,
    images: ImagesArgument,
    name: str | None = None,
    align: AlignOption = False,
    detector: DetectorOption = None,
    model: ModelOption = None,
    batch_size: BatchSizeOption = 256,
    workers: WorkersOption = 0,
    device: DeviceOption = "auto",
    model_is: ModelIsOption = None,
    cache: CacheOption = None,
    json_file: JsonOption = None,
) -> None:
    """Add people: one template per person, from those of their images that are new.

    Args:
        images: aligned faces: folders with a folder per person, or any store as `attfc train` takes it; with --name also image files
        name: the person in all images; default: each folder's name
    """
    from attfc.export.face_list import open_faces

    with _opened(gallery, model, model_is, device) as opened:
        with progress_bar("index") as bar:
            faces = open_faces(images, cache=cache, progress=bar)
        store, notes = faces_of(faces, opened.facts.image_size, align, detector)
        with progress_bar("faces") as bar:
            done = opened.add(store, name=name, batch_size=batch_size, workers=workers, progress=bar)
        people = opened.stats()["people"]
    if done.left_out:
        _, where, reason = done.left_out[0]
        notes.append(f"left out {len(done.left_out):,} broken of {len(store):,} images; the first is {where}: {reason}")
    notes += several_faces(store, workers)
    print_notes(map(shown, notes))
    known = f"; {done.known:,} images were there already" if done.known else ""
    whose = "1 person" if people == 1 else f"{people:,} people"
    out.print(
        f"{gallery}: added {_count(done.templates, 'template')} of {_count(done.images, 'image')}{known}; {whose}"
    )
    write_json(
        json_file,
        {
            "gallery": str(gallery),
            "templates": done.templates,
            "images": done.images,
            "known_images": done.known,
            "people": people,
            "broken": [{"where": where, "reason": reason} for _, where, reason in done.left_out],
            "notes": notes,
        },
    )


@app.command()
def remove(
    gallery: GalleryArgument,
    names: Annotated[list[str], Argument(metavar="NAME", show_default=False)],
    runs: FolderOption = None,
    json_file: JsonOption = None,
) -> None:
    """Remove people, and erase their vectors, names and paths from every file of the gallery.

    Args:
        names: names given to `attfc gallery add`, or the folders' names
        runs: folder of runs and exported models; lists those that were trained on the person's photos
    """
    from attfc.gallery import Gallery
    from attfc.gallery.holders import holders

    with Gallery.open(gallery) as opened:
        gone = opened.remove(names)
    for one in gone:
        out.print(
            f"{shown(one.name)}: removed {_count(one.templates, 'template')}, erased from every file of {gallery}"
        )
        if one.sources:
            out.print(f"  the photos are where they were, {_count(len(one.sources), 'file')}:")
        for source in one.sources:
            out.print(f"    {shown(source)}", soft_wrap=True)
    made = {} if runs is None else holders((source for one in gone for source in one.sources), runs)
    for path, root in made.items():
        out.print(f"trained on {shown(root)}, so it still holds what it learned from these photos: {shown(str(path))}")
    if runs is None:
        out.print("runs and exported models may hold what they learned from these photos: --runs FOLDER lists them")
    elif not made:
        out.print(f"no run or model in {runs} says that it was made from these photos")
    write_json(
        json_file,
        {
            "removed": [{"name": one.name, "templates": one.templates, "images": one.sources} for one in gone],
            "made_from_them": {str(path): root for path, root in made.items()},
        },
    )


@app.command()
def search(
    gallery: GalleryArgument,
    images: ImagesArgument,
    top: PositiveOption = 1,
    align: AlignOption = False,
    detector: DetectorOption = None,
    model: ModelOption = None,
    batch_size: BatchSizeOption = 256,
    workers: WorkersOption = 0,
    device: DeviceOption = "auto",
    model_is: ModelIsOption = None,
    json_file: JsonOption = None,
) -> None:
    """Name the people in photos: a name with its cosine and FAR (false accept rate), or "unknown".

    Args:
        images: aligned faces: image files, folders of images, or stores as `attfc train` takes them
        top: nearest people listed per face
    """
    from attfc.export.face_list import open_faces
    from attfc.gallery.gallery import named, strangers_named

    with _opened(gallery, model, model_is, device) as opened:
        faces, notes = faces_of(open_faces(images), opened.facts.image_size, align, detector)
        found = opened.search(faces, top, batch_size=batch_size, workers=workers)
        facts, stats = opened.facts, opened.stats()
    notes += several_faces(faces, workers)
    print_notes(map(shown, notes))
    where = [faces.where(position) for position in range(len(faces))]
    threshold = facts.threshold
    known = bool(facts.threshold_at_far)
    print_table(_answers(where, found, threshold, [rate for rate, _ in facts.threshold_at_far]))
    if threshold is not None:
        assert facts.far is not None
        strangers = strangers_named(facts.far, stats["templates"])
        out.print(
            f"\nA name is given above cosine {threshold:.4f}: FAR {facts.far:g} per comparison by {facts.thresholds_of}. "
            f"A search compares with {_count(stats['templates'], 'template')}, so about {100 * strangers:.2g} % of unknown people get a wrong name."
        )
    else:
        out.print(
            "\nNo threshold was chosen, so the cosine alone decides nothing: "
            f"attfc gallery create {shlex.join([str(gallery), facts.model])} --far 1e-4"
        )
        if not known:
            out.print(f"None is known: {NO_THRESHOLD}")
    write_json(
        json_file,
        {
            "gallery": str(gallery),
            "far": facts.far,
            "threshold": threshold,
            "templates": stats["templates"],
            "images": [
                {
                    "image": image,
                    "name": named(best, threshold),
                    "nearest": [{"name": each.name, "score": each.score, "far": each.far} for each in best],
                }
                for image, best in zip(where, found, strict=True)
            ],
            "notes": notes,
        },
    )


@app.command()
def stats(gallery: GalleryArgument, json_file: JsonOption = None) -> None:
    """Print a gallery's model, size and threshold, and check every template."""
    from attfc.gallery import Gallery

    with Gallery.open(gallery) as opened, progress_bar("templates") as bar:
        opened.check(bar)
        found = opened.stats()
    for key in ("people", "templates", "images", "free_slots"):
        out.print(f"{key.replace('_', ' '):<12}{found[key]:,}")
    out.print(f"{'model':<12}{shown(found['model'])}")
    out.print(
        f"{'':<12}{shown(found['network'])}, {found['image_size']} px -> {found['embedding_size']}, SHA-256 {found['digest'][:16]}"
    )
    at = "none" if found["threshold"] is None else f"{found['threshold']:.4f} at FAR {found['far']:g}"
    out.print(f"{'threshold':<12}{at}")
    size = sum(value for key, value in found.items() if key.endswith(" bytes"))
    out.print(f"{'size':<12}{size / 2**20:,.1f} MiB")
    out.print(f"{'changed':<12}{found['changed']}, made {found['created']}")
    if found["slots_to_erase"]:
        out.print(
            f"not erased yet: {_count(found['slots_to_erase'], 'template')}; run this again when no other process writes and the disk has room"
        )
    out.print("every template is as it was written")
    write_json(json_file, found)


def shown(text: str) -> str:
    """Return a text of a stranger for a terminal, on one line: what cannot be printed as its escape."""
    from attfc.data.people.name_table import printable

    return printable(text.encode("utf-8", "surrogateescape"))


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _opened(gallery: Path, model: Path | None, model_is: list[str] | None, device: str) -> "closing[Gallery]":
    """Open a gallery with its model, which is where it was unless the user says otherwise."""
    from attfc.gallery import Gallery

    with Gallery.open(gallery) as found:
        path = model or Path(found.facts.model)
    if not path.exists():
        raise UserError(f"{shown(str(path))}, the model of {gallery}, was not found: name its new place with --model")
    return closing(Gallery.open(gallery, open_with_notes(path, model_is, device)))


def _answers(
    where: Sequence[str], found: "Sequence[Sequence[Match]]", threshold: float | None, rates: Sequence[float]
) -> Table:
    rows = []
    for image, best in zip(where, found, strict=True):
        for rank, match in enumerate(best):
            far = "-" if not rates else f"> {max(rates):g}" if match.far is None else f"{match.far:g}"
            name = shown(match.name)
            if threshold is not None and match.score <= threshold:
                name = f"unknown (nearest: {name})" if rank == 0 else f"({name})"
            rows.append((shown(image) if rank == 0 else "", name, f"{match.score:.4f}", far))
        if not best:
            rows.append((shown(image), "unknown: the gallery is empty", "-", "-"))
    return Table(("image", "name" if threshold is not None else "nearest", "cosine", "FAR"), rows, words=(0, 1))
