"""Synthetic faces: determinism to the byte, the store's contract, and a task that is neither trivial nor hopeless."""

import pickle

import numpy as np
import pytest

from attfc.data.images import decode_image
from attfc.data.stores.store import Store
from attfc.data.stores.synthetic import SyntheticFaces
from attfc.errors import UserError
from attfc.synthetic.face_parameters import (
    LATENT_SIZE,
    identity_keys,
    identity_latents,
    identity_traits,
    sample_conditions,
    sample_keys,
    take_rows,
)
from attfc.synthetic.face_renderer import render_faces


@pytest.fixture(scope="module")
def store():
    return SyntheticFaces(identities=60, images_per_identity=4, seed=5)


@pytest.fixture(scope="module")
def pixels(store):
    return store.images(np.arange(len(store)), 112).pixels


def test_images_equal_decoding_what_read_gives(store, pixels):
    assert isinstance(store, Store)
    for position in (0, 7, 101, 239):
        encoded, label = store.read(position)
        assert label == position // 4 == store.labels([position])[0]
        assert (decode_image(encoded, 112) == pixels[position]).all()
        assert (decode_image(encoded, 56) == store.images([position], 56).pixels[0]).all()


def test_an_image_does_not_depend_on_its_batch(store, pixels):
    order = np.random.default_rng(0).permutation(len(store))[:75]
    assert (store.images(order, 112).pixels == pixels[order]).all()
    parts = [store.images(part, 112).pixels for part in np.array_split(order, [1, 3, 10, 40])]
    assert (np.concatenate(parts) == pixels[order]).all()
    repeated = store.images([9, 9, 9], 112).pixels
    assert (repeated == pixels[9]).all()


def test_rendered_rows_do_not_depend_on_their_neighbours_before_jpeg():
    """JPEG could hide a difference of one grey level, so the renderer is compared alone, in batches of other sizes."""
    keys = identity_keys(1, np.arange(40))
    traits = identity_traits(keys)
    conditions = sample_conditions(sample_keys(keys, np.arange(40)), traits)
    whole = render_faces(traits, conditions)
    for rows in (np.array([0]), np.array([39, 3, 17]), np.arange(40)[::-1].copy(), np.arange(5, 18)):
        keys_of_rows = keys[rows]
        some_traits = identity_traits(keys_of_rows)
        some = render_faces(some_traits, sample_conditions(sample_keys(keys_of_rows, rows), some_traits))
        assert (some == whole[rows]).all()
        assert (render_faces(take_rows(traits, rows), take_rows(conditions, rows)) == whole[rows]).all()


def test_the_same_face_whatever_the_store_around_it(pixels):
    shifted = SyntheticFaces(identities=10, images_per_identity=9, seed=5, first_identity=50)
    assert (shifted.images([3 * 9 + 2], 112).pixels[0] == pixels[53 * 4 + 2]).all()
    assert shifted.where(3 * 9 + 2) == "identity 53/sample 2"
    other = SyntheticFaces(identities=60, images_per_identity=4, seed=6)
    assert (other.images([0], 112).pixels[0] != pixels[0]).mean() > 0.5


def test_golden_means(pixels):
    """To a grey level, so that another codec or processor passes and a changed renderer does not."""
    means = pixels[[0, 50, 100, 150, 200]].reshape(5, -1, 3).mean(axis=1)
    expected = np.array(GOLDEN)
    assert np.abs(means - expected).max() < 1.0, means.round(1).tolist()


GOLDEN = [[107.1, 95.1, 90.1], [136.2, 90.2, 82.9], [128.8, 131.4, 111.9], [119.8, 92.4, 80.9], [144.3, 118.7, 96.6]]


def test_latents_are_standard_normal_and_uncorrelated():
    latents = identity_latents(identity_keys(0, np.arange(20_000)))
    assert latents.shape == (20_000, LATENT_SIZE)
    assert np.abs(latents.mean(axis=0)).max() < 0.03
    assert np.abs(latents.std(axis=0) - 1).max() < 0.03
    correlation = np.corrcoef(latents.T) - np.eye(LATENT_SIZE)
    assert np.abs(correlation).max() < 0.04
    assert np.abs(latents).max() > 3.0


def test_every_latent_changes_the_face(monkeypatch):
    """A latent that paints nothing would be an identity nobody can tell."""
    import attfc.synthetic.face_parameters as parameters

    keys = identity_keys(3, np.arange(12))
    base = identity_latents(keys)
    traits = identity_traits(keys)
    conditions = sample_conditions(sample_keys(keys, np.zeros(12, dtype=np.int64)), traits)
    reference = render_faces(traits, conditions).astype(int)
    for column in range(LATENT_SIZE):
        moved = base.copy()
        moved[:, column] += np.where(base[:, column] > 0, -1.5, 1.5)
        monkeypatch.setattr(parameters, "identity_latents", lambda keys, moved=moved: moved)
        changed = identity_traits(keys)
        if column == 47:  # glasses: the habit shows through the conditions
            assert (changed.glasses_habit != traits.glasses_habit).any()
            continue
        difference = np.abs(render_faces(changed, conditions).astype(int) - reference)
        assert difference.max() > 8, f"latent {column} changes no pixel"


