"""The head behind the features: its plane in the photograph, the outlines of face and hair, heights and light.

Five 3-D landmarks are turned by yaw and pitch and fitted to the ArcFace template by the least-squares similarity, as an
aligner would. Outlines are polar tables. A height field of bumps gives normals for Lambert shading.
"""

from functools import cache
from typing import NamedTuple

import numpy as np

from attfc.synthetic.canvas import F32, FACE_SIZE, SIDES, Canvas, Pose, edge, noise, positive, ramp, ridge, take_images
from attfc.synthetic.face_parameters import Conditions, Traits, each_field

__all__ = ["TABLE", "Outline", "cast_shadow", "outline", "plane", "shade"]

TABLE = 1024  # entries of a polar outline

# ArcFace template: left eye, right eye, nose, left mouth corner, right mouth corner.
_TEMPLATE = np.array(
    [38.2946 + 51.6963j, 73.5318 + 51.5014j, 56.0252 + 71.7366j, 41.5493 + 92.3655j, 70.7299 + 92.2041j]
)


def plane(pose: Pose, t: Traits, c: Conditions) -> tuple[F32, F32]:
    """Return coordinates u, v (N, 112, 112) of every pixel, from the alignment of the five projected landmarks."""
    landmarks = [
        pose.at(-t.eye_x, 0.0, 0.0),
        pose.at(t.eye_x, 0.0, 0.0),
        pose.at(0.0, t.nose_drop, t.nose_depth),
        pose.at(-t.mouth_half_width, t.mouth_drop, 0.5),
        pose.at(t.mouth_half_width, t.mouth_drop, 0.5),
    ]
    points = np.stack([u[:, 0, 0] + 1j * v[:, 0, 0] for u, v in landmarks], axis=1).astype(np.complex128)
    middle = points.mean(axis=1, keepdims=True)
    target = _TEMPLATE.mean()
    centred = points - middle
    turn = (centred.conj() * (_TEMPLATE - target)).sum(axis=1) / (np.abs(centred) ** 2).sum(axis=1)
    scale, angle, right, down = (a[:, 0, 0] for a in (c.jitter_scale, c.jitter_angle, c.jitter_x, c.jitter_y))
    turn = turn * (1.0 + scale) * np.exp(1j * angle.astype(np.float64))
    back = 1.0 / turn
    origin = -back * (target - turn * middle[:, 0] + right + 1j * down)
    re, im, ou, ov = (a.astype(np.float32)[:, None, None] for a in (back.real, back.imag, origin.real, origin.imag))
    x = np.arange(FACE_SIZE, dtype=np.float32)
    y = x[:, None]
    return (re * x + ou) - im * y, (im * x + ov) + re * y


@cache
def _directions() -> tuple[F32, F32]:
    """Unit vectors (cos, sin) of the table's entries; entry k is the diamond angle (k + 0.5) / 256 - 1 in [-1, 3)."""
    turn = (np.arange(TABLE) + 0.5) * (4.0 / TABLE) - 1.0
    side = np.where(turn <= 1.0, 1.0, -1.0)
    slope = np.where(turn <= 1.0, turn, 2.0 - turn)  # v / (|u| + |v|)
    across = side * (1.0 - np.abs(slope))
    length = np.sqrt(across * across + slope * slope)
    return across / length, slope / length


def _radial(values: F32) -> F32:
    """A number per image, to broadcast against (N, 1024)."""
    return values[..., 0].astype(np.float64)


class Outline(NamedTuple):
    """Polar tables (N, 1024) of radii around the outline's centre."""

    face: F32
    hair: F32
    hairline: F32
    strand: F32


