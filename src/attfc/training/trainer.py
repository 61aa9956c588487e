"""The training loop: one process or several, any head, any device; stops and resumes at any step.

The step itself is `attfc.training.step`. A loss that is not finite ends the run before it can reach a checkpoint. Everything that shapes
later losses is in the checkpoint: resume gives the same losses, bit for bit on the CPU.

Several ranks: after a step all are equal, and one small sum per step tells everybody the loss, whether somebody was asked to stop, and
whether a broken image was met; so all stop at the same step, on accelerators one step after the signal. Rank 0 logs and writes models; a
checkpoint is written by all, each its shard, and all evaluate.
"""

import contextlib
import math
import signal
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from attfc.data.loader import AttentionLoader, Batch
from attfc.distributed import lost_rank
from attfc.errors import UserError, one_line
from attfc.training.checkpoints.checkpoint import (
    load_checkpoint,
    prune_checkpoints,
    refuse_without_room,
    save_checkpoint,
)
from attfc.training.checkpoints.random_state import rng_state, set_rng_state
from attfc.training.checkpoints.sharded_state import ShardedState
from attfc.training.interruption import Interrupted, resume_command, signals_call, stopped_unsaved, way_on
from attfc.training.model_files import save_model
from attfc.training.progress import RunLog, Stopwatch, figure_of, memory_mib
from attfc.training.reports import LabelWatch, StepReport
from attfc.training.run_folder import locked
from attfc.training.step import TrainStep
from attfc.typing import Json

__all__ = ["Evaluation", "Interrupted", "Trainer"]

LOSS_SMOOTHING = 0.9  # of the loss as logged


@dataclass
class Evaluation:
    """How a run is judged while it trains.

    Args:
        evaluate: called as evaluate(query_encoder, step) on all ranks; returns figures for the log, of which rank 0's count.
        every: steps; 0: at the end alone.
        best_by: the figure by which `best/` is chosen (larger is better).
        on: whom it evaluates on, for the progress line.
        begin: called with the query encoder on all ranks before the first step of the run; returns a line to say.
    """

    evaluate: Callable[[nn.Module, int], Json]
    every: int = 0
    best_by: str = "accuracy"
    on: str = "on unseen identities"
    begin: Callable[[nn.Module], str] | None = None
    last: Json | None = None


