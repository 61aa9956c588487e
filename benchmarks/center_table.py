"""What the default head's step costs on this machine, and what a flag per identity saves of it: the draw alone, and forward and backward of AttFC.

`flag`: as it is. `look`: who was seen is found in the rows drawn, in every number of each. Processor seconds, in turns in one process; a ratio
above 1 is what the flag saves. 128 samples, D = 512, 200,000 identities, 20,000 drawn.
"""

import time

import torch
from common import median_seconds_each, write_result
from torch import Tensor
from torch.nn.functional import normalize

from attfc.heads import AttFC, CenterTable
from attfc.heads.banks.bank import Negatives
from attfc.losses.streaming_pass import EMPTY

BATCH, SIZE, IDENTITIES = 128, 512, 200_000


class LookingTable(CenterTable):
    """Finds who was seen in the rows."""

    def negatives(self, every_label_B: Tensor) -> Negatives:
        """Return the same negatives."""
        drawn = super().negatives(every_label_B)
        return drawn._replace(labels_S=torch.where(drawn.rows_SD.any(dim=1), drawn.labels_S, EMPTY))


def main() -> None:
    """Measure and write benchmarks/results/center_table.json."""
    embeddings = torch.randn(BATCH, SIZE).requires_grad_()
    heads = {}
    for name, kind in (("flag", CenterTable), ("look", LookingTable)):
        head = AttFC.default(SIZE, IDENTITIES, negatives=kind())
        for labels in torch.arange(IDENTITIES).split(IDENTITIES // 4):
            head.table.store_centers(normalize(torch.randn(len(labels), SIZE), dim=1), labels)  # type: ignore[union-attr, operator]
        heads[name] = head

    def step(head: AttFC) -> None:
        head(embeddings, torch.randint(IDENTITIES, (BATCH,))).backward()

    def negatives(head: AttFC) -> None:
        head.negatives.negatives(torch.randint(IDENTITIES, (BATCH,)))

    results = {}
    for what, act, repeats in (("negatives", negatives, 41), ("step", step, 15)):
        fns = {name: lambda act=act, head=head: act(head) for name, head in heads.items()}
        seconds = median_seconds_each(fns, repeats, 2, time.process_time)
        results[what] = seconds | {"ratio": seconds["look"] / seconds["flag"]}
    print(results)
    print(write_result("center_table", {"batch": BATCH, "embedding_size": SIZE, "identities": IDENTITIES}, results))


if __name__ == "__main__":
    main()
