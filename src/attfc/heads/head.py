"""The one contract of all heads: embeddings, labels and keys go in, a scalar loss comes out.

A head declares how many keys per sample it wants (`keys_per_query`, 0 for heads with an FC), keeps everything that a
resumed run needs in its `state_dict`, and offers figures of its last step through `statistics`. The trainer knows no
head by name. Shared here: the checks of a batch's shapes (on the host, so they cost no device synchronization) and
the change to unit length in float32 or better, whatever autocast made of the embeddings.

Shape legend of this folder: B batch, K keys per query, D embedding size, C container slots, N identities.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from attfc.distributed import Ranks
from attfc.errors import UserError
from attfc.heads.banks.bank import Bank
from attfc.heads.banks.rows_ahead import Ahead
from attfc.heads.banks.sharded_rows import ShardedRows
from attfc.heads.banks.table import CenterTable
from attfc.heads.memory import HeadMemory
from attfc.heads.set_aside import SetAside
from attfc.losses.margins import Margin
from attfc.losses.numbers import check_numbers
from attfc.losses.streaming_pass import Filtering, Streaming

__all__ = ["Head", "margin_of_all", "unit_length"]


def unit_length(embeddings_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows of unit length and their former norms, in float32 (float64 stays float64), with gradient."""
    wide_BD = embeddings_BD if embeddings_BD.dtype == torch.float64 else embeddings_BD.float()
    norms_B = wide_BD.norm(dim=-1)
    return wide_BD / norms_B.clamp_min(1e-12).unsqueeze(-1), norms_B


def margin_of_all(margin: Margin, cosine_XB: Tensor, norms_B: Tensor, ranks: Ranks) -> Tensor:
    """Return the own cosines (..., B) adjusted by a margin that sees those of all ranks: it may keep figures of the batch (AdaFace).

    Args:
        cosine_XB: (B,) or (X, B), with gradient; `norms_B` (B,). All ranks have the same shapes.
    """
    if ranks.size == 1:
        alone_XB: Tensor = margin(cosine_XB, norms_B)
        return alone_XB
    batch = norms_B.shape[0]
    rows = [*cosine_XB.detach().reshape(-1, batch), norms_B.detach()]
    every_XB = ranks.gather(torch.stack(rows, dim=1)).T.contiguous()
    every_cosine_XB = every_XB[:-1].reshape(*cosine_XB.shape[:-1], -1)
    before_XB, _, after_XB = every_cosine_XB.tensor_split((ranks.rank * batch, (ranks.rank + 1) * batch), dim=-1)
    adjusted_XB: Tensor = margin(torch.cat([before_XB, cosine_XB, after_XB], dim=-1), every_XB[-1])
    return adjusted_XB.narrow(-1, ranks.rank * batch, batch)


