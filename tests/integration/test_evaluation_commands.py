"""`evaluate`, `compare` and `report` as a user types them, on generated data with everything that goes wrong in real lists."""

import dataclasses
import json
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from attfc.commands.evaluation import compare as comparing
from attfc.data import SyntheticFaces
from attfc.data.stores.verification_sets import read_verification_set
from attfc.evaluation.bootstrap import IdentityDraw
from attfc.evaluation.embed import embed_store
from attfc.evaluation.metrics import evaluate_pairs
from attfc.evaluation.protocols.identification import choose_gallery
from attfc.evaluation.protocols.pairs import identities_of_set
from attfc.evaluation.protocols.search import identify
from attfc.evaluation.protocols.template_lists import read_template_lists
from attfc.evaluation.results import read_result, save_result

from .commands import run_main
from .protocol_folder import write_bin, write_templates

FEW = ("--resamples", "40")


def ran(monkeypatch, capsys, *arguments: object) -> str:
    status, out, err = run_main(monkeypatch, capsys, *arguments)
    assert status == 0, err
    return out


@pytest.fixture(scope="session")
def templates(tmp_path_factory):
    root = tmp_path_factory.mktemp("IJB release") / "IJBC"
    return root, write_templates(root)


def test_pairs_with_intervals_from_bin_files(tmp_path, models, monkeypatch, capsys) -> None:
    encoded, same = write_bin(tmp_path / "lfw.bin")
    write_bin(tmp_path / "cfp_fp.bin", seed=4, broken=7)
    out = ran(
        *(monkeypatch, capsys, "evaluate", models[0], "lfw,cfp_fp", tmp_path, "--broken-limit", 0.02),
        *("--json", tmp_path / "f.json", *FEW, "--confidence", 0.9, "--save", tmp_path / "pairs.npz"),
    )
    figures = json.loads((tmp_path / "f.json").read_text())
    lfw, cfp = figures["sets"]["lfw"], figures["sets"]["cfp_fp"]
    found = read_verification_set(tmp_path / "lfw.bin")
    embeddings = embed_store(_backbone(models[0]), found)  # type: ignore[arg-type]
    expected = evaluate_pairs(embeddings.vectors, same)
    assert lfw["accuracy"] == pytest.approx(expected.accuracy, abs=1e-9)
    assert lfw["auc"] == pytest.approx(expected.auc, abs=1e-3)
    assert (cfp["broken"], cfp["skipped_pairs"], cfp["pairs"]) == (1, 1, 39)
    for name in ("accuracy", "auc", "eer"):
        low, high = lfw["intervals"][name]
        assert low <= lfw[name] <= high
        assert low < high
    assert f"{100 * lfw['accuracy']:.2f} [{100 * lfw['intervals']['accuracy'][0]:.2f}, " in out
    assert "90 % interval, 40 bootstrap resamples of identities" in out
    assert figures["uncertainty"]["confidence"] == 0.9
    note = f"the intervals of accuracy, AUC, EER, TAR at FAR rest on {lfw['interval_identities']} identities: with fewer than 30"
    assert lfw["interval_notes"] == [f"{note} they tend to be too narrow"]
    assert f": {note}" in out
    people = identities_of_set(found)
    assert all(people[2 * pair] == people[2 * pair + 1] for pair in np.flatnonzero(same))
    assert lfw["interval_identities"] == len(np.unique(people[::2][same]))
    assert people[encoded.index(encoded[6])] == people[6]
    assert set(read_result(tmp_path / "pairs.npz").samples) == {("sets", "lfw"), ("sets", "cfp_fp")}
    without = ran(monkeypatch, capsys, "evaluate", models[0], "lfw", tmp_path, "--resamples", 0)
    assert "[" not in without
    assert "identities" not in without


def _backbone(folder):
    from attfc.export import open_model

    return open_model(folder)[0]


