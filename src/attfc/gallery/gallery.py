"""A gallery: the people that a model can name. Images go in and out; `TemplateStore` keeps the templates.

    with Gallery.create("people.gallery", attfc.load("runs/demo-001"), far=1e-4) as gallery:
        gallery.add("people")                      # a folder per person
        ((best, *_),) = gallery.search("who.jpg")  # Match(name, score, far)

A template is the mean of a person's unit embeddings, at unit length: what `pool_templates` makes where every image is a media of its own. A person
may have several, and counts with the best of them.

Source: Whitelam et al. 2017 (templates); Grother et al., NIST FRVT part 2 (identification against N people).
"""

import hashlib
import os
import shlex
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from attfc.data.images import BrokenImageError
from attfc.data.people.name_table import printable
from attfc.data.stores.store import Store, origins
from attfc.errors import UserError, nearest
from attfc.evaluation.embed import BrokenImage, Embedder
from attfc.evaluation.protocols.template_pooling import pool_templates
from attfc.evaluation.report.thresholds import lowest_far, thresholds_of
from attfc.evaluation.unit_rows import unit_tensor
from attfc.export.face_list import FaceList, open_faces
from attfc.export.face_model import FaceModel
from attfc.gallery.database import DATABASE, Facts
from attfc.gallery.templates import Template, TemplateStore, now
from attfc.typing import Float32, Json, PathLike, Progress

__all__ = ["Added", "Gallery", "Match", "Removed", "named", "plain", "strangers_named"]

LONGEST_NAME = 4 * 255  # characters: the name of any folder, its bytes written as escapes
NewImages = tuple[str, list[tuple[int, bytes]]]  # a person's name, and position and digest of images that are new to it
AT_ONCE = 2048  # images of whole people that are embedded, then added in one transaction


@dataclass(frozen=True)
class Match:
    """A person whom a face may show.

    Attributes:
        name: of the person.
        score: cosine with the person's best template.
        far: the lowest stated false accept rate at which the score is accepted; None: it is at none, or none is known.
    """

    name: str
    score: float
    far: float | None


@dataclass
class Added:
    """What `Gallery.add` did: templates and images that are new, images that were there, and what could not be used.

    Attributes:
        left_out: (position, where, reason) of broken images.
    """

    people: int = 0
    templates: int = 0
    images: int = 0
    known: int = 0
    left_out: list[BrokenImage] = field(default_factory=list)


@dataclass(frozen=True)
class Removed:
    """A person who was removed: how many templates, and the paths of the images that they were made of."""

    name: str
    templates: int
    sources: list[str]


def plain(text: str) -> str:
    """Return a name or path as a gallery keeps it: composed letters, and an escape for what cannot be printed on one line.

    >>> plain("Zoe\u0308\\n")
    'Zoë\\\\n'
    """
    return printable(unicodedata.normalize("NFC", text).encode("utf-8", "surrogateescape"))


def named(best: Sequence[Match], threshold: float | None) -> str | None:
    """Return the name that a search answers with: that of the best match above the threshold; None: unknown."""
    return best[0].name if best and threshold is not None and best[0].score > threshold else None


def strangers_named(far: float, templates: int) -> float:
    """Return the share of strangers who get somebody's name, were the comparisons with all templates independent."""
    return float(1 - (1 - far) ** templates)


def _origin(store: Store, position: int) -> tuple[Store, int]:
    """Return the store in which an image lies, a photo before it is aligned, and its position there."""
    bases, number, place = origins(store, np.array([position]))
    return bases[int(number[0])], int(place[0])


def _source(store: Store, position: int) -> str:
    """Return where an image lies, to be found again from anywhere."""
    base, place = _origin(store, position)
    where, root = base.where(place), getattr(base, "path", None)
    if root is not None:
        found = os.path.abspath(root)
        return plain(os.path.join(found, where) if os.path.isdir(found) else f"{found}: {where}")
    return plain(os.path.abspath(where) if os.path.exists(where) else where)


def _checked_name(name: str) -> str:
    said = plain(name)
    if not said.strip() or len(said) > LONGEST_NAME:
        raise UserError(f"{said[:40]!r} is not a name: use 1 to {LONGEST_NAME:,} characters")
    return said


