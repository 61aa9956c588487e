"""Read a pickle as data: an interpreter of our own that knows lists, bytes, whole numbers and plain arrays and calls nothing.

A pickle is a program, and Python's unpickler runs it. This one executes 44 of the 68 instructions itself, in one pass over the
file; the eleven names that Python 2 and 3 and NumPy 1 and 2 write for bytes and arrays are words in a table here, each standing for
a few lines below: no module is imported, no attribute looked up, nothing of the file's choosing called, no constructor of NumPy
reached. Every other name and instruction is refused where it stands, with its byte offset.

Cost: about 1 us an instruction and one copy of the payload; never more than a declared length that the rest of the file holds.
Bounded too: the file's size, the number of instructions (16 million at most; each leaves at most one small object), memo
indexes, digits of numbers, the bytes made from text. Nothing recurses, so nesting has no limit to hit.

The alternative, `pickle.Unpickler` with a strict `find_class` behind a scan by `pickletools.genops`, means two parsers that
must agree: genops gives up at image bytes in Python 2's protocol 0, and the C unpickler allocates its memo from an index in the file.
"""

import codecs
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from attfc.data.people.name_table import printable
from attfc.errors import UserError

__all__ = ["MAX_FILE_BYTES", "PlainArray", "describe", "read_plain_pickle"]

MAX_FILE_BYTES = 4 * 1024**3
"""Larger files are refused: the largest public verification set has 0.2 GiB."""

_MAX_INSTRUCTIONS = 16_000_000
_FREE_INSTRUCTIONS = 100_000
_BYTES_AN_INSTRUCTION = 4  # an image as an array takes 20 instructions, and no JPEG has less than 100 bytes
_MAX_NAME = 1000
_MAX_DIGITS = 20
_MAX_DIMENSIONS = 32
_STOP = ord(".")

# What repr of a Python 2 str can hold between its quotes. Possessive, so it never backtracks: 100 MB/s on random bytes.
_STRING = re.compile(rb"""(?:[^\\]*+\\(?:x[0-9a-f][0-9a-f]|[\\'"nrt]))*+[^\\]*+""")
_from_string = codecs.getdecoder("unicode_escape")  # found here: the first use of a codec imports its module
_from_text = codecs.getdecoder("raw_unicode_escape")
_NUMBER = re.compile(rb"0|-?[1-9][0-9]*")  # no leading zeros: Python 2 would read them as octal
_START = re.compile(rb"\x80|[(\]]|c[A-Za-z_][\w.]*\n")  # protocols 2 to 5; in 0 and 1 a tuple, a list, or a name
_ITEM_TYPES = re.compile(r"b1|[iu][1248]|O[48]")


class PlainArray:
    """An array that the pickle describes, as it is written there: nothing is converted.

    Attributes:
        dtype: NumPy's word for the element type, "|u1", "|b1", "<i8" ...; "O" for objects.
        shape: the dimensions.
        values: the elements' bytes, exactly as many as dtype and shape call for; a list of that length for objects; None for
            an array that the pickle creates and never fills.
    """

    __slots__ = ("dtype", "shape", "values")

    def __init__(self, dtype: str, shape: tuple[int, ...], values: "bytes | list[object] | None") -> None:
        self.dtype = dtype
        self.shape = shape
        self.values = values


class _Name:
    """A name from the table; `call` is what it stands for."""

    __slots__ = ("call", "text")

    def __init__(self, text: str, call: "Callable[[_Machine, tuple[object, ...]], object] | None") -> None:
        self.text = text
        self.call = call


