"""RecordIO against a reader and a writer made of the format's facts alone: a few lines of struct, a word at a time.

Facts: a frame is uint32 magic 0xced7230a, uint32 (cflag << 29 | length), payload, zeros up to a multiple of 4. cflag 0 whole, 1 first,
2 middle, 3 last part; between parts the magic, which stood there at a multiple of 4, is left out. Payload: `<IfQQ` flag, label, id,
id2; flag > 0: that many float32 labels; image. `.idx`: key TAB offset LF. InsightFace layout: see `oracle_set`.
"""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attfc.data.convert import convert_store
from attfc.data.stores.rec import record_layouts
from attfc.data.stores.rec.idx_file import read_index
from attfc.data.stores.rec.record_file import RecordFile, read_header
from attfc.data.stores.rec.record_writer import RecordWriter, frames, pack_payload
from attfc.data.stores.rec.records import RecordStore
from attfc.errors import UserError

MAGIC = 0xCED7230A
WORD = struct.pack("<I", MAGIC)


def oracle_write(payload: bytes) -> bytes:
    parts, part = [], b""
    for at in range(0, len(payload), 4):
        word = payload[at : at + 4]
        if word == WORD:
            parts.append(part)
            part = b""
        else:
            part += word
    parts.append(part)
    out = b""
    for number, part in enumerate(parts):
        if len(parts) == 1:
            cflag = 0
        elif number == 0:
            cflag = 1
        elif number == len(parts) - 1:
            cflag = 3
        else:
            cflag = 2
        out += struct.pack("<II", MAGIC, cflag << 29 | len(part)) + part
        while len(out) % 4:
            out += b"\0"
    return out


def oracle_read(data: bytes, at: int) -> tuple[bytes, int]:
    """Return the payload and where the next record begins."""
    payload, parts = b"", 0
    while True:
        magic, word = struct.unpack("<II", data[at : at + 8])
        cflag, length = word >> 29, word & 0x1FFFFFFF
        assert magic == MAGIC
        assert cflag in ((2, 3) if parts else (0, 1))
        if parts:
            payload += WORD
        payload += data[at + 8 : at + 8 + length]
        at += 8 + length
        while at % 4:
            assert data[at] == 0
            at += 1
        parts += 1
        if cflag in (0, 3):
            return payload, at


def oracle_image(payload: bytes) -> tuple[list[float], bytes]:
    flag, label, _, _ = struct.unpack("<IfQQ", payload[:24])
    if flag == 0:
        return [label], payload[24:]
    return list(struct.unpack(f"<{flag}f", payload[24 : 24 + 4 * flag])), payload[24 + 4 * flag :]


def oracle_set(identities: list[list[bytes]], flag: int) -> tuple[bytes, bytes]:
    """The InsightFace layout: record 0 has labels [A, B], images are keys 1 ... A - 1, identities A ... B - 1 hold [first, last)."""
    images = [(label, image) for label, images in enumerate(identities) for image in images]
    after = 1 + len(images)
    payloads = [struct.pack("<IfQQ2f", 2, 0, 0, 0, after, after + len(identities))]
    for key, (label, image) in enumerate(images, 1):
        if flag:
            payloads.append(struct.pack(f"<IfQQ{flag}f", flag, 0, key, 0, label, *range(flag - 1)) + image)
        else:
            payloads.append(struct.pack("<IfQQ", 0, label, key, 0) + image)
    first = 1
    for key, group in enumerate(identities, after):
        payloads.append(struct.pack("<IfQQ2f", 2, 0, key, 0, first, first + len(group)))
        first += len(group)
    rec, idx = b"", b""
    for key, payload in enumerate(payloads):
        idx += f"{key}\t{len(rec)}\n".encode()
        rec += oracle_write(payload)
    return rec, idx


def encoded(level: int, kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16), (level, 2 * level, 3 * level)).save(out, kind)
    return out.getvalue()


