"""Backbones: the contract of create_backbone, options, sizes, counting."""

import builtins
import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from attfc.backbones import backbone_names, create_backbone, list_backbones
from attfc.backbones.iresnet import IResNet
from attfc.backbones.mobilefacenet import MobileFaceNet
from attfc.backbones.shapes import shapes_only
from attfc.backbones.vit import VisionTransformer
from attfc.config import load_config, preset_names
from attfc.errors import UserError


def small_iresnet(**options):
    return IResNet((1, 1, 1, 1), (4, 4, 8, 8, 8), embedding_size=16, **{"image_size": 32, **options})


def small_mobilefacenet(**options):
    return MobileFaceNet((2, 1, 1, 1), 1, embedding_size=16, **{"image_size": 32, **options})


def small_vit(**options):
    return VisionTransformer(16, 3, embedding_size=16, heads=2, **{"image_size": 31, **options})


def tiny(**options):
    return create_backbone("r6_tiny", 16, **{"image_size": 32, **options})


SMALL = [small_iresnet, small_mobilefacenet, small_vit, tiny]


def images(network, count=4, seed=0):
    size = network.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


# The contract


@pytest.mark.parametrize("name", [row.name for row in list_backbones()])
def test_every_backbone_has_its_sizes(name):
    with shapes_only():
        network = create_backbone(name, embedding_size=128)
    size = 56 if name.endswith("_tiny") else 112
    assert (network.name, network.embedding_size, network.image_size) == (name, 128, size)
    assert network.eval()(torch.empty(2, 3, size, size, device="meta")).shape == (2, 128)


@pytest.mark.parametrize(
    ("name", "size"), [("r18", 64), ("r18", 56), ("mbf", 128), ("mbf", 56), ("vit_t", 63), ("r10_tiny", 112)]
)
def test_other_image_sizes(name, size):
    with shapes_only():
        network = create_backbone(name, image_size=size).eval()
    assert network.image_size == size
    assert network(torch.empty(2, 3, size, size, device="meta")).shape == (2, 512)


@pytest.mark.parametrize("build", SMALL)
def test_autocast_ends_in_float32_and_stays_close(build):
    torch.manual_seed(0)
    network = build().eval()
    x = images(network)
    with torch.no_grad():
        exact = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(x)
    assert rounded.dtype == torch.float32
    assert nn.functional.cosine_similarity(exact, rounded).min() > 0.99
    assert not torch.equal(exact, rounded)


def test_the_last_linear_layer_is_float32_inside_autocast():
    network = small_iresnet().eval()
    seen = []
    network.fc.register_forward_hook(lambda _module, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    network.layer4[-1].register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        network(images(network))
    assert seen == [torch.bfloat16, (torch.float32, torch.float32)]


@pytest.mark.parametrize("build", SMALL)
def test_gradients_reach_every_trained_parameter(build):
    torch.manual_seed(0)
    network = build()
    x = images(network)
    before = x.clone()
    (network(x) * torch.randn(4, 16)).sum().backward()
    assert torch.equal(x, before)
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    still = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    assert still in ([], ["features.weight"], ["mask_token"])


@pytest.mark.parametrize("build", SMALL)
def test_checkpointing_changes_neither_gradients_nor_running_statistics(build):
    torch.manual_seed(0)
    plain = build(dropout=0.1)
    saving = build(dropout=0.1, checkpointing=True)
    saving.load_state_dict(copy.deepcopy(plain.state_dict()))
    for network in (plain, saving):
        torch.manual_seed(1)
        network(images(network)).square().mul(torch.arange(16)).sum().backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad), name
    for (name, a), b in zip(plain.named_buffers(), saving.buffers(), strict=True):
        assert torch.equal(a, b), name
        assert not name.endswith("num_batches_tracked") or b == 1


def test_checkpointing_keeps_fewer_tensors():
    kept = {}
    for checkpointing in (False, True):
        network = small_iresnet(checkpointing=checkpointing)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            network(images(network))
        kept[checkpointing] = sum(sizes)
    assert kept[True] < 0.6 * kept[False]


# Options


@pytest.mark.parametrize("build", [small_iresnet, small_mobilefacenet, small_vit, tiny])
def test_dropout_acts_in_training_only(build):
    torch.manual_seed(0)
    network = build(dropout=0.5)
    x = images(network)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


def test_zero_init_residual_makes_an_identity_block_the_identity():
    network = IResNet((2, 1, 1, 1), (4, 4, 8, 8, 8), image_size=32, zero_init_residual=True).eval()
    x = torch.randn(2, 4, 16, 16)
    assert torch.equal(network.layer1[1](x), x)


