"""The pairs that a run is judged on: a list, or pairs drawn from the people of its evaluation; faults name the option at fault."""

import os
from pathlib import Path

from attfc.config import RunConfig
from attfc.data import Store
from attfc.errors import UserError
from attfc.evaluation import Pairs, generate_pairs, read_pairs

__all__ = ["judged_pairs"]


def judged_pairs(config: RunConfig, held_out: Store) -> Pairs:
    """Read `eval.pairs`, or draw pairs of the people that the run is judged on.

    Raises:
        UserError: the list cannot be read or names others, or the people allow no pairs.
    """
    if not config.eval.pairs:
        try:
            return generate_pairs(held_out.identities, config.eval.generated_pairs, config.seed)
        except UserError as error:
            raise UserError(f"{held_out.name}, to be evaluated on: {error}; or set eval.root=OTHER_PEOPLE") from None
    path = Path(os.path.expanduser(config.eval.pairs))
    try:
        return read_pairs(path, held_out, broken_limit=config.data.broken_limit)
    except OSError as error:
        raise UserError(f"eval.pairs={config.eval.pairs}: {error.strerror}") from None
    except UserError as error:
        if config.eval.root is not None:
            raise
        raise UserError(f"{error}; set eval.root= to the images of the people in the list") from None
