"""Who a run is trained on, as a few hashes in its checkpoint: a resumed run must go on with the same people under the same labels.

Rows, containers and tables are kept by label. If a folder is renamed, the labels behind it shift, and every kept row is then somebody
else's; nothing but the loss would tell. The hashes are over at least 16 names each, in the order of labels, so a checkpoint holds
no name and none can be looked up in it one by one. Cost: below 1 s for 2 million identities, 2 KiB per checkpoint.
"""

import hashlib
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from attfc.data.people.identity_names import names_of
from attfc.data.people.name_table import printable
from attfc.data.stores.store import Store
from attfc.training.checkpoints.manifest import STATE, read_state
from attfc.typing import Json

__all__ = ["first_difference", "people_of", "saved_people"]

MOST_BLOCKS = 64
FEWEST_NAMES = 16  # in a block: a hash of fewer could be guessed from a list of names
NAMES_AT_ONCE = 1 << 16


def people_of(store: Store) -> Json:
    """Return the counts of a store, a hash of the images per identity, and the hashes of its names in blocks.

    >>> from attfc.data import SyntheticFaces
    >>> people_of(SyntheticFaces(20, 3))["identities"]
    20
    """
    index = store.identities
    return {
        "identities": len(index),
        "images": len(store),
        "images_per_identity": hashlib.blake2b(
            np.ascontiguousarray(index.offsets, "<i8").data, digest_size=8
        ).hexdigest(),
        "names": [_hash_of_names(store, start, stop) for start, stop in _blocks(len(index))],
    }


def saved_people(checkpoint: Path) -> Json:
    """Read what a checkpoint says of its people; without hashes, or empty, where an earlier version wrote it.

    Raises:
        UserError: its state.json is missing, too large or no JSON.
    """
    state = read_state(checkpoint / STATE)
    people, loader = (state.get(name) if isinstance(state, dict) else None for name in ("people", "loader"))
    if isinstance(people, dict):
        return people
    images = loader.get("images") if isinstance(loader, dict) else None
    return {"images": images} if isinstance(images, int) else {}


def first_difference(saved: Mapping[str, Any], store: Store, now: Mapping[str, Any]) -> str | None:
    """Say what differs first between the people of a checkpoint and those of `store` (`now`, of `people_of`); None: nothing does."""
    for name in ("identities", "images"):
        if saved.get(name, now[name]) != now[name]:
            return f"{_count(saved[name])} {name} in the saved run, now {now[name]:,}"
    known, found = saved.get("names", now["names"]), now["names"]
    blocks = _blocks(now["identities"])
    for number, (start, stop) in enumerate(blocks):
        if not isinstance(known, list) or len(known) != len(blocks) or known[number] != found[number]:
            names = names_of(store, np.array([start, stop - 1], np.int64))
            first, last = (printable(names[place])[:60] for place in (0, 1))
            return (
                f"the counts are equal, but the names of the labels {start:,} to {stop - 1:,} (now {first!r} to {last!r}) "
                "or their order differ"
            )
    if saved.get("images_per_identity", now["images_per_identity"]) != now["images_per_identity"]:
        return "identities and their names are equal, but not how many images each of them has"
    return None


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else repr(value)[:40]


def _blocks(identities: int) -> list[tuple[int, int]]:
    blocks = max(1, min(MOST_BLOCKS, identities // FEWEST_NAMES))
    bounds = [number * identities // blocks for number in range(blocks + 1)]
    return list(itertools.pairwise(bounds))


def _hash_of_names(store: Store, start: int, stop: int) -> str:
    hasher = hashlib.blake2b(digest_size=8)
    for begin in range(start, stop, NAMES_AT_ONCE):
        names = names_of(store, np.arange(begin, min(begin + NAMES_AT_ONCE, stop), dtype=np.int64))
        hasher.update(np.diff(names.offsets).astype("<i8").tobytes())
        hasher.update(names.data.tobytes())
    return hasher.hexdigest()
