"""LMDB as bytes: the pages of a database file, read with `pread`. No LMDB library.

Page 0 and 1 are the two meta pages, of which the one with the higher transaction number counts; it names the root of a B+ tree. A branch page
lists child pages; a leaf page lists keys with their values, or with the first of the overflow pages that hold a long one. Written from
the structures of the format (lmdb.h and mdb.c, data version 1, pages of 64-bit little-endian machines): docs/formats.md has the bytes.

The library maps the file: cut short, it ends the process with SIGBUS; it forbids to use an environment after a fork, and to open a file twice
in a process. Here every page number, place and length is compared with the file before it is used. Cost: one read per leaf page, some
1 us per key; nothing is written, no lock file is made.
"""

import struct
from collections.abc import Iterator

from attfc.data.stores.rec.record_file import BadRecordError, RecordFile
from attfc.errors import UserError
from attfc.typing import PathLike

__all__ = ["LmdbFile"]

_MAGIC, _VERSION = 0xBEEFC0DE, 1
# magic, version, address, size of the map; of the free list: page size, flags, depth, five counts; of the tree: the same; last page, transaction
_META = struct.Struct("<16xIIQQIHH5QIHH5QQQ")
_PAGE = struct.Struct("<QHHHH")  # number, padding, flags, end of the list of nodes, beginning of the nodes
_NODE = struct.Struct("<HHHH")  # two halves of a number, flags, length of the key
_BRANCH, _LEAF, _KINDS = 1, 2, 0x2F
_LONG = 1  # the value is on overflow pages
_DUPLICATES = 4
_NOBODY = 2**64 - 1
_MOST_LEVELS = 32
_RESTORE = "damaged or cut short: fetch it again"


class LmdbFile(RecordFile):
    """An open LMDB file.

    Args:
        path: the file.

    Raises:
        UserError: no such file, or no LMDB file.
    """

    def __init__(self, path: PathLike) -> None:
        super().__init__(path)
        self.page_size = 0
        metas = [self._meta(0)]
        self.page_size = metas[0][4]
        if self.page_size not in (1 << power for power in range(9, 17)):
            raise UserError(f"{self.path}: pages of {self.page_size} bytes: {_RESTORE}")
        metas.append(self._meta(self.page_size))
        newest = max(metas, key=lambda meta: meta[-1])
        self._flags, self._levels, _, _, _, self.entries, self._root, self._last_page, _ = newest[13:]

    def _meta(self, offset: int) -> tuple[int, ...]:
        meta = _META.unpack(self._bytes(offset, _META.size))
        if meta[0] != _MAGIC:
            raise UserError(f"{self.path}: no LMDB file of a 64-bit little-endian machine (byte {offset + 16})")
        if meta[1] != _VERSION:
            raise UserError(f"{self.path}: LMDB data of version {meta[1]}, version {_VERSION} can be read")
        return meta

    def values(self) -> Iterator[tuple[bytes, int, int]]:
        """Yield each key, in the tree's order, with the first byte and the length of its value.

        Raises:
            UserError: a page that contradicts the others or the file; several values per key; a database within the database.
        """
        if self._flags & _DUPLICATES:
            raise UserError(f"{self.path}: holds several values per key, where sets of images have one")
        waiting = [] if self._root == _NOBODY else [(self._root, 1)]
        pages = found = 0
        while waiting:
            number, level = waiting.pop()
            pages += 1
            if pages > self._last_page or level > min(self._levels, _MOST_LEVELS):
                raise self._damaged(number, "the tree has more pages or levels than the file says")
            page = self._bytes(number * self.page_size, self.page_size)
            _, _, flags, end, _ = _PAGE.unpack_from(page)
            if flags & _KINDS not in (_BRANCH, _LEAF) or not _PAGE.size <= end <= len(page):
                raise self._damaged(number, f"neither a branch nor a leaf (flags 0x{flags:x})")
            children = []
            for place in struct.unpack_from(f"<{(end - _PAGE.size) // 2}H", page, _PAGE.size):
                if place + _NODE.size > len(page):
                    raise self._damaged(number, f"a node at byte {place}")
                low, high, kind, length = _NODE.unpack_from(page, place)
                if flags & _BRANCH:
                    children.append((low | high << 16 | kind << 32, level + 1))
                    continue
                found += 1
                key_end = place + _NODE.size + length
                yield page[place + _NODE.size : key_end], *self._value(number, page, key_end, low | high << 16, kind)
            waiting += reversed(children)
        if found != self.entries:
            raise UserError(f"{self.path}: holds {found:,} keys where it says {self.entries:,}: {_RESTORE}")

    def _value(self, number: int, page: bytes, at: int, size: int, kind: int) -> tuple[int, int]:
        """Return where in the file the value of a node lies whose data begin at byte `at` of a page, and its length."""
        if kind & ~_LONG:
            raise UserError(f"{self.path}: holds databases within the database, where sets of images have one")
        if at + (8 if kind else size) > len(page):
            raise self._damaged(number, f"a value of {size:,} bytes at byte {at}")
        begin = number * self.page_size + at
        if kind:
            begin = int.from_bytes(page[at : at + 8], "little") * self.page_size + _PAGE.size
        if begin + size > self.size:
            raise self._damaged(number, f"a value at bytes {begin} ... {begin + size} of a file of {self.size:,}")
        return begin, size

    def _bytes(self, offset: int, count: int) -> bytes:
        """Return bytes, or raise UserError."""
        try:
            if offset + count > self.size:
                raise BadRecordError(f"the file ends at byte {self.size}")
            return self.bytes_at(offset, count)
        except (BadRecordError, OSError) as error:
            raise UserError(
                f"{self.path}: {count} bytes at byte {offset} cannot be read ({error}): {_RESTORE}"
            ) from None

    def _damaged(self, page: int, what: str) -> UserError:
        return UserError(f"{self.path}: page {page}: {what}: {_RESTORE}")
