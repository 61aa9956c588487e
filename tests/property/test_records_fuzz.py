"""RecordIO against damaged files: an error that says where, a broken image, or the image that the file holds under that label.

Nothing else may happen: no other exception, no hang, no allocation of a declared size, no image of another identity than its
own label says. What RecordIO cannot show, and no reader can notice: there are no checksums, so a changed byte inside an image's
bytes is another image (or one that the decoder refuses); a changed label in an im2rec record is another label; two records that
change places are told apart by nothing but their own labels, so within an identity they are exchanged unseen, as they are where
all own labels are equal, or are numbers of another kind than the identity records' (the store says so in `notes`).
"""

import os
import random
import re
import resource
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attfc.data.images import BrokenImageError
from attfc.data.stores.rec.records import RecordStore
from attfc.errors import UserError

MAGIC = 0xCED7230A
WORD = struct.pack("<I", MAGIC)


def frames(payload: bytes) -> bytes:
    """Payloads here have a length of 4 n where they hold the magic."""
    parts = [payload]
    at = 0
    while (at := parts[-1].find(WORD, at)) >= 0:
        if at % 4 == 0:
            parts[-1:] = [parts[-1][:at], parts[-1][at + 4 :]]
            at = 0
        else:
            at += 1
    cflags = [0] if len(parts) == 1 else [1, *[2] * (len(parts) - 2), 3]
    return b"".join(
        struct.pack("<II", MAGIC, cflag << 29 | len(part)) + part + bytes(-len(part) % 4)
        for cflag, part in zip(cflags, parts, strict=True)
    )


def record_set(payloads: list[bytes], keys: list[int] | None = None) -> tuple[bytes, bytes]:
    rec, idx = b"", b""
    for key, payload in zip(keys or range(len(payloads)), payloads, strict=True):
        idx += b"%d\t%d\n" % (key, len(rec))
        rec += frames(payload)
    return rec, idx


def image(label: int, number: int) -> bytes:
    return b"%d:%d;" % (label, number) * (1 + number % 5)


def insightface(counts: list[int], own: Callable[[int], float], flag: int) -> tuple[bytes, bytes]:
    after = 1 + sum(counts)
    payloads = [struct.pack("<IfQQ2f", 2, 0, 0, 0, after, after + len(counts))]
    ranges = []
    for label, count in enumerate(counts):
        ranges.append((len(payloads), len(payloads) + count))
        for _ in range(count):
            key = len(payloads)
            labels = struct.pack("<f", own(label)) + struct.pack(f"<{max(flag - 1, 0)}f", *range(max(flag - 1, 0)))
            header = struct.pack("<IfQQ", flag, 0 if flag else own(label), key, 0) + (labels if flag else b"")
            payloads.append(header + image(label, key))
    payloads += [struct.pack("<IfQQ2f", 2, 0, after + n, 0, *span) for n, span in enumerate(ranges)]
    return record_set(payloads)


def im2rec(labels: list[int], keys: list[int] | None = None) -> tuple[bytes, bytes]:
    payloads = [struct.pack("<IfQQ", 0, label, n, 0) + image(label, n) for n, label in enumerate(labels)]
    return record_set(payloads, keys)


PARTS = struct.pack("<IfQQ", 0, 1, 4, 0) + b"abcd" + WORD + b"efgh" + WORD + WORD + b"ijkl"
SETS = [
    insightface([3, 1, 2, 2], float, 0),
    insightface([2, 2], float, 2),
    insightface([1, 1, 1, 1, 1], float, 0),
    insightface([2, 0, 3], lambda label: 7.0, 0),
    insightface([2, 1, 2], lambda label: 100.0 - label, 1),
    im2rec([2, 0, 1, 1, 2, 0, 0]),
    im2rec([5, 3, 5, 3, 4], [9, 1, 4, 2, 7]),
    record_set([struct.pack("<IfQQ", 0, 0, 0, 0) + b"x", PARTS, struct.pack("<IfQQ", 0, 1, 2, 0) + image(1, 2)]),
]
WORDS = [
    *(struct.pack("<I", word) for word in (0, 1, 2, 3, 4, 24, 28, 32, 255, MAGIC, 2**31 - 1, 2**32 - 1)),
    *(struct.pack("<I", cflag << 29 | length) for cflag in range(8) for length in (0, 4, 24, 32, 2**28, 2**29 - 1)),
    *(struct.pack("<f", label) for label in (1, 2, 3, 4, 5, 6, 9, 10, 11, 0.5, -1, -0.0, 1e10, 2**24, 2**24 - 1)),
    *(
        struct.pack("<f", label)
        for label in (2**25, 2**39, 2**40, 1e38, 1e-40, float("inf"), float("-inf"), float("nan"))
    ),
]
NUMBERS = [
    0,
    1,
    2,
    3,
    4,
    5,
    8,
    32,
    36,
    40,
    64,
    100,
    2**24,
    2**31,
    2**32,
    10**12,
    10**17,
    10**18 - 1,
    10**18,
    10**30,
    -1,
    -4,
]

