"""Will it fit, how long, which head: memory and time of a training step, predicted from sizes and one short run of the network, and advice.

Memory is the largest of five moments of a step: the key pass, the end of the query's forward, the backward (with the head's gradient beside
the activations), the optimizer with its temporaries, and what lies there all the time. The head's part is its own `footprint`. The
network's part is counted, not guessed: every storage that comes and goes is watched while two small batches really run
(`measure_encoder`; under autocast where the training is), and memory is a line in the batch size. Cost: a few seconds.
Not seen: workspace inside a kernel, fragmentation, the interpreter and torch themselves (250 to 400 MiB on a processor).
Time is the network's, measured at the larger of the two batches (or four times that, where it is quick), and the head's, measured on
some thousand rows with its optimizer (`attfc.lab.calibration`): a plan made on one device says nothing of the time on another. Not
taken: counting on the meta device (no autocast there), and torch's fake tensors (ten times the start-up for the same figures).
"""

import math
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attfc.heads.memory import HeadMemory
from attfc.precision import autocast

__all__ = [
    "NOTHING",
    "Encoder",
    "HeadRates",
    "Line",
    "Plan",
    "Ways",
    "advice",
    "answer",
    "measure_encoder",
    "plan_step",
    "way_to_save",
]

BATCHES = (2, 6)  # images: 2 or more for BatchNorm; lines through both are extended to other batches
QUICK_SECONDS = 0.5  # of a timed pass: a longer one is timed well enough
_ALWAYS_MIB = 8  # row optimizer's blocks and other small change


@dataclass(frozen=True)
class Line:
    """Bytes at a batch of B images: fixed + B x per_image."""

    fixed: float
    per_image: float

    def at(self, batch: int) -> float:
        """Return the bytes at that batch.

        >>> Line(10.0, 2.0).at(5)
        20.0
        """
        return self.fixed + batch * self.per_image


@dataclass(frozen=True)
class Encoder:
    """What a network needs, in bytes and seconds per image; see `measure_encoder`."""

    parameters: int
    trained: int
    buffers: int
    largest: int
    image_bytes: int
    saved: Line
    forward: Line
    backward: Line
    keys: Line
    train_seconds: float
    key_seconds: float


NOTHING = Encoder(0, 0, 0, 0, 0, Line(0, 0), Line(0, 0), Line(0, 0), Line(0, 0), 0.0, 0.0)
"""No network: what `plan_step` takes for a head alone."""


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the bytes of all storages that operations make, and their peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: dict[int, int] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: torch then does not import its compiler, 4 s, to leave this class out of what it compiles."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        inputs = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key in self._known or key in inputs:  # known, or older than we are: a view, an operation in place
                    continue
                self._known[key] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._drop, key)
        return output

    def _drop(self, key: int) -> None:
        self.now -= self._known.pop(key, 0)


