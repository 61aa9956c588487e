"""Parameter groups: every parameter once, decay and rate where they belong; the optimizers built from them."""

import copy

import pytest
import torch
from torch import nn

from attfc.errors import UserError
from attfc.training.optimizers import build_optimizer, parameter_groups


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(4), nn.Flatten(), nn.Linear(4, 2))


def ids(groups) -> list[int]:
    return [id(parameter) for group in groups for parameter in group["params"]]


@pytest.mark.parametrize("decay_norms_and_biases", [True, False])
def test_every_parameter_exactly_once(decay_norms_and_biases):
    encoder, head = network(), nn.Linear(2, 10, bias=False)
    head.shared = encoder[0]  # shared with the encoder: stays in the encoder's group
    encoder[4].bias.requires_grad_(False)
    groups = parameter_groups([encoder, head], 0.1, decay_norms_and_biases, head_learning_rate_scale=3.0)
    expected = [p for p in encoder.parameters() if p.requires_grad] + [head.weight]
    assert sorted(ids(groups)) == sorted(map(id, expected))
    scales = {id(p): group["learning_rate_scale"] for group in groups for p in group["params"]}
    assert scales[id(head.weight)] == 3.0
    assert scales[id(encoder[0].weight)] == 1.0


def test_norms_and_biases_are_spared():
    encoder = network()
    groups = parameter_groups([encoder], 0.1, decay_norms_and_biases=False)
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in encoder.named_parameters():
        assert decays[id(parameter)] == (0.1 if name in ("0.weight", "4.weight") else 0.0), name
    assert {group["weight_decay"] for group in parameter_groups([encoder], 0.1, True)} == {0.1}


def test_head_without_parameters_adds_no_group():
    assert len(parameter_groups([network(), nn.Identity()])) == 1


def test_sgd_step_by_hand():
    linear = nn.Linear(1, 1)
    with torch.no_grad():
        linear.weight.fill_(2.0)
        linear.bias.fill_(2.0)
    optimizer = build_optimizer("sgd", parameter_groups([linear], 0.5, False), learning_rate=0.1, momentum=0.9)
    weight, bias, weight_speed, bias_speed = 2.0, 2.0, 0.0, 0.0
    for _ in range(3):
        linear.weight.grad, linear.bias.grad = torch.ones(1, 1), torch.ones(1)
        optimizer.step()
        weight_speed = 0.9 * weight_speed + 1.0 + 0.5 * weight
        bias_speed = 0.9 * bias_speed + 1.0
        weight, bias = weight - 0.1 * weight_speed, bias - 0.1 * bias_speed
    assert linear.weight.item() == pytest.approx(weight)
    assert linear.bias.item() == pytest.approx(bias)


def test_adamw_and_scaled_head():
    encoder, head = nn.Linear(2, 2), nn.Linear(2, 3)
    groups = parameter_groups([encoder, head], 0.05, head_learning_rate_scale=10.0)
    optimizer = build_optimizer("adamw", groups, learning_rate=1e-3)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-3, 1e-2])
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    assert optimizer.param_groups[0]["eps"] == 1e-8
    assert all("lr" not in group for group in groups)  # the caller's groups stay as they were


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: parameter_groups([nn.Linear(1, 1)], -1.0), "weight decay -1.0 is negative"),
        (lambda: parameter_groups([nn.Linear(1, 1)], head_learning_rate_scale=0.0), "scale 0.0 must be above 0"),
        (lambda: parameter_groups([nn.Identity()]), "nothing to train"),
        (lambda: build_optimizer("lion", parameter_groups([nn.Linear(1, 1)])), "'lion' is unknown"),
        (lambda: build_optimizer("sgd", [], learning_rate=0.0), "learning rate 0.0 must be above 0"),
        (lambda: build_optimizer("sgd", [], momentum=1.0), "momentum 1.0 is outside"),
    ],
)
def test_bad_options(call, text):
    with pytest.raises(UserError, match=text):
        call()


