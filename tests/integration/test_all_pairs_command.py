"""`attfc evaluate MODEL all-pairs STORE`: the figures printed and written are those of a loop over every pair."""

import json
import math

import numpy as np
import pytest
import torch

from attfc import create_backbone
from attfc.data import SyntheticFaces, open_store
from attfc.errors import UserError
from attfc.evaluation import Embedder, embed_store
from attfc.evaluation.protocols.all_pairs import evaluate_all_pairs, read_groups
from attfc.training.model_files import save_model

from .commands import run_main

PEOPLE, IMAGES = 51, 3


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    backbone = create_backbone("r6_tiny", embedding_size=32).eval()
    return save_model(tmp_path_factory.mktemp("model"), backbone), backbone


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """51 people x 3 images, and a file that is not an image."""
    root = tmp_path_factory.mktemp("faces") / "set"
    store = SyntheticFaces(PEOPLE, IMAGES, seed=5)
    for position in range(len(store)):
        encoded, label = store.read(position)
        folder = root / f"person {label:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{position % IMAGES}.jpg").write_bytes(encoded)
    (root / "person 03" / "broken.jpg").write_bytes(b"no image")
    return root


def tar_by_loop(vectors, labels, far) -> float | None:
    cosines = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    first, second = np.triu_indices(len(labels), 1)
    same = labels[first] == labels[second]
    genuine, impostor = cosines[first, second][same], np.sort(cosines[first, second][~same])[::-1]
    if far * len(impostor) < 1:
        return None
    return float(np.mean(genuine > impostor[math.floor(far * len(impostor))]))


def share_above(vectors, labels, threshold, genuine) -> float:
    rows = vectors.astype(np.float64)
    pairs = [(a, b) for a in range(len(rows)) for b in range(a) if bool(labels[a] == labels[b]) == genuine]
    return sum(bool(rows[a] @ rows[b] > threshold + 1e-7) for a, b in pairs) / len(pairs)


def test_a_budget_that_is_too_small_is_refused_before_anything_is_embedded(model, faces, tmp_path, monkeypatch) -> None:
    def never(*_, **__):
        raise AssertionError("embedded")

    monkeypatch.setattr(Embedder, "embed", never)
    store = open_store(faces, cache=tmp_path / "cache")
    with pytest.raises(UserError, match="is too small for 154 embeddings of 32 numbers"):
        evaluate_all_pairs(model[1], store, budget=1000)


