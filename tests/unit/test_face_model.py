"""`attfc.load`: one opener for every kind of model; `embed` and `similarity` on every kind of image."""

import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import attfc
from attfc.backbones import create_backbone
from attfc.commands.embed import _write_csv, _write_names
from attfc.data import SyntheticFaces
from attfc.errors import UserError
from attfc.evaluation import embed_store
from attfc.evaluation.report.thresholds import thresholds_of
from attfc.export.face_list import notes_of_images, open_faces
from attfc.training.model_files import save_model

SIZE = 32
BGR = {"colour_order": "BGR", "mean": [103.5, 116.3, 123.7], "std": 57.4}


def pixels(count: int = 4) -> np.ndarray:
    return SyntheticFaces(count, 1, seed=2).images(np.arange(count), SIZE).pixels


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = create_backbone("r6_tiny", embedding_size=24, image_size=SIZE)
    return save_model(tmp_path_factory.mktemp("run") / "run-001" / "model", network, BGR)


@pytest.fixture(scope="module")
def model(folder) -> attfc.FaceModel:
    return attfc.load(folder, device="cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    """PNG, so that the pixels of file, array and PIL image are the same."""
    where = tmp_path_factory.mktemp("faces")
    paths = [where / f"{number}.png" for number in range(4)]
    for path, image in zip(paths, pixels(), strict=True):
        Image.fromarray(image).save(path)
    return paths


def test_every_kind_of_model_opens_with_one_name(folder, files, tmp_path) -> None:
    by_hand, facts = attfc.open_model(folder)
    expected = attfc.load(folder, device="cpu").embed(files)
    network, config = attfc.load_model(folder.parent, any_colours=True)  # a run's folder too
    assert config["colour_order"] == "BGR"
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    said = {**BGR, "image_size": SIZE}
    paths = {folder.parent: {}, str(folder): {}, folder / "model.safetensors": {}, tmp_path / "weights.pt": said}
    for path, statements in paths.items():
        opened = attfc.load(path, device="cpu", **statements)
        assert np.array_equal(opened.embed(files), expected)
        assert opened.facts.colours == facts.colours
    images = torch.from_numpy(pixels()).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        assert torch.equal(by_hand(images), attfc.from_pretrained(folder)(images))
    assert repr(opened) == f"FaceModel({str(tmp_path / 'weights.pt')!r}, r6_tiny, 32 px -> 24, cpu)"


def test_a_model_behind_its_colours_is_saved_with_them(model, files, tmp_path) -> None:
    again = attfc.load(save_model(tmp_path / "again", model.module), device="cpu")
    assert np.array_equal(again.embed(files), model.embed(files))
    assert again.facts.colours.to_dict() == BGR


def test_embeddings_are_those_of_evaluation_whatever_the_images_come_in(model, files) -> None:
    arrays, expected = pixels(), model.embed(files)
    assert expected.shape == (4, 24)
    assert expected.dtype == np.float32
    assert np.linalg.norm(expected, axis=1) == pytest.approx(1)
    images = torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        both = model.module(images) + model.module(images.flip(3))
        alone = model.module(images)
    assert expected == pytest.approx((both / both.norm(dim=1, keepdim=True)).numpy(), abs=1e-6)
    unflipped = model.embed(files, flip=False)
    assert unflipped == pytest.approx((alone / alone.norm(dim=1, keepdim=True)).numpy(), abs=1e-6)
    pil = [Image.fromarray(image) for image in arrays]
    store = open_faces(files)
    mixed = [str(files[0]), arrays[1], pil[2], files[3]]
    for several in (arrays, list(arrays), pil, mixed, store, files[0].parent, (path for path in files)):
        assert np.array_equal(model.embed(several), expected)
    for one in (files[0], str(files[0]), arrays[0], pil[0]):
        assert model.embed(one) == pytest.approx(expected[:1], abs=1e-6)
    assert model.embed(files, batch_size=1, device="cpu") == pytest.approx(expected, abs=1e-6)


def test_stores_and_lists_that_mix_them_keep_their_order(model, files) -> None:
    faces = SyntheticFaces(2, 2, seed=4)
    store = embed_store(model.module, faces).vectors
    mixed = model.embed([files[1], faces, files[0]])
    assert mixed == pytest.approx(np.concatenate([model.embed(files[1]), store, model.embed(files[0])]), abs=1e-6)
    assert np.array_equal(model.embed("synthetic:identities=2,images=2,seed=4"), store)
    opened = open_faces([pixels()[0], faces, pixels()[1]])
    assert [opened.where(position) for position in (0, 1, 5)] == [
        "array 0",
        f"{faces.name}: {faces.where(0)}",
        "array 5",
    ]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16", "1", "F"])
def test_pil_images_of_any_mode_are_read_as_files_of_that_mode_are(mode) -> None:
    grey = Image.fromarray(pixels()[0]).convert("L")
    image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "I;16" else grey.convert(mode)
    assert image.mode == mode
    found = open_faces(image).images([0], SIZE)
    assert not found.broken
    if mode == "1":
        assert set(np.unique(found.pixels)) == {0, 255}
    else:
        difference = np.abs(found.pixels[0].astype(int) - np.asarray(grey)[:, :, None])
        assert difference.max() <= (16 if mode == "P" else 1)


def test_the_orientation_of_a_pil_image_is_applied() -> None:
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(pixels()[0]).save(stream, "PNG", exif=exif)
    turned = Image.open(io.BytesIO(stream.getvalue()))
    assert np.array_equal(open_faces(turned).images([0], SIZE).pixels[0], pixels()[0][::-1, ::-1])


def test_similarity_is_a_matrix_of_cosines(model, files) -> None:
    vectors = model.embed(files)
    cosines = model.similarity(files[:2], vectors * 7)
    assert cosines.shape == (2, 4)
    assert cosines.dtype == np.float32
    assert cosines == pytest.approx(vectors[:2] @ vectors.T, abs=1e-6)
    assert model.similarity(files[0], files[0]) == pytest.approx(np.ones((1, 1)), abs=1e-6)
    assert cosines.max() <= 1
    assert model.similarity(vectors[0].astype(np.float64), files[1], flip=True).shape == (1, 1)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("nowhere/a.jpg", r"nowhere/a\.jpg does not exist: check the path"),
        ([], "no images were given: give a path, a uint8 RGB array"),
        ({"a": 1}, "a dict is not an image: give a path"),
        ([None], "a NoneType is not an image: give a path"),
        (np.zeros((8, 8, 3), np.float32), r"an array of float32 \(8, 8, 3\) is not an image: give uint8 RGB, 0 to 255"),
        (np.zeros((3, 8, 8), np.uint8), r"an array of uint8 \(3, 8, 8\) is not an image"),
        (np.zeros((8, 8), np.uint8), r"an array of uint8 \(8, 8\) is not an image"),
        (np.zeros((0, 8, 3), np.uint8), r"an array of uint8 \(0, 8, 3\) is not an image"),
    ],
)
def test_what_is_no_image_is_named(model, images, message) -> None:
    with pytest.raises(UserError, match=message):
        model.embed(images)


def test_a_broken_image_is_named(model, files, tmp_path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"GIF89a....")
    (tmp_path / "no ending").write_bytes(files[0].read_bytes())
    assert model.embed(tmp_path / "no ending") == pytest.approx(model.embed(files[0]))
    with pytest.raises(
        UserError, match=r"bad\.jpg cannot be embedded: not a JPEG, PNG.*; repair or leave out what is broken"
    ):
        model.embed([files[0], tmp_path / "bad.jpg"])
    with pytest.raises(UserError, match=r"bad\.jpg cannot be embedded: .*, and 1 more of 3 images"):
        model.embed([files[0], tmp_path / "bad.jpg", tmp_path / "bad.jpg"])
    (tmp_path / "itself.jpg").symlink_to(tmp_path / "itself.jpg")
    (tmp_path / "person").mkdir()
    with pytest.raises(UserError, match=r"holds images and folders, and it is open which are meant"):
        model.embed(tmp_path)


def test_embeddings_of_any_length_are_compared(model) -> None:
    ones = np.ones(24, np.float32)
    assert model.similarity(ones * 1e-30, ones * 1e30) == pytest.approx(np.ones((1, 1)), abs=1e-6)


def test_what_is_no_embedding_is_named(model, files) -> None:
    with pytest.raises(
        UserError, match=r"a float array of shape \(2, 8\) holds no embeddings of this model: give \(N, 24\)"
    ):
        model.similarity(np.zeros((2, 8)), files)
    with pytest.raises(UserError, match="an embedding has length 0, NaN or infinity"):
        model.similarity(np.zeros(24), files)
    with pytest.raises(UserError, match="'colours' says nothing about a model; did you mean 'colour_order'"):
        attfc.load(files[0], colours="BGR")
    with pytest.raises(UserError, match="device='warp' cannot be used here"):
        model.to("warp")


def test_images_that_do_not_look_aligned_are_noted() -> None:
    square, oblong, large = (np.zeros(shape, np.uint8) for shape in ((112, 112, 3), (100, 80, 3), (250, 250, 3)))
    assert notes_of_images(open_faces([square, square]), 112) == []
    (note,) = notes_of_images(open_faces([square, oblong, large]), 112)
    assert note.startswith(
        "of 3 images looked at, 1 is not square (the central square is taken) and 1 is larger than 224 pixels: array 1 has 80 x 100 pixels"
    )


def test_a_run_without_a_model_says_how_to_get_one(tmp_path) -> None:
    (tmp_path / "config.yaml").write_text("name: x\n")
    with pytest.raises(
        UserError, match=r"without a model or a checkpoint: start it again with attfc train .*config\.yaml$"
    ):
        attfc.load(tmp_path)
    (tmp_path / "best").mkdir()
    with pytest.raises(UserError, match=r"or take its best evaluation so far, .*best"):
        attfc.load_model(tmp_path)


def test_a_name_with_a_line_break_stays_one_line_and_bytes_stay_bytes() -> None:
    names, table = io.BytesIO(), io.BytesIO()
    odd = ["a\nb", "c\r", os.fsdecode(b"\xff")]
    _write_names(names, np.eye(3, dtype=np.float32), odd)
    assert names.getvalue() == b"a\\nb\nc\\r\n\xff\n"
    _write_csv(table, np.eye(3, dtype=np.float32), odd)
    assert table.getvalue() == b'name,e0,e1,e2\r\n"a\nb",1,0,0\r\n"c\r",0,1,0\r\n\xff,0,0,1\r\n'


def test_thresholds_are_those_of_the_model_that_was_evaluated_last(tmp_path) -> None:
    stated = {"all_pairs": {"threshold_at_far": {"0.1": 0.25, "0.01": 0.5, "1e-06": None}, "impostor_pairs": 300}}
    of_run, far = tmp_path / "evaluation.json", tmp_path / "far.json"
    model, best = (
        SimpleNamespace(path=tmp_path / name, digest="0" * 64, operating_point="") for name in ("model", "best")
    )
    of_run.write_text(json.dumps({"step": 7, **stated}))
    known = {0.1: 0.25}  # 3 pairs of strangers passed the other: too few
    assert thresholds_of(model) == thresholds_of(model, of_run) == (known, str(of_run), None)
    assert thresholds_of(best) == ({}, "", None)  # of another step
    with pytest.raises(UserError, match=r"evaluation\.json is an evaluation of another model \(.*model\) than .*best"):
        thresholds_of(best, of_run)
    of_run.write_text("[]")
    assert thresholds_of(model) == ({}, "", None)
    with pytest.raises(UserError, match=r"evaluation\.json states no threshold that 30 pairs of different people"):
        thresholds_of(model, of_run)

    damaged = [
        ('{"0.1": NaN}', "300"),
        ('{"0.1": 7}', "300"),
        ('{"-1": 0.2}', "300"),
        (f'{{"0.1": 1{"0" * 400}}}', "300"),
        ('{"0.1": 0.2}', "1e999"),
    ]
    for rates, pairs in damaged:
        far.write_text(f'{{"threshold_at_far": {rates}, "impostor_pairs": {pairs}}}')
        with pytest.raises(UserError, match=r"far\.json (is damaged: its threshold|states no threshold)"):
            thresholds_of(model, far)

    earlier = {"protocol": "all-pairs", **stated["all_pairs"]}  # as earlier versions wrote it
    far.write_text(json.dumps(earlier))
    assert thresholds_of(model, far) == (known, f"{far} (it does not say of which model)", None)
    far.write_text(json.dumps({**earlier, "model_digest": "0" * 64}))
    assert thresholds_of(model, far) == (known, str(far), None)
    with pytest.raises(UserError, match=r"far\.json is an evaluation of another model \(0{64}\) than .* \(1{64}\)"):
        thresholds_of(SimpleNamespace(path=model.path, digest="1" * 64, operating_point=""), far)
