"""The last embedding of every image, outside the device: centers from all other images of an identity, without a key pass.

A stored center that is a running mean has two faults. The query's own last embedding is part of it, a third of it for someone with three images, so
the query is taught to resemble itself; and one share for all averages over too few of a person's hundred images. Here each query's center is the
mean of the last embeddings of all *other* images of its identity, at most an epoch old: the keys of the paper with K = all, remembered in
place of computed. Kept are the embeddings, so that one's own can be left out, and their sum for each identity, so that nobody adds them up.

Cost: M x 2D bytes for M images (bfloat16) and N x 4 (D + 1) for N identities: at D = 512 1 GB per million images and 2 GB per million
identities, in host memory or a file. A step reads and writes one row per image of its batch, and one per identity, whatever their number of
images, and brings the rows drawn. Precision: what is subtracted is what was added, to the bit; the float32 sums keep the rounding of each step.
Not taken: a few slots per identity for the last embeddings seen (too noisy where people have a hundred images), and a running mean with the query's
present embedding subtracted in place of its last one, which needs no rows of images and gains little where people have few (docs/decisions.md).
Source: our own; a memory of every image's embedding as in instance discrimination (arXiv 1805.01978), used for centers here.
"""

from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from attfc.config.option import Option
from attfc.errors import UserError
from attfc.heads.banks.bank import Batch, Recalled, last_occurrence
from attfc.heads.banks.kept_rows import KeptRows
from attfc.heads.banks.sharded_rows import ShardedRows
from attfc.heads.checked import checked
from attfc.heads.options import DrawnCount, DrawnShare, Folder
from attfc.losses.streaming_pass import EMPTY

__all__ = ["ImageMemory"]


