"""List files and edit lists against damaged text: refused by file and line, or understood as a parser of a few lines does."""

import os
import random
import re
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attfc.data.images import BrokenImageError
from attfc.data.index import IdentityIndex
from attfc.data.people.name_table import printable
from attfc.data.stores.edits import LEFT_OUT, EditedStore, read_edits
from attfc.data.stores.list_file import ListStore
from attfc.data.stores.store import EncodedStore
from attfc.errors import UserError

BLANKS = b" \t\r\v\f"
BOM = b"\xef\xbb\xbf"

LISTS = [
    b"a.jpg 0\nb.jpg 1\na.jpg 1\na.jpg 2\nb.jpg 0\n",
    b"# made by hand\r\na.jpg\t17\r\n\r\nAnn Lee/0001.jpg\t3\r\nb.jpg\t17\r\n",
    b"a.jpg Ann\nb.jpg Bo\nb.jpg \xc3\x85sa\nc.png Ann\n\xff.png 7\n",
    BOM + b"a.jpg 999999999999999999\nb.jpg 5\nc.jpg 0005",
    b"folder/x y z.jpg\tAnn Lee\nfolder/x.jpg\tBo\na.jpg\t07\n",
    b"1\ta.jpg\t17\n1\tfolder/x y.jpg\t3\r\n0\tb.jpg\t3\t1\t2\t30\t40\n",
    b"0\t17.000000\ta.jpg\n1\t3.000000\tfolder/x y.jpg\n2\t03\tb.jpg\n",
]
EDITS = [
    b"# attfc edits 1\timages=9\tidentities=3\tchanges=3\tstore=faces\n2\t-\tsame bytes\n4\t0\n8\t3\tnew\n",
    b"# attfc edits 1\timages=9\tidentities=3\n7\t2\n0\t-\n3\t-\tc\n1\t90\n",
    b"# attfc edits 1\timages=9\tidentities=3\r\n# a comment\r\n5\t999999999999999999\tx\ty\r\n6\t-\r\n",
    BOM + b"# attfc edits 1\timages=9\tidentities=3\tchanges=0\n",
]
FRAGMENTS = [
    *(
        b"\n",
        b"\r\n",
        b"\r",
        b"\t",
        b" ",
        b"\v",
        b"\0",
        b"#",
        b"-",
        b"+1",
        b"=",
        BOM,
        b"\xff",
        b"\xe2\x80\xa8",
        b"_1",
        b"1_0",
    ),
    *(
        b"nan",
        b"-1",
        b"1.5",
        b"1e3",
        b"inf",
        b"0x1",
        b"\xd9\xa3",
        b"\xc2\xb2",
        b"007",
        b" 3",
        b"a.jpg",
        b"\t-",
        b"\t\t",
    ),
    *(b"9" * digits for digits in (1, 17, 18, 19, 20, 40)),
    *(b"%d" % number for number in (0, 2, 3, 8, 9, 10, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64)),
    *(b"images=9", b"\timages=10", b"\tchanges=2", b"identities=999999999999999999", b"# attfc edits 2", b"../../etc"),
    *(b"x" * 16_384, b"long/" * 4000, b"/dev/zero", b"/", b"."),
]

Step = tuple[int, int, int, int]
"""What to do, and three numbers that say where and with what, each taken modulo whatever there is."""


def change(text: bytes, step: Step, other: bytes) -> bytes:
    kind, a, b, c = step
    kind %= 10
    at = a % (len(text) + 1)
    lines = text.splitlines(keepends=True) or [b""]
    row, second = a % len(lines), b % len(lines)
    if kind == 0:
        return text[:at]
    if kind == 1:
        return text[:at] + bytes([text[at] ^ 1 << b % 8]) + text[at + 1 :] if at < len(text) else text
    if kind in (2, 3):
        return text[:at] + FRAGMENTS[b % len(FRAGMENTS)] + text[at + c % 4 :]
    if kind == 4:
        words = [word.span() for word in re.finditer(rb"[^\s=]+", text)] or [(0, 0)]
        begin, end = words[a % len(words)]
        return text[:begin] + FRAGMENTS[b % len(FRAGMENTS)] + text[end:]
    if kind == 5:
        del lines[row]
    elif kind == 6:
        lines.insert(second, lines[row])
    elif kind == 7:
        lines[row], lines[second] = lines[second], lines[row]
    elif kind == 8:
        lines[row:] = other.splitlines(keepends=True)[b % 3 :]
    else:
        return text[:at] + text[b % (len(text) + 1) :][: c % 40] + text[at:]
    return b"".join(lines)


