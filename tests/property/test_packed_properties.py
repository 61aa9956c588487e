"""Round trips through the packed format whatever the data, and readers against damaged and forged files."""

import json
import os
import resource
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attfc.data.convert import convert_store
from attfc.data.images import BrokenImageError
from attfc.data.stores.folder import FolderStore
from attfc.data.stores.folder_writer import FolderWriter, _distinct, safe_name
from attfc.data.stores.packed.packed_check import verify_packed
from attfc.data.stores.packed.packed_format import IMAGE_NAMES, PER_IDENTITY, PER_IMAGE
from attfc.data.stores.packed.packed_store import PackedStore
from attfc.data.stores.packed.packed_writer import PackedWriter
from attfc.errors import UserError

names = st.one_of(
    st.text(max_size=12).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.binary(max_size=12),
    st.sampled_from([b".", b"..", b"../x", b"a/b", b"A", b"a", b"a~2", b"x.jpg", b"x.JPG", b"x~2.jpg"]),
)
images = st.lists(st.tuples(names, st.binary(max_size=60)), max_size=6)
people = st.lists(st.tuples(names, images), min_size=1, max_size=8).filter(lambda rows: any(row[1] for row in rows))
People = list[tuple[bytes, list[tuple[bytes, bytes]]]]


def write(writer: PackedWriter | FolderWriter, rows: People) -> None:
    with writer:
        for label, (name, group) in enumerate(rows):
            writer.start_identity(label, name)
            for image, encoded in group:
                writer.add(encoded, image)
            writer.end_identity(label + 1)
        writer.finish()


@settings(deadline=None, max_examples=60)
@given(people, st.integers(1, 150), st.booleans(), st.randoms(use_true_random=False))
def test_what_is_packed_is_read(rows: People, shard_bytes: int, keep: bool, chance) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "p"
        write(PackedWriter(folder, source="s", source_digest="0", shard_bytes=shard_bytes, image_names=keep), rows)
        store = PackedStore(folder)
        kept = [(name, group) for name, group in rows if group]
        flat = [(label, *image) for label, (_, group) in enumerate(kept) for image in group]
        assert len(store) == len(flat)
        assert [store.identity_name_bytes(label) for label in range(len(kept))] == [name for name, _ in kept]
        assert [store.read(position) for position in range(len(flat))] == [(image, label) for label, _, image in flat]
        assert [store.image_name(i) for i in range(len(flat))] == [name if keep else b"" for _, name, _ in flat]
        asked = [chance.randrange(len(flat)) for _ in range(20)]
        assert store.read_many(asked) == [flat[position][2] for position in asked]
        assert store.labels(asked).tolist() == [flat[position][0] for position in asked]
        assert verify_packed(store).sound
        ends, starts = store._ends.tolist(), store._starts
        for label, (_, group) in enumerate(kept):
            first = int(store.identities.offsets[label])
            begin, end = ends[first], ends[first + len(group)]
            shards = {np.searchsorted(starts, at, side="right") for at in (begin, max(begin, end - 1))}
            assert len(shards) == 1 or end - begin > shard_bytes


