"""Opening and sampling the index of 2 million identities / 42 million images, and of 100 million / 1 billion.

Each measurement runs in a process of its own, forked from one that has imported everything and opened nothing, and opens,
samples and shuffles; medians over several processes. Resident memory is what /proc/self/status says, opened minus imported:
anonymous pages (this process's own) and file pages (mapped from the index, shared by all processes that map it). "cold"
means that the index was dropped from the page cache before. The pixels are never read, so the shards and (for the billion)
the `.rec` file are sparse files of the size that 5 KB an image would need.

42 million: all index arrays are real (sizes of images and identities random); the RecordIO file is real too, with images of 4
bytes, so that its first opening, which reads `.idx` and the identity records, is measured as well. 1 billion: what is
kept per identity is real, what is kept per image is sparse (zeros), and there is no `.idx`: the cached index is opened.

python benchmarks/index_scale.py                 # needs about 10 GB of disk for some minutes; Linux
"""

import argparse
import json
import multiprocessing
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from common import write_result

from attfc.data.index import IdentityIndex
from attfc.data.sampling.query_stream import QueryStream
from attfc.data.stores.packed.packed_format import ABOUT, FORMAT, VERSION, file_crc32, npy_header, shard_name
from attfc.data.stores.packed.packed_store import PackedStore
from attfc.data.stores.rec.record_file import MAGIC
from attfc.data.stores.rec.record_index import RecordIndex, save_record_index
from attfc.data.stores.rec.records import RecordStore, digest_of
from attfc.random_streams import permute

IMAGE_BYTES = 5_000
SHARD_BYTES = 1 << 30
BATCH, KEYS = 1024, 2
TARGETS = {
    "seconds_to_open": 1.0,
    "mib_added_by_opening": 100.0,
    "sample_milliseconds": 5.0,
}
CHUNK = 1 << 20


def counts_of(identities: int, images: int) -> np.ndarray:
    """Images of each identity: int64, evenly random around the mean, at least 1, exactly `images` together."""
    mean = images // identities
    counts = np.random.default_rng(0).integers(1, 2 * mean, identities, dtype=np.int64)
    while (rest := images - int(counts.sum())) != 0:
        movable = np.flatnonzero(counts > 1)[: abs(rest)] if rest < 0 else np.arange(min(rest, identities))
        counts[movable] += 1 if rest > 0 else -1
    return counts


def write_array(path: Path, values: np.ndarray) -> None:
    """Write an `.npy` file as the packed writer does."""
    with open(path, "wb") as file:
        file.write(npy_header(values.dtype, len(values)))
        values.tofile(file)


def sparse_array(path: Path, dtype: type, count: int, last: int = 0) -> None:
    """Write an `.npy` file of zeros that occupies nothing on the disk, but for its last element."""
    size = np.dtype(dtype).itemsize
    with open(path, "wb") as file:
        file.write(npy_header(dtype, count))
        file.truncate(128 + count * size)
        if last:
            file.seek(128 + (count - 1) * size)
            file.write(int(last).to_bytes(size, "little"))


