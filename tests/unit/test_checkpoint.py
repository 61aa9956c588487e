"""Checkpoints: bit for bit back, whole or not at all, and harmless when they come from a stranger."""

import errno
import json
import math
import os
import pickle
import resource
import shutil
import subprocess
import sys
import zlib
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from attfc.errors import UserError
from attfc.training.checkpoints import checkpoint
from attfc.training.checkpoints import storage as checkpoint_storage
from attfc.training.checkpoints.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from attfc.training.checkpoints.manifest import DTYPES, is_dense
from attfc.training.checkpoints.random_state import rng_state, set_rng_state


def same(left, right) -> bool:
    """Equal to the last bit, types included (an OrderedDict comes back as a dict)."""
    if isinstance(left, torch.Tensor):
        return (
            isinstance(right, torch.Tensor)
            and left.dtype == right.dtype
            and left.shape == right.shape
            and left.detach()
            .contiguous()
            .reshape(-1)
            .view(torch.uint8)
            .equal(right.contiguous().reshape(-1).view(torch.uint8))
        )
    if isinstance(left, dict):
        return (
            isinstance(right, dict) and list(left) == list(right) and all(same(left[key], right[key]) for key in left)
        )
    if isinstance(left, list | tuple):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float) and math.isnan(left):
        return isinstance(right, float) and math.isnan(right)
    return type(left) is type(right) and left == right


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def small(step: int = 0) -> dict:
    return {"weight": torch.arange(6.0).view(2, 3) + step, "step": step}


def rewrite(path: Path, change) -> None:
    """Change a checkpoint's manifest as somebody would who can compute checksums."""
    data = json.loads((path / "manifest.json").read_text())
    change(data)
    (path / "manifest.json").write_text(json.dumps(data))


def forge(path: Path, name: str, data: bytes) -> None:
    """Put `data` in the place of a file, with the right size and checksum in the manifest."""
    (path / name).write_bytes(data)
    rewrite(path, lambda manifest: manifest["files"].update({name: {"bytes": len(data), "crc32": zlib.crc32(data)}}))


# What goes in comes out


def test_every_kind_of_value_returns(tmp_path):
    state = {
        "floats": [0.1, 1 / 3, -0.0, math.inf, -math.inf, math.nan, 5e-324],
        "ints": (0, -1, 2**70),
        "none": None,
        "flags": [True, False],
        "text": "façade \n \ud800".encode("utf-8", "replace").decode(),
        "empty": [{}, [], (), ""],
        "ordered": OrderedDict(b=1, a=(2, [3, (4,)])),
        "numbered": {0: "zero", 1: {"x": torch.ones(1)}, None: 2, 2.5: 3} | {"$tensor": "not one"},
        "tensors": [torch.zeros(0), torch.zeros(0, 4), torch.tensor(3.5), torch.tensor([math.nan, -0.0])],
        "a/b": torch.ones(1),
        "a": {"b": torch.zeros(1)},
        "part": torch.arange(10)[2:8:2],
        "expanded": torch.ones(1).expand(4),
        "parameter": nn.Parameter(torch.ones(2)),
    }
    path = save_checkpoint(tmp_path, 100, state)
    assert path == tmp_path / "step_000000100"
    assert sorted(files(path)) == ["manifest.json", "state.json", "tensors_00000.safetensors"]
    assert same(state, load_checkpoint(path))