def test_templates_with_all_that_goes_wrong(tmp_path, templates, models, monkeypatch, capsys) -> None:
    root, counts = templates
    options = ("--embeddings", tmp_path / "cache", "--broken-limit", 0.1, *FEW)
    out = ran(
        *(monkeypatch, capsys, "evaluate", models[0], "ijbc", root, *options, "--mode", "N1D1F1,N0D0F0"),
        *("--json", tmp_path / "f.json", "--save", tmp_path / "one.npz"),
    )
    figures = json.loads((tmp_path / "f.json").read_text())["modes"]
    assert list(figures) == ["N1D1F1", "N0D0F0"]
    first = figures["N1D1F1"]
    assert (first["faces"], first["broken"]) == (counts["faces"], counts["broken"])
    one, search = first["verification"], first["search"]
    assert one["pairs"] + counts["skipped"] == counts["pairs"]
    assert one["skipped_genuine_pairs"] + one["skipped_impostor_pairs"] == counts["skipped"]
    low, high = one["intervals"]["tar_at_far"]["0.1"]
    assert low <= one["tar_at_far"]["0.1"] <= high
    assert low < high
    for name, factor, places in (("auc", 1, 4), ("eer", 100, 2)):
        low, high = one["intervals"][name]
        assert low <= one[name] <= high
        assert low < high
        assert f"{factor * one[name]:.{places}f} [{factor * low:.{places}f}, {factor * high:.{places}f}]" in out
    assert one["interval_identities"] <= counts["subjects"]
    low, high = search["intervals"]["rank"]["1"]
    assert low <= search["rank"]["1"] <= high
    assert search["probes_without_face"] == 2
    people = one["interval_identities"]
    assert (
        one["interval_notes"]
        == [note for note in one["interval_notes"] if f"rest on {people} identities" in note]
        != []
    )
    assert f"modes N1D1F1 verification, modes N0D0F0 verification: {one['interval_notes'][0]}" in out
    for wanted in (
        "repeat a face of the same template and media: used once",
        f"{counts['broken']} of {counts['faces']} faces were left out; the first is",
        "templates without a usable face",
        "of 50 probes were left out: no usable face",
    ):
        assert wanted in out, wanted
    scores = read_result(tmp_path / "one.npz").samples["modes", "N1D1F1", "verification"][0].impostor_scores  # type: ignore[attr-defined]
    assert len(np.unique(scores)) < len(scores)  # the twin ties with its template
    with np.load(tmp_path / "one.npz") as loaded:
        older = {
            name: array for name, array in loaded.items() if "genuine_above" not in name and "not_below" not in name
        }
    assert len(older) == len(loaded.files) - 4
    np.savez(tmp_path / "older.npz", **older)
    kept = read_result(tmp_path / "older.npz").samples["modes", "N1D1F1", "verification"][0]
    assert {path[0] for path in kept.figures(IdentityDraw(np.ones(kept.identities)))} == {"tar_at_far"}
    again = ran(monkeypatch, capsys, "evaluate", models[0], "ijbc", root, *options)
    assert f"{counts['faces']:,} embeddings were there" in again
    status, _, err = run_main(
        *(monkeypatch, capsys, "evaluate", models[0], "ijbc", root, "--embeddings", tmp_path / "cache"),
        *("--broken-limit", 0.01),
    )
    assert status == 1
    assert "cannot be used, more than the limit of 0.01" in err
    ran(monkeypatch, capsys, "evaluate", models[1], "ijbc", root, *options, "--save", tmp_path / "other.npz")
    text = ran(monkeypatch, capsys, "compare", tmp_path / "one.npz", tmp_path / "other.npz", *FEW)
    assert text.index("\nmodes N1D1F1 verification\n") < text.index("\nTAR at FAR 0.1 ")
    assert "N0D0F0" not in text  # the other model was not evaluated in this mode
    page = tmp_path / "page.md"
    ran(monkeypatch, capsys, "report", tmp_path / "one.npz", tmp_path / "other.npz", "--output", page)
    assert "| Model | IJB-C(1E-4) | IJB-C(1E-5) |" in page.read_text()


