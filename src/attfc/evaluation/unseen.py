"""Whether the people of an evaluation were trained on: what two sets of faces share, by name and by content.

Names: two identities of the same data (one folder, one file, one synthetic seed) are one person where their names are equal. In other data
the names are compared without case, spaces and underscores, and names that are mere numbers are not compared: RecordIO counts its people from 0.

Content: evaluation images whose encoded bytes are among the training images. All of them where both sets hold at most 200,000 images
together. Else 10,000 of them, drawn with a fixed seed, against the training images of equal byte length. At most 200,000 training images are
read then: the evaluation images of the commonest lengths are left unchecked, and the result says how many were checked. The same photograph in
another encoding is not found. A file that stands under several people of one set is a placeholder, and makes nobody a person seen in training.

Cost: one string per identity; one read per compared image, some 20,000 a second from memory; above 200,000 images also the byte length of each
training image (an `lstat` each in folders and lists). Faces are compared by `run.trained_people`.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import numpy as np

from attfc.data.cleaning.evaluation_people import comparable_name
from attfc.data.content_hash import content_hash
from attfc.data.stores.store import EncodedStore, Store, origins
from attfc.data.stores.synthetic import SyntheticFaces
from attfc.typing import Bools, Int64, Json, Progress, UInt64

__all__ = ["SharedPeople", "compare_with_training", "not_compared", "people_and_places", "rendered"]


_ALL_IMAGES = 200_000
_SOME_IMAGES = 10_000
_CHUNK = 256
_EXAMPLES = 3
_ALIKE_EXAMPLES = 12


@dataclass(frozen=True)
class SharedPeople:
    """What an evaluation set has in common with the training set. Counts only; `examples` is for the screen.

    Attributes:
        identities, images: of the evaluation set.
        shared_identities: evaluation identities that were trained on, by name or by an equal image; None: not compared.
        shared_names: those found by name; None: there were no names to compare.
        shared_images: evaluation images whose bytes are among the training images; None: not compared.
        checked_images: how many evaluation images were compared by their bytes.
        same_data: both sets are the same data, not merely sets with people in common.
        checked: what was compared, or why nothing was.
        unknown: what remains unknown of earlier training (start weights from elsewhere); empty if nothing does.
        shared_labels: the labels of the shared identities.
        examples: a few of their names.
        look_alikes: other evaluation identities that look like a training identity (`run.trained_people`); None: not compared.
        looked_at: evaluation identities and training images that were compared by their faces.
        alike_names: the names of the look-alikes, for the screen.
    """

    identities: int
    images: int
    shared_identities: int | None = None
    shared_names: int | None = None
    shared_images: int | None = None
    checked_images: int = 0
    same_data: bool = False
    checked: str = ""
    unknown: str = ""
    shared_labels: tuple[int, ...] = field(default=(), repr=False)
    examples: tuple[str, ...] = field(default=(), repr=False)
    look_alikes: int | None = None
    looked_at: tuple[int, int] = (0, 0)
    alike_names: tuple[str, ...] = field(default=(), repr=False)

    @property
    def heading(self) -> str:
        """What the evaluation is of, to stand above its metrics."""
        if self.shared_identities is None:
            return "on identities; whether they were trained on is not known"
        if not self.shared_identities:
            return f"on identities not in this training set; {self.unknown}" if self.unknown else "on unseen identities"
        if self.shared_identities == self.identities:
            return "on identities that were trained on"
        return "on identities, some of which were trained on"

    @property
    def warning(self) -> str | None:
        """One sentence, without names, if people of the evaluation were trained on."""
        if not self.shared_identities:
            return None
        if self.same_data and self.shared_identities == self.identities:
            return (
                f"training and evaluation read the same data: all {self.identities:,} evaluation identities were trained on, "
                "so the metrics say nothing about unseen people"
            )
        found = [f"{self.shared_names:,} by name"] if self.shared_names else []
        if self.shared_images:
            found.append(f"{self.shared_images:,} image{'s' if self.shared_images > 1 else ''} equal byte for byte")
        return (
            f"{self.shared_identities:,} of {self.identities:,} evaluation identities were trained on ({', '.join(found)}): "
            "the metrics are not those of unseen people"
        )

    @property
    def screen_note(self) -> str | None:
        """The warning with a few names, or why nothing is known; for the screen, not for files."""
        if self.warning is not None and self.examples:
            return f"{self.warning}; for example {', '.join(self.examples)}"
        if self.warning is None and self.unknown:
            return f"the evaluation is {self.heading}"
        return self.warning or (self.checked if self.shared_identities is None else None)

    @property
    def alike(self) -> str | None:
        """One sentence, without names, if people of the evaluation look like people of the training."""
        return self._alike("") if self.look_alikes else None

    def _alike(self, names: str) -> str:
        people, images = self.looked_at
        more = "more " if self.shared_identities else ""
        return (
            f"{self.look_alikes:,} {more}of {people:,} evaluation people look like training people{names} ({images:,} training images compared by "
            "this model; attfc data clean TRAINING --against EVALUATION --model RUN --sheet PAIRS.png looks closer)"
        )

    @property
    def notes(self) -> list[str]:
        """What the screen says about the people, with names; for the screen, not for files."""
        names = ", ".join(self.alike_names[:_ALIKE_EXAMPLES])
        more = len(self.alike_names) - _ALIKE_EXAMPLES
        alike = [self._alike(f": {names}{f' and {more:,} more' if more > 0 else ''}")] if self.look_alikes else []
        return [*filter(None, [self.screen_note]), *alike]

    def to_dict(self) -> Json:
        """Return counts and sentences as plain JSON types; no identity is named."""
        facts = asdict(self)
        del facts["examples"], facts["alike_names"], facts["shared_labels"]
        if self.look_alikes is None:
            del facts["look_alikes"], facts["looked_at"]
        else:
            facts["alike"] = self.alike
        return {"heading": self.heading, "warning": self.warning, **facts, "unknown": self.unknown or None}


def not_compared(evaluation: Store, reason: str) -> SharedPeople:
    """Return the result where the training data are not known or cannot be opened."""
    return SharedPeople(len(evaluation.identities), len(evaluation), checked=f"not checked: {reason}")


def compare_with_training(
    training: Store, evaluation: Store, progress: Progress | None = None, *, unknown: str = ""
) -> SharedPeople:
    """Find the identities of an evaluation set that are in a training set.

    Args:
        training: what is trained on, as the run reads it: edits applied, people kept aside left out.
        evaluation: what is evaluated on.
        progress: called as (images read, images to read).
        unknown: what is not known of earlier training, in a few words; empty: nothing.

    >>> from attfc.data import SyntheticFaces
    >>> shared = compare_with_training(SyntheticFaces(20, 4), SyntheticFaces(10, 4, first_identity=15))
    >>> shared.shared_identities, shared.heading
    (5, 'on identities, some of which were trained on')
    """
    by_name_I, named, same_places = _by_name(training, evaluation)
    by_image_I, shared_images, checked_images, how = _by_content(training, evaluation, progress)
    shared_I = by_name_I | by_image_I
    synthetic = all(rendered(training, evaluation))
    named |= synthetic
    labels = tuple(np.flatnonzero(shared_I).tolist())
    names = "seeds and numbers of synthetic people" if synthetic else "identity names"
    compared = [names if named else "", how if checked_images else ""]
    left = [
        "" if named else "identity names (mere numbers prove nothing in other data)",
        "" if checked_images or synthetic else how,
    ]
    said = (("compared", list(filter(None, compared))), ("not compared", list(filter(None, left))))
    checked = "; ".join(f"{title}: {', '.join(what)}" for title, what in said if what)
    return SharedPeople(
        identities=len(evaluation.identities),
        images=len(evaluation),
        shared_identities=len(labels) if any(compared) else None,
        shared_names=int(by_name_I.sum()) if named else None,
        shared_images=shared_images if checked_images else None,
        checked_images=checked_images,
        same_data=same_places,
        checked=checked,
        unknown=unknown,
        shared_labels=labels,
        examples=tuple(map(evaluation.identity_name, labels[:_EXAMPLES])),
    )


def rendered(training: Store, evaluation: Store) -> list[bool]:
    """Return of each store below two sets whether its faces are rendered."""
    nowhere = np.zeros(0, np.int64)
    return [isinstance(base, SyntheticFaces) for store in (training, evaluation) for base in origins(store, nowhere)[0]]


def people_and_places(store: Store) -> tuple[set[str], Iterator[tuple[str, str]]]:
    """Return the places of a store's data, and of each identity the place of its first image and its name."""
    index = store.identities
    first_I = np.minimum(index.offsets[:-1], index.images - 1)
    bases, numbers_I, _ = origins(store, index.positions_of_slots(first_I))
    places = [base.place if isinstance(base, EncodedStore) else f"object {id(base)}" for base in bases]
    names = map(store.identity_name, range(len(index)))
    return set(places), zip(map(places.__getitem__, numbers_I.tolist()), names, strict=True)