def oracle_lines(text: bytes) -> list[bytes]:
    lines = (line.strip(BLANKS) for line in text.removeprefix(BOM).split(b"\n"))
    return [line for line in lines if line and not line.startswith(b"#")]


def oracle_list(text: bytes) -> tuple[list[bytes], list[str]]:
    """Paths, and the name of each image's identity."""
    paths, labels = [], []
    lines = oracle_lines(text)
    first = [field.strip(BLANKS) for field in lines[0].split(b"\t")]
    numbered = len(first) > 2 and first[0].isdigit()
    of_im2rec = numbered and bool(re.search(rb"\.(jpe?g|png|webp|bmp|jfif|tiff?|gif)$", first[-1].lower()))
    of_insightface = numbered and not of_im2rec and first[2].isdigit() and not first[1].isdigit()
    for line in lines:
        fields = [field.strip(BLANKS) for field in line.split(b"\t")]
        if of_im2rec:
            _, label, path = fields
            paths.append(path)
            labels.append(re.sub(rb"(?<=.)\.0*$", b"", label))
            continue
        if of_insightface:
            paths.append(fields[1])
            labels.append(fields[2])
            continue
        at = line.rfind(b"\t") if b"\t" in line else max(line.rfind(bytes([blank])) for blank in BLANKS)
        paths.append(line[:at].rstrip(BLANKS))
        labels.append(line[at + 1 :].lstrip(BLANKS))
    if all(re.fullmatch(rb"[0-9]{1,18}", label) for label in labels):
        return paths, [str(int(label)) for label in labels]
    return paths, [printable(label) for label in labels]


def oracle_file(folder: bytes, listed: bytes) -> bytes:
    """Where an image lies: backslashes are slashes, unless there is a file of that name."""
    path = os.path.join(folder, listed)
    return path if os.path.lexists(path) else os.path.join(folder, listed.replace(b"\\", b"/"))


def check_refusal(error: UserError, path: Path | None) -> str:
    message = str(error)
    assert message.startswith(str(path) if path else ("the edit list is about", "nine: the edit list leaves none")), (
        message
    )
    assert "\n" not in message
    assert len(message) < 700
    return "refused"


def read_list(folder: Path, text: bytes) -> str:
    path = folder / "list.txt"
    path.write_bytes(text)
    try:
        store = ListStore(path, cache=folder / "a.jpg")
    except UserError as error:
        return check_refusal(error, path)
    paths, names = oracle_list(text)
    count = len(store)
    assert count == len(paths) > 0
    labels = store.labels(np.arange(count)).tolist()
    assert [store.identity_name(label) for label in labels] == names
    assert sorted(set(labels)) == list(range(len(store.identities)))
    assert store.identities.labels().tolist() == labels
    files = [oracle_file(os.fsencode(folder), listed) for listed in paths]
    assert [store.image_path(n) for n in range(count)] == files
    ended = "read"
    for position in range(count):
        assert store.where(position) == printable(paths[position])
        try:
            encoded, label = store.read(position)
        except (BrokenImageError, OSError):
            ended = "broken"
            continue
        assert label == labels[position]
        with open(files[position], "rb") as file:
            assert file.read() == encoded
    return ended


class NineImages(EncodedStore):
    """Positions 0 ... 8 of identities 0, 0, 0, 1, 1, 1, 2, 2, 2."""

    name = "nine"

    def __init__(self) -> None:
        self.identities = IdentityIndex.from_labels(np.repeat(np.arange(3), 3))

    def __len__(self) -> int:
        return 9

    def read(self, position: int) -> tuple[bytes, int]:
        return b"%d" % position, position // 3

    def labels(self, positions: npt.ArrayLike) -> npt.NDArray[np.int64]:
        return np.asarray(positions, np.int64) // 3

    def where(self, position: int) -> str:
        return f"image {position}"

    def identity_name(self, label: int) -> str:
        return f"person {label}"


NINE = NineImages()


