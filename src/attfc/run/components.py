"""Configuration -> components: the only place where both meet.

Each function takes the resolved `RunConfig` and hands plain arguments to a component; `attfc.run.build` puts a run together from them.
"""

import inspect
import math
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from attfc.backbones import create_backbone
from attfc.config import RunConfig
from attfc.config.kinds import KINDS, PARTS, Part
from attfc.config.messages import said_as_options
from attfc.config.schema import KeyEncoderConfig
from attfc.data import AttentionLoader, DecodedCache
from attfc.distributed import ALONE, Ranks, launched_ranks
from attfc.errors import UserError
from attfc.export.colours import Colours, fed_as
from attfc.heads import Head, PartialFC
from attfc.run.resolved import identity_share, queries_in_a_row, resolve
from attfc.training.momentum import MomentumPair
from attfc.training.optimizers import build_optimizer, parameter_groups, trunk_of
from attfc.training.schedule import build_schedule

if TYPE_CHECKING:
    from attfc.run.build import Settled

__all__ = [
    "build_backbone",
    "build_head",
    "build_loader",
    "build_pair",
    "build_part",
    "optimizer_of",
    "refuse_misfits",
    "schedule_of",
]


ANY_SIZE = 1 << 20
"""Identities and images of a head that is put together before the data are known."""


def build_part(section: str, part: Part, supplied: Mapping[str, Any]) -> Any:
    """Build a head, margin, center rule or bank from its options and from those of the supplied arguments that its class takes."""
    module, _, name = KINDS[section][part.kind].partition(":")
    component = getattr(import_module(module), name)
    takes = inspect.signature(component).parameters
    return component(**part.options, **{key: value for key, value in supplied.items() if key in takes})


def build_head(
    config: RunConfig,
    identities: int,
    ranks: Ranks = ALONE,
    *,
    images: int | None = None,
    image_counts: npt.ArrayLike | None = None,
) -> Head:
    """Build the head for a training set of that many identities.

    Args:
        images: of the training set; a rule that remembers each of them asks.
        image_counts: of each identity; a bank that trains rows of some asks.

    Raises:
        UserError: fewer than two identities, parts that do not go together, or a container smaller than the batch.
    """
    if identities < 2:
        raise UserError(
            f"{_data_name(config)} holds {identities} identity: training tells identities apart, so it needs at least 2"
        )
    return _put_together(resolve(config, identities)[0], identities, ranks, images, image_counts)


def refuse_misfits(config: RunConfig) -> None:
    """Refuse parts that do not go together, whatever the data are: they are put together once, without memory of their own.

    Raises:
        UserError: naming both parts, and what goes with them.
    """
    ranks = Ranks(0, launched_ranks())
    if config.head.kind not in PARTS:  # one piece
        _replicated(config, ranks)
        return
    banks = {name: bank for name in ("negatives", "stored") if (bank := getattr(config, name)) and bank.get("initial")}
    # Torch takes seconds to draw rows, even where nothing is allocated.
    empty = {name: bank.model_copy(update={"initial": "empty"}) for name, bank in banks.items()}
    with torch.device("meta"):
        _put_together(config.model_copy(update=empty), ANY_SIZE, ranks, ANY_SIZE, torch.zeros(ANY_SIZE))


def _replicated(config: RunConfig, ranks: Ranks) -> bool:
    """Whether each of several ranks has all rows.

    Raises:
        UserError: a head whose rows cannot be replicated.
    """
    if config.distributed.rows == "sharded" or ranks.size == 1:
        return False
    if config.head.kind == "partial_fc":
        raise UserError(
            "distributed.rows=replicated needs head.kind=full_fc, and this is partial_fc, whose gradient covers single rows: set "
            "distributed.rows=sharded"
        )
    if config.head.get("past"):
        raise UserError("head.past keeps the embeddings of one process: start one, or set head.past=0")
    return config.head.kind == "full_fc"


def _put_together(
    config: RunConfig, identities: int, ranks: Ranks, images: int | None, image_counts: npt.ArrayLike | None
) -> Head:
    alone = _replicated(config, ranks)
    supplied: dict[str, Any] = {
        "embedding_size": config.backbone.embedding_size,
        "identities": identities,
        "images": images // ranks.size if alone and images is not None else images,  # those that this copy sees
        "image_counts": image_counts,
        "seed": config.seed,
        "ranks": ALONE if alone else ranks,
        "in_batch": config.in_batch,
    }
    parts = {section: getattr(config, section) for section in KINDS if section != "head"}
    try:
        supplied |= {section: part and build_part(section, part, supplied) for section, part in parts.items()}
        head: Head = build_part("head", config.head, supplied)
    except UserError as error:
        raise UserError(said_as_options(str(error))) from None
    return head


def _data_name(config: RunConfig) -> str:
    roots = [source.root for source in config.data.sources]
    return f"data.sources ({', '.join(roots)})" if roots else f"data.root={config.data.root}"


def build_backbone(config: RunConfig) -> nn.Module:
    """Build the network with fresh weights, behind a conversion if it wants other colours than ours; a trunk of rate 0 takes no gradient."""
    backbone = config.backbone
    network = create_backbone(
        backbone.name, embedding_size=backbone.embedding_size, image_size=backbone.image_size, **backbone.options
    )
    if config.finetune.trunk_rate == 0:
        for parameter in trunk_of(network):
            parameter.requires_grad_(False)
    wants = {"colour_order": backbone.colour_order, "mean": backbone.mean, "std": backbone.std}
    return fed_as(network, Colours.read(wants, "backbone"))


def build_pair(config: RunConfig, backbone: nn.Module, keys_per_query: int) -> MomentumPair:
    """Put the query encoder and, for a head that takes keys, its key encoder together."""
    keys = config.key_encoder or KeyEncoderConfig()
    return MomentumPair(
        backbone,
        keys.momentum,
        schedule=keys.momentum_schedule,
        batch_norm=keys.batch_norm,
        keys=keys_per_query > 0,
        keep_statistics=config.start_from is not None and config.finetune.batch_norm == "kept",
    )


def optimizer_of(
    config: RunConfig, pair: MomentumPair, head: Head, teacher_loss: nn.Module | None = None
) -> torch.optim.Optimizer:
    """Build the optimizer of the query encoder, with the map to a teacher's embeddings, and the head."""
    encoder = pair.query if teacher_loss is None else nn.ModuleList([pair.query, teacher_loss])
    return build_optimizer(
        config.optimizer.name,
        parameter_groups(
            [encoder, head],
            weight_decay=config.optimizer.weight_decay,
            decay_norms_and_biases=config.optimizer.decay_norms_and_biases,
            head_learning_rate_scale=config.optimizer.head_learning_rate_scale,
            trunk_rate=config.finetune.trunk_rate,
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


def build_loader(settled: "Settled", keys_per_query: int, image_size: int) -> AttentionLoader:
    """Build the loader of this rank's share of each batch; a note says whether decoded images are kept."""
    config, store, ranks, notes = settled.config, settled.store, settled.ranks, settled.notes
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
        distinct_keys=config.key_encoder is None or config.key_encoder.distinct_keys,
        sampling=config.data.sampling,
        identity_share=identity_share(config),
        paired=queries_in_a_row(config) > 1,
        group=queries_in_a_row(config),
        broken_limit=config.data.broken_limit,
        decoded_cache=cache,
        pin_memory=settled.device.type == "cuda",
    )
