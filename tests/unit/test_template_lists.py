"""Lists of a protocol folder: what is counted, and what is refused with file, line and reason."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from attfc.errors import UserError
from attfc.evaluation.embedding_cache import CacheKey, cached_embeddings, model_digest
from attfc.evaluation.protocols.template_lists import TemplatePairs, read_template_lists
from attfc.evaluation.protocols.template_pooling import pool_templates
from attfc.evaluation.protocols.template_scores import verify_templates
from attfc.evaluation.protocols.templates import evaluate_templates

POINTS = "38 51 73 51 56 71 41 92 70 92"
FILES = {
    "ijbc_name_5pts_score.txt": f"1.png {POINTS} 0.9\n2.png {POINTS} 0.8\n3.png {POINTS} 0.7\n4.png {POINTS} 0.6\n",
    "ijbc_face_tid_mid.txt": "1.png 1 10\n2.png 1 10\n3.png 2 11\n4.png 3 12\n",
    "ijbc_template_pair_label.txt": "1 2 1\n1 3 0\n2 3 0\n",
}
SEARCH = {
    "ijbc_1N_gallery_G1.csv": "TEMPLATE_ID,SUBJECT_ID\n1,7\n",
    "ijbc_1N_gallery_G2.csv": "TEMPLATE_ID,SUBJECT_ID\n3,8\n",
    "ijbc_1N_probe_mixed.csv": "TEMPLATE_ID,SUBJECT_ID\n2,7\n",
}


class Means(nn.Module):
    """Mean colours of the four quarters."""

    image_size, embedding_size = 112, 12

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images_BCSS: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(images_BCSS, 2).flatten(1) * self.scale


def release(root: Path, **changed: str | None) -> Path:
    """Write a small folder; `changed` names files without their ijbc_ and ending, None leaves one out."""
    (root / "meta").mkdir(parents=True)
    (root / "loose_crop").mkdir()
    rng = np.random.default_rng(0)
    for number in range(1, 5):
        pixels = np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((28, 28, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(root / "loose_crop" / f"{number}.png")
    for name, text in {**FILES, **SEARCH}.items():
        new = changed.get(name.removeprefix("ijbc_").partition(".")[0].replace("1N_", ""), text)
        if new is not None:
            (root / "meta" / name).write_bytes(new.encode())
    return root


def test_mixed_line_ends_blank_lines_and_a_byte_order_mark(tmp_path) -> None:
    plain = read_template_lists(release(tmp_path / "a"), "ijbc")
    mixed = {
        name.removeprefix("ijbc_").partition(".")[0].replace("1N_", ""): "\ufeff" + text.replace("\n", "\r\n\r\n", 1)
        for name, text in {**FILES, **SEARCH}.items()
    }
    odd = read_template_lists(release(tmp_path / "b", **mixed), "ijbc")
    assert odd.faces.names == plain.faces.names == ("1.png", "2.png", "3.png", "4.png")
    np.testing.assert_array_equal(odd.faces.landmarks, plain.faces.landmarks)
    assert plain.pairs is not None
    assert odd.pairs is not None
    assert odd.pairs.first.tolist() == plain.pairs.first.tolist() == [1, 1, 2]
    assert odd.pairs.same.tolist() == [True, False, False]
    assert [g.subjects.tolist() for g in odd.galleries] == [[7], [8]]
    assert (odd.counts, odd.notes) == (plain.counts, plain.notes) == ({}, ())


def test_names_join_the_lists_and_what_one_lacks_is_counted(tmp_path) -> None:
    points = f"4.png {POINTS} 0.6\n9.png {POINTS} 0.1\n1.png {POINTS} 0.9\n3.png {POINTS} 0.7\n"
    lists = read_template_lists(release(tmp_path / "a", name_5pts_score=points), "ijbc")
    assert lists.faces.detector_scores[[0, 2, 3]].tolist() == [0.9, 0.7, 0.6]
    assert lists.faces.unusable == {1: "no line in ijbc_name_5pts_score.txt"}
    assert lists.counts == {"landmark_lines_without_template": 1, "faces_without_landmark_line": 1}
    with pytest.raises(
        UserError, match=r"1 of 4 faces cannot be used, more than the limit of 0.01; the first is 2.png"
    ):
        evaluate_templates(Means(), lists, tmp_path / "cache")


def test_broken_faces_are_counted_and_named(tmp_path) -> None:
    points = (
        f"1.png {POINTS} 0.9\n2.png nan{POINTS[2:]} 0.8\n3.png {POINTS} 0.7\n4.png {POINTS} -1\n5.png {POINTS} 0.5\n"
    )
    far_off = " ".join(str(float(word) + 500) for word in POINTS.split())
    points += f"6.png {far_off} 0.5\n../7.png {POINTS} 0.5\n8.png {'9 ' * 10}0.5\n"
    tids = "1.png 1 10\n2.png 1 10\n3.png 2 11\n4.png 3 12\n5.png 3 13\n6.png 3 14\n../7.png 3 15\n8.png 3 16\n3.png 2 11\n"
    root = release(tmp_path / "a", name_5pts_score=points, face_tid_mid=tids, gallery_G1=None)
    Image.new("RGB", (112, 112), (9, 80, 120)).save(root / "loose_crop" / "6.png")
    lists = read_template_lists(root, "ijbc")
    assert lists.counts == {
        "repeated_face_lines": 1,
        "faces_with_broken_landmarks": 2,
        "faces_with_broken_detector_score": 1,
    }
    with pytest.raises(UserError, match="1:1 metrics need both kinds"):
        evaluate_templates(Means(), lists, tmp_path / "cache", broken_limit=1.0)
    (root / "meta" / "ijbc_template_pair_label.txt").write_text("1 2 1\n2 1 0\n1 3 0\n4 1 1\n2 2 1\n")
    (found,) = evaluate_templates(Means(), read_template_lists(root, "ijbc"), tmp_path / "cache", broken_limit=1.0)
    reasons = {name: reason for _, name, reason in found.broken}
    assert reasons["2.png"] == "landmarks are not finite or lie on one point" == reasons["8.png"]
    assert reasons["4.png"] == "detector score is not a finite number from 0 on"
    assert reasons["5.png"] == "cannot be read (No such file or directory)"
    assert reasons["6.png"] == "landmarks around (556, 571) are not in its 112 x 112 pixels"
    assert reasons["../7.png"] == "its name leads out of loose_crop"
    figures = found.figures()
    assert (figures["templates"], figures["templates_without_face"], figures["broken"]) == (2, 1, 6)
    one = figures["verification"]
    assert (one["pairs"], one["skipped_genuine_pairs"], one["skipped_impostor_pairs"]) == (2, 1, 1)
    assert figures["list_faults"]["pairs_of_a_template_with_itself"] == 1
    assert any("ijbc_1N_gallery_G1.csv missing" in note for note in found.notes)
    assert figures["search"] is None


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        (
            {"name_5pts_score": f"1.png {POINTS}\n"},
            r"score.txt: line 1: '1.png 38 .*': a line is name, x y of five landmarks",
        ),
        ({"name_5pts_score": ""}, "ijbc_name_5pts_score.txt is empty"),
        (
            {"name_5pts_score": f"1.png {POINTS} 1\n1.png {POINTS} 2\n"},
            "'1.png' is listed twice with different numbers",
        ),
        (
            {"face_tid_mid": "1.png 1 10\n2.png one 10\n"},
            r"tid_mid.txt: line 2: '2.png one 10': a line is name, template, media",
        ),
        ({"face_tid_mid": None}, "list cannot be read"),
        ({"template_pair_label": "1 2 1\n1 2\n"}, r"label.txt: line 2: '1 2': a line is template, template, 1 or 0"),
        ({"template_pair_label": "1 2 1\n\n1 3 2\n"}, "line 3: '1 3 2'"),
        ({"template_pair_label": "1 2 1\n-1 3 0\n"}, "line 2: '-1 3 0'"),
        ({"template_pair_label": "1 2 1\n+1 3 0\n"}, r"line 2: '\+1 3 0'"),
        ({"template_pair_label": f"1 2 1\n{10**18} 3 0\n"}, "line 2: '1000000000000000000 3 0'"),
        ({"template_pair_label": "1 2 1 1\n3 0\n"}, "line 1: '1 2 1 1'"),
        ({"gallery_G1": "t,s\n1,7\n1,8\n"}, "line 3: template 1 shows subject 8, further up 7"),
        ({"gallery_G1": "t,s\n1,x\n"}, "line 2: '1,x': a line is template,subject"),
        ({"probe_mixed": "t,s\n"}, "has no templates"),
        ({"template_pair_label": None, "probe_mixed": None}, "nothing to evaluate"),
    ],
)
def test_malformed_lists_are_refused(tmp_path, changed, text) -> None:
    with pytest.raises(UserError, match=text):
        read_template_lists(release(tmp_path / "a", **changed), "ijbc")


def test_no_folder_and_the_folder_above(tmp_path) -> None:
    with pytest.raises(UserError, match="is not a folder: ijbc needs FOLDER with loose_crop and meta"):
        read_template_lists(tmp_path, "ijbc")
    release(tmp_path / "IJBC")
    assert len(read_template_lists(tmp_path, "ijbc").faces) == 4


@pytest.mark.parametrize(("value", "what"), [(np.nan, "NaN or infinity"), (0.0, "length 0")])
def test_embeddings_without_direction_are_refused(tmp_path, value, what) -> None:
    vectors = np.ones((5, 4), dtype=np.float32)
    vectors[3] = value
    with pytest.raises(UserError, match=rf"embedding of face 3 \(template 8\) has {what}"):
        pool_templates(vectors, [9, 9, 8, 8, 9], [1, 1, 1, 1, 1])
    assert pool_templates(vectors, [9, 9, 8, 8, 9], [1] * 5, usable=[True, True, True, False, True]).faces.tolist() == [
        1,
        3,
    ]
    model = Means()
    with torch.no_grad():
        model.scale.fill_(value)
    with pytest.raises(UserError, match=rf"embedding of 1.png has {what}: the model has diverged"):
        evaluate_templates(model, read_template_lists(release(tmp_path / "a"), "ijbc"), tmp_path / "cache")


def test_templates_that_cancel_out_have_no_face() -> None:
    found = pool_templates(np.array([[1.0, 0], [-1, 0], [0, 1], [1, 1]]), [1, 1, 2, 3], [1, 1, 1, 1])
    assert (found.ids.tolist(), found.empty.tolist()) == ([2, 3], [1])
    pairs = TemplatePairs(np.array([1, 2, 2]), np.array([2, 3, 3]), np.array([False, True, False]))
    assert verify_templates(found, pairs, (1.0,)).skipped_impostor_pairs == 1


def test_a_model_of_another_embedding_size_is_refused(tmp_path) -> None:
    model = Means()
    model.embedding_size = 10
    with pytest.raises(UserError, match=r"the model gave embeddings of \(4, 12\) and \(4, 12\), 10 numbers"):
        evaluate_templates(model, read_template_lists(release(tmp_path / "a"), "ijbc"), tmp_path / "cache")


def batches(start: int, stop_at: int = 100):
    for row in range(start, 10, 2):
        if row >= stop_at:
            raise KeyboardInterrupt
        yield torch.full((2, 3), float(row)), torch.full((2, 3), -float(row)), {row: "why"} if row == 4 else {}, (row,)


def test_an_interrupted_entry_is_continued(tmp_path) -> None:
    key, asked = CacheKey("model"), []

    def embed(start: int):
        asked.append(start)
        return batches(start, 6 if len(asked) == 1 else 100)

    with pytest.raises(KeyboardInterrupt):
        cached_embeddings(tmp_path, key, 10, 3, embed)
    found = cached_embeddings(tmp_path, key, 10, 3, embed)
    again = cached_embeddings(tmp_path, key, 10, 3, embed)
    assert (asked, found.reused, again.reused) == ([0, 6], 6, 10)
    assert found.image[:, 0].tolist() == [0, 0, 2, 2, 4, 4, 6, 6, 8, 8]
    assert again.mirror[:, 1].tolist() == (-found.image[:, 0]).tolist()
    assert (again.broken, again.remarked) == ({4: "why"}, (0, 2, 4, 6, 8))


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="places are taken on the disk where the system can")
def test_a_full_disk_is_said_before_anything_is_embedded(tmp_path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.posix_fallocate", full)
        with pytest.raises(
            UserError, match=r"image.npy cannot be written: No space left on device; 0\.0 MiB are needed"
        ):
            cached_embeddings(tmp_path, CacheKey("model"), 10, 3, lambda _: pytest.fail("embedded"))
    assert cached_embeddings(tmp_path, CacheKey("model"), 10, 3, batches).reused == 0


def test_damaged_entries_are_named(tmp_path) -> None:
    key = CacheKey("model")
    cached_embeddings(tmp_path, key, 10, 3, batches)
    with pytest.raises(
        UserError, match=r"damaged embeddings \(image.npy is float32 \(10, 3\), float32 \(10, 4\) expected\)"
    ):
        cached_embeddings(tmp_path, key, 10, 4, batches)
    (tmp_path / key.digest / "mirror.npy").write_bytes(b"x")
    with pytest.raises(UserError, match=r"mirror.npy: .*delete that folder"):
        cached_embeddings(tmp_path, key, 10, 3, batches)
    with pytest.raises(UserError, match="the list ended early"):
        cached_embeddings(tmp_path, CacheKey("other"), 12, 3, batches)


def test_two_writers_do_not_mix(tmp_path) -> None:
    key = CacheKey("model")

    def embed(start: int):
        with pytest.raises(UserError, match="another process is embedding this list with this model"):
            cached_embeddings(tmp_path, key, 10, 3, batches)
        return batches(start)

    assert len(cached_embeddings(tmp_path, key, 10, 3, embed).image) == 10


def test_a_model_is_known_by_its_weights() -> None:
    one, other = Means(), Means()
    assert model_digest(one) == model_digest(other)
    with torch.no_grad():
        other.scale.add_(1e-6)
    assert model_digest(one) != model_digest(other)
    with pytest.raises(UserError, match="Identity has no parameters"):
        model_digest(nn.Identity())
