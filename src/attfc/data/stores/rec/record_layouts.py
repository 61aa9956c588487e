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

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from attfc.data.index import IdentityIndex, offsets_of, spread
from attfc.data.people.name_table import printable
from attfc.data.stores.rec.idx_file import doubled, read_index, rising
from attfc.data.stores.rec.record_file import RecordFile, RecordHeads
from attfc.data.stores.rec.record_index import IGNORED, RecordIndex
from attfc.errors import UserError
from attfc.typing import Bools, Float32, Int64, Progress

__all__ = ["LabelSource", "build_record_index"]

LabelSource = Literal["identities", "images"]

_BY_IMAGES = "data.label_source=images takes each image's own label instead (attfc data: --label-source images)"
_EXACT = 1 << 24
"""Whole numbers below it have a float32 of their own. (Tests set a lower one.)"""

_LARGEST = 1 << 40
_SAMPLED_IDENTITIES = 512
_LONGEST_SPAN = (1 << 32) - 4
_MAX_PROPERTY_BYTES = 4096


@dataclass(frozen=True)
class _Listing:
    """The records of a file: int64 arrays, in rising order of the keys; what is to be said of them, and to whom."""

    file: RecordFile
    keys: Int64
    offsets: Int64
    spans: Int64
    notes: list[str]
    progress: Progress | None

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

    def refuse(self, rows: Int64, wrong: Bools, why: Callable[[int], str]) -> None:
        """Raise a UserError that names the first of some rows that is `wrong`: bool (n,); `why` is asked with its place in them."""
        if wrong.any():
            place = int(wrong.argmax())
            raise UserError(f"{self.where(int(rows[place]))}: {why(place)}")

    def heads(self, rows: Int64, progress: Progress | None = None) -> RecordHeads:
        """Return what the headers of some rows say."""
        return self.file.heads(self.keys[rows], self.offsets[rows], self.spans[rows], progress)

    def index(
        self, layout: str, numbers: Int64, offsets: Int64, rows: Int64, ignored: dict[str, int], **more: Any
    ) -> RecordIndex:
        """Return the index of the images in some rows, identity by identity; `numbers` and `offsets` are the identities'."""
        return RecordIndex(
            IdentityIndex(offsets),
            self.offsets[rows],
            np.minimum(self.spans[rows], _LONGEST_SPAN).astype(np.uint32),
            numbers=numbers,
            layout=layout,
            ignored=dict.fromkeys(IGNORED, 0) | ignored,
            notes=self.notes,
            rec_bytes=self.file.size,
            mtime_ns=self.file.mtime_ns,
            **more,
        )


