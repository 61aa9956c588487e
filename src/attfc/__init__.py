"""attfc: train face recognition on millions of identities with one GPU.

The names below are the ones users script against (DESIGN section 11). They are imported when first used: `import attfc` costs nothing, and
`attfc --help` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attfc.backbones import create_backbone, list_backbones
    from attfc.data import AttentionLoader, Augment, SyntheticFaces, open_store
    from attfc.deploy import FaceModel, from_pretrained, load, open_model
    from attfc.errors import UserError
    from attfc.evaluation import embed_store, evaluate_pairs, evaluate_store
    from attfc.heads import DCP, DCQ, AttFC, FullFC, PartialFC, generative_class_center
    from attfc.losses import AdaFace, ArcFace, CombinedMargin, CosFace, class_softmax, container_softmax
    from attfc.training.model_files import load_model, save_model
    from attfc.training.momentum import MomentumPair

_HOMES = {
    "attfc.backbones": ("create_backbone", "list_backbones"),
    "attfc.data": ("AttentionLoader", "Augment", "SyntheticFaces", "open_store"),
    "attfc.deploy": ("FaceModel", "from_pretrained", "load", "open_model"),
    "attfc.errors": ("UserError",),
    "attfc.evaluation": ("embed_store", "evaluate_pairs", "evaluate_store"),
    "attfc.heads": ("DCP", "DCQ", "AttFC", "CenterTable", "FullFC", "PartialFC", "generative_class_center"),
    "attfc.losses": ("AdaFace", "ArcFace", "CombinedMargin", "CosFace", "class_softmax", "container_softmax"),
    "attfc.training.model_files": ("load_model", "save_model"),
    "attfc.training.momentum": ("MomentumPair",),
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
    "CombinedMargin",
    "CosFace",
    "FaceModel",
    "FullFC",
    "MomentumPair",
    "PartialFC",
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
    "save_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'attfc' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