def test_slices_of_templates(tmp_path, templates, models, monkeypatch, capsys) -> None:
    root = templates[0]
    lists = read_template_lists(root, "ijbc")
    faces = lists.faces
    camera = {
        name: ("phone", "gate")[int(number) % 2] for name, number in zip(faces.names, faces.templates, strict=True)
    }
    of_template: dict[int, set[str]] = {}
    for name, number in zip(faces.names, faces.templates.tolist(), strict=True):
        of_template.setdefault(number, set()).add(camera[name])
    (tmp_path / "t.csv").write_text(
        "\n".join(["image,camera", *(f"{name},{at}" for name, at in camera.items())]) + "\n"
    )
    ran(
        *(monkeypatch, capsys, "evaluate", models[0], "ijbc", root, "--attributes", tmp_path / "t.csv", *FEW),
        *("--embeddings", tmp_path / "cache", "--broken-limit", 0.1, "--json", tmp_path / "f.json"),
    )
    one = json.loads((tmp_path / "f.json").read_text())["modes"]["N1D1F1"]["verification"]
    phone, gate = (one["slices"]["camera"][value] for value in ("phone", "gate"))
    assert lists.pairs is not None
    sides = zip(lists.pairs.first.tolist(), lists.pairs.second.tolist(), strict=True)
    both = [len(of_template.get(one, set()) | of_template.get(other, set())) == 1 for one, other in sides]
    assert 0.8 * sum(both) < phone["rows"] + gate["rows"] <= sum(both)  # some templates have no usable face
    assert 0 < gate["auc"] <= 1
    assert set(gate["intervals"]) >= {"auc", "eer"}


def test_identification_of_a_store(tmp_path, models, monkeypatch, capsys) -> None:
    path = "synthetic:identities=30,images=4,seed=8"
    out = ran(
        *(monkeypatch, capsys, "evaluate", models[0], "identify", path, "--enrolled", 0.4, "--enrolled-images", 2),
        *("--json", tmp_path / "f.json", *FEW, "--seed", 3),
    )
    figures = json.loads((tmp_path / "f.json").read_text())
    store = SyntheticFaces(30, 4, seed=8)
    gallery = choose_gallery(store.identities, 0.4, 2, seed=3)
    assert len(gallery) == 24
    labels = store.labels(np.arange(120))
    assert np.all(np.unique(labels[gallery], return_counts=True)[1] == 2)
    vectors = embed_store(_backbone(models[0]), store).vectors
    probes = np.setdiff1d(np.arange(120), gallery)
    expected = identify(vectors[gallery], labels[gallery], vectors[probes], labels[probes])
    assert figures["rank"] == {str(rank): rate for rank, rate in expected.rank.items()}
    assert figures["tpir_at_fpir"]["0.1"] == expected.tpir_at_fpir[0.1]
    assert (figures["mated_probes"], figures["stranger_searches"], figures["gallery_identities"]) == (24, 72, 12)
    assert figures["tpir_at_fpir"]["0.01"] is None
    assert "TPIR at FPIR 0.01 is not stated: 72 searches" in out
    assert set(figures["intervals"]) == {"rank", "tpir_at_fpir"}
    note = "the intervals of rank, TPIR at FPIR rest on 12 identities: with fewer than 30 they tend to be too narrow"
    assert figures["interval_notes"] == [note]
    assert f"note: {note}" in out.splitlines()


