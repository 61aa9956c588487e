"""attfc: train face recognition on millions of identities with one GPU.

The names below are the ones users script against. They are imported when first used: `import attfc` costs nothing, and `attfc --help` does not
wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attfc.backbones import create_backbone, list_backbones
    from attfc.commands.training_screen import train
    from attfc.data import AttentionLoader, Augment, SyntheticFaces, open_store
    from attfc.errors import UserError
    from attfc.evaluation import embed_store, evaluate_pairs, evaluate_store
    from attfc.export import FaceModel, from_pretrained, load, open_model
    from attfc.heads import (
        DCP,
        DCQ,
        AttFC,
        CenterTable,
        FullFC,
        ImageMemory,
        KeyAttention,
        OtherImages,
        OwnEmbedding,
        Pairs,
        PartialFC,
        RecentCenters,
        RowStore,
        generative_class_center,
    )
    from attfc.losses import AdaFace, ArcFace, CombinedMargin, CosFace, Margin, class_softmax, container_softmax
    from attfc.training.model_files import load_model, save_model
    from attfc.training.momentum import MomentumPair
    from attfc.training.optimizers import parameter_groups
    from attfc.training.row_optimizers import RowAdamW, RowSGD

_HOMES = {
    "attfc.backbones": ("create_backbone", "list_backbones"),
    "attfc.data": ("AttentionLoader", "Augment", "SyntheticFaces", "open_store"),
    "attfc.export": ("FaceModel", "from_pretrained", "load", "open_model"),
    "attfc.errors": ("UserError",),
    "attfc.evaluation": ("embed_store", "evaluate_pairs", "evaluate_store"),
    "attfc.heads": (
        *("AttFC", "CenterTable", "DCP", "DCQ", "FullFC", "ImageMemory", "KeyAttention", "OtherImages", "OwnEmbedding"),
        *("Pairs", "PartialFC", "RecentCenters", "RowStore", "generative_class_center"),
    ),
    "attfc.losses": ("AdaFace", "ArcFace", "CombinedMargin", "CosFace", "Margin", "class_softmax", "container_softmax"),
    "attfc.commands.training_screen": ("train",),
    "attfc.training.model_files": ("load_model", "save_model"),
    "attfc.training.momentum": ("MomentumPair",),
    "attfc.training.optimizers": ("parameter_groups",),
    "attfc.training.row_optimizers": ("RowAdamW", "RowSGD"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "DCP",
    "DCQ",
    "AdaFace",
    "ArcFace",
    "AttFC",
    "AttentionLoader",
    "Augment",
    "CenterTable",
    "CombinedMargin",
    "CosFace",
    "FaceModel",
    "FullFC",
    "ImageMemory",
    "KeyAttention",
    "Margin",
    "MomentumPair",
    "OtherImages",
    "OwnEmbedding",
    "Pairs",
    "PartialFC",
    "RecentCenters",
    "RowAdamW",
    "RowSGD",
    "RowStore",
    "SyntheticFaces",
    "UserError",
    "class_softmax",
    "container_softmax",
    "create_backbone",
    "embed_store",
    "evaluate_pairs",
    "evaluate_store",
    "from_pretrained",
    "generative_class_center",
    "list_backbones",
    "load",
    "load_model",
    "open_model",
    "open_store",
    "parameter_groups",
    "save_model",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("attfc")
    if name not in _HOME_OF:
        from attfc.errors import nearest

        raise AttributeError(f"module 'attfc' has no attribute {name!r}{nearest(name, __all__)}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__", *(name for name in globals() if name.startswith("__"))})
