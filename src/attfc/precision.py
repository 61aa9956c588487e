"""Where mixed precision begins and ends, which type pays on which device, and what of a GPU's speed torch leaves off.

Devices without autocast (meta) simply have none.
"""

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = [
    "AMP_DTYPES",
    "autocast",
    "best_autocast_dtype",
    "fast_bfloat16",
    "float32_products",
    "tuned",
    "without_autocast",
]

AMP_DTYPES = {"none": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Return a context of mixed precision in `dtype` on `device`; None leaves everything as it is."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which autocast is off on the device of `tensor`: for code that chooses its own precision."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def fast_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32 on `device`.

    A processor may have bfloat16 instructions and not gain by them: Intel's vdpbf16ps does as many multiplications per cycle as
    the float32 instructions, so only AMX helps there (a Xeon with avx512_bf16 and without AMX: container softmax 1.6 times
    slower than in float32, training step 1.2 times; an EPYC: 2.3 and 1.8 times faster).
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and not _gains_nothing_by_bfloat16()
    return device.type == "meta"


def best_autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return what `precision.amp=auto` means on `device`: bfloat16 where it is fast; else float16 on CUDA, nothing elsewhere."""
    if fast_bfloat16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else None


@contextmanager
def float32_products(precision: Literal["highest", "high"]) -> Iterator[None]:
    """Matrix products in float32 have this precision in the context: "highest" float32, "high" TF32 where there is hardware for it.

    The setting is of the process, and what it was comes back, whichever of torch's two interfaces it was made with. It is read by the newer one: once
    that was used, the older one refuses to read, so it does in torch.compile of 2.9. Hence the older one sets, of which 2.9 warns once.
    """
    products = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = [each.fp32_precision for each in products]
    name = "medium" if "bf16" in before else "high" if "tf32" in before else "highest"
    if name == precision == "highest":
        yield
        return
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(name)
        for each, was in zip(products, before, strict=True):
            each.fp32_precision = was


@contextmanager
def tuned(device: torch.device, enabled: bool = True) -> Iterator[None]:
    """Train in this context: on CUDA, what torch leaves off by itself is on; elsewhere, and if not `enabled`, nothing changes.

    - TF32 for matrix products in float32 (from Ampere on): 10 bits of mantissa, as in float16; sums in float32. An error of 5e-4 of a product of
      unit vectors. Convolutions have it by torch's own default.
    - ``cudnn.benchmark``: at the first batch of a size cuDNN tries its algorithms and keeps the fastest, which may be another one in the next run.

    Both are of the process, so they are put back at the end: evaluation has float32 as it is. Untested on a GPU.
    """
    if not enabled or device.type != "cuda":
        yield
        return
    benchmark = torch.backends.cudnn.benchmark
    try:
        torch.backends.cudnn.benchmark = True
        with float32_products("high"):
            yield
    finally:
        torch.backends.cudnn.benchmark = benchmark


@functools.cache
def _gains_nothing_by_bfloat16() -> bool:
    """An Intel processor without AMX."""
    try:
        vendor = "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # another system than Linux
        return False
    return vendor and not torch.cpu._is_amx_tile_supported()
