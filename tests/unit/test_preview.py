"""Contact sheets: what stands where, broken tiles, blanks, the same sheet for the same seed."""

import io

import numpy as np
import pytest
from PIL import Image

from attfc.data.index import IdentityIndex
from attfc.data.preview import contact_sheet
from attfc.data.stores.store import EncodedStore
from attfc.errors import UserError

COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30), (30, 200, 200), (200, 30, 200)]
LABELS = np.array([0, 0, 0, 1, 2, 2])


class Flat(EncodedStore):
    """One flat colour an image; position 4 is broken."""

    name = "flat"

    def __init__(self, labels: np.ndarray = LABELS, identities: int | None = None) -> None:
        self.identities = IdentityIndex.from_labels(labels, identities)
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    def labels(self, positions):
        return self._labels[np.asarray(positions)]

    def where(self, position: int) -> str:
        return str(position)

    def identity_name(self, label: int) -> str:
        return f"person\n{label} " + "x" * 300

    def read(self, position: int) -> tuple[bytes, int]:
        if position == 4:
            return b"not an image", 2
        stream = io.BytesIO()
        Image.new("RGB", (20, 20), COLOURS[position % 6]).save(stream, "PNG")
        return stream.getvalue(), int(self._labels[position])


def colours(sheet: Image.Image) -> dict[tuple[int, ...], int]:
    values, counts = np.unique(np.asarray(sheet).reshape(-1, 3), axis=0, return_counts=True)
    return {tuple(v.tolist()): int(n) for v, n in zip(values, counts, strict=True)}


def test_every_image_is_a_whole_tile_and_the_broken_one_is_marked():
    sheet = contact_sheet(Flat(), identities=3, images=3, size=48)
    found = colours(sheet)
    for position, colour in enumerate(COLOURS):
        assert found.get(colour, 0) == (0 if position == 4 else 48 * 48)
    assert found[(214, 60, 52)] > 2 * 48  # the cross of the broken tile
    assert sheet.mode == "RGB"
    assert sheet.width == 3 * 50 + 2


def test_rows_hold_one_identity():
    sheet = np.asarray(contact_sheet(Flat(), identities=3, images=3, size=48))
    rows = {
        c: {int(y) // 76 for y in np.argwhere((sheet == c).all(axis=2))[:, 0]} for i, c in enumerate(COLOURS) if i != 4
    }
    assert all(len(r) == 1 for r in rows.values())
    assert rows[COLOURS[0]] == rows[COLOURS[1]] == rows[COLOURS[2]]
    assert len({next(iter(r)) for r in rows.values()}) == 3


def test_missing_images_stay_blank_and_missing_rows_are_left_out():
    sheet = contact_sheet(Flat(np.array([0])), identities=8, images=4, size=48)
    assert sheet.height == 76 + 2
    assert (np.asarray(sheet)[15:70, 60:] == (24, 24, 28)).all()
    assert contact_sheet(Flat(np.array([2, 2]), identities=9), identities=8, images=4, size=48).height == 76 + 2


def test_the_seed_decides():
    store = Flat(np.repeat(np.arange(40), 3))
    one = contact_sheet(store, 4, 2, seed=1, size=32)
    assert one.tobytes() == contact_sheet(store, 4, 2, seed=1, size=32).tobytes()
    assert one.tobytes() != contact_sheet(store, 4, 2, seed=2, size=32).tobytes()


def test_many_identities_are_not_sorted_and_rows_differ():
    store = Flat(np.arange(150_000))
    assert contact_sheet(store, 5, 1, size=32).height == 5 * 60 + 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"identities": 0}, "0 identities x 8 images is empty"),
        ({"size": 8}, "size = 8: tiles of a preview are 32 to 1024"),
        ({"identities": 100, "images": 100}, "100 x 100 tiles is too large"),
    ],
)
def test_faults_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        contact_sheet(Flat(), **arguments)


def test_a_store_without_images_is_a_users_fault():
    with pytest.raises(UserError, match="flat: no identity has an image"):
        contact_sheet(Flat(np.zeros(0, dtype=np.int64)))
