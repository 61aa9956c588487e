"""What the ranks of these tests do: without pytest, which takes each new process seconds to import."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attfc.config import load_config
from attfc.config.arguments import read_words
from attfc.distributed import Ranks, grad_scaler
from attfc.errors import UserError
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
from attfc.heads.banks.frequent import FrequentRows
from attfc.losses import AdaFace, CombinedMargin, CosFace
from attfc.run.build import new_run
from attfc.run.resuming import resume_run
from attfc.training.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from attfc.training.checkpoints.sharded_state import ShardedState
from attfc.training.momentum import MomentumPair
from attfc.training.optimizers import build_optimizer, parameter_groups
from attfc.training.step import Inputs, TrainStep
from attfc.training.trainer import Interrupted

D, K, STEPS = 12, 2, 9
MARGINS = {
    "cosface": lambda: CosFace(scale=16.0, margin=0.2),
    "adaface": lambda: AdaFace(scale=16.0),
    "combined": lambda: CombinedMargin(16.0, 1.0, 0.3, 0.1),
}


def batches(dtype: torch.dtype, identities: int, batch: int = 16) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Global batches with repeated identities."""
    draw = torch.Generator().manual_seed(3)
    return [
        (
            torch.randn(batch, D, generator=draw, dtype=torch.float64).to(dtype),
            torch.randint(identities, (batch,), generator=draw),
            torch.randn(batch, K, D, generator=draw, dtype=torch.float64).to(dtype),
        )
        for _ in range(STEPS)
    ]


IDENTITIES = 37  # of heads with a row per identity
IMAGES = 180  # three of each of the other heads' identities
PARTS: dict[str, Any] = {
    "keys": KeyAttention,
    "own": OwnEmbedding,
    "pairs": Pairs,
    "others": OtherImages,
    "recent": RecentCenters,
    "table": CenterTable,
    "memory": ImageMemory,
}


def build(kind: str, options: dict[str, Any], dtype: torch.dtype) -> Head:
    """A head over these ranks; `rule`, `bank` and `stored` name parts of AttFC with their options, `labels` are of the batches."""
    options = {
        "block_mib": 0.001,
        **options,
        "margin": MARGINS[options.get("margin", "cosface")](),
        "ranks": Ranks.world(),
    }
    options.pop("labels", None)
    identities = options.pop("identities", IDENTITIES)
    if kind == "attfc":
        parts = {"center": "rule", "negatives": "bank", "stored": "stored"}
        named = {part: PARTS[options[name][0]](**options[name][1]) for part, name in parts.items() if name in options}
        rest = {name: value for name, value in options.items() if name not in parts.values()}
        head = AttFC(D, identities=60, **named, **rest)
        for frequent in [module for module in head.modules() if isinstance(module, FrequentRows)]:
            frequent.to(dtype)
        return head
    if kind in ("full_fc", "partial_fc"):
        return {"full_fc": FullFC, "partial_fc": PartialFC}[kind](D, identities, **options).to(dtype)
    return {"dcq": DCQ, "dcp": DCP}[kind](D, **options)


def labels_of(kind: str, options: dict[str, Any]) -> int:
    """How many identities the batches are about."""
    known: int = options.get("labels", options.get("identities", IDENTITIES if kind.endswith("_fc") else 60))
    return known


def positions(head: Head, labels_B: Tensor, ranks: Ranks) -> dict[str, Tensor]:
    """Where this rank's images stand, for a head that asks: one of three of each identity."""
    return {"positions_B": ranks.own(3 * labels_B + torch.arange(len(labels_B)) % 3)} if head.takes_positions else {}


def run_head(kind: str, options: dict[str, Any], dtype: torch.dtype) -> dict[str, list[Tensor]]:
    """Several steps of a head on this rank's share; gradients as DistributedDataParallel leaves them."""
    ranks = Ranks.world()
    torch.manual_seed(1)
    head = build(kind, options, dtype)
    containers = [module for module in head.modules() if isinstance(module, RecentCenters)]
    losses, gradients, weights, labels, figures = [], [], [], [], []
    for embeddings_BD, labels_B, keys_BKD in batches(dtype, labels_of(kind, options)):
        own_BD = ranks.own(embeddings_BD).clone().requires_grad_()
        head.zero_grad()
        at = positions(head, labels_B, ranks)
        loss = head(own_BD, ranks.own(labels_B), ranks.own(keys_BKD[:, : K if kind == "attfc" else 1]), **at)
        loss.backward()
        losses.append(ranks.mean(loss.detach()))
        gradients.append(ranks.gather(own_BD.grad) / ranks.size)
        figures.append(ranks.mean(torch.tensor(list(head.statistics().values()), dtype=torch.float64)))
        labels += [container.labels.clone() for container in containers]
        for weight in head.parameters():
            weights.append(weight.grad.to_dense())
            with torch.no_grad():
                weight -= weights[-1]
    last = [container.rows.double() for container in containers]
    last += [weight.detach() for weight in head.parameters()]
    banks = head.banks if isinstance(head, AttFC) else []
    last += [bank.rows.double() for bank in banks if isinstance(bank, CenterTable | ImageMemory)]
    last += [bank.sums for bank in banks if isinstance(bank, ImageMemory)]
    scales = [container.row_scales for container in containers if container.row_scales is not None]
    margin = [buffer.clone() for buffer in head.margin.buffers()]
    shards = [*weights, *last, *scales]
    return {
        "losses": losses, "gradients": gradients, "figures": figures, "labels": labels, "margin": margin, "shards": shards
    }  # fmt: skip


