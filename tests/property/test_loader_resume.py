"""However a run is cut and with however many ranks it goes on, the stream of samples is the same."""

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attfc.data.index import IdentityIndex
from attfc.data.loader import AttentionLoader, Batch
from attfc.data.sampling.query_stream import QueryStream
from attfc.data.stores.store import Images

COUNTS = st.lists(st.integers(1, 9), min_size=1, max_size=12)
FIELDS = ("queries", "keys", "labels", "positions", "key_positions", "seeds")


class PositionStore:
    """One-pixel images that hold their position; every fifth is broken if asked."""

    name = "positions"

    def __init__(self, counts: list[int], broken: bool) -> None:
        self.identities = IdentityIndex.from_labels(np.repeat(np.arange(len(counts)), counts))
        self.broken = broken

    def __len__(self) -> int:
        return self.identities.images

    def where(self, position: int) -> str:
        return str(position)

    def images(self, positions: npt.ArrayLike, size: int, out=None) -> Images:
        asked = np.asarray(positions)
        pixels = np.repeat(asked.astype(np.uint8), size * size * 3).reshape(-1, size, size, 3)
        return Images(pixels, {row: "bad" for row in np.flatnonzero(asked % 5 == 4).tolist() if self.broken})


def samples(loaders: list[AttentionLoader], steps: int) -> list[tuple[list[int], ...]]:
    """The samples of some global steps in stream order: ranks side by side."""

    def rows(batch: Batch) -> list[tuple[list[int], ...]]:
        return [
            tuple(getattr(batch, name)[row].flatten().tolist() for name in FIELDS) for row in range(len(batch.labels))
        ]

    streams = [loader.batches(loader.step + steps) for loader in loaders]
    return [row for batches in zip(*streams, strict=True) for batch in batches for row in rows(batch)]


@given(
    counts=COUNTS,
    keys=st.integers(0, 4),
    seed=st.integers(0, 2**64),
    distinct=st.booleans(),
    sampling=st.sampled_from(["each_once", "with_replacement"]),
    broken=st.booleans(),
    ranks=st.sampled_from([(1, 6, 2, 3), (2, 3, 1, 6), (3, 2, 2, 2), (1, 5, 1, 5), (2, 4, 3, 1)]),
    cut=st.integers(0, 9),
)
@settings(max_examples=30, deadline=None)
def test_a_cut_run_continues_with_any_number_of_ranks(
    counts: list[int],
    keys: int,
    seed: int,
    distinct: bool,
    sampling: str,
    broken: bool,
    ranks: tuple[int, int, int, int],
    cut: int,
) -> None:
    store = PositionStore(counts, broken)

    def loaders(ranks: int, batch_size: int) -> list[AttentionLoader]:
        return [
            AttentionLoader(
                store,
                batch_size,
                keys,
                seed,
                image_size=1,
                rank=rank,
                ranks=ranks,
                distinct_keys=distinct,
                sampling=sampling,
                broken_limit=1.0,
            )
            for rank in range(ranks)
        ]

    before, after = loaders(*ranks[:2]), loaders(*ranks[2:])
    found = samples(before, cut)
    state = before[0].state_dict()
    assert state["samples_seen"] == len(found)
    for loader in after:
        loader.load_state_dict(state)
    found += samples(after, 4)
    assert found == samples(loaders(1, 1), len(found))
    if sampling == "each_once" and not broken:
        images = sum(counts)
        for start in range(0, len(found) - images + 1, images):
            assert sorted(row[3][0] for row in found[start : start + images]) == list(range(images))


@given(counts=COUNTS, keys=st.integers(1, 12), seed=st.integers(0, 2**64), first=st.integers(0, 2**40))
@settings(max_examples=60, deadline=None)
def test_keys_reach_as_far_as_the_identity_allows(counts: list[int], keys: int, seed: int, first: int) -> None:
    index = IdentityIndex.from_labels(np.repeat(np.arange(len(counts)), counts))
    drawn = QueryStream(index, keys, seed).samples(np.arange(first, first + 20))
    for label, query, row in zip(drawn.labels, drawn.positions, drawn.key_positions, strict=True):
        others = sorted(set(index.of(int(label)).tolist()) - {int(query)}) or [int(query)]
        uses = [row.tolist().count(other) for other in others]
        assert sum(uses) == keys  # nothing else
        assert max(uses) - min(uses) <= 1  # none twice before all once
    assert torch.from_numpy(drawn.seeds).dtype == torch.int64
