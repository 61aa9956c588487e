"""Names and vectors together: added, removed and found so that no kill, no second process and no reader sees half of it.

`gallery.sqlite` says which slot of the vectors is whose. Slots without a template are in its table `free`; one that may hold something is
marked as not clean. Adding: mark free slots as not clean, write them, then make them templates. Removing: delete the templates and mark their slots
as not clean in one transaction, then write zeros over them, then `VACUUM`. Whatever a kill leaves unclean, the next opening cleans. Writers take
turns by a lock on `vectors.float32`; a reader holds SQLite's shared lock, so a slot changes its owner only between searches.
"""

import contextlib
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from attfc.errors import UserError
from attfc.files import lock, sync_folder
from attfc.gallery.database import (
    DATABASE,
    WAIT,
    Facts,
    connect,
    create_tables,
    read_facts,
    told,
    transaction,
    write_facts,
)
from attfc.gallery.scan import nearest
from attfc.gallery.vectors import VECTORS, VectorFiles
from attfc.typing import Float32, Int64, Progress

__all__ = ["Template", "TemplateStore", "now"]

ASKED = 10_000  # rows per query
MOST_SLOTS = 2**31


@dataclass(frozen=True, eq=False)
class Template:
    """One template: its person's name, (D,) float32 vector of unit length, and the images behind it as digest -> where it was."""

    name: str
    vector: Float32
    images: dict[bytes, str]


