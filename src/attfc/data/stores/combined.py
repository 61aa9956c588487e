"""Several sets as one store: positions and labels one after the other, identities of equal name merged if asked.

    CombinedStore([ms1m, ours], weights=[1, 4])

Memory: 8 bytes per identity of each source, its label here. The identity index, 8 bytes per identity and (unless all sources number their
images identity by identity) 8 per image, is built when first asked for and is not pickled. Merging is one pass over the names, a Python
string each while it lasts: some 2 s for 2 M identities. No sorting: each identity's images of the first source come first.
"""

import itertools
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from attfc.data.index import IdentityIndex, checked_label, checked_positions, offsets_of
from attfc.data.people.identity_names import joined_names, names_of
from attfc.data.people.name_table import NameTable
from attfc.data.sampling.weighted_epochs import WeightedEpochs, checked_weights
from attfc.data.stores.store import Store, StoreView
from attfc.errors import UserError
from attfc.typing import Int64

__all__ = ["CombinedStore"]


class CombinedStore(StoreView):
    """A Store over several stores.

    Args:
        stores: at least one; positions and labels run through them in this order.
        merge_names: identities that have the same name in different stores are one person. False: every store's identities are
            people of their own. Merge only where names mean people: two lists with the labels 0, 1, 2 share numbers, not faces.
        weights: how often each store's images are query in an epoch, on average (see `weighted_epochs`); None: once.
        names: for messages, one a store; None: the stores' own, numbered where they are equal.

    Raises:
        UserError: no store, weights that cannot be used, or (merging) a store with two identities of one name.
    """

    def __init__(
        self,
        stores: Sequence[Store],
        *,
        merge_names: bool = False,
        weights: Sequence[float] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        if not stores:
            raise UserError("no sources: a combined store needs at least one")
        self.stores = tuple(stores)
        self.names = _distinct([store.name for store in stores] if names is None else list(names))
        if len(self.names) != len(self.stores):
            raise UserError(f"{len(self.names)} names for {len(self.stores)} sources: one each is needed")
        self.merge_names = merge_names
        self.counts = [len(store) for store in stores]
        self.weights = [1.0] * len(stores) if weights is None else [float(weight) for weight in weights]
        checked_weights(self.counts, self.weights)
        self._starts = offsets_of(self.counts)
        self._label_starts = offsets_of([len(store.identities) for store in stores])
        # The label of each source's identities; without merging they follow one another.
        apart = np.split(np.arange(self._label_starts[-1]), self._label_starts[1:-1])
        self._label_of = _labels_by_name(self.stores, self.names) if merge_names else apart
        self._identities = 1 + max(int(labels.max(initial=-1)) for labels in self._label_of)

    @property
    def name(self) -> str:
        """The sources' names joined by " + "."""
        return " + ".join(self.names)

    @cached_property
    def identities(self) -> IdentityIndex:
        """The identity index, built on first use: first store's images first within an identity."""
        if not self.merge_names and all(store.identities.consecutive for store in self.stores):
            return IdentityIndex(self._offsets(), source=self.name)
        items = np.empty(len(self), np.int64)
        for start, slots, store in zip(self._starts.tolist(), self._slots_by_source(), self.stores, strict=False):
            items[slots] = store.identities.items + start
        return IdentityIndex(self._offsets(), items, source=self.name)

    def _offsets(self) -> Int64:
        offsets = np.zeros(self._identities + 1, np.int64)
        for labels, store in zip(self._label_of, self.stores, strict=True):
            offsets[1:][labels] += store.identities.counts()  # within a store no label comes twice
        return np.cumsum(offsets, out=offsets)

    def _slots_by_source(self) -> list[Int64]:
        """Where each store's slots lie in the merged index: first store's images first within an identity."""
        free = self._offsets()[:-1].copy()
        found = []
        for labels, store in zip(self._label_of, self.stores, strict=True):
            counts = store.identities.counts()
            first = free[labels] - store.identities.offsets[:-1]
            found.append(np.repeat(first, counts) + np.arange(len(store), dtype=np.int64))
            free[labels] += counts
        return found

    @property
    def has_weights(self) -> bool:
        """Whether an epoch is anything but every image once."""
        return any(weight != 1 for weight in self.weights)

    def own_labels(self, labels: npt.ArrayLike) -> list[Int64]:
        """Return for each source which of its own labels stand for any of `labels`: rising int64 arrays, one per source."""
        asked = np.zeros(self._identities, np.bool_)
        asked[np.asarray(labels, np.int64)] = True
        return [np.flatnonzero(asked[of]) for of in self._label_of]

    def weighted_epochs(self, seed: int) -> WeightedEpochs:
        """Return the sequence of queries in which the sources have their weights; its slots are places in `identities.items`.

        Merging costs 8 bytes per image here: a source's slots are then no stretch of the index.
        """
        slots = np.concatenate(self._slots_by_source()) if self.merge_names else None
        return WeightedEpochs(self.counts, self.weights, seed, slots=slots)

    @property
    def ignored(self) -> dict[str, int]:
        """What the sources left out, each kind with its source's name."""
        return {
            f"{name}: {kind}": count
            for name, store in zip(self.names, self.stores, strict=True)
            for kind, count in getattr(store, "ignored", {}).items()
        }

    @property
    def notes(self) -> list[str]:
        """The sources' notes, each with its source's name."""
        sources = zip(self.names, self.stores, strict=True)
        return [f"{name}: {note}" for name, store in sources for note in getattr(store, "notes", ())]

    def __len__(self) -> int:
        """Return the number of images."""
        return int(self._starts[-1])

    def source_of(self, positions: npt.ArrayLike) -> tuple[Int64, Int64]:
        """Return the number of the source and the position in it: int64, shaped as `positions`.

        Raises:
            IndexError: a position outside 0 ... len - 1.
        """
        asked = checked_positions(positions, len(self))
        source = np.searchsorted(self._starts, asked, side="right") - 1
        return source, asked - self._starts[source]

    def labels(self, positions: npt.ArrayLike) -> Int64:
        """Return the labels of positions: int64."""
        source, places = self.source_of(positions)
        labels = np.empty(source.shape, np.int64)
        for number in np.unique(source).tolist():
            rows = source == number
            labels[rows] = self._label_of[number][self.stores[number].labels(places[rows])]
        return labels

    def where(self, position: int) -> str:
        """Return "source: where in it"."""
        source, place = map(int, self.source_of(position))
        return f"{self.names[source]}: {self.stores[source].where(place)}"

    @cached_property
    def _first_places(self) -> Int64:
        """Where among all stores' identities, one store after the other, each label comes first."""
        return np.unique(np.concatenate(self._label_of), return_index=True)[1].astype(np.int64, copy=False)

    def _named(self, labels: Int64 | int) -> tuple[Int64, Int64]:
        """Which source names each label (with merging: the first that has it), and its label there."""
        places = np.asarray(self._first_places[labels])
        source = np.searchsorted(self._label_starts, places, side="right") - 1
        return source, places - self._label_starts[source]

    def identity_name(self, label: int) -> str:
        """Return the identity's name in its source (with merging: in the first that has it)."""
        source, own = map(int, self._named(checked_label(label, self._identities)))
        return self.stores[source].identity_name(own)

    def identity_names(self, labels: Int64) -> NameTable:
        """Return the names of many identities."""
        source, own = self._named(labels)
        rows = [np.flatnonzero(source == number) for number in range(len(self.stores))]
        return joined_names(rows, [names_of(store, own[row]) for store, row in zip(self.stores, rows, strict=True)])

    def __repr__(self) -> str:
        """Return the sources and the counts."""
        return f"CombinedStore({self.name!r}, {self._identities:,} identities, {len(self):,} images)"


def _distinct(names: list[str]) -> list[str]:
    """Number the second, third ... of equal names."""
    result: list[str] = []
    for name in names:
        candidates = itertools.chain([name], (f"{name} ({number})" for number in itertools.count(2)))
        result.append(next(candidate for candidate in candidates if candidate not in result))
    return result


def _labels_by_name(stores: Sequence[Store], names: Sequence[str]) -> list[Int64]:
    """Labels of each store's identities, in the order in which names are first met."""
    label_of_name: dict[str, int] = {}
    found = []
    for store, source in zip(stores, names, strict=True):
        known = range(len(store.identities))
        labels = np.array(
            [label_of_name.setdefault(store.identity_name(own), len(label_of_name)) for own in known], np.int64
        )
        if len(np.unique(labels)) != len(labels):
            order = np.argsort(labels, kind="stable")
            twice = order[1:][labels[order][1:] == labels[order][:-1]][0]
            raise UserError(
                f"{source}: two identities are called {store.identity_name(int(twice))!r}: they cannot be merged by name with "
                "other sources'; rename one or combine without merging"
            )
        found.append(labels)
    return found
