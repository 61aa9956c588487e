"""`attfc data ...`: look into stores of faces, convert, check and clean them, make verification sets and label noise."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from attfc.commands.common import CacheOption, JsonOption, err, open_with_bar, out, progress_bar, replaces, write_json
from attfc.errors import UserError

if TYPE_CHECKING:
    from attfc.data import PackedCheck, Store
    from attfc.typing import Float32

__all__ = ["app"]

app = typer.Typer(help="Look into sets of faces, convert and clean them.", no_args_is_help=True, rich_markup_mode=None)

EditListOption = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        help="edit list to write; an older one is replaced",
        dir_okay=False,
        callback=replaces(b"# attfc edits"),
    ),
]
SourceArgument = Annotated[
    str,
    typer.Argument(
        help="image folder, train.rec or its folder, packed folder, list file, or synthetic: spec", metavar="PATH"
    ),
]
EditsOption = Annotated[
    list[Path] | None, typer.Option("--edits", help="edit list to apply; may be given several times", dir_okay=False)
]
LabelSourceOption = Annotated[
    Literal["identities", "images"],
    typer.Option(help="RecordIO of InsightFace: labels of the identity records, or each image's own"),
]
WorkersOption = Annotated[int, typer.Option(min=0, help="processes that read and decode")]


@app.command("inspect")
def inspect_data(
    path: SourceArgument,
    edits: EditsOption = None,
    label_source: LabelSourceOption = "identities",
    workers: WorkersOption = 2,
    cache: CacheOption = None,
    json_file: JsonOption = None,
) -> None:
    """Count identities, images, images per identity, broken files and duplicates."""
    from attfc.data import inspect_store
    from attfc.data.look import image_sizes

    store = _open(path, edits, label_source, cache)
    with progress_bar("inspect") as bar:
        result = inspect_store(store, workers=workers, progress=bar)
    out.print(result.to_text(), markup=False)
    if (advice := image_sizes(store).advice) is not None:
        out.print(advice, markup=False)
    write_json(json_file, result.to_dict())


@app.command("preview")
def preview_data(
    path: SourceArgument,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="PNG to write; an older preview is replaced",
            dir_okay=False,
            callback=replaces(b"Software\0attfc"),
        ),
    ] = Path("preview.png"),
    identities: Annotated[int, typer.Option(min=1, max=100, help="identities to show, one row per identity")] = 8,
    images: Annotated[int, typer.Option(min=1, max=100, help="images per identity")] = 8,
    seed: Annotated[int, typer.Option(help="seed for who is shown")] = 0,
    edits: EditsOption = None,
    label_source: LabelSourceOption = "identities",
    cache: CacheOption = None,
) -> None:
    """Write a contact sheet, one row per identity. A sheet of a real store shows people: handle it as you handle the store."""
    from PIL.PngImagePlugin import PngInfo

    from attfc.data import contact_sheet

    store = _open(path, edits, label_source, cache)
    written_by = PngInfo()
    written_by.add_text("Software", "attfc")
    contact_sheet(store, identities=identities, images=images, seed=seed).save(output, "PNG", pnginfo=written_by)
    out.print(str(output), markup=False, soft_wrap=True)


@app.command("convert")
def convert_data(
    source: Annotated[str, typer.Argument(help="any set of faces", metavar="SRC")],
    destination: Annotated[Path, typer.Argument(help="folder to make", metavar="DST", file_okay=False)],
    to: Annotated[
        Literal["packed", "rec", "folder"], typer.Option(help="packed: this project's format; rec: MXNet RecordIO")
    ] = "packed",
    check: Annotated[bool, typer.Option("--check", help="decode every image and leave out the broken ones")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="packed: read everything back and compare")] = False,
    shard_mib: Annotated[int, typer.Option(min=1, help="packed: a shard is closed at this size")] = 1024,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="also take images that links reach outside the folder SRC")
    ] = False,
    names: Annotated[bool, typer.Option(help="keep the names of image files (packed) or of people (rec)")] = True,
    edits: EditsOption = None,
    label_source: LabelSourceOption = "identities",
    cache: CacheOption = None,
    json_file: JsonOption = None,
) -> None:
    """Convert a set; the images' bytes stay as they are. After an interruption the same command continues."""
    from attfc.data import convert_store, verify_packed

    if verify and to != "packed":
        raise UserError(f"--verify compares checksums, which only packed folders have: leave it out with --to {to}")
    store = _open(source, edits, label_source, cache)
    with progress_bar("convert") as bar:
        done = convert_store(
            store,
            destination,
            kind=to,
            check=check,
            progress=bar,
            shard_bytes=shard_mib << 20,
            keep_names=names,
            follow_links=follow_links,
        )
    size = done.encoded_bytes
    out.print(
        f"{done.destination}: {done.images:,} images of {done.identities:,} identities, "
        + (f"{size / 2**20:,.1f} MiB" if size >= 1 << 20 else f"{size / 2**10:,.1f} KiB"),
        markup=False,
    )
    if done.continued_at:
        out.print(f"continued an earlier run at identity {done.continued_at:,}")
    for line in (*done.examples, *done.notes):
        err.print(f"note: {line}", markup=False)
    write_json(json_file, {name: value for name, value in vars(done).items() if name != "examples"})
    if verify:
        with progress_bar("verify") as bar:
            checked = verify_packed(destination, bar)
        _report_check(destination, checked)


