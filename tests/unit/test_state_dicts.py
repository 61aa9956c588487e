"""Bare state dicts: the network is recognised by names and shapes, and a hostile file executes nothing and names itself."""

import io
import os
import pickle
import resource
import zipfile

import pytest
import torch
from torch import nn

from attfc.backbones import backbone_names, create_backbone
from attfc.backbones.shapes import shapes_only
from attfc.errors import UserError
from attfc.export import state_dicts
from attfc.export.state_dicts import read_state_dict, recognise_network


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return create_backbone("r6_tiny", embedding_size=48).eval()


def saved(path, value, **options):
    torch.save(value, path, **options)
    return path


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_are_removed_and_the_embeddings_are_the_same(tmp_path, small, prefix):
    path = saved(tmp_path / "a.pt", {prefix + name: value for name, value in small.state_dict().items()})
    tensors, notes = read_state_dict(path)
    found = recognise_network(path, tensors)
    assert (found.name, found.embedding_size, found.image_size) == ("r6_tiny", 48, 56)
    images = torch.randn(3, 3, 56, 56)
    assert torch.equal(found(images), small(images))
    assert not found.training
    assert len(notes) == prefix.count(".")


def test_every_network_of_the_registry_is_told_from_the_others():
    # On the meta device: names and shapes are all that recognition looks at.
    names = backbone_names()
    shapes = {}
    for name in names:
        with shapes_only():
            shapes[name] = {key: value.shape for key, value in create_backbone(name).state_dict().items()}
    assert len(names) == 13
    for name in names:
        fits = [
            other
            for other in names
            if shapes[other].keys() == shapes[name].keys()
            and all(shapes[other][key] == shape for key, shape in shapes[name].items())
        ]
        assert fits == [name]


@pytest.mark.parametrize("name", ["mbf", "vit_t", "r18"])
def test_networks_of_arcface_torch_with_another_embedding_size(tmp_path, name):
    torch.manual_seed(1)
    network = create_backbone(name, embedding_size=96).eval()
    found = recognise_network(tmp_path / "x.pt", network.state_dict())
    assert (found.name, found.embedding_size) == (name, 96)
    for key, value in network.state_dict().items():
        assert torch.equal(found.state_dict()[key], value), key


def test_another_image_size_needs_to_be_said(tmp_path, small):
    network = create_backbone("r6_tiny", embedding_size=48, image_size=64)
    with pytest.raises(UserError, match=r"the nearest is r6_tiny: 'fc\.weight' is .* image_size=S"):
        recognise_network(tmp_path / "x.pt", network.state_dict())
    assert recognise_network(tmp_path / "x.pt", network.state_dict(), image_size=64).image_size == 64


def test_recognising_moves_no_random_generator(tmp_path, small):
    state = torch.get_rng_state()
    recognise_network(tmp_path / "x.pt", small.state_dict(), "r6_tiny")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("entry", ["state_dict_backbone", "state_dict", "backbone", "model"])
def test_training_checkpoints_hold_the_network_in_an_entry(tmp_path, small, entry):
    path = saved(tmp_path / "checkpoint_gpu_0.pt", {"epoch": 3, entry: small.state_dict()})
    tensors, notes = read_state_dict(path)
    assert recognise_network(path, tensors).name == "r6_tiny"
    assert notes == (f"took {entry!r} of the checkpoint, left 'epoch'",)


def test_unknown_networks_are_described(tmp_path, small):
    path = tmp_path / "other.pt"
    with pytest.raises(
        UserError, match=r"is of no network that attfc knows: its 2 tensors begin with 'weight', 'bias'"
    ):
        recognise_network(path, nn.Linear(3, 4).state_dict())
    state = small.state_dict()
    del state["norm.bias"]
    with pytest.raises(UserError, match=r"the nearest is r6_tiny: 'norm\.bias' is missing"):
        recognise_network(path, state)
    with pytest.raises(UserError, match=r"the nearest is r6_tiny: 'extra' is one too many"):
        recognise_network(path, {**small.state_dict(), "extra": torch.zeros(1)})
    with pytest.raises(
        UserError, match=r"is not of network r10_tiny: 'stem\.0\.weight' is \(16, .*the network needs \(32"
    ):
        recognise_network(path, small.state_dict(), "r10_tiny")
    with pytest.raises(UserError, match="no backbone is called 'r51'"):
        recognise_network(path, small.state_dict(), "r51")


class Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_a_pickle_that_calls_something_is_refused_by_name(tmp_path, small):
    target = tmp_path / "ran"
    for number, value in enumerate(
        [Payload(target), {"weight": Payload(target)}, {**small.state_dict(), "x": Payload(target)}]
    ):
        path = saved(tmp_path / f"{number}.pt", value)
        with pytest.raises(UserError, match=r"asks for (posix|nt)\.system: refused, nothing of it was executed"):
            read_state_dict(path)
    bare = tmp_path / "bare.pt"
    bare.write_bytes(pickle.dumps(Payload(target), protocol=2))
    with pytest.raises(UserError, match=r"format from before 1\.6"):
        read_state_dict(bare)
    renamed = tmp_path / "renamed.safetensors"
    renamed.write_bytes((tmp_path / "0.pt").read_bytes())
    with pytest.raises(UserError, match="damaged or no safetensors file"):
        read_state_dict(renamed)
    assert not target.exists()


