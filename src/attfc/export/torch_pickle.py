"""Look through the pickle of a `torch.save` file before torch opens it: no more than tensors by name, and no more than the file holds.

torch's weights_only reader runs no code of the file's choosing, but takes memory and time of its choosing: ``bytearray(4294967296)`` is
allowed there, and a key of tuples within tuples takes 2^60 steps to hash. Here the instructions are followed without building anything:
the names are those of plain tensors, storages are as large as their records, tensors lie within their storages, keys are plain.
Cost: about 2 us per instruction, some 40 per tensor.
"""

import io
import itertools
import math
import pickletools
from collections.abc import Mapping, Sequence
from typing import Any

from attfc.data.stores.restricted_pickle import RestrictedUnpickler

__all__ = ["RefusedNamesError", "check_pickle"]

MOST_INSTRUCTIONS = 300_000
MOST_DIMENSIONS = 64
BYTES = {
    "Double": 8, "Long": 8, "Float": 4, "Int": 4, "Half": 2, "BFloat16": 2, "Short": 2, "Char": 1, "Byte": 1, "Bool": 1,
}  # fmt: skip
STORAGES = {f"torch {name}Storage": size for name, size in BYTES.items()} | {"torch.storage UntypedStorage": 1}
TENSORS = {"torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor"}
NAMES = {
    *STORAGES,
    *TENSORS,
    "torch._utils _rebuild_parameter",
    "collections OrderedDict",
    "collections Counter",
    "torch Size",
    "torch device",
}
NAMES |= {f"torch {name}" for name in (
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
)}  # fmt: skip


class RefusedNamesError(Exception):
    """The pickle asks for more than tensors; the text names what."""


def check_pickle(data: bytes, records: Mapping[str, int]) -> None:
    """Raise unless `data` is a pickle of plain values and of tensors that the records hold.

    Args:
        data: the archive's data.pkl.
        records: bytes of each record under data/, by its name there.

    Raises:
        RefusedNamesError: names of more than tensors.
        ValueError: anything else that `torch.save` of a state dict does not write.
    """
    instructions = itertools.islice(pickletools.genops(data), MOST_INSTRUCTIONS)
    asked = {str(argument) for code, argument, _ in instructions if code.name in ("GLOBAL", "INST")}
    strange = [name.replace(" ", ".") for name in asked - NAMES]
    if strange:
        strange.sort(key=lambda name: (name.startswith("__builtin__"), name))  # the telling ones first
        raise RefusedNamesError(", ".join(strange[:3])[:160])
    _Checker(data, records).load()


class _Name(str):
    """A name that the pickle asks for."""


class _Storage(int):
    """A storage, by its numbers."""


_TENSOR, _OTHER = object(), object()


