"""How well `attfc align` aligns: against another detector's landmarks, and in a closed loop where the truth is known.

1. Photos with landmarks of another detector (landmarks.tsv: file, confidence, faces, five x, y): the share that is aligned, and the mean distance of
   the five points as a share of the distance between the eyes. It measures agreement, not truth.
2. Closed loop: an aligned face is pasted into a larger picture at a known turn (within 20 degrees), scale (0.7 to 3) and place, and aligned back. The
   cosine between the embeddings of the given and of the regained face says what the detector costs a model. The same pasting warped back by the
   true landmarks is the ceiling: what resampling alone costs. The surroundings are grey noise.
   Each face is pasted twice: the cosine between its two regained faces says what is the detector's own doing, for the given face was aligned by a
   detector that erred too.
3. Processor seconds per photo on one core, for photos of several sizes: decoding, finding, warping.

People whose name has an even CRC-32 were used to choose the squares of MTCNN's second look: the loop takes the others. The interval of the median
is a percentile bootstrap over faces. No picture and no name is written.

    python benchmarks/alignment.py --photos PHOTOS --faces VAL --model RUN [--detector FILE.onnx ...]
"""

import argparse
import contextlib
import statistics
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
from common import write_result
from PIL import Image

import attfc
from attfc.photos.alignment import ARCFACE_TEMPLATE, warp_face
from attfc.photos.detector import Detector
from attfc.photos.faces import NoFaceError, align_faces
from attfc.photos.opening import open_detector
from attfc.photos.reading import read_photo

SIDE = 560  # of the larger picture: a face of scale 3, turned, leaves some room


def read_reference(photos: Path) -> list[tuple[Path, np.ndarray]]:
    """(path, (5, 2) landmarks) of each line of landmarks.tsv."""
    lines = (photos / "landmarks.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    return [(photos / name, np.array(points, float).reshape(5, 2)) for name, _, _, *points in rows]


def agreement(detector: Detector, reference: list[tuple[Path, np.ndarray]]) -> dict[str, float]:
    """Errors of the aligned face of each photo."""
    errors, aligned = [], 0
    for path, expected in reference:
        found = detector(read_photo(path))
        if not len(found):
            continue
        aligned += 1
        distances = np.linalg.norm(found.landmarks - expected, axis=2).mean(axis=1)
        errors.append(distances.min() / np.linalg.norm(expected[1] - expected[0]))
    return {
        "photos": len(reference),
        "aligned": aligned,
        "error_median": float(np.median(errors)),
        "error_p95": float(np.percentile(errors, 95)),
        "error_median_interval": interval_of_median(np.array(errors)),
    }


def seconds_per_photo(detector: Detector, photos: list[Path]) -> dict[str, float]:
    """Processor seconds from a JPEG file to its aligned face, by the side of the square photo in pixels."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "photo.jpg"
        for side in (250, 1000, 4000):
            seconds = []
            for path in photos:
                with Image.open(path) as image:
                    image.convert("RGB").resize((side, side)).save(file, quality=92)
                start = time.process_time()
                with contextlib.suppress(NoFaceError):
                    align_faces(read_photo(file), detector)
                seconds.append(time.process_time() - start)
            found[str(side)] = statistics.median(seconds)
    return found


def interval_of_median(values: np.ndarray, resamples: int = 2000) -> list[float]:
    """95 % percentile bootstrap."""
    draws = np.random.default_rng(0).integers(0, len(values), (resamples, len(values)))
    return np.percentile(np.median(values[draws], axis=1), [2.5, 97.5]).tolist()


def pasted(face: Image.Image, rng: np.random.Generator, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Return a larger picture with the face in it, and where the template's points lie there."""
    turn = np.radians(rng.uniform(-20, 20))
    by = scale * complex(np.cos(turn), np.sin(turn))
    center = complex(SIDE / 2, SIDE / 2) + complex(*rng.uniform(-60, 60, 2))
    to = center - by * complex(55.5, 55.5)
    # Pillow's matrix takes a place in the picture to one in the source, both counted from the edge of the first pixel.
    back = 1 / by
    shift = -back * (to + complex(0.5, 0.5)) + complex(0.5, 0.5)
    matrix = tuple(4 * value for value in (back.real, -back.imag, shift.real, back.imag, back.real, shift.imag))
    size = (SIDE, SIDE)
    large = face.resize((448, 448), Image.Resampling.BICUBIC)  # four times as large, so that enlarging is smooth
    inside = Image.new("L", large.size, 255).transform(size, Image.Transform.AFFINE, matrix)
    picture = Image.fromarray(rng.integers(96, 160, (SIDE, SIDE, 3), dtype=np.uint8))
    picture.paste(large.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR), mask=inside)
    points = by * (ARCFACE_TEMPLATE[:, 0] + 1j * ARCFACE_TEMPLATE[:, 1]) + to
    return np.asarray(picture), np.column_stack([points.real, points.imag])


