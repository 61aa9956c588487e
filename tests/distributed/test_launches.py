"""Under torchrun itself: one host, two hosts, a lost rank, a rank that raises or hangs, ports in use.

Two hosts are two launchers, each with a node of its own: on the loopback device, and (slow; needs root) in two network namespaces joined
by a cable. What they train is held against one process. Everything that waits for other processes has a limit.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from attfc.distributed import join_ranks
from attfc.errors import UserError
from attfc.run.resuming import resume_run

from .faulty_rank import lose
from .launch import on_ranks
from .test_training import losses
from .workers import TINY, train

SECONDS = 150  # a job that has not ended by then hangs
STEPS = 4
OPTIONS = [*TINY, "schedule.name=constant", f"schedule.max_steps={STEPS}", "checkpoint.every=2"]
RANK_FILE = Path(__file__).with_name("faulty_rank.py")


def environment(**more: str) -> dict[str, str]:
    """Ours without what a launcher sets, one thread a process."""
    ours = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "MASTER_", "TORCHELASTIC")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "OMP_NUM_THREADS": "1", **more}


def launch(launcher: list[str], program: list[object], *, before: list[str] = [], **more: str) -> subprocess.Popen[str]:  # noqa: B006
    """Start torchrun with what it starts in a process group of their own."""
    command = [*before, sys.executable, "-m", "torch.distributed.run", *launcher, *map(str, program)]
    return subprocess.Popen(
        command,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(*jobs: subprocess.Popen[str]) -> list[tuple[int, str]]:
    """Exit status and output of each; what does not end in time is killed, status -9."""
    deadline = time.monotonic() + SECONDS
    found = []
    for job in jobs:
        try:
            said, _ = job.communicate(timeout=max(deadline - time.monotonic(), 1))
        except subprocess.TimeoutExpired:
            os.killpg(job.pid, signal.SIGKILL)
            said, _ = job.communicate()
        found.append((job.returncode, said))
    return found


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def two_hosts(endpoint: str) -> list[str]:
    return ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", "--rdzv-id=test"]


def attfc(*arguments: object) -> list[object]:
    return ["-m", "attfc", "train", *arguments]


def on_two_hosts(*program: object) -> list[subprocess.Popen[str]]:
    endpoint = f"127.0.0.1:{free_port()}"
    return [launch([*two_hosts(endpoint), "--local-addr=127.0.0.1"], list(program)) for _ in range(2)]


def test_two_launchers_train_as_one_process(tmp_path) -> None:
    for status, said in ended(*on_two_hosts(*attfc("demo", *OPTIONS, f"output={tmp_path / 'hosts'}"))):
        assert status == 0, said
    folder = tmp_path / "hosts" / "demo-001"
    assert losses(folder) == pytest.approx(losses(train(OPTIONS, str(tmp_path / "one"))), rel=1e-4)
    files = {path.name for path in (folder / "checkpoints" / f"step_{STEPS:09d}").iterdir()}
    assert {"tensors_00000.safetensors", "tensors_00001.safetensors", "manifest.json"} <= files
    assert (folder / "model" / "model.safetensors").is_file()


@pytest.mark.slow  # a launcher and two processes; test_training resumes on ranks without a launcher
def test_torchrun_goes_on_with_a_run_of_one_process(tmp_path) -> None:
    folder = Path(train(OPTIONS, str(tmp_path / "run")))
    whole = train([*OPTIONS, "schedule.max_steps=7"], str(tmp_path / "one"))
    ((status, said),) = ended(
        launch(["--standalone", "--nproc-per-node=2"], attfc("--resume", folder, "schedule.max_steps=7"))
    )
    assert status == 0, said
    assert f"x 2 ranks, resumed at step {STEPS}" in " ".join(said.split())
    assert said.count("\nmodel ") == 1, "rank 0 speaks for all"
    assert losses(folder) == pytest.approx(losses(whole), rel=1e-2)


@pytest.fixture
def cable() -> Iterator[list[tuple[list[str], str, str]]]:
    """Two network namespaces joined by a pair of virtual devices: (how to run there, address, device) of each."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2")
    names = [f"attfc-{side}-{os.getpid()}" for side in "ab"]
    addresses, devices = ["10.211.37.1", "10.211.37.2"], ["veth-a", "veth-b"]

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)

    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", devices[0], "netns", names[0], "type", "veth", "peer", devices[1], "netns", names[1])
            for name, address, device in zip(names, addresses, devices, strict=True):
                ip("-n", name, "addr", "add", f"{address}/24", "dev", device)
                ip("-n", name, "link", "set", device, "up")
                ip("-n", name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine makes no network namespaces: {error.stderr.strip()}")
        yield [
            (["ip", "netns", "exec", name], address, device)
            for name, address, device in zip(names, addresses, devices, strict=True)
        ]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.mark.slow  # four processes on two cores
@pytest.mark.parametrize("head", ["attfc", "full_fc", "dcp"])
def test_two_network_namespaces_train_as_one_process(tmp_path, cable, head) -> None:
    endpoint = f"{cable[0][1]}:29511"
    share = {"attfc": ["negatives.share=0.8"], "dcp": ["head.share=0.8"]}
    options = [f"head={head}", *share.get(head, [])]
    program = attfc("demo", *OPTIONS, *options, f"output={tmp_path / 'hosts'}")
    # Which of the two has the endpoint, torchrun finds out by the host's name, and both namespaces have that of this machine.
    hosts = [
        launch(
            [*two_hosts(endpoint), f"--local-addr={address}", f"--rdzv-conf=is_host={int(not number)}"],
            program,
            before=there,
            GLOO_SOCKET_IFNAME=device,
        )
        for number, (there, address, device) in enumerate(cable)
    ]
    for status, said in ended(*hosts):
        assert status == 0, said
    one = train([*OPTIONS, *options], str(tmp_path / "one"))
    assert losses(tmp_path / "hosts" / "demo-001") == pytest.approx(losses(one), rel=1e-4)


def children(process: subprocess.Popen[str]) -> dict[int, int]:
    """Process id by rank of what a launcher started."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == process.pid:
                    words = (entry / "environ").read_bytes().split(b"\0")
                    ranks = [int(word[5:]) for word in words if word.startswith(b"RANK=")]
                    found[ranks[0]] = int(entry.name)
    return found


def wait_for_step(folder: Path, step: int, job: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + SECONDS
    metrics = folder / "metrics.jsonl"
    while time.monotonic() < deadline:
        if metrics.exists() and f'"step": {step},' in metrics.read_text():
            return
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.05)
    raise AssertionError(f"step {step} was not reached")


@pytest.mark.slow  # a launcher and two processes; without a launcher it is a default test
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the ranks in /proc")
# A stopped process cannot be told to leave: torchrun waits 30 s before it kills it.
@pytest.mark.parametrize(("number", "wait"), [(signal.SIGKILL, 60), (signal.SIGSTOP, 8)])
def test_a_rank_that_is_lost_ends_the_job_and_the_checkpoint_stands(tmp_path, number, wait, end_with_test) -> None:
    options = [*OPTIONS, "schedule.max_steps=100000", f"distributed.timeout_seconds={wait}"]
    job = end_with_test(launch(["--standalone", "--nproc-per-node=2"], attfc("demo", *options, f"output={tmp_path}")))
    folder = tmp_path / "demo-001"
    wait_for_step(folder, 5, job)
    os.kill(children(job)[1], number)
    ((status, said),) = ended(job)
    assert status == 1
    if number == signal.SIGKILL:
        assert "Signal 9 (SIGKILL)" in said, said
    else:
        assert "rank 0 lost another rank at step" in said, said
        assert f"attfc train --resume {folder}" in said
    resumed = resume_run(folder, ["schedule.max_steps=100000"])
    assert resumed.trainer.step >= 4
    assert resumed.trainer.step % 2 == 0


def test_without_a_launcher_the_others_say_that_a_rank_is_lost(tmp_path) -> None:
    # on_ranks then gives rank 0 five seconds: one that waited for its time-out would have said nothing.
    with pytest.raises(AssertionError, match="rank 1: it died without a word"):
        on_ranks(2, lose, ["checkpoint.every=2"], str(tmp_path))
    said = (tmp_path / "said_by_0").read_text()
    assert said.startswith("rank 0 lost another rank at step 4 (")
    assert f"attfc train --resume {tmp_path / 'demo-001'}" in said
    assert resume_run(tmp_path / "demo-001", []).trainer.step == 2


@pytest.mark.slow  # two processes more; the SIGKILL case is the default
def test_a_rank_that_raises_ends_the_job_with_its_traceback(tmp_path) -> None:
    program = [RANK_FILE, "train", "demo", *OPTIONS, f"output={tmp_path}"]
    ((status, said),) = ended(launch(["--standalone", "--nproc-per-node=2"], program, FAULTY_RANK="1", FAULTY_STEP="4"))
    assert status == 1
    assert "Traceback" in said, said
    assert "ZeroDivisionError: the fault of the test" in said
    assert resume_run(tmp_path / "demo-001", []).trainer.step == 2


def ranks_of_a_launcher(monkeypatch: pytest.MonkeyPatch, rank: int, port: int) -> None:
    for name, value in {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))


def test_a_port_in_use_says_which_and_what_to_do(monkeypatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ranks_of_a_launcher(monkeypatch, 0, port)
        with pytest.raises(
            UserError, match=rf"port of MASTER_ADDR:MASTER_PORT = 127\.0\.0\.1:{port} is in use: choose"
        ):
            join_ranks(torch.device("cpu"), 2.0)


def test_nobody_there_ends_after_the_stated_time(monkeypatch) -> None:
    port = free_port()
    ranks_of_a_launcher(monkeypatch, 1, port)
    with pytest.raises(UserError, match=rf"127\.0\.0\.1:{port}"):
        join_ranks(torch.device("cpu"), 1.0)
    assert not torch.distributed.is_initialized()


def test_ranks_that_never_come_end_the_wait_of_those_that_did(monkeypatch) -> None:
    ranks_of_a_launcher(monkeypatch, 0, free_port())
    with pytest.raises(UserError, match=r"1 of 2|did not come|could not join|cannot reach"):
        join_ranks(torch.device("cpu"), 1.0)


@pytest.mark.slow  # two hosts, each with processes of its own
def test_hosts_with_other_configurations_are_refused_by_name(tmp_path) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    program = attfc("demo", *OPTIONS, f"output={tmp_path}")
    hosts = [
        launch([*two_hosts(endpoint), "--local-addr=127.0.0.1"], [*program, f"optimizer.learning_rate={rate}"])
        for rate in (0.02, 0.3)
    ]
    found = ended(*hosts)
    assert all(status == 1 for status, _ in found)
    said = "".join(text for _, text in found)
    assert "ranks differ in their configuration: optimizer.learning_rate is 0." in said, said
    assert not list(tmp_path.iterdir())
