"""Configuration -> components: the only place where both meet.

Each function takes the resolved `RunConfig` and hands plain arguments to a component; `attfc.run.build` puts a run together from them.
"""

import math
import os
from pathlib import Path

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from attfc.backbones import create_backbone
from attfc.config import RunConfig
from attfc.data import AttentionLoader, DecodedCache, Store
from attfc.distributed import ALONE, Ranks
from attfc.errors import UserError
from attfc.export.colours import Colours, fed_as
from attfc.heads import DCP, DCQ, AttFC, CenterTable, FullFC, Head, ImageMemory, PartialFC, RowStore
from attfc.losses import AdaFace, ArcFace, CombinedMargin, CosFace, Margin
from attfc.run.resolved import identity_share, negatives_per_step, paired_queries, resolve
from attfc.training.momentum import MomentumPair
from attfc.training.optimizers import build_optimizer, parameter_groups
from attfc.training.schedule import build_schedule

__all__ = [
    "build_backbone",
    "build_head",
    "build_loader",
    "build_margin",
    "build_pair",
    "optimizer_of",
    "schedule_of",
]


def build_margin(config: RunConfig) -> Margin:
    """Build the margin on the positive cosine."""
    margin = config.margin
    if margin.name == "arcface":
        return ArcFace(margin.scale, margin.margin, gradient=margin.gradient, beyond_pi=margin.beyond_pi)
    if margin.name == "cosface":
        return CosFace(margin.scale, margin.margin, gradient=margin.gradient)
    if margin.name == "adaface":
        return AdaFace(margin.scale, margin.margin, margin.h, gradient=margin.gradient)
    return CombinedMargin(
        margin.scale, margin.m1, margin.m2, margin.m3, gradient=margin.gradient, beyond_pi=margin.beyond_pi
    )


def build_head(config: RunConfig, identities: int, ranks: Ranks = ALONE, *, images: int | None = None) -> Head:
    """Build the head for a training set of that many identities.

    Args:
        images: of the training set; `center.source=others` remembers each of them, nothing else asks.

    Raises:
        UserError: fewer than two identities, or a container smaller than the batch.
    """
    if identities < 2:
        raise UserError(
            f"{_data_name(config)} holds {identities} identity: training tells identities apart, so it needs at least 2"
        )
    margin = build_margin(config)
    if config.head.name == "partial_fc" or config.head.rows != "device":
        if ranks.size > 1 and config.distributed.rows == "replicated":
            raise UserError(
                f"distributed.rows=replicated is for head.name=full_fc with head.rows=device, and this is {config.head.name} with "
                f"head.rows={config.head.rows}, whose gradients name single rows: take distributed.rows=sharded"
            )
        return PartialFC(
            config.backbone.embedding_size,
            identities,
            margin,
            # A full FC whose rows are elsewhere is a Partial FC that brings all of them.
            config.head.sample_rate if config.head.name == "partial_fc" else 1.0,
            seed=config.seed,
            interclass_filtering_threshold=config.head.interclass_filtering_threshold,
            filtering=config.head.filtering,
            rows=RowStore(config.head.rows, _folder(config.head.rows_folder)),
            block_mib=config.head.block_mib,
            ranks=ranks,
        )
    if config.head.name == "full_fc":
        return FullFC(
            config.backbone.embedding_size,
            identities,
            margin,
            interclass_filtering_threshold=config.head.interclass_filtering_threshold,
            filtering=config.head.filtering,
            block_mib=config.head.block_mib,
            ranks=ranks if config.distributed.rows == "sharded" else ALONE,
        )
    resolved, _ = resolve(config, identities)
    config, slots = resolved, negatives_per_step(resolved, identities)
    if config.head.name == "dcp":
        return DCP(
            config.backbone.embedding_size,
            slots,
            margin,
            enter_first=config.head.enter_first,
            hardest_weight=config.head.hardest_weight,
            dtype=config.container.dtype,
            initial=config.container.initial,
            interclass_filtering_threshold=config.head.interclass_filtering_threshold,
            filtering=config.head.filtering,
            block_mib=config.head.block_mib,
            ranks=ranks,
        )
    if config.head.name == "dcq":
        return DCQ(
            config.backbone.embedding_size,
            slots,
            margin,
            dtype=config.container.dtype,
            initial=config.container.initial,
            interclass_filtering_threshold=config.head.interclass_filtering_threshold,
            filtering=config.head.filtering,
            block_mib=config.head.block_mib,
            ranks=ranks,
        )
    table = memory = None
    if config.center.table != "none":
        place = RowStore(config.center.table, _folder(config.center.table_folder))
        size = config.backbone.embedding_size
        if config.center.source == "others":
            if images is None:
                raise ValueError("center.source=others: build_head needs the number of images")
            memory = ImageMemory(images, identities, size, place=place, seed=config.seed, ranks=ranks)
        else:
            table = CenterTable(identities, size, place=place, seed=config.seed, ranks=ranks)
    return AttFC(
        config.backbone.embedding_size,
        slots,
        margin,
        keys_per_query=config.keys.per_query,
        center_source=config.center.source,
        temperature=config.attention.temperature,
        include_stored_center=config.attention.include_stored_center,
        center_blend=config.center.blend,
        policy=config.container.policy,
        dtype=config.container.dtype,
        initial=config.container.initial,
        in_batch_negatives=config.negatives.in_batch,
        in_batch_gradient=config.negatives.in_batch_gradient,
        interclass_filtering_threshold=config.head.interclass_filtering_threshold,
        filtering=config.head.filtering,
        block_mib=config.head.block_mib,
        table=table,
        memory=memory,
        negatives=config.negatives.source,
        ranks=ranks,
    )


