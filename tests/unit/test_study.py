"""The study's bench: the vector world, cells, grids that go on where they stopped, tables."""

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attfc.config import load_config
from attfc.config.choose import FREQUENT, Data, Machine, choose
from attfc.data import open_store
from attfc.errors import UserError
from attfc.evaluation import embed_store
from attfc.lab import study as study_module
from attfc.lab.pages import FIGURES, study_figure, study_table
from attfc.lab.study import read_study, run_study, study_records
from attfc.lab.study_cells import _head_bytes_of, evaluate_faces, evaluate_vectors, run_faces, run_vectors
from attfc.lab.study_people import unpacked
from attfc.lab.vectors import VectorEncoder, VectorWorld
from attfc.training.interruption import Interrupted

TINY = VectorWorld(identities=60, images=(2, 6), test_identities=30)
QUICK = ["batch_size=32", "backbone.embedding_size=16", "schedule.epochs=1"]

GRID = """
world: {kind: vectors, identities: 60, images: [2, 6], test_identities: 30}
overrides: [batch_size=32, backbone.embedding_size=16, schedule.epochs=1]
reference: full_fc
seeds: [0, 1]
variants:
  full_fc: [head=full_fc]
  attfc, K = 1: [negatives.share=1, center=key_attention, center.keys=1]
"""


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    path = tmp_path / "grid.yaml"
    path.write_text(GRID)
    return path


# The world


def test_what_is_seen_is_a_function_of_person_and_sample() -> None:
    persons, samples = np.array([3, 7, 3]), np.array([0, 1, 2])
    together = TINY.observe(persons, samples)
    alone = np.concatenate([TINY.observe(persons[row : row + 1], samples[row : row + 1]) for row in (2, 0, 1)])
    np.testing.assert_allclose(together[[2, 0, 1]], alone, rtol=1e-5, atol=1e-5)
    other = VectorWorld(identities=60, images=(2, 6), test_identities=30, seed=1)
    assert np.abs(other.observe(persons, samples) - together).min(axis=1).max() > 1e-3


def test_latents_and_nuisances_are_normal() -> None:
    from attfc.lab.vectors import _normals

    drawn = _normals(7, 5, np.arange(20_000))
    assert drawn.shape == (20_000, 7)
    assert np.isfinite(drawn).all()
    assert abs(drawn.mean()) < 0.01
    np.testing.assert_allclose(np.cov(drawn.T), np.eye(7), atol=0.04)
    assert abs((drawn**4).mean() - 3) < 0.1


def test_a_view_moves_a_sample_less_than_another_sample_does() -> None:
    persons, samples = np.arange(50), np.zeros(50, np.int64)
    seen = TINY.observe(persons, samples)
    view = np.linalg.norm(TINY.observe(persons, samples, np.arange(50) + 9) - seen, axis=1)
    sample = np.linalg.norm(TINY.observe(persons, samples + 1) - seen, axis=1)
    person = np.linalg.norm(TINY.observe(persons + 100, samples) - seen, axis=1)
    assert view.max() > 0
    assert view.mean() < sample.mean() < person.mean()


def test_positions_run_person_by_person_and_few_have_many() -> None:
    world = VectorWorld(identities=2000, images=(2, 20))
    people = world.people()
    counts = people.counts()
    assert (counts.min(), counts.max()) == (2, 20)
    assert (counts <= 6).mean() > 0.4
    persons, samples = world.samples_at(np.array([[0, int(counts[0])], [1, 0]]))
    assert persons.tolist() == [[0, 1], [0, 0]]
    assert samples.tolist() == [[0, 0], [1, 0]]


def test_nobody_kept_aside_is_trained_on() -> None:
    groups = [set(TINY.kept_aside(split)[0].tolist()) for split in ("validation", "test")]
    assert [len(group) for group in groups] == [30, 30]
    assert not groups[0] & groups[1]
    assert min(min(group) for group in groups) >= TINY.identities


