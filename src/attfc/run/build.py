"""Configuration -> objects: the only place where both meet.

Each `build_*` takes the resolved `RunConfig` and hands plain arguments to a component; `new_run` and `resume_run` put a whole run together,
and `finish_run` writes what a reader wants to see at its end.
"""

import math
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from attfc.backbones import create_backbone
from attfc.config import Asked, RunConfig, SourceConfig, config_to_yaml
from attfc.config.choose import Choice
from attfc.config.overrides import dotted
from attfc.data import AttentionLoader, Augment, CombinedStore, DecodedCache, Store, SyntheticFaces, open_store
from attfc.data.look import image_sizes
from attfc.data.people.kept_aside import split
from attfc.devices import choose_device
from attfc.distributed import ALONE, AgreedError, Ranks, claim_gpu, join_ranks, launched_ranks
from attfc.errors import UserError
from attfc.evaluation import write_report
from attfc.evaluation.bootstrap import Interval
from attfc.evaluation.unseen import SharedPeople
from attfc.export.colours import Colours, fed_as
from attfc.export.face_model import FaceModel, load
from attfc.files import write_json_whole, write_text_whole
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
from attfc.machine import environment
from attfc.precision import AMP_DTYPES, best_autocast_dtype
from attfc.run.automatic import choose_configuration, first_configuration, with_start_weights
from attfc.run.evaluating import evaluator_of
from attfc.run.judged_pairs import judged_pairs
from attfc.run.resolved import fewest_steps_notes, identity_share, negatives_per_step, paired_queries, resolve
from attfc.run.resuming import (
    check_people,
    note_start_folder,
    rate_note,
    refuse_other_network,
    saved_configuration,
    what_is_left,
    with_found_data,
)
from attfc.run.start_weights import RECORD, StartRecord, read_record, training_data
from attfc.run.trained_people import compare_with_run
from attfc.training.batch_norm import synchronize_batch_norm
from attfc.training.checkpoints.checkpoint import latest_checkpoint
from attfc.training.checkpoints.manifest import read_manifest
from attfc.training.momentum import MomentumPair
from attfc.training.optimizers import build_optimizer, parameter_groups
from attfc.training.people import people_of
from attfc.training.run_folder import fresh_folder, locked, remove_unsaved
from attfc.training.schedule import build_schedule
from attfc.training.trackers import TRACKERS, open_trackers, refuse_missing, shared_settings
from attfc.training.trainer import Trainer

__all__ = [
    "Run",
    "build_backbone",
    "build_head",
    "build_margin",
    "build_pair",
    "choose_device",
    "environment",
    "finish_run",
    "identity_share",
    "new_run",
    "open_held_out",
    "open_training_data",
    "optimizer_of",
    "paired_queries",
    "resume_run",
    "schedule_of",
    "settle",
]

