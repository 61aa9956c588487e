"""What synthetic faces are painted with: coverage, bumps, fixed noise, the turned head's plane and windows of it.

`Canvas` is some images with the place of their pixels on the face, and the numbers behind them. Its arrays are planar, so a
mask of one plane broadcasts over the colours: N images, H rows, W columns, colours (3, N, H, W); a number per image is
(N, 1, 1), a colour per image (3, N, 1, 1) (`columns`). In memory the images come one after the other. u runs to the right
and v down from the point between the eyes, in pixels of the template; depths towards the viewer.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from attfc.random_streams import INCREMENT, mix64, normal
from attfc.synthetic.face_parameters import F32, Conditions, Table, Traits, each_field
from attfc.typing import Array

__all__ = [
    "F32",
    "FACE_SIZE",
    "SIDES",
    "TILE",
    "Canvas",
    "Pose",
    "blob",
    "bump",
    "columns",
    "edge",
    "fraction",
    "noise",
    "positive",
    "ramp",
    "rgb",
    "ridge",
    "take_images",
]

Number = F32 | float
Point = tuple[Number, Number]

FACE_SIZE = 112
TILE = 1 << 17

# Rows and columns where a feature can fall; of 400 images none changes by more than 4 grey levels without them.
WINDOWS = {
    "left eye": (slice(30, 66), slice(18, 60)),
    "right eye": (slice(30, 66), slice(52, 94)),
    "nose": (slice(37, 85), slice(30, 82)),
    "mouth": (slice(78, 112), slice(30, 82)),
}
SIDES = {-1.0: "left eye", 1.0: "right eye"}

_ALL = slice(None)
_PLANES = ("image", "u", "v", "inside", "rho2", "grain")


class _Noise(NamedTuple):
    fine: F32  # white, about standard normal
    smooth: F32  # (256, 256) blotches that wrap around, about standard normal
    strands: F32  # 1-D, hair


@cache
def noise() -> _Noise:
    """Return fixed noise, the same on every machine (64-bit integer hashing)."""
    numbers = np.arange(TILE + 3 * FACE_SIZE * FACE_SIZE, dtype=np.uint64)
    fine: F32 = normal(mix64(numbers * np.uint64(INCREMENT)))
    smooth: F32 = fine[: 256 * 256].reshape(256, 256)
    for _ in range(3):
        for axis in (0, 1):
            smooth = _spread(smooth, 1, axis) / 2.449
    strands: F32 = fine[:4096]
    for _ in range(4):
        strands = _spread(strands, 1)
    wide = strands
    for step in (2, 4, 8):
        wide = _spread(wide, step)
    strands = strands / strands.std() * 0.55 + wide / wide.std() * 0.85
    return _Noise(*(a.astype(np.float32) for a in (fine, smooth / smooth.std(), strands)))


def _spread(values: F32, step: int, axis: int = 0) -> F32:
    return np.asarray(np.roll(values, step, axis) + 2 * values + np.roll(values, -step, axis))


def ramp(x: F32) -> F32:
    """Return x where it lies in 0 ... 1, else the nearer end."""
    return np.clip(x, 0.0, 1.0)


def positive(x: F32) -> F32:
    """max(x, 0). numpy's clip is three times as fast as its maximum against a scalar (2.4.6, AVX2)."""
    return np.clip(x, 0.0, np.inf)


def fraction(x: F32) -> F32:
    """x - floor(x): the remainder operator takes thirty times as long."""
    return x - np.floor(x)


def bump(x2: F32) -> F32:
    """(1 - x^2)^2 inside the unit interval, 0 outside: a bell of finite reach."""
    inside = ramp(1.0 - x2)
    inside *= inside
    return inside


def ridge(x: F32, width: Number) -> F32:
    """Return the bump across a line: x is the distance from it, 0 from `width` on."""
    return bump((x / width) ** 2)


def blob(u: F32, v: F32, centre: Point, ru: Number, rv: Number) -> F32:
    """Return an elliptic bump."""
    return bump(ellipse(u, v, centre, ru, rv))


def ellipse(u: F32, v: F32, centre: Point, ru: Number, rv: Number) -> F32:
    """Squared radius in units of the ellipse's axes."""
    a = u - centre[0]
    a *= 1.0 / np.asarray(ru, dtype=np.float32)
    a *= a
    b = v - centre[1]
    b *= 1.0 / np.asarray(rv, dtype=np.float32)
    b *= b
    return a + b


