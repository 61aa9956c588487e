"""`attfc train PATH`: what nobody asked for is chosen from the data and the machine.

`attfc.config.choose` is the table; here are the facts that it is asked about, and how its answers become a configuration.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attfc.config import Asked, RunConfig
from attfc.config.choose import FREQUENT, KEPT_SHARE, Choice, Data, Machine, choose
from attfc.config.overrides import dotted
from attfc.config.schema import described_fields
from attfc.data import Store
from attfc.distributed import Ranks
from attfc.errors import UserError
from attfc.run.planning import Planner
from attfc.run.start_weights import StartWeights, read_start

__all__ = ["choose_configuration", "first_configuration", "with_start_weights"]


def first_configuration(asked: Asked) -> RunConfig:
    """Return the configuration as far as it is known before the data are open: who is kept aside, device, seed."""
    return asked.resolve(_before_the_data(asked.given()) if asked.automatic else {})


def with_start_weights(asked: Asked) -> tuple[Asked, StartWeights | None]:
    """Read the weights of `start_from`, and put their network in place of the preset's, below what was typed; None: there are none.

    Raises:
        UserError: options about start weights, and there are none; what `read_start` raises.
    """
    config = first_configuration(asked)
    if config.start_from is None:
        flat = dotted(config.model_dump(mode="json"))
        for key in (key for key in flat if key.startswith("finetune.") or key == "eval.also"):
            if flat[key] != described_fields()[key][0][1].default:
                raise UserError(
                    f"{key}={flat[key]} needs start weights: set start_from=RUN_OR_WEIGHTS, or leave {key} out"
                )
        return asked, None
    config, start = read_start(config, asked.typed())
    return replace(asked, values={**asked.values, "backbone": config.backbone.model_dump(mode="json")}), start


def choose_configuration(
    asked: Asked, store: Store, kept: Store | None, device: torch.device, ranks: Ranks
) -> tuple[RunConfig, list[Choice]]:
    """Return the whole configuration and the rows of the table; all ranks call it, and rank 0 chooses for the smallest device.

    Args:
        store: the people to train on. kept: those kept aside.

    Raises:
        UserError: the data hold a single image, or none; or no batch fits the memory.
    """
    machine = _machine(device, ranks)
    if len(store) < 2:
        raise UserError(
            f"{store.name} holds too few images to train on ({len(store)}): at least 2 images of 2 people are needed"
            + "".join(f"; {note}" for note in getattr(store, "notes", ()))
        )
    with_pairs = sum(int(np.count_nonzero(each.identities.counts() >= 2)) for each in (store, kept) if each is not None)
    data = Data(
        len(store.identities),
        len(store),
        with_pairs,
        *((0, 0) if kept is None else (len(kept.identities), len(kept))),
        frequent=int(np.count_nonzero(store.identities.counts() >= FREQUENT)),
    )
    given = asked.given()
    rows = ranks.once(lambda: choose(data, machine, given))
    chosen = _before_the_data(given)
    for row in rows:
        chosen |= row.values
    config = asked.resolve(chosen)
    typed = {"batch_size", "optimizer.accumulation"} & given.keys()
    if typed or config.backbone.name.endswith("_tiny"):  # a tiny network fits wherever torch does
        return config, rows
    budget = machine.memory_gib * 2**30
    planner = Planner(len(store.identities), len(store), device, budget, ranks.size)
    divided = ranks.once(lambda: planner.passes_that_fit(config))
    if divided == 1:
        return config, rows
    cut = {
        "batch_size": config.batch_size // divided,
        "optimizer.accumulation": config.optimizer.accumulation * divided,
    }
    why = f"a batch of {config.batch_size} does not fit {machine.memory_gib:.0f} GiB: smaller batches, as many images per step"
    return asked.resolve(chosen | cut), [*rows, Choice("cut to fit", cut, "{} x {}".format(*cut.values()), why)]


def _before_the_data(given: Mapping[str, Any]) -> dict[str, Any]:
    """The run is named after its data; a share of the people is kept aside where no others are given for the evaluation."""
    root = str(given.get("data.root", "run"))
    name = root.partition(":")[0] if root.startswith("synthetic:") else Path(os.path.expanduser(root)).resolve().stem
    return {"name": name[:100] or "run"} | ({} if given.get("eval.root") is not None else {"eval.share": KEPT_SHARE})


def _machine(device: torch.device, ranks: Ranks) -> Machine:
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    memory = torch.cuda.get_device_properties(device).total_memory / 2**30 if device.type == "cuda" else host
    said = ranks.objects((memory, host))
    return Machine(device.type, min(each[0] for each in said), min(each[1] for each in said), ranks.size)
