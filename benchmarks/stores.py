"""Images per second of each kind of store through the attention loader, against raw decoding and the published way; opening times.

The same faces as image folder, RecordIO, packed folder and list file (`attfc.data.convert_store` makes them), K = 2 keys, with
0, 1 and 2 workers. Contestants, in turns in one run, each with the queries of one and the same stream:

- raw: `decode_image` alone, bytes already in memory, in as many processes, nothing handed over;
- each store through `attfc.AttentionLoader`, which hands over uint8: flip and normalization belong to the device;
- folder and packed with that flip and normalization too (`attfc.data.Augment`), done here on the processor: the same float32
  batches as the published way makes;
- published: a torch Dataset that opens the files of a query and its K keys, decodes with Pillow and applies torchvision's
  RandomHorizontalFlip, ToTensor and Normalize to each image, default collation, torch's DataLoader. RandomHorizontalFlip
  comes first because that is the faster order. Strings of all paths in memory, as published.

Identities with fewer than three images are left out: a key that is asked for twice is decoded once, which would flatter
the loader on a small set (two of three identities of this one have a single image) and counts for nothing on a large one.

Two figures each: wall time, which others on the machine disturb, and processor seconds of all processes together, from /proc
(Linux), which is what "per core" means. Ratios are medians over rounds of ratios within a round.

python benchmarks/stores.py --root FACES                 # root/<identity>/*.jpg, only read
"""

import argparse
import itertools
import multiprocessing
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from attention_loader import decode_share
from common import write_result
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import transforms

from attfc.data import (
    AttentionLoader,
    Augment,
    FolderStore,
    ListStore,
    PackedStore,
    RecordStore,
    Store,
    convert_store,
)

KEYS = 2
SIZE = 112
LEAST_IMAGES = 3
WARM = 4
TARGETS = {"share_of_raw_2_workers": 0.85, "times_published_per_core": 2.5}
AUGMENTED = ("folder", "packed")

Measured = tuple[float, float]
"""Wall seconds, processor seconds of all processes."""


class PublishedDataset(Dataset[tuple[Tensor, Tensor, int]]):
    """A query, K other images of its identity and the label, read, decoded and transformed one by one."""

    def __init__(self, store: FolderStore, size: int) -> None:
        index = store.identities
        self.paths = [store.image_path(position).decode() for position in range(len(store))]
        self.labels = store.labels(np.arange(len(store))).tolist()
        self.images_of = [index.of(label).tolist() for label in range(len(index))]
        self.transform = transforms.Compose(
            [
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5]),
            ]
        )
        self.size = size

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor, int]:
        """Return the query (3, S, S), its keys (K, 3, S, S) and the label."""
        label = self.labels[position]
        others = [other for other in random.sample(self.images_of[label], KEYS + 1) if other != position][:KEYS]
        return self._image(position), torch.stack([self._image(other) for other in others]), label

    def _image(self, position: int) -> Tensor:
        with open(self.paths[position], "rb") as file:
            image = Image.open(file).convert("RGB")
        pixels: Tensor = self.transform(image)
        return pixels


class Endless(Sampler[int]):
    """The given positions again and again: workers have always something to prepare, as the attention loader's have."""

    def __init__(self, positions: list[int]) -> None:
        self.positions = positions

    def __iter__(self) -> Iterator[int]:
        return itertools.cycle(self.positions)


