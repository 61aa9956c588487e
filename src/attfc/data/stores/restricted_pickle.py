"""Read a pickle as data: Python's own unpickler with its table of instructions cut down, which looks nothing up and calls nothing.

A pickle is a program. `pickle._Unpickler`, the reader in Python that the standard library keeps beside the one in C, runs it from a
table of 68 instructions; a subclass here admits some of them and says itself what the few names that it knows stand for: no module
is imported, no attribute looked up, nothing of the file's choosing called. Every other name and instruction is refused
where it stands, with its byte offset. What the library's instructions take too generously (any length, any number) is read here.

Cost: about 1 us per instruction and one copy of the payload; never more than a declared length that the rest of the file holds.
Bounded too: the number of instructions (16 million at most; each leaves at most one small object), memo indexes, digits of
numbers, the bytes made from text. Nothing recurses, so nesting has no limit to hit.

The alternative, `pickle.Unpickler` with a strict `find_class` behind a scan by `pickletools.genops`, means two parsers that
must agree: genops gives up at image bytes in Python 2's protocol 0, and the C unpickler allocates its memo from an index in the file.
"""

import codecs
import pickle
import re
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

from attfc.errors import UserError

__all__ = ["RestrictedUnpickler", "describe"]

_MAX_INSTRUCTIONS = 16_000_000
_FREE_INSTRUCTIONS = 100_000
_BYTES_AN_INSTRUCTION = 4  # an image as an array takes 20 instructions, and no JPEG has less than 100 bytes
_MAX_NAME = 1000
_MAX_DIGITS = 20

# What repr of a Python 2 str can hold between its quotes. Possessive, so it never backtracks: 100 MB/s on random bytes.
_STRING = re.compile(rb"""(?:[^\\]*+\\(?:x[0-9a-f][0-9a-f]|[\\'"nrt]))*+[^\\]*+""")
_from_string = codecs.getdecoder("unicode_escape")  # found here: the first use of a codec imports its module
_from_text = codecs.getdecoder("raw_unicode_escape")
_NUMBER = re.compile(rb"0|-?[1-9][0-9]*")  # no leading zeros: Python 2 would read them as octal


class _Memo(dict[int, Any]):
    """The values that a pickle remembers."""

    def __init__(self, reader: "RestrictedUnpickler") -> None:
        self.reader = reader

    def __setitem__(self, index: int, value: Any) -> None:
        if not 0 <= index <= self.reader.largest_index:
            raise self.reader.refused(f"remembers a value as number {index:,}")
        super().__setitem__(index, value)

    def __missing__(self, index: int) -> Any:
        raise self.reader.damaged(f"asks for remembered value {index:,}, which is none of {len(self):,}")


