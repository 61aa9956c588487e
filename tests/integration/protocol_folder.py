"""Generated protocol data with everything that goes wrong in real lists."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from attfc.data import SyntheticFaces
from attfc.data.stores.verification_sets import write_verification_set
from attfc.photos.alignment import ARCFACE_TEMPLATE


def write_bin(path: Path, pairs: int = 40, seed: int = 0, broken: int | None = None) -> tuple[list[bytes], np.ndarray]:
    """Pairs of rendered faces, half of one person; some images in several pairs; pair 1 stands twice (a tie)."""
    store = SyntheticFaces(20, 4, seed=seed)
    rng = np.random.default_rng(seed)
    same = np.arange(pairs) % 2 == 0
    encoded: list[bytes] = []
    for genuine in same:
        person = int(rng.integers(20))
        other = person if genuine else (person + int(rng.integers(1, 20))) % 20
        one = int(rng.integers(4))
        encoded += [store.read(4 * person + one)[0], store.read(4 * other + (one + 1) % 4)[0]]
    encoded[6:8], same[3] = encoded[2:4], same[1]
    if broken is not None:
        encoded[broken] = b"no image"
    write_verification_set(path, encoded, same)
    return encoded, same


def write_templates(root: Path, name: str = "ijbc", subjects: int = 12, templates: int = 60) -> dict[str, int]:
    """Write a folder of the released layout; return counts of what is wrong with it.

    Mixed line ends; one template of the very faces of another (ties); one without any face, in pairs and probes; one whose only image is missing; a
    line twice; a face without landmarks; an enrolled template in two lines.
    """
    crops, meta = root / "loose_crop", root / "meta"
    crops.mkdir(parents=True)
    meta.mkdir()
    store = SyntheticFaces(subjects, 8, seed=2)
    rng = np.random.default_rng(3)
    subject_of = {t: t - 1 if t <= subjects else int(rng.integers(subjects)) for t in range(1, templates + 1)}
    points: list[str] = []
    faces: list[str] = []
    files: dict[int, list[str]] = {}
    for template, subject in subject_of.items():
        for k in range(int(rng.integers(1, 4))):
            file = f"{len(points) + 1}.png"
            pixels = store.images([8 * subject + int(rng.integers(8))], 112).pixels[0]
            crop = np.zeros((140, 140, 3), np.uint8)
            crop[12:124, 9:121] = pixels
            stream = io.BytesIO()
            Image.fromarray(crop).save(stream, "PNG")
            (crops / file).write_bytes(stream.getvalue())
            at = ARCFACE_TEMPLATE + np.array([9, 12]) + rng.normal(0, 0.7, (5, 2))
            points.append(f"{file} {' '.join(f'{value:.3f}' for value in at.ravel())} {rng.uniform(0.5, 1):.3f}")
            faces.append(f"{file} {template} {k // 2}")
            files.setdefault(template, []).append(file)
    twin, ghost, lost = templates + 1, templates + 2, templates
    subject_of[twin], subject_of[ghost] = 3, 4
    faces += [f"{file} {twin} {k // 2}" for k, file in enumerate(files[20])]
    for file in files[lost]:
        (crops / file).unlink()
    faces.append(faces[0])
    faces.append("unknown.png 5 9")
    probes = [t for t in subject_of if t > subjects]
    pairs = [(a, b, int(subject_of[a] == subject_of[b])) for a in range(1, subjects + 1) for b in probes]

    def mixed(lines: list[str]) -> bytes:
        return "".join(line + ("\r\n" if k % 3 else "\n") for k, line in enumerate(lines)).encode()

    (meta / f"{name}_name_5pts_score.txt").write_bytes(mixed(points))
    (meta / f"{name}_face_tid_mid.txt").write_bytes(mixed(faces))
    (meta / f"{name}_template_pair_label.txt").write_bytes(mixed([f"{a} {b} {same}" for a, b, same in pairs]))
    half = subjects // 2
    lists = {
        "gallery_G1": [1, *range(1, half + 1)],
        "gallery_G2": [*range(half + 1, subjects + 1)],
        "probe_mixed": probes,
    }
    for kind, members in lists.items():
        rows = [f"{t},{subject_of[t] + 100},img/{t}.png" for t in members]
        (meta / f"{name}_1N_{kind}.csv").write_bytes(mixed(["TEMPLATE_ID,SUBJECT_ID,FILENAME", *rows]))
    return {
        "faces": len(faces) - 1,
        "broken": len(files[lost]) + 1,
        "pairs": len(pairs),
        "skipped": 2 * subjects,
        "probes": len(probes),
        "subjects": subjects,
    }
