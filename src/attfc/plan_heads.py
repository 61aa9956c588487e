"""The heads as the planner sees them: bytes of each with a configuration's options, and whether one step of the configured head fits.

Nothing is timed here. `passes_that_fit` runs the network on two small batches (`attfc.plan.measure_encoder`), a few seconds.
"""

from typing import Any

import torch

from attfc.backbones import create_backbone
from attfc.config import RunConfig
from attfc.config.choose import USUAL_SHARE
from attfc.config.kinds import HOLDING_A_BATCH
from attfc.plan import Encoder, HeadMemory, head_memory, measure_encoder, plan_step
from attfc.precision import AMP_DTYPES, best_autocast_dtype
from attfc.run.resolved import identity_share, rows_as_negatives

__all__ = ["heads_of", "measured_encoder", "passes_that_fit", "queries_per_epoch", "step_options", "title_of"]


def heads_of(
    config: RunConfig, identities: int, images: int | None, batch: int, ranks: int, cached: bool
) -> dict[str, HeadMemory]:
    """Return every head with the configuration's options, by the title of its line."""
    slots = max(rows_as_negatives(config, identities) or round(USUAL_SHARE * identities), config.batch_size)
    bank, rule = config.negatives, config.center
    shared: dict[str, Any] = {
        "embedding_size": config.backbone.embedding_size,
        "optimizer": config.optimizer.name,
        "weight_decay": config.optimizer.weight_decay > 0,
        "block_mib": config.head.get("block_mib"),
        "ranks": ranks,
        "cached": cached,
    }
    rows: dict[str, Any] = {**shared, "slots": slots, "dtype": (bank or config.head).get("dtype", "float32")}
    # On a processor host memory is the device's; `cached` says that it is one.
    kept = place_of_centers(config)
    rows["table"] = kept == "device" or (kept == "host" and cached)
    rows["drawn"] = bank is not None and bank.kind not in HOLDING_A_BATCH
    without_keys = dict(rows)
    if rule is not None and rule.kind == "other_images" and rows["table"]:
        without_keys["remembered"] = images
    keys = 2 if rule is None else rule.get("keys", 2)
    rate = config.head.get("share") if config.head.kind == "partial_fc" else 0.1
    return {
        "full_fc": head_memory("full_fc", identities, batch, **shared),
        f"partial_fc {rate:g}": head_memory("partial_fc", identities, batch, sample_rate=rate, **shared),
        f"attfc, {slots:,} slots": head_memory("attfc", identities, batch, keys_per_query=keys, **rows),
        "attfc, no key passes": head_memory("attfc, no key passes", identities, batch, **without_keys),
        f"dcq, {slots:,} slots": head_memory("dcq", identities, batch, **rows),
        f"dcp, {slots:,} slots": head_memory("dcp", identities, batch, **rows),
    }


def place_of_centers(config: RunConfig) -> str | None:
    """Return where AttFC keeps something of every identity; None: nowhere."""
    if config.negatives is None:
        return "host"
    banks = (config.negatives, config.stored)
    return next((bank.get("place") for bank in banks if bank is not None and bank.get("place")), None)


def queries_per_epoch(config: RunConfig, title: str, images: int | None) -> int | None:
    """Return the images, once each; where a share of the batch is drawn by identity, an epoch is longer (`attfc.data.sampling.identity_mix`)."""
    share = identity_share(config, title.replace(",", " ").split()[0])
    return images if images is None or share >= 1 else round(images / (1 - share))


def title_of(config: RunConfig, titles: list[str]) -> str:
    """Return the title of the head that the configuration has."""
    if config.center is not None and config.center.kind != "key_attention":
        return "attfc, no key passes"
    return next(title for title in titles if title.replace(",", " ").split()[0] == config.head.kind)


def measured_encoder(config: RunConfig, device: torch.device) -> tuple[Encoder, torch.dtype | None]:
    """Run the network on small batches; return its cost, and the type that it computes in (None: float32)."""
    backbone, amp = config.backbone, config.precision.amp
    network = create_backbone(
        backbone.name, embedding_size=backbone.embedding_size, image_size=backbone.image_size, **backbone.options
    )
    dtype = best_autocast_dtype(device) if amp == "auto" else AMP_DTYPES[amp]
    encoder = measure_encoder(
        network.to(device),
        int(getattr(network, "image_size", 112)),
        device=device,
        autocast_dtype=dtype,
        channels_last=config.precision.channels_last,
    )
    return encoder, dtype


def step_options(
    config: RunConfig, device: torch.device, budget: float, ranks: int, accumulation: int
) -> dict[str, Any]:
    """Return what `plan_step` is told of every head alike."""
    return {
        "ranks": ranks,
        "memory_bytes": budget,
        "optimizer": config.optimizer.name,
        "weight_decay": config.optimizer.weight_decay > 0,
        "accumulation": accumulation,
        "foreach": device.type == "cuda",
    }


def passes_that_fit(
    config: RunConfig, identities: int, images: int, device: torch.device, budget: float, ranks: int
) -> int:
    """Return by how much the batch has to be divided until a step fits the budget: 1, 2, 4 ...; each process keeps two images at least.

    Args:
        images: of the training set.
        budget: bytes of one process.
    """
    encoder, _ = measured_encoder(config, device)
    divided, batch = 1, config.batch_size // ranks
    while True:
        heads = heads_of(config, identities, images, batch // divided, ranks, cached=device.type == "cpu")
        title = title_of(config, list(heads))
        accumulation = config.optimizer.accumulation * divided
        plan = plan_step(
            title, encoder, heads[title], batch // divided, **step_options(config, device, budget, ranks, accumulation)
        )
        if plan.fits or batch // (2 * divided) < 2 or batch % (2 * divided):
            return divided
        divided *= 2
