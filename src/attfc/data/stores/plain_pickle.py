"""What verification sets hold, by `RestrictedUnpickler`: lists, tuples, bytes, text, whole numbers, and arrays as they are written.

Eleven names stand for bytes and arrays in what Python 2 and 3 and NumPy 1 and 2 write. They are words in a table here, each standing for
a few lines below; no constructor of NumPy is reached, and an array's declared size is compared with the elements that came.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from attfc.data.stores.restricted_pickle import RestrictedUnpickler, describe
from attfc.errors import UserError

__all__ = ["PlainArray", "PlainUnpickler"]

_MAX_DIMENSIONS = 32
_ITEM_TYPES = re.compile(r"b1|[iu][1248]|O[48]")


@dataclass(slots=True, eq=False)
class PlainArray:
    """An array that the pickle describes, as it is written there: nothing is converted.

    Attributes:
        dtype: NumPy's word for the element type, "|u1", "|b1", "<i8" ...; "O" for objects.
        shape: the dimensions.
        values: the elements' bytes, exactly as many as dtype and shape call for; a list of that length for objects; None for
            an array that the pickle creates and never fills.
    """

    dtype: str
    shape: tuple[int, ...]
    values: bytes | list[object] | None

    def __str__(self) -> str:
        """Return its kind, for messages."""
        filled = f"an array of {self.dtype.lstrip('|<>')}, shape {self.shape}"
        return "an array without content" if self.values is None else filled


@dataclass(slots=True, eq=False)
class _ItemType:
    """numpy.dtype("i8", False, True), and whether its state, the byte order, came."""

    word: str
    ordered: bool = False

    def __str__(self) -> str:
        return "an array's type"

    @property
    def size(self) -> int:
        return int(self.word[2:])


@dataclass(slots=True, eq=False)
class _Name:
    """A name from the table, the types of the arguments that Python and NumPy write, and what a call with them stands for."""

    text: str
    types: tuple[Any, ...] = ()
    call: Callable[..., object] | None = None

    def __str__(self) -> str:
        return self.text


class PlainUnpickler(RestrictedUnpickler):
    """Lists, bytes, whole numbers, and the eleven names that Python 2 and 3 and NumPy 1 and 2 write for bytes and arrays."""

    admitted = (
        "PROTO FRAME MARK NONE NEWTRUE NEWFALSE INT LONG LONG1 BININT BININT1 BININT2 STRING BINSTRING SHORT_BINSTRING BINBYTES "
        "SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 EMPTY_LIST LIST APPEND APPENDS "
        "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD"
    )
    encoded = 0

    def find_class(self, module: str, name: str) -> Any:
        return _NAMES.get((_OLD_HOMES.get(module, module), name)) or super().find_class(module, name)

    def call(self, function: Any, args: Any) -> object:
        if not isinstance(function, _Name) or function.call is None:
            return super().call(function, args)
        if not isinstance(args, tuple):
            raise self.damaged(f"calls {function.text} with {describe(args)} instead of a tuple")
        return function.call(self, *self.fit(function.text, args, function.types))

    def build(self, value: Any, state: Any) -> None:
        if isinstance(value, _ItemType):
            # (version, byte order, sub-array, field names, fields, size, alignment, flags), as NumPy writes it for plain types
            types = (int, bytes | str, *[type(None)] * 3, int, int, int)
            version, order, *rest = self.fit("numpy.dtype's state", state, types)
            usual = [3, None, None, None, -1, -1, 63 if value.word == "O" else 0]
            if _word(order) not in ("|", "<", ">", "=") or repr([version, *rest]) != repr(usual) or value.ordered:
                raise self.unfit("numpy.dtype's state", state)
            value.ordered = True
            if _word(order) == ">" and value.word[0] == "<":
                value.word = ">" + value.word[1:]
        elif isinstance(value, PlainArray) and value.values is None:
            # (version, shape, dtype, Fortran order, elements)
            version, *filled, _, values = self.fit("numpy.ndarray's state", state, (int, object, object, int, object))
            if version != 1:
                raise self.unfit("numpy.ndarray's state", state)
            array = self.array(values, filled[1], filled[0])
            value.dtype, value.shape, value.values = array.dtype, array.shape, array.values
        else:
            super().build(value, state)

    def fit(self, name: str, args: Any, types: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the arguments, which are of these types."""
        if not isinstance(args, tuple) or len(args) != len(types) or not all(map(isinstance, args, types)):
            raise self.unfit(name, args)
        return args

    def unfit(self, name: str, args: object) -> Exception:
        if name.startswith("numpy"):
            return self.damaged(f"{name} with arguments that NumPy would not write ({_summary(args)})")
        return self.refused(f"calls {name} with {_summary(args)}")

    def encode(self, text: str, encoding: str) -> bytes:
        """Bytes as Python 3 writes them in protocols 0 to 2: _codecs.encode(text of code points below 256, "latin1")."""
        if encoding != "latin1":
            raise self.unfit("_codecs.encode", (text, encoding))
        try:
            data = text.encode("latin-1")
        except UnicodeEncodeError:
            raise self.damaged("text that stands for bytes holds other characters than those of latin1") from None
        # Each text is used once; a text that is remembered and encoded again and again would fill the memory.
        self.encoded += len(data)
        if self.encoded > self.size:
            raise self.refused("makes more bytes than the file has")
        return data

    def reconstruct(self, kind: _Name, shape: tuple[Any, ...], code: bytes | str) -> PlainArray:
        # An array in the making: (numpy.ndarray, (0,), b"b"); shape and elements come as its state.
        if kind.text != "numpy.ndarray" or shape != (0,) or _word(code) != "b":
            raise self.unfit("numpy.core.multiarray._reconstruct", (kind, shape, code))
        return PlainArray("", (), None)

    def item_type(self, text: bytes | str, _align: int, _copy: int) -> _ItemType:
        code = _word(text)
        if not _ITEM_TYPES.fullmatch(code):
            raise UserError(
                f"{self.shown} byte {self.start}: an array of type {code[:20]!a}: images are bytes or uint8 arrays of "
                "encoded bytes, and same-or-not is bool or whole numbers"
            )
        return _ItemType("O" if code[0] == "O" else ("|" if code[1] == "1" else "<") + code)

    def scalar(self, item: _ItemType, data: bytes) -> int:
        if item.word == "O" or len(data) != item.size:
            raise self.unfit("numpy.core.multiarray.scalar", (item, data))
        value = int.from_bytes(data, "big" if item.word[0] == ">" else "little", signed=item.word[1] == "i")
        if item.word != "|b1":
            return value
        if value not in (0, 1):
            raise self.damaged(f"a boolean of value {value}")
        return value == 1

    def array(self, values: Any, item: Any, shape: Any, order: str = "C") -> PlainArray:
        """An array of so many elements; in protocol 5 (buffer, dtype, shape, "C" or "F") makes it."""
        whole = isinstance(shape, tuple) and all(type(side) is int and side >= 0 for side in shape)
        if not whole or len(shape) > _MAX_DIMENSIONS or not isinstance(item, _ItemType) or order not in ("C", "F"):
            raise self.unfit("numpy.ndarray", (shape, item, values))
        if item.word == "O":
            if not isinstance(values, list) or len(values) != math.prod(shape):
                raise self.unfit("numpy.ndarray of objects", (shape, item, values))
        elif not isinstance(values, bytes) or len(values) != math.prod(shape) * item.size:
            raise self.unfit("numpy.ndarray", (shape, item, values))
        return PlainArray(item.word, shape, values)


