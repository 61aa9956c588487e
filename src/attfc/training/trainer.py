"""The training loop: one process or several, any head, any device; stops and resumes at any step.

One step: (1) the key encoder follows the query encoder, (2) the keys of the batch are embedded without gradient in one pass, (3) the queries
are embedded, (4) the head turns both into a loss, (5) backward, clip, optimizer, schedule. With gradient accumulation a step takes several
batches. The trainer knows no head by name: a head with ``keys_per_query == 0`` simply gets no keys (and costs no key passes).

A loss that is not finite ends the run before it can reach a checkpoint. The loss of a step is looked at when the next one has been
launched, so an accelerator never waits for the host. Everything that shapes later losses is in the checkpoint: resume gives the same
losses, bit for bit on the CPU.

Several ranks: each trains on its share of the batch, DistributedDataParallel averages the gradients of the query encoder (once per step, also under
accumulation). After a step all ranks are equal: the running statistics of BatchNorm are averaged over them, and one small reduction a step
tells everybody the loss, whether somebody was asked to stop, and whether a broken image was met; so all stop at the same step, on
accelerators one step after the signal. Rank 0 logs and writes models; a checkpoint is written by all, each its shard, and all evaluate.
"""

import contextlib
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from attfc.data.loader import AttentionLoader, Batch
from attfc.data.transforms import Augment
from attfc.distributed import ALONE, AgreedError, Ranks, data_parallel, grad_scaler, lost_rank
from attfc.errors import UserError
from attfc.heads.head import Head
from attfc.precision import autocast
from attfc.training.batch_norm import average_running_statistics
from attfc.training.checkpoints.checkpoint import latest_checkpoint, load_checkpoint, prune_checkpoints, save_checkpoint
from attfc.training.checkpoints.random_state import rng_state, set_rng_state
from attfc.training.checkpoints.sharded_state import ShardedState
from attfc.training.interruption import Interrupted, resume_command, signals_call, stopped_unsaved
from attfc.training.model_files import save_model
from attfc.training.momentum import MomentumPair
from attfc.training.progress import Line, Log, MetricsLog, ProgressLine, Silent, figure_of, flat_figures, memory_mib
from attfc.training.run_folder import locked
from attfc.training.trackers import Tracker

__all__ = ["Interrupted", "Trainer"]

LOSS_SMOOTHING = 0.9  # of the loss as logged


@dataclass
class _Word:
    """What all ranks say about a step; read on the host when the copy has arrived."""

    step: int
    batches: list[Batch]
    own: Tensor  # loss of this rank
    figures: Tensor  # on the host: mean loss, ranks asked to stop, broken images
    arrived: Any  # an event of the accelerator, or None
    heard: bool = False