@pytest.mark.parametrize("name", DTYPES)
def test_every_type_returns_bit_for_bit(tmp_path, name):
    raw = torch.randint(0, 2 if name == "BOOL" else 256, (5 * DTYPES[name].itemsize,), dtype=torch.uint8)
    state = {"a": torch.ones(3, dtype=torch.uint8), "b": raw.view(DTYPES[name]), "c": torch.ones(1, dtype=torch.int8)}
    path = save_checkpoint(tmp_path, 0, state)
    assert same(state, load_checkpoint(path))
    data = (path / "tensors_00000.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["b"]["data_offsets"][0] % DTYPES[name].itemsize == 0  # older readers want aligned tensors


def test_layouts_return(tmp_path):
    state = {
        "channels_last": torch.randn(4, 3, 2, 5).contiguous(memory_format=torch.channels_last),
        "transposed": torch.randn(3, 4).t(),
        "plain": torch.randn(2, 3),
    }
    loaded = load_checkpoint(save_checkpoint(tmp_path, 0, state))
    assert same(state, loaded)
    assert {name: tensor.stride() for name, tensor in loaded.items()} == {n: t.stride() for n, t in state.items()}


def test_dense_layouts():
    assert is_dense((2, 3, 4), (12, 4, 1))
    assert is_dense((2, 3, 4), (12, 1, 3))
    assert is_dense((2, 1, 4), (4, 99, 1))
    assert not is_dense((2, 3), (1, 1))
    assert not is_dense((2, 3), (6, 2))
    assert not is_dense((4,), (0,))


def test_optimizer_schedule_and_random_state_resume_bit_for_bit(tmp_path):
    def make(name):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.3), nn.Flatten(), nn.Linear(144, 2))
        network = network.to(memory_format=torch.channels_last)
        groups = [{"params": network[0].parameters(), "lr": 0.05}, {"params": network[4].parameters()}]
        kind = {
            "sgd": lambda: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
            "adamw": lambda: torch.optim.AdamW(groups, lr=0.01),
        }
        optimizer = kind[name]()
        return network, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)

    def train(network, optimizer, schedule, steps):
        losses = []
        for _ in range(steps):
            loss = network(torch.randn(4, 3, 8, 8)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        return losses

    for number, name in enumerate(("sgd", "adamw")):
        parts = make(name)
        train(*parts, 3)
        state = {str(i): part.state_dict() for i, part in enumerate(parts)} | {"rng": rng_state()}
        path = save_checkpoint(tmp_path, number, state)
        expected = train(*parts, 3)
        again = make(name)
        loaded = load_checkpoint(path)
        for i, part in enumerate(again):
            part.load_state_dict(loaded[str(i)])
        set_rng_state(loaded["rng"])
        assert train(*again, 3) == expected


def test_filled_in_place(tmp_path):
    path = save_checkpoint(tmp_path, 0, {"model": {"w": torch.ones(2, 2)}, "optimizer": {0: torch.full((2,), 5.0)}})
    mine = torch.zeros(2, 2)
    loaded = load_checkpoint(path, place=lambda name, size, dtype: mine if name == "model/w" else None)
    assert torch.equal(mine, torch.ones(2, 2))
    assert loaded["model"]["w"].data_ptr() == mine.data_ptr()
    assert torch.equal(loaded["optimizer"][0], torch.full((2,), 5.0))  # created lazily: only the checkpoint has it


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (object(), "the state at 'part/x' is a builtins.object"),
        ({(1, 2): 3}, "a key of the state at 'part/x' is a tuple"),
        (torch.zeros(1, device="meta"), "tensor 'part/x' .* on meta"),
        (torch.zeros(1, dtype=torch.complex64), "torch.complex64"),
        (torch.zeros(1).to_sparse(), "cannot be saved: a checkpoint holds dense tensors"),
    ],
)
def test_values_that_cannot_be_saved_are_named(tmp_path, value, text):
    with pytest.raises(TypeError, match=text):
        save_checkpoint(tmp_path, 0, {"part": {"x": value}})
    assert files(tmp_path) == {}


# Whole or not at all


def test_same_step_again_replaces(tmp_path):
    save_checkpoint(tmp_path, 5, small(1))
    path = save_checkpoint(tmp_path, 5, small(2))
    assert [child.name for child in tmp_path.iterdir()] == ["step_000000005"]
    assert same(load_checkpoint(path), small(2))


def test_newest_whole_one_is_found(tmp_path):
    assert latest_checkpoint(tmp_path / "nowhere") is None
    paths = [save_checkpoint(tmp_path, step, small(step)) for step in (9, 10, 2_000_000_000)]
    (tmp_path / "step_notes").mkdir()
    (tmp_path / "step_000000099").write_text("a file")
    shutil.copytree(paths[2], tmp_path / ".step_3000000000.partial")
    assert latest_checkpoint(tmp_path) == paths[2]
    (paths[2] / "manifest.json").unlink()
    assert latest_checkpoint(tmp_path) == paths[1]
    tensors = paths[1] / "tensors_00000.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    assert latest_checkpoint(tmp_path) == paths[0]
    (paths[0] / "state.json").unlink()
    assert latest_checkpoint(tmp_path) is None


@pytest.mark.parametrize("name", ["tensors_00000.safetensors", "state.json"])
def test_a_flipped_bit_is_noticed(tmp_path, name):
    path = save_checkpoint(tmp_path, 1, small())
    data = bytearray((path / name).read_bytes())
    data[-3] ^= 1
    (path / name).write_bytes(data)
    with pytest.raises(UserError, match=f"step_000000001 is damaged: the checksum of {name} differs"):
        load_checkpoint(path)