Step = tuple[int, int, int, int]
"""What to do, and three numbers that say where and with what, each taken modulo whatever there is."""


def change_rec(rec: bytes, step: Step, other: bytes) -> bytes:
    kind, a, b, c = step
    words = max(len(rec) // 4, 1)
    at = 4 * (a % words)
    size = 4 * (1 + b % 12)
    kind %= 10
    if kind == 0:
        return rec[: a % (len(rec) + 1)]
    if kind == 1 and rec:
        place = a % len(rec)
        return rec[:place] + bytes([rec[place] ^ 1 << b % 8]) + rec[place + 1 :]
    if kind in (2, 3):
        return rec[:at] + WORDS[b % len(WORDS)] + rec[at + 4 :]
    if kind == 4:
        return rec[:at] + rec[at + size :]
    if kind == 5:
        source = 4 * (c % words)
        return rec[:at] + rec[source : source + size] + rec[at:]
    if kind == 6:
        source = 4 * (c % words)
        stretch = rec[source : source + size]
        return (rec[:at] + stretch + rec[at + len(stretch) :])[: len(rec)]
    if kind == 7:
        begins = [match.start() for match in re.finditer(re.escape(WORD), rec)] or [0]
        first, second = begins[a % len(begins)], begins[b % len(begins)]
        return rec[:first] + rec[second:]  # whole records gone, or there twice
    if kind == 8:
        return rec[:at] + other[4 * (b % (len(other) // 4)) :]
    return rec + b"\0" * (a % 9) + frames(PARTS)[: b % 80]


def change_idx(idx: bytes, step: Step, other: bytes) -> bytes:
    kind, a, b, c = step
    lines = idx.splitlines(keepends=True) or [b""]
    row, second = a % len(lines), b % len(lines)
    kind %= 12
    if kind == 0:
        return idx[: a % (len(idx) + 1)]
    if kind == 1 and idx:
        place = a % len(idx)
        return idx[:place] + bytes([idx[place] ^ 1 << b % 8]) + idx[place + 1 :]
    if kind in (2, 3):
        fields = lines[row].split()
        if fields:
            fields[c % len(fields)] = b"%d" % NUMBERS[b % len(NUMBERS)]
        lines[row] = b"\t".join(fields) + b"\n"
    elif kind == 4:
        del lines[row]
    elif kind == 5:
        lines.insert(second, lines[row])
    elif kind == 6:
        lines[row], lines[second] = lines[second], lines[row]
    elif kind in (7, 8):  # two keys change places, so each names the other's record
        one, two = lines[row].split(), lines[second].split()
        if len(one) == len(two) == 2 and row != second:
            lines[row], lines[second] = b"\t".join([one[0], two[1]]) + b"\n", b"\t".join([two[0], one[1]]) + b"\n"
    elif kind == 9:
        return idx.replace(b"\n", (b"\r\n", b"\r", b"\n\n", b" \n", b"\n# x\n")[a % 5])
    elif kind == 10:
        lines[row:] = other.splitlines(keepends=True)[b % 4 :]
    else:
        lines.insert(row, (b"\0", b"\xef\xbb\xbf", b"-1\t0\n", b"x\ty\n", b"1 2 3\n", b"\t\n", b"9" * 20_000)[b % 7])
    return b"".join(lines)


def oracle_record(data: bytes, at: int) -> tuple[int, list[float], bytes]:
    """Where the record at a byte ends, its labels and its image, read a word at a time."""
    payload, parts = b"", 0
    while True:
        magic, word = struct.unpack_from("<II", data, at)
        cflag, length = word >> 29, word & (2**29 - 1)
        assert magic == MAGIC
        assert cflag in ((2, 3) if parts else (0, 1))
        assert at + 8 + length <= len(data)
        payload += (WORD if parts else b"") + data[at + 8 : at + 8 + length]
        at += 8 + length + -length % 4
        parts += 1
        if cflag in (0, 3):
            break
    flag, label = struct.unpack_from("<If", payload)
    if flag == 0:
        return at, [label], payload[24:]
    return at, list(struct.unpack_from(f"<{flag}f", payload, 24)), payload[24 + 4 * flag :]


def read_everything(folder: Path, rec: bytes, idx: bytes | None, label_source: str) -> str:
    """Open and read; return how it ended. Anything but a UserError, a BrokenImageError or an OSError escapes and fails."""
    path, listing = folder / "train.rec", folder / "train.idx"
    path.write_bytes(rec)
    if idx is None:
        listing.unlink(missing_ok=True)
    else:
        listing.write_bytes(idx)
    try:
        store = RecordStore(path, label_source=label_source, cache=folder / "a file")  # type: ignore[arg-type]
    except UserError as error:
        message = str(error)
        assert message.startswith((str(path), str(listing))), message
        assert "\n" not in message
        assert len(message) < 700
        return "refused"
    assert store.cache is None
    places = None
    if idx is not None:
        fields = [line.split() for line in idx.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
        places = {int(line[0]): int(line[1]) for line in fields if line and not line[0].startswith(b"#")}
    compared = not any(note.startswith(("all images have", "the images' own labels")) for note in store.notes)
    ended = "read"
    count = len(store)
    assert 0 < count <= len(rec) // 8
    for position, found in zip(range(count), store.read_many(range(count)), strict=True):
        label = int(store.labels(position))
        number = int(store.identity_name(label))
        name, key, at = re.fullmatch(r"(\S+) record (\d+) at byte (\d+)", store.where(position)).groups()  # type: ignore[union-attr]
        assert name == "train.rec"
        assert places is None or places[int(key)] == int(at)
        if isinstance(found, Exception):
            with pytest.raises((BrokenImageError, OSError), match=re.escape(str(found))):
                store.read(position)
            assert "\n" not in str(found)
            ended = "broken"
            continue
        assert store.read(position) == (found, label)
        end, own, image = oracle_record(rec, int(at))
        assert end >= len(rec) or rec[end : end + 4] == WORD or end in (places or {}).values(), "a piece of a record"
        assert found == image != b""
        if compared:
            assert own[0] == number, f"an image of {own[0]} as one of {number}"
            continue
        assert store.layout == "insightface"
        after = int(oracle_record(rec, places[0] if places else 0)[1][0])
        if places:
            _, (first, last), _ = oracle_record(rec, places[after + number])
            assert first <= int(key) < last
        ended = "unlabelled" if ended == "read" else ended
    return ended


@pytest.fixture(scope="module")
def fast() -> Iterator[Path]:
    """A folder in memory where there is one: files of some hundred bytes are written by the ten thousand."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        (Path(folder) / "a file").write_bytes(b"")  # no folder for a cached index: it stays in memory
        yield Path(folder)


number = st.integers(0, 2**16)
steps = st.lists(st.tuples(st.booleans(), st.tuples(number, number, number, number)), min_size=1, max_size=4)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from(range(len(SETS))), st.sampled_from(range(len(SETS))), steps, st.booleans(), st.booleans())
def test_damaged_sets(fast: Path, which: int, other: int, changes: list[tuple[bool, Step]], listed, by_image) -> None:
    rec, idx = SETS[which]
    for in_idx, step in changes:
        if in_idx:
            idx = change_idx(idx, step, SETS[other][1])
        else:
            rec = change_rec(rec, step, SETS[other][0])
    read_everything(fast, rec, idx if listed else None, "images" if by_image else "identities")


def fuzz(folder: Path, seed: int, rounds: int) -> dict[str, int]:
    chance = random.Random(seed)
    ends = dict.fromkeys(("refused", "broken", "read", "unlabelled"), 0)
    for _ in range(rounds):
        rec, idx = chance.choice(SETS)
        other_rec, other_idx = chance.choice(SETS)
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            step = (chance.randrange(2**16), chance.randrange(2**16), chance.randrange(2**16), chance.randrange(2**16))
            if chance.random() < 0.4:
                idx = change_idx(idx, step, other_idx)
            else:
                rec = change_rec(rec, step, other_rec)
        listed = None if chance.random() < 0.1 else idx
        source = "images" if chance.random() < 0.2 else "identities"
        try:
            ends[read_everything(folder, rec, listed, source)] += 1
        except Exception:
            print(f"seed {seed}, {source}, rec = {rec!r}, idx = {listed!r}")
            raise
    return ends


@pytest.mark.parametrize("which", range(len(SETS)))
def test_whole_sets_are_read(fast: Path, which: int) -> None:
    rec, idx = SETS[which]
    assert read_everything(fast, rec, idx, "identities") == ("unlabelled" if which in (3, 4) else "read")
    if which != 6:  # its keys are not the records' order
        assert read_everything(fast, rec, None, "identities") == ("unlabelled" if which in (3, 4) else "read")


def test_many_damaged_sets(fast: Path) -> None:
    ends = fuzz(fast, seed=0, rounds=1000)
    assert min(ends.values()) > 10, ends  # every kind of end is met


def fuzz_index(folder: Path, seed: int, rounds: int) -> dict[str, int]:
    """Damage the cached index of whole files, which may have come with them: it is rebuilt, or every read is compared all the same."""
    chance = random.Random(seed)
    ends = dict.fromkeys(("as before", "broken"), 0)
    for which in (0, 5, 6):
        root = folder / f"set-{which}"
        root.mkdir(exist_ok=True)
        rec, idx = SETS[which]
        (root / "train.rec").write_bytes(rec)
        (root / "train.idx").write_bytes(idx)
        whole = RecordStore(root)
        expected = whole.read_many(range(len(whole)))
        cache = whole.cache
        assert cache is not None
        files = {path: path.read_bytes() for path in sorted(cache.iterdir())}
        for _ in range(rounds // 3):
            path = chance.choice([*files])
            content = files[path]
            if path.suffix == ".json" and chance.random() < 0.7:
                begin, end = chance.choice([word.span() for word in re.finditer(rb"[\w.]+", content)])
                value = chance.choice(
                    (b"null", b"Infinity", b"-1", b"1e999", b"NaN", b"[]", b"{}", b"true", b"0", b"9" * 5000)
                )
                content = content[:begin] + value + content[end:]
            else:
                step = (chance.choice((0, 1, 1, 2, 4, 6)), *(chance.randrange(2**16) for _ in range(3)))
                content = change_rec(content, step, rec)  # type: ignore[arg-type]
            path.write_bytes(content)
            try:
                store = RecordStore(root)
                found = store.read_many(range(len(store)))
                for position, image in enumerate(found):
                    number = store.identity_name(int(store.labels(position)))
                    if (
                        isinstance(image, bytes) and path.suffix == ".npy"
                    ):  # about.json says whether labels are compared
                        assert image.startswith(number.encode() + b":"), "an image of another identity"
                ends["as before" if found == expected else "broken"] += 1
            except Exception:
                print(f"seed {seed}, set {which}, {path.name} = {content!r}")
                raise
            if set(cache.iterdir()) != set(files) or path.read_bytes() != content:  # rebuilt
                assert found == expected
            for path, content in files.items():
                path.write_bytes(content)
    return ends


def test_damaged_indexes(fast: Path) -> None:
    ends = fuzz_index(fast, seed=0, rounds=150)
    assert min(ends.values()) > 1, ends


# Slow: 80,000 damaged sets and 4,800 damaged indexes take three minutes of one core; in slices.
@pytest.mark.slow
@pytest.mark.parametrize("part", range(1, 17))
def test_eighty_thousand_damaged_sets(fast: Path, part: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ends = fuzz(fast, seed=part, rounds=5_000)
    assert min(ends.values()) > 50, ends
    ends = fuzz_index(fast, seed=part, rounds=300)
    assert min(ends.values()) > 2, ends
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    assert grown < 64 * 1024 * 1024, "no declared size was believed"