def test_flipped_labels_and_people_under_two_labels() -> None:
    world = VectorWorld(identities=1000, images=(2, 8), flip=0.4)
    index = world.labelled()
    truth, _ = world.samples_at(index.items)
    shown = np.repeat(np.arange(len(index)), index.counts())
    # Labels may be renumbered where somebody lost everything: compare within the shown groups.
    majority = [np.bincount(truth[shown == label]).argmax() for label in range(len(index))]
    assert abs((truth == np.array(majority)[shown]).mean() - 0.62) < 0.05
    split = VectorWorld(identities=1000, images=(2, 8), conflict=0.5)
    assert abs(len(split.labelled()) - 1500) < 60
    assert split.labelled().images == split.people().images


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"identities": 1}, "world identities = 1: set it to 2 or more"),
        ({"images": (3, 2)}, r"world images = \[3, 2\]: give the least and the most a person"),
        ({"flip": 1.5}, r"world flip = 1\.5 is a share"),
    ],
)
def test_worlds_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        VectorWorld(**options)


# Cells


@pytest.mark.parametrize(
    "overrides",
    [
        ["head=full_fc"],
        ["head=partial_fc", "head.share=0.6"],
        ["negatives.share=1", "center=key_attention"],
        ["negatives.share=0.6"],
        ["negatives.share=1", "center=pairs"],
        ["negatives.share=0.6", "center=other_images"],
        ["head=dcq", "head.share=1"],
        ["head=dcp", "head.share=1"],
    ],
)
def test_a_cell_of_every_head(overrides: list[str]) -> None:
    record = run_vectors(TINY, "demo", [*QUICK, *overrides], seed=0, width=16, points=2)
    assert "failed" not in record
    batches = 32 * record["steps"] / record["images"]
    # Of F2C's batches, which are dcp's, 10 of 32 are drawn by image, and those are the epoch.
    assert batches == pytest.approx(32 / 10 if "head=dcp" in overrides else 1, rel=0.35)
    assert [point["step"] for point in record["curve"]][-1] == record["steps"]
    assert set(record["figures"]) == {"validation", "test"}
    assert 0 <= record["figures"]["test"]["rank_one"] <= 1
    assert record["head_bytes"] > 0
    json.dumps(record)


def test_accumulated_batches_are_one_step_and_max_steps_end_a_cell() -> None:
    whole = run_vectors(TINY, "demo", [*QUICK, "head=full_fc"], 0, width=16, points=1)
    halves = run_vectors(
        TINY, "demo", [*QUICK, "head=full_fc", "batch_size=16", "optimizer.accumulation=2"], 0, width=16, points=1
    )
    assert halves["steps"] == whole["steps"] == 7
    assert halves["curve"][0]["loss"] != whole["curve"][0]["loss"]  # BatchNorm sees half of the samples
    assert halves["curve"][0]["loss"] == pytest.approx(whole["curve"][0]["loss"], rel=0.2)
    cut = run_vectors(TINY, "demo", [*QUICK, "head=full_fc", "schedule.max_steps=5"], 0, width=16, points=1)
    assert cut["steps"] == 5


def test_a_cell_is_a_function_of_its_seed() -> None:
    curves = [
        [point["loss"] for point in run_vectors(TINY, "demo", [*QUICK, "negatives.share=1"], seed, 16, 2)["curve"]]
        for seed in (0, 0, 1)
    ]
    assert curves[0] == curves[1] != curves[2]


def test_training_teaches() -> None:
    record = run_vectors(TINY, "demo", [*QUICK, "head=full_fc", "schedule.epochs=20"], 0, width=64, points=2)
    untrained = evaluate_vectors(TINY, VectorEncoder(TINY.size, 16, 64), "test")
    assert record["figures"]["test"]["rank_one"] > untrained["rank_one"]
    assert record["curve"][1]["loss"] < record["curve"][0]["loss"]


def test_a_loss_that_is_not_finite_is_a_result() -> None:
    overrides = [
        *QUICK,
        "head=full_fc",
        "optimizer.learning_rate=1e30",
        "optimizer.clip=0",
        "schedule.warmup_epochs=0",
    ]
    record = run_vectors(TINY, "demo", [*overrides, "schedule.epochs=10"], 0, width=16, points=1)
    assert record["failed"].startswith("the loss of step ")
    assert "figures" not in record