class _Checker(RestrictedUnpickler):
    """Follows a pickle; containers stay empty, and what would be built is something of which the kind is all that matters."""

    admitted = (
        "PROTO NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINSTRING EMPTY_DICT EMPTY_LIST EMPTY_TUPLE MARK TUPLE "
        "TUPLE1 TUPLE2 TUPLE3 BINPUT LONG_BINPUT BINGET LONG_BINGET APPEND APPENDS SETITEM SETITEMS GLOBAL BINPERSID REDUCE BUILD"
    )

    def __init__(self, data: bytes, records: Mapping[str, int]) -> None:
        super().__init__(io.BytesIO(data), "its pickle", len(data), MOST_INSTRUCTIONS)
        self.encoding, self.records = "latin-1", records
        self.largest_index = (
            2**32 - 1
        )  # all that LONG_BINPUT can say: remembered values take no more memory for a large number

    def _result(self) -> None:
        """Accept whatever is left on the stack or behind the pickle: torch takes the topmost value and reads no further."""

    def damaged(self, reason: str) -> Exception:
        return ValueError(f"its pickle is damaged at byte {self.start}: {reason}")

    def cut_short(self, what: str) -> Exception:
        return self.damaged(what)

    def refused(self, what: str) -> Exception:
        return ValueError(f"its pickle {what}, which torch.save does not write")

    def find_class(self, module: str, name: str) -> _Name:
        return _Name(f"{module} {name}")

    def load_proto(self) -> None:  # any: torch warns about one that it does not know and reads on
        self.read(1)

    def load_long1(self) -> None:  # of any length: checkpoints keep states of random generators, numbers of 16 bytes
        self.append(int.from_bytes(self.sized(1), "little", signed=True))

    def load_append(self) -> None:
        self.stack.pop()
        self._check_target(list)

    def load_appends(self) -> None:
        self.pop_mark()
        self._check_target(list)

    def load_setitem(self) -> None:
        _, key = self.stack.pop(), self.stack.pop()
        self._check_target(dict, [key])

    def load_setitems(self) -> None:
        self._check_target(dict, self.pop_mark()[::2])

    def _check_target(self, kind: type, keys: Sequence[Any] = ()) -> None:
        if type(self.stack[-1]) is not kind:
            raise ValueError(f"its pickle fills something other than a {kind.__name__}")
        if not all(key is None or type(key) in (str, int, bool, float) for key in keys):
            raise ValueError("its pickle has a dict with keys other than text and numbers")

    def build(self, value: Any, state: Any) -> None:
        if type(value) is not dict:
            raise ValueError("its pickle sets the state of something other than a dict")

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage":
            raise ValueError("its pickle asks for something other than a storage")
        _, kind, record, _, numbers = pid
        if not isinstance(kind, _Name) or kind not in STORAGES or not _is_size(numbers):
            raise ValueError("its pickle asks for a storage that is none")
        claimed, held = numbers * STORAGES[kind], self.records.get(record, 0) if isinstance(record, str) else 0
        if claimed > held:
            raise ValueError(f"its pickle claims a storage of {claimed:,} bytes, the file holds {held:,}")
        return _Storage(numbers)

    def call(self, function: Any, args: Any) -> Any:
        if not isinstance(function, _Name) or not isinstance(args, tuple):
            raise ValueError("its pickle calls something that has no name")
        if function in TENSORS:
            return self._tensor(*(args if len(args) >= 4 else (None,) * 4))
        first = args[0] if args else None
        match function.partition(" ")[2]:
            case "OrderedDict" if not args:
                return {}
            case "_rebuild_parameter" if first is _TENSOR:
                return _TENSOR
            case "Counter" if len(args) == 1 and type(first) is dict:  # MultiStepLR's
                return _OTHER
            case "Size" if len(args) == 1 and _sizes(first) is not None:
                return _OTHER
            case "device" if all(type(argument) in (str, int) for argument in args):
                return _OTHER
        raise ValueError(f"its pickle calls {function.replace(' ', '.')} in a way that torch.save does not write")

    def _tensor(self, storage: Any, offset: Any, size: Any, strides: Any, *_: Any) -> object:
        sizes, steps = _sizes(size), _sizes(strides)
        sound = isinstance(storage, _Storage) and _is_size(offset)
        if not sound or sizes is None or steps is None or len(sizes) != len(steps):
            raise ValueError("its pickle makes a tensor of something other than a storage")
        last = offset + sum((length - 1) * step for length, step in zip(sizes, steps, strict=True))
        if math.prod(sizes) > storage or (math.prod(sizes) and last >= storage):
            raise ValueError(
                f"its pickle stretches a tensor of size {sizes[:8]} over a storage of {storage:,} numbers; save a copy of it (tensor.clone())"
            )
        return _TENSOR


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _sizes(value: Any) -> tuple[int, ...] | None:
    sizes = value if isinstance(value, tuple) and len(value) <= MOST_DIMENSIONS else None
    return sizes if sizes is not None and all(map(_is_size, sizes)) else None
