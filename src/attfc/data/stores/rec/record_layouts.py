"""Whose each record is: from the records and the `.idx` of a file to its index, for both layouts.

Two layouts are told apart by the record with key 0:

- InsightFace: it holds two labels [A, B] and no image. Images are keys 1 ... A - 1; the records A ... B - 1 hold one identity's
  range of image keys each. Only those few bytes at the end of the file are read, and two images of at most 512 identities.
- im2rec: every record is an image with its label. One pass over all headers, 1.1 us per record from the page cache.

All numbers in the records are float32, exact below 2^24 = 16,777,216 and rounded above. Sets of more images than that (Glint360K
has 17,091,657) therefore have identity ranges that are off by one or more; there the images' own labels, which are small
numbers, draw the borders, and must fit the rounded ranges. The alternative, own labels throughout, would read the headers of all
images, spread over the whole file, where 48 bytes per identity do.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from attfc.data.index import IdentityIndex
from attfc.data.people.name_table import printable
from attfc.data.stores.rec.idx_file import read_index
from attfc.data.stores.rec.record_file import RecordFile, RecordHeads
from attfc.data.stores.rec.record_index import IGNORED, RecordIndex
from attfc.errors import UserError
from attfc.typing import Bools, Float32, Int64, Progress

__all__ = ["LabelSource", "build_record_index"]

LabelSource = Literal["identities", "images"]

EXACT_BITS = 24
"""Whole numbers of so many bits have a float32 of their own. (Tests set fewer.)"""

_LARGEST = 1 << 40
_SAMPLED_IDENTITIES = 512
_LONGEST_SPAN = (1 << 32) - 4
_MAX_PROPERTY_BYTES = 4096
_NONE: Int64 = np.zeros(0, np.int64)


@dataclass(frozen=True)
class _Listing:
    """The records of a file: int64 arrays, in rising order of the keys."""

    file: RecordFile
    keys: Int64
    offsets: Int64
    spans: Int64

    def rows(self, keys: Int64) -> Int64:
        """Return the row of each key; -1 where it is not listed."""
        if int(self.keys[-1]) - int(self.keys[0]) == len(self.keys) - 1:  # no gap, as in nearly every file
            rows = keys - self.keys[0]
            return np.where((rows >= 0) & (rows < len(self.keys)), rows, -1)
        rows = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[rows] == keys, rows, -1)

    def between(self, first: int, end: int) -> Int64:
        """Return the rows of the keys first ... end - 1 that are listed."""
        return np.arange(*np.searchsorted(self.keys, [first, max(end, first)]), dtype=np.int64)

    def lacking(self, first: int, end: int) -> int | None:
        """Return the lowest key of first ... end - 1 that is not listed; None: all are."""
        listed = self.keys[self.between(first, end)]
        if len(listed) == end - first:
            return None
        gaps = np.flatnonzero(listed != first + np.arange(len(listed)))
        return first + (int(gaps[0]) if gaps.size else len(listed))

    def where(self, row: int) -> str:
        """Return "FILE: record KEY at byte OFFSET"."""
        return f"{self.file.path}: record {int(self.keys[row])} at byte {int(self.offsets[row])}"

    def heads(self, rows: Int64, progress: Progress | None = None) -> RecordHeads:
        """Return what the headers of some rows say."""
        return self.file.heads(self.keys[rows], self.offsets[rows], self.spans[rows], progress)


def build_record_index(
    file: RecordFile,
    idx: Path,
    *,
    label_source: LabelSource = "identities",
    progress: Progress | None = None,
) -> RecordIndex:
    """Make the index of a file.

    Args:
        file: the `.rec` file; a file `property` beside it is compared.
        idx: its `.idx`; where it is missing, all frames are walked and records count as their own keys.
        label_source: for the InsightFace layout: "identities": the identity records' ranges; "images": each image's own label.
        progress: called as (done, total), from the beginning again for each stage.

    Raises:
        UserError: the files are damaged or contradict each other; the message names file, key and byte.
    """
    notes: list[str] = []
    if idx.exists():
        keys, offsets = read_index(idx, file.size, progress)
    else:
        offsets = file.walk(progress)
        keys = np.arange(len(offsets), dtype=np.int64)
        notes.append(f"{idx.name} is missing: records are numbered as they lie in {file.path.name}")
    if not len(keys):
        raise UserError(f"{file.path}: holds no record")
    listing = _Listing(file, keys, offsets, _spans(offsets, file.size))
    ends = _record_zero(listing)
    if ends is None:
        found = _by_own_labels(listing, np.arange(len(keys), dtype=np.int64), progress)
    else:
        found = _insightface(listing, *ends, label_source, progress, notes)
        _compare_property(file.path.with_name("property"), ends[1] - ends[0] or len(found.index), notes)
    ignored = {kind: found.ignored.get(kind, 0) for kind in IGNORED}
    return replace(found, ignored=ignored, notes=notes, rec_bytes=file.size, mtime_ns=file.mtime_ns)


def _spans(offsets: Int64, rec_bytes: int) -> Int64:
    """Return the bytes from each record to the next listed one: rows as in `offsets`."""
    if bool((offsets[1:] > offsets[:-1]).all()):
        return np.diff(offsets, append=rec_bytes)
    order = np.argsort(offsets, kind="stable")
    spans = np.empty_like(offsets)
    spans[order] = np.diff(offsets[order], append=rec_bytes)
    return spans


def _whole(labels: Float32, largest: int) -> tuple[Int64, Bools]:
    """Return float32 numbers as int64, 0 where they are not whole numbers of 0 ... largest - 1, and where they are."""
    finite = np.where(np.isfinite(labels), labels, np.float32(-1)).astype(np.float64)
    sound = (finite >= 0) & (finite < largest) & (finite == np.floor(finite))
    return np.where(sound, finite, 0).astype(np.int64), sound


def rounded(numbers: Int64) -> Int64:
    """Return whole numbers as float32 holds them: EXACT_BITS significant bits, ties to even."""
    bits = np.frexp(numbers.astype(np.float64))[1].astype(np.int64)  # exact: the numbers are below 2^53
    shift = np.maximum(bits - EXACT_BITS, 0)
    kept, rest = numbers >> shift, numbers & ((1 << shift) - 1)
    half = (1 << shift) >> 1
    up = (rest > half) | ((rest == half) & (shift > 0) & (kept & 1 == 1))
    exact: Int64 = (kept + up) << shift
    return exact


def _record_zero(listing: _Listing) -> tuple[int, int] | None:
    """Return [A, B) of the InsightFace layout, exact, or None for the other one."""
    if int(listing.keys[0]) != 0:
        return None
    head = listing.heads(np.zeros(1, np.int64))
    if not head.imageless[0]:
        return None
    (first, end), sound = _whole(np.concatenate([head.first, head.second]), _LARGEST)
    where = listing.where(0)
    if not sound.all() or not 1 <= first <= end:
        raise UserError(
            f"{where}: holds [{head.first[0]:g}, {head.second[0]:g}] where the keys of the first identity record and of "
            "what follows the last must stand"
        )
    return _exact_ends(listing, int(first), int(end))


def _exact_ends(listing: _Listing, first: int, end: int) -> tuple[int, int]:
    """Undo the rounding of A and B: A is the first key of a record without an image, B follows the last key."""
    exact, last_key = 1 << EXACT_BITS, int(listing.keys[-1])
    if end >= exact and int(rounded(np.array([last_key + 1]))[0]) == end:
        end = last_key + 1
    if first < exact:
        return first, max(first, end)
    near = np.arange(first - (first >> EXACT_BITS), first + (first >> EXACT_BITS) + 1)
    near = near[rounded(near) == first]
    rows = listing.rows(near)
    near, rows = near[rows >= 0], rows[rows >= 0]
    ranges = near[listing.heads(rows).imageless] if rows.size else near
    first = int(ranges[0]) if ranges.size else int(near[-1]) + 1 if near.size else first
    return first, max(first, end)


def _insightface(
    listing: _Listing, first: int, end: int, label_source: LabelSource, progress: Progress | None, notes: list[str]
) -> RecordIndex:
    identity_rows = listing.between(first, end)
    image_rows = listing.between(1, first)
    others = len(listing.keys) - 1 - len(identity_rows) - len(image_rows)
    if label_source == "images" or first == end:
        if label_source != "images":
            notes.append("there are no identity records: each image's own label is taken")
        if not len(image_rows):
            raise UserError(
                f"{listing.file.path}: record 0 says that images have keys 1 ... {first - 1}: none is listed"
            )
        found = _by_own_labels(listing, image_rows, progress)
        return replace(found, layout="insightface", ignored={"other_records": others})
    lacking = listing.lacking(first, end)
    if lacking is not None:
        raise UserError(
            f"{listing.where(0)}: says that identity records have keys {first} ... {end - 1}, but {lacking} is not listed: "
            'is the .idx of another file? label_source="images" does without them'
        )
    firsts, lasts = _ranges(listing, identity_rows, first, progress)
    if int(lasts.max()) >= 1 << EXACT_BITS:
        firsts, lasts = _redraw(listing, firsts, lasts, first, progress)
    counts = lasts - firsts
    kept = np.flatnonzero(counts)
    if not kept.size:
        raise UserError(f"{listing.file.path}: none of its {len(counts):,} identity records owns an image")
    offsets = np.zeros(len(kept) + 1, np.int64)
    np.cumsum(counts[kept], out=offsets[1:])
    total = int(offsets[-1])
    owned = listing.keys[image_rows]
    _check_owned(listing, owned, identity_rows[kept], firsts[kept], lasts[kept])
    keys = np.repeat(firsts[kept] - offsets[:-1], counts[kept]) + np.arange(total)
    rows = listing.rows(keys)
    return RecordIndex(
        IdentityIndex(offsets),
        listing.offsets[rows],
        np.minimum(listing.spans[rows], _LONGEST_SPAN).astype(np.uint32),
        None,
        firsts[kept],
        kept,
        "insightface",
        _own_labels_agree(listing, kept, rows, offsets, notes),
        {
            "unowned_images": len(image_rows) - total,
            "empty_identities": len(counts) - len(kept),
            "other_records": others,
        },
    )


def _check_owned(listing: _Listing, images: Int64, rows: Int64, firsts: Int64, lasts: Int64) -> None:
    """Raise UserError unless all images of the ranges are listed; before anything of the ranges' declared size is allocated."""
    found = np.searchsorted(images, lasts) - np.searchsorted(images, firsts)
    wrong = np.flatnonzero(found != lasts - firsts)
    if wrong.size:
        owner = int(wrong[0])
        lacking = listing.lacking(int(firsts[owner]), int(lasts[owner]))
        raise UserError(
            f"{listing.where(int(rows[owner]))}: its identity owns image {lacking}, which the .idx does not list: "
            "is it of another file?"
        )