@settings(deadline=None, max_examples=40)  # each writes three data sets and flushes the disk
@given(people)
def test_what_is_written_to_folders_is_found_there(rows: People) -> None:
    """Every image is in a folder of its identity's own, nothing lies outside, and every name is a plain one."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "deep" / "root"
        write(FolderWriter(root, source_digest="0", identity_names=[name for name, _ in rows]), rows)
        found = sorted(sorted(path.read_bytes() for path in folder.iterdir()) for folder in root.iterdir())
        assert found == sorted(sorted(encoded for _, encoded in group) for _, group in rows if group)
        assert [path for path in Path(place).rglob("*") if root not in path.parents] == [root.parent, root]
        store = FolderStore(root, cache=Path(place) / "cache")
        assert len(store) == sum(len(group) for _, group in rows), "an image folder's reader sees all of them"
        convert_store(store, Path(place) / "packed")
        convert_store(PackedStore(Path(place) / "packed"), Path(place) / "again", kind="folder")
        assert tree(Path(place) / "again") == tree(root), "names that are safe stay as they are"


def tree(root: Path) -> dict[bytes, bytes]:
    top = os.fsencode(root)
    found = {}
    for folder, _, files in os.walk(top):
        for name in files:
            with open(os.path.join(folder, name), "rb") as file:
                found[os.path.relpath(os.path.join(folder, name), top)] = file.read()
    return found


@settings(deadline=None)
@given(st.lists(names, max_size=12), st.booleans())
def test_names_become_safe_and_distinct(raw: list[bytes], ignore_case: bool) -> None:
    made = _distinct(raw, ignore_case)
    keys = {name.decode("utf-8", "surrogateescape").casefold() if ignore_case else name for name in made}
    assert len(keys) == len(raw)
    for before, after in zip(raw, made, strict=True):
        assert after
        assert not set(after) & set(b"/\\\0")
        assert not after.startswith(b".")
        assert after.startswith(safe_name(before))
        assert safe_name(after) == after


# Damaged and forged files. An accident (files changed, `packed.json` as it was) may end in an error, or in broken images, or in
# the right image; never in a wrong one. A forger who also adapts the checksums may pass off other images; the reader must not
# crash, hang, or take memory.

TARGETS = ("packed.json", "shard-00000.bin", "shard-00001.bin", *PER_IDENTITY, *PER_IMAGE, *IMAGE_NAMES)
PEOPLE: People = [
    (b"Ann", [(b"%d.jpg" % n, bytes([n]) * (30 + n)) for n in range(4)]),
    (b"Bo", [(b"", b""), (b"x.jpg", b"another")]),
    (b"Cy", [(b"%d.png" % n, bytes([65 + n]) * 90) for n in range(5)]),
    (b"Di", [(b"last.jpg", b"the last")]),
]
EXPECTED = [(encoded, label) for label, (_, group) in enumerate(PEOPLE) for _, encoded in group]
INTERESTING = [
    0,
    1,
    -1,
    2,
    127,
    128,
    255,
    256,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**62,
    2**63 - 1,
    -(2**63),
    12,
    13,
    400,
]

Mutation = Callable[[np.random.Generator, bytes, dict[str, bytes]], bytes]


def flip(chance: np.random.Generator, content: bytes, _: dict[str, bytes]) -> bytes:
    changed = bytearray(content)
    for _ in range(int(chance.integers(1, 4)) if content else 0):
        changed[int(chance.integers(len(changed)))] ^= 1 << int(chance.integers(8))
    return bytes(changed)


def cut(chance: np.random.Generator, content: bytes, _: dict[str, bytes]) -> bytes:
    return content[: int(chance.integers(len(content) + 1))]


def lengthen(chance: np.random.Generator, content: bytes, _: dict[str, bytes]) -> bytes:
    return content + chance.bytes(int(chance.integers(1, 200)))


def number(chance: np.random.Generator, content: bytes, _: dict[str, bytes]) -> bytes:
    """An interesting whole number in the place of an element."""
    value = (int(chance.choice(INTERESTING)) & (2**64 - 1)).to_bytes(8, "little")
    at = 8 * int(chance.integers(len(content) // 8 + 1))
    return (content[:at] + value + content[at + 8 :])[: len(content)]


def digits(chance: np.random.Generator, content: bytes, _: dict[str, bytes]) -> bytes:
    """An interesting whole number in the place of a digit: for `packed.json`."""
    places = [at for at, byte in enumerate(content) if byte in b"0123456789"]
    if not places:
        return b""
    at = int(chance.choice(places))
    return content[:at] + str(int(chance.choice(INTERESTING))).encode() + content[at + 1 :]


def swap(chance: np.random.Generator, content: bytes, files: dict[str, bytes]) -> bytes:
    """Another file's content."""
    return files[str(chance.choice(sorted(files)))]


