"""Eyes, nose, mouth, skin marks and facial hair: painted on the unlit face, each only in the window where it can fall."""

import numpy as np

from attfc.synthetic.canvas import (
    F32,
    FACE_SIZE,
    SIDES,
    Canvas,
    blob,
    bump,
    edge,
    ellipse,
    fraction,
    positive,
    ramp,
    rgb,
    ridge,
)
from attfc.synthetic.face_parameters import SPOTS

__all__ = ["paint_features"]


def paint_features(face: Canvas) -> None:
    """Paint everything that belongs to the face itself over its bare skin."""
    _paint_blush_and_wrinkles(face)
    _paint_skin_marks(face)
    for bearded in face.some((face.t.moustache + face.t.goatee + face.t.beard + face.t.stubble) > 0.02, _LOWER):
        _paint_facial_hair(bearded)
    _paint_nose(face.feature("nose"))
    _paint_mouth(face.feature("mouth"))
    _paint_folds(face.window(slice(66, 108), slice(16, 96)))
    for side, name in SIDES.items():
        _paint_eye(face.feature(name), side)


_LOWER = slice(56, FACE_SIZE)


def _paint_blush_and_wrinkles(face: Canvas) -> None:
    """Redder nose and cheeks; lines across the forehead."""
    wide = face.window(slice(50, 104))
    t, c, pose = face.t, face.c, face.pose
    red = wide.blob(pose.at(0.0, t.nose_drop, t.nose_depth), 8.0, 8.0)
    for side in SIDES:
        red += wide.blob(pose.at(side * 19.0, 23.0, -3.0), 15.0, 13.0)
    red *= t.blush * -0.13
    red += 1.0
    green_and_blue = wide.image[1:]
    green_and_blue *= red
    forehead = face.window(slice(12, 48))
    middle_u, brow_v = pose.at(0.0, -24.0, 2.0)
    lines = np.abs(fraction((forehead.v - brow_v) * 0.17) - 0.5) * 2.0
    wrinkle = bump(lines * lines * 9.0) * forehead.blob((middle_u, brow_v + 2.0), 26.0, 12.0)
    wrinkle *= ramp(t.age - 0.3) * 0.30 * (1 + 0.5 * np.maximum(c.brow_raise, 0))
    forehead.darken(wrinkle)


def _paint_skin_marks(face: Canvas) -> None:
    """Moles and freckles: small dark discs at places of the identity, scattered in 5 x 5 patches."""
    u, v, pose = face.u, face.v, face.pose
    n = len(u)
    across, down, strength = np.moveaxis(face.t.spots.reshape(SPOTS, 3, n), 0, 2)
    freckle = np.arange(SPOTS) >= 3
    y = np.where(freckle, 17 + down * 9, down * 26 + 22).astype(np.float32)
    x = np.where(freckle, across * 22, across * 27).astype(np.float32)
    depth = 5.0 - 0.022 * x * x
    at_u = (x * pose.yaw_cos[:, 0] + depth * pose.yaw_sin[:, 0])[..., None, None]
    at_v = (y * pose.pitch_cos[:, 0] + depth * pose.pitch_sin[:, 0])[..., None, None]
    # The plane is a similarity: two differences of it give its inverse.
    ou, ov, re, im = (
        a[:, None, None, None] for a in (u[:, 0, 0], v[:, 0, 0], u[:, 0, 1] - u[:, 0, 0], v[:, 0, 1] - v[:, 0, 0])
    )
    scale = 1.0 / (re * re + im * im)
    px = ((at_u - ou) * re + (at_v - ov) * im) * scale
    py = ((at_v - ov) * re - (at_u - ou) * im) * scale
    cells = np.arange(-2, 3)
    ix = np.clip(np.rint(px).astype(np.int64) + cells, 0, FACE_SIZE - 1)
    iy = np.clip(np.rint(py).astype(np.int64) + cells[:, None], 0, FACE_SIZE - 1)
    reach = np.where(freckle, 1.5, 1.9).astype(np.float32)[:, None, None]
    dot = bump(((ix - px) ** 2 + (iy - py) ** 2) / (reach * reach)) * strength[..., None, None]
    cover = np.zeros((n, FACE_SIZE, FACE_SIZE), dtype=np.float32)
    places = np.arange(n)[:, None, None, None], iy, ix
    np.maximum.at(cover, places, dot.astype(np.float32))
    darkest = cover[places]  # where discs overlap, every write below is the same
    for plane, share in zip(face.image, (0.50, 0.62, 0.68), strict=True):
        plane[places] *= 1.0 - share * darkest