def test_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"there is no checkpoint at .*step_1"):
        load_checkpoint(tmp_path / "step_1")
    with pytest.raises(UserError, match=r"manifest\.json is missing"):
        load_checkpoint(tmp_path)


def test_pruning_keeps_the_newest_whole_ones(tmp_path):
    paths = [save_checkpoint(tmp_path, step, small(step)) for step in range(5)]
    (paths[3] / "state.json").unlink()  # damaged: does not count as kept
    assert prune_checkpoints(tmp_path, 2) == [paths[1], paths[0]]
    assert sorted(child.name for child in tmp_path.iterdir()) == [path.name for path in paths[2:]]
    with pytest.raises(UserError, match="cannot keep 0 checkpoints"):
        prune_checkpoints(tmp_path, 0)


def test_leftovers_are_cleared_and_a_cut_replacement_is_finished(tmp_path):
    one, two = save_checkpoint(tmp_path, 1, small(1)), save_checkpoint(tmp_path, 2, small(2))
    shutil.copytree(one, tmp_path / ".step_000000003.partial")
    shutil.copytree(one, tmp_path / ".step_000000000.removed")
    shutil.copytree(one, tmp_path / ".step_000000001.old")
    (tmp_path / ".step_notes").mkdir()
    two.rename(tmp_path / ".step_000000002.old")  # killed between the two renames of a replacement
    assert same(load_checkpoint(latest_checkpoint(tmp_path)), small(2))
    three = save_checkpoint(tmp_path, 3, small(3))
    assert sorted(child.name for child in tmp_path.iterdir()) == [".step_notes", one.name, two.name, three.name]


class Break:
    """Raise `error` at call number `at` of a function."""

    def __init__(self, original, at, error):
        self.original, self.at, self.error, self.calls = original, at, error, 0

    def __call__(self, *arguments, **options):
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        return self.original(*arguments, **options)


def test_where_nothing_was_saved_before_there_is_nothing_to_resume(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("attfc.training.checkpoints.checkpoint._write_durably", full)
    with pytest.raises(UserError, match=r"nothing was saved before: make room .* there, then begin the run again$"):
        save_checkpoint(tmp_path, 7, small(7))


@pytest.mark.parametrize("same_step", [True, False])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), UserError),
        (PermissionError(errno.EACCES, "Permission denied"), UserError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (RuntimeError("the device is gone"), RuntimeError),
    ],
)
@pytest.mark.parametrize(("where", "calls"), [("os.fsync", 5), ("pathlib.Path.rename", 2), ("zlib.crc32", 3)])
def test_failure_anywhere_leaves_what_was_saved(tmp_path, monkeypatch, where, calls, error, expected, same_step):
    """Break each call of a save in turn: a whole checkpoint loads, nothing temporary stays, the error is one clear line."""
    step = 7 if same_step else 8
    original = {"os.fsync": os.fsync, "pathlib.Path.rename": Path.rename, "zlib.crc32": zlib.crc32}[where]
    seen = 0
    for at in range(1, calls + 1):
        folder = tmp_path / str(at)
        save_checkpoint(folder, 7, small(7))
        with monkeypatch.context() as patch:
            broken = Break(original, at, type(error)(*error.args))
            patch.setattr(where, lambda *arguments, broken=broken: broken(*arguments))
            try:
                save_checkpoint(folder, step, small(100))
                failed = None
            except BaseException as raised:
                failed = raised
        published = where == "os.fsync" and at == 5  # only the parent folder's entry is still on its way to the disk
        assert same(load_checkpoint(latest_checkpoint(folder)), small(100 if published or failed is None else 7))
        assert [path.name for path in folder.iterdir() if not path.name.startswith("step_")] == []
        if failed is None:  # the call was not made, or is the fsync of a folder, which some systems do not have
            assert broken.calls < at or (where == "os.fsync" and at in (4, 5))
            continue
        seen += 1
        assert type(failed) is expected
        if expected is UserError:
            assert str(failed).startswith(f"cannot save checkpoint {folder}/step_00000000{step}: {error.strerror}")
            assert "what was saved before is untouched" in str(failed)
            assert ("MiB are free" in str(failed)) == (error.errno == errno.ENOSPC)
            assert "\n" not in str(failed)
    assert seen


