"""Where the arrays that a store derives from its source are kept: built once, whole or not at all, found again by digest.

An index lies in `PLACE/DIGEST/`; PLACE belongs to one source, the digest names its state (names, sizes, times), so changed data
finds no index and builds a new one. A draft folder is filled, flushed and renamed: whoever sees the final name sees
the whole index, also when two processes build it at once.
"""

import contextlib
import hashlib
import os
import secrets
import shutil
import stat
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
        cache: the folder to use; None: `beside` if it can be written to, else `attfc` in the user's cache folder
            ($XDG_CACHE_HOME or ~/.cache).
        beside: the folder next to the data that may hold the index, e.g. `root/.attfc-index`; its parent must exist.
    """

    def __init__(
        self, source: Path, kind: str, digest: str, *, cache: str | os.PathLike[str] | None = None, beside: Path
    ) -> None:
        self.digest = digest
        key = f"{kind}-" + hashlib.blake2b(os.fsencode(os.path.realpath(source)), digest_size=8).hexdigest()
        self.places: list[Path] = []
        if cache is not None:
            self.places.append(Path(os.path.abspath(cache)) / key)
            return
        parent = beside.parent
        # The mode bits count even for a superuser, who could write: a folder without them is meant to stay as it is.
        if os.access(parent, os.W_OK) and stat.S_IMODE(parent.stat().st_mode) & 0o222:
            self.places.append(beside)
        home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        if os.path.isabs(home):
            self.places.append(Path(home) / "attfc" / key)

    def open(self, opener: Callable[[Path], T]) -> T | None:
        """Return what `opener(folder)` makes of the first index that opens, else None.

        UserError and OSError from the opener (damaged, or removed by another process in this instant) mean: not this one.
        """
        for place in self.places:
            folder = place / self.digest
            if folder.is_dir():
                with contextlib.suppress(UserError, OSError):
                    return opener(folder)
        return None

    def write(self, fill: Callable[[Path], None], opener: Callable[[Path], T]) -> T | None:
        """Let `fill(draft folder)` write the index to the first place that takes it, and open it there; None: nowhere.

        `fill` may be called again for the next place after a full disk or a read-only mount behind writable mode bits.
        """
        for place in self.places:
            try:
                place.mkdir(parents=True, exist_ok=True)
                draft = place / f"building-{os.getpid()}-{secrets.token_hex(4)}"
                draft.mkdir()
            except OSError:
                continue
            try:
                fill(draft)
                for file in draft.iterdir():
                    with open(file, "rb") as handle:
                        os.fsync(handle.fileno())
                target = place / self.digest
                if target.exists():  # stale or damaged: otherwise it would have been opened
                    target.rename(draft.with_name(draft.name + "-old"))
                with contextlib.suppress(OSError):  # another process may have put the same index there first
                    draft.rename(target)
                return opener(target)
            except (OSError, UserError):  # also: another process's clean-up
                continue
            finally:
                self._clean(place, draft)
        return None

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