@dataclass
class Trainer:
    """Trains a query encoder under a head.

    Args:
        take_step: encoders, head and optimizer, and how they take a step over batches of the loader.
        schedule: of the optimizer's learning rate.
        loader: yields uint8 batches, this rank's share; its batch size is the size of one pass.
        total_steps: optimizer steps of the whole run.
        run_folder: where metrics, checkpoints and models go.
        model_config: what `config.json` of the exported backbone says.
        accumulation: batches per optimizer step; their mean loss is descended.
        evaluation: how and when the query encoder is judged; None: it is not.
        checkpoint_every: steps between checkpoints; 0: at the end alone. keep_checkpoints: how many stay.
        log: the record of the steps and the progress line.
        people: `people_of` the training set, for its checkpoints.
    """

    take_step: TrainStep
    schedule: LambdaLR
    loader: AttentionLoader
    total_steps: int
    run_folder: Path
    model_config: Json
    accumulation: int = 1
    evaluation: Evaluation | None = None
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    log: RunLog = field(default_factory=RunLog)
    people: Json = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.step, self.best = 0, -math.inf
        self._first_step = 0  # of this process
        self._average: float | None = None
        self._rate = 0.0  # that the last step used
        self._clock = Stopwatch()
        self._all_saved = False
        self._stop = self._asked = False  # _asked: somebody's _stop, as all ranks know it
        take = self.take_step
        self.pair, self.head, self.optimizer = take.pair, take.head, take.optimizer
        self._label_watch = LabelWatch(self.head.set_aside is not None)
        self.device, self.ranks = take.device, take.ranks
        self._sharded = ShardedState(self.head.row_shards(), self.head, self.optimizer, self.ranks)

    def train(self) -> None:
        """Run to `total_steps` from wherever the state stands; saves on the way, at the end, and when told to stop.

        Raises:
            Interrupted: SIGTERM or Ctrl-C; the state is saved, unless it came before the first step was done, or twice. A run folder in
                which nothing was saved is removed.
            UserError: another process trains in the run folder. A loss that is not finite: the last checkpoint stands. Too many broken
                images, or a worker that died: the state before them is saved.
        """
        self._first_step = self.step
        first = self.ranks.rank == 0
        try:
            with (
                locked(self.run_folder) if first else contextlib.nullcontext(),
                signals_call(self._ask_to_stop),
                self.log.opened(self.run_folder, self.step, self.total_steps) if first else contextlib.nullcontext(),
                contextlib.closing(self.loader),
            ):
                try:
                    self._run()
                except Exception as error:
                    if not isinstance(error, Interrupted):
                        self.log.fail(self.step + 1, error)
                    raise
        except KeyboardInterrupt:
            raise stopped_unsaved(self.run_folder, self.step, self.total_steps, self.ranks.rank) from None
        except OSError as error:
            raise UserError(
                f"cannot write into {self.run_folder}: {error.strerror or error}; "
                f"{way_on(self.run_folder, 'make room or permission there, then ')}"
            ) from error
        except RuntimeError as error:
            if self.ranks.size == 1 or not lost_rank(error):
                raise
            raise UserError(
                f"rank {self.ranks.rank} lost another rank at step {self.step + 1} ({one_line(error)[:200]}): that rank's own "
                f"message says why; {way_on(self.run_folder)}"
            ) from error

    def _run(self) -> None:
        clock = self._clock
        clock.start()
        logged = clock.seconds, self.step
        report: StepReport | None = None
        if self.step == 0 and self.evaluation is not None and (begin := self.evaluation.begin) is not None:
            with clock.paused():
                self.log.say(self.ranks.together(lambda: begin(self.pair.query)))
        self.pair.train()
        self.head.train()
        while self.step < self.total_steps:
            group = self._next_group(report)
            loss = self.train_step(group)
            self.step += 1
            report, before = StepReport(self.step, loss, group, self._stop, self.ranks), report
            if before is not None:  # heard now, when the next step has been launched
                self._hear(before)
            last = self.step == self.total_steps
            logs = self._due(self.log.every) or last
            saves = self._due(self.checkpoint_every) or last
            evaluates = self.evaluation is not None and self._due(self.evaluation.every) and not last
            shows = self.step == self._first_step + 1  # the bar has a loss from the first step on
            if shows:  # the optimizer has its state now
                self._refuse_without_room()
            if loss.device.type == "cpu" or logs or saves or evaluates or shows:
                self._hear(report)
            if logs:
                seconds = clock.read() - logged[0]
                images = (self.step - logged[1]) * self.accumulation * self.loader.batch_size * self.ranks.size
                self._log_step(float(report.figures[0]), images / seconds)
                logged = clock.seconds, self.step
            else:
                self.log.show(self.step, self._figures(float(report.figures[0]), None) if shows else None)
            if evaluates and not self._asked:
                with clock.paused():
                    self.log.say(self.run_evaluation())
            # Read once: a signal after this line is for the next step. Several ranks know only of what was told.
            stop = self._asked or (self.ranks.size == 1 and self._stop)
            if stop or saves:
                with clock.paused():
                    self._hear(report)
                    self.save()
            if stop and (not last or self.evaluation is not None):
                text = f"saved at step {self.step:,}; go on with: {resume_command(self.run_folder)}"
                raise Interrupted(text, self.step, saved=True)
        self._export("model")
        self._all_saved = True
        if self._stop and self.ranks.size == 1 and self.evaluation is not None:  # asked while the model was written
            raise KeyboardInterrupt
        if self.evaluation is not None:
            self.run_evaluation()

    def _next_group(self, report: StepReport | None) -> list[Batch]:
        """Return the batches of the next step. Where the data end the run, save what is trained: one process can, at the step before."""
        try:
            return self.loader.group(self.accumulation)
        except UserError as error:
            if self.step == 0 or self.ranks.size > 1:
                raise
            if report is not None:
                self._hear(report)
            if self.step > self._first_step:
                self.save()
            raise UserError(
                f"{error}; saved at step {self.step:,}; go on with: {resume_command(self.run_folder)}"
            ) from error

    def train_step(self, batches: list[Batch]) -> Tensor:
        """Take one step over `batches` and move the schedule; returns the loss as `TrainStep` does."""
        loss = self.take_step(batches)
        self._rate = float(self.optimizer.param_groups[0]["lr"])
        with warnings.catch_warnings():
            if self.take_step.scaler.is_enabled() and self.step == 0:
                # The scaler begins too high and skips the first steps; the schedule takes that for a wrong order of calls.
                warnings.simplefilter("ignore", UserWarning)
            self.schedule.step()
        return loss

    def run_evaluation(self) -> str:
        """Evaluate the query encoder, record the figures, and keep it in ``best/`` if it is the best so far; return a line that says them."""
        evaluation = self.evaluation
        assert evaluation is not None
        own = self.ranks.together(lambda: evaluation.evaluate(self.pair.query, self.step))
        # Another host may differ in the last digit, and all must agree on the best.
        figures = evaluation.last = self.ranks.once(lambda: own)
        self.pair.train()
        self.log.write("evaluation", self.step, figures)
        score = figure_of(figures, evaluation.best_by)
        if score is not None and score > self.best:
            self.best = score
            self._export("best")
        values = {name: figure_of(figures, name) for name in ("accuracy", "auc", "eer", "rank_one")}
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items() if value is not None)
        return f"step {self.step}: {evaluation.on}  {shown}"

    def _export(self, name: str) -> None:
        self.ranks.once(lambda: str(save_model(self.run_folder / name, self.pair.query, self.model_config)))

    def save(self) -> Path:
        """Write a checkpoint of everything and prune old ones."""
        folder = self.run_folder / "checkpoints"
        path = save_checkpoint(folder, self.step, self.state_dict(), self._sharded.spread)
        prune_checkpoints(folder, self.keep_checkpoints)
        return path

    def _refuse_without_room(self) -> None:
        state = self.state_dict()
        self.ranks.once(lambda: refuse_without_room(self.run_folder, state))

    def load(self, checkpoint: Path) -> float:
        """Take up a checkpoint, written by any number of ranks; of what is in shards, read this rank's own.

        Returns:
            The learning rate that the saved run would have gone on with; where the configuration was changed, this one has its own.

        Raises:
            UserError: it is damaged, or of another network, head or optimizer.
        """
        return self.load_state_dict(load_checkpoint(checkpoint, place=self._sharded.place))

    def state_dict(self) -> dict[str, Any]:
        """Everything that shapes later steps. Several ranks: of sharded rows, this rank's own."""
        return {
            **{name: part.state_dict() for name, part in self._parts().items()},
            "rng": rng_state(),
            "people": self.people,
            "trainer": {
                "step": self.step,
                "best": None if math.isinf(self.best) else self.best,
                "average": self._average,
                "seconds": self._clock.seconds,
                "labels": self._label_watch.state_dict(),
            },
        }

    def _parts(self) -> dict[str, Any]:
        """Return what keeps its own state, by the name of that in a checkpoint."""
        loss = self.take_step.teacher_loss
        return {
            **({} if loss is None else {"teacher_loss": loss}),
            "pair": self.pair,
            "head": self.head,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "scaler": self.take_step.scaler,
            "loader": self.loader,
        }

    def load_state_dict(self, state: dict[str, Any]) -> float:
        """Take up a saved state; returns its learning rate, as `load`.

        Raises:
            UserError: the state is of another network, head or optimizer; nothing on disk is touched.
        """
        configured = [
            {name: value for name, value in group.items() if name != "params"} for group in self.optimizer.param_groups
        ]
        try:
            for name, part in self._parts().items():
                if name != "scaler" or (part.is_enabled() and state["scaler"]):
                    part.load_state_dict(state[name])
            rate = float(state["optimizer"]["param_groups"][0]["lr"])
            # The rates of this run's configuration: on resume they may have been changed on purpose.
            self.schedule.base_lrs = [values["initial_lr"] for values in configured]
            groups = zip(self.optimizer.param_groups, configured, self.schedule.lr_lambdas, strict=True)
            for group, values, factor in groups:
                # Unchanged, this is the saved rate, bit for bit.
                group.update(values | {"lr": values["initial_lr"] * factor(self.schedule.last_epoch)})
            own = state["trainer"]
            self.step, self._average, self._clock.seconds = int(own["step"]), own["average"], float(own["seconds"])
            self.best = -math.inf if own["best"] is None else float(own["best"])
            self._label_watch.load_state_dict(own.get("labels", {}))
            set_rng_state(state["rng"])
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            raise UserError(
                f"the checkpoint does not fit this network, head or optimizer: {one_line(error)[:300]}; resume with the run's own configuration"
            ) from None
        self.ranks.draw_apart(self.step)
        return rate

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _log_step(self, loss: float, images_per_second: float) -> None:
        self._average = loss if self._average is None else LOSS_SMOOTHING * self._average + (1 - LOSS_SMOOTHING) * loss
        figures = self._figures(loss, images_per_second)
        self.log.write("train", self.step, figures)
        if advice := self._label_watch.note(self.step, figures["epoch"], figures.get("disagreeing_share")):
            self.log.say(advice)

    def _figures(self, loss: float, images_per_second: float | None) -> Json:
        """Return what is logged of the step that was taken last; the rate is the one that it used."""
        said = self.ranks.objects((self.take_step.statistics(), memory_mib(self.device)))
        return {
            "epoch": self.loader.state_dict()["samples_seen"] / self.loader.epoch_length,
            "loss": loss,
            "loss_average": self._average,
            "learning_rate": self._rate,
            "images_per_second": images_per_second,
            "memory_mib": max(memory for _, memory in said),
            "seconds": self._clock.seconds,
            **{name: sum(statistics[name] for statistics, _ in said) / len(said) for name in said[0][0]},
        }

    def _hear(self, report: StepReport) -> None:
        """Act on what all ranks said about a step: stop where the loss is not finite, remember who was asked to stop, log broken images."""
        if report.heard:
            return
        loss, asked, broken = report.read()
        if not math.isfinite(loss):
            raise report.fault(loss, self.loader.store, self.run_folder)
        self._asked = self._asked or asked
        if broken > 0:
            mine = [entry for batch in report.batches for entry in batch.broken]
            for position, where, reason in (entry for entries in self.ranks.objects(mine) for entry in entries):
                self.log.write("broken", report.step, {"position": position, "where": where, "reason": reason})

    def _ask_to_stop(self, number: int) -> None:
        """SIGTERM and the first Ctrl-C ask the loop to save and leave. A second Ctrl-C ends at once. So does any signal where nothing is to be
        saved: before a step is done, and in the last evaluation."""
        nothing_to_save = self.ranks.size == 1 and (self.step == self._first_step or self._all_saved)
        if nothing_to_save or (self._stop and number == signal.SIGINT):
            raise KeyboardInterrupt
        self._stop = True
