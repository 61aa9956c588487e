"""`make gpu` at toy size on a processor, and that a cell that fails or takes too long costs the others nothing."""

import importlib.util
import json
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from attfc.heads import FullFC
from attfc.losses import CosFace

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/gpu.py as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("gpu", ROOT / "benchmarks" / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu", module)  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def job(gpu: ModuleType, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "scratch").mkdir()
    environment = gpu.environment_of_children(tmp_path / "scratch")
    return gpu.Job("cpu", True, tmp_path / "out", tmp_path / "scratch", environment)


def read(job, name: str) -> dict:
    return json.loads((job.folder / f"{name}.json").read_text(encoding="utf-8"))


def test_a_cell_that_fails_says_why_in_its_file_and_the_next_one_runs(gpu, job, monkeypatch, capsys) -> None:
    def breaks(job, seconds):
        raise RuntimeError("CUDA error: no kernel image")

    def exits(job, seconds):
        return job.run(["-c", "import sys; print('ten of ten'); sys.exit(3)"], 60).figures(False, {})

    def cells(job):
        kinds = {"size": 8}
        return [gpu.Cell("first", breaks), gpu.Cell("second", exits), gpu.Cell("third", lambda *_: {"found": 1}, 5.0, kinds)]  # fmt: skip

    monkeypatch.setattr(gpu, "PARTS", {"heads": (cells, 5.0), "train": (lambda _: [], 5.0)})
    assert gpu.run_parts(job, 100.0, "abc123", ["heads", "train"]) is False
    record = read(job, "heads")
    first, second, third = record["results"]["cells"]
    assert first["error"] == "RuntimeError: CUDA error: no kernel image"
    assert (second["error"], second["output"]) == ("exit status 3", ["ten of ten"])
    assert (third["status"], third["found"], third["size"]) == ("done", 1, 8)
    assert (record["results"]["status"], record["config"]["commit"]) == ("failed", "abc123")
    assert {"accelerator", "torch", "commit"} <= set(record["environment"])
    assert read(job, "train")["results"]["status"] == "left out"
    assert "exit status 3" in capsys.readouterr().out


def test_each_cell_is_written_when_it_is_done(gpu, job, monkeypatch) -> None:
    def second(job, seconds):
        written = read(job, "heads")["results"]
        return {"before": [cell["name"] for cell in written["cells"]]}

    monkeypatch.setattr(gpu, "PARTS", {"heads": (lambda _: [gpu.Cell("a", lambda *_: {}), gpu.Cell("b", second)], 5.0)})
    assert gpu.run_parts(job, 100.0, None, ["heads"])
    assert read(job, "heads")["results"]["cells"][1]["before"] == ["a"]


def test_a_cell_in_a_process_of_its_own_answers_fails_or_is_cut(gpu, job) -> None:
    done = gpu.measured("head", "full_fc", {"identities": 20, "batch": 4, "embedding_size": 8, "steps": 2})(job, 60.0)
    assert done["fits"]
    failed = gpu.measured("head", "full_fc", {"identities": 20, "device": "cuda:99"})(job, 60.0)
    assert failed["status"] == "failed"
    assert failed["output"][-1].partition(":")[0] in failed["error"]
    begun = time.monotonic()
    late = gpu.measured("head", "full_fc", {"identities": 20_000, "steps": 10**6})(job, 0.5)
    assert late == {"status": "cut", "error": "no answer in 0 s"}
    assert time.monotonic() - begun < 30
    assert not multiprocessing.active_children()


def test_heads_to_compare_with_compute_the_same_loss(gpu, monkeypatch) -> None:
    import gpu_cells

    torch.manual_seed(0)
    full = FullFC(16, 50, CosFace(64.0, 0.4))
    embeddings, labels = torch.randn(8, 16), torch.arange(8)
    dense = gpu_cells.DenseFC(16, 50, CosFace(64.0, 0.4))
    dense.load_state_dict(full.state_dict())
    torch.testing.assert_close(dense(embeddings, labels), full(embeddings, labels))

    def plain(e, c, targets, impl):
        assert (e.dtype, c.dtype, impl) == (torch.bfloat16, torch.bfloat16, "torch_compile")
        return torch.nn.functional.cross_entropy(e.float() @ c.float().T, targets)

    monkeypatch.setitem(sys.modules, "cut_cross_entropy", SimpleNamespace(linear_cross_entropy=plain))
    without_margin = FullFC(16, 50, CosFace(64.0, 0.0))
    without_margin.load_state_dict(full.state_dict())
    cut = gpu_cells.CutCrossEntropyFC(16, 50, CosFace(64.0, 0.4))
    cut.load_state_dict(full.state_dict())
    torch.testing.assert_close(cut(embeddings, labels), without_margin(embeddings, labels), rtol=2e-2, atol=0)


def test_a_part_at_its_limit_is_ended_with_its_children(gpu, job, monkeypatch) -> None:
    monkeypatch.setattr(gpu, "GRACE", 0.5)
    beats = job.scratch / "beats"
    grandchild = f"import time\nwhile True: open({str(beats)!r}, 'a').write('.'); time.sleep(0.02)"
    child = f"import signal, subprocess, sys\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nsubprocess.run([sys.executable, '-c', {grandchild!r}])"
    ended = job.run(["-c", child], 2.5)
    assert ended.cut
    assert ended.figures(False, {})["status"] == "cut"
    length = beats.stat().st_size
    assert length > 0
    time.sleep(0.2)
    assert beats.stat().st_size == length


def test_what_the_time_does_not_suffice_for_is_listed(gpu, job, monkeypatch) -> None:
    cells = [gpu.Cell("a", lambda *_: pytest.fail("it ran"))]
    monkeypatch.setattr(gpu, "PARTS", {"heads": (lambda _: cells, 9.0)})
    object.__setattr__(job, "toy", False)
    assert gpu.run_parts(job, 9.0, None, ["heads"]) is True
    results = read(job, "heads")["results"]
    assert (results["status"], results["left_out"]) == ("left out", ["a: 9 s were left of 9"])
    torn = job.scratch / "torn.jsonl"
    assert gpu.read_lines(torn) == []
    torn.write_text('{"step": 1}\n{"step": {"a": 2}')
    assert gpu.read_lines(torn) == [{"step": 1}]


def test_the_first_cells_are_those_of_most_worth(gpu, job, monkeypatch) -> None:
    real = gpu.Job("cpu", False, job.folder, job.scratch, job.environment)
    first, second, third, fourth = (cell.name for cell in gpu.heads(real)[:4])
    assert (first, second) == ("1,400,000 identities, default, table on the host", "1,400,000 identities, partial_fc")
    assert (third, fourth) == (f"{first}, with r50", f"{second}, with r50")
    sizes = {cell.about["identities"] for cell in gpu.heads(real) if cell.about["kind"] == "head"}
    assert sizes == {125_000, 1_400_000, 5_500_000, 8_000_000, 16_000_000, 29_000_000}
    assert gpu.networks(real)[0].name == "r50, batch 128, bfloat16"
    assert [cell.name for cell in gpu.train(real)[:3]] == ["packed set", "AttFC, r50", "Partial FC 0.1, r50"]
    for part, (cells, _) in gpu.PARTS.items():
        names = [cell.name for cell in cells(real)]
        assert len(names) == len(set(names)), part
    assert gpu.ALONE + gpu.GRACE <= 480
    assert sum(longest for _, longest in gpu.PARTS.values()) <= 510


def test_without_a_gpu_it_says_what_works(gpu, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        SystemExit, match=r"finds no GPU with CUDA here; on a processor: benchmarks/gpu\.py --device cpu --toy"
    ):
        gpu.main()
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None if name == "yaml" else object())
    with pytest.raises(SystemExit, match="lacks pyyaml: install it, or run make gpu without GPU_PYTHON"):
        gpu.main()


