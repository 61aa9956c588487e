"""Parameter groups: every parameter once, decay and rate where they belong; the optimizers built from them."""

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
