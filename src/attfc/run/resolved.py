"""What a configuration means for one data set, settled before anything is built or saved: what is saved is what was built.

A preset says "a tenth of the identities", "the batch's own centers have a gradient", "half an epoch of warm-up". On given data each is a number
or says nothing. `resolve` returns the configuration with those numbers in it and a note for every value that had to give way, so that a preset's own
values never fail, however small the data set is.
"""

import math

from attfc.config import RunConfig
from attfc.config.kinds import HOLDING_A_BATCH
from attfc.config.profiles import usual_negatives
from attfc.errors import UserError

__all__ = ["fewest_steps_notes", "identity_share", "queries_in_a_row", "resolve", "rows_as_negatives"]

FEWEST_STEPS = 20  # below, a schedule has hardly begun when it ends


def rows_as_negatives(config: RunConfig, identities: int) -> int | None:
    """Return the slots of the container or pool, or the centers that are drawn per step; None: the head's rows are trained.

    A container takes in a whole batch at a time, so a share of few identities is rounded up to the batch.
    """
    bank = config.negatives if config.negatives is not None else config.head
    if "count" not in type(bank).model_fields:
        return None
    if bank.get("count") is not None:
        return int(bank.get("count"))
    holds_batch, share = bank.kind in HOLDING_A_BATCH, bank.get("share")
    if share is None and not holds_batch:
        return usual_negatives(identities)
    asked = max(1, round((0.1 if share is None else share) * identities))
    return max(asked, config.batch_size) if holds_batch else min(asked, identities)


def resolve(config: RunConfig, identities: int) -> tuple[RunConfig, list[str]]:
    """Return the configuration as it is built for that many identities, and notes about what had to give way.

    Raises:
        UserError: a container of a typed size, or a memory of past embeddings, that is smaller than the batch.
    """
    notes: list[str] = []
    if 0 < (past := config.head.get("past", 0)) < config.batch_size:
        raise UserError(
            f"head.past={past} is smaller than batch_size={config.batch_size}, and a whole batch enters at once: set head.past={config.batch_size} "
            "or more, or head.past=0"
        )
    section = "negatives" if config.negatives is not None else "head"
    bank, count = getattr(config, section), rows_as_negatives(config, identities)
    if count is None:
        return config, notes
    if bank.kind in HOLDING_A_BATCH:
        if count < config.batch_size:
            raise UserError(
                f"{section}.count={count} is smaller than batch_size={config.batch_size}, and a whole batch enters at once: "
                f"set {section}.count={config.batch_size}" + (f", or batch_size={count}" if count >= 2 else "")
            )
        share = 0.1 if bank.get("share") is None else bank.get("share")
        if bank.get("count") is None and count > round(share * identities):
            notes.append(
                f"{section}.share={share:g} of {identities:,} identities is less than one batch: the container has {count} slots"
            )
    return config.model_copy(update={section: bank.model_copy(update={"share": None, "count": count})}), notes


def fewest_steps_notes(config: RunConfig, images: int, steps: int) -> list[str]:
    """Return what to say before a run that is too short to learn: fewer images than a batch, or fewer than 20 steps.

    Args:
        images: of the training set.
        steps: optimizer steps of the run.
    """
    notes = []
    per_step = config.batch_size * config.optimizer.accumulation
    smaller = max(2, 2 ** int(math.log2(max(images / 4, 2))))
    if images < per_step:
        notes.append(
            f"{images} images are fewer than the {per_step} of one step, so each step sees images twice: set batch_size={smaller}"
        )
    if steps < FEWEST_STEPS:
        if config.schedule.max_steps is not None and steps == config.schedule.max_steps:
            way = f"set schedule.max_steps={FEWEST_STEPS} or more, or null"
        else:
            epochs = math.ceil(FEWEST_STEPS * per_step / images)
            way = f"set epochs={epochs} or more" + (f", or batch_size={smaller}" if per_step > smaller else "")
        notes.append(
            f"the run has {steps} step{'s' * (steps != 1)}, fewer than {FEWEST_STEPS}: it can hardly learn; {way}"
        )
    return notes


def identity_share(config: RunConfig) -> float:
    """`data.sampling_mix`; F2C's loader belongs to its head, and those drawn by identity are those that enter its pool first."""
    if config.data.sampling_mix is not None:
        return config.data.sampling_mix
    return float(config.head.get("enter_first", 0.0))


def queries_in_a_row(config: RunConfig) -> int:
    """How many queries of a batch in a row show one identity."""
    return int(config.center.get("group", 1)) if config.center is not None else 1
