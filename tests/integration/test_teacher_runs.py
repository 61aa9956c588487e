"""Runs with a teacher: resumed bit for bit, with another teacher refused; and a new model in an old gallery."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from attfc.backbones import create_backbone
from attfc.config import load_config
from attfc.data import SyntheticFaces
from attfc.errors import UserError
from attfc.evaluation import Embedder
from attfc.evaluation.cross import evaluate_cross
from attfc.run.build import new_run
from attfc.run.resuming import resume_run
from attfc.training.model_files import load_model, save_model
from attfc.training.trainer import Interrupted

from .commands import run_main
from .conftest import TINY
from .test_resume import losses, stop_after

KINDS = {
    "distilled": ["head=full_fc", "backbone.embedding_size=24", "optimizer.accumulation=2"],  # through a map
    "fixed": ["head=attfc", "backbone.embedding_size=32", "teacher.centers=fixed"],
    "centers alone": ["backbone.embedding_size=32", "teacher.centers=fixed", "teacher.loss=null"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_losses_equal_bit_for_bit_after_a_cut_in_mid_epoch(tmp_path, monkeypatch, models, kind) -> None:
    overrides = [*TINY, *KINDS[kind], f"teacher={models[0]}"]
    whole = new_run(load_config("demo", [*overrides, f"output={tmp_path / 'whole'}"]))
    whole.trainer.train()
    broken = new_run(load_config("demo", [*overrides, f"output={tmp_path / 'cut'}", "data.workers=1"]))
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Interrupted, match="saved at step 3"):
            broken.trainer.train()
    resumed = resume_run(broken.folder, [])
    resumed.trainer.train()
    assert losses(broken.folder) == losses(whole.folder)
    for name, value in whole.trainer.pair.query.state_dict().items():
        assert torch.equal(resumed.trainer.pair.query.state_dict()[name], value), name


def test_a_resumed_run_keeps_its_teacher_wherever_that_is(tmp_path, models) -> None:
    place = shutil.copytree(models[0], tmp_path / "teacher")
    overrides = [*TINY, "backbone.embedding_size=32", "schedule.max_steps=2", f"teacher={place}"]
    run = new_run(load_config("demo", [*overrides, f"output={tmp_path}"]))
    run.trainer.train()
    moved = place.rename(tmp_path / "moved")
    more = ["schedule.max_steps=3"]
    with pytest.raises(UserError, match=r"teacher=.*teacher does not exist"):
        resume_run(run.folder, more)
    with pytest.raises(UserError, match=r"is not the teacher that the run began with .*: name that model's file"):
        resume_run(run.folder, [*more, f"teacher={models[1]}"])
    with pytest.raises(UserError, match=r"teacher=null: .* began with the teacher .*, and a resumed run keeps that"):
        resume_run(run.folder, [*more, "teacher=null"])
    with pytest.raises(UserError, match=r"teacher\.centers is None in the saved run and 'fixed' now"):
        resume_run(run.folder, [*more, "teacher.centers=fixed"])
    with pytest.raises(UserError, match=r"or precision\.amp, differ from those that the run began with"):
        resume_run(run.folder, [*more, f"teacher={moved}", "precision.amp=none"])
    again = resume_run(run.folder, [*more, f"teacher={moved}"])
    again.trainer.train()
    assert again.trainer.step == 3
    alone = new_run(load_config("demo", [*TINY, "schedule.max_steps=2", f"output={tmp_path}"]))
    alone.trainer.train()
    with pytest.raises(UserError, match="began without a teacher, and a resumed run keeps that"):
        resume_run(alone.folder, [*more, f"teacher={moved}"])
    (run.folder / "teacher.json").write_text("{}")
    with pytest.raises(UserError, match=r"teacher\.json is damaged"):
        resume_run(run.folder, more)


def test_whom_the_teacher_saw_is_asked_too(tmp_path, models) -> None:
    overrides = [*TINY, "schedule.max_steps=1", "backbone.embedding_size=32"]
    first = new_run(load_config("demo", [*overrides, f"output={tmp_path}", "eval.root=null"]))
    first.trainer.train()
    mine = "data.root=synthetic:identities=20,images=6,seed=0,first=500"
    theirs = "eval.root=synthetic:identities=8,images=4,seed=0"
    run = new_run(load_config("demo", [*overrides, mine, theirs, f"teacher={first.folder}", f"output={tmp_path}"]))
    assert "all 8 evaluation identities were trained on" in str(run.shared.to_dict())
    other = new_run(load_config("demo", [*overrides, mine, theirs, f"teacher={models[0]}", f"output={tmp_path}"]))
    assert "whether the teacher saw them is unknown" in str(other.shared.to_dict())


def test_cross_against_a_slow_search(models) -> None:
    store = SyntheticFaces(12, (1, 5), seed=4)
    networks = [load_model(folder)[0] for folder in models]
    embedders = [Embedder(network, flip=False) for network in networks]
    found = evaluate_cross(*embedders, store, far=0.05)
    drawn = found.resampled(20, 0.95, 0)
    vectors = [embedder.embed(store).vectors.astype(np.float64) for embedder in embedders]
    labels = store.labels(np.arange(len(store)))
    from attfc.evaluation.protocols.identification import choose_gallery

    gallery = choose_gallery(store.identities, 1.0, 1, 0)
    probes = np.setdiff1d(np.arange(len(store)), gallery)
    ways = {"old x old": (1, 1), "new x old": (0, 1), "new x new": (0, 0)}
    same = labels[probes][:, None] == labels[gallery]
    scores = {way: vectors[probe][probes] @ vectors[kept][gallery].T for way, (probe, kept) in ways.items()}
    allowed = int(0.05 * (~same).sum())
    old = np.sort(scores["old x old"][~same])[::-1][allowed]
    assert found.threshold == pytest.approx(old, abs=1e-6)
    for way, matrix in scores.items():
        own = np.sort(matrix[~same])[::-1][allowed]
        mated = same.any(axis=1)
        hits = same[np.arange(len(probes)), matrix.argmax(axis=1)][mated]
        assert drawn[way]["tar_at_far", "0.05"].values["tar_at_far", "0.05"] == pytest.approx(
            (matrix[same] > own + 1e-7).mean()
        )
        path = ("tar_at_old_threshold",)
        assert drawn[way][path].values[path] == pytest.approx((matrix[same] > old + 1e-7).mean())
        assert found.far_at_threshold[way] == pytest.approx((matrix[~same] > old + 1e-7).mean())
        assert drawn[way]["rank", "1"].values["rank", "1"] == pytest.approx(hits.mean())


def test_compare_cross_prints_both_tables_and_refuses_what_cannot_be(tmp_path, models, monkeypatch, capsys) -> None:
    people, file = "synthetic:identities=20,images=3,seed=2", tmp_path / "cross.json"
    same = (models[0], models[0], people, "--cross", "--resamples", 20)
    status, shown, _ = run_main(monkeypatch, capsys, "compare", *same, "--json", file)
    assert status == 0
    assert "new x old - old x old" in shown
    record = json.loads(file.read_text())
    assert set(record["differences"]["new x old - old x old"]["figures"].values()) == {
        0.0
    }  # one model: nothing to gain
    assert record["far_at_old_threshold"]["new x new"] <= 0.01
    torch.manual_seed(0)
    other = save_model(tmp_path / "other", create_backbone("r6_tiny", embedding_size=16).eval())
    for words, message in (
        ((models[0], other, people), "the new model gives 32 numbers per image and the old one 16"),
        ((models[0], models[1]), "compare --cross takes one path"),
        ((models[0], Path("x.npz"), people), "x.npz is a saved result, but --cross embeds with both models"),
        ((models[0], models[1], "synthetic:identities=3,images=2,seed=0"), "100 non-mated pairs for FAR 0.01"),
    ):
        status, _, said = run_main(monkeypatch, capsys, "compare", *words, "--cross")
        assert status != 0
        assert message in " ".join(said.split())