class _ItemType:
    """numpy.dtype("i8", False, True) and, once its state came, the byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        self.code = code
        self.order = ""

    @property
    def word(self) -> str:
        if self.code[0] == "O":
            return "O"
        return ("|" if self.size == 1 else self.order or "<") + self.code

    @property
    def size(self) -> int:
        return int(self.code[1])


def read_plain_pickle(path: str | os.PathLike[str], *, max_bytes: int = MAX_FILE_BYTES) -> object:
    """Return what a pickle holds: lists, tuples, bytes, str, int, bool, None and `PlainArray`, nested in any way.

    Python 2's `str` comes as bytes, and so does `bytearray`. Lists may hold themselves. Protocols 0 to 5.

    Args:
        path: the file.
        max_bytes: refuse larger files.

    Raises:
        UserError: no such file, not a pickle, cut short, something after its end, a name or an instruction that plain data has no
            use for; with the byte offset.
    """
    shown = printable(os.fsencode(path))
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):  # before opening: a pipe would wait for its writer
            raise UserError(f"{shown}: is {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}: pass a .bin file")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                raise UserError(f"{shown}: {size:,} bytes, more than the limit of {max_bytes:,}: raise max_bytes")
            start = file.read(64)
            file.seek(0)
            if not _START.match(start):
                raise UserError(f"{shown}: not a pickle ({_kind(start)}): {_FIX}")
            return _Machine(file, shown, size).run()
    except FileNotFoundError:
        raise UserError(f"{shown}: no such file{_hint(Path(path))}") from None
    except OSError as error:
        raise UserError(f"{shown}: cannot be read ({error.strerror or error})") from None


_FIX = "pass a verification set, a pickle of (encoded images, same or not)"
_STARTS = {
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89PNG": "a PNG image",
    b"\x1f\x8b": "packed with gzip; unpack it first",
    b"PK\x03\x04": "a zip archive, as torch.save and np.savez write; unpack it first",
    b"\x93NUMPY": "a NumPy array file",
    b"\x0a\x23\xd7\xce": "MXNet RecordIO, the format of a training set",
    b"\x89HDF": "an HDF5 file",
}


def _kind(start: bytes) -> str:
    if not start:
        return "an empty file"
    return next((kind for magic, kind in _STARTS.items() if start.startswith(magic)), f"it starts with {start[:8]!r}")


def _hint(path: Path) -> str:
    try:
        others = sorted(other.name for other in path.parent.iterdir() if other.suffix == ".bin")
    except OSError:
        return ""
    if not others:
        return ""
    return f"; {printable(os.fsencode(path.parent))} holds " + ", ".join(
        printable(os.fsencode(name)) for name in others[:8]
    )


class _Machine:
    """The pickle machine: a stack, the marks on it, and a memo."""

    def __init__(self, file: BinaryIO, shown: str, size: int) -> None:
        self.file, self.shown, self.size = file, shown, size
        self.at = 0  # next byte to read
        self.start = 0  # first byte of the instruction that is being executed
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        self.frame_end = 0  # protocols 4 and 5 cut the file into frames, between instructions
        self.limit = _FREE_INSTRUCTIONS + min(size // _BYTES_AN_INSTRUCTION, _MAX_INSTRUCTIONS)
        self.encoded = 0

    def run(self) -> object:
        executed = 0
        while True:
            self.start = self.at
            code = self.take(1)[0]
            if code == _STOP:
                break
            instruction = _INSTRUCTIONS.get(code)
            if instruction is None:
                raise self.refused_instruction(code)
            executed += 1
            if executed > self.limit:
                raise self.refused(f"has more than {self.limit:,} instructions in {self.size:,} bytes")
            instruction(self)
        if self.marks or len(self.stack) != 1:
            raise self.damaged(
                f"ends with {len(self.stack)} values and {len(self.marks)} open marks instead of 1 value"
            )
        if self.at != self.size:
            raise UserError(
                f"{self.shown}: {self.size - self.at:,} bytes after the end of the pickle (byte {self.at}): "
                "two files were joined or the file is damaged; get it again"
            )
        return self.stack[0]

    # Errors

    def damaged(self, reason: str) -> UserError:
        return UserError(f"{self.shown} byte {self.start}: damaged pickle: {reason}; get the file again")

    def refused(self, what: str) -> UserError:
        return UserError(
            f"{self.shown}: refused: the pickle {what} (byte {self.start}), which no verification set needs and which could "
            "harm: get the file from its publisher"
        )

    def refused_instruction(self, code: int) -> UserError:
        import pickletools  # only to name it

        name = next((known.name for known in pickletools.opcodes if known.code == chr(code)), None)
        if name is None:
            return self.damaged(f"0x{code:02x} is no pickle instruction")
        return self.refused(f"uses the instruction {name}")

    # Reading

    def take(self, count: int) -> bytes:
        left = self.size - self.at
        if count > left:
            raise UserError(
                f"{self.shown} byte {self.start}: cut short: {count:,} bytes are to follow byte {self.at}, {left:,} are there; "
                "get the file again"
            )
        data = self.file.read(count)
        if len(data) != count:
            raise UserError(f"{self.shown} byte {self.start}: the file shrank while it was read; read it again")
        self.advance(count)
        return data

    def advance(self, count: int) -> None:
        if self.start < self.frame_end < self.at + count:
            raise self.damaged("an instruction reaches beyond the end of its frame")
        self.at += count

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def line(self, most: int | None = None) -> bytes:
        """Return the bytes before the next line feed."""
        left = self.size - self.at
        data = self.file.readline(left if most is None else min(left, most + 1))
        self.advance(len(data))
        if not data.endswith(b"\n"):
            if most is not None and len(data) > most:
                raise self.damaged(f"more than {most} characters where a name or number stands")
            raise UserError(f"{self.shown} byte {self.start}: cut short: a line without its end; get the file again")
        return data[:-1]

    def digits(self, data: bytes) -> int:
        if not _NUMBER.fullmatch(data):
            raise self.damaged(f"{data!r} is no whole number")
        return int(data)

    # Stack and memo

    def pop(self) -> object:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise self.damaged("an instruction finds no value on the stack")
        return self.stack.pop()

    def pop_many(self, count: int) -> tuple[object, ...]:
        values = [self.pop() for _ in range(count)]
        return tuple(reversed(values))

    def pop_to_mark(self) -> list[object]:
        if not self.marks:
            raise self.damaged("an instruction finds no mark on the stack")
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def top_list(self) -> list[object]:
        value = self.pop()
        if not isinstance(value, list):
            raise self.damaged(f"appends to {describe(value)}, not to a list")
        self.stack.append(value)
        return value

    def put(self, index: int) -> None:
        if not 0 <= index <= self.limit:
            raise self.refused(f"remembers a value as number {index:,}")
        value = self.pop()
        self.memo[index] = value
        self.stack.append(value)

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise self.damaged(f"asks for remembered value {index:,}, which is none of {len(self.memo):,}")
        self.stack.append(self.memo[index])

    # Names and what they stand for

    def name(self, module: str, name: str) -> None:
        known = _NAMES.get((module, name))
        if known is None:
            raise self.refused(f"asks for {_shown_name(module)}.{_shown_name(name)}")
        self.stack.append(known)

    def call(self) -> None:
        args, name = self.pop(), self.pop()
        if not isinstance(name, _Name) or name.call is None:
            what = name.text if isinstance(name, _Name) else describe(name)
            raise self.refused(f"calls {what}")
        if not isinstance(args, tuple):
            raise self.damaged(f"calls {name.text} with {describe(args)} instead of a tuple")
        self.stack.append(name.call(self, args))

    def build(self) -> None:
        state, value = self.pop(), self.pop()
        if isinstance(value, _ItemType):
            self.set_order(value, state)
        elif isinstance(value, PlainArray) and value.values is None:
            self.fill(value, state)
        else:
            raise self.refused(f"sets the state of {describe(value)}")
        self.stack.append(value)

    def unfit(self, name: str, args: object) -> UserError:
        return self.damaged(f"{name} with arguments that NumPy would not write ({_summary(args)})")

    def set_order(self, item: _ItemType, state: object) -> None:
        # (version, byte order, sub-array, field names, fields, size, alignment, flags), as NumPy writes it for plain types
        if not isinstance(state, tuple) or len(state) != 8 or item.order:
            raise self.unfit("numpy.dtype's state", state)
        order = _text(state[1])
        rest = (3, None, None, None, -1, -1, 63 if item.word == "O" else 0)
        if order not in ("|", "<", ">", "=") or any(
            type(found) is not type(usual) or found != usual
            for found, usual in zip((state[0], *state[2:]), rest, strict=True)
        ):
            raise self.unfit("numpy.dtype's state", state)
        item.order = ">" if order == ">" else "<"

    def fill(self, array: PlainArray, state: object) -> None:
        # (version, shape, dtype, Fortran order, elements)
        if not isinstance(state, tuple) or len(state) != 5 or state[0] != 1 or not isinstance(state[3], int):
            raise self.unfit("numpy.ndarray's state", state)
        filled = self.array(state[1], state[2], state[4])
        array.dtype, array.shape, array.values = filled.dtype, filled.shape, filled.values

    def array(self, shape: object, item: object, values: object) -> PlainArray:
        dimensions = _dimensions(shape)
        if dimensions is None or not isinstance(item, _ItemType):
            raise self.unfit("numpy.ndarray", (shape, item, values))
        elements = 1
        for side in dimensions:
            elements *= side
        if item.word == "O":
            if not isinstance(values, list) or len(values) != elements:
                raise self.unfit("numpy.ndarray of objects", (shape, item, values))
            return PlainArray("O", dimensions, values)
        if not isinstance(values, bytes) or len(values) != elements * item.size:
            raise self.unfit("numpy.ndarray", (shape, item, values))
        return PlainArray(item.word, dimensions, values)

    def encode(self, args: tuple[object, ...]) -> bytes:
        """Bytes as Python 3 writes them in protocols 0 to 2: _codecs.encode(text of code points below 256, "latin1")."""
        if len(args) != 2 or not isinstance(args[0], str) or args[1] != "latin1":
            raise self.refused(f"calls _codecs.encode with {_summary(args)}")
        try:
            data = args[0].encode("latin-1")
        except UnicodeEncodeError:
            raise self.damaged("text that stands for bytes holds other characters than those of latin1") from None
        # Each text is used once; a text that is remembered and encoded again and again would fill the memory.
        self.encoded += len(data)
        if self.encoded > self.size:
            raise self.refused("makes more bytes than the file has")
        return data

    def empty_bytes(self, args: tuple[object, ...]) -> bytes:
        if args:
            raise self.refused(f"calls bytes with {_summary(args)}")
        return b""

    def reconstruct(self, args: tuple[object, ...]) -> PlainArray:
        # An array in the making: (numpy.ndarray, (0,), b"b"); shape and elements come as its state.
        if len(args) != 3 or args[0] is not _NDARRAY or args[1] != (0,) or _text(args[2]) != "b":
            raise self.unfit("numpy.core.multiarray._reconstruct", args)
        return PlainArray("", (), None)

    def item_type(self, args: tuple[object, ...]) -> _ItemType:
        if len(args) != 3 or (code := _text(args[0])) is None or not all(isinstance(arg, int) for arg in args[1:]):
            raise self.unfit("numpy.dtype", args)
        if not _ITEM_TYPES.fullmatch(code):
            raise UserError(
                f"{self.shown} byte {self.start}: an array of type {code[:20]!a}: images are bytes or uint8 arrays of "
                "encoded bytes, and same-or-not is bool or whole numbers"
            )
        return _ItemType(code)

    def scalar(self, args: tuple[object, ...]) -> int:
        item, data = args if len(args) == 2 else (None, None)
        if not isinstance(item, _ItemType) or not isinstance(data, bytes) or item.word == "O" or len(data) != item.size:
            raise self.unfit("numpy.core.multiarray.scalar", args)
        value = int.from_bytes(data, "big" if item.order == ">" else "little", signed=item.code[0] == "i")
        if item.code != "b1":
            return value
        if value not in (0, 1):
            raise self.damaged(f"a boolean of value {value}")
        return value == 1

    def from_buffer(self, args: tuple[object, ...]) -> PlainArray:
        # Protocol 5: (buffer, dtype, shape, "C" or "F")
        if len(args) != 4 or args[3] not in ("C", "F"):
            raise self.unfit("numpy.core.numeric._frombuffer", args)
        return self.array(args[2], args[1], args[0])


# Each instruction is a function of the machine. A function, not a method: the table below is the whole language.


def _proto(machine: _Machine) -> None:
    version = machine.number(1)
    if version > 5:
        raise machine.damaged(f"protocol {version}: 0 to 5 are known")


def _frame(machine: _Machine) -> None:
    length, left = machine.number(8), machine.size - machine.at
    if length > left:
        raise UserError(
            f"{machine.shown} byte {machine.start}: cut short: a frame of {length:,} bytes, {left:,} are left; get the file again"
        )
    if machine.at < machine.frame_end:
        raise machine.damaged("a frame within a frame")
    machine.frame_end = machine.at + length


def _mark(machine: _Machine) -> None:
    machine.marks.append(len(machine.stack))


def _constant(value: bool | None) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(value)


def _int_line(machine: _Machine) -> None:
    data = machine.line(_MAX_DIGITS)
    machine.stack.append(data == b"01" if data in (b"00", b"01") else machine.digits(data))


def _long_line(machine: _Machine) -> None:
    machine.stack.append(machine.digits(machine.line(_MAX_DIGITS + 1).removesuffix(b"L")))


def _long1(machine: _Machine) -> None:
    length = machine.number(1)
    if length > 9:  # uint64
        raise machine.refused(f"holds a whole number of {length} bytes")
    machine.stack.append(int.from_bytes(machine.take(length), "little", signed=True))


def _signed4(machine: _Machine) -> None:
    machine.stack.append(int.from_bytes(machine.take(4), "little", signed=True))


def _unsigned(width: int) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(machine.number(width))


def _bytes(width: int) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(machine.take(machine.number(width)))


def _string_line(machine: _Machine) -> None:
    data = machine.line()
    quoted = len(data) >= 2 and data[:1] in (b"'", b'"') and data[-1:] == data[:1]
    if not quoted or not _STRING.fullmatch(data, 1, len(data) - 1):
        raise machine.damaged("a string that is not written as Python 2 writes it")
    # Of the escapes that this codec knows, only those of bytes got past the pattern.
    machine.stack.append(_from_string(data[1:-1])[0].encode("latin-1") if b"\\" in data else data[1:-1])


def _text_line(machine: _Machine) -> None:
    try:
        machine.stack.append(_from_text(machine.line())[0])
    except UnicodeDecodeError:
        raise machine.damaged("text with a broken escape") from None


def _utf8(width: int) -> Callable[[_Machine], None]:
    def instruction(machine: _Machine) -> None:
        try:
            machine.stack.append(machine.take(machine.number(width)).decode())
        except UnicodeDecodeError:
            raise machine.damaged("text that is not UTF-8") from None

    return instruction


def _new_list(machine: _Machine) -> None:
    machine.stack.append([])


def _list(machine: _Machine) -> None:
    machine.stack.append(machine.pop_to_mark())


def _append(machine: _Machine) -> None:
    value = machine.pop()
    machine.top_list().append(value)


def _appends(machine: _Machine) -> None:
    values = machine.pop_to_mark()
    machine.top_list().extend(values)


def _tuple(machine: _Machine) -> None:
    machine.stack.append(tuple(machine.pop_to_mark()))


def _tuple_of(count: int) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(machine.pop_many(count))


def _global(machine: _Machine) -> None:
    words = [machine.line(_MAX_NAME).decode("utf-8", "backslashreplace") for _ in range(2)]
    machine.name(*words)


def _stack_global(machine: _Machine) -> None:
    module, name = machine.pop_many(2)
    if not isinstance(module, str) or not isinstance(name, str):
        raise machine.refused(f"asks for a name made of {describe(module)} and {describe(name)}")
    machine.name(module, name)


def _put_number(width: int) -> Callable[[_Machine], None]:
    return lambda machine: machine.put(machine.number(width))


def _get_number(width: int) -> Callable[[_Machine], None]:
    return lambda machine: machine.get(machine.number(width))


_INSTRUCTIONS: dict[int, Callable[[_Machine], None]] = {
    ord(code): instruction
    for code, instruction in {
        "\x80": _proto,
        "\x95": _frame,
        "(": _mark,
        "N": _constant(None),
        "\x88": _constant(True),
        "\x89": _constant(False),
        "I": _int_line,
        "L": _long_line,
        "\x8a": _long1,
        "J": _signed4,
        "K": _unsigned(1),
        "M": _unsigned(2),
        "S": _string_line,
        "U": _bytes(1),  # SHORT_BINSTRING, BINSTRING: Python 2's str
        "T": _bytes(4),
        "C": _bytes(1),  # SHORT_BINBYTES, BINBYTES, BINBYTES8, BYTEARRAY8
        "B": _bytes(4),
        "\x8e": _bytes(8),
        "\x96": _bytes(8),
        "V": _text_line,
        "\x8c": _utf8(1),
        "X": _utf8(4),
        "\x8d": _utf8(8),
        "]": _new_list,
        "l": _list,
        "a": _append,
        "e": _appends,
        ")": _tuple_of(0),
        "\x85": _tuple_of(1),
        "\x86": _tuple_of(2),
        "\x87": _tuple_of(3),
        "t": _tuple,
        "p": lambda machine: machine.put(machine.digits(machine.line(_MAX_DIGITS))),
        "q": _put_number(1),
        "r": _put_number(4),
        "\x94": lambda machine: machine.put(len(machine.memo)),
        "g": lambda machine: machine.get(machine.digits(machine.line(_MAX_DIGITS))),
        "h": _get_number(1),
        "j": _get_number(4),
        "c": _global,
        "\x93": _stack_global,
        "R": _Machine.call,
        "b": _Machine.build,
    }.items()
}

_NDARRAY = _Name("numpy.ndarray", None)
_NAMES: dict[tuple[str, str], _Name] = {
    (module, name): _Name(f"{module}.{name}", call)
    for modules, name, call in (
        (("_codecs",), "encode", _Machine.encode),
        (("__builtin__", "builtins"), "bytes", _Machine.empty_bytes),  # b"" in protocols 0 to 2
        (("numpy",), "dtype", _Machine.item_type),
        (("numpy.core.multiarray", "numpy._core.multiarray"), "_reconstruct", _Machine.reconstruct),
        (("numpy.core.multiarray", "numpy._core.multiarray"), "scalar", _Machine.scalar),
        (("numpy.core.numeric", "numpy._core.numeric"), "_frombuffer", _Machine.from_buffer),
    )
    for module in modules
} | {("numpy", "ndarray"): _NDARRAY}


def _text(value: object) -> str | None:
    """Return a short word that Python 2 wrote as bytes and Python 3 as text."""
    if isinstance(value, bytes):
        return value[:20].decode("latin-1")
    return value if isinstance(value, str) else None


def _dimensions(shape: object) -> tuple[int, ...] | None:
    if not isinstance(shape, tuple) or len(shape) > _MAX_DIMENSIONS:
        return None
    sides = tuple(side for side in shape if isinstance(side, int) and not isinstance(side, bool) and side >= 0)
    return sides if len(sides) == len(shape) else None


def _shown_name(name: str) -> str:
    shown = name if name.isprintable() else name.encode("unicode_escape").decode("ascii")
    return shown if len(shown) <= 100 else shown[:100] + "..."


def describe(value: object) -> str:
    """Return a value's kind, for messages, without looking into it: it may be huge, or hold itself."""
    if isinstance(value, PlainArray):
        filled = f"an array of {value.dtype.lstrip('|<>')}, shape {value.shape}"
        return "an array without content" if value.values is None else filled
    if isinstance(value, _Name | _ItemType):
        return value.text if isinstance(value, _Name) else "an array's type"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value):,}"
    words = {bytes: "bytes", str: "text", int: "a whole number", bool: "a boolean"}
    return words.get(type(value), "None")


def _summary(args: object) -> str:
    if not isinstance(args, tuple):
        return describe(args)
    shown = ", ".join(describe(arg) for arg in args[:8])
    return shown + (", ..." if len(args) > 8 else "") or "nothing"