def run_heads(cases: list[tuple[str, dict[str, Any], torch.dtype]]) -> list[dict[str, list[Tensor]]]:
    """`run_head` for each case, all in the same processes."""
    return [run_head(*case) for case in cases]


def full_state(kind: str, options: dict[str, Any], dtype: torch.dtype) -> tuple[dict[str, Tensor], bool]:
    """A head's state with the rows of all ranks after some steps, and whether a new head on these ranks takes it up as it was."""
    ranks = Ranks.world()
    torch.manual_seed(1)
    head, again = build(kind, options, dtype), build(kind, options, dtype)
    for embeddings_BD, labels_B, keys_BKD in batches(dtype, labels_of(kind, options)):
        keys_BKD = ranks.own(keys_BKD[:, : K if kind == "attfc" else 1])
        head(ranks.own(embeddings_BD), ranks.own(labels_B), keys_BKD, **positions(head, labels_B, ranks))
    state = head.full_state_dict()
    again.load_state_dict(state)
    mine, taken = head.state_dict(), again.state_dict()
    return state, all(torch.equal(mine[name], taken[name]) for name in mine)


def full_states(cases: list[tuple[str, dict[str, Any], torch.dtype]]) -> list[tuple[dict[str, Tensor], bool]]:
    """`full_state` for each case, all in the same processes."""
    return [full_state(*case) for case in cases]


def steps_by_place(folder: str) -> list[list[Tensor]]:
    """Losses, this rank's rows and their momentum after steps over two batches each, of Partial FC with its rows in each place."""
    ranks, found = Ranks.world(), []
    for place in ("device", "host", "file"):
        torch.manual_seed(1)
        head = PartialFC(
            D, IDENTITIES, CosFace(16.0), 0.4, place=place, folder=folder if place == "file" else None
        ).train()
        pair = MomentumPair(torch.nn.Linear(D, D), keys=False)
        groups = parameter_groups([pair.query, head], weight_decay=0.01)
        stores = {} if place == "device" else {head.weight: head.rows}
        optimizer = build_optimizer("sgd", groups, learning_rate=0.05, stores=stores)
        step = TrainStep(pair, head, optimizer, ranks=ranks)
        mine = [
            Inputs(ranks.own(images), ranks.own(labels)) for images, labels, _ in batches(torch.float32, IDENTITIES)
        ]
        losses = [step(mine[number : number + 2]) for number in range(STEPS - 1)]
        found.append([torch.stack(losses), head.weight.detach(), optimizer.state[head.weight]["momentum_buffer"]])
    return found


