"""No step of a head or of the trainer looks at the device from the host: run where looking is impossible.

On the meta device tensors have no values: reading one (`.item()`, a Python branch, `nonzero`, a boolean index) fails, so a step that comes
through has read none. What meta would let pass is refused by the modes below: copies that would make an accelerator wait (`torch.tensor(...,
device=)`, `.to(device)` from the host without `non_blocking`), and operations whose result's size depends on values. Branches on
`device.type == "cpu"` are not taken here, as they are not on a GPU. What a GPU itself says of it: tests/gpu.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from attfc.config import load_config
from attfc.distributed import Ranks
from attfc.heads.banks import kept_rows, row_store
from attfc.heads.banks.rows_ahead import Arriving
from attfc.losses.teacher import TeacherLoss
from attfc.run.build import Run, new_run
from attfc.run.components import build_head
from attfc.training.reports import StepReport

LOOKS = {"_local_scalar_dense", "nonzero", "nonzero_numpy", "is_nonzero", "masked_select", "_unique2", "unique_dim",
         "unique_consecutive", "equal", "repeat_interleave", "bincount", "_assert_async"}  # fmt: skip


class NoLooks(TorchDispatchMode):
    """Refuses operations that an accelerator's host has to wait for."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.overloadpacket.__name__
        tensors = [
            value for value in torch.utils._pytree.tree_leaves((arguments, options)) if isinstance(value, Tensor)
        ]
        if any(tensor.device.type == "meta" for tensor in tensors):
            assert name not in LOOKS, f"aten::{name} waits for the device"
            if name in ("index", "index_put", "index_put_"):
                masks = [
                    index for index in arguments[1] if index is not None and index.dtype in (torch.bool, torch.uint8)
                ]
                assert not masks, f"aten::{name} with a boolean index counts its rows: it waits for the device"
        return function(*arguments, **(options or {}))


class NoWaitingCopies(TorchFunctionMode):
    """Refuses copies between host and device that wait."""

    def __torch_function__(self, function, types, arguments=(), options=None):
        options = options or {}
        if function in (torch.tensor, torch.as_tensor, torch.asarray):
            device = torch.device(options.get("device") or "cpu")
            assert device.type == "cpu", (
                f"torch.{function.__name__}(..., device={device}) copies from pageable memory and waits"
            )
        given = arguments[0] if arguments and isinstance(arguments[0], Tensor) else None
        result = function(*arguments, **options)
        name = getattr(function, "__name__", "")
        if given is not None and name in ("to", "cpu", "cuda", "copy_"):
            other = result if name != "copy_" else arguments[1]
            if isinstance(other, Tensor) and other.device != given.device:
                waits = not options.get("non_blocking", False)
                assert not waits, f"Tensor.{name} from {given.device} to {other.device} waits for the device"
        return result


def blind_step(run: Run, steps: int = 2) -> None:
    """Some optimizer steps, the first of which makes the optimizer's state."""
    trainer = run.trainer
    for _ in range(steps):
        batches = [next(trainer.loader.batches(trainer.loader.step + 1)) for _ in range(trainer.accumulation)]
        with NoWaitingCopies(), NoLooks():
            loss = trainer.train_step(batches)
            with contextlib.suppress(
                NotImplementedError
            ):  # a word goes to the host last, and here has no value to bring
                StepReport(trainer.step, loss, batches, False, trainer.ranks)
        trainer.step += 1
    assert (loss.device.type, loss.shape) == ("meta", ())


COMMON = [
    *("data.root=synthetic:identities=30,images=4-7,seed=0", "data.workers=0", "data.decoded_cache_mib=0", "threads=1"),
    *("batch_size=8", "backbone.name=r6_tiny", "precision.amp=none", "eval.root=null", "schedule.max_steps=6"),
    *("schedule.warmup_epochs=0", "log.tensorboard=false", "device=meta"),
]
TABLE = ["negatives.place=device", "negatives.share=0.9"]
RECENT = [
    "negatives=recent_centers",
    "negatives.share=0.9",
    "negatives.policy=unique",
    "stored=center_table",
    "stored.place=device",
]
KEYS = ["center=key_attention", "center.share=0.6"]
HEADS = {
    "attfc": [*KEYS, *RECENT],
    "attfc published": ["profile=published", "negatives.share=0.9"],
    "attfc stored": [*KEYS, *RECENT, "center.include_stored=true", "negatives.dtype=int8", "margin=adaface"],
    "attfc drawn": [*TABLE],
    "attfc trained": [*TABLE, "negatives.trained=5"],
    "attfc query": [*RECENT, "negatives.dtype=bfloat16"],
    "attfc pairs": ["center=pairs", *RECENT[:3]],
    "attfc others": ["center=other_images", *TABLE],
    "attfc filtered": [*KEYS, *RECENT, "head.filter_above=0.3", "head.filtering=zero", "margin=arcface"],
    "averaged keys": [
        *KEYS,
        *RECENT,
        "key_encoder.batch_norm=averaged",
        "key_encoder.momentum=0.99",
        "key_encoder.momentum_schedule=ramp",
    ],
    "full_fc": ["head=full_fc", "optimizer.accumulation=2"],
    "full_fc past": ["head=full_fc", "head.past=64"],
    "full_fc subcenters": ["head=full_fc", "head.subcenters=3"],
    "attfc groups": ["center=pairs", "center.group=4", "center.own=true", "center.share=0", *RECENT[:3]],
    "dcq": ["head=dcq"],
    "dcp": ["head=dcp", "head.dtype=int8", "head.filter_above=0.3"],
    "partial_fc": ["head=partial_fc", "head.share=0.5"],
    "partial_fc adamw": ["head=partial_fc", "head.share=0.5", "optimizer.name=adamw"],
    "augmented": [
        *("head=full_fc", "augment.crop_scale=[0.8,1.0]", "augment.brightness=0.2", "augment.blur=0.1"),
        "augment.low_resolution=0.2",
    ],
}


