"""`make gpu` at toy size on a processor, and that a part that fails or takes too long costs the others nothing."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

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


def test_a_part_that_fails_says_why_in_its_file_and_the_next_one_runs(gpu, job, monkeypatch, capsys) -> None:
    def breaks(job, seconds):
        raise RuntimeError("CUDA error: no kernel image")

    def exits(job, seconds):
        return job.run(["-c", "import sys; print('ten of ten'); sys.exit(3)"], 60).figures(False, {})

    monkeypatch.setattr(
        gpu, "PARTS", {"tests": (breaks, 5.0), "demo": (exits, 5.0), "heads": (lambda *_: {"status": "done"}, 5.0)}
    )
    assert gpu.run_parts(job, 100.0, "abc123", ["tests", "demo", "heads"]) is False
    first, second, third = (read(job, name) for name in ("tests", "demo", "heads"))
    assert first["results"]["error"] == "RuntimeError: CUDA error: no kernel image"
    assert (second["results"]["error"], second["results"]["output"]) == ("exit status 3", ["ten of ten"])
    assert third["results"]["status"] == "done"
    assert third["config"]["commit"] == "abc123"
    assert {"accelerator", "torch", "commit"} <= set(third["environment"])
    assert "exit status 3" in capsys.readouterr().out


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
    monkeypatch.setattr(gpu, "PARTS", {"tests": (lambda *_: pytest.fail("it ran"), 5.0)})
    object.__setattr__(job, "toy", False)
    assert gpu.run_parts(job, 10.0, None, ["tests"]) is True
    assert read(job, "tests")["results"]["why"] == "10 s were left of 10"
    torn = job.scratch / "torn.jsonl"
    assert gpu.read_lines(torn) == []
    torn.write_text('{"step": 1}\n{"step": {"a": 2}')
    assert gpu.read_lines(torn) == [{"step": 1}]
    done = [{"network": None, "identities": 300}] * 4 + [{"network": None, "identities": 1000}, None]
    options = ["--identities", "300,1000", "--network", "r6_tiny"]
    assert gpu._missing(options, done) == {
        "heads alone, 1,000 identities": 3,
        "r6_tiny, 300 identities": 4,
        "r6_tiny, 1,000 identities": 4,
    }


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


@pytest.mark.slow  # three commands in processes of their own: most of a minute on two cores
def test_all_parts_at_toy_size_on_a_processor(tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "gpu.py"
    done = subprocess.run(
        [sys.executable, str(script), "--device", "cpu", "--toy", "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tests, demo, heads = (
        json.loads((tmp_path / f"{name}.json").read_text())["results"] for name in ("tests", "demo", "heads")
    )
    assert tests["failed"] == 0
    assert tests["passed"] + tests["skipped"] == len(tests["tests"]) > 20
    assert tests["left_out"] == 0
    assert [record["step"] for record in demo["records"] if record["kind"] == "train"][-1] == 40
    assert demo["evaluation"]["rank_one"] > 0
    assert {(cell["mode"], cell["case"]["identities"]) for cell in heads["cells"]} >= {("head", 300), ("network", 3000)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.json", "heads.json", "tests.json"]