def _by_name(training: Store, evaluation: Store) -> tuple[Bools, bool, bool]:
    """Return which evaluation identities have a name of the training, whether any names could be compared, and whether all is one place."""
    places, evaluated = people_and_places(evaluation)
    people = list(evaluated)
    exact = {person: label for label, person in enumerate(people)}
    loose: dict[str, list[int]] = {}
    for label, (_, name) in enumerate(people):
        if comparable := comparable_name(name):
            loose.setdefault(comparable, []).append(label)
    found_I = np.zeros(len(people), np.bool_)
    training_places, trained = people_and_places(training)
    worded = False
    for place, name in trained:
        if (place, name) in exact:
            found_I[exact[place, name]] = True
        if comparable := comparable_name(name):
            worded = True
            for other in loose.get(comparable, ()):
                # Within one place "ann lee" and "Ann_Lee" are two identities.
                found_I[other] |= people[other][0] != place
    return found_I, bool(places & training_places) or (worded and bool(loose)), places == training_places


def _by_content(training: Store, evaluation: Store, progress: Progress | None) -> tuple[Bools, int, int, str]:
    """Return which evaluation identities have an image of the training, how many images, how many were compared, and how."""
    none_I = np.zeros(len(evaluation.identities), np.bool_)
    if any(
        rendered(training, evaluation)
    ):  # rendering takes 100 times as long as reading; two seeds never give equal images
        return none_I, 0, 0, "the images of synthetic faces"
    everything = len(training) + len(evaluation) <= _ALL_IMAGES
    chosen = np.arange(len(evaluation), dtype=np.int64)
    if not everything and len(evaluation) > _SOME_IMAGES:
        chosen = np.sort(np.random.default_rng(0).choice(len(evaluation), _SOME_IMAGES, replace=False)).astype(np.int64)
    hashes_N, lengths_N = _read(evaluation, chosen, progress)
    sound = lengths_N > 0
    chosen, hashes_N, lengths_N = chosen[sound], hashes_N[sound], lengths_N[sound]
    found = _candidates(training, lengths_N, None if everything else _ALL_IMAGES)
    if found is None:
        return none_I, 0, 0, "image content (the training images' byte lengths are not known)"
    positions, checked_N = found
    hashes_M, _ = _read(training, positions, progress)
    nobodys = np.append(_placeholders(training, positions, hashes_M), _placeholders(evaluation, chosen, hashes_N))
    # By sorting: NumPy 2.0's other way subtracts close uint64 as int64 and overflows.
    equal_N = checked_N & np.isin(hashes_N, hashes_M, kind="sort") & ~np.isin(hashes_N, nobodys, kind="sort")
    none_I[np.unique(evaluation.labels(chosen[equal_N]))] = True
    count = int(checked_N.sum())
    of = f"all {count:,}" if count == len(evaluation) else f"{count:,} of {len(evaluation):,}"
    others = "all training images" if everything else "the training images of equal byte length"
    return none_I, int(equal_N.sum()), count, f"the bytes of {of} evaluation images with {others}"


