"""What the writers of stores share: counts, what was left out, one process at a time, and a conversion continued after a kill.

Files only grow. From time to time (so many bytes of images, or a minute) everything is forced to the disk and then
`unfinished.json` is replaced by one that holds all counts and sizes: the durable point. Whoever continues cuts the files back to
those sizes, so nothing that a crash left half-written survives, and the result equals an uninterrupted one byte for byte.
Not taken: a log of records with a checksum each, which would have to be read again to continue.
"""

import contextlib
import errno
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

from attfc.data.stores.image_files import MAX_FILE_BYTES
from attfc.errors import UserError
from attfc.files import lock, replacing, sync, sync_folder

__all__ = ["LEFT_OUT", "UNFINISHED", "ContinuedWriter", "GrowingFile", "StoreWriter", "replace_json"]

UNFINISHED = "unfinished.json"
LEFT_OUT = "left_out.tsv"

_BUFFER = 1 << 20
_CONTINUES = "give the same command again, it continues where it stopped"


def replace_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON that is on the disk, under its name, when this returns. Raises OSError."""
    with replacing(path) as file:
        file.write(json.dumps(content, indent=1).encode() + b"\n")
    sync_folder(path.parent)


class GrowingFile:
    """A file that grows at its end; its size at the last `sync` survives a crash.

    Args:
        path: the file.
        size: what is kept of it: the size at the last durable point.

    Raises:
        UserError: the file is shorter than that.
        OSError: it cannot be opened or written (all methods).
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        self.path, self.size = path, size
        flags = os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        self._file = open(  # noqa: SIM115
            path, "r+b", _BUFFER, opener=lambda name, mode: os.open(name, mode | flags, 0o666)
        )
        found = self._file.seek(0, os.SEEK_END)
        if found < size:
            self.close()
            raise UserError(
                f"{path}: {found} bytes but {UNFINISHED} says {size}: the unfinished conversion is damaged; "
                "delete its folder and convert again"
            )
        self._file.truncate(size)
        self._file.seek(size)

    def append(self, data: bytes) -> None:
        """Add bytes at the end."""
        self._file.write(data)
        self.size += len(data)

    def sync(self) -> None:
        """Wait until everything is on the disk."""
        sync(self._file)

    def rewrite_start(self, data: bytes) -> None:
        """Replace the first bytes. The last call: nothing can be appended after it."""
        self._file.seek(0)
        self._file.write(data)
        sync(self._file)

    def close(self) -> None:
        """Close; what cannot be written any more is dropped."""
        with contextlib.suppress(OSError):
            self._file.close()


class StoreWriter:
    """Takes a store's images: `start_identity`, `add` for each image, `end_identity`, ..., `finish`.

    Close it (or leave its `with` block) in any case.

    Attributes:
        folder: what is made.
        done: source identities that are written, those without images included.
        images, identities, encoded_bytes, left_out_images, left_out_identities: counts so far.
        continued: whether an unfinished conversion was found.
        finished: the folder is complete (it was killed on its very last step): only `close` is left to do.
        source: the source's name, for messages. again: what to do when it has gone.
    """

    again = ", then give the same command again, it continues"
    source = "the source"
    continued = finished = False
    done = images = identities = encoded_bytes = left_out_images = left_out_identities = 0
    _started = 0  # images of the identity at hand

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def refusal(self, encoded: bytes) -> str | None:
        """Return why an image cannot be taken; None: it can."""
        large = len(encoded) > MAX_FILE_BYTES
        return f"image of {len(encoded):,} bytes, more than the limit of {MAX_FILE_BYTES:,}" if large else None

    def notes(self) -> list[str]:
        """Return sentences for the user about what was written."""
        return []

    def start_identity(self, label: int, name: bytes) -> None:
        """Begin an identity; `label` is its number in the source."""
        self._started = 0

    def add(self, encoded: bytes, name: bytes = b"") -> None:
        """Append one image of the identity at hand, with its file name if it has one."""
        self._started += 1
        self.encoded_bytes += len(encoded)

    def leave_out(self, position: int, where: str, reason: str) -> None:
        """Note an image of the source that could not be taken."""
        line = "\t".join(" ".join(part.split()) for part in (str(position), where, reason))
        with self.failures():
            self._note(line.encode() + b"\n")
        self.left_out_images += 1

    def _note(self, line: bytes) -> None:
        """Add a line to the list of what is left out."""
        raise NotImplementedError

    def end_identity(self, done: int) -> None:
        """End the identity at hand; without images it is left out.

        Args:
            done: source identities done with it: the number that is continued with.
        """
        self.images += self._started
        self.identities += self._started > 0
        self.left_out_identities += self._started == 0
        self.done = done

    def finish(self) -> None:
        """Complete the store.

        Raises:
            UserError: no image was written, or the disk is full or fails.
        """
        if self.images == 0:
            raise UserError(f"{self.folder}: none of {self.source}'s images could be read: nothing to write")
        with self.failures():
            self._finish()

    def _finish(self) -> None:
        raise NotImplementedError

    @contextlib.contextmanager
    def failures(self) -> Iterator[None]:
        """Turn what the system says into the one error for it."""
        try:
            yield
        except OSError as error:
            raise self.failure(error) from None

    def failure(self, error: OSError) -> UserError:
        """Return the error for anything that keeps a conversion from writing; what was written so far is kept."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what = "the disk is full" if error.errno == errno.ENOSPC else "the disk quota is used up"
            return UserError(f"{self.folder}: {what}: make room and {_CONTINUES}")
        name = os.path.basename(os.fsdecode(error.filename)) if error.filename else ""
        where = self.folder / name if name and name != self.folder.name else self.folder
        return UserError(f"{where}: cannot be written ({error.strerror or error}): mend that and {_CONTINUES}")

    def close(self) -> None:
        """Close the files."""

    def __enter__(self) -> "StoreWriter":
        """Return the writer."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Close."""
        self.close()


