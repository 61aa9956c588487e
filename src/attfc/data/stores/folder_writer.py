"""Writer of image folders `root/<identity>/<image>` for `convert`: safe names, and continued after a kill.

Names come from other people's data, so they are made safe first: no path separator, no NUL, not hidden, not longer than a file
system takes, and no two the same, on a file system that ignores case not even in that. An identity begun after the last durable point
(`ContinuedWriter`) is written anew. While unfinished the root holds `.attfc-conversion/`.
"""

import hashlib
import os
import shutil
import unicodedata
from pathlib import Path
from typing import Any

from attfc.data.people.name_table import printable
from attfc.data.stores.folder import EXTENSIONS
from attfc.data.stores.writer import LEFT_OUT, UNFINISHED, ContinuedWriter
from attfc.errors import UserError
from attfc.typing import PathLike

__all__ = ["FolderWriter", "extension_of", "safe_name"]

_WORK = ".attfc-conversion"
_DONE = ".attfc-converted"
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
    is_text = safe.decode("utf-8", "ignore").encode() == safe
    start = safe[: _LONGEST - 18 - len(extension)].decode("utf-8", "ignore" if is_text else "surrogateescape")
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


class FolderWriter(ContinuedWriter):
    """Writes an image folder.

    Args:
        folder: the root: missing, empty, or an unfinished conversion of the same source.
        source_digest: names the source's state.
        identity_names: the name of every identity of the source, in the order of labels.
        options: what else must not change between the runs.

    Attributes:
        renamed_identities: identities whose folder has another name than the identity.
        unknown_formats: images whose bytes are of no known format: named .jpg, so that a store lists them.
    """

    counts = (*ContinuedWriter.counts, "encoded_bytes", "unknown_formats")
    unknown_formats = 0
    sync_bytes = 256 << 20

    def __init__(
        self,
        folder: PathLike,
        *,
        source_digest: str,
        identity_names: list[bytes],
        options: dict[str, Any] | None = None,
    ) -> None:
        target = Path(os.path.abspath(folder))
        self._root, self._names = os.fsencode(target), identity_names
        begun_with = {"format": "attfc folder 1, unfinished", "source_digest": source_digest, **(options or {})}
        super().__init__(target, target / _WORK, begun_with)

    def notes(self) -> list[str]:
        """Return what the user should know of names."""
        renamed = f"{self.renamed_identities:,} identities got a folder of another name, because theirs is taken or is not a file name"
        unknown = f"{self.unknown_formats:,} images of no known format are kept and named .jpg"
        return [renamed] * bool(self.renamed_identities) + [unknown] * bool(self.unknown_formats)

    def _check_entries(self, entries: set[str]) -> None:
        if (self.folder / _DONE / UNFINISHED).exists():  # killed on its very last step: that step is done again
            os.replace(self.folder / _DONE, self.folder / _WORK)
            return
        if _DONE in entries:  # killed while it was removed
            shutil.rmtree(self.folder / _DONE)
            entries.remove(_DONE)
        if entries and _WORK not in entries:
            raise UserError(
                f"{self.folder}: holds files already ({printable(min(entries))} ...): give a folder that is empty or "
                "does not exist yet"
            )

    def _begin(self) -> None:
        self._grow(LEFT_OUT)
        # A file system that ignores case shows the folder of the notes under another name too.
        self._ignores_case = (self.folder / _WORK.upper()).exists()
        self._folder_names = _distinct(self._names, self._ignores_case)
        self.renamed_identities = sum(a != b for a, b in zip(self._folder_names, self._names, strict=True))

    def start_identity(self, label: int, name: bytes) -> None:
        """Begin identity `label` of the source; its folder is made with its first image."""
        super().start_identity(label, name)
        self._path = self._root + b"/" + self._folder_names[label]
        self._taken: set[bytes] = set()
        if self.continued and os.path.lexists(self._path):  # begun after the last durable point
            with self.failures():
                shutil.rmtree(self._path)

    def add(self, encoded: bytes, name: bytes = b"") -> None:
        """Write one image; without a name it is numbered."""
        name = safe_name(name) if name else b"%06d" % (self._started + 1)
        if not name.lower().endswith(EXTENSIONS):
            extension = extension_of(encoded)
            self.unknown_formats += not extension
            name += extension or b".jpg"
        name = self._free(name)
        with self.failures():
            if not self._started:
                os.mkdir(self._path)
            with open(self._path + b"/" + name, "xb", buffering=0) as file:
                view = memoryview(encoded)
                while view:
                    view = view[file.write(view) :]
        super().add(encoded)

    def _free(self, name: bytes) -> bytes:
        stem, extension = _split_extension(name)
        number = 1
        while (key := _key(name, self._ignores_case)) in self._taken:
            number += 1
            name = b"%b~%d%b" % (stem, number, extension)
        self._taken.add(key)
        return name

    def _commit(self) -> None:
        os.sync()  # millions of small files: one flush of the system is far cheaper than one each
        super()._commit()

    def _finish(self) -> None:
        self._commit()
        if self._sizes[LEFT_OUT]:
            shutil.copyfile(self.folder / _WORK / LEFT_OUT, self.folder / LEFT_OUT)
        self.close()
        # In one step from unfinished to finished.
        os.replace(self.folder / _WORK, self.folder / _DONE)
        shutil.rmtree(self.folder / _DONE)
        self.finished = True


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
    stem = len(name) - next((len(extension) for extension in EXTENSIONS if name.lower().endswith(extension)), 0)
    return name[:stem], name[stem:]