def read_edit_list(folder: Path, text: bytes) -> str:
    path = folder / "edits.txt"
    path.write_bytes(text)
    try:
        edits = read_edits(path)
    except UserError as error:
        return check_refusal(error, path)
    rows = [line.split(b"\t", 2) for line in oracle_lines(text)]
    assert all(re.fullmatch(rb"[0-9]{1,18}", row[0]) and re.fullmatch(rb"-|[0-9]{1,18}", row[1]) for row in rows)
    new = {int(row[0]): LEFT_OUT if row[1] == b"-" else int(row[1]) for row in rows}
    texts = {int(row[0]): row[2].decode("utf-8", "backslashreplace") if len(row) > 2 else "" for row in rows}
    assert len(new) == len(rows)
    assert dict(zip(edits.positions.tolist(), edits.labels.tolist(), strict=True)) == new
    assert edits.positions.tolist() == sorted(new)
    assert (edits.comments or [""] * len(new)) == [texts[position] for position in sorted(new)]
    head = text.removeprefix(BOM).split(b"\n")[0]
    for key, value in (("images", edits.images), ("identities", edits.identities)):
        assert int(re.findall(rb"\t%s=([0-9]+)(?=[\t\r]|$)" % key.encode(), head)[-1]) == value
    assert read_edits(path, comments=False).labels.tolist() == edits.labels.tolist()
    try:
        view = EditedStore(NINE, edits)
    except UserError as error:
        return check_refusal(error, None)
    after = [new.get(position, position // 3) for position in range(9)]
    left = [position for position in range(9) if after[position] != LEFT_OUT]
    known = sorted({after[position] for position in left})
    assert len(view) == len(left)
    assert [view.read(n) for n in range(len(left))] == [(b"%d" % p, known.index(after[p])) for p in left]
    assert view.identities.labels().tolist() == [known.index(after[position]) for position in left]
    names = [f"person {label}" if label < 3 else f"new-{label}" for label in known]
    assert [view.identity_name(n) for n in range(len(known))] == names
    return "read"


READERS: list[tuple[list[bytes], Callable[[Path, bytes], str]]] = [(LISTS, read_list), (EDITS, read_edit_list)]


@pytest.fixture(scope="module")
def fast() -> Iterator[Path]:
    """A folder in memory where there is one: files of some hundred bytes are written by the ten thousand."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        for name in ("a.jpg", "b.jpg"):  # a file is no folder for a cached index: it stays in memory
            (Path(folder) / name).write_bytes(name.encode() * 9)
        yield Path(folder)


def test_whole_lists_are_read(fast: Path) -> None:
    assert [read_list(fast, text) for text in LISTS] == ["read", *["broken"] * 6]
    assert [read_edit_list(fast, text) for text in EDITS] == ["read"] * 4


number = st.integers(0, 2**16)
steps = st.lists(st.tuples(number, number, number, number), min_size=1, max_size=5)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from([0, 1]), number, number, steps)
def test_damaged_lists(fast: Path, kind: int, which: int, other: int, changes: list[Step]) -> None:
    texts, read = READERS[kind]
    text = texts[which % len(texts)]
    for step in changes:
        text = change(text, step, texts[other % len(texts)])
    read(fast, text)


def fuzz(folder: Path, kind: int, seed: int, rounds: int) -> dict[str, int]:
    chance = random.Random(seed)
    texts, read = READERS[kind]
    ends: dict[str, int] = {}
    for _ in range(rounds):
        text = chance.choice(texts)
        for _ in range(chance.choice((1, 1, 2, 3))):
            step = (chance.randrange(2**16), chance.randrange(2**16), chance.randrange(2**16), chance.randrange(2**16))
            text = change(text, step, chance.choice(texts))
        try:
            ended = read(folder, text)
        except Exception:
            print(f"seed {seed}, {text!r}")
            raise
        ends[ended] = ends.get(ended, 0) + 1
    return ends


def test_many_damaged_lists(fast: Path) -> None:
    ends = fuzz(fast, kind=0, seed=0, rounds=600)
    assert min(ends["refused"], ends["broken"], ends["read"]) > 20, ends
    ends = fuzz(fast, kind=1, seed=0, rounds=600)
    assert min(ends["refused"], ends["read"]) > 60, ends


# Slow: 20,000 damaged lists of each kind take about a minute.
@pytest.mark.slow
@pytest.mark.parametrize("part", range(1, 5))
@pytest.mark.parametrize("kind", [0, 1])
def test_forty_thousand_damaged_lists(fast: Path, kind: int, part: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ends = fuzz(fast, kind, seed=part, rounds=5_000)
    assert min(ends["refused"], ends["read"]) > 200, ends
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    assert grown < 64 * 1024 * 1024, "no declared size was believed"
