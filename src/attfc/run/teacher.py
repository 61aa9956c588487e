"""`teacher=`: a trained model whose embeddings of the training images a run follows, or whose class centers it keeps.

The teacher embeds every image once, upright and not augmented, and its mirror image; a target is their sum, as `attfc evaluate` and the gallery have
it, so the mirrored view of an image has the same one. Rows stand in the cache of embeddings (8 bytes per number and image, resumable) under a digest
of the teacher's file and of the set: the names of all images, and the bytes of 256 of them. A step reads the rows of its batch from the mapped
file, so memory does not grow with the set. One process embeds, the others wait.

`teacher.json` in the run's folder says which teacher and which embeddings: a resumed run must find the same.
"""

import os
import platform
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from attfc.config.schema import Section
from attfc.data import Store
from attfc.data.cleaning.identity_centers import center_blocks
from attfc.data.index import spread
from attfc.distributed import Ranks
from attfc.errors import UserError
from attfc.evaluation import Embedder, generate_pairs
from attfc.evaluation.embedding_cache import CacheKey, FaceEmbeddings, default_cache, open_embeddings
from attfc.evaluation.unit_rows import cosine_of_pairs
from attfc.export.model_inputs import ModelFacts, open_model
from attfc.export.origins import training_data_of
from attfc.heads.head import Head
from attfc.losses.teacher import TeacherLoss
from attfc.precision import AMP_DTYPES
from attfc.run.start_weights import Lineage, lineage, read_kept
from attfc.typing import Array, Float32, Int64, Progress

if TYPE_CHECKING:
    from attfc.run.build import Settled

__all__ = ["TEACHER", "Teacher", "TeacherRecord", "TeacherRows", "open_teacher", "read_teacher"]

T = TypeVar("T")

TEACHER = "teacher.json"
NAMES, LOOKED_AT = 65_536, 256  # images whose names are hashed at a time; whose bytes are
PAIRS, CHANCE = 2_000, 0.55  # AUC: one half is chance
WAIT_SECONDS = 5.0


class TeacherRecord(Section):
    """What `teacher.json` holds: digests of the teacher and of its embeddings of the set, where it comes from, and who stands behind it."""

    source: str
    digest: str
    embeddings: str
    images: int
    embedding_size: int
    origin: dict[str, str]
    lineage: Lineage


