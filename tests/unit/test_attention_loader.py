"""The attention loader over a store whose pixels say which image they are."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from attfc.data.index import IdentityIndex
from attfc.data.loader import AttentionLoader, Batch
from attfc.data.stores.store import Images
from attfc.data.transforms import FLIP_LANE
from attfc.errors import UserError

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # 4 workers on 2 cores, on purpose
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),  # Python 3.12
]
COUNTS = [1, 2, 3, 4, 7, 9, 1, 2, 20]
FIELDS = ("queries", "keys", "labels", "positions", "key_positions", "seeds")


class TinyStore:
    """Identity y has counts[y] images; the first pixel of each holds its position; some are broken."""

    name = "tiny"

    def __init__(self, counts: list[int], broken: tuple[int, ...] = (), deadly: tuple[int, ...] = ()) -> None:
        labels = np.repeat(np.arange(len(counts)), counts)
        self.label_of = labels[np.random.default_rng(0).permutation(len(labels))]  # positions are not grouped
        self.identities = IdentityIndex.from_labels(self.label_of, len(counts))
        self.bad, self.deadly = set(broken), set(deadly)

    def __len__(self) -> int:
        return len(self.label_of)

    def read(self, position: int) -> tuple[bytes, int]:
        raise NotImplementedError

    def labels(self, positions: npt.ArrayLike) -> npt.NDArray[np.int64]:
        return self.label_of[np.asarray(positions)]

    def where(self, position: int) -> str:
        return f"image {position}"

    def identity_name(self, label: int) -> str:
        return str(label)

    def images(self, positions: npt.ArrayLike, size: int, out=None) -> Images:
        asked = np.asarray(positions)
        pixels = np.zeros((len(asked), size, size, 3), np.uint8)
        pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = asked % 256, asked // 256
        if self.deadly & set(asked.tolist()) and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        broken = {row: "cut short" for row, position in enumerate(asked.tolist()) if position in self.bad}
        pixels[list(broken)] = 0
        return Images(pixels, broken)


class ThreadStore(TinyStore):
    """Its pixels say how many threads decode them."""

    def images(self, positions: npt.ArrayLike, size: int, out=None) -> Images:
        return Images(np.full((np.size(positions), size, size, 3), torch.get_num_threads(), np.uint8))


def shown(images: Tensor) -> Tensor:
    """The positions that the pixels hold."""
    return images[..., 0, 0, 0].long() + 256 * images[..., 1, 0, 0].long()


def take(loader: AttentionLoader, steps: int) -> list[Batch]:
    batches = list(loader.batches(loader.step + steps))
    loader.close()
    return batches


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        a.broken == b.broken and all(torch.equal(getattr(a, name), getattr(b, name)) for name in FIELDS)
        for a, b in zip(first, second, strict=True)
    )


def test_every_image_is_query_once_an_epoch_in_a_new_order() -> None:
    store = TinyStore(COUNTS)  # 49 images
    batches = take(AttentionLoader(store, 7, 2, image_size=4), 14)
    positions = torch.cat([batch.positions for batch in batches]).tolist()
    assert sorted(positions[:49]) == sorted(positions[49:]) == list(range(49))
    assert positions[:49] != positions[49:]
    assert (
        positions[:49]
        != torch.cat([b.positions for b in take(AttentionLoader(store, 7, 2, 1, image_size=4), 7)]).tolist()
    )


def test_a_batch_has_the_promised_shapes_types_and_pixels() -> None:
    store = TinyStore(COUNTS)
    for batch in take(AttentionLoader(store, 6, 3, image_size=5), 10):
        assert batch.queries.shape == (6, 3, 5, 5)
        assert batch.keys.shape == (6, 3, 3, 5, 5)
        assert batch.queries.is_contiguous(memory_format=torch.channels_last)
        flat = batch.keys.flatten(0, 1)
        assert flat.is_contiguous(memory_format=torch.channels_last)
        assert flat.data_ptr() == batch.keys.data_ptr()
        assert batch.seeds.shape == (6, 4)
        assert {getattr(batch, name).dtype for name in FIELDS[2:]} == {torch.int64}
        assert torch.equal(shown(batch.queries), batch.positions)
        assert torch.equal(shown(batch.keys), batch.key_positions)
        assert batch.labels.tolist() == store.labels(batch.positions).tolist()
        assert (store.labels(batch.key_positions) == batch.labels.numpy()[:, None]).all()
        assert batch.broken == ()


@pytest.mark.parametrize("keys", [1, 2, 3, 5])
def test_keys_use_every_other_image_before_any_comes_again(keys: int) -> None:
    for batch in take(AttentionLoader(TinyStore(COUNTS), 7, keys, image_size=1), 14):
        for label, query, key_positions in zip(
            batch.labels.tolist(), batch.positions.tolist(), batch.key_positions.tolist(), strict=True
        ):
            others = COUNTS[label] - 1
            if others == 0:
                assert key_positions == [query] * keys
                continue
            assert query not in key_positions
            uses = Counter(key_positions)
            assert len(uses) == min(keys, others)
            assert max(uses.values()) <= -(-keys // others)


def test_all_keys_come_alike() -> None:
    store = TinyStore([4])
    batches = take(AttentionLoader(store, 100, 2, image_size=1), 60)
    pairs = Counter(
        (query, *keys)
        for batch in batches
        for query, keys in zip(batch.positions.tolist(), batch.key_positions.tolist(), strict=True)
    )
    assert len(pairs) == 4 * 3 * 2
    chi_square = sum((count - 250) ** 2 / 250 for count in pairs.values())
    assert chi_square < 20 + 6 * 40**0.5


def test_an_identity_with_one_image_gets_it_mirrored_as_key() -> None:
    for batch in take(AttentionLoader(TinyStore([1] * 30), 10, 2, image_size=1), 3):
        assert torch.equal(batch.key_positions, batch.positions[:, None].expand(10, 2))
        assert (batch.seeds[:, 0] >= 0).all()
        assert (batch.seeds[:, 1:] < 0).all()
        assert torch.equal(batch.seeds[:, 1:] & FLIP_LANE, (batch.seeds[:, :1] & FLIP_LANE).expand(10, 2))
        assert len(set(batch.seeds.flatten().tolist())) == 30


def test_seeds_never_repeat_and_are_positive_elsewhere() -> None:
    batches = take(AttentionLoader(TinyStore([10, 10]), 10, 2, image_size=1), 40)
    seeds = torch.cat([batch.seeds.flatten() for batch in batches])
    assert (seeds >= 0).all()
    assert len(set(seeds.tolist())) == 1200


def test_the_published_keys_come_with_replacement_and_may_be_the_query() -> None:
    batches = take(AttentionLoader(TinyStore([4]), 100, 2, image_size=1, distinct_keys=False), 40)
    query = torch.cat([batch.positions for batch in batches])[:, None]
    keys = torch.cat([batch.key_positions for batch in batches])
    assert abs((keys == query).float().mean() - 1 / 4) < 0.03
    assert abs((keys[:, 0] == keys[:, 1]).float().mean() - 1 / 4) < 0.03
    assert (torch.cat([batch.seeds for batch in batches]) >= 0).all()


def test_the_published_epoch_draws_queries_with_replacement() -> None:
    loader = AttentionLoader(TinyStore([50] * 20), 100, 0, image_size=1, sampling="with_replacement")
    positions = torch.cat([batch.positions for batch in take(loader, 10)])
    assert 560 < len(set(positions.tolist())) < 700  # 1 - 1/e of 1,000


def test_no_keys_for_fc_heads() -> None:
    batch = take(AttentionLoader(TinyStore(COUNTS), 4, 0, image_size=6), 1)[0]
    assert batch.keys.shape == (4, 0, 3, 6, 6)
    assert batch.key_positions.shape == (4, 0)
    assert batch.seeds.shape == (4, 1)


def test_batches_are_equal_with_0_1_and_4_workers_even_with_broken_images() -> None:
    def batches(workers: int) -> list[Batch]:
        store = TinyStore(COUNTS, broken=(3, 11, 30))
        return take(AttentionLoader(store, 8, 2, 5, image_size=4, workers=workers, broken_limit=1.0), 15)

    alone = batches(0)
    assert sum(len(batch.broken) for batch in alone) > 5
    assert same(alone, batches(1))
    assert same(alone, batches(4))


@pytest.mark.slow  # a spawned worker imports torch anew: several seconds each
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_started_otherwise_give_the_same_batches(method: str) -> None:
    alone = take(AttentionLoader(TinyStore(COUNTS), 8, 2, image_size=4), 5)
    assert same(alone, take(AttentionLoader(TinyStore(COUNTS), 8, 2, image_size=4, workers=1, start_method=method), 5))


def test_ranks_share_the_stream_of_one() -> None:
    alone = take(AttentionLoader(TinyStore(COUNTS), 12, 2, image_size=4), 5)
    ranks = [take(AttentionLoader(TinyStore(COUNTS), 4, 2, image_size=4, rank=r, ranks=3), 5) for r in range(3)]
    for step, whole in enumerate(alone):
        for name in FIELDS:
            assert torch.equal(torch.cat([getattr(batches[step], name) for batches in ranks]), getattr(whole, name))


def test_for_loops_end_with_the_epoch_and_the_next_goes_on() -> None:
    loader = AttentionLoader(TinyStore([10]), 4, 1, image_size=1)
    whole = take(AttentionLoader(TinyStore([10]), 4, 1, image_size=1), 5)
    assert len(loader) == 3
    assert loader.epoch == 0
    first = list(loader)
    assert (len(first), loader.epoch, loader.step) == (3, 1, 3)  # samples 0 ... 11
    second = list(loader)
    assert (len(second), loader.epoch, loader.step) == (2, 2, 5)  # samples 12 ... 19
    assert same(first + second, whole)


def test_workers_live_across_epochs_and_end_with_close() -> None:
    def children() -> set[int | None]:
        return {process.pid for process in multiprocessing.active_children()} - before

    before = {process.pid for process in multiprocessing.active_children()}
    with AttentionLoader(TinyStore([10]), 4, 1, image_size=1, workers=2) as loader:
        list(itertools.islice(loader, 1))
        workers = children()
        assert len(workers) == 2
        list(loader)
        list(loader)
        list(loader.batches(until_step=12))
        assert children() == workers
        assert loader.step == 12
    assert children() == set()


def test_a_worker_decodes_with_one_thread() -> None:
    batch = take(AttentionLoader(ThreadStore(COUNTS), 4, 1, image_size=1, workers=1), 1)[0]
    assert batch.queries[:, 2, 0, 0].tolist() == [1] * 4


@pytest.mark.parametrize("workers", [0, 1])
def test_the_callers_random_numbers_are_left_alone(workers: int) -> None:
    before = torch.random.get_rng_state()
    take(AttentionLoader(TinyStore(COUNTS), 4, 1, image_size=1, workers=workers), 2)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_resume_in_mid_epoch_counts_yielded_batches_only() -> None:
    loader = AttentionLoader(TinyStore(COUNTS), 6, 2, image_size=4, workers=2)
    first = list(itertools.islice(loader, 3))  # the workers hold more batches ready
    state = loader.state_dict()
    assert state["samples_seen"] == 18
    rest = take(loader, 4)
    resumed = AttentionLoader(TinyStore(COUNTS), 6, 2, image_size=4)
    list(itertools.islice(resumed, 1))
    resumed.load_state_dict(state)
    assert resumed.step == 3
    assert same(first + rest, first + take(resumed, 4))


@pytest.mark.parametrize(
    ("counts", "seed", "message"),
    [
        ([50], 0, "images = 49 but tiny has 50"),
        (COUNTS[::-1], 0, "images_per_identity_crc32 = .* resume with the data the run began with"),
        (COUNTS, 1, "seed = 0"),
    ],
)
def test_a_state_of_other_data_or_seed_is_refused(counts: list[int], seed: int, message: str) -> None:
    state = AttentionLoader(TinyStore(COUNTS), 6, 2).state_dict()
    with pytest.raises(UserError, match=message):
        AttentionLoader(TinyStore(counts), 6, 2, seed).load_state_dict(state)


def test_a_broken_image_is_replaced_and_listed() -> None:
    store = TinyStore(COUNTS, broken=(3, 11, 30))
    plain = take(AttentionLoader(TinyStore(COUNTS), 7, 2, image_size=2), 7)
    mended = take(AttentionLoader(store, 7, 2, image_size=2, broken_limit=1.0), 7)
    listed = set()
    for before, after in zip(plain, mended, strict=True):
        images = torch.cat([after.positions[:, None], after.key_positions], 1)
        assert not torch.isin(images, torch.tensor([3, 11, 30])).any()
        assert torch.equal(shown(after.queries), after.positions)
        assert torch.equal(shown(after.keys), after.key_positions)
        assert after.labels.tolist() == store.labels(after.positions).tolist()
        assert (store.labels(after.key_positions) == after.labels.numpy()[:, None]).all()
        listed |= set(after.broken)
        untouched = ~torch.isin(
            torch.cat([before.positions[:, None], before.key_positions], 1), torch.tensor([3, 11, 30])
        ).any(1)
        for name in FIELDS:
            assert torch.equal(getattr(before, name)[untouched], getattr(after, name)[untouched])
    assert listed == {(position, f"image {position}", "cut short") for position in (3, 11, 30)}


def test_a_broken_key_gives_way_to_an_unused_image_of_the_identity() -> None:
    store = TinyStore([4])
    loader = AttentionLoader(TinyStore([4], broken=(2,)), 4, 2, image_size=1, broken_limit=1.0)
    for batch in take(loader, 5):
        assert store.labels(batch.positions).tolist() == [0] * 4
        for query, keys in zip(batch.positions.tolist(), batch.key_positions.tolist(), strict=True):
            assert {query, *keys} == {0, 1, 3}  # three good images: all of them, none twice


def test_a_key_without_a_good_image_is_the_query_mirrored() -> None:
    loader = AttentionLoader(TinyStore([3], broken=(0, 2)), 6, 2, image_size=1, broken_limit=1.0)
    for batch in take(loader, 3):
        assert batch.positions.tolist() == [1] * 6
        assert batch.key_positions.tolist() == [[1, 1]] * 6
        assert (batch.seeds[:, 1:] < 0).all()
        assert torch.equal(batch.seeds[:, 1:] & FLIP_LANE, (batch.seeds[:, :1] & FLIP_LANE).expand(6, 2))


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_broken_images_stop_the_run(workers: int) -> None:
    store = TinyStore([100] * 10, broken=tuple(range(0, 1000, 20)))
    loader = AttentionLoader(store, 50, 2, image_size=1, workers=workers, broken_limit=0.02)
    message = (
        r"tiny: \d+ of 1\d\d\d images seen are broken, more than broken_limit = 0.02 \(image \d+: cut short; image"
    )
    with pytest.raises(UserError, match=message):
        take(loader, 100)
    assert loader.step >= 6  # one broken image in the first few is no verdict


def test_a_broken_image_counts_once_however_often_it_is_drawn() -> None:
    """A person of one image is drawn often by `sampling_mix`, and a small set many times over: neither is another broken image."""
    store = TinyStore([1, 9, 30, 60], broken=(int(np.flatnonzero(TinyStore([1, 9, 30, 60]).label_of == 1)[0]),))
    loader = AttentionLoader(store, 10, 1, image_size=1, broken_limit=0.01)
    assert sum(len(batch.broken) for batch in take(loader, 200)) > 20
    assert len(loader.state_dict()["broken"]) == 1


def test_a_limit_of_zero_stops_at_the_first_broken_image_and_of_one_never() -> None:
    with pytest.raises(UserError, match="broken_limit = 0 "):
        take(AttentionLoader(TinyStore(COUNTS, broken=(3,)), 7, 0, image_size=1, broken_limit=0.0), 7)
    take(AttentionLoader(TinyStore(COUNTS, broken=(3,)), 7, 0, image_size=1, broken_limit=1.0), 14)


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_but_broken_images_is_an_error_not_a_loop(workers: int) -> None:
    loader = AttentionLoader(TinyStore([5], broken=tuple(range(5))), 2, 1, workers=workers, broken_limit=1.0)
    with pytest.raises(UserError, match=r"a query and its 32 substitutes are broken \(image \d: cut short; "):
        take(loader, 1)


def test_the_verdict_on_broken_images_is_the_same_after_a_resume() -> None:
    def loader() -> AttentionLoader:
        return AttentionLoader(TinyStore([100] * 10, broken=(5, 50, 500)), 10, 1, image_size=1, broken_limit=0.5)

    whole = loader()
    take(whole, 20)
    first = loader()
    take(first, 9)
    second = loader()
    second.load_state_dict(first.state_dict())
    take(second, 11)
    assert second.state_dict() == whole.state_dict()


def test_a_group_that_fails_is_taken_back_whole() -> None:
    store = TinyStore([100] * 10, broken=tuple(range(0, 1000, 20)))
    loader = AttentionLoader(store, 50, 2, image_size=1, broken_limit=0.02)
    loader.group(3), loader.group(3)
    place = loader.state_dict()
    for _ in range(2):  # the verdict stands
        with pytest.raises(UserError, match="images seen are broken"):
            loader.group(3)
        assert loader.state_dict() == place


def test_a_worker_that_dies_is_a_clear_error() -> None:
    loader = AttentionLoader(TinyStore(COUNTS, deadly=tuple(range(49))), 4, 1, image_size=1, workers=1)
    with pytest.raises(UserError, match=r"a loader worker died .* lower workers \(1\) or batch_size \(4\)") as caught:
        take(loader, 1)
    assert "\n" not in str(caught.value)
    assert [process for process in multiprocessing.active_children() if "DataLoader" in process.name] == []


def test_ctrl_c_leaves_no_worker() -> None:
    program = (
        "import multiprocessing, sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_attention_loader import AttentionLoader, TinyStore\n"
        "loader = AttentionLoader(TinyStore([9]), 4, 1, image_size=1, workers=2)\n"
        "for batch in loader.batches(10**9):\n"
        "    if loader.step == 3:\n"
        "        print(*[p.pid for p in multiprocessing.active_children()], flush=True)\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", program, os.path.dirname(__file__)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        workers = [int(word) for word in process.stdout.readline().split()]
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.communicate(timeout=60)
        finally:
            process.kill()
    assert len(workers) == 2
    assert process.returncode != 0
    deadline = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{worker}") for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(os.path.exists(f"/proc/{worker}") for worker in workers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "loader batch_size = 0: set it to 1 or more"),
        ({"keys_per_query": -1}, r"keys_per_query = -1: set it to 0 \(FC heads\) or more"),
        ({"workers": -2}, "loader workers = -2: set it to 0 or more"),
        ({"image_size": 0}, "loader image_size = 0"),
        ({"ranks": 0}, "loader ranks = 0"),
        ({"rank": 2, "ranks": 2}, "loader rank = 2 of 2 ranks: ranks count from 0 to 1"),
        ({"prefetch": 0}, "loader prefetch = 0"),
        ({"broken_limit": 1.5}, "broken_limit = 1.5 is a share: set it to 0 ... 1"),
        ({"sampling": "each_one"}, "sampling = 'each_one' is not known: .*; did you mean 'each_once'?"),
        ({"start_method": "thread"}, "start_method = 'thread': this system knows"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AttentionLoader(TinyStore(COUNTS), **{"batch_size": 4, "keys_per_query": 1, **options})


def test_a_store_without_images_is_named() -> None:
    with pytest.raises(UserError, match="tiny: holds no image"):
        AttentionLoader(TinyStore([]), 4, 1)


def test_a_batch_moves_as_a_whole() -> None:
    batch = take(AttentionLoader(TinyStore(COUNTS), 4, 2, image_size=4), 1)[0]
    moved = batch.to("meta")
    assert {getattr(moved, name).device.type for name in ("queries", "keys", "labels", "seeds")} == {"meta"}
    assert moved.queries.is_contiguous(memory_format=torch.channels_last)
    assert moved.keys.stride() == batch.keys.stride()
    assert batch.queries.device.type == "cpu"
