"""A run put together from its configuration: `new_run` builds it in a new folder, `Run.train` carries it out.

`attfc.run.resuming` takes up a saved one.
"""

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from attfc.config import Asked, RunConfig, config_to_yaml
from attfc.config.choose import Choice
from attfc.config.describe import without_effect
from attfc.config.overrides import dotted
from attfc.data import Augment, Store, SyntheticFaces
from attfc.data.look import image_sizes
from attfc.devices import choose_device
from attfc.distributed import AgreedError, Ranks, claim_gpu, join_ranks, launched_ranks, leave_ranks
from attfc.errors import UserError
from attfc.evaluation import write_report
from attfc.evaluation.bootstrap import Interval
from attfc.evaluation.unseen import SharedPeople
from attfc.export.face_model import FaceModel, load
from attfc.files import write_json_whole, write_text_whole
from attfc.machine import environment
from attfc.precision import AMP_DTYPES, best_autocast_dtype
from attfc.run.automatic import choose_configuration, first_configuration, with_start_weights
from attfc.run.components import (
    build_backbone,
    build_head,
    build_loader,
    build_pair,
    optimizer_of,
    refuse_misfits,
    schedule_of,
)
from attfc.run.data import open_data
from attfc.run.evaluating import broken_images, evaluation_of, judged_pairs
from attfc.run.resolved import fewest_steps_notes, resolve
from attfc.run.saved import note_start_folder
from attfc.run.start_rows import take_rows
from attfc.run.start_weights import RECORD, StartRecord, training_data
from attfc.run.teacher import TEACHER, Teacher, open_teacher
from attfc.run.trained_people import compare_with_run
from attfc.training.batch_norm import synchronize_batch_norm
from attfc.training.interruption import Interrupted
from attfc.training.model_files import to_save
from attfc.training.people import people_of
from attfc.training.progress import RunLog
from attfc.training.run_folder import fresh_folder, remove_unrecorded, remove_unsaved
from attfc.training.step import Augmented, TrainStep
from attfc.training.trackers import TRACKERS, open_trackers, refuse_missing, shared_settings
from attfc.training.trainer import Trainer
from attfc.typing import Progress

__all__ = ["Run", "Settled", "assemble", "new_run", "settle"]


@dataclass(kw_only=True)
class Settled:
    """What a run will be, before anything is built: the configuration as it is saved, its data, and where it runs."""

    config: RunConfig
    store: Store
    held_out: Store | None
    device: torch.device
    ranks: Ranks
    choices: list[Choice]
    notes: list[str]


@dataclass(kw_only=True)
class Run(Settled):
    """A run put together: `train()` starts or continues it."""

    folder: Path
    trainer: Trainer
    intervals: Mapping[tuple[str, ...], Interval] = field(default_factory=dict)  # of the last evaluation's figures
    shared: SharedPeople | None = None  # of training and evaluation
    against_start: dict[str, Any] = field(default_factory=dict)  # the model of start_from, compared at the end
    teacher: Teacher = field(default_factory=Teacher)
    report: Path | None = None
    interrupted: bool = False
    stopped: str = ""  # where it was interrupted: what is saved, and how to go on

    @property
    def metrics(self) -> dict[str, Any] | None:
        """Metrics of the last evaluation, as in evaluation.json; None where there was none."""
        return None if self.trainer.evaluation is None else self.trainer.evaluation.last

    @property
    def model(self) -> FaceModel:
        """The trained model, read from the run's folder: `run.model.embed(images)`.

        Raises:
            UserError: the run was stopped before it wrote a model.
        """
        return load(self.folder)

    def train(self) -> "Run":
        """Train from wherever the run stands, and write its report; `interrupted` says whether it was stopped.

        The folder of a new run that fails before its first record is removed.
        """
        try:
            self.trainer.train()
        except Interrupted as stop:
            self.interrupted, self.stopped = True, str(stop)
            if not stop.saved:
                leave_ranks()
                return self
        except Exception:
            if self.ranks.rank == 0:
                remove_unrecorded(self.folder)
            raise
        if self.config.report.write and self.ranks.rank == 0:
            self.report = write_report(self.folder, store=self.held_out, pictures=self.config.report.pictures)
        self.ranks.barrier()  # torchrun ends all ranks as soon as one has left
        leave_ranks()
        return self