def _placeholders(store: Store, positions: Int64, hashes: UInt64) -> UInt64:
    """Return the hashes of files that stand under several people of one set: placeholders and broken files, which show nobody."""
    owners = [hashes, origins(store, positions)[1].astype(np.uint64), store.labels(positions).astype(np.uint64)]
    of_set, people = np.unique(np.unique(np.stack(owners), axis=1)[:2], axis=1, return_counts=True)
    found: UInt64 = of_set[0][people > 1]
    return found


def _read(store: Store, positions: Int64, progress: Progress | None) -> tuple[UInt64, Int64]:
    """Return content hash and byte length of images; length 0 for those that cannot be read."""
    hashes, lengths = np.zeros(len(positions), np.uint64), np.zeros(len(positions), np.int64)
    for start in range(0, len(positions), _CHUNK):
        for row, encoded in enumerate(store.read_many(positions[start : start + _CHUNK].tolist()), start):
            if isinstance(encoded, bytes):
                hashes[row], lengths[row] = content_hash(encoded), len(encoded)
        if progress is not None:
            progress(min(start + _CHUNK, len(positions)), len(positions))
    return hashes, lengths


def _candidates(training: Store, lengths_N: Int64, most: int | None) -> tuple[Int64, Bools] | None:
    """Choose the training images to read: those of a length that occurs, the rarest lengths first, at most so many (None: all).

    Returns:
        Their positions, and which of the lengths are covered; None: lengths are not known, and not all images may be read.
    """
    everything = np.arange(len(training), dtype=np.int64)
    sizes_M, slack = np.zeros_like(everything), 0
    bases, numbers_M, below_M = origins(training, everything)
    for number, base in enumerate(bases):
        own_M = numbers_M == number
        if not isinstance(base, EncodedStore) or (sizes := base.byte_lengths(below_M[own_M])) is None:
            return (everything, np.ones(len(lengths_N), np.bool_)) if most is None else None
        sizes_M[own_M], slack = sizes, max(slack, base.length_slack)
    order = np.argsort(sizes_M, kind="stable")
    rising = sizes_M[order]
    unique_L, place_N = np.unique(lengths_N, return_inverse=True)
    low_L = np.searchsorted(rising, unique_L, side="left")
    high_L = np.searchsorted(rising, unique_L + slack, side="right")
    rarest = np.argsort(high_L - low_L, kind="stable")
    if most is not None:
        rarest = rarest[np.cumsum((high_L - low_L)[rarest]) <= most]
    wanted_M, covered_L = np.zeros(len(rising), np.bool_), np.zeros(len(unique_L), np.bool_)
    for length in rarest.tolist():
        wanted_M[low_L[length] : high_L[length]] = True
    covered_L[rarest] = True
    return np.sort(order[wanted_M]), covered_L[place_N]