def test_whole_modules_and_other_objects_are_refused(tmp_path, small):
    with pytest.raises(UserError, match=r"asks for attfc\.backbones\.tiny\.TinyBlock.*state dicts only"):
        read_state_dict(saved(tmp_path / "module.pt", small))
    with pytest.raises(UserError, match="holds a list, no state dict"):
        read_state_dict(saved(tmp_path / "list.pt", [torch.zeros(2)]))
    with pytest.raises(UserError, match="'epoch' is a int, a state dict has tensors by name"):
        read_state_dict(saved(tmp_path / "mixed.pt", {"epoch": 3}))
    with pytest.raises(UserError, match=r"asks for torch\._utils\._rebuild_sparse_tensor"):
        read_state_dict(saved(tmp_path / "sparse.pt", {"w": torch.eye(3).to_sparse()}))
    with pytest.raises(UserError, match="holds a dict, no state dict"):
        read_state_dict(saved(tmp_path / "empty.pt", {}))


def test_torch_script_is_a_program(tmp_path):
    path = tmp_path / "script.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("script/code/__torch__.py", "x")
        archive.writestr("script/data.pkl", b"\x80\x02}.")
    with pytest.raises(UserError, match="TorchScript archive, which is a program"):
        read_state_dict(path)


def rebuilt(path, target, *, compress=zipfile.ZIP_STORED, grow=None):
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w", compress) as archive:
        for entry in source.infolist():
            data = source.read(entry)
            archive.writestr(entry.filename, data if grow is None else grow(entry.filename, data))
    return target


def test_archives_that_would_grow_are_refused_before_torch_opens_them(tmp_path, small, monkeypatch):
    path = saved(tmp_path / "a.pt", small.state_dict())
    bomb = rebuilt(path, tmp_path / "bomb.pt", compress=zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch opened it"))
    with pytest.raises(UserError, match=r"is compressed: torch\.save stores"):
        read_state_dict(bomb)
    large = rebuilt(
        path, tmp_path / "large.pt", grow=lambda name, data: b"\0" * (33 * 2**20) if name.endswith("data.pkl") else data
    )
    with pytest.raises(UserError, match="its pickle has 34,603,008 bytes"):
        read_state_dict(large)
    monkeypatch.setattr(state_dicts, "LARGEST_FILE", 1000)
    with pytest.raises(UserError, match=r"a\.pt has [0-9,]+ bytes, more than 1,000"):
        read_state_dict(path)


@pytest.mark.parametrize("numbers", [2**40, 17])
def test_a_storage_larger_than_its_bytes_takes_no_memory(tmp_path, numbers):
    # The record beside the pickle holds 16 numbers.
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(16)}, buffer)
    path = tmp_path / "claims.pt"
    path.write_bytes(buffer.getvalue())
    claim = b"\x8a\x06" + numbers.to_bytes(6, "little")  # LONG1

    def grow(name, data):
        return data.replace(b"K\x10", claim) if name.endswith("data.pkl") else data

    hostile = rebuilt(path, tmp_path / "hostile.pt", grow=grow)
    with pytest.raises(
        UserError, match=rf"hostile\.pt is damaged .* a storage of {4 * numbers:,} bytes, the file holds 64"
    ):
        read_state_dict(hostile)


