"""Data: stores of face images, the attention loader, augmentation.

Names are imported when first used: looking into a folder of images does not wait for torch, and neither do the
processes that decode.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attfc.data.attention_loader import AttentionLoader, Batch
    from attfc.data.combined import CombinedStore
    from attfc.data.convert import Conversion, convert_store
    from attfc.data.decoded_cache import DecodedCache
    from attfc.data.edits import EditedStore, Edits, read_edits, write_edits
    from attfc.data.folder import FolderStore
    from attfc.data.images import BrokenImageError, ImageFacts, decode_image, image_facts
    from attfc.data.index import IdentityIndex
    from attfc.data.inspect import BrokenFile, StoreReport, inspect_store
    from attfc.data.list_file import ListStore
    from attfc.data.noise import conflict_noise, flip_noise
    from attfc.data.opening import open_store
    from attfc.data.packed import PackedCheck, PackedStore, verify_packed
    from attfc.data.preview import contact_sheet
    from attfc.data.records import RecordStore
    from attfc.data.store import EncodedStore, Images, Store
    from attfc.data.synthetic import SyntheticFaces
    from attfc.data.transforms import Augment, normalize
    from attfc.data.verification_sets import (
        VerificationSet,
        make_verification_set,
        read_verification_set,
        write_verification_set,
    )

_HOMES = {
    "attention_loader": ("AttentionLoader", "Batch"),
    "combined": ("CombinedStore",),
    "convert": ("Conversion", "convert_store"),
    "decoded_cache": ("DecodedCache",),
    "edits": ("EditedStore", "Edits", "read_edits", "write_edits"),
    "folder": ("FolderStore",),
    "images": ("BrokenImageError", "ImageFacts", "decode_image", "image_facts"),
    "index": ("IdentityIndex",),
    "inspect": ("BrokenFile", "StoreReport", "inspect_store"),
    "list_file": ("ListStore",),
    "noise": ("conflict_noise", "flip_noise"),
    "opening": ("open_store",),
    "packed": ("PackedCheck", "PackedStore", "verify_packed"),
    "preview": ("contact_sheet",),
    "records": ("RecordStore",),
    "store": ("EncodedStore", "Images", "Store"),
    "synthetic": ("SyntheticFaces",),
    "transforms": ("Augment", "normalize"),
    "verification_sets": (
        "VerificationSet",
        "make_verification_set",
        "read_verification_set",
        "write_verification_set",
    ),
}
_HOME_OF = {name: f"attfc.data.{home}" for home, names in _HOMES.items() for name in names}

__all__ = [
    "AttentionLoader",
    "Augment",
    "Batch",
    "BrokenFile",
    "BrokenImageError",
    "CombinedStore",
    "Conversion",
    "DecodedCache",
    "EditedStore",
    "Edits",
    "EncodedStore",
    "FolderStore",
    "IdentityIndex",
    "ImageFacts",
    "Images",
    "ListStore",
    "PackedCheck",
    "PackedStore",
    "RecordStore",
    "Store",
    "StoreReport",
    "SyntheticFaces",
    "VerificationSet",
    "conflict_noise",
    "contact_sheet",
    "convert_store",
    "decode_image",
    "flip_noise",
    "image_facts",
    "inspect_store",
    "make_verification_set",
    "normalize",
    "open_store",
    "read_edits",
    "read_verification_set",
    "verify_packed",
    "write_edits",
    "write_verification_set",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'attfc.data' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
