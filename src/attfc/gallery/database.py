"""`gallery.sqlite`: opened as a file of a stranger would be, written so that a kill leaves the old content or the new, erased without traces.

A rollback journal rather than a write-ahead log: between commands the folder has no other file, and what was erased is in none. `secure_delete`
writes zeros over deleted rows, but rows that SQLite had moved to another page may still stand on the old one, so whoever erases ends with
`VACUUM`, which writes every page anew. EXTRA: a commit also waits until the journal's removal is on the disk.

Sources: sqlite.org, "Defense Against The Dark Arts", "Atomic Commit In SQLite", PRAGMA secure_delete.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from attfc.errors import UserError, first_line
from attfc.files import first_fault
from attfc.gallery.vectors import VECTORS
from attfc.typing import Json

__all__ = ["DATABASE", "Facts", "connect", "create_tables", "read_facts", "transaction", "write_facts"]

DATABASE = "gallery.sqlite"
WAIT = 60.0  # seconds for another process
LONGEST = 2**20  # bytes of a text or a row
JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")
SCHEMA = """
CREATE TABLE facts (json TEXT NOT NULL);
CREATE TABLE template (slot INTEGER PRIMARY KEY, name TEXT NOT NULL, crc32 INTEGER NOT NULL);
CREATE INDEX template_name ON template (name);
CREATE TABLE image (slot INTEGER NOT NULL, digest BLOB NOT NULL, source TEXT NOT NULL, PRIMARY KEY (slot, digest)) WITHOUT ROWID;
CREATE TABLE free (slot INTEGER PRIMARY KEY, clean INTEGER NOT NULL);
"""
PRAGMAS = """
PRAGMA trusted_schema = OFF;
PRAGMA cell_size_check = ON;
PRAGMA mmap_size = 0;
PRAGMA temp_store = MEMORY;
PRAGMA secure_delete = ON;
PRAGMA synchronous = EXTRA;
"""


class Facts(BaseModel):
    """What a gallery is of.

    Attributes:
        format: of the folder.
        model, network: path and network of the model that embeds.
        digest: SHA-256 of its file.
        embedding_size, image_size: numbers and pixels.
        colours: what the model wants, as in `config.json` of a model.
        flip: whether the mirror image's embedding is added.
        far: the false accept rate at which a search answers with a name; None: it gives scores only.
        threshold_at_far: rate and cosine of each rate that the evaluation states.
        thresholds_of: the evaluation's file.
        created, changed: UTC.
    """

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    format: Literal[1] = 1
    model: str
    network: str
    digest: str = Field(pattern="^[0-9a-f]{64}$")
    embedding_size: int = Field(ge=1, le=65_536)
    image_size: int = Field(ge=1, le=4096)
    colours: Json
    flip: bool
    far: float | None = None
    threshold_at_far: list[tuple[float, float]] = []
    thresholds_of: str = ""
    created: str
    changed: str

    @property
    def threshold(self) -> float | None:
        """The cosine that a search's answer must exceed."""
        return dict(self.threshold_at_far).get(self.far) if self.far is not None else None


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Say what SQLite's errors mean for the user."""
    try:
        yield
    except sqlite3.Error as error:
        said = first_line(error)
        if "full" in said or "disk I/O" in said:
            meaning = f"nothing was changed ({said}): make room on the disk and run it again"
        elif "locked" in said:
            meaning = f"another process has been writing for {WAIT:.0f} s: wait for it, then run this again"
        elif "readonly" in said or "unable to open" in said:
            meaning = f"cannot be opened or written here ({said}): check the folder's permissions"
        else:
            meaning = f"is damaged ({said}): restore an earlier copy of the folder, or make the gallery again"
        raise UserError(f"{path}: {meaning}") from error


def connect(path: Path) -> sqlite3.Connection:
    """Open the database of a gallery that may come from a stranger.

    Raises:
        UserError: missing, a link, damaged, or with a schema of another program.
    """
    for each in (path, *map(path.with_name, VECTORS), journal := path.with_name(f"{path.name}-journal")):
        if each.is_symlink():
            raise UserError(f"{each} is a link: a gallery's files lie in its own folder")
    if not path.is_file():
        raise UserError(f"{path.parent} is not a gallery ({path.name} is missing): make one with attfc gallery create")
    if journal.is_file() and _ends_with(journal, JOURNAL_MAGIC):
        raise UserError(f"{journal} names another file, which no gallery's journal does: remove the folder")
    with told(path):
        connection = sqlite3.connect(
            f"file:{quote(str(path.absolute()))}?mode=rw", uri=True, isolation_level=None, timeout=WAIT
        )
        try:
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST)
            connection.executescript(PRAGMAS)
            (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
            schema = connection.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY name").fetchall()
            if mode != "delete" or schema != _schema():
                raise UserError(
                    f"{path} is empty: its making was interrupted; run attfc gallery create again"
                    if not schema
                    else f"{path} has not the tables of a gallery: it is of another program or version, or was tampered with"
                )
        except BaseException:
            connection.close()
            raise
    return connection


def _ends_with(path: Path, mark: bytes) -> bool:
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - len(mark), 0))
        return file.read(len(mark)) == mark


def _schema() -> list[tuple[str, str, str]]:
    with contextlib.closing(sqlite3.connect(":memory:")) as memory:
        memory.executescript(SCHEMA)
        return memory.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY name").fetchall()


def create_tables(path: Path, facts: Facts) -> None:
    """Make the database whole in one transaction; an empty file may be there."""
    with (
        told(path),
        contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=WAIT)) as connection,
    ):
        connection.executescript(PRAGMAS)
        with transaction(connection, path):
            for statement in SCHEMA.split(";")[:-1]:
                connection.execute(statement)
            connection.execute("INSERT INTO facts VALUES (?)", (facts.model_dump_json(),))


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection, path: Path, *, write: bool = True) -> Iterator[None]:
    """Read one state of the database, or change it whole or not at all."""
    with told(path):
        connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def read_facts(connection: sqlite3.Connection, path: Path) -> Facts:
    """Return what the gallery is of.

    Raises:
        UserError: not as a gallery writes it.
    """
    with told(path):
        rows = connection.execute("SELECT json FROM facts LIMIT 2").fetchall()
    try:
        ((text,),) = rows
        return Facts.model_validate_json(text)
    except ValidationError as error:
        raise UserError(f"{path}, its facts: {first_fault(error)}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}, its facts: {len(rows)} rows where a gallery has one") from None


def write_facts(connection: sqlite3.Connection, facts: Facts) -> None:
    """Replace what the gallery is of; within a transaction."""
    connection.execute("UPDATE facts SET json = ?", (facts.model_dump_json(),))
