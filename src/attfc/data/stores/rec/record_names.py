"""Names of identities beside a `.rec` file, which itself holds numbers only: `train.names`, a line `number<TAB>name` each.

    # attfc identity names 1<TAB>identities=2<TAB>bytes=248
    0<TAB>Ann Lee
    1<TAB>Bob

`bytes` is the size of the `.rec` file: names that were left beside another one are not taken for its people. Read when the set is
opened, about 1 M names/s; other tools pass over the file.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from attfc.data.people.name_table import NameTable, printable
from attfc.data.text_lines import line_blocks, opened, read_head, whole_numbers
from attfc.errors import UserError
from attfc.typing import Int64

__all__ = ["read_record_names", "write_record_names"]

_FORMAT = "# attfc identity names 1"
_LONGEST = 4096  # bytes of a name, as in packed folders


def _header(identities: int, rec_bytes: int) -> str:
    return f"{_FORMAT}\tidentities={identities}\tbytes={rec_bytes}"


def write_record_names(rec: Path, rec_bytes: int, names: Iterable[str]) -> None:
    """Write `NAME.names` for `NAME.rec`: the names of identities 0, 1, 2 ... Raises OSError."""
    lines = [printable(name.encode("utf-8", "surrogatepass")).encode()[:_LONGEST] for name in names]
    with open(rec.with_suffix(".names"), "wb") as file:
        file.write(_header(len(lines), rec_bytes).encode() + b"\n")
        file.writelines(b"%d\t%b\n" % (number, line) for number, line in enumerate(lines))


def read_record_names(rec: Path, rec_bytes: int, numbers: Int64) -> tuple[NameTable | None, str | None]:
    """Read the names that lie beside a `.rec` file.

    Args:
        rec: the file. rec_bytes: its size.
        numbers: int64 (identities,) each identity's number in the file.

    Returns:
        The name of each identity (b"": none), or None if there are no names of this file; and a note where a file of names is not used.

    Raises:
        UserError: a line that cannot be understood, a number that is listed twice, a file that cannot be read.
    """
    path = rec.with_suffix(".names")
    if not path.exists():
        return None, None
    names: dict[int, bytes] = {}
    with opened(path, "names cannot be read") as descriptor:
        head = read_head(path, descriptor)
        if not head.startswith(_FORMAT + "\t"):
            return None, f"{path.name} is not a list of identity names ('{_FORMAT}'): its numbers stand for the names"
        if not head.endswith(f"\tbytes={rec_bytes}"):
            return None, f"{path.name} belongs to another {rec.name}: its numbers stand for the names"
        for block in line_blocks(path, descriptor):
            tabs = np.append(np.flatnonzero(block.data == 0x09), len(block.data))
            number_ends = np.minimum(tabs[np.searchsorted(tabs, block.starts)], block.ends)
            listed, sound = whole_numbers(block.data, block.starts, number_ends)
            wrong = ~sound | (number_ends >= block.ends) | (block.ends - number_ends > _LONGEST + 1)
            if wrong.any():
                raise UserError(
                    f"{block.where(int(wrong.argmax()))}: a line is number<TAB>name, the name at most {_LONGEST:,} bytes; "
                    "delete the file to name people by their numbers"
                )
            columns = listed, number_ends + 1, block.ends
            for number, start, end in zip(*(column.tolist() for column in columns), strict=True):
                if number in names:
                    raise UserError(
                        f"{path}: a number is listed twice; delete the file to name people by their numbers"
                    )
                names[number] = block.data[start:end].tobytes()
    return NameTable.pack(names.get(number, b"") for number in numbers.tolist()), None