def new_run(wanted: RunConfig | Asked, progress: Progress | None = None) -> Run:
    """Make the run's folder ``output/name-NUMBER`` with its configuration and environment, and put the run together."""
    asked, start = with_start_weights(Asked.of(wanted))
    run = assemble(asked, None, progress, start.record if start else None)
    if start is not None:
        run.notes += start.fill(run.trainer.pair)
        run.notes += filter(None, [take_rows(run, start)])

    def make() -> str:
        folder = fresh_folder(Path(os.path.expanduser(run.config.output)), run.config.name)
        try:
            write_text_whole(folder / "config.yaml", config_to_yaml(run.config))
            write_json_whole(folder / "environment.json", environment(run.trainer.device))
            note_start_folder(folder)
            if start is not None:
                write_json_whole(folder / RECORD, start.record.model_dump(mode="json"))
            if run.teacher.record is not None:
                write_json_whole(folder / TEACHER, run.teacher.record.model_dump(mode="json"))
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


def settle(asked: Asked, progress: Progress | None = None) -> Settled:
    """Join the ranks, open the data, choose what nobody asked for, and settle what that means for these data.

    Args:
        asked: with the network of its start weights (`with_start_weights`).
        progress: called as (images read, images to read).
    """
    config = first_configuration(asked)
    refuse_misfits(config)
    device, ranks = _join(config)
    # One process a host opens first, and writes the index that the others then find.
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    stores = ranks.together(lambda: open_data(config, progress) if first else None)
    stores = ranks.together(lambda: stores or open_data(config))
    assert stores is not None
    store, held_out = stores
    choices: list[Choice] = []
    if asked.automatic:
        config, choices = choose_configuration(asked, store, held_out, device, ranks)
        _check_batch(config, ranks.size)
    if config.precision.amp == "auto":  # decided once, for a run that is resumed on another machine too
        amp = next(name for name, dtype in AMP_DTYPES.items() if dtype == best_autocast_dtype(device))
        config = config.model_copy(update={"precision": config.precision.model_copy(update={"amp": amp})})
    config, notes = ranks.together(lambda: resolve(config, len(store.identities)))
    notes = [*asked.notes, *notes, *without_effect(asked, config)]
    for each in (store, held_out):
        notes += getattr(each, "notes", ())
    if asked.automatic and not isinstance(store, SyntheticFaces):
        notes += filter(None, [image_sizes(store).advice])
    return Settled(
        config=config,
        store=store,
        held_out=held_out,
        device=device,
        ranks=ranks,
        choices=choices,
        notes=list(dict.fromkeys(notes)),
    )