def _ranges(listing: _Listing, rows: Int64, end: int, progress: Progress | None) -> tuple[Int64, Int64]:
    """Return the identities' ranges [first, last) of image keys as they stand in the records, checked."""
    heads = listing.heads(rows, progress)
    wrong = np.flatnonzero(~heads.imageless)
    if wrong.size:
        row = int(wrong[0])
        raise UserError(
            f"{listing.where(int(rows[row]))}: is no identity record: {int(heads.flags[row])} labels and "
            f"{int(heads.image_bytes[row]):,} bytes of image instead of 2 and 0"
        )
    firsts, first_sound = _whole(heads.first, _LARGEST)
    lasts, last_sound = _whole(heads.second, _LARGEST)
    limit = int(rounded(np.array([end]))[0])
    used = firsts != lasts  # an empty range may stand anywhere
    wrong = np.flatnonzero(~(first_sound & last_sound) | (firsts > lasts) | (used & ((firsts < 1) | (lasts > limit))))
    if wrong.size:
        row = int(wrong[0])
        raise UserError(
            f"{listing.where(int(rows[row]))}: its identity owns images [{heads.first[row]:.10g}, {heads.second[row]:.10g}), "
            f"which is not a range within 1 ... {end - 1}"
        )
    owners = np.flatnonzero(used)
    wrong = np.flatnonzero(firsts[owners[1:]] < lasts[owners[:-1]])
    if wrong.size:
        before, row = (int(owner) for owner in owners[wrong[0] : wrong[0] + 2])
        how = "overlaps" if int(lasts[row]) > int(firsts[before]) else "stands after"
        raise UserError(
            f"{listing.where(int(rows[row]))}: its range of images [{int(firsts[row])}, {int(lasts[row])}) {how} that of "
            f"record {int(listing.keys[rows[before]])}, [{int(firsts[before])}, {int(lasts[before])}): "
            'label_source="images" takes each image\'s own label instead'
        )
    return firsts, lasts


