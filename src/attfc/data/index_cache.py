"""Where the arrays that a store derives from its source are kept: built once, whole or not at all, found again by digest.

An index lies in `PLACE/DIGEST/`; PLACE belongs to one source, the digest names its state (names, sizes, times), so changed data
finds no index and builds a new one. PLACE is in the user's cache folder, for the user alone: an index holds people's names, and a
folder of data is passed on and shared. A draft folder is filled, flushed and renamed: whoever sees the final name sees
the whole index, also when two processes build it at once.
"""

import contextlib
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from attfc.errors import UserError

__all__ = ["IndexCache"]

T = TypeVar("T")

_FORGOTTEN_SECONDS = 86_400


class IndexCache:
    """The places for one source's index.

    Args:
        source: the file or folder that the index is about.
        kind: first part of the folder's name in a shared cache: "folder", "records".
        digest: 32 hexadecimal digits that name the state of the source.
        cache: the folder to use; None: `attfc` in the user's cache folder ($XDG_CACHE_HOME or ~/.cache).
    """

    def __init__(self, source: Path, kind: str, digest: str, *, cache: str | os.PathLike[str] | None = None) -> None:
        self.digest = digest
        key = f"{kind}-" + hashlib.blake2b(os.fsencode(os.path.realpath(source)), digest_size=8).hexdigest()
        self._mode = 0o777 if cache is not None else 0o700  # a folder that was named may be meant for several users
        self.place: Path | None
        if cache is not None:
            self.place = Path(os.path.abspath(cache)) / key
        else:
            home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
            self.place = Path(home) / "attfc" / key if os.path.isabs(home) else None

    def open(self, opener: Callable[[Path], T]) -> T | None:
        """Return what `opener(folder)` makes of the index, or None where there is none that opens.

        UserError and OSError from the opener (damaged, or removed by another process in this instant) mean: there is none.
        """
        if self.place is not None and (self.place / self.digest).is_dir():
            with contextlib.suppress(UserError, OSError):
                return opener(self.place / self.digest)
        return None

    def write(self, fill: Callable[[Path], None], opener: Callable[[Path], T]) -> T | None:
        """Let `fill(draft folder)` write the index and open it where it then lies; None: it cannot be written."""
        if self.place is None:
            return None
        draft = self.place / f"building-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            self.place.mkdir(parents=True, exist_ok=True)
            draft.mkdir(self._mode)
        except OSError:
            return None
        try:
            fill(draft)
            for file in draft.iterdir():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
            target = self.place / self.digest
            if target.exists():  # stale or damaged: otherwise it would have been opened
                target.rename(draft.with_name(draft.name + "-old"))
            with contextlib.suppress(OSError):  # another process may have put the same index there first
                draft.rename(target)
            return opener(target)
        except (OSError, UserError):  # a full disk, or another process's clean-up
            return None
        finally:
            self._clean(self.place, draft)

    def _clean(self, place: Path, draft: Path) -> None:
        """Remove indexes of former states of the source and our own leftovers; other processes' drafts of today stay."""
        try:
            others = list(place.iterdir())
        except OSError:
            return
        for old in others:
            is_index = (
                len(old.name) == 32 and all(c in "0123456789abcdef" for c in old.name) and old.name != self.digest
            )
            is_ours = old.name.startswith(draft.name)
            with contextlib.suppress(OSError):
                age = time.time() - old.stat().st_mtime
                if is_index or is_ours or (old.name.startswith("building-") and age > _FORGOTTEN_SECONDS):
                    shutil.rmtree(old, ignore_errors=True)