_OLD_HOMES = {
    "numpy._core.multiarray": "numpy.core.multiarray",
    "numpy._core.numeric": "numpy.core.numeric",
    "builtins": "__builtin__",
}
_NAMES = {
    ("_codecs", "encode"): _Name("_codecs.encode", (str, str), PlainUnpickler.encode),
    ("__builtin__", "bytes"): _Name("bytes", (), lambda _: b""),  # in protocols 0 to 2
    ("numpy", "ndarray"): _Name("numpy.ndarray"),
    ("numpy", "dtype"): _Name("numpy.dtype", (bytes | str, int, int), PlainUnpickler.item_type),
    ("numpy.core.multiarray", "_reconstruct"): _Name(
        "numpy.core.multiarray._reconstruct", (_Name, tuple, bytes | str), PlainUnpickler.reconstruct
    ),
    ("numpy.core.multiarray", "scalar"): _Name(
        "numpy.core.multiarray.scalar", (_ItemType, bytes), PlainUnpickler.scalar
    ),
    ("numpy.core.numeric", "_frombuffer"): _Name(
        "numpy.core.numeric._frombuffer", (object, object, object, str), PlainUnpickler.array
    ),
}


def _word(value: bytes | str) -> str:
    """Return a short word that Python 2 wrote as bytes and Python 3 as text."""
    return value[:20].decode("latin-1") if isinstance(value, bytes) else value


def _summary(args: object) -> str:
    if not isinstance(args, tuple):
        return describe(args)
    shown = ", ".join(describe(arg) for arg in args[:8])
    return shown + (", ..." if len(args) > 8 else "") or "nothing"