def _redraw(listing: _Listing, firsts: Int64, lasts: Int64, end: int, progress: Progress | None) -> tuple[Int64, Int64]:
    """Draw the borders of ranges that float32 has rounded by the images' own labels, and compare them with what it left."""
    begin = int((lasts >= 1 << EXACT_BITS).argmax())
    start = int(firsts[begin])
    if start >= 1 << EXACT_BITS:
        start = int(lasts[:begin].max(initial=1))  # the border before is exact, or there is none
    if (lacking := listing.lacking(start, end)) is not None:
        raise UserError(f"{listing.file.path}: image {lacking} of keys 1 ... {end - 1} is not listed in the .idx")
    rows = listing.between(start, end)
    own, sound = _whole(listing.heads(rows, progress).first, 1 << 24)
    sound &= (own >= begin) & (own < len(firsts))
    sound[1:] &= own[1:] >= own[:-1]
    advice = 'label_source="images" takes each image\'s own label'
    if not sound.all():
        row = int(rows[(~sound).argmax()])
        raise UserError(
            f"{listing.where(row)}: keys above {1 << EXACT_BITS:,} are rounded in the identity records, and this image's own "
            f"label is not the next of {begin} ... {len(firsts) - 1}: {advice}"
        )
    counts = np.bincount(own - begin, minlength=len(firsts) - begin)
    exact_lasts = start + np.cumsum(counts)
    exact_firsts = exact_lasts - counts
    fits = (rounded(exact_lasts) == lasts[begin:]) & (rounded(exact_firsts) == firsts[begin:])
    wrong = np.flatnonzero(~fits & (counts > 0))
    if wrong.size:
        place = int(wrong[0])
        row = int(listing.rows(np.array([end + begin + place]))[0])
        raise UserError(
            f"{listing.where(row)}: its range [{int(firsts[begin + place])}, {int(lasts[begin + place])}) is not where "
            f"images have label {begin + place}, [{int(exact_firsts[place])}, {int(exact_lasts[place])}): {advice}"
        )
    return np.concatenate([firsts[:begin], exact_firsts]), np.concatenate([lasts[:begin], exact_lasts])