def measure_encoder(
    network: nn.Module,
    image_size: int,
    *,
    device: torch.device,
    autocast_dtype: torch.dtype | None = None,
    channels_last: bool = True,
) -> Encoder:
    """Run two small batches through `network` (forward, backward; forward without gradient) and watch memory and time.

    Args:
        network: on `device`; its gradients are set to None, its running statistics move.
        image_size: S, pixels.
        device: where it is and where the figures are to hold.
        autocast_dtype: as in training.
        channels_last: as in training.

    Returns:
        Bytes and seconds. `saved`: alive when the forward has ended; `forward`, `backward`, `keys`: the peaks, without parameters, backward
        with the parameters' gradients.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = network.to(memory_format=layout)
    training = network.training
    network.train()

    def images(batch: int) -> Tensor:
        return torch.zeros(batch, 3, image_size, image_size, device=device).contiguous(memory_format=layout)

    def embed(batch_B: Tensor) -> Any:
        with autocast(device, autocast_dtype):
            return network(batch_B)

    def backward(embeddings_BD: Any) -> None:
        embeddings_BD.float().sum().backward()  # a gradient that is given makes torch import sympy

    embed_keys = torch.no_grad()(embed)
    points = []
    low, high = BATCHES
    for batch in (low, low, high):  # the first: libraries load and tune
        given = images(batch)
        with _Live() as live:
            live.peak = start = live.now
            embeddings = embed(given)
            saved, forward = live.now - start, live.peak - start
            live.peak = live.now
            backward(embeddings)
            passed = (saved, forward, live.peak - start)
            del embeddings
            network.zero_grad(set_to_none=True)
            live.peak = start = live.now
            embed_keys(given)
            points.append((*passed, live.peak - start))
    slopes = [(large - small) / (high - low) for small, large in zip(*points[1:], strict=True)]
    lines = [Line(small - slope * low, slope) for small, slope in zip(points[1], slopes, strict=True)]
    # Watching costs a little of every operation: the time is taken without it, of a larger batch where that is quick.
    for timed in (high, 4 * high):
        given = images(timed)
        seconds = _seconds(device, lambda: backward(embed(given)))  # noqa: B023
        key_seconds = _seconds(device, lambda: embed_keys(given))  # noqa: B023
        if seconds > QUICK_SECONDS:
            break
    network.zero_grad(set_to_none=True)
    network.train(training)
    parameters = list(network.parameters())
    return Encoder(
        parameters=sum(p.nbytes for p in parameters),
        trained=sum(p.nbytes for p in parameters if p.requires_grad),
        buffers=sum(b.nbytes for b in network.buffers()),
        largest=max(p.nbytes for p in parameters),
        image_bytes=3 * image_size**2,
        **dict(zip(("saved", "forward", "backward", "keys"), lines, strict=True)),
        train_seconds=seconds / timed,
        key_seconds=key_seconds / timed,
    )


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - start


@dataclass(frozen=True)
class HeadRates:
    """Seconds a row of the heads' parts of a step, on some device at some batch; `attfc.lab.calibration` measures them.

    Attributes:
        container: forward and backward of AttFC, for each slot.
        pool: of DCP.
        dense: forward, backward and optimizer of the full FC, for each identity.
        sampled: of Partial FC, for each sampled identity.
    """

    container: float
    pool: float
    dense: float
    sampled: float


@dataclass(frozen=True)
class Ways:
    """What to type for less memory, as the end of a sentence about it.

    Attributes:
        rows: for fewer bytes of the rows that a head holds, with gradients and optimizer state where they are trained.
        work: for fewer bytes of a step's work on rows.
        outside: the options alone that keep the rows outside of the memory that is planned; "": they are outside, or cannot be.
    """

    rows: str = ""
    work: str = ""
    outside: str = ""


@dataclass(frozen=True)
class Plan:
    """A head's step: bytes by what they are for, the peak, and seconds (None: not calibrated on the device).

    The parts are there at different moments: the peak is less than their sum. `network` is the network's share of parameters (its key encoder
    too), gradients and optimizer.
    """

    head: str
    parameters: float
    gradients: float
    optimizer: float
    activations: float
    rows: float
    peak: float
    fits: bool | None
    step_seconds: float | None
    epoch_hours: float | None
    working: float = 0.0
    network: float = 0.0
    ways: Ways = Ways()

    @property
    def head_rows(self) -> float:
        """Bytes of the head's rows, with their gradients and optimizer state."""
        return self.parameters + self.gradients + self.optimizer + self.rows - self.network


