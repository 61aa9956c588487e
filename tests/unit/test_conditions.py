"""Conditions that hurt, against Pillow and loops; and that every protocol's embeddings and caches know of them."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn

from attfc.data import SyntheticFaces
from attfc.data.conditions import CONDITIONS, Condition, parse_conditions
from attfc.errors import UserError
from attfc.evaluation import Embedder
from attfc.evaluation.embed import Kept, embed_store


def faces(count: int = 4, size: int = 64) -> Tensor:
    store = SyntheticFaces(count, 1, seed=0)
    return torch.from_numpy(store.images(np.arange(count), size).pixels)


def changed(text: str, images: Tensor) -> Tensor:
    before = images.clone()
    (condition,) = parse_conditions([text])
    found = condition(images)
    assert torch.equal(images, before)
    assert (found.dtype, found.shape) == (torch.uint8, images.shape)
    return found


def difference(found: Tensor, expected: list[np.ndarray]) -> float:
    return float((found.float() - torch.from_numpy(np.stack(expected)).float()).abs().mean())


@pytest.mark.parametrize("side", [16, 24, 48])
def test_low_resolution_is_what_pillow_makes_of_it(side: int) -> None:
    images, expected = faces(), []
    for image in images.numpy():
        small = Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)
        expected.append(np.asarray(small.resize((64, 64), Image.Resampling.BILINEAR)))
    found = changed(f"lowres={side}", images)
    assert difference(found, expected) < 0.4  # Pillow rounds the small image too
    assert difference(images, expected) > 1.5


def test_jpeg_blur_grey_and_cover_are_what_they_say() -> None:
    images = faces()
    through, blurred = [], []
    for image in images.numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=20, subsampling="4:2:0")
        through.append(np.asarray(Image.open(file)))
        blurred.append(np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(2))))
    assert difference(changed("jpeg=20", images), through) < 0.5
    assert difference(images, through) > 2
    inside = slice(8, -8)  # Pillow repeats the border, here it has no weight
    assert difference(changed("blur=2", images)[:, inside, inside], [each[inside, inside] for each in blurred]) < 1
    grey = changed("grey", images)
    assert bool((grey == grey[..., :1]).all())
    assert difference(grey[..., 0], [np.asarray(Image.fromarray(image).convert("L")) for image in images.numpy()]) < 0.6
    covered = changed("covered", images)
    assert torch.equal(covered[:, :32], images[:, :32])
    assert bool((covered[:, 32:] == 127).all())
    assert bool((changed("covered=0.25", images)[:, 48:] == 127).all())
    assert torch.equal(changed("covered=0.25", images)[:, :48], images[:, :48])


def test_conditions_act_in_the_order_given_and_autocast_rounds_nothing() -> None:
    images = faces(2)
    one, other = (parse_conditions([text]) for text in ("lowres=16,jpeg=10", "jpeg=10,lowres=16"))
    assert [str(each) for each in one] == ["lowres=16", "jpeg=10"]

    def all_of(conditions: tuple[Condition, ...]) -> Tensor:
        found = images
        for condition in conditions:
            found = condition(found)
        return found

    assert not torch.equal(all_of(one), all_of(other))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = all_of(one)
    assert torch.equal(inside, all_of(one))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["lowre=24"], "--condition 'lowre=24' is unknown; did you mean 'lowres'?: there are lowres, jpeg, blur, grey, covered"),
        (["lowres"], "--condition lowres: lowres takes whole numbers from 8 to 96, pixels"),
        (["lowres=4"], "--condition lowres=4: lowres takes whole numbers from 8 to 96, pixels"),
        (["lowres=24.5"], "--condition lowres=24.5: lowres takes whole numbers"),
        (["jpeg=nan"], "--condition jpeg=nan: jpeg takes whole numbers from 1 to 95, quality"),
        (["blur=much"], "--condition blur=much: blur takes numbers from 0.1 to 20, pixels"),
        (["grey=1"], "--condition grey=1: grey takes no value"),
        (["covered="], "--condition covered=: covered takes numbers from 0.1 to 0.9, of the height"),
        (["lowres=24", "grey,lowres=16"], "--condition lowres=16: lowres is given twice: give it once"),
        (["lowres=24,"], "--condition '' is unknown"),
    ],
)  # fmt: skip
def test_what_is_no_condition_is_refused_in_one_line(texts: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_conditions(texts)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_resolution_that_the_images_do_not_have_is_refused() -> None:
    with pytest.raises(UserError, match="--condition lowres=64: the images have 64 pixels a side: give fewer"):
        changed("lowres=64", faces(1))


class Pixels(nn.Module):
    """The pixels themselves, so that what the model is shown can be read from its embeddings."""

    image_size, embedding_size = 24, 24 * 24 * 3

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) + 2


@pytest.mark.parametrize("kind", CONDITIONS)
def test_a_model_is_shown_the_images_under_the_condition(kind: str) -> None:
    text = {"lowres": "lowres=12", "jpeg": "jpeg=30", "blur": "blur=1.5"}.get(kind, kind)
    store, conditions = SyntheticFaces(3, 2, seed=1), parse_conditions([text])
    found = embed_store(Pixels(), store, flip=False, batch_size=4, conditions=conditions)
    pixels = torch.from_numpy(store.images(np.arange(6), 24).pixels)
    shown = Pixels()((conditions[0](pixels).permute(0, 3, 1, 2).float() - 127.5) / 127.5)
    assert np.allclose(found.vectors, torch.nn.functional.normalize(shown).numpy(), atol=1e-6)
    assert not np.allclose(found.vectors, embed_store(Pixels(), store, flip=False).vectors, atol=1e-3)


def test_kept_embeddings_of_one_condition_are_not_those_of_another(tmp_path) -> None:
    store, kept = SyntheticFaces(2, 2, seed=1), Kept(tmp_path, "model")
    options: list[dict[str, Any]] = [{}, *({"conditions": parse_conditions([text])} for text in ("grey", "lowres=12"))]
    found = [Embedder(Pixels(), **each).embed(store, kept=kept).vectors for each in options]
    assert len(list(tmp_path.iterdir())) == 3
    assert not np.allclose(found[0], found[1], atol=1e-3)
    again = [Embedder(Pixels(), **each).embed(store, kept=kept).vectors for each in options]
    assert all(np.array_equal(one, other) for one, other in zip(found, again, strict=True))
