"""Writer of image folders `root/<identity>/<image>` for `convert`: safe names, and continued after a kill.

Names come from other people's data, so they are made safe first: no path separator, no NUL, not hidden, not longer than a file
system takes, and no two the same, on a file system that ignores case not even in that. From time to time everything is flushed
and the number of identities done is noted; an identity begun after that is written anew. While unfinished the root holds
`.attfc-conversion/`.
"""

import contextlib
import hashlib
import os
import shutil
import time
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from attfc.data.people.name_table import printable
from attfc.data.stores.folder import EXTENSIONS
from attfc.data.stores.packed.packed_store import LEFT_OUT
from attfc.data.stores.packed.packed_writer import AppendFile, Journal, write_failure
from attfc.errors import UserError

__all__ = ["FolderWriter", "extension_of", "safe_name"]

_WORK = ".attfc-conversion"
_DONE = ".attfc-converted"
_STATE = "unfinished.json"
_LONGEST = 200
_UNSAFE = bytes.maketrans(b"/\\\0", b"___")


def safe_name(name: bytes) -> bytes:
    """Return a name that stays in its folder and is not hidden; most names are returned as they are.

    >>> safe_name(b"../../etc/passwd"), safe_name(b"Ann Lee"), safe_name(b"")
    (b'_.._.._etc_passwd', b'Ann Lee', b'_')
    """
    safe = name.translate(_UNSAFE)
    if not safe or safe.startswith(b"."):
        safe = b"_" + safe
    if len(safe) <= _LONGEST:
        return safe
    _, extension = _split_extension(safe)
    start = safe[: _LONGEST - 18 - len(extension)].decode("utf-8", "ignore" if _is_utf8(safe) else "surrogateescape")
    digest = hashlib.blake2b(name, digest_size=8).hexdigest().encode()
    return start.encode("utf-8", "surrogateescape") + b"~" + digest + extension


def extension_of(encoded: bytes) -> bytes:
    """Return the file extension of an image's format, by its first bytes; b"" if it is none that stores read."""
    if encoded.startswith(b"\xff\xd8\xff"):
        return b".jpg"
    if encoded.startswith(b"\x89PNG\r\n\x1a\n"):
        return b".png"
    if encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP":
        return b".webp"
    return b".bmp" if encoded.startswith(b"BM") else b""