def plan_step(
    title: str,
    encoder: Encoder,
    head: HeadMemory,
    batch: int,
    *,
    images: int | None = None,
    ranks: int = 1,
    memory_bytes: float | None = None,
    optimizer: Literal["sgd", "adamw"] = "sgd",
    weight_decay: bool = True,
    accumulation: int = 1,
    fused: bool = True,
    rates: HeadRates | None = None,
    ways: Ways = Ways(),
) -> Plan:
    """Put a network and a head together: the moments of a step, the largest of them, and the time.

    Args:
        batch: images one process takes in one pass.
        images: of the data set, for the time of an epoch.
        memory_bytes: the budget; None: `fits` is None.
        fused: the optimizer makes no temporaries (`attfc.training.optimizers.steps_in_place`); else those of one parameter at a time.
        rates: of the heads on the device, at the batch of all ranks; None: no times.
        ways: to a smaller head.
    """
    keys = head.keys_per_query
    states = 1 if optimizer == "sgd" else 2
    of_rows = states * (head.rows if head.kind == "sampled" else head.gradient)
    networks = (1 + (keys > 0)) * (encoder.parameters + encoder.buffers)  # and its key encoder
    always = networks + states * encoder.trained + head.rows + of_rows
    always += _ALWAYS_MIB * 2**20 + batch * (1 + keys) * encoder.image_bytes
    # float32 images twice: as augmented, and laid out channels last.
    key_images, query_images = batch * keys * encoder.image_bytes * 4, batch * encoder.image_bytes * 4
    gradients = encoder.trained + head.gradient
    left_over = gradients if accumulation > 1 else 0
    # The optimizer's temporaries; those of sampled rows come in blocks.
    times = 0.0 if fused else float(weight_decay) if optimizer == "sgd" else 2.0
    together = times * max(encoder.largest, 0.0 if head.kind == "sampled" else head.gradient)
    peak = always + max(
        left_over + 2 * key_images + (encoder.keys.at(batch * keys) if keys else 0.0),  # the key pass
        left_over + key_images + query_images + encoder.forward.at(batch),  # the query's forward
        left_over + query_images + encoder.saved.at(batch) + head.working + head.gradient,  # the head
        (left_over - encoder.trained if left_over else head.gradient) + query_images + encoder.backward.at(batch),
        gradients + together,  # the optimizer
    )
    seconds = hours = None
    if rates is not None:
        # The optimizer's part of the head comes with each batch here, though accumulation has it once per step.
        passes = batch * (encoder.train_seconds + keys * encoder.key_seconds)
        seconds = accumulation * (passes + head.streamed * getattr(rates, head.kind) + head.dense * rates.dense)
        hours = None if images is None else images / (batch * ranks * accumulation) * seconds / 3600
    return Plan(
        head=title,
        parameters=float(networks),
        gradients=gradients,
        optimizer=states * encoder.trained + of_rows,
        activations=encoder.saved.at(batch),
        rows=head.rows,
        peak=peak,
        fits=None if memory_bytes is None else peak <= memory_bytes,
        step_seconds=seconds,
        epoch_hours=hours,
        working=head.working,
        network=networks + (1.0 + states) * encoder.trained,
        ways=ways,
    )


SPARE = 0.1  # of the memory: what kernels' workspace and fragmentation, which no plan sees, may well take
QUICKER = 0.95  # of a step's seconds: two measured times closer than this are alike


def answer(plans: Sequence[Plan], asked: str, memory_bytes: float) -> list[str]:
    """Say whether the head asked about fits in the memory, which head takes less time, and what to change where it is tight.

    Args:
        plans: of all heads.
        asked: `head` of the one that the configuration has.
        memory_bytes: the budget.
    """

    def taken(plan: Plan) -> str:
        seconds = "" if plan.step_seconds is None else f", {plan.step_seconds:.3g} s per step"
        return f"{100 * plan.peak / memory_bytes:.0f} % of the memory{seconds}"

    mine = next(plan for plan in plans if plan.head == asked)
    if mine.peak > memory_bytes:
        return [f"yours ({asked}): does not fit, {taken(mine)}. {way_to_save(mine)}."]
    lines = [f"yours ({asked}): fits, {taken(mine)}"]
    if mine.step_seconds is not None:
        best = min(
            (plan for plan in plans if plan.peak <= memory_bytes), key=lambda plan: plan.step_seconds or math.inf
        )
        if (best.step_seconds or math.inf) < QUICKER * mine.step_seconds:
            lines.append(f"faster: {best.head}, {taken(best)}")
    spare = 1 - mine.peak / memory_bytes
    if spare < SPARE:
        lines.append(
            f"warning: {100 * spare:.0f} % of the memory is spare, and workspace inside kernels and fragmentation are not counted: it may "
            f"not fit. {way_to_save(mine)}."
        )
    return lines


