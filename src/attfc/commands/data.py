"""`attfc data ...`: look into stores of faces, convert, check and clean them, make verification sets and label noise."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Option

from attfc.commands.common import (
    SHEET,
    CacheOption,
    JsonOption,
    NaturalOption,
    PositiveOption,
    WorkersOption,
    open_with_bar,
    out,
    print_notes,
    progress_bar,
    refuse_idle,
    replaces,
    save_sheet,
    write_json,
)
from attfc.commands.help import Commands
from attfc.errors import UserError

if TYPE_CHECKING:
    from attfc.data import Store

__all__ = ["app"]

app = Commands(help="Look into sets of faces, convert and clean them.", no_args_is_help=True, rich_markup_mode=None)

EditListOption = Annotated[
    Path,
    Option(
        "--output",
        "-o",
        help="edit list to write; an older one is replaced",
        dir_okay=False,
        callback=replaces(b"# attfc edits"),
    ),
]
PreviewOption = Annotated[Path, Option("--output", "-o", dir_okay=False, callback=SHEET)]
SourceArgument = Annotated[
    str,
    Argument(
        help="image folder, train.rec or its folder, NAME.lmdb, packed folder, list file, or synthetic:identities=N",
        metavar="PATH",
    ),
]
EditsOption = Annotated[list[Path] | None, Option(help="edit list to apply; repeatable", dir_okay=False)]
LabelSourceOption = Annotated[
    Literal["identities", "images"],
    Option(help="for InsightFace's .rec: labels from the identity records, or from each image's header"),
]
ShownOption = Annotated[int, Option(min=1, max=100)]
SHARD_MIB, THRESHOLD, MOVE_THRESHOLD, PARTS = 1024, 0.3, 0.7, 2


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
    out.print(result.to_text())
    if (advice := image_sizes(store).advice) is not None:
        out.print(advice)
    write_json(json_file, {**result.to_dict(), "alignment": _look_at_alignment(store)})


def _look_at_alignment(store: "Store") -> dict[str, Any] | None:
    """Print whether a sample looks aligned, and return what was found; None: no detector is installed."""
    from attfc.photos.opening import open_detector
    from attfc.photos.template_check import check_template

    try:
        detector = open_detector()
    except UserError:
        out.print('alignment: not checked; that needs pip install "attfc[align]"')
        return None
    found = check_template(store, detector)
    if found.distance is not None:
        out.print(
            f"alignment: {found.aligned:,} of {found.found:,} faces looked at lie on the ArcFace template, "
            f"median distance {found.distance:.1f} of 112 pixels",
        )
    if found.advice is not None:
        out.print(found.advice)
    return found.to_dict()


@app.command("preview")
def preview_data(
    path: SourceArgument,
    output: PreviewOption = Path("preview.png"),
    identities: ShownOption = 8,
    images: ShownOption = 8,
    seed: int = 0,
    edits: EditsOption = None,
    label_source: LabelSourceOption = "identities",
    cache: CacheOption = None,
) -> None:
    """Write a contact sheet, one row per identity. It shows people: protect it as you protect the images.

    Args:
        output: PNG to write; an older preview is replaced
        identities: identities to show, one row each
        images: images per identity
        seed: seed for choosing the identities
    """
    from attfc.data import contact_sheet

    store = _open(path, edits, label_source, cache)
    save_sheet(contact_sheet(store, identities=identities, images=images, seed=seed), output)
    out.print(str(output), soft_wrap=True)


@app.command("convert")
def convert_data(
    source: Annotated[str, Argument(metavar="SRC")],
    destination: Annotated[Path, Argument(metavar="DST", file_okay=False)],
    to: Literal["packed", "rec", "folder"] = "packed",
    check: bool = False,
    verify: bool = False,
    shard_mib: PositiveOption = SHARD_MIB,
    follow_links: bool = False,
    names: bool = True,
    edits: EditsOption = None,
    label_source: LabelSourceOption = "identities",
    cache: CacheOption = None,
    json_file: JsonOption = None,
) -> None:
    """Convert a set of faces; the images' bytes do not change. After an interruption, run it again to continue.

    Args:
        source: any set of faces
        destination: folder to make
        to: packed: attfc's own format; rec: MXNet RecordIO; folder: a folder per person
        check: decode every image and leave out the broken ones
        verify: packed: read everything back and compare checksums
        shard_mib: packed: size of a shard file, MiB
        follow_links: also take images that links reach outside the folder SRC
        names: keep the names of image files (packed) or of people (rec)
    """
    from attfc.data import convert_store

    if to != "packed":
        refuse_idle(
            {"--verify": verify}, f"compares checksums, which only packed folders have: leave it out with --to {to}"
        )
        refuse_idle({"--shard-mib": shard_mib != SHARD_MIB}, f"is for packed folders: leave it out with --to {to}")
    if to == "folder":
        refuse_idle({"--no-names": not names}, "is for packed folders and .rec files: leave it out with --to folder")
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
        + (f"{size / 2**20:,.1f} MiB" if size >= 1 << 20 else f"{size / 2**10:,.1f} KiB")
    )
    if done.continued_at:
        out.print(f"continued an earlier run at identity {done.continued_at:,}")
    print_notes([*done.examples, *done.notes])
    write_json(json_file, {name: value for name, value in vars(done).items() if name != "examples"})
    if verify:
        _verified(destination)


@app.command("verify")
def verify_data(path: Annotated[Path, Argument(file_okay=False)], json_file: JsonOption = None) -> None:
    """Read every image of a packed folder and compare its checksum.

    Args:
        path: packed folder
    """
    _verified(path, json_file)


def _verified(path: Path, json_file: Path | None = None) -> None:
    from attfc.data import verify_packed

    with progress_bar("verify") as bar:
        check = verify_packed(path, bar)
    write_json(json_file, {**vars(check), "sound": check.sound})
    if not check.sound:
        details = "; ".join([*(f"{name} has another checksum" for name in check.files), *check.examples[:3]])
        raise UserError(f"{path}: {check.damaged:,} of {check.images:,} images are damaged ({details})")
    out.print(f"{path}: {check.images:,} images and every index file have their checksums")


@app.command("clean")
def clean_data(
    path: SourceArgument,
    output: EditListOption = Path("edits.tsv"),
    against: Annotated[list[str] | None, Option(metavar="PATH")] = None,
    model: Path | None = None,
    people: bool = True,
    merge: bool = False,
    sheet: Annotated[Path | None, Option(dir_okay=False, callback=SHEET)] = None,
    fewest: PositiveOption = 1,
    broken: bool = True,
    duplicates: Literal["drop_all", "keep_first", "report", "ignore"] = "drop_all",
    names: bool = True,
    threshold: float = THRESHOLD,
    margin: float | None = None,
    move: bool = False,
    move_threshold: float = MOVE_THRESHOLD,
    overlap_threshold: float | None = None,
    edits: EditsOption = None,
    label_source: LabelSourceOption = "identities",
    workers: WorkersOption = 2,
    device: str = "auto",
    cache: CacheOption = None,
    json_file: JsonOption = None,
) -> None:
    """Look for broken images, copies, leakage, wrong labels, tiny identities; write an edit list. Deletes nothing.

    Args:
        against: evaluation set: leave out everybody who is in it, with all their images; repeatable: several sets are also compared with each other
        model: run or model folder: also look for wrong labels and for faces of --against
        people: model: also look for near copies, and for labels that show the same person
        merge: model: merge labels that show the same person; default: list them
        sheet: model: PNG of the pairs nearest to the threshold, a pair per row; it shows people
        fewest: leave out identities with fewer images
        broken: decode every image, leave out broken ones
        duplicates: equal images under several identities: drop all, keep the first, only report, or ignore (no search)
        names: compare identity names with those of --against
        threshold: model: cosine to the identity's center below which a label is wrong
        margin: model: call a label wrong only if another identity's center is closer by this much; default: any label below --threshold
        move: model: move images with a wrong label to the identity that is clearly closer
        move_threshold: model: least cosine to the other center for a move
        overlap_threshold: model: cosine from which two labels show the same person; default: one that few different people reach
        device: auto, cpu, cuda ...; for --model
    """
    from attfc.data import CombinedStore, write_edits
    from attfc.data.cleaning.clean import clean

    _refuse_idle_cleaning(model, merge, sheet, people, threshold, margin, move, move_threshold, overlap_threshold)
    store = _open(path, edits, label_source, cache)
    others = [open_with_bar(each, cache=cache) for each in against or ()]
    evaluation = CombinedStore(others) if len(others) > 1 else others[0] if others else None
    with_model: dict[str, Any] = {"threshold": None}
    if model is not None:
        with_model = {"threshold": threshold, "people": people, "merge": merge}
        with_model |= _embedded(model, device, store, evaluation, workers)
    with progress_bar("clean") as bar:
        report = clean(
            store,
            broken=broken,
            duplicates=None if duplicates == "ignore" else duplicates,
            fewest=fewest,
            against=evaluation,
            names=names,
            margin=margin,
            policy="move" if move else "drop",
            move_threshold=move_threshold,
            overlap_threshold=overlap_threshold,
            workers=workers,
            progress=bar,
            **with_model,
        )
    write_edits(output, report.edits, store.name)
    out.print(report.to_text())
    lists = [*(edits or ()), output]
    uses = " ".join(f"--edits {one}" for one in lists)
    out.print(f"edit list: {output}   use it with data.edits=[{', '.join(map(str, lists))}] or {uses}")
    if sheet is not None:
        save_sheet(report.sheet(store, evaluation), sheet)
        out.print(str(sheet), soft_wrap=True)
    write_json(json_file, {**report.to_dict(), "edits": str(output)})


def _refuse_idle_cleaning(
    model: Path | None,
    merge: bool,
    sheet: Path | None,
    people: bool,
    threshold: float,
    margin: float | None,
    move: bool,
    move_threshold: float,
    overlap_threshold: float | None,
) -> None:
    """Raise UserError for an option of `attfc data clean` that does nothing without another."""
    moves = {"--move-threshold": move_threshold != MOVE_THRESHOLD}
    if model is None:
        flags = {"--merge": merge, "--sheet": sheet, "--move": move, "--no-people": not people}
        cosines = {"--margin": margin is not None, "--overlap-threshold": overlap_threshold is not None}
        of_model = flags | cosines | moves | {"--threshold": threshold != THRESHOLD}
        refuse_idle(of_model, "compares faces: give --model RUN too")
    if not move:
        refuse_idle(moves, "is for --move: add it, or leave both out")


def _embedded(model: Path, device: str, store: "Store", evaluation: "Store | None", workers: int) -> dict[str, Any]:
    """Return what cleaning takes of a model: its device and the embeddings of the training set and of the evaluation set, if any."""
    from attfc.evaluation import embed_store
    from attfc.export import load

    opened = load(model, device=device)
    found: dict[str, Any] = {"device": opened.device}
    for name, each in (("embeddings", store), ("against_embeddings", evaluation)):
        if each is not None:
            with progress_bar("embed") as bar:
                found[name] = embed_store(opened.module, each, workers=workers, progress=bar).vectors
    return found


@app.command("noise")
def noise_data(
    path: SourceArgument,
    kind: Annotated[Literal["flip", "conflict"], Argument(metavar="flip|conflict")],
    share: Annotated[float, Option()],
    output: EditListOption,
    seed: NaturalOption = 0,
    parts: Annotated[int, Option(min=2)] = PARTS,
    edits: EditsOption = None,
    label_source: LabelSourceOption = "identities",
    cache: CacheOption = None,
) -> None:
    """Write an edit list that adds a known amount of label noise, to test how well a head copes with it.

    Args:
        kind: flip: images get another identity; conflict: identities are split
        share: share of the images (flip) or of the identities (conflict), 0 to 1
        seed: seed for choosing what changes
        parts: conflict: number of labels a split identity gets
    """
    if kind == "flip":
        refuse_idle({"--parts": parts != PARTS}, "is for conflict, which splits identities: leave it out with flip")
    from attfc.data import conflict_noise, flip_noise, write_edits

    store = _open(path, edits, label_source, cache)
    noise = flip_noise(store, share, seed) if kind == "flip" else conflict_noise(store, share, seed, parts=parts)
    write_edits(output, noise, store.name)
    out.print(f"{output}: {len(noise):,} of {len(store):,} images get another label")


@app.command("make-bin")
def make_bin(
    path: SourceArgument,
    pairs: Annotated[Path, Argument(dir_okay=False)],
    output: Annotated[Path, Argument(metavar="OUT", dir_okay=False, callback=replaces(b"\x80\x04"))],
    edits: EditsOption = None,
    cache: CacheOption = None,
) -> None:
    """Write pairs of a set as a verification set (.bin), the form that InsightFace and other tools read.

    Args:
        pairs: pairs file in the LFW form
        output: .bin file to write
    """
    import numpy as np

    from attfc.data import make_verification_set
    from attfc.evaluation import read_pairs

    store = _open(path, edits, "identities", cache)
    found = read_pairs(pairs, store, broken_limit=0)  # a verification set must be whole
    with progress_bar("pairs") as bar:
        made = make_verification_set(store, np.stack([found.first, found.second], axis=1), found.same, output, bar)
    out.print(f"{output}: {len(made.same):,} pairs, {int(made.same.sum()):,} of one person")


def _open(
    path: str, edits: list[Path] | None, label_source: Literal["identities", "images"], cache: Path | None
) -> "Store":
    store = open_with_bar(path, edits=edits or (), label_source=label_source, cache=cache)
    print_notes(getattr(store, "notes", ()))
    return store