def make_packed(folder: Path, counts: np.ndarray, *, real: bool) -> None:
    """A packed set whose shards are sparse; `real`: with real places of the images."""
    folder.mkdir()
    identities, images = len(counts), int(counts.sum())
    write_array(folder / "offsets.npy", np.concatenate([[0], np.cumsum(counts)]))
    write_array(folder / "identity_name_offsets.npy", np.arange(identities + 1, dtype=np.int64) * 10)
    with open(folder / "identity_names.npy", "wb") as file:
        file.write(npy_header(np.uint8, 10 * identities))
        for start in range(0, identities, CHUNK):
            numbers = np.arange(start, min(start + CHUNK, identities))
            digits = numbers[:, None] // 10 ** np.arange(8, -1, -1) % 10
            names = np.concatenate([np.full((len(numbers), 1), ord("m")), digits + ord("0")], axis=1)
            names.astype(np.uint8).tofile(file)
    if real:
        sizes = np.random.default_rng(1).integers(IMAGE_BYTES // 2, 3 * IMAGE_BYTES // 2, images, dtype=np.int64)
        ends = np.concatenate([[0], np.cumsum(sizes)])
        write_array(folder / "image_ends.npy", ends)
        total = int(ends[-1])
    else:
        total = images * IMAGE_BYTES
        sparse_array(folder / "image_ends.npy", np.int64, images + 1, total)
    sparse_array(folder / "checksums.npy", np.uint32, images)
    sparse_array(folder / "image_name_offsets.npy", np.int64, images + 1, 8 * images)
    sparse_array(folder / "image_names.npy", np.uint8, 8 * images)
    shards = [min(SHARD_BYTES, total - start) for start in range(0, total, SHARD_BYTES)]
    for number, size in enumerate(shards):
        with open(folder / shard_name(number), "wb") as file:
            file.truncate(size)
    per_identity = ("offsets.npy", "identity_names.npy", "identity_name_offsets.npy")
    per_image = ("image_ends.npy", "checksums.npy", "image_names.npy", "image_name_offsets.npy")
    about = {
        "format": FORMAT,
        "version": VERSION,
        "source": "synthetic",
        "identities": identities,
        "images": images,
        "image_names": True,
        "left_out": {"images": 0, "identities": 0},
        # Those of the arrays kept per image are not compared when a set is opened.
        "crc32": {name: file_crc32(folder / name) for name in per_identity} | dict.fromkeys(per_image, 0),
        "shards": shards,
    }
    (folder / ABOUT).write_text(json.dumps(about))


IMAGE_RECORD = np.dtype(
    [
        ("magic", "<u4"),
        ("length", "<u4"),
        ("flag", "<u4"),
        ("label", "<f4"),
        ("id", "<u8"),
        ("id2", "<u8"),
        ("x", "<u4"),
    ]
)
IDENTITY_RECORD = np.dtype([*IMAGE_RECORD.descr[:-1], ("first", "<f4"), ("last", "<f4")])


def make_records(folder: Path, counts: np.ndarray) -> None:
    """A real RecordIO set in the InsightFace layout, its images 4 bytes each."""
    folder.mkdir()
    identities, images = len(counts), int(counts.sum())
    ends = np.cumsum(counts)
    head = IMAGE_RECORD.itemsize * images + IDENTITY_RECORD.itemsize
    with open(folder / "train.rec", "wb") as file:
        _identity_records(np.zeros(1, np.int64), np.array([images + 1]), np.array([images + 1 + identities])).tofile(
            file
        )
        for start in range(0, images, CHUNK):
            keys = np.arange(start, min(start + CHUNK, images), dtype=np.int64) + 1
            records = np.zeros(len(keys), IMAGE_RECORD)
            records["magic"], records["length"] = MAGIC, IMAGE_RECORD.itemsize - 8
            records["label"] = np.searchsorted(ends, keys - 1, side="right")
            records["id"], records["x"] = keys, 0xFFD8FF
            records.tofile(file)
        for start in range(0, identities, CHUNK):
            stop = min(start + CHUNK, identities)
            keys = np.arange(start, stop) + images + 1
            _identity_records(keys, ends[start:stop] - counts[start:stop] + 1, ends[start:stop] + 1).tofile(file)
    with open(folder / "train.idx", "w") as file:
        for start in range(0, images + identities + 1, CHUNK):
            keys = np.arange(start, min(start + CHUNK, images + identities + 1))
            offsets = np.where(
                keys == 0,
                0,
                np.where(
                    keys <= images,
                    IDENTITY_RECORD.itemsize + IMAGE_RECORD.itemsize * (keys - 1),
                    head + IDENTITY_RECORD.itemsize * (keys - images - 1),
                ),
            )
            file.write(
                "".join([f"{key}\t{offset}\n" for key, offset in zip(keys.tolist(), offsets.tolist(), strict=True)])
            )


def _identity_records(keys: np.ndarray, firsts: np.ndarray, lasts: np.ndarray) -> np.ndarray:
    records = np.zeros(len(keys), IDENTITY_RECORD)
    records["magic"], records["length"], records["flag"] = MAGIC, IDENTITY_RECORD.itemsize - 8, 2
    records["id"], records["first"], records["last"] = keys, firsts, lasts
    return records


def forge_record_index(folder: Path, counts: np.ndarray) -> None:
    """A sparse RecordIO file and the cached index that building one for it would leave; per image, zeros."""
    folder.mkdir()
    identities, images = len(counts), int(counts.sum())
    rec = folder / "train.rec"
    with open(rec, "wb") as file:
        file.truncate((images * IMAGE_BYTES + 40 * identities) // 4 * 4)
    status = rec.stat()
    offsets = np.concatenate([[0], np.cumsum(counts)])
    target = (
        folder / ".attfc-index-train.rec" / digest_of([rec, rec.with_suffix(".idx"), folder / "property"], "identities")
    )
    target.mkdir(parents=True)
    index = IdentityIndex(offsets)
    nothing = np.zeros(0, np.int64)
    save_record_index(
        RecordIndex(
            index,
            nothing,
            nothing.astype(np.uint32),
            None,
            offsets[:-1] + 1,
            np.arange(identities),
            "insightface",
            True,
            dict.fromkeys(("unowned_images", "empty_identities", "other_records"), 0),
            [],
            status.st_size,
            status.st_mtime_ns,
        ),
        target,
    )
    sparse_array(target / "record_offsets.npy", np.int64, images)
    sparse_array(target / "record_spans.npy", np.uint32, images)


def make_index(folder: Path, counts: np.ndarray, *, real: bool) -> None:
    """The arrays of an identity index whose images lie in any order, as a list's do."""
    folder.mkdir()
    images = int(counts.sum())
    write_array(folder / "offsets.npy", np.concatenate([[0], np.cumsum(counts)]))
    if real:
        write_array(folder / "items.npy", np.random.default_rng(2).permutation(images))
    else:
        sparse_array(folder / "items.npy", np.int64, images)


def memory() -> dict[str, float]:
    """Resident MiB of this process: own pages and mapped file pages."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {key: int(lines[key].split()[0]) / 1024 for key in ("RssAnon", "RssFile")}


def added(before: dict[str, float]) -> dict[str, float]:
    """What came to it since."""
    now = memory()
    anonymous, mapped = now["RssAnon"] - before["RssAnon"], now["RssFile"] - before["RssFile"]
    return {"anonymous": round(anonymous, 1), "file": round(mapped, 1), "mib": round(anonymous + mapped, 1)}


def open_kind(kind: str, folder: Path) -> Any:
    """Open a set; return the store, or the index alone."""
    if kind == "packed":
        return PackedStore(folder)
    if kind == "records":
        return RecordStore(folder)
    return IdentityIndex.open(folder)


def child(kind: str, folder: Path, steps: int) -> dict[str, Any]:
    """Open, sample, shuffle and locate in this process."""
    before = memory()
    start = time.perf_counter()
    opened = open_kind(kind, folder)
    found: dict[str, Any] = {"seconds_to_open": time.perf_counter() - start, "opened": added(before)}
    index = opened if isinstance(opened, IdentityIndex) else opened.identities
    found["identities"], found["images"] = len(index), index.images
    stream = QueryStream(index, KEYS, seed=0)
    firsts = np.random.default_rng(3).integers(0, index.images - BATCH, steps)
    sampled, shuffled, processor = [], [], []
    for first in firsts.tolist():
        numbers = np.arange(first, first + BATCH, dtype=np.int64)
        start, processor_start = time.perf_counter(), time.process_time()
        samples = stream.samples(numbers)
        middle, processor_middle = time.perf_counter(), time.process_time()
        places = permute(numbers, index.images, 12345)
        shuffled.append(time.perf_counter() - middle)
        sampled.append(middle - start)
        processor.append(processor_middle - processor_start)
        assert samples.key_positions.shape == (BATCH, KEYS)
        assert len(np.unique(places)) == BATCH
    found["sample_milliseconds"] = 1000 * statistics.median(sampled)
    found["sample_processor_milliseconds"] = 1000 * statistics.median(processor)
    found["shuffle_milliseconds"] = 1000 * statistics.median(shuffled)
    found["sampled"] = added(before)
    if not isinstance(opened, IdentityIndex):
        # Where the images of all those batches lie: random pages of the arrays kept per image.
        for first in firsts.tolist():
            samples = stream.samples(np.arange(first, first + BATCH, dtype=np.int64))
            wanted = np.concatenate([samples.positions, samples.key_positions.ravel()])
            opened._ends[wanted] if isinstance(opened, PackedStore) else opened._index.offsets[wanted]
        found["located"] = added(before)
    found["pickled_bytes"] = len(pickle.dumps(opened))
    return found


def _child_into(kind: str, folder: Path, steps: int, sender: Connection) -> None:
    sender.send(child(kind, folder, steps))


def fresh(kind: str, folder: Path, steps: int) -> dict[str, Any]:
    """Measure in a fork of this process."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_child_into, args=(kind, folder, steps, sender))
    process.start()
    sender.close()
    found: dict[str, Any] = receiver.recv()
    process.join()
    return found


def drop_from_cache(folder: Path) -> None:
    """Ask the system to forget what it holds of a set's files; shards are left, they are not read."""
    for path in folder.rglob("*.npy"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)  # only what is on the disk can be dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def in_children(kind: str, folder: Path, repeats: int, steps: int) -> dict[str, Any]:
    """All measurements of a set, in forks of this process, which must not have opened anything."""
    QueryStream(IdentityIndex(np.array([0, 2, 5])), KEYS, 0).samples(np.arange(4))  # what the first call alone costs
    cold = []
    for _ in range(3):
        drop_from_cache(folder)
        cold.append(fresh(kind, folder, 1)["seconds_to_open"])
    return {"cold": cold, "warm": [fresh(kind, folder, steps) for _ in range(repeats + 1)][1:]}


def measure(kind: str, folder: Path, repeats: int, steps: int) -> dict[str, Any]:
    """Medians over processes: warm, and opening cold."""
    arguments = [
        sys.executable,
        __file__,
        "--child",
        kind,
        str(folder),
        "--steps",
        str(steps),
        "--repeats",
        str(repeats),
    ]
    done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True)
    measured = json.loads(done.stdout)
    cold, runs = measured["cold"], measured["warm"]
    first = runs[0]
    merged: dict[str, Any] = {"identities": first["identities"], "images": first["images"]}
    for key in ("seconds_to_open", "sample_milliseconds", "sample_processor_milliseconds", "shuffle_milliseconds"):
        merged[key] = statistics.median(run[key] for run in runs)
        merged[f"{key}_runs"] = [run[key] for run in runs]
    merged["seconds_to_open_cold"] = statistics.median(cold)
    for key in ("opened", "sampled", "located"):
        if key in first:
            merged[f"mib_added_when_{key}"] = {
                part: statistics.median(run[key][part] for run in runs) for part in ("mib", "anonymous", "file")
            }
    merged["pickled_bytes"] = first["pickled_bytes"]
    merged["meets"] = {
        "seconds_to_open": merged["seconds_to_open"] < TARGETS["seconds_to_open"],
        "mib_added_by_opening": merged["mib_added_when_opened"]["mib"] < TARGETS["mib_added_by_opening"],
        "sample_milliseconds": merged["sample_milliseconds"] < TARGETS["sample_milliseconds"],
    }
    print(kind, json.dumps({k: v for k, v in merged.items() if not k.endswith("_runs")}, indent=1), flush=True)
    return merged


def timed_first_opening(folder: Path) -> dict[str, float]:
    """Build the index of a RecordIO set in a process of its own; seconds and the most memory it took."""
    code = (
        "import resource, sys, time; from attfc.data.stores.rec.records import RecordStore; start = time.perf_counter(); "
        "store = RecordStore(sys.argv[1]); seconds = time.perf_counter() - start; assert store.cache; "
        "print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    seconds, peak = map(float, done.stdout.split())
    return {"seconds": seconds, "peak_resident_mib": peak}


def main() -> None:
    """Measure and write benchmarks/results/index_scale.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", nargs=2, metavar=("KIND", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=100, help="batches sampled in each process")
    parser.add_argument("--repeats", type=int, default=7, help="processes")
    parser.add_argument("--scratch", type=Path, help="where the files are made; removed at the end")
    parser.add_argument("--images", type=int, default=42_000_000)
    parser.add_argument("--identities", type=int, default=2_000_000)
    parser.add_argument("--large-images", type=int, default=1_000_000_000, help="0 leaves this part out")
    parser.add_argument("--large-identities", type=int, default=100_000_000)
    arguments = parser.parse_args()
    if arguments.child:
        kind, folder = arguments.child
        print(json.dumps(in_children(kind, Path(folder), arguments.repeats, arguments.steps)))
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        place = Path(scratch)
        counts = counts_of(arguments.identities, arguments.images)
        make_packed(place / "packed", counts, real=True)
        make_index(place / "index", counts, real=True)
        make_records(place / "records", counts)
        first = timed_first_opening(place / "records")
        print("first opening of RecordIO:", first, flush=True)
        results["large"] = {
            kind: measure(kind, place / kind, arguments.repeats, arguments.steps)
            for kind in ("packed", "records", "index")
        }
        results["large"]["records"]["first_opening"] = first
    if arguments.large_images:
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
            place = Path(scratch)
            counts = counts_of(arguments.large_identities, arguments.large_images)
            make_packed(place / "packed", counts, real=False)
            forge_record_index(place / "records", counts)
            make_index(place / "index", counts, real=False)
            del counts
            results["huge"] = {
                kind: measure(kind, place / kind, min(3, arguments.repeats), arguments.steps)
                for kind in ("packed", "records", "index")
            }
            for found in results["huge"].values():
                del found["meets"]  # the targets are those of 42 million images
    config = {
        "batch_size": BATCH,
        "keys_per_query": KEYS,
        "batches_a_process": arguments.steps,
        "processes": arguments.repeats,
        "targets": TARGETS,
        "synthetic": {
            "large": "packed: real index arrays, sparse shards and image names; records: real .rec (images of 4 bytes) and .idx; "
            "index: real, images in random order",
            "huge": "real arrays per identity; per image, the shards and the .rec file sparse (zeros); no .idx",
        },
    }
    print(write_result("index_scale", config, results))


if __name__ == "__main__":
    main()
