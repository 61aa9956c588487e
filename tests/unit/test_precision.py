"""Which mixed precision pays is a fact of the processor, looked up and not guessed."""

from pathlib import Path

import pytest
import torch

from attfc import precision


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
