"""Augmentations against loops over pixels, and the promises about seeds, batches and memory formats."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attfc.data.sampling.query_stream import mirror_seeds
from attfc.data.transforms import Augment, normalize, small_and_back
from attfc.errors import UserError
from attfc.random_streams import hash_words, uniform

EVERYTHING = Augment(
    crop_scale=(0.4, 1.0),
    crop_probability=0.8,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    color_probability=0.8,
    blur=0.5,
    low_resolution=0.5,
)
DECISIONS = [
    *("crop", "area", "ratio", "top", "left", "color", "brightness", "contrast", "saturation", "blur", "sigma"),
    *("low_resolution", "side"),
]


def pictures(count: int, height: int = 12, width: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, height, width, 3), generator=generator, dtype=torch.uint8).permute(0, 3, 1, 2)


def seeds_for(count: int) -> Tensor:
    return torch.from_numpy((hash_words(1, np.arange(count)) >> np.uint64(1)).astype(np.int64))


def drawn(seed: int, decision: str) -> float:
    """The decision's number by the numpy hash, another implementation than the tested one."""
    return float(uniform(hash_words(DECISIONS.index(decision) + 2, seed & (2**63 - 1)))[0])


def is_flipped(seed: int, probability: float = 0.5) -> bool:
    return (float(uniform(hash_words(1, seed & (2**24 - 1)))[0]) < probability) ^ (seed < 0)


def test_normalize_maps_0_to_minus_1_and_255_to_1() -> None:
    images = torch.arange(256, dtype=torch.uint8)
    expected = [(value - 127.5) / 127.5 for value in range(256)]
    assert torch.allclose(normalize(images), torch.tensor(expected), atol=1e-7)
    assert normalize(images).dtype == torch.float32


def test_the_default_flips_half_of_the_images_and_does_nothing_else() -> None:
    images, seeds = pictures(400, 4, 4), seeds_for(400)
    result = Augment()(images, seeds)
    flips = [is_flipped(seed) for seed in seeds.tolist()]
    for image, flip, found in zip(images, flips, result, strict=True):
        assert torch.equal(found, normalize(image.flip(-1) if flip else image))
    assert 160 < sum(flips) < 240


@pytest.mark.parametrize("augment", [Augment(), EVERYTHING])
def test_mirror_seeds_show_the_opposite_flip_with_other_crops(augment: Augment) -> None:
    queries = seeds_for(60)
    keys = torch.from_numpy(mirror_seeds(seeds_for(120)[60:].numpy(), queries.numpy()))
    assert all(is_flipped(key) != is_flipped(query) for key, query in zip(keys.tolist(), queries.tolist(), strict=True))
    assert len(set((keys & ~(-(2**63))).tolist()) & set(queries.tolist())) == 0
    # An image that is black on its left half tells its own flip after any crop.
    images = torch.full((60, 3, 32, 32), 200, dtype=torch.uint8)
    images[..., :16] = 40

    def darker_left(result: Tensor) -> Tensor:
        return result[..., :4].mean((1, 2, 3)) < result[..., -4:].mean((1, 2, 3))

    assert torch.equal(darker_left(augment(images, queries)), ~darker_left(augment(images, keys)))


@pytest.mark.parametrize(("flip", "mirrored"), [(0.0, False), (1.0, True)])
def test_never_and_always_flip_ignore_the_opposite_bit(flip: float, mirrored: bool) -> None:
    images, seeds = pictures(8), seeds_for(8)
    expected = normalize(images.flip(-1) if mirrored else images)
    for kind in (seeds, torch.from_numpy(mirror_seeds(seeds.numpy(), seeds.numpy()))):
        assert torch.equal(Augment(flip=flip)(images, kind), expected)


def slow_crop(image: np.ndarray, top: float, left: float, height: float, width: float) -> np.ndarray:
    """Bilinear look-up of every output pixel's centre; the crop is never larger than the image, so nothing is averaged."""
    _, rows, columns = image.shape
    result = np.zeros(image.shape)
    for row in range(rows):
        for column in range(columns):
            y, x = top + (row + 0.5) * height / rows - 0.5, left + (column + 0.5) * width / columns - 0.5
            total = 0.0
            for j in (math.floor(y), math.floor(y) + 1):
                for i in (math.floor(x), math.floor(x) + 1):
                    if 0 <= j < rows and 0 <= i < columns:
                        weight = (1 - abs(y - j)) * (1 - abs(x - i))
                        result[:, row, column] += weight * image[:, j, i]
                        total += weight
            result[:, row, column] /= total
    return result


