"""Every backbone by name: a plain dict of builders, and the table that `attfc backbones` prints.

A builder takes ``name, embedding_size, image_size`` and its own keyword options and returns the network. The counts of the table
are not written down but counted on the meta device (a few seconds, once per process: most of it is torch importing its shape rules).
Names: those of arcface_torch, ours (`*_tiny`), and ``timm:NAME`` for any network of timm.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import cast

from torch import nn

from attfc.backbones.counting import count_macs, count_parameters, shapes_only
from attfc.backbones.iresnet import IRESNET_BLOCKS, IResNet
from attfc.backbones.mobilefacenet import MOBILEFACENET_SHAPES, MobileFaceNet
from attfc.backbones.timm_models import TimmBackbone
from attfc.backbones.tiny import TINY_BLOCKS, TinyIResNet
from attfc.backbones.vit import VIT_SHAPES, VisionTransformer
from attfc.errors import UserError, nearest

__all__ = ["BackboneInfo", "backbone_names", "create_backbone", "list_backbones"]


@dataclass(frozen=True)
class Entry:
    """A builder, where its architecture comes from, and the image size it is made for."""

    build: Callable[..., nn.Module]
    source: str
    image_size: int | None


@dataclass(frozen=True)
class BackboneInfo:
    """A row of the table: counts of one image, sizes in pixels."""

    name: str
    params: int
    gmacs: float
    attention_gmacs: float
    image_size: int
    embedding_size: int
    source: str


_ENTRIES: dict[str, Entry] = {
    **{n: Entry(partial(MobileFaceNet, *shape), "arcface_torch", 112) for n, shape in MOBILEFACENET_SHAPES.items()},
    **{n: Entry(partial(IResNet, blocks), "arcface_torch", 112) for n, blocks in IRESNET_BLOCKS.items()},
    **{n: Entry(partial(VisionTransformer, *shape), "arcface_torch", 112) for n, shape in VIT_SHAPES.items()},
    **{n: Entry(partial(TinyIResNet, *shape), "attfc", 56) for n, shape in TINY_BLOCKS.items()},
}


def create_backbone(
    name: str, embedding_size: int = 512, image_size: int | None = None, **options: object
) -> nn.Module:
    """Build a backbone: (B, 3, S, S) float RGB in [-1, 1] -> (B, embedding_size) float32.

    Args:
        name: see `list_backbones`, or ``timm:NAME``.
        embedding_size: length of the output.
        image_size: S in pixels; None: what the network is made for (112; 56 for ours; timm's own).
        options: of the network, such as ``dropout=0.1`` or ``checkpointing=True``; see the classes.

    Returns:
        A module with attributes `name`, `embedding_size` and `image_size`. New weights, drawn from torch's generator.

    Raises:
        UserError: unknown name or option, or a size that does not fit.

    >>> import torch
    >>> create_backbone("r6_tiny", embedding_size=64)(torch.zeros(2, 3, 56, 56)).shape
    torch.Size([2, 64])
    """
    if name.startswith("timm:"):
        entry = Entry(TimmBackbone, "timm", None)
    elif name in _ENTRIES:
        entry = _ENTRIES[name]
    else:
        known = ", ".join([*_ENTRIES, "timm:NAME"])
        raise UserError(f"no backbone is called {name!r}{nearest(name, _ENTRIES)}: known are {known}")
    if embedding_size < 1:
        raise UserError(f"embedding_size {embedding_size} of backbone {name}: use a positive number, such as 512")
    if image_size is not None and image_size < 1:
        raise UserError(f"image_size {image_size} of backbone {name}: use a positive number of pixels, such as 112")
    keywords = [p.name for p in inspect.signature(entry.build).parameters.values() if p.kind is p.KEYWORD_ONLY]
    takes = [keyword for keyword in keywords if keyword not in ("embedding_size", "image_size", "name")]
    for option in options:
        if option not in takes:
            raise UserError(
                f"backbone {name} has no option {option!r}{nearest(option, takes)}: it takes {', '.join(takes)}"
            )
    size = entry.image_size if image_size is None else image_size
    return entry.build(name=name, embedding_size=embedding_size, image_size=size, **options)


def backbone_names() -> tuple[str, ...]:
    """Return the names of our registry (not timm's); counts nothing, so it costs nothing."""
    return tuple(_ENTRIES)


@cache
def list_backbones() -> tuple[BackboneInfo, ...]:
    """Return a row for every name that `create_backbone` takes, but for ``timm:NAME``, counted at its own image size."""
    rows = []
    for name, entry in _ENTRIES.items():
        with shapes_only():
            network = create_backbone(name)
        size = int(cast(int, network.image_size))
        macs = count_macs(network, size)
        gmacs, attention = macs.dense / 1e9, macs.attention / 1e9
        rows.append(BackboneInfo(name, count_parameters(network), gmacs, attention, size, 512, entry.source))
    return tuple(rows)
