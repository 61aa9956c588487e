"""Processes of cells: one that answers (`in_child`), and those of a study, which end with the command that started them, however that ends.

Each leads a group of processes, which its data workers join. Ctrl-C and SIGTERM to the command end the groups in order (a cell removes its
temporary files); a command that is killed outright cannot, so each child watches for its parent's end too.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

__all__ = ["children_end_too", "in_child", "lead_group", "leave_at_sigterm"]

PATIENCE = 5.0  # seconds between the request to end and the order


def leave_at_sigterm() -> Any:
    """Make SIGTERM an exit that cleans up on its way; return the handler that was there."""
    return signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def lead_group() -> None:
    """In a new child: lead a group of its own, and end it when the parent is gone."""
    os.setpgrp()
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os.killpg(os.getpgrp(), signal.SIGKILL)


@contextlib.contextmanager
def children_end_too() -> Iterator[None]:
    """End the children that are started in this block where it is left by an exception, Ctrl-C or SIGTERM."""
    before = set(multiprocessing.active_children())
    in_main = threading.current_thread() is threading.main_thread()  # signals are handled nowhere else
    if in_main:
        handler = leave_at_sigterm()
    try:
        yield
    except BaseException:
        _end([child for child in multiprocessing.active_children() if child not in before])
        raise
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, handler)


def _end(children: list[BaseProcess]) -> None:
    for child in children:
        _signal(child, signal.SIGTERM)
    until = time.monotonic() + PATIENCE
    for child in children:
        child.join(max(0.0, until - time.monotonic()))
        _signal(child, signal.SIGKILL)  # also what is left of a group whose leader has ended
        child.join()


def _signal(child: BaseProcess, number: signal.Signals) -> None:
    assert child.pid is not None
    try:
        os.killpg(child.pid, number)
    except ProcessLookupError:  # not yet a leader, or gone
        with contextlib.suppress(ProcessLookupError):  # it may go at any moment
            if child.is_alive():
                os.kill(child.pid, number)


def in_child(function: Callable[..., dict[str, Any]], *arguments: Any, seconds: float | None = None) -> dict[str, Any]:
    """Call a function of a module in a process of its own and return what it returns; the process ends with this call, however that ends.

    Args:
        seconds: how long to wait; None: for ever.

    Raises:
        ChildProcessError: the process ended without an answer; an exception of it is on stderr.
        TimeoutError: it took longer.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["attfc.lab.head_cell", "torch._dynamo"])  # a step imports the latter, for seconds
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(sender, function, arguments))
    child.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            raise TimeoutError(f"no answer in {seconds:.0f} s")
        found: dict[str, Any] = receiver.recv()
    except EOFError:
        child.join()
        status = child.exitcode or 0
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        raise ChildProcessError(how) from None
    except BaseException:
        child.kill()
        raise
    finally:
        child.join()
    return found


def _answer(sender: Connection, function: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> None:
    sender.send(function(*arguments))
    sender.close()