@dataclass(frozen=True, eq=False)
class TeacherRows:
    """(N, E) float32 targets in the order of the store, read where they are asked for; an array to `center_blocks`."""

    kept: FaceEmbeddings
    where: Callable[[int], str]
    ndim = 2

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, E)."""
        return self.kept.image.shape

    @property
    def dtype(self) -> Any:
        """Of the rows."""
        return self.kept.image.dtype

    def __getitem__(self, rows: slice | Int64) -> Float32:
        """Return rows, of any length; zeros where an image is broken."""
        return np.asarray(self.kept.image[rows]) + np.asarray(self.kept.mirror[rows])

    def of(self, positions_B: Tensor) -> Tensor:
        """Return the targets of images, (B, E).

        Raises:
            UserError: one that is not finite.
        """
        found = self[positions_B.numpy()]
        if not np.isfinite(found).all():
            place = int(positions_B[int(np.isfinite(found).all(axis=1).argmin())])
            raise UserError(f"the teacher's embedding of {self.where(place)} has NaN or infinity: take another teacher")
        rows_BE = torch.from_numpy(found)
        return rows_BE.pin_memory() if positions_B.is_pinned() else rows_BE


@dataclass(frozen=True, eq=False)
class Teacher:
    """What a run has of its teacher; all None: it has none, or none to follow.

    Attributes:
        record: what `teacher.json` says.
        loss: of embeddings and targets. targets_of: these, by positions in the store.
    """

    record: TeacherRecord | None = None
    loss: TeacherLoss | None = None
    targets_of: Callable[[Tensor], Tensor] | None = None

    @property
    def origin(self) -> dict[str, Any]:
        """What config.json says of it under `training_data`."""
        return {} if self.record is None else {"teacher": self.record.origin}


def read_teacher(run: Path) -> TeacherRecord | None:
    """Read `teacher.json` of a run's folder; None: the run has no teacher.

    Raises:
        UserError: it is damaged.
    """
    return read_kept(run / TEACHER, TeacherRecord)


def open_teacher(settled: "Settled", head: Head, folder: Path | None, progress: Progress | None) -> Teacher:
    """Open `teacher.model`, have the training set embedded by it, and give the head its centers where they are fixed.

    Args:
        folder: of a run that is resumed, whose centers come with its state.

    Raises:
        UserError: no such model; one that contradicts `teacher.model_is`, has another embedding size than fixed centers allow, or hardly tells
            these people apart; a head that takes no fixed centers; on resume another teacher or other images than before.
    """
    config, store, ranks = settled.config, settled.store, settled.ranks
    asked = config.teacher
    before = None if folder is None else read_teacher(folder)
    if folder is not None and (before is None) != (asked.model is None):
        with_or_without = "without a teacher" if before is None else f"with the teacher {before.source}"
        raise UserError(
            f"teacher={asked.model or 'null'}: {folder} began {with_or_without}, and a resumed run keeps that"
        )
    if asked.model is None:
        return Teacher()
    table = head.hold_centers() if asked.centers else None
    place = Path(os.path.expanduser(asked.cache)) if asked.cache else default_cache()
    with torch.random.fork_rng(devices=[]):  # a student begins with the same weights without a teacher
        said, notes = _awaited(ranks, lambda: _embedded(settled, place, before, progress))
        torch.manual_seed(config.seed)
        size = config.backbone.embedding_size
        loss = TeacherLoss(size, said["embedding_size"], asked.weight).to(settled.device) if asked.loss else None
    record = TeacherRecord.model_validate(said)
    settled.notes += notes
    rows = ranks.together(lambda: _rows(place, record, store))
    if table is not None and folder is None:
        table.hold(_centers(rows, store, table.shard.start, table.shard.stop))
    return Teacher(record, loss, rows.of if loss else None)


def _awaited(ranks: Ranks, make: Callable[[], T]) -> T:
    """Return what `make` gives on rank 0, on every rank, as `Ranks.once` does; it may take hours, no collective waits for longer than seconds."""
    if ranks.size == 1:
        return make()
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(make if ranks.rank == 0 else lambda: cast(T, None))
        while ranks.once(lambda: bool(wait([work], WAIT_SECONDS).not_done)):
            pass
        return ranks.once(work.result)


def _embedded(
    settled: "Settled", place: Path, before: TeacherRecord | None, progress: Progress | None
) -> tuple[dict[str, Any], list[str]]:
    """Have the set embedded; return the record and notes."""
    config, store = settled.config, settled.store
    path, named = Path(os.path.expanduser(str(config.teacher.model))), f"teacher={config.teacher.model}"
    try:
        module, facts = open_model(path, config.teacher.model_is, device=settled.device.type)
    except UserError as error:
        raise UserError(f"{named}: {error}") from None
    size, own = facts.embedding_size, config.backbone.embedding_size
    if config.teacher.centers and size != own:
        raise UserError(
            f"{named} gives {size} numbers per image and backbone.embedding_size is {own}: teacher.centers=fixed needs equal sizes, set "
            f"backbone.embedding_size={size}"
        )
    if before is not None and before.digest != facts.digest:
        raise UserError(f"{named} is not the teacher that the run began with ({before.source}): name that model's file")
    embedder = Embedder(
        module.to(settled.device),
        config.eval.batch_size,
        device=settled.device,
        workers=config.data.workers,
        autocast_dtype=AMP_DTYPES[config.precision.amp],
    )
    key = _key(facts, embedder, store)
    if before is not None and before.embeddings != key.digest:
        raise UserError(
            f"{named}: the images of {store.name}, or precision.amp, differ from those that the run began with: resume with those"
        )
    kept = embedder.rows_kept(place, key, store, np.arange(len(store)), facts.image_size, progress)
    if len(kept.broken) > config.data.broken_limit * len(store):
        row = min(kept.broken)
        raise UserError(
            f"{named} could not embed {len(kept.broken):,} of {len(store):,} images, more than data.broken_limit="
            f"{config.data.broken_limit:g}; the first is {store.where(row)}: {kept.broken[row]}"
        )
    root, licence = training_data_of(facts.training_data)
    origin = {"source": path.name, "network": facts.network, "root": root, "licence": licence}
    record = TeacherRecord(
        source=str(config.teacher.model),
        digest=facts.digest,
        embeddings=key.digest,
        images=len(store),
        embedding_size=size,
        origin=origin,
        lineage=lineage(path),
    )
    notes = [f"teacher: {note.replace('say so with ', 'say so in teacher.model_is: ')}" for note in facts.notes]
    area = _separation(TeacherRows(kept, store.where), store, config.seed)
    if area is not None and area < CHANCE:
        raise UserError(
            f"{named} does not tell the people of {store.name} apart (AUC {area:.2f} over pairs, 0.5 is chance). It was trained on other faces, "
            "another alignment or other colours: choose another teacher, or correct its colours with teacher.model_is"
        )
    known = "" if area is None else f"; it tells these people apart with an AUC of {area:.3f} over {PAIRS:,} pairs"
    return record.model_dump(mode="json"), [*notes, f"teacher: {len(store):,} embeddings in {kept.folder}{known}"]


def _key(facts: ModelFacts, embedder: Embedder, store: Store) -> CacheKey:
    """Return the key of a teacher's embeddings of a set."""
    size, precision = facts.image_size, embedder.autocast_dtype
    key = CacheKey("teacher", facts.digest, facts.network, facts.colours, image_size=size, precision=precision)
    for start in range(0, len(store), NAMES):
        names = "\0".join(map(store.where, range(start, min(start + NAMES, len(store)))))
        key.add("names", names.encode("utf-8", "surrogateescape"))
    looked_at = spread(len(store), LOOKED_AT).tolist()
    for encoded in store.read_many(looked_at):
        key.add("image", b"broken" if isinstance(encoded, Exception) else encoded)
    return key


