"""Edit lists against dictionaries: the file changes nothing, the view is the list taken literally."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attfc.data import text_lines
from attfc.data.stores.edits import EditedStore, Edits, compose, read_edits, write_edits
from attfc.data.stores.synthetic import SyntheticFaces
from attfc.data.text_lines import line_blocks, open_regular, whole_numbers
from attfc.errors import UserError

IDENTITIES, EACH = 5, 4
IMAGES = IDENTITIES * EACH
changes = st.dictionaries(
    st.integers(0, IMAGES - 1), st.one_of(st.just(-1), st.integers(0, 7), st.integers(0, 10**18 - 1))
)


def as_edits(wanted: dict[int, int]) -> Edits:
    positions = np.array(sorted(wanted), np.int64)
    return Edits(IMAGES, IDENTITIES, positions, np.array([wanted[p] for p in positions.tolist()], np.int64))


@settings(deadline=None, max_examples=60)
@given(changes, st.randoms())
def test_written_and_read_is_the_same_in_any_order(wanted: dict[int, int], random) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "list.txt"
        write_edits(path, as_edits(wanted))
        lines = path.read_text().splitlines()
        body = lines[1:]
        random.shuffle(body)
        path.write_text("\n".join([lines[0], *body]))
        read = read_edits(path)
    assert dict(zip(read.positions.tolist(), read.labels.tolist(), strict=True)) == wanted


@settings(deadline=None, max_examples=100)
@given(changes)
def test_the_view_is_the_list_taken_literally(wanted: dict[int, int]) -> None:
    store = SyntheticFaces(IDENTITIES, EACH)
    edited = {p: wanted.get(p, p // EACH) for p in range(IMAGES)}
    left = [p for p in range(IMAGES) if edited[p] >= 0]
    if not left:
        with pytest.raises(UserError, match="leaves none"):
            EditedStore(store, as_edits(wanted))
        return
    used = sorted({edited[p] for p in left})
    view = EditedStore(store, as_edits(wanted))
    assert as_edits(wanted).apply(store.identities.labels()).tolist() == [edited[p] for p in range(IMAGES)]
    assert view.positions_in_store(np.arange(len(view))).tolist() == left
    labels = [used.index(edited[p]) for p in left]
    assert view.labels(np.arange(len(view))).tolist() == labels
    assert view.identities.labels().tolist() == labels
    assert len(view.identities) == len(used)
    assert bool((view.identities.counts() > 0).all())
    names = [f"identity {label}" if label < IDENTITIES else f"new-{label}" for label in used]
    assert [view.identity_name(label) for label in range(len(used))] == names


@settings(deadline=None, max_examples=60)
@given(changes, changes)
def test_joined_lists_are_applied_one_after_the_other(first: dict[int, int], second: dict[int, int]) -> None:
    both = compose(as_edits(first), as_edits(second))
    out = [p for p in {**first, **second} if -1 in (first.get(p), second.get(p))]
    expected = {**first, **second, **dict.fromkeys(out, -1)}
    assert dict(zip(both.positions.tolist(), both.labels.tolist(), strict=True)) == expected


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.sampled_from(["7", "#c", " a b ", "", "\t", "x\r", "long" * 9, "ü", "-", " \x0b1"])),
    st.booleans(),
    st.integers(1, 40),
)
def test_blocks_of_any_size_hold_the_same_lines(lines: list[str], bom: bool, size: int) -> None:
    text = ("\ufeff" if bom else "") + "\n".join(lines)
    expected = [
        (number, stripped.encode())
        for number, line in enumerate(lines, 1)
        if (stripped := line.strip(" \t\r\x0b\x0c")) and not stripped.startswith("#")
    ]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder) / "list.txt"
        path.write_text(text, "utf-8", newline="")
        patch.setattr(text_lines, "_BLOCK_BYTES", size)
        descriptor = open_regular(path)
        try:
            found = [
                (int(block.numbers[row]), block.text(row), block.offset + int(block.starts[row]))
                for block in line_blocks(path, descriptor)
                for row in range(len(block.numbers))
            ]
        finally:
            os.close(descriptor)
        content = path.read_bytes()
    assert [(number, line) for number, line, _ in found] == expected
    assert all(content[start:].startswith(line) for _, line, start in found)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.one_of(st.integers(0, 10**19).map(str), st.text("0123456789-+. \x00a:/", max_size=21))))
def test_numbers_are_parsed_as_python_parses_them(texts: list[str]) -> None:
    data = np.frombuffer("".join(texts).encode(), np.uint8)
    ends = np.cumsum([len(text) for text in texts]).astype(np.int64)
    starts = ends - np.array([len(text) for text in texts], np.int64)
    values, sound = whole_numbers(data, starts, ends)
    expected = [text.isdigit() and len(text) <= 18 for text in texts]
    assert sound.tolist() == expected
    assert values.tolist() == [int(text) if good else 0 for text, good in zip(texts, expected, strict=True)]
