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
from typing import BinaryIO, ClassVar

from attfc.data.stores.image_files import MAX_FILE_BYTES
from attfc.errors import UserError
from attfc.files import lock, replacing, sync, sync_folder
from attfc.typing import Json

__all__ = ["LEFT_OUT", "UNFINISHED", "ContinuedWriter", "StoreWriter", "replace_json"]

UNFINISHED = "unfinished.json"
LEFT_OUT = "left_out.tsv"

_BUFFER = 1 << 20
_SYNC_SECONDS = 60.0
_CONTINUES = "give the same command again, it continues where it stopped"


def replace_json(path: Path, content: Json) -> None:
    """Write JSON that is on the disk, under its name, when this returns. Raises OSError."""
    with replacing(path) as file:
        file.write(json.dumps(content, indent=1).encode() + b"\n")
    sync_folder(path.parent)


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
        sync_bytes: images' bytes that a crash may cost, where a conversion can be continued.
    """

    again = ", then give the same command again, it continues"
    source = "the source"
    sync_bytes = 64 << 20
    continued = finished = False
    done = images = identities = encoded_bytes = left_out_images = left_out_identities = 0
    drafts: ClassVar[tuple[str, ...]] = (".*.part", "*.json.new")
    _started = 0  # images of the identity at hand
    _lock = -1

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _take(self, work: Path) -> None:
        """Make the folder of the files that grow, keep other processes out of it, and remove the drafts of one that was killed."""
        work.mkdir(parents=True, exist_ok=True)
        if hasattr(os, "O_DIRECTORY"):  # elsewhere two conversions into one folder at once are the user's to avoid
            self._lock = os.open(work, os.O_RDONLY)
            if not lock(self._lock):
                raise UserError(f"{work}: another process is converting into it: wait for it or stop it")
        for pattern in self.drafts:
            for draft in work.glob(pattern):
                draft.unlink()

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
        return UserError(f"{where}: cannot be written ({error.strerror or error}): fix that and {_CONTINUES}")

    def close(self) -> None:
        """Close the files, and let other processes in."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> "StoreWriter":
        """Return the writer."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


class ContinuedWriter(StoreWriter):
    """One that continues where an earlier one of the same source stopped.

    What was not durable when it is closed is written again by the next one.

    Args:
        folder: what is made.
        work: the folder of the files that grow, and of `unfinished.json`, while the conversion runs.
        begun_with: what must be the same when the conversion is continued, e.g. {"source_digest": ..., "shard_bytes": ...}.

    Raises:
        UserError: the folder holds something else, is in use, cannot be written to, or began otherwise;
            while writing: the disk is full or fails. It can be continued after that.
    """

    counts: ClassVar[tuple[str, ...]] = ("done", "images", "identities", "left_out_images", "left_out_identities")

    def __init__(self, folder: Path, work: Path, begun_with: Json) -> None:
        super().__init__(folder)
        self._work, self._unfinished, self._begun_with = work, work / UNFINISHED, begun_with
        self._files: dict[str, BinaryIO] = {}  # those that grow now
        self._sizes: dict[str, int] = {}  # of all that have grown, at the last durable point
        try:
            with self.failures():
                self._look()
                self._take(work)
                self.continued = self._read_state()
                self._begin()
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

    def _begin(self) -> None:
        """Open the files that grow."""
        raise NotImplementedError

    def _read_state(self) -> bool:
        """Take the counts and sizes of the last durable point; False: this is the beginning."""
        try:
            saved = json.loads(self._unfinished.read_bytes())
            found, state = dict(saved["begun_with"]), dict(saved["state"])
            counts = {name: state.get(name, 0) for name in self.counts}
            self._sizes = dict(state.get("sizes", {LEFT_OUT: state.get("left_out_size", 0)}))
            # Packed folders of 0.1 have the shards in a list, image folders of 0.1 a single size.
            self._sizes |= {f"shard-{number:05d}.bin": size for number, size in enumerate(state.get("shards", []))}
            if not all(isinstance(n, int) and 0 <= n <= 2**62 for n in (*counts.values(), *self._sizes.values())):
                raise ValueError("counts that are none")
        except FileNotFoundError:
            replace_json(self._unfinished, {"begun_with": self._begun_with, "state": {}})  # ours from here on
            return False
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
            raise UserError(
                f"{self._unfinished}: damaged: delete {self.folder} (an unfinished conversion) and convert again"
            ) from None
        for key, value in self._begun_with.items():
            if found.get(key) != value:
                was = "" if key.endswith("digest") else f" {found.get(key)!r}, now {value!r}"
                raise UserError(
                    f"{self.folder}: holds an unfinished conversion that began with another {key.replace('_', ' ')}{was}: "
                    "give the options and the source that it began with, or delete the folder to start again"
                )
        vars(self).update(counts)
        return True

    def _grow(self, name: str, start: bytes = b"") -> None:
        """Open a file that grows, cut back to its size at the last durable point; a new one begins with `start`."""
        path, kept = self._work / name, self._sizes.get(name, 0)
        flags = os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        file = self._files[name] = open(  # noqa: SIM115
            path, "r+b", _BUFFER, opener=lambda name, mode: os.open(name, mode | flags, 0o666)
        )
        if (found := file.seek(0, os.SEEK_END)) < kept:
            raise UserError(
                f"{path}: {found} bytes but {UNFINISHED} says {kept}: the unfinished conversion is damaged; "
                "delete its folder and convert again"
            )
        file.truncate(kept)
        file.seek(kept)
        if not kept:
            file.write(start)

    def _note(self, line: bytes) -> None:
        self._files[LEFT_OUT].write(line)

    def end_identity(self, done: int) -> None:
        """End the identity at hand, and make everything durable where it is time for that."""
        super().end_identity(done)
        if self.encoded_bytes - self._synced_bytes >= self.sync_bytes or time.monotonic() >= self._sync_at:
            with self.failures():
                self._commit()

    def _commit(self) -> None:
        """Make everything up to here durable; between two identities only."""
        for name, file in self._files.items():
            sync(file)
            self._sizes[name] = file.tell()
        state = {name: getattr(self, name) for name in self.counts} | {"sizes": self._sizes}
        replace_json(self._unfinished, {"begun_with": self._begun_with, "state": state})
        self._committed()

    def _committed(self) -> None:
        self._synced_bytes = self.encoded_bytes
        self._sync_at = time.monotonic() + _SYNC_SECONDS

    def close(self) -> None:
        """Close the files; what is not durable is dropped. Without `finish` the folder stays unfinished, to be continued."""
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()
        super().close()
