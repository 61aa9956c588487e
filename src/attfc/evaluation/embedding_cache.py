"""Embeddings of long lists of images on disk, so that a second protocol, option or interrupted evaluation costs nothing.

`PLACE/KEY/image.npy` and `mirror.npy`: (N, D) float32, as the model gave them, neither added nor normalized: every option of every protocol
follows from these two. The key is a digest of the model's contents and of the list (`CacheKey`); files are memory-mapped, so opening is
immediate. Rows are written as they come, in `KEY.partial`, and the folder is renamed when all are there: an evaluation that was stopped
goes on where it was. One process writes an entry, a second one is told so. Cost: 8 N D bytes, 1.9 GB for IJB-C at 512 numbers.

Trusted like the user's own files; a damaged entry is an error that names the folder to delete.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from attfc.errors import UserError
from attfc.files import cache_home, lock, write_json_whole
from attfc.typing import Float32, Json, Progress

__all__ = ["CacheKey", "FaceEmbeddings", "cached_embeddings", "default_cache", "model_digest", "open_embeddings"]

Batch = tuple[Tensor, Tensor, dict[int, str], tuple[int, ...]]

_FORMAT = "attfc embeddings 1"
_ARRAYS = ("image.npy", "mirror.npy")
_SAVE_SECONDS = 10.0


@dataclass(frozen=True, eq=False)
class FaceEmbeddings:
    """Embeddings of N images, as the model gave them.

    Attributes:
        image: (N, D) float32, memory-mapped, read-only. mirror: the same of the mirrored images.
        broken: row -> why the image could not be used; its rows are zeros.
        remarked: rows of images that were used, with something to be said (`FaceImages` says what).
        seconds: wall time of embedding, summed over all attempts.
        folder: where they lie.
        reused: how many rows were there already.
    """

    image: Float32
    mirror: Float32
    broken: dict[int, str] = field(default_factory=dict)
    remarked: tuple[int, ...] = ()
    seconds: float = 0.0
    folder: Path | None = None
    reused: int = 0


class CacheKey:
    """A digest of everything that embeddings depend on, fed piece by piece with a name for each.

    >>> CacheKey("r50", size=112).add("names", b"1.jpg").digest == CacheKey("r50", size=112).add("names", b"2.jpg").digest
    False
    """

    def __init__(self, *facts: object, **named: object) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self.add("format", _FORMAT.encode())
        self.add("facts", json.dumps([list(map(str, facts)), sorted((k, str(v)) for k, v in named.items())]).encode())

    def add(self, name: str, content: bytes | npt.NDArray[np.generic]) -> "CacheKey":
        """Add one piece; names and lengths go in as well, so that pieces cannot run into each other."""
        array = np.frombuffer(content, np.uint8) if isinstance(content, bytes) else np.ascontiguousarray(content)
        self._hash.update(f"{name} {array.dtype} {array.shape} ".encode())
        self._hash.update(array.data if array.size else b"")
        return self

    @property
    def digest(self) -> str:
        """32 hexadecimal digits."""
        return self._hash.hexdigest()


def model_digest(model: nn.Module) -> str:
    """Return a digest of a module's structure, parameters and buffers: 32 hexadecimal digits.

    About 1 s for 250 MB of weights. What a module holds elsewhere is not seen: for one that wraps an ONNX session add its file to the key.

    Raises:
        UserError: a module without parameters and buffers.
    """
    state = model.state_dict()
    if not state:
        raise UserError(
            f"{type(model).__name__} has no parameters: its embeddings cannot be told from another model's; pass model_key="
        )
    key = CacheKey(type(model).__qualname__, repr(model))
    for name, tensor in state.items():
        if isinstance(tensor, Tensor):
            key.add(name, tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return key.digest


def default_cache() -> Path:
    """Return `attfc/embeddings` in the user's cache folder ($XDG_CACHE_HOME or ~/.cache)."""
    return cache_home() / "attfc" / "embeddings"


def cached_embeddings(
    place: Path,
    key: CacheKey,
    rows: int,
    size: int,
    embed: Callable[[int], Iterable[Batch]],
    progress: Progress | None = None,
) -> FaceEmbeddings:
    """Return the embeddings of a key, from disk as far as they are there.

    Args:
        place: the folder of all entries.
        key: of these.
        rows: N. size: D.
        embed: `embed(start)` yields (image (B, D) float32, mirror (B, D), {row in the list: reason}, rows with a remark) for the
            images from `start` on, in order.
        progress: called as (rows done, rows).

    Raises:
        UserError: another process is writing this entry; the entry is damaged; the disk is full; `embed` gave other numbers of rows or columns.
        OSError: the folder cannot be written to.
    """
    whole, partial = place / key.digest, place / f"{key.digest}.partial"
    if whole.is_dir():
        return open_embeddings(whole, rows, size, rows)
    partial.mkdir(parents=True, exist_ok=True)
    lock_file = place / f"{key.digest}.lock"
    with lock_file.open("w") as file:
        if not lock(file):
            raise UserError(f"{whole}: another process is embedding this list with this model: wait for it")
        try:
            if whole.is_dir():  # the other one has just finished it
                return open_embeddings(whole, rows, size, rows)
            reused = _fill(partial, rows, size, embed, progress)
            partial.rename(whole)
        finally:
            lock_file.unlink(missing_ok=True)
    return open_embeddings(whole, rows, size, reused)


