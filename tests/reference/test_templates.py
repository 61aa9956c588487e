"""IJB protocols on a generated folder against an implementation that is slow and obvious: loops over templates, medias and pairs."""

import csv
import dataclasses
import itertools
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from sklearn.metrics import roc_auc_score, roc_curve

from attfc.errors import UserError
from attfc.evaluation import Embedder
from attfc.evaluation.protocols import template_pooling as templates_module
from attfc.evaluation.protocols import template_scores
from attfc.evaluation.protocols.template_lists import TemplatePairs, read_template_lists
from attfc.evaluation.protocols.template_pooling import TemplateMode, pool_templates
from attfc.evaluation.protocols.template_scores import TEMPLATE_FARS, score_template_pairs, verify_templates
from attfc.evaluation.protocols.templates import evaluate_templates
from attfc.photos.alignment import ARCFACE_TEMPLATE, warp_face

FARS = (1e-3, 1e-2, 1e-1)


class Colours(nn.Module):
    """16 numbers of the mean colours of a 4 x 4 raster, mixed by a fixed matrix: quick, and different for every face and its mirror image."""

    image_size, embedding_size = 112, 16

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.mix = nn.Linear(48, 16, bias=False)
        self.passes = 0
        with torch.no_grad():
            self.mix.weight.copy_(torch.randn(16, 48, generator=torch.Generator().manual_seed(seed)))

    def forward(self, images_BCSS: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        return self.mix(nn.functional.adaptive_avg_pool2d(images_BCSS, 4).flatten(1))


def write_folder(root: Path, name: str, seed: int, subjects: int = 60, templates: int = 240) -> dict:
    """Write a protocol folder: two galleries, probes, several faces a media and medias a template, equal templates, templates without faces."""
    rng = np.random.default_rng(seed)
    crops, meta = root / "loose_crop", root / "meta"
    crops.mkdir(parents=True)
    meta.mkdir()
    palette = rng.integers(40, 216, (subjects, 4, 4, 3))
    subject_of = {t: int(rng.integers(subjects)) for t in range(1, templates + 1)}
    subject_of.update(
        {t: t - 1 for t in range(1, subjects + 1)}
    )  # templates 1 ... subjects are enrolled, one a subject
    faces = []
    for template, subject in subject_of.items():
        for _ in range(rng.integers(1, 3)):
            media = int(rng.integers(1, 10_000))
            for _ in range(rng.choice([1, 1, 2, 4])):
                number = len(faces) + 1
                size = int(rng.integers(60, 90))
                small = np.clip(palette[subject] + rng.normal(0, 45, (4, 4, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC).save(crops / f"{number}.png")
                landmarks = ARCFACE_TEMPLATE * size / 130 + rng.normal(0, 1.5, (5, 2)) + size * 0.08
                faces.append(
                    [f"{number}.png", landmarks.round(3), round(float(rng.uniform(0.3, 1)), 3), template, media]
                )
    twin = {
        templates + 1: 1,
        templates + 2: 2,
    }  # two more templates of the very faces of templates 1 and 2: their scores tie
    for new, old in twin.items():
        subject_of[new] = int(rng.integers(subjects))
        faces += [[*face[:3], new, face[4]] for face in faces if face[3] == old]
    ghosts = (templates + 3, templates + 4)  # in the pairs, a gallery and the probes, without a face
    subject_of[ghosts[0]], subject_of[ghosts[1]] = 0, 1
    probes = [t for t in subject_of if t > subjects]
    pairs = [(a, b) for a in range(1, subjects + 1) for b in probes]
    pairs = [pairs[k] for k in rng.permutation(len(pairs))[:4000]]
    pairs += [(p, e) for p in probes for e in [subject_of[p] + 1] if (e, p) not in pairs]
    labels = [int(subject_of[a] == subject_of[b]) for a, b in pairs]
    with (
        (meta / f"{name}_name_5pts_score.txt").open("w") as points,
        (meta / f"{name}_face_tid_mid.txt").open("w") as tids,
    ):
        for file, landmarks, score, template, media in faces:
            points.write(f"{file} {' '.join(map(str, landmarks.ravel()))} {score}\n")
            tids.write(f"{file} {template} {media}\n")
    (meta / f"{name}_template_pair_label.txt").write_text(
        "".join(f"{a} {b} {same}\n" for (a, b), same in zip(pairs, labels, strict=True))
    )
    lists = {
        "gallery_G1": [*range(1, subjects // 2 + 1), ghosts[0]][:-1],
        "gallery_G2": [*range(subjects // 2 + 1, subjects + 1)],
        "probe_mixed": probes,
    }
    for list_name, members in lists.items():
        with (meta / f"{name}_1N_{list_name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["TEMPLATE_ID", "SUBJECT_ID", "FILENAME"])
            for template in members:
                for frame in range(1 + template % 2):  # NIST's lists have a line for every image
                    writer.writerow([template, subject_of[template] + 500, f"frames/{frame}.png"])
    return {
        "faces": faces,
        "pairs": pairs,
        "labels": labels,
        "subject_of": subject_of,
        "lists": lists,
        "ghosts": ghosts,
    }


def embed_one(model: nn.Module, crops: Path, face: list) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of a face and of its mirror image."""
    pixels = warp_face(np.asarray(Image.open(crops / face[0])), face[1]).astype(np.float32) / 127.5 - 1
    both = np.stack([pixels, pixels[:, ::-1]]).transpose(0, 3, 1, 2).copy()
    with torch.no_grad():
        image, mirror = model(torch.from_numpy(both)).double().numpy()
    return image, mirror


def slow_template(vectors: list[np.ndarray], scores: list[float], medias: list[int], mode: TemplateMode) -> np.ndarray:
    """The published order: norm, detector score, mean within each media, sum over medias, unit length."""
    weighted = []
    for vector, score in zip(vectors, scores, strict=True):
        one = vector if mode.norm else vector / np.linalg.norm(vector)
        weighted.append(one * score if mode.detector_score else one)
    total = np.zeros(len(vectors[0]))
    for media in sorted(set(medias)):
        total += np.mean([one for one, m in zip(weighted, medias, strict=True) if m == media], axis=0)
    return total / np.linalg.norm(total)


def grid(cosine: float) -> float:
    """Scores are defined to 2^-24, which makes equal templates tie; see exact_scores."""
    return round(cosine * 2**24) / 2**24


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> tuple[Path, dict]:
    root = tmp_path_factory.mktemp("release") / "IJBC"
    return root, write_folder(root, "ijbc", seed=1)


@pytest.fixture(scope="module")
def slow(folder) -> dict:
    """Every template of the folder in every mode, by loops."""
    root, content = folder
    model = Colours()
    both = {face[0]: embed_one(model, root / "loose_crop", face) for face in content["faces"]}
    found = {}
    for mode in TemplateMode.all():
        vectors = {}
        for template in dict.fromkeys(face[3] for face in content["faces"]):
            mine = [face for face in content["faces"] if face[3] == template]
            sums = [sum(both[f[0]]) if mode.flip else both[f[0]][0] for f in mine]
            vectors[template] = slow_template(sums, [f[2] for f in mine], [f[4] for f in mine], mode)
        found[str(mode)] = vectors
    return found


def slow_tar_at_far(genuine: list[float], impostors: list[float], far: float) -> float:
    """Try every score as the threshold; keep the best TAR of those within the rate."""
    genuine_G, impostors_I = np.array(genuine), np.array(impostors)
    best = 0.0
    for threshold in sorted({*genuine, *impostors}, reverse=True):
        if np.sum(impostors_I >= threshold) > far * len(impostors_I):
            break  # lower thresholds accept more
        best = max(best, float(np.mean(genuine_G >= threshold)))
    return best


def slow_search(gallery: dict[int, np.ndarray], probes: list[tuple[int, np.ndarray]]) -> dict:
    """Ranks of the mated probes, ties against the model, and TPIR at FPIR over the others; subjects are enrolled once."""
    ranks, mates, strangers = [], [], []
    for subject, probe in probes:
        scores = {other: grid(probe @ vector) for other, vector in gallery.items()}
        if subject in scores:
            mine = scores.pop(subject)
            ranks.append(1 + sum(score >= mine for score in scores.values()))
            mates.append(mine)
        else:
            strangers.append(max(scores.values()))
    found = {"rank": {str(k): sum(rank <= k for rank in ranks) / len(ranks) for k in (1, 5, 10)}, "tpir_at_fpir": {}}
    for fpir in (0.01, 0.1):
        best = None
        for threshold in sorted({*mates, *strangers, 2.0}):
            alarms = sum(score >= threshold for score in strangers)
            if alarms <= fpir * len(strangers) and fpir * len(strangers) >= 1:
                hits = sum(m >= threshold and r == 1 for m, r in zip(mates, ranks, strict=True))
                best = max(best or 0.0, hits / len(ranks))
        found["tpir_at_fpir"][str(fpir)] = best
    return found


@pytest.mark.parametrize("mode", ["N1D1F1", "N0D1F0", "N0D0F1"])
def test_whole_folder(folder, slow, mode, tmp_path_factory) -> None:
    root, content = folder
    cache = tmp_path_factory.getbasetemp() / "embeddings"
    lists = read_template_lists(root, "ijbc")
    (found,) = evaluate_templates(Embedder(Colours(), 100), lists, cache, [TemplateMode.parse(mode)], fars=FARS)
    vectors = slow[mode]
    scored = [
        (grid(vectors[a] @ vectors[b]), same)
        for (a, b), same in zip(content["pairs"], content["labels"], strict=True)
        if a in vectors and b in vectors
    ]
    figures = found.figures()
    one = figures["verification"]
    assert figures["faces"] == len(content["faces"])
    assert (figures["templates"], figures["templates_without_face"]) == (242, 0)
    assert one["skipped_genuine_pairs"] + one["skipped_impostor_pairs"] == len(content["pairs"]) - len(scored) > 0
    assert (
        "pairs were left out: they use one of 2 templates without a usable face (the first is 243)" in one["notes"][0]
    )

    scores, same = np.array([s for s, _ in scored]), np.array([bool(g) for _, g in scored])
    # The forward pass of a batch rounds otherwise than that of one image: scores agree to float32.
    assert found.verification is not None
    np.testing.assert_allclose(found.verification.scores, scores, atol=2e-6)
    assert len(np.unique(found.verification.scores)) < len(scores)  # the twins tie
    ours = found.verification.scores.astype(float)
    np.testing.assert_array_equal(found.verification.same, same)
    for far in FARS:
        assert one["tar_at_far"][f"{far:g}"] == slow_tar_at_far(ours[same].tolist(), ours[~same].tolist(), far)
        assert one["tar_at_far"][f"{far:g}"] == pytest.approx(
            slow_tar_at_far(scores[same].tolist(), scores[~same].tolist(), far), abs=1.5 / same.sum()
        )
    false_rate, true_rate, _ = roc_curve(same, ours)
    assert one["auc"] == pytest.approx(roc_auc_score(same, ours), abs=1e-12)
    for far in FARS:
        nearest = min(zip(np.abs(false_rate - far)[::-1], range(len(true_rate)), true_rate[::-1], strict=True))
        assert one["tar_at_nearest_far"][f"{far:g}"] == nearest[2]
    assert 0.2 < one["tar_at_far"]["0.01"] < 1  # else nothing would be told apart

    subjects = {t: s + 500 for t, s in content["subject_of"].items()}
    probes = [(subjects[t], vectors[t]) for t in content["lists"]["probe_mixed"] if t in vectors]
    search = figures["search"]
    assert search["probes_without_face"] == 2
    means: dict = {"rank": {}, "tpir_at_fpir": {}}
    for gallery in ("G1", "G2"):
        enrolled = {subjects[t]: vectors[t] for t in content["lists"][f"gallery_{gallery}"]}
        expected = slow_search(enrolled, probes)
        for kind, rates in expected.items():
            assert search["galleries"][gallery][kind] == pytest.approx(rates)
            for name, rate in rates.items():
                means[kind].setdefault(name, []).append(rate)
    for kind, rates in means.items():
        for name, values in rates.items():
            mean = None if None in values else sum(values) / 2
            assert search[kind][name] == (None if mean is None else pytest.approx(mean))
    assert 0.3 < search["rank"]["1"] < 1


def test_published_search_joins_the_galleries_and_counts_scores_not_probes(folder, slow, tmp_path_factory) -> None:
    """ijb_1n.py: all probes have mates; of the other scores of all probes the ceil(FPIR x probes) highest pass."""
    root, content = folder
    cache = tmp_path_factory.getbasetemp() / "embeddings"
    (found,) = evaluate_templates(Colours(), read_template_lists(root, "ijbc"), cache)
    assert found.search is not None
    joined = found.search.published
    assert joined is not None
    vectors, subjects = slow["N1D1F1"], content["subject_of"]
    enrolled = {subjects[t]: vectors[t] for g in ("G1", "G2") for t in content["lists"][f"gallery_{g}"]}
    hits = []
    for template in content["lists"]["probe_mixed"]:
        if template in vectors:
            scores = {subject: grid(vectors[template] @ vector) for subject, vector in enrolled.items()}
            mine = scores.pop(subjects[template])
            hits.append(1 + sum(score >= mine for score in scores.values()) <= 5)
    assert joined.rank[5] == pytest.approx(np.mean(hits))
    assert len(joined.stranger_scores) == len(hits)


def test_a_second_mode_and_a_second_protocol_embed_nothing(folder, tmp_path) -> None:
    root, content = folder
    model = Colours()
    lists = read_template_lists(root, "ijbc")
    (first,) = evaluate_templates(Embedder(model, 200), lists, tmp_path)
    assert (model.passes, first.embeddings.reused) == (2 * -(-len(content["faces"]) // 200), 0)
    model.passes = 0
    results = evaluate_templates(model, lists, tmp_path, TemplateMode.all())
    assert model.passes == 0
    assert {result.embeddings.reused for result in results} == {len(content["faces"])}
    assert results[0].figures()["verification"] == first.figures()["verification"]
    assert len({result.verification.tar_at_far[1e-1] for result in results if result.verification}) > 3
    other = Colours(seed=1)
    evaluate_templates(other, lists, tmp_path)
    assert other.passes > 0
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2


def test_workers_change_nothing(folder, tmp_path) -> None:
    root, _ = folder
    lists = read_template_lists(root, "ijbc")
    (alone,) = evaluate_templates(Embedder(Colours(), 300), lists, tmp_path / "a")
    (helped,) = evaluate_templates(Embedder(Colours(), 300, workers=2), lists, tmp_path / "b")
    assert alone.verification is not None
    assert helped.verification is not None
    np.testing.assert_array_equal(alone.verification.scores, helped.verification.scores)


def random_faces(seed: int, faces: int = 900, templates: int = 150, size: int = 12) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(faces, size)).astype(np.float32) * rng.uniform(0.1, 20, (faces, 1)).astype(np.float32),
        rng.normal(size=(faces, size)).astype(np.float32),
        rng.integers(0, templates, faces) * 1_000_003,
        rng.integers(0, 4, faces),
        rng.uniform(0.1, 1, faces),
        rng.random(faces) < 0.8,
    )


@pytest.mark.parametrize("block", [8192, 7])
def test_pooling_of_scattered_faces_in_every_mode(block, monkeypatch) -> None:
    monkeypatch.setattr(templates_module, "_POOL_ROWS", block)
    image, mirror, templates, medias, weights, usable = random_faces(2)
    for norm, detector, flip in itertools.product((True, False), repeat=3):
        mode = TemplateMode(norm, detector, flip)
        found = pool_templates(
            image,
            templates,
            medias,
            mirror=mirror if flip else None,
            weights=weights if detector else None,
            usable=usable,
            normalize=not norm,
        )
        kept = sorted(set(templates[usable].tolist()))
        assert found.ids.tolist() == kept
        assert found.empty.tolist() == sorted(set(templates.tolist()) - set(kept))
        assert found.faces.tolist() == [int((usable & (templates == t)).sum()) for t in kept]
        for row, template in enumerate(kept):
            mine = np.flatnonzero(usable & (templates == template))
            vectors = [image[k].astype(float) + (mirror[k] if flip else 0) for k in mine]
            expected = slow_template(vectors, weights[mine].tolist(), medias[mine].tolist(), mode)
            np.testing.assert_allclose(found.vectors[row].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("sparse", [False, True])
def test_pair_scores_are_the_exact_cosines_on_either_way(sparse, monkeypatch) -> None:
    if sparse:
        monkeypatch.setattr(template_scores, "_SPARSE", 0)
    else:
        monkeypatch.setattr(template_scores, "_BLOCK_SCORES", 500)
    rng = np.random.default_rng(4)
    rows = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(70, 24))), dim=1).float()
    rows[11] = rows[3]
    first, second = rng.integers(0, 40, 3000), rng.integers(30, 70, 3000)
    first[:2], second[:2] = (11, 3), (50, 50)
    found = score_template_pairs(rows, first, second)
    exact = [
        grid(math.fsum((rows[a].double() * rows[b].double()).tolist()))
        for a, b in zip(first.tolist(), second.tolist(), strict=True)
    ]
    assert found.tolist() == np.array(exact, dtype=np.float32).tolist()
    assert found[0] == found[1]


def test_ties_between_genuine_and_impostor_templates() -> None:
    """Corners of a cube in 4 dimensions: every cosine is -1, -1/2, 0, 1/2 or 1, and most pairs tie."""
    rng = np.random.default_rng(5)
    corners = np.array(list(itertools.product((-1.0, 1.0), repeat=4)), dtype=np.float32)
    found = pool_templates(corners[rng.integers(0, 16, 80)], np.arange(80), np.zeros(80))
    first, second = np.triu_indices(80, 1)
    same = rng.random(len(first)) < np.where((found.vectors[first] * found.vectors[second]).sum(1) > 0.25, 0.5, 0.02)
    pairs = TemplatePairs(first.astype(np.int64), second.astype(np.int64), same)
    result = verify_templates(found, pairs, (1e-3, 1e-2, 0.1, 0.5))
    assert set(result.scores.tolist()) == {-1.0, -0.5, 0.0, 0.5, 1.0}
    genuine, impostor = result.scores[same].tolist(), result.scores[~same].tolist()
    for far, tar in result.tar_at_far.items():
        assert tar == slow_tar_at_far(genuine, impostor, far)
    assert result.auc == pytest.approx(roc_auc_score(same, result.scores), abs=1e-12)


def test_a_broken_limit_that_is_no_share_is_refused(folder, tmp_path) -> None:
    for limit in (-0.1, 1.5, float("nan")):
        with pytest.raises(UserError, match=f"broken_limit={limit} is not a share"):
            evaluate_templates(Colours(), read_template_lists(folder[0], "ijbc"), tmp_path, broken_limit=limit)


def test_people_behind_templates_are_those_of_the_lists(folder, tmp_path) -> None:
    root, content = folder
    lists = read_template_lists(root, "ijbc")
    assert lists.pairs is not None
    ids = np.unique(np.concatenate([lists.faces.templates, lists.pairs.first, lists.pairs.second]))
    subjects = lists.subjects_of(ids)
    expected = [content["subject_of"][t] for t in ids.tolist()]
    np.testing.assert_array_equal(subjects[:, None] == subjects, np.equal.outer(expected, expected))
    only_pairs = dataclasses.replace(lists, galleries=(), probes=None)
    linked = only_pairs.subjects_of(ids)
    for (a, b), same in zip(content["pairs"], content["labels"], strict=True):
        if same:
            assert linked[np.searchsorted(ids, a)] == linked[np.searchsorted(ids, b)]
    assert len(np.unique(linked)) >= len(np.unique(subjects))


def test_fars_of_the_tables() -> None:
    assert TEMPLATE_FARS == (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    assert [str(mode) for mode in TemplateMode.all()][:3] == ["N1D1F1", "N1D1F0", "N1D0F1"]
    for text in ("", "N2", "D1N1", "N1D1F1x"):
        with pytest.raises(UserError, match=r"mode .* is unknown"):
            TemplateMode.parse(text)