def test_compare_embeds_both_or_reads_what_was_kept(tmp_path, models, monkeypatch, capsys) -> None:
    path = "synthetic:identities=12,images=3,seed=8"
    common = ("held-out", path, "--generated-pairs", 24, *FEW)
    for number, model in enumerate(models):
        out = ran(monkeypatch, capsys, "evaluate", model, *common, "--save", tmp_path / f"{number}.npz")
        assert "note: TAR at FAR 0.01 is not stated: 12 non-mated pairs, at least 100 needed" in out
    kept = ran(
        *(monkeypatch, capsys, "compare", tmp_path / "0.npz", tmp_path / "1.npz", *FEW, "--json", tmp_path / "c.json")
    )
    both = ran(monkeypatch, capsys, "compare", *models, *common)
    assert both.splitlines()[2:] == kept.splitlines()[2:]
    found = json.loads((tmp_path / "c.json").read_text())
    assert len(found["notes"]) == 3  # the list of pairs, rank-one, all pairs
    assert (
        "the intervals of rank-1 rest on 12 identities: with fewer than 30 they tend to be too narrow" in found["notes"]
    )
    assert [line.removeprefix("note: ") for line in kept.splitlines() if line.startswith("note: ")] == found["notes"]
    named = {tuple(row["figure"]): row for row in found["differences"]}
    assert {("accuracy",), ("auc",), ("rank_one",), ("all_pairs", "tar_at_far", "0.1")} <= set(named)
    auc = named["auc",]
    assert auc["difference"]["value"] == pytest.approx(auc["a"]["value"] - auc["b"]["value"])
    assert auc["difference"]["interval"][0] <= auc["difference"]["value"] <= auc["difference"]["interval"][1]
    same = ran(monkeypatch, capsys, "compare", tmp_path / "0.npz", tmp_path / "0.npz", *FEW)
    assert "+0.0000 [0.0000, 0.0000]" in same
    for mixed in ((tmp_path / "0.npz", models[1]), (models[0], tmp_path / "1.npz")):  # one to run, one kept
        ran(monkeypatch, capsys, "compare", *mixed, *common, "--json", tmp_path / "m.json")
        assert json.loads((tmp_path / "m.json").read_text()) == found
    ran(monkeypatch, capsys, "evaluate", models[0], *common, "--seed", 5, "--save", tmp_path / "other.npz")
    ran(monkeypatch, capsys, "evaluate", models[0], "identify", path, *FEW, "--save", tmp_path / "i.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 nothing")
    for arguments, text in (
        (("0.npz", "other.npz"), "differ"),
        (("0.npz", "i.npz"), "compare needs one protocol"),
        (("0.npz", "bad.npz"), "bad.npz is not a result of `attfc evaluate --save`, or damaged"),
        (("0.npz", "none.npz"), "no such file"),
        (
            ("0.npz", str(models[1])),
            f"{models[1]} is a model: say on which protocol and data, e.g. attfc compare {tmp_path / '0.npz'} '{models[1]}' held-out {path}",
        ),
        ((str(models[0]), str(models[1])), f"{models[0]} is a model: say on which protocol and data"),
        (("0.npz", "1.npz", "held-out", path), "are results already"),
        (("0.npz", "1.npz", "--resamples", "5"), "an interval needs at least 20"),
    ):
        resolved = [tmp_path / part if part.endswith(".npz") else part for part in arguments]
        status, _, err = run_main(monkeypatch, capsys, "compare", *resolved)
        assert status == 1
        assert text in err


