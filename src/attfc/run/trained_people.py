"""Which people of an evaluation a run was trained on: its own training data, and those of the runs that it started from.

Names and files say nothing where a set was named and encoded anew; faces do. The first images of as many people as the time allows are
embedded, of both sets, and centers and images of the evaluation compared with centers of the training (`cleaning.same_people`), at a
threshold that one closest stranger reaches in ten evaluations. A find is a hint, not a proof; `attfc data clean --against --model` looks at
everybody. A faster machine sees more people, so it is said how many images were compared. Not for rendered faces, whose numbers tell.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from attfc.config import RunConfig
from attfc.config.schema import DataConfig
from attfc.data import CombinedStore, Store
from attfc.data.cleaning.identity_centers import identity_centers
from attfc.data.cleaning.same_people import alike
from attfc.data.people.kept_aside import split
from attfc.distributed import ALONE
from attfc.errors import UserError
from attfc.evaluation.embed import Embedder
from attfc.evaluation.unseen import SharedPeople, compare_with_training, not_compared, rendered
from attfc.run.data import open_training_data
from attfc.run.saved import saved_configuration, with_found_data
from attfc.run.start_weights import Lineage, lineage, read_record
from attfc.run.teacher import read_teacher
from attfc.typing import Array, Int64, Progress

__all__ = ["compare_with_run", "compare_with_saved_run", "with_look_alikes"]

_CHUNK, _ROUNDS = 256, 4
_FALSE_PEOPLE = 0.1
_KEEPS = 0.3


def compare_with_saved_run(
    run: Path,
    evaluation: Store,
    progress: Progress | None = None,
    *,
    embedder: Embedder | None = None,
    seconds: float = 0.0,
) -> SharedPeople:
    """Compare an evaluation set with everybody whom the run of a folder was trained on; see `compare_with_run`."""
    try:
        config = saved_configuration(run)
        records = {"start weights": read_record(run), "teacher": read_teacher(run)}
    except (UserError, OSError) as error:
        return not_compared(evaluation, f"what the run was trained on cannot be read ({error})")
    with contextlib.suppress(UserError):  # where they are not found, the path is named below
        config = with_found_data(config, run)[0]
    behind = {name: record.lineage for name, record in records.items() if record is not None}
    return compare_with_run(config, evaluation, progress, behind=behind, embedder=embedder, seconds=seconds)


def compare_with_run(
    config: RunConfig,
    evaluation: Store,
    progress: Progress | None = None,
    *,
    training: Store | None = None,
    behind: Mapping[str, Lineage] | None = None,
    embedder: Embedder | None = None,
    seconds: float = 0.0,
) -> SharedPeople:
    """Compare an evaluation set with everybody whom a run was trained on.

    Args:
        config: of the run.
        evaluation: the people to evaluate on.
        progress: called as (images read, images to read).
        training: the run's training data, if they are open already.
        behind: who stands behind the "start weights" and the "teacher", as far as that is known already.
        embedder, seconds: the trained model, to look for people who look like trained ones for so long; None: names and files alone.
    """
    unknown = []
    try:
        stores = [training if training is not None else _training_data(config, config.data, config.eval.share)]
    except (UserError, OSError) as error:
        return not_compared(evaluation, f"the run's training data cannot be opened ({error})")
    for name, model in (("start weights", config.start_from), ("teacher", config.teacher.model)):
        if model is None:
            continue
        try:
            earlier = (behind or {}).get(name) or lineage(model)
            unknown += [f"whether the {name} saw them is unknown"] * earlier.foreign
            stores += [_training_data(config, one.data, one.share) for one in earlier.runs]
        except (UserError, OSError):
            of = "that it started from" if name == "start weights" else "of its teacher"
            unknown.append(f"the training data of a run {of} cannot be opened")
    everybody = stores[0] if len(stores) == 1 else CombinedStore(stores)
    shared = compare_with_training(everybody, evaluation, progress, unknown="; ".join(unknown))
    return shared if embedder is None else with_look_alikes(shared, embedder, everybody, evaluation, seconds, progress)


def _training_data(config: RunConfig, data: DataConfig, share: float) -> Store:
    store = open_training_data(config.model_copy(update={"data": data}))
    return split(store, share)[0] if share else store


def with_look_alikes(
    shared: SharedPeople,
    embedder: Embedder,
    training: Store,
    evaluation: Store,
    seconds: float,
    progress: Progress | None = None,
) -> SharedPeople:
    """Return what is known of the people, with how many others of the evaluation look like people of the training.

    Args:
        shared: what names and files say.
        embedder: the trained model. One process embeds, without mirror images.
        training, evaluation: as they were compared by name.
        seconds: to spend on it, half of them for either set at most; 0: return `shared`.
        progress: called as (hundredths of the time spent, 100).
    """
    if seconds <= 0 or any(rendered(training, evaluation)) or len(shared.shared_labels) == shared.identities:
        return shared
    alone = dataclasses.replace(embedder, flip=False, workers=0, ranks=ALONE)
    begun = time.monotonic()
    theirs, their_labels, _ = _embedded(alone, evaluation, begun, seconds / 2, seconds, progress)
    ours, our_labels, images = _embedded(alone, training, begun, seconds, seconds, progress)
    known = np.unique(our_labels)
    people = np.unique(their_labels)
    centers = identity_centers(ours, np.searchsorted(known, our_labels), len(known), _KEEPS)
    their_centers = identity_centers(theirs, np.searchsorted(people, their_labels), len(people), _KEEPS)
    by_center = alike(their_centers, centers, false_matches=_FALSE_PEOPLE)
    by_image = alike(theirs, centers, false_matches=_FALSE_PEOPLE)
    if not by_center.by_chance:  # fewer than 20 people: nothing says what strangers reach
        return shared
    found = np.union1d(people[by_center.found], their_labels[by_image.found])
    found = np.setdiff1d(found, shared.shared_labels)
    return dataclasses.replace(
        shared,
        look_alikes=len(found),
        looked_at=(len(people), images),
        alike_names=tuple(evaluation.identity_name(int(label)) for label in found),
    )


def _embedded(
    embedder: Embedder, store: Store, begun: float, until: float, seconds: float, progress: Progress | None
) -> tuple[Array, Int64, int]:
    """Embed first images of people until the time is up, at least one chunk; return embeddings, labels, and how many images."""
    vectors, labels = [], []
    for positions in _rounds(store):
        vectors.append(embedder.embed(store, positions).vectors)
        labels.append(store.labels(positions))
        spent = time.monotonic() - begun
        if progress is not None:
            progress(min(100, int(100 * spent / seconds)), 100)
        if spent > until:
            break
    return np.concatenate(vectors), np.concatenate(labels), sum(map(len, labels))


def _rounds(store: Store) -> Iterator[Int64]:
    """Yield chunks of positions: the first image of everybody in a random order, then the second of those who have one, and so on."""
    index = store.identities
    first, counts = index.offsets[:-1], index.counts()
    people = np.random.default_rng(0).permutation(len(index))
    for number in range(_ROUNDS):
        having = people[counts[people] > number]
        for start in range(0, len(having), _CHUNK):
            yield index.positions_of_slots(first[having[start : start + _CHUNK]] + number)
