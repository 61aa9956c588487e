"""Checkpoints: the whole state of a run in one folder, written so that a crash at any instant leaves the last one whole.

``checkpoints/step_000000100/`` holds ``tensors_00000.safetensors`` (one per rank), ``state.json`` (everything that is not a tensor) and
``manifest.json`` (sizes and checksums, written last). torch.distributed.checkpoint carries the tensors, so DTensors are saved in shards and
load on another number of ranks. Nothing is pickled, and nothing is ever unpickled: a stranger's checkpoint can be wrong but runs no code.

Order of a save: a hidden temporary folder beside the last checkpoint -> its files, each forced to the disk -> the folder itself -> one
rename -> the parent folder. Until the rename nothing visible has changed. Disk: the new checkpoint stands beside the old ones until they
are pruned. Memory: one tensor. Time: the disk's, and about 1 s per GB for checksums.

Layout: a tensor comes back with the strides it had (channels-last momentum stays so), values bit for bit.
"""

import contextlib
import errno
import json
import re
import shutil
import zlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attfc.distributed import Ranks
from attfc.errors import UserError
from attfc.files import crc32_of, sync, sync_folder
from attfc.training.checkpoints.manifest import (
    DTYPES,
    MANIFEST,
    MAX_JSON_BYTES,
    STATE,
    Manifest,
    SavedFile,
    SavedTensor,
    is_dense,
    read_manifest,
    read_state,
)
from attfc.training.checkpoints.state_tree import join_state, split_state

__all__ = ["latest_checkpoint", "load_checkpoint", "prune_checkpoints", "refuse_without_room", "save_checkpoint"]

# A save of a step that is there already moves the old one to .step_N.old for an instant; it counts as a checkpoint until the new one is in place.
_WHOLE = re.compile(r"step_([0-9]{9,})|\.step_([0-9]{9,})\.old")
_LEFTOVER = re.compile(r"\.step_[0-9]{9,}\.(partial|old|removed)")


def save_checkpoint(
    folder: Path,
    step: int,
    state: Mapping[str, Any],
    spread: Callable[[str, Tensor], Tensor] = lambda _, tensor: tensor,
) -> Path:
    """Write `state` to ``folder/step_<step, nine digits>/``, atomically; all ranks call it where there are several.

    Args:
        folder: of the run's checkpoints; made if missing.
        step: >= 0; a checkpoint of the same step is replaced.
        state: nested dicts, lists and tuples of tensors (DTensors too) and None, bool, int, float, str. With several ranks, values
            that are not DTensors are taken from rank 0.
        spread: asked as spread(name, tensor) for each tensor: what is saved of it, such as a DTensor of which it is this rank's shard.

    Returns:
        The folder of the checkpoint.

    Raises:
        UserError: it could not be written (disk full, no permission ...): what was written is removed again, earlier checkpoints stand.
        TypeError: a value of `state` that a checkpoint cannot hold.
    """
    if step < 0:
        raise ValueError(f"step {step} is negative")
    folder = Path(folder)
    final = folder / f"step_{step:09d}"
    partial = folder / f".step_{step:09d}.partial"
    tree, own = split_state(state)
    tensors = {name: spread(name, tensor) for name, tensor in own.items()}
    text = json.dumps(tree).encode()
    if len(text) > MAX_JSON_BYTES:
        raise TypeError(
            f"the state without its tensors takes {len(text)} bytes as JSON, more than {MAX_JSON_BYTES}: keep long lists as tensors"
        )
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.dtype not in DTYPES.values() or tensor.device.type == "meta":
            raise TypeError(
                f"tensor {name!r} of the state ({tensor.dtype}, {tensor.layout}, on {tensor.device}) cannot be saved: "
                f"a checkpoint holds dense tensors of {', '.join(str(dtype).removeprefix('torch.') for dtype in DTYPES.values())}"
            )
    strides = {
        name: tensor.stride()
        for name, tensor in tensors.items()
        if not tensor.is_contiguous() and is_dense(tensor.shape, tensor.stride())
    }

    def begin() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        partial.mkdir()

    def finish(saved: dict[str, SavedTensor], files: dict[str, SavedFile]) -> None:
        _write_durably(partial / STATE, text)
        files = {**files, STATE: SavedFile(bytes=len(text), crc32=zlib.crc32(text))}
        _write_durably(partial / MANIFEST, Manifest(step=step, files=files, tensors=saved).model_dump_json().encode())
        sync_folder(partial)
        old = final.with_name(f".{final.name}.old")
        if final.exists():
            final.rename(old)
        partial.rename(final)
        sync_folder(folder)
        shutil.rmtree(old, ignore_errors=True)

    # Imported here: torch.distributed.checkpoint takes a second, and models are loaded without it.
    from attfc.training.checkpoints.storage import FolderWriter

    try:
        FolderWriter(partial, begin, finish, strides).save(tensors)
    except BaseException as error:
        if Ranks.world().rank == 0:
            with contextlib.suppress(OSError):
                remove_leftovers(folder)
        if isinstance(error, OSError):
            needed = len(text) + sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())
            raise UserError(_failure(error, final, needed)) from error
        raise
    return final


