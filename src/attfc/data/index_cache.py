"""Where the arrays that a store derives from its source are kept: built once, whole or not at all, found again by digest.

An index lies in `PLACE/DIGEST/`; PLACE belongs to one source, the digest names its state (names, sizes, times), so changed data
finds no index and builds a new one. PLACE is in the user's cache folder, for the user alone: an index holds people's names, and a
folder of data is passed on and shared. A draft folder is filled, flushed and renamed: whoever sees the final name sees
the whole index, also when two processes build it at once.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Self, TypeVar

import numpy as np

from attfc.data.index import IdentityIndex, open_array
from attfc.data.people.name_table import NameTable
from attfc.errors import UserError
from attfc.files import cache_home, sync
from attfc.typing import Int64, Json, PathLike

__all__ = ["RACY_NS", "IndexCache", "Tables", "read_about"]

T = TypeVar("T")

RACY_NS = 2_000_000_000
"""What changed less than this before it was looked at may have changed once more in the same tick of its clock."""

_FORGOTTEN_SECONDS = 86_400


def read_about(folder: Path, kind: str, read: Callable[[Json], T]) -> T:
    """Return what `read` makes of the index in a folder, given its `about.json`.

    Raises:
        UserError: whatever is wrong with it, since it may have come with somebody's data set.
    """
    try:
        return read(json.loads((folder / "about.json").read_text("utf-8")))
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{folder}: damaged {kind} index ({error}); delete it to have it rebuilt") from None


@dataclass(frozen=True)
class Tables:
    """What a store of image files knows about them; arrays mapped from `folder`, or in memory if that is None.

    A subclass declares what it keeps besides, as fields: rows of int64, and counts by kind.

    Attributes:
        index: which images belong to whom.
        identities: name of each identity, or its number in the source.
        paths: of each image, or its file's name.
        scanned_ns: when the source was looked at.
        folder: where the arrays lie.
    """

    index: IdentityIndex
    identities: NameTable | Int64
    paths: NameTable
    scanned_ns: int
    folder: Path | None

    source: ClassVar[str]
    """What the tables are about, for messages."""
    path_kind: ClassVar[str]
    """First part of the names of the files that hold `paths`."""
    rows: ClassVar[tuple[str, ...]]
    """Fields that are rows of int64."""
    counts: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Fields that are dictionaries of counts, and the keys that they may have."""
    consecutive: ClassVar[bool] = False
    """Whether images are numbered identity by identity where the saved tables do not say so."""

    def sound(self) -> bool:
        """Whether the tables fit one another, as far as that can be told without reading all of them."""
        return len(self.identities) == len(self.index) and len(self.paths) == self.index.images > 0

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Map what was saved. Raises UserError if it is damaged: it may have come with somebody's data set."""
        tables: Self = read_about(folder, cls.source, partial(cls._read, folder))
        if not tables.sound():
            raise UserError(f"{folder}: damaged {cls.source} index (its arrays contradict each other); delete it")
        return tables

    @classmethod
    def _read(cls, folder: Path, about: Json) -> Self:
        return cls(
            IdentityIndex.open(folder, consecutive=bool(about.get("consecutive", cls.consecutive))),
            open_array(folder / "numbers.npy", np.int64)
            if about.get("numbers")
            else NameTable.open(folder, "identity"),
            NameTable.open(folder, cls.path_kind),
            int(about["scanned_ns"]),
            folder,
            **{name: open_array(folder / f"{name}.npy", np.int64) for name in cls.rows},
            **{
                name: {key: int(about[name][key]) for key in keys if key in about[name]}
                for name, keys in cls.counts.items()
            },
        )

    def save(self, draft: Path) -> None:
        """Write what `open` maps."""
        self.index.save(draft)
        self.paths.save(draft, self.path_kind)
        rows = {name: getattr(self, name) for name in self.rows}
        if isinstance(self.identities, NameTable):
            self.identities.save(draft, "identity")
        else:
            rows["numbers"] = self.identities
        for name, values in rows.items():
            np.save(draft / f"{name}.npy", values, allow_pickle=False)
        about = {name: getattr(self, name) for name in ("scanned_ns", *self.counts)}
        about |= {"numbers": "numbers" in rows, "consecutive": self.index.consecutive}
        (draft / "about.json").write_text(json.dumps(about), "utf-8")


class IndexCache:
    """The places for one source's index.

    Args:
        source: the file or folder that the index is about.
        kind: first part of the folder's name in a shared cache: "folder", "records".
        digest: 32 hexadecimal digits that name the state of the source.
        cache: the folder to use; None: `attfc` in the user's cache folder ($XDG_CACHE_HOME or ~/.cache).
    """

    def __init__(self, source: Path, kind: str, digest: str, *, cache: PathLike | None) -> None:
        self.digest = digest
        key = f"{kind}-" + hashlib.blake2b(os.fsencode(os.path.realpath(source)), digest_size=8).hexdigest()
        self._mode = 0o777 if cache is not None else 0o700  # a folder that was named may be meant for several users
        self.place: Path | None
        if cache is not None:
            self.place = Path(os.path.abspath(cache)) / key
        else:
            home = cache_home()
            self.place = home / "attfc" / key if home.is_absolute() else None

    def get(
        self,
        opener: Callable[[Path], T],
        build: Callable[[], T],
        save: Callable[[T, Path], None],
        current: Callable[[T], bool] = lambda _: True,
    ) -> T:
        """Return the index: the cached one, else what `build` makes, opened from where `save(index, folder)` put it.

        An index that does not open (UserError, OSError: damaged, or removed by another process in this instant) or is not
        `current` is made anew; one that cannot be saved (a full disk, no permission) stays in memory.
        """
        if self.place is not None and (self.place / self.digest).is_dir():
            with contextlib.suppress(UserError, OSError):
                found = opener(self.place / self.digest)
                if current(found):
                    return found
        made = build()
        if self.place is None:
            return made
        draft = self.place / f"building-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            self.place.mkdir(parents=True, exist_ok=True)
            draft.mkdir(self._mode)
        except OSError:
            return made
        try:
            save(made, draft)
            for file in draft.iterdir():
                with open(file, "rb") as handle:
                    sync(handle)
            target = self.place / self.digest
            if target.exists():  # stale or damaged: otherwise it would have been opened
                target.rename(draft.with_name(draft.name + "-old"))
            with contextlib.suppress(OSError):  # another process may have put the same index there first
                draft.rename(target)
            return opener(target)
        except (OSError, UserError):  # a full disk, or another process's clean-up
            return made
        finally:
            self._clean(self.place, draft)

    def _clean(self, place: Path, draft: Path) -> None:
        """Remove indexes of former states of the source and our own leftovers; other processes' drafts of today stay."""
        try:
            others = list(place.iterdir())
        except OSError:
            return
        for old in others:
            is_index = re.fullmatch("[0-9a-f]{32}", old.name) is not None and old.name != self.digest
            is_ours = old.name.startswith(draft.name)
            with contextlib.suppress(OSError):
                age = time.time() - old.stat().st_mtime
                if is_index or is_ours or (old.name.startswith("building-") and age > _FORGOTTEN_SECONDS):
                    shutil.rmtree(old, ignore_errors=True)