class Gallery:
    """An open gallery; `create` and `open` return it. It is a context manager, and not to be shared by threads: open it in each.

    Attributes:
        folder: where it is.
        model: that embeds; None: vectors can be searched and added, images cannot.
    """

    def __init__(self, store: TemplateStore, model: FaceModel | None) -> None:
        self._store, self.model, self.folder = store, model, store.folder
        self.facts = store.facts

    @classmethod
    def create(
        cls,
        folder: PathLike,
        model: FaceModel,
        *,
        far: float | None = None,
        evaluation: PathLike | None = None,
        flip: bool = True,
    ) -> "Gallery":
        """Make an empty gallery, or give one of the same model other thresholds.

        Args:
            folder: a new or empty folder.
            model: of `attfc.load`.
            far: the false accept rate of one comparison at which a search answers with a name; None: that of the model's operating point, and
                without one it gives scores only.
            evaluation: a file of `attfc evaluate MODEL all-pairs FOLDER --json FILE` or of `attfc calibrate`; None: the model's operating point,
                else the last evaluation of its run.
            flip: add the embedding of the mirror image, as evaluation does.

        Raises:
            UserError: the folder holds something else; the evaluation is of another model, of embeddings that differ in `flip`, or does not
                state the rate.
        """
        path = Path(os.path.expanduser(folder))
        facts, when = model.facts, now()
        named = None if evaluation is None else Path(evaluation)
        known, source, point = thresholds_of(facts, named)
        if far is None and point is not None:
            far = point.asked_fmr
        if flip != (point is None or point.flip):  # a threshold is one of embeddings made the same way
            if far is not None and known:
                there, here = ("without", "with") if flip else ("with", "without")
                raise UserError(
                    f"{source} states thresholds of embeddings {there} mirror images, and {'--flip' if flip else '--no-flip'} makes them {here}: "
                    "leave it out, or give no --far and no operating point for scores alone"
                )
            known, source = {}, ""
        if far is not None and far not in known:
            stated = ", ".join(f"{rate:g}" for rate in sorted(known))
            raise UserError(
                f"no threshold of FAR {far:g} is known"
                + (
                    f": {source} states {stated}; choose one of these, or measure it"
                    if known
                    else " for this model: measure it"
                )
                + " on more people, none of whom was trained on: "
                f"attfc evaluate {shlex.quote(str(facts.path))} all-pairs FOLDER --far {far:g} --json far.json, then --evaluation far.json"
            )
        made = Facts(
            model=plain(os.path.abspath(facts.path)),
            network=facts.network,
            digest=facts.digest,
            embedding_size=facts.embedding_size,
            image_size=facts.image_size,
            colours=facts.colours.to_dict(),
            flip=flip,
            far=far,
            threshold_at_far=sorted(known.items()),
            thresholds_of=plain(source),
            created=when,
            changed=when,
        )
        database = path / DATABASE
        if database.is_file() and database.stat().st_size:
            gallery = cls.open(path, model)
            gallery._renew(made)
            return gallery
        return cls(TemplateStore.create(path, made), model)

    def _renew(self, made: Facts) -> None:
        kept = ("created", "model")
        renewed = made.model_copy(update={key: getattr(self.facts, key) for key in kept})
        if renewed.flip != self.facts.flip:
            self.close()
            raise UserError(
                f"{self.folder} exists and was made with {'' if self.facts.flip else 'no '}flip: make another"
            )
        self._store.set_facts(renewed)
        self.facts = self._store.facts

    @classmethod
    def open(cls, folder: PathLike, model: FaceModel | None = None) -> "Gallery":
        """Open a gallery; nothing in it is executed, and what a killed process left is cleaned.

        Args:
            folder: of the gallery.
            model: the one that it was made with.

        Raises:
            UserError: no gallery, a damaged one, or one of another model.
        """
        gallery = cls(TemplateStore(Path(os.path.expanduser(folder))), None)
        if model is not None:
            try:
                gallery._take(model)
            except BaseException:
                gallery.close()
                raise
        return gallery

    def _take(self, model: FaceModel) -> None:
        facts, own = model.facts, self.facts
        theirs = {
            "digest": facts.digest,
            "embedding_size": facts.embedding_size,
            "image_size": facts.image_size,
            "colours": facts.colours.to_dict(),
        }
        for key, value in theirs.items():
            if value != getattr(own, key):
                shown = [str(each)[:12] if key == "digest" else str(each) for each in (value, getattr(own, key))]
                verb = "are" if key == "colours" else "is"
                raise UserError(
                    f"{facts.path} is another model than that of {self.folder}, {own.model}: its {key.replace('_', ' ')} {verb} {shown[0]}, "
                    f"not {shown[1]}. Their embeddings cannot be compared: take that model, or make a gallery with this one"
                )
        self.model = model

    def close(self) -> None:
        """Close its files."""
        self._store.close()

    def __enter__(self) -> "Gallery":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def add(
        self,
        images: Any,
        *,
        name: str | None = None,
        batch_size: int = 256,
        workers: int = 0,
        progress: Progress | None = None,
    ) -> Added:
        """Add people. Each person's images that are new become one template.

        People are added some thousand images at a time. Whoever was added stays when a later one fails or the process is killed; the same
        call continues from there. Images that a person has already are not embedded again.

        Args:
            images: aligned faces as `attfc.open_store` and `FaceModel.embed` take them, a folder per person; or (N, D) float embeddings of one.
            name: of the one person that all images show; None: each identity's own name.
            batch_size, workers: of `FaceModel.embed`.
            progress: called as (images done, images).

        Raises:
            UserError: no model, images without names, embeddings of another size, no usable image at all, or the disk is full.
        """
        if isinstance(images, np.ndarray) and np.issubdtype(images.dtype, np.floating):
            return self._add_vectors(images, name)
        store = open_faces(images)
        singles = (base for base in origins(store, np.zeros(0, np.int64))[0] if isinstance(base, FaceList))
        if name is None and (unnamed := next(singles, None)) is not None:
            raise UserError(
                f"whose face is {unnamed.where(0)}? Say --name NAME, or give a folder with a folder per person"
            )
        done, asked = Added(), len(store)
        looked = 0
        for people in _some_at_a_time(self._new_images(store, name, done)):
            self._embed(store, people, Embedder.of(self._embedder(batch_size, workers)), done)
            looked += sum(len(images_of) for _, images_of in people)
            if progress is not None:
                progress(min(looked + done.known + len(done.left_out), asked), asked)
        if not done.templates and not done.known:
            raise UserError(
                f"{store.name}: no image can be used; the first is {done.left_out[0][1]}: {done.left_out[0][2]}"
            )
        return done

    def _embedder(self, batch_size: int, workers: int) -> Embedder:
        if self.model is None:
            raise UserError(f"{self.folder} was opened without a model: images need one, {self.facts.model}")
        return Embedder(self.model.module, batch_size, self.facts.flip, self.model.device, workers)

    def _new_images(self, store: Store, name: str | None, done: Added) -> Iterator[NewImages]:
        """Yield each person who has any."""
        labels = (
            [(name, np.arange(len(store)))]
            if name is not None
            else ((store.identity_name(label), store.identities.of(label)) for label in range(len(store.identities)))
        )
        for said, positions in labels:
            person = _checked_name(str(said))
            seen = self._store.known_images(person)
            new: list[tuple[int, bytes]] = []
            for position in positions.tolist():
                try:
                    base, place = _origin(store, position)
                    digest = hashlib.blake2b(base.read(place)[0], digest_size=16).digest()
                except (OSError, BrokenImageError) as error:
                    done.left_out.append((position, store.where(position), str(error)))
                    continue
                if digest in seen:
                    done.known += 1
                    continue
                seen.add(digest)
                new.append((position, digest))
            if new:
                yield person, new

    def _embed(self, store: Store, people: Sequence[NewImages], embedder: Embedder, done: Added) -> None:
        found = embedder.embed(store, [position for _, images in people for position, _ in images])
        done.left_out += found.left_out
        owner_N = np.repeat(np.arange(len(people)), [len(images) for _, images in people])
        if not found.valid.any():
            return
        pooled = pool_templates(found.vectors, owner_N, np.arange(len(owner_N)), usable=found.valid)
        broken = {position for position, _, _ in found.left_out}
        templates = []
        for owner, vector in zip(pooled.ids.tolist(), pooled.vectors.numpy(), strict=True):
            name, images = people[owner]
            sources = {digest: _source(store, place) for place, digest in images if place not in broken}
            templates.append(Template(name, vector, sources))
        self._store.add(templates)
        done.templates += len(templates)
        done.people += len({template.name for template in templates})
        done.images += sum(len(template.images) for template in templates)

    def _add_vectors(self, vectors: Float32, name: str | None) -> Added:
        if name is None:
            raise UserError("embeddings have no names of their own: pass name=")
        person = _checked_name(name)
        unit_ND = self._vectors(vectors)
        digest = hashlib.blake2b(unit_ND.tobytes(), digest_size=16).digest()
        if digest in self._store.known_images(person):
            return Added(known=len(unit_ND))
        pooled = pool_templates(unit_ND, np.zeros(len(unit_ND)), np.arange(len(unit_ND)))
        self._store.add([Template(person, pooled.vectors[0].numpy(), {digest: "embeddings"})])
        return Added(1, 1, len(unit_ND))

    def _vectors(self, vectors: Float32) -> Float32:
        rows = vectors[None] if vectors.ndim == 1 else vectors
        if rows.ndim != 2 or rows.shape[1] != self.facts.embedding_size:
            raise UserError(
                f"a float array of shape {vectors.shape} holds no embeddings of this gallery: give (N, {self.facts.embedding_size})"
            )
        return unit_tensor(rows).numpy()

    def remove(self, names: str | Iterable[str]) -> list[Removed]:
        """Remove people, all or none, and erase their vectors, names and paths from every file of the gallery.

        Raises:
            UserError: nobody has such a name; nothing was removed.
        """
        asked = [plain(name) for name in ([names] if isinstance(names, str) else names)]
        enrolled = self._store.names()
        if missing := sorted(set(asked) - set(enrolled)):
            raise UserError(
                f"nobody in {self.folder} is named {missing[0]!r}{nearest(missing[0], enrolled)}; nothing was removed"
            )
        return [Removed(name, *found) for name, found in self._store.remove(asked).items()]

    def search(self, images: Any, top: int = 1, *, batch_size: int = 256, workers: int = 0) -> list[list[Match]]:
        """Find whom faces show: the nearest people, exactly, whether or not they are near enough.

        Args:
            images: aligned faces, as `FaceModel.embed` takes them; or (N, D) float embeddings of any length.
            top: people per face.
            batch_size, workers: of `FaceModel.embed`.

        Returns:
            For each face the best people, best first; fewer where the gallery has fewer. `match.far` says at which rate it is accepted.

        Raises:
            UserError: no model, a broken image, embeddings of another size, or a damaged gallery.
        """
        if top < 1:
            raise UserError(f"top={top}: ask for at least 1 person per face")
        if isinstance(images, np.ndarray) and np.issubdtype(images.dtype, np.floating):
            query_QD = self._vectors(images)
        else:
            self._embedder(batch_size, workers)
            assert self.model is not None
            query_QD = self.model.embed(images, batch_size=batch_size, flip=self.facts.flip, workers=workers)
        rates = dict(self.facts.threshold_at_far)
        return [
            [Match(name, score, lowest_far(score, rates)) for name, score in best]
            for best in self._store.search(query_QD, top)
        ]

    def check(self, progress: Progress | None = None) -> None:
        """Read every template and refuse the first that is not as it was written; some seconds per million.

        Args:
            progress: called as (templates done, templates).

        Raises:
            UserError: names the file and the person.
        """
        self._store.check(progress)

    def stats(self) -> Json:
        """Return what the gallery is of and how much is in it, as plain JSON types."""
        self.facts = self._store.facts
        return {**self._store.counts(), **self.facts.model_dump(mode="json"), "threshold": self.facts.threshold}


def _some_at_a_time(people: Iterable[NewImages]) -> Iterator[list[NewImages]]:
    """Yield people together until they have AT_ONCE images."""
    waiting: list[NewImages] = []
    for person in people:
        waiting.append(person)
        if sum(len(images) for _, images in waiting) >= AT_ONCE:
            yield waiting
            waiting = []
    if waiting:
        yield waiting