def _folder(name: str | None) -> Path | None:
    return Path(os.path.expanduser(name)) if name else None


def _data_name(config: RunConfig) -> str:
    roots = [source.root for source in config.data.sources]
    return f"data.sources ({', '.join(roots)})" if roots else f"data.root={config.data.root}"


def build_backbone(config: RunConfig) -> nn.Module:
    """Build the network with fresh weights; one that wants other colours than ours stands behind their conversion."""
    backbone = config.backbone
    network = create_backbone(
        backbone.name, embedding_size=backbone.embedding_size, image_size=backbone.image_size, **backbone.options
    )
    wants = {"colour_order": backbone.colour_order, "mean": backbone.mean, "std": backbone.std}
    return fed_as(network, Colours.read(wants, "backbone"))


def build_pair(config: RunConfig, backbone: nn.Module) -> MomentumPair:
    """Put the query encoder and its key encoder together."""
    return MomentumPair(
        backbone,
        config.key_encoder.momentum,
        schedule=config.key_encoder.momentum_schedule,
        batch_norm=config.key_encoder.batch_norm,
    )


def optimizer_of(config: RunConfig, pair: MomentumPair, head: Head) -> torch.optim.Optimizer:
    """Build the optimizer of the query encoder and the head."""
    return build_optimizer(
        config.optimizer.name,
        parameter_groups(
            [pair.query, head],
            weight_decay=config.optimizer.weight_decay,
            decay_norms_and_biases=config.optimizer.decay_norms_and_biases,
            head_learning_rate_scale=config.optimizer.head_learning_rate_scale,
        ),
        learning_rate=config.optimizer.learning_rate,
        momentum=config.optimizer.momentum,
        stores={head.weight: head.rows} if isinstance(head, PartialFC) and head.rows.place != "device" else None,
    )


def schedule_of(
    config: RunConfig, optimizer: torch.optim.Optimizer, epoch_length: int, notes: list[str] | None = None
) -> tuple[LambdaLR, int]:
    """Build the schedule of the learning rate, and return the optimizer steps of the run with it.

    A warm-up that does not fit the run is cut to a tenth of it; `notes` is told.
    """
    images = config.batch_size * config.optimizer.accumulation
    steps = math.ceil(config.schedule.epochs * epoch_length / images)
    total = min(steps, config.schedule.max_steps) if config.schedule.max_steps else steps
    warmup = round(config.schedule.warmup_epochs * epoch_length / images)
    if warmup >= total:
        if notes is not None:
            notes.append(
                f"the warm-up of {warmup} step{'s' * (warmup != 1)} does not fit a run of {total}: it takes {total // 10}"
            )
        warmup = total // 10
    schedule = build_schedule(
        optimizer,
        config.schedule.name,
        total=total,
        warmup=warmup,
        power=config.schedule.power,
        final=config.schedule.final,
    )
    return schedule, total


def build_loader(
    config: RunConfig,
    store: Store,
    keys_per_query: int,
    image_size: int,
    pin_memory: bool,
    notes: list[str],
    ranks: Ranks,
) -> AttentionLoader:
    """Build the loader of this rank's share of each batch; `notes` is told whether decoded images are kept."""
    cache = None
    if config.data.decoded_cache_mib:
        needed = math.ceil(len(store) * (3 * image_size**2 + 1) / 2**20)
        if needed <= config.data.decoded_cache_mib:
            cache = DecodedCache(store, image_size, config.data.decoded_cache_mib)
            notes.append(
                f"the first epoch decodes {len(store):,} images into memory ({needed:,} MiB); later ones are faster"
            )
        else:
            notes.append(
                f"decoded images take {needed:,} MiB, more than data.decoded_cache_mib={config.data.decoded_cache_mib}: "
                "each is decoded every time it is used (raise it if you have the memory)"
            )
    return AttentionLoader(
        store,
        config.batch_size // ranks.size,
        keys_per_query,
        config.seed,
        image_size=image_size,
        workers=config.data.workers,
        rank=ranks.rank,
        ranks=ranks.size,
        distinct_keys=config.keys.distinct,
        sampling=config.keys.sampling,
        identity_share=identity_share(config, config.head.name),
        paired=paired_queries(config),
        broken_limit=config.data.broken_limit,
        decoded_cache=cache,
        pin_memory=pin_memory,
    )