class Head(nn.Module):
    """Base of all heads: `loss = head(embeddings_BD, labels_B, keys_BKD)`.

    Args:
        embedding_size: D, the length of an embedding.
        margin: margin on the positive; owns the scale s.
        keys_per_query: keys that the attention loader should deliver for each query; 0: the head takes none.
        filter_above: negatives with a cosine above it are taken for mislabelled images of the same identity; None: no filtering.
        filtering: what becomes of those, `drop` (out of the softmax) or `zero` (cosine 0, as in arcface_torch).
        filter_gap: filter images instead of negatives. An image is suspect that is nearer to a negative above `filter_above` than to its own center
            by more than this. Where a tenth of all are, they count 0 in the loss and their centers stay (`SetAside`). None: filter negatives.
        images: of the data set; setting aside begins after the first epoch, None: at once.
        block_mib: temporary memory of the streaming passes, MiB.
        ranks: the processes that share the rows; each calls `forward` with its share of the batch, all of equal size, and gets the mean loss of that
            share. The mean of these over ranks is the loss that one process has for the whole batch. None: all processes of torch.distributed.

    Attributes:
        takes_positions: the head is called with `positions_B`, (B,) int64, too: where the images stand in the data set.
        streaming: the options of a pass over rows, as the losses take them.
        identities: labels are below; None: any are.
    """

    takes_positions: bool = False
    identities: int | None
    _rank: Tensor

    def __init__(
        self,
        embedding_size: int,
        margin: Margin,
        *,
        keys_per_query: int = 0,
        filter_above: float | None = None,
        filtering: Filtering = "drop",
        filter_gap: float | None = None,
        images: int | None = None,
        block_mib: float = 32.0,
        ranks: Ranks | None = None,
    ) -> None:
        super().__init__()
        if embedding_size < 1:
            raise UserError(f"embedding_size is {embedding_size}: an embedding needs at least 1 number")
        if not isinstance(margin, Margin):
            raise UserError(f"{type(self).__name__}: margin is {margin!r}: give a margin, such as CosFace(64.0, 0.4)")
        self.embedding_size = embedding_size
        self.margin = margin
        self.keys_per_query = keys_per_query
        if filter_gap is not None and filter_above is None:
            raise UserError(
                f"{type(self).__name__}: filter_gap={filter_gap:g} sets images aside that are near to a negative: set filter_above, "
                "how near that is"
            )
        threshold = filter_above if filter_gap is None else None
        self.streaming: Streaming = {"filtering_threshold": threshold, "filtering": filtering, "block_mib": block_mib}
        self.ranks = Ranks.world() if ranks is None else ranks
        self.set_aside: SetAside | None = None
        if filter_above is not None and filter_gap is not None:
            self.set_aside = SetAside(filter_above, filter_gap, images or 0, self.ranks)
        self._all_ranks, self._ranks_checked = ranks is None, self.ranks.size == 1
        if self.ranks.size > 1:  # says whether somebody copied rank 0's buffers over ours
            self.register_buffer("_rank", torch.tensor([self.ranks.rank]), persistent=False)
        self._last_step: dict[str, Tensor] = {}

    def forward(self, embeddings_BD: Tensor, labels_B: Tensor, keys_BKD: Tensor | None = None) -> Tensor:
        """Return the mean loss of the batch, a scalar with gradient to `embeddings_BD` and the head's parameters."""
        raise NotImplementedError

    def bring(self, labels_B: Tensor, positions_B: Tensor | None, device: torch.device) -> dict[str, Ahead]:
        """Start to bring to `device` the rows that `forward` will want for the next batch; nothing where no rows have to come from elsewhere.

        A training step calls it before the backbone runs, after the optimizer's step of the batch before, and hands the result to
        `forward(..., ahead=...)`, if there is any. Several ranks: all of them call it.

        Args:
            labels_B, positions_B: (B,) int64 of this rank's batch, where the loader made them; nothing is brought for those on an accelerator.
        """
        return {}

    def _known_labels(self, labels_B: Tensor) -> Tensor | None:
        """Return the labels of all ranks, checked; None where the host has none, cannot exchange them, or `forward` says what is wrong with them."""
        fit = labels_B.device.type == "cpu" and labels_B.dtype == torch.int64 and labels_B.dim() == 1 and len(labels_B)
        if not (fit and (labels_B >= 0).all() and self.ranks.reach_hosts):
            return None
        every_label_B = self.ranks.gather(labels_B)
        self._check_labels_below(every_label_B)
        return every_label_B

    def hold_centers(self) -> CenterTable:
        """Make the centers that its table holds the positives from here on, and keep nothing of the batches; return the table, to be filled (`hold`).

        Raises:
            UserError: a head without a table of centers, or one that makes positives of something else.
        """
        raise UserError(
            f"teacher.centers=fixed needs a table of centers that are positives and negatives, and this {type(self).__name__} has none: "
            "take head=attfc with negatives=center_table and center=own_embedding"
        )

    def footprint(self, batch: int, *, cached: bool = True) -> HeadMemory:
        """Return the bytes on one rank, of what it holds and of a step, by its own formula; on the meta device nothing is allocated for it.

        Args:
            batch: samples of one rank.
            cached: a processor, where blocks are kept small enough for its cache and host memory is the device's.
        """
        raise NotImplementedError

    def full_state_dict(self) -> dict[str, Any]:
        """Return `state_dict` with the rows of all ranks, on every rank; all ranks call it. `load_state_dict` takes it at any number of ranks."""
        state = self.state_dict()
        return state | {name: shard.gather(state[name], self.ranks) for name, shard in self.row_shards().items()}

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # torch.save keeps the metadata; an entry more would keep states of other versions from loading.
        if self.row_shards():
            getattr(destination, "_metadata", {}).get(prefix[:-1], {})["rank"] = self.ranks.rank, self.ranks.size

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        own = (self.ranks.rank, self.ranks.size)
        if (saved := args[0].get("rank", own)) != own:
            raise UserError(
                f"this state has the part of the rows that rank {saved[0]} of {saved[1]} holds, and this is rank {own[0]} of {own[1]}. "
                "Save head.full_state_dict() in place of state_dict(): any rank of any number loads it"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def keep_apart(self, module: nn.Module) -> None:
        """Have DistributedDataParallel leave this head alone where it will wrap `module`, of which the head is a part: each rank has rows of its own.

        Call it before `module` is wrapped (in Lightning: in `configure_model`). A head that is not a part of the wrapped module does not need it.
        """
        names = {id(value): name for name, value in [*module.named_parameters(), *module.named_buffers()]}
        shards = self.row_shards()
        own = [*self.buffers(), *(value for name, value in self.named_parameters() if name in shards)]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(  # type: ignore[no-untyped-call]
            module, [*getattr(module, "_ddp_params_and_buffers_to_ignore", []), *(names[id(value)] for value in own)]
        )

    def _check_ranks(self) -> None:
        """Refuse to go on alone among others, or, in the first step, with the rows of another rank."""
        if self._all_ranks and self.ranks.size != Ranks.world().size:
            raise UserError(
                f"this head was built for {self.ranks.size} process and is called in {Ranks.world().size}: build it after the process group "
                "(in Lightning: in configure_model). Or pass ranks=attfc.distributed.ALONE, if each process shall have centers of its own"
            )
        if self._ranks_checked or self._rank.is_meta:
            return
        self._ranks_checked = True
        if self.ranks.gather(self._rank).tolist() != list(range(self.ranks.size)):
            raise UserError(
                "each rank has rows of its own, and those of rank 0 were copied over the others': DistributedDataParallel does so to a head "
                "inside the module that it wraps. Call head.keep_apart(module) before it is wrapped, or leave the head outside"
            )

    @property
    def _named_banks(self) -> dict[str, Bank]:
        return {name: child for name, child in self.named_children() if isinstance(child, Bank)}

    def row_shards(self) -> dict[str, ShardedRows]:
        """Return which entries of `state_dict` are this rank's block of rows, by name; nothing where the head is whole on every rank."""
        banks = self._named_banks if self.ranks.size > 1 else {}
        return {f"{place}.{name}": shard for place, bank in banks.items() for name, shard in bank.row_shards().items()}

    def statistics(self) -> dict[str, float]:
        """Return figures of the last step and of its banks for the log; the only place that waits for the device."""
        figures = {name: float("nan") if value.is_meta else float(value) for name, value in self._last_step.items()}
        for bank in self._named_banks.values():
            figures |= bank.statistics()
        return figures

    def _seen(self, embeddings_BD: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Check a batch; return its queries of unit length, the lengths of the embeddings, and the labels of all ranks."""
        self._check_batch(embeddings_BD, labels_B)
        every_label_B = self.ranks.gather(labels_B)
        self._check_labels_below(every_label_B)
        return *unit_length(embeddings_BD), every_label_B

    def _check_batch(self, embeddings_BD: Tensor, labels_B: Tensor) -> None:
        """Refuse wrong shapes and types in one line; negative labels are only seen where looking is free (CPU)."""
        self._check_ranks()
        if embeddings_BD.dim() != 2 or embeddings_BD.shape[1] != self.embedding_size:
            raise UserError(
                f"embeddings have shape {tuple(embeddings_BD.shape)}, the head expects (B, {self.embedding_size}): "
                f"build backbone and head with the same embedding_size"
            )
        batch = embeddings_BD.shape[0]
        if batch == 0:
            raise UserError("the batch is empty (B = 0): the mean loss of no sample is not defined")
        if labels_B.shape != (batch,):
            raise UserError(
                f"labels have shape {tuple(labels_B.shape)}, the embeddings {tuple(embeddings_BD.shape)}: "
                f"pass one label per sample, shape ({batch},)"
            )
        if labels_B.dtype != torch.int64:
            raise UserError(
                f"labels are {labels_B.dtype}, not torch.int64: convert them with labels.long() "
                f"(float32 would merge identities above 2**24)"
            )
        if labels_B.device.type == "cpu" and (labels_B < 0).any():
            raise UserError(f"a label is {int(labels_B.min())}: labels count from 0, negative ones are reserved")

    def _check_labels_below(self, every_label_B: Tensor) -> None:
        """Refuse labels that there are no identities for, if their number is known; seen where looking is free (CPU).

        Takes the labels of all ranks: then all of them refuse, and none waits for one that has left.
        """
        fix = "build the head with identities = the data set's number of identities"
        if self.identities is not None:
            check_numbers(every_label_B, self.identities, "label", fix, self.ranks)
