"""Bare state dicts, such as the `backbone.pth` and `model.pt` that arcface_torch writes: read safely, and the network recognised.

A `.pt` file is a zip archive of raw storages and one pickle. Before torch opens it, the archive is measured: every entry stored (a
deflated one may be a bomb), sizes that add up to no more than the file; and `torch_pickle` follows the pickle without building anything.
Then torch's weights_only unpickler reads it; storages are mapped, not read. So nothing is executed and no memory is taken before
names and shapes have been compared with a network on the meta device.

The network follows from the names and shapes: no two networks of the registry share both.
"""

import warnings
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attfc.backbones import backbone_names, create_backbone
from attfc.backbones.shapes import shapes_only
from attfc.errors import UserError, first_line, nearest
from attfc.export.torch_pickle import RefusedNamesError, check_pickle
from attfc.training.checkpoints.weights import open_weights

__all__ = ["UnknownNetworkError", "read_state_dict", "recognise_network"]

LARGEST_FILE, LARGEST_PICKLE, MOST_ENTRIES = 8 * 2**30, 32 * 2**20, 20_000
PREFIXES = ("module.", "_orig_mod.")
INSIDE = ("state_dict_backbone", "state_dict", "backbone", "model")  # where a training checkpoint keeps the network


class UnknownNetworkError(UserError):
    """The tensors are of no network that was tried; whoever asks says which it is."""


