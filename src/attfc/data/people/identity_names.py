"""Names of many identities at once, as bytes: some 0.2 us a name where a store keeps them packed, against 1 us and more one by one.

Folders, lists and packed sets give the bytes of their own tables (`identity_names` of the store), so the names stay equal when a
folder is packed. A person of `synthetic:` is named by seed and number: "identity 7" alone is somebody else in every seed.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from attfc.data.index import offsets_of
from attfc.data.people.name_table import NameTable
from attfc.typing import Int64

__all__ = ["joined_names", "names_of"]


def names_of(store: Any, labels: Int64) -> NameTable:
    """Return the names of `labels` of a store, in their order.

    >>> from attfc.data import SyntheticFaces
    >>> names_of(SyntheticFaces(3, 2, seed=5), np.array([2, 0]))[0]
    b'seed 5 identity 2'
    """
    own: Callable[[Int64], NameTable] | None = getattr(store, "identity_names", None)
    if own is not None:
        return own(labels)
    return NameTable.pack(store.identity_name(label).encode("utf-8", "backslashreplace") for label in labels.tolist())


def joined_names(rows: list[Int64], parts: list[NameTable]) -> NameTable:
    """Join tables whose names stand at `rows` of the result."""
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    joined = NameTable(np.concatenate([part.data for part in parts]), offsets_of(lengths))
    return joined.take(np.argsort(np.concatenate(rows)))
