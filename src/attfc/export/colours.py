"""What a model wants its pixels to be: the order of the channels, and the mean and deviation taken from values 0 to 255.

Everything in attfc feeds RGB as (x - 127.5) / 127.5. A model from elsewhere may want BGR, or other numbers: `FedAs` stands before it and
converts, one pass over the images, nothing where both agree.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from attfc.training.model_files import check_colours
from attfc.typing import Json

__all__ = ["COLOUR_KEYS", "OURS", "Colours", "FedAs", "fed_as"]

COLOUR_KEYS = ("colour_order", "mean", "std")

Channels = tuple[float, float, float]


@dataclass(frozen=True)
class Colours:
    """Channel order "RGB" or "BGR"; ``(x - mean) / std`` of pixel values x from 0 to 255, a number for each channel in that order."""

    order: str = "RGB"
    mean: Channels = (127.5, 127.5, 127.5)
    std: Channels = (127.5, 127.5, 127.5)

    @classmethod
    def read(cls, values: Mapping[str, Any], where: str) -> "Colours":
        """Return the colours of `values` ("colour_order", "mean", "std": a number or three).

        Raises:
            UserError: a value that is none; the message starts with `where`.
        """
        check_colours(values, where)
        check = (values[name] for name in ("mean", "std"))
        mean, std = (value if isinstance(value, list | tuple) else [value] * 3 for value in check)
        return cls(values["colour_order"], *((float(a), float(b), float(c)) for a, b, c in (mean, std)))

    def to_dict(self) -> Json:
        """Return "colour_order", "mean" and "std" as a configuration holds them: one number where all three are equal."""
        return {"colour_order": self.order, "mean": _one(self.mean), "std": _one(self.std)}

    def __str__(self) -> str:
        return f"{self.order}, (x - {_shown(self.mean)}) / {_shown(self.std)}"


OURS = Colours()


class FedAs(nn.Module):
    """Feed `model` the `colours` it wants, from RGB in [-1, 1].

    Input (B, 3, S, S) float RGB, ``(x - 127.5) / 127.5``; output the model's. `image_size`, `embedding_size` and `name` are the model's.
    """

    def __init__(self, model: nn.Module, colours: Colours) -> None:
        super().__init__()
        self.model, self.colours = model, colours
        self.name = str(getattr(model, "name", type(model).__name__))
        self.image_size, self.embedding_size = cast(int, model.image_size), cast(int, model.embedding_size)
        mean, std = torch.tensor(colours.mean, dtype=torch.float64), torch.tensor(colours.std, dtype=torch.float64)
        # x in [-1, 1] -> (127.5 x + 127.5 - mean) / std
        self.register_buffer("scale", (127.5 / std).float().view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", ((127.5 - mean) / std).float().view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.colours.order == "BGR":
            x = x.flip(1)
        scale, shift = cast(Tensor, self.scale), cast(Tensor, self.shift)
        return cast(Tensor, self.model(x * scale.to(x.dtype) + shift.to(x.dtype)))


def fed_as(model: nn.Module, colours: Colours) -> nn.Module:
    """Return a model that takes RGB in [-1, 1]: `model` itself if that is what it wants, else `FedAs`."""
    return model if colours == OURS else FedAs(model, colours)


def _one(value: Channels) -> float | list[float]:
    return value[0] if len(set(value)) == 1 else list(value)


def _shown(value: Channels) -> str:
    texts = [f"{number:g}" for number in value]
    return texts[0] if len(set(value)) == 1 else f"({', '.join(texts)})"