def layers() -> list[nn.Module]:
    """Channels-last convolutions, one of a single pixel, and a layer that gets no gradient in the first step."""
    torch.manual_seed(0)
    late = nn.Linear(3, 5)
    convolutions = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.PReLU(8),
        nn.Conv2d(8, 4, 1, bias=False),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(64, 7),
    )
    return [convolutions.to(memory_format=torch.channels_last), late]


def steps(optimizer: torch.optim.Optimizer, modules: list[nn.Module], numbers: range) -> list[torch.Tensor]:
    """Weights after the steps."""
    for number in numbers:
        optimizer.zero_grad()
        torch.manual_seed(number)
        images = torch.randn(4, 3, 6, 6).contiguous(memory_format=torch.channels_last)
        loss = modules[0](images).square().sum() + (modules[1](torch.randn(4, 3)).sum() if number else 0.0)
        loss.backward()
        optimizer.step()
    return [parameter.detach().clone() for module in modules for parameter in module.parameters()]


@pytest.mark.parametrize(("name", "tolerance"), [("sgd", 1e-7), ("adamw", 1e-6)])
def test_the_fused_kernel_takes_the_steps_of_the_plain_one(name, tolerance):
    found = []
    for fused in (True, None):
        modules = layers()
        optimizer = build_optimizer(name, parameter_groups(modules, 5e-4, False), learning_rate=1e-3)
        for group in optimizer.param_groups:
            group["fused"] = fused
        found.append(steps(optimizer, modules, range(6)))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_state_that_a_plain_kernel_saved_in_another_layout_goes_on_in_the_fused_one(name):
    def built():
        modules = layers()
        return modules, build_optimizer(name, parameter_groups(modules), learning_rate=1e-3)

    modules, optimizer = built()
    for group in optimizer.param_groups:
        group["fused"] = None
    steps(optimizer, modules, range(3))
    state = copy.deepcopy(optimizer.state_dict())
    for values in state["state"].values():
        for key, value in values.items():
            values[key] = value.contiguous()
    again, resumed = built()
    for module, saved in zip(again, modules, strict=True):
        module.load_state_dict(saved.state_dict())
    for group in resumed.param_groups:
        group["fused"] = True
    resumed.load_state_dict(state)
    assert {group["fused"] for group in resumed.param_groups} == {True}
    for parameter, values in resumed.state.items():
        assert all(value.stride() == parameter.stride() for value in values.values() if value.dim())
    expected = steps(optimizer, modules, range(3, 6))
    for ours, plain in zip(steps(resumed, again, range(3, 6)), expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-6)


def test_on_a_processor_sgd_is_fused_where_bits_are_equal():
    with torch.device("meta"):
        assert build_optimizer("sgd", parameter_groups([network()])).param_groups[0]["fused"] is None
    odd = nn.Linear(3, 5)
    assert build_optimizer("sgd", parameter_groups([odd])).param_groups[0]["fused"] is None
    assert build_optimizer("adamw", parameter_groups([nn.Linear(64, 64)])).param_groups[0]["fused"] is None
    found = []
    for fused in (True, None):
        torch.manual_seed(0)
        whole = nn.Sequential(nn.Conv2d(64, 3, 3, bias=False), nn.Flatten(), nn.Linear(27, 64)).to(
            memory_format=torch.channels_last
        )
        optimizer = build_optimizer("sgd", parameter_groups([whole]))
        assert [group["fused"] for group in optimizer.param_groups] == [True]
        optimizer.param_groups[0]["fused"] = fused
        for _ in range(5):
            optimizer.zero_grad()
            whole(torch.randn(2, 64, 5, 5)).square().sum().mul(1e-3).backward()
            optimizer.step()
        found.append([parameter.detach() for parameter in whole.parameters()])
    assert all(torch.equal(ours, plain) for ours, plain in zip(*found, strict=True))
