"""Every backbone by name: a plain dict of builders, and the table that `attfc backbones` prints.

A builder takes ``name, embedding_size, image_size`` and its own keyword options and returns the network. The table's counts stand beside
the builders: counting takes ten seconds, nearly all of it torch importing its compiler. A test counts every network anew.
Names: those of arcface_torch, ours (`*_tiny`), and ``timm:NAME`` for any network of timm.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from attfc.backbones.iresnet import IRESNET_BLOCKS, IResNet
from attfc.backbones.mobilefacenet import MOBILEFACENET_SHAPES, MobileFaceNet
from attfc.backbones.timm_models import TimmBackbone
from attfc.backbones.tiny import TINY_BLOCKS, TinyIResNet
from attfc.backbones.vit import VIT_SHAPES, VisionTransformer
from attfc.errors import UserError, nearest

__all__ = ["BackboneInfo", "backbone_names", "create_backbone", "list_backbones"]


@dataclass(frozen=True)
class BackboneInfo:
    """A row of the table: counts of one image (multiply-accumulates in 10^9), sizes in pixels, the embedding size that they hold for."""

    name: str
    params: int
    gmacs: float
    attention_gmacs: float
    image_size: int
    embedding_size: int
    source: str


@dataclass(frozen=True)
class Entry:
    """A builder, where its architecture comes from, and the image size it is made for."""

    build: Callable[..., nn.Module]
    source: str
    image_size: int | None


_ENTRIES: dict[str, Entry] = {
    **{n: Entry(partial(MobileFaceNet, *shape), "arcface_torch", 112) for n, shape in MOBILEFACENET_SHAPES.items()},
    **{n: Entry(partial(IResNet, blocks), "arcface_torch", 112) for n, blocks in IRESNET_BLOCKS.items()},
    **{n: Entry(partial(VisionTransformer, *shape), "arcface_torch", 112) for n, shape in VIT_SHAPES.items()},
    **{n: Entry(partial(TinyIResNet, *shape), "attfc", 56) for n, shape in TINY_BLOCKS.items()},
}

# Parameters; multiply-accumulates of convolutions and linear layers, and of attention; embeddings of 512 numbers.
_COUNTS = {
    "mbf": (2_059_520, 437_520_896, 0),
    "mbf_large": (6_314_880, 1_816_482_816, 0),
    "r18": (24_025_600, 2_609_954_816, 0),
    "r34": (34_139_328, 4_459_642_880, 0),
    "r50": (43_590_848, 6_309_330_944, 0),
    "r100": (65_156_160, 12_089_606_144, 0),
    "r200": (118_833_920, 23_418_945_536, 0),
    "vit_t": (19_137_792, 1_377_480_704, 127_401_984),
    "vit_s": (76_023_296, 5_491_744_768, 254_803_968),
    "vit_b": (113_833_472, 10_927_562_752, 509_607_936),
    "vit_l": (255_684_352, 24_573_382_656, 764_411_904),
    "r10_tiny": (2_462_016, 48_947_200, 0),
    "r6_tiny": (1_680_448, 7_827_456, 0),
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


def list_backbones() -> tuple[BackboneInfo, ...]:
    """Return a row for every name that `create_backbone` takes, but for ``timm:NAME``; counts are of its own image size."""
    return tuple(
        BackboneInfo(
            name, params, dense / 1e9, attention / 1e9, _ENTRIES[name].image_size or 0, 512, _ENTRIES[name].source
        )
        for name, (params, dense, attention) in _COUNTS.items()
    )