def _fill(
    partial: Path, rows: int, size: int, embed: Callable[[int], Iterable[Batch]], progress: Progress | None
) -> int:
    state_file = partial / "state.json"
    state: Json = {"rows": 0, "broken": {}, "remarked": [], "seconds": 0.0}
    if state_file.exists():
        state = _read_state(state_file)
    else:
        for name in _ARRAYS:
            _make(partial / name, rows, size)
    arrays = [_array(partial / name, rows, size, "r+") for name in _ARRAYS]
    start: int = state["rows"]
    began = saved = time.monotonic()
    before = state["seconds"]

    def save() -> None:
        for array in arrays:
            array.flush()
        state["seconds"] = before + time.monotonic() - began
        write_json_whole(state_file, state)

    if progress is not None:
        progress(start, rows)
    try:
        for *both, broken, remarked in embed(start) if start < rows else ():
            done, stop = state["rows"], state["rows"] + len(both[0])
            if stop > rows or any(vectors_BD.shape != (stop - done, size) for vectors_BD in both):
                shapes = " and ".join(str(tuple(vectors_BD.shape)) for vectors_BD in both)
                raise UserError(
                    f"the model gave embeddings of {shapes}, {size} numbers for each of "
                    f"{rows - done} images are expected: is its embedding_size right?"
                )
            for array, vectors_BD in zip(arrays, both, strict=True):
                array[done:stop] = vectors_BD.numpy()
            state["broken"].update({str(row): reason for row, reason in broken.items()})
            state["remarked"].extend(remarked)
            state["rows"] = stop
            if progress is not None:
                progress(stop, rows)
            if time.monotonic() - saved > _SAVE_SECONDS:
                save()
                saved = time.monotonic()
    finally:
        save()
    if state["rows"] != rows:
        raise UserError(f"{state['rows']:,} of {rows:,} images were embedded: the list ended early")
    return start


def _make(path: Path, rows: int, size: int) -> None:
    """Make an array of zeros that has its place on the disk: a disk that fills up under a mapped file ends the process without a word."""
    try:
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, size))
        if hasattr(os, "posix_fallocate"):
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        needed = rows * size * 4 * len(_ARRAYS) / 2**20
        raise UserError(
            f"{path} cannot be written: {error.strerror}; {needed:,.1f} MiB are needed: make room there"
        ) from error


def open_embeddings(folder: Path, rows: int, size: int, reused: int = 0) -> FaceEmbeddings:
    """Open an entry that is whole, of N rows of D numbers; `reused` goes into the result.

    Raises:
        UserError: it is damaged, or of other sizes.
    """
    state = _read_state(folder / "state.json")
    if state["rows"] != rows:
        raise _damaged(folder, f"{state['rows']} rows, {rows} expected")
    image, mirror = (_array(folder / name, rows, size, "r") for name in _ARRAYS)
    return FaceEmbeddings(
        image,
        mirror,
        broken={int(row): str(reason) for row, reason in state["broken"].items()},
        remarked=tuple(int(row) for row in state["remarked"]),
        seconds=float(state["seconds"]),
        folder=folder,
        reused=reused,
    )


def _read_state(path: Path) -> Json:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(state["rows"], int) or not isinstance(state["broken"], dict) or state["rows"] < 0:
            raise ValueError("rows")
        return {**state, "seconds": float(state["seconds"]), "remarked": list(state["remarked"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path.parent, f"state.json: {error}") from None


def _array(path: Path, rows: int, size: int, mode: Any) -> "np.memmap[Any, np.dtype[np.float32]]":
    try:
        array: np.memmap[Any, np.dtype[np.float32]] = np.load(path, mmap_mode=mode, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(path.parent, f"{path.name}: {error}") from None
    if array.shape != (rows, size) or array.dtype != np.float32:
        raise _damaged(path.parent, f"{path.name} is {array.dtype} {array.shape}, float32 {(rows, size)} expected")
    return array


def _damaged(folder: Path, what: str) -> UserError:
    return UserError(f"{folder}: damaged embeddings ({what}): delete that folder, and they are computed again")
