"""Files that are replaced whole, checked and locked."""

import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from attfc.errors import UserError
from attfc.files import ChecksumFile, crc32_of, lock, read_json, replacing, write_json_whole


def test_the_old_content_stands_until_the_new_is_on_the_disk(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "faces.json"
    path.write_bytes(b"old")
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(path.read_bytes()) or fsync(descriptor))
    with replacing(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert (path.read_bytes(), synced) == (b"new", [b"old"])
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write(b"half" * (1 // 0))
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_two_files_take_their_places_in_the_order_of_leaving(tmp_path: Path, monkeypatch) -> None:
    order = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda draft, path: order.append(Path(path).name) or replace(draft, path))
    with replacing(tmp_path / "train.rec") as records, replacing(tmp_path / "train.idx") as index:
        records.write(b"1")
        index.write(b"2")
    assert order == ["train.idx", "train.rec"]  # who sees the .rec finds its .idx


def test_checksums_are_taken_on_the_way(tmp_path: Path) -> None:
    path = tmp_path / "file"
    pieces = [b"", b"abc", memoryview(bytes(range(256)) * 9000)]
    with path.open("wb") as file:
        checked = ChecksumFile(file)
        for piece in pieces:
            checked.write(piece)
    data = path.read_bytes()
    assert (checked.bytes, checked.crc32) == (len(data), zlib.crc32(data))
    assert crc32_of(path) == zlib.crc32(data)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (None, "is missing"),
        (b"[" * 60, "is damaged: Expecting value"),
        (b"[" * 100_000, "is larger than 64 bytes: nobody writes that"),
        (b"\xff\xff", "is damaged"),
    ],
)
def test_json_that_is_none_is_refused_in_one_line(tmp_path: Path, data: bytes | None, text: str) -> None:
    path = tmp_path / "file.json"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UserError, match=f"file.json {text}"):
        read_json(path, 64, "nobody writes that")


def test_json_comes_back_and_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    write_json_whole(tmp_path / "file.json", {"name": "Jürgen \udcff", "count": 3})
    assert read_json(tmp_path / "file.json", 1000, "")["count"] == 3
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe is not a file"):
        read_json(tmp_path / "pipe", 1000, "")


def test_a_lock_is_for_one_process_and_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    code = "import sys; from attfc.files import lock; file = open(sys.argv[1], 'a'); print(lock(file), flush=True)"
    with path.open("a") as file:
        assert lock(file)
        assert lock(file.fileno())  # the same open file
        other = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
        assert other.stdout == "False\n"
    other = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert other.stdout == "True\n"
