"""Alignment against closed forms: similarities that are known, images that are linear in x and y."""

import numpy as np
import pytest

from attfc.photos.alignment import ARCFACE_TEMPLATE, sample_bilinear, similarity_to_template, warp_face


def turned(points: np.ndarray, degrees: float, scale: float, shift: tuple[float, float]) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return scale * points @ np.array([[c, -s], [s, c]]).T + shift


def umeyama(source: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """The general solution by singular value decomposition (Umeyama 1991, equations 34 to 43)."""
    mean_source, mean_goal = source.mean(0), goal.mean(0)
    covariance = (goal - mean_goal).T @ (source - mean_source) / len(source)
    u, d, vt = np.linalg.svd(covariance)
    sign = np.diag([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = u @ sign @ vt
    scale = np.trace(np.diag(d) @ sign) / ((source - mean_source) ** 2).sum() * len(source)
    return np.column_stack([scale * rotation, mean_goal - scale * rotation @ mean_source])


@pytest.mark.parametrize(("degrees", "scale", "shift"), [(0, 1, (0, 0)), (30, 2.5, (40, -7)), (-100, 0.3, (5, 900))])
def test_exact_landmarks_give_the_inverse_of_what_moved_them(degrees, scale, shift) -> None:
    moved = turned(ARCFACE_TEMPLATE, degrees, scale, shift)
    matrix = similarity_to_template(moved)
    np.testing.assert_allclose(moved @ matrix[:, :2].T + matrix[:, 2], ARCFACE_TEMPLATE, atol=1e-9)
    assert np.hypot(matrix[0, 0], matrix[1, 0]) == pytest.approx(1 / scale)


def test_noisy_landmarks_give_umeyamas_solution_one_by_one_and_in_a_batch() -> None:
    rng = np.random.default_rng(0)
    landmarks = np.stack(
        [turned(ARCFACE_TEMPLATE, rng.uniform(-180, 180), rng.uniform(0.2, 4), (9, 3)) for _ in range(50)]
    ) + rng.normal(0, 6, (50, 5, 2))
    found = similarity_to_template(landmarks)
    for one, matrix in zip(landmarks, found, strict=True):
        np.testing.assert_allclose(matrix, umeyama(one, ARCFACE_TEMPLATE), atol=1e-9)
        np.testing.assert_array_equal(matrix, similarity_to_template(one))


def test_mirrored_landmarks_are_turned_and_never_mirrored() -> None:
    mirrored = ARCFACE_TEMPLATE * [-1, 1] + [112, 0]
    matrix = similarity_to_template(mirrored)
    assert np.linalg.det(matrix[:, :2]) > 0
    np.testing.assert_allclose(matrix, umeyama(mirrored, ARCFACE_TEMPLATE), atol=1e-9)


def test_landmarks_that_no_similarity_fits() -> None:
    bad = np.stack([np.full((5, 2), 7.0), np.full((5, 2), np.nan), np.full((5, 2), np.inf), ARCFACE_TEMPLATE])
    assert np.isnan(similarity_to_template(bad)).all(axis=(1, 2)).tolist() == [True, True, True, False]
    for one in bad[:3]:
        with pytest.raises(ValueError, match="lie on one point"):
            warp_face(np.zeros((9, 9, 3), np.uint8), one)


def ramp(height: int, width: int) -> np.ndarray:
    """Red rises with x, green with y: bilinear sampling gives back the coordinates."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, np.full_like(x, 200)], axis=-1).astype(np.uint8)


def test_warped_ramp_shows_where_each_pixel_came_from() -> None:
    moved = turned(ARCFACE_TEMPLATE, 20, 0.9, (40, -15))
    face = warp_face(ramp(240, 240), moved)
    grid = np.stack(np.meshgrid(np.arange(112.0), np.arange(112.0)), axis=-1).reshape(-1, 2)
    came_from = turned(grid, 20, 0.9, (40, -15)).reshape(112, 112, 2)
    inside = ((came_from >= 0) & (came_from <= 239)).all(axis=-1)
    assert 0.6 < inside.mean() < 0.99
    assert np.abs(face[..., :2].astype(float) - came_from)[inside].max() <= 0.5 + 1e-4
    assert (face[..., 2][inside] == 200).all()
    outside = ((came_from < -1) | (came_from > 240)).any(axis=-1)
    assert outside.any()
    assert (face[outside] == 0).all()


def test_the_template_itself_is_left_as_it_is() -> None:
    image = np.random.default_rng(1).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    np.testing.assert_array_equal(warp_face(image, ARCFACE_TEMPLATE), image)


def test_the_border_is_blended_with_black() -> None:
    white = np.full((2, 3, 1), 200, np.uint8)
    x = np.array([-0.5, -1.0, -0.25, 2.5, 1.0, 1e9, -1e9, 3.0])
    found = sample_bilinear(white, x, np.zeros(8))[:, 0]
    assert found.tolist() == [100, 0, 150, 100, 200, 0, 0, 0]
    assert sample_bilinear(white, np.array([-0.5]), np.array([1.5]))[0, 0] == 50  # a corner: a quarter


def test_other_sizes_are_the_aligned_face_made_smaller() -> None:
    moved = turned(ARCFACE_TEMPLATE, -5, 1.3, (20, 20))
    large, small = warp_face(ramp(250, 250), moved), warp_face(ramp(250, 250), moved, size=56)
    assert small.shape == (56, 56, 3)
    means = large[:, :, :2].reshape(56, 2, 56, 2, 2).mean(axis=(1, 3))
    assert np.abs(small[5:-5, 5:-5, :2] - means[5:-5, 5:-5]).max() <= 1.5
