"""One class center for every identity, outside the device: so that a small container loses no positive, and negatives may be anybody.

The container answers two questions: what pushes a query away (negatives), and where its own identity was seen before (the stored center). With
fewer slots than identities most queries find no stored center, and the negatives are those who came last: where some people have many more
images than others, always the same ones. The table keeps the latest center of everybody. It answers the second question at any size, and
its negatives are drawn as Partial FC samples its classes: those of the batch and a random share of all others, new in each step.

Cost: N x 2D bytes (bfloat16), 1 KB per identity at D = 512: 1 GB per million. A step reads and writes the rows of its batch, B x 2D bytes each way,
and brings those drawn, S x 2D bytes; rows that are not on the device come while the backbone runs (`rows_ahead`). A row of zeros: not seen yet; a
flag per identity says so too, which spares a step a look at every number of the rows drawn.
Source: our own; the draw is that of Partial FC (arXiv 2203.15565), without gradient and momentum.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize

from attfc.config.option import Option
from attfc.errors import UserError
from attfc.heads.banks.bank import Batch, Recalled, Trained, last_occurrence, merge_centers
from attfc.heads.banks.frequent import FrequentRows
from attfc.heads.banks.kept_rows import KeptRows
from attfc.heads.banks.rows_ahead import gathered
from attfc.heads.banks.sharded_rows import ShardedRows
from attfc.heads.checked import checked
from attfc.heads.options import DrawnCount, DrawnShare, Folder
from attfc.losses.streaming_pass import EMPTY
from attfc.typing import Float32, Int64

__all__ = ["CenterTable"]


class CenterTable(KeptRows):
    """The latest center of each of N identities; everything it holds is in its `state_dict`.

    Args:
        share, count: centers drawn as negatives in a step, of the identities or absolute; default: a tenth of the identities, at least 200, at
            most 20,000. Those of the batch come on top.
        place, folder: where the rows live; `device`: they move with the module.
        seed: names the draws.
        trained: T identities, those with the most images, have a trained row (`FrequentRows`) in place of a center made of embeddings; the head then
            has a parameter, for an optimizer. Zeros stand for them in `rows`.
        image_counts: (N,) whole numbers, the images of each identity, where some are trained.

    Buffer: `rows` (N, D) bfloat16, this rank's block of it: rounds a number by up to 0.4 %, less than one image moves a center. `seen` (N,) bool,
    whose row is not zeros, follows from it and is not saved.
    Attribute `draws`: steps so far, the number of the next draw; saved too.

    >>> table = CenterTable().bind(embedding_size=2, identities=3)
    >>> table.store_centers(torch.tensor([[0.0, 1.0]]), torch.tensor([2]))
    >>> table.lookup(torch.tensor([2, 0]))
    tensor([[0., 1.],
            [0., 0.]])
    """

    held = False  # what it holds stays
    state_name = "table"
    shown = ("identities", "embedding_size", "place")
    rows: Tensor
    seen: Tensor
    frequent: FrequentRows | None

    @checked(identities="AttFC(..., identities=N)", embedding_size="AttFC(D, ...)", ranks="AttFC(..., ranks=...)")
    def __init__(
        self,
        share: DrawnShare = None,
        count: DrawnCount = None,
        place: Annotated[
            Literal["device", "host", "file"],
            Option("where the latest center of every identity is kept (2 bytes per number)"),
        ] = "host",
        folder: Folder = None,
        seed: int = 0,
        trained: Annotated[
            int,
            Option(
                "trained centers, for the people with the most images; those of all others are made of embeddings", ge=0
            ),
        ] = 0,
        image_counts: npt.ArrayLike | None = None,
    ) -> None:
        super().__init__(share, count, place, folder, seed)
        self.trained_count = trained
        self.image_counts = image_counts

    def _take_memory(self, identities: int | None, images: int | None) -> None:
        super()._take_memory(identities, images)
        if self.identities < self.ranks.size:
            raise UserError(
                f"the table of centers has {identities} identities, fewer than the {self.ranks.size} ranks that share its rows: "
                "it needs at least one identity per rank, start fewer processes"
            )
        rows_ND = self.store.zeros(len(self.shard), self.embedding_size, dtype=torch.bfloat16)
        self.register_buffer("rows", rows_ND)
        self.register_buffer("seen", self.store.zeros(len(self.shard), dtype=torch.bool), persistent=False)
        self.frequent = None
        if self.trained_count:
            counts, self.image_counts = self.image_counts, None
            if counts is None or len(counts) != identities:  # type: ignore[arg-type]
                given = "none" if counts is None else f"those of {len(counts)}"  # type: ignore[arg-type]
                raise UserError(
                    f"CenterTable(trained={self.trained_count}) trains rows of the identities with the most images, and got {given}: pass "
                    f"image_counts, the number of images of each of the {identities} identities"
                )
            self.frequent = FrequentRows(self.trained_count, counts, self.embedding_size, self.ranks)

    def lookup(self, labels_B: Tensor) -> Tensor:
        """Return the centers as stored, float32 (B, D), zeros for who was not seen yet, and for rows of another rank.

        Args:
            labels_B: (B,) int64, 0 <= label < N.
        """
        return self._stored(labels_B)[0]

    def read_stored(self, device: torch.device, labels_B: Tensor, positions_B: Tensor | None) -> tuple[Tensor, ...]:
        """Return the centers of these labels, as `lookup`."""
        return (self.shard.read(self.rows, labels_B),)

    @torch.no_grad()
    def read_drawn(self, device: torch.device, labels_B: Tensor, number: int) -> tuple[Tensor, ...]:
        """Return the rows drawn and their labels."""
        drawn_S = self._draw(labels_B, number)
        place_S = drawn_S - self.shard.start
        labels_S = torch.where(self.seen.index_select(0, place_S), drawn_S, EMPTY)
        return gathered(self.rows, place_S, device), labels_S

    def recall(self, batch: Batch) -> Recalled:
        """Return the stored centers of this rank's samples."""
        stored_BD = self.lookup(batch.every_label_B)
        trained_B = None
        if self.frequent is None:
            stored_BD = self.ranks.sum_own(stored_BD)
        else:
            stored_BD = self.ranks.own(self.ranks.sum(stored_BD + self.frequent.read(batch.every_label_B)))
            trained_B = self.frequent.among(batch.labels_B)
        return Recalled(stored_BD.any(dim=1), normalize(stored_BD, dim=1), trained_B=trained_B)

    def trained(self) -> Trained | None:
        """Return the trained rows, if there are any."""
        return None if self.frequent is None else self.frequent.all()

    def update(self, batch: Batch, every_new_BD: Tensor, recalled: Recalled) -> None:
        """Keep the new centers, unless those of the table stay."""
        if self.held:
            self.draws += 1
        else:
            self.store_centers(every_new_BD, batch.every_label_B)

    @torch.no_grad()
    def hold(self, blocks: Iterable[tuple[Int64, Float32]]) -> None:
        """Take given centers, which stay, for identities of this rank's block (`shard`).

        Args:
            blocks: labels (n,) and centers (n, D) of unit length, zeros for an identity that has none.
        """
        self.settle()
        for labels, centers in blocks:
            self.write(torch.from_numpy(labels), torch.from_numpy(centers).to(self.rows.dtype))
        self.held = True

    @torch.no_grad()
    def store_centers(self, centers_BD: Tensor, labels_B: Tensor) -> None:
        """Keep the centers of a batch, and end the step: the next draw is another. Several samples of one identity: the renormalized mean of theirs.

        Args:
            centers_BD: (B, D) float, unit length.
            labels_B: (B,) int64, 0 <= label < N.
        """
        # Equal rows for equal labels: write order does not matter.
        new_BD = merge_centers(centers_BD, last_occurrence(labels_B)).to(self.rows.dtype)
        if self.frequent is not None:
            new_BD = torch.where(self.frequent.among(labels_B).unsqueeze(1), 0.0, new_BD)
        self._keep(labels_B, new_BD)

    def write(self, labels_B: Tensor, new_BD: Tensor) -> None:  # type: ignore[override]
        """Keep rows, equal ones for equal labels."""
        self.shard.write(self.rows, labels_B, new_BD)
        self.shard.write(self.seen, labels_B, new_BD.any(dim=1))  # a network may embed an image as zeros

    def row_shards(self) -> dict[str, ShardedRows]:
        """This rank's block, and that of the trained rows."""
        return {"rows": self.shard} | ({} if self.frequent is None else {"frequent.weight": self.frequent.shard})

    def _misfit(self, name: str, saved: Tensor, own: Tensor) -> str:
        if name == "frequent.weight":
            there, here = (f"{rows.shape[0]} trained rows of {rows.shape[1]} numbers" for rows in (saved, own))
            return (
                f"the checkpoint has {there}, and this head {here}: build it with CenterTable(trained={saved.shape[0]})"
            )
        return (
            f"the checkpoint's table of centers holds {saved.shape[0]} identities of {saved.shape[1]} numbers ({saved.dtype}), this one "
            f"{own.shape[0]} of {own.shape[1]} ({own.dtype}): build the head with the checkpoint's identities and size"
        )

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.seen.copy_(self.rows.any(dim=1))