def now() -> str:
    """Return the time as a gallery notes it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class TemplateStore:
    """The files of a gallery's folder.

    Args:
        folder: of a gallery.

    Raises:
        UserError: none is there, or it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / DATABASE
        self._connection = connect(self.path)
        try:
            self.vectors = VectorFiles(folder, self.facts.embedding_size)
            self.clean(wait=0)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def create(folder: Path, facts: Facts) -> "TemplateStore":
        """Make an empty store; the folder is readable for its owner alone.

        Raises:
            UserError: the folder holds something else.
        """
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file: name a folder for the gallery")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        unfinished = {DATABASE, f"{DATABASE}-journal", *VECTORS}
        if other := {path.name for path in folder.iterdir()} - unfinished:
            raise UserError(f"{folder} holds other files ({min(other)!r}): name a new folder for the gallery")
        for name in VECTORS:
            (folder / name).touch()
        create_tables(folder / DATABASE, facts)
        sync_folder(folder)
        return TemplateStore(folder)

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    def __enter__(self) -> "TemplateStore":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def facts(self) -> Facts:
        """What the gallery is of, as it stands now."""
        return read_facts(self._connection, self.path)

    @contextlib.contextmanager
    def _turn(self, wait: float = WAIT) -> Iterator[bool]:
        """Be the one writer; False: another process was for all of `wait` seconds."""
        with self.vectors.paths[0].open("rb") as file:
            ends = time.monotonic() + wait
            while not (taken := lock(file)) and time.monotonic() < ends:
                time.sleep(0.02)
            yield taken

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with self._turn() as taken:
            if not taken:
                raise UserError(f"{self.folder}: another process has been writing for {WAIT:.0f} s: wait for it")
            self._clean()
            try:
                yield
            finally:
                with contextlib.suppress(UserError, OSError):  # the next opening does it
                    self._clean()

    def clean(self, wait: float = WAIT) -> bool:
        """Erase what a killed process left; True: nothing is left of it."""
        with told(self.path):
            if not self._connection.execute("SELECT 1 FROM free WHERE NOT clean LIMIT 1").fetchone():
                return True
        try:
            with self._turn(wait) as taken:
                return taken and self._clean()
        except (UserError, OSError):
            if wait:
                raise
            return False  # a folder that may not be written can be searched

    def _clean(self) -> bool:
        with told(self.path):
            slots_N = self._slots("SELECT slot FROM free WHERE NOT clean ORDER BY slot")
        if len(slots_N):
            for start in range(0, len(slots_N), ASKED):
                part_N = slots_N[start : start + ASKED]
                self.vectors.write(part_N, np.zeros((len(part_N), self.vectors.size), np.float32))
            with told(self.path):
                self._connection.execute("VACUUM")
            with transaction(self._connection, self.path):
                self._connection.execute("UPDATE free SET clean = 1 WHERE NOT clean")
        return True

    def _slots(self, query: str, values: Sequence[object] = ()) -> Int64:
        rows = self._connection.execute(query, values).fetchall()
        return np.array([slot for (slot,) in rows], dtype=np.int64)

    def _used(self) -> int:
        """Return how many slots are or were in use."""
        first, last = 0, -1
        for table in ("template", "free"):
            # Two queries: SQLite takes one extreme from the tree's end, for both at once it reads the table.
            (low,), (high,) = (
                self._connection.execute(f"SELECT {end}(slot) FROM {table}").fetchone() for end in ("min", "max")
            )
            first, last = min(first, low or 0), max(last, -1 if high is None else high)
        if first < 0 or last >= MOST_SLOTS:
            raise UserError(f"{self.path} is damaged: it has a slot {first or last}, and no gallery has that")
        return last + 1

    def add(self, templates: Sequence[Template]) -> None:
        """Add templates, all or none.

        Raises:
            UserError: the disk is full, or another process writes for a minute; nothing was changed.
        """
        if not templates:
            return
        vectors_ND = np.stack([template.vector for template in templates]).astype(np.float32)
        with self._writing():
            with transaction(self._connection, self.path):
                slots_N = self._slots("SELECT slot FROM free ORDER BY slot LIMIT ?", (len(templates),))
                fresh_N = self._used() + np.arange(len(templates) - len(slots_N))
                slots_N = np.concatenate([slots_N, fresh_N])
                rows = [(slot,) for slot in slots_N.tolist()]
                self._connection.executemany("INSERT OR REPLACE INTO free VALUES (?, 0)", rows)
            try:
                self.vectors.write(slots_N, vectors_ND)
            except OSError as error:
                raise UserError(
                    f"{error.filename or self.folder} cannot be written ({error.strerror}); nothing was added: make room, then run it again"
                ) from error
            with transaction(self._connection, self.path):
                self._connection.executemany("DELETE FROM free WHERE slot = ?", rows)
                for slot, template, vector in zip(slots_N.tolist(), templates, vectors_ND, strict=True):
                    self._connection.execute(
                        "INSERT INTO template VALUES (?, ?, ?)", (slot, template.name, zlib.crc32(vector.tobytes()))
                    )
                    self._connection.executemany(
                        "INSERT INTO image VALUES (?, ?, ?)",
                        [(slot, digest, where) for digest, where in template.images.items()],
                    )
                self._changed()

    def remove(self, names: Iterable[str]) -> dict[str, tuple[int, list[str]]]:
        """Remove people, all or none, and erase their vectors and names from every file.

        Returns:
            name -> (templates, where their images were); a name that nobody has is not in it.
        """
        gone: dict[str, tuple[int, list[str]]] = {}
        with self._writing():
            with transaction(self._connection, self.path):
                for name in names:
                    slots_N = self._slots("SELECT slot FROM template WHERE name = ?", (name,))
                    if not len(slots_N):
                        continue
                    where = "WHERE slot IN (SELECT slot FROM template WHERE name = ?)"
                    sources = self._connection.execute(f"SELECT source FROM image {where}", (name,)).fetchall()
                    gone[name] = len(slots_N), [source for (source,) in sources]
                    self._connection.execute(f"DELETE FROM image {where}", (name,))
                    self._connection.execute("DELETE FROM template WHERE name = ?", (name,))
                    self._connection.executemany(
                        "INSERT INTO free VALUES (?, 0)", [(slot,) for slot in slots_N.tolist()]
                    )
                if gone:
                    self._changed()
            try:
                self._clean()
            except (UserError, OSError) as error:
                raise UserError(
                    f"{', '.join(map(repr, gone))}: removed, no search finds them, but not erased from the files yet ({error}): "
                    "make room; opening the gallery then erases them"
                ) from error
        return gone

    def set_facts(self, facts: Facts) -> None:
        """Replace what the gallery is of."""
        with self._writing(), transaction(self._connection, self.path):
            write_facts(self._connection, facts)
            self._changed()

    def _changed(self) -> None:
        write_facts(self._connection, self.facts.model_copy(update={"changed": now()}))

    def search(self, query_QD: Float32, top: int) -> list[list[tuple[str, float]]]:
        """Return the best `top` names for each unit vector, as (name, cosine), best first.

        Raises:
            UserError: a template of the answer is damaged.
        """
        with transaction(self._connection, self.path, write=False):
            found = nearest(self.vectors, used := self._used(), query_QD, top, self._names)
            self._check(np.unique([slot for best in found for _, _, slot in best]).astype(np.int64))
            unseen_N = np.flatnonzero(~(self.vectors.rows(used).scales_N2[:used, 0] > 0))
            (free,) = self._connection.execute("SELECT count(*) FROM free WHERE clean").fetchone()
            if len(unseen_N) > free:  # more than the scan may pass over; those that are being written have no name
                self._check(np.array(sorted(self._names(unseen_N))[:ASKED], np.int64))
        return [[(name, cosine) for name, cosine, _ in best] for best in found]

    def _names(self, slots_N: Int64) -> dict[int, str]:
        found: dict[int, str] = {}
        for start in range(0, len(slots_N), ASKED):
            part = slots_N[start : start + ASKED].tolist()
            marks = ",".join("?" * len(part))
            found.update(self._connection.execute(f"SELECT slot, name FROM template WHERE slot IN ({marks})", part))
        if not all(isinstance(name, str) for name in found.values()):
            raise UserError(f"{self.path} is damaged: a name in it is not text")
        return found

    def check(self, progress: Progress | None = None) -> None:
        """Compare every template with its checksum, and with what a scan sees of it.

        Raises:
            UserError: one differs, or a file is too short.
        """
        with transaction(self._connection, self.path, write=False):
            slots_N = self._slots("SELECT slot FROM template ORDER BY slot")
            self.vectors.rows(self._used())
            for start in range(0, len(slots_N), ASKED):
                self._check(slots_N[start : start + ASKED])
                if progress is not None:
                    progress(min(start + ASKED, len(slots_N)), len(slots_N))

    def _check(self, slots_N: Int64) -> None:
        """Refuse templates, at most some thousand, that are not as they were written."""
        rows = self.vectors.rows(int(slots_N.max(initial=-1)) + 1)
        exact_ND, coarse_ND, scales_N2 = (np.asarray(each[slots_N]) for each in rows)
        scale_N, error_N = scales_N2.T
        seen_N = (scale_N > 0) & (np.linalg.norm(exact_ND - scale_N[:, None] * coarse_ND, axis=1) <= error_N)
        marks = ",".join("?" * len(slots_N))
        query = f"SELECT name, crc32 FROM template WHERE slot IN ({marks}) ORDER BY slot"
        stated = self._connection.execute(query, slots_N.tolist()).fetchall()
        exact, coarse, scales = self.vectors.paths
        for (name, crc32), vector, seen in zip(stated, exact_ND, seen_N.tolist(), strict=True):
            whole = zlib.crc32(vector.tobytes()) == crc32
            if not (whole and seen):
                raise UserError(
                    f"{f'{coarse} or {scales.name}' if whole else exact}: the template of {name!r} is not what was written: "
                    f"remove {name!r} and add it again, or take a whole copy of the folder"
                )

    def known_images(self, name: str) -> set[bytes]:
        """Return the digests of the images that a person's templates are made of."""
        query = "SELECT digest FROM image JOIN template USING (slot) WHERE name = ?"
        with told(self.path):
            return {digest for (digest,) in self._connection.execute(query, (name,))}

    def counts(self) -> dict[str, int]:
        """Return how many people, templates, images and free slots there are, and the bytes of each file."""
        with transaction(self._connection, self.path, write=False):
            count = {
                key: int(self._connection.execute(f"SELECT count({what}) FROM {table}").fetchone()[0])
                for key, what, table in (
                    ("people", "DISTINCT name", "template"),
                    ("templates", "*", "template"),
                    ("images", "*", "image"),
                    ("free_slots", "*", "free"),
                    ("slots_to_erase", "*", "free WHERE NOT clean"),
                )
            }
        sizes = {
            f"{each.name} bytes": each.stat().st_size for each in (self.path, *self.vectors.paths) if each.is_file()
        }
        return count | sizes

    def names(self) -> list[str]:
        """Return the people's names, sorted."""
        with told(self.path):
            return [name for (name,) in self._connection.execute("SELECT DISTINCT name FROM template ORDER BY name")]
