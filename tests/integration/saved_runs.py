"""Runs that earlier versions saved, without their tensors: a rule fills these; every version sees the same numbers, and no weight is committed.

`tests/fixtures/runs_0_1/NAME` holds what attfc 0.1 wrote two steps into ``attfc train demo`` with 24 identities, r6_tiny and the options that its
config.yaml names: the configuration, the checkpoint's manifest and state, and the whole numbers of its head (labels and places of rows).
"""

import json
import math
import random
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

__all__ = ["NAMES", "SAVED", "saved_run"]

SAVED = Path(__file__).parent.parent / "fixtures" / "runs_0_1"
NAMES = sorted(path.name for path in SAVED.iterdir() if path.is_dir())
DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
}


def filled(name: str, size: list[int], dtype: torch.dtype, whole_numbers: dict[str, object]) -> Tensor:
    """The tensor of that name: generators as seed 0 leaves them, rows of unit length, norms that change nothing, all else small."""
    if name in whole_numbers:
        return torch.tensor(whole_numbers[name], dtype=dtype).reshape(size)
    if name.startswith("rng/"):
        if name == "rng/torch":
            return torch.Generator().manual_seed(0).get_state()
        numbers = (
            random.Random(0).getstate()[1] if name == "rng/python/numbers" else np.random.RandomState(0).get_state()[1]
        )
        return torch.tensor(np.asarray(numbers).astype(np.int64))
    if not dtype.is_floating_point and dtype != torch.int8:
        return torch.full(size, 2, dtype=dtype)  # counts of the two steps
    draw = torch.Generator().manual_seed(zlib.crc32(name.replace("/key.", "/query.").encode()))
    numbers = torch.randn(size, generator=draw)
    if dtype == torch.int8:
        return (30 * numbers).round().clamp(-127, 127).to(dtype)
    if name.startswith("head/") and len(size) == 2:
        return normalize(numbers, dim=1).to(dtype)
    if name.endswith("row_scales"):
        return numbers.abs() / 100
    if name.endswith(("running_var", "exp_avg_sq", "norm_mean", "norm_std")) or (
        name.endswith("weight") and len(size) == 1
    ):
        return (1 + 0.1 * numbers.abs()).to(dtype)
    return (numbers / math.sqrt(max(math.prod(size[1:]), 20))).to(dtype)


def saved_run(name: str, folder: Path) -> Path:
    """Write the run NAME into `folder` with its tensors; returns its folder."""
    source, run = SAVED / name, folder / "demo-001"
    checkpoint = run / "checkpoints" / "step_000000002"
    checkpoint.mkdir(parents=True)
    (run / "config.yaml").write_bytes((source / "config.yaml").read_bytes())
    state = (source / "state.json").read_bytes()
    (checkpoint / "state.json").write_bytes(state)
    manifest = json.loads((source / "manifest.json").read_bytes())
    whole_numbers = json.loads((source / "whole_numbers.json").read_bytes())
    files: dict[str, dict[str, Tensor]] = {}
    for tensor_name, entry in manifest["tensors"].items():
        tensor = filled(tensor_name, entry["size"], DTYPES[entry["dtype"]], whole_numbers)
        for offsets, sizes, file in entry["chunks"]:
            part = tensor[tuple(slice(start, start + count) for start, count in zip(offsets, sizes, strict=True))]
            place = "" if sizes == entry["size"] else f"[{','.join(map(str, offsets))}]"
            files.setdefault(file, {})[tensor_name + place] = part.clone()
    for file, tensors in files.items():
        save_file(tensors, checkpoint / file)
    for file in manifest["files"]:
        data = (checkpoint / file).read_bytes()
        manifest["files"][file] = {"bytes": len(data), "crc32": zlib.crc32(data)}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return run
