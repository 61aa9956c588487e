"""Lists of image pairs to verify: read from an LFW `pairs.txt`, or drawn from any store's identity index.

Both give positions in a store, whether the two images show one person, and the fold of each pair. Reading costs one
dictionary over the store's identity names; drawing costs O(identities + pairs). Nothing is decoded here.

Source: the file format of Labeled Faces in the Wild (pairs.txt, pairsDevTest.txt).
"""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attfc.data.index import IdentityIndex
from attfc.data.stores.store import Store
from attfc.errors import UserError, nearest
from attfc.evaluation.embed import Embeddings
from attfc.typing import Bools, Int64, PathLike

__all__ = ["Pairs", "generate_pairs", "read_pairs"]

_GENERATED = "generated"


@dataclass(frozen=True, eq=False)
class Pairs:
    """P pairs of positions in a store.

    Attributes:
        first, second: (P,) int64 positions.
        same: (P,) true where both images show one person.
        fold: (P,) int64 fold of each pair, 0 ... folds - 1.
        source: where the list comes from: a file name, or "generated (seed 0)".
        skipped: pairs of the list that are left out since an image of theirs is missing. missing: how many images these are.
        notes: what a reader of the figures should know, e.g. that the store allowed fewer pairs than asked for.
    """

    first: Int64
    second: Int64
    same: Bools
    fold: Int64
    source: str
    notes: tuple[str, ...] = ()
    skipped: int = 0
    missing: int = 0

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.same)

    @property
    def title(self) -> str:
        """How a sentence names the list: whose it is, or that it was drawn."""
        return f"the {len(self):,} pairs " + ("drawn" if self.source.startswith(_GENERATED) else f"of {self.source}")

    def positions(self) -> Int64:
        """Return every position that occurs, once, rising."""
        return np.unique(np.concatenate([self.first, self.second]))

    def with_rows(self, embeddings: Embeddings) -> "tuple[Pairs, Int64, Int64]":
        """Return the pairs of which neither image is broken, and the rows of their images in `embeddings`, positions rising."""
        first_P, second_P = (np.searchsorted(embeddings.positions, side) for side in (self.first, self.second))
        usable_P = embeddings.valid[first_P] & embeddings.valid[second_P]
        return self.keep(usable_P), first_P[usable_P], second_P[usable_P]

    def keep(self, chosen_P: Bools) -> "Pairs":
        """Return the pairs where `chosen_P` is true; folds keep their numbers."""
        chosen = {name: getattr(self, name)[chosen_P] for name in ("first", "second", "same", "fold")}
        return dataclasses.replace(self, **chosen)


def _stratified_folds(pairs_of_kind: int, folds: int) -> Int64:
    """Contiguous folds within one kind of pairs, so that every fold holds both kinds."""
    return np.arange(pairs_of_kind, dtype=np.int64) * folds // pairs_of_kind


def _two_folds_at_least(source: str, pairs_of_kind: int, folds: int) -> int:
    if folds < 2:
        raise UserError(f"folds={folds}: the threshold of a fold comes from the others, so use at least 2")
    if pairs_of_kind < 2:
        raise UserError(f"{source}: {pairs_of_kind} mated pair is not enough for 2 folds: at least 2 are needed")
    return min(folds, pairs_of_kind)


