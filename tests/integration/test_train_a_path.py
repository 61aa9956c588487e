"""`attfc train PATH` and `attfc.train(...)`: one line from faces to a judged model, in the shell and in Python."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import attfc
from attfc.config import load_config
from attfc.config.arguments import read_words
from attfc.data.loader import Batch
from attfc.run.build import settle
from attfc.training.trainer import Trainer

from .commands import run_main

QUICK = ["max_steps=4", "data.workers=0", "threads=1", "log.tensorboard=false", "eval.generated_pairs=40"]


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 synthetic people x 4 images, in folders."""
    root = tmp_path_factory.mktemp("set") / "my faces"
    store = attfc.SyntheticFaces(24, 4, seed=3)
    for position in range(len(store)):
        encoded, label = store.read(position)
        folder = root / f"person {label:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{position % 4}.jpg").write_bytes(encoded)
    return root


def test_a_folder_becomes_a_judged_model(people, tmp_path, monkeypatch, capsys) -> None:
    status, out, err = run_main(monkeypatch, capsys, "train", people, *QUICK, f"output={tmp_path}")
    assert status == 0, err
    run = tmp_path / "my-faces-001"
    said = " ".join(err.split())
    assert err.startswith(f"attfc: opening {people} ...")
    assert "kept aside 4 people" in said  # 8 would hold more than a fifth of all images
    assert "network r6_tiny small, for a processor; fewer than 5,000 images" in said
    assert "learning rate 0.0125 0.1 for 128 images per step, in proportion" in said
    assert "attfc on r6_tiny, 20 people, 80 images, 4 steps of 16 on cpu" in said
    lines = out.strip().splitlines()
    assert len(lines) <= 12
    assert "4 people" in out
    for word in ("accuracy of pairs", "rank-1", "EER", "model   ", "report  ", "next    "):
        assert word in out
    assert (run / "report.html").exists()
    saved = load_config(str(run / "config.yaml"))
    assert (saved.eval.share, saved.negatives.get("count"), saved.batch_size) == (0.1, 20, 16)
    figures = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    assert figures["all_pairs"]["identities"] == 4


def test_print_config_is_what_a_run_saves(people, tmp_path, monkeypatch, capsys) -> None:
    status, out, err = run_main(monkeypatch, capsys, "train", people, "--print-config", *QUICK, f"output={tmp_path}")
    assert status == 0, err
    assert not list(tmp_path.iterdir())
    path = tmp_path / "printed.yaml"
    path.write_text(out, encoding="utf-8")
    run = attfc.train(people, *QUICK, output=tmp_path)
    assert load_config(str(path)) == load_config(str(run.folder / "config.yaml")) == run.config


def test_from_python_with_short_names(people, tmp_path) -> None:
    run = attfc.train(people, "eval.share=0", *QUICK, epochs=2, lr=0.02, head="full_fc", output=tmp_path, name="mine")
    assert (run.config.head.kind, run.config.optimizer.learning_rate, run.config.schedule.epochs) == (
        "full_fc",
        0.02,
        2,
    )
    assert run.metrics is None
    assert run.folder.name == "mine-001"
    assert run.report == run.folder / "report.html"
    with pytest.raises(attfc.UserError, match=r"train\(\) has no argument 'epoch'; did you mean 'epochs'\?"):
        attfc.train(people, epoch=3)


def test_a_preset_beside_the_data_is_an_input_of_the_choice(people, tmp_path, monkeypatch, capsys) -> None:
    for words in (["faces112", people], [people, "faces112"]):
        status, out, _ = run_main(monkeypatch, capsys, "train", *words, "--print-config")
        assert status == 0
        path = tmp_path / "printed.yaml"
        path.write_text(out, encoding="utf-8")
        config = load_config(str(path))
        assert (config.backbone.name, config.batch_size, config.data.root) == ("r10_tiny", 128, str(people))
        assert config.eval.share == 0.1