def _own_labels_agree(listing: _Listing, kept: Int64, rows: Int64, offsets: Int64, notes: list[str]) -> bool:
    """Compare some identities' ranges with the own labels of their first and last image.

    Returns:
        Whether own labels are the identities' numbers, so that each image can be checked when it is read. False where they
        are numbers of another kind, one per identity, or the same number everywhere.

    Raises:
        UserError: an identity whose images have different labels, or two identities with the same.
    """
    sampled = np.unique(np.linspace(0, len(kept) - 1, _SAMPLED_IDENTITIES, dtype=np.int64))
    first_rows, last_rows = rows[offsets[sampled]], rows[offsets[sampled + 1] - 1]
    own = listing.heads(np.concatenate([first_rows, last_rows])).first
    first, last = own[: len(sampled)], own[len(sampled) :]
    if bool((first == kept[sampled]).all()) and bool((last == kept[sampled]).all()):
        return True
    if len(kept) > 1 and bool((own == own[0]).all()):
        notes.append(f"all images have the own label {own[0]:g}: the identity records alone say whose they are")
        return False
    order = np.argsort(first, kind="stable")
    again = np.flatnonzero(first[order[1:]] == first[order[:-1]])
    split = np.flatnonzero(first != last)
    if split.size:
        place = int(split[0])
        a, b, label_a, label_b = first_rows[place], last_rows[place], first[place], last[place]
        what = f"images of one identity ({int(kept[sampled[place]])})"
    elif again.size:
        one, other = int(order[again[0]]), int(order[again[0] + 1])
        a, b, label_a, label_b = first_rows[one], first_rows[other], first[one], first[other]
        what = "images of two identities"
    elif 2 * int(np.count_nonzero(first == kept[sampled])) >= len(sampled):
        place = int((first != kept[sampled]).argmax())
        raise UserError(
            f"{listing.where(int(first_rows[place]))}: its own label is {first[place]:g}, but the identity records count it to "
            f"identity {int(kept[sampled[place]])}, and most others agree with theirs: damaged, or is the .idx of another file? "
            'label_source="images" takes each image\'s own label instead'
        )
    else:
        notes.append("the images' own labels number the identities in another way than the identity records do")
        return False
    raise UserError(
        f"{listing.where(int(a))}, and record {int(listing.keys[b])} at byte {int(listing.offsets[b])}, {what} by the identity "
        f'records, have the own labels {label_a:g} and {label_b:g}: label_source="images" takes each image\'s own label instead'
    )