def shuffle(chance: np.random.Generator, content: bytes, _: dict[str, bytes]) -> bytes:
    """Two stretches of one length change places: sizes and sums of the whole stay."""
    if len(content) < 4:
        return content
    length = int(chance.integers(1, len(content) // 2))
    first, second = sorted(int(at) for at in chance.integers(0, len(content) - length + 1, 2))
    if first + length > second:
        return content
    middle = content[first + length : second]
    moved = content[second : second + length] + middle + content[first : first + length]
    return content[:first] + moved + content[second + length :]


MUTATIONS: list[Mutation] = [flip, cut, lengthen, number, digits, swap, shuffle]


def resign(folder: Path) -> None:
    """Adapt `packed.json` to the files, as a forger would."""
    try:
        about = json.loads((folder / "packed.json").read_bytes())
        about["crc32"] = {name: zlib.crc32((folder / name).read_bytes()) for name in about["crc32"]}
        about["shards"] = [(folder / f"shard-{n:05d}.bin").stat().st_size for n in range(len(about["shards"]))]
        (folder / "packed.json").write_text(json.dumps(about))
    except (ValueError, KeyError, TypeError, OSError):
        pass


def check_message(error: Exception, expected: str) -> None:
    assert expected in str(error)
    assert "\n" not in str(error)


def read_everything(folder: Path, *, accident: bool) -> str:
    """Open and read; return how it ended. Anything but a UserError, a BrokenImageError or an OSError escapes and fails."""
    try:
        store = PackedStore(folder)
    except UserError as error:
        check_message(error, str(folder))
        return "refused"
    count = len(store)
    assert not accident or count == len(EXPECTED)
    positions = range(min(count, 50))
    ended = "read"
    for position, found in zip(positions, store.read_many(positions), strict=True):
        try:
            encoded, label = store.read(position)
        except (BrokenImageError, OSError) as error:
            check_message(error, str(found))
            ended = "broken"
            continue
        assert encoded == found
        assert 0 <= label < len(store.identities)
        assert int(store.labels(position)) == label
        if accident:
            assert (encoded, label) == EXPECTED[position], f"a silent wrong image at {position}"
            assert store.identity_name_bytes(label) == PEOPLE[label][0]
        for name in (store.where, lambda p: store.identity_name(int(store.labels(p)))):
            try:
                assert len(name(position)) < 20_000
            except UserError:
                assert not accident
    check = verify_packed(store)
    assert check.sound == (ended == "read" and not check.files)
    return ended


def fuzz(place: Path, seed: int, rounds: int) -> dict[str, int]:
    """Change one or two files at a time, in turn by accident and by a forger."""
    chance = np.random.default_rng(seed)
    whole = place / "whole"
    write(PackedWriter(whole, source="s", source_digest="0", shard_bytes=200), PEOPLE)
    files = {name: (whole / name).read_bytes() for name in TARGETS}
    assert {path.name for path in whole.iterdir()} >= set(TARGETS)
    folder = place / "changed"
    shutil.copytree(whole, folder)
    ends = dict.fromkeys(("refused", "broken", "read", "forged"), 0)
    for turn in range(rounds):
        touched = {str(chance.choice(TARGETS)) for _ in range(int(chance.integers(1, 3)))}
        for name in touched:
            mutation = MUTATIONS[int(chance.integers(len(MUTATIONS)))]
            (folder / name).write_bytes(mutation(chance, files[name], files))
        forged = turn % 2 == 1
        if forged:
            resign(folder)
        ended = read_everything(folder, accident=not forged)
        ends[ended] += 1
        ends["forged"] += forged and ended != "refused"
        for name in {*touched, "packed.json"}:
            (folder / name).write_bytes(files[name])
    assert read_everything(folder, accident=True) == "read"
    return ends


def test_damaged_and_forged_files(tmp_path: Path) -> None:
    ends = fuzz(tmp_path, seed=0, rounds=800)
    assert min(ends.values()) > 40, ends  # every kind of end is met


# Slow: 60,000 damaged folders take three minutes; in slices of half a minute.
@pytest.mark.slow
@pytest.mark.parametrize("part", range(1, 7))
def test_sixty_thousand_damaged_and_forged_folders(tmp_path: Path, part: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ends = fuzz(tmp_path, seed=part, rounds=10_000)
    assert min(ends.values()) > 500, ends
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    assert grown < 256 * 1024 * 1024, "no declared size was believed"