def test_compare_refuses_before_it_embeds_what_cannot_be_compared(tmp_path, models, monkeypatch, capsys) -> None:
    path = "synthetic:identities=12,images=3,seed=8"
    common = ("held-out", path, "--generated-pairs", 24, *FEW)
    ran(monkeypatch, capsys, "evaluate", models[0], *common, "--save", tmp_path / "0.npz")
    ran(
        monkeypatch,
        capsys,
        "evaluate",
        models[1],
        "held-out",
        f"{path},first=500",
        *common[2:],
        "--save",
        tmp_path / "1.npz",
    )
    with monkeypatch.context() as patch:
        patch.setattr(comparing, "evaluate_model", lambda *_: pytest.fail("a model was evaluated"))
        for arguments, text in (
            (
                ("0.npz", models[1], "identify", path),
                "0.npz was evaluated on held-out, not on identify: compare needs one protocol",
            ),
            ((models[1], "none.npz", *common), "none.npz: no such file"),
            (("0.npz", models[1], "identfy", path), "unknown protocol 'identfy'"),
        ):
            resolved = [tmp_path / part if str(part).endswith(".npz") else part for part in arguments]
            status, _, err = run_main(patch, capsys, "compare", *resolved)
            assert status == 1
            assert text in err
    status, _, err = run_main(monkeypatch, capsys, "compare", tmp_path / "0.npz", models[1], *common[:3], 30)
    assert status == 1
    assert "the pairs of" in err  # other pairs: seen once both are there
    other = ran(monkeypatch, capsys, "compare", tmp_path / "0.npz", tmp_path / "1.npz", *FEW)
    assert (
        f"note: A was evaluated on {path}, B on {path},first=500: the metrics can be compared only if the data are the same"
        in other
    )


@pytest.mark.parametrize("fault", ["pickle", "compressed", "header", "identity", "cut"])
def test_a_hostile_or_damaged_result_is_refused(fault, tmp_path, models, monkeypatch, capsys) -> None:
    ran(
        *(monkeypatch, capsys, "evaluate", models[0], "identify", "synthetic:identities=12,images=3,seed=8", *FEW),
        *("--save", tmp_path / "i.npz"),
    )
    file = tmp_path / "i.npz"
    with np.load(file) as loaded:
        arrays = dict(loaded)
    if fault == "pickle":
        np.savez(file, **{**arrays, "0.ranks": np.array([print], dtype=object)})
    elif fault == "compressed":
        np.savez_compressed(file, **arrays)
    elif fault == "header":
        content = file.read_bytes()
        shape = f"({len(arrays['0.ranks'])},)".encode()
        at = content.index(b"0.ranks.npy")
        place = content.index(b"'shape': " + shape, at)
        file.write_bytes(content[: place + 9] + b"(9999999999,)".ljust(len(shape))[:13] + content[place + 9 + 13 :])
    elif fault == "identity":
        np.savez(file, **{**arrays, "0.probe_identities": arrays["0.probe_identities"] + 100})
    else:
        file.write_bytes(file.read_bytes()[:-40])
    status, _, err = run_main(monkeypatch, capsys, "report", file, "--output", tmp_path / "r.html")
    assert status == 1
    assert "is not a result of `attfc evaluate --save`, or damaged" in err