def way_to_save(plan: Plan) -> str:
    """Say what takes most of a plan's memory, and what makes that smaller."""
    part, bytes_, way = max(
        (
            (
                "activations",
                plan.activations,
                ": halve batch_size and double optimizer.accumulation, or set backbone.options={checkpointing: true}",
            ),
            ("the network's parameters", plan.network, ": take a smaller one (attfc backbones)"),
            ("the head's rows", plan.head_rows, plan.ways.rows),
            ("the head's work on the rows of a step", plan.working, plan.ways.work),
        ),
        key=lambda term: term[1],
    )
    return f"Its largest part is {part}, {bytes_ / 2**20:,.0f} MiB{way}"


FEW_IMAGES = 6  # per person, on average: docs/study.md has a world of few samples (1 to 6, 2.6 on average)


def advice(plans: Sequence[Plan], identities: int, images: int | None = None, memory_bytes: float = math.inf) -> str:
    """Say in a sentence or two which of the heads is the better choice, and why; of what does not fit, whether it would with its rows elsewhere.

    Measured: docs/study.md, thousands of identities. Beyond that size it rests on memory and time alone, and says so.
    """
    fitting = {plan.head.split(",")[0].split(" ")[0]: plan for plan in reversed(plans) if plan.fits is not False}
    elsewhere = "" if "attfc" in fitting else _fits_with_rows_elsewhere(plans, memory_bytes)
    as_it_is = " as it is" if elsewhere else ""
    if not fitting:
        least = min(plans, key=lambda plan: plan.peak)
        return (
            f"None fits{as_it_is}.{elsewhere}"
            if elsewhere
            else f"None fits; {least.head} needs the least. {way_to_save(least)}."
        )
    if images is not None and images < FEW_IMAGES * identities and "attfc" in fitting:
        return (
            f"attfc: people have {images / identities:.1f} images each, too few to train a center for each of them "
            "(docs/study.md, where people have few samples). center=key_attention embeds more images per step and gains a little accuracy."
        )
    level = "docs/study.md, 2,360 identities of real faces: attfc with a tenth of the rows is not shown to differ from full_fc over all pairs"
    if "full_fc" in fitting and identities < 200_000:
        return f"full_fc: it fits, it is the reference, and below some hundred thousand identities its rows cost little ({level})."
    if "partial_fc" in fitting and "attfc" in fitting:
        saved = (fitting["partial_fc"].peak - fitting["attfc"].peak) / 2**30
        return (
            f"both partial_fc and attfc fit: attfc takes {saved:.1f} GiB less, trains no rows, and with center=own_embedding needs no keys. "
            f"Accuracy at this size is not measured by us ({level})."
        )
    if "attfc" in fitting:
        return f"attfc: partial_fc does not fit. Accuracy at this size is not measured by us ({level})."
    if len(fitting) == 1:
        return f"{next(iter(fitting))}: the only one that fits{as_it_is}.{elsewhere}"
    return f"{' and '.join(reversed(fitting))}: the only ones that fit{' as they are' if elsewhere else ''}.{elsewhere}"


def _fits_with_rows_elsewhere(plans: Sequence[Plan], memory_bytes: float) -> str:
    """Say which head that trains no rows would fit if they were not in this memory: the one that then takes the least; "": none."""
    untrained = [plan for plan in plans if plan.ways.outside and not plan.fits and plan.head_rows == plan.rows]
    moved = {plan.head: plan.peak - plan.rows for plan in untrained}
    head = min(moved, key=lambda name: moved[name], default=None)
    if head is None or moved[head] > memory_bytes:
        return ""
    plan, kind = next(plan for plan in plans if plan.head == head), head.split(",")[0]
    return (
        f" {kind} fits with its rows elsewhere (head={kind} {plan.ways.outside}): {plan.rows / 2**20:,.0f} MiB there, "
        f"{100 * moved[head] / memory_bytes:.0f} % of the memory here."
    )