class RestrictedUnpickler(pickle._Unpickler):
    """Python's unpickler, of which only the instructions in `admitted` are there.

    A subclass names them and overrides `find_class`, `call` and `build`, of which each refuses everything here.

    Args:
        file: open at the pickle's first byte.
        shown: its name, for messages.
        size: the bytes of the pickle.
        limit: most instructions; None: one per 4 bytes, and 100,000.

    Attributes:
        admitted: the instructions' names in the module `pickle`, apart by spaces; STOP need not be among them.
        needed_by: what is read, for messages.
        largest_index: the largest number under which a value may be remembered; how many are is bounded by the instructions.
        at, start: the next byte, and the first one of the instruction that is being executed.
    """

    admitted: ClassVar[str] = ""
    needed_by: ClassVar[str] = "verification set"
    stack: list[Any]
    metastack: list[list[Any]]
    append: Callable[[Any], None]

    def __init_subclass__(cls) -> None:
        """Cut the library's table, and put what this class overrides into it."""
        table = pickle._Unpickler.dispatch
        codes = [getattr(pickle, name)[0] for name in cls.admitted.split()]
        cls.dispatch = {code: getattr(cls, table[code].__name__) for code in codes}

    def __init__(self, file: BinaryIO, shown: str, size: int, limit: int | None = None) -> None:
        super().__init__(file, encoding="bytes")
        self.file, self.shown, self.size = file, shown, size
        self.limit = (
            _FREE_INSTRUCTIONS + min(size // _BYTES_AN_INSTRUCTION, _MAX_INSTRUCTIONS) if limit is None else limit
        )
        self.largest_index = self.limit
        self.at = self.start = 0
        self.frame_end = 0  # protocols 4 and 5 cut the file into frames, between instructions
        self.memo = _Memo(self)

    def load(self) -> Any:
        """Return what the pickle holds."""
        self.stack, self.metastack = [], []
        self.append = self.stack.append
        dispatch, stop, next_bytes = self.dispatch, pickle.STOP[0], self.file.read
        try:
            for _ in range(self.limit + 1):
                self.start = self.at
                code = (next_bytes(1) or self.read(1))[0]
                self.at += 1
                if code == stop:
                    return self._result()
                if code not in dispatch:
                    raise self._unknown(code)
                dispatch[code](self)  # type: ignore[arg-type]
                if self.start < self.frame_end < self.at:
                    raise self.damaged("an instruction reaches beyond the end of its frame")
        except IndexError:
            raise self.damaged("an instruction finds no value on the stack") from None
        except AttributeError:  # APPEND and APPENDS take whatever has a method of that name: of our values, lists
            raise self.damaged(f"appends to {describe(self.stack[-1])}, not to a list") from None
        except UnicodeDecodeError as error:
            what = "that is not UTF-8" if error.encoding == "utf-8" else "with a broken escape"
            raise self.damaged(f"text {what}") from None
        finally:
            del (
                self.memo
            )  # it holds this reader, which would live, with all values, until the next collection of cycles
        raise self.refused(f"has more than {self.limit:,} instructions in {self.size:,} bytes")

    def _result(self) -> Any:
        values = sum(map(len, [*self.metastack, self.stack]))
        if self.metastack or values != 1:
            raise self.damaged(f"ends with {values} values and {len(self.metastack)} open marks instead of 1 value")
        if self.at != self.size:
            raise UserError(
                f"{self.shown}: {self.size - self.at:,} bytes after the end of the pickle (byte {self.at}): "
                "two files were joined or the file is damaged; get it again"
            )
        return self.stack[0]

    # Errors

    def damaged(self, reason: str) -> Exception:
        """Return the error for a pickle that no writer wrote."""
        return UserError(f"{self.shown} byte {self.start}: damaged pickle: {reason}; get the file again")

    def refused(self, what: str) -> Exception:
        """Return the error for one that asks for more than data."""
        return UserError(
            f"{self.shown}: refused: the pickle {what} (byte {self.start}), which no {self.needed_by} needs and which could "
            "harm: get the file from its publisher"
        )

    def cut_short(self, what: str) -> Exception:
        """Return the error for one that ends early."""
        return UserError(f"{self.shown} byte {self.start}: cut short: {what}; get the file again")

    def _unknown(self, code: int) -> Exception:
        import pickletools  # only to name it

        name = next((known.name for known in pickletools.opcodes if known.code == chr(code)), None)
        if name is None:
            return self.damaged(f"0x{code:02x} is not a pickle instruction")
        return self.refused(f"uses the instruction {name}")

    # Reading

    def read(self, count: int) -> bytes:
        """Return the next bytes, as many as asked for."""
        left = self.size - self.at
        if count > left:
            raise self.cut_short(f"{count:,} bytes are to follow byte {self.at}, {left:,} are there")
        data = self.file.read(count)
        if len(data) != count:
            raise UserError(f"{self.shown} byte {self.start}: the file shrank while it was read; read it again")
        self.at += count
        return data

    def sized(self, width: int) -> bytes:
        """Return bytes behind their number, which takes `width` bytes."""
        return self.read(int.from_bytes(self.read(width), "little"))

    def line(self, most: int | None = None) -> bytes:
        """Return the bytes before the next line feed."""
        left = self.size - self.at
        data = self.file.readline(left if most is None else min(left, most + 1))
        self.at += len(data)
        if not data.endswith(b"\n"):
            if most is not None and len(data) > most:
                raise self.damaged(f"more than {most} characters where a name or number stands")
            raise self.cut_short("a line without its end")
        return data[:-1]

    def digits(self, data: bytes) -> int:
        """Return a whole number as Python 2 and 3 write it."""
        if not _NUMBER.fullmatch(data):
            raise self.damaged(f"{data!r} is not a whole number")
        return int(data)

    def pop_mark(self) -> list[Any]:
        """Return what lies above the last mark."""
        if not self.metastack:
            raise self.damaged("an instruction finds no mark on the stack")
        values, self.stack = self.stack, self.metastack.pop()
        self.append = self.stack.append
        return values

    # What names stand for: nothing

    def find_class(self, module: str, name: str) -> Any:
        """Return what a name stands for."""
        shown = [word if word.isprintable() else word.encode("unicode_escape").decode() for word in (module, name)]
        raise self.refused("asks for " + ".".join(word if len(word) <= 100 else word[:100] + "..." for word in shown))

    def call(self, function: Any, args: Any) -> Any:
        """Return what a call stands for."""
        raise self.refused(f"calls {describe(function)}")

    def build(self, value: Any, state: Any) -> None:
        """Set the state of a value."""
        raise self.refused(f"sets the state of {describe(value)}")

    # Instructions of which the library's own would believe a length, look something up, or read what no writer writes

    def load_binstring(self) -> None:
        self.append(self.sized(4))

    def load_binbytes8(self) -> None:
        self.append(self.sized(8))

    load_bytearray8 = load_binbytes8

    def load_binunicode8(self) -> None:
        self.append(self.sized(8).decode())

    def load_proto(self) -> None:
        version = self.read(1)[0]
        if version > 5:
            raise self.damaged(f"protocol {version}: 0 to 5 are known")

    def load_frame(self) -> None:
        length, left = int.from_bytes(self.read(8), "little"), self.size - self.at
        if length > left:
            raise self.cut_short(f"a frame of {length:,} bytes, {left:,} are left")
        if self.at < self.frame_end:
            raise self.damaged("a frame within a frame")
        self.frame_end = self.at + length

    def load_int(self) -> None:
        data = self.line(_MAX_DIGITS)
        self.append(data == b"01" if data in (b"00", b"01") else self.digits(data))

    def load_long(self) -> None:
        self.append(self.digits(self.line(_MAX_DIGITS + 1).removesuffix(b"L")))

    def load_long1(self) -> None:
        length = self.read(1)[0]
        if length > 9:  # uint64
            raise self.refused(f"holds a whole number of {length} bytes")
        self.append(int.from_bytes(self.read(length), "little", signed=True))

    def load_string(self) -> None:
        data = self.line()
        quoted = len(data) >= 2 and data[:1] in (b"'", b'"') and data[-1:] == data[:1]
        if not quoted or not _STRING.fullmatch(data, 1, len(data) - 1):
            raise self.damaged("a string that is not written as Python 2 writes it")
        # Of the escapes that this codec knows, only those of bytes got past the pattern.
        self.append(_from_string(data[1:-1])[0].encode("latin-1") if b"\\" in data else data[1:-1])

    def load_unicode(self) -> None:
        self.append(_from_text(self.line())[0])

    def load_put(self) -> None:
        index = self.digits(self.line(_MAX_DIGITS))
        self.memo[index] = self.stack[-1]

    def load_get(self) -> None:
        self.append(self.memo[self.digits(self.line(_MAX_DIGITS))])

    def load_global(self) -> None:
        module, name = (self.line(_MAX_NAME).decode("utf-8", "backslashreplace") for _ in range(2))
        self.append(self.find_class(module, name))

    def load_stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise self.refused(f"asks for a name made of {describe(module)} and {describe(name)}")
        self.append(self.find_class(module, name))

    def load_reduce(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        self.append(self.call(function, args))

    def load_build(self) -> None:
        state = self.stack.pop()
        self.build(self.stack[-1], state)


_KINDS = {bytes: "bytes", str: "text", int: "a whole number", bool: "a boolean"}


def describe(value: object) -> str:
    """Return a value's kind, for messages, without looking into it: it may be huge, or hold itself.

    What a subclass makes (an array, a name) says its kind by `str`.
    """
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value):,}"
    return _KINDS.get(type(value)) or str(value)