def load_checkpoint(
    path: Path,
    *,
    place: Callable[[str, tuple[int, ...], torch.dtype], Tensor | None] = lambda *_: None,
    only: Collection[str] | None = None,
) -> dict[str, Any]:
    """Read a checkpoint back: the state as it was saved; all ranks call it where there are several.

    Args:
        path: a folder that `save_checkpoint` returned.
        place: asked as place(name, size, dtype) for each tensor: the one to fill, or None for a new one on the CPU; whoever owns the state
            copies that (``module.load_state_dict``). So a rank reads its own shard of a tensor into a DTensor, and rows into the file
            that they live in.
        only: the first keys of the state that are wanted; default all. The others are neither read nor returned.

    Returns:
        The state, with the tensors of `place` in it; of a DTensor, this rank's shard.

    Raises:
        UserError: missing, damaged (a checksum differs) or forged; nothing was filled then.
    """
    path = Path(path)
    ranks = Ranks.world()
    manifest, tree = ranks.together(lambda: _read_and_check(path, ranks))
    if only is not None:
        tree = {key: tree[key] for key in only if key in tree} if isinstance(tree, dict) else tree
        wanted = {name: tensor for name, tensor in manifest.tensors.items() if name.split("/")[0].split("~")[0] in only}
        manifest = manifest.model_copy(update={"tensors": wanted})
    tensors = {}
    for name, saved in manifest.tensors.items():
        dtype = DTYPES[saved.dtype]
        target = place(name, saved.size, dtype)
        if target is None:
            target = torch.empty(saved.size, dtype=dtype, device="cpu")
            if saved.strides is not None:
                target = torch.empty_strided(saved.size, saved.strides, dtype=dtype, device="cpu")
        tensors[name] = target
    from attfc.training.checkpoints.storage import FolderReader

    reader = FolderReader(path, manifest)
    try:
        state = join_state(tree, reader.own(tensors))
    except (UserError, RecursionError) as error:
        raise UserError(f"{path / STATE} is damaged or forged: {error}") from None
    if not isinstance(state, dict):
        raise UserError(f"{path / STATE} is damaged or forged: it holds no state")
    reader.load(tensors)
    return state


def _read_and_check(path: Path, ranks: Ranks) -> tuple[Manifest, Any]:
    """Return table of contents and tree; the ranks share the work of the checksums."""
    if not path.is_dir():
        raise UserError(f"there is no checkpoint at {path}")
    manifest = read_manifest(path)
    for number, (name, file) in enumerate(manifest.files.items()):
        if number % ranks.size == ranks.rank and crc32_of(path / name) != file.crc32:
            raise UserError(
                f"checkpoint {path} is damaged: the checksum of {name} differs from the one written; remove it to resume from an earlier one"
            )
    return manifest, read_state(path / STATE)


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint of `folder`, or None; temporary and damaged ones are passed over. Reads sizes, not contents."""
    return next((path for _, path in _candidates(Path(folder)) if _is_whole(path)), None)


def prune_checkpoints(folder: Path, keep: int) -> list[Path]:
    """Remove all but the newest `keep` whole checkpoints, and what is older than them; returns the paths removed.

    Raises:
        UserError: keep < 1.
    """
    if keep < 1:
        raise UserError(f"cannot keep {keep} checkpoints: a run needs at least its last one (checkpoint.keep=1)")
    folder = Path(folder)
    if Ranks.world().rank:
        return []
    removed = []
    kept = 0
    for step, path in _candidates(folder):
        if kept < keep:
            kept += _is_whole(path)
            continue
        condemned = folder / f".step_{step:09d}.removed"
        shutil.rmtree(condemned, ignore_errors=True)
        if path.name.startswith("step_"):  # a crash in mid-removal must not leave half a checkpoint under its name
            path.rename(condemned)
            shutil.rmtree(condemned, ignore_errors=True)
        else:
            shutil.rmtree(path, ignore_errors=True)
        removed.append(path)
    return removed


def remove_leftovers(folder: Path) -> None:
    """Remove what an interrupted save or removal left behind, and finish a replacement that was cut short; `save_checkpoint` calls it."""
    for path in list(folder.iterdir()):
        match = _LEFTOVER.fullmatch(path.name)
        if match is None or path.is_symlink() or not path.is_dir():
            continue
        final = folder / path.name.removeprefix(".").rsplit(".", 1)[0]
        if match[1] == "old" and not final.exists():
            path.rename(final)
        else:
            shutil.rmtree(path)


def _candidates(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, path) of everything that is named as a checkpoint, newest first."""
    if not folder.is_dir():
        return []
    found = []
    for path in folder.iterdir():
        match = _WHOLE.fullmatch(path.name)
        if match and path.is_dir() and not path.is_symlink():
            found.append((int(match[1] or match[2]), match[1] is not None, path))
    return [(step, path) for step, _, path in sorted(found, reverse=True)]


def _is_whole(path: Path) -> bool:
    try:
        read_manifest(path)
    except UserError:
        return False
    return True


def _failure(error: OSError, final: Path, needed: int) -> str:
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        free = shutil.disk_usage(_there(final.parent)).free
        reason += f" (needs {needed / 2**20:.1f} MiB, {free / 2**20:.1f} MiB are free)"
    earlier = latest_checkpoint(final.parent) is not None
    saved = "what was saved before is untouched" if earlier else "nothing was saved before"
    then = "then resume the run" if earlier else "then begin the run again"
    return f"cannot save checkpoint {final}: {reason}; {saved}: make room or permission there, {then}"


def _there(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that is there."""
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())


def refuse_without_room(folder: Path, state: Mapping[str, Any]) -> None:
    """Refuse to go on where the disk has no room for one checkpoint of `state`; of several ranks' rows, for this rank's.

    Raises:
        UserError: it has not. A file system that states no size is taken to have it.
    """
    needed = sum(tensor.numel() * tensor.itemsize for tensor in split_state(state)[1].values())
    existing = _there(folder)
    disk = shutil.disk_usage(existing)
    if disk.total and disk.free < needed:
        raise UserError(
            f"a checkpoint takes {needed / 2**20:,.1f} MiB, and {disk.free / 2**20:,.1f} MiB are free in {existing}: make room there, "
            "or begin the run with output=FOLDER on another disk"
        )


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        sync(file)