def test_damaged_files(tmp_path, small):
    path = saved(tmp_path / "a.pt", small.state_dict())
    data = path.read_bytes()
    for number, cut in enumerate([0, 3, 100, len(data) // 2, len(data) - 10]):
        damaged = tmp_path / f"cut{number}.pt"
        damaged.write_bytes(data[:cut])
        with pytest.raises(UserError, match=rf"cut{number}\.pt"):
            read_state_dict(damaged)
    with pytest.raises(UserError, match=r"nowhere\.pt cannot be read: No such file"):
        read_state_dict(tmp_path / "nowhere.pt")


def test_tensors_that_stretch_over_few_bytes_do_not_fill_a_network(tmp_path):
    # Stride 0: a shape of a terabyte over four bytes.
    path = saved(tmp_path / "wide.pt", {"features.weight": torch.zeros(1).expand(2**38)})
    with pytest.raises(UserError, match=r"stretches a tensor of size \(274877906944,\) over a storage of 1 numbers"):
        read_state_dict(path)


def archive_of(path, instructions: bytes):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + instructions)
        archive.writestr("a/byteorder", "little")
        archive.writestr("a/data/0", bytes(16))
        archive.writestr("a/version", "3\n")
    return path


LARGE = b"\x8a\x05" + (2**32).to_bytes(5, "little")  # LONG1
FOUR_NUMBERS = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
NESTED = b"}(K\x01K\x02\x86q\x00" + b"".join(b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(60)) + b"K\x01u."
GREEDY = {
    "bytearray": (b"c__builtin__\nbytearray\n" + LARGE + b"\x85R.", r"asks for __builtin__\.bytearray: refused"),
    "tensor": (b"ctorch\nTensor\n" + LARGE + b"\x85R.", r"asks for torch\.Tensor: refused"),
    "storage": (
        b"ctorch.storage\nUntypedStorage\n" + LARGE + b"\x85R.",
        r"calls torch\.storage\.UntypedStorage in a way that torch\.save does not write",
    ),
    "new": (b"ctorch.storage\nUntypedStorage\n" + LARGE + b"\x85\x81.", "uses the instruction NEWOBJ"),
    "size": (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + FOUR_NUMBERS + b"K\x00" + LARGE + b"\x85K\x01\x85\x89NtR.",
        r"stretches a tensor of size \(4294967296,\) over a storage of 4 numbers",
    ),
    "beyond": (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + FOUR_NUMBERS + b"K\x02K\x04\x85K\x01\x85\x89NtR.",
        r"stretches a tensor of size \(4,\) over a storage of 4 numbers",
    ),
    "backwards": (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + FOUR_NUMBERS + b"K\x00K\x04\x85\x8a\x01\xff\x85\x89NtR.",
        "makes a tensor of something other than a storage",  # a stride of -1
    ),
    "dimensions": (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + FOUR_NUMBERS
        + b"K\x00"
        + 2 * (b"(" + 65 * b"K\x01" + b"t")
        + b"\x89NtR.",
        "makes a tensor of something other than a storage",
    ),
    "tuples": (NESTED, "a dict with keys other than text and numbers"),  # 2^60 steps to hash
    "long": (b"N" * 400_000 + b".", "more than 300,000 instructions"),
    "codec": (b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00bz2\x86R.", r"asks for _codecs\.encode: refused"),
}


@pytest.mark.parametrize("name", GREEDY)
def test_pickles_that_ask_for_memory_or_time_are_refused_before_torch_opens_them(tmp_path, monkeypatch, name):
    instructions, text = GREEDY[name]
    path = archive_of(tmp_path / f"{name}.pt", instructions)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch opened it"))
    with pytest.raises(UserError, match=rf"{name}\.pt.*{text}"):
        read_state_dict(path)


WEIGHT = (
    b"}X\x06\x00\x00\x00weightctorch._utils\n_rebuild_tensor_v2\n("
    + FOUR_NUMBERS
    + b"K\x00K\x04\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"
)


@pytest.mark.parametrize(
    "instructions",
    [
        WEIGHT + b"sr\xff\xff\xff\xffNj\xff\xff\xff\xff.",
        WEIGHT + b"s.more",
        b"NK\x01(" + WEIGHT + b"s.",
        b"\x80\x04" + WEIGHT + b"s.",
    ],
    ids=["remembered as the largest number", "bytes behind the end", "values and a mark below", "another protocol"],
)
def test_pickles_that_torch_reads_although_it_writes_others_are_read(tmp_path, instructions):
    tensors, _ = read_state_dict(archive_of(tmp_path / "odd.pt", instructions))
    assert list(tensors) == ["weight"]
    assert torch.equal(tensors["weight"], torch.zeros(4))


def test_four_gib_of_bytearray_take_no_memory(tmp_path):
    path = archive_of(tmp_path / "greedy.pt", GREEDY["bytearray"][0])
    assert path.stat().st_size < 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # the process's peak
    with pytest.raises(UserError, match=r"asks for __builtin__\.bytearray: refused, nothing of it was executed"):
        read_state_dict(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


def test_what_training_checkpoints_hold_beside_the_network_is_read(tmp_path, small):
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1, momentum=0.9)
    small(torch.randn(2, 3, 56, 56)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    state = {
        "epoch": 1,
        "state_dict_backbone": {**small.state_dict(), "steps": nn.Parameter(torch.zeros(2).half())},
        "state_optimizer": optimizer.state_dict(),
        "state_lr_scheduler": schedule.state_dict(),
        "sizes": torch.Size([2, 3]),
        "kind": torch.float16,
        "view": torch.arange(10.0)[3:9:2],
    }
    tensors, _ = read_state_dict(saved(tmp_path / "checkpoint.pt", state))
    assert len(tensors) == len(small.state_dict()) + 1


def test_archives_that_torch_would_read_otherwise_are_refused(tmp_path, small):
    path = saved(tmp_path / "a.pt", small.state_dict())
    data = path.read_bytes()
    prefixed = tmp_path / "prefixed.pt"
    prefixed.write_bytes(data[:64] + data)  # zipfile passes over what stands before the archive
    with pytest.raises(UserError, match=r"prefixed\.pt is damaged"):
        read_state_dict(prefixed)
    commented = tmp_path / "commented.pt"
    commented.write_bytes(data[:-2] + b"\x01\x00x")
    with pytest.raises(UserError, match=r"commented\.pt is damaged: its table of contents is not where it says"):
        read_state_dict(commented)
    twice = tmp_path / "twice.pt"
    twice.write_bytes(data)
    with zipfile.ZipFile(twice, "a") as archive:
        archive.writestr("A/DATA.PKL", b"\x80\x02}.")
    with pytest.raises(UserError, match=r"is not put together as torch\.save does it"):
        read_state_dict(twice)
