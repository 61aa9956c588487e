"""Numbers behind a synthetic face: what stays with an identity and what changes with every sample.

An identity is a 48-d latent, approximately standard normal; `identity_traits` turns it into geometry (pixels of the
112 x 112 ArcFace template), colours and styles. `sample_conditions` draws the nuisances of one photograph: pose, light,
expression, occlusion, background, blur, noise and JPEG quality. Every number is a counter-based hash
(`random_streams`) of (seed, identity, sample, column): no state, so any sample can be made alone, in any order, on any
machine.

Cost: about 10 us per image. Normals are the sum of four 16-bit uniforms (exact integer arithmetic, tails end at 3.46),
not Box-Muller: the same bits on every platform.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from attfc.random_streams import hash_words, normal, uniform
from attfc.typing import Float64, Int64

__all__ = [
    "F32",
    "LATENT_SIZE",
    "Conditions",
    "Traits",
    "identity_keys",
    "identity_latents",
    "identity_traits",
    "sample_conditions",
    "sample_keys",
    "take_rows",
]

LATENT_SIZE = 48

F32 = npt.NDArray[np.floating[Any]]
U64 = npt.NDArray[np.uint64]

# Purposes: each draws from its own stream of the hash.
_LATENTS, _EXTRAS, _CONDITIONS, _EXPRESSIONS = range(1, 5)
_FACES = 0x66616365  # apart from the loader's streams, which may use the same seed


class Traits(NamedTuple):
    """What stays with an identity: arrays of N rows. Lengths in template pixels, depths towards the viewer."""

    age: F32
    face_half_width: F32
    chin_drop: F32
    skull_rise: F32
    squareness: F32
    jaw: F32
    cheek: F32
    chin_width: F32
    temple: F32
    eye_upper: F32
    eye_lower: F32
    eye_tilt: F32
    iris_radius: F32
    lash: F32
    brow_gap: F32
    brow_thickness: F32
    brow_slope: F32
    brow_arch: F32
    brow_half_length: F32
    brow_strength: F32
    nose_drop: F32
    nose_depth: F32
    nose_wing: F32
    nose_bridge_width: F32
    nose_bridge: F32
    nose_ball: F32
    nostril: F32
    mouth_drop: F32
    mouth_half_width: F32
    lip_upper: F32
    lip_lower: F32
    mouth_curve: F32
    cupid: F32
    ear_size: F32
    ear_out: F32
    ear_y: F32
    hair_length: F32
    hairline: F32
    skin: F32
    blush: F32
    lip_colour: F32
    iris_colour: F32
    hair: F32
    freckles: F32
    spots: F32
    eye_x: F32
    eye_half_width: F32
    eye_fold: F32
    hair_volume: F32
    recession: F32
    fringe: F32
    parting: F32
    curl: F32
    bald: F32
    moustache: F32
    beard: F32
    goatee: F32
    stubble: F32
    glasses_habit: F32
    glasses_round: F32
    glasses_size: F32
    glasses_thickness: F32
    glasses_colour: F32
    lipstick_habit: F32


class Conditions(NamedTuple):
    """What changes with every photograph: arrays of N rows. Angles in radians, lengths in template pixels."""

    yaw: F32
    pitch: F32
    jitter_angle: F32
    jitter_scale: F32
    jitter_x: F32
    jitter_y: F32
    smile: F32
    brow_raise: F32
    gaze_x: F32
    gaze_y: F32
    shadow_angle: F32
    mouth_open: F32
    eye_open: F32
    light_x: F32
    light_y: F32
    ambient: F32
    diffuse: F32
    light_colour: F32
    shadow: F32
    shadow_offset: F32
    background: F32
    backdrop: F32
    cloth: F32
    hair_change: F32
    strands: F32
    glasses: F32
    lipstick: F32
    lipstick_colour: F32
    occluder: F32
    occluder_shape: F32
    occluder_colour: F32
    blur: F32
    noise: F32
    noise_offset: F32
    brightness: F32
    contrast: F32
    saturation: F32
    quality: F32


Table = TypeVar("Table", Traits, Conditions)


def each_field(table: Table, function: Callable[[F32], F32]) -> Table:
    """Return the table with `function` of each array."""
    return type(table)._make(map(function, table))


def take_rows(table: Table, rows: slice | Int64) -> Table:
    """Return the same table with some of its rows."""
    return each_field(table, lambda values: values[rows])


def _float32(**arrays: Float64) -> dict[str, F32]:
    return {name: values.astype(np.float32) for name, values in arrays.items()}


def _uniforms(keys_N: U64, purpose: int, count: int) -> Float64:
    """(N, count) float64 in [0, 1)."""
    return uniform(hash_words(keys_N[:, None], purpose, np.arange(count))).astype(np.float64)


def _normals(keys_N: U64, purpose: int, count: int) -> Float64:
    """(N, count) float64, about standard normal, bounded by 3.47."""
    return normal(hash_words(keys_N[:, None], purpose, np.arange(count)))


def identity_keys(seed: int, identities_N: Int64) -> U64:
    """One 64-bit key an identity: a hash of (seed, identity)."""
    return hash_words(_FACES, seed, identities_N)


def sample_keys(keys_N: U64, samples_N: Int64) -> U64:
    """One 64-bit key a photograph: a hash of (identity key, sample number)."""
    return hash_words(keys_N, samples_N)


def identity_latents(keys_N: U64) -> Float64:
    """(N, 48) latents, approximately standard normal."""
    return _normals(keys_N, _LATENTS, LATENT_SIZE)


def _logistic(x: Float64) -> Float64:
    return np.asarray(1.0 / (1.0 + np.exp(-x)))


def _ramp(x: Float64) -> Float64:
    return np.clip(x, 0.0, 1.0)


class _Sums(NamedTuple):
    """Numbers that are bounded weighted sums of others."""

    names: list[str]
    bounds: Float64  # (2, rows, 1)
    means: list[float]
    terms: list[list[tuple[float, str]]]

    @classmethod
    def read(cls, table: str) -> "_Sums":
        """Read lines of name, lowest and highest value, mean, then weights and what each weighs; `#` begins a comment."""
        rows = [line.partition("#")[0].split() for line in table.strip().splitlines()]
        return cls(
            [row[0] for row in rows],
            np.array([row[1:3] for row in rows], dtype=np.float64).T[..., None],
            [float(row[3]) for row in rows],
            [[(float(weight), name) for weight, name in zip(row[4::2], row[5::2], strict=True)] for row in rows],
        )

    def of(self, **drawn: Float64) -> dict[str, Float64]:
        """Return the sums by name; `drawn`: (N,) by the names of the table. Terms are added from left to right: the bits depend on it."""
        values: list[Any] = list(self.means)
        for row, terms in enumerate(self.terms):
            for weight, name in terms:
                values[row] = values[row] + weight * drawn[name]
        return dict(zip(self.names, np.clip(values, *self.bounds), strict=True))


def _numbered(letter: str, values: Float64) -> dict[str, Float64]:
    return {f"{letter}{number}": row for number, row in enumerate(values)}


# dark: melanin less 0.3
_SHAPES = _Sums.read("""
face_half_width    -inf   inf  37.0     2.3  z4   0.9  man
chin_drop          -inf   inf  47.0     2.8  z8   1.3  man   0.8  z5   # outline centre to chin
skull_rise         -inf   inf  62.0     2.5  z11  1.2  z5              # outline centre to the top of the skull
squareness         1.72   3.0   2.12   0.24  z7   0.16 man             # superellipse exponent of the lower face
jaw                -inf   inf   0.012 0.042  z6   0.03 man             # share by which the outline bulges at the jaw angle
cheek              -inf   inf   0.01  0.025  z10                       # ... at the cheekbones
chin_width         -inf   inf   0.0    0.03  z9  0.022 man             # ... at the chin's sides
temple             -inf   inf  -0.02   0.02  z36
eye_upper           2.1   5.6   3.8    0.50  z15  0.30 z12  -0.3  man
eye_lower           1.2   3.4   2.2    0.30  z12 -0.15 z15
eye_tilt           -inf   inf   0.05 -0.025  man 0.075 z14
iris_radius        -inf   inf   3.55   0.18  z12
lash               0.15   1.0   0.55  -0.30  man  0.1  z16
brow_gap           -inf   inf   9.6    -0.8  man  1.25 z21
brow_thickness     0.75   3.6   1.75   0.45  man  0.50 z19
brow_slope         -inf   inf   0.04  -0.05  man  0.10 z20
brow_arch           0.1   4.5   2.0    -0.8  man  0.9  z22
brow_half_length   -inf   inf  10.6     0.8  man  0.95 z23
brow_strength      0.45   0.97  0.78   0.10  z19  0.06 man
nose_drop          -inf   inf  20.3     1.7  z24  0.4  man
nose_depth         -inf   inf  13.0     1.8  z27  1.0  man
nose_wing           4.6  10.5   7.0    0.95  z25  1.5  dark  0.4  man
nose_bridge_width   3.8   8.2   5.6     0.8  z26  0.3  z25
nose_bridge         2.0   9.0   5.2    -0.9  z26  0.8  man
nose_ball          0.25   2.0   1.0    0.35  z28
nostril             0.1   1.0   0.55   0.20  z28 -0.10 z27
mouth_drop         -inf   inf  40.7     1.2  z33  0.6  z24
mouth_half_width    9.0  17.5  13.4    1.35  z29  0.4  man
lip_upper           0.9   5.6   2.7    0.75  z30 -0.55 man   1.2  dark  -0.6  old
lip_lower           1.4   6.8   3.7    0.85  z31 -0.45 man   1.2  dark  -0.6  old
mouth_curve        -inf   inf   0.0     0.9  z32
cupid               0.0   0.8   0.32   0.18  z34
ear_size            7.0  14.5  10.0     1.2  z35  0.8  man   1.2  old
ear_out            -2.5   5.0   1.2     1.5  z36
ear_y              -inf   inf   6.0     1.2  z36
hair_length         0.0   1.0   0.37  -0.42  man  0.28 z39             # 0 cropped ... 1 to the shoulders
hairline           0.62   0.97  0.735 0.035  z41  0.02 man   0.06 old  # share of the skull's rise where hair begins above the forehead
""")

_POSES = _Sums.read("""
yaw               -0.62   0.62  0.0    0.27  z0
pitch             -0.35   0.35  0.0    0.13  z1
jitter_angle       -inf   inf   0.0   0.035  z2
jitter_scale       -inf   inf   0.0    0.03  z3
jitter_x           -inf   inf   0.0     1.3  z4
jitter_y           -inf   inf   0.0     1.3  z9
smile               0.0   1.0  -0.55    1.5  u3
brow_raise         -inf   inf   0.0     1.1  z10
gaze_x             -inf   inf   0.0     1.1  z11
gaze_y             -inf   inf   0.0     0.5  z12
shadow_angle       -inf   inf   0.0 6.28318  u18
""")

SPOTS = 14


class _Person(NamedTuple):
    """What the traits of N identities are made of."""

    z: Float64  # (48, N) latents
    extra: Float64  # (N, 3 * SPOTS + 4) in [0, 1), more of the same hash
    man: Float64  # a soft two-humped axis: jaw, brows, beard and hair follow it
    old: Float64
    melanin: Float64


def identity_traits(keys_N: U64) -> Traits:
    """Geometry, colours and styles of N identities from their latents (and, for moles, more of the same hash)."""
    z = identity_latents(keys_N).T
    man, old, melanin = np.tanh(1.6 * z[0]), _ramp(0.32 + 0.26 * z[1]), _logistic(1.25 * z[2] - 0.75)
    person = _Person(z, _uniforms(keys_N, _EXTRAS, 3 * SPOTS + 4), man, old, melanin)
    shapes = _SHAPES.of(**_numbered("z", z), man=man, old=old, dark=melanin - 0.3)
    return Traits(**_float32(age=old, **shapes, **_colours(person), **_styles(person)))


def _colours(person: _Person) -> dict[str, Float64]:
    z, extra, man, old, melanin = person
    dark = melanin[:, None]
    red = 0.5 + 0.22 * z[3][:, None]
    absorbed = np.array([0.05, 0.19, 0.30]) + 0.92 * dark * np.array([1.10, 1.46, 1.80])
    skin = np.exp(-absorbed - red * np.array([0.0, 0.13, 0.12]) - old[:, None] * np.array([0.04, 0.05, 0.07]))

    eumelanin = np.clip(0.62 + 0.30 * z[37] + 0.55 * (melanin - 0.3), 0.16, 1.15)
    pheomelanin = np.clip(0.45 + 0.45 * z[38], 0.1, 1.6) * np.clip(1.15 - eumelanin, 0.0, 1.0)
    hair = np.exp(
        -eumelanin[:, None] * np.array([2.1, 2.4, 2.7]) - pheomelanin[:, None] * np.array([0.0, 0.5, 1.15]) - 0.12
    )
    grey = _ramp((old - 0.62 + 0.1 * z[40]) * 3.0)[:, None]
    hair = hair * (1 - grey) + (0.50 + 0.22 * old[:, None]) * grey

    iris_dark = _logistic(1.6 * z[18] + 3.2 * (melanin - 0.22))[:, None]
    hue = _logistic(1.5 * z[17])[:, None]
    light_iris = np.array([0.36, 0.52, 0.66]) * (1 - hue) + np.array([0.42, 0.50, 0.30]) * hue
    iris = light_iris * (1 - iris_dark) + np.array([0.26, 0.15, 0.08]) * iris_dark

    lip = skin * np.array([0.90, 0.66, 0.66]) * (1 - 0.05 * z[3][:, None])
    lip = lip * (1 - 0.12 * np.maximum(man, 0)[:, None])
    spots = extra[:, 4:].reshape(-1, SPOTS, 3).copy()
    spots[:, :, :2] = spots[:, :, :2] * 2 - 1
    moles = np.arange(SPOTS) < 3  # three candidates for moles, the rest freckles
    freckles = _ramp(0.55 * z[46] - 0.35 - 0.9 * (melanin - 0.25))
    spots[:, :, 2] = np.where(
        moles,
        0.85 * (spots[:, :, 2] < 0.38),
        0.5 * freckles[:, None] * (0.4 + 0.6 * spots[:, :, 2]),
    )
    return {
        "skin": skin,
        "blush": np.clip(0.5 + 0.28 * z[3] - 0.4 * (melanin - 0.2), 0.05, 1.2),
        "lip_colour": lip,
        "iris_colour": iris,
        "hair": hair,
        "freckles": freckles,
        "spots": spots.reshape(-1, 3 * SPOTS),  # x, y in [-1, 1], strength
    }


def _styles(person: _Person) -> dict[str, Float64]:
    z, extra, man, old, melanin = person
    bald = _ramp((0.9 * man + 1.1 * old + 0.55 * z[41] - 1.35) * 1.4)
    beard_kind = extra[:, 0]
    grown = _ramp((z[45] + 1.5 * man - 1.0) * 1.5)
    frames = np.array(
        [[0.05, 0.05, 0.06], [0.25, 0.14, 0.08], [0.55, 0.50, 0.42], [0.10, 0.14, 0.35], [0.5, 0.08, 0.1]]
    )
    return {
        "eye_x": 17.6 * (1 + 0.055 * z[13]),
        "eye_half_width": np.clip(7.9 * (1 + 0.10 * z[12] + 0.03 * z[13]) - 0.2 * man, 5.6, 10.4),
        "eye_fold": _logistic(1.5 * z[16] + 0.6),  # visibility of the lid's crease
        "hair_volume": np.clip(0.10 + 0.055 * z[40] + 0.13 * _ramp(0.5 * z[44]), 0.02, 0.36),
        "recession": np.clip(0.03 + 0.045 * z[42] + 0.05 * man * (0.5 + old), -0.08, 0.26),
        "fringe": _ramp((z[43] - 0.25 * man - 0.55) * 1.3) * (1 - bald),
        "parting": np.tanh(2.0 * (extra[:, 1] * 2 - 1)),
        "curl": _ramp(0.25 + 0.40 * z[44] + 0.7 * (melanin - 0.45)),
        "bald": bald,
        "moustache": grown * ((beard_kind < 0.22) | (beard_kind > 0.55)),
        "beard": grown * (beard_kind > 0.62),
        "goatee": grown * (beard_kind > 0.40),
        "stubble": _ramp(0.30 + 0.30 * z[45]) * _ramp(2 * man),
        "glasses_habit": np.where(z[47] > 0.65, 0.75, np.where(z[47] > 0.35, 0.3, 0.04)),
        "glasses_round": _logistic(3.0 * (extra[:, 2] * 4 - 2)),
        "glasses_size": 11.3 + 0.9 * np.abs(z[47]) * (extra[:, 2] * 2 - 1),
        "glasses_thickness": 0.8 + 1.1 * extra[:, 3] ** 2,
        "glasses_colour": frames[(extra[:, 3] * 977).astype(np.int64) % len(frames)],
        "lipstick_habit": _ramp(0.32 - 0.5 * man + 0.15 * z[31]) * (man < 0.2),
    }


def sample_conditions(keys_N: U64, traits: Traits) -> Conditions:
    """Nuisances of N photographs; habits of the identity (glasses, lipstick) set how often those are worn."""
    u = _uniforms(keys_N, _CONDITIONS, 60).T
    z = _normals(keys_N, _EXPRESSIONS, 16).T
    side = np.where(u[0] < 0.5, -1.0, 1.0)
    light_angle = 0.45 + 0.42 * np.abs(z[5])  # away from the camera's axis
    light_turn = side * (0.4 + 1.35 * u[1])  # from overhead towards the sides
    warmth = 0.075 * z[6]
    tint = 0.03 * z[7]
    hard = u[2] ** 1.3
    exposure = np.exp(0.14 * z[8])
    colours = u[8:14].T.reshape(-1, 2, 3)
    level = 0.10 + 0.85 * u[14:16].T
    backgrounds = level[:, :, None] * (0.62 + 0.5 * (colours - 0.5) + 0.25)
    kind = (np.searchsorted([0.045, 0.085, 0.125, 0.165, 0.22], u[35], side="right") + 1) % 6
    skinlike = np.array([0.78, 0.58, 0.46]) + 0.15 * u[36][:, None]
    arrays = _float32(
        **_POSES.of(**_numbered("u", u), **_numbered("z", z)),
        mouth_open=_ramp(2.2 * u[4] - 1.35) * (0.35 + 0.65 * u[5]),
        eye_open=np.where(u[6] < 0.04, 0.08, 0.72 + 0.42 * u[7]),
        light_x=np.sin(light_angle) * np.sin(light_turn),
        light_y=-np.sin(light_angle) * np.cos(light_turn),
        ambient=exposure * (0.80 - 0.42 * hard),
        diffuse=exposure * (0.32 + 0.55 * hard),
        light_colour=np.stack([1 + warmth, 1 + tint, 1 - warmth], axis=1),
        shadow=np.where(u[16] < 0.16, 0.25 + 0.35 * u[17], 0.0),
        shadow_offset=30.0 * (u[19] - 0.35),
        background=backgrounds.reshape(-1, 6),  # two colours
        backdrop=u[20:28].T,  # direction, stripes, two blobs
        cloth=0.06 + 0.85 * u[28:31].T,
        hair_change=z[13:16].T,  # volume, fringe, length
        strands=u[31:33].T,  # where the strand noise starts
        glasses=(u[33] < traits.glasses_habit).astype(np.float64),
        lipstick=np.where(u[34] < traits.lipstick_habit, 0.35 + 0.5 * u[40], 0.0),
        lipstick_colour=np.array([0.55, 0.10, 0.18]) + np.array([0.3, 0.25, 0.25]) * u[41:44].T,
        occluder=kind,  # 0 none, 1 cloth, 2 hand, 3 sunglasses, 4 object, 5 hat
        occluder_shape=u[44:50].T,
        occluder_colour=np.where((kind == 2)[:, None], skinlike, 0.08 + 0.85 * u[37:40].T),
        blur=np.where(u[50] < 0.45, 0.0, 2.0 * np.maximum(u[50] - 0.45, 0.0) ** 1.4),
        noise=0.004 + 0.032 * u[51] ** 2.5,
        noise_offset=u[52],
        brightness=0.16 * (u[53] * 2 - 1),
        contrast=0.55 * (u[54] * 2 - 1),
        saturation=np.where(u[55] < 0.06, 0.0, 0.72 + 0.5 * u[56]),
        quality=np.floor(38 + 58 * u[57]),
    )
    return Conditions(**arrays)
