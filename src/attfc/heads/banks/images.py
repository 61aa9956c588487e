"""The last embedding of every image, outside the device: centers from all other images of an identity, without a key pass.

A stored center that is a running mean has two faults. The query's own last embedding is part of it, a third of it for someone with three images, so
the query is taught to resemble itself; and one share for all averages over too few of a person's hundred images. Here each query's center is the
mean of the last embeddings of all *other* images of its identity, at most an epoch old: the keys of the paper with K = all, remembered in
place of computed. Kept are the embeddings, so that one's own can be left out, and their sum for each identity, so that nobody adds them up.

Cost: M x 2D bytes for M images (bfloat16) and N x 4 (D + 1) for N identities: at D = 512 1 GB per million images and 2 GB per million
identities, in host memory or a file. A step reads and writes one row per image of its batch, and one per identity, whatever their number of
images, and brings the rows drawn. Precision: what is subtracted is what was added, to the bit; the float32 sums keep the rounding of each step.
Not taken: a few slots an identity for the last embeddings seen (too noisy where people have a hundred images), and a running mean with the query's
present embedding subtracted in place of its last one, which needs no rows of images and gains little where people have few (docs/decisions.md).
Source: our own; a memory of every image's embedding as in instance discrimination (arXiv 1805.01978), used for centers here.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from attfc.distributed import ALONE, Ranks, RowShard
from attfc.errors import UserError
from attfc.heads.banks.kept_rows import KeptRows
from attfc.heads.banks.recent import EMPTY, last_occurrence, write_rows
from attfc.heads.banks.row_store import RowStore
from attfc.losses.numbers import check_numbers

__all__ = ["ImageMemory"]


class ImageMemory(KeptRows):
    """Last embeddings of M images and their sums over N identities; everything it holds is in its `state_dict`.

    Args:
        images: M; positions are 0 ... M - 1. An image stays with its identity.
        identities: N; labels are 0 ... N - 1.
        embedding_size: D.
        place: where both live; `device`: they move with the module.
        seed: names the draws.
        ranks: those that share the rows: `rows` and `sums` then hold the blocks `image_shard` and `shard`, and all calls take the whole batch, the
            same on every rank.

    Buffers: `rows` (M, D) bfloat16, zeros for an image not seen yet; `sums` (N, D + 1) float32, the last number counts the images seen.
    Attribute `draws`: steps so far, the number of the next draw; saved too.

    Raises:
        UserError: fewer identities than ranks, or fewer images than identities.

    >>> memory = ImageMemory(images=3, identities=2, embedding_size=2)
    >>> labels, positions = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 2])
    >>> memory.store(torch.eye(2)[[0, 1, 1]], memory.recall(labels, positions)[0], labels, positions)
    >>> memory.others(*memory.recall(labels, positions))[0]  # of the first image the second, and the other way round; the third is alone
    tensor([[0., 1.],
            [1., 0.],
            [0., 0.]])
    """

    rows: Tensor
    sums: Tensor

    def __init__(
        self,
        images: int,
        identities: int,
        embedding_size: int,
        *,
        place: RowStore | None = None,
        seed: int = 0,
        ranks: Ranks = ALONE,
    ) -> None:
        if not ranks.size <= identities <= images:
            raise UserError(
                f"the memory of images has {images} images of {identities} identities and {ranks.size} ranks that share its rows: it needs at least "
                "one image an identity and one identity a rank"
            )
        super().__init__(identities, place, seed, ranks)
        self.images = images
        self.image_shard = ranks.shard(images)
        self.register_buffer("rows", self.place.zeros(len(self.image_shard), embedding_size, dtype=torch.bfloat16))
        self.register_buffer("sums", self.place.zeros(len(self.shard), embedding_size + 1))

    def recall(self, labels_B: Tensor, positions_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is kept of a batch: float32 (B, D) last embeddings and (B, D + 1) sums; zeros for who was not seen yet.

        Several ranks: zeros for rows of another rank, the sum over ranks has them all.

        Args:
            labels_B: (B,) int64, 0 <= label < N.
            positions_B: (B,) int64, 0 <= position < M.
        """
        self._check(labels_B, positions_B)
        return _lookup(self.rows, self.image_shard, positions_B), _lookup(self.sums, self.shard, labels_B)

    def _check(self, labels_B: Tensor, positions_B: Tensor) -> None:
        """Refuse labels and positions without a row; they go where the rows are in any case."""
        self.check_labels(labels_B.to(self.sums.device))
        fix = "build the memory with images = the data set's number of images"
        check_numbers(positions_B.to(self.rows.device), self.images, "position", fix, self.ranks)

    def others(self, last_BD: Tensor, sums_BX: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of the other images' embeddings, (B, D), zeros where there are none, and whether there are any, bool (B,).

        Args:
            last_BD, sums_BX: of `recall`.
        """
        count_B = sums_BX[:, -1] - last_BD.any(dim=1).to(sums_BX.dtype)
        any_B = count_B > 0.5
        # Nobody else: what rounding leaves of a sum of one is no direction.
        return torch.where(any_B.unsqueeze(1), sums_BX[:, :-1] - last_BD, 0.0), any_B

    @torch.no_grad()
    def draw(self, labels_B: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return the centers (of all images) of the batch's identities and of random others, unit length (S, D), and their labels, int64 (S,).

        The label is -1 for who was not seen yet. Several ranks: of those drawn, the same on all ranks, the ones of this rank's block.

        Args:
            labels_B: (B,) int64, 0 <= label < N; of all ranks.
            count: S, at least B and at most N of them are taken.
        """
        drawn_S = self.drawn(labels_B.to(self.sums.device), count)
        sums_SX = self.sums.index_select(0, drawn_S - self.shard.start)
        labels_S = torch.where(sums_SX[:, -1] > 0.5, drawn_S, EMPTY)
        return normalize(sums_SX[:, :-1], dim=1).to(labels_B.device), labels_S.to(labels_B.device)

    @torch.no_grad()
    def store(self, embeddings_BD: Tensor, last_BD: Tensor, labels_B: Tensor, positions_B: Tensor) -> None:
        """Keep the embeddings of a batch, and end the step: the next draw is another. An image twice in the batch: the last counts.

        Args:
            embeddings_BD: (B, D) float, unit length.
            last_BD: (B, D) of `recall`, from before the batch; several ranks: gathered.
            labels_B, positions_B: (B,) int64.
        """
        self._check(labels_B, positions_B)
        self.draws += 1
        last_B = last_occurrence(positions_B)
        embeddings_BD = embeddings_BD[last_B].to(self.rows.dtype)
        counts_B = last_B == torch.arange(last_B.shape[0], device=last_B.device)
        new_B = ~last_BD.any(dim=1, keepdim=True)
        change_BX = torch.cat([embeddings_BD.float() - last_BD, new_B.float()], dim=1) * counts_B.unsqueeze(1)
        _write(self.rows, self.image_shard, positions_B, embeddings_BD)
        if len(self.shard) == 0:
            return
        home_B = labels_B.to(self.sums.device) - self.shard.start
        ours_B = (home_B >= 0) & (home_B < len(self.shard))
        change_BX = torch.where(ours_B.unsqueeze(1), change_BX.to(self.sums.device), 0.0)
        self.sums.index_add_(0, torch.where(ours_B, home_B, 0), change_BX)

    def row_shards(self) -> dict[str, RowShard]:
        """This rank's blocks by the names of their buffers."""
        return {"rows": self.image_shard, "sums": self.shard}

    def memory_bytes(self) -> int:
        """Return the bytes of this rank's rows and sums."""
        return self.rows.nbytes + self.sums.nbytes

    def extra_repr(self) -> str:
        return f"images={self.images}, identities={self.identities}, embedding_size={self.rows.shape[1]}, place={self.place.place}"

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        for name, shard in self.row_shards().items():
            own, whole = getattr(self, name), state_dict.get(prefix + name)
            if whole is not None and self.ranks.size > 1 and whole.shape[0] == shard.rows:
                state_dict[prefix + name] = whole = whole[shard.block]
            if whole is not None and (whole.shape, whole.dtype) != (own.shape, own.dtype):
                raise UserError(
                    f"the checkpoint's memory of images holds {name} of shape {tuple(whole.shape)} ({whole.dtype}), this one {tuple(own.shape)} "
                    f"({own.dtype}): build the head with the checkpoint's images, identities and size"
                )
        super()._load_from_state_dict(state_dict, prefix, *args)


def _lookup(rows_NX: Tensor, shard: RowShard, indices_B: Tensor) -> Tensor:
    """Rows as float32 on the device of the indices; zeros for those of another rank."""
    if len(shard) == 0:
        return torch.zeros(indices_B.shape[0], rows_NX.shape[1], device=indices_B.device)
    here_B = indices_B.to(rows_NX.device) - shard.start
    ours_B = (here_B >= 0) & (here_B < len(shard))
    found_BX = rows_NX.index_select(0, torch.where(ours_B, here_B, 0)).float()
    return torch.where(ours_B.unsqueeze(1), found_BX, 0.0).to(indices_B.device)


def _write(rows_NX: Tensor, shard: RowShard, indices_B: Tensor, new_BX: Tensor) -> None:
    """Write rows of this rank's block; equal indices have equal rows."""
    if len(shard) == 0:
        return
    here_B = indices_B.to(rows_NX.device) - shard.start
    ours_B = None if len(shard) == shard.rows else (here_B >= 0) & (here_B < len(shard))
    write_rows(rows_NX, here_B if ours_B is None else torch.where(ours_B, here_B, 0), new_BX.to(rows_NX.device), ours_B)
