"""Memory that is kept from step to step: the same pages again, never those of a tensor that somebody holds."""

import copy
import gc
import pickle

import pytest
import torch

from attfc.heads import FullFC, Head, PartialFC
from attfc.losses import CosFace, kept_memory
from attfc.losses.kept_memory import KeptMemory

LIKE = torch.zeros(1)


@pytest.fixture(autouse=True)
def _small_tensors_are_kept_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_memory, "KEPT_BYTES", 1)


def test_a_tensor_that_is_let_go_leaves_its_memory_to_the_next_of_its_shape() -> None:
    memory = KeptMemory()
    first, second = memory.empty((6, 4), LIKE), memory.empty((6, 4), LIKE)
    places = first.data_ptr(), second.data_ptr()
    assert places[0] != places[1]
    view = first.detach()[2:]
    del first
    assert memory.empty((6, 4), LIKE).data_ptr() not in places, "a view holds it"
    del view
    again = memory.empty((6, 4), LIKE)
    assert again.data_ptr() == places[0]
    assert (again.shape, again.dtype, again.is_contiguous()) == ((6, 4), torch.float32, True)
    del second
    narrow = memory.empty((6, 4), LIKE.bfloat16())
    assert (narrow.shape, narrow.dtype) == ((6, 4), torch.bfloat16)
    assert memory.empty((6, 5), LIKE).shape == (6, 5)


def test_on_another_device_and_of_small_size_it_is_an_ordinary_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = KeptMemory()
    assert memory.empty((2, 3), LIKE.to("meta")).device.type == "meta"
    monkeypatch.undo()
    memory.empty((1000, 3), LIKE)
    assert memory._kept == []


def head_of(kind: type[Head]) -> Head:
    torch.manual_seed(0)
    return kind(8, 60, CosFace(16.0), **({"share": 0.5} if kind is PartialFC else {}))


def gradients(head: Head, backwards: str) -> list[torch.Tensor]:
    """Of three losses of which two are alive at a time, and of the sum of two."""
    draw = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(4, 8, generator=draw, requires_grad=True), torch.randint(0, 60, (4,), generator=draw))
        for _ in range(5)
    ]
    found = []
    if backwards == "after two forwards":
        losses = [head(*batch) for batch in batches[:2]]
        found = [torch.autograd.grad(loss, head.weight)[0].to_dense() for loss in losses]
        for batch in batches[2:4]:
            head(*batch).backward()
        kept = head.weight.grad
        head.weight.grad = None
        head(*batches[4]).backward()
        return [*found, kept.to_dense(), head.weight.grad.to_dense()]
    for batch in batches[:2]:
        head(*batch).backward()
        found.append(head.weight.grad.to_dense().clone())
        head.weight.grad = None
    total = sum(torch.autograd.grad(head(*batch), head.weight)[0].to_dense() for batch in batches[2:4])
    return [*found, total, torch.autograd.grad(head(*batches[4]), head.weight)[0].to_dense()]


@pytest.mark.parametrize("kind", [FullFC, PartialFC])
def test_gradients_are_those_of_new_memory(kind: type[Head], monkeypatch: pytest.MonkeyPatch) -> None:
    found = gradients(head_of(kind), "after two forwards")
    monkeypatch.undo()
    assert all(map(torch.equal, found, gradients(head_of(kind), "one by one")))


@pytest.mark.parametrize("kind", [FullFC, PartialFC])
def test_steps_find_the_same_pages_and_a_copy_of_a_head_has_its_own(kind: type[Head]) -> None:
    head = head_of(kind)
    embeddings, labels = torch.randn(4, 8), torch.tensor([3, 1, 4, 1])

    def place(each: Head) -> int:
        each.weight.grad = None
        gc.collect()
        each(embeddings, labels).backward()
        gradient = each.weight.grad
        return (gradient._values() if gradient.is_sparse else gradient).data_ptr()

    places = [place(head) for _ in range(3)]
    assert len(set(places)) == 1
    twins = copy.deepcopy(head), pickle.loads(pickle.dumps(head))  # noqa: S301 our own
    assert len({*places, *(place(twin) for twin in twins)}) == 3
