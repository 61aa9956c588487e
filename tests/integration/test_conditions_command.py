"""`evaluate --condition` by every protocol, `--attributes`, and `compare` of several models, as a user types them."""

import json

import numpy as np
import pytest

import attfc
from attfc.data import SyntheticFaces
from attfc.data.conditions import parse_conditions
from attfc.evaluation.embed import embed_store
from attfc.evaluation.metrics import evaluate_pairs
from attfc.evaluation.protocols.identification import identify_in_store
from attfc.evaluation.protocols.pair_lists import read_pairs
from attfc.evaluation.results import read_result
from attfc.export import open_model

from .commands import run_main
from .protocol_folder import write_bin, write_templates

FEW = ("--resamples", "40")
PATH = "synthetic:identities=12,images=4,seed=8"


def ran(monkeypatch, capsys, *arguments: object) -> str:
    status, out, err = run_main(monkeypatch, capsys, *arguments)
    assert status == 0, err
    return out


def test_a_list_of_pairs_is_scored_under_the_condition(tmp_path, models, monkeypatch, capsys) -> None:
    from attfc.data.stores.verification_sets import read_verification_set

    _, same = write_bin(tmp_path / "lfw.bin")
    out = ran(
        *(monkeypatch, capsys, "evaluate", models[0], "lfw", tmp_path, "--condition", "lowres=16,jpeg=30"),
        *("--condition", "covered", "--json", tmp_path / "f.json", "--resamples", 0),
    )
    assert out.splitlines()[0] == "condition of the images: lowres=16, jpeg=30, covered=0.5"
    figures = json.loads((tmp_path / "f.json").read_text())
    assert figures["condition"] == "lowres=16, jpeg=30, covered=0.5"
    hurt = parse_conditions(["lowres=16", "jpeg=30", "covered"])
    found = embed_store(open_model(models[0])[0], read_verification_set(tmp_path / "lfw.bin"), conditions=hurt)
    assert figures["sets"]["lfw"]["accuracy"] == pytest.approx(evaluate_pairs(found.vectors, same).accuracy, abs=1e-9)
    ran(monkeypatch, capsys, "evaluate", models[0], "lfw", tmp_path, "--json", tmp_path / "g.json", "--resamples", 0)
    plain = json.loads((tmp_path / "g.json").read_text())
    assert "condition" not in plain
    assert plain["sets"]["lfw"]["auc"] != figures["sets"]["lfw"]["auc"]


def test_embeddings_of_templates_are_kept_by_condition(tmp_path, models, monkeypatch, capsys) -> None:
    write_templates(tmp_path / "IJBC")
    common = ("evaluate", models[0], "ijbc", tmp_path / "IJBC", "--embeddings", tmp_path / "cache")
    common += ("--broken-limit", 0.1, "--resamples", 0)
    there = []
    for condition in ((), ("--condition", "grey"), (), ("--condition", "grey"), ("--condition", "blur=3")):
        out = ran(monkeypatch, capsys, *common, *condition)
        there.append(" 0 embeddings were there" not in out)
    assert there == [False, False, True, True, False]