@pytest.mark.slow  # attfc train in a process of its own
def test_a_cell_of_faces_trains_as_typed_and_is_judged_on_two_halves_of_the_people_kept_aside() -> None:
    faces = [
        "data.root=synthetic:identities=24,images=4,seed=0",
        "batch_size=24",
        "backbone.name=r6_tiny",
        "data.workers=0",
    ]
    overrides = [*faces, "data.decoded_cache_mib=0", "schedule.warmup_epochs=0", "schedule.max_steps=2", "log.every=1"]
    people = "eval.root=synthetic:identities=20,images=3,seed=0,first=1000"
    with pytest.raises(UserError, match=r"evaluates on eval\.root, and there is none: add"):
        run_faces("demo", [*overrides, "eval.root=null"], seed=0, threads=1)
    record = run_faces("demo", [*overrides, people, "eval.every=0", "negatives.count=24"], seed=0, threads=1)
    assert record["steps"] == 2
    assert record["config"]["seed"] == 0
    assert [point["step"] for point in record["curve"]] == [1, 2]
    assert "tar_at_far/0.01" not in record["curve"][-1]
    assert (record["identities"], record["images"]) == (24, 96)
    assert record["head_bytes"] > 24 * record["config"]["backbone"]["embedding_size"] * 2
    assert set(record["figures"]) == {"validation", "test", "all"}
    assert record["figures"]["validation"] != record["figures"]["test"]


@pytest.mark.slow  # attfc train in a process of its own
def test_a_cell_of_faces_has_figures_along_its_run_if_asked() -> None:
    faces = [
        "data.root=synthetic:identities=24,images=4,seed=0",
        "batch_size=24",
        "data.workers=0",
        "negatives.count=24",
    ]
    people = [
        "eval.root=synthetic:identities=20,images=3,seed=0,first=1000",
        "eval.every=2",
        "eval.generated_pairs=100",
    ]
    short = ["data.decoded_cache_mib=0", "schedule.warmup_epochs=0", "schedule.max_steps=5"]
    record = run_faces("demo", [*faces, *people, *short], seed=0, threads=1)
    assert [point["step"] for point in record["curve"]] == [2, 4, 5]
    assert all(0 <= point["tar_at_far/0.01"] <= 1 for point in record["curve"])
    assert "TAR" in study_figure([{**record, "variant": "attfc", "world": {"kind": "faces"}}], "tar_at_far/0.01", "TAR")


@pytest.mark.parametrize("head", ["full_fc", "partial_fc", "attfc"])
def test_bytes_of_a_head_are_those_of_a_step_of_training(head: str) -> None:
    overrides = [
        f"head={head}",
        "batch_size=16",
        "backbone.embedding_size=32",
        "schedule.epochs=1",
        "schedule.warmup_epochs=0",
    ]
    world = VectorWorld(identities=200, images=(1, 3), test_identities=10)
    overrides += ["negatives.share=0.2"] if head == "attfc" else []
    trained = run_vectors(world, "demo", overrides, seed=0, width=8, points=1)
    assert _head_bytes_of(load_config("demo", overrides), 200, 400) == trained["head_bytes"]


def test_halves_of_the_people_share_nobody() -> None:
    class Model(torch.nn.Module):
        image_size = 56

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.adaptive_avg_pool2d(images, 5).flatten(1)

    held_out = open_store("synthetic:identities=40,images=3,seed=0")
    whole, people_of_all = evaluate_faces(Model(), held_out)
    assert whole["all"]["rank_one"] == unpacked(people_of_all["all"]["rank_one"]).sum() / 120
    names = [held_out.identity_name(label) for label in range(40)]
    halves = [zlib.crc32(name.encode()) % 2 for name in names]
    assert 10 < sum(halves) < 30
    embeddings = embed_store(Model(), held_out).vectors.reshape(40, 3, -1)
    for half, split in enumerate(("validation", "test")):
        own = embeddings[[label for label in range(40) if halves[label] == half]]
        rows, people = own.reshape(3 * len(own), -1), np.repeat(np.arange(len(own)), 3)
        scores, same = rows @ rows.T, people[:, None] == people[None]
        np.fill_diagonal(scores, -2)
        assert whole[split]["rank_one"] == pytest.approx((people[scores.argmax(axis=1)] == people).mean())
        impostor = np.sort(scores[~same])[::-1]
        threshold = impostor[int(0.01 * len(impostor))]
        genuine = scores[same & ~np.eye(len(rows), dtype=bool)]
        assert whole[split]["tar_at_far/0.01"] == pytest.approx((genuine > threshold).mean(), abs=0.02)


