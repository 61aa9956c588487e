"""A gallery under kill -9 at any moment, with several processes at once, and on a full disk: nothing lost, nothing half there, nothing left over."""

import multiprocessing
import os
import random
import resource
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from attfc.errors import UserError
from attfc.gallery.database import Facts
from attfc.gallery.templates import Template, TemplateStore

NUMBERS = 16
FACTS = Facts(
    model="m", network="r6_tiny", digest="0" * 64, embedding_size=NUMBERS, image_size=32, colours={}, flip=True,
    created="2026", changed="2026",
)  # fmt: skip
FORK = multiprocessing.get_context("fork")


def vector(number: int) -> np.ndarray:
    row = np.random.default_rng(number).standard_normal(NUMBERS).astype(np.float32)
    return row / np.linalg.norm(row)


def name(number: int) -> str:
    return f"<person {number:06d}>"


def template(number: int) -> Template:
    return Template(name(number), vector(number), {number.to_bytes(16, "big"): f"/faces/{name(number)}.jpg"})


def state(store: TemplateStore) -> set[int]:
    """Return whose templates there are, after looking whether each is whole and nothing else is in the files."""
    rows = store._connection.execute("SELECT slot, name FROM template ORDER BY slot").fetchall()
    found = {int(said[8:14]) for _, said in rows}
    assert len(found) == len(rows)
    slots = np.array([slot for slot, _ in rows], dtype=np.int64)
    expected = np.array([vector(int(said[8:14])) for _, said in rows], dtype=np.float32).reshape(-1, NUMBERS)
    assert np.array_equal(store.vectors.exact(slots), expected)
    assert store._connection.execute("SELECT count(*) FROM image").fetchone() == (len(rows),)
    used = store._used()
    free = np.setdiff1d(np.arange(used), slots)
    assert store.counts()["free_slots"] == len(free)
    assert not any(rows[free].any() for rows in store.vectors.rows(used))
    content = b"".join(path.read_bytes() for path in store.folder.iterdir())
    named = {int(part[:6]) for part in content.split(b"<person ")[1:] if part[6:7] == b">"}
    assert named == found
    return found


def change(store: TemplateStore, enrolled: set[int], chance: random.Random, fresh: int) -> tuple[set[int], set[int]]:
    """Choose what to add and whom to remove; one of them is nothing."""
    if len(enrolled) < 5 or chance.random() < 0.6:
        return set(range(fresh, fresh + chance.choice((1, 3, 40)))), set()
    return set(), set(chance.sample(sorted(enrolled), chance.randint(1, len(enrolled) // 2)))


def victim(folder: Path, enrolled: set[int], seed: int, fresh: int, reports: Connection) -> None:
    chance = random.Random(seed)
    reports.send(None)
    with TemplateStore(folder) as store:
        while True:
            added, removed = change(store, enrolled, chance, fresh)
            reports.send((added, removed))
            store.add([template(number) for number in sorted(added)])
            store.remove([name(number) for number in removed])
            reports.send(None)
            enrolled, fresh = (enrolled | added) - removed, fresh + len(added)


def kill_often(folder: Path, kills: int) -> int:
    TemplateStore.create(folder, FACTS).close()
    chance = random.Random(2)
    sure: set[int] = set()
    in_flight = (set[int](), set[int]())
    fresh = interrupted = 0
    for kill in range(kills):
        reports, sending = FORK.Pipe(duplex=False)
        child = FORK.Process(target=victim, args=(folder, sure, kill, fresh, sending))
        child.start()
        sending.close()
        reports.recv()
        child.join(chance.uniform(0, 0.12))
        assert child.is_alive()
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        pending = None
        while reports.poll():
            try:
                said = reports.recv()
            except EOFError:
                break
            if said is None and pending is not None:
                sure = (sure | pending[0]) - pending[1]
            fresh += len(said[0]) if said is not None else 0
            pending = said
        in_flight = pending if pending is not None else (set(), set())
        interrupted += pending is not None
        with TemplateStore(folder) as store:
            found = state(store)
        assert found in (sure, (sure | in_flight[0]) - in_flight[1])
        sure = found
    return interrupted


def test_killed_at_any_moment(tmp_path: Path) -> None:
    assert kill_often(tmp_path / "g", 30) > 5


@pytest.mark.slow  # a thousand processes, started and killed
def test_killed_a_thousand_times(tmp_path: Path) -> None:
    assert kill_often(tmp_path / "g", 1000) > 500


def writer(folder: Path, first: int, rounds: int, kept: Connection) -> None:
    chance = random.Random(first)
    mine: set[int] = set()
    with TemplateStore(folder) as store:
        for turn in range(rounds):
            added, removed = change(store, mine, chance, first + 100 * turn)
            store.add([template(number) for number in sorted(added)])
            store.remove([name(number) for number in removed])
            mine = (mine | added) - removed
    kept.send(mine)


def test_processes_at_once_are_safe(tmp_path: Path) -> None:
    """Two write, this one searches all the while: a vector is found under its own name or not at all."""
    pillars = range(900_000, 900_010)
    with TemplateStore.create(tmp_path / "g", FACTS) as store:
        store.add([template(number) for number in pillars])
        ends, children = [], []
        for first in (0, 10_000):
            receiving, sending = FORK.Pipe(duplex=False)
            children.append(FORK.Process(target=writer, args=(store.folder, first, 25, sending)))
            children[-1].start()
            ends.append(receiving)
        queries = np.array([vector(number) for number in (*pillars, *range(40), *range(10_000, 10_040))])
        searches = found = 0
        while any(child.is_alive() for child in children):
            for number, best in zip(
                (*pillars, *range(40), *range(10_000, 10_040)), store.search(queries, 1), strict=True
            ):
                ((who, score),) = best
                assert (score > 0.9999) <= (who == name(number))
                assert number not in pillars or score > 0.9999
                found += number < 900_000 and score > 0.9999
            searches += 1
        assert [child.exitcode for child in children] == [0, 0]
        assert searches > 0
        assert state(store) == {*pillars}.union(*(end.recv() for end in ends))


def limited(folder: Path, what: str, reports: Connection) -> None:
    """Act while no file may grow beyond what it has: a full disk, as a process sees it."""
    with TemplateStore(folder) as store:
        sizes = {"vectors": 2**16, "database": 2**15, "erase": 2**12}
        resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[what], resource.RLIM_INFINITY))
        try:
            if what == "erase":
                store.remove([name(3)])
            else:
                store.add([template(number) for number in range(1000, 1000 + (5000 if what == "vectors" else 500))])
            reports.send("done")
        except UserError as error:
            reports.send(str(error))


@pytest.mark.parametrize("what", ["vectors", "database", "erase"])
def test_a_full_disk_changes_nothing_and_is_said(tmp_path: Path, what: str) -> None:
    with TemplateStore.create(tmp_path / "g", FACTS) as store:
        store.add([template(number) for number in range(300)])
        receiving, sending = FORK.Pipe(duplex=False)
        child = FORK.Process(target=limited, args=(store.folder, what, sending))
        child.start()
        child.join()
        said = receiving.recv()
        assert "make room" in said, said
        with TemplateStore(store.folder) as again:
            enrolled = state(again)
        if what == "erase" and "removed, no search finds them, but not erased" in said:
            assert enrolled == {*range(300)} - {3}
        else:
            assert "was changed" in said or "was added" in said
            assert enrolled == {*range(300)}