AMP_NAMES: dict[torch.dtype | None, Literal["none", "bfloat16", "float16"]] = {
    None: "none",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


@dataclass
class Run:
    """A run put together: `trainer.train()` starts or continues it."""

    config: RunConfig
    folder: Path
    trainer: Trainer
    store: Store
    held_out: Store | None
    notes: list[str] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    ranks: Ranks = ALONE
    intervals: Mapping[tuple[str, ...], Interval] = field(default_factory=dict)  # of the last evaluation's figures
    shared: SharedPeople | None = None  # of training and evaluation
    report: Path | None = None
    interrupted: bool = False
    stopped: str = ""  # where it was interrupted: what is saved, and how to go on

    @property
    def metrics(self) -> dict[str, Any] | None:
        """Metrics of the last evaluation, as in evaluation.json; None where there was none."""
        return self.trainer.last_evaluation

    @property
    def model(self) -> FaceModel:
        """The trained model, read from the run's folder: `run.model.embed(images)`.

        Raises:
            UserError: the run was stopped before it wrote a model.
        """
        return load(self.folder)


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


def open_training_data(config: RunConfig, progress: Callable[[int, int], None] | None = None) -> Store:
    """Open data.root with its edits, or data.sources as one store."""
    data = config.data
    stores = [
        open_store(
            source.root, edits=source.edits, label_source=data.label_source, cache=data.index_cache, progress=progress
        )
        for source in data.sources or [SourceConfig(root=data.root, edits=data.edits)]
    ]
    if not data.sources:
        return stores[0]
    return CombinedStore(stores, merge_names=data.merge_names, weights=[source.weight for source in data.sources])


def open_held_out(config: RunConfig, progress: Callable[[int, int], None] | None = None) -> Store | None:
    """Open the people of eval.root, if there are any."""
    if config.eval.root is None:
        return None
    return open_store(
        config.eval.root,
        edits=config.eval.edits,
        label_source=config.data.label_source,
        cache=config.eval.index_cache,
        progress=progress,
    )


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


def new_run(wanted: RunConfig | Asked, progress: Callable[[int, int], None] | None = None) -> Run:
    """Make the run's folder ``output/name-NUMBER`` with its configuration and environment, and put the run together."""
    asked, start = with_start_weights(Asked.of(wanted))
    run = _assemble(asked, None, progress, start.record if start else None)
    if start is not None:
        run.notes += start.fill(run.trainer.pair)
    config = run.config

    def make() -> str:
        folder = fresh_folder(Path(os.path.expanduser(config.output)), config.name)
        try:
            write_text_whole(folder / "config.yaml", config_to_yaml(run.config))
            write_json_whole(folder / "environment.json", environment(run.trainer.device))
            note_start_folder(folder)
            if start is not None:
                write_json_whole(folder / RECORD, start.record.model_dump(mode="json"))
        except BaseException:  # Ctrl-C too
            remove_unsaved(folder)
            raise
        return str(folder.resolve()) if run.ranks.size > 1 else str(folder)

    run.folder = run.trainer.run_folder = Path(run.ranks.once(make))
    run.ranks.together(lambda: _see(run.folder))
    return run


def _see(folder: Path) -> None:
    """All ranks write their shards of a checkpoint into the run's folder."""
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"host {platform.node()} does not see {folder}, which rank 0 has made: set output= to a folder that all hosts share"
        )


def resume_run(folder: Path, overrides: list[str], progress: Callable[[int, int], None] | None = None) -> Run:
    """Put a run together again from its folder and take up its newest whole checkpoint.

    Raises:
        UserError: no run there, one that is being trained, data of other people, or overrides that change what the saved state
            describes (network, head, container).
    """
    before, config = saved_configuration(folder), saved_configuration(folder, overrides)
    refuse_other_network(before, config)
    if os.environ.get("RANK", "0") == "0":
        with locked(folder):  # taken again by `Trainer.train`; asked here, before minutes of reading data
            pass
    config, notes = with_found_data(config, folder)
    run = _assemble(Asked.of(config), folder, progress, read_record(folder))
    run.notes += notes
    found, faults = run.ranks.once(lambda: _newest(folder / "checkpoints"))
    if not found:
        raise UserError(
            f"{folder} has no whole checkpoint to resume from (looked in {folder / 'checkpoints'}"
            + (f"; {faults[0]}" if faults else "")
            + "): start the run anew"
        )
    run.notes += [f"{fault}; resumed from {found}" for fault in faults]
    run.notes += run.ranks.together(lambda: check_people(run, Path(found), overrides))
    run.notes += rate_note(run, saved=run.trainer.load(Path(found)))
    run.notes += what_is_left(run, overrides)
    if run.config != before and run.ranks.rank == 0:  # the next resume goes on with these values
        write_text_whole(folder / "config.yaml", config_to_yaml(run.config))
    return run


def _newest(checkpoints: Path) -> tuple[str, list[str]]:
    """Return the newest whole checkpoint, and what is wrong with those that are newer."""
    found = latest_checkpoint(checkpoints)
    newer = [path for path in checkpoints.glob("step_*") if found is None or path.name > found.name.removeprefix(".")]
    faults = []
    for path in sorted(newer, reverse=True):
        try:
            read_manifest(path)
        except UserError as error:
            faults.append(str(error))
    return str(found or ""), faults