# Grids


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("identities: 60", "identites: 60"), "unknown key 'world.vectors.identites'; did you mean 'identities'"),
        (("reference: full_fc", "reference: fc"), "reference 'fc' is none of the variants: full_fc, attfc, K = 1"),
        (("full_fc: [head", "full fc: [head"), "reference 'full_fc' is none"),
        (("kind: vectors", "kind: pictures"), "world="),
        (("seeds: [0, 1]", "seeds: []"), r"seeds=\[\]: "),
        (("variants:", "variants: {"), "is not valid YAML"),
        (("[head=full_fc]", "[world.imagse=3]"), "unknown key 'imagse'; did you mean 'images'"),
    ],
)
def test_studies_that_are_refused(grid: Path, change: tuple[str, str], message: str) -> None:
    grid.write_text(GRID.replace(*change))
    with pytest.raises(UserError, match=message) as caught:
        read_study(grid)
    assert str(grid) in str(caught.value)


def test_an_override_that_train_would_refuse_stops_the_study_at_once(grid: Path, tmp_path: Path) -> None:
    grid.write_text(GRID.replace("center.keys=1", "center.keys=0"))
    with pytest.raises(UserError, match=r"center\.keys=0"):
        run_study(read_study(grid), tmp_path / "out", said=lambda _: None)
    with pytest.raises(UserError, match="has no variant 'fc': it has full_fc, attfc, K = 1"):
        run_study(read_study(grid), tmp_path / "out", only=["fc"], said=lambda _: None)
    grid.write_text(GRID.replace("center=key_attention, center.keys=1", '"data.root={faces}/train"'))
    with pytest.raises(UserError, match=r"an override names \{faces\}: say where with --faces"):
        run_study(read_study(grid), tmp_path / "out", said=lambda _: None)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow  # a process that imports torch for each of four cells
def test_a_variant_may_change_the_world(grid: Path, tmp_path: Path) -> None:
    grid.write_text(GRID.replace("[head=full_fc]", '["world.images=[3, 3]", head=full_fc]'))
    records = run_study(read_study(grid), tmp_path / "out", only=["full_fc"], said=lambda _: None)
    assert {(*record["world"]["images"], record["identities"], record["images"]) for record in records} == {
        (3, 3, 60, 180)
    }
    assert "head=full_fc" in records[0]["overrides"]
    assert not any("world" in override for override in records[0]["overrides"])


def test_a_study_goes_on_where_it_stopped(grid: Path, tmp_path: Path) -> None:
    study, folder, lines = read_study(grid), tmp_path / "out", []
    run_study(study, folder, only=["full_fc"], parallel=2, said=lines.append)
    assert lines[0] == "grid: 2 cells, 0 there, 2 to run"
    before = (folder / "cells.jsonl").read_bytes()
    records = run_study(study, folder, said=lines.append)
    assert "grid: 4 cells, 2 there, 2 to run" in lines
    assert (folder / "cells.jsonl").read_bytes().startswith(before)
    assert [path.name for path in folder.iterdir()] == ["cells.jsonl"]
    assert [(record["variant"], record["seed"]) for record in study_records(study, folder)] == [
        ("full_fc", 0),
        ("full_fc", 1),
        ("attfc, K = 1", 0),
        ("attfc, K = 1", 1),
    ]
    assert len(records) == 4
    alone = run_vectors(TINY, "demo", [*QUICK, "head=full_fc"], 1)
    assert records[2]["figures"]["test"].keys() == alone["figures"]["test"].keys()


LONG = """
world: {kind: vectors, identities: 2000, images: [2, 6], test_identities: 30}
overrides: [batch_size=32, backbone.embedding_size=16, schedule.epochs=100000]
seeds: [0, 1, 2, 3, 4]
variants:
  full_fc: [head=full_fc]
"""


