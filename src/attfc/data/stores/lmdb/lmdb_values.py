"""What a value of an LMDB set holds: a tuple of an encoded image and a label, as msgpack or as a pickle that is read as data.

Layouts: (image, label) and (image, features, label), msgpack, of Vec2Face's HSFace sets (github.com/HaiyuWu/Vec2Face); (image, label), pickled,
of the many descendants of folder2lmdb (github.com/Lyken17/Efficient-PyTorch). Of msgpack only a list of bytes, text and whole numbers is
read; a pickle is never run (`restricted_pickle`). Cost: a few microseconds per value (msgpack), some 30 (pickle).
"""

import contextlib
import io
import struct
from typing import Any

from attfc.data.stores.plain_pickle import PlainArray, PlainUnpickler
from attfc.data.stores.restricted_pickle import describe
from attfc.errors import UserError

__all__ = ["image_and_label", "plain_value"]

_INTEGERS = {0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}  # text too: bytes as msgpack wrote them until 2018
_LISTS = {0xDC: 2, 0xDD: 4}


class _OtherError(Exception):
    """What no set of images needs."""


class _Unpickler(PlainUnpickler):
    needed_by = "set of images"


def plain_value(value: bytes, shown: str) -> Any:
    """Return what a value holds: of msgpack a whole number, bytes, or a list of them; of a pickle what `PlainUnpickler` admits.

    Raises:
        UserError: neither, or damaged; `shown` says where.
    """
    if value[:1] == b"\x80":
        return _Unpickler(io.BytesIO(value), shown, len(value)).load()
    with contextlib.suppress(IndexError, struct.error, _OtherError):
        found, end = _unpacked(value, 0)
        if end == len(value):
            return found
    raise UserError(
        f"{shown}: refused: {len(value):,} bytes that begin with 0x{value[:1].hex()} and are neither a pickle nor msgpack of bytes and "
        "whole numbers; sets of images have (encoded image, label) there"
    )


def _unpacked(value: bytes, at: int) -> tuple[Any, int]:
    """Return what begins at a byte, and where it ends."""
    code, at = value[at], at + 1
    if code < 0x80 or code >= 0xE0:
        return (code + 128) % 256 - 128, at
    if code in _INTEGERS:
        return struct.unpack_from(_INTEGERS[code], value, at)[0], at + struct.calcsize(_INTEGERS[code])
    if code in _BYTES or 0xA0 <= code < 0xC0:
        size, length = _BYTES.get(code, 0), code & 0x1F
        if size:
            length = int.from_bytes(value[at : at + size])
        end = at + size + length
        return value[at + size : end], end
    if code in _LISTS or 0x90 <= code < 0xA0:
        size, length = _LISTS.get(code, 0), code & 0x0F
        if size:
            length = int.from_bytes(value[at : at + size])
        at, found = at + size, []
        for _ in range(length):  # each takes a byte at least, so a long list ends with the value
            if value[at] in _LISTS or 0x90 <= value[at] < 0xA0:  # no list in a list: nothing recurses
                raise _OtherError
            item, at = _unpacked(value, at)
            found.append(item)
        return found, at
    raise _OtherError


def image_and_label(value: bytes, shown: str) -> tuple[int, int, int]:
    """Return where in a value its image begins, the image's length, and the label: the first bytes and the first whole number in it.

    Raises:
        UserError: it holds no such thing; `shown` says where.
    """
    found = plain_value(value, shown)
    parts = found if isinstance(found, list | tuple) else []
    images = [part.values if isinstance(part, PlainArray) and part.dtype == "|u1" else part for part in parts]
    image = next((part for part in images if isinstance(part, bytes)), None)
    label = next((part for part in parts if isinstance(part, int) and 0 <= part < 10**18), None)
    if image is None or label is None:
        held = ", ".join(map(describe, parts[:4])) or describe(found)
        raise UserError(f"{shown}: holds {held}: (encoded image, label) is needed, a whole number as the label")
    at = value.find(image)
    if at < 0 or not image:
        raise UserError(f"{shown}: holds no image in one piece: pickle it with protocol 3 or later")
    return at, len(image), label