def finish_run(run: Run) -> Path | None:
    """Write the report of a finished or interrupted run, if the configuration wants one."""
    if not run.config.report.write or run.ranks.rank:
        return None
    return write_report(run.folder, store=run.held_out, pictures=run.config.report.pictures)


def settle(
    asked: Asked, progress: Callable[[int, int], None] | None = None
) -> tuple[RunConfig, list[Choice], list[str], Store]:
    """Return the configuration as `new_run` would build and save it, with the choices made, the notes and the training set; nothing is built."""
    asked, _ = with_start_weights(asked)
    config = first_configuration(asked)
    device, ranks = _join(config)
    config, choices, notes, store, _ = _settle(asked, config, device, ranks, progress)
    return config, choices, notes, store


def _settle(
    asked: Asked,
    config: RunConfig,
    device: torch.device,
    ranks: Ranks,
    progress: Callable[[int, int], None] | None,
) -> tuple[RunConfig, list[Choice], list[str], Store, Store | None]:
    """Open the data, choose what nobody asked for, and settle what that means for these data."""
    # One process a host opens first, and writes the index that the others then find.
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    stores = ranks.together(lambda: _open(config, progress) if first else None)
    stores = ranks.together(lambda: stores or _open(config, None))
    assert stores is not None
    store, held_out = stores
    choices: list[Choice] = []
    if asked.automatic:
        config, choices = choose_configuration(asked, store, held_out, device, ranks)
        _check_batch(config, ranks.size)
    if config.precision.amp == "auto":  # decided once, for a run that is resumed on another machine too
        config = config.model_copy(deep=True)
        config.precision.amp = AMP_NAMES[best_autocast_dtype(device)]
    config, notes = ranks.together(lambda: resolve(config, len(store.identities)))
    for each in (store, held_out):
        notes += getattr(each, "notes", ())
    if asked.automatic and not isinstance(store, SyntheticFaces):
        notes += filter(None, [image_sizes(store).advice])
    return config, choices, list(dict.fromkeys(notes)), store, held_out


def _assemble(
    asked: Asked,
    folder: Path | None,
    progress: Callable[[int, int], None] | None,
    start: StartRecord | None = None,
) -> Run:
    config = first_configuration(asked)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    trackers = [name for name in TRACKERS if getattr(config.log, name)]
    refuse_missing(trackers)
    if not asked.automatic:
        _check_batch(config, launched_ranks())
    device, ranks = _join(config)
    config, choices, notes, store, held_out = _settle(asked, config, device, ranks, progress)
    head = ranks.together(lambda: build_head(config, len(store.identities), ranks, images=len(store))).to(device)
    backbone = build_backbone(config)
    image_size = int(getattr(backbone, "image_size", 112))
    if config.precision.channels_last:
        backbone = backbone.to(memory_format=torch.channels_last)
    loader = _build_loader(
        config, store, head.keys_per_query, image_size, pin_memory=device.type == "cuda", notes=notes, ranks=ranks
    )
    _compare("data", ranks.objects({**loader.state_dict(), "name": store.name}))
    if config.distributed.sync_batch_norm:
        backbone = synchronize_batch_norm(backbone, ranks, device)
    pair = build_pair(config, backbone.to(device))
    if config.precision.compile:
        pair.query.compile()
        pair.key.compile()
    optimizer = optimizer_of(config, pair, head)
    schedule, total_steps = schedule_of(config, optimizer, loader.epoch_length, notes)
    notes += fewest_steps_notes(config, len(store), total_steps)
    trainer = Trainer(
        pair=pair,
        head=head,
        loader=loader,
        augment=Augment(**config.augment.model_dump()),
        optimizer=optimizer,
        schedule=schedule,
        device=device,
        total_steps=total_steps,
        run_folder=folder or Path(),
        model_config={
            "network": config.backbone.name,
            "options": config.backbone.options,
            "training_data": training_data(config, start),
        },
        autocast_dtype=AMP_DTYPES[config.precision.amp],
        channels_last=config.precision.channels_last,
        accumulation=config.optimizer.accumulation,
        clip=config.optimizer.clip,
        evaluate_every=config.eval.every,
        best_by=config.eval.best_by,
        checkpoint_every=config.checkpoint.every,
        keep_checkpoints=config.checkpoint.keep,
        log_every=config.log.every,
        tensorboard=config.log.tensorboard,
        open_trackers=lambda run_folder: open_trackers(trackers, run_folder, shared_settings(config)),
        ranks=ranks,
        people=people_of(store),
    )
    ranks.draw_apart(0)
    run = Run(config, folder or Path(), trainer, store, held_out, notes, choices, ranks)
    if held_out is not None:
        # Read or drawn now: a store that allows no pairs is an error before the training, not after it.
        pairs = judged_pairs(config, held_out)
        earlier = None if start is None else start.lineage
        run.shared = ranks.once(lambda: compare_with_run(config, held_out, progress, training=store, earlier=earlier))
        notes += filter(None, [run.shared.screen_note])
        trainer.evaluate = evaluator_of(run, pairs)
    elif config.eval.pairs:
        notes.append(f"eval.pairs={config.eval.pairs} is not read: set eval.root= to the images of its people")
    return run


