"""What a configuration means for one data set, settled before anything is built or saved: what is saved is what was built.

A preset says "a tenth of the identities", "the batch's own centers have a gradient", "half an epoch of warm-up". On given data each is a number
or says nothing. `resolve` returns the configuration with those numbers in it and a note for every value that had to give way, so that a preset's own
values never fail, however small the data set is.
"""

import math

from attfc.config import RunConfig
from attfc.errors import UserError

__all__ = [
    "draws_negatives",
    "fewest_steps_notes",
    "identity_share",
    "negatives_per_step",
    "paired_queries",
    "resolve",
]

FEWEST_STEPS = 20  # below, a schedule has hardly begun when it ends


def draws_negatives(config: RunConfig) -> bool:
    """Whether AttFC draws its negatives from the table of centers, or the memory of images, in place of a container."""
    return config.head.name == "attfc" and config.center.table != "none" and config.negatives.source == "table"


def keeps_container(config: RunConfig) -> bool:
    """Whether the head keeps a container or a pool of recent centers."""
    return config.head.name in ("dcq", "dcp") or (config.head.name == "attfc" and not draws_negatives(config))


def negatives_per_step(config: RunConfig, identities: int) -> int:
    """Return `container.slots`, else container.ratio x identities: slots of the container, or rows drawn as negatives.

    A container takes in a whole batch at a time, so a share of few identities is rounded up to the batch.
    """
    if config.container.slots is not None:
        return config.container.slots
    assert config.container.ratio is not None
    asked = max(1, round(config.container.ratio * identities))
    return max(asked, config.batch_size) if keeps_container(config) else min(asked, identities)


def resolve(config: RunConfig, identities: int) -> tuple[RunConfig, list[str]]:
    """Return the configuration as it is built for that many identities, and notes about what had to give way.

    Raises:
        UserError: a container of a typed size that is smaller than the batch.
    """
    notes: list[str] = []
    config = config.model_copy(deep=True)
    if config.head.name == "attfc":
        made_of_queries = config.center.source != "keys"
        config.negatives.in_batch_gradient &= config.negatives.in_batch and made_of_queries
        if not draws_negatives(config):
            config.negatives.source = "container"
    if config.head.name in ("full_fc", "partial_fc"):
        return config, notes
    slots = negatives_per_step(config, identities)
    if keeps_container(config):
        if slots < config.batch_size:
            raise UserError(
                f"container.slots={slots} is smaller than batch_size={config.batch_size}, and a whole batch enters at once: "
                f"set container.slots={config.batch_size}" + (f", or batch_size={slots}" if slots >= 2 else "")
            )
        if config.container.slots is None and slots > round((config.container.ratio or 0) * identities):
            notes.append(
                f"container.ratio={config.container.ratio:g} of {identities:,} identities is less than one batch: "
                f"the container has {slots} slots"
            )
    config.container.slots = slots
    return config, notes


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
            way = f"set schedule.epochs={epochs} or more" + (f", or batch_size={smaller}" if per_step > smaller else "")
        notes.append(
            f"the run has {steps} step{'s' * (steps != 1)}, fewer than {FEWEST_STEPS}: it can hardly learn; {way}"
        )
    return notes


def identity_share(config: RunConfig, head: str) -> float:
    """`data.sampling_mix`; F2C's loader belongs to its head, and those drawn by identity are those that enter its pool first."""
    if config.data.sampling_mix is not None:
        return config.data.sampling_mix
    return config.head.enter_first if head == "dcp" else 0.0


def paired_queries(config: RunConfig) -> bool:
    """Whether the queries of a batch come in pairs of one identity."""
    return config.head.name == "attfc" and config.center.source == "batch"