@pytest.mark.slow  # some twenty commands and cells in processes of their own: minutes on two cores
@pytest.mark.parametrize("part", ["tests", "heads", "networks", "train"])
def test_a_part_at_toy_size_on_a_processor(gpu, tmp_path: Path, part: str) -> None:
    script = ROOT / "benchmarks" / "gpu.py"
    done = subprocess.run(
        [sys.executable, str(script), "--device", "cpu", "--toy", "--only", part, "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [f"{part}.json"]
    record = json.loads((tmp_path / f"{part}.json").read_text())
    results, cells = record["results"], {cell["name"]: cell for cell in record["results"]["cells"]}
    assert results["status"] == "done"
    assert {cell["status"] for cell in results["cells"]} == {"done"}
    assert all("cut_cross_entropy is not installed" in text for text in results["left_out"])
    if part == "tests":
        assert {name: (cell["failed"], cell["left_out"], cell["skipped"]) for name, cell in cells.items()} == dict.fromkeys(
            ("test_waits", "test_equals_cpu", "test_resumes"), (0, 0, 0)
        )  # fmt: skip
        assert sum(cell["passed"] for cell in cells.values()) > 50
    if part == "heads":
        heads = [cell for cell in results["cells"] if cell["kind"] == "head"]
        assert all(cell["fits"] and cell["samples_per_second"] > 0 for cell in heads)
        assert {cell["head"] for cell in heads} >= {"default", "partial_fc", "published", "full_fc", "dense"}
        assert all(cell["times_the_floor"] > 0 for cell in results["cells"] if cell["kind"] == "container")
    if part == "networks":
        assert all(cell["forward_backward"]["images_per_second"] > 0 for cell in results["cells"])
        assert sum(cell["compile"] is not None for cell in results["cells"]) == 1
    if part == "train":
        assert all(cells[name]["images_per_second"] > 0 for name in ("AttFC, r50", "loader alone"))
        assert [line["step"] for line in cells["the demo"]["records"] if line["kind"] == "train"][-1] == 40
        assert cells["the demo"]["evaluation"]["rank_one"] > 0
    # The page is made of what the script wrote, and a table of toy size is never in it.
    import gpu_page

    assert "| --- |" in gpu_page.TABLES[f"gpu {part}"](record)