PAYLOADS = [
    b"",
    b"a",
    b"abc",
    b"abcd",
    b"abcde",
    WORD,
    WORD + WORD,
    b"abcd" + WORD,
    WORD + b"abcd",
    b"abcd" + WORD + b"efg",
    b"abcd" + WORD + WORD + b"efgh" + WORD + b"i",
    b"ab" + WORD + b"cd",  # not at a multiple of 4: stays
    b"abcd" + WORD[:3],
    WORD * 50,
    b"\x0a" + WORD * 3 + b"\x0a\x23" + WORD,
]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_frames_are_those_of_the_oracle(payload: bytes) -> None:
    assert b"".join(frames(payload)) == oracle_write(payload)


def test_one_frame_by_hand() -> None:
    by_hand = "0a23d7ce 04000020 61626364 0a23d7ce 01000060 65000000"
    assert b"".join(frames(b"abcd" + WORD + b"e")).hex(" ", 4) == by_hand


def test_files_are_read_both_ways(tmp_path: Path) -> None:
    rec, idx = tmp_path / "a.rec", tmp_path / "a.idx"
    with RecordWriter(rec, idx) as writer:
        for key, payload in enumerate(PAYLOADS):
            writer.append(payload, key)
    data = rec.read_bytes()
    at, lines = 0, b""
    for key, payload in enumerate(PAYLOADS):
        lines += b"%d\t%d\n" % (key, at)
        found, at = oracle_read(data, at)
        assert found == payload
    assert at == len(data)
    assert idx.read_bytes() == lines
    file = RecordFile(rec)
    keys, offsets = read_index(idx, file.size)
    assert keys.tolist() == list(range(len(PAYLOADS)))
    assert file.walk().tolist() == offsets.tolist()
    spans = np.diff(offsets, append=file.size).tolist()
    for offset, span, payload in zip(offsets.tolist(), spans, PAYLOADS, strict=True):
        assert file.read(offset) == payload
        assert file.read(offset, span) == payload


@pytest.mark.parametrize("labels", [3.0, [3.0], [3.0, 4.0], [5.0, 4.0, 3.0, 2.0]])
def test_payload_headers(labels: float | list[float]) -> None:
    payload = pack_payload(labels, b"image", 7, 9)
    assert struct.unpack("<QQ", payload[8:24]) == (7, 9)
    expected = [labels] if isinstance(labels, float) else labels
    assert oracle_image(payload) == (expected, b"image")
    flag, *labels_found, image_at = read_header(b"before" + payload + b"after", 6, 6 + len(payload))
    assert (flag, labels_found) == (0 if isinstance(labels, float) else len(labels), [*expected, 0.0][:2])
    assert payload[image_at - 6 :] == b"image"


@pytest.mark.parametrize("flag", [0, 1, 2])
def test_a_set_that_the_oracle_wrote(tmp_path: Path, flag: int) -> None:
    identities = [
        [encoded(1), encoded(2, "PNG"), encoded(3)],
        [encoded(4) + b"abc" + 8 * WORD],  # several parts; JPEG readers stop at the end of the image
        [encoded(5), b"\0" * (-len(encoded(6)) % 4) + WORD],
    ]
    rec, idx = oracle_set(identities, flag)
    (tmp_path / "train.rec").write_bytes(rec)
    (tmp_path / "train.idx").write_bytes(idx)
    store = RecordStore(tmp_path)
    expected = [(image, label) for label, images in enumerate(identities) for image in images]
    assert [store.read(position) for position in range(len(store))] == expected
    assert store.layout == "insightface"
    rows = store.images(np.arange(6), 16)
    assert list(rows.broken) == [5]
    assert rows.pixels[:5, 8, 8, 2].astype(int).tolist() == pytest.approx([3, 6, 9, 12, 15], abs=2)


