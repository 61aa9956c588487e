"""Which mixed precision pays is a fact of the processor, looked up and not guessed."""

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from attfc import precision
from attfc.heads import FullFC
from attfc.losses import CosFace
from attfc.training.momentum import MomentumPair
from attfc.training.step import TrainStep


@pytest.mark.parametrize(
    ("cpuinfo", "bfloat16", "amx", "expected"),
    [
        ("vendor_id : GenuineIntel", True, False, None),
        ("vendor_id : GenuineIntel", True, True, torch.bfloat16),
        ("vendor_id : AuthenticAMD", True, False, torch.bfloat16),
        ("vendor_id : AuthenticAMD", False, False, None),
        (None, True, False, torch.bfloat16),
    ],
)
def test_bfloat16_is_taken_where_it_is_fast(monkeypatch, cpuinfo, bfloat16, amx, expected) -> None:
    def read_text(path: Path, **_: object) -> str:
        if cpuinfo is None:
            raise FileNotFoundError(path)
        return str(cpuinfo)

    precision._gains_nothing_by_bfloat16.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", read_text)
        patch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        patch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: bfloat16)
        assert precision.best_autocast_dtype(torch.device("cpu")) is expected
    precision._gains_nothing_by_bfloat16.cache_clear()


pytestmark = pytest.mark.filterwarnings("ignore:Please use the new API settings")  # torch 2.9, of its older interface


def settings() -> tuple[str, bool]:
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.benchmark


def products() -> tuple[str, str]:
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision


@pytest.fixture
def _settings_put_back():
    benchmark = torch.backends.cudnn.benchmark
    yield
    torch.backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.benchmark = benchmark


def set_of(what: object, value: object) -> Callable[[], None]:
    return lambda: setattr(what, "allow_tf32" if isinstance(value, bool) else "fp32_precision", value)


CUDA, CPU = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul


@pytest.mark.usefixtures("_settings_put_back")
@pytest.mark.parametrize("inside", ["highest", "high"])
@pytest.mark.parametrize(
    ("sets", "found"),
    [
        ([partial(torch.set_float32_matmul_precision, "highest")], ("ieee", "ieee")),
        ([partial(torch.set_float32_matmul_precision, "high")], ("tf32", "tf32")),
        ([partial(torch.set_float32_matmul_precision, "medium")], ("tf32", "bf16")),
        ([set_of(CUDA, True), set_of(CPU, "none")], ("tf32", "none")),
        ([set_of(CUDA, False)], ("ieee", "ieee")),
        ([set_of(CUDA, "ieee")], ("ieee", "ieee")),
        ([set_of(CUDA, "tf32")], ("tf32", "ieee")),
        ([set_of(CUDA, "tf32"), set_of(CPU, "tf32")], ("tf32", "tf32")),
        ([set_of(CUDA, "tf32"), set_of(CPU, "bf16")], ("tf32", "bf16")),
        ([set_of(CPU, "bf16")], ("ieee", "bf16")),
        ([set_of(CUDA, "none"), set_of(CPU, "none")], ("none", "none")),
        ([set_of(CUDA, "none"), set_of(CPU, "none"), set_of(torch.backends, "tf32")], ("tf32", "tf32")),
    ],
)
def test_whichever_interface_set_the_precision_of_products_it_comes_back(sets, found, inside) -> None:
    torch.set_float32_matmul_precision("highest")
    for each in sets:
        each()
    assert products() == found
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:  # it refuses after the newer setter
        older = None
    with contextlib.suppress(KeyError), precision.float32_products(inside):
        assert set(products()) <= ({"tf32"} if inside == "high" else {"ieee", "none"})
        assert torch.get_float32_matmul_precision() == inside  # which torch.compile of 2.9 reads
        raise KeyError
    assert products() == found
    assert older is None or torch.get_float32_matmul_precision() == older


@pytest.mark.usefixtures("_settings_put_back")
@pytest.mark.parametrize(("of_the_user", "after"), [("legacy", "ieee"), ("ieee", "ieee"), ("tf32", "tf32")])
def test_tuned_is_on_in_training_steps_on_cuda_and_off_again(of_the_user, after) -> None:
    torch.set_float32_matmul_precision("highest")
    if of_the_user != "legacy":
        torch.backends.cuda.matmul.fp32_precision = of_the_user
    found = settings()
    for device, enabled in (("cpu", True), ("meta", True), ("cuda", False)):
        with precision.tuned(torch.device(device), enabled):
            assert settings() == found
    with contextlib.suppress(KeyError), precision.tuned(torch.device("cuda")):
        assert settings() == ("tf32", True)
        assert torch.get_float32_matmul_precision() == "high"  # which torch.compile reads
        raise KeyError
    assert settings() == (after, found[1])
    assert torch.get_float32_matmul_precision() == ("high" if after == "tf32" else "highest")


@pytest.mark.usefixtures("_settings_put_back")
@pytest.mark.parametrize("tuned", [True, False])
def test_a_step_is_taken_tuned_and_what_follows_is_not(monkeypatch, tuned) -> None:
    pair, head = MomentumPair(torch.nn.Linear(3, 8), keys=False), FullFC(8, 5, CosFace(16.0, 0.1))
    step = TrainStep(pair, head, torch.optim.SGD(head.parameters(), lr=0.1), tuned=tuned)
    seen, before = [], settings()
    monkeypatch.setattr(step, "_step", lambda batches: seen.append(settings()) or torch.zeros(()))
    step.device = torch.device("cuda")
    step([])
    assert seen == [("tf32", True) if tuned else before]
    assert settings()[0] in (before[0], "ieee")
    assert settings()[1] == before[1]