def test_really_out_of_space(tmp_path):
    """A file size limit makes the kernel refuse the write in mid-file, as a full disk does."""
    save_checkpoint(tmp_path, 1, small(1))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limit[1]))
    try:
        with pytest.raises(UserError, match=r"File too large \(needs 8\.0 MiB, .* MiB are free\)"):
            save_checkpoint(tmp_path, 2, {"big": torch.zeros(2 << 20)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert [child.name for child in tmp_path.iterdir()] == ["step_000000001"]
    assert same(load_checkpoint(latest_checkpoint(tmp_path)), small(1))


def test_nothing_is_published_before_it_is_on_the_disk(tmp_path, monkeypatch):
    """Every file and the temporary folder are forced to the disk before the rename, the parent after it."""
    events = []
    fsync, rename = os.fsync, Path.rename

    def recorded_fsync(descriptor):
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def recorded_rename(path, target):
        events.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "rename", recorded_rename)
    save_checkpoint(tmp_path / "checkpoints", 1, small())
    partial = ".step_000000001.partial"
    assert events == ["tensors_00000.safetensors", "state.json", "manifest.json", partial, "rename", "checkpoints"]


# From a stranger


class Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_pickles_in_a_checkpoint_do_not_run(tmp_path):
    ran = tmp_path / "ran"
    exploit = pickle.dumps(Payload(ran))
    path = save_checkpoint(tmp_path / "c", 1, small())
    (path / ".metadata").write_bytes(exploit)  # where torch.distributed.checkpoint would unpickle it
    (path / "__0.metadata").write_bytes(exploit)
    assert same(load_checkpoint(path), small())
    zipped = tmp_path / "zipped"
    torch.save({"weight": Payload(ran)}, zipped)
    for data in (exploit, zipped.read_bytes()):
        forged = shutil.copytree(path, tmp_path / "forged", dirs_exist_ok=True)
        rewrite(
            forged,
            lambda manifest: manifest["tensors"]["weight"].update(
                size=[1], chunks=[[[0], [1], "tensors_00000.safetensors"]]
            ),
        )
        forge(forged, "tensors_00000.safetensors", data)
        with pytest.raises(UserError, match=r"tensors_00000\.safetensors is damaged"):
            load_checkpoint(forged)
        for name in ("state.json", "manifest.json"):
            forged = shutil.copytree(path, tmp_path / "forged", dirs_exist_ok=True)
            if name == "state.json":
                forge(forged, name, data)
            else:
                (forged / name).write_bytes(data)
            with pytest.raises(UserError, match=name.replace(".", r"\.")):
                load_checkpoint(forged)
    assert not ran.exists()
    os.system(f"touch {ran}")  # the payload would have been seen
    assert ran.exists()


def test_no_module_of_ours_unpickles():
    for module in (checkpoint, checkpoint_storage):
        text = Path(module.__file__).read_text()
        assert "torch.load" not in text
        assert "import pickle" not in text


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda m: m["tensors"]["weight"].update(size=[2**20, 3]), "not covered by its chunks"),
        (
            lambda m: m["tensors"]["weight"].update(size=[2**40], chunks=[[[0], [2**40], "tensors_00000.safetensors"]]),
            "tensors take",
        ),
        (lambda m: m["tensors"].update({f"w{i}": m["tensors"]["weight"] for i in range(100)}), "tensors take"),
        (
            lambda m: m["files"]["tensors_00000.safetensors"].update(bytes=23),
            r"its tensors take 24 bytes of tensors_00000\.safetensors, which has 23",
        ),
        (lambda m: m["tensors"]["weight"].update(size=[-1]), "size.0: .* greater than or equal to 0, not -1"),
        (lambda m: m["tensors"]["weight"].update(size=[True]), "size.0: .* valid integer, not True"),
        (lambda m: m["tensors"]["weight"].update(size=[1] * 100), "size: .*at most 32 items"),
        (lambda m: m["tensors"]["weight"].update(strides=[0, 0]), "cannot have strides"),
        (lambda m: m["tensors"]["weight"].update(strides=[2**40, 1]), "cannot have strides"),
        (lambda m: m["tensors"]["weight"].update(dtype="OBJ"), "unknown type 'OBJ'"),
        (lambda m: m["tensors"]["weight"].update(dtype=["F32"]), "damaged or forged"),
        (lambda m: m["tensors"]["weight"]["chunks"][0].__setitem__(2, "../../secret"), "damaged or forged"),
        (
            lambda m: m["files"].update({"../../etc/passwd": {"bytes": 1, "crc32": 0}}),
            r"files\.\.\./\.\./etc/passwd\..*should match pattern",
        ),
        (
            lambda m: m["files"].update({"tensors_00001.safetensors": {"bytes": 1, "crc32": 0}}),
            "tensors_00001.* is missing",
        ),
        (lambda m: m["files"].pop("state.json"), r"lists no state\.json"),
        (lambda m: m.update(files=[]), "damaged or forged"),
        (lambda m: m.update(step="1"), "damaged or forged"),
        (lambda m: m.update(version=2), "format version 2, this attfc reads 1"),
        (lambda m: m.update(format="other"), "is not the manifest of an attfc checkpoint"),
        (
            lambda m: m["tensors"]["weight"].update(size=[6], chunks=[[[0], [6], "tensors_00000.safetensors"]]),
            "the manifest says",
        ),
        (lambda m: m["tensors"]["weight"].update(dtype="I32"), "the manifest says"),
        (lambda m: m["tensors"].pop("weight"), "names tensor 'weight', which is not in the checkpoint"),
    ],
)
def test_forged_manifests_are_refused(tmp_path, change, text):
    path = save_checkpoint(tmp_path, 1, small())
    rewrite(path, change)
    with pytest.raises(UserError, match=text):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "tree",
    [
        '{"$call": "os.system"}',
        '{"a": {"$items": [[[1], 2]]}}',
        "[]",
        '{"$tensor": 5}',
        "[" * 10**5,
        '{"a": {"$tensor": "weight", "b": 1}}',
    ],
)
def test_forged_states_are_refused(tmp_path, tree):
    path = save_checkpoint(tmp_path, 1, small())
    forge(path, "state.json", tree.encode())
    with pytest.raises(UserError, match=r"state\.json is damaged"):
        load_checkpoint(path)