@pytest.mark.parametrize(("height", "width"), [(9, 9), (8, 11)])
def test_crops_equal_a_bilinear_look_up_pixel_by_pixel(height: int, width: int) -> None:
    images, seeds = pictures(6, height, width), seeds_for(6)
    found = Augment(flip=0.0, crop_scale=(0.3, 0.9), crop_probability=0.7)(images, seeds)
    cropped = 0
    for image, seed, result in zip(images, seeds.tolist(), found, strict=True):
        box = (0.0, 0.0, float(height), float(width))
        if drawn(seed, "crop") < 0.7:
            cropped += 1
            area = (0.3 + drawn(seed, "area") * 0.6) * height * width
            ratio = math.exp(math.log(3 / 4) + drawn(seed, "ratio") * (math.log(4 / 3) - math.log(3 / 4)))
            box_height, box_width = min(math.sqrt(area / ratio), height), min(math.sqrt(area * ratio), width)
            top, left = drawn(seed, "top") * (height - box_height), drawn(seed, "left") * (width - box_width)
            box = (top, left, box_height, box_width)
        expected = slow_crop(image.numpy().astype(np.float64), *box)
        assert np.abs(result.numpy() - (expected - 127.5) / 127.5).max() < 1e-4
    assert 0 < cropped < 6


def test_blur_equals_a_loop_over_the_gaussian() -> None:
    images, seeds = pictures(5, 7, 7), seeds_for(5)
    found = Augment(flip=0.0, blur=0.6, blur_sigma=(0.5, 1.5))(images, seeds)
    blurred = 0
    for image, seed, result in zip(images.numpy().astype(np.float64), seeds.tolist(), found, strict=True):
        expected = image
        if drawn(seed, "blur") < 0.6:
            blurred += 1
            sigma = 0.5 + drawn(seed, "sigma")
            expected = np.zeros_like(image)
            for row in range(7):
                for column in range(7):
                    weights = np.array(
                        [
                            [math.exp(-((row - j) ** 2 + (column - i) ** 2) / (2 * sigma**2)) for i in range(7)]
                            for j in range(7)
                        ]
                    )
                    expected[:, row, column] = (image * weights).sum((1, 2)) / weights.sum()
        assert np.abs(result.numpy() - (expected - 127.5) / 127.5).max() < 1e-4
    assert 0 < blurred < 5


def slow_small_and_back(line: np.ndarray, side: int) -> np.ndarray:
    """Shrink a row of pixels by a triangle as wide as a small pixel each side, then look up linearly; loops, no matrix."""
    size = len(line)
    small = np.zeros((side, *line.shape[1:]))
    for place in range(side):
        weights = [max(0.0, 1 - abs((i + 0.5) - (place + 0.5) * size / side) * side / size) for i in range(size)]
        small[place] = sum(weight * pixel for weight, pixel in zip(weights, line, strict=True)) / sum(weights)
    result = np.zeros_like(line)
    for place in range(size):
        at = min(max((place + 0.5) * side / size - 0.5, 0), side - 1)  # beyond the outer centres: the outer pixel
        low = min(math.floor(at), side - 1)
        result[place] = small[low] + (at - low) * (small[min(low + 1, side - 1)] - small[low])
    return result


@pytest.mark.parametrize(("height", "width"), [(9, 9), (8, 11)])
def test_low_resolution_equals_a_loop_that_shrinks_and_enlarges(height: int, width: int) -> None:
    images, seeds = pictures(12, height, width), seeds_for(12)
    found = Augment(flip=0.0, low_resolution=0.6)(images, seeds)
    small, sides = 0, set()
    for image, seed, result in zip(images.numpy().astype(np.float64), seeds.tolist(), found, strict=True):
        expected = image
        if drawn(seed, "low_resolution") < 0.6:
            small += 1
            share = 0.2 + drawn(seed, "side") * 0.8
            sides.add(int(share * width))
            rows = slow_small_and_back(image.transpose(1, 2, 0), int(share * height))
            expected = slow_small_and_back(rows.transpose(1, 0, 2), int(share * width)).transpose(2, 1, 0)
        assert np.abs(result.numpy() - (expected - 127.5) / 127.5).max() < 1e-4
    assert 0 < small < 12
    assert len(sides) > 2


@pytest.mark.parametrize("size", [1, 7, 56, 112])
def test_an_image_that_is_not_shrunk_stays_as_it_is(size: int) -> None:
    matrices = small_and_back(size, torch.tensor([float(size), 1.0]))
    assert torch.equal(matrices[0], torch.eye(size))
    assert torch.allclose(matrices[1], matrices[1][:1].expand(size, size))  # one pixel, everywhere


def test_colours_equal_the_formulas_in_numpy() -> None:
    images, seeds = pictures(12, 6, 6), seeds_for(12)
    found = Augment(flip=0.0, brightness=0.4, contrast=0.5, saturation=1.5, color_probability=0.6)(images, seeds)
    changed = 0
    for image, seed, result in zip(images.numpy().astype(np.float64), seeds.tolist(), found, strict=True):
        pixels = image
        if drawn(seed, "color") < 0.6:
            changed += 1
            pixels = np.clip(pixels * (0.6 + 0.8 * drawn(seed, "brightness")), 0, 255)
            grey = np.tensordot([0.299, 0.587, 0.114], pixels, 1)
            contrast = 0.5 + drawn(seed, "contrast")
            pixels = np.clip(grey.mean() + contrast * (pixels - grey.mean()), 0, 255)
            grey = np.tensordot([0.299, 0.587, 0.114], pixels, 1)
            pixels = np.clip(grey + 2.5 * drawn(seed, "saturation") * (pixels - grey), 0, 255)
        assert np.abs(result.numpy() - (pixels - 127.5) / 127.5).max() < 1e-4
    assert 0 < changed < 12


