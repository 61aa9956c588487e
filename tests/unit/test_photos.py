"""Photos -> aligned faces: measures, policies, listing and manifest, with a detector that is told what to find."""

import os
from pathlib import Path

import numpy as np
import pytest
from told_detector import THREE, Told

from attfc.photos.alignment import ARCFACE_TEMPLATE, warp_face
from attfc.photos.detector import suppress
from attfc.photos.faces import NoFaceError, align_faces, head_turn, sharpness
from attfc.photos.manifest import Manifest, Row
from attfc.photos.reading import list_photos

PHOTO = np.zeros((320, 340, 3), np.uint8)


@pytest.mark.parametrize(("policy", "sizes"), [("largest", [168]), ("central", [112]), ("all", [56, 168, 112])])
def test_a_policy_takes_its_faces(policy, sizes) -> None:
    faces = align_faces(PHOTO, THREE, policy)
    assert [round(face.size) for face in faces] == sizes
    assert {face.faces for face in faces} == {3}


def test_the_face_nearest_to_a_box_is_taken_if_it_overlaps_it() -> None:
    (face,) = align_faces(PHOTO, THREE, "box", (0, 0, 50, 50))
    assert face.box.tolist() == [10, 10, 66, 66]
    with pytest.raises(NoFaceError, match=r"^no face was found at the box, 3 elsewhere$"):
        align_faces(PHOTO, THREE, "box", (300, 0, 340, 30))


def test_a_photo_without_a_face_and_a_face_mostly_beyond_the_border_are_refused() -> None:
    with pytest.raises(NoFaceError, match=r"^no face was found$"):
        align_faces(PHOTO, Told())
    with pytest.raises(NoFaceError, match=r"^the face is cut by the border: 62% of it lies beyond the photo$"):
        align_faces(PHOTO, Told((1, -70, 10)))
    (face,) = align_faces(PHOTO, Told((1, -28, 10)))
    assert face.outside == pytest.approx(0.25, abs=0.02)


def test_the_aligned_face_is_what_lies_under_the_landmarks() -> None:
    photo = np.zeros((300, 300, 3), np.uint8)
    face = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    photo[40:152, 30:142] = face
    (aligned,) = align_faces(photo, Told((1, 30, 40)))
    assert (aligned.pixels == face).all()


@pytest.mark.parametrize("scale", [2.1, 3.4, 9.0])
def test_a_large_face_is_averaged_and_stays_where_it_is(scale) -> None:
    y, x = np.mgrid[: int(160 * scale), : int(160 * scale)]
    ramp = np.stack([x, y, x + y], -1) / scale * [1.5, 1.5, 0.75]
    landmarks = scale * (ARCFACE_TEMPLATE + 20)
    plain, mean = (warp_face(ramp.astype(np.uint8), landmarks, antialias=each).astype(int) for each in (False, True))
    assert abs(plain - mean).max() <= 1
    noise = np.random.default_rng(0).integers(0, 256, (*x.shape, 3), dtype=np.uint8)
    plain, mean = (warp_face(noise, landmarks, antialias=each).std() for each in (False, True))
    assert mean < 0.7 * plain


@pytest.mark.parametrize(("yaw", "pitch"), [(0, 0), (30, 0), (0, -20), (-25, 15)])
@pytest.mark.parametrize("roll", [0, 35])
def test_head_turn_finds_the_turn_of_a_rigid_head(yaw, pitch, roll) -> None:
    def turn(degrees: float, first: int, second: int) -> np.ndarray:
        matrix, angle = np.eye(3), np.radians(degrees)
        matrix[[first, second], [first, second]] = np.cos(angle)
        matrix[first, second], matrix[second, first] = np.sin(angle), -np.sin(angle)
        return matrix

    # x right, y down, z towards the viewer: ahead of the head is (0, 0, 1), which yaw turns to the right and pitch upwards.
    camera = turn(-roll, 0, 1) @ turn(yaw, 0, 2) @ turn(-pitch, 1, 2)
    head = np.column_stack([ARCFACE_TEMPLATE, [0, 0, 15, 2, 2]])
    seen = 2 * (head @ camera.T)[:, :2] + 50
    found = head_turn(seen)
    # The turn in the plane is estimated from the five points, so a little of it stays in the other two.
    assert found == pytest.approx((yaw, pitch), abs=0.5 if yaw == 0 or pitch == 0 else 4)
    assert head_turn(3 * seen - 9) == pytest.approx(found)