class FolderWriter:
    """Writes an image folder: `start_identity`, `add` for each image, `end_identity`, ..., `finish`.

    Args:
        folder: the root: missing, empty, or an unfinished conversion of the same source.
        source_digest: names the source's state.
        identity_names: the name of every identity of the source, in the order of labels.
        options: what else must not change between the runs.
        sync_bytes, sync_seconds: how much, and how long, a crash may cost.

    Attributes:
        done, images, identities, left_out_images, left_out_identities, encoded_bytes, continued: as in `PackedWriter`.
        renamed_identities: identities whose folder has another name than the identity.
        unknown_formats: images whose bytes are of no known format: named .jpg, so that a store lists them.

    Raises:
        UserError: the root holds something else, is in use, cannot be written to, or began otherwise.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        source_digest: str,
        identity_names: Iterable[bytes],
        options: dict[str, Any] | None = None,
        sync_bytes: int = 256 << 20,
        sync_seconds: float = 60.0,
    ) -> None:
        self.folder = Path(os.path.abspath(folder))
        self.finished = False
        self._root = os.fsencode(self.folder)
        self._sync_bytes, self._sync_seconds = sync_bytes, sync_seconds
        self._check_folder()
        begun_with = {"format": "attfc folder 1, unfinished", "source_digest": source_digest, **(options or {})}
        hint = "give the options and the source that it began with, or delete the folder to begin anew"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_failure(self.folder, error) from None
        self._journal = Journal(self.folder / _WORK, _STATE, begun_with, hint)
        try:
            self._begin(list(identity_names))
        except OSError as error:
            self.close()
            raise write_failure(self.folder, error) from None
        except BaseException:
            self.close()
            raise

    def _check_folder(self) -> None:
        try:
            if (self.folder / _DONE / _STATE).exists():  # killed on its very last step: that step is done again
                os.replace(self.folder / _DONE, self.folder / _WORK)
            entries = set(os.listdir(self.folder))
        except FileNotFoundError:
            return
        except NotADirectoryError:
            raise UserError(f"{self.folder}: is a file; give a folder that does not exist yet") from None
        except OSError as error:
            raise write_failure(self.folder, error) from None
        if entries and _WORK not in entries:
            raise UserError(
                f"{self.folder}: holds files already ({printable(os.fsencode(min(entries)))} ...): give a folder that is empty or "
                "does not exist yet"
            )

    def _begin(self, names: list[bytes]) -> None:
        journal = self._journal
        self.continued = journal.state is not None
        self.done = journal.number("done")
        self.images = journal.number("images")
        self.identities = journal.number("identities")
        self.left_out_images = journal.number("left_out_images")
        self.left_out_identities = journal.number("left_out_identities")
        self.unknown_formats = journal.number("unknown_formats")
        self.encoded_bytes = journal.number("encoded_bytes")
        left_out_size = journal.number("left_out_size")
        if not self.continued:
            journal.save({})
        self._left_out = AppendFile(self.folder / _WORK / LEFT_OUT, left_out_size)
        # A file system that ignores case shows the journal under another name too.
        self._ignores_case = (self.folder / _WORK.upper()).exists()
        self._folder_names = _distinct(names, self._ignores_case)
        self.renamed_identities = sum(a != b for a, b in zip(self._folder_names, names, strict=True))
        self._committed()

    def start_identity(self, label: int, name: bytes) -> None:
        """Begin identity `label` of the source; its folder is made with its first image."""
        self._path = self._root + b"/" + self._folder_names[label]
        self._taken: set[bytes] = set()
        self._started = 0
        try:
            if self.continued and os.path.lexists(self._path):  # begun after the last durable point
                shutil.rmtree(self._path)
        except OSError as error:
            raise write_failure(self.folder, error) from None

    def add(self, encoded: bytes, name: bytes = b"") -> None:
        """Write one image; without a name it is numbered."""
        name = safe_name(name) if name else b"%06d" % (self._started + 1)
        if not name.lower().endswith(EXTENSIONS):
            extension = extension_of(encoded)
            self.unknown_formats += not extension
            name += extension or b".jpg"
        name = self._free(name)
        try:
            if not self._started:
                os.mkdir(self._path)
            descriptor = os.open(
                self._path + b"/" + name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666
            )
            try:
                with memoryview(encoded) as view:
                    done = 0
                    while done < len(view):
                        done += os.write(descriptor, view[done:])
            finally:
                os.close(descriptor)
        except OSError as error:
            raise write_failure(self.folder, error) from None
        self._started += 1
        self.encoded_bytes += len(encoded)

    def _free(self, name: bytes) -> bytes:
        stem, extension = _split_extension(name)
        number = 1
        while (key := _key(name, self._ignores_case)) in self._taken:
            number += 1
            name = b"%b~%d%b" % (stem, number, extension)
        self._taken.add(key)
        return name

    def leave_out(self, position: int, where: str, reason: str) -> None:
        """Note an image of the source that could not be taken."""
        line = "\t".join(" ".join(part.split()) for part in (str(position), where, reason))
        try:
            self._left_out.append(line.encode() + b"\n")
        except OSError as error:
            raise write_failure(self.folder, error) from None
        self.left_out_images += 1

    def end_identity(self, done: int) -> None:
        """End the identity at hand; `done` source identities are done with it."""
        self.images += self._started
        self.identities += self._started > 0
        self.left_out_identities += self._started == 0
        self.done = done
        if self.encoded_bytes - self._synced_bytes >= self._sync_bytes or time.monotonic() >= self._sync_at:
            try:
                self._commit()
            except OSError as error:
                raise write_failure(self.folder, error) from None

    def _commit(self) -> None:
        self._left_out.sync()
        os.sync()  # millions of small files: one flush of the system is far cheaper than one each
        self._journal.save(
            {
                "done": self.done,
                "images": self.images,
                "identities": self.identities,
                "left_out_images": self.left_out_images,
                "left_out_identities": self.left_out_identities,
                "unknown_formats": self.unknown_formats,
                "encoded_bytes": self.encoded_bytes,
                "left_out_size": self._left_out.size,
            }
        )
        self._committed()

    def _committed(self) -> None:
        self._synced_bytes = self.encoded_bytes
        self._sync_at = time.monotonic() + self._sync_seconds

    def finish(self) -> None:
        """Flush everything and remove the notes of the conversion.

        Raises:
            UserError: no image was written, or the disk is full or fails.
        """
        if self.images == 0:
            raise UserError(f"{self.folder}: none of the source's images could be read: nothing to write")
        try:
            self._commit()
            if self._left_out.size:
                shutil.copyfile(self.folder / _WORK / LEFT_OUT, self.folder / LEFT_OUT)
            self.close()
            # In one step from unfinished to finished.
            os.replace(self.folder / _WORK, self.folder / _DONE)
            shutil.rmtree(self.folder / _DONE)
        except OSError as error:
            raise write_failure(self.folder, error) from None
        self.finished = True

    def close(self) -> None:
        """Close the files. Without `finish` the root stays unfinished, to be continued."""
        with contextlib.suppress(AttributeError):  # not opened yet
            self._left_out.close()
        self._journal.close()

    def __enter__(self) -> "FolderWriter":
        """Return the writer."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


def _key(name: bytes, ignore_case: bool) -> bytes:
    """What the file system compares of a name."""
    if not ignore_case:
        return name
    return unicodedata.normalize("NFC", name.decode("utf-8", "surrogateescape").casefold()).encode(
        "utf-8", "surrogateescape"
    )


def _distinct(names: list[bytes], ignore_case: bool) -> list[bytes]:
    """Make names safe and different; the first of equal ones keeps its name, the others get "~2", "~3" ...

    A function of the names alone: a continued conversion finds the same.
    """
    safe = [safe_name(name) for name in names]
    keys = [_key(name, ignore_case) for name in safe]
    taken = set(keys)
    if len(taken) == len(keys):
        return safe
    seen: set[bytes] = set()
    numbers: dict[bytes, int] = {}
    for place, key in enumerate(keys):
        if key not in seen:
            seen.add(key)
            continue
        number = numbers.get(key, 1)
        while True:
            number += 1
            name = b"%b~%d" % (safe[place], number)
            if (new := _key(name, ignore_case)) not in taken:
                break
        numbers[key] = number
        taken.add(new)
        safe[place] = name
    return safe


def _split_extension(name: bytes) -> tuple[bytes, bytes]:
    for extension in EXTENSIONS:
        if name.lower().endswith(extension):
            return name[: -len(extension)], name[-len(extension) :]
    return name, b""


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True