def test_figures_are_those_of_a_loop_for_everyone_and_for_each_group(
    tmp_path, model, faces, monkeypatch, capsys
) -> None:
    folder, backbone = model
    groups = tmp_path / "ages.tsv"
    lines = [f"person {person:02d}\t{'child' if person < 20 else 'adult'}" for person in range(50)]
    groups.write_text("# person, group\n" + "\n".join(lines) + "\nnobody\tadult\n", encoding="utf-8")
    status, out, err = run_main(
        *(monkeypatch, capsys, "evaluate", folder, "all-pairs", faces, "--groups", groups),
        *("--cache", tmp_path / "cache", "--json", tmp_path / "figures.json", "--batch-size", 64),
    )
    assert status == 0, err
    figures = json.loads((tmp_path / "figures.json").read_text())
    store = open_store(faces, cache=tmp_path / "cache")
    found = embed_store(backbone, store)
    vectors, labels = found.vectors[found.valid], store.labels(found.positions[found.valid])
    assert (figures["images"], figures["broken"]) == (PEOPLE * IMAGES + 1, 1)
    everyone = figures["all_pairs"]
    assert everyone["images"] == PEOPLE * IMAGES
    assert everyone["genuine_pairs"] == PEOPLE * 3
    assert everyone["impostor_pairs"] == 153 * 152 // 2 - 153
    assert list(everyone["tar_at_far"]) == ["0.0001", "1e-05", "1e-06"]
    assert everyone["tar_at_far"]["0.0001"] == pytest.approx(tar_by_loop(vectors, labels, 1e-4))
    assert everyone["tar_at_far"]["1e-06"] is None
    assert sorted(figures["groups"]) == ["adult", "child"]
    for name, people in (("child", range(20)), ("adult", range(20, 50))):
        rows = np.isin(labels, people)  # a folder store numbers its people by name
        part = figures["groups"][name]
        assert (part["images"], part["identities"]) == (3 * len(people), len(people))
        cut = everyone["threshold_at_far"]["0.0001"]
        common = part["at_common_threshold"]["0.0001"]
        assert common["tar"] == pytest.approx(share_above(vectors[rows], labels[rows], cut, genuine=True))
        assert common["far"] == pytest.approx(share_above(vectors[rows], labels[rows], cut, genuine=False))
        assert part["tar_at_far"]["0.0001"] is tar_by_loop(vectors[rows], labels[rows], 1e-4) is None
    text = out.replace("\n", " ")
    for wanted in (
        f"{100 * everyone['tar_at_far']['0.0001']:.2f} [",
        "TAR % at FAR",
        "note: 1 of 154 images are broken and left out; the first is",
        "broken.jpg",
        "not stated: 11,475 non-mated pairs, at least 1,000,000 needed",
        "group child: all pairs: TAR at FAR 0.0001 is not stated",
        "ages.tsv: 1 lines name identities that set lacks; the first is 'nobody'",
        "ages.tsv: 1 of 51 identities are in no group",
        "3 of 153 images are in no group",
    ):
        assert wanted in text, wanted
    unknown = "not checked: the training data of this model are not known"
    assert [*figures["notes"], unknown] == [
        line.removeprefix("note: ") for line in out.splitlines() if line.startswith("note: ")
    ]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            ("all-pairs", "FACES", "--broken-limit", 0),
            "1 of 154 images are broken, more than the limit of 0; the first is",
        ),
        (("all-pairs", "FACES", "--budget-gib", 0.0001), "bytes is too small for 154 embeddings of 32 numbers"),
        (("all-pairs", "FACES", "--groups", "NONE"), "groups cannot be read (No such file or directory)"),
        (("all-pairs", "FACES", "--pairs", "NONE"), "all-pairs scores every pair of images: leave out --pairs"),
        (("held-out", "FACES", "--groups", "NONE"), "--groups is of the protocol all-pairs: leave it out of held-out"),
        (
            ("all-pairs", "synthetic:identities=9,images=1"),
            "9 images of 9 identities make 0 mated and 36 non-mated pairs",
        ),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(options, text, tmp_path, model, faces, monkeypatch, capsys) -> None:
    options = [{"FACES": faces, "NONE": tmp_path / "none.tsv"}.get(option, option) for option in options]
    status, _, err = run_main(monkeypatch, capsys, "evaluate", model[0], *options, "--cache", tmp_path / "cache")
    assert status == 1
    assert text in err


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"identity 1 child\n", r"g\.tsv line 1: 'identity 1 child' is not an identity, a tab and a group"),
        (b"\nidentity 1\tchild\told\n", r"g\.tsv line 2: .* is not an identity, a tab and a group"),
        (b"identity 1\t\n", r"line 1: 'identity 1' is not an identity, a tab and a group"),
        (
            b"identity 1\tchild\nidentity 1\tchild\nidentity 1\tadult\n",
            "line 3: 'identity 1' is in group 'adult' and in 'child': an identity has one group",
        ),
        (b"identity 1\tch\xff\n", r"line 1 is not UTF-8 text"),
        (b"ann\tchild\n", r"names no identity of .*: it has 'ann', the store has 'identity 0': write name<TAB>group"),
        (b"# nothing\n", r"names no identity of .*: it is empty, the store has 'identity 0'"),
        (b"a\t" + b"x" * 20_000, "line 1 is longer than 16,384 bytes"),
    ],
)
def test_a_list_of_groups_that_is_none_is_refused(content, text, tmp_path) -> None:
    file = tmp_path / "g.tsv"
    file.write_bytes(content)
    with pytest.raises(UserError, match=text):
        read_groups(file, SyntheticFaces(4, 2, seed=0))
