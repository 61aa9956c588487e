"""kill -9 at random moments of conversions: the next run continues (a record set begins anew); the result is that of a whole one, byte for byte."""

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from attfc.data.convert import convert_store
from attfc.data.stores.folder import FolderStore
from attfc.data.stores.packed.packed_check import verify_packed
from attfc.data.stores.packed.packed_store import PackedStore

OPTIONS = {"sync_bytes": 2_000, "shard_bytes": 20_000}
MOST_RUNS = 40


def make_source(root: Path) -> None:
    chance = random.Random(0)
    for person in range(150):
        folder = root / f"person {person:03d}"
        folder.mkdir(parents=True)
        for image in range(chance.randint(1, 8)):
            (folder / f"{image}.jpg").write_bytes(chance.randbytes(chance.randint(0, 600)))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def victim(root: Path, cache: Path, target: Path, kind: str, reports: Connection) -> None:
    class Slow(FolderStore):
        """One image in a while, so that a kill falls anywhere between them too."""

        def read(self, position: int) -> tuple[bytes, int]:
            time.sleep(0.0005)
            return super().read(position)

    reports.send("begun")
    done = convert_store(Slow(root, cache=cache), target, kind=kind, **OPTIONS)
    reports.send(done.continued_at)


@pytest.mark.parametrize("kind", ["packed", "folder", "rec"])
def test_killed_at_any_moment(tmp_path: Path, kind: str) -> None:
    root, cache = tmp_path / "source", tmp_path / "cache"
    make_source(root)
    source = FolderStore(root, cache=cache)
    convert_store(source, tmp_path / "whole", kind=kind, **OPTIONS)
    target = tmp_path / "cut"
    context = multiprocessing.get_context("fork")
    chance = random.Random(1)
    kills = 0
    continued_at = 0
    for run in range(MOST_RUNS):
        reports, sending = context.Pipe(duplex=False)
        child = context.Process(target=victim, args=(root, cache, target, kind, sending))
        child.start()
        sending.close()
        assert reports.recv() == "begun"
        # A busy disk takes longer to its first durable point; the last run is left alone, since a record set begins anew each time.
        child.join(None if run == MOST_RUNS - 1 else chance.uniform(0.02, 0.12) * (1 + run / 10))
        if child.is_alive():
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
        child.join()
        if reports.poll():  # done; perhaps killed while it was leaving
            with contextlib.suppress(EOFError):
                continued_at = reports.recv()
                break
        assert child.exitcode == -signal.SIGKILL
        kills += 1
        assert kind != "rec" or len([*target.glob(".*.part")]) <= 3  # of the last run alone: .rec, .idx, .names
        if kind == "rec" and (target / "train.rec").exists():
            break  # done, and killed before it could say so
        if (
            kind == "folder"
            and target.exists()
            and any(target.iterdir())
            and not (target / ".attfc-conversion").exists()
        ):
            continued_at = kills  # done, and killed before it could say so: a finished folder is like any other
            shutil.rmtree(target / ".attfc-converted", ignore_errors=True)  # or while it tidied up
            break
        assert not (target / "packed.json").exists() or len(PackedStore(target)) == len(source)
    assert kills >= 3
    assert (continued_at > 0) == (kind != "rec")
    assert files(target) == files(tmp_path / "whole")
    if kind == "packed":
        assert verify_packed(target).sound
    elif kind == "folder":
        assert files(target) == files(root)