class ImageMemory(KeptRows):
    """Last embeddings of M images and their sums over N identities, for `OtherImages`; everything it holds is in its `state_dict`.

    Args:
        share, count: centers (of all images of an identity) drawn as negatives per step, as a share of the identities or a number. Default: a
            tenth of the identities, at least 200, at most 20,000. Those of the batch come on top.
        place, folder: where both live; `device`: they move with the module.
        seed: names the draws.

    Buffers: `rows` (M, D) bfloat16, zeros for an image not seen yet; `sums` (N, D + 1) float32, the last number counts the images seen. Of both this
    rank's block. Attribute `draws`: steps so far, the number of the next draw; saved too.

    >>> memory = ImageMemory().bind(embedding_size=2, identities=2, images=3)
    >>> labels, positions = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 2])
    >>> memory.store_images(torch.eye(2)[[0, 1, 1]], memory.lookup(labels, positions)[0], labels, positions)
    >>> memory.others(*memory.lookup(labels, positions))[0]  # of the first image the second, and the other way round; the third is alone
    tensor([[0., 1.],
            [1., 0.],
            [0., 0.]])
    """

    state_name = "memory"
    shown = ("images", "identities", "embedding_size", "place")
    rows: Tensor
    sums: Tensor

    @checked(
        images="OtherImages(images=M)", identities="AttFC(..., identities=N)", embedding_size="AttFC(D, ...)",
        ranks="AttFC(..., ranks=...)",
    )  # fmt: skip
    def __init__(
        self,
        share: DrawnShare = None,
        count: DrawnCount = None,
        place: Annotated[
            Literal["device", "host", "file"],
            Option(
                "where the embeddings of all images are kept (2 bytes per number and image, 4 per number and identity)"
            ),
        ] = "host",
        folder: Folder = None,
        seed: int = 0,
    ) -> None:
        super().__init__(share, count, place, folder, seed)

    def _take_memory(self, identities: int | None, images: int | None) -> None:
        super()._take_memory(identities, images)
        if images is None:
            raise UserError("ImageMemory keeps a row per image: it goes with center=OtherImages(images=M)")
        if not self.ranks.size <= self.identities <= images:
            raise UserError(
                f"the memory of images has {images} images, {identities} identities and {self.ranks.size} ranks: it needs at least one image per "
                "identity and one identity per rank"
            )
        self.images = images
        self.image_shard = ShardedRows.of(images, self.ranks)
        rows_MD = self.store.zeros(len(self.image_shard), self.embedding_size, dtype=torch.bfloat16)
        self.register_buffer("rows", rows_MD)
        self.register_buffer("sums", self.store.zeros(len(self.shard), self.embedding_size + 1))

    def lookup(self, labels_B: Tensor, positions_B: Tensor) -> tuple[Tensor, ...]:
        """Return what is kept: float32 (B, D) last embeddings and (B, D + 1) sums; zeros for who was not seen yet, and for rows of another rank."""
        return self._stored(labels_B, positions_B)

    def read_stored(self, device: torch.device, labels_B: Tensor, positions_B: Tensor | None) -> tuple[Tensor, ...]:
        """Return embeddings and sums, as `lookup`."""
        assert positions_B is not None
        return self.image_shard.read(self.rows, positions_B), self.shard.read(self.sums, labels_B)

    @torch.no_grad()
    def read_drawn(self, device: torch.device, labels_B: Tensor, number: int) -> tuple[Tensor, ...]:
        """Return the centers (of all images, unit length) drawn and their labels."""
        drawn_S = self._draw(labels_B, number)
        sums_SX = self.sums.index_select(0, drawn_S - self.shard.start)
        return normalize(sums_SX[:, :-1], dim=1), torch.where(sums_SX[:, -1] > 0.5, drawn_S, EMPTY)

    def others(self, last_BD: Tensor, sums_BX: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of the other images' embeddings, (B, D), zeros where there are none, and whether there are any, bool (B,).

        Args:
            last_BD, sums_BX: of `lookup`.
        """
        count_B = sums_BX[:, -1] - last_BD.any(dim=1).to(sums_BX.dtype)
        any_B = count_B > 0.5
        # Nobody else: what rounding leaves of a sum of one is no direction.
        return torch.where(any_B.unsqueeze(1), sums_BX[:, :-1] - last_BD, 0.0), any_B

    @torch.no_grad()
    def recall(self, batch: Batch) -> Recalled:
        """Return the centers of the other images of this rank's samples."""
        assert batch.every_position_B is not None
        kept = self.lookup(batch.every_label_B, batch.every_position_B)
        last_BD, sums_BX = (self.ranks.sum_own(each) for each in kept)
        others_BD, found_B = self.others(last_BD, sums_BX)
        return Recalled(found_B, normalize(others_BD.to(batch.query_BD.dtype), dim=1), last_BD, others_BD)

    def update(self, batch: Batch, every_new_BD: Tensor, recalled: Recalled) -> None:
        """Keep the queries' embeddings."""
        assert recalled.last_BD is not None
        assert batch.every_position_B is not None
        every_query_BD = self.ranks.gather(batch.query_BD.detach())
        every_last_BD = self.ranks.gather(recalled.last_BD)
        self.store_images(every_query_BD, every_last_BD, batch.every_label_B, batch.every_position_B)

    @torch.no_grad()
    def store_images(self, embeddings_BD: Tensor, last_BD: Tensor, labels_B: Tensor, positions_B: Tensor) -> None:
        """Keep the embeddings of a batch, and end the step: the next draw is another. An image twice in the batch: the last counts.

        Args:
            embeddings_BD: (B, D) float, unit length; zeros: of an image not seen yet, nothing is kept.
            last_BD: (B, D) of `lookup`, from before the batch; several ranks: summed up and gathered.
            labels_B, positions_B: (B,) int64.
        """
        last_B = last_occurrence(positions_B)
        embeddings_BD = embeddings_BD[last_B].to(self.rows.dtype)
        counts_B = last_B == torch.arange(last_B.shape[0], device=last_B.device)
        new_B = embeddings_BD.any(dim=1, keepdim=True) & ~last_BD.any(dim=1, keepdim=True)
        change_BX = torch.cat([embeddings_BD.float() - last_BD, new_B.float()], dim=1) * counts_B.unsqueeze(1)
        self._keep(labels_B, positions_B, embeddings_BD, change_BX)

    def write(self, labels_B: Tensor, positions_B: Tensor, embeddings_BD: Tensor, change_BX: Tensor) -> None:  # type: ignore[override]
        """Keep embeddings, equal ones for equal positions, and what they change in the sums."""
        self.image_shard.write(self.rows, positions_B, embeddings_BD)
        if len(self.shard):
            place_B, ours_B = self.shard.locate(labels_B)
            self.sums.index_add_(0, place_B, torch.where(ours_B.unsqueeze(1), change_BX, 0.0))

    def row_shards(self) -> dict[str, ShardedRows]:
        """This rank's blocks of images and of identities."""
        return {"rows": self.image_shard, "sums": self.shard}

    def _misfit(self, name: str, saved: Tensor, own: Tensor) -> str:
        return (
            f"the checkpoint's memory of images holds {name} of shape {tuple(saved.shape)} ({saved.dtype}), this one {tuple(own.shape)} "
            f"({own.dtype}): build the head with the checkpoint's images, identities and size"
        )
