"""MomentumPair against a loop written out, its buffer policies, and its layout and device manners."""

import copy
import math

import pytest
import torch
from torch import nn

from attfc.errors import UserError
from attfc.training.momentum import MomentumPair, momentum_at


class Small(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding_size = 4
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(6, 4)

    def forward(self, images):
        return self.out(self.dropout(self.norm(self.conv(images)).relu()).mean((2, 3)))


def drift(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("schedule", ["constant", "ramp"])
@pytest.mark.parametrize("momentum", [0.999, 0.9, 0.0])
def test_parameters_follow_the_formula(momentum, schedule):
    torch.manual_seed(0)
    pair = MomentumPair(Small(), momentum, schedule=schedule)
    expected = [parameter.double().clone() for parameter in pair.query.parameters()]
    for step in range(30):
        drift(pair.query, step)
        m = momentum if schedule == "constant" else min(momentum, (1 + step) / (10 + step))
        expected = [
            m * e + (1 - m) * q.detach().double() for e, q in zip(expected, pair.query.parameters(), strict=True)
        ]
        pair.update()
    for key, value in zip(pair.key.parameters(), expected, strict=True):
        torch.testing.assert_close(key.double(), value, rtol=1e-5, atol=1e-5)


def test_zero_momentum_is_an_exact_copy_whatever_was_there():
    pair = MomentumPair(Small(), 0.0, schedule="ramp", batch_norm="averaged")
    with torch.no_grad():
        pair.key.conv.weight.fill_(math.nan)
    drift(pair.query, 1)
    pair.query(torch.randn(2, 3, 8, 8))
    pair.update()
    for name, value in pair.query.state_dict().items():
        assert torch.equal(pair.key.state_dict()[name], value), name


def test_query_is_the_backbone_and_key_takes_no_gradient():
    backbone = Small()
    pair = MomentumPair(backbone)
    assert pair.query is backbone
    assert all(parameter.requires_grad for parameter in pair.query.parameters())
    assert not any(parameter.requires_grad for parameter in pair.key.parameters())
    storages = {p.data_ptr() for p in pair.query.parameters()}
    assert storages.isdisjoint({p.data_ptr() for p in pair.key.parameters()})
    embeddings = pair.embed_keys(torch.randn(2, 3, 3, 8, 8))
    assert embeddings.shape == (2, 3, 4)
    assert not embeddings.requires_grad


def test_keys_are_embedded_in_their_order():
    pair = MomentumPair(Small(), batch_norm="averaged")
    keys = torch.randn(2, 3, 3, 8, 8)
    embeddings = pair.embed_keys(keys)
    for b in range(2):
        for k in range(3):
            torch.testing.assert_close(embeddings[b, k], pair.key(keys[b, k][None])[0])


def test_no_keys():
    assert MomentumPair(Small()).embed_keys(torch.zeros(5, 0, 3, 8, 8)).shape == (5, 0, 4)


def test_batch_policy_uses_the_key_batch_and_keeps_its_own_buffers():
    pair = MomentumPair(Small(), 0.5, batch_norm="batch")
    pair.train()
    keys = torch.randn(4, 2, 3, 8, 8) * 3 + 1
    reference = copy.deepcopy(pair.key).train()
    expected = reference(keys.flatten(0, 1)).view(4, 2, 4)
    torch.testing.assert_close(pair.embed_keys(keys), expected)
    pair.query(torch.randn(8, 3, 8, 8))
    own = pair.key.norm.running_mean.clone()
    assert torch.equal(own, reference.norm.running_mean)
    pair.update()
    assert torch.equal(pair.key.norm.running_mean, own)
    assert int(pair.key.norm.num_batches_tracked) == 1


def test_averaged_policy_is_eval_mode_and_averages_buffers():
    pair = MomentumPair(Small(dropout=0.5), 0.9, batch_norm="averaged")
    pair.train()
    assert pair.query.training
    assert not any(module.training for module in pair.key.modules())
    keys = torch.randn(2, 2, 3, 8, 8)
    assert torch.equal(pair.embed_keys(keys), pair.embed_keys(keys))
    mean, variance = torch.zeros(6).double(), torch.ones(6).double()
    for step in range(40):
        pair.query(torch.randn(8, 3, 6, 6) + 2)
        pair.update()
        m = min(0.9, (1 + step) / (10 + step))
        mean = m * mean + (1 - m) * pair.query.norm.running_mean.double()
        variance = m * variance + (1 - m) * pair.query.norm.running_var.double()
    torch.testing.assert_close(pair.key.norm.running_mean.double(), mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pair.key.norm.running_var.double(), variance, rtol=1e-4, atol=1e-5)
    assert int(pair.key.norm.num_batches_tracked) == 40


def test_start_of_running_statistics_is_soon_forgotten():
    pair = MomentumPair(Small(), 0.999, batch_norm="averaged")
    torch.manual_seed(0)
    for _ in range(60):
        pair.query(torch.randn(8, 3, 6, 6) + 5)
        pair.update()
    error = (pair.key.norm.running_mean - pair.query.norm.running_mean).abs().max()
    assert error < 0.05 * pair.query.norm.running_mean.abs().max()  # a plain 0.999 would be off by 94 %


def test_ramp_rises_to_its_limit():
    values = [momentum_at(step, 0.999, "ramp") for step in (0, 100, 8_989, 8_990, 10**7)]
    assert values == sorted(values)
    assert values[0] == 0.1
    assert values[2] < 0.999 == values[3] == values[4]
    assert momentum_at(0, 0.999) == 0.999


def test_resumed_ramp_goes_on():
    torch.manual_seed(0)
    pair = MomentumPair(Small(), 0.999, schedule="ramp", batch_norm="averaged")
    for step in range(5):
        drift(pair.query, step)
        pair.update()
    resumed = MomentumPair(Small(), 0.999, schedule="ramp", batch_norm="averaged")
    resumed.load_state_dict(pair.state_dict())
    assert resumed.step == 5
    for each in (pair, resumed):
        drift(each.query, 9)
        each.update()
    for name, value in pair.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_given_step_counts():
    pair = MomentumPair(Small(), 0.999, schedule="ramp")
    with torch.no_grad():
        pair.key.out.bias.fill_(0.0)
        pair.query.out.bias.fill_(1.0)
    pair.update(step=90)
    torch.testing.assert_close(pair.key.out.bias, torch.full((4,), 0.09))
    assert pair.step == 91


def test_channels_last_stays():
    pair = MomentumPair(Small().to(memory_format=torch.channels_last), 0.9)
    assert pair.key.conv.weight.is_contiguous(memory_format=torch.channels_last)
    seen = []
    pair.key.conv.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.randn(6, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    pair.embed_keys(images.unflatten(0, (2, 3)))
    pair.update()
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert seen[0].data_ptr() == images.data_ptr()  # no copy on the way
    assert pair.key.conv.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("batch_norm", ["batch", "averaged"])
def test_meta_device(batch_norm):
    with torch.device("meta"):
        pair = MomentumPair(Small(), batch_norm=batch_norm, schedule="ramp")
        keys = torch.empty(2, 3, 3, 8, 8)
    pair.update()
    assert pair.embed_keys(keys).shape == (2, 3, 4)
    assert pair.key.conv.weight.device.type == "meta"
    assert int(pair.state_dict()["_extra_state"]) == 1


def test_update_inside_a_compiled_loop_does_not_compile_anew():
    graphs = []

    def counted(graph, inputs):
        graphs.append(graph)
        return graph.forward

    pair = MomentumPair(nn.Linear(2, 2), 0.9)

    @torch.compile(backend=counted)
    def loop_body(x):
        pair.update()
        return pair.embed_keys(x) * 2

    for _ in range(6):
        loop_body(torch.ones(3, 1, 2))
    assert pair.step == 6
    assert 1 <= len(graphs) <= 3
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"momentum": 1.5}, "momentum 1.5 is outside"),
        ({"schedule": "linear"}, "'linear' is unknown: use 'constant' or 'ramp'"),
        ({"batch_norm": "eval"}, "'eval' is unknown: use 'batch' or 'averaged'"),
    ],
)
def test_bad_options(options, text):
    with pytest.raises(UserError, match=text):
        MomentumPair(nn.Linear(1, 1), **options)


