"""Our backbones are the published ones: names, shapes, counts and, for three of them, the very outputs."""

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attfc.backbones import create_backbone, list_backbones
from attfc.backbones.shapes import shapes_only

HERE = Path(__file__).resolve().parent
FACTS: dict[str, dict[str, Any]] = json.loads((HERE / "backbones_facts.json").read_text())["networks"]
SHARED = HERE.parents[2] / "shared" / "reference" / "backbones.json"
GOLDEN = [name for name, facts in FACTS.items() if "golden" in facts]


def on_meta(name: str) -> nn.Module:
    with shapes_only():
        return create_backbone(name)


def shapes(network: nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in network.state_dict().items()}


def fingerprint(state: dict[str, list[int]]) -> str:
    lines = sorted(f"{name}:{'x'.join(map(str, shape))}" for name, shape in state.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def recipe(name: str, tensor: Tensor) -> Tensor:
    """The value that the golden outputs were made with: a function of the state's name and shape alone."""
    noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if name.endswith("num_batches_tracked"):
        return torch.zeros_like(tensor)
    if name.endswith("running_var"):
        return 1 + 0.1 * noise.abs()
    if name.endswith(("running_mean", "bias")):
        return 0.1 * noise
    if name.endswith(("pos_embed", "mask_token")):
        return 0.02 * noise
    if tensor.ndim >= 2:
        return noise / tensor[0].numel() ** 0.5
    return 1 + 0.1 * noise


def test_the_facts_cover_every_published_network():
    assert sorted(FACTS) == sorted(row.name for row in list_backbones() if row.source == "arcface_torch")
    assert len(FACTS) == 11
    assert len(GOLDEN) == 3


@pytest.mark.parametrize("name", FACTS)
def test_state_and_counts(name):
    facts = FACTS[name]
    network = on_meta(name)
    state = shapes(network)
    for entry, shape in facts["some_shapes"].items():
        assert state[entry] == shape, entry
    assert len(state) == facts["entries"]
    assert fingerprint(state) == facts["fingerprint"]
    (row,) = (row for row in list_backbones() if row.name == name)
    assert (row.params, round(row.gmacs, 3)) == (facts["params"], facts["gmacs"])
    assert round(row.attention_gmacs, 3) == facts["attention_gmacs"]


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_outputs(name):
    network = create_backbone(name).eval()
    network.load_state_dict({n: recipe(n, tensor) for n, tensor in network.state_dict().items()}, strict=True)
    images = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = network(images)
    golden = torch.tensor(FACTS[name]["golden"])
    assert outputs.shape == (2, 512)
    assert (outputs[:, :16] - golden).abs().max() <= 1e-4 * golden.abs().max()
    torch.testing.assert_close(outputs.norm(dim=1), torch.tensor(FACTS[name]["golden_norm"]), rtol=1e-4, atol=0)


@pytest.mark.skipif(not SHARED.exists(), reason="the full facts lie beside the repository, in ../shared, not in it")
@pytest.mark.parametrize("name", FACTS)
def test_the_full_facts_say_the_same(name):
    full = json.loads(SHARED.read_text())["networks"]
    assert sorted(full) == sorted(FACTS)
    assert shapes(on_meta(name)) == full[name]["state"]
    for key in ("params", "gmacs", "attention_gmacs", "golden", "golden_norm"):
        assert full[name].get(key) == FACTS[name].get(key)
