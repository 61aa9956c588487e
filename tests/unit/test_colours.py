"""A model is fed the colours that it was trained on, whatever the order, the mean and the deviation."""

import pytest
import torch
from torch import nn

from attfc.errors import UserError
from attfc.export.colours import OURS, Colours, FedAs, fed_as


class Seen(nn.Module):
    """Gives back what it is fed."""

    name, image_size, embedding_size = "seen", 2, 12

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)


PIXELS = torch.tensor([10.0, 100.0, 250.0]).view(1, 3, 1, 1).expand(2, 3, 2, 2)  # red, green, blue
IMAGES = (PIXELS - 127.5) / 127.5


@pytest.mark.parametrize(
    ("colours", "expected"),
    [
        (Colours("BGR"), [(250 - 127.5) / 127.5, (100 - 127.5) / 127.5, (10 - 127.5) / 127.5]),
        (Colours("RGB", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), [10, 100, 250]),
        (Colours("RGB", (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)), [10 / 255, 100 / 255, 250 / 255]),
        # mean and std follow the order that they are stated with: blue first
        (Colours("BGR", (50.0, 60.0, 70.0), (2.0, 4.0, 5.0)), [(250 - 50) / 2, (100 - 60) / 4, (10 - 70) / 5]),
    ],
)
def test_a_model_is_fed_what_it_wants(colours, expected) -> None:
    fed = fed_as(Seen(), colours)
    rows = fed(IMAGES).view(2, 3, 4)
    assert rows.dtype == torch.float32
    for channel, value in enumerate(expected):
        assert rows[:, channel].flatten().tolist() == pytest.approx([value] * 8, rel=1e-5, abs=1e-5)
    assert (fed.name, fed.image_size, fed.embedding_size) == ("seen", 2, 12)
    assert not fed.state_dict()  # the weights keep their names
    assert fed(IMAGES.bfloat16()).dtype == torch.bfloat16


def test_nothing_stands_before_a_model_that_wants_ours() -> None:
    model = Seen()
    assert fed_as(model, OURS) is model
    assert fed_as(model, Colours.read({"colour_order": "RGB", "mean": [127.5] * 3, "std": 127.5}, "a.json")) is model
    assert isinstance(fed_as(model, Colours("BGR")), FedAs)


def test_colours_are_written_as_they_are_read() -> None:
    for stated in (
        {"colour_order": "BGR", "mean": [103.5, 116.3, 123.7], "std": 58.0},
        {"colour_order": "RGB", "mean": 0.0, "std": [1.0, 2.0, 3.0]},
    ):
        assert Colours.read(stated, "a.json").to_dict() == stated
    assert str(OURS) == "RGB, (x - 127.5) / 127.5"
    assert str(Colours("BGR", (1.0, 2.5, 3.0))) == "BGR, (x - (1, 2.5, 3)) / 127.5"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"colour_order": "rgb"}, "a.json: colour_order is 'rgb': use 'RGB' or 'BGR'"),
        ({"mean": [1, 2]}, "a.json: mean is [1, 2]: use one or three numbers"),
        ({"mean": True}, "a.json: mean is True: use one or three numbers"),
        ({"mean": float("nan")}, "a.json: mean is nan: use one or three numbers"),
        ({"std": [1, 0, 1]}, "a.json: std is [1, 0, 1]: use one or three numbers above 0"),
        ({"std": 10**400}, "a.json: std is 1000"),
    ],
)
def test_colours_that_are_none(change, text) -> None:
    with pytest.raises(UserError) as caught:
        Colours.read({**OURS.to_dict(), **change}, "a.json")
    assert text in str(caught.value)