def _paint_facial_hair(face: Canvas) -> None:
    """Stubble, moustache, goatee and beard; lips are painted over it later."""
    t, pose = face.t, face.pose
    mid_u, mouth_v = pose.at(0.0, t.mouth_drop, 3.0)
    du, dv = (face.u - mid_u) / t.mouth_half_width, face.v - mouth_v
    far = np.abs(du)
    over_lip = bump((dv + t.lip_upper + 2.0 - 1.1 * far) ** 2 / 18.0) * ramp((1.35 - far) * 3.0)
    chin = ramp((dv + 1.0) * 0.25) * ramp((1.0 - far) * 3.0)
    beside = ramp((dv + 1.5 + 5.2 * positive(far - 0.95)) * 0.16) * ramp((far - 0.55) * 3 + (dv > 4))
    dense = np.maximum(over_lip * t.moustache, chin * t.goatee)
    dense = np.maximum(dense, np.maximum(beside, chin) * t.beard)
    shadow = np.maximum(np.maximum(over_lip, chin), beside) * t.stubble * 0.38
    cover = np.maximum(ramp(dense * 1.5) * (0.80 + 0.10 * face.grain), shadow)
    face.paint(np.clip(cover, 0, 0.97) * face.inside, t.hair * 0.85 * (1.0 + 0.16 * face.grain))


def _paint_nose(nose: Canvas) -> None:
    """Nostrils, the shade beneath the tip and the creases beside the wings."""
    t, pose = nose.t, nose.pose
    wing, depth = t.nose_wing, t.nose_depth
    tip_v = pose.v(t.nose_drop, depth)
    dark = np.zeros_like(nose.u)
    for side in SIDES:
        hole = nose.blob((pose.u(side * wing * 0.46, depth * 0.72), tip_v + 3.6), 1.2 + 0.24 * wing, 1.9)
        np.maximum(dark, hole * (0.30 + 0.55 * t.nostril), out=dark)
        crease_u = pose.u(side * wing * 0.80, depth * 0.40)
        crease = ellipse(nose.u, nose.v, (crease_u, tip_v + 1.2), 4.0, 4.6)
        crease = bump((np.sqrt(crease) - 1.0) ** 2 * 9.0) * ramp((nose.u - crease_u) * side * 0.5)
        np.maximum(dark, crease * 0.25, out=dark)
    under = nose.blob((pose.u(0.0, depth * 0.8), tip_v + 5.0), wing * 0.95, 2.8) * 0.20
    nose.darken(np.maximum(dark, under) * rgb(0.85, 1.0, 1.0))


def _paint_mouth(mouth: Canvas) -> None:
    """Lips, the opening with teeth, and corners."""
    t, c, pose = mouth.t, mouth.c, mouth.pose
    smile, opening = c.smile, c.mouth_open
    half = _mouth_half(mouth)
    mid_u, mid_v = pose.at(0.0, t.mouth_drop, 3.0)
    du = (mouth.u - mid_u) / (half * pose.yaw_cos)
    du = du * (1.0 + du * pose.yaw_sin * 0.18)  # the far half is shorter
    dv = mouth.v - mid_v
    square = du * du
    arc = positive(1.0 - square)
    line = (t.mouth_curve + 2.8 * smile) * (0.45 - square)
    gap_up, gap_low = 0.9 * opening + 1.0 * smile * opening, 7.0 * opening
    show = ramp(1.6 * smile - 0.55) * 2.6  # teeth in a broad smile
    round_ = np.sqrt(arc)
    top_inner = line - (gap_up + 0.4 * show) * arc
    low_inner = line + (gap_low + show) * arc
    bow = ridge(du, 0.30) * t.cupid
    peaks = t.lip_upper * (1.0 - 0.22 * smile) * (round_ * 0.45 + arc * 0.55) * (1.0 - bow)
    top_outer = top_inner - peaks
    low_outer = low_inner + t.lip_lower * (1.0 - 0.15 * smile) * (round_ * 0.35 + arc * 0.65)
    inside_u = edge((1.0 - np.abs(du)) * half)
    lips = edge(np.minimum(dv - top_outer, low_outer - dv), 1.6) * inside_u
    colour = t.lip_colour * (1 - c.lipstick) + c.lipstick_colour * c.lipstick
    volume = 1.0 - 0.16 * ramp((line - dv) * 0.5) + 0.10 * ridge(dv - low_inner - 1.6, 2.2)
    mouth.paint(lips * 0.88, colour * volume)
    cavity = edge(np.minimum(dv - top_inner, low_inner - dv)) * inside_u
    teeth = ramp((low_inner - dv) * 0.9 - 0.2 + 0.3 * show - 2.2 * opening) * ramp(smile * 2.0 + 0.4)
    teeth = np.maximum(teeth, ramp(top_inner + 2.6 - dv) * ramp(opening * 3))
    dark, bright = rgb(0.20, 0.07, 0.07), rgb(0.86, 0.83, 0.78)
    # Teeth fade into shadow towards the corners.
    mouth.paint(cavity, dark + (bright - dark) * (teeth * ramp(1.15 - square)))
    seam = ridge(dv - line, 1.15) * ramp((1.10 - np.abs(du)) * 5.0) * 0.55
    seam = seam * (1.0 - ramp((gap_low + show) * 0.6))
    mouth.darken(np.maximum(seam, blob(np.abs(du), dv, (1.03, line), 0.16, 1.9) * 0.38))


def _mouth_half(face: Canvas) -> F32:
    return np.asarray(face.t.mouth_half_width * (1.0 + 0.16 * face.c.smile - 0.05 * face.c.mouth_open))


