"""Names of many identities at once, as bytes: some 0.2 us a name where a store keeps them packed, against 1 us and more one by one.

Folders, lists and packed sets give the bytes of their own tables, so the names stay equal when a folder is packed. A person of
`synthetic:` is named by seed and number: "identity 7" alone is somebody else in every seed.
"""

import numpy as np
import numpy.typing as npt

from attfc.data.people.name_table import NameTable
from attfc.data.stores.combined import CombinedStore
from attfc.data.stores.edits import EditedStore
from attfc.data.stores.folder import FolderStore
from attfc.data.stores.packed.packed_store import PackedStore
from attfc.data.stores.store import Store

__all__ = ["names_of"]

Int64 = npt.NDArray[np.int64]


def names_of(store: Store, labels: Int64) -> NameTable:
    """Return the names of `labels`, in their order.

    >>> from attfc.data import SyntheticFaces
    >>> names_of(SyntheticFaces(3, 2, seed=5), np.array([2, 0]))[0]
    b'seed 5 identity 2'
    """
    if isinstance(store, EditedStore):
        return _of_edited(store, labels)
    if isinstance(store, CombinedStore):
        return _of_combined(store, labels)
    if isinstance(store, FolderStore):
        return _take(store._tables.identity_names, labels)
    if isinstance(store, PackedStore):
        return _take(store._identity_names, labels)
    from attfc.data.stores.list_file import ListStore  # parsers and renderer are loaded only by those who use them
    from attfc.data.stores.rec.records import RecordStore

    known = store._tables.known if isinstance(store, ListStore) else None
    if isinstance(store, RecordStore):
        store.identity_name(0)  # reads the names, if that has not been done
        known = store._index.numbers if store._names is None else store._names
    if isinstance(known, np.ndarray):
        return NameTable.pack(b"%d" % number for number in known[labels].tolist())
    if known is not None:
        names = _take(known, labels)
        if np.diff(names.offsets).all():  # of some records a file of names may say nothing
            return names
    return NameTable.pack(_one_by_one(store, labels))


def _one_by_one(store: Store, labels: Int64) -> list[bytes]:
    from attfc.data.stores.synthetic import SyntheticFaces

    if isinstance(store, SyntheticFaces):
        start = f"seed {store.seed} identity "
        return [f"{start}{number}".encode() for number in (labels + store.first_identity).tolist()]
    return [store.identity_name(label).encode("utf-8", "backslashreplace") for label in labels.tolist()]


def _of_edited(store: EditedStore, labels: Int64) -> NameTable:
    below = store._used[labels]
    old = below < len(store.store.identities)
    if old.all():
        return names_of(store.store, below)
    made = NameTable.pack(f"new-{label}".encode() for label in below[~old].tolist())
    return _in_order([np.flatnonzero(old), np.flatnonzero(~old)], [names_of(store.store, below[old]), made])


def _of_combined(store: CombinedStore, labels: Int64) -> NameTable:
    places = labels if store._named_by is None else store._named_by[labels]
    sources = np.searchsorted(store._label_starts, places, side="right") - 1
    rows = [np.flatnonzero(sources == number) for number in range(len(store.stores))]
    parts = [
        names_of(source, places[row] - store._label_starts[number])
        for number, (source, row) in enumerate(zip(store.stores, rows, strict=True))
    ]
    return _in_order(rows, parts)


def _in_order(rows: list[Int64], parts: list[NameTable]) -> NameTable:
    """Join tables whose names stand at `rows` of the result."""
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    joined = NameTable(np.concatenate([part.data for part in parts]), np.concatenate([[0], np.cumsum(lengths)]))
    return _take(joined, np.argsort(np.concatenate(rows)))


def _take(table: NameTable, labels: Int64) -> NameTable:
    starts = table.offsets[labels]
    lengths = table.offsets[labels + 1] - starts
    offsets = np.zeros(len(labels) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    if len(labels) and bool((starts[1:] == starts[:-1] + lengths[:-1]).all()):  # neighbours: the usual case
        return NameTable(table.data[int(starts[0]) : int(starts[0]) + int(offsets[-1])], offsets)
    places = np.repeat(starts - offsets[:-1], lengths) + np.arange(int(offsets[-1]), dtype=np.int64)
    return NameTable(table.data[places], offsets)
