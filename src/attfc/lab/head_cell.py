"""One cell of the speed tables: a head at one number of identities, measured in a process of its own under a limit of memory.

`in_child` runs a function of this module in a new process, so that no allocator, cache or peak of one cell reaches the next; a server that
has imported torch and done nothing with it forks them, for an import takes longer than most cells. On the processor the limit is
RLIMIT_DATA, so an allocation beyond it fails at once and nothing is swapped; the peak is that of the resident memory without mapped files (the
libraries), over what the process held before (imports, thread pools). On CUDA the limit is torch's own share of the device and the peak that of its
allocator (never run on one).

A size that cannot fit is tried too, but not run into the ground: `rehearse` takes the tensors that a step holds at its largest moment,
side by side and without writing to them; only where all of them could be had is the head built and trained.

What is timed: forward, backward and optimizer step of the head on given embeddings (and keys); with a network the key encoder's update, the
key passes, the query's forward and backward, clipping and the optimizer too. No loader, no augmentation. Containers are filled
beforehand, and momentum is written once (untouched zeros cost no memory), so the state is that of a long training.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.optim import Optimizer

from attfc.backbones import create_backbone
from attfc.heads import AttFC, CenterTable, FullFC, Head, KeyAttention, PartialFC, RecentCenters
from attfc.heads.banks.row_store import RowPlace
from attfc.losses import CosFace
from attfc.precision import best_autocast_dtype
from attfc.training.momentum import MomentumPair
from attfc.training.optimizers import build_optimizer, parameter_groups
from attfc.training.step import Inputs, TrainStep, head_alone
from attfc.typing import Json

__all__ = [
    "Case",
    "HeadKind",
    "ResidentPeak",
    "Training",
    "build_head",
    "measure",
    "measure_in_turns",
    "rehearse",
    "warm_up",
]

HeadKind = Literal["full_fc", "partial_fc", "attfc", "default", "published"]
SECONDS_A_CELL = 8.0  # of timed steps: as many as fit; where the first of all takes longer, it is the one


@dataclass(frozen=True)
class Case:
    """What is measured: a head at a number of identities, alone or (network) at the end of one.

    `attfc`: with keys and a container of its own policy; `default` and `published`: the two that `AttFC` names.
    `slots` for `attfc` and `published` only, `place` for `default` and `partial_fc`: where their rows are kept. `budget_bytes`: what the training
    may take beside the bare process; None: no limit.
    """

    head: HeadKind
    identities: int
    slots: int | None = None
    sample_rate: float = 0.1
    network: str | None = None
    batch: int = 128
    embedding_size: int = 512
    keys: int = 2
    steps: int = 9
    device: str = "cpu"
    budget_bytes: int | None = None
    place: RowPlace = "device"


def build_head(case: Case) -> Head:
    """Build the head, its bank still empty."""
    margin = CosFace(64.0, 0.4)
    if case.head == "full_fc":
        return FullFC(case.embedding_size, case.identities, margin)
    if case.head == "partial_fc":
        return PartialFC(case.embedding_size, case.identities, margin, case.sample_rate, place=case.place)
    if case.head == "default":
        bank = CenterTable(place=case.place)
        return AttFC.default(case.embedding_size, case.identities, margin=margin, negatives=bank)
    assert case.slots is not None
    if case.head == "published":
        return AttFC.published(case.embedding_size, case.slots)
    rule, container = KeyAttention(keys=case.keys, share=0.8), RecentCenters(count=case.slots, policy="unique")
    return AttFC(case.embedding_size, margin, identities=None, center=rule, negatives=container, in_batch="fixed")


def fill(head: Head, identities: int) -> None:
    """Give the bank of an AttFC head its rows, as after a long training: every slot holds an identity of its own, every identity has a center."""
    bank = head.negatives if isinstance(head, AttFC) else None
    if isinstance(bank, RecentCenters):
        _fill_container(bank, identities)
    elif isinstance(bank, CenterTable):  # the same random rows again and again: to draw millions takes minutes
        some = normalize(torch.randn(min(4096, identities), bank.embedding_size, device=bank.rows.device), dim=1)
        for start in range(0, len(bank.rows), len(some)):
            part = bank.rows[start : start + len(some)]
            part.copy_(some[: len(part)])
        bank.seen.fill_(True)


def _fill_container(container: RecentCenters, identities: int) -> None:
    """In small batches, for little memory."""
    slots, size = container.slots, container.embedding_size
    device = container.labels.device
    spread = max(1, identities // slots)
    chunk = max(1, min(4096, slots // 64))
    for start in range(0, slots, chunk):
        labels = torch.arange(start, min(start + chunk, slots), device=device)
        rows = normalize(torch.randn(len(labels), size, device=device), dim=1)
        container.enqueue(rows, labels * spread % max(identities, slots))


def rehearse(case: Case) -> None:
    """Take what a step of the head holds at its largest moment, side by side, untouched, and give it back.

    The shapes are the head's own (built on the meta device), what lies beside them follows the optimizer: momentum of all rows; for a dense
    gradient the gradient and its sum with the decay; for a sampled one the gradient, and the rows where they are kept elsewhere.

    Raises:
        RuntimeError: of torch, if one of them cannot be had.
    """
    with torch.device("meta"):
        head = build_head(case)
    held = [torch.empty_like(tensor, device=case.device) for tensor in (*head.parameters(), *head.buffers())]
    for weight in head.parameters():
        rows = len(weight)
        beside = (rows, rows, rows)  # momentum, gradient, gradient + decay x rows
        if isinstance(head, PartialFC):
            sampled = head.classes_in_a_step(case.batch)
            beside = (rows, sampled, 0 if head.place == "device" else sampled)
        held += [torch.empty(count, case.embedding_size, device=case.device) for count in beside]


class Step(NamedTuple):
    """Seconds of a step, those of all threads in it, and those until the keys were embedded (0: no network embeds them)."""

    seconds: float
    processor_seconds: float
    key_seconds: float


def _median(steps: list[Step], name: str) -> float:
    return float(statistics.median(getattr(step, name) for step in steps))


class Training:
    """A head, or a network with one, and its optimizer; `step` trains on given random inputs.

    Args:
        case: what is trained, where, on which batch.
        build: makes the head; None: that of the case.
    """

    def __init__(
        self, case: Case, build: Callable[[], Head] | None = None, optimizer: Literal["sgd", "adamw"] = "sgd"
    ) -> None:
        self.case = case
        self.device = torch.device(case.device)
        torch.manual_seed(0)
        with self.device:  # drawn where it is trained: millions of rows take a processor many seconds
            self.head = build() if build is not None else build_head(case)
        fill(self.head, case.identities)
        self.dtype = None if case.network is None else best_autocast_dtype(self.device)
        modules: list[nn.Module] = [self.head]
        self.shape: tuple[int, ...] = (case.embedding_size,)
        if case.network is not None:
            network = create_backbone(case.network, embedding_size=case.embedding_size)
            size = int(getattr(network, "image_size", 112))
            self.shape = (3, size, size)
            network = network.to(self.device).to(memory_format=torch.channels_last)
            pair = MomentumPair(network, keys=self.head.keys_per_query > 0)
            pair.train()
            if pair.key is not None:
                pair.key.register_forward_hook(self._keys_are_embedded)
            modules.insert(0, pair.query)
        self.optimizer: Optimizer | None = None
        if any(parameter.requires_grad for module in modules for parameter in module.parameters()):
            self.optimizer = build_optimizer(optimizer, parameter_groups(modules), learning_rate=0.01)
        if case.network is None:
            self.take_step = head_alone(self.head, self.optimizer, self.device)
        else:
            assert self.optimizer is not None
            self.take_step = TrainStep(pair, self.head, self.optimizer, device=self.device, autocast_dtype=self.dtype)
        self.take_step.prepare = self._with_labels
        self.generator = torch.Generator(self.device).manual_seed(1)
        self._key_seconds = self._start = 0.0

    def settle(self) -> "Training":
        """Give every trained parameter its momentum, written: zeros that nobody has touched are not resident, those of a long training are."""
        if self.optimizer is not None:
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    self.optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter).mul_(1)
        return self

    def step(self) -> Step:
        """One step on a new batch; its seconds are without those of making the batch."""
        batch, keys_per_query = self.case.batch, self.head.keys_per_query
        # As the loader's: known to the host.
        labels = torch.randint(self.case.identities, (batch,), device=self.device, generator=self.generator).cpu()
        queries, keys = self._random(batch), None
        if keys_per_query:
            keys = self._random(batch * keys_per_query).view(batch, keys_per_query, *self.shape)
        if self.case.network is None:
            queries.requires_grad_()
        self._start, processor_start = self._now(), time.process_time()
        loss = self.take_step([Inputs(queries, labels, keys)])
        step = Step(self._now() - self._start, time.process_time() - processor_start, self._key_seconds)
        if not math.isfinite(float(loss)):
            raise ArithmeticError(f"the loss of {self.case} is {float(loss)}")
        return step

    def _with_labels(self, batch: Inputs) -> Inputs:
        return replace(batch, labels=batch.labels.to(self.device, non_blocking=True))

    def _keys_are_embedded(self, *_: Any) -> None:
        self._key_seconds = self._now() - self._start

    def _random(self, count: int) -> Tensor:
        inputs = torch.randn(count, *self.shape, device=self.device, generator=self.generator)
        return inputs.contiguous(memory_format=torch.channels_last) if self.case.network else inputs

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def measure(case: Case, rehearsal: bool = False, build: Callable[[], Head] | None = None) -> Json:
    """Measure one case in this process, which should have done nothing before: the limit stays, and the peak counts from here.

    Args:
        rehearsal: first make sure that the memory can be had; for sizes that hardly can.
        build: makes another head than that of the case.

    Returns:
        `fits`; if so `seconds` (median of a step), `seconds_each`, `warm` (whether a step went before those), `processor_seconds`
        (of all threads: what a busy machine stretches less), `key_seconds`, `samples_per_second`, `peak_bytes` over the bare process,
        `head_bytes` and, of those, `elsewhere_bytes` on another device than the step's; if not `why`.
    """
    meter = _Meter(torch.device(case.device))
    try:
        meter.limit(case.budget_bytes)
        if rehearsal:
            rehearse(case)
        training = Training(case, build).settle()
        meter.reset()
        steps = [training.step()]
        warm = steps[0].seconds < SECONDS_A_CELL
        if warm:  # then the first does not count
            steps = []
        while len(steps) < case.steps and sum(step.seconds for step in steps) < SECONDS_A_CELL:
            steps.append(training.step())
    except RuntimeError as error:
        # CUDA's own words are those for page-locked memory of the host.
        if not any(words in str(error) for words in ("can't allocate memory", "out of memory")):
            raise
        return {"fits": False, "why": str(error).splitlines()[0]}
    seconds = _median(steps, "seconds")
    held = [*training.head.parameters(), *training.head.buffers()]
    return {
        "fits": True,
        "seconds": seconds,
        "seconds_each": [step.seconds for step in steps],
        "warm": warm,
        "processor_seconds": _median(steps, "processor_seconds"),
        "key_seconds": _median(steps, "key_seconds"),
        "samples_per_second": case.batch / seconds,
        "peak_bytes": meter.peak(),
        "head_bytes": sum(tensor.nbytes for tensor in held),
        "elsewhere_bytes": sum(tensor.nbytes for tensor in held if tensor.device.type != training.device.type),
        "autocast": None if training.dtype is None else str(training.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


def measure_in_turns(cases: dict[str, Case], rounds: int) -> Json:
    """Time several cases in this process in turns, so that a busy moment meets all alike.

    Returns:
        `seconds` of each (median), `processor_seconds` (median) and `seconds_each`.
    """
    trainings = {name: Training(case).settle() for name, case in cases.items()}
    steps: dict[str, list[Step]] = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name in list(trainings)[:: -1 if turn % 2 else 1]:
            steps[name].append(trainings[name].step())
    counted = {name: taken[1:] for name, taken in steps.items()}
    medians = ("seconds", "processor_seconds")
    return {key: {name: _median(each, key) for name, each in counted.items()} for key in medians} | {
        "seconds_each": {name: [step.seconds for step in each] for name, each in counted.items()}
    }


def warm_up(device: torch.device) -> None:
    """Train a moment: thread pools and libraries load with their first use, and their memory is the process's, not the training's."""
    images = torch.zeros(2, 3, 8, 8, device=device, requires_grad=True)
    torch.nn.functional.conv2d(images, torch.zeros(4, 3, 3, 3, device=device)).sum().backward()  # type: ignore[no-untyped-call]
    torch.zeros(256, 256, device=device) @ torch.zeros(256, 256, device=device)
    Training(Case("full_fc", 8, batch=2, embedding_size=4, device=str(device))).step()


class _Meter:
    """Peak memory since `reset` over what was held at the start, and a limit above that."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        warm_up(device)
        self.resident = None if device.type == "cuda" else ResidentPeak()

    def limit(self, budget: int | None) -> None:
        if budget is None:
            return
        if self.resident is None:
            whole = torch.cuda.get_device_properties(self.device).total_memory
            # Its index, not the device: torch refuses a `cuda` without one here, and takes None for the current.
            torch.cuda.set_per_process_memory_fraction(min(1.0, budget / whole), self.device.index)
            return
        # Should the machine itself run out of memory, then this process goes and not a neighbour.
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
        limit = int(_process_bytes("VmData")) + budget
        import resource  # not on Windows

        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    def reset(self) -> None:
        if self.resident is None:
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self.resident.reset()

    def peak(self) -> float:
        return float(torch.cuda.max_memory_allocated(self.device)) if self.resident is None else self.resident.peak()


class ResidentPeak:
    """Peak of this process's resident memory over what it holds now, bytes, without the pages of mapped files.

    Files are the libraries, whose code comes in as it is first used. Linux only (/proc).
    """

    def __init__(self) -> None:
        self.base = _process_bytes("RssAnon")
        self.reset()

    def reset(self) -> None:
        """Count from now on; the base stays."""
        Path("/proc/self/clear_refs").write_text(
            "5", encoding="ascii"
        )  # proc(5): the peak becomes what is resident now

    def peak(self) -> float:
        """Return the peak since `reset`."""
        return _process_bytes("VmHWM") - _process_bytes("RssFile") - _process_bytes("RssShmem") - self.base


def _process_bytes(name: str) -> float:
    """Return a line of /proc/self/status in bytes, such as VmHWM (peak of what is resident)."""
    with open("/proc/self/status", encoding="utf-8") as lines:
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