def closed_loop(detector: Detector, model: attfc.FaceModel, faces: list[Path], seed: int) -> dict[str, object]:
    """Cosines between given and regained faces."""
    rng = np.random.default_rng(seed)
    given, regained, again, ceiling, missed, errors = [], [], [], [], 0, []
    for path in faces:
        with Image.open(path) as file:
            face = file.convert("RGB")
        scales = np.exp(rng.uniform(np.log(0.7), np.log(3), 2))
        (picture, truth), (other, _) = (pasted(face, rng, float(scale)) for scale in scales)
        try:
            (found,), (second,) = (align_faces(each, detector) for each in (picture, other))
        except NoFaceError:
            missed += 1
            continue
        given.append(np.asarray(face))
        regained.append(found.pixels)
        again.append(second.pixels)
        ceiling.append(warp_face(picture, truth, antialias=True))
        errors.append(np.linalg.norm(found.landmarks - truth, axis=1).mean() / np.linalg.norm(truth[1] - truth[0]))
    vectors = [model.embed(np.stack(each)) for each in (given, regained, ceiling, again)]
    cosines, best = (np.sum(vectors[0] * other, axis=1) for other in vectors[1:3])
    repeated = np.sum(vectors[1] * vectors[3], axis=1)
    return {
        "faces": len(faces),
        "missed": missed,
        "cosine_median": float(np.median(cosines)),
        "cosine_median_interval": interval_of_median(cosines),
        "cosine_p5": float(np.percentile(cosines, 5)),
        "repeated_median": float(np.median(repeated)),
        "repeated_median_interval": interval_of_median(repeated),
        "repeated_p5": float(np.percentile(repeated, 5)),
        "ceiling_median": float(np.median(best)),
        "ceiling_p5": float(np.percentile(best, 5)),
        "landmark_error_median": float(np.median(errors)),
    }


def main() -> None:
    """Measure every detector, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--faces", type=Path, required=True, help="folder of aligned faces, a folder per person")
    parser.add_argument("--model", type=Path, required=True, help="a run that did not train on these people")
    parser.add_argument("--detector", type=Path, action="append", default=[], help="another ONNX file; repeatable")
    parser.add_argument("--count", type=int, default=300, help="faces of the closed loop")
    parser.add_argument("--every", type=int, default=1, help="take every so many-th photo and face for the other files")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    reference, model = read_reference(options.photos), attfc.load(options.model, device="cpu")
    every = [path for path in sorted(options.faces.glob("*/*.jpg")) if zlib.crc32(path.parent.name.encode()) % 2]
    chosen = np.random.default_rng(options.seed).choice(len(every), min(options.count, len(every)), replace=False)
    faces = [every[number] for number in chosen]
    results = []
    for path in (None, *options.detector):
        detector = open_detector(path)
        found = {
            "detector": detector.facts.to_dict(),
            "photos": agreement(detector, reference[:: 1 if path is None else options.every]),
            "seconds_per_photo": seconds_per_photo(detector, [path for path, _ in reference[:10]]),
            "closed_loop": closed_loop(detector, model, faces[:: 1 if path is None else options.every], options.seed),
        }
        print(found)
        results.append(found)
    config = {
        "scale": [0.7, 3.0],
        "turn_degrees": [-20, 20],
        "seed": options.seed,
        "model": {"network": model.facts.network, "image_size": model.facts.image_size},
    }
    print(write_result("alignment", config, results))


if __name__ == "__main__":
    main()