def outline(t: Traits, c: Conditions) -> Outline:
    """Return face, outer hair and hairline as radii by direction, and the tint of the hair's strands."""
    cos, sin = _directions()
    start = (c.strands[0][:, 0] * 3 * TABLE).astype(np.int64)
    strand = noise().strands.astype(np.float64)[start + np.arange(TABLE)]
    t, c = each_field(t, _radial), each_field(c, _radial)

    elevation = np.arctan2(sin, np.abs(cos))  # below the horizontal is positive, the same on both sides
    across = np.abs(cos) / t.face_half_width
    lower = (across**t.squareness + (np.maximum(sin, 0) / t.chin_drop) ** t.squareness) ** (-1.0 / t.squareness)
    upper = (across**2.3 + (np.maximum(-sin, 0) / t.skull_rise) ** 2.3) ** (-1.0 / 2.3)
    skull = np.where(sin > 0, lower, upper)
    face = skull * (
        1.0
        + t.jaw * ridge(elevation - 0.75, 0.55)
        + t.cheek * ridge(elevation - 0.12, 0.5)
        + t.chin_width * ridge(elevation - 1.25, 0.42)
        + t.temple * ridge(elevation + 0.5, 0.5)
    )

    volume = np.clip(t.hair_volume * (1 + 0.25 * c.hair_change[0]), 0.02, 0.4) * (1 - 0.9 * t.bald)
    length = ramp(t.hair_length + 0.06 * c.hair_change[2])
    top = ramp(0.55 - sin)  # 1 above, 0 well below the ears
    reach = 1 + volume * top * (0.75 + 0.25 * sin * sin) + t.curl * 0.012 * strand
    side_hair = ramp((length - 0.25) * 2.2)
    # Below the ears long hair hangs: its edge is a straight line down, not a circle; short hair ends there.
    hanging = t.face_half_width * (1.04 + 0.8 * volume + 0.10 * length) / np.maximum(np.abs(cos), 0.30)
    hanging = np.minimum(hanging * (1 + 0.02 * strand), 96.0)
    stop = ramp((0.12 + 1.6 * length - sin) * 2.6)
    below = np.maximum(lower, face)
    joint = 0.04 + 0.10 * length + 0.4 * volume  # what the hanging hair is wider than the cap at the height of the ears
    reach = reach + joint * stop * ramp(1 + 2 * sin)
    hair = np.where(sin < 0, skull * reach, np.maximum(below, hanging) * stop + 0.8 * below * (1 - stop))
    hair = (hair + 0.8 * t.curl * strand) * (1 - 0.06 * t.bald)

    # Hairline: a share of the skull's radius, lowest at the temples, pulled down by a fringe, swept by the parting.
    middle = ramp(-sin)
    side = cos * t.parting
    fringe = ramp(t.fringe + 0.12 * c.hair_change[1] * (t.fringe > 0.05))
    line = t.hairline + t.recession * np.maximum(1 - ((np.abs(cos) - 0.55) / 0.4) ** 2, 0)
    line = line - 0.04 * side * (1 - fringe)
    line = line - fringe * (0.25 + 0.08 * side + 0.028 * strand) * ramp(middle * 2.2 - 0.5)
    temple = ramp((0.62 - middle) / 0.5)
    line = line * (1 - temple) + (0.985 - 0.03 * length) * temple
    covered = 0.90 - 0.05 * ramp(sin) + 0.02 * strand * t.curl  # long hair falls over the cheeks' edges
    covered = covered + 1.3 * ramp((sin - 0.78) * 7.0)  # ... but not over the chin
    beside = np.where(side_hair > 0.5, covered, 1.02 + 0.25 * ramp(sin * 6))
    blend = ramp((0.25 + sin) * 3.0)
    line = line * (1 - blend) + beside * blend
    line = line + 0.006 * strand
    hairline = np.where(sin < 0, skull, face) * line
    hairline = hairline * (1 + 0.30 * t.bald * ramp(middle * 1.6))
    return Outline(*(a.astype(np.float32) for a in (face, hair, hairline, strand)))


