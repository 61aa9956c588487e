"""Will it fit, how long, which head: memory and time of a training step, predicted from sizes and one short run of the network.

Memory is the largest of five moments of a step: the key pass, the end of the query's forward, the backward (with the head's gradient beside
the activations), the optimizer with its temporaries, and what lies there all the time. The head's part is arithmetic. The
network's part is counted, not guessed: every storage that comes and goes is watched while two small batches really run
(`measure_encoder`; under autocast where the training is), and memory is a line in the batch size. Cost: a few seconds.
Not seen: workspace inside a kernel, fragmentation, the interpreter and torch themselves (250 to 400 MiB on a processor).
Time is the network's, measured at the larger of the two batches (or four times that, where it is quick), and the head's, measured on
some thousand rows with its optimizer (`attfc.lab.bench.calibration`): a plan made on one device says nothing of the time on another. Not
taken: counting on the meta device (no autocast there), and torch's fake tensors (ten times the start-up for the same figures).
"""

import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attfc.errors import UserError
from attfc.losses.streaming_pass import LARGEST_BLOCK
from attfc.precision import autocast

__all__ = [
    "NOTHING",
    "Encoder",
    "HeadMemory",
    "HeadRates",
    "Line",
    "Plan",
    "head_memory",
    "kept_bytes",
    "measure_encoder",
    "plan_step",
]

HeadName = Literal["full_fc", "partial_fc", "attfc", "attfc, no key passes", "dcq", "dcp"]

_ROW_BYTES = {"float32": lambda D: 4 * D, "bfloat16": lambda D: 2 * D, "int8": lambda D: D + 4}
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
    batches: tuple[int, int] = (2, 6),
) -> Encoder:
    """Run two small batches through `network` (forward, backward; forward without gradient) and watch memory and time.

    Args:
        network: on `device`; its gradients are set to None, its running statistics move.
        image_size: S, pixels.
        device: where it is and where the figures are to hold.
        autocast_dtype: as in training.
        channels_last: as in training.
        batches: two sizes, the smaller >= 2 (BatchNorm); lines through both are extended to other batches.

    Returns:
        Bytes and seconds. `saved`: alive when the forward has ended; `forward`, `backward`, `keys`: the peaks, without parameters, backward
        with the parameters' gradients.
    """
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
    training = network.training
    network.train()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    points: list[tuple[float, ...]] = []
    for batch in (batches[0], *batches):  # the first: libraries load and tune
        images = torch.zeros(batch, 3, image_size, image_size, device=device).contiguous(memory_format=layout)
        with _Live() as live:
            saved, forward, backward = _train_pass(network, images, autocast_dtype, live)
            network.zero_grad(set_to_none=True)
            live.peak = before = live.now
            _key_pass(network, images, autocast_dtype)
            points.append((saved, forward, backward, live.peak - before))
    # Watching costs a little of every operation: the time is taken without it, of a larger batch where that is quick.
    for timed in (batches[1], 4 * batches[1]):
        images = torch.zeros(timed, 3, image_size, image_size, device=device).contiguous(memory_format=layout)
        seconds = _seconds(device, lambda: _train_pass(network, images, autocast_dtype, _Live())) / timed  # noqa: B023
        key_seconds = _seconds(device, lambda: _key_pass(network, images, autocast_dtype)) / timed  # noqa: B023
        if seconds * timed > QUICK_SECONDS:
            break
    network.zero_grad(set_to_none=True)
    network.train(training)
    small, large = points[1], points[2]
    lines = []
    for low, high in zip(small, large, strict=True):
        slope = (high - low) / (batches[1] - batches[0])
        lines.append(Line(low - slope * batches[0], slope))
    parameters = list(network.parameters())
    return Encoder(
        parameters=sum(p.nbytes for p in parameters),
        trained=sum(p.nbytes for p in parameters if p.requires_grad),
        buffers=sum(b.nbytes for b in network.buffers()),
        largest=max(p.nbytes for p in parameters),
        image_bytes=3 * image_size**2,
        saved=lines[0],
        forward=lines[1],
        backward=lines[2],
        keys=lines[3],
        train_seconds=seconds,
        key_seconds=key_seconds,
    )


def _train_pass(network: nn.Module, images: Tensor, dtype: torch.dtype | None, live: _Live) -> tuple[int, int, int]:
    live.peak = start = live.now
    with autocast(images.device, dtype):
        embeddings = network(images)
    saved, forward = live.now - start, live.peak - start
    live.peak = live.now
    embeddings.float().backward(torch.zeros_like(embeddings, dtype=torch.float32))
    return saved, forward, live.peak - start


