"""Detectors as ONNX files: small graphs that give, for every photo, what each published format would give for one known face."""

from pathlib import Path

import numpy as np
import pytest

from attfc.errors import UserError
from attfc.photos.alignment import ARCFACE_TEMPLATE
from attfc.photos.detector import Faces
from attfc.photos.opening import open_detector

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SIDE = 128
BOX = np.array([24.0, 16.0, 80.0, 96.0])  # in pixels of the network's input
POINTS = ARCFACE_TEMPLATE * 0.5 + [24, 30]
CENTER, SIDES = (BOX[:2] + BOX[2:]) / 2, BOX[2:] - BOX[:2]
STRIDES = (8, 16, 32)


def graph(
    path: Path, outputs: dict[str, np.ndarray], size: tuple[object, object] = (SIDE, SIDE), colours: int = 3
) -> Path:
    """Write a graph that takes a photo and gives constants."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    photo = helper.make_tensor_value_info("photo", kind, [1, colours, *size])
    nodes = [
        helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(value.astype(np.float32)))
        for name, value in outputs.items()
    ]
    given = [helper.make_tensor_value_info(name, kind, value.shape) for name, value in outputs.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "constants", [photo], given), opset_imports=[helper.make_opsetid("", 13)], ir_version=8
    )
    onnx.save(model, path)
    return path


def empty(per_cell: int, last: int, fill: float = 0.0) -> list[np.ndarray]:
    return [np.full((per_cell * (SIDE // stride) ** 2, last), fill) for stride in STRIDES]


def place(column: int, row: int, stride: int, per_cell: int = 1) -> int:
    """Return where the outputs of a cell begin."""
    return per_cell * (row * (SIDE // stride) + column)


def scrfd(score: float = 0.9) -> dict[str, np.ndarray]:
    scores, boxes, points = empty(2, 1), empty(2, 4), empty(2, 10)
    for column, row, sure in ((3, 4, score), (3, 3, score - 0.1)):  # the second overlaps the first and must go
        cell, at = np.array([column, row]) * 16.0, place(column, row, 16, 2) + 1  # the second anchor
        scores[1][at] = sure
        boxes[1][at] = np.concatenate([cell - BOX[:2], BOX[2:] - cell]) / 16
        points[1][at] = ((POINTS - cell) / 16).ravel()
    return {f"out{number}": value for number, value in enumerate([*scores, *boxes, *points])}


def yunet() -> dict[str, np.ndarray]:
    classes, objects, boxes, points = empty(1, 1), empty(1, 1), empty(1, 4), empty(1, 10)
    at, cell = place(6, 7, 8), np.array([6, 7])
    classes[0][at], objects[0][at] = 0.9, 0.9
    boxes[0][at] = [*(CENTER / 8 - cell), *np.log(SIDES / 8)]
    points[0][at] = (POINTS / 8 - cell).ravel()
    named = zip(("cls", "obj", "bbox", "kps"), (classes, objects, boxes, points), strict=True)
    return {
        f"{name}_{stride}": value[None] for name, values in named for stride, value in zip(STRIDES, values, strict=True)
    }


def retinaface() -> dict[str, np.ndarray]:
    count = 2 * sum((SIDE // stride) ** 2 for stride in STRIDES)
    boxes, chances, points = np.zeros((1, count, 4)), np.zeros((1, count, 2)), np.zeros((1, count, 10))
    at = 2 * (SIDE // 8) ** 2 + place(3, 3, 16, 2)
    anchor, side = np.array([3.5, 3.5]) * 16, 64.0
    boxes[0, at] = [*((CENTER - anchor) / (0.1 * side)), *(np.log(SIDES / side) / 0.2)]
    chances[0, at] = [0.1, 0.9]
    points[0, at] = ((POINTS - anchor) / (0.1 * side)).ravel()
    return {"bbox": boxes, "confidence": chances, "landmark": points}


def centerface() -> dict[str, np.ndarray]:
    cells = SIDE // 4
    maps = {name: np.zeros((1, count, cells, cells)) for name, count in (("a", 1), ("b", 2), ("c", 2), ("d", 10))}
    column, row = 13, 14
    maps["a"][0, 0, row, column] = 0.9
    maps["b"][0, :, row, column] = np.log(SIDES[::-1] / 4)
    maps["c"][0, :, row, column] = (CENTER / 4 - 0.5 - [column, row])[::-1]
    maps["d"][0, :, row, column] = ((POINTS - BOX[:2]) / SIDES)[:, ::-1].ravel()
    return maps


FORMATS = {"SCRFD": scrfd, "YuNet": yunet, "RetinaFace": retinaface, "CenterFace": centerface}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("scale", [1, 3])
def test_a_known_face_is_read_from_each_format(name: str, scale: int, tmp_path: Path) -> None:
    detector = open_detector(graph(tmp_path / "face.onnx", FORMATS[name]()))
    assert detector.facts.name == f"{name}, file face.onnx"
    assert len(detector.facts.digest) == 64
    found: Faces = detector(np.zeros((SIDE * scale, SIDE * scale, 3), np.uint8))
    assert found.scores == pytest.approx([0.9], abs=1e-5)
    assert found.boxes[0] == pytest.approx((BOX + 0.5) * scale - 0.5, abs=1e-3)
    assert found.landmarks[0] == pytest.approx((POINTS + 0.5) * scale - 0.5, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SCRFD", [(200 - 127.5) / 128, (100 - 127.5) / 128, (50 - 127.5) / 128]),
        ("YuNet", [50, 100, 200]),
        ("RetinaFace", [50 - 104, 100 - 117, 200 - 123]),
        ("CenterFace", [200, 100, 50]),
    ],
)
def test_pixels_go_in_as_each_format_wants_them(name: str, expected: list[float], tmp_path: Path) -> None:
    detector = open_detector(graph(tmp_path / "face.onnx", FORMATS[name]()))
    network, seen = detector._network, []

    class Recorder:
        def get_inputs(self) -> list[object]:
            return network.get_inputs()

        def run(self, names: None, given: dict[str, np.ndarray]) -> list[np.ndarray]:
            seen.append(given["photo"])
            return network.run(names, given)

    detector._network = Recorder()
    detector(np.full((60, 30, 3), [200, 100, 50], np.uint8))  # narrow: black fills the right half
    (photo,) = seen
    black = np.array(expected) - np.array([200, 100, 50] if name in ("SCRFD", "CenterFace") else [50, 100, 200]) / (
        128 if name == "SCRFD" else 1
    )
    assert photo.shape == (1, 3, SIDE, SIDE)
    assert photo[0, :, 10, 63] == pytest.approx(expected, abs=1e-5)
    assert photo[0, :, 10, 64] == pytest.approx(black, abs=1e-5)


def test_a_face_that_fills_the_input_is_found_at_half_the_size(tmp_path: Path) -> None:
    detector = open_detector(graph(tmp_path / "face.onnx", scrfd()))
    network, shares = detector._network, []

    class MissesLargeFaces:
        def get_inputs(self) -> list[object]:
            return network.get_inputs()

        def run(self, names: None, given: dict[str, np.ndarray]) -> list[np.ndarray]:
            shares.append(float((given["photo"] > 0).mean()))
            return [outputs * (shares[-1] < 0.5) for outputs in network.run(names, given)]

    detector._network = MissesLargeFaces()
    found = detector(np.full((SIDE, SIDE, 3), 200, np.uint8))
    assert shares == [1, 0.25]
    assert found.landmarks[0] == pytest.approx((POINTS + 0.5) * 2 - 0.5, abs=1e-3)


def test_files_that_are_no_such_detector_are_refused(tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"no graph")
    with pytest.raises(UserError, match="is not an ONNX file that onnxruntime opens"):
        open_detector(tmp_path / "no.onnx")
    with pytest.raises(UserError, match="cannot be read: No such file"):
        open_detector(tmp_path / "missing.onnx")
    six = {name: value for name, value in scrfd().items() if value.shape[-1] != 10}
    with pytest.raises(UserError, match=r"gives 6 outputs .* is expected \(a file without landmarks does not do\)$"):
        open_detector(graph(tmp_path / "six.onnx", six))
    with pytest.raises(UserError, match="takes no single photo of 3 colours"):
        open_detector(graph(tmp_path / "grey.onnx", scrfd(), colours=1))


def test_numbers_that_are_none_are_no_faces(tmp_path: Path) -> None:
    outputs = scrfd()
    outputs["out7"][...] = np.nan
    found = open_detector(graph(tmp_path / "face.onnx", outputs))(np.zeros((SIDE, SIDE, 3), np.uint8))
    assert len(found) == 0
    assert found.landmarks.shape == (0, 5, 2)
