"""`attfc presets`, `plan`: what there is to train, and whether and how fast it fits."""

import re
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from attfc.commands.common import (
    JsonOption,
    PositiveOption,
    Table,
    out,
    print_notes,
    print_table,
    progress_bar,
    working,
    write_json,
)
from attfc.commands.options import WORDS
from attfc.commands.training_screen import print_choices
from attfc.errors import UserError
from attfc.machine import available_memory

if TYPE_CHECKING:
    import torch

    from attfc.config import RunConfig
    from attfc.plan import HeadRates, Plan

__all__ = ["plan", "presets"]

# Presets by data: the folder's name in data.root -> the set's. A preset of no set below is for a processor.
_SETS = {
    "faces_emore": "MS1MV2",
    "ms1m-retinaface-t1": "MS1MV3",
    "glint360k": "Glint360K",
    "WebFace4M": "WebFace4M",
    "WebFace12M": "WebFace12M",
    "WebFace12M_FLIP40": "WebFace12M, 40 % of the labels flipped",
    "WebFace12M_Conflict": "WebFace12M with inter-class conflicts",
    "WebFace42M": "WebFace42M",
}


def presets() -> None:
    """List the presets, by data set."""
    from attfc.config import load_config, preset_names

    groups: dict[str, list[tuple[str, RunConfig]]] = {"on a processor, in minutes": []}
    groups |= {title: [] for title in _SETS.values()}
    for name in preset_names():
        config = load_config(name)
        title = _SETS.get(config.data.root.rsplit("/", 1)[-1], "on a processor, in minutes")
        groups[title].append((name, config))
    tables = []
    for title, members in groups.items():
        rows = []
        for gpus, name, config in sorted((_gpus(name), name, config) for name, config in members):
            batch = f"{gpus} x {config.batch_size // gpus}"
            if config.optimizer.accumulation > 1:
                batch += f" x {config.optimizer.accumulation}"
            rows.append((f"  {name}", config.backbone.name, _head(config), batch, f"{config.schedule.epochs:g}"))
        roots = {config.data.root for _, config in members}
        where = f"   data.root={roots.pop()}" if len(roots) == 1 else ""
        header = ("preset", "network", "head", "GPUs x batch", "epochs")
        tables.append(Table(header, rows, words=(0, 1, 2), title=title + where))
    print_table(*tables)
    out.print(
        "\nattfc train PRESET data.root=YOURS; attfc plan PRESET says what fits; where the values come from: docs/recipes.md"
    )


def _preset_text(preset: str) -> str:
    return (resources.files("attfc") / "presets" / f"{preset}.yaml").read_text(encoding="utf-8")


def _gpus(preset: str) -> int:
    """Return for how many GPUs a preset's learning rate is meant, from the first line of its file; a processor counts as one."""
    match = re.search(r"(\d+) GPUs? x ", _preset_text(preset).partition("\n")[0])
    return int(match[1]) if match else 1


def _head(config: "RunConfig") -> str:
    head, bank = config.head, config.negatives
    if head.kind == "partial_fc":
        filtered = head.get("filter_above")
        return f"partial_fc {head.get('share'):g}" + (f", filter {filtered:g}" if filtered is not None else "")
    if bank is not None and (bank.get("count") or bank.get("share")):
        return f"{head.kind} " + (
            f"{bank.get('count'):,} rows" if bank.get("count") else f"share {bank.get('share'):g}"
        )
    return head.kind


def plan(
    words: Annotated[list[str], WORDS],
    identities: Annotated[int | None, Option(min=2)] = None,
    images: Annotated[int | None, Option(min=1)] = None,
    memory: Annotated[float | None, Option(min=0.01)] = None,
    ranks: PositiveOption = 1,
    calibrate: bool = True,
    json_file: JsonOption = None,
) -> None:
    """Predict memory and time per step for every head; say which fit and which to choose.

    Args:
        words: faces, a preset or a .yaml file, as `attfc train` takes them; then options such as batch_size=64
        identities: number of identities; default: that of the data or the preset
        images: number of images, for the time per epoch; default: that of the data or the preset
        memory: memory of the device, GiB; default: that of this machine
        ranks: processes that share the batch and the class centers
        calibrate: time a few small steps on this machine's device
    """
    from attfc.devices import choose_device
    from attfc.plan import advice, answer
    from attfc.run.planning import Planner, configured_title, measured_encoder

    config, identities, images = _asked_for(words, identities, images)
    if config.center is not None and config.center.kind == "other_images" and images is None:
        raise UserError(
            "center=other_images remembers every image, but the number of images is not known: add --images"
        )
    if config.batch_size % ranks:
        raise UserError(
            f"batch_size={config.batch_size} is not divisible by {ranks} ranks: choose a multiple of {ranks}"
        )
    batch = config.batch_size // ranks
    device = choose_device(config.device)
    with working(f"measuring {config.backbone.name} on {device}: a few steps of small batches"):
        encoder, dtype = measured_encoder(config, device)
    budget = memory * 2**30 if memory is not None else _memory_of(device)
    rates = _rates(config, device) if calibrate else None
    planner = Planner(identities, images, device, budget, ranks)
    plans = planner.plans(config, encoder, rates)
    where = f"{ranks} x " if ranks > 1 else ""
    kind = str(dtype or "float32").removeprefix("torch.")
    out.print(
        f"{config.backbone.name}, {identities:,} identities, {where}{batch} images per pass, {kind} on {device}; "
        f"budget {budget / 2**30:.1f} GiB per process",
    )
    _print_plans(plans, budget)
    said = answer(plans, configured_title(config, [each.head for each in plans]), budget)
    sentence = advice(plans, identities, images, budget)
    for line in (*planner.kept_besides(config), *said, f"advice: {sentence}"):
        out.print(line)
    write_json(
        json_file,
        {
            "preset": next((word for word in words if "=" not in word), None),
            "identities": identities,
            "images": images,
            "batch": batch,
            "ranks": ranks,
            "budget_bytes": budget,
            "device": str(device),
            "plans": [asdict(each) for each in plans],
            "answer": said,
            "advice": sentence,
        },
    )


