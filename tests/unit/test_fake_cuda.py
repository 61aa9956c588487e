"""Networks, heads, hand-over, augmentation and evaluation on a CUDA device without one: tensors that know their device and have no values.

Under torch's FakeTensorMode a module built under `torch.device("cuda")` needs no GPU, and an operation on tensors of two devices fails, as it
would there. The meta device of test_synchronization.py cannot tell that: there every tensor is on one device. What needs values is not covered:

- backward: autograd's engine asks CUDA for its device (test_synchronization.py runs backward on meta tensors). FullFC and PartialFC call the
  engine in their forward, for the margin's slope; here it is replaced by ones.
- rows on the host or in a file (they need streams and page-locked memory);
- optimizers, clipping and the gradient scaler of float16, checkpoints, several ranks;
- kernels: whether CUDA has one for an operation and a type, and what it computes. That is tests/gpu.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from attfc.backbones import create_backbone
from attfc.data.conditions import parse_conditions
from attfc.data.loading.decode import Batch
from attfc.data.transforms import Augment
from attfc.evaluation.embed import Embedder
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
    Pairs,
    PartialFC,
    RecentCenters,
)
from attfc.losses import AdaFace, ArcFace, CosFace
from attfc.training.momentum import MomentumPair
from attfc.training.step import Augmented

pytestmark = pytest.mark.skipif(
    torch.__version__ < (2, 10) and not torch.cuda.is_available(),
    reason="a CUDA build of torch 2.9 asks the driver for its stream even for tensors without values, and aborts without one",
)

D, N, B = 32, 100, 8
MARGIN = CosFace(64.0, 0.4)


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No tensor of these tests has values; autocast, which asks for a card, believes that there is one."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    with FakeTensorMode():
        yield


@contextlib.contextmanager
def on_cuda() -> Iterator[None]:
    with torch.device("cuda"):
        yield


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["r6_tiny", "r10_tiny", "r50", "mbf", "vit_t"])
def test_networks(monkeypatch, name: str, training: bool, dtype: torch.dtype | None) -> None:
    monkeypatch.setattr(nn.init, "trunc_normal_", nn.init.normal_)  # the former looks at its values
    with on_cuda():
        network = create_backbone(name).train(training)
        size = int(getattr(network, "image_size", 112))
        images = torch.randn(4, 3, size, size).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cuda", dtype, enabled=dtype is not None):
        embeddings = network(images)
    assert (embeddings.device.type, embeddings.shape) == ("cuda", (4, 512))


def test_a_key_encoder_follows_and_embeds(monkeypatch) -> None:
    monkeypatch.setattr("copy.deepcopy", lambda _: create_backbone("r6_tiny"))  # of tensors without values it warns
    with on_cuda():
        pair = MomentumPair(create_backbone("r6_tiny"), batch_norm="averaged")
        keys = torch.randn(4, 2, 3, 56, 56)
    pair.update()
    assert pair.embed_keys(keys).device.type == "cuda"


HEADS: dict[str, Callable[[], Head]] = {
    "default": lambda: AttFC.default(D, N, negatives=CenterTable(place="device")),
    "trained": lambda: AttFC.default(
        D, N, negatives=CenterTable(place="device", trained=9, image_counts=range(N)), filter_above=0.3
    ),
    "published": lambda: AttFC.published(D, 50),
    "keys, int8": lambda: AttFC(
        D,
        AdaFace(64.0, 0.4),
        identities=N,
        center=KeyAttention(keys=2, share=0.6),
        negatives=RecentCenters(count=50, policy="unique", dtype="int8"),
        stored=CenterTable(place="device"),
        in_batch="fixed",
    ),
    "keys, bfloat16, stored": lambda: AttFC(
        D,
        MARGIN,
        identities=N,
        center=KeyAttention(keys=2, share=0.6, include_stored=True),
        negatives=RecentCenters(count=50, policy="unique", dtype="bfloat16"),
        in_batch="none",
    ),
    "pairs": lambda: AttFC(D, MARGIN, identities=N, center=Pairs(), negatives=RecentCenters(count=50)),
    "groups": lambda: AttFC(
        D, MARGIN, identities=N, center=Pairs(0.0, group=4, own=True), negatives=RecentCenters(count=50)
    ),
    "other images": lambda: AttFC(
        D, MARGIN, identities=N, center=OtherImages(images=300), negatives=ImageMemory(place="device")
    ),
    "filtered": lambda: AttFC.default(
        D, N, margin=ArcFace(64.0, 0.5), negatives=CenterTable(place="device"), filter_above=0.3, filtering="zero"
    ),
    "dcq": lambda: DCQ(D, MARGIN, count=50),
    "dcp": lambda: DCP(D, MARGIN, count=50, dtype="int8"),
    "full_fc": lambda: FullFC(D, N, MARGIN),
    "full_fc, filtered": lambda: FullFC(D, N, MARGIN, filter_above=0.3),
    "full_fc, subcenters": lambda: FullFC(D, N, MARGIN, subcenters=3),
    "full_fc, past": lambda: FullFC(D, N, MARGIN, past=50),
    "partial_fc": lambda: PartialFC(D, N, MARGIN, share=0.5),
    "partial_fc, all rows move": lambda: PartialFC(D, N, MARGIN, share=0.5, unsampled="move"),
}


def ones_for_slopes(outputs: Tensor, inputs: Tensor) -> tuple[Tensor, ...]:
    return (torch.ones_like(inputs),)


@pytest.mark.parametrize("name", HEADS)
def test_heads(monkeypatch, name: str) -> None:
    if name.startswith(("full_fc", "partial_fc")):
        monkeypatch.setattr(torch.autograd, "grad", ones_for_slopes)
    with on_cuda():
        head = HEADS[name]()
        embeddings = torch.randn(B, D).requires_grad_()
        labels = torch.zeros(B, dtype=torch.int64)
        keys = torch.randn(B, head.keys_per_query, D) if head.keys_per_query else None
        at = {"positions_B": torch.zeros(B, dtype=torch.int64)} if head.takes_positions else {}
    for _ in range(2):
        loss = head(embeddings, labels, keys, **at)
        assert (loss.device.type, loss.shape, loss.requires_grad) == ("cuda", (), True)
    assert {tensor.device.type for tensor in (*head.parameters(), *head.buffers())} == {"cuda"}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"crop_scale": (0.8, 1.0), "brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "blur": 0.5},
        {"low_resolution": 0.2},
    ],
)
def test_a_batch_is_handed_over_and_augmented(monkeypatch, options: dict[str, Any]) -> None:
    monkeypatch.setattr(FakeTensor, "tolist", lambda numbers: [0.0] * len(numbers))  # logarithms on the host
    numbers = {name: torch.zeros(B, dtype=torch.int64) for name in ("labels", "positions")}
    numbers["key_positions"] = torch.zeros(B, 2, dtype=torch.int64)
    images = torch.zeros(B, 3, 3, 56, 56, dtype=torch.uint8)
    batch = Batch(images[:, 0], images[:, 1:], seeds=torch.zeros(B, 3, dtype=torch.int64), **numbers)
    inputs = Augmented(Augment(**options), torch.device("cuda"), channels_last=True)(batch)
    given = (inputs.queries, inputs.keys, inputs.labels, inputs.positions)
    assert [tensor.device.type for tensor in given] == ["cuda"] * 4
    assert inputs.queries.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_evaluation_embeds(monkeypatch, dtype: torch.dtype | None) -> None:
    monkeypatch.setattr("attfc.evaluation.embed.DataLoader", lambda batches, **_: batches)  # it draws a number
    with on_cuda():
        network = create_backbone("r6_tiny")
    batches: Any = [(torch.zeros(4, 56, 56, 3, dtype=torch.uint8), {})]
    hurt = parse_conditions(["lowres=24,blur=2,grey,covered"])
    for image_BD, mirror_BD, _ in Embedder(network, autocast_dtype=dtype, conditions=hurt).passes(batches, mirror=True):
        assert [(each.device.type, each.dtype) for each in (image_BD, mirror_BD)] == [("cuda", torch.float32)] * 2


def test_two_devices_are_refused() -> None:
    with on_cuda():
        head = HEADS["default"]()
        network = create_backbone("r6_tiny")
        labels = torch.arange(B)
    refused = "on the same device|found two different devices"  # torch 2.10 says the latter
    with pytest.raises(RuntimeError, match=refused):
        head(torch.randn(B, D), labels)
    with pytest.raises(RuntimeError, match=refused):
        network(torch.randn(4, 3, 56, 56))
