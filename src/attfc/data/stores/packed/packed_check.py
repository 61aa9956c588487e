"""Whether a packed folder is whole: every image and every index file against its checksum. About 1 GB/s on one core."""

from dataclasses import dataclass, field

from attfc.data.stores.packed.packed_format import file_crc32
from attfc.data.stores.packed.packed_store import PackedStore
from attfc.typing import PathLike, Progress

__all__ = ["PackedCheck", "verify_packed"]

_EXAMPLES = 20


@dataclass
class PackedCheck:
    """What `verify_packed` found.

    Attributes:
        images, encoded_bytes: how many were read.
        damaged: images whose bytes differ from their checksum or cannot be read.
        examples: "where: reason" of the first 20 of them.
        files: index files whose own checksum differs.
    """

    images: int
    encoded_bytes: int
    damaged: int = 0
    examples: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damaged and not self.files


def verify_packed(path: PathLike | PackedStore, progress: Progress | None = None) -> PackedCheck:
    """Read every image and every index file of a packed folder and compare their checksums.

    Args:
        path: the folder, or the store.
        progress: called as (images done, images).

    Raises:
        UserError: the folder does not open (see `PackedStore`).
    """
    store = path if isinstance(path, PackedStore) else PackedStore(path)
    check = PackedCheck(len(store), sum(store.about.shards))
    check.files = [name for name, crc in sorted(store.about.crc32.items()) if file_crc32(store.path / name) != crc]
    block = 1024
    for first in range(0, len(store), block):
        positions = range(first, min(first + block, len(store)))
        for position, encoded in zip(positions, store.read_many(positions), strict=True):
            if isinstance(encoded, Exception):
                check.damaged += 1
                if len(check.examples) < _EXAMPLES:
                    check.examples.append(f"{store.where(position)}: {encoded}")
        if progress is not None:
            progress(positions.stop, len(store))
    return check
