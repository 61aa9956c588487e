"""Run a function on several gloo ranks, each a process of its own, and collect what it returns.

A fork server that has torch loaded starts them in milliseconds. A rank's exception comes back as text; none outlives its time.
"""

import contextlib
import datetime
import io
import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist

SECONDS = 90  # a rank that has not answered by then is stuck

context = multiprocessing.get_context("forkserver")
# An optimizer's first step imports the compiler, for seconds; the server is shared with attfc.lab.children, whose cells it has loaded too.
context.set_forkserver_preload(
    [
        "attfc.run.build",
        "attfc.lab.head_cell",
        "torch._dynamo",
        "torch.distributed.tensor",
        "torch.distributed.checkpoint",
    ]
)


def on_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Return [function(*arguments) on rank r for r in range(size)]; inside, `Ranks.world()` has them. size 1: no process group."""
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(size):
            mine, theirs = context.Pipe()
            process = context.Process(
                target=_rank, args=(theirs, rank, size, f"{folder}/store", function, arguments), daemon=True
            )
            process.start()
            theirs.close()
            pipes.append(mine)
            processes.append(process)
        try:
            return _answers(pipes)
        finally:
            for process in processes:
                process.join(5)
                if process.is_alive():
                    process.kill()
                    process.join()


def _answers(pipes: list[Connection]) -> list[Any]:
    answers: dict[int, Any] = {}
    deadline = datetime.datetime.now() + datetime.timedelta(seconds=SECONDS)
    while len(answers) < len(pipes):
        left = (deadline - datetime.datetime.now()).total_seconds()
        ready = wait([pipe for rank, pipe in enumerate(pipes) if rank not in answers], timeout=max(left, 0))
        assert ready, f"ranks {sorted(set(range(len(pipes))) - answers.keys())} did not answer in {SECONDS} s"
        for pipe in ready:
            rank = pipes.index(pipe)
            try:
                fault, value = torch.load(io.BytesIO(pipe.recv_bytes()), weights_only=True)
            except EOFError:
                fault, value = "it died without a word", None
            assert fault is None, f"rank {rank}: {fault}"
            answers[rank] = value
    return [answers[rank] for rank in range(len(pipes))]


def _rank(
    pipe: Connection, rank: int, size: int, store: str, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    try:
        if size > 1:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{store}",
                rank=rank,
                world_size=size,
                timeout=datetime.timedelta(seconds=SECONDS / 2),
            )
        answer = (None, function(*arguments))
    except BaseException:
        answer = (traceback.format_exc(), None)
    try:
        # As bytes: torch would send a tensor by a handle, which dies with this process.
        buffer = io.BytesIO()
        torch.save(answer, buffer)
        with contextlib.suppress(OSError):
            pipe.send_bytes(buffer.getvalue())
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
