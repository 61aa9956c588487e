"""Conditions that hurt: what a poor camera, a small face or a mask does to decoded images, for evaluation; `Augment` does the like in training.

`parse_conditions` reads "lowres=24,jpeg=30"; each `Condition` maps uint8 images to uint8 images, batched, one after the other in the order
given. Nothing is random: the same image gives the same pixels. Low resolution and blur are two matrix products a batch, as in `transforms`;
JPEG is encoded and decoded image by image, about 0.3 ms each at 112 pixels.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import simplejpeg
import torch
from torch import Tensor

from attfc.data.transforms import blur_matrix, grey, resampled, small_and_back
from attfc.errors import UserError, nearest
from attfc.precision import without_autocast

__all__ = ["CONDITIONS", "Condition", "parse_conditions"]


@dataclass(frozen=True)
class _Range:
    """What a condition takes: (low, high) in a unit, the value where none is given (None: one is needed), and what it does."""

    low: float
    high: float
    unit: str
    does: str
    default: float | None = None


CONDITIONS = {
    "lowres": _Range(8, 96, "pixels", "shrinks to a square of so many pixels a side, antialiased, and enlarges again"),
    "jpeg": _Range(1, 95, "quality", "encodes as JPEG, 4:2:0, and decodes again"),
    "blur": _Range(0.1, 20, "pixels", "blurs with a Gaussian of this standard deviation"),
    "grey": _Range(1, 1, "", "takes the colours away", 1),
    "covered": _Range(0.1, 0.9, "of the height", "covers the lower part with mid grey", 0.5),
}
"""The conditions by name."""


@dataclass(frozen=True)
class Condition:
    """One condition.

    Attributes:
        kind: of `CONDITIONS`. value: in its unit.

    >>> str(Condition("lowres", 24.0)), str(Condition("grey", 1.0))
    ('lowres=24', 'grey')
    """

    kind: str
    value: float

    def __str__(self) -> str:
        """Return it as it is asked for."""
        return f"{self.kind}={self.value:g}" if CONDITIONS[self.kind].unit else self.kind

    def __call__(self, images_BSSC: Tensor) -> Tensor:
        """Return (B, S, S, 3) uint8 RGB under the condition, a new tensor on the same device.

        Raises:
            UserError: lowres of no fewer pixels than the images have.
        """
        size = images_BSSC.shape[1]
        if self.kind == "jpeg":
            pixels = [_through_jpeg(image, int(self.value)) for image in images_BSSC.cpu()]
            return torch.stack(pixels).to(images_BSSC.device) if pixels else images_BSSC.clone()
        if self.kind == "grey":
            return _rounded(grey(images_BSSC.permute(0, 3, 1, 2).float()).permute(0, 2, 3, 1)).expand(-1, -1, -1, 3)
        if self.kind == "covered":
            covered = images_BSSC.clone()
            covered[:, size - round(size * self.value) :] = 127
            return covered
        if self.kind == "lowres" and self.value >= size:
            raise UserError(f"--condition {self}: the images have {size} pixels a side: give fewer")
        value = torch.tensor([self.value], device=images_BSSC.device)
        with torch.no_grad(), without_autocast(images_BSSC):
            matrix = small_and_back(size, value) if self.kind == "lowres" else blur_matrix(size, value)
            return _rounded(resampled(images_BSSC, matrix, matrix))


def parse_conditions(texts: Iterable[str]) -> tuple[Condition, ...]:
    """Read conditions, each text one or several joined by commas; they apply in this order.

    Raises:
        UserError: an unknown one, one named twice, a value that is missing, none of its own, or out of range.

    >>> [str(each) for each in parse_conditions(["lowres=24,jpeg=30", "covered"])]
    ['lowres=24', 'jpeg=30', 'covered=0.5']
    """
    found: dict[str, Condition] = {}
    for text in (part.strip() for each in texts for part in each.split(",")):
        kind, equals, given = text.partition("=")
        if kind not in CONDITIONS:
            raise UserError(
                f"--condition {text!r} is unknown{nearest(kind, CONDITIONS)}: there are {', '.join(CONDITIONS)}"
            )
        if kind in found:
            raise UserError(f"--condition {text}: {kind} is given twice: give it once")
        of = CONDITIONS[kind]
        try:
            value = float(given) if equals else of.default
        except ValueError:
            value = None
        whole = kind not in ("lowres", "jpeg") or value is None or value.is_integer()
        if value is None or not of.low <= value <= of.high or not whole or (equals and not of.unit):
            takes = f"{'whole ' if kind in ('lowres', 'jpeg') else ''}numbers from {of.low:g} to {of.high:g}, {of.unit}"
            raise UserError(f"--condition {text}: {kind} takes {takes if of.unit else 'no value'}")
        found[kind] = Condition(kind, value)
    return tuple(found.values())


def _rounded(pixels: Tensor) -> Tensor:
    return pixels.round().to(torch.uint8)


def _through_jpeg(image_SSC: Tensor, quality: int) -> Tensor:
    encoded = simplejpeg.encode_jpeg(image_SSC.contiguous().numpy(), quality=quality, colorsubsampling="420")
    return torch.from_numpy(simplejpeg.decode_jpeg(encoded))