@app.command("verify")
def verify_data(
    path: Annotated[Path, typer.Argument(help="packed folder", file_okay=False)],
    json_file: JsonOption = None,
) -> None:
    """Read every image of a packed folder and compare its checksum."""
    import dataclasses

    from attfc.data import verify_packed

    with progress_bar("verify") as bar:
        check = verify_packed(path, bar)
    write_json(json_file, {**dataclasses.asdict(check), "sound": check.sound})
    _report_check(path, check)


@app.command("clean")
def clean_data(
    path: SourceArgument,
    output: EditListOption = Path("edits.tsv"),
    against: Annotated[
        str | None,
        typer.Option(help="evaluation set: leave out everybody who is in it, with all their images", metavar="PATH"),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="run or model folder: also look for wrong labels and for faces of --against")
    ] = None,
    fewest: Annotated[int, typer.Option(min=1, help="leave out identities with fewer images")] = 1,
    broken: Annotated[bool, typer.Option(help="decode every image, leave out broken ones")] = True,
    duplicates: Annotated[
        Literal["drop_all", "keep_first", "report", "ignore"],
        typer.Option(
            help="equal images under several identities: leave all out, all but the first, or only report; ignore: no search"
        ),
    ] = "drop_all",
    names: Annotated[bool, typer.Option(help="compare identity names with those of --against")] = True,
    threshold: Annotated[
        float, typer.Option(help="model: cosine to the identity's center below which a label is wrong")
    ] = 0.3,
    margin: Annotated[
        float | None, typer.Option(help="model: and another center must be closer by this much; default: not asked")
    ] = None,
    move: Annotated[
        bool, typer.Option("--move", help="model: move wrong images to the identity that is clearly closer")
    ] = False,
    move_threshold: Annotated[float, typer.Option(help="model: cosine to the other center from which to move")] = 0.7,
    overlap_threshold: Annotated[
        float, typer.Option(help="model: cosine of two centers from which they are one person")
    ] = 0.7,
    edits: EditsOption = None,
    label_source: LabelSourceOption = "identities",
    workers: WorkersOption = 2,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...; for --model")] = "auto",
    cache: CacheOption = None,
    json_file: JsonOption = None,
) -> None:
    """Look for broken images, copies, leakage, wrong labels, tiny identities; write an edit list. Deletes nothing."""
    from attfc.data import write_edits
    from attfc.data.cleaning.clean import clean

    store = _open(path, edits, label_source, cache)
    evaluation = None if against is None else open_with_bar(against, cache=cache)
    ours = theirs = None
    if model is not None:
        device, ours, theirs = _embedded(model, device, store, evaluation, workers)
    with progress_bar("clean") as bar:
        report = clean(
            store,
            broken=broken,
            duplicates=None if duplicates == "ignore" else duplicates,
            fewest=fewest,
            against=evaluation,
            names=names,
            embeddings=ours,
            against_embeddings=theirs,
            threshold=threshold if model is not None else None,
            margin=margin,
            policy="move" if move else "drop",
            move_threshold=move_threshold,
            overlap_threshold=overlap_threshold,
            workers=workers,
            device="cpu" if model is None else device,
            progress=bar,
        )
    write_edits(output, report.edits, store.name)
    out.print(report.to_text(), markup=False)
    _say_how_to_use([*(edits or ()), output])
    write_json(json_file, {**report.to_dict(), "edits": str(output)})


