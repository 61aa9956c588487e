"""`start_from=`: the weights that a run begins with, whatever file or folder they are in, and what goes with them.

Weights say what network they are of, so network, embedding size, input size, options and colours of the run come from them: what a preset or
default says gives way with a note, what was asked for by name and contradicts is refused. Of an earlier run both encoders are taken from its
newest checkpoint; of anything else, or of a run without keys, the key encoder is a copy. A run without keys has none.

`start_weights.json` in the run's folder keeps the origin: a resumed run does not need the file again, config.json of each model gets the
licence from it, and a run that starts from this one learns who was trained on before (`lineage`).
"""

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError
from torch import nn

from attfc.backbones import create_backbone
from attfc.backbones.shapes import shapes_only
from attfc.config import RunConfig, load_config
from attfc.config.schema import BackboneConfig, DataConfig, Section
from attfc.errors import UserError, one_line
from attfc.export.colours import COLOUR_KEYS, Colours
from attfc.export.model_inputs import STATE_DICTS, ModelFacts, open_model
from attfc.export.origins import training_data_of
from attfc.export.state_dicts import UnknownNetworkError
from attfc.files import first_fault, read_json
from attfc.training.checkpoints.checkpoint import latest_checkpoint, load_checkpoint
from attfc.training.model_files import WEIGHTS
from attfc.training.momentum import MomentumPair
from attfc.training.run_folder import run_of
from attfc.typing import PathLike

__all__ = [
    "RECORD",
    "Lineage",
    "StartRecord",
    "StartWeights",
    "lineage",
    "read_kept",
    "read_record",
    "read_start",
    "training_data",
]

RECORD = "start_weights.json"
LARGEST_RECORD = 2**20
Kept = TypeVar("Kept", bound=Section)
SAID = ", ".join(f"backbone.{key}=" for key in ("name", "image_size", *COLOUR_KEYS))


class EarlierData(Section):
    """What one earlier run trained on: the people of `data` but for those that `share` kept aside (`eval.share`)."""

    run: str
    data: DataConfig
    share: float


class Lineage(Section):
    """Who stands behind weights.

    Attributes:
        runs: of the earlier runs, the newest first.
        foreign: the first of them, or the weights themselves, came from elsewhere: whoever they were trained on is unknown.
    """

    runs: list[EarlierData] = Field(default_factory=list)
    foreign: bool = True


class StartRecord(Section):
    """What `start_weights.json` holds: `weights` is `training_data.start_weights` of config.json."""

    source: str
    kind: Literal["run", "folder", "state dict"]
    network: str
    weights: dict[str, Any]
    lineage: Lineage


@dataclass(frozen=True)
class StartWeights:
    """Weights to begin with, of `read_start`: `fill` puts them into the encoders."""

    record: StartRecord
    notes: list[str]
    checkpoint: Path | None
    head: str  # of the run that the checkpoint is of
    network: nn.Module | None

    def fill(self, pair: MomentumPair) -> list[str]:
        """Fill the query encoder, and the key encoder where there is one; return what a reader should know: what was loaded and what was not."""
        source = self.record.source
        try:
            if self.checkpoint is None:
                assert self.network is not None
                state = self.network.state_dict()
                pair.query.load_state_dict(state)
                if pair.key is not None:
                    pair.key.load_state_dict(state)
                taken = f"started from {source}: {len(state)} tensors of {self.record.network}; new: head, optimizer, schedule, position in the data"
            else:
                state = load_checkpoint(self.checkpoint, only=["pair"])["pair"]
                pair.load_state_dict(state)
                pair.step = 0
                # Of a run without keys, earlier versions saved a key encoder too: the untrained network, which no step has moved.
                moved = pair.key is not None and int(state["_extra_state"]) > 0
                if pair.key is not None and not moved:
                    pair.key.load_state_dict(pair.query.state_dict())
                taken = (
                    f"started from the network of {self.checkpoint}"
                    + (" and its key encoder" if moved else "")
                    + f"; new: head (there {self.head}), optimizer, schedule, position in the data"
                )
        except RuntimeError as error:
            raise UserError(
                f"start_from={source} does not fit {self.record.network} with the backbone.options of this run: "
                f"{one_line(error)[:200]}; leave backbone.options out"
            ) from None
        return [taken, *self.notes]


