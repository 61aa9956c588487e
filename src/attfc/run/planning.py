"""What the planner is asked about a configuration: every head with its options, the network's cost, and whether one step of the configured head fits.

Heads are built on the meta device, where nothing is allocated, and asked for their bytes (`Head.footprint`). Nothing is timed here but the
network, which runs on two small batches (`attfc.plan.measure_encoder`), a few seconds. A head that is registered in `KINDS` has its line.
"""

from dataclasses import dataclass

import torch

from attfc.backbones.shapes import shapes_only
from attfc.config import RunConfig, apply_overrides
from attfc.config.kinds import KINDS, PARTS, model_of
from attfc.config.profiles import USUAL_SHARE
from attfc.distributed import Ranks
from attfc.errors import UserError
from attfc.heads import AttFC, Head
from attfc.plan import Encoder, HeadRates, Plan, Ways, measure_encoder, plan_step, way_to_save
from attfc.precision import AMP_DTYPES, best_autocast_dtype
from attfc.run.components import build_backbone, build_head
from attfc.run.resolved import identity_share, rows_as_negatives
from attfc.training.optimizers import steps_in_place

__all__ = ["Planner", "configured_title", "measured_encoder"]

NO_KEYS, KEYS = "attfc, no key passes", "attfc, key passes"


def planned_configs(config: RunConfig, identities: int) -> dict[str, RunConfig]:
    """Return the configuration with every head by the title of its line: those with a center per identity, then those with slots."""
    slots = max(rows_as_negatives(config, identities) or round(USUAL_SHARE * identities), config.batch_size)
    size = {"count": slots, "dtype": (config.negatives or config.head).get("dtype", "float32")}
    with_rows: dict[str, list[str]] = {}
    with_slots: dict[str, list[str]] = {}
    for kind in KINDS["head"]:
        part = config.head if config.head.kind == kind else model_of("head", kind)()
        share, typed = part.get("share"), [f"head={kind}"]
        if kind in PARTS:
            recent = config.negatives is not None and config.negatives.kind == "recent_centers"
            with_slots[f"{kind}, {slots:,} slots" if recent else KEYS] = [*typed, "center=key_attention"]
            with_slots[NO_KEYS] = typed if _needs_no_keys(config) else [*typed, "center=own_embedding"]
        elif "count" in part.options:
            sized = [f"head.{name}={value}" for name, value in size.items() if name in part.options]
            with_slots[f"{kind}, {slots:,} slots"] = typed + sized
        else:
            with_rows[kind if share is None else f"{kind} {share:g}"] = typed
    values = config.model_dump(mode="json")
    return {
        title: apply_overrides(values, typed, "of the plan") for title, typed in {**with_rows, **with_slots}.items()
    }


def _needs_no_keys(config: RunConfig) -> bool:
    return config.center is not None and config.center.kind != "key_attention"


def configured_title(config: RunConfig, titles: list[str]) -> str:
    """Return the title of the head that the configuration has."""
    if _needs_no_keys(config):
        return NO_KEYS
    return next(title for title in titles if title.replace(",", " ").split()[0] == config.head.kind)


def ways_to_save(config: RunConfig, device: torch.device) -> Ways:
    """Return the options by which the configured head's rows, and a step's work on them, take less of the device's memory."""
    section = "head" if config.negatives is None else "negatives"
    sized = getattr(config, section)
    option = "share" if sized.get("share") else "count"
    fewer = f": lower {section}.{option}" if option in sized.options else ""
    banks = {name: bank for name in ("head", "negatives", "stored") if (bank := getattr(config, name)) is not None}
    inside = ("device", "host") if device.type == "cpu" else ("device",)
    outside = " ".join(
        f"{name}.place=file {name}.folder=FOLDER" for name, bank in banks.items() if bank.get("place") in inside
    )
    if config.head.kind not in PARTS and "count" not in config.head.options:
        rows = " with gradients and optimizer state: head=attfc trains none"
    else:  # a container holds what a step works on, a table everybody
        rows = fewer if any(bank.kind == "recent_centers" for bank in banks.values()) or section == "head" else ""
    if sized.get("trained"):
        rows = fewer = ": lower negatives.trained"
    if outside:
        rows += f"{', or' if rows else ':'} keep them in a file: {outside}"
    return Ways(rows, f"{fewer}, or halve batch_size" if fewer else ": halve batch_size", outside)


