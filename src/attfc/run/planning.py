"""What the planner is asked about a configuration: every head with its options, the network's cost, and whether one step of the configured head fits.

Heads are built on the meta device, where nothing is allocated, and asked for their bytes (`Head.footprint`). Nothing is timed here but the
network, which runs on two small batches (`attfc.plan.measure_encoder`), a few seconds.
"""

from typing import Any

import torch

from attfc.backbones import create_backbone
from attfc.backbones.shapes import shapes_only
from attfc.config import RunConfig, apply_overrides
from attfc.config.choose import USUAL_SHARE
from attfc.distributed import Ranks
from attfc.heads import AttFC, Head
from attfc.plan import Encoder, HeadRates, Plan, measure_encoder, plan_step
from attfc.precision import AMP_DTYPES, best_autocast_dtype
from attfc.run.components import build_head
from attfc.run.resolved import identity_share, rows_as_negatives

__all__ = ["configured_title", "kept_besides", "measured_encoder", "passes_that_fit", "planned_steps"]

NO_KEYS = "attfc, no key passes"


def planned_heads(config: RunConfig, identities: int, images: int | None, ranks: int) -> dict[str, Head]:
    """Return every head with the configuration's options, without memory of its own, by the title of its line."""
    slots = max(rows_as_negatives(config, identities) or round(USUAL_SHARE * identities), config.batch_size)
    dtype = (config.negatives or config.head).get("dtype", "float32")
    rule = [] if config.center is not None else ["center=own_embedding"]
    rate = config.head.get("share") if config.head.kind == "partial_fc" else 0.1
    typed = {
        "full_fc": ["head=full_fc"],
        f"partial_fc {rate:g}": ["head=partial_fc", f"head.share={rate}"],
        f"attfc, {slots:,} slots": ["head=attfc", "center=key_attention"],
        NO_KEYS: ["head=attfc", *(["center=own_embedding"] if _takes_keys(config) else rule)],
        f"dcq, {slots:,} slots": ["head=dcq", f"head.count={slots}", f"head.dtype={dtype}"],
        f"dcp, {slots:,} slots": ["head=dcp", f"head.count={slots}", f"head.dtype={dtype}"],
    }
    values = config.model_dump(mode="json")
    with shapes_only():
        return {
            title: build_head(
                apply_overrides(values, options, "of the plan"), identities, Ranks(0, ranks), images=images
            )
            for title, options in typed.items()
        }


def _takes_keys(config: RunConfig) -> bool:
    return config.center is not None and config.center.kind == "key_attention"


def configured_title(config: RunConfig, titles: list[str]) -> str:
    """Return the title of the head that the configuration has."""
    if config.center is not None and not _takes_keys(config):
        return NO_KEYS
    return next(title for title in titles if title.replace(",", " ").split()[0] == config.head.kind)


def kept_besides(config: RunConfig, identities: int, images: int | None, ranks: int, cached: bool) -> list[str]:
    """Say what AttFC keeps outside of the memory that the plan counts, and what its other form would; nothing where it keeps all there.

    Args:
        cached: host memory is the device's.
    """
    place = next((bank.get("place") for bank in (config.negatives, config.stored) if bank and bank.get("place")), None)
    if not (place == "file" or (place == "host" and not cached)):
        return []
    values = config.model_dump(mode="json")

    def gib(center: str) -> str:
        with shapes_only():
            head = build_head(
                apply_overrides(values, [f"center={center}"], "of the plan"), identities, Ranks(0, ranks), images=images
            )
        assert isinstance(head, AttFC)
        return f"{head.stored.memory_bytes() / 2**30:.1f} GiB"

    table, remembered = gib("own_embedding"), "-" if images is None else gib("other_images")
    if config.center is not None and config.center.kind == "other_images":
        memory = f"attfc's memory of images: {remembered} per process besides, negatives.place={place}"
        return [f"{memory} (center=own_embedding: {table})"]
    line = f"attfc's table of centers: {table} per process besides, negatives.place={place}"
    return [line if images is None else f"{line} (center=other_images, mostly more accurate: {remembered})"]


def queries_per_epoch(config: RunConfig, title: str, images: int | None) -> int | None:
    """Return the images, once each; where a share of the batch is drawn by identity, an epoch is longer (`attfc.data.sampling.identity_mix`)."""
    share = identity_share(config, title.replace(",", " ").split()[0])
    return images if images is None or share >= 1 else round(images / (1 - share))


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


def planned_steps(
    config: RunConfig,
    encoder: Encoder,
    identities: int,
    images: int | None,
    device: torch.device,
    budget: float,
    ranks: int,
    rates: HeadRates | None,
) -> list[Plan]:
    """Return the plan of a step with every head, at the configured batch."""
    batch, options = (
        config.batch_size // ranks,
        step_options(config, device, budget, ranks, config.optimizer.accumulation),
    )
    return [
        plan_step(
            title,
            encoder,
            head.footprint(batch, cached=device.type == "cpu"),
            batch,
            images=queries_per_epoch(config, title, images),
            rates=rates,
            **options,
        )
        for title, head in planned_heads(config, identities, images, ranks).items()
    ]


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
    with shapes_only():
        head = build_head(config, identities, Ranks(0, ranks), images=images)
    while True:
        options = step_options(config, device, budget, ranks, config.optimizer.accumulation * divided)
        footprint = head.footprint(batch // divided, cached=device.type == "cpu")
        plan = plan_step(config.head.kind, encoder, footprint, batch // divided, **options)
        if plan.fits or batch // (2 * divided) < 2 or batch % (2 * divided):
            return divided
        divided *= 2
