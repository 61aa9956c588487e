"""What lies behind and before a face: background, glasses, cloth, hands, objects and hats."""

import numpy as np

from attfc.synthetic.canvas import F32, FACE_SIZE, Canvas, blob, edge, fraction, positive, ramp, ridge
from attfc.synthetic.face_parameters import Conditions

__all__ = ["paint_background", "paint_before"]


def paint_background(image: F32, c: Conditions) -> None:
    """Two colours along a slanted ramp, soft blobs, sometimes stripes."""
    x = np.linspace(-1, 1, FACE_SIZE, dtype=np.float32)
    y = x[:, None]
    d = c.backdrop
    slant = (d[0] * 2 - 1) * x + (d[1] * 2 - 1) * y
    striped = (d[2] < 0.3).astype(np.float32)
    wave = np.abs(fraction(slant * (2.0 + 5.0 * d[3])) - 0.5) * 12.0 - 3.0
    share = ramp(slant * 0.6 + 0.5 + np.clip(wave, -1, 1) * (0.3 * striped))
    spot = blob(x, y, (d[4] * 2 - 1, d[5] * 2 - 1), 0.7, 0.5)
    share = share * (1 - spot) + spot * d[6]
    one, other = c.background[:3], c.background[3:]
    image[:] = one
    image += share * (other - one)


def paint_before(canvas: Canvas) -> None:
    """Glasses of the identity, then what occludes a face: each on the few images that have it."""
    c = canvas.c
    for part in canvas.some((c.glasses > 0) | (c.occluder == _SUNGLASSES), slice(30, 78)):
        _paint_glasses(part)
    for kind, occlude in _OCCLUDERS.items():
        for part in canvas.some(c.occluder == kind):
            cover, texture = occlude(part, 1.0 + 0.05 * part.grain, part.c.occluder_shape)
            part.paint(cover, part.c.occluder_colour * ((part.c.ambient + 0.7 * part.c.diffuse) * texture))


def _paint_glasses(part: Canvas) -> None:
    """Frames of the identity's glasses, or a stranger's sunglasses as an occlusion."""
    t, c, pose = part.t, part.c, part.pose
    sun, s = c.occluder == _SUNGLASSES, c.occluder_shape
    size = np.where(sun, 11.0 + 2.5 * s[0], t.glasses_size).astype(np.float32)
    roundness = np.where(sun, s[1], t.glasses_round).astype(np.float32)
    thick = np.where(sun, 0.8 + s[2], t.glasses_thickness).astype(np.float32)
    middle_u, middle_v = pose.u(0.0, 8.0), pose.v(1.0, 6.0)
    far = part.u - middle_u
    du = (np.abs(far) - t.eye_x * pose.yaw_cos) / pose.yaw_cos
    dv = part.v - middle_v
    tall = size * (0.68 + 0.26 * roundness)
    a, b = np.abs(du) / size, np.abs(dv) / tall
    disc = np.sqrt(a * a + b * b)
    box = np.maximum(a, b) * 0.72 + disc * 0.28 + 0.06 * np.minimum(a, b)
    reach = (1.0 - (box + roundness * (disc - box))) * tall
    rim = edge(thick - np.abs(reach))
    bridge = edge(thick * 0.8 - np.abs(dv + 2.2)) * (np.abs(far) < t.eye_x - size + 1.0)
    temple = edge(thick * 0.7 - np.abs(dv + 2.5)) * (du > size - 0.5) * edge((1.02 - part.rho2) * 20.0)
    lens = edge(reach)
    glare = c.light_x * du * 0.06 - dv * 0.03
    part.darken(lens * np.where(sun, 0.90 - 0.12 * ramp(glare + 0.3), 0.05))
    image = part.image
    image += lens * np.clip(glare - 0.15, 0, 0.25) * 0.5
    colour = np.where(sun, 0.06, t.glasses_colour).astype(np.float32)
    part.paint(np.maximum(rim, np.maximum(bridge, temple)), colour)


def _cloth(part: Canvas, texture: F32, s: F32) -> tuple[F32, F32]:
    """A cloth over the mouth, in folds."""
    u, v, pose = part.u, part.v, part.pose
    lift = v - pose.v(19.0 + 12.0 * s[0], 10.0) + 0.006 * (u - pose.u(0.0, 14.0)) ** 2 * (0.4 - s[1])
    folds = np.abs(fraction(lift * (0.06 + 0.08 * s[3])) - 0.5) * 0.5 + 0.72
    cover = edge(lift) * edge((1.10 + 0.2 * s[2] - part.rho2) * 20.0)
    return cover, texture * folds * np.clip(1.12 - 0.35 * part.rho2, 0.3, 1.2)


def _hand(part: Canvas, texture: F32, s: F32) -> tuple[F32, F32]:
    """Four fingers from one side."""
    inwards = part.u * np.where(s[0] < 0.5, -1.0, 1.0).astype(np.float32)
    cover, texture = np.zeros_like(part.u), texture * 0.25
    for finger in range(4):
        axis = 34.0 + 24.0 * s[1] + (finger - 1.5) * 8.2 + (inwards - 20.0) * (0.25 - 0.5 * s[2])
        tip = 6.0 + 12.0 * s[3] + 2.2 * abs(finger - 1.3)
        across = (part.v - axis) / 4.3
        ahead = positive(tip + 3.0 - inwards) / 4.3
        reach = np.sqrt(across * across + ahead * ahead)
        cover = np.maximum(cover, edge((1.0 - reach) * 4.3))
        texture = np.maximum(texture, ramp(0.95 - 0.40 * reach * reach) * (reach < 1.1))
    return cover, texture


def _object(part: Canvas, texture: F32, s: F32) -> tuple[F32, F32]:
    """A slanted box."""
    cos = s[0] * 2 - 1
    sin = np.sqrt(np.maximum(1 - cos**2, 0))
    du, dv = part.u - (s[1] - 0.5) * 50.0, part.v - (8.0 + 44.0 * s[2])
    a, b = np.abs(du * cos + dv * sin), np.abs(dv * cos - du * sin)
    cover = edge(np.minimum(7.0 + 9.0 * s[3] - a, 12.0 + 40.0 * s[4] - b))
    return cover, texture * (0.85 + 0.25 * ramp(a * 0.06))


def _hat(part: Canvas, texture: F32, s: F32) -> tuple[F32, F32]:
    """A hat whose brim throws a shadow."""
    v, pose = part.v, part.pose
    brim = pose.v(-21.0 + 8.0 * s[0], 8.0) - 0.010 * (part.u - pose.u(0.0, 10.0)) ** 2 * (s[1] - 0.2)
    part.darken(ramp(1.0 - (v - brim) * 0.12) * (part.rho2 < 1.0) * 0.42)
    band = 1.15 - 0.40 * part.rho2 - 0.3 * ridge(brim - v - 4.0, 1.6)
    return edge(brim - v) * edge((1.45 - part.rho2) * 20.0), texture * np.clip(band, 0.25, 1.2)


_SUNGLASSES = 3.0
_OCCLUDERS = {1.0: _cloth, 2.0: _hand, 4.0: _object, 5.0: _hat}