class _ImagesOfPerson:
    """Finds the i-th image of a person by file name, else by the order of the names."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.label_of = {store.identity_name(label): label for label in range(len(store.identities))}
        self.known: dict[str, tuple[dict[int, int], bool]] = {}
        self.named: set[tuple[str, int]] = set()
        self.missing: dict[tuple[str, int], str] = {}  # and where it is named first

    def numbered(self, name: str) -> tuple[dict[int, int], bool]:
        """Return image number -> position, and whether the numbers come from file names."""
        if name not in self.known:
            positions = self.store.identities.of(self.label_of[name]).tolist()
            stems = {p: Path(self.store.where(p)).stem for p in positions}
            # "Ann_Lee_0007" is image 7 whatever else is missing; counting is only right when no file carries a number.
            form = re.compile(re.escape(name) + r"_0*(\d+)")
            matches = {p: form.fullmatch(stem) for p, stem in stems.items()}
            by_name = {int(match[1]): p for p, match in matches.items() if match}
            by_order = dict(enumerate(sorted(positions, key=lambda p: (stems[p], p)), start=1))
            self.known[name] = (by_name, True) if by_name else (by_order, False)
        return self.known[name]

    def position(self, name: str, number: str, at: str) -> int:
        """Return where an image is, -1 if it is missing."""
        if not number.isdecimal():
            raise UserError(f"{at}: {number!r} is not an image number: write 1 for the first image of {name!r}")
        if name not in self.label_of and ("/" in name or "\\" in name):
            raise UserError(f"{at}: {name!r} is a path: write the identity's name and the number of the image")
        self.named.add((name, int(number)))
        found = self.numbered(name)[0].get(int(number), -1) if name in self.label_of else -1
        if found < 0:
            self.missing.setdefault((name, int(number)), at)
        return found

    def refuse_missing(self, limit: float) -> None:
        """Raise if more of the images that the list names are missing than the limit allows."""
        if len(self.missing) <= limit * len(self.named):
            return
        (name, number), at = next(iter(self.missing.items()))
        counts = f"{len(self.missing):,} of {len(self.named):,} images that the list names are missing, more than the limit of {limit:g}"
        if name not in self.label_of:
            raise UserError(
                f"{at}: nobody in {self.store.name} is named {name!r}{nearest(name, self.label_of)}: "
                f"use the store that the pair list was made for ({counts})"
            )
        images, by_name = self.numbered(name)
        has = f"files numbered {_few(sorted(images))}" if by_name else f"{len(images)} images"
        raise UserError(
            f"{at}: {name!r} has no image {number} in {self.store.name} ({has}): "
            f"add {name}_{number:04d}.jpg or remove the pair ({counts})"
        )


def _few(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:6])) + (" ..." if len(numbers) > 6 else "")


def read_pairs(path: PathLike, store: Store, *, folds: int = 10, broken_limit: float = 0.01) -> Pairs:
    """Read an LFW pair list and find its images in a store.

    The first line is `folds<TAB>n`: n pairs of each kind per fold, fold after fold. Or it is `n` alone: n mated pairs, then n non-mated
    pairs, which are cut into `folds` folds that hold both kinds. Then `name<TAB>i<TAB>j` is a mated pair and
    `name<TAB>i<TAB>other<TAB>j` a non-mated pair. Image i of a person is the file `<name>_000i.*`; if no file of the person carries a
    number, the i-th in order of file names.

    Args:
        path: the file, UTF-8, with or without a byte order mark; lines end with LF or CR LF.
        store: where names and images are looked up.
        folds: folds for a list without folds of its own.
        broken_limit: the largest share of the images named that may be missing; their pairs are left out and counted.

    Raises:
        UserError: the file is not of this form, or too many of its names or images are not in the store; with file and line number.
        OSError: the file cannot be read.
    """
    file = Path(path)
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file}: not UTF-8 text (byte {error.start}): a pair list of LFW's form is text; save it as UTF-8"
        ) from None
    header = lines[0].split() if lines else []
    if len(header) not in (1, 2) or not all(word.isdecimal() and int(word) > 0 for word in header):
        shown = lines[0][:60] if lines else "nothing"
        raise UserError(
            f"{file} line 1: {shown!r} is not a header: write '<folds> <pairs of each kind per fold>' or '<n>'"
        )
    file_folds, each = (int(header[0]), int(header[1])) if len(header) == 2 else (1, int(header[0]))
    body = [(number, line) for number, line in enumerate(lines[1:], start=2) if line.strip()]
    if len(body) != 2 * file_folds * each:
        raise UserError(
            f"{file}: {len(body)} pairs, but line 1 announces {file_folds} x 2 x {each} = {2 * file_folds * each}: "
            "the file is cut short or its header is wrong"
        )
    images = _ImagesOfPerson(store)
    first_P, second_P, same_P = np.array([_look_up(f"{file} line {number}", line, images) for number, line in body]).T
    images.refuse_missing(broken_limit)
    fold_P = np.repeat(np.arange(file_folds, dtype=np.int64), 2 * each)
    read = Pairs(first_P, second_P, same_P == 1, fold_P, file.name)
    pairs, missing = read.keep((first_P >= 0) & (second_P >= 0)), len(images.missing)
    skipped = len(read) - len(pairs)
    notes: list[str] = []
    if skipped:
        line = next(iter(images.missing.values())).rsplit(" ", 1)[1]  # no name: the note stands in files that travel
        notes.append(
            f"{skipped:,} of {len(read):,} pairs of {file.name} were left out: {missing:,} of their images "
            f"{'is' if missing == 1 else 'are'} missing; the first is on line {line}"
        )
    if file_folds == 1:
        genuine = int(pairs.same.sum())
        used = _two_folds_at_least(str(file), min(genuine, len(pairs) - genuine), folds)
        for kind in (pairs.same, ~pairs.same):
            pairs.fold[kind] = _stratified_folds(int(kind.sum()), used)
        notes.append(f"{file.name} has no folds: its pairs were cut into {used} folds of both kinds")
    return dataclasses.replace(pairs, notes=tuple(notes), skipped=skipped, missing=missing)


def _look_up(at: str, line: str, images: _ImagesOfPerson) -> tuple[int, int, bool]:
    """Return the positions of the two images of a line, -1 for a missing one, and whether they show one person."""
    words = [word.strip() for word in line.split("\t")] if "\t" in line else line.split()
    same = len(words) == 3
    if same:
        words.insert(2, words[0])
    elif len(words) != 4:
        raise UserError(
            f"{at}: {len(words)} fields in {line[:80]!r}: write name, i, j (one person) or name, i, name, j (two people)"
        )
    elif words[0] == words[2]:
        raise UserError(f"{at}: a non-mated pair names {words[0]!r} twice: write name, i, j for one person")
    first, second = images.position(words[0], words[1], at), images.position(words[2], words[3], at)
    if first == second >= 0:
        raise UserError(f"{at}: image {words[1]} of {words[0]!r} is paired with itself: use two different images")
    return first, second, same


def generate_pairs(index: IdentityIndex, pairs: int = 6000, seed: int = 0, *, folds: int = 10) -> Pairs:
    """Draw as many mated as non-mated pairs, none twice; the same for the same index, number and seed.

    Mated pairs are spread evenly: every identity with two images gives one before any gives a second. Non-mated pairs
    join two identities drawn evenly, an image of each drawn evenly. Mated and non-mated pairs alternate, and
    every fold holds both.

    Args:
        index: the store's identities.
        pairs: how many in all; fewer come, with a note, when the images do not allow so many.
        seed: any integer >= 0.
        folds: number of folds; no more than mated pairs.

    Raises:
        UserError: pairs < 4; fewer than 2 identities with images; fewer than 2 mated pairs to be had.
    """
    if pairs < 4:
        raise UserError(f"pairs={pairs}: two mated and two non-mated pairs are the least, so use at least 4")
    counts = index.counts()
    with_images = int((counts > 0).sum())
    if with_images < 2:
        raise UserError(f"{with_images} identity has images: non-mated pairs need at least 2 identities")
    if counts.max() < 2:
        raise UserError(
            f"none of {len(counts):,} identities has 2 images: mated pairs need one that has; "
            "evaluate on a store with several images per identity"
        )
    images, squares = int(counts.sum()), int((counts * counts).sum())
    to_have = {"mated": (squares - images) // 2, "non-mated": (images * images - squares) // 2}
    each = min(pairs // 2, *to_have.values())
    folds = _two_folds_at_least(f"an index of {len(counts)} identities", each, folds)
    rng = np.random.default_rng(seed)
    genuine = _draw_genuine(index, counts, each, rng)
    impostor = _draw_impostor(index, counts, each, to_have["non-mated"], rng)
    first, second = np.stack([genuine, impostor], axis=1).reshape(-1, 2).T.copy()  # genuine, impostor, genuine, ...
    notes: tuple[str, ...] = ()
    if each < pairs // 2:
        scarce = min(to_have, key=to_have.__getitem__)
        notes = (f"{2 * each:,} pairs, not {pairs:,}: the people have only {each:,} different {scarce} pairs",)
    fold = np.repeat(_stratified_folds(each, folds), 2)
    return Pairs(first, second, np.tile([True, False], each), fold, f"{_GENERATED} (seed {seed})", notes)


def _draw_genuine(index: IdentityIndex, counts: Int64, each: int, rng: np.random.Generator) -> Int64:
    labels = rng.permutation(np.flatnonzero(counts >= 2))
    to_have = counts[labels] * (counts[labels] - 1) // 2
    # The number of full rounds in which every identity that still can gives one pair; the rest comes from one more.
    low, high = 0, int(to_have.max())
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(to_have, middle).sum() <= each else (low, middle - 1)
    quota = np.minimum(to_have, low)
    more = np.flatnonzero(to_have > low)[: each - int(quota.sum())]
    quota[more] += 1
    drawn: list[Int64] = []
    for label, number, possible in zip(labels[quota > 0], quota[quota > 0], to_have[quota > 0], strict=True):
        items = index.of(int(label))
        upto = np.cumsum(np.arange(len(items)))  # pairs of the first 1, 2 ... images
        code = rng.choice(int(possible), int(number), replace=False)
        later = np.searchsorted(upto, code, side="right")
        drawn.append(np.stack([items[code - upto[later - 1]], items[later]], axis=1))
    return rng.permutation(np.concatenate(drawn), axis=0)


def _draw_impostor(index: IdentityIndex, counts: Int64, each: int, to_have: int, rng: np.random.Generator) -> Int64:
    labels = np.flatnonzero(counts)
    if to_have <= 4 * each:  # so few that drawing would mostly repeat: write them all down and draw from those
        everything = [
            np.stack(np.meshgrid(index.of(int(label)), index.items[index.offsets[label + 1] :]), axis=-1).reshape(-1, 2)
            for label in labels[:-1]
        ]
        return rng.choice(np.concatenate(everything), each, replace=False, axis=0)
    kept = np.zeros((0, 2), dtype=np.int64)
    while len(kept) < each:
        chosen = labels[rng.integers(len(labels), size=(2 * each, 2))]
        chosen = chosen[chosen[:, 0] != chosen[:, 1]]
        drawn = index.items[index.offsets[chosen] + rng.integers(counts[chosen])]
        kept = np.concatenate([kept, drawn])
        _, fresh = np.unique(np.sort(kept, axis=1), axis=0, return_index=True)
        kept = kept[np.sort(fresh)]
    return kept[:each]