def test_a_set_that_the_oracle_reads(tmp_path: Path) -> None:
    identities = [[encoded(1), encoded(2, "PNG")], [encoded(3) + WORD * 3 + b"x"], [encoded(4)]]
    rec, idx = oracle_set(identities, 0)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "train.rec").write_bytes(rec)
    (tmp_path / "a" / "train.idx").write_bytes(idx)
    convert_store(RecordStore(tmp_path / "a"), tmp_path / "b", kind="rec")
    data = (tmp_path / "b" / "train.rec").read_bytes()
    places = dict(map(int, line.split("\t")) for line in (tmp_path / "b" / "train.idx").read_text().splitlines())
    (after, end), nothing = oracle_image(oracle_read(data, places[0])[0])
    assert (after, end, nothing) == (5, 8, b"")
    assert sorted(places) == list(range(8))
    found = []
    for key in range(int(after), int(end)):
        (first, last), nothing = oracle_image(oracle_read(data, places[key])[0])
        assert nothing == b""
        found.append([oracle_image(oracle_read(data, places[image])[0])[1] for image in range(int(first), int(last))])
    assert found == identities
    own = [oracle_image(oracle_read(data, places[key])[0])[0] for key in range(1, 5)]
    assert own == [[0.0], [0.0], [1.0], [2.0]]
    assert (data, (tmp_path / "b" / "train.idx").read_bytes()) == (rec, idx)
    assert (tmp_path / "b" / "property").read_text() == "3,16,16\n"


def five_bits(numbers: np.ndarray) -> np.ndarray:
    """Whole numbers rounded to five significant bits, ties to even, as float32 rounds to 24."""
    coarse = np.maximum(2.0 ** (np.frexp(numbers.astype(float))[1] - 5), 1)
    return (np.round(numbers / coarse) * coarse).astype(np.int64)


def rounded_set(counts: list[int], own: dict[int, int] | None = None) -> tuple[bytes, bytes]:
    """As `oracle_set`, where floats hold five bits; `own` replaces the own label of the image with a key."""
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    after, rec, idx = 1 + len(labels), b"", b""
    borders = np.cumsum([1, *counts])
    payloads = [struct.pack("<IfQQ2f", 2, 0, 0, 0, *five_bits(np.array([after, after + len(counts)])))]
    for key, label in enumerate(labels, 1):
        payloads.append(struct.pack("<IfQQ", 0, (own or {}).get(key, label), key, 0) + b"image %d" % key)
    payloads += [
        struct.pack("<IfQQ2f", 2, 0, after + number, 0, *five_bits(borders[number : number + 2]))
        for number in range(len(counts))
    ]
    for key, payload in enumerate(payloads):
        idx += f"{key}\t{len(rec)}\n".encode()
        rec += oracle_write(payload)
    return rec, idx


@pytest.fixture
def few_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_layouts, "_EXACT", 1 << 5)
    monkeypatch.setattr(record_layouts, "_rounded", five_bits)


@pytest.mark.parametrize("seed", range(20))
def test_keys_that_float32_rounds(tmp_path: Path, few_bits: None, seed: int) -> None:
    """More images than a float32 counts, on the scale of five bits: every image is its identity's, to the last."""
    counts = np.random.default_rng(seed).integers(0, 9, 30).tolist()
    for path, content in zip(("train.rec", "train.idx"), rounded_set(counts), strict=True):
        (tmp_path / path).write_bytes(content)
    store = RecordStore(tmp_path, cache=tmp_path / "cache")
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    found = [(store.read(n)[0], int(store.identity_name(store.read(n)[1]))) for n in range(len(store))]
    assert found == [(b"image %d" % key, label) for key, label in enumerate(labels, 1)]
    assert store.ignored == {"unowned_images": 0, "empty_identities": counts.count(0), "other_records": 0}


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({60: 3}, "record 60 at byte .* keys above 32 are rounded .* own label is not the next of 3 ... 9"),
        (
            dict.fromkeys(range(61, 71), 7),
            r"record 108 at byte .*: its range \[72, 80\) is not where images have label 7, \[61, 81\)",
        ),
    ],
)
def test_rounded_ranges_that_the_own_labels_contradict(
    tmp_path: Path, few_bits: None, own: dict[int, int], message: str
) -> None:
    for path, content in zip(("train.rec", "train.idx"), rounded_set([10] * 10, own), strict=True):
        (tmp_path / path).write_bytes(content)
    with pytest.raises(UserError, match=message):
        RecordStore(tmp_path, cache=tmp_path / "cache")