def refusals(cases: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """What each head says where it cannot be built or meets a batch that it cannot take; a wrong label is on one rank only."""
    said = []
    for kind, options in cases:
        try:
            run_head(kind, options, torch.float32)
        except UserError as error:
            said.append(str(error))
    return said


def scaled_steps() -> tuple[Tensor, bool, float]:
    """The rows after two steps with a gradient scaler; whether a third, in which rank 1 overflows, changed them; the scale after it."""
    ranks = Ranks.world()
    torch.manual_seed(1)
    head = build("partial_fc", {"share": 0.4}, torch.float64)
    optimizer = build_optimizer("sgd", parameter_groups([head], weight_decay=0.01), learning_rate=0.2)
    scaler = grad_scaler(torch.device("cpu"), True, ranks)
    for number, (embeddings_BD, labels_B, _) in enumerate(batches(torch.float64, IDENTITIES)[:3]):
        before = head.weight.detach().clone()
        optimizer.zero_grad()
        scaler.scale(head(ranks.own(embeddings_BD), ranks.own(labels_B))).backward()
        if number == 2 and ranks.rank == 1:
            head.weight.grad.values()[0, 0] = torch.inf
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    return before, bool((head.weight != before).any()), scaler.get_scale()


def go_on(
    kind: str, options: dict[str, Any], dtype: torch.dtype, name: str, folder: str, first: int, last: int
) -> dict[str, list[Tensor]]:
    """Steps first ... last - 1 of a head, its optimizer and a small encoder, from the checkpoint of step `first` in `folder`; saves step `last`."""
    ranks = Ranks.world()
    torch.manual_seed(1)
    encoder, head = torch.nn.Linear(D, D, dtype=dtype), build(kind, options, dtype)
    stores = {head.weight: head.rows} if isinstance(head, PartialFC) and head.rows.place != "device" else None
    groups = parameter_groups([encoder, head], weight_decay=0.01)
    optimizer = build_optimizer(name, groups, learning_rate=0.2 if name == "sgd" else 0.02, stores=stores)
    sharded = ShardedState(head.row_shards(), head, optimizer, ranks)
    if first:
        state = load_checkpoint(Path(folder) / f"step_{first:09d}", place=sharded.place)
        encoder.load_state_dict(state["encoder"])
        head.load_state_dict(state["head"])
        optimizer.load_state_dict(state["optimizer"])
    losses = []
    for embeddings_BD, labels_B, keys_BKD in batches(dtype, labels_of(kind, options))[first:last]:
        optimizer.zero_grad()
        keys_BKD = keys_BKD[:, : K if kind == "attfc" else 1]
        at = positions(head, labels_B, ranks)
        loss = head(encoder(ranks.own(embeddings_BD)), ranks.own(labels_B), ranks.own(encoder(keys_BKD).detach()), **at)
        loss.backward()
        for parameter in encoder.parameters():
            parameter.grad = ranks.mean(parameter.grad)
        optimizer.step()
        losses.append(ranks.mean(loss.detach()))
    everything = {"encoder": encoder.state_dict(), "head": head.state_dict(), "optimizer": optimizer.state_dict()}
    save_checkpoint(Path(folder), last, everything, sharded.spread)
    return {"losses": losses, "encoder": [encoder.weight.detach(), encoder.bias.detach()]}


def go_on_several(cases: list[tuple[Any, ...]]) -> list[dict[str, list[Tensor]]]:
    """`go_on` for each case, all in the same processes."""
    return [go_on(*case) for case in cases]


TINY = [
    *("data.root=synthetic:identities=30,images=4-7,seed=0", "data.workers=0", "data.decoded_cache_mib=0", "threads=1"),
    *("batch_size=16", "backbone.name=r6_tiny", "precision.amp=none", "eval.root=null", "schedule.max_steps=6"),
    *(
        "schedule.warmup_epochs=0",
        "optimizer.learning_rate=0.02",
        "checkpoint.every=3",
        "report.write=false",
        "log.every=1",
    ),
    *("log.tensorboard=false", "distributed.sync_batch_norm=true", "checkpoint.keep=9"),
]


@contextlib.contextmanager
def _as_launched(ranks: Ranks) -> Iterator[None]:
    """What torchrun tells each process; the process group is there already."""
    os.environ.update(RANK=str(ranks.rank), WORLD_SIZE=str(ranks.size), LOCAL_RANK=str(ranks.rank))
    try:
        yield
    finally:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            del os.environ[name]


def train(overrides: list[str], output: str, stop_at: int = 0, stopped_rank: int = 0) -> str:
    """Train a new run (or go on with one, where `output` is its folder); `stop_at`: as if SIGTERM reached one rank in that step."""
    ranks = Ranks.world()
    with _as_launched(ranks):
        if (Path(output) / "config.yaml").exists():
            run = resume_run(Path(output), overrides)
        else:
            run = new_run(load_config("demo", [*TINY, f"output={output}", *overrides]))
        step = run.trainer.train_step

        def train_step(batches: list[Any]) -> Tensor:
            if run.trainer.step + 1 == stop_at and ranks.rank == stopped_rank:
                run.trainer._stop = True
            return step(batches)

        run.trainer.train_step = train_step  # type: ignore[method-assign]
        with contextlib.suppress(Interrupted):
            run.trainer.train()
    return str(run.folder)


def train_several(cases: list[tuple[Any, ...]]) -> list[str]:
    """`train` for each case, all in the same processes."""
    return [train(*case) for case in cases]


def errors(cases: list[tuple[list[str], str]]) -> list[str]:
    """What a run says that cannot begin; rank 1 gets `RANK1` overrides too."""
    found = []
    for overrides, output in cases:
        mine = [
            text.removeprefix("RANK1:") for text in overrides if not text.startswith("RANK1:") or Ranks.world().rank
        ]
        try:
            found.append(train(mine, output))
        except UserError as error:
            found.append(str(error))
    return found


def fine_tuned(overrides: list[str], output: str) -> tuple[str, str, float, list[Any]]:
    """Train with start weights; return the folder, what is said of the centers, the sum of their numbers, and both comparisons."""
    with _as_launched(Ranks.world()):
        run = new_run(load_config("demo", [*TINY, f"output={output}", *overrides]))
        (note,) = [note for note in run.notes if "class centers: " in note]
        centers = float(run.trainer.head.full_state_dict()["weight"].double().sum())
        run.trainer.train()
    return str(run.folder), note, centers, run.against_start["sets"]


def train_by_path(output: str) -> str:
    """Train on a path alone, so that everything is chosen; return the configuration, and the network's digest, as every rank has them."""
    with _as_launched(Ranks.world()):
        words = ["synthetic:identities=30,images=6,seed=0", f"output={output}", *QUICK]
        run = new_run(read_words(words))
        run.trainer.train()
    digest = sum(float(parameter.detach().double().sum()) for parameter in run.trainer.pair.query.parameters())
    return f"{len(run.choices)} {digest:.9f} {run.config.model_dump_json()}"


QUICK = ["max_steps=2", "data.workers=0", "threads=1", "log.tensorboard=false", "eval.generated_pairs=40"]
