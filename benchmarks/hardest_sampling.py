"""Prototype Memory with people who look alike in one batch, on simulated people of few samples.

    python benchmarks/hardest_sampling.py [--shares 0 0.5] [--seeds 0 1 2]

The world, steps and settings are those of `prototype memory` in studies/vectors_tail.yaml. A `share` of the groups of each batch is chosen anew
by what the memory holds at that moment: a person drawn from the memory, and the person whose prototype is the most similar to theirs. Both come with
their next samples, so their prototypes are refreshed as well. All other groups come in the usual order; where share is 0 all do.
Prototype Memory's paper (arXiv 2105.02103) combines its memory with such sampling; this is our reading of it, from the abstract.

Not part of the library: the order of images is a function of seed and position there. Writes results/hardest_sampling.json.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, write_result

from attfc.data.index import IdentityIndex
from attfc.data.sampling.paired_queries import PairedQueries
from attfc.heads import Head
from attfc.heads.attfc import AttFC
from attfc.heads.centers import Pairs
from attfc.lab.study import VectorsSection, read_study
from attfc.lab.study_cells import run_vectors
from attfc.lab.study_verdict import difference
from attfc.typing import Int64

STUDY, VARIANT = Path(__file__).parent / "studies" / "vectors_tail.yaml", "prototype memory"
FIGURES = ("tar_at_far/0.0001", "tar_at_far/0.001", "rank_one")


class AlikeQueries(PairedQueries):
    """Groups in the usual order, but for a share of each batch: pairs of people whose prototypes are most alike.

    Args:
        identities, seed: as `PairedQueries`.
        head: whose centers are of groups, and whose negatives are a container.
        share: of the groups of a batch, rounded to pairs of groups.
    """

    def __init__(self, identities: IdentityIndex, head: Head, *, seed: int, share: float) -> None:
        assert isinstance(head, AttFC)
        assert isinstance(head.center, Pairs)
        super().__init__(identities, seed, head.center.group)
        self.head, self.share = head, share
        self.draw = np.random.default_rng([seed, 7])
        self.turns = np.zeros(len(identities), dtype=np.int64)
        self.chosen: tuple[int, Int64] | None = None

    def query_slots(self, numbers: Int64) -> Int64:
        """Return the slots of a batch; asked again for the same batch, the same."""
        if self.chosen is None or self.chosen[0] != int(numbers[0]):
            self.chosen = int(numbers[0]), self._slots(numbers)
        return self.chosen[1]

    def _slots(self, numbers: Int64) -> Int64:
        slots = super().query_slots(numbers)
        pairs = round(self.share * len(numbers) / self.group / 2)
        rows_SD, labels_S, _ = self.head.negatives.negatives(torch.empty(0, dtype=torch.int64))
        filled_S = labels_S >= 0
        rows_SD, labels_S = rows_SD[filled_S], labels_S[filled_S]
        if pairs == 0 or len(labels_S) < 4 * pairs:
            return slots
        anchors = self.draw.choice(len(labels_S), pairs, replace=False)
        cosines_PS = rows_SD[anchors] @ rows_SD.T
        cosines_PS[torch.arange(pairs), torch.from_numpy(anchors)] = -2
        two_P2 = np.stack([anchors, cosines_PS.argmax(dim=1).numpy()], axis=1)
        groups = [self._next_slots(label) for label in labels_S.numpy()[two_P2.ravel()]]
        slots[: len(groups) * self.group] = np.concatenate(groups)
        return slots

    def _next_slots(self, label: int) -> Int64:
        """The next samples of a person, those after the last that were chosen of them."""
        first, count = self.identities.spans(np.array([label]))
        places = (self.turns[label] + np.arange(self.group)) % count[0]
        self.turns[label] += self.group
        slots: Int64 = first[0] + places
        return slots


def run(share: float, seed: int) -> dict[str, Any]:
    """Train once and return what is compared."""
    study = read_study(STUDY)
    assert isinstance(study.world, VectorsSection)
    overrides = [*study.overrides, *study.variants[VARIANT]]
    order = partial(AlikeQueries, seed=seed, share=share)
    found = run_vectors(study.world.made(), study.preset, overrides, seed, study.world.width, points=1, order=order)
    kept = {key: found[key] for key in ("steps", "seconds", "figures", "people")}
    return {"variant": f"share {share:g}", "share": share, "seed": seed, **kept, "config": found["config"]}


def main() -> None:
    """Run what is asked for, and write every cell with its difference to share 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=RESULTS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    cells = []
    for seed in asked.seeds:
        for share in asked.shares:
            cells.append(run(share, seed))
            found = cells[-1]["figures"]["test"]
            print(
                json.dumps({"share": share, "seed": seed, **{key: round(found[key], 4) for key in FIGURES}}), flush=True
            )
    config = cells[0]["config"]
    of_share = {share: [cell for cell in cells if cell["share"] == share] for share in asked.shares}
    plain = of_share.pop(0.0, [])
    differences = {}
    for share, chosen in of_share.items():
        found_each = {figure: difference(chosen, plain, figure, "test") for figure in FIGURES}
        differences[f"{share:g}"] = {figure: found.text() for figure, found in found_each.items() if found}
    for cell in cells:
        del cell["config"], cell["people"]
    write_result("hardest_sampling", config, {"cells": cells, "less_share_0": differences}, asked.output)


if __name__ == "__main__":
    main()