def test_without_keys_no_copy_is_made_and_a_head_with_keys_is_refused() -> None:
    pair = MomentumPair(Small(), batch_norm="averaged", keys=False)
    assert pair.key is None
    assert [id(parameter) for parameter in pair.parameters()] == [
        id(parameter) for parameter in pair.query.parameters()
    ]
    assert {name.split(".")[0] for name in pair.state_dict()} == {"query", "_extra_state"}
    assert pair.eval().train().training
    assert pair.embed_keys(torch.zeros(2, 0, 3, 8, 8)).shape == (2, 0, 4)  # no keys, no key encoder needed
    for call in (pair.update, lambda: pair.embed_keys(torch.zeros(2, 1, 3, 8, 8))):
        with pytest.raises(UserError, match="this pair has no key encoder, and the head takes keys"):
            call()


def test_a_state_with_a_key_encoder_loads_without_one_and_the_other_way() -> None:
    with_keys, without = MomentumPair(Small(), 0.5), MomentumPair(Small(), 0.5, keys=False)
    drift(with_keys.query, 1)
    with_keys.update()
    state = with_keys.state_dict()
    names = list(state)
    without.load_state_dict(state)
    assert list(state) == names  # the caller's own is left as it was
    query = with_keys.query.state_dict()
    assert all(torch.equal(tensor, query[name]) for name, tensor in without.query.state_dict().items())
    back = MomentumPair(Small(), 0.5)
    back.load_state_dict(without.state_dict())
    for encoder in (back.query, back.key):
        assert all(torch.equal(tensor, query[name]) for name, tensor in encoder.state_dict().items())
    assert {p.data_ptr() for p in back.query.parameters()}.isdisjoint({p.data_ptr() for p in back.key.parameters()})
    other = MomentumPair(nn.Linear(2, 2), keys=False).state_dict()
    for pair in (without, back):
        with pytest.raises(RuntimeError, match=r"Missing key.*query\.conv\.weight"):
            pair.load_state_dict(other)