def build_record_index(
    file: RecordFile,
    idx: Path,
    *,
    label_source: LabelSource,
    progress: Progress | None,
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
    listing = _Listing(file, keys, offsets, _spans(offsets, file.size), notes, progress)
    ends = _record_zero(listing)
    if ends is None:
        return _by_own_labels(listing, np.arange(len(keys), dtype=np.int64))
    found = _insightface(listing, *ends, label_source)
    _compare_property(file.path.with_name("property"), ends[1] - ends[0] or len(found.index), notes)
    return found


def _spans(offsets: Int64, rec_bytes: int) -> Int64:
    """Return the bytes from each record to the next listed one: rows as in `offsets`."""
    if rising(offsets):
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


def _rounded(numbers: Int64) -> Int64:
    """Return whole numbers as float32 holds them."""
    return numbers.astype(np.float32).astype(np.int64)


def _record_zero(listing: _Listing) -> tuple[int, int] | None:
    """Return [A, B) of the InsightFace layout, exact, or None for the other one."""
    if listing.keys[0] != 0:
        return None
    head = listing.heads(np.zeros(1, np.int64))
    if not head.imageless[0]:
        return None
    (first, end), sound = _whole(np.concatenate([head.first, head.second]), _LARGEST)
    if not sound.all() or not 1 <= first <= end:
        raise UserError(
            f"{listing.where(0)}: holds [{head.first[0]:g}, {head.second[0]:g}] where the keys of the first identity record and of "
            "what follows the last must stand"
        )
    return _exact_ends(listing, int(first), int(end))


def _exact_ends(listing: _Listing, first: int, end: int) -> tuple[int, int]:
    """Undo the rounding of A and B: A is the first key of a record without an image, B follows the last key."""
    last_key = int(listing.keys[-1])
    if end >= _EXACT and int(_rounded(np.array([last_key + 1]))[0]) == end:
        end = last_key + 1
    if first >= _EXACT:
        step = first // _EXACT
        near = listing.between(first - step, first + step + 1)
        near = near[_rounded(listing.keys[near]) == first]
        ranges = near[listing.heads(near).imageless]
        if near.size:
            first = int(listing.keys[ranges[0]] if ranges.size else listing.keys[near[-1]] + 1)
    return first, max(first, end)


def _insightface(listing: _Listing, first: int, end: int, label_source: LabelSource) -> RecordIndex:
    identity_rows = listing.between(first, end)
    image_rows = listing.between(1, first)
    others = len(listing.keys) - 1 - len(identity_rows) - len(image_rows)
    if label_source == "images" or first == end:
        if label_source != "images":
            listing.notes.append("there are no identity records: each image's own label is taken")
        if not len(image_rows):
            raise UserError(
                f"{listing.file.path}: record 0 says that images have keys 1 ... {first - 1}: none is listed"
            )
        return _by_own_labels(listing, image_rows, "insightface", others)
    lacking = listing.lacking(first, end)
    if lacking is not None:
        raise UserError(
            f"{listing.where(0)}: says that identity records have keys {first} ... {end - 1}, but {lacking} is not listed: "
            f"is the .idx of another file? {_BY_IMAGES}"
        )
    firsts, lasts = _ranges(listing, identity_rows, first)
    if lasts.max() >= _EXACT:
        firsts, lasts = _redraw(listing, firsts, lasts, first)
    kept = np.flatnonzero(firsts != lasts)
    if not kept.size:
        raise UserError(f"{listing.file.path}: none of its {len(firsts):,} identity records owns an image")
    firsts, lasts = firsts[kept], lasts[kept]
    counts, begins = lasts - firsts, np.searchsorted(listing.keys, firsts)
    listing.refuse(
        identity_rows[kept],
        np.searchsorted(listing.keys, lasts) - begins != counts,
        lambda owner: (
            f"its identity owns image {listing.lacking(int(firsts[owner]), int(lasts[owner]))}, which the .idx does not "
            "list: is it of another file?"
        ),
    )
    offsets = offsets_of(counts)
    rows = np.repeat(begins - offsets[:-1], counts) + np.arange(offsets[-1])
    return listing.index(
        "insightface",
        kept,
        offsets,
        rows,
        {
            "unowned_images": len(image_rows) - len(rows),
            "empty_identities": len(identity_rows) - len(kept),
            "other_records": others,
        },
        keys=firsts,
        compare_labels=_own_labels_agree(listing, kept, rows, offsets),
    )


def _ranges(listing: _Listing, rows: Int64, end: int) -> tuple[Int64, Int64]:
    """Return the identities' ranges [first, last) of image keys as they stand in the records, checked."""
    heads = listing.heads(rows, listing.progress)
    listing.refuse(
        rows,
        ~heads.imageless,
        lambda row: (
            f"is not an identity record: {int(heads.flags[row])} labels and {int(heads.image_bytes[row]):,} bytes of image "
            "instead of 2 and 0"
        ),
    )
    firsts, first_sound = _whole(heads.first, _LARGEST)
    lasts, last_sound = _whole(heads.second, _LARGEST)
    used = firsts != lasts  # an empty range may stand anywhere
    outside = used & ((firsts < 1) | (lasts > _rounded(np.array([end]))))
    listing.refuse(
        rows,
        ~(first_sound & last_sound) | (firsts > lasts) | outside,
        lambda row: (
            f"its identity owns images [{heads.first[row]:.10g}, {heads.second[row]:.10g}), which is not a range within "
            f"1 ... {end - 1}"
        ),
    )
    owners = np.flatnonzero(used)

    def contradiction(place: int) -> str:
        before, row = owners[place : place + 2]
        how = "overlaps" if lasts[row] > firsts[before] else "stands after"
        return (
            f"its range of images [{firsts[row]}, {lasts[row]}) {how} that of record {listing.keys[rows[before]]}, "
            f"[{firsts[before]}, {lasts[before]}): {_BY_IMAGES}"
        )

    listing.refuse(rows[owners[1:]], firsts[owners[1:]] < lasts[owners[:-1]], contradiction)
    return firsts, lasts


def _redraw(listing: _Listing, firsts: Int64, lasts: Int64, end: int) -> tuple[Int64, Int64]:
    """Draw the borders of ranges that float32 has rounded by the images' own labels, and compare them with what it left."""
    begin = int((lasts >= _EXACT).argmax())
    start = int(firsts[begin])
    if start >= _EXACT:
        start = int(lasts[:begin].max(initial=1))  # the border before is exact, or there is none
    if (lacking := listing.lacking(start, end)) is not None:
        raise UserError(f"{listing.file.path}: image {lacking} of keys 1 ... {end - 1} is not listed in the .idx")
    rows = listing.between(start, end)
    own, sound = _whole(listing.heads(rows, listing.progress).first, 1 << 24)
    sound &= (own >= begin) & (own < len(firsts))
    sound[1:] &= own[1:] >= own[:-1]
    listing.refuse(
        rows,
        ~sound,
        lambda _: (
            f"keys above {_EXACT:,} are rounded in the identity records, and this image's own label is not the next of "
            f"{begin} ... {len(firsts) - 1}: {_BY_IMAGES}"
        ),
    )
    counts = np.bincount(own - begin, minlength=len(firsts) - begin)
    borders = start + offsets_of(counts)
    exact_firsts, exact_lasts = borders[:-1], borders[1:]
    fits = (_rounded(exact_lasts) == lasts[begin:]) & (_rounded(exact_firsts) == firsts[begin:])
    listing.refuse(
        listing.between(end + begin, end + len(firsts)),
        ~fits & (counts > 0),
        lambda place: (
            f"its range [{firsts[begin + place]}, {lasts[begin + place]}) is not where images have label {begin + place}, "
            f"[{exact_firsts[place]}, {exact_lasts[place]}): {_BY_IMAGES}"
        ),
    )
    return np.concatenate([firsts[:begin], exact_firsts]), np.concatenate([lasts[:begin], exact_lasts])


def _own_labels_agree(listing: _Listing, kept: Int64, rows: Int64, offsets: Int64) -> bool:
    """Compare some identities' ranges with the own labels of their first and last image.

    Returns:
        Whether own labels are the identities' numbers, so that each image can be checked when it is read. False where they
        are numbers of another kind, one per identity, or the same number everywhere.

    Raises:
        UserError: an identity whose images have different labels, or two identities with the same.
    """
    sampled = spread(len(kept), _SAMPLED_IDENTITIES)
    numbers, ends = kept[sampled], np.concatenate([rows[offsets[sampled]], rows[offsets[sampled + 1] - 1]])
    own = listing.heads(ends).first
    first, last = np.split(own, 2)
    if (first == numbers).all() and (last == numbers).all():
        return True
    if len(kept) > 1 and (own == own[0]).all():
        listing.notes.append(f"all images have the own label {own[0]:g}: the identity records alone say whose they are")
        return False
    split, again, agree = np.flatnonzero(first != last), doubled(first), first == numbers
    if split.size:
        pair, whose = split[0] + np.array([0, len(agree)]), f"images of one identity ({numbers[split[0]]})"
    elif again is not None:
        pair, whose = again, "images of two identities"
    elif 2 * agree.sum() < len(agree):
        listing.notes.append("the images' own labels number the identities in another way than the identity records do")
        return False
    else:  # there are some that do not agree
        listing.refuse(
            ends,
            ~agree,
            lambda place: (
                f"its own label is {first[place]:g}, but the identity records count it to identity {numbers[place]}, and most "
                f"others agree with theirs: damaged, or is the .idx of another file? {_BY_IMAGES}"
            ),
        )
    row, other = ends[pair]
    raise UserError(
        f"{listing.where(row)}, and record {listing.keys[other]} at byte {listing.offsets[other]}, {whose} by the identity "
        f"records, have the own labels {own[pair[0]]:g} and {own[pair[1]]:g}: {_BY_IMAGES}"
    )


def _by_own_labels(listing: _Listing, rows: Int64, layout: str = "im2rec", others: int = 0) -> RecordIndex:
    """Index the images of some rows by the label in each record."""
    # A pass through the file, and images in the order of the file.
    rows = rows[np.argsort(listing.offsets[rows], kind="stable")]
    heads = listing.heads(rows, listing.progress)
    listing.refuse(
        rows,
        heads.imageless & (heads.first >= 1) & (heads.second > heads.first),
        lambda row: (
            f"holds a range [{heads.first[row]:.10g}, {heads.second[row]:.10g}) as identity records do, where an image must "
            "be: is record 0 damaged, or the .idx of another file?"
        ),
    )
    labels, sound = _whole(heads.first, 1 << 24)
    listing.refuse(
        rows,
        ~sound,
        lambda row: (
            f"label {heads.first[row]:.10g} is not a whole number of 0 ... 16,777,215 (above that, float32 labels of "
            "different people are equal)"
        ),
    )
    numbers, counts = np.unique(labels, return_counts=True)
    rows = rows[np.argsort(labels, kind="stable")]
    return listing.index(layout, numbers, offsets_of(counts), rows, {"other_records": others}, keys=listing.keys[rows])


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