def read_state_dict(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Read the tensors of a `.pt`, `.pth` or `.safetensors` file.

    Returns:
        Tensors by name, on the CPU and mapped from the file; and what was done to get there: the entry of a checkpoint that was taken, prefixes of
        DistributedDataParallel or torch.compile that were removed.

    Raises:
        UserError: no such file, larger than 8 GiB, not one of the two formats, more than tensors in it. Nothing of it is executed.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if size > LARGEST_FILE:
        raise UserError(f"{path} has {size:,} bytes, more than {LARGEST_FILE:,}: no face network has that")
    found: Any
    if path.suffix == ".safetensors":
        with open_weights(path) as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    else:
        found = _read_torch(path, size)
    notes: list[str] = []
    for entry in INSIDE:
        if isinstance(found, Mapping) and isinstance(found.get(entry), Mapping):
            left = ", ".join(repr(str(name)[:40]) for name in list(found)[:12] if name != entry)
            notes.append(f"took {entry!r} of the checkpoint" + (f", left {left}" if left else ""))
            found = found[entry]
            break
    if not isinstance(found, Mapping) or not found:
        raise UserError(f"{path} holds {_kind(found)}, no state dict (tensors by name): save model.state_dict()")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
            raise UserError(
                f"{path}: {str(name)[:80]!r} is {_kind(value)}, a state dict has tensors by name: save model.state_dict()"
            )
    tensors = dict(found)
    for prefix in PREFIXES * 2:  # both may stand there, in either order
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
            notes.append(f"removed the prefix {prefix!r}")
    return tensors, tuple(notes)


def recognise_network(
    path: Path, tensors: Mapping[str, Tensor], network: str | None = None, image_size: int | None = None
) -> nn.Module:
    """Build the network whose names and shapes are those of `tensors`, and fill it.

    Args:
        path: for messages.
        tensors: of `read_state_dict`.
        network: its name, see `create_backbone`; None: the one of our registry that fits.
        image_size: in pixels, if it is not the size that the network is made for.

    Returns:
        The backbone on the CPU, in eval mode, float32. No random generator is moved. Counters of BatchNorm (`num_batches_tracked`) that are
        missing are 0: nothing reads them, and files of old torch versions have none.

    Raises:
        UserError: no network fits (the nearest is named, and what differs), or the one given does not.
    """
    candidates = backbone_names() if network is None else (network,)
    nearby: tuple[float, str] | None = None
    for name in candidates:
        try:
            embedding_size, expected = 512, _shapes(name, 512, image_size)
            # Every network ends in a BatchNorm over the embedding.
            last = next((key for key in reversed(expected) if key.endswith("running_mean")), "")
            if last in tensors and tensors[last].dim() == 1 and 1 <= len(tensors[last]) <= 65_536:
                embedding_size = len(tensors[last])
                expected = _shapes(name, embedding_size, image_size)
        except UserError as error:  # a network that does not take images of this size
            if network is not None or (name == candidates[-1] and nearby is None):
                raise UnknownNetworkError(f"{path}: {error}") from None
            continue
        fault = _misfit(expected, tensors)
        if fault is None:
            with torch.random.fork_rng(devices=[]):
                backbone = create_backbone(name, embedding_size=embedding_size, image_size=image_size)
            counters = {
                key: torch.zeros_like(value) for key, value in backbone.state_dict().items() if key not in tensors
            }
            backbone.load_state_dict({**counters, **tensors}, strict=True)
            return backbone.eval()
        shared = len(expected.keys() & tensors.keys()) / len(expected.keys() | tensors.keys())
        # Of equal names the wider network differs as little as the narrower: the first stays.
        if nearby is None or shared > nearby[0]:
            nearby = shared, f"{name}: {fault}"
    assert nearby is not None
    if network is not None:
        raise UnknownNetworkError(f"{path} is not of network {nearby[1]}; leave network= out to have it recognised")
    share, text = nearby
    if share < 0.5:
        some = ", ".join(repr(name[:60]) for name in list(tensors)[:3])
        raise UnknownNetworkError(
            f"{path} is of no network that attfc knows: its {len(tensors)} tensors begin with {some}; `attfc backbones` lists the known"
        )
    raise UnknownNetworkError(
        f"{path} is of no network that attfc knows; the nearest is {text}; another input size is given as image_size=S"
    )


@lru_cache(maxsize=64)
def _shapes(name: str, embedding_size: int, image_size: int | None) -> dict[str, torch.Size]:
    with shapes_only():
        network = create_backbone(name, embedding_size=embedding_size, image_size=image_size)
    return {key: value.shape for key, value in network.state_dict().items()}


def _misfit(expected: Mapping[str, torch.Size], found: Mapping[str, Tensor]) -> str | None:
    """Return what keeps `found` from being the weights, or None."""
    for name, shape in expected.items():
        if name not in found:
            if name.endswith(".num_batches_tracked"):
                continue
            close = nearest(name, found) if len(found) < 2_000 else ""
            return f"{name!r} is missing{close.replace('; did you mean ', ', nearest is ').rstrip('?')}"
        if found[name].shape != shape:
            return f"{name!r} is {tuple(found[name].shape)}, the network needs {tuple(shape)}"
    for name in found:
        if name not in expected:
            return f"{name[:80]!r} is one too many"
    return None


def _read_torch(path: Path, size: int) -> Any:
    _check_archive(path, size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what a strange file is made of; it is refused below
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a hostile archive may fail anywhere in torch's reader
        raise UserError(f"{path} is damaged or no state dict of torch: {first_line(error)}") from None


def _check_archive(path: Path, size: int) -> None:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic[:2] == b"\x80\x02":
        raise UserError(
            f"{path} is in torch's format from before 1.6, whose sizes cannot be checked before they are allocated: save it again with "
            "torch.save(torch.load(file, weights_only=True), file)"
        )
    if magic[:4] != b"PK\x03\x04":
        raise UserError(f"{path} was not written by torch.save: it begins with {magic!r}")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            pickled = _check_entries(path, size, entries)
            if not _directory_is_where_it_says(path, size, archive.start_dir):
                raise ValueError("its table of contents is not where it says")
            data, root = archive.read(pickled), pickled.filename[: -len("data.pkl")] + "data/"
    except UserError:
        raise
    except Exception as error:  # whatever zipfile makes of a hostile archive
        raise UserError(f"{path} is damaged: {first_line(error)}") from None
    records = {
        entry.filename.removeprefix(root): entry.file_size for entry in entries if entry.filename.startswith(root)
    }
    try:
        check_pickle(data, records)
    except RefusedNamesError as error:
        raise UserError(
            f"{path} asks for {error}: refused, nothing of it was executed; attfc reads state dicts only, save model.state_dict()"
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is damaged or no state dict of torch: {first_line(error)}") from None


def _check_entries(path: Path, size: int, entries: list[zipfile.ZipInfo]) -> zipfile.ZipInfo:
    """Refuse an archive that torch.save does not write; return the entry of its pickle."""
    if len(entries) > MOST_ENTRIES:
        raise UserError(f"{path} has {len(entries):,} entries: no network has more than {MOST_ENTRIES:,}")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED:
            raise UserError(
                f"{path}: entry {entry.filename[:80]!r} is compressed: torch.save stores, so it is of something else"
            )
        if "/code/" in entry.filename or entry.filename.endswith("constants.pkl"):
            raise UserError(
                f"{path} is a TorchScript archive, which is a program: attfc reads state dicts only, save model.state_dict()"
            )
        if entry.filename.endswith("data.pkl") and entry.file_size > LARGEST_PICKLE:
            raise UserError(
                f"{path}: its pickle has {entry.file_size:,} bytes, more than {LARGEST_PICKLE:,}: weights are stored beside it"
            )
    total = sum(entry.file_size for entry in entries)
    if total > size:
        raise UserError(f"{path}: its entries claim {total:,} bytes, the file has {size:,}")
    # torch finds entries without regard to case.
    names = {entry.filename.lower() for entry in entries}
    pickles = [entry for entry in entries if entry.filename.lower().endswith("data.pkl")]
    if len(names) != len(entries) or len(pickles) != 1:
        raise UserError(f"{path} is damaged: it is not put together as torch.save does it")
    return pickles[0]


def _directory_is_where_it_says(path: Path, size: int, start: int) -> bool:
    """Whether torch, which goes where the archive's end says, reads the same table of contents as Python, which begins at the end."""
    with path.open("rb") as file:
        file.seek(max(0, size - 98))
        end = file.read()[-98:]
    last, locator, large = end[-22:], end[-42:-22], end[:-42]
    if last[:4] != b"PK\x05\x06":  # a comment behind it
        return False
    said = int.from_bytes(last[16:20], "little")
    if locator[:4] == b"PK\x06\x07":
        if large[:4] != b"PK\x06\x06" or int.from_bytes(locator[8:16], "little") != size - 98:
            return False
        said = int.from_bytes(large[48:56], "little")
    return said == start


def _kind(value: object) -> str:
    return f"a {type(value).__name__}" + ("" if not isinstance(value, Tensor) else f" ({value.layout})")