def test_sharpness_falls_with_blur() -> None:
    face = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    assert sharpness(face) > 100 * sharpness(np.full_like(face, 7)) == 0


def test_suppression_against_pairs() -> None:
    rng = np.random.default_rng(1)
    corners = rng.uniform(0, 50, (200, 2))
    boxes, scores = np.concatenate([corners, corners + rng.uniform(5, 25, (200, 2))], axis=1), rng.uniform(size=200)

    def overlap(one: np.ndarray, two: np.ndarray, of_smaller: bool) -> float:
        sides = np.minimum(one[2:], two[2:]) - np.maximum(one[:2], two[:2])
        shared = max(sides[0], 0) * max(sides[1], 0)
        areas = [float(np.prod(box[2:] - box[:2])) for box in (one, two)]
        return shared / (min(areas) if of_smaller else sum(areas) - shared)

    for of_smaller in (False, True):
        kept: list[int] = []
        for row in np.argsort(-scores).tolist():
            if all(overlap(boxes[row], boxes[other], of_smaller) <= 0.4 for other in kept):
                kept.append(row)
        assert suppress(boxes, scores, 0.4, of_smaller=of_smaller) == kept


def test_photos_are_listed_in_order_and_links_out_are_named(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    (root / "b").mkdir(parents=True)
    (tmp_path / "secret.jpg").touch()
    for name in ("a.jpg", "b/c.PNG", "b/notes.txt", ".hidden.jpg", "z\n<script>.heic"):
        (root / name).touch()
    (root / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "up").symlink_to(tmp_path)
    (root / "round").symlink_to(root)
    for link in ("itself.jpg", "itself"):
        (root / link).symlink_to(root / link)
    (root / "twin.jpg").symlink_to(root / "a.jpg")
    assert [(photo.name, photo.fault) for photo in list_photos(root)] == [
        ("a.jpg", ""),
        ("itself.jpg", "a link to a folder, or to nothing, is not followed"),
        ("out.jpg", "a link that leads out of the folder is not followed"),
        ("round", "a link to a folder, or to nothing, is not followed"),
        ("twin.jpg", ""),
        ("up", "a link that leads out of the folder is not followed"),
        ("z\n<script>.heic", ""),
        ("b/c.PNG", ""),
    ]


NAMES = ["a.jpg", "tab\there\nand\\n.jpg", os.fsdecode(b"caf\xe9.jpg"), "<script>alert(1)</script>.jpg"]


def test_a_manifest_is_read_back_and_goes_on_behind_the_last_whole_line(tmp_path: Path) -> None:
    rows = {name: [Row(name, f"{name}.{k}", faces=2, confidence=0.5, size=float(k)) for k in (1, 2)] for name in NAMES}
    with Manifest(tmp_path) as manifest:
        for each in rows.values():
            manifest.add(each)
    part = tmp_path / "manifest.part.tsv"
    with part.open("ab") as file:
        file.write(b"d.jpg\td.jp")
    with Manifest(tmp_path) as manifest:
        assert list(manifest.rows) == NAMES
        manifest.add([Row("e.jpg", reason="no face was found")])
        manifest.finish(["e.jpg", *NAMES[:3]])
    assert not part.exists()
    with Manifest(tmp_path) as manifest:
        assert list(manifest.rows) == ["e.jpg", *NAMES]
        assert [row.photo for row in manifest] == ["e.jpg", *(name for name in NAMES for _ in range(2))]
        assert repr(manifest.rows[NAMES[1]]) == repr(rows[NAMES[1]])


def test_a_damaged_manifest_and_a_second_process_are_refused(tmp_path: Path) -> None:
    with Manifest(tmp_path), pytest.raises(ValueError, match="another process is aligning photos into this folder"):
        Manifest(tmp_path)
    (tmp_path / "manifest.tsv").write_text("photo\taligned\na.jpg\n")
    with pytest.raises(
        ValueError, match=r"manifest.tsv:1 is not a line of a manifest: delete .* to align the photos again$"
    ):
        Manifest(tmp_path)
