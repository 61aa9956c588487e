"""`attfc presets`, `plan`: what there is to train, and whether and how fast it fits."""

import re
from importlib import resources
from typing import TYPE_CHECKING

from attfc.commands.common import out

if TYPE_CHECKING:
    from attfc.config import RunConfig

__all__ = ["presets"]

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
    out.print(f"  {'preset':<31}{'network':<10}{'head':<28}{'GPUs x batch':>13}  epochs")
    for title, members in groups.items():
        out.print(f"\n{title}{_where(members)}", markup=False)
        for name, config in sorted(members, key=lambda member: (_gpus(member[0]), member[0])):
            batch = f"{_gpus(name)} x {config.batch_size}"
            if config.optimizer.accumulation > 1:
                batch += f" x {config.optimizer.accumulation}"
            line = f"  {name:<31}{config.backbone.name:<10}{_head(config):<28}{batch:>13}{config.schedule.epochs:>8g}"
            out.print(line, markup=False)
    out.print(
        "\nattfc train PRESET data.root=YOURS; attfc plan PRESET says what fits; where the values come from: docs/recipes.md"
    )


def _where(members: "list[tuple[str, RunConfig]]") -> str:
    roots = {config.data.root for _, config in members}
    return f"   data.root={roots.pop()}" if len(roots) == 1 else ""


def _gpus(preset: str) -> int:
    """Return for how many GPUs a preset's learning rate is meant, from the first line of its file; a processor counts as one."""
    text = (resources.files("attfc") / "presets" / f"{preset}.yaml").read_text(encoding="utf-8")
    match = re.search(r"(\d+) GPUs? x ", text.partition("\n")[0])
    return int(match[1]) if match else 1


def _head(config: "RunConfig") -> str:
    if config.head.name == "partial_fc":
        filtered = config.head.interclass_filtering_threshold
        return f"partial_fc {config.head.sample_rate:g}" + (f", filter {filtered:g}" if filtered is not None else "")
    if config.head.name == "attfc":
        return "attfc " + (
            f"{config.container.slots:,} slots" if config.container.slots else f"ratio {config.container.ratio:g}"
        )
    return config.head.name