def _embedded(
    model: Path, device: str, store: "Store", evaluation: "Store | None", workers: int
) -> "tuple[str, Float32, Float32 | None]":
    """Return the model's device and the embeddings of all images of the training set and of the evaluation set, if any."""
    from attfc.evaluation import embed_store
    from attfc.export import load

    opened = load(model, device=device)
    vectors = []
    for each in (store, evaluation):
        if each is not None:
            with progress_bar("embed") as bar:
                vectors.append(embed_store(opened.module, each, workers=workers, progress=bar).vectors)
    return str(opened.device), vectors[0], vectors[1] if evaluation is not None else None


def _say_how_to_use(lists: list[Path]) -> None:
    """Print how training and other commands take edit lists, of which the last was written."""
    out.print(
        f"edit list: {lists[-1]}   use it with data.edits=[{', '.join(map(str, lists))}] or "
        + " ".join(f"--edits {one}" for one in lists),
        markup=False,
    )


@app.command("noise")
def noise_data(
    path: SourceArgument,
    kind: Annotated[
        Literal["flip", "conflict"],
        typer.Argument(
            help="flip: images get another identity; conflict: identities are split", metavar="flip|conflict"
        ),
    ],
    share: Annotated[float, typer.Option(help="share of the images (flip) or of the identities (conflict), 0 to 1")],
    output: EditListOption,
    seed: Annotated[int, typer.Option(min=0, help="seed for what is changed")] = 0,
    parts: Annotated[int, typer.Option(min=2, help="conflict: labels that a split identity ends up with")] = 2,
    edits: EditsOption = None,
    label_source: LabelSourceOption = "identities",
    cache: CacheOption = None,
) -> None:
    """Write an edit list of label noise of a known amount, to see how a head bears it."""
    from attfc.data import conflict_noise, flip_noise, write_edits

    store = _open(path, edits, label_source, cache)
    noise = flip_noise(store, share, seed) if kind == "flip" else conflict_noise(store, share, seed, parts=parts)
    write_edits(output, noise, store.name)
    out.print(f"{output}: {len(noise):,} of {len(store):,} images get another label", markup=False)


@app.command("make-bin")
def make_bin(
    path: SourceArgument,
    pairs: Annotated[Path, typer.Argument(help="pairs file in the LFW form", dir_okay=False)],
    output: Annotated[Path, typer.Argument(help=".bin file to write", metavar="OUT", dir_okay=False)],
    edits: EditsOption = None,
    cache: CacheOption = None,
) -> None:
    """Write pairs of a set as a verification set (.bin), as InsightFace's and other tools read it."""
    import numpy as np

    from attfc.data import make_verification_set
    from attfc.evaluation import read_pairs

    store = _open(path, edits, "identities", cache)
    found = read_pairs(pairs, store, broken_limit=0)  # a verification set must be whole
    with progress_bar("pairs") as bar:
        made = make_verification_set(store, np.stack([found.first, found.second], axis=1), found.same, output, bar)
    out.print(f"{output}: {len(made.same):,} pairs, {int(made.same.sum()):,} of one person", markup=False)


def _open(
    path: str,
    edits: list[Path] | None,
    label_source: Literal["identities", "images"],
    cache: Path | None,
) -> "Store":
    store = open_with_bar(path, edits=edits or (), label_source=label_source, cache=cache)
    for note in getattr(store, "notes", ()):
        err.print(f"note: {note}", markup=False)
    return store


def _report_check(path: Path, check: "PackedCheck") -> None:
    if not check.sound:
        details = "; ".join([*(f"{name} has another checksum" for name in check.files), *check.examples[:3]])
        raise UserError(f"{path}: {check.damaged:,} of {check.images:,} images are damaged ({details})")
    out.print(f"{path}: {check.images:,} images and every index file have their checksums", markup=False)