def read_start(config: RunConfig, asked: Collection[str] = ()) -> tuple[RunConfig, StartWeights]:
    """Read `config.start_from`, and return the configuration with the weights' network.

    Args:
        config: with `start_from`; not changed.
        asked: keys that the user set by name (`Asked.typed`): what of `backbone` is among them must not contradict the weights.

    Raises:
        UserError: nothing there, ONNX, damaged, of an unknown network, or against what was asked for.
    """
    assert config.start_from is not None
    Colours.read(
        {key: getattr(config.backbone, key) for key in COLOUR_KEYS}, "backbone"
    )  # refused before a file is opened
    path = Path(os.path.expanduser(config.start_from))
    if path.suffix.lower() == ".onnx":
        raise UserError(
            f"start_from={config.start_from} is an ONNX file, which cannot be trained: give the run, folder or state dict that it was exported from"
        )
    run = run_of(path)
    checkpoint = latest_checkpoint(path / "checkpoints") if run == path else None
    network, notes, head, kind = None, [], "", "run"
    data: Any
    if run is not None and checkpoint is not None:
        theirs = load_config(str(run / "config.yaml"))
        found, data, head = theirs.backbone, training_data(theirs, read_record(run)), theirs.head.kind
    else:
        if run == path and not (path / "model").is_dir():
            raise UserError(
                f"start_from={config.start_from} has no whole checkpoint (looked in {path / 'checkpoints'}) and no model: let that run reach its "
                "first checkpoint, or leave start_from out"
            )
        network, facts = _open(path, config, asked)
        found = BackboneConfig(
            name=facts.network,
            embedding_size=facts.embedding_size,
            image_size=facts.image_size,
            options=dict(facts.options),
            **facts.colours.to_dict(),
        )
        kind, data = facts.kind, facts.training_data
        notes = [note.replace("say so with ", "say so with backbone.") for note in facts.notes]
    record = _record(config, path, run, kind, found.name, data)
    backbone = _resolved(config, found, asked)
    given, taken = (_described(section) for section in (config.backbone, backbone))
    if given != taken and config.backbone != BackboneConfig():  # somebody, or a preset, had another in mind
        shown = slice(None) if given[1] != taken[1] else slice(1)
        notes.append(f"network taken from the weights: {', '.join(taken[shown])}; instead of {', '.join(given[shown])}")
    start = StartWeights(record, notes, checkpoint, head, network)
    return config.model_copy(update={"backbone": backbone}), start


def lineage(start_from: PathLike, seen: frozenset[Path] = frozenset()) -> Lineage:
    """Say which people stand behind the weights of `start_from`: the data of the earlier runs, the newest first.

    Args:
        seen: runs that are followed already; one of them ends the line.

    Raises:
        UserError: an earlier run's configuration or record is damaged.
    """
    run = run_of(Path(os.path.expanduser(start_from)))
    if run is None or run.resolve() in seen:
        return Lineage()
    config, record = load_config(str(run / "config.yaml")), read_record(run)
    own = EarlierData(run=run.name, data=config.data, share=config.eval.share)
    if record is not None:
        before = record.lineage
    elif config.start_from is None:
        before = Lineage(foreign=False)
    else:  # a run of a version that kept no record
        before = lineage(config.start_from, seen | {run.resolve()})
    return Lineage(runs=[own, *before.runs], foreign=before.foreign)


def read_record(run: Path) -> StartRecord | None:
    """Read `start_weights.json` of a run's folder; None: it started from nothing, or is of a version that kept no record.

    Raises:
        UserError: it is damaged.
    """
    return read_kept(run / RECORD, StartRecord)


def read_kept(path: Path, kind: type[Kept]) -> Kept | None:
    """Read what a run's folder keeps of where it comes from; None: there is no such file.

    Raises:
        UserError: it is damaged.
    """
    if not path.exists():
        return None
    data = read_json(path, LARGEST_RECORD, "attfc wrote no such file", "is damaged (restore it from a copy of the run)")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{path} is damaged ({first_fault(error)}): restore it from a copy of the run") from None