def edge(distance: F32, softness: float = 1.0) -> F32:
    """Coverage of a pixel from its signed distance inside a shape, in pixels."""
    covered: F32 = distance * (1.0 / softness)
    covered += 0.5
    return np.clip(covered, 0.0, 1.0, out=covered)


def rgb(red: float, green: float, blue: float) -> F32:
    """Return one colour for all images: (3, 1, 1, 1)."""
    return np.array([red, green, blue], dtype=np.float32)[:, None, None, None]


def take_images(table: Table, rows: npt.NDArray[np.intp]) -> Table:
    """Return the table (`columns`) with some of its images."""
    return each_field(table, lambda a: a[..., rows, :, :])


def columns(table: Table) -> Table:
    """Return the table with (N,) as (N, 1, 1) and (N, K) as (K, N, 1, 1), to broadcast against planes."""
    return each_field(table, lambda a: a.T[..., None, None])


class Pose(NamedTuple):
    """Projection of the turned head: u = x cos(yaw) + depth sin(yaw), v likewise with pitch; all (N, 1, 1)."""

    yaw_cos: F32
    yaw_sin: F32
    pitch_cos: F32
    pitch_sin: F32

    @classmethod
    def of(cls, c: Conditions) -> "Pose":
        """Return the pose of each image (`columns`)."""
        turns = (f(angle.astype(np.float64)) for angle in (c.yaw, c.pitch) for f in (np.cos, np.sin))
        return cls(*(turn.astype(np.float32) for turn in turns))

    def u(self, x: Number, depth: Number) -> F32:
        """Return where x lies."""
        return np.asarray(self.yaw_cos * x + self.yaw_sin * depth)

    def v(self, y: Number, depth: Number) -> F32:
        """Return where y lies."""
        return np.asarray(self.pitch_cos * y + self.pitch_sin * depth)

    def at(self, x: Number, y: Number, depth: Number) -> tuple[F32, F32]:
        """Return where a point of the head lies."""
        return self.u(x, depth), self.v(y, depth)


@dataclass(frozen=True)
class Canvas:
    """Some images, or a window of each: painting changes the images in place.

    Attributes:
        image: (3, N, H, W) colours, 0 ... 1; or (N, H, W) heights, which are raised.
        u, v: (N, H, W) the pixels' places on the face.
        inside: (N, H, W) how much of the pixel the outline of the face covers.
        rho2: (N, H, W) squared distance from the outline's centre, 1 on the outline.
        grain: (N, H, W) blotches, about standard normal.
        t, c: the numbers behind the images (`columns`).
        pose: of the heads.
    """

    image: F32
    u: F32
    v: F32
    inside: F32
    rho2: F32
    grain: F32
    t: Traits
    c: Conditions
    pose: Pose

    def window(self, rows: slice, across: slice = _ALL) -> "Canvas":
        """Return the same images, some rows and columns of them."""
        return replace(self, **{name: getattr(self, name)[..., rows, across] for name in _PLANES})

    def feature(self, name: str) -> "Canvas":
        """Return the window of "left eye", "right eye", "nose" or "mouth"."""
        return self.window(*WINDOWS[name])

    def some(self, flags: Array, rows: slice = _ALL) -> Iterator["Canvas"]:
        """Yield the flagged images as one canvas, if there are any: copies, which then take the places of the images."""
        chosen = np.flatnonzero(flags)
        if not len(chosen):
            return
        planes = {name: getattr(self, name)[..., chosen, rows, :] for name in _PLANES}
        t, c = take_images(self.t, chosen), take_images(self.c, chosen)
        part = Canvas(**planes, t=t, c=c, pose=Pose(*(a[chosen] for a in self.pose)))
        yield part
        self.image[..., chosen, rows, :] = part.image

    def blob(self, centre: Point, ru: Number, rv: Number) -> F32:
        """Return an elliptic bump on the face."""
        return blob(self.u, self.v, centre, ru, rv)

    def lift(self, centre: Point, ru: Number, rv: Number, rise: Number) -> None:
        """Raise an elliptic bump on the height field."""
        heights = self.image
        heights += self.blob(centre, ru, rv) * rise

    def paint(self, coverage: F32, colour: F32) -> None:
        """Composite a colour, one per image or per pixel, over the images."""
        image = self.image
        difference = colour - image
        difference *= coverage
        image += difference

    def darken(self, share: F32) -> None:
        """Take a share of the light away."""
        image = self.image
        image *= 1.0 - share
