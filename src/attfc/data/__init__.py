"""Data: stores of face images, the attention loader, augmentation.

Names are imported when first used: looking into a folder of images does not wait for torch, and neither do the
processes that decode.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attfc.data.cleaning.noise import conflict_noise, flip_noise
    from attfc.data.convert import convert_store
    from attfc.data.images import decode_image
    from attfc.data.index import IdentityIndex
    from attfc.data.inspect import inspect_store
    from attfc.data.loader import AttentionLoader
    from attfc.data.loading.decoded_cache import DecodedCache
    from attfc.data.preview import contact_sheet
    from attfc.data.stores.combined import CombinedStore
    from attfc.data.stores.edits import EditedStore, Edits, read_edits, write_edits
    from attfc.data.stores.folder import FolderStore
    from attfc.data.stores.list_file import ListStore
    from attfc.data.stores.opening import open_store
    from attfc.data.stores.packed.packed_check import PackedCheck, verify_packed
    from attfc.data.stores.packed.packed_store import PackedStore
    from attfc.data.stores.rec.records import RecordStore
    from attfc.data.stores.store import Store
    from attfc.data.stores.synthetic import SyntheticFaces
    from attfc.data.stores.verification_sets import (
        make_verification_set,
        read_verification_set,
        write_verification_set,
    )
    from attfc.data.transforms import Augment

_HOMES = {
    "loader": ("AttentionLoader",),
    "stores.combined": ("CombinedStore",),
    "convert": ("convert_store",),
    "loading.decoded_cache": ("DecodedCache",),
    "stores.edits": ("EditedStore", "Edits", "read_edits", "write_edits"),
    "stores.folder": ("FolderStore",),
    "images": ("decode_image",),
    "index": ("IdentityIndex",),
    "inspect": ("inspect_store",),
    "stores.list_file": ("ListStore",),
    "cleaning.noise": ("conflict_noise", "flip_noise"),
    "stores.opening": ("open_store",),
    "stores.packed.packed_check": ("PackedCheck", "verify_packed"),
    "stores.packed.packed_store": ("PackedStore",),
    "preview": ("contact_sheet",),
    "stores.rec.records": ("RecordStore",),
    "stores.store": ("Store",),
    "stores.synthetic": ("SyntheticFaces",),
    "transforms": ("Augment",),
    "stores.verification_sets": (
        "make_verification_set",
        "read_verification_set",
        "write_verification_set",
    ),
}
_HOME_OF = {name: f"attfc.data.{home}" for home, names in _HOMES.items() for name in names}

__all__ = [
    "AttentionLoader",
    "Augment",
    "CombinedStore",
    "DecodedCache",
    "EditedStore",
    "Edits",
    "FolderStore",
    "IdentityIndex",
    "ListStore",
    "PackedCheck",
    "PackedStore",
    "RecordStore",
    "Store",
    "SyntheticFaces",
    "conflict_noise",
    "contact_sheet",
    "convert_store",
    "decode_image",
    "flip_noise",
    "inspect_store",
    "make_verification_set",
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
