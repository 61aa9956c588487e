"""Pair protocols on `.bin` sets: figures, sets by name, broken images."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from attfc.data.stores.verification_sets import read_verification_set, write_verification_set
from attfc.errors import UserError
from attfc.evaluation.metrics import evaluate_pairs
from attfc.evaluation.protocols.pairs import evaluate_pair_list, find_sets, pairs_of_set


class Means(nn.Module):
    image_size = 8

    def forward(self, images_BCSS: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(images_BCSS, 2).flatten(1)


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def made(tmp_path):
    """60 pairs, half of them one person; the pixels, and the file."""
    rng = np.random.default_rng(0)
    same = rng.random(60) < 0.5
    pixels = rng.integers(0, 256, (120, 8, 8, 3), dtype=np.uint8)
    for pair in np.flatnonzero(same):
        noise = rng.integers(-90, 91, (8, 8, 3))
        pixels[2 * pair + 1] = np.clip(pixels[2 * pair].astype(int) + noise, 0, 255)
    write_verification_set(tmp_path / "lfw.bin", [png(one) for one in pixels], same)
    return pixels, same, tmp_path / "lfw.bin"


def test_figures_are_those_of_image_plus_mirror_image(made) -> None:
    pixels, same, path = made
    found = read_verification_set(path)
    result = evaluate_pair_list(Means(), found, pairs_of_set(found))
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    rows = Means()(images) + Means()(images.flip(3))
    expected = evaluate_pairs(rows, same)
    assert result.scores.fold_accuracies == expected.fold_accuracies
    np.testing.assert_allclose(result.scores.scores, expected.scores, atol=1e-6)
    figures = result.figures()
    assert (figures["pairs"], figures["skipped_pairs"], figures["broken"]) == (60, 0, 0)
    assert figures["tar_at_far"]["0.001"] is None
    assert len(result.scores.scores) == 60


def test_pairs_of_broken_images_are_counted_and_their_neighbours_keep_their_folds(made, tmp_path) -> None:
    pixels, same, _ = made
    encoded = [png(one) for one in pixels]
    encoded[7] = b"no image"
    write_verification_set(tmp_path / "hurt.bin", encoded, same)
    found = read_verification_set(tmp_path / "hurt.bin")
    with pytest.raises(
        UserError, match=r"hurt: 1 of 120 images are broken, more than the limit of 0.001; the first is image 7"
    ):
        evaluate_pair_list(Means(), found, pairs_of_set(found), broken_limit=0.001)
    result = evaluate_pair_list(Means(), found, pairs_of_set(found))
    assert (result.skipped_pairs, len(result.pairs)) == (1, 59)
    assert np.bincount(result.pairs.fold).tolist() == [5, *[6] * 9]
    assert result.notes[0].startswith(
        "1 of 60 pairs were skipped: they use one of 1 broken images; the first is image 7"
    )


def test_sets_of_fewer_than_ten_pairs_have_fewer_folds_and_say_so(made, tmp_path) -> None:
    pixels, same, _ = made
    chosen = [*np.flatnonzero(same)[:2], *np.flatnonzero(~same)[:2]]
    encoded = [png(pixels[2 * pair + side]) for pair in chosen for side in (0, 1)]
    write_verification_set(tmp_path / "few.bin", encoded, same[chosen])
    found = read_verification_set(tmp_path / "few.bin")
    result = evaluate_pair_list(Means(), found, pairs_of_set(found))
    assert len(result.scores.fold_accuracies) == 4
    assert "few.bin has only 4 pairs: 4 folds instead of 10" in result.notes
    write_verification_set(tmp_path / "one.bin", encoded[:2], same[chosen[:1]])
    with pytest.raises(UserError, match=r"one.bin: 1 pair is not enough: .* at least 2 are needed"):
        pairs_of_set(read_verification_set(tmp_path / "one.bin"))


def test_missing_and_broken_images_count_against_one_limit(made, tmp_path) -> None:
    pixels, same, _ = made
    encoded = [png(one) for one in pixels]
    encoded[7] = b"no image"
    write_verification_set(tmp_path / "hurt.bin", encoded, same)
    found = read_verification_set(tmp_path / "hurt.bin")
    pairs = dataclasses.replace(pairs_of_set(found), skipped=2, missing=2)
    with pytest.raises(UserError, match=r"hurt: 3 of 122 images are broken or missing, more than the limit of 0.02"):
        evaluate_pair_list(Means(), found, pairs, broken_limit=0.02)
    assert evaluate_pair_list(Means(), found, pairs, broken_limit=0.03).skipped_pairs == 3


def test_sets_by_name(tmp_path) -> None:
    for name in ("zoo", "agedb_30", "lfw"):
        (tmp_path / f"{name}.bin").touch()
    assert [path.stem for path in find_sets(tmp_path)] == ["lfw", "agedb_30", "zoo"]
    assert [path.stem for path in find_sets(tmp_path, ["zoo", "lfw"])] == ["zoo", "lfw"]
    with pytest.raises(UserError, match=r"has no calfw.bin.*: it has agedb_30, lfw, zoo"):
        find_sets(tmp_path, ["calfw"])
    with pytest.raises(UserError, match="is not a folder"):
        find_sets(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no \.bin file"):
        find_sets(tmp_path / "empty")