def test_links_are_not_followed(tmp_path):
    path = save_checkpoint(tmp_path / "c", 1, small())
    (path / "state.json").rename(tmp_path / "elsewhere")
    (path / "state.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"state\.json is missing"):
        load_checkpoint(path)


# Many ranks

SHARDED = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from attfc.training.checkpoints.checkpoint import load_checkpoint, prune_checkpoints, save_checkpoint

rank, folder, port = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
rows, bias = torch.arange(21.0).view(7, 3), torch.arange(3.0)
state = {"rows": distribute_tensor(rows, mesh, [Shard(0)]), "columns": distribute_tensor(rows, mesh, [Shard(1)]),
         "bias": distribute_tensor(bias, mesh, [Replicate()]), "plain": bias + 1, "step": 3}
path = save_checkpoint(folder / "c", 3, state)
into = {"rows": distribute_tensor(torch.zeros(7, 3), mesh, [Shard(1)]), "plain": torch.zeros(3)}
loaded = load_checkpoint(path, place=lambda name, *_: into.get(name))
assert into["rows"].full_tensor().equal(rows) and loaded["rows"].equal(into["rows"].to_local()), loaded["rows"]
assert into["plain"].equal(bias + 1) and loaded["columns"].equal(rows) and loaded["step"] == 3
mine = distribute_tensor(torch.zeros(7, 3), mesh, [Shard(0)])
one = load_checkpoint(folder / "single" / "step_000000001", place=lambda *_: mine)
assert one["rows"].shape[0] in (3, 4) and mine.full_tensor().equal(rows)
save_checkpoint(folder / "c", 4, state)
prune_checkpoints(folder / "c", 1)
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow  # starts two processes that meet over gloo: about 10 s
def test_saved_on_two_ranks_loads_on_one_and_back(tmp_path, end_with_test):
    rows = torch.arange(21.0).view(7, 3)
    save_checkpoint(tmp_path / "single", 1, {"rows": rows})
    children = [
        end_with_test(
            subprocess.Popen([sys.executable, "-W", "error::UserWarning", "-c", SHARDED, str(rank), str(tmp_path), "0"])
        )
        for rank in range(2)
    ]
    assert [child.wait(timeout=120) for child in children] == [0, 0]
    path = latest_checkpoint(tmp_path / "c")
    assert sorted(files(tmp_path / "c")) == [
        f"step_000000004/{name}"
        for name in ("manifest.json", "state.json", "tensors_00000.safetensors", "tensors_00001.safetensors")
    ]
    expected = {"rows": rows, "columns": rows, "bias": torch.arange(3.0), "plain": torch.arange(3.0) + 1, "step": 3}
    assert same(load_checkpoint(path), expected)
