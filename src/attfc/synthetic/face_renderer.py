"""Paint synthetic faces: traits and conditions to 112 x 112 pixels, batched over images.

How: five 3-D landmarks are turned by yaw and pitch and fitted to the ArcFace template by the least-squares similarity, as
an aligner would; each pixel is taken back into the turned face's own plane; outlines are polar tables, features are
signed distances and ellipses composited with anti-aliased coverage; a height field of bumps gives normals for Lambert
shading. Features are painted only in the window of the template where they can fall.

Cost: about 1 ms per image on one core (see benchmarks/synthetic.py). Pixels use only + - * / sqrt, comparisons and table
look-ups, which IEEE arithmetic fixes to the bit: an image does not depend on what shares its batch, nor on the width of
the processor's vectors. A mesh with a texture would look better and cost a hundred times as much.

Axes: N images, H rows, W columns, planar colours (N, 3, H, W); u to the right and v down from the point between the eyes,
in pixels of the template; depths towards the viewer.
"""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from attfc.synthetic.face_parameters import SPOTS, Conditions, Traits, take_rows

__all__ = ["FACE_SIZE", "render_faces"]

FACE_SIZE = 112
_CHUNK = 8  # images painted together: their planes stay in the second-level cache
_TABLE = 1024  # entries of a polar outline
_CENTER_V = 14.0  # the outline's centre below the eyes
_CENTER_DEPTH = -36.0
_TILE = 1 << 17

F32 = npt.NDArray[np.floating[Any]]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
U8 = npt.NDArray[np.uint8]

# ArcFace template: left eye, right eye, nose, left mouth corner, right mouth corner.
_TEMPLATE = np.array(
    [38.2946 + 51.6963j, 73.5318 + 51.5014j, 56.0252 + 71.7366j, 41.5493 + 92.3655j, 70.7299 + 92.2041j]
)


class _Noise(NamedTuple):
    fine: F32  # white, about standard normal
    smooth: F32  # (256, 256) blotches that wrap around, about standard normal
    strands: F32  # 1-D, hair


