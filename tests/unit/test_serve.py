"""The service over HTTP: scores are those of `FaceModel`; uploads that are no photo, too large, too many or too slow; a token; nothing in a log."""

import asyncio
import base64
import io
import json
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from test_photo_files import BAD, encoded
from told_detector import Told

import attfc
from attfc.commands.photos import serve as command
from attfc.data import SyntheticFaces
from attfc.errors import UserError
from attfc.evaluation.operating_point.point import Probability
from attfc.gallery import Gallery
from attfc.serve import service as service_module
from attfc.serve.metrics import Metrics
from attfc.serve.service import Service
from attfc.training.model_files import save_model

pytest.importorskip("python_multipart")
TestClient = pytest.importorskip("fastapi.testclient").TestClient
web = pytest.importorskip("attfc.serve.web")
LOOPBACK, Limits, create_app = web.LOOPBACK, web.Limits, web.create_app

SIZE, NUMBERS = 32, 24
THRESHOLDS = {0.1: 0.25, 0.01: 0.5}
NAME = "<script>alert(1)</script>\n../x"
TOKEN = "0123456789abcdef"


def saved_model(folder: Path, seed: int = 0) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return save_model(folder, attfc.create_backbone("r6_tiny", embedding_size=NUMBERS, image_size=SIZE))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> attfc.FaceModel:
    return attfc.load(saved_model(tmp_path_factory.mktemp("run") / "model"), device="cpu")


@pytest.fixture(scope="module")
def faces() -> list[bytes]:
    """PNGs of 112 x 112: two of each of two people."""
    pixels = SyntheticFaces(2, 2, seed=2).images(np.arange(4), 112).pixels
    return [encoded(Image.fromarray(each), "PNG") for each in pixels]