def test_drop_path_leaves_out_branches_of_whole_images_and_keeps_the_mean():
    network = small_vit(drop_path=0.5)
    assert [block.drop_path for block in network.blocks] == [0.0, 0.25, 0.5]
    branch = network.blocks[2]._branch(torch.ones(2000, 3, 4))
    per_image = branch.flatten(1)
    assert bool((per_image == per_image[:, :1]).all())
    assert set(per_image[:, 0].tolist()) == {0.0, 2.0}
    assert abs(float(branch.mean()) - 1.0) < 0.1
    network.eval()
    x = torch.ones(2, 3, 4)
    assert network.blocks[2]._branch(x) is x


def test_masking_puts_the_mask_token_into_the_places_of_the_dropped_ones():
    torch.manual_seed(0)
    network = small_vit(mask_ratio=1 / 3, image_size=27)  # 9 tokens, 3 of them masked
    x_BNE = torch.randn(5, 9, 16)
    kept_BNE, order_BN = network._drop_tokens(x_BNE)
    assert kept_BNE.shape == (5, 6, 16)
    filled_BNE = network._fill_tokens(kept_BNE, order_BN)
    for image in range(5):
        dropped = set(order_BN[image, 6:].tolist())
        for token in range(9):
            expected = network.mask_token[0, 0] if token in dropped else x_BNE[image, token]
            assert torch.equal(filled_BNE[image, token], expected)
    network(images(network)).sum().backward()
    assert network.mask_token.grad is not None
    network.eval()
    x = images(network)
    assert torch.equal(network(x), network(x))


def test_vision_transformers_mask_and_drop_what_arcface_torch_does():
    for name, drop_path in {"vit_t": 0.1, "vit_s": 0.1, "vit_b": 0.1, "vit_l": 0.05}.items():
        with shapes_only():
            network = create_backbone(name)
        assert (network.mask_ratio, network.blocks[-1].drop_path) == (0.1, drop_path), name
    network = create_backbone("vit_t", 16)
    assert network._drop_tokens(torch.zeros(1, 144, 256))[0].shape[1] == 129  # int(144 * 0.9)
    network = create_backbone("vit_t", 16, drop_path=0.0, mask_ratio=0.0)
    assert (network.mask_ratio, network.blocks[-1].drop_path) == (0.0, 0.0)
    for preset in [name for name in preset_names() if "_vit_" in name]:
        backbone = load_config(preset).backbone
        masked = {"vit_t": 0.0, "vit_s": 0.0, "vit_b": 0.1, "vit_l": 0.1}[
            backbone.name
        ]  # its ratio 0.05 masks 10 % there
        assert (backbone.options["drop_path"], backbone.options["mask_ratio"]) == (0.05, masked), preset


# Faults of the user


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("r5O",), {}, "no backbone is called 'r5O'; did you mean 'r50'?: known are mbf, "),
        (("r50",), {"dropot": 1}, "backbone r50 has no option 'dropot'; did you mean 'dropout'?: it takes dropout, checkpointing"),
        (("r50",), {"dropout": 1.0}, "dropout of backbone r50 is 1.0: use a number from 0 to below 1"),
        (("r50", 0), {}, "embedding_size 0 of backbone r50: use a positive number"),
        (("r50", 512, -8), {}, "image_size -8 of backbone r50: use a positive number of pixels"),
        (("mbf", 512, 100), {}, "image_size 100 does not fit backbone mbf: use a multiple of 8, such as 96 or 104"),
        (("r6_tiny", 512, 50), {}, "image_size 50 does not fit backbone r6_tiny"),
        (("vit_t", 512, 116), {}, "image_size 116 does not fit backbone vit_t with patches of 9: .* such as 108 or 117"),
        (("vit_t",), {"heads": 7}, "heads 7 of backbone vit_t do not divide its width 256"),
        (("vit_t",), {"drop_path": -0.1}, "drop_path of backbone vit_t is -0.1"),
        (("timm:resnet1",), {}, "timm .* has no network 'resnet1'; did you mean 'resnet"),
        (("timm:resnet10t",), {"drop_paths": 1}, "backbone timm:resnet10t has no option 'drop_paths'; did you mean 'drop_path'"),
    ],
)  # fmt: skip
def test_one_clear_error(arguments, options, message):
    with shapes_only(), pytest.raises(UserError, match=message.replace("?", r"\?")) as caught:
        create_backbone(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_a_missing_timm_names_the_extra(monkeypatch):
    real = builtins.__import__

    def without_timm(name, *args, **kwargs):
        if name == "timm":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_timm)
    with pytest.raises(UserError, match=r"backbone timm:resnet10t needs timm: pip install 'attfc\[timm\]'"):
        create_backbone("timm:resnet10t")