def test_what_a_condition_costs_is_a_comparison_of_a_model_with_itself(tmp_path, models, monkeypatch, capsys) -> None:
    common = ("evaluate", models[0], "all-pairs", PATH, "--far", 0.1, *FEW)
    ran(monkeypatch, capsys, *common, "--save", tmp_path / "plain.npz")
    ran(monkeypatch, capsys, *common, "--condition", "lowres=8", "--save", tmp_path / "small.npz")
    text = ran(monkeypatch, capsys, "compare", tmp_path / "small.npz", tmp_path / "plain.npz", *FEW)
    assert "note: A was evaluated under lowres=8, B under the images as they are" in text
    one, other = (
        read_result(tmp_path / f"{name}.npz").figures["all_pairs"]["tar_at_far"]["0.1"] for name in ("small", "plain")
    )
    assert f"{one - other:.4f} [" in text
    page = tmp_path / "page.md"
    ran(monkeypatch, capsys, "report", tmp_path / "plain.npz", tmp_path / "small.npz", "--output", page)
    assert "all pairs, lowres=8" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("held-out", PATH, "--condition", "lowres=4"), "--condition lowres=4: lowres takes whole numbers from 8 to 96"),
        (("held-out", PATH, "--condition", "lowres=56"), "--condition lowres=56: the images have 56 pixels a side"),
        (("all-pairs", PATH, "--condition", "fog"), "--condition 'fog' is unknown"),
        (("lfw", PATH, "--attributes", "t.csv"), "--attributes names images, and lfw has none that have names: leave it out"),
        (("pairs", "x.bin", "--attributes", "t.csv"), "--attributes names images, and those of a .bin file have no names"),
        (("held-out", PATH, "--attributes", "none.csv"), "none.csv: attributes cannot be read"),
    ],
)  # fmt: skip
def test_bad_conditions_and_tables_are_one_line(models, monkeypatch, capsys, arguments, message: str) -> None:
    status, _, err = run_main(monkeypatch, capsys, "evaluate", models[0], *arguments)
    assert status == 1
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_slices_on_screen_and_several_models_at_once(tmp_path, models, monkeypatch, capsys) -> None:
    store = SyntheticFaces(12, 4, seed=8)
    rows = [f"{store.where(n)},{('phone', 'gate')[n % 2]},{n}" for n in range(48)]
    (tmp_path / "t.csv").write_text("\n".join(["image,camera,age", *rows]) + "\n")
    common = ("held-out", PATH, "--generated-pairs", 24, "--attributes", tmp_path / "t.csv", *FEW)
    out = ran(
        monkeypatch, capsys, "evaluate", models[0], *common, "--save", tmp_path / "0.npz", "--json", tmp_path / "f.json"
    )
    line = next(line for line in out.splitlines() if line.split()[:1] == ["gate"])
    found = json.loads((tmp_path / "f.json").read_text())["slices"]["camera"]["gate"]
    assert line.split()[1:4] == ["12", "12", f"{24 * 23 // 2 - 12}"]
    assert (found["identities"], found["genuine_pairs"]) == (12, 12)
    assert "0 to 11" in out
    assert "camera: group gate rests on 12 people" in out
    assert set(found["intervals"]["tar_at_far"]) >= {"0.1"}
    for number, model in enumerate((models[1], models[0]), start=1):
        ran(monkeypatch, capsys, "evaluate", model, *common, "--save", tmp_path / f"{number}.npz")
    files = [tmp_path / f"{number}.npz" for number in range(3)]
    text = ran(monkeypatch, capsys, "compare", *files, *FEW, "--json", tmp_path / "c.json")
    assert [line.split(":")[0] for line in text.splitlines()[:3]] == ["A", "B", "C"]
    assert "A - B" in text
    assert "A - C" in text
    compared = json.loads((tmp_path / "c.json").read_text())
    two = ran(monkeypatch, capsys, "compare", *files[:2], *FEW, "--json", tmp_path / "d.json")
    assert "A - C" not in two
    alone = json.loads((tmp_path / "d.json").read_text())
    assert "more" not in alone
    assert alone["differences"] == compared["differences"]
    (more,) = compared["more"]
    assert all(row["difference"]["value"] == 0 for row in more["differences"])  # C is A
    assert any(row["figure"][:3] == ["slices", "camera", "gate"] for row in more["differences"])
    again = ran(monkeypatch, capsys, "compare", models[0], models[1], models[0], *common)
    assert again.splitlines()[3:] == text.splitlines()[3:]
    mixed = ran(monkeypatch, capsys, "compare", files[0], models[1], files[2], *common)
    assert mixed.splitlines()[3:] == text.splitlines()[3:]
    status, _, err = run_main(monkeypatch, capsys, "compare", *files, "held-out", PATH)
    assert status == 1
    assert "are results already" in err
    assert np.all([name in err for name in ("0.npz", "1.npz", "2.npz")])


def test_slices_of_searches_and_of_lists_of_pairs(tmp_path, models, monkeypatch, capsys) -> None:
    store = SyntheticFaces(12, 4, seed=8)
    camera = np.array(["phone", "gate", "gate", ""])[np.arange(48) % 4]
    rows = [f"{store.where(n)},{value}" for n, value in enumerate(camera)]
    (tmp_path / "t.csv").write_text("\n".join(["image,camera", *rows]) + "\n")
    common = ("--attributes", tmp_path / "t.csv", *FEW, "--json", tmp_path / "f.json")
    out = ran(monkeypatch, capsys, "evaluate", models[0], "identify", PATH, *common)
    figures = json.loads((tmp_path / "f.json").read_text())
    found = identify_in_store(attfc.load(models[0], device="cpu").module, store)
    at_gate = camera[found.probes] == "gate"
    gate = figures["slices"]["camera"]["gate"]
    assert gate["rank"]["1"] == np.mean(found.found.probe_ranks[at_gate] <= 1)
    assert (gate["rows"], gate["identities"]) == (at_gate.sum(), len(np.unique(found.found.probe_labels[at_gate])))
    assert set(gate["intervals"]) == {"rank", "tpir_at_fpir"}
    assert "note: camera: gate rests on" in out
    names = [store.identity_name(label) for label in range(12)]
    same = [f"{name}\t{i}\t{j}" for name in names for i, j in ((1, 2), (2, 3), (2, 4))]
    around = zip(names, [*names[1:], names[0]], strict=True)
    others = [f"{one}\t{i}\t{two}\t{j}" for one, two in around for i, j in ((2, 3), (1, 1), (2, 4))]
    (tmp_path / "pairs.txt").write_text("\n".join(["36", *same, *others]) + "\n")
    saved = tmp_path / "p.npz"
    out = ran(
        *(monkeypatch, capsys, "evaluate", models[0], "pairs", PATH, "--pairs", tmp_path / "pairs.txt", *common),
        *("--save", saved),
    )
    assert "camera: phone is left out: it has not both kinds of rows" in out
    (of,) = json.loads((tmp_path / "f.json").read_text())["sets"].values()
    gate = of["slices"]["camera"]["gate"]
    (sample,) = next(samples for place, samples in read_result(saved).samples.items() if "slices" not in place)
    listed = read_pairs(tmp_path / "pairs.txt", store)
    inside = (camera[listed.first] == "gate") & (camera[listed.second] == "gate")
    scores = sample.scores  # type: ignore[attr-defined]
    assert gate["rows"] == inside.sum() == 24
    assert gate["auc"] == pytest.approx(np.mean(scores[inside & listed.same][:, None] > scores[inside & ~listed.same]))
    page = tmp_path / "page.md"
    ran(monkeypatch, capsys, "report", saved, "--output", page)
    assert "| camera: gate |" in page.read_text()
