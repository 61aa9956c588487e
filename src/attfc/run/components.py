"""Configuration -> components: the only place where both meet.

Each function takes the resolved `RunConfig` and hands plain arguments to a component; `attfc.run.build` puts a run together from them.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from attfc.backbones import create_backbone
from attfc.config import RunConfig
from attfc.data import AttentionLoader, DecodedCache, Store
from attfc.distributed import ALONE, Ranks
from attfc.errors import UserError
from attfc.export.colours import Colours, fed_as
from attfc.heads import (
    DCP,
    DCQ,
    AttFC,
    CenterTable,
    FullFC,
    Head,
    ImageMemory,
    KeyAttention,
    OtherImages,
    OwnEmbedding,
    Pairs,
    PartialFC,
    RecentCenters,
)
from attfc.heads.centers import CenterRule
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
    head, size, margin = config.head, config.backbone.embedding_size, build_margin(config)
    options: dict[str, Any] = {
        "filter_above": head.interclass_filtering_threshold, "filtering": head.filtering, "block_mib": head.block_mib, "ranks": ranks
    }  # fmt: skip
    if head.name == "partial_fc" or head.rows != "device":
        if ranks.size > 1 and config.distributed.rows == "replicated":
            raise UserError(
                f"distributed.rows=replicated is for head.name=full_fc with head.rows=device, and this is {head.name} with "
                f"head.rows={head.rows}, whose gradients name single rows: take distributed.rows=sharded"
            )
        # A full FC whose rows are elsewhere is a Partial FC that brings all of them.
        share = head.sample_rate if head.name == "partial_fc" else 1.0
        return PartialFC(
            size, identities, margin, share, place=head.rows, folder=head.rows_folder, seed=config.seed, **options
        )
    if head.name == "full_fc":
        options["ranks"] = ranks if config.distributed.rows == "sharded" else ALONE
        return FullFC(size, identities, margin, **options)
    config, _ = resolve(config, identities)
    count = negatives_per_step(config, identities)
    options["identities"] = identities
    if head.name != "attfc":
        options |= {"count": count, "dtype": config.container.dtype, "initial": config.container.initial}
    if head.name == "dcp":
        return DCP(size, margin, enter_first=head.enter_first, hardest_weight=head.hardest_weight, **options)
    if head.name == "dcq":
        return DCQ(size, margin, **options)
    return AttFC(size, margin, **_parts(config, count, images), **options)


def _parts(config: RunConfig, count: int, images: int | None) -> dict[str, Any]:
    """Return center rule, banks and what the batch's own centers do, as `AttFC` takes them."""
    center, draws = config.center, config.negatives.source == "table"
    place: dict[str, Any] = {"place": center.table, "folder": center.table_folder, "seed": config.seed}
    rules: dict[str, Callable[[], CenterRule]] = {
        "keys": lambda: KeyAttention(
            config.keys.per_query, config.attention.temperature, config.attention.include_stored_center, center.blend
        ),
        "query": lambda: OwnEmbedding(center.blend),
        "batch": lambda: Pairs(center.blend),
        "others": lambda: OtherImages(images),  # type: ignore[arg-type]
    }
    if center.source == "others" and images is None:
        raise ValueError("center.source=others: build_head needs the number of images")
    kept = ImageMemory if center.source == "others" else CenterTable
    recent = RecentCenters(
        count=count, policy=config.container.policy, dtype=config.container.dtype, initial=config.container.initial
    )
    gradient = "push" if config.negatives.in_batch_gradient else "fixed"
    return {
        "center": rules[center.source](),
        "negatives": kept(count=count, **place) if draws else recent,
        "stored": None if draws or center.table == "none" else kept(**place),
        "in_batch": gradient if config.negatives.in_batch else "none",
    }


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