def test_pixels_are_sane(pixels):
    assert pixels.dtype == np.uint8
    assert pixels.shape == (240, 112, 112, 3)
    spread = pixels.reshape(240, -1).std(axis=1)
    assert spread.min() > 8  # nothing is flat
    assert 60 < pixels.mean() < 170
    assert len({row.tobytes() for row in pixels}) == 240


def test_feature_windows_cut_nothing(monkeypatch):
    """Eyes, nose and mouth are painted in fixed windows; the whole image as window must give the same pictures."""
    from attfc.synthetic import canvas

    keys = identity_keys(2, np.arange(120))
    traits = identity_traits(keys)
    conditions = sample_conditions(sample_keys(keys, np.arange(120)), traits)
    windowed = render_faces(traits, conditions).astype(int)
    whole = slice(0, 112)
    monkeypatch.setattr(canvas, "WINDOWS", dict.fromkeys(canvas.WINDOWS, (whole, whole)))
    difference = np.abs(render_faces(traits, conditions) - windowed)
    assert (difference > 4).mean() < 1e-5


def test_extreme_conditions_stay_finite():
    """Far corners of both distributions: a NaN would become 0 or 255 silently, so warnings (errors here) catch the cast."""
    keys = identity_keys(11, np.arange(300))
    traits = identity_traits(keys)
    conditions = sample_conditions(sample_keys(keys, np.arange(300)), traits)
    with np.errstate(all="raise", under="ignore"):
        assert render_faces(traits, conditions).shape == (300, 112, 112, 3)


def test_raw_pixels_tell_little(store, pixels):
    """Identity must be learnable but not be given away by colours: raw cosine stays between chance and easy."""
    flat = pixels[:, ::2, ::2].reshape(len(store), -1).astype(np.float64)
    flat -= flat.mean(axis=0)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    cosine = flat @ flat.T
    labels = np.arange(len(store)) // 4
    same = labels[:, None] == labels[None, :]
    upper = np.triu(np.ones_like(same), k=1).astype(bool)
    genuine, impostor = cosine[same & upper], cosine[~same & upper]
    accuracy = max(((genuine > t).mean() + (impostor <= t).mean()) / 2 for t in np.linspace(-0.5, 0.9, 60))
    assert 0.55 < accuracy < 0.80


def test_images_per_identity_from_a_range():
    store = SyntheticFaces(identities=400, images_per_identity=(2, 30), seed=1)
    counts = store.identities.counts()
    assert counts.min() == 2
    assert 25 <= counts.max() <= 30
    assert np.median(counts) < counts.mean() < 16  # long-tailed
    assert len(store) == counts.sum() == store.identities.images
    labels = np.repeat(np.arange(400), counts)
    assert (store.labels(np.arange(len(store))) == labels).all()
    # The number of images belongs to the identity, not to its place in this store.
    later = SyntheticFaces(identities=100, images_per_identity=(2, 30), seed=1, first_identity=300)
    assert (later.identities.counts() == counts[300:]).all()
    start = int(later.identities.offsets[7])
    assert later.where(start + 1) == "identity 307/sample 1"


def test_index_of_a_constant_number():
    store = SyntheticFaces(identities=7, images_per_identity=3)
    assert (store.identities.labels() == np.repeat(np.arange(7), 3)).all()
    assert store.identities.of(6).tolist() == [18, 19, 20]


def test_ten_million_identities_open_at_once():
    store = SyntheticFaces(identities=10_000_000, images_per_identity=20)
    assert len(store) == 200_000_000
    assert store.labels([199_999_999])[0] == 9_999_999
    assert store.read(123_456_789)[1] == 6_172_839
    assert "identities" not in vars(store)  # the index was not needed


def test_pickles_small_and_equal(store):
    store.identities  # noqa: B018  the built index must not travel
    data = pickle.dumps(store)
    assert len(data) < 600
    assert (pickle.loads(data).images([17], 56).pixels == store.images([17], 56).pixels).all()  # noqa: S301
    assert store.name == "synthetic:identities=60,images=4,seed=5"


def test_no_positions(store):
    assert store.images(np.zeros(0, dtype=np.int64), 56).pixels.shape == (0, 56, 56, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 5), "identities = 0: synthetic faces need at least 1"),
        ((5, 0), "images_per_identity = 0: give a number from 1"),
        ((5, (4, 2)), r"images_per_identity = \(4, 2\): give a number from 1, or \(lowest, highest\)"),
    ],
)
def test_faults_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        SyntheticFaces(*arguments)


def test_first_identity_out_of_range():
    with pytest.raises(UserError, match="first_identity = -1"):
        SyntheticFaces(3, 3, first_identity=-1)


def test_positions_outside_are_refused(store):
    with pytest.raises(IndexError, match=r"positions 0 \.\.\. 240 of a store of 240 images"):
        store.images([0, 240], 56)
    with pytest.raises(IndexError, match="label 60 is not one of 60 identities"):
        store.identity_name(60)