def _rows(place: Path, record: TeacherRecord, store: Store) -> TeacherRows:
    folder = place / record.embeddings
    if not folder.is_dir():
        raise UserError(
            f"host {platform.node()} does not see {folder}, which rank 0 has made: set teacher.cache to a folder that all hosts share"
        )
    return TeacherRows(open_embeddings(folder, record.images, record.embedding_size), store.where)


def _separation(rows: TeacherRows, store: Store, seed: int) -> float | None:
    """Return the AUC of pairs of the set; None: it has no pairs."""
    try:
        pairs = generate_pairs(store.identities, PAIRS, seed)
    except UserError:
        return None
    sides = np.concatenate([rows[pairs.first], rows[pairs.second]])
    sides /= np.maximum(np.linalg.norm(sides, axis=1, keepdims=True), 1e-12)
    each = np.arange(len(pairs))
    cosines = cosine_of_pairs(sides, each, each + len(pairs))
    return float((cosines[pairs.same][:, None] > cosines[~pairs.same]).mean())


def _centers(rows: TeacherRows, store: Store, start: int, stop: int) -> Iterator[tuple[Int64, Float32]]:
    """Yield labels from `start` to below `stop` and their centers: the mean of the unit embeddings, at unit length."""
    labels = store.identities.labels()
    labels[(labels < start) | (labels >= stop)] = -1
    for block in center_blocks(cast(Array, rows), labels, threshold=-1.0):  # every image counts
        yield block.labels, block.centers
