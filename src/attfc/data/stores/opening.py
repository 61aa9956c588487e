"""One name for any data: what `open_store` finds at a path, or `synthetic:...` for rendered faces that need no disk.

A new kind of store is its own file and one line in `_KINDS`.
"""

import inspect
import os
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from attfc.data.stores.edits import EditedStore, read_edits
from attfc.data.stores.rec.record_layouts import LabelSource
from attfc.data.stores.store import Store
from attfc.data.stores.writer import UNFINISHED
from attfc.errors import UserError, nearest
from attfc.files import entry_is
from attfc.typing import PathLike, Progress

__all__ = ["open_store"]

_SYNTHETIC = "synthetic"


class _Kind(NamedTuple):
    """A kind of store, and how its data are recognized.

    Attributes:
        home: module:callable in this package, which takes the path and those of `open_store`'s options that it names; imported
            when somebody has such data.
        shown: what it is, for messages.
        suffixes: of a file. inside: a name, or the end of one, of a file in a folder of this kind; "": any folder.
    """

    home: str
    shown: str
    suffixes: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()


_LISTS = (".txt", ".lst", ".tsv", ".list")
_KINDS = (  # asked in this order
    _Kind("packed.packed_store:PackedStore", "packed folders (attfc data convert)", inside=("packed.json", UNFINISHED)),
    _Kind("rec.records:RecordStore", "RecordIO (train.rec)", (".rec", ".idx"), (".rec",)),
    _Kind("lmdb.lmdb_store:LmdbStore", "LMDB (NAME.lmdb, data.mdb)", (".lmdb", ".mdb"), ("data.mdb",)),
    _Kind("list_file:open_list", f"list files ({' '.join(_LISTS)}: a line of path and label each)", _LISTS),
    _Kind("folder:FolderStore", "folders root/<identity>/<image>", inside=("",)),
)


def open_store(
    path_or_spec: PathLike,
    *,
    edits: Iterable[PathLike] = (),
    label_source: LabelSource = "identities",
    cache: PathLike | None = None,
    progress: Progress | None = None,
) -> Store:
    """Open a source of face images.

    Args:
        path_or_spec: one of

            - a folder `root/<identity>/<image>`;
            - `train.rec`, or the folder that holds it (MXNet RecordIO, both layouts);
            - a packed folder (`attfc data convert`);
            - `NAME.lmdb`, or a folder with `data.mdb`: LMDB of (encoded image, label), as synthetic sets come;
            - a list file (.txt, .lst, .tsv, .list) of lines `path label`, or in the columns of InsightFace's or MXNet's lists;
            - "synthetic:identities=1000,images=20,seed=0,first=0", the defaults of all keys. `images` is the number per identity; 5-40
              gives a long tail. `first` is the number of the first identity: another one gives other people of the same seed.
        edits: edit lists (`attfc data clean`, `attfc data noise`), each about the store as the ones before it leave it.
        label_source: RecordIO in the InsightFace layout: whose labels count (see `RecordStore`).
        cache: folder for the index of a folder, a list, RecordIO or LMDB; packed folders have their own.
        progress: called as (done, total) while data are scanned for the first time.

    Raises:
        UserError: nothing there, a kind of data that is not supported, a malformed specification, an edit list about other data.

    >>> len(open_store("synthetic:identities=3,images=2"))
    6
    """
    spec = os.path.expanduser(os.fspath(path_or_spec))  # the shell leaves the ~ of data.root=~/faces
    if spec == _SYNTHETIC or spec.startswith(_SYNTHETIC + ":"):
        home = "synthetic:open_synthetic"
    elif spec:
        home = _kind_at(spec, Path(spec)).home
    else:
        raise UserError('no data given: a folder root/<identity>/<image>, or "synthetic:identities=1000,images=20"')
    module, _, name = home.partition(":")
    opened = getattr(import_module(f"attfc.data.stores.{module}"), name)
    options = {"label_source": label_source, "cache": cache, "progress": progress}
    taken = inspect.signature(opened).parameters
    store: Store = opened(spec, **{option: value for option, value in options.items() if option in taken})
    for path in edits:
        store = EditedStore(store, read_edits(path, comments=False))
    return store


def _kind_at(spec: str, path: Path) -> _Kind:
    if path.is_dir():
        marks = tuple(mark for kind in _KINDS for mark in kind.inside if mark)
        with os.scandir(path) as entries:
            names = {entry.name for entry in entries if entry.name.endswith(marks) and entry_is(entry.is_file)}
        ends = {name[name.rfind(".") :] for name in names}
        return next(kind for kind in _KINDS if any(not mark or mark in names | ends for mark in kind.inside))
    for kind in _KINDS:
        if path.suffix in kind.suffixes and path.exists():
            return kind
    if path.suffix == ".bin" and path.exists():
        why = "is a verification set (pairs, no identities): it can be evaluated on, not trained on or looked into"
    elif path.exists():
        kinds = ", ".join(kind.shown for kind in (_KINDS[-1], _KINDS[1], _KINDS[0], _KINDS[3], _KINDS[2]))
        why = f"is a file of no known kind; supported are {kinds}, and {_SYNTHETIC}:..."
    else:
        word, colon, _ = spec.partition(":")
        why = "no such folder" + (nearest(word, [_SYNTHETIC]) if colon or word.startswith("syn") else "")
    raise UserError(f"{spec}: {why}")