def _by_own_labels(listing: _Listing, rows: Int64, progress: Progress | None) -> RecordIndex:
    """Index the images of some rows by the label in each record."""
    order = np.argsort(
        listing.offsets[rows], kind="stable"
    )  # a pass through the file, and images in the order of the file
    rows = rows[order]
    heads = listing.heads(rows, progress)
    ranges = heads.imageless & (heads.first >= 1) & (heads.second > heads.first)
    if ranges.any():
        row = int(ranges.argmax())
        raise UserError(
            f"{listing.where(int(rows[row]))}: holds a range [{heads.first[row]:.10g}, {heads.second[row]:.10g}) as identity records "
            "do, where an image must be: is record 0 damaged, or the .idx of another file?"
        )
    labels, sound = _whole(heads.first, 1 << 24)
    if not sound.all():
        row = int((~sound).argmax())
        raise UserError(
            f"{listing.where(int(rows[row]))}: label {heads.first[row]:.10g} is not a whole number of 0 ... 16,777,215 "
            "(above that, float32 labels of different people are equal)"
        )
    if int(labels.max()) > 8 * len(labels) + 1_000_000:  # one label of 16 million would ask for 128 MiB
        numbers, counts = np.unique(labels, return_counts=True)
    else:
        counts = np.bincount(labels)
        numbers = np.flatnonzero(counts)
        counts = counts[numbers]
    offsets = np.zeros(len(numbers) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    rows = rows[np.argsort(labels, kind="stable")]
    return RecordIndex(
        IdentityIndex(offsets),
        listing.offsets[rows],
        np.minimum(listing.spans[rows], _LONGEST_SPAN).astype(np.uint32),
        listing.keys[rows],
        _NONE,
        numbers,
        "im2rec",
        True,
    )


def _compare_property(path: Path, identities: int, notes: list[str]) -> None:
    """Note where `property` says something else; those of published sets are not always right, and nothing depends on it."""
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_PROPERTY_BYTES)
    except OSError:
        return
    said = text.split(b",")[0].strip()
    if not said.isdigit() or int(said[:18]) != identities:
        notes.append(f"{path.name} says {printable(said[:40])!r} identities, the file holds {identities}")
