"""Look through the pickle of a `torch.save` file before torch opens it: no more than tensors by name, and no more than the file holds.

torch's weights_only reader runs no code of the file's choosing, but takes memory and time of its choosing: ``bytearray(4294967296)`` is
allowed there, and a key of tuples within tuples takes 2^60 steps to hash. Here the instructions are followed without building anything:
the names are those of plain tensors, storages are as large as their records, tensors lie within their storages, keys are plain.
Cost: about 2 us per instruction, some 40 per tensor.
"""

import math
import pickletools
from collections.abc import Mapping
from typing import Any

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


class _Name(str):
    """A name that the pickle asks for."""


class _Made:
    """Something that would be built, of which the kind is all that matters."""

    __slots__ = ("kind", "numbers")

    def __init__(self, kind: str, numbers: int = 0) -> None:
        self.kind = kind
        self.numbers = numbers


def check_pickle(data: bytes, records: Mapping[str, int]) -> None:
    """Raise unless `data` is a pickle of plain values and of tensors that the records hold.

    Args:
        data: the archive's data.pkl.
        records: bytes of each record under data/, by its name there.

    Raises:
        RefusedNamesError: names of more than tensors.
        ValueError: anything else that `torch.save` of a state dict does not write.
    """
    instructions = []
    for instruction in pickletools.genops(data):
        instructions.append(instruction)
        if len(instructions) > MOST_INSTRUCTIONS:
            raise ValueError(f"its pickle has more than {MOST_INSTRUCTIONS:,} instructions: no network needs as many")
    asked = {str(argument) for code, argument, _ in instructions if code.name in ("GLOBAL", "INST")}
    strange = [name.replace(" ", ".") for name in asked - NAMES]
    if strange:
        strange.sort(key=lambda name: (name.startswith("__builtin__"), name))  # the telling ones first
        raise RefusedNamesError(", ".join(strange[:3])[:160])
    machine = _Machine(records)
    for code, argument, at in instructions:
        try:
            machine.follow(code.name, argument)
        except (IndexError, KeyError):
            raise ValueError(f"its pickle is damaged at byte {at}") from None


class _Machine:
    """The stack, the marks on it and the memo; plain values stand for themselves, all others for their kind."""

    def __init__(self, records: Mapping[str, int]) -> None:
        self.records = records
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def follow(self, code: str, argument: Any) -> None:
        stack = self.stack
        if code in ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"):
            stack.append(argument)
        elif code in ("NONE", "NEWTRUE", "NEWFALSE"):
            stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[code])
        elif code in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append(_Made("dict" if code == "EMPTY_DICT" else "list"))
        elif code == "EMPTY_TUPLE":
            stack.append(())
        elif code in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(code[-1])
            stack[-count:] = [tuple(stack[-count:])] if len(stack) >= count else [stack[count]]
        elif code == "MARK":
            self.marks.append(stack)
            self.stack = []
        elif code == "TUPLE":
            self.stack = [*self.marks.pop(), tuple(stack)]
        elif code in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif code in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif code == "GLOBAL":
            stack.append(_Name(argument))
        elif code in ("SETITEM", "SETITEMS", "APPEND", "APPENDS"):
            self._fill(code)
        elif code == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif code == "REDUCE":
            arguments, name = stack.pop(), stack.pop()
            stack.append(self._call(name, arguments))
        elif code == "BUILD":
            stack.pop()
            if not isinstance(stack[-1], _Made) or stack[-1].kind != "dict":
                raise ValueError("its pickle sets the state of something other than a dict")
        elif code not in ("PROTO", "STOP"):
            raise ValueError(f"its pickle uses the instruction {code}, which torch.save does not write")

    def _fill(self, code: str) -> None:
        if code.endswith("S"):
            items, self.stack = self.stack, self.marks.pop()
        else:
            count = 2 if code == "SETITEM" else 1
            items = [self.stack.pop() for _ in range(count)][::-1]
        kind = "dict" if code.startswith("SET") else "list"
        target = self.stack[-1]
        if not isinstance(target, _Made) or target.kind != kind:
            raise ValueError(f"its pickle fills something other than a {kind}")
        if kind == "dict" and not all(key is None or type(key) in (str, int, bool, float) for key in items[::2]):
            raise ValueError("its pickle has a dict with keys other than text and numbers")

    def _storage(self, identity: Any) -> _Made:
        if not isinstance(identity, tuple) or len(identity) != 5 or identity[0] != "storage":
            raise ValueError("its pickle asks for something other than a storage")
        _, kind, record, _, numbers = identity
        if not isinstance(kind, _Name) or kind not in STORAGES or not _is_size(numbers):
            raise ValueError("its pickle asks for a storage that is none")
        held = self.records.get(record, 0) if isinstance(record, str) else 0
        if numbers * STORAGES[kind] > held:
            raise ValueError(
                f"its pickle claims a storage of {numbers * STORAGES[kind]:,} bytes, the file holds {held:,}"
            )
        return _Made("storage", numbers)

    def _call(self, name: Any, arguments: Any) -> _Made:
        if not isinstance(name, _Name) or not isinstance(arguments, tuple):
            raise ValueError("its pickle calls something that has no name")
        if name in TENSORS:
            return self._tensor(arguments)
        if name == "collections OrderedDict" and not arguments:
            return _Made("dict")
        if name == "collections Counter" and len(arguments) == 1 and _kind(arguments[0]) == "dict":  # MultiStepLR's
            return _Made("counter")
        if name == "torch._utils _rebuild_parameter" and arguments and _kind(arguments[0]) == "tensor":
            return _Made("tensor")
        if name == "torch Size" and len(arguments) == 1 and _sizes(arguments[0]) is not None:
            return _Made("size")
        if name == "torch device" and all(type(argument) in (str, int) for argument in arguments):
            return _Made("device")
        raise ValueError(f"its pickle calls {name.replace(' ', '.')} in a way that torch.save does not write")

    def _tensor(self, arguments: tuple[Any, ...]) -> _Made:
        storage, offset, size, strides = arguments[:4] if len(arguments) >= 4 else (None, None, None, None)
        sizes, steps = _sizes(size), _sizes(strides)
        if (
            _kind(storage) != "storage"
            or not _is_size(offset)
            or sizes is None
            or steps is None
            or len(sizes) != len(steps)
        ):
            raise ValueError("its pickle makes a tensor of something other than a storage")
        last = offset + sum((length - 1) * step for length, step in zip(sizes, steps, strict=True))
        if math.prod(sizes) > storage.numbers or (math.prod(sizes) and last >= storage.numbers):
            raise ValueError(
                f"its pickle stretches a tensor of size {sizes[:8]} over a storage of {storage.numbers:,} numbers; save a copy of it (tensor.clone())"
            )
        return _Made("tensor")


def _kind(value: Any) -> str:
    return value.kind if isinstance(value, _Made) else ""


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _sizes(value: Any) -> tuple[int, ...] | None:
    sizes = value if isinstance(value, tuple) and len(value) <= MOST_DIMENSIONS else None
    return sizes if sizes is not None and all(map(_is_size, sizes)) else None