@cache
def _noise() -> _Noise:
    """Fixed noise, the same on every machine (64-bit integer hashing)."""
    bits = np.arange(1, _TILE + 3 * FACE_SIZE * FACE_SIZE + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    parts = [(bits >> np.uint64(16 * k)) & np.uint64(0xFFFF) for k in range(4)]
    fine = (np.stack(parts).astype(np.float64).sum(axis=0) / 65535.0 - 2.0) * np.sqrt(3.0)
    smooth = fine[: 256 * 256].reshape(256, 256)
    for _ in range(3):
        for axis in (0, 1):
            smooth = (np.roll(smooth, 1, axis) + 2 * smooth + np.roll(smooth, -1, axis)) / 2.449
    smooth = smooth / smooth.std()
    strands = fine[: 4 * _TABLE]
    for _ in range(4):
        strands = np.roll(strands, 1) + 2 * strands + np.roll(strands, -1)
    wide = strands
    for step in (2, 4, 8):
        wide = np.roll(wide, step) + 2 * wide + np.roll(wide, -step)
    strands = strands / strands.std() * 0.55 + wide / wide.std() * 0.85
    return _Noise(fine.astype(np.float32), smooth.astype(np.float32), strands.astype(np.float32))


@cache
def _directions() -> tuple[F64, F64]:
    """Unit vectors (cos, sin) of the table's entries; entry k is the diamond angle (k + 0.5) / 256 - 1 in [-1, 3)."""
    turn = (np.arange(_TABLE) + 0.5) * (4.0 / _TABLE) - 1.0
    side = np.where(turn <= 1.0, 1.0, -1.0)
    slope = np.where(turn <= 1.0, turn, 2.0 - turn)  # v / (|u| + |v|)
    across = side * (1.0 - np.abs(slope))
    length = np.sqrt(across * across + slope * slope)
    return across / length, slope / length


def _bump(x2: F32) -> F32:
    """(1 - x^2)^2 inside the unit interval, 0 outside: a bell of finite reach."""
    inside: F32 = np.clip(1.0 - x2, 0.0, 1.0)
    inside *= inside
    return inside


def _positive(x: F32) -> F32:
    """max(x, 0). numpy's clip is three times as fast as its maximum against a scalar (2.4.6, AVX2)."""
    return np.clip(x, 0.0, np.inf)


def _fraction(x: F32) -> F32:
    """x - floor(x): the remainder operator takes thirty times as long."""
    return x - np.floor(x)


def _edge(distance: F32, softness: float = 1.0) -> F32:
    """Coverage of a pixel from its signed distance inside a shape, in pixels."""
    covered: F32 = distance * (1.0 / softness)
    covered += 0.5
    return np.clip(covered, 0.0, 1.0, out=covered)


def _ellipse(u: F32, v: F32, cu: F32 | float, cv: F32 | float, ru: F32 | float, rv: F32 | float) -> F32:
    """Squared radius in units of the ellipse's axes."""
    a = u - cu
    a *= 1.0 / np.asarray(ru, dtype=np.float32)
    a *= a
    b = v - cv
    b *= 1.0 / np.asarray(rv, dtype=np.float32)
    b *= b
    return a + b


def _paint(image: F32, coverage: F32, colour: F32) -> None:
    """Composite a colour (N, 3, 1, 1) or (N, 3, H, W) over the image in place."""
    difference = colour - image
    difference *= coverage[:, None]
    image += difference


def _column(values: F32) -> F32:
    """(N,) -> (N, 1, 1); (N, K) -> (N, K, 1, 1)."""
    return values[..., None, None]


class _Pose(NamedTuple):
    """Projection of the turned head: u = x cos(yaw) + depth sin(yaw), v likewise with pitch; all (N, 1, 1)."""

    yaw_cos: F32
    yaw_sin: F32
    pitch_cos: F32
    pitch_sin: F32

    def u(self, x: F32 | float, depth: F32 | float) -> F32:
        return np.asarray(self.yaw_cos * x + self.yaw_sin * depth)

    def v(self, y: F32 | float, depth: F32 | float) -> F32:
        return np.asarray(self.pitch_cos * y + self.pitch_sin * depth)


def _plane(pose: _Pose, t: Traits, c: Conditions) -> tuple[F32, F32]:
    """Coordinates u, v (N, 112, 112) of every pixel, from the alignment of the five projected landmarks."""
    eye, mouth = _column(t.eye_x), _column(t.mouth_half_width)
    lower = _column(t.mouth_drop)
    landmarks = [
        (pose.u(-eye, 0.0), pose.v(0.0, 0.0)),
        (pose.u(eye, 0.0), pose.v(0.0, 0.0)),
        (pose.u(0.0, _column(t.nose_depth)), pose.v(_column(t.nose_drop), _column(t.nose_depth))),
        (pose.u(-mouth, 0.5), pose.v(lower, 0.5)),
        (pose.u(mouth, 0.5), pose.v(lower, 0.5)),
    ]
    points = np.stack([u[:, 0, 0] + 1j * np.broadcast_to(v, u.shape)[:, 0, 0] for u, v in landmarks], axis=1)
    points = points.astype(np.complex128)
    middle = points.mean(axis=1, keepdims=True)
    target = _TEMPLATE.mean()
    centred = points - middle
    turn = (centred.conj() * (_TEMPLATE - target)).sum(axis=1) / (np.abs(centred) ** 2).sum(axis=1)
    turn = turn * (1.0 + c.jitter_scale) * np.exp(1j * c.jitter_angle.astype(np.float64))
    shift = target - turn * middle[:, 0] + c.jitter_x + 1j * c.jitter_y
    back = 1.0 / turn
    origin = -back * shift
    re, im = _column(back.real.astype(np.float32)), _column(back.imag.astype(np.float32))
    ou, ov = _column(origin.real.astype(np.float32)), _column(origin.imag.astype(np.float32))
    x = np.arange(FACE_SIZE, dtype=np.float32)[None, None, :]
    y = np.arange(FACE_SIZE, dtype=np.float32)[None, :, None]
    return (re * x + ou) - im * y, (im * x + ov) + re * y


class _Outline(NamedTuple):
    """Polar tables (N, 1024) of radii around the outline's centre."""

    face: F32
    hair: F32
    hairline: F32
    strand: F32


def _outline(t: Traits, c: Conditions) -> _Outline:
    """Face, outer hair and hairline as radii by direction, and the tint of the hair's strands."""
    cos, sin = _directions()
    cos, sin = cos[None], sin[None]

    def one(values: F32) -> F64:
        return values.astype(np.float64)[:, None]

    def near(angle: float, width: float) -> F64:
        """A bell around an angle below (positive) or above the horizontal, the same on both sides."""
        elevation = np.arctan2(sin, np.abs(cos))
        inside = np.maximum(1.0 - ((elevation - angle) / width) ** 2, 0.0)
        return inside * inside

    half, chin, rise = one(t.face_half_width), one(t.chin_drop), one(t.skull_rise)
    power = one(t.squareness)
    across = np.abs(cos) / half
    lower = (across**power + (np.maximum(sin, 0) / chin) ** power) ** (-1.0 / power)
    upper = (across**2.3 + (np.maximum(-sin, 0) / rise) ** 2.3) ** (-1.0 / 2.3)
    skull = np.where(sin > 0, lower, upper)
    face = skull * (
        1.0
        + one(t.jaw) * near(0.75, 0.55)
        + one(t.cheek) * near(0.12, 0.5)
        + one(t.chin_width) * near(1.25, 0.42)
        + one(t.temple) * near(-0.5, 0.5)
    )

    noise = _noise().strands.astype(np.float64)
    start = (c.strands[:, 0] * 3 * _TABLE).astype(np.int64)
    strand = noise[start[:, None] + np.arange(_TABLE)[None]]
    curl = one(t.curl)
    volume = np.clip(one(t.hair_volume) * (1 + 0.25 * one(c.hair_change[:, 0])), 0.02, 0.4) * (1 - 0.9 * one(t.bald))
    length = np.clip(one(t.hair_length) + 0.06 * one(c.hair_change[:, 2]), 0, 1)
    top = np.clip(0.55 - sin, 0, 1)  # 1 above, 0 well below the ears
    reach = 1 + volume * top * (0.75 + 0.25 * sin * sin) + curl * 0.012 * strand
    side_hair = np.clip((length - 0.25) * 2.2, 0, 1)
    # Below the ears long hair hangs: its edge is a straight line down, not a circle; short hair ends there.
    hanging = half * (1.04 + 0.8 * volume + 0.10 * length) / np.maximum(np.abs(cos), 0.30)
    hanging = np.minimum(hanging * (1 + 0.02 * strand), 96.0)
    stop = np.clip((0.12 + 1.6 * length - sin) * 2.6, 0, 1)
    below = np.maximum(lower, face)
    joint = 0.04 + 0.10 * length + 0.4 * volume  # what the hanging hair is wider than the cap at the height of the ears
    reach = reach + joint * stop * np.clip(1 + 2 * sin, 0, 1)
    hair = np.where(sin < 0, skull * reach, np.maximum(below, hanging) * stop + 0.8 * below * (1 - stop))
    hair = (hair + 0.8 * curl * strand) * (1 - 0.06 * one(t.bald))

    # Hairline: a share of the skull's radius, lowest at the temples, pulled down by a fringe, swept by the parting.
    middle = np.clip(-sin, 0, 1)
    side = cos * one(t.parting)
    fringe = np.clip(one(t.fringe) + 0.12 * one(c.hair_change[:, 1]) * (one(t.fringe) > 0.05), 0, 1)
    line = one(t.hairline) + one(t.recession) * np.maximum(1 - ((np.abs(cos) - 0.55) / 0.4) ** 2, 0)
    line = line - 0.04 * side * (1 - fringe)
    line = line - fringe * (0.25 + 0.08 * side + 0.028 * strand) * np.clip(middle * 2.2 - 0.5, 0, 1)
    temple = np.clip((0.62 - middle) / 0.5, 0, 1)
    line = line * (1 - temple) + (0.985 - 0.03 * length) * temple
    covered = 0.90 - 0.05 * np.clip(sin, 0, 1) + 0.02 * strand * curl  # long hair falls over the cheeks' edges
    covered = covered + 1.3 * np.clip((sin - 0.78) * 7.0, 0, 1)  # ... but not over the chin
    beside = np.where(side_hair > 0.5, covered, 1.02 + 0.25 * np.clip(sin * 6, 0, 1))
    blend = np.clip((0.25 + sin) * 3.0, 0, 1)
    line = line * (1 - blend) + beside * blend
    line = line + 0.006 * strand
    hairline = np.where(sin < 0, skull, face) * line
    hairline = hairline * (1 + 0.30 * one(t.bald) * np.clip(middle * 1.6, 0, 1))
    return _Outline(*(a.astype(np.float32) for a in (face, hair, hairline, strand)))


def _look_up(table: F32, index: I32) -> F32:
    """Rows of an (N, 1024) table at (N, H, W) entries."""
    flat = index + (np.arange(len(table), dtype=np.int32) * _TABLE)[:, None, None]
    return np.take(table.reshape(-1), flat, mode="clip")


def _paint_background(image: F32, c: Conditions) -> None:
    """Two colours along a slanted ramp, soft blobs, sometimes stripes."""
    n = len(image)
    x = np.linspace(-1, 1, FACE_SIZE, dtype=np.float32)[None, None, :]
    y = np.linspace(-1, 1, FACE_SIZE, dtype=np.float32)[None, :, None]
    d = c.backdrop
    slope_x, slope_y = _column(d[:, 0] * 2 - 1), _column(d[:, 1] * 2 - 1)
    ramp = slope_x * x + slope_y * y
    striped = (d[:, 2] < 0.3).astype(np.float32)
    wave = np.abs(_fraction(ramp * _column(2.0 + 5.0 * d[:, 3])) - 0.5) * 12.0 - 3.0
    ramp = np.clip(ramp * 0.6 + 0.5 + np.clip(wave, -1, 1) * _column(0.3 * striped), 0, 1)
    blob = _bump(_ellipse(x, y, _column(d[:, 4] * 2 - 1), _column(d[:, 5] * 2 - 1), 0.7, 0.5))
    ramp = ramp * (1 - blob) + blob * _column(d[:, 6])
    pair = c.background.reshape(n, 2, 3)
    image[:] = _column(pair[:, 0])
    image += ramp[:, None] * _column(pair[:, 1] - pair[:, 0])


def _add(height: F32, u: F32, v: F32, cu: F32, cv: F32, ru: F32 | float, rv: F32 | float, rise: F32 | float) -> None:
    """Raise an elliptic bump on a window of the height field."""
    height += _bump(_ellipse(u, v, cu, cv, ru, rv)) * np.asarray(rise, dtype=np.float32)


# Rows and columns where a feature can fall; of 400 images none changes by more than 4 grey levels without them.
_EYES = (slice(30, 66), (slice(18, 60), slice(52, 94)))
_NOSE = (slice(37, 85), slice(30, 82))
_MOUTH = (slice(78, 112), slice(30, 82))


def _sculpt(height: F32, u: F32, v: F32, pose: _Pose, t: Traits, c: Conditions) -> None:
    """Add sockets, cheeks, nose, lips and chin to the head's height field."""
    smile = _column(c.smile)
    opening = _column(c.mouth_open)
    eye_x, nose_y, nose_z = _column(t.eye_x), _column(t.nose_drop), _column(t.nose_depth)
    mouth_y = _column(t.mouth_drop)
    rows, columns = _EYES
    for side, cols in zip((-1.0, 1.0), columns, strict=True):
        w = (slice(None), rows, cols)
        cu = pose.u(side * eye_x, 0.0)
        cv = pose.v(-1.0, 0.0)
        _add(height[w], u[w], v[w], cu * 0.94, cv - 2.0, 12.0, 8.5, -3.4)
        _add(height[w], u[w], v[w], cu, cv + 1.0, 8.8, 5.6, 2.2)
        _add(height[w], u[w], v[w], pose.u(side * eye_x * 1.02, 1.0), pose.v(-10.5, 2.0), 15.0, 5.5, 1.6)
    w = (slice(None), slice(56, 102), slice(None))
    cheek = 2.2 + 40 * _column(t.cheek) + 2.2 * smile
    for side in (-1.0, 1.0):
        _add(
            height[w], u[w], v[w], pose.u(side * (eye_x + 3.0), -4.0), pose.v(24.0 - smile * 2, -4.0), 15.0, 13.0, cheek
        )

    w = (slice(None), *_NOSE)
    un, vn, hn = u[w], v[w], height[w]
    tip_u, tip_v = pose.u(0.0, nose_z), pose.v(nose_y, nose_z)
    bridge = _column(t.nose_bridge)
    root_u, root_v = pose.u(0.0, bridge - 2.0), pose.v(-3.0, bridge - 2.0)
    along = (vn - root_v) * (1.0 / (tip_v - root_v))
    along_in = np.clip(along, 0.0, 1.0)
    width = _column(t.nose_bridge_width) + along_in * (_column(t.nose_wing) * 0.92 - _column(t.nose_bridge_width) + 1.0)
    offset = (un - root_u - along_in * (tip_u - root_u)) / width
    rise = 0.7 * bridge + along_in * (nose_z - 0.7 * bridge) * 0.45
    rise *= np.clip(along * 5.0 + 0.6, 0, 1)
    rise *= np.clip((tip_v + 5.5 - vn) * 0.20, 0, 1)
    hn += _bump(offset * offset) * rise
    ball = _column(t.nose_ball)
    _add(hn, un, vn, tip_u, tip_v + 0.5, 4.2 + 1.4 * ball, 4.4 + ball, 1.8 + 1.2 * ball)
    wing = _column(t.nose_wing)
    for side in (-1.0, 1.0):
        _add(hn, un, vn, pose.u(side * wing * 0.82, nose_z * 0.45), tip_v + 1.6, 3.9, 4.2, 2.6)

    w = (slice(None), *_MOUTH)
    um, vm, hm = u[w], v[w], height[w]
    mid_u, mid_v = pose.u(0.0, 3.5), pose.v(mouth_y, 3.5)
    half = _column(t.mouth_half_width) * pose.yaw_cos
    _add(hm, um, vm, mid_u, mid_v, half * 1.25, 9.0, 2.2)
    _add(hm, um, vm, mid_u, mid_v - 1.5 * _column(t.lip_upper) * 0.5, half * 0.9, 2.6, 0.9)
    _add(hm, um, vm, mid_u, mid_v + opening * 6 + _column(t.lip_lower) * 0.55, half * 0.75, 3.2, 1.5)
    _add(hm, um, vm, mid_u, mid_v + opening * 6 + _column(t.lip_lower) + 3.6, half * 0.9, 3.0, -1.2)
    _add(hm, um, vm, pose.u(0.0, 2.0), pose.v(mouth_y + 15.0, 2.0), 10.0, 7.5, 2.2 + 20 * _column(t.chin_width))
    _add(hm, um, vm, mid_u, mid_v - _column(t.lip_upper) - 4.0, 2.4, 4.2, -0.9)


def _shade(u: F32, v: F32, rho2: F32, pose: _Pose, t: Traits, c: Conditions) -> tuple[F32, F32]:
    """Lambert term and a specular lobe (N, 112, 112) of the head's height field."""
    height = np.sqrt(np.clip(1.06 - rho2, 0.015, 2.0))
    height *= 34.0
    _sculpt(height, u, v, pose, t, c)
    slope_x = np.empty_like(height)
    slope_y = np.empty_like(height)
    slope_x[:, :, 1:-1] = height[:, :, 2:] - height[:, :, :-2]
    slope_x[:, :, 0], slope_x[:, :, -1] = slope_x[:, :, 1], slope_x[:, :, -2]
    slope_y[:, 1:-1] = height[:, 2:] - height[:, :-2]
    slope_y[:, 0], slope_y[:, -1] = slope_y[:, 1], slope_y[:, -2]
    slope_x *= 0.5
    slope_y *= 0.5
    lx, ly = _column(c.light_x), _column(c.light_y)
    lz = np.sqrt(np.maximum(1.0 - lx * lx - ly * ly, 0.05))
    # The half-way vector to a viewer straight ahead gives the gloss.
    norm = 1.0 / np.sqrt(2.0 + 2.0 * lz)
    length = 1.0 / np.sqrt(slope_x * slope_x + slope_y * slope_y + 1.0)
    flow = slope_x * lx
    flow += slope_y * ly
    lambert = _positive((lz - flow) * length + 0.12)
    gloss = _positive(((lz + 1.0) - flow) * length * norm)
    gloss *= gloss
    gloss *= gloss
    gloss *= gloss
    gloss *= gloss
    return lambert, gloss


def _cast_shadow(light: F32, gloss: F32, lambert: F32, u: F32, v: F32, c: Conditions) -> None:
    """Darken one side of a soft straight edge, on the few images that have such a shadow."""
    rows = np.flatnonzero(c.shadow > 0)
    if not len(rows):
        return
    angle = c.shadow_angle[rows].astype(np.float64)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    beyond = _column(cos) * u[rows] + _column(sin) * (v[rows] - 20.0) - _column(c.shadow_offset[rows])
    shadow = _edge(beyond, 5.0) * _column(c.shadow[rows])
    light[rows] -= shadow * (lambert[rows] * _column(c.diffuse[rows]) + 0.4 * _column(c.ambient[rows]))
    gloss[rows] *= 1.0 - shadow


def _paint_eyes(image: F32, u: F32, v: F32, pose: _Pose, t: Traits, c: Conditions) -> None:
    """Lids, sclera, iris, lashes and brows of both eyes."""
    rows, columns = _EYES
    open_ = _column(c.eye_open) * (1.0 - 0.30 * _column(c.smile))
    skin = _column(t.skin)
    for side, cols in zip((-1.0, 1.0), columns, strict=True):
        w = (slice(None), rows, cols)
        canvas = image[:, :, rows, cols]
        outward = np.float32(side)
        # The far eye is seen more from its side.
        narrowing = np.clip(pose.yaw_cos - outward * pose.yaw_sin * 0.32, 0.55, 1.15)
        half = _column(t.eye_half_width) * narrowing
        du = (u[w] - pose.u(outward * _column(t.eye_x), 0.0)) * outward
        dv = v[w] - pose.v(0.0, 0.0)
        dv = dv + du * _column(t.eye_tilt)
        across = du * (1.0 / half)
        arc = _positive(1.0 - across * across)
        upper_h, lower_h = _column(t.eye_upper) * open_, _column(t.eye_lower) * (0.6 + 0.4 * open_)
        lid_v = -upper_h * np.sqrt(arc) * (0.55 + 0.45 * arc) + 0.4
        low_v = lower_h * arc + 0.4
        fade = np.clip((1.25 - np.abs(across)) * 4.0, 0, 1)

        shadow = _bump(_ellipse(across, dv, 0.0, -2.5, 1.45, 7.5)) * (0.16 + 0.10 * _column(t.eye_fold))
        bag = _bump(_ellipse(across, dv, -0.15, lower_h + 3.0, 1.15, 3.4)) * (0.06 + 0.20 * _column(t.age))
        canvas *= 1.0 - (shadow + bag)[:, None]

        opened = np.minimum(dv - lid_v, low_v - dv)
        white = _edge(opened) * _edge((1.0 - np.abs(across)) * half)
        lid_shade = np.clip(1.05 - 0.30 * np.clip(1.0 - (dv - lid_v) * 0.6, 0, 1), 0, 1)
        sclera = np.array([0.84, 0.81, 0.79], dtype=np.float32)[None, :, None, None] * lid_shade[:, None]
        _paint(canvas, white, sclera * (0.72 + 0.28 * skin))
        gaze_u = _column(c.gaze_x) * outward - 0.2
        iris2 = _ellipse(
            du,
            dv,
            gaze_u,
            _column(c.gaze_y) - 0.5 * upper_h * 0.35,
            _column(t.iris_radius) * narrowing,
            _column(t.iris_radius),
        )
        radius = np.sqrt(iris2)
        size = _column(t.iris_radius)
        disc = _edge((1.0 - radius) * size) * white
        ring = np.clip(1.25 - 0.75 * radius * radius, 0.4, 1.0) * lid_shade
        _paint(canvas, disc, _column(t.iris_colour) * ring[:, None])
        pupil = _edge((0.42 - radius) * size) * white
        spark = (
            _bump(
                _ellipse(
                    du * outward, dv, gaze_u * outward + 1.2 * _column(c.light_x), _column(c.gaze_y) - 1.5, 1.15, 1.15
                )
            )
            * white
        )
        canvas *= 1.0 - (0.92 * pupil)[:, None]
        canvas += (0.85 * spark * _column(c.diffuse))[:, None]

        lash = _column(t.lash)
        line = _bump(((dv - lid_v + 0.3) / (0.9 + 0.8 * lash)) ** 2) * np.clip((1.08 - np.abs(across)) * 6.0, 0, 1)
        line = line * (0.45 + 0.5 * lash)
        crease_v = lid_v - 2.2 - 0.5 * (1 - arc)
        crease = _bump(((dv - crease_v) / 1.1) ** 2) * fade * (0.38 * _column(t.eye_fold))
        under = _bump(((dv - low_v - 0.2) / 0.9) ** 2) * fade * (0.16 + 0.2 * lash)
        crow = _bump(((across - 1.45) / 0.35) ** 2) * np.abs(_fraction(dv * 0.5) - 0.5) * 2
        crow = crow * _bump((dv / 6.0) ** 2) * (0.16 * _column(t.age) * (0.3 + _column(c.smile)))
        dark = np.maximum(np.maximum(line, crease), np.maximum(under, crow))
        canvas *= 1.0 - dark[:, None]

        brow_half = _column(t.brow_half_length) * narrowing
        bu = (u[w] - pose.u(outward * (_column(t.eye_x) + 1.2), 2.0)) * outward / brow_half
        bv = v[w] - pose.v(-_column(t.brow_gap) - _column(c.brow_raise) - 0.9, 2.0)
        bend = _column(t.brow_arch) * (1.0 - (bu - 0.25) ** 2) - brow_half * _column(t.brow_slope) * bu
        thickness = _column(t.brow_thickness) * np.clip(1.05 - 0.55 * np.clip(bu + 0.2, 0, 2), 0.2, 1.0)
        distance = np.abs(bv + bend - 0.6 * _column(t.brow_arch))
        hairs = np.clip(1.0 - distance / thickness, 0, 1)
        hairs = np.clip(hairs * 1.9, 0, 1) * np.clip((1.0 - np.abs(bu)) * 5.0, 0, 1)
        brow_colour = _column(t.hair) * 0.70 + skin * 0.05
        _paint(canvas, hairs * _column(t.brow_strength), brow_colour)


def _paint_nose(image: F32, u: F32, v: F32, pose: _Pose, t: Traits) -> None:
    """Nostrils, the shade beneath the tip and the creases beside the wings."""
    w = (slice(None), *_NOSE)
    canvas = image[:, :, _NOSE[0], _NOSE[1]]
    nose_z = _column(t.nose_depth)
    tip_v = pose.v(_column(t.nose_drop), nose_z)
    wing = _column(t.nose_wing)
    dark = np.zeros_like(u[w])
    for side in (-1.0, 1.0):
        hole_u = pose.u(side * wing * 0.46, nose_z * 0.72)
        hole = _bump(_ellipse(u[w], v[w], hole_u, tip_v + 3.6, 1.2 + 0.24 * wing, 1.9)) * (
            0.30 + 0.55 * _column(t.nostril)
        )
        np.maximum(dark, hole, out=dark)
        crease = _ellipse(u[w], v[w], pose.u(side * wing * 0.80, nose_z * 0.40), tip_v + 1.2, 4.0, 4.6)
        crease = _bump((np.sqrt(crease) - 1.0) ** 2 * 9.0) * np.clip(
            (u[w] - pose.u(side * wing * 0.8, nose_z * 0.4)) * side * 0.5, 0, 1
        )
        np.maximum(dark, crease * 0.25, out=dark)
    under = _bump(_ellipse(u[w], v[w], pose.u(0.0, nose_z * 0.8), tip_v + 5.0, wing * 0.95, 2.8)) * 0.20
    dark = np.maximum(dark, under)
    canvas *= 1.0 - dark[:, None] * np.array([0.85, 1.0, 1.0], dtype=np.float32)[None, :, None, None]


def _paint_mouth(image: F32, u: F32, v: F32, pose: _Pose, t: Traits, c: Conditions) -> None:
    """Lips, the opening with teeth, corners and the folds from nose to mouth."""
    w = (slice(None), *_MOUTH)
    canvas = image[:, :, _MOUTH[0], _MOUTH[1]]
    smile, opening = _column(c.smile), _column(c.mouth_open)
    half = _column(t.mouth_half_width) * (1.0 + 0.16 * smile - 0.05 * opening)
    du = (u[w] - pose.u(0.0, 3.0)) / (half * pose.yaw_cos)
    lean = du * pose.yaw_sin * 0.18  # the far half is shorter
    du = du * (1.0 + lean)
    dv = v[w] - pose.v(_column(t.mouth_drop), 3.0)
    square = du * du
    arc = _positive(1.0 - square)
    line = (_column(t.mouth_curve) + 2.8 * smile) * (0.45 - square)
    gap_up, gap_low = 0.9 * opening + 1.0 * smile * opening, 7.0 * opening
    show = np.clip(1.6 * smile - 0.55, 0, 1) * 2.6  # teeth in a broad smile
    round_ = np.sqrt(arc)
    top_inner = line - (gap_up + 0.4 * show) * arc
    low_inner = line + (gap_low + show) * arc
    bow = _bump((du / 0.30) ** 2) * _column(t.cupid)
    peaks = _column(t.lip_upper) * (1.0 - 0.22 * smile) * (round_ * 0.45 + arc * 0.55) * (1.0 - bow)
    top_outer = top_inner - peaks
    low_outer = low_inner + _column(t.lip_lower) * (1.0 - 0.15 * smile) * (round_ * 0.35 + arc * 0.65)
    inside_u = _edge((1.0 - np.abs(du)) * half)
    lips = _edge(np.minimum(dv - top_outer, low_outer - dv), 1.6) * inside_u
    lipstick = _column(c.lipstick)[:, None]
    colour = _column(t.lip_colour) * (1 - lipstick) + _column(c.lipstick_colour) * lipstick
    volume = 1.0 - 0.16 * np.clip((line - dv) * 0.5, 0, 1) + 0.10 * _bump(((dv - low_inner - 1.6) / 2.2) ** 2)
    _paint(canvas, lips * 0.88, colour * volume[:, None])
    cavity = _edge(np.minimum(dv - top_inner, low_inner - dv)) * inside_u
    teeth = np.clip((low_inner - dv) * 0.9 - 0.2 + 0.3 * show - 2.2 * opening, 0, 1) * np.clip(smile * 2.0 + 0.4, 0, 1)
    teeth = np.maximum(teeth, np.clip((top_inner + 2.6 - dv), 0, 1) * np.clip(opening * 3, 0, 1))
    dark = np.array([0.20, 0.07, 0.07], dtype=np.float32)[None, :, None, None]
    bright = np.array([0.86, 0.83, 0.78], dtype=np.float32)[None, :, None, None]
    # Teeth fade into shadow towards the corners.
    _paint(canvas, cavity, dark + (bright - dark) * (teeth * np.clip(1.15 - square, 0, 1))[:, None])
    seam = _bump(((dv - line) / 1.15) ** 2) * np.clip((1.10 - np.abs(du)) * 5.0, 0, 1) * 0.55
    seam = seam * (1.0 - np.clip((gap_low + show) * 0.6, 0, 1))
    corner = _bump(_ellipse(np.abs(du), dv, 1.03, line, 0.16, 1.9)) * 0.38
    canvas *= 1.0 - np.maximum(seam, corner)[:, None]

    w = (slice(None), slice(66, 108), slice(16, 96))
    canvas = image[:, :, 66:108, 16:96]
    depth = 0.02 + 0.24 * _column(t.age) + 0.08 * smile
    start_v, end_v = pose.v(_column(t.nose_drop) + 0.5, 5.0), pose.v(_column(t.mouth_drop) + 2.0, 1.0)
    along = (v[w] - start_v) / (end_v - start_v)
    inside = _bump((along * 2.0 - 1.0) ** 2)
    for side in (-1.0, 1.0):
        begin = pose.u(side * (_column(t.nose_wing) + 1.2), 4.0)
        finish = pose.u(side * (half + 2.5), -1.0)
        offset = u[w] - begin - along * (finish - begin)
        canvas *= 1.0 - (_bump(offset * offset * 0.22) * inside * depth)[:, None]


def _paint_skin_marks(image: F32, u: F32, v: F32, pose: _Pose, t: Traits) -> None:
    """Moles and freckles: small dark discs at places of the identity, scattered in 5 x 5 patches."""
    n = len(image)
    spots = t.spots.reshape(n, SPOTS, 3)
    x, y, strength = spots[:, :, 0] * 27, spots[:, :, 1] * 26 + 22, spots[:, :, 2]
    freckle = np.arange(SPOTS) >= 3
    y = np.where(freckle, 17 + spots[:, :, 1] * 9, y).astype(np.float32)
    x = np.where(freckle, spots[:, :, 0] * 22, x).astype(np.float32)
    depth = 5.0 - 0.022 * x * x
    at_u = (x * pose.yaw_cos[:, 0] + depth * pose.yaw_sin[:, 0])[:, :, None, None]
    at_v = (y * pose.pitch_cos[:, 0] + depth * pose.pitch_sin[:, 0])[:, :, None, None]
    # The plane is a similarity: two differences of it give its inverse.
    ou, ov = u[:, 0, 0][:, None, None, None], v[:, 0, 0][:, None, None, None]
    re, im = (u[:, 0, 1] - u[:, 0, 0])[:, None, None, None], (v[:, 0, 1] - v[:, 0, 0])[:, None, None, None]
    scale = 1.0 / (re * re + im * im)
    px = ((at_u - ou) * re + (at_v - ov) * im) * scale
    py = ((at_v - ov) * re - (at_u - ou) * im) * scale
    cells = np.arange(-2, 3)
    ix = np.clip(np.rint(px).astype(np.int64) + cells[None, None, None, :], 0, FACE_SIZE - 1)
    iy = np.clip(np.rint(py).astype(np.int64) + cells[None, None, :, None], 0, FACE_SIZE - 1)
    reach = np.where(freckle, 1.5, 1.9).astype(np.float32)[None, :, None, None]
    dot = _bump(((ix - px) ** 2 + (iy - py) ** 2) / (reach * reach)) * strength[:, :, None, None]
    cover = np.zeros((n, FACE_SIZE, FACE_SIZE), dtype=np.float32)
    every = np.arange(n)[:, None, None, None]
    np.maximum.at(cover, (every, iy, ix), dot.astype(np.float32))
    darkest = cover[every, iy, ix]  # where discs overlap, every write below is the same
    for channel, share in enumerate((0.50, 0.62, 0.68)):
        image[every, channel, iy, ix] *= 1.0 - share * darkest


def _paint_facial_hair(image: F32, u: F32, v: F32, inside: F32, pose: _Pose, t: Traits, grain: F32) -> None:
    """Stubble, moustache, goatee and beard; lips are painted over it later."""
    bearded = np.flatnonzero((t.moustache + t.goatee + t.beard + t.stubble) > 0.02)
    if not len(bearded):
        return
    rows = slice(56, FACE_SIZE)
    w = (bearded, rows)
    t, pose = take_rows(t, bearded), _Pose(*(a[bearded] for a in pose))
    canvas = image[bearded, :, rows]
    mouth_v = pose.v(_column(t.mouth_drop), 3.0)
    mid_u = pose.u(0.0, 3.0)
    half = _column(t.mouth_half_width)
    du, dv = (u[w] - mid_u) / half, v[w] - mouth_v
    far = np.abs(du)
    upper = _column(t.lip_upper)
    over_lip = _bump((dv + upper + 2.0 - 1.1 * far) ** 2 / 18.0) * np.clip((1.35 - far) * 3.0, 0, 1)
    chin = np.clip((dv + 1.0) * 0.25, 0, 1) * np.clip((1.0 - far) * 3.0, 0, 1)
    beside = np.clip((dv + 1.5 + 5.2 * _positive(far - 0.95)) * 0.16, 0, 1) * np.clip((far - 0.55) * 3 + (dv > 4), 0, 1)
    dense = np.maximum(over_lip * _column(t.moustache), chin * _column(t.goatee))
    dense = np.maximum(dense, np.maximum(beside, chin) * _column(t.beard))
    shadow = np.maximum(np.maximum(over_lip, chin), beside) * _column(t.stubble) * 0.38
    cover = np.maximum(np.clip(dense * 1.5, 0, 1) * (0.80 + 0.10 * grain[w]), shadow)
    cover = np.clip(cover, 0, 0.97) * inside[w]
    _paint(canvas, cover, (_column(t.hair) * 0.85) * (1.0 + 0.16 * grain[w])[:, None])
    image[bearded, :, rows] = canvas


def _paint_glasses(image: F32, u: F32, v: F32, rho2: F32, pose: _Pose, t: Traits, c: Conditions) -> None:
    """Frames of the identity's glasses, or a stranger's sunglasses as an occlusion."""
    sun = c.occluder == 3.0
    rows = np.flatnonzero((c.glasses > 0) | sun)
    if not len(rows):
        return
    t, c = take_rows(t, rows), take_rows(c, rows)
    sun = sun[rows]
    w = (rows, slice(30, 78))
    uu, vv = u[w], v[w]
    canvas = image[rows, :, 30:78]
    turned = _Pose(*(a[rows] for a in pose))
    size = _column(np.where(sun, 11.0 + 2.5 * c.occluder_shape[:, 0], t.glasses_size).astype(np.float32))
    roundness = _column(np.where(sun, c.occluder_shape[:, 1], t.glasses_round).astype(np.float32))
    thick = _column(np.where(sun, 0.8 + c.occluder_shape[:, 2], t.glasses_thickness).astype(np.float32))
    colour = np.where(sun[:, None], 0.06, t.glasses_colour).astype(np.float32)
    far = uu - turned.u(0.0, 8.0)
    du = (np.abs(far) - _column(t.eye_x) * turned.yaw_cos) / turned.yaw_cos
    dv = vv - turned.v(1.0, 6.0)
    tall = size * (0.68 + 0.26 * roundness)
    a, b = np.abs(du) / size, np.abs(dv) / tall
    disc = np.sqrt(a * a + b * b)
    box = np.maximum(a, b) * 0.72 + disc * 0.28 + 0.06 * np.minimum(a, b)
    reach = (1.0 - (box + roundness * (disc - box))) * tall
    rim = _edge(thick - np.abs(reach))
    bridge = _edge(thick * 0.8 - np.abs(dv + 2.2)) * (np.abs(far) < _column(t.eye_x) - size + 1.0)
    temple = _edge(thick * 0.7 - np.abs(dv + 2.5)) * (du > size - 0.5) * _edge((1.02 - rho2[w]) * 20.0)
    lens = _edge(reach)
    glare = _column(c.light_x) * du * 0.06 - dv * 0.03
    shade = np.where(_column(sun), 0.90 - 0.12 * np.clip(glare + 0.3, 0, 1), 0.05)
    canvas *= 1.0 - (lens * shade)[:, None]
    canvas += (lens * np.clip(glare - 0.15, 0, 0.25) * 0.5)[:, None]
    _paint(canvas, np.maximum(rim, np.maximum(bridge, temple)), _column(colour))
    image[rows, :, 30:78] = canvas


def _paint_occluders(image: F32, u: F32, v: F32, rho2: F32, pose: _Pose, c: Conditions, grain: F32) -> None:
    """Cloth over the mouth, a hand, an object, a hat: each on the few images that have it."""
    for kind in (1.0, 2.0, 4.0, 5.0):
        rows = np.flatnonzero(c.occluder == kind)
        if not len(rows):
            continue
        s = [_column(c.occluder_shape[rows, k]) for k in range(6)]
        uu, vv, canvas = u[rows], v[rows], image[rows]
        turned = _Pose(*(a[rows] for a in pose))
        tint = _column(c.occluder_colour[rows])
        texture = 1.0 + 0.05 * grain[rows]
        cover: F32
        if kind == 1.0:
            lift = vv - turned.v(19.0 + 12.0 * s[0], 10.0) + 0.006 * (uu - turned.u(0.0, 14.0)) ** 2 * (0.4 - s[1])
            cover = _edge(lift) * _edge((1.10 + 0.2 * s[2] - rho2[rows]) * 20.0)
            folds = np.abs(_fraction(lift * (0.06 + 0.08 * s[3])) - 0.5) * 0.5 + 0.72
            texture = texture * folds * np.clip(1.12 - 0.35 * rho2[rows], 0.3, 1.2)
        elif kind == 2.0:
            side = np.where(s[0] < 0.5, -1.0, 1.0).astype(np.float32)
            base_v = 34.0 + 24.0 * s[1]
            cover = np.zeros_like(uu)
            texture = texture * 0.25
            for finger in range(4):
                axis = base_v + (finger - 1.5) * 8.2 + (uu * side - 20.0) * (0.25 - 0.5 * s[2])
                tip = 6.0 + 12.0 * s[3] + 2.2 * abs(finger - 1.3)
                across = (vv - axis) / 4.3
                ahead = _positive(tip + 3.0 - uu * side) / 4.3
                reach = np.sqrt(across * across + ahead * ahead)
                cover = np.maximum(cover, _edge((1.0 - reach) * 4.3))
                texture = np.maximum(texture, np.clip(0.95 - 0.40 * reach * reach, 0.0, 1.0) * (reach < 1.1))
        elif kind == 4.0:
            cos, sin = s[0] * 2 - 1, np.sqrt(np.maximum(1 - (s[0] * 2 - 1) ** 2, 0))
            cu, cv = (s[1] - 0.5) * 50.0, 8.0 + 44.0 * s[2]
            a = np.abs((uu - cu) * cos + (vv - cv) * sin)
            b = np.abs((vv - cv) * cos - (uu - cu) * sin)
            cover = _edge(np.minimum(7.0 + 9.0 * s[3] - a, 12.0 + 40.0 * s[4] - b))
            texture = texture * (0.85 + 0.25 * np.clip(a * 0.06, 0, 1))
        else:
            brim = turned.v(-21.0 + 8.0 * s[0], 8.0) - 0.010 * (uu - turned.u(0.0, 10.0)) ** 2 * (s[1] - 0.2)
            cover = _edge(brim - vv) * _edge((1.45 - rho2[rows]) * 20.0)
            canvas *= 1.0 - (np.clip(1.0 - (vv - brim) * 0.12, 0, 1) * (rho2[rows] < 1.0) * 0.42)[:, None]
            texture = texture * np.clip(
                1.15 - 0.40 * rho2[rows] - 0.3 * _bump(((brim - vv - 4.0) / 1.6) ** 2), 0.25, 1.2
            )
        level = _column(c.ambient[rows] + 0.7 * c.diffuse[rows]) * texture
        _paint(canvas, cover, tint * level[:, None])
        image[rows] = canvas


def _blur(image: F32, c: Conditions) -> None:
    """Separable five-tap blur of the images that have one."""
    rows = np.flatnonzero(c.blur > 0.02)
    if not len(rows):
        return
    some = image[rows]
    # Two taps a side: weights of a Gaussian to second order in its variance, clipped to stay a low-pass.
    variance = c.blur[rows] * 1.9
    far = np.clip((variance - 0.5) * 0.16, 0.0, 0.16)[:, None, None, None]
    close = np.clip(variance * 0.30, 0.0, 0.24)[:, None, None, None]
    centre = 1.0 - 2.0 * far - 2.0 * close
    for axis in (2, 3):
        padded = np.concatenate(
            [some.take([0, 0], axis=axis), some, some.take([FACE_SIZE - 1] * 2, axis=axis)], axis=axis
        )
        index = [slice(None)] * 4

        def shifted(k: int, padded: F32 = padded, index: list[slice] = index, axis: int = axis) -> F32:
            index[axis] = slice(k, k + FACE_SIZE)
            return padded[tuple(index)]

        some = centre * shifted(2) + close * (shifted(1) + shifted(3)) + far * (shifted(0) + shifted(4))
    image[rows] = some


def _finish(image: F32, c: Conditions) -> U8:
    """Camera: blur, brightness and contrast curves, saturation, sensor noise; to interleaved bytes."""
    n = len(image)
    _blur(image, c)
    image *= _column(c.light_colour)
    np.clip(image, 0.0, 1.0, out=image)
    # x + 2 k (x - x^2) + m (x - 1/2) 2 x (1 - x): brightness k and contrast m keep black and white; to 0 ... 255.
    k, m = _column(c.brightness)[:, None] * 255.0, _column(c.contrast)[:, None] * 255.0
    curve = image * (-2.0 * m)
    curve += 3.0 * m - 2.0 * k
    curve *= image
    curve += 255.0 + 2.0 * k - m
    image *= curve
    saturation = _column(c.saturation)
    grey = (image[:, 0] * 0.3 + image[:, 1] * 0.6 + image[:, 2] * 0.1) * (1.0 - saturation) + 0.5
    image *= saturation[:, None]
    image += grey[:, None]
    windows = np.lib.stride_tricks.sliding_window_view(_noise().fine, 3 * FACE_SIZE * FACE_SIZE)
    grains = windows[(c.noise_offset * _TILE).astype(np.int64)].reshape(n, 3, FACE_SIZE, FACE_SIZE)
    grains *= _column(c.noise * 255.0)[:, None]
    image += grains
    np.clip(image, 0.0, 255.0, out=image)
    pixels = np.empty((n, FACE_SIZE, FACE_SIZE, 3), dtype=np.uint8)
    for channel in range(3):  # four times as fast as transposing bytes
        pixels[..., channel] = image[:, channel]
    return pixels


def _render_chunk(t: Traits, c: Conditions) -> U8:
    n = len(c.yaw)
    yaw, pitch = c.yaw.astype(np.float64), c.pitch.astype(np.float64)
    pose = _Pose(*(_column(a.astype(np.float32)) for a in (np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch))))
    u, v = _plane(pose, t, c)

    # The outline's own axes: the chin lies before the head's centre and moves with yaw.
    pv = v - pose.v(_CENTER_V, _CENTER_DEPTH * 0.35)
    pu = u - pose.u(0.0, _CENTER_DEPTH * 0.62) - _positive(pv) * (pose.yaw_sin * 0.40)
    away_u, away_v = np.abs(pu), np.abs(pv)
    slope = pv / (away_u + away_v + 1e-6)
    turn = (slope - 1.0) * ((pu >= 0) * np.float32(2.0) - np.float32(1.0)) + 1.0  # slope, or 2 - slope on the left
    index = np.clip((turn + 1.0) * (_TABLE / 4), 0, _TABLE - 1).astype(np.int32)
    radius = np.sqrt(pu * pu + pv * pv)
    outline = _outline(t, c)
    face_r = _look_up(outline.face, index)
    hair_r = _look_up(outline.hair, index)
    line_r = _look_up(outline.hairline, index)
    # Strands radiate from the crown and hang straight beside the face.
    hang = np.clip(pv * 0.08 + 0.4, 0.0, 1.0)
    hang_index = np.clip(away_u * 7.0 + pv * 0.5 + 200.0, 0, _TABLE - 1).astype(np.int32)
    strand = _look_up(outline.strand, index)
    strand += hang * (_look_up(outline.strand, hang_index) - strand)
    inside = _edge(face_r - radius)
    ratio = radius / face_r
    rho2 = ratio * ratio

    noise = _noise()
    tiles = np.lib.stride_tricks.sliding_window_view(noise.smooth, (FACE_SIZE, FACE_SIZE))
    grain = tiles[(c.strands[:, 0] * 144).astype(np.int64), (c.strands[:, 1] * 144).astype(np.int64)]

    lambert, gloss = _shade(u, v, np.clip(rho2, 0.0, 1.05), pose, t, c)

    image = np.empty((n, 3, FACE_SIZE, FACE_SIZE), dtype=np.float32)
    _paint_background(image, c)
    skin = _column(t.skin)
    level = _column(c.ambient) + 0.62 * _column(c.diffuse)
    hair_light = 1.0 + 0.22 * strand * (1 - 0.6 * _column(t.curl)) + 0.16 * grain * (0.3 + _column(t.curl))
    hair_light *= np.clip(1.25 - 0.55 * np.abs(ratio - 0.95) * 4.0, 0.62, 1.25)
    hair_light *= level

    _paint(image, _edge(hair_r - radius, 1.6), _column(t.hair) * (0.72 * hair_light)[:, None])
    bottom = slice(84, FACE_SIZE)
    neck = _edge(0.76 * _column(t.face_half_width) + 1.0 - np.abs(u[:, bottom] - pose.u(0.0, -24.0)), 2.0)
    _paint(image[:, :, bottom], neck, skin * (0.45 * level)[:, None])
    cloth = _edge(v[:, bottom] - 58.0 - 0.10 * np.abs(u[:, bottom]), 1.5)
    _paint(image[:, :, bottom], cloth, _column(c.cloth) * (0.8 * level)[:, None])

    # Ears: mirrored around the turned head's middle.
    middle = slice(40, 86)
    eu = np.abs(u[:, middle] - pose.u(0.0, -26.0)) - _column(t.face_half_width + t.ear_out) * pose.yaw_cos
    ear2 = _ellipse(
        eu,
        v[:, middle],
        0.0,
        pose.v(_column(t.ear_y), -22.0),
        _column(t.ear_size) * 0.48,
        _column(t.ear_size),
    )
    fold = 0.62 + 0.42 * np.clip(np.abs(np.sqrt(ear2) - 0.55) * 2.2, 0, 1)
    warm = np.array([1.0, 0.88, 0.85], dtype=np.float32)[None, :, None, None]
    _paint(image[:, :, middle], _edge((1.0 - ear2) * 4.0), skin * warm * (fold * (0.72 * level))[:, None])

    # The face as unlit colour on its own canvas, then lit and composited.
    mottle = 1.0 + (0.010 + 0.02 * _column(t.age)) * grain
    face: F32 = skin * mottle[:, None]
    wide = slice(50, 104)
    tip_u, tip_v = pose.u(0.0, _column(t.nose_depth)), pose.v(_column(t.nose_drop), _column(t.nose_depth))
    red = _bump(_ellipse(u[:, wide], v[:, wide], tip_u, tip_v, 8.0, 8.0))
    for side in (-1.0, 1.0):
        red += _bump(_ellipse(u[:, wide], v[:, wide], pose.u(side * 19.0, -3.0), pose.v(23.0, -3.0), 15.0, 13.0))
    red *= _column(t.blush) * -0.13
    red += 1.0
    face[:, 1:, wide] *= red[:, None]
    brow_v = pose.v(-24.0, 2.0)
    rows = slice(12, 48)
    lines = np.abs(_fraction((v[:, rows] - brow_v) * 0.17) - 0.5) * 2.0
    wrinkle = _bump(lines * lines * 9.0) * _bump(
        _ellipse(u[:, rows], v[:, rows], pose.u(0.0, 2.0), brow_v + 2.0, 26.0, 12.0)
    )
    wrinkle *= np.clip(_column(t.age) - 0.3, 0, 1) * 0.30 * (1 + 0.5 * _column(np.maximum(c.brow_raise, 0)))
    face[:, :, rows] *= 1.0 - wrinkle[:, None]
    _paint_skin_marks(face, u, v, pose, t)
    _paint_facial_hair(face, u, v, inside, pose, t, grain)
    _paint_nose(face, u, v, pose, t)
    _paint_mouth(face, u, v, pose, t, c)
    _paint_eyes(face, u, v, pose, t, c)

    fringe = np.clip((line_r - radius) * 0.045 + 0.72, 0.72, 1.0)
    fringe += line_r >= hair_r
    light = lambert * _column(c.diffuse)
    light += _column(c.ambient)
    light *= np.clip(fringe, 0.0, 1.0, out=fringe)
    gloss *= _column(c.diffuse) * 0.16
    _cast_shadow(light, gloss, lambert, u, v, c)
    face *= light[:, None]
    face += gloss[:, None]
    _paint(image, inside, face)

    over = _edge(np.minimum(hair_r - radius, radius - line_r), 2.2)
    hair_light *= np.clip(0.60 + 0.30 * lambert, 0.5, 1.2)
    _paint(image, over, _column(t.hair) * hair_light[:, None])
    _paint_glasses(image, u, v, rho2, pose, t, c)
    _paint_occluders(image, u, v, rho2, pose, c, grain)
    return _finish(image, c)


def render_faces(traits: Traits, conditions: Conditions) -> U8:
    """Render N faces.

    Args:
        traits: N rows of identity numbers, one for each image.
        conditions: N rows of nuisances.

    Returns:
        uint8 (N, 112, 112, 3), RGB, before JPEG. A row depends on its own numbers only.
    """
    count = len(conditions.yaw)
    pixels = np.empty((count, FACE_SIZE, FACE_SIZE, 3), dtype=np.uint8)
    for start in range(0, count, _CHUNK):
        rows = slice(start, min(start + _CHUNK, count))
        pixels[rows] = _render_chunk(take_rows(traits, rows), take_rows(conditions, rows))
    return pixels