def family(pid: int) -> list[int]:
    """A process and all that come from it."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8")
    return [pid, *(member for child in text.split() for member in family(int(child)))]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    "name",
    [
        "SIGTERM",
        pytest.param("SIGINT", marks=pytest.mark.slow),  # three processes that import torch, once more
        pytest.param("SIGKILL", marks=pytest.mark.slow),  # likewise
    ],
)
def test_a_study_that_is_ended_ends_its_cells(
    tmp_path: Path, name: str, end_with_test: Callable[[subprocess.Popen[str]], subprocess.Popen[str]]
) -> None:
    (tmp_path / "long.yaml").write_text(LONG)
    command = [sys.executable, "-m", "attfc", "study", "run", "long.yaml", "--parallel", "2"]
    study = end_with_test(
        subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    )
    members: list[int] = []
    try:
        until = time.monotonic() + 120
        while sum(trains(pid) for pid in family(study.pid)[1:]) < 2:  # as many as run at a time; others wait
            assert study.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        members = family(study.pid)
        study.send_signal(getattr(signal, name))
        said = study.communicate(timeout=60)[1]
        while any(is_running(pid) for pid in members):
            assert time.monotonic() < until, [pid for pid in members if is_running(pid)]
            time.sleep(0.1)
    finally:
        for pid in {study.pid, *members, *family_if_any(study.pid)}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert study.returncode == {"SIGTERM": 143, "SIGINT": 130, "SIGKILL": -9}[name], said
    if name != "SIGKILL":
        assert "ended with 0 of 5 cells there; the same command goes on with the others" in said
        assert "Traceback" not in said


@pytest.mark.parametrize("stop", [SystemExit(143), Interrupted("stopped in step 3", 2, saved=False)])
def test_a_cell_that_is_stopped_ends_its_process(stop: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of one that answers with an exception, a pool would start the next cell."""

    def stopped(*_: object) -> None:
        raise stop

    monkeypatch.setattr(study_module, "_found", stopped)
    child = multiprocessing.get_context("fork").Process(target=study_module._run_cell, args=(None, None, 1))
    child.start()
    child.join()
    assert child.exitcode == 143


def trains(pid: int) -> bool:
    """Whether it has loaded torch at least."""
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")


def family_if_any(pid: int) -> list[int]:
    try:
        return family(pid)
    except OSError:
        return []


def cells(study_file: Path, folder: Path, values: dict[tuple[str, int], float | None]) -> list[dict[str, Any]]:
    """Write records of a study with given TAR (None: failed), the first as attfc 0.1 wrote it, and read them back."""
    from attfc.lab.study import _cells

    study = read_study(study_file)
    folder.mkdir(exist_ok=True)
    lines = []
    for cell in _cells(study):
        tar = values[cell.variant, cell.seed]
        figures = {"tar_at_far/0.0001": tar, "tar_at_far/0.001": tar, "rank_one": tar}
        curve = [{"step": 5 * n, "seconds": float(n), "loss": 1.0, **figures} for n in (1, 2)]
        found = {"steps": 10, "seconds": 2.0, "samples_per_second": 160.0, "curve": curve, "head_bytes": 2**20}
        found |= {"failed": "the loss of step 3 is nan"} if tar is None else {"figures": {"test": figures}}
        lines.append(json.dumps({**cell.model_dump(mode="json"), "commit": "abc", **found}))
    (folder / "full_fc.seed0.json").write_text(lines[0])
    (folder / "cells.jsonl").write_text("".join(f"{line}\n" for line in lines[1:]))
    return study_records(study, folder)


def test_a_table_gives_mean_spread_and_paired_difference(grid: Path, tmp_path: Path) -> None:
    values = {("full_fc", 0): 0.5, ("full_fc", 1): 0.7, ("attfc, K = 1", 0): 0.6, ("attfc, K = 1", 1): 0.9}
    records = cells(grid, tmp_path / "out", values)
    lines = study_table(records, {"tar_at_far/0.0001": "TAR"}, "full_fc").splitlines()
    assert lines[0] == "| variant | TAR | TAR: less full_fc | seeds | steps | s | samples/s | head, MiB |"
    assert lines[2] == "| full_fc | 0.600 ± 0.141 |  | 2 | 10 | 2 | 160 | 1.0 |"
    assert lines[3] == "| attfc, K = 1 | 0.750 ± 0.212 | +0.150 ± 0.071 | 2 | 10 | 2 | 160 | 1.0 |"
    figure = study_figure(records, "tar_at_far/0.0001", "TAR")
    assert figure == study_figure(records, "tar_at_far/0.0001", "TAR")
    assert "attfc, K = 1" in figure
    for record in records:
        record["curve"] = [{"step": 5, "seconds": 1.0, "loss": 1.0}]
    with pytest.raises(UserError, match=r"give the study eval\.every"):
        study_figure(records, "tar_at_far/0.0001", "TAR")