def test_a_preset_wins_over_a_folder_of_its_name(people, tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "demo").symlink_to(people, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    assert "synthetic:identities=600" in run_main(monkeypatch, capsys, "train", "demo", "--print-config")[1]
    assert "root: ./demo" in run_main(monkeypatch, capsys, "train", "./demo", "--print-config")[1]


def test_the_first_line_stands_before_torch_is_loaded(people) -> None:
    code = f"""
import sys
from attfc.commands import training, common
printed = []
def note(text, **_):
    printed.append((text, "torch" in sys.modules, "matplotlib" in sys.modules))
    raise SystemExit(0)
common.err.print = note
sys.argv = ["attfc", "train", {str(people)!r}]
from attfc import cli
try:
    cli.main()
finally:
    assert printed == [("attfc: opening " + {str(people)!r} + " ...", False, False)], printed
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_few_people_are_trained_on_all_and_a_sentence_says_why(tmp_path, monkeypatch, capsys) -> None:
    typed = ["synthetic:identities=3,images=8", *QUICK, f"output={tmp_path}"]
    status, out, err = run_main(monkeypatch, capsys, "train", *typed)
    assert status == 0, err
    said = " ".join(err.split())
    assert "nobody no evaluation: 3 people have two or more images, 20 are needed; give eval.root=OTHER_PEOPLE" in said
    assert "accuracy" not in out


def test_an_interrupt_in_python_saves_and_returns_the_run(people, tmp_path, monkeypatch) -> None:
    step = Trainer.train_step

    def interrupted_step(trainer: Trainer, batches: list[Batch]) -> torch.Tensor:
        if trainer.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(trainer, batches)

    monkeypatch.setattr(Trainer, "train_step", interrupted_step)
    quick = [text for text in QUICK if not text.startswith("max_steps")]
    run = attfc.train(people, *quick, epochs=100, output=tmp_path)
    assert run.interrupted
    assert run.trainer.step == 3 < run.trainer.total_steps
    assert list((run.folder / "checkpoints").iterdir())


def test_what_does_not_fit_is_cut_into_smaller_passes(people, monkeypatch) -> None:
    monkeypatch.setattr("attfc.run.automatic.Planner.passes_that_fit", lambda *_: 4)
    settled = settle(read_words([people, "backbone=r18"]))
    config, rows = settled.config, settled.choices
    assert (config.batch_size, config.optimizer.accumulation) == (4, 4)  # 16 images per step, as chosen
    assert (rows[-1].what, rows[-1].shown) == ("cut to fit", "4 x 4")
    assert rows[-1].why.startswith("a batch of 16 does not fit ")
    settled = settle(read_words([people, "backbone=r18", "batch_size=16"]))
    typed, rows = settled.config, settled.choices
    assert (typed.batch_size, rows[-1].what) == (16, "scale, margin")


@pytest.mark.parametrize(
    ("option", "fault"),
    [
        ("eval.pairs=nowhere.txt", "eval.pairs=nowhere.txt: No such file or directory"),
        ("eval.pairs=pairs.txt", "set eval.root= to the images of the people in the list"),
        (
            "eval.root=synthetic:identities=1,images=3",
            "1 identity has images: non-mated pairs need at least 2 identities; or set",
        ),
        ("eval.root=synthetic:identities=5,images=1", "mated pairs need one that has"),
        ("device=mps", "cannot be used here"),
    ],
)
def test_what_cannot_be_judged_is_said_in_one_line(people, tmp_path, monkeypatch, capsys, option, fault) -> None:
    (tmp_path / "pairs.txt").write_text("1\nnobody\t1\t2\nnobody\t1\tno one\t2\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    status, _, err = run_main(monkeypatch, capsys, "train", people, *QUICK, option)
    last = err.strip().splitlines()[-1]
    assert status == 1
    assert last.startswith("error: ")
    assert fault in last
    assert len(last) < 400  # torch lists every kernel of a device
    assert not (tmp_path / "runs").exists()


def test_a_pair_list_that_nobody_is_judged_on_is_said_to_be_unread(people, tmp_path) -> None:
    run = attfc.train(people, *QUICK, "eval.share=0", "eval.pairs=pairs.txt", output=tmp_path)
    assert "eval.pairs=pairs.txt is not read: set eval.root= to the images of its people" in run.notes


def test_a_rate_may_be_written_with_an_exponent(people, tmp_path) -> None:
    run = attfc.train(people, *QUICK, "lr=1e-3", output=tmp_path)
    assert run.config.optimizer.learning_rate == 0.001


def test_python_takes_numbers_of_numpy_devices_and_runs_and_refuses_the_rest_in_one_line(people, tmp_path) -> None:
    run = attfc.train(
        people, *QUICK, lr=np.float32(0.25), device=torch.device("cpu"), seed=np.int64(3), output=tmp_path
    )
    assert (run.config.optimizer.learning_rate, run.config.device, run.config.seed) == (0.25, "cpu", 3)
    assert attfc.train(people, *QUICK, start_from=run, output=tmp_path).config.start_from == str(run.folder)
    for wrong in (None, 3, [str(people)], attfc.open_store(people)):
        with pytest.raises(
            attfc.UserError, match=f"takes data as a path or synthetic:..., .* not {type(wrong).__name__}"
        ):
            attfc.train(wrong)  # type: ignore[arg-type]
    with pytest.raises(attfc.UserError, match="learning_rate='<object"):
        attfc.train(people, lr=object())


def test_a_screen_that_nobody_reads_ends_the_run_and_leaves_no_folder(people, tmp_path) -> None:
    command = [sys.executable, "-m", "attfc", "train", str(people), *QUICK, f"output={tmp_path}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == f"attfc: opening {people} ...\n".encode()
        process.stderr.close()
        assert process.wait() == 1
    assert not list(tmp_path.iterdir())


def test_a_run_given_as_data_says_how_to_go_on_with_it(people, tmp_path, monkeypatch, capsys) -> None:
    run = attfc.train(people, *QUICK, output=tmp_path)
    status, _, err = run_main(monkeypatch, capsys, "train", run.folder)
    assert status == 1
    assert f"{run.folder} is a run and no data: to go on with it: attfc train --resume {run.folder}; to start" in err


def test_an_evaluation_that_fails_at_the_end_says_how_to_go_on(people, tmp_path, monkeypatch, capsys) -> None:
    kept = tmp_path / "kept"
    shutil.copytree(people, kept)
    for broken in sorted(kept.rglob("0.jpg")):
        broken.write_bytes(b"no picture")
    typed = [
        "demo",
        *QUICK,
        f"data.root={people}",
        f"eval.root={kept}",
        f"output={tmp_path / 'runs'}",
        "backbone=r6_tiny",
    ]
    status, _, err = run_main(monkeypatch, capsys, "train", *typed)
    assert status == 1  # before the first step, and nothing is left behind
    said = "images are broken, more than the limit of 0.01; the first is "
    assert said in " ".join(err.split())
    assert "0.jpg: " in err
    assert "(of a training run: data.broken_limit)" in " ".join(err.split())
    assert not (tmp_path / "runs").exists()

    shutil.rmtree(kept)
    shutil.copytree(people, kept)
    status, _, err = run_main(monkeypatch, capsys, "train", *typed)
    assert status == 0, err
    for broken in sorted(kept.rglob("0.jpg")):
        broken.write_bytes(b"no picture")
    folder = tmp_path / "runs" / "demo-001"
    status, _, err = run_main(monkeypatch, capsys, "train", "--resume", folder, "max_steps=6")
    assert status == 1
    assert "the evaluation at step 6 failed: " in err
    assert f"go on with attfc train --resume {folder}" in " ".join(err.split())
    status, out, err = run_main(monkeypatch, capsys, "train", "--resume", folder, "data.broken_limit=0.3")
    assert status == 0, err
    assert "accuracy of pairs" in out
    status, _, err = run_main(monkeypatch, capsys, "train", *typed, "data.broken_limit=0.3")
    assert status == 0, err
    assert re.search(
        r"note: \d+ of the \d+ images to be evaluated on are broken and left out; the first is", " ".join(err.split())
    )
