"""Images per second of the attention loader against raw decoding, at 112 and 56 pixels with 0, 1 and 2 workers.

Raw decoding: the same images in the same number of processes by the same `decode_image`, their bytes already in memory, nothing
handed over. The loader reads the files, chooses queries and keys, decodes, and hands batches to this process. With augmentation this process
flips and normalizes them besides, to float32: with 1 worker on two cores it has a core of its own, with 2 they share. All run in
turns in one go; the figure that carries over to another machine is their ratio. With 0 workers all run in this process. What no augmentation
can do without is timed too: the bare writing of as many float32 images.

python benchmarks/attention_loader.py                      # a generated folder of smoothed-noise JPEGs
python benchmarks/attention_loader.py --root FACES         # an image folder of your own, which is only read
PYTHONPATH=OTHER/src python benchmarks/attention_loader.py --root FACES --name before     # another checkout
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import torch
from common import write_result
from PIL import Image, ImageFilter

from attfc.data import AttentionLoader, Augment, FolderStore, decode_image


def generate_folder(root: Path, identities: int, images: int) -> None:
    """Write JPEGs of 112 x 112 smoothed noise, about 4 KB each as an aligned face has."""
    generator = np.random.default_rng(0)
    for identity in range(identities):
        folder = root / f"{identity:04d}"
        folder.mkdir()
        for number in range(images):
            noise = Image.fromarray(generator.integers(0, 256, (28, 28, 3), dtype=np.uint8))
            noise = noise.resize((112, 112), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(1))
            noise.save(folder / f"{number:04d}.jpg", quality=90)


def decode_share(encoded: list[bytes], size: int, barrier: "Barrier | None") -> None:
    """Decode a share of the images into one array a hundred, as a store would."""
    if barrier is not None:
        barrier.wait()
    for first in range(0, len(encoded), 100):
        share = encoded[first : first + 100]
        pixels = np.empty((len(share), size, size, 3), np.uint8)
        for row, image in enumerate(share):
            pixels[row] = decode_image(image, size)


def raw_seconds(encoded: list[bytes], size: int, processes: int) -> float:
    """Wall time of decoding all images in a number of processes; 0: in this one."""
    if processes == 0:
        start = time.perf_counter()
        decode_share(encoded, size, None)
        return time.perf_counter() - start
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(processes + 1)
    workers = [
        context.Process(target=decode_share, args=(encoded[n::processes], size, barrier)) for n in range(processes)
    ]
    for worker in workers:
        worker.start()
    barrier.wait()
    start = time.perf_counter()
    for worker in workers:
        worker.join()
    return time.perf_counter() - start


def loader_seconds(
    store: FolderStore, size: int, workers: int, batch_size: int, steps: int, augment: Augment | None = None
) -> float:
    """Wall time of some batches of a loader that runs: 2 batches a worker are ready at the start and at the end."""
    with AttentionLoader(store, batch_size, 2, image_size=size, workers=workers) as loader:
        for _ in loader.batches(4):
            pass
        start = time.perf_counter()
        for batch in loader.batches(4 + steps):
            if augment is not None:
                augment(batch.queries, batch.seeds[:, 0])
                augment(batch.keys, batch.seeds[:, 1:])
        return time.perf_counter() - start


def writing_seconds(count: int, size: int, batch_size: int) -> float:
    """Wall time of writing a number into every pixel of as many float32 images, a batch of new memory at a time."""
    start = time.perf_counter()
    for _ in range(count // batch_size):
        torch.empty(batch_size, 3, size, size).fill_(1.0)
    return time.perf_counter() - start


def main() -> None:
    """Measure and write benchmarks/results/attention_loader[_root].json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="image folder, root/<identity>/*.jpg; only read")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40, help="batches a measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[112, 56])
    parser.add_argument("--name", help="ending of the JSON's name")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.root
        if root is None:
            root = Path(scratch) / "noise"
            root.mkdir()
            generate_folder(root, identities=200, images=10)
        store = FolderStore(root, cache=Path(scratch) / "cache")
        # The very images that the timed batches show, queries and keys, in their order.
        with AttentionLoader(store, arguments.batch_size, 2, image_size=8) as loader:
            wanted = [
                torch.cat([batch.positions, batch.key_positions.flatten()])
                for batch in loader.batches(4 + arguments.steps)
            ]
        encoded = [store.read(position)[0] for position in torch.cat(wanted[4:]).tolist()]
        results = []
        for size in arguments.sizes:
            for workers in (0, 1, 2):
                raw, loaded, augmented, written = [], [], [], []
                asked = (store, size, workers, arguments.batch_size, arguments.steps)
                for _ in range(arguments.repeats):
                    raw.append(raw_seconds(encoded, size, workers))
                    loaded.append(loader_seconds(*asked))
                    augmented.append(loader_seconds(*asked, Augment()))
                    written.append(writing_seconds(len(encoded), size, 2 * arguments.batch_size))
                ratios = [a / b for a, b in zip(raw, loaded, strict=True)]
                results.append(
                    {
                        "size": size,
                        "workers": workers,
                        "raw_images_per_second": len(encoded) / statistics.median(raw),
                        "loader_images_per_second": len(encoded) / statistics.median(loaded),
                        "augmented_images_per_second": len(encoded) / statistics.median(augmented),
                        "written_images_per_second": len(encoded) / statistics.median(written),
                        "loader_share_of_raw": statistics.median(ratios),
                        "augmented_share_of_raw": statistics.median(a / b for a, b in zip(raw, augmented, strict=True)),
                        "loader_share_of_raw_runs": ratios,
                    }
                )
                print(results[-1])
    config = {
        "images": len(store),
        "identities": len(store.identities),
        "source": "generated smoothed noise" if arguments.root is None else "image folder given with --root",
        "mean_encoded_bytes": statistics.mean(map(len, encoded)),
        "keys_per_query": 2,
        "batch_size": arguments.batch_size,
        "steps": arguments.steps,
        "repeats": arguments.repeats,
    }
    ending = arguments.name or ("" if arguments.root is None else "root")
    print(write_result("_".join(filter(None, ("attention_loader", ending))), config, results))


if __name__ == "__main__":
    main()