def test_report_of_several_models(tmp_path, models, monkeypatch, capsys) -> None:
    people = {
        "all-pairs": "synthetic:identities=56,images=6,seed=8",
        "identify": "synthetic:identities=16,images=3,seed=8",
    }
    groups = tmp_path / "groups.tsv"
    groups.write_text("".join(f"identity {k}\t{'<b>old</b> $_$' if k % 2 else 'young'}\n" for k in range(56)))
    files = []
    for number, model in enumerate(models):
        for protocol, more in (("all-pairs", ("--groups", groups)), ("identify", ())):
            files.append(tmp_path / f"{protocol}{number}.npz")
            ran(monkeypatch, capsys, "evaluate", model, protocol, people[protocol], *more, *FEW, "--save", files[-1])
    page = tmp_path / "page.html"
    assert ran(monkeypatch, capsys, "report", *files, "--output", page).strip() == str(page)
    text = page.read_text()
    drawn = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(drawn) == 5  # ROC, DET, CMC, DIR, groups
    for part in drawn:
        ElementTree.fromstring(part.replace("xlink:", ""))
        assert "var(--first)" in part
        assert "var(--second)" in part
    for part in drawn[:-1]:
        assert part.count("stroke-dasharray") >= 1  # the second model is told apart without its colour
    of_groups = json.loads(str(np.load(files[0])["facts"].tobytes(), "utf-8"))["figures"]["groups"]
    assert len(of_groups) == 2
    note = (
        "the intervals of TAR at FAR, person-balanced TAR at FAR rest on 28 identities: "
        "with fewer than 30 they tend to be too narrow"
    )
    for group in of_groups.values():
        assert group["tar_at_far"]["0.0001"] is not None
        assert group["interval_notes"] == [note]
    assert "TAR at FAR 0.0001, %" in drawn[-1]
    assert "$_$" in drawn[-1]
    assert f"young (model 10): {note}" in text
    assert "<b>old</b>" not in text
    assert "&lt;b&gt;old" in text
    assert "http://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    for name in ("model 00", "model 10"):
        assert f">{name}<" in text
    assert "identities=56,images=6,seed=8(1E-6)" in text.replace("<wbr>", "")
    markdown = tmp_path / "page.md"
    ran(monkeypatch, capsys, "report", *files, "--output", markdown)
    pictures = re.findall(r"!\[(.*)\]\(<(page_figures/\d\d\.svg)>\)", markdown.read_text())
    assert len(pictures) == 5
    assert r"\<b\>old\</b\> \$\_\$" in markdown.read_text()
    for title, picture in pictures:
        drawn = (tmp_path / picture).read_text()
        words = " ".join(ElementTree.fromstring(drawn).itertext())
        assert " ".join(title.replace("\\", "").split()) in " ".join(words.split())  # the file states its result
        assert "var(--" not in drawn
        assert "@media (prefers-color-scheme: dark)" in drawn
    status, _, err = run_main(monkeypatch, capsys, "report", *files, files[0], "--output", page, "--force")
    assert status == 1
    assert "two results of" in err
    result = read_result(files[0])
    save_result(tmp_path / "copy.npz", result)
    assert read_result(tmp_path / "copy.npz").figures == result.figures
    # Groups that no scores stand behind: a file with scores of groups that it does not have is refused.
    ungrouped = {place: samples for place, samples in result.samples.items() if "groups" not in place}
    result = dataclasses.replace(result, samples=ungrouped)
    strange = {
        "tar_at_far": {'"><script>': 0.5, "nan": 0.5, "1.2.3": 0.5, "0.001": "high", "0.01": 0.4321},
        "at_common_threshold": {"0.01": {"tar": None, "far": 0.1}, "0.1": 7},
        "intervals": {"tar_at_far": {"0.01": [0.1, math.inf]}},
        "interval_notes": 5,
        "identities": "many",
    }
    result.figures["groups"] = {"<i>strange</i>": strange, "none": 3}
    save_result(tmp_path / "strange.npz", result)
    ran(monkeypatch, capsys, "report", tmp_path / "strange.npz", "--output", page, "--force")
    text = page.read_text()
    assert "43.21" in text
    assert "<script" not in text
    assert "<i>" not in text
    result.figures["groups"] = {f"g{k:02d}": {"tar_at_far": {"0.01": k / 100}} for k in range(44, -1, -1)}
    save_result(tmp_path / "many.npz", result)
    ran(monkeypatch, capsys, "report", tmp_path / "many.npz", "--output", page, "--force")
    text = page.read_text()
    assert re.findall(r">(g\d\d)<", text.rpartition("<svg")[2]) == [f"g{k:02d}" for k in range(39, -1, -1)]
    assert "the 40 groups with the lowest TAR" in text
    for arguments, wanted in (
        ((files[0], models[0]), "is not a saved result: to compare models, give files"),
        ((files[0], "--output", tmp_path / "r.pdf"), "a report is .html or .md"),
        ((files[0], "--pictures"), "results hold no pictures"),
    ):
        status, _, err = run_main(monkeypatch, capsys, "report", *arguments)
        assert status == 1
        assert wanted in err
