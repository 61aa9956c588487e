"""`attfc serve` as a process, and its page in a headless Chromium: two rendered photos dropped, the score read, wide and narrow, light and dark."""

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import attfc
from attfc.commands.photos import serve as command
from attfc.data import SyntheticFaces
from attfc.gallery import Gallery
from attfc.photos.alignment import ARCFACE_TEMPLATE
from attfc.photos.detector import DetectorFacts, Faces
from attfc.serve import service as service_module
from attfc.serve.service import Service

from . import browser

for needed in ("fastapi", "uvicorn", "python_multipart"):
    pytest.importorskip(needed)

NAME = "<script>document.title='bad'</script>\nAnn"
WHERE = np.array([100.0, 50.0])  # of the face in a photo


class Told:
    """A detector that finds a face where it was pasted, and a smaller one."""

    facts = DetectorFacts("told", "0")

    def __call__(self, pixels: np.ndarray) -> Faces:
        boxes = np.array([[100, 50, 212, 162], [10, 10, 50, 50.0]])
        landmarks = np.stack([ARCFACE_TEMPLATE + WHERE, ARCFACE_TEMPLATE * 40 / 112 + 10])
        return Faces(boxes, landmarks, np.array([0.99, 0.9]))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two photos of one rendered person."""
    folder, found = tmp_path_factory.mktemp("photos"), []
    for place, face in enumerate(SyntheticFaces(1, 2, seed=5).images([0, 1], 112).pixels):
        photo = Image.new("RGB", (340, 260), (90, 110, 140))
        photo.paste(Image.fromarray(face), tuple(WHERE.astype(int)))
        photo.save(folder / f"{place}.jpg", quality=95)
        found.append(folder / f"{place}.jpg")
    return found


@pytest.fixture
def served(models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a service with a gallery of one person."""
    web = pytest.importorskip("attfc.serve.web")
    monkeypatch.setattr(service_module, "open_detector", lambda path: Told())
    model = attfc.load(models[0], device="cpu")
    far = tmp_path / "far.json"
    far.write_text(json.dumps({"threshold_at_far": {"0.01": 0.5, "0.001": 0.9999}, "impostor_pairs": 300_000}))
    with Gallery.create(tmp_path / "g", model, far=0.01, evaluation=far) as gallery:
        gallery.add(model.embed(SyntheticFaces(1, 1, seed=5).images([0], 112).pixels), name=NAME)
    service = Service(model, {0.001: 0.9999, 0.01: 0.5}, gallery=tmp_path / "g")
    server = command.server_of(web.create_app(service, web.Limits(), hosts=web.LOOPBACK))
    with command.listening("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server.should_exit = True
        thread.join()


LOWEST_CONTRAST = """(() => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(value => value / 255)
    .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, place) => sum + value * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = element => {
    for (; element; element = element.parentElement) {
      const found = numbers(getComputedStyle(element).backgroundColor);
      if (found.length === 3 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  let lowest = [99, ""];
  for (const element of document.body.querySelectorAll("*")) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility() || element.tagName === "SCRIPT") continue;
    const [a, b] = [light(numbers(getComputedStyle(element).color)), light(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < lowest[0]) lowest = [ratio, element.textContent];
  }
  return lowest;
})()"""


@pytest.mark.slow  # starts a browser
@pytest.mark.skipif(browser.FOUND is None, reason="no Chromium here")
def test_two_photos_are_dropped_and_the_score_is_read(served: str, photos: list[Path], tmp_path: Path) -> None:
    with browser.opened(tmp_path / "profile") as page:
        for width, dark in ((1280, False), (1280, True), (390, False), (390, True)):
            page.look(width, 844, dark=dark)
            page.ask("Page.navigate", url=served)
            page.wait_for("document.readyState === 'complete' && document.body.innerText.includes('r6_tiny')")
            page.press("Tab")
            assert page.run("document.activeElement.getAttribute('aria-label')") == "Choose photo A"
            outline = "getComputedStyle(document.activeElement.closest('.drop')).outlineStyle"
            assert page.run(outline) == "solid"
            page.drop(photos, "#side-a .drop")
            page.wait_for("document.getElementById('score') && document.querySelectorAll('.who td').length === 6")
            said = page.run("document.body.innerText")
            assert page.run("/^Cosine 0[.][0-9]{4}$/.test(document.getElementById('score').textContent)")
            assert "Accepted as one person at FAR 0.01: the cosine is above 0.5000." in said
            assert said.count("2 faces were found: the largest one was taken") == 2
            assert said.count(r"<script>document.title='bad'</script>\nAnn") == 4  # the name, and in the table; twice
            assert "A search compares with 1 template: of strangers, about 1.0 % get a name." in said
            assert page.run("document.title") == "attfc: one person or two?"
            assert page.run("[...document.images].every(image => image.alt && image.complete && image.naturalWidth)")
            assert page.run("document.images.length") == 4
            box = page.run("document.querySelector('#side-a rect.upper').getBoundingClientRect().toJSON()")
            image = page.run("document.querySelector('#side-a .photo img').getBoundingClientRect().toJSON()")
            assert (box["x"] - image["x"]) / image["width"] == pytest.approx(100 / 340, abs=0.01)
            assert (box["y"] - image["y"]) / image["height"] == pytest.approx(50 / 260, abs=0.01)
            levels = page.run("[...document.querySelectorAll('h1, h2, h3')].map(title => +title.tagName[1])")
            assert levels[0] == 1
            assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
            assert page.run("document.documentElement.scrollWidth") <= width  # nothing to scroll sideways
            ratio, text = page.run(LOWEST_CONTRAST)
            assert ratio >= 4.5, text
            dark_now = page.run("getComputedStyle(document.body).backgroundColor") == "rgb(21, 23, 27)"
            assert dark_now == dark
            if folder := os.environ.get("ATTFC_PICTURES"):  # to look at them
                page.picture(Path(folder) / f"page_{width}_{'dark' if dark else 'light'}.png")
        asked = [
            event["params"]["request"]["url"] for event in page.events if event["method"] == "Network.requestWillBeSent"
        ]
        assert all(url.startswith((served, "blob:", "data:")) for url in asked)
        assert not [event for event in page.events if event["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]


@pytest.mark.slow  # starts a browser
@pytest.mark.skipif(browser.FOUND is None, reason="no Chromium here")
def test_the_page_says_what_is_wrong(served: str, photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_bytes(b"no image")
    with browser.opened(tmp_path / "profile") as page:
        page.look(390, 844, dark=False)
        page.ask("Page.navigate", url=served)
        page.wait_for("document.readyState === 'complete' && document.body.innerText.includes('r6_tiny')")
        page.drop(photos[:1], "#side-a .drop")
        page.wait_for("document.body.innerText.includes('Photo B is missing.') && document.querySelector('.who td')")
        page.drop([tmp_path / "text.jpg"], "#side-b .drop")
        page.wait_for("document.getElementById('fault').textContent")
        assert page.run("document.getElementById('fault').textContent").startswith("photo b: not a JPEG, PNG, WebP")
        assert page.run("document.getElementById('fault').getAttribute('role')") == "alert"
        page.drop(photos[1:], "#side-b .drop")
        page.wait_for("document.getElementById('score') && !document.getElementById('fault').textContent")


def test_the_command_serves_and_says_nothing_but_its_address(models: list[Path], tmp_path: Path, end_with_test) -> None:
    file = tmp_path / "token"
    file.write_text("0123456789abcdef\n")
    process = end_with_test(
        subprocess.Popen(
            [sys.executable, "-m", "attfc", "serve", models[0], "--no-align", "--port", "0", "--token-file", file],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
        )
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("http://127.0.0.1:"), process.communicate()
    address = line.split()[0]
    stream = io.BytesIO()
    Image.fromarray(SyntheticFaces(1, 1, seed=5).images([0], 112).pixels[0]).save(stream, "PNG")
    body = b'--x\r\nContent-Disposition: form-data; name="photo"; filename="Ann.png"\r\n\r\n'
    request = urllib.request.Request(
        f"{address}embed",
        body + stream.getvalue() + b"\r\n--x--\r\n",
        {"content-type": "multipart/form-data; boundary=x", "authorization": "Bearer 0123456789abcdef"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        found = json.load(answer)
        assert "server" not in answer.headers
    expected = attfc.load(models[0], device="cpu").embed(SyntheticFaces(1, 1, seed=5).images([0], 112).pixels)
    assert found["embedding"] == pytest.approx(expected[0].tolist(), abs=1e-5)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{address}metrics", timeout=60)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert err == "note: No threshold is known for this model, so the cosine alone decides nothing.\n"
