"""Drive a headless Chromium over its debugging pipe (JSON messages that end with a zero byte), with the standard library alone."""

import base64
import contextlib
import itertools
import json
import os
import queue
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FOUND = next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One page: `ask` sends a command of the DevTools protocol, `run` evaluates JavaScript; `events` are those that came meanwhile."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive, self._numbers = send, receive, itertools.count(1)
        self._came: queue.Queue[dict[str, Any]] = queue.Queue()
        self.events: list[dict[str, Any]] = []
        self._session: str | None = None
        threading.Thread(target=self._read, daemon=True).start()
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for part in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{part}.enable")

    def _read(self) -> None:
        with os.fdopen(self._receive, "rb") as stream:
            rest = b""
            while chunk := stream.read1(1 << 16):
                *messages, rest = (rest + chunk).split(b"\0")
                for message in messages:
                    self._came.put(json.loads(message))

    def ask(self, method: str, **values: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": values}
        if self._session is not None:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._send, data) :]
        while True:
            came = self._came.get(timeout=30)
            if came.get("id") == number:
                assert "error" not in came, f"{method}: {came['error']}"
                return came["result"]
            self.events.append(came)

    def run(self, script: str) -> Any:
        done = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait_for(self, script: str, seconds: float = 30.0) -> None:
        ends = time.monotonic() + seconds
        while not self.run(f"Boolean({script})"):
            assert time.monotonic() < ends, (
                f"{script} stayed false; the page says: {self.run('document.body.innerText')}"
            )
            time.sleep(0.05)

    def look(self, width: int, height: int, *, dark: bool) -> None:
        """Set the size of the screen, as a phone below 600 pixels, and light or dark."""
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])

    def drop(self, files: list[Path], selector: str) -> None:
        """Drop files on an element, as a mouse would."""
        place = "document.querySelector({}).{}".format(json.dumps(selector), "{}")
        self.run(place.format("scrollIntoView({block: 'center'})"))
        box = self.run(f"({place.format('getBoundingClientRect()')}).toJSON()")
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.ask(
                "Input.dispatchDragEvent",
                type=kind, x=box["x"] + box["width"] / 2, y=box["y"] + box["height"] / 2, data=data,
            )  # fmt: skip

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode={"Tab": 9}[key])

    def picture(self, file: Path) -> None:
        shot = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def opened(profile: Path, take: Callable[[subprocess.Popen[bytes]], object] = lambda process: None) -> Iterator[Page]:
    """Give a page of a browser with a profile of its own and no network but this machine's."""
    assert FOUND is not None
    theirs_in, send = os.pipe()
    receive, theirs_out = os.pipe()
    options = (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"),
        *("--disable-background-networking", "--no-first-run", "--disable-component-update", f"--user-data-dir={profile}"),
    )  # fmt: skip
    # The browser reads commands from descriptor 3 and writes answers to 4.
    shell = f'exec 3<&{theirs_in} 4>&{theirs_out}; exec "$0" "$@"'
    process = subprocess.Popen(
        ["bash", "-c", shell, FOUND, *options],
        pass_fds=(theirs_in, theirs_out),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Page(send, receive)
    finally:
        os.close(send)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