def _asked_for(words: list[str], identities: int | None, images: int | None) -> "tuple[RunConfig, int, int | None]":
    """Return the configuration that the words ask for, identities and images; what `attfc train` would choose is printed."""
    from attfc.config.arguments import read_words
    from attfc.run.automatic import with_start_weights

    asked = with_start_weights(read_words(words))[0]
    if asked.automatic:
        from attfc.run.build import settle

        with progress_bar("index") as bar:
            settled = settle(asked, bar)
        print_choices(settled.choices)
        print_notes(settled.notes)
        return settled.config, identities or len(settled.store.identities), images or len(settled.store)
    print_notes(asked.notes)
    config = asked.resolve()
    known = _known_size(next(word for word in words if "=" not in word), config)
    if identities is None or (images is None and known is None):
        found = known or _size_of_data(config)
        return config, identities or found[0], images or found[1]
    if images is None and known is not None and known[0] == identities:
        images = known[1]
    return config, identities, images


def _rates(config: "RunConfig", device: "torch.device") -> "HeadRates":
    from attfc.lab.calibration import measure_heads

    with working(f"measuring the heads on {device}: a few steps each"):
        return measure_heads(
            device,
            config.batch_size,  # each rank's rows meet the queries of all
            embedding_size=config.backbone.embedding_size,
            keys=2 if config.center is None else config.center.get("keys", 2),
            dtype=(config.negatives or config.head).get("dtype", "float32"),
            optimizer=config.optimizer.name,
        )


def _print_plans(plans: "list[Plan]", budget: float) -> None:
    """Print whether and how fast each fits, then where its memory goes."""
    costs = [
        (
            each.head,
            "yes" if each.fits else "no",
            f"{each.peak / 2**20:,.0f}",
            f"{100 * each.peak / budget:.0f}",
            "-" if each.step_seconds is None else f"{each.step_seconds:.3g}",
            "-" if each.epoch_hours is None else f"{each.epoch_hours:,.3g}",
        )
        for each in plans
    ]
    parts = ("parameters", "gradients", "optimizer", "activations", "rows", "working")
    where = [(each.head, *(f"{getattr(each, name) / 2**20:,.0f}" for name in parts)) for each in plans]
    for header, rows in (
        (("head", "fits", "peak, MiB", "% of memory", "s / step", "h / epoch"), costs),
        (("memory, MiB", *parts), where),
    ):
        print_table(Table(header, rows))
        out.print()
    out.print("key passes: further images of each person in the batch are embedded too (center=key_attention)")


def _known_size(preset: str, config: "RunConfig") -> tuple[int, int] | None:
    """Return identities and images that a preset of ours states beside its placeholder of a root."""
    from attfc.config import load_config, preset_names

    if preset not in preset_names() or Path(config.data.root).exists():
        return None
    match = re.search(r"# ([\d,]+) identities, ([\d,]+) images", _preset_text(preset))
    if match is None or config.data.root != load_config(preset).data.root:
        return None
    return int(match[1].replace(",", "")), int(match[2].replace(",", ""))


def _size_of_data(config: "RunConfig") -> tuple[int, int]:
    from attfc.run.data import open_training_data

    with progress_bar("index") as bar:
        store = open_training_data(config, bar)
    return len(store.identities), len(store)


def _memory_of(device: Any) -> float:
    """Bytes of the accelerator, or what the machine has free."""
    if device.type == "cuda":
        import torch

        return float(torch.cuda.get_device_properties(device).total_memory)
    available = available_memory()
    if available is None:
        raise UserError("the device's memory is unknown on this system: add --memory GIB")
    return float(available)