def _join(config: RunConfig) -> tuple[torch.device, Ranks]:
    """Join the other ranks, where a launcher started several, and make sure that all have the same in mind."""
    size = launched_ranks()
    if size > 1:
        if config.device not in ("auto", "cpu", "cuda"):
            raise UserError(
                f"device={config.device} names one device for {size} ranks: leave it to device=auto, or cpu"
            )
        if config.device != "cpu" and torch.cuda.is_available():
            claim_gpu()
    device = choose_device(config.device)
    if size > 1 and device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    ranks = join_ranks(device, config.distributed.timeout_seconds)
    _compare("configuration", ranks.objects(dotted(config.model_dump(mode="json"))))
    versions = {name: metadata.version(name) for name in ("attfc", "torch")}
    _compare("versions", ranks.objects(versions | {"device": device.type}))
    return device, ranks


def _check_batch(config: RunConfig, size: int) -> None:
    """Refuse a batch that the ranks cannot share evenly, two images or more each."""
    least, batch = 2 * size, config.batch_size
    below = batch - batch % size
    if batch < least:
        raise UserError(
            f"batch_size={batch} over {size} ranks: BatchNorm needs at least 2 images per process; set batch_size to {least} or more"
        )
    if batch % size:
        raise UserError(
            f"batch_size={batch} is that of all ranks and does not divide by {size} of them: take {below + size}"
            + (f" or {below}" if below >= least else "")
        )


def _compare(what: str, said: list[dict[str, Any]]) -> None:
    """Refuse ranks that differ from rank 0, naming the first difference."""
    counts = ("samples_seen", "steps", "images_seen", "broken_seen")
    for number, values in enumerate(said):
        for key in sorted(said[0].keys() | values.keys()):
            if key not in counts and values.get(key) != said[0].get(key):
                raise AgreedError(
                    f"ranks differ in their {what}: {key} is {said[0].get(key)!r} on rank 0 and {values.get(key)!r} on rank {number}: "
                    "start the same command, with the same data and packages, on every host"
                )


def _open(config: RunConfig, progress: Callable[[int, int], None] | None) -> tuple[Store, Store | None]:
    store = open_training_data(config, progress)
    return split(store, config.eval.share) if config.eval.share else (store, open_held_out(config, progress))


def _build_loader(
    config: RunConfig,
    store: Store,
    keys_per_query: int,
    image_size: int,
    pin_memory: bool,
    notes: list[str],
    ranks: Ranks,
) -> AttentionLoader:
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
