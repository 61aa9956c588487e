"""One name for any data: what `open_store` finds at a path, or `synthetic:...` for rendered faces that need no disk."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from attfc.data.stores.edits import EditedStore, read_edits
from attfc.data.stores.folder import FolderStore
from attfc.data.stores.packed.packed_store import PackedStore, is_packed
from attfc.data.stores.rec.record_layouts import LabelSource
from attfc.data.stores.store import Store
from attfc.errors import UserError, nearest

__all__ = ["open_store"]

_SYNTHETIC = "synthetic"
_SYNTHETIC_KEYS = {"identities": 1000, "images": 20, "seed": 0, "first": 0}
_LISTS = (".txt", ".lst", ".tsv", ".list")
_KINDS = (
    "folders root/<identity>/<image>, RecordIO (train.rec), packed folders (attfc data convert), list files "
    f"({' '.join(_LISTS)}: a line of path and label each), and synthetic:..."
)


def open_store(
    path_or_spec: str | os.PathLike[str],
    *,
    edits: Iterable[str | os.PathLike[str]] = (),
    label_source: LabelSource = "identities",
    cache: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Store:
    """Open a source of face images.

    Args:
        path_or_spec: one of
            - a folder `root/<identity>/<image>`;
            - `train.rec`, or the folder that holds it (MXNet RecordIO, both layouts);
            - a packed folder (`attfc data convert`);
            - a list file (.txt, .lst, .tsv, .list) of lines `path label`, or in the columns of InsightFace's or MXNet's lists;
            - "synthetic:identities=1000,images=20,seed=0" with any of the keys identities, images (of each: 20, or 5-40 for
              a long tail), seed, first (number of the first identity: held-out people of the same seed); what is not given
              has these values, and first=0.
        edits: edit lists (`attfc data clean`, `attfc data noise`), each about the store as the ones before it leave it.
        label_source: RecordIO in the InsightFace layout: whose labels count (see `RecordStore`).
        cache: folder for the index of a folder, a list or RecordIO; packed folders have their own.
        progress: called as (done, total) while data are scanned for the first time.

    Raises:
        UserError: nothing there, a kind of data that is not supported, a malformed specification, an edit list about other data.

    >>> len(open_store("synthetic:identities=3,images=2"))
    6
    """
    store = _open(path_or_spec, label_source, cache, progress)
    for path in edits:
        store = EditedStore(store, read_edits(path, comments=False))
    return store


def _open(
    path_or_spec: str | os.PathLike[str],
    label_source: LabelSource,
    cache: str | os.PathLike[str] | None,
    progress: Callable[[int, int], None] | None,
) -> Store:
    spec = os.path.expanduser(os.fspath(path_or_spec))  # the shell leaves the ~ of data.root=~/faces
    if spec == _SYNTHETIC or spec.startswith(_SYNTHETIC + ":"):
        return _open_synthetic(spec)
    if not spec:
        raise UserError('no data given: a folder root/<identity>/<image>, or "synthetic:identities=1000,images=20"')
    path = Path(spec)
    if path.is_dir():
        if is_packed(path):
            return PackedStore(path)
        if not _holds_records(path):
            return FolderStore(path, cache=cache, progress=progress)
    elif path.suffix in _LISTS and path.exists():
        from attfc.data.stores.list_file import ListStore  # parsers wait until somebody has such data

        listed = ListStore(path, cache=cache, progress=progress)
        listed.refuse_missing()
        return listed
    elif path.suffix not in (".rec", ".idx") or not path.exists():
        raise UserError(_refusal(spec, path))
    from attfc.data.stores.rec.records import RecordStore

    return RecordStore(path, label_source=label_source, cache=cache, progress=progress)


def _holds_records(folder: Path) -> bool:
    """Whether a folder is a record set: `.rec` files stand where identities would."""
    with os.scandir(folder) as entries:
        return any(entry.name.endswith(".rec") and entry.is_file() for entry in entries)


def _refusal(spec: str, path: Path) -> str:
    if path.suffix == ".bin" and path.exists():
        return f"{spec}: is a verification set (pairs, no identities): it can be evaluated on, not trained on or looked into"
    if path.exists():
        return f"{spec}: is a file of no known kind; supported are {_KINDS}"
    word, colon, _ = spec.partition(":")
    hint = nearest(word, [_SYNTHETIC]) if colon or word.startswith("syn") else ""
    return f"{spec}: no such folder{hint}"


def _open_synthetic(spec: str) -> Store:
    from attfc.data.stores.synthetic import SyntheticFaces  # the renderer is loaded only by those who use it

    values = dict(_SYNTHETIC_KEYS)
    most_images = 0
    for part in filter(None, (part.strip() for part in spec.partition(":")[2].split(","))):
        key, _, value = (word.strip() for word in part.partition("="))
        key = "first" if key == "first_identity" else key
        if key not in values:
            raise UserError(f"{spec}: unknown key {key!r}{nearest(key, values)}; known: {', '.join(values)}")
        low, dash, high = value.partition("-") if key == "images" else (value, "", "")
        try:
            values[key] = int(low)
            most_images = int(high) if dash else most_images
        except ValueError:
            example = "images=20 or images=5-40" if key == "images" else f"{key}={_SYNTHETIC_KEYS[key]}"
            raise UserError(f"{spec}: {key} needs a whole number, as in {example}") from None
    images = (values["images"], most_images) if most_images else values["images"]
    return SyntheticFaces(values["identities"], images, seed=values["seed"], first_identity=values["first"])