# timm


def test_a_timm_network_converts_the_colours():
    pytest.importorskip("timm")
    torch.manual_seed(0)
    network = create_backbone("timm:mobilenetv3_small_050", embedding_size=32, image_size=64, dropout=0.2).eval()
    assert (network.name, network.image_size, network.embedding_size) == ("timm:mobilenetv3_small_050", 64, 32)
    seen = []
    network.network.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    pixels = torch.randint(0, 256, (2, 3, 64, 64)).float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output = network((pixels - 127.5) / 127.5)
    assert (output.shape, output.dtype) == ((2, 32), torch.float32)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (pixels / 255 - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-4)


# Counting, without memory and without running: networks on the meta device


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one image."""

    dense: int
    """Convolutions and linear layers."""
    attention: int
    """Products of activations with activations: QK^T and AV."""


def count_macs(network: nn.Module, image_size: int) -> Macs:
    """Count the multiply-accumulates of one (3, image_size, image_size) image in evaluation.

    Args:
        network: on the meta device, such as ``with shapes_only(): network = create_backbone("r50")``, or on any other
            (then it is really run).
        image_size: height and width in pixels.
    """
    training = network.training
    device = next(network.parameters()).device
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network.eval()(torch.empty(1, 3, image_size, image_size, device=device))
    finally:
        network.train(training)
    macs = {str(operation): flops // 2 for operation, flops in counter.get_flop_counts()["Global"].items()}
    # Products of activations with each other come in batches (bmm), or as attention in one operation.
    attention = sum(count for operation, count in macs.items() if "bmm" in operation or "attention" in operation)
    return Macs(sum(macs.values()) - attention, attention)


def count_parameters(network: nn.Module) -> int:
    """Count the numbers in all parameters, trained or fixed."""
    return sum(parameter.numel() for parameter in network.parameters())


def test_macs_by_hand():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, groups=1), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(32, 5)
    )
    dense = 4 * 4 * 8 * 27 + 2 * 2 * 8 * 9 + 32 * 5
    assert count_macs(network, 8) == Macs(dense, 0)
    assert count_parameters(network) == (8 * 27 + 8) + (8 * 9 + 8) + (32 * 5 + 5)
    assert network.training


def test_macs_of_attention_by_hand():
    with shapes_only():  # on the CPU torch 2.9 and 2.10 do not count attention
        network = small_vit()  # 31 x 31: 3 x 3 tokens of 9 x 9, 16 numbers each
    dense = 9 * 16 * 243 + 3 * 9 * (16 * 48 + 16 * 16 + 2 * 16 * 64) + 9 * 16 * 16 + 16 * 16
    assert count_macs(network, 31) == Macs(dense, attention=3 * 2 * 9 * 9 * 16)


@pytest.mark.parametrize("name", ["r10_tiny", "mbf"])
def test_macs_agree_with_a_sum_over_layers(name):
    with shapes_only():
        network = create_backbone(name)
    counts = []
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(lambda layer, _, out: counts.append(out.numel() * layer.weight[0].numel()))
    assert count_macs(network, network.image_size) == Macs(sum(counts), 0)


@pytest.mark.parametrize("row", list_backbones(), ids=lambda row: row.name)
def test_the_table_states_what_is_counted(row):
    with shapes_only():
        network = create_backbone(row.name)
    macs = count_macs(network, row.image_size)
    assert row.params == count_parameters(network)
    assert (row.gmacs, row.attention_gmacs) == (macs.dense / 1e9, macs.attention / 1e9)
    assert (row.image_size, row.embedding_size) == (network.image_size, network.embedding_size)


def test_the_table_has_a_row_per_name():
    assert [row.name for row in list_backbones()] == list(backbone_names())
    rows = list_backbones()
    assert [row.name for row in rows][-2:] == ["r10_tiny", "r6_tiny"]
    assert len({row.name for row in rows}) == len(rows) == 13
    assert {row.source for row in rows if row.name.endswith("_tiny")} == {"attfc"}
    assert all(
        row.params > 0 and row.gmacs > 0 and (row.attention_gmacs > 0) == row.name.startswith("vit") for row in rows
    )