def _paint_folds(face: Canvas) -> None:
    """The folds from nose to mouth."""
    t, pose = face.t, face.pose
    depth = 0.02 + 0.24 * t.age + 0.08 * face.c.smile
    start_v, end_v = pose.v(t.nose_drop + 0.5, 5.0), pose.v(t.mouth_drop + 2.0, 1.0)
    along = (face.v - start_v) / (end_v - start_v)
    inside = bump((along * 2.0 - 1.0) ** 2)
    for side in SIDES:
        begin, finish = pose.u(side * (t.nose_wing + 1.2), 4.0), pose.u(side * (_mouth_half(face) + 2.5), -1.0)
        offset = face.u - begin - along * (finish - begin)
        face.darken(bump(offset * offset * 0.22) * inside * depth)


def _paint_eye(eye: Canvas, side: float) -> None:
    """Lids, sclera, iris, lashes and brow of one eye."""
    t, c, pose = eye.t, eye.c, eye.pose
    opening = c.eye_open * (1.0 - 0.30 * c.smile)
    # The far eye is seen more from its side.
    narrowing = np.clip(pose.yaw_cos - side * pose.yaw_sin * 0.32, 0.55, 1.15)
    half = t.eye_half_width * narrowing
    eye_u, eye_v = pose.at(side * t.eye_x, 0.0, 0.0)
    du = (eye.u - eye_u) * side
    dv = eye.v - eye_v + du * t.eye_tilt
    across = du * (1.0 / half)
    arc = positive(1.0 - across * across)
    upper_h, lower_h = t.eye_upper * opening, t.eye_lower * (0.6 + 0.4 * opening)
    lid_v = -upper_h * np.sqrt(arc) * (0.55 + 0.45 * arc) + 0.4
    low_v = lower_h * arc + 0.4

    shadow = blob(across, dv, (0.0, -2.5), 1.45, 7.5) * (0.16 + 0.10 * t.eye_fold)
    bag = blob(across, dv, (-0.15, lower_h + 3.0), 1.15, 3.4) * (0.06 + 0.20 * t.age)
    eye.darken(shadow + bag)

    white = edge(np.minimum(dv - lid_v, low_v - dv)) * edge((1.0 - np.abs(across)) * half)
    lid_shade = ramp(1.05 - 0.30 * ramp(1.0 - (dv - lid_v) * 0.6))
    eye.paint(white, rgb(0.84, 0.81, 0.79) * lid_shade * (0.72 + 0.28 * t.skin))
    gaze_u, size = c.gaze_x * side - 0.2, t.iris_radius
    radius = np.sqrt(ellipse(du, dv, (gaze_u, c.gaze_y - 0.5 * upper_h * 0.35), size * narrowing, size))
    ring = np.clip(1.25 - 0.75 * radius * radius, 0.4, 1.0) * lid_shade
    eye.paint(edge((1.0 - radius) * size) * white, t.iris_colour * ring)
    eye.darken(0.92 * (edge((0.42 - radius) * size) * white))
    spark = blob(du * side, dv, (gaze_u * side + 1.2 * c.light_x, c.gaze_y - 1.5), 1.15, 1.15) * white
    image = eye.image
    image += 0.85 * spark * c.diffuse

    line = ridge(dv - lid_v + 0.3, 0.9 + 0.8 * t.lash) * ramp((1.08 - np.abs(across)) * 6.0)
    line = line * (0.45 + 0.5 * t.lash)
    fade = ramp((1.25 - np.abs(across)) * 4.0)
    crease = ridge(dv - (lid_v - 2.2 - 0.5 * (1 - arc)), 1.1) * fade * (0.38 * t.eye_fold)
    under = ridge(dv - low_v - 0.2, 0.9) * fade * (0.16 + 0.2 * t.lash)
    crow = ridge(across - 1.45, 0.35) * np.abs(fraction(dv * 0.5) - 0.5) * 2
    crow = crow * ridge(dv, 6.0) * (0.16 * t.age * (0.3 + c.smile))
    eye.darken(np.maximum(np.maximum(line, crease), np.maximum(under, crow)))

    brow_half = t.brow_half_length * narrowing
    brow_u, brow_v = pose.at(side * (t.eye_x + 1.2), -t.brow_gap - c.brow_raise - 0.9, 2.0)
    bu, bv = (eye.u - brow_u) * side / brow_half, eye.v - brow_v
    bend = t.brow_arch * (1.0 - (bu - 0.25) ** 2) - brow_half * t.brow_slope * bu
    thickness = t.brow_thickness * np.clip(1.05 - 0.55 * np.clip(bu + 0.2, 0, 2), 0.2, 1.0)
    hairs = ramp(1.0 - np.abs(bv + bend - 0.6 * t.brow_arch) / thickness)
    hairs = ramp(hairs * 1.9) * ramp((1.0 - np.abs(bu)) * 5.0)
    eye.paint(hairs * t.brow_strength, t.hair * 0.70 + t.skin * 0.05)
