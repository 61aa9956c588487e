"""The commands as a user types them: on a folder of faces, and with everything that can be wrong."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

from attfc import cli
from attfc.commands.common import write_json
from attfc.config import load_config
from attfc.config.schema import described_fields
from attfc.run.components import build_head

from .commands import attfc, run_main
from .conftest import TINY


def test_train_evaluate_and_report_on_a_folder(tmp_path, face_folder, monkeypatch, capsys) -> None:
    cache = tmp_path / "cache"
    done = attfc(
        *("train", "demo", *TINY, f"data.root={face_folder}", f"eval.root={os.path.relpath(face_folder)}"),
        *(
            f"data.index_cache={cache}",
            f"eval.index_cache={cache}",
            f"output={tmp_path}",
            "data.workers=1",
            "negatives.count=16",
            "log.tensorboard=true",
            "report.write=true",
            "report.pictures=true",
        ),
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    run = tmp_path / "demo-001"
    for name in (
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "evaluation.json",
        "evaluation.npz",
        "report.html",
    ):
        assert (run / name).stat().st_size > 0
    assert list((run / "tensorboard").iterdir())
    assert (run / "model" / "model.safetensors").exists()
    assert (run / "best" / "config.json").exists()
    assert "data:image/jpeg;base64," in (run / "report.html").read_text()
    figures = json.loads((run / "evaluation.json").read_text())
    assert 0.0 <= figures["accuracy"] <= 1.0
    assert figures["flip"] is True
    low, high = figures["intervals"]["eer"]
    assert low <= figures["eer"] <= high
    assert f"[{low:.4f}, {high:.4f}]" in done.stdout
    assert f"[{100 * low:.2f}, {100 * high:.2f}]" in (run / "report.html").read_text()
    assert "interval" not in (run / "metrics.jsonl").read_text()  # of the last evaluation alone, in evaluation.json
    again = ("evaluate", run, "held-out", face_folder, "--cache", cache, "--json", tmp_path / "e.json")
    status, _, err = run_main(monkeypatch, capsys, *again, "--generated-pairs", 40)
    assert status == 0, err
    repeated = json.loads((tmp_path / "e.json").read_text())
    assert repeated["rank_one"] == pytest.approx(figures["rank_one"], abs=0.05)  # the run evaluated in bfloat16
    status, _, err = run_main(monkeypatch, capsys, "report", run)
    assert (status, err) == (0, "note: the run's earlier report is replaced\n")
    assert "data:image/jpeg" not in (run / "report.html").read_text()
    moved = run.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)  # eval.root is relative to where the run was started
    status, _, err = run_main(monkeypatch, capsys, "report", moved, "--pictures")
    assert status == 0, err
    assert "data:image/jpeg;base64," in (moved / "report.html").read_text()


def test_inspect_counts_and_names_what_is_broken(tmp_path, face_folder, monkeypatch, capsys) -> None:
    folder = tmp_path / "set"
    for source in sorted(face_folder.rglob("*.jpg"))[:20]:
        target = folder / source.parent.name / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    some = sorted(folder.iterdir())[0]
    (some / "text.jpg").write_text("not an image")
    (some / "empty.png").write_bytes(b"")
    (some / "twice.jpg").write_bytes(sorted(some.glob("*_*.jpg"))[0].read_bytes())
    status, out, err = run_main(
        monkeypatch,
        capsys,
        "data",
        "inspect",
        folder,
        "--workers",
        0,
        "--cache",
        tmp_path / "c",
        "--json",
        tmp_path / "i.json",
    )
    assert status == 0, err
    found = json.loads((tmp_path / "i.json").read_text())
    assert (found["identities"], found["images"]) == (len(list(folder.iterdir())), 23)
    assert len(found["broken"]) == 2
    assert "text.jpg" in out
    assert "empty.png" in out
    assert "twice.jpg" in out


def test_preview_writes_a_sheet(tmp_path, monkeypatch, capsys) -> None:
    output = tmp_path / "sheet.png"
    status, _, err = run_main(
        monkeypatch, capsys, "data", "preview", "synthetic:identities=4,images=3,seed=1", "-o", output
    )
    assert status == 0, err
    with Image.open(output) as sheet:
        assert sheet.size[0] > 200


def test_backbones_table_and_json(tmp_path, monkeypatch, capsys) -> None:
    status, out, err = run_main(monkeypatch, capsys, "backbones", "--json", tmp_path / "b.json")
    assert status == 0, err
    rows = {row["name"]: row for row in json.loads((tmp_path / "b.json").read_text())["backbones"]}
    assert round(rows["r50"]["params"] / 1e6, 2) == 43.59
    assert "vit_l" in out


def test_print_config_is_yaml_that_trains(tmp_path, monkeypatch, capsys) -> None:
    status, out, _ = run_main(
        monkeypatch, capsys, "train", "faces112", "data.root=/faces with space/Zoë", "--print-config"
    )
    assert status == 0
    path = tmp_path / "printed.yaml"
    path.write_text(out, encoding="utf-8")
    status, again, _ = run_main(monkeypatch, capsys, "train", path, "--print-config")
    assert (status, again) == (0, out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "dmo"],
            "'dmo' is not a folder here, a preset or key=value; presets near it: demo; to train on your faces: attfc train FOLDER",
        ),
        (["train"], "no data and no preset: write attfc train FOLDER"),
        (["train", "faces/"], "faces/: no such file or folder (searched in "),
        (["train", "demo", "faces112"], "demo and faces112 are two configurations"),
        (["train", "synthetic:", "synthetic:images=3"], "are two sets of data"),
        (["train", "synthetic:", "data.root=x"], "both name the data"),
        (["train", "demo", "data.rot=x"], "unknown key 'data.rot'; did you mean 'data.root'?"),
        (["train", "demo", "data.root=/nowhere/at all"], "/nowhere/at all"),
        (
            ["train", "demo", "center=key_attention", "center.keys=0"],
            "center.keys=0: input should be greater than or equal to 1",
        ),
        (["train", "demo", "backbone.name=r51"], "r51"),
        (["train", "demo", "device=nonsense"], "device='nonsense' cannot be used here"),
        (["train", "demo", "eval.pairs=/no/pairs.txt"], "/no/pairs.txt"),
        (["train", "--resume", "/nowhere"], "is no folder of a run"),
        (["data", "inspect", "/nowhere"], "/nowhere"),
        (["evaluate", "/nowhere", "held-out", "synthetic:identities=4,images=2"], "/nowhere"),
        (["evaluate", "/nowhere", "ijbz", "synthetic:identities=4,images=2"], "unknown protocol 'ijbz'"),
        (["data", "preview", "synthetic:identites=4"], "identites"),
        (["train", "demo", "batch_size=9999999999999"], "batch_size=9999999999999: input should be less than or equal"),
        (["train", "demo", "epochs", "=", "3"], "options are written without spaces around the sign"),
        (["train", "demo", "output=/dev/null"], "name a folder that you may write into"),
        (["backbones", "--json", "/dev/null/b.json"], "/dev/null/b.json cannot be written (/dev/null: File exists)"),
        (["study", "table", "/nowhere.yaml"], "/nowhere.yaml"),
    ],
)
def test_a_fault_of_the_input_is_one_line_and_status_1(tmp_path, monkeypatch, capsys, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = run_main(monkeypatch, capsys, *arguments)
    assert status == 1
    assert message in err
    *before, last = err.strip().splitlines()
    assert last.startswith("error: ")
    assert [line for line in before if not line.startswith("attfc: ")] == []  # beside what was going to be done
    assert not (tmp_path / "runs").exists()  # nothing half-made is left


def test_a_folder_that_begins_with_a_dash_is_reached_with_a_dot(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-faces").mkdir()
    status, _, err = run_main(monkeypatch, capsys, "train", "-faces")
    assert status == 2
    assert err == "error: -faces is there, but a word that begins with a dash is taken for an option: write ./-faces\n"
    assert "no images" in run_main(monkeypatch, capsys, "train", "./-faces")[2]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError(2, "No such file or directory", "a.txt"), "error: a.txt: No such file or directory\n"),
        (
            OSError(errno.EROFS, "Read-only file system", "a/b"),
            "error: a/b: Read-only file system; take a place that can be written to\n",
        ),
        (MemoryError("Unable to allocate 9 TiB\nmore"), "error: Unable to allocate 9 TiB. Close other programs, or"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "error: DefaultCPUAllocator: can't allocate"),
    ],
)
def test_what_the_system_refuses_is_one_line(monkeypatch, capsys, error, said) -> None:
    refuse_with(error, monkeypatch)
    status, _, err = run_main(monkeypatch, capsys, "backbones")
    assert status == 1
    assert err.startswith(said)


def refuse_with(error: Exception, monkeypatch) -> None:
    """Let every command end so."""

    def refuse(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(type(cli.app), "__call__", refuse)


IDLE = {
    "evaluate m held-out s --enrolled 0.3": "--enrolled is an option of identify: leave it out of held-out",
    "evaluate m identify s --generated-pairs 10": "--generated-pairs is an option of held-out: leave it out of identify",
    "evaluate m all-pairs s --mode all": "--mode is an option of ijbb or ijbc: leave it out of all-pairs",
    "compare a b held-out s --budget-gib 1": "--budget-gib is an option of all-pairs: leave it out of held-out",
    "data clean s --move": "--move compares faces: give --model RUN too",
    "data clean s --threshold 0.2": "--threshold compares faces: give --model RUN too",
    "data clean s --margin 0": "--margin compares faces: give --model RUN too",
    "data clean s --no-people": "--no-people compares faces: give --model RUN too",
    "data clean s --model m --move-threshold 0.9": "--move-threshold is for --move: add it, or leave both out",
    "data noise s flip --share 0.1 -o OUT.tsv --parts 3": "--parts is for conflict, which splits identities: leave it out with flip",
    "data convert s OUT --to rec --shard-mib 5": "--shard-mib is for packed folders: leave it out with --to rec",
    "data convert s OUT --to folder --no-names": "--no-names is for packed folders and .rec files: leave it out with --to folder",
    "export m OUT.onnx --fmr 0.1": "--fmr is for --int8: add it, or leave both out",
    "export m OUT.onnx --calibration s": "--calibration is for --int8: add it, or leave both out",
    "export m OUT.onnx --int8 --most-loss -1": "--most-loss -1: give percentage points from 0 to 100, such as --most-loss 0.2",
    "report . --pictures": ". is not a run: it has no config.yaml: a run is a folder such as runs/faces-001, and --resume last takes the newest",
    "export m OUT.onnx --int8 --fmr 7": "--fmr 7 is not a false match rate: give a number above 0 and below 1, such as --fmr 1e-3",
}


def test_an_option_that_does_nothing_here_is_refused_before_anything_is_opened(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for typed, said in IDLE.items():
        status, _, err = run_main(monkeypatch, capsys, *typed.split(" "))
        assert (status, err) == (1, f"error: {said}\n"), typed
    assert not [*tmp_path.iterdir()]


def test_help_has_whole_sentences_and_plain_names_of_arguments(monkeypatch, capsys) -> None:
    group = typer.main.get_command(cli.app)
    for words in [(), *((name,) for name, each in group.commands.items() if hasattr(each, "commands"))]:
        assert "..." not in run_main(monkeypatch, capsys, *words, "--help")[1].replace("[ARGS]...", "")
    for words in leaves(group):
        usage = run_main(monkeypatch, capsys, *words, "--help")[1].splitlines()[0]
        assert "...}" not in usage
        assert "[[" not in usage


def leaves(group: Any, *words: str) -> dict[tuple[str, ...], Any]:
    """Every command by the words that call it."""
    if not hasattr(group, "commands"):
        return {words: group}
    found: dict[tuple[str, ...], Any] = {}
    for name, each in group.commands.items():
        found |= leaves(each, *words, name)
    return found


def test_advice_for_lack_of_memory_names_options_that_the_command_has(monkeypatch, capsys) -> None:
    commands = leaves(typer.main.get_command(cli.app))
    refuse_with(RuntimeError("CUDA: DefaultCPUAllocator: can't allocate memory"), monkeypatch)
    said = {words: run_main(monkeypatch, capsys, *words)[2] for words in commands}
    for words, command in commands.items():
        flags = {name for parameter in command.params for name in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", said[words])) <= flags, words
        keys = re.findall(r"[a-z]+\.[a-z_]+|\bbatch_size", said[words])
        assert bool(keys) == (words in {("train",), ("plan",)}), words
        assert set(keys) <= described_fields().keys()
    evaluating = [
        run_main(monkeypatch, capsys, "evaluate", "m", protocol, "s")[2] for protocol in ("all-pairs", "ijbc")
    ]
    assert ["--budget-gib" in advice for advice in evaluating] == [True, False]
    assert said[("embed",)].endswith("Try a smaller --batch-size or fewer --workers or --device cpu\n")
    assert said[("align",)].endswith("Try fewer --workers\n")
    assert said[("data", "convert")].endswith("Close other programs, or take a machine with more memory\n")
    resumed = run_main(monkeypatch, capsys, "train", "--resume", "last")[2]  # which keeps its batch_size and network
    assert resumed.endswith("Try precision.amp=bfloat16, or a smaller eval.batch_size\n")


def test_json_goes_through_a_link_and_takes_names_that_are_no_text(tmp_path) -> None:
    link, real = tmp_path / "link.json", tmp_path / "real.json"
    real.touch()
    link.symlink_to(real)
    write_json(link, {"person": "\udcff"})
    assert link.is_symlink()
    assert json.loads(real.read_text()) == {"person": "\udcff"}


def test_a_model_that_could_not_be_saved_is_refused_before_the_training(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("attfc.training.model_files.LARGEST_EMBEDDING", 100)
    asked = ("train", "demo", *TINY, "backbone.embedding_size=128", f"output={tmp_path / 'runs'}")
    status, _, err = run_main(monkeypatch, capsys, *asked)
    assert status == 1
    assert err.endswith("error: the model: embedding_size 128 is not a whole number from 1 to 100\n")
    assert not (tmp_path / "runs").exists()


def train_on(folder: Path, tmp_path: Path, *more: str) -> list[object]:
    return [
        "train",
        "demo",
        *TINY,
        f"data.root={folder}",
        f"data.index_cache={tmp_path / 'c'}",
        f"output={tmp_path / 'runs'}",
        *more,
    ]


def test_folders_that_cannot_be_trained_on(tmp_path, face_folder, monkeypatch, capsys) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    status, _, err = run_main(monkeypatch, capsys, *train_on(empty, tmp_path))
    assert (status, len(err.strip().splitlines())) == (1, 2)
    assert str(empty) in err
    one = tmp_path / "one" / "somebody"
    one.mkdir(parents=True)
    for source in sorted(face_folder.rglob("*.jpg"))[:3]:
        (one / source.name).write_bytes(source.read_bytes())
    status, _, err = run_main(monkeypatch, capsys, *train_on(one.parent, tmp_path))
    assert status == 1
    assert "holds 1 identity: training tells identities apart, so it needs at least 2" in err


def test_container_smaller_than_the_batch_names_both_and_the_fix(tmp_path, face_folder, monkeypatch, capsys) -> None:
    typed = ["negatives.count=6", "negatives=recent_centers"]
    status, _, err = run_main(monkeypatch, capsys, *train_on(face_folder, tmp_path, *typed))
    assert status == 1
    assert "negatives.count=6 is smaller than batch_size=16" in err
    fix = re.search(r"set (negatives.count=\d+), or (batch_size=\d+)", err)
    assert fix is not None
    for way in fix.groups():
        load_config("demo", [*typed, "batch_size=16", way])
        build_head(load_config("demo", [*typed, "batch_size=16", way]), 12)


def test_too_many_broken_images_stop_the_run_and_few_are_listed(tmp_path, face_folder, monkeypatch, capsys) -> None:
    folder = tmp_path / "set"
    for source in face_folder.rglob("*.jpg"):
        target = folder / source.parent.name / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    victim = sorted(folder.rglob("*.jpg"))[4]
    victim.write_bytes(victim.read_bytes()[:200])
    options = [
        "negatives.count=16",
        "eval.root=null",
        "data.broken_limit=0.2",
        "schedule.epochs=1",
        "center=key_attention",
    ]
    status, _, err = run_main(monkeypatch, capsys, *train_on(folder, tmp_path, *options))
    assert status == 0, err
    records = [json.loads(line) for line in (tmp_path / "runs" / "demo-001" / "metrics.jsonl").read_text().splitlines()]
    assert {record["where"] for record in records if record["kind"] == "broken"} == {
        f"{victim.parent.name}/{victim.name}"
    }
    status, _, err = run_main(monkeypatch, capsys, *train_on(folder, tmp_path, *options, "data.broken_limit=0.001"))
    assert status == 1
    assert victim.name in err


def test_usage_error_is_status_2_and_version_and_help_work() -> None:
    assert attfc("train", "demo", "--nonsense").returncode == 2
    assert attfc("--version").stdout.strip()
    shown = attfc("--help")
    assert shown.returncode == 0
    for command in ("train", "evaluate", "data", "backbones", "report"):
        assert command in shown.stdout


def test_debug_shows_the_traceback() -> None:
    done = attfc("train", "dmo", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_ctrl_c_while_the_program_is_loaded_leaves_with_130() -> None:
    code = (
        "import builtins, sys; real = builtins.__import__\n"
        "def stopped(name, *rest, **more):\n"
        "    if name == 'attfc.cli': raise KeyboardInterrupt\n"
        "    return real(name, *rest, **more)\n"
        "builtins.__import__ = stopped\n"
        "from attfc.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
