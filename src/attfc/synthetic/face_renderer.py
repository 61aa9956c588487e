"""Paint synthetic faces: traits and conditions to 112 x 112 pixels, batched over images.

How: each pixel is taken back into the turned face's own plane (`head`); outlines are polar tables, features are signed
distances and ellipses composited with anti-aliased coverage (`canvas`, `features`, `surroundings`); a height field of bumps
gives normals for Lambert shading. Features are painted only in the window of the template where they can fall.

Cost: about 1 ms per image on one core (see benchmarks/synthetic.py). Pixels use only + - * / sqrt, comparisons and table
look-ups, which IEEE arithmetic fixes to the bit: an image does not depend on what shares its batch, nor on the width of
the processor's vectors. A mesh with a texture would look better and cost a hundred times as much.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from attfc.synthetic.canvas import (
    F32,
    FACE_SIZE,
    TILE,
    Canvas,
    Pose,
    columns,
    edge,
    ellipse,
    noise,
    positive,
    ramp,
    rgb,
)
from attfc.synthetic.face_parameters import Conditions, Traits, take_rows
from attfc.synthetic.features import paint_features
from attfc.synthetic.head import TABLE, Outline, cast_shadow, outline, plane, shade
from attfc.synthetic.surroundings import paint_background, paint_before
from attfc.typing import UInt8

__all__ = ["FACE_SIZE", "render_faces"]

I32 = npt.NDArray[np.int32]

_CHUNK = 8  # images painted together: their planes stay in the second-level cache
_CENTER_V = 14.0  # the outline's centre below the eyes
_CENTER_DEPTH = -36.0


def render_faces(traits: Traits, conditions: Conditions) -> UInt8:
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
        rows = slice(start, start + _CHUNK)
        image = _painted(columns(take_rows(traits, rows)), columns(take_rows(conditions, rows)))
        for channel in range(3):  # four times as fast as transposing bytes
            pixels[rows, ..., channel] = image[channel]
    return pixels


def _painted(t: Traits, c: Conditions) -> F32:
    """Paint a few images: (3, N, 112, 112) float32, 0 ... 255."""
    pose = Pose.of(c)
    u, v = plane(pose, t, c)
    pu, pv = _around_centre(u, v, pose)
    radius = np.sqrt(pu * pu + pv * pv)
    radii = _radii(outline(t, c), pu, pv)
    inside = edge(radii.face - radius)
    ratio = radius / radii.face
    rho2 = ratio * ratio
    tiles = np.lib.stride_tricks.sliding_window_view(noise().smooth, (FACE_SIZE, FACE_SIZE))
    first = (c.strands[:, :, 0, 0] * 144).astype(np.int64)
    grain = tiles[first[0], first[1]]
    height = np.sqrt(np.clip(1.06 - np.clip(rho2, 0.0, 1.05), 0.015, 2.0))
    height *= 34.0
    lambert, gloss = shade(Canvas(height, u, v, inside, rho2, grain, t, c, pose))

    planes = np.empty((len(u), 3, FACE_SIZE, FACE_SIZE), dtype=np.float32)
    canvas = Canvas(planes.swapaxes(0, 1), u, v, inside, rho2, grain, t, c, pose)
    paint_background(canvas.image, c)
    hair_light = 1.0 + 0.22 * radii.strand * (1 - 0.6 * t.curl) + 0.16 * grain * (0.3 + t.curl)
    hair_light *= np.clip(1.25 - 0.55 * np.abs(ratio - 0.95) * 4.0, 0.62, 1.25)
    hair_light *= c.ambient + 0.62 * c.diffuse
    canvas.paint(edge(radii.hair - radius, 1.6), t.hair * (0.72 * hair_light))
    _paint_body(canvas)

    # The face as unlit colour on its own canvas, then lit and composited.
    face: F32 = t.skin * (1.0 + (0.010 + 0.02 * t.age) * grain)
    paint_features(replace(canvas, image=face))
    fringe = np.clip((radii.hairline - radius) * 0.045 + 0.72, 0.72, 1.0)
    fringe += radii.hairline >= radii.hair
    light = lambert * c.diffuse
    light += c.ambient
    light *= np.clip(fringe, 0.0, 1.0, out=fringe)
    gloss *= c.diffuse * 0.16
    cast_shadow(canvas, light, gloss, lambert)
    face *= light
    face += gloss
    canvas.paint(inside, face)

    over = edge(np.minimum(radii.hair - radius, radius - radii.hairline), 2.2)
    hair_light *= np.clip(0.60 + 0.30 * lambert, 0.5, 1.2)
    canvas.paint(over, t.hair * hair_light)
    paint_before(canvas)
    _blur(canvas.image, c)
    return _photographed(canvas.image, c)


def _around_centre(u: F32, v: F32, pose: Pose) -> tuple[F32, F32]:
    """Return the outline's own axes: the chin lies before the head's centre and moves with yaw."""
    pv = v - pose.v(_CENTER_V, _CENTER_DEPTH * 0.35)
    return u - pose.u(0.0, _CENTER_DEPTH * 0.62) - positive(pv) * (pose.yaw_sin * 0.40), pv


def _radii(tables: Outline, pu: F32, pv: F32) -> Outline:
    """Look the outlines up in the direction of every pixel: (N, 112, 112) each."""
    away = np.abs(pu)
    slope = pv / (away + np.abs(pv) + 1e-6)
    turn = (slope - 1.0) * ((pu >= 0) * np.float32(2.0) - np.float32(1.0)) + 1.0  # slope, or 2 - slope on the left
    index = _entry((turn + 1.0) * (TABLE / 4))
    face, hair, hairline, strand = (_look_up(table, index) for table in tables)
    # Strands radiate from the crown and hang straight beside the face.
    strand += ramp(pv * 0.08 + 0.4) * (_look_up(tables.strand, _entry(away * 7.0 + pv * 0.5 + 200.0)) - strand)
    return Outline(face, hair, hairline, strand)


def _entry(place: F32) -> I32:
    return np.clip(place, 0, TABLE - 1).astype(np.int32)


def _look_up(table: F32, index: I32) -> F32:
    """Rows of an (N, 1024) table at (N, H, W) entries."""
    flat = index + (np.arange(len(table), dtype=np.int32) * TABLE)[:, None, None]
    return np.take(table.reshape(-1), flat, mode="clip")


def _paint_body(canvas: Canvas) -> None:
    """Neck, clothes and ears, which are lit evenly."""
    t, c, pose = canvas.t, canvas.c, canvas.pose
    level = c.ambient + 0.62 * c.diffuse
    bottom = canvas.window(slice(84, FACE_SIZE))
    bottom.paint(
        edge(0.76 * t.face_half_width + 1.0 - np.abs(bottom.u - pose.u(0.0, -24.0)), 2.0), t.skin * (0.45 * level)
    )
    bottom.paint(edge(bottom.v - 58.0 - 0.10 * np.abs(bottom.u), 1.5), c.cloth * (0.8 * level))
    # Ears: mirrored around the turned head's middle.
    middle = canvas.window(slice(40, 86))
    eu = np.abs(middle.u - pose.u(0.0, -26.0)) - (t.face_half_width + t.ear_out) * pose.yaw_cos
    ear2 = ellipse(eu, middle.v, (0.0, pose.v(t.ear_y, -22.0)), t.ear_size * 0.48, t.ear_size)
    fold = 0.62 + 0.42 * ramp(np.abs(np.sqrt(ear2) - 0.55) * 2.2)
    middle.paint(edge((1.0 - ear2) * 4.0), t.skin * rgb(1.0, 0.88, 0.85) * (fold * (0.72 * level)))


def _blur(image: F32, c: Conditions) -> None:
    """Separable five-tap blur of the images that have one."""
    rows = np.flatnonzero(c.blur > 0.02)
    if not len(rows):
        return
    some = image[:, rows]
    # Two taps a side: weights of a Gaussian to second order in its variance, clipped to stay a low-pass.
    variance = c.blur[rows] * 1.9
    far = np.clip((variance - 0.5) * 0.16, 0.0, 0.16)
    close = np.clip(variance * 0.30, 0.0, 0.24)
    centre = 1.0 - 2.0 * far - 2.0 * close
    for axis in (2, 3):
        padded = np.concatenate([some.take([0, 0], axis), some, some.take([-1, -1], axis)], axis).swapaxes(axis, 3)
        taps = [padded[..., k : k + FACE_SIZE] for k in range(5)]
        some = (centre * taps[2] + close * (taps[1] + taps[3]) + far * (taps[0] + taps[4])).swapaxes(axis, 3)
    image[:, rows] = some


def _photographed(image: F32, c: Conditions) -> F32:
    """Camera: brightness and contrast curves, saturation, sensor noise; to 0 ... 255."""
    image *= c.light_colour
    np.clip(image, 0.0, 1.0, out=image)
    # x + 2 k (x - x^2) + m (x - 1/2) 2 x (1 - x): brightness k and contrast m keep black and white; to 0 ... 255.
    k, m = c.brightness * 255.0, c.contrast * 255.0
    curve = image * (-2.0 * m)
    curve += 3.0 * m - 2.0 * k
    curve *= image
    curve += 255.0 + 2.0 * k - m
    image *= curve
    grey = (image[0] * 0.3 + image[1] * 0.6 + image[2] * 0.1) * (1.0 - c.saturation) + 0.5
    image *= c.saturation
    image += grey
    windows = np.lib.stride_tricks.sliding_window_view(noise().fine, image[:, 0].size)
    grains = windows[(c.noise_offset.ravel() * TILE).astype(np.int64)].reshape(-1, *image[:, 0].shape)
    image += grains.swapaxes(0, 1) * (c.noise * 255.0)
    return np.clip(image, 0.0, 255.0, out=image)
