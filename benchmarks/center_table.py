"""What the default head's step costs on this machine, and what a flag per identity saves of it: the draw alone, and forward and backward of AttFC.

`flag`: as it is. `look`: who was seen is found in the rows drawn, in every number of each. Processor seconds, in pairs, the order turned
each time; the ratio is the median of the pairs', and above 1 is what the flag saves. 128 samples, D = 512, 200,000 identities, 20,000 drawn.
"""

import statistics
import time

import torch
from common import write_result
from torch import Tensor
from torch.nn.functional import normalize

from attfc.heads import AttFC, CenterTable
from attfc.heads.banks.bank import Negatives
from attfc.losses.streaming_pass import EMPTY

BATCH, SIZE, IDENTITIES, TURNS = 128, 512, 200_000, 101


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
    for what, act in (("negatives", negatives), ("step", step)):
        seconds: dict[str, list[float]] = {name: [] for name in heads}
        for turn in range(2 + TURNS):
            for name in list(heads)[:: 1 if turn % 2 else -1]:
                start = time.process_time()
                act(heads[name])
                if turn >= 2:
                    seconds[name].append(time.process_time() - start)
        ratios = sorted(look / flag for look, flag in zip(seconds["look"], seconds["flag"], strict=True))
        results[what] = {name: statistics.median(values) for name, values in seconds.items()}
        results[what] |= {
            "ratio": statistics.median(ratios),
            "ratio_quartiles": [ratios[TURNS // 4], ratios[3 * TURNS // 4]],
        }
    print(results)
    print(write_result("center_table", {"batch": BATCH, "embedding_size": SIZE, "identities": IDENTITIES}, results))


if __name__ == "__main__":
    main()