LACKING = {
    **dict.fromkeys(["attfc stored", "attfc drawn", "attfc query", "dcp"], "products with out_dtype"),
    **dict.fromkeys(["partial_fc", "partial_fc adamw"], "coalescing of a sparse gradient"),
}


def lacking(what: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(torch.__version__ < (2, 10), reason=f"torch 2.9 has no {what} on the meta device")


def heads() -> list[Any]:
    """Their names, marked where torch 2.9 cannot take their step on the meta device."""
    return [pytest.param(name, marks=lacking(LACKING[name]) if name in LACKING else ()) for name in HEADS]


def blind_run(folder: Path, options: list[str]) -> Run:
    return new_run(load_config("demo", [*COMMON, *options, f"output={folder}"]))


@pytest.mark.parametrize("name", heads())
def test_a_step_reads_nothing_from_the_device(tmp_path, name) -> None:
    blind_step(blind_run(tmp_path, HEADS[name]))


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(["negatives.share=0.5"], marks=lacking("products with out_dtype")),
        ["center=other_images"],
        [*RECENT[:4]],
    ],
)
def test_rows_in_host_memory_come_and_go_without_a_wait(tmp_path, monkeypatch, parts) -> None:
    monkeypatch.setattr(
        kept_rows, "to_host", lambda sent: Arriving(tuple(torch.zeros_like(x, device="cpu") for x in sent))
    )
    run = blind_run(tmp_path, parts)
    bank = run.trainer.head.banks[-1]
    for name, buffer in bank.named_buffers():
        setattr(bank, name, torch.zeros_like(buffer, device="cpu"))  # as on any machine: a run on meta holds nothing
    bank.draws = 0
    blind_step(run)
    assert bank.place == "host"
    bank.settle()


@pytest.mark.parametrize("name", ["partial_fc", "partial_fc adamw"])
def test_trained_rows_in_host_memory_come_and_go_without_a_wait(tmp_path, monkeypatch, name) -> None:
    monkeypatch.setattr(
        row_store.RowStore, "zeros", lambda _, *shape, **rest: torch.zeros(shape, **rest | {"device": "cpu"})
    )
    monkeypatch.setattr(
        row_store, "to_host", lambda sent: Arriving(tuple(torch.zeros_like(x, device="cpu") for x in sent))
    )
    run = blind_run(tmp_path, [*HEADS[name], "head.place=host"])
    head = run.trainer.head
    assert head.weight.device.type == "cpu"
    blind_step(run)
    assert head.draws == 2


COLLECTIVES = torch._C._dispatch_has_kernel_for_dispatch_key("c10d::_allgather_base_", "Meta")


@pytest.fixture
def one_of_two() -> Iterator[Ranks]:
    """This process as the second of two ranks whose collectives go nowhere."""
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    try:
        yield Ranks.world()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.skipif(not COLLECTIVES, reason="torch 2.9 and 2.10 have no collectives on the meta device")
@pytest.mark.parametrize("name", [name for name in HEADS if name not in ("averaged keys", "augmented", "full_fc past")])
def test_a_step_of_several_ranks_reads_nothing_from_the_device(one_of_two, name) -> None:
    config = load_config("demo", [*COMMON, *HEADS[name]])
    with torch.device("meta"):
        head = build_head(config, 30, one_of_two, images=90, image_counts=[3] * 30)
        embeddings = torch.randn(4, config.backbone.embedding_size).requires_grad_()
        keys = torch.randn(4, head.keys_per_query, config.backbone.embedding_size)
        labels = torch.zeros(4, dtype=torch.int64)
        at = {"positions_B": torch.zeros(4, dtype=torch.int64)} if head.takes_positions else {}
    for _ in range(2):
        with NoWaitingCopies(), NoLooks():
            if name.startswith("partial_fc"):
                # By design (docs/distributed.md): how many of the sampled rows are this rank's is known to the device alone.
                with pytest.raises(AssertionError, match="copies from pageable memory"):
                    head(embeddings, labels, keys)
            elif TABLE[0] in HEADS[name]:
                with pytest.raises(AssertionError, match="boolean index counts its rows"):  # as Partial FC
                    head(embeddings, labels, keys, **at)
            else:
                head(embeddings, labels, keys).backward()
    assert embeddings.grad is not None or name.startswith("partial_fc") or TABLE[0] in HEADS[name]


def test_a_teachers_loss_reads_nothing_from_the_device() -> None:
    with torch.device("meta"):
        loss, embeddings, targets = TeacherLoss(4, 6, 32.0), torch.randn(3, 4).requires_grad_(), torch.randn(3, 6)
    with NoWaitingCopies(), NoLooks():
        loss(embeddings, targets).backward()
    assert embeddings.grad is not None


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: torch.tensor([1, 2], device=x.device),
        lambda x: torch.ones(2).to(x.device),
        lambda x: x.copy_(torch.ones(3)),
        lambda x: x[torch.zeros((), dtype=torch.int64, device=x.device)],
    ],
)
def test_the_modes_refuse_what_waits(look: Callable[[Tensor], Any]) -> None:
    with NoWaitingCopies(), NoLooks(), pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
        look(torch.ones(3, device="meta"))


def test_the_modes_allow_what_does_not_wait() -> None:
    with NoWaitingCopies(), NoLooks():
        x = torch.ones(3, device="meta")
        x[torch.tensor([0, 1]).to("meta", non_blocking=True)] = 1.0
        assert torch.where(x > 0, x, 0.0).shape == (3,)
        assert torch.tensor([1.0]).item() == 1.0