def _sculpt(ground: Canvas) -> None:
    """Add sockets, cheeks, nose, lips and chin to the head's height field."""
    t, c, at = ground.t, ground.c, ground.pose.at
    for side, name in SIDES.items():
        eye = ground.feature(name)
        cu, cv = at(side * t.eye_x, -1.0, 0.0)
        eye.lift((cu * 0.94, cv - 2.0), 12.0, 8.5, -3.4)
        eye.lift((cu, cv + 1.0), 8.8, 5.6, 2.2)
        eye.lift((ground.pose.u(side * t.eye_x * 1.02, 1.0), ground.pose.v(-10.5, 2.0)), 15.0, 5.5, 1.6)
    cheeks = ground.window(slice(56, 102))
    for side in SIDES:
        rise = 2.2 + 40 * t.cheek + 2.2 * c.smile
        cheeks.lift(at(side * (t.eye_x + 3.0), 24.0 - c.smile * 2, -4.0), 15.0, 13.0, rise)

    nose = ground.feature("nose")
    root_u, root_v = at(0.0, -3.0, t.nose_bridge - 2.0)
    tip_u, tip_v = at(0.0, t.nose_drop, t.nose_depth)
    along = (nose.v - root_v) * (1.0 / (tip_v - root_v))
    along_in = ramp(along)
    width = t.nose_bridge_width + along_in * (t.nose_wing * 0.92 - t.nose_bridge_width + 1.0)
    rise = 0.7 * t.nose_bridge + along_in * (t.nose_depth - 0.7 * t.nose_bridge) * 0.45
    rise *= ramp(along * 5.0 + 0.6)
    rise *= ramp((tip_v + 5.5 - nose.v) * 0.20)
    heights = nose.image
    heights += ridge(nose.u - root_u - along_in * (tip_u - root_u), width) * rise
    ball = t.nose_ball
    nose.lift((tip_u, tip_v + 0.5), 4.2 + 1.4 * ball, 4.4 + ball, 1.8 + 1.2 * ball)
    for side in SIDES:
        nose.lift((ground.pose.u(side * t.nose_wing * 0.82, t.nose_depth * 0.45), tip_v + 1.6), 3.9, 4.2, 2.6)

    mouth = ground.feature("mouth")
    u, v = at(0.0, t.mouth_drop, 3.5)
    half = t.mouth_half_width * ground.pose.yaw_cos
    low = v + c.mouth_open * 6
    mouth.lift((u, v), half * 1.25, 9.0, 2.2)
    mouth.lift((u, v - 1.5 * t.lip_upper * 0.5), half * 0.9, 2.6, 0.9)
    mouth.lift((u, low + t.lip_lower * 0.55), half * 0.75, 3.2, 1.5)
    mouth.lift((u, low + t.lip_lower + 3.6), half * 0.9, 3.0, -1.2)
    mouth.lift(at(0.0, t.mouth_drop + 15.0, 2.0), 10.0, 7.5, 2.2 + 20 * t.chin_width)
    mouth.lift((u, v - t.lip_upper - 4.0), 2.4, 4.2, -0.9)


def _slope(height: F32) -> F32:
    """Return half the difference of the neighbours along the last axis; at the ends the next one's."""
    slope = np.empty_like(height)
    slope[..., 1:-1] = height[..., 2:] - height[..., :-2]
    slope[..., 0], slope[..., -1] = slope[..., 1], slope[..., -2]
    slope *= 0.5
    return slope


def shade(ground: Canvas) -> tuple[F32, F32]:
    """Return Lambert term and a specular lobe (N, 112, 112) of the head, whose heights are sculpted here."""
    c, height = ground.c, ground.image
    _sculpt(ground)
    slope_x = _slope(height)
    slope_y = _slope(height.swapaxes(1, 2)).swapaxes(1, 2)
    lz = np.sqrt(np.maximum(1.0 - c.light_x * c.light_x - c.light_y * c.light_y, 0.05))
    # The half-way vector to a viewer straight ahead gives the gloss.
    norm = 1.0 / np.sqrt(2.0 + 2.0 * lz)
    length = 1.0 / np.sqrt(slope_x * slope_x + slope_y * slope_y + 1.0)
    flow = slope_x * c.light_x
    flow += slope_y * c.light_y
    lambert = positive((lz - flow) * length + 0.12)
    gloss = positive(((lz + 1.0) - flow) * length * norm)
    for _ in range(4):
        gloss *= gloss
    return lambert, gloss


def cast_shadow(canvas: Canvas, light: F32, gloss: F32, lambert: F32) -> None:
    """Darken one side of a soft straight edge, on the few images that have such a shadow."""
    rows = np.flatnonzero(canvas.c.shadow > 0)
    if not len(rows):
        return
    c = take_images(canvas.c, rows)
    angle = c.shadow_angle.astype(np.float64)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    beyond = cos * canvas.u[rows] + sin * (canvas.v[rows] - 20.0) - c.shadow_offset
    shadow = edge(beyond, 5.0) * c.shadow
    light[rows] -= shadow * (lambert[rows] * c.diffuse + 0.4 * c.ambient)
    gloss[rows] *= 1.0 - shadow