@pytest.fixture(scope="module")
def gallery(model: attfc.FaceModel, faces: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("galleries") / "g"
    with Gallery.create(folder, model) as made:
        made.add(model.embed(pixels_of(faces[0])), name=NAME)
        made.add(model.embed(pixels_of(faces[2])), name="Ann Lee")
    return folder


def pixels_of(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def client(service: Service, limits: Limits | None = None, **options: object) -> TestClient:
    return TestClient(create_app(service, limits or Limits(), **options), base_url="http://localhost:8000")


@pytest.fixture
def aligned(model: attfc.FaceModel, gallery: Path) -> Iterator[TestClient]:
    """Aligned faces in; with a gallery."""
    with client(Service(model, THRESHOLDS, align=False, gallery=gallery)) as made:
        yield made


def photo_service(monkeypatch: pytest.MonkeyPatch, model: attfc.FaceModel, told: Told, **options: object) -> Service:
    """Photos in, with a detector that finds what it is told."""
    monkeypatch.setattr(service_module, "open_detector", lambda path: told)
    return Service(model, THRESHOLDS, **options)


def test_scores_are_those_of_the_model(aligned: TestClient, model: attfc.FaceModel, faces: list[bytes]) -> None:
    one, other = (pixels_of(face) for face in faces[:2])
    found = aligned.post("/embed", files={"photo": faces[0]}).json()
    assert found["embedding"] == model.embed(one)[0].tolist()
    assert found["photo"] == {"width": SIZE, "height": SIZE, "boxes": [], "face": None, "crop": None, "notes": []}
    found = aligned.post("/verify?crops=true", files={"a": faces[0], "b": faces[1]}).json()
    cosine = float(np.multiply(*model.embed([one, other])).sum())
    assert found["cosine"] == pytest.approx(cosine, abs=1e-6)
    assert found["decisions"] == [
        {"far": far, "threshold": at, "accepted": found["cosine"] > at} for far, at in ((0.01, 0.5), (0.1, 0.25))
    ]
    assert found["far"] == next((row["far"] for row in found["decisions"] if row["accepted"]), None)
    assert found["same_person_probability"] is None
    crop = base64.b64decode(found["a"]["crop"].removeprefix("data:image/png;base64,"))
    assert Image.open(io.BytesIO(crop)).size == (SIZE, SIZE)


def test_a_gallery_of_equal_weights_and_other_colours_is_refused(
    model: attfc.FaceModel, faces: list[bytes], tmp_path: Path
) -> None:
    same = tmp_path / "model"
    shutil.copytree(model.facts.path, same)
    config = json.loads((same / "config.json").read_text())
    (same / "config.json").write_text(json.dumps(config | {"colour_order": "BGR"}))
    other = attfc.load(same, device="cpu")
    assert other.facts.digest == model.facts.digest
    folder = tmp_path / "gallery"
    Gallery.create(folder, model).close()
    service = Service(model, THRESHOLDS, align=False, gallery=folder)
    assert service.search(faces[0]).nearest == []
    shutil.rmtree(folder)
    Gallery.create(folder, other).close()
    for refused in (lambda: service.search(faces[0]), lambda: Gallery.open(folder, model), service.about):
        with pytest.raises(UserError, match=r"is another model than that of .*: its colours are .*RGB.*, not .*BGR"):
            refused()


def test_the_probability_is_that_of_the_operating_point(model: attfc.FaceModel, faces: list[bytes]) -> None:
    curve = Probability(slope=8.0, offset=-2.0, brier=0.1)
    with client(Service(model, THRESHOLDS, SimpleNamespace(probability=curve), align=False)) as asked:
        found = asked.post("/verify", files={"a": faces[0], "b": faces[1]}).json()
    expected = 1 / (1 + np.exp(-(8 * found["cosine"] - 2)))
    assert found["same_person_probability"] == pytest.approx(expected)


def test_a_photo_is_aligned_and_all_its_faces_are_told(
    monkeypatch: pytest.MonkeyPatch, model: attfc.FaceModel, faces: list[bytes]
) -> None:
    ten = Told(*((0.3, 30 * place, 10) for place in range(9)), (1, 100, 50))
    photo = Image.new("RGB", (340, 320))
    photo.paste(Image.open(io.BytesIO(faces[0])), (100, 50))
    with client(photo_service(monkeypatch, model, ten)) as asked:
        found = asked.post("/embed?crops=true", files={"photo": encoded(photo, "PNG")}).json()
        seen = found["photo"]
        assert (seen["width"], seen["height"], len(seen["boxes"])) == (340, 320, 10)
        assert seen["face"]["box"] == [100, 50, 212, 162]
        assert seen["notes"] == ["10 faces were found: the largest one was taken"]
        crop = Image.open(io.BytesIO(base64.b64decode(seen["crop"].split(",")[1])))
        assert np.abs(np.asarray(crop).astype(int) - pixels_of(faces[0])).max() <= 1
        assert found["embedding"] == pytest.approx(model.embed(np.asarray(crop))[0].tolist(), abs=1e-6)
        central = asked.post("/embed?take=central", files={"photo": encoded(photo, "PNG")}).json()
        assert central["photo"]["notes"] == ["10 faces were found: the central one was taken"]
        refused = asked.post("/embed?take=all", files={"photo": b""})
        assert (refused.status_code, refused.json()) == (
            422, {"error": "take: Input should be 'largest' or 'central'"},
        )  # fmt: skip


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_are_those_of_the_upright_photo(
    orientation: int, monkeypatch: pytest.MonkeyPatch, model: attfc.FaceModel
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    with client(photo_service(monkeypatch, model, Told((0.5, 10, 10)))) as asked:
        photo = encoded(Image.new("RGB", (200, 120)), "JPEG", exif=exif)
        seen = asked.post("/embed", files={"photo": photo}).json()["photo"]
    assert (seen["width"], seen["height"]) == ((120, 200) if orientation > 4 else (200, 120))


STATUS = {"huge.png": 413, "scans.jpg": 413}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_photo_has_one_sentence(
    name: str, monkeypatch: pytest.MonkeyPatch, model: attfc.FaceModel, faces: list[bytes]
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    content, reason = BAD[name]
    with client(photo_service(monkeypatch, model, Told((1, 0, 0)))) as asked:
        answer = asked.post("/verify", files={"a": faces[0], "b": (name, content)})
    assert answer.status_code == STATUS.get(name, 415)
    (said,) = answer.json().values()
    assert said.startswith("photo b: ")
    assert re.search(reason, said.removeprefix("photo b: "))


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (Told(), "photo: no face was found"),
        (Told((1, -70, 50)), "photo: the face is cut by the border: 79% of it lies beyond the photo"),
    ],
)
def test_a_photo_without_a_whole_face(
    told: Told, said: str, monkeypatch: pytest.MonkeyPatch, model: attfc.FaceModel, faces: list[bytes]
) -> None:
    with client(photo_service(monkeypatch, model, told)) as asked:
        answer = asked.post("/embed", files={"photo": faces[0]})
    assert (answer.status_code, answer.json()) == (422, {"error": said})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_malformed_requests_are_refused_and_leave_the_gallery_as_it_was(
    aligned: TestClient, gallery: Path, faces: list[bytes]
) -> None:
    before = contents(gallery)
    form = {"content-type": "multipart/form-data; boundary=x"}
    part = b'--x\r\nContent-Disposition: form-data; name="photo"; filename="f"\r\n\r\n'
    wanted = "send a form (multipart/form-data) with photo, a file each"
    for headers, body in (
        ({}, b""),
        ({"content-type": "image/jpeg"}, faces[0]),
        ({"content-type": "multipart/form-data"}, part),
        (form, b""),
        (form, b"nonsense"),
        (form, part + b"cut"),
        (form, part.replace(b"photo", b"other") + b"x\r\n--x--\r\n"),
        (form, part.replace(b'; filename="f"', b"") + b"x\r\n--x--\r\n"),
        (form, part.replace(b'; name="photo"', b"") + b"x\r\n--x--\r\n"),
        (form, 9 * (part + b"x\r\n") + b"--x--\r\n"),
        (form, 2 * (part + b"x\r\n") + b"--x--\r\n"),
        ({"content-type": b"multipart/form-data; boundary=\xff"}, part),
        ({"content-type": "multipart/form-data; boundary=" + 300 * "x"}, part),
    ):
        answer = aligned.post("/search", headers=headers, content=body)
        assert (answer.status_code, answer.json()) == (400, {"error": wanted}), body[:80]
    for content, status in [(content, STATUS.get(name, 415)) for name, (content, _) in BAD.items()]:
        assert aligned.post("/search", files={"photo": ("../../<script>\n", content)}).status_code == status
    assert aligned.post("/search?top=0", files={"photo": faces[0]}).status_code == 422
    assert aligned.get("/search").json() == {"error": "Method Not Allowed"}
    assert aligned.get("/nothing").json() == {"error": "Not Found"}
    assert contents(gallery) == before
    assert aligned.post("/search", files={"photo": faces[2]}).json()["nearest"][0]["name"] == "Ann Lee"


def test_search_names_nobody_without_a_threshold_and_sees_what_changes(
    model: attfc.FaceModel, faces: list[bytes], gallery: Path, tmp_path: Path
) -> None:
    folder, far = tmp_path / "g", tmp_path / "far.json"
    far.write_text(json.dumps({"threshold_at_far": {"0.01": 0.9}, "impostor_pairs": 30_000}))
    Gallery.create(folder, model).close()
    with client(Service(model, {}, align=False, gallery=folder)) as asked:
        assert asked.post("/search", files={"photo": faces[0]}).json()["nearest"] == []
        with Gallery.open(folder, model) as opened:
            opened.add(model.embed(pixels_of(faces[0])), name=NAME)
        found = asked.post("/search?top=3", files={"photo": faces[0]}).json()
        assert (found["name"], found["threshold"], len(found["nearest"])) == (None, None, 1)
        assert found["nearest"][0]["name"] == r"<script>alert(1)</script>\n../x"
        assert asked.get("/model").json()["gallery"]["strangers_named"] is None
        Gallery.create(folder, model, far=0.01, evaluation=far).close()
        found = asked.post("/search", files={"photo": faces[0]}).json()
        assert found["name"] == r"<script>alert(1)</script>\n../x"
        assert found["nearest"][0]["far"] == 0.01
        assert asked.get("/model").json()["gallery"] == {
            "templates": 1, "far": 0.01, "threshold": 0.9, "strangers_named": pytest.approx(0.01),
        }  # fmt: skip
        assert asked.post("/verify", files={"a": faces[0], "b": faces[1]}).json()["notes"] == [
            "No threshold is known for this model, so the cosine alone decides nothing."
        ]
        with Gallery.open(folder) as opened:
            opened.remove(NAME)
        assert asked.post("/search", files={"photo": faces[0]}).json()["nearest"] == []


def test_a_gallery_of_another_model_is_refused_at_the_start_and_later(
    model: attfc.FaceModel, faces: list[bytes], tmp_path: Path
) -> None:
    other = attfc.load(saved_model(tmp_path / "other", seed=1), device="cpu")
    Gallery.create(tmp_path / "theirs", other).close()
    with pytest.raises(UserError, match="is another model than that of"):
        Service(model, {}, align=False, gallery=tmp_path / "theirs")
    Gallery.create(tmp_path / "g", model).close()
    lines: list[str] = []
    with client(Service(model, {}, align=False, gallery=tmp_path / "g"), tell=lines.append) as asked:
        (tmp_path / "g").rename(tmp_path / "gone")
        (tmp_path / "theirs").rename(tmp_path / "g")
        answer = asked.post("/search", files={"photo": faces[0]})
    assert answer.status_code == 503
    assert answer.json() == {
        "error": "this has no answer now: its owner finds out why with attfc verify, or attfc gallery stats"
    }
    assert lines == []


def test_uploads_are_bounded(model: attfc.FaceModel, faces: list[bytes]) -> None:
    with client(Service(model, {}, align=False), Limits(photo_bytes=50_000)) as asked:
        large = {"error": "a photo may have 0.0476837 MiB at most: send a smaller one"}
        for files in ({"photo": bytes(50_001)}, {"photo": bytes(10_000_000)}):
            answer = asked.post("/embed", files=files)
            assert (answer.status_code, answer.json()) == (413, large)
        sent = 0

        def endless() -> Iterator[bytes]:
            nonlocal sent
            yield b'--x\r\nContent-Disposition: form-data; name="photo"; filename="f"\r\n\r\n'
            for _ in range(1000):
                sent += 1
                yield bytes(10_000)

        answer = asked.post("/embed", content=endless(), headers={"content-type": "multipart/form-data; boundary=x"})
        assert (answer.status_code, answer.json()) == (413, large)
        assert asked.post("/embed", files={"photo": faces[0]}).status_code == 200


def test_no_upload_goes_to_a_file(model: attfc.FaceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starlette's own forms go to a temporary file from 1 MB on."""
    made: list[object] = []
    for name in ("TemporaryFile", "SpooledTemporaryFile", "NamedTemporaryFile"):
        monkeypatch.setattr(f"tempfile.{name}", lambda *options, **names: made.append(names))
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    photo = encoded(Image.fromarray(noise), "BMP")
    assert len(photo) > 2_000_000
    with client(Service(model, {}, align=False)) as asked:
        assert asked.post("/embed", files={"photo": photo}).status_code == 200
    assert not made


def test_too_many_at_once_and_too_slow(
    model: attfc.FaceModel, faces: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    service = Service(model, {}, align=False)
    embed = service.embed
    monkeypatch.setattr(service, "embed", lambda *given: go.wait(20) and embed(*given))
    with client(service, Limits(at_once=3, workers=2, seconds=15)) as asked:
        answers: list[int] = []
        threads = [
            threading.Thread(target=lambda: answers.append(asked.post("/embed", files={"photo": faces[0]}).status_code))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 10
        while "attfc_requests_in_progress 4" not in asked.get("/metrics").text and time.monotonic() < deadline:
            time.sleep(0.02)
        answer = asked.post("/embed", files={"photo": faces[0]})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json() == {"error": "3 requests are being answered: try again soon"}
        assert asked.get("/health").json() == {"status": "ok"}
        go.set()
        for thread in threads:
            thread.join()
        assert answers == [200, 200, 200]
    go.clear()
    with client(service, Limits(seconds=0.2, workers=1)) as asked:
        answer = asked.post("/embed", files={"photo": faces[0]})
        assert (answer.status_code, answer.json()) == (503, {"error": "no answer within 0.2 s: try again later"})
        go.set()


def test_photos_that_do_not_arrive_are_given_up(model: attfc.FaceModel) -> None:
    app, sent = create_app(Service(model, {}, align=False), Limits(seconds=0.1)), []

    async def receive() -> dict[str, object]:
        await asyncio.sleep(60)
        raise AssertionError

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "path": "/embed", "query_string": b"",
        "headers": [(b"content-type", b"multipart/form-data; boundary=x")],
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 408
    assert json.loads(sent[1]["body"]) == {"error": "the photos did not arrive within 0.1 s: send smaller ones"}


def test_a_token_is_asked_for(model: attfc.FaceModel, faces: list[bytes]) -> None:
    service = Service(model, {}, align=False)
    with client(service, token=TOKEN) as asked:
        for given in (None, TOKEN, f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", "Bearer é", f"Basic {TOKEN}"):
            headers = {} if given is None else {"authorization": given.encode("latin-1")}
            for path in ("/model", "/metrics", "/openapi.json", "/nothing"):
                answer = asked.get(path, headers=headers)
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
                assert answer.json() == {"error": "send the token: Authorization: Bearer TOKEN"}
            assert asked.post("/embed", files={"photo": faces[0]}, headers=headers).status_code == 401
        assert asked.get("/").status_code == asked.get("/health").status_code == 200
        assert asked.get("/model", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_tokens_are_read_and_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATTFC_TOKEN", raising=False)
    assert command.read_token(None) is None
    monkeypatch.setenv("ATTFC_TOKEN", TOKEN)
    assert command.read_token(None) == TOKEN
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}0\nmore\n")
    assert command.read_token(file) == f"{TOKEN}0"
    for bad in ("", "short", "a b c d e f g h i j", "é" * 20):
        file.write_text(bad)
        with pytest.raises(UserError, match=r"holds no token: give 16 or more ASCII characters") as raised:
            command.read_token(file)
        assert not bad or bad not in str(raised.value)


def test_pages_of_others_cannot_point_a_name_of_theirs_here(model: attfc.FaceModel) -> None:
    with client(Service(model, {}, align=False), hosts=LOOPBACK) as asked:
        for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:9", "[::1]:8000"):
            assert asked.get("/model", headers={"host": host}).status_code == 200, host
        for host in ("evil.example", "localhost.evil.example:8000", ""):
            answer = asked.get("/model", headers={"host": host})
            assert answer.status_code == 421, host
            assert answer.json()["error"].startswith("this service answers to localhost, 127.0.0.1, ::1 only")


def test_nothing_of_a_request_is_logged(
    model: attfc.FaceModel,
    gallery: Path,
    faces: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    service, lines = Service(model, THRESHOLDS, align=False, gallery=gallery), []
    with client(service, tell=lines.append) as asked:
        logged = len(caplog.records)
        asked.post("/search?top=2", files={"photo": ("Ann Lee.png", faces[0])})
        asked.post("/search", files={"photo": ("Ann Lee.png", b"no image")})

        def fails(*given: object) -> None:
            raise RuntimeError("Ann Lee has cosine 0.7")

        monkeypatch.setattr(service, "search", fails)
        answer = asked.post("/search", files={"photo": faces[0]})
    assert (answer.status_code, answer.json()) == (500, {"error": "the service failed: its owner sees where"})
    assert len(lines) == 1
    assert re.fullmatch(r"search: RuntimeError at test_serve\.py:\d+", lines[0])
    ours = [record for record in caplog.records[logged:] if not record.name.startswith(("httpx", "asyncio"))]
    assert not ours  # httpx is the client
    assert capfd.readouterr() == ("", "")


SAMPLE = re.compile(r'^([a-z_]+)(?:\{((?:[a-z]+="[^"\\\n]*",?)+)\})? (-?\d+(?:\.\d+)?)$')


def test_metrics_count_and_parse(aligned: TestClient, faces: list[bytes]) -> None:
    for _ in range(3):
        aligned.post("/search", files={"photo": faces[0]})
    aligned.post("/embed", files={"photo": b"no image"})
    aligned.get('/a"b%0A{}')
    answer = aligned.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", answer.text, re.MULTILINE))
    found: dict[tuple[str, str], float] = {}
    for line in answer.text.splitlines():
        if not line.startswith("# "):
            sample = SAMPLE.match(line)
            assert sample, line
            name, labels, value = sample.groups()
            assert re.sub(r"_(bucket|sum|count)$", "", name) in kinds or name in kinds
            found[name, labels or ""] = float(value)
    assert found["attfc_requests_total", 'endpoint="search",status="200"'] == 3
    assert found["attfc_requests_total", 'endpoint="embed",status="415"'] == 1
    assert found["attfc_requests_total", 'endpoint="other",status="404"'] == 1
    buckets = [value for (name, labels), value in found.items() if name.endswith("_bucket") and '"search"' in labels]
    assert buckets == sorted(buckets)
    assert buckets[-1] == found["attfc_request_seconds_count", 'endpoint="search"'] == 3
    assert found["attfc_requests_in_progress", ""] == 1  # this one
    assert "Ann" not in answer.text


def test_times_fall_into_their_buckets() -> None:
    metrics = Metrics()
    for seconds in (0.01, 0.2, 99.0):
        metrics.count("embed", 200, seconds)
    text = metrics.text()
    for bound, count in (("0.01", 1), ("0.1", 1), ("0.25", 2), ("30", 2), ("+Inf", 3)):
        assert f'attfc_request_seconds_bucket{{endpoint="embed",le="{bound}"}} {count}\n' in text


def test_the_page_needs_no_network_and_allows_its_own_script_alone(aligned: TestClient) -> None:
    answer = aligned.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert "unsafe" not in str(policy)
    assert re.fullmatch(r"'sha256-[\w+/]{43}='", policy["script-src"])
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", answer.text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\son\w+=|style=", answer.text)
    levels = [int(level) for level in re.findall(r"<h(\d)", answer.text)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    for path in ("/", "/model", "/nothing", "/health"):
        headers = aligned.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in headers


def test_openapi_describes_forms_and_errors(aligned: TestClient, model: attfc.FaceModel) -> None:
    described = aligned.get("/openapi.json").json()
    assert set(described["paths"]) == {"/health", "/metrics", "/model", "/embed", "/verify", "/search"}
    form = described["paths"]["/verify"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["required"] == ["a", "b"]
    assert described["paths"]["/verify"]["post"]["responses"]["503"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/Refusal"
    }
    assert {"/docs", "/redoc"} & {path for path in ("/docs", "/redoc") if aligned.get(path).status_code != 404} == set()
    with client(Service(model, {}, align=False), token=TOKEN) as asked:
        described = asked.get("/openapi.json", headers={"authorization": f"Bearer {TOKEN}"}).json()
    assert described["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    assert "/search" not in described["paths"]


def test_a_missing_extra_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "uvicorn" else object())
    with pytest.raises(UserError, match=r"^attfc serve needs uvicorn: pip install 'attfc\[serve\]'$"):
        command.serve(Path("nowhere"))


def test_a_port_that_is_taken_is_said() -> None:
    with command.listening("127.0.0.1", 0) as taken:
        assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"^cannot listen on 127\.0\.0\.1 port {port} \(.+\): choose another"):
            command.listening("127.0.0.1", port)
