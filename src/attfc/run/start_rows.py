"""The centers of a head in a run that starts from another: those of the same people are taken over, by name.

So stages of one recipe go on where the last one stood: a sample of the negatives first, then all; a few people, then everybody. A name means the same
person within one place (a folder, a file, a synthetic seed), and between places if it is more than a number, as in `attfc.evaluation.unseen`. Names
that stand twice in a set are nobody's. Trained rows (`full_fc`, `partial_fc`, those of frequent identities) and the table of centers are taken over,
each from the other too: a center gets the mean length of the new rows, a trained row its direction alone. Momentum, containers and memories of images
are not. A checkpoint has no names, so the data of the earlier run are opened, unless its hashes say that the people and their order are the same.

Cost: two names per person in memory while they are compared; the rows come 65,536 at a time.
"""

import itertools
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from attfc.data import Store
from attfc.data.cleaning.evaluation_people import comparable_name
from attfc.errors import UserError
from attfc.evaluation.unseen import people_and_places
from attfc.heads.banks.bank import find_sorted
from attfc.heads.banks.sharded_rows import ShardedRows
from attfc.run.data import open_data
from attfc.run.saved import saved_configuration, with_found_data
from attfc.training.checkpoints.manifest import read_manifest
from attfc.training.people import first_difference, people_of, saved_people
from attfc.typing import Int64

if TYPE_CHECKING:
    from attfc.run.build import Run
    from attfc.run.start_weights import StartWeights

__all__ = ["take_rows"]

TABLE, FREQUENT, LABELS = "table.rows", "table.frequent.weight", "table.frequent.labels"
ROWS = ("weight", TABLE, FREQUENT)  # in the state of a head: a row per identity, or, the last, per identity of LABELS


def take_rows(run: "Run", start: "StartWeights") -> str | None:
    """Fill the rows of the run's head with those of the start checkpoint, for people of equal names; return what a reader should know.

    Raises:
        UserError: rows of another embedding size, or a damaged checkpoint.
    """
    head, checkpoint, state = run.trainer.head, start.checkpoint, run.trainer.head.state_dict()
    own = [name for name in ROWS if name in state]
    if checkpoint is None or not own or run.config.finetune.rows == "fresh" or run.config.teacher.centers:
        return None
    saved = read_manifest(checkpoint).tensors
    theirs = [name for name in ROWS if f"head/{name}" in saved]
    if not theirs:
        return None
    size = saved[f"head/{theirs[0]}"].size
    if len(size) != 2 or size[1] != state[own[0]].shape[1]:
        raise UserError(
            f"start_from={start.record.source} keeps centers of {size[-1]} numbers, and those of this run have {state[own[0]].shape[1]}: "
            "set finetune.rows=fresh"
        )
    found = run.ranks.once(lambda: _labels_now(run, start, size[0]))
    if isinstance(found, str):
        return f"all class centers start fresh: whose centers {start.record.source} has is not known ({found})"
    from attfc.training.checkpoints.storage import rows_of

    now_M, taken, people = torch.from_numpy(found), 0, len(run.store.identities)
    frequent_T = state[LABELS].cpu() if FREQUENT in own else torch.empty(0, dtype=torch.int64)
    lengths = {name: 1.0 if name == TABLE else state[name].norm(dim=1).mean() for name in own}
    for mine, name in itertools.product(own, theirs):
        shard = ShardedRows.of(len(frequent_T) if mine == FREQUENT else people, head.ranks)
        whose_M = now_M
        if name == FREQUENT:
            whose_M = now_M[torch.cat([labels for _, labels in rows_of(checkpoint, f"head/{LABELS}")])]
        numbers_M = _numbers(mine, whose_M, frequent_T)
        for first, rows_SD in rows_of(checkpoint, f"head/{name}"):
            place_S, ours_S = shard.locate(numbers_M[first : first + len(rows_SD)])
            ours_S &= rows_SD.any(dim=1)  # the table's row is zeros for who was not seen yet, or has a trained row
            alike = (mine == TABLE) == (name == TABLE)
            found_SD = rows_SD[ours_S] if alike else normalize(rows_SD[ours_S].float()) * lengths[mine]
            state[mine][place_S[ours_S].to(state[mine].device)] = found_SD.to(state[mine])
            taken += len(found_SD)
    head.load_state_dict(state)  # what follows from the rows
    taken = int(head.ranks.sum(torch.tensor(float(taken), device=run.device)))
    kept = f"{taken:,} of the {people:,} people keep theirs from {start.record.source}"
    return f"class centers: {kept}, {people - taken:,} start fresh"


def _numbers(name: str, labels_M: Tensor, frequent_T: Tensor) -> Tensor:
    """Return which rows of a part of the head's state these people have, -1 for none: a trained row, or one of the table."""
    if len(frequent_T) == 0:
        return labels_M
    place_M, trained_M = find_sorted(frequent_T, labels_M)
    return torch.where(trained_M, place_M, -1) if name == FREQUENT else torch.where(trained_M, -1, labels_M)


def _labels_now(run: "Run", start: "StartWeights", before: int) -> Int64 | str:
    """Return for each label of the checkpoint the label of that person in this run, -1 for people who are not in it; or why that is not known."""
    assert start.checkpoint is not None
    folder, saved = start.checkpoint.parent.parent, saved_people(start.checkpoint)
    config = saved_configuration(folder)
    _, people = people_and_places(run.store)
    known = saved.get("names") == run.trainer.people["names"] and before == len(run.store.identities)
    if known and (config.data == run.config.data or all(comparable_name(name) for _, name in people)):
        return np.arange(before)
    try:
        store, _ = open_data(with_found_data(config, folder)[0])
        difference = first_difference(saved, store, people_of(store))
    except (UserError, OSError) as error:
        return f"its data cannot be opened: {error}"
    if difference is not None or len(store.identities) != before:
        return f"{store.name} has changed: {difference}"
    return _same_people(store, run.store)


def _same_people(before: Store, now: Store) -> Int64:
    """Return the label in `now` of each identity of `before`, by name; -1 for those who are not there or whose name is ambiguous."""
    places, people = people_and_places(now)
    exact: dict[object, int] = {}
    loose: dict[object, int] = {}
    for label, (place, name) in enumerate(people):
        for table, key in ((exact, (place, name)), (loose, comparable_name(name))):
            table[key] = -1 if key in table else label
    loose[None] = -1
    found = [
        exact.get((place, name), -1) if place in places else loose.get(comparable_name(name), -1)
        for place, name in people_and_places(before)[1]
    ]
    labels = np.array(found, dtype=np.int64)
    twice, counts = np.unique(labels, return_counts=True)
    labels[np.isin(labels, twice[counts > 1])] = -1
    return labels
