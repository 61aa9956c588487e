"""Shared test settings: one thread, so that small tensors do not wait for each other on a busy machine; a cache of their own.

And `rendered_once`, for tests that train; `end_with_test`, for tests that start processes.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest
import torch

from attfc.data import SyntheticFaces

torch.set_num_threads(1)
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # a shell's background job inherits it so, and processes of tests would too
    signal.signal(signal.SIGINT, signal.default_int_handler)
RENDERED: dict[tuple[int, int, int], bytes] = {}


@pytest.fixture(scope="session", autouse=True)
def _own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep indexes of test data out of the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def rendered_once() -> Iterator[None]:
    """Keep the JPEG of every synthetic face for the next test: of runs on the same few people, a third would be rendering them."""
    render = SyntheticFaces._encoded

    def encoded(store: SyntheticFaces, labels_N, samples_N) -> list[bytes]:
        faces = list(zip(labels_N.tolist(), samples_N.tolist(), strict=True))
        keys = [(store.seed, store.first_identity + label, sample) for label, sample in faces]
        new = [row for row, key in enumerate(keys) if key not in RENDERED]
        if new:
            found = render(store, labels_N[new], samples_N[new])
            RENDERED.update(zip((keys[row] for row in new), found, strict=True))
        return [RENDERED[key] for key in keys]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SyntheticFaces, "_encoded", encoded)
        yield


@pytest.fixture
def end_with_test() -> Iterator[Callable[[subprocess.Popen[str]], subprocess.Popen[str]]]:
    """Take a process that a test has started: what the test leaves running is killed, with the group that it leads.

    Without it, a test that fails leaves a Popen which warns when it is collected, and so fails another test.
    """
    with contextlib.ExitStack() as taken:

        def take(process: subprocess.Popen[str]) -> subprocess.Popen[str]:
            taken.enter_context(process)  # waits for it and closes its pipes
            taken.callback(_kill, process)
            return process

        yield take


def _kill(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        leads = os.getpgid(process.pid) == process.pid
        (os.killpg if leads else os.kill)(process.pid, signal.SIGKILL)