def _key_pass(network: nn.Module, images: Tensor, dtype: torch.dtype | None) -> None:
    with torch.no_grad(), autocast(images.device, dtype):
        network(images)


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - start


@dataclass(frozen=True)
class HeadRates:
    """Seconds a row of the heads' parts of a step, on some device at some batch; `attfc.lab.bench.calibration` measures them.

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
class HeadMemory:
    """Bytes of a head on one rank, and how many rows a step works on in which way (a field of `HeadRates`)."""

    rows: float
    gradient: float
    optimizer: float
    working: float
    optimizer_working: float
    keys_per_query: int
    streamed: int
    kind: Literal["container", "pool", "dense", "sampled"]


def head_memory(
    name: HeadName,
    identities: int,
    batch: int,
    *,
    embedding_size: int = 512,
    slots: int | None = None,
    dtype: str = "float32",
    sample_rate: float = 0.1,
    keys_per_query: int = 2,
    optimizer: Literal["sgd", "adamw"] = "sgd",
    weight_decay: bool = True,
    block_mib: float = 32.0,
    ranks: int = 1,
    cached: bool = True,
    table: bool = False,
    drawn: bool = False,
    remembered: int | None = None,
) -> HeadMemory:
    """Bytes of one head on one rank; rows and slots are divided by `ranks`, the batch is that of one rank.

    Args:
        table: AttFC keeps a table of all identities' centers (bfloat16) in the memory that is counted.
        drawn: AttFC's negatives are drawn from the table, wherever it is: `slots` rows of it and the batch's, instead of a container.
        remembered: images whose last embeddings AttFC keeps in the memory that is counted, with their sums, in place of a table
            (`center=other_images`).
        cached: a processor, where blocks are kept small enough for its cache.

    Raises:
        UserError: a head without a plan, a container without slots or smaller than the batch.

    >>> head_memory("full_fc", 1_000_000, 128).rows / 1e9
    2.048
    """
    D, everyone = embedding_size, batch * ranks
    block = block_mib * 2**20

    def of_blocks(rows: int, bytes_a_row: float) -> float:
        """Bytes of the largest block of a pass over `rows`: see `row_blocks`."""
        return min(block, (min(rows, LARGEST_BLOCK) if cached else rows) * bytes_a_row)

    backward_row = 12.0 * (everyone + D)  # logits, weights and their copies; a row, its gradient and their product
    states = 1 if optimizer == "sgd" else 2
    if name in ("full_fc", "partial_fc"):
        rows = -(-identities // ranks)
        size = rows * D * 4.0
        if name == "full_fc":
            temporaries = (1.0 if weight_decay else 0.0) if optimizer == "sgd" else 2.0
            return HeadMemory(
                size,
                size,
                states * size,
                of_blocks(rows, backward_row) + rows * 12,
                temporaries * size,
                0,
                rows,
                "dense",
            )
        sampled = min(rows, max(round(sample_rate * rows), everyone))
        small = sampled * D * 4.0
        # The rows and their gradient; five int64 per class for the draw, its sort and their norms.
        return HeadMemory(
            size,
            small,
            states * size,
            of_blocks(sampled, backward_row) + small + sampled * 40,
            0.0,
            0,
            sampled,
            "sampled",
        )
    if name not in ("attfc", "attfc, no key passes", "dcq", "dcp"):
        raise UserError(f"there is no plan for a head {name!r}: full_fc, partial_fc, attfc, dcq or dcp")
    if slots is None or (slots < everyone and not drawn):
        raise UserError(
            f"the container has {slots} slots, which is smaller than the batch ({everyone}): give it more slots"
        )
    held = -(-slots // ranks)
    positions = max(64, 1 << (4 * slots - 1).bit_length())
    index = slots * (8 + 8 + 4) + positions * 4
    keys = {"attfc": keys_per_query, "dcq": 1, "dcp": 1}.get(name, 0)
    # A block's logits, and its rows where they are not multiplied as they are stored.
    blocks = of_blocks(held, everyone * 8.0 + (0 if dtype == "float32" else 4 * D))
    containers = 2 if name == "dcp" else 1
    stored = containers * (held * _ROW_BYTES[dtype](D) + index)
    working = blocks + slots * 16 + everyone * D * 4 * (keys + 6)
    if name.startswith("attfc"):
        if drawn:  # the rows and what finds them are there for the step alone
            stored = 0.0
            held += -(-everyone // ranks)
            working = of_blocks(held, everyone * 8.0 + 4 * D) + held * _ROW_BYTES["bfloat16"](D) + slots * 40
            working += everyone * D * 4 * (keys + 6)
        if table or remembered is not None:
            stored += kept_bytes(identities, D, remembered, ranks)
    if name == "dcp":  # both slots' hardest rows, kept for backward
        working += 2 * everyone * D * 4 * (min(max(int(0.0002 * slots), 3), 10) + 6)
    return HeadMemory(stored, 0.0, 0.0, working, 0.0, keys, held, "pool" if name == "dcp" else "container")


def kept_bytes(identities: int, embedding_size: int, remembered: int | None = None, ranks: int = 1) -> int:
    """Bytes on one rank of AttFC's table of centers, or of its memory of `remembered` images and their sums (`center=other_images`).

    >>> kept_bytes(1_000_000, 512) / 1e9, kept_bytes(1_000_000, 512, remembered=20_000_000) / 1e9
    (1.024, 22.532)
    """
    row: int = _ROW_BYTES["bfloat16"](embedding_size)
    if remembered is None:
        return -(-identities // ranks) * row
    return -(-remembered // ranks) * row + -(-identities // ranks) * 4 * (embedding_size + 1)


@dataclass(frozen=True)
class Plan:
    """A head's step: bytes by what they are for, the peak, and seconds (None: not calibrated on the device)."""

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

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for a JSON file, bytes and seconds."""
        return asdict(self)


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
    foreach: bool = False,
    rates: HeadRates | None = None,
) -> Plan:
    """Put a network and a head together: the moments of a step, the largest of them, and the time.

    Args:
        batch: images one process takes in one pass.
        images: of the data set, for the time of an epoch.
        memory_bytes: the budget; None: `fits` is None.
        foreach: the optimizer updates all parameters at once (torch on CUDA), with temporaries of all.
        rates: of the heads on the device, at the batch of all ranks; None: no times.
    """
    keys = head.keys_per_query
    states = 1 if optimizer == "sgd" else 2
    # The key encoder is a copy of the network, whatever the head.
    always = 2 * (encoder.parameters + encoder.buffers) + states * encoder.trained + head.rows + head.optimizer
    always += _ALWAYS_MIB * 2**20 + batch * (1 + keys) * encoder.image_bytes
    # float32 images twice: as augmented, and laid out channels last.
    key_images, query_images = batch * keys * encoder.image_bytes * 4, batch * encoder.image_bytes * 4
    gradients = encoder.trained + head.gradient
    left_over = gradients if accumulation > 1 else 0
    moments = {
        "keys": always + left_over + 2 * key_images + (encoder.keys.at(batch * keys) if keys else 0.0),
        "forward": always + left_over + key_images + query_images + encoder.forward.at(batch),
        "head": always + left_over + query_images + encoder.saved.at(batch) + head.working + head.gradient,
        "backward": always
        + (left_over - encoder.trained if left_over else head.gradient)
        + query_images
        + encoder.backward.at(batch),
        "optimizer": always + gradients + _optimizer_working(encoder, head, optimizer, weight_decay, foreach),
    }
    peak = max(moments.values())
    seconds = None
    if rates is not None:
        # The optimizer's part of the head comes with each batch here, though accumulation has it once per step.
        passes = batch * (encoder.train_seconds + keys * encoder.key_seconds)
        seconds = accumulation * (passes + head.streamed * getattr(rates, head.kind))
    steps = None if images is None else images / (batch * ranks * accumulation)
    return Plan(
        head=title,
        parameters=2.0 * (encoder.parameters + encoder.buffers),
        gradients=gradients,
        optimizer=states * encoder.trained + head.optimizer,
        activations=encoder.saved.at(batch),
        rows=head.rows,
        peak=peak,
        fits=None if memory_bytes is None else peak <= memory_bytes,
        step_seconds=seconds,
        epoch_hours=None if seconds is None or steps is None else steps * seconds / 3600,
    )


def _optimizer_working(encoder: Encoder, head: HeadMemory, optimizer: str, weight_decay: bool, foreach: bool) -> float:
    times = (1.0 if weight_decay else 0.0) if optimizer == "sgd" else 2.0
    network = times * (encoder.trained if foreach else encoder.largest)
    return network + head.optimizer_working if foreach else max(network, head.optimizer_working)