def processor_seconds() -> float:
    """Return the processor time of this process and its living children so far, all threads."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        for thread in Path(f"/proc/{child.pid}/task").iterdir():
            total += int((thread / "schedstat").read_text().split()[0]) / 1e9
    return total


def timed(batches: Iterator[Any], steps: int, then: Callable[[Any], object] | None = None) -> Measured:
    """Measure `steps` batches of a loader that runs: what workers hold ready at the start they hold ready at the end."""
    for batch in itertools.islice(batches, WARM):
        if then is not None:
            then(batch)
    start, processor = time.perf_counter(), processor_seconds()
    for batch in itertools.islice(batches, steps):
        if then is not None:
            then(batch)
    return time.perf_counter() - start, processor_seconds() - processor


def of_store(store: Store, workers: int, batch_size: int, steps: int, augment: Augment | None) -> Measured:
    """Measure a store through the attention loader."""

    def prepare(batch: Any) -> None:
        assert augment is not None
        augment(batch.queries, batch.seeds[:, 0])
        augment(batch.keys, batch.seeds[:, 1:])

    with AttentionLoader(store, batch_size, KEYS, image_size=SIZE, workers=workers) as loader:
        # One batch more than is measured, so that nothing but `close` stops the workers.
        batches = loader.batches(WARM + steps + 1)
        return timed(batches, steps, None if augment is None else prepare)


def of_published(dataset: PublishedDataset, queries: list[int], workers: int, batch_size: int, steps: int) -> Measured:
    """Measure the published way."""
    batches = iter(DataLoader(dataset, batch_size=batch_size, sampler=Endless(queries), num_workers=workers))
    try:
        return timed(batches, steps)
    finally:
        if workers:
            batches._shutdown_workers()  # type: ignore[attr-defined]


def _decode(encoded: list[bytes], barrier: Any, seconds: Any, number: int) -> None:
    barrier.wait()
    start = time.process_time()
    decode_share(encoded, SIZE, None)
    seconds[number] = time.process_time() - start


def of_raw(encoded: list[bytes], processes: int) -> Measured:
    """Measure decoding alone; 0 processes: in this one."""
    if processes == 0:
        start, processor = time.perf_counter(), time.process_time()
        decode_share(encoded, SIZE, None)
        return time.perf_counter() - start, time.process_time() - processor
    context = multiprocessing.get_context("fork")
    barrier, seconds = context.Barrier(processes + 1), context.Array("d", processes)
    workers = [
        context.Process(target=_decode, args=(encoded[number::processes], barrier, seconds, number))
        for number in range(processes)
    ]
    for worker in workers:
        worker.start()
    barrier.wait()
    start = time.perf_counter()
    for worker in workers:
        worker.join()
    return time.perf_counter() - start, sum(seconds)


def make_stores(root: Path, place: Path) -> dict[str, Callable[[Path], Store]]:
    """Write every kind; return how each is opened with its index in a given folder."""
    faces, kept = place / "faces", 0
    for identity in sorted(path for path in root.iterdir() if path.is_dir()):
        if len([file for file in identity.iterdir() if file.suffix == ".jpg"]) >= LEAST_IMAGES:
            shutil.copytree(identity, faces / identity.name)
            kept += 1
    assert kept, f"{root}: no identity has {LEAST_IMAGES} images"
    folder = FolderStore(faces, cache=place / "index")
    for kind in ("rec", "packed"):
        done = convert_store(folder, place / kind, kind=kind)
        assert done.images == len(folder), done
    lines = [
        f"{folder.image_path(position).decode()}\t{label}\n"
        for position, label in enumerate(folder.labels(np.arange(len(folder))).tolist())
    ]
    (place / "faces.txt").write_text("".join(lines))
    return {
        "folder": lambda cache: FolderStore(faces, cache=cache),
        "rec": lambda cache: RecordStore(place / "rec", cache=cache),
        "packed": lambda cache: PackedStore(place / "packed"),
        "list": lambda cache: ListStore(place / "faces.txt", cache=cache),
    }


def opening_times(openers: dict[str, Callable[[Path], Store]], place: Path, repeats: int) -> dict[str, Any]:
    """Seconds to open each store without and with its index, files in the page cache."""
    first: dict[str, list[float]] = {kind: [] for kind in openers}
    second: dict[str, list[float]] = {kind: [] for kind in openers}
    time.sleep(2.5)  # indexes of files written this instant are checked again
    for turn in range(1 + repeats):
        for kind, opener in openers.items():
            cache = place / f"cache-{kind}-{turn}"
            for seconds in (first, second):
                start = time.perf_counter()
                opener(cache)
                if turn:  # the first turn imports and warms
                    seconds[kind].append(time.perf_counter() - start)
    return {
        kind: {
            "first_seconds": statistics.median(first[kind]),
            "second_seconds": statistics.median(second[kind]),
        }
        for kind in openers
    }


def summary(
    measured: dict[str, list[Measured]], name: str, images: int, raw_images: int, workers: int
) -> dict[str, Any]:
    """Medians of one contestant, and of its ratios to the others in the same round."""
    own = measured[name]
    found: dict[str, Any] = {"contestant": name, "workers": workers}
    shown = raw_images if name == "raw" else images
    for kind, label in ((0, ""), (1, "_per_processor_second")):
        found[f"images_per_second{label}" if kind == 0 else f"images{label}"] = shown / statistics.median(
            run[kind] for run in own
        )
    for other, key in (("raw", "share_of_raw"), ("published", "times_published")):
        if name == other:
            continue
        scale = shown / (raw_images if other == "raw" else images)
        for kind, label in ((0, "wall"), (1, "processor")):
            runs = [scale * a[kind] / b[kind] for a, b in zip(measured[other], own, strict=True)]
            found[f"{key}_{label}"] = statistics.median(runs)
            found[f"{key}_{label}_runs"] = runs
    return found


def main() -> None:
    """Measure and write benchmarks/results/stores.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("../shared/faces112/train"), help="image folder; only read")
    parser.add_argument("--scratch", type=Path, help="where the stores are made; removed at the end")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=30, help="batches a measurement")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    batch_size, steps = arguments.batch_size, arguments.steps
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        place = Path(scratch)
        openers = make_stores(arguments.root, place)
        opening = opening_times(openers, place, arguments.repeats)
        print(opening, flush=True)
        stores = {kind: opener(place / "index") for kind, opener in openers.items()}
        folder = stores["folder"]
        assert isinstance(folder, FolderStore)
        # What the timed batches show: the stream depends on the images of each identity alone, the same for all four.
        queries, wanted, shown = [], [], 0
        with AttentionLoader(folder, batch_size, KEYS, image_size=8) as loader:
            for number, batch in enumerate(loader.batches(WARM + steps)):
                queries += batch.positions.tolist()
                if number >= WARM:
                    asked = torch.cat([batch.positions, batch.key_positions.flatten()])
                    wanted += torch.unique(asked).tolist()
                    shown += len(asked)
        encoded = [folder.read(position)[0] for position in wanted]
        dataset = PublishedDataset(folder, SIZE)
        augment = Augment()
        config = {
            "images": len(folder),
            "identities": len(folder.identities),
            "source": "image folder given with --root, identities of at least three images",
            "mean_encoded_bytes": statistics.mean(map(len, encoded)),
            "keys_per_query": KEYS,
            "image_size": SIZE,
            "batch_size": batch_size,
            "steps": steps,
            "repeats": arguments.repeats,
            "images_shown_a_measurement": shown,
            "images_decoded_a_measurement": len(encoded),
            "torchvision": torchvision.__version__,
            "pillow": PIL.__version__,
            "targets": TARGETS,
        }
        results: list[dict[str, Any]] = []
        for workers in (2, 0, 1):  # what has a target first
            contestants: dict[str, Callable[[], Measured]] = {"raw": lambda workers=workers: of_raw(encoded, workers)}
            for kind, store in stores.items():
                contestants[kind] = lambda store=store, workers=workers: of_store(
                    store, workers, batch_size, steps, None
                )
                if kind in AUGMENTED:
                    contestants[f"{kind}, float32"] = lambda store=store, workers=workers: of_store(
                        store, workers, batch_size, steps, augment
                    )
            contestants["published"] = lambda workers=workers: of_published(
                dataset, queries, workers, batch_size, steps
            )
            measured: dict[str, list[Measured]] = {name: [] for name in contestants}
            for turn in range(arguments.repeats):
                # Begin with another one each time: whoever comes after a long one meets a warmer machine.
                names = list(contestants)
                for name in names[turn % len(names) :] + names[: turn % len(names)]:
                    measured[name].append(contestants[name]())
            for name in contestants:
                results.append(summary(measured, name, shown, len(encoded), workers))
                print({k: v for k, v in results[-1].items() if not k.endswith("_runs")}, flush=True)
            results.sort(key=lambda row: row["workers"])
            print(write_result("stores", config, {"throughput": results, "opening": opening}), flush=True)


if __name__ == "__main__":
    main()