@dataclass
class Trainer:
    """Trains a query encoder under a head.

    Args:
        pair: query encoder and key encoder, on `device`.
        head: any head of attfc.heads, on `device`.
        loader: yields uint8 batches, this rank's share; its batch size is the size of one pass.
        augment: uint8 images + seeds -> float images in [-1, 1], on the device.
        optimizer, schedule: over the parameters of the query encoder and the head.
        total_steps: optimizer steps of the whole run.
        run_folder: where metrics, checkpoints and models go.
        model_config: what `config.json` of the exported backbone says.
        autocast_dtype: bfloat16 or float16 for mixed precision (float16 brings a gradient scaler), None for float32.
        accumulation: batches an optimizer step; their mean loss is descended.
        clip: largest gradient norm of the query encoder; 0 is off.
        evaluate: called as evaluate(query_encoder, step) every `evaluate_every` steps, on all ranks; returns figures for the log, of which
            rank 0's count.
        open_trackers: called with the run's folder when training begins; gives those that get the numbers too.
        best_by: the figure of `evaluate` by which `best/` is chosen (larger is better).
        ranks: the processes that train together; built with the same arguments on each, but for the loader's rank.
        people: `people_of` the training set, for its checkpoints.
    """

    pair: MomentumPair
    head: Head
    loader: AttentionLoader
    augment: Augment
    optimizer: Optimizer
    schedule: LambdaLR
    device: torch.device
    total_steps: int
    run_folder: Path
    model_config: dict[str, Any]
    autocast_dtype: torch.dtype | None = None
    channels_last: bool = False
    accumulation: int = 1
    clip: float = 5.0
    evaluate: Callable[[nn.Module, int], dict[str, Any]] | None = None
    evaluate_every: int = 0
    evaluated_on: str = "on unseen identities"  # whom `evaluate` evaluates on, for the progress line
    best_by: str = "accuracy"
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    log_every: int = 10
    tensorboard: bool = True
    open_trackers: Callable[[Path], Sequence[Tracker]] = lambda _: ()
    ranks: Ranks = ALONE
    people: dict[str, Any] = field(default_factory=dict)
    step: int = field(default=0, init=False)
    best: float = field(default=-math.inf, init=False)
    last_evaluation: dict[str, Any] | None = field(default=None, init=False)
    _average: float | None = field(default=None, init=False)
    _seconds: float = field(default=0.0, init=False)
    _first_step: int = field(default=0, init=False)  # of this process
    _rate: float = field(default=0.0, init=False)  # that the last step used
    _stop: bool = field(default=False, init=False)
    _asked: bool = field(default=False, init=False)  # somebody's _stop, as all ranks know it

    def __post_init__(self) -> None:
        self.scaler = grad_scaler(self.device, self.autocast_dtype is torch.float16, self.ranks)
        self._sharded = ShardedState(self.head.row_shards(), self.head, self.optimizer, self.ranks)
        self._encoder = data_parallel(self.pair.query, self.ranks, self.device)
        self._scoring = data_parallel(self.head, self.ranks, self.device, apart=self.head.row_shards())

    def train(self) -> None:
        """Run to `total_steps` from wherever the state stands; saves on the way, at the end, and when told to stop.

        Raises:
            Interrupted: SIGTERM or Ctrl-C; the state is saved, unless it came before the first step was done, or twice. A run folder in
                which nothing was saved is removed.
            UserError: another process trains in the run folder; a loss that is not finite, or too many broken images: the last
                checkpoint stands.
        """
        self._first_step = self.step
        try:
            with (
                locked(self.run_folder) if self.ranks.rank == 0 else contextlib.nullcontext(),
                signals_call(self._ask_to_stop),
            ):
                self._train()
        except KeyboardInterrupt:
            raise stopped_unsaved(self.run_folder, self.step, self.ranks.rank) from None

    def _train(self) -> None:
        log: Log = Silent()
        if self.ranks.rank == 0:
            log = MetricsLog(
                self.run_folder,
                first_step=self.step + 1,
                tensorboard=self.tensorboard,
                trackers=self.open_trackers(self.run_folder),
                evaluates_again=self.step >= self.total_steps,
            )
        with (
            contextlib.closing(log),
            contextlib.closing(self.loader),
            ProgressLine(self.total_steps, self.step) if self.ranks.rank == 0 else Silent() as line,
        ):
            try:
                self._run(log, line)
            except OSError as error:
                raise UserError(
                    f"cannot write into {self.run_folder}: {error.strerror or error}; the checkpoints saved so far stand: "
                    f"make room or permission there, then {resume_command(self.run_folder)}"
                ) from error
            except RuntimeError as error:
                if self.ranks.size == 1 or not lost_rank(error):
                    raise
                raise UserError(
                    f"rank {self.ranks.rank} lost another rank at step {self.step + 1} ({' '.join(str(error).split())[:200]}): that one's own "
                    f"message says why; the checkpoints saved so far stand: {resume_command(self.run_folder)}"
                ) from error

    def _run(self, log: Log, line: Line) -> None:
        batches = self.loader.batches(self.loader.step + (self.total_steps - self.step) * self.accumulation)
        window_start, window_steps = time.perf_counter(), 0
        counted = window_start  # until when `seconds` has been counted
        pending: _Word | None = None
        self.pair.query.train()
        self.head.train()
        first = self.step + 1
        while self.step < self.total_steps:
            group = [next(batches) for _ in range(self.accumulation)]
            loss = self.train_step(group)
            self.step += 1
            window_steps += 1
            word = self._tell(loss, group)
            if pending is not None:  # heard now, when the next step has been launched
                self._hear(pending, log)
            pending = word
            last = self.step == self.total_steps
            logs = self.step % self.log_every == 0 or last
            saves = self._due(self.checkpoint_every) or last
            evaluates = self._due(self.evaluate_every) and not last
            shows = self.step == first  # the bar has a loss from the first step on
            if self.device.type == "cpu" or logs or saves or evaluates or shows:
                self._hear(pending, log)
            evaluates = evaluates and not self._asked
            if logs:
                now = time.perf_counter()
                elapsed, self._seconds, counted = now - window_start, self._seconds + now - counted, now
                images = window_steps * self.accumulation * self.loader.batch_size * self.ranks.size
                self._log_step(float(pending.figures[0]), images / elapsed, log, line)
                window_start, window_steps = now, 0
            elif shows:
                line.update(self.step, self._figures(float(pending.figures[0]), None))
            else:
                line.advance(self.step)
            if evaluates:
                paused = time.perf_counter()
                self.run_evaluation(log, line)
                pause = time.perf_counter() - paused
                window_start, counted = window_start + pause, counted + pause
            # Read once: a signal after this line is for the next step. Several ranks know only of what was told.
            stop = self._asked or (self.ranks.size == 1 and self._stop)
            if stop or saves:
                paused = time.perf_counter()
                self._seconds, counted = self._seconds + paused - counted, paused
                self._hear(pending, log)
                self.save()
                pause = time.perf_counter() - paused
                window_start, counted = window_start + pause, counted + pause
            if stop and not last:
                text = f"saved at step {self.step:,}; go on with: {resume_command(self.run_folder)}"
                raise Interrupted(text, self.step, saved=True)
        self.ranks.once(lambda: str(save_model(self.run_folder / "model", self.pair.query, self.model_config)))
        if self.evaluate is not None:
            self.run_evaluation(log)

    def train_step(self, batches: list[Batch]) -> Tensor:
        """One optimizer step over the mean loss of `batches`; returns that loss, detached, without waiting for the device.

        It is NaN if the gradient was not finite. Several ranks: the loss of this rank's batches; the step is that of all ranks' mean.
        """
        if self.head.keys_per_query:
            self.pair.update(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for number, batch in enumerate(batches):
            with self._without_reduction() if number < len(batches) - 1 else contextlib.nullcontext():
                loss = self.forward(batch) / len(batches)
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.pair.query.parameters(), self.clip or math.inf)
        self._rate = float(self.optimizer.param_groups[0]["lr"])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        # A replicated head has figures of its rank's share too (AdaFace's norms); one in shards saw the whole batch.
        average_running_statistics([self.pair] if self._scoring is self.head else [self.pair, self.head], self.ranks)
        with warnings.catch_warnings() if self.scaler.is_enabled() and self.step == 0 else contextlib.nullcontext():
            if self.scaler.is_enabled() and self.step == 0:
                # The scaler begins too high and skips the first steps; the schedule takes that for a wrong order of calls.
                warnings.simplefilter("ignore", UserWarning)
            self.schedule.step()
        # A gradient that is not finite makes the loss so too, and the run stops before the weights are saved. With a scaler
        # it is no fault: that step was skipped and the next is scaled down.
        return total if self.scaler.is_enabled() else total + 0.0 * norm

    def forward(self, batch: Batch) -> Tensor:
        """Loss of one batch, with gradient: keys embedded in one no-gradient pass, then the queries, then the head."""
        seeds = batch.seeds.to(self.device, non_blocking=True)
        labels = batch.labels.to(self.device, non_blocking=True)
        keys = None
        with autocast(self.device, self.autocast_dtype):
            if self.head.keys_per_query:
                images = self._images(batch.keys.flatten(0, 1), seeds[:, 1:].reshape(-1))
                keys = self.pair.embed_keys(images.view(*batch.keys.shape[:2], *images.shape[1:]))
            queries = self._images(batch.queries, seeds[:, 0])
            embeddings = self._encoder(queries)
        at = {"positions_B": batch.positions.to(self.device, non_blocking=True)} if self.head.takes_positions else {}
        loss: Tensor = self._scoring(embeddings, labels, keys, **at)
        return loss

    @contextlib.contextmanager
    def _without_reduction(self) -> Iterator[None]:
        """Gradients add up on this rank; the last batch of a step reduces them all."""
        with contextlib.ExitStack() as stack:
            for module in (self._encoder, self._scoring):
                if isinstance(module, nn.parallel.DistributedDataParallel):
                    stack.enter_context(module.no_sync())
            yield

    def run_evaluation(self, log: Log, line: Line | None = None) -> None:
        """Evaluate the query encoder, record the figures, and keep it in ``best/`` if it is the best so far."""
        evaluate = self.evaluate
        assert evaluate is not None
        own = self.ranks.together(lambda: evaluate(self.pair.query, self.step))
        # Another host may differ in the last digit, and all must agree on the best.
        figures = self.ranks.once(lambda: own)
        self.pair.query.train()
        self.last_evaluation = figures
        log.write("evaluation", self.step, figures)
        score = figure_of(figures, self.best_by)
        if score is not None and score > self.best:
            self.best = score
            self.ranks.once(lambda: str(save_model(self.run_folder / "best", self.pair.query, self.model_config)))
        if line is not None:
            shown = "  ".join(
                f"{name} {value:.4f}"
                for name, value in flat_figures(figures)
                if name in ("accuracy", "auc", "eer", "rank_one")
            )
            line.say(f"step {self.step}: {self.evaluated_on}  {shown}")

    def save(self) -> Path:
        """Write a checkpoint of everything and prune old ones."""
        folder = self.run_folder / "checkpoints"
        path = save_checkpoint(folder, self.step, self._sharded.spread(self.state_dict()))
        prune_checkpoints(folder, self.keep_checkpoints)
        return path

    def load(self, checkpoint: Path) -> float:
        """Take up a checkpoint, written by any number of ranks; of what is in shards, read this rank's own.

        Returns:
            The learning rate that the saved run would have gone on with; where the configuration was changed, this one has its own.

        Raises:
            UserError: it is damaged, or of another network, head or optimizer.
        """
        state = load_checkpoint(checkpoint, place=self._sharded.place)
        return self.load_state_dict(self._sharded.collect(state))

    def state_dict(self) -> dict[str, Any]:
        """Everything that shapes later steps. Several ranks: of sharded rows, this rank's own."""
        return {
            "pair": self.pair.state_dict(),
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": rng_state(),
            "loader": self.loader.state_dict(),
            "people": self.people,
            "trainer": {
                "step": self.step,
                "best": None if math.isinf(self.best) else self.best,
                "average": self._average,
                "seconds": self._seconds,
            },
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
            self.pair.load_state_dict(state["pair"])
            self.head.load_state_dict(state["head"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            if self.scaler.is_enabled() and state["scaler"]:
                self.scaler.load_state_dict(state["scaler"])
            self.loader.load_state_dict(state["loader"])
            rate = float(state["optimizer"]["param_groups"][0]["lr"])
            self._apply(configured)
            own = state["trainer"]
            self.step, self._average, self._seconds = int(own["step"]), own["average"], float(own["seconds"])
            self.best = -math.inf if own["best"] is None else float(own["best"])
            set_rng_state(state["rng"])
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"the checkpoint does not fit this network, head or optimizer: {reason}; resume with the run's own configuration"
            ) from None
        self.ranks.draw_apart(self.step)
        return rate

    def _apply(self, configured: list[dict[str, Any]]) -> None:
        """Give optimizer and schedule the rates of this run's configuration: on resume they may have been changed on purpose."""
        self.schedule.base_lrs = [values["initial_lr"] for values in configured]
        for group, values, factor in zip(
            self.optimizer.param_groups, configured, self.schedule.lr_lambdas, strict=True
        ):
            # Unchanged, this is the saved rate, bit for bit.
            group.update(values | {"lr": values["initial_lr"] * factor(self.schedule.last_epoch)})

    def _images(self, images: Tensor, seeds: Tensor) -> Tensor:
        images = self.augment(images.to(self.device, non_blocking=True), seeds)
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _log_step(self, loss: float, images_per_second: float, log: Log, line: Line) -> None:
        self._average = loss if self._average is None else LOSS_SMOOTHING * self._average + (1 - LOSS_SMOOTHING) * loss
        figures = self._figures(loss, images_per_second)
        log.write("train", self.step, figures)
        line.update(self.step, figures)

    def _figures(self, loss: float, images_per_second: float | None) -> dict[str, Any]:
        """Return what is logged of the step that was taken last; the rate is the one that it used."""
        said = self.ranks.objects((self.head.statistics(), memory_mib(self.device)))
        return {
            "epoch": self.loader.state_dict()["samples_seen"] / self.loader.epoch_length,
            "loss": loss,
            "loss_average": self._average,
            "learning_rate": self._rate,
            "images_per_second": images_per_second,
            "memory_mib": max(memory for _, memory in said),
            "seconds": self._seconds,
            **{name: sum(statistics[name] for statistics, _ in said) / len(said) for name in said[0][0]},
        }

    def _tell(self, loss: Tensor, batches: list[Batch]) -> _Word:
        """Reduce what every rank must know of this step, and send it to the host without waiting for it."""
        facts = [float(self._stop), float(sum(len(batch.broken) for batch in batches))]
        # Filled on the device: a copy from ordinary memory might wait.
        figures = self.ranks.sum(torch.stack([loss / self.ranks.size, *(loss.new_full((), fact) for fact in facts)]))
        if figures.device.type != "cuda":
            return _Word(self.step, batches, loss, figures.to("cpu"), None)
        host = torch.empty(len(figures), pin_memory=True).copy_(figures, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
        return _Word(self.step, batches, loss, host, arrived)

    def _hear(self, word: _Word, log: Log) -> None:
        """Act on what all ranks said about a step: stop where the loss is not finite, remember who was asked to stop, log broken images."""
        if word.heard:
            return
        word.heard = True
        if word.arrived is not None:
            word.arrived.synchronize()
        loss, asked, broken = word.figures.tolist()
        if not math.isfinite(loss):
            self._stop_for(loss, word)
        self._asked = self._asked or asked > 0
        if broken > 0:
            mine = [entry for batch in word.batches for entry in batch.broken]
            for position, where, reason in (entry for entries in self.ranks.objects(mine) for entry in entries):
                log.write("broken", word.step, {"position": position, "where": where, "reason": reason})

    def _stop_for(self, loss: float, word: _Word) -> None:
        positions = [int(position) for batch in word.batches for position in batch.positions]
        shown = ", ".join(map(str, positions[:16])) + (
            f", ... ({len(positions)} in all)" if len(positions) > 16 else ""
        )
        where = self.loader.store.where(positions[0])
        saved = (
            "the last checkpoint stands"
            if latest_checkpoint(self.run_folder / "checkpoints")
            else "nothing was saved so far"
        )
        fault = (
            f"the loss or its gradient is {loss} at step {word.step}, in the batch of sample positions {shown} (the first is {where}); "
            f"{saved}. "
            "Try a smaller optimizer.learning_rate, a longer schedule.warmup_epochs, optimizer.clip=1, or precision.amp=none"
        )
        if self.ranks.size == 1:
            raise UserError(fault)
        said = self.ranks.objects((math.isfinite(float(word.own)), fault))
        raise AgreedError(next((text for finite, text in said if not finite), fault))

    def _ask_to_stop(self, number: int) -> None:
        """SIGTERM and the first Ctrl-C ask the loop to save and leave. A second Ctrl-C ends at once, and so does any signal before a step is done."""
        nothing_done = self.ranks.size == 1 and self.step == self._first_step
        if nothing_done or (self._stop and number == signal.SIGINT):
            raise KeyboardInterrupt
        self._stop = True