def measured_encoder(config: RunConfig, device: torch.device) -> tuple[Encoder, torch.dtype | None]:
    """Run the network on small batches; return its cost, and the type that it computes in (None: float32)."""
    network, amp = build_backbone(config), config.precision.amp
    dtype = best_autocast_dtype(device) if amp == "auto" else AMP_DTYPES[amp]
    encoder = measure_encoder(
        network.to(device),
        int(getattr(network, "image_size", 112)),
        device=device,
        autocast_dtype=dtype,
        channels_last=config.precision.channels_last,
    )
    return encoder, dtype


@dataclass(frozen=True)
class Planner:
    """Plans steps for one data set and one machine.

    Args:
        identities, images: of the training set; images None: not known.
        budget: bytes of one process.
        ranks: processes that share batch and rows.
    """

    identities: int
    images: int | None
    device: torch.device
    budget: float
    ranks: int

    def plan(
        self, title: str, config: RunConfig, encoder: Encoder, rates: HeadRates | None = None, divided: int = 1
    ) -> Plan:
        """Return the plan of a step of a configuration, its batch taken in `divided` times as many passes."""
        batch = config.batch_size // self.ranks // divided
        # Where a share of the batch is drawn by identity, an epoch is longer (`attfc.data.sampling.identity_mix`).
        share = identity_share(config)
        return plan_step(
            title,
            encoder,
            self._head(config).footprint(batch, cached=self.device.type == "cpu"),
            batch,
            images=self.images if self.images is None or share >= 1 else round(self.images / (1 - share)),
            ranks=self.ranks,
            memory_bytes=self.budget,
            optimizer=config.optimizer.name,
            weight_decay=config.optimizer.weight_decay > 0,
            accumulation=config.optimizer.accumulation * divided,
            fused=steps_in_place(config.optimizer.name, self.device),
            rates=rates,
            ways=ways_to_save(config, self.device),
        )

    def plans(self, config: RunConfig, encoder: Encoder, rates: HeadRates | None) -> list[Plan]:
        """Return the plan of a step with every head, at the configured batch."""
        asked = planned_configs(config, self.identities)
        return [self.plan(title, each, encoder, rates) for title, each in asked.items()]

    def passes_that_fit(self, config: RunConfig) -> int:
        """Return by how much the batch has to be divided until a step fits the budget: 1, 2, 4 ...; each process keeps two images at least.

        Raises:
            UserError: not even the smallest batch fits; the message says what takes most, and what makes that smaller.
        """
        encoder, _ = measured_encoder(config, self.device)
        divided, batch = 1, config.batch_size // self.ranks
        while not (plan := self.plan(config.head.kind, config, encoder, divided=divided)).fits:
            if batch // (2 * divided) < 2 or batch % (2 * divided):
                raise UserError(
                    f"a step with {batch // divided} images takes {plan.peak / 2**30:,.1f} GiB, and {self.device} has {self.budget / 2**30:,.1f}. "
                    f"{way_to_save(plan)}. With batch_size= it is tried all the same"
                )
            divided *= 2
        return divided

    def kept_besides(self, config: RunConfig) -> list[str]:
        """Say what AttFC keeps outside of the memory that the plan counts, and what its other form would; nothing where it keeps all there."""
        banks = [bank for bank in (config.negatives, config.stored) if bank is not None]
        place = next((bank.get("place") for bank in banks if bank.get("place")), None)
        if place != "file" and (place != "host" or self.device.type == "cpu"):  # there host memory is the device's
            return []
        values = config.model_dump(mode="json")

        def gib(center: str) -> str:
            head = self._head(apply_overrides(values, [f"center={center}"], "of the plan"))
            assert isinstance(head, AttFC)
            return f"{head.stored.memory_bytes() / 2**30:.1f} GiB"

        table, remembered = gib("own_embedding"), "-" if self.images is None else gib("other_images")
        if config.center is not None and config.center.kind == "other_images":
            memory = f"attfc's memory of images: {remembered} per process besides, negatives.place={place}"
            return [f"{memory} (center=own_embedding: {table})"]
        line = f"attfc's table of centers: {table} per process besides, negatives.place={place}"
        return [line if self.images is None else f"{line} (center=other_images, mostly more accurate: {remembered})"]

    def _head(self, config: RunConfig) -> Head:
        with shapes_only():
            return build_head(
                config,
                self.identities,
                Ranks(0, self.ranks),
                images=self.images,
                image_counts=torch.ones(self.identities),
            )
