"""Data: stores of face images, the attention loader, augmentation.

Names are imported when first used: looking into a folder of images does not wait for torch, and neither do the
processes that decode.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attfc.data.attention_loader import AttentionLoader, Batch
    from attfc.data.decoded_cache import DecodedCache
    from attfc.data.folder import FolderStore
    from attfc.data.images import BrokenImageError, ImageFacts, decode_image, image_facts
    from attfc.data.index import IdentityIndex
    from attfc.data.inspect import BrokenFile, StoreReport, inspect_store
    from attfc.data.opening import open_store
    from attfc.data.preview import contact_sheet
    from attfc.data.store import EncodedStore, Images, Store
    from attfc.data.synthetic import SyntheticFaces
    from attfc.data.transforms import Augment, normalize

_HOMES = {
    "attention_loader": ("AttentionLoader", "Batch"),
    "decoded_cache": ("DecodedCache",),
    "folder": ("FolderStore",),
    "images": ("BrokenImageError", "ImageFacts", "decode_image", "image_facts"),
    "index": ("IdentityIndex",),
    "inspect": ("BrokenFile", "StoreReport", "inspect_store"),
    "opening": ("open_store",),
    "preview": ("contact_sheet",),
    "store": ("EncodedStore", "Images", "Store"),
    "synthetic": ("SyntheticFaces",),
    "transforms": ("Augment", "normalize"),
}
_HOME_OF = {name: f"attfc.data.{home}" for home, names in _HOMES.items() for name in names}

__all__ = [
    "AttentionLoader",
    "Augment",
    "Batch",
    "BrokenFile",
    "BrokenImageError",
    "DecodedCache",
    "EncodedStore",
    "FolderStore",
    "IdentityIndex",
    "ImageFacts",
    "Images",
    "Store",
    "StoreReport",
    "SyntheticFaces",
    "contact_sheet",
    "decode_image",
    "image_facts",
    "inspect_store",
    "normalize",
    "open_store",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'attfc.data' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