class ContinuedWriter(StoreWriter):
    """One that continues where an earlier one of the same source stopped.

    What was not durable when it is closed is written again by the next one.

    Args:
        folder: what is made.
        work: the folder of `unfinished.json` and `left_out.tsv` while the conversion runs.
        begun_with: what must be the same when the conversion is continued, e.g. {"source_digest": ..., "shard_bytes": ...}.
        sync_bytes, sync_seconds: how much, and how long, a crash may cost.

    Raises:
        UserError: the folder holds something else, is in use, cannot be written to, or began otherwise;
            while writing: the disk is full or fails. It can be continued after that.
    """

    counts: ClassVar[tuple[str, ...]] = ("done", "images", "identities", "left_out_images", "left_out_identities")
    _lock = -1

    def __init__(
        self, folder: Path, work: Path, begun_with: dict[str, Any], sync_bytes: int, sync_seconds: float
    ) -> None:
        super().__init__(folder)
        self._unfinished, self._begun_with = work / UNFINISHED, begun_with
        self._sync_bytes, self._sync_seconds = sync_bytes, sync_seconds
        self._files: dict[str, GrowingFile] = {}
        try:
            with self.failures():
                self._look()
                work.mkdir(parents=True, exist_ok=True)
                self._take_lock(work)
                for draft in (*work.glob(".*.part"), *work.glob("*.json.new")):  # of a writer that was killed
                    draft.unlink()
                state = self._read_state()
                self.continued = state is not None
                for name in self.counts:
                    setattr(self, name, self._whole((state or {}).get(name, 0)))
                self._begin(state or {}, self._sizes(state or {}))
                self._committed()
        except BaseException:
            self.close()
            raise

    def _look(self) -> None:
        try:
            entries = os.listdir(self.folder)
        except FileNotFoundError:
            return
        except NotADirectoryError:
            raise UserError(f"{self.folder}: is a file; give a folder that does not exist yet") from None
        self._check_entries({name for name in entries if not name.endswith((".part", ".json.new"))})

    def _check_entries(self, entries: set[str]) -> None:
        """Refuse a folder that holds something else."""
        raise NotImplementedError

    def _begin(self, state: dict[str, Any], sizes: dict[str, int]) -> None:
        """Cut the files back to the last durable point, or begin with none."""
        raise NotImplementedError

    def _state(self) -> dict[str, Any]:
        """Return what else to remember; everything written must be on the disk."""
        raise NotImplementedError

    def _take_lock(self, work: Path) -> None:
        if hasattr(os, "O_DIRECTORY"):  # elsewhere two conversions into one folder at once are the user's to avoid
            self._lock = os.open(work, os.O_RDONLY)
            if not lock(self._lock):
                raise UserError(f"{work}: another process is converting into it: wait for it or stop it")

    def _read_state(self) -> dict[str, Any] | None:
        """Return what the last durable point left; None at the beginning."""
        try:
            saved = json.loads(self._unfinished.read_bytes())
            found, state = dict(saved["begun_with"]), dict(saved["state"])
        except FileNotFoundError:
            self._save({})  # the folder is ours from here on
            return None
        except (KeyError, TypeError, ValueError, RecursionError):
            raise self._damaged() from None
        for key, value in self._begun_with.items():
            if found.get(key) != value:
                was = "" if key.endswith("digest") else f" {found.get(key)!r}, now {value!r}"
                raise UserError(
                    f"{self.folder}: holds an unfinished conversion that began with another {key.replace('_', ' ')}{was}: "
                    "give the options and the source that it began with, or delete the folder to begin anew"
                )
        return state

    def _whole(self, value: object) -> int:
        """Return a count or size of the state."""
        if not isinstance(value, int) or not 0 <= value <= 2**62:
            raise self._damaged()
        return value

    def _sizes(self, state: dict[str, Any]) -> dict[str, int]:
        """Return the files' sizes of the state; image folders of 0.1 noted the size of one."""
        try:
            sizes = state.get("sizes", {LEFT_OUT: state.get("left_out_size", 0)}).items()
        except AttributeError:
            raise self._damaged() from None
        return {name: self._whole(size) for name, size in sizes}

    def _damaged(self) -> UserError:
        return UserError(
            f"{self._unfinished}: damaged: delete {self.folder} (an unfinished conversion) and convert again"
        )

    def _save(self, state: dict[str, Any]) -> None:
        replace_json(self._unfinished, {"begun_with": self._begun_with, "state": state})

    def _note(self, line: bytes) -> None:
        self._files[LEFT_OUT].append(line)

    def end_identity(self, done: int) -> None:
        """End the identity at hand, and make everything durable where it is time for that."""
        super().end_identity(done)
        if self.encoded_bytes - self._synced_bytes >= self._sync_bytes or time.monotonic() >= self._sync_at:
            with self.failures():
                self._commit()

    def _commit(self) -> None:
        """Make everything up to here durable; between two identities only."""
        for file in self._files.values():
            file.sync()
        state = {name: getattr(self, name) for name in self.counts} | self._state()
        self._save(state | {"sizes": {name: file.size for name, file in self._files.items()}})
        self._committed()

    def _committed(self) -> None:
        self._synced_bytes = self.encoded_bytes
        self._sync_at = time.monotonic() + self._sync_seconds

    def close(self) -> None:
        """Close the files. Without `finish` the folder stays unfinished, to be continued."""
        for file in self._files.values():
            file.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