def test_a_failed_cell_is_in_the_table(grid: Path, tmp_path: Path) -> None:
    values = {("full_fc", 0): None, ("full_fc", 1): 0.7, ("attfc, K = 1", 0): None, ("attfc, K = 1", 1): None}
    table = study_table(cells(grid, tmp_path / "out", values), FIGURES["vectors"], "full_fc")
    assert "| 1 (1 failed) |" in table
    assert "| attfc, K = 1 | failed: the loss of step 3 is nan |" in table


def test_cells_of_other_settings_and_damaged_ones_are_refused(grid: Path, tmp_path: Path) -> None:
    values = dict.fromkeys([(v, s) for v in ("full_fc", "attfc, K = 1") for s in (0, 1)], 0.5)
    cells(grid, tmp_path / "out", values)
    grid.write_text(GRID.replace("epochs=1", "epochs=2"))
    with pytest.raises(UserError, match=r"full_fc\.seed0\.json: was run with another overrides .*: delete it, or"):
        study_records(read_study(grid), tmp_path / "out")
    (tmp_path / "out/full_fc.seed0.json").unlink()
    with pytest.raises(UserError, match=r"cells\.jsonl line 1: was run with another overrides .*: delete it, or"):
        study_records(read_study(grid), tmp_path / "out")
    sound = '{"variant": "a", "seed": 0, "failed": "x"}\n'
    rest = '"steps": 1, "seconds": 1, "samples_per_second": 1}'
    for damaged, why in (
        ("[" * 100_000, ""),
        ('{"variant": "a", "seed": 0}', r" \('figures'\)"),
        ('{"variant": "a", "seed": 0, "figures": {}, ' + rest, r" \('test'\)"),
        ('{"variant": "a", "seed": 0, "figures": {"test": {"rank_one": "x"}}, ' + rest, r" \(could not convert"),
        ('{"variant": "a", "seed": 0, "figures": {"test": {}}, "steps": 3}', r" \('seconds'\)"),
    ):
        (tmp_path / "out/cells.jsonl").write_text(sound + damaged)
        with pytest.raises(UserError, match=r"cells\.jsonl line 2: damaged" + why):
            study_records(read_study(grid), tmp_path / "out")


def test_a_cell_whose_process_is_ended_from_outside_is_one_sentence(grid: Path, tmp_path: Path, monkeypatch) -> None:
    def ended(running: object) -> None:
        raise BrokenProcessPool("A process in the process pool was terminated abruptly")

    monkeypatch.setattr(study_module, "as_completed", ended)
    with pytest.raises(UserError, match=r"ended from outside, for want of memory perhaps: the same command goes on"):
        run_study(read_study(grid), tmp_path / "out", said=lambda line: None)


STUDIES = Path(__file__).parents[2] / "benchmarks" / "studies"


@pytest.mark.parametrize("path", sorted(STUDIES.glob("vectors_*.yaml")), ids=lambda path: path.stem)
def test_as_chosen_is_what_the_command_chooses(path: Path) -> None:
    """A table's "as chosen" has the head's options that `attfc train PATH` would pick for these people."""
    study = read_study(path)
    counts = np.diff(study.world.made().labelled().offsets)
    frequent = int((counts >= FREQUENT).sum())
    data = Data(len(counts), int(counts.sum()), int((counts > 1).sum()), frequent=frequent)
    chosen = {key: value for row in choose(data, Machine("cpu", 16, 16), {}) for key, value in row.values.items()}
    count = chosen.pop("negatives.count")
    parts = ("negatives.", "center.", "head.f", "in_")
    heads = [f"{key}={value}" for key, value in chosen.items() if key.startswith(parts)]
    for name, overrides in study.variants.items():
        if name.endswith("as chosen"):
            found = load_config(study.preset, [*study.overrides, *overrides])
            expected = load_config(study.preset, [*study.overrides, *overrides, *heads])
            assert found.model_dump() == expected.model_dump(), name
            drawn = found.negatives.count or found.negatives.share * len(counts)
            assert drawn == pytest.approx(count, abs=1), name