def training_data(config: RunConfig, record: StartRecord | None) -> dict[str, Any]:
    """Return what config.json says of the data that a run trains on, and of the weights it started from."""
    roots = ", ".join(source.root for source in config.data.sources) or config.data.root
    started = {"start_weights": record.weights} if record is not None else {}
    return {"root": roots, "licence": config.data.licence, **started}


def _open(path: Path, config: RunConfig, asked: Collection[str]) -> tuple[nn.Module, ModelFacts]:
    """Open weights that are no checkpoint of ours; what was asked for by name fills what a state dict does not say."""
    backbone = config.backbone.model_dump(mode="json", exclude_none=True)
    said = {key: backbone[key] for key in backbone if f"backbone.{key}" in asked}
    file = path.is_file() and path.suffix in STATE_DICTS
    colours = {key: said[key] for key in COLOUR_KEYS if key in said and file}
    named = {known: said[key] for known, key in (("network", "name"), ("image_size", "image_size")) if key in said}
    try:
        try:
            return open_model(path, colours)
        except UnknownNetworkError:
            if not named:
                raise
            return open_model(path, {**colours, **named})
    except UnknownNetworkError as error:
        raise UserError(f"start_from: {error}; here, state it with one of {SAID}") from None
    except UserError as error:
        raise UserError(f"start_from: {error}") from None


def _record(
    config: RunConfig,
    path: Path,
    run: Path | None,
    kind: str,
    network: str,
    data: Any,
) -> StartRecord:
    """Say where the weights come from. Into config.json goes the last name of the path alone: a model travels, paths are nobody's business."""
    root, licence = training_data_of(data)
    if licence == "unknown":
        licence = config.start_licence
    elif config.start_licence not in ("unknown", licence):
        raise UserError(
            f"start_from={config.start_from} states the licence {licence!r}, and start_licence={config.start_licence!r} was given: leave it out"
        )
    place = Path(os.path.abspath(run or (path.parent if path.name == WEIGHTS else path)))
    earlier = {"start_weights": data["start_weights"]} if isinstance(data, dict) and "start_weights" in data else {}
    return StartRecord(
        source=str(config.start_from),
        kind=kind,
        network=network,
        weights={"source": place.name, "network": network, "root": root, "licence": licence, **earlier},
        lineage=lineage(path),
    )


def _resolved(config: RunConfig, found: BackboneConfig, asked: Collection[str]) -> BackboneConfig:
    """Return the backbone section of the run: that of the weights, with this run's options where they are for the same network."""
    given = config.backbone
    for key in ("name", "embedding_size", "image_size", *COLOUR_KEYS):
        theirs, ours = _value(found, key), _value(given, key)
        if f"backbone.{key}" in asked and ours is not None and ours != theirs:
            raise UserError(
                f"start_from={config.start_from} has {key} {_shown(theirs)}, and backbone.{key}={_shown(ours)} was asked for: "
                f"leave backbone.{key} out, it comes from the weights"
            )
    options = dict(found.options)
    if given.name == found.name or any(key.startswith("backbone.options") for key in asked):
        options |= given.options
    options.pop("pretrained", None)  # of timm: the weights are here, nothing is to be downloaded
    return found.model_copy(update={"options": options})


def _value(section: BackboneConfig, key: str) -> Any:
    value = getattr(section, key)
    if key == "image_size" and value is None:  # the network's own
        with shapes_only():
            options = {name: option for name, option in section.options.items() if name != "pretrained"}
            return create_backbone(section.name, embedding_size=section.embedding_size, **options).image_size
    return (value,) * 3 if key in ("mean", "std") and not isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    return f"{value[0]:g}" if isinstance(value, tuple) and len(set(value)) == 1 else str(value)


def _described(section: BackboneConfig) -> tuple[str, str]:
    """Return the network, and its colours."""
    colours = Colours.read({key: getattr(section, key) for key in COLOUR_KEYS}, "backbone")
    side = _value(section, "image_size")
    return f"{section.name}, {section.embedding_size} numbers, {side} x {side} pixels", f"fed with {colours}"