def test_the_whole_image_as_crop_changes_nothing() -> None:
    images, seeds = pictures(8), seeds_for(8)
    whole = Augment(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    assert torch.equal(whole(images, seeds), Augment()(images, seeds))


@pytest.mark.parametrize("augment", [Augment(), EVERYTHING])
@pytest.mark.parametrize("split", [1, 5])
def test_any_split_of_a_batch_gives_the_same_pixels(augment: Augment, split: int) -> None:
    images, seeds = pictures(12), seeds_for(12)
    parts = [augment(images[i : i + split], seeds[i : i + split]) for i in range(0, 12, split)]
    assert torch.allclose(torch.cat(parts), augment(images, seeds), rtol=0, atol=1e-6)


@pytest.mark.parametrize("augment", [Augment(), Augment(crop_scale=(0.5, 1.0)), Augment(brightness=0.3), EVERYTHING])
def test_memory_format_range_and_input_are_kept(augment: Augment) -> None:
    images, seeds = pictures(10), seeds_for(10)
    before = images.clone()
    lying, standing = augment(images, seeds), augment(images.contiguous(), seeds)
    assert lying.is_contiguous(memory_format=torch.channels_last)
    assert standing.is_contiguous()
    assert torch.allclose(lying, standing, atol=1e-6)
    assert lying.dtype == torch.float32
    assert lying.min() >= -1
    assert lying.max() <= 1
    assert torch.equal(images, before)


def test_keys_keep_their_leading_dimensions() -> None:
    keys, seeds = pictures(6).unflatten(0, (2, 3)), seeds_for(8).view(2, 4)[:, 1:]
    found = EVERYTHING(keys, seeds)
    assert found.shape == keys.shape
    assert torch.allclose(found.flatten(0, 1), EVERYTHING(keys.flatten(0, 1), seeds.reshape(-1)), atol=1e-6)
    assert EVERYTHING(keys[:, :0], seeds[:, :0]).shape == (2, 0, 3, 12, 12)


def test_autocast_does_not_round_the_pixels() -> None:
    images, seeds = pictures(6), seeds_for(6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = EVERYTHING(images, seeds)
    assert torch.equal(inside, EVERYTHING(images, seeds))


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
def test_an_accelerator_gives_the_same_pixels() -> None:
    images, seeds = pictures(64, 112, 112), seeds_for(64)
    device = torch.accelerator.current_accelerator()
    assert torch.equal(Augment()(images.to(device), seeds).cpu(), Augment()(images, seeds))
    assert torch.allclose(EVERYTHING(images.to(device), seeds).cpu(), EVERYTHING(images, seeds), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": 1.5}, r"augmentation flip = 1.5 is a probability: set it to 0 ... 1"),
        ({"blur": float("nan")}, r"augmentation blur = nan is a probability"),
        ({"contrast": -0.1}, r"augmentation contrast = -0.1 is a strength: set it to 0 or more"),
        ({"crop_scale": (0.0, 1.0)}, r"crop_scale = \(0.0, 1.0\) must be \(low, high\) with 0 < low <= high <= 1"),
        ({"crop_scale": (0.5, 1.1)}, r"crop_scale = \(0.5, 1.1\) must be"),
        ({"crop_ratio": (2.0, 1.0)}, r"crop_ratio = \(2.0, 1.0\) must be"),
        ({"blur_sigma": (1.0, 2.0, 3.0)}, r"blur_sigma = \(1.0, 2.0, 3.0\) must be"),
        ({"low_resolution": -0.1}, r"augmentation low_resolution = -0.1 is a probability"),
        ({"low_resolution_side": (0.5, 2.0)}, r"low_resolution_side = \(0.5, 2.0\) must be"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Augment(**options)


def test_bad_tensors_are_named() -> None:
    with pytest.raises(ValueError, match=r"images must be uint8 \(..., 3, H, W\), got torch.float32 \(2, 3, 12, 12\)"):
        Augment()(pictures(2).float(), seeds_for(2))
    with pytest.raises(ValueError, match=r"seeds must be int64 \(2,\), one per image, got torch.int64 \(3,\)"):
        Augment()(pictures(2), seeds_for(3))


def test_a_flipped_crop_is_the_mirrored_crop() -> None:
    images, seeds = pictures(6), seeds_for(6)
    plain, flipped = (Augment(flip=flip, crop_scale=(0.3, 0.9), blur=0.5)(images, seeds) for flip in (0.0, 1.0))
    assert torch.allclose(flipped, plain.flip(-1), atol=1e-6)
    plain, flipped = (Augment(flip=flip, low_resolution=1.0)(images, seeds) for flip in (0.0, 1.0))
    assert torch.allclose(flipped, plain.flip(-1), atol=1e-6)