def assemble(asked: Asked, folder: Path | None, progress: Progress | None, start: StartRecord | None = None) -> Run:
    """Put a run together, new or in its `folder`; of the state nothing is read yet."""
    config = first_configuration(asked)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    trackers = [name for name in TRACKERS if getattr(config.log, name)]
    refuse_missing(trackers)
    if not asked.automatic:
        _check_batch(config, launched_ranks())
        resolve(config, sys.maxsize)  # a size that was typed, and not a share, is refused here
    settled = settle(asked, progress)
    config, store, notes, device, ranks = (
        settled.config, settled.store, settled.notes, settled.device, settled.ranks
    )  # fmt: skip
    head = ranks.together(
        lambda: build_head(
            config, len(store.identities), ranks, images=len(store), image_counts=store.identities.counts()
        )
    ).to(device)
    backbone = build_backbone(config)
    model_config: dict[str, Any] = {
        "network": config.backbone.name,
        "options": config.backbone.options,
        "training_data": training_data(config, start),
    }
    to_save(backbone, model_config)  # refused now, not when it is trained
    image_size = int(getattr(backbone, "image_size", 112))
    if config.precision.channels_last:
        backbone = backbone.to(memory_format=torch.channels_last)
    loader = build_loader(settled, head.keys_per_query, image_size)
    _compare("data", {**loader.state_dict(), "name": store.name}, ranks)
    if config.distributed.sync_batch_norm:
        backbone = synchronize_batch_norm(backbone, ranks, device)
    pair = build_pair(config, backbone.to(device), head.keys_per_query)
    teacher = open_teacher(settled, head, folder, progress)
    if config.precision.compile:
        pair.query.compile()
        if pair.key is not None:
            pair.key.compile()
    optimizer = optimizer_of(config, pair, head, teacher.loss)
    schedule, total_steps = schedule_of(config, optimizer, loader.epoch_length, notes)
    notes += fewest_steps_notes(config, len(store), total_steps)
    prepare = Augmented(
        Augment(**config.augment.model_dump()), device, config.precision.channels_last, teacher.targets_of
    )
    trainer = Trainer(
        TrainStep(
            pair,
            head,
            optimizer,
            prepare,
            device=device,
            autocast_dtype=AMP_DTYPES[config.precision.amp],
            clip=config.optimizer.clip,
            ranks=ranks,
            tuned=config.precision.tuned,
            teacher_loss=teacher.loss,
        ),
        schedule,
        loader,
        total_steps,
        folder or Path(),
        model_config=model_config | {"training_data": model_config["training_data"] | teacher.origin},
        accumulation=config.optimizer.accumulation,
        checkpoint_every=config.checkpoint.every,
        keep_checkpoints=config.checkpoint.keep,
        log=RunLog(
            config.log.every,
            config.log.tensorboard,
            lambda run_folder: open_trackers(trackers, run_folder, shared_settings(config)),
        ),
        people=people_of(store),
    )
    ranks.draw_apart(0)
    run = Run(**vars(settled), folder=folder or Path(), trainer=trainer, teacher=teacher)
    _judge(run, start, image_size, progress)
    return run


def _judge(run: Run, start: StartRecord | None, image_size: int, progress: Progress | None) -> None:
    """Say who the run is judged on, and by what; images are decoded for a new run, which has no folder yet."""
    config, held_out, store = run.config, run.held_out, run.store
    if held_out is None:
        if config.eval.pairs:
            run.notes.append(f"eval.pairs={config.eval.pairs} is not read: set eval.root= to the images of its people")
        return
    # Read or drawn, and decoded, now: what cannot be evaluated on is an error before the training, not after it.
    pairs = judged_pairs(config, held_out)
    if run.folder == Path():
        run.notes += broken_images(run, pairs, image_size, progress)
    records = {"start weights": start, "teacher": run.teacher.record}
    behind = {name: record.lineage for name, record in records.items() if record is not None}
    run.shared = run.ranks.once(lambda: compare_with_run(config, held_out, progress, training=store, behind=behind))
    run.notes += filter(None, [run.shared.screen_note])
    run.trainer.evaluation = evaluation_of(run, pairs, behind)


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
    _compare("configuration", dotted(config.model_dump(mode="json")), ranks)
    versions = {name: metadata.version(name) for name in ("attfc", "torch")}
    _compare("versions", versions | {"device": device.type}, ranks)
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


def _compare(what: str, own: dict[str, Any], ranks: Ranks) -> None:
    """Refuse ranks that differ from rank 0, naming the first difference."""
    said = ranks.objects(own)
    counts = ("samples_seen", "steps", "images_seen", "broken")
    for number, values in enumerate(said):
        for key in sorted(said[0].keys() | values.keys()):
            if key not in counts and values.get(key) != said[0].get(key):
                raise AgreedError(
                    f"ranks differ in their {what}: {key} is {said[0].get(key)!r} on rank 0 and {values.get(key)!r} on rank {number}: "
                    "start the same command, with the same data and packages, on every host"
                )
