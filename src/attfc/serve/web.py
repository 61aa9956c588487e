"""The service over HTTP: bounded uploads, one sentence per error, a token if asked, and nothing of a request in any log.

A request is admitted while fewer than `at_once` are, which bounds memory to their uploads; others get 503 at once. Its photos are read into memory,
never into a temporary file, then computed by one of a few threads. What it takes is bounded too: bytes here, pixels and scans by the decoder, seconds
by the clock; a thread that is past its time finishes its photo, and nobody waits for it.

Sources: ASGI 3.0; RFC 9110 (status codes); RFC 6750 (bearer tokens); W3C, Content Security Policy 3.
"""

import asyncio
import base64
import hashlib
import hmac
import logging
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from attfc.data.images import BrokenImageError, TooLargeImageError
from attfc.errors import UserError
from attfc.photos.faces import NoFaceError
from attfc.serve.metrics import Metrics
from attfc.serve.service import About, Embedded, Found, Service, Taken, Verified

__all__ = ["LOOPBACK", "Limits", "create_app"]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
OPEN = ("/", "/health")  # without a token: they say nothing of anybody
ROUTES = (*OPEN, "/model", "/embed", "/verify", "/search", "/metrics", "/openapi.json")
FORM_BYTES, MOST_PARTS = 4096, 8  # of a form: bytes around its photos
HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Limits:
    """What a request may take.

    Attributes:
        photo_bytes: of one photo.
        seconds: to send it and to get its answer.
        at_once: requests being answered; others get 503.
        workers: threads that compute.
    """

    photo_bytes: int = 16 << 20
    seconds: float = 30.0
    at_once: int = 64
    workers: int = 2


class Refusal(BaseModel):
    """Why there is no answer, in one sentence."""

    error: str


def refusal(status: int, error: str, **headers: str) -> JSONResponse:
    """Return the answer to a request that has none."""
    return JSONResponse({"error": error}, status, headers)


class Guard:
    """Stands around the application: host, token, headers, metrics; of what goes wrong inside it says the place in our code, and no value.

    Args:
        app: the application.
        metrics: to count in.
        token: that requests carry; None: none.
        hosts: names by which the service may be called, against pages of others that get a name of theirs to point here; None: any.
        tell: called with a line on an error of ours.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        token: str | None,
        hosts: Sequence[str] | None,
        tell: Callable[[str], None],
    ) -> None:
        self.app, self.metrics, self.token, self.hosts, self.tell = app, metrics, token, hosts, tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, status = time.perf_counter(), 0
        endpoint = scope["path"].strip("/") or "page"

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        self.metrics.in_progress += 1
        try:
            await (self._refused(scope) or self.app)(scope, receive, told)
        except ClientDisconnect:
            status = status or 499
        except Exception as error:
            self.tell(f"{endpoint}: {type(error).__name__} at {place_of(error)}")
            if not status:
                await refusal(500, "the service failed: its owner sees where")(scope, receive, told)
        finally:
            self.metrics.in_progress -= 1
            known = scope["path"] in ROUTES
            self.metrics.count(endpoint if known else "other", status, time.perf_counter() - start)

    def _refused(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if self.hosts is not None:
            host = re.sub(r":\d*$", "", headers.get("host", "")).strip("[]").lower()
            if host not in self.hosts:
                return refusal(421, f"this service answers to {', '.join(self.hosts)} only: call it by that name")
        if self.token is not None and scope["path"] not in OPEN:
            given = headers.get("authorization", "").encode("latin-1", "replace")
            if not hmac.compare_digest(given, f"Bearer {self.token}".encode()):
                return refusal(401, "send the token: Authorization: Bearer TOKEN", **{"www-authenticate": "Bearer"})
        return None


def place_of(error: BaseException) -> str:
    """Return file and line where an exception was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "?" if trace is None else f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"


def files_of(content_type: str, body: bytes) -> dict[str, bytes]:
    """Return the files of a form by the names of their fields, from memory: nothing is written anywhere.

    Raises:
        ValueError: it is not a form, has more than MOST_PARTS parts, or two files of one name.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        raise ValueError(kind)
    begun: list[tuple[dict[bytes, bytes], bytearray]] = []
    name, value, ended = bytearray(), bytearray(), 0

    def begin() -> None:
        if len(begun) == MOST_PARTS:
            raise ValueError(MOST_PARTS)
        begun.append(({}, bytearray()))

    def end_header() -> None:
        begun[-1][0][bytes(name).lower()] = bytes(value)
        name.clear()
        value.clear()

    def end() -> None:
        nonlocal ended
        ended = len(begun)

    parser = MultipartParser(
        options.get(b"boundary", b""),
        {
            "on_part_begin": begin,
            "on_header_field": lambda data, first, last: name.extend(data[first:last]),
            "on_header_value": lambda data, first, last: value.extend(data[first:last]),
            "on_header_end": end_header,
            "on_part_data": lambda data, first, last: begun[-1][1].extend(data[first:last]),
            "on_part_end": end,
        },
    )
    parser.write(body)
    parser.finalize()
    files = {}
    for headers, content in begun[:ended]:
        _, said = parse_options_header(headers.get(b"content-disposition"))
        if b"filename" in said:
            field = said.get(b"name", b"").decode("latin-1")
            if field in files:  # an answer about one of two photos would not say which
                raise ValueError(field)
            files[field] = bytes(content)
    return files


class Desk:
    """Takes requests with photos, as many at once as the limits say, and has them computed."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self._admitted = limits, 0
        self._threads = ThreadPoolExecutor(limits.workers, thread_name_prefix="attfc")

    async def answer(self, request: Request, names: Sequence[str], compute: Callable[..., Answer]) -> Answer:
        """Return `compute` of the photos that a form names so.

        Raises:
            HTTPException: too many requests, too large, too slow, or not a form with these photos.
        """
        if self._admitted >= self.limits.at_once:
            raise HTTPException(
                503, f"{self.limits.at_once} requests are being answered: try again soon", {"retry-after": "1"}
            )
        self._admitted += 1
        late = HTTPException(408, f"the photos did not arrive within {self.limits.seconds:g} s: send smaller ones")
        try:
            async with asyncio.timeout(self.limits.seconds):
                body = await self._body(request, len(names) * self.limits.photo_bytes + FORM_BYTES)
                late = HTTPException(
                    503, f"no answer within {self.limits.seconds:g} s: try again later", {"retry-after": "10"}
                )
                kind = request.headers.get("content-type", "")
                return await asyncio.get_running_loop().run_in_executor(
                    self._threads, lambda: compute(*self._photos(kind, body, names))
                )
        except TimeoutError:
            raise late from None
        finally:
            self._admitted -= 1

    async def _body(self, request: Request, most: int) -> bytes:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                raise self._too_large()
        return bytes(body)

    def _photos(self, content_type: str, body: bytes, names: Sequence[str]) -> list[bytes]:
        try:
            files = files_of(content_type, body)
            photos = [files[name] for name in names]
        except (ValueError, KeyError):
            raise HTTPException(
                400, f"send a form (multipart/form-data) with {' and '.join(names)}, a file each"
            ) from None
        if any(len(photo) > self.limits.photo_bytes for photo in photos):
            raise self._too_large()
        return photos

    def _too_large(self) -> HTTPException:
        return HTTPException(
            413, f"a photo may have {self.limits.photo_bytes / 2**20:g} MiB at most: send a smaller one"
        )


def create_app(
    service: Service,
    limits: Limits,
    *,
    token: str | None = None,
    hosts: Sequence[str] | None = None,
    tell: Callable[[str], None] = print,
) -> ASGIApp:
    """Return the ASGI application; arguments as `Limits` and `Guard`."""
    metrics, desk = Metrics(), Desk(limits)
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it warns of each malformed form
    app = FastAPI(
        title="attfc",
        description="Faces: embeddings, verification, and search in a gallery.",
        version=metadata.version("attfc"),
        docs_url=None,  # these pages load scripts from a server of others
        redoc_url=None,
        dependencies=[] if token is None else [Depends(HTTPBearer(auto_error=False))],
        responses={status: {"model": Refusal} for status in (400, 401, 408, 413, 415, 422, 503)},
    )
    _say_errors(app)
    page, policy = _page()

    @app.get("/", include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers={"content-security-policy": policy})

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Say that the service answers."""
        return {"status": "ok"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def show_metrics() -> PlainTextResponse:
        """Return counts and times as Prometheus text."""
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/model")
    def about() -> About:
        """Return what is served."""
        return service.about()

    @app.post("/embed", openapi_extra=_form("photo"))
    async def embed(request: Request, take: Taken = "largest", crops: bool = False) -> Embedded:
        """Return the embedding of a photo's face, at unit length."""
        return await desk.answer(request, ["photo"], lambda photo: service.embed(photo, take, crops))

    @app.post("/verify", openapi_extra=_form("a", "b"))
    async def verify(request: Request, take: Taken = "largest", crops: bool = False) -> Verified:
        """Compare the faces of two photos."""
        return await desk.answer(request, ["a", "b"], lambda a, b: service.verify(a, b, take, crops))

    if service.gallery is not None:

        @app.post("/search", openapi_extra=_form("photo"))
        async def search(
            request: Request,
            top: Annotated[int, Query(ge=1, le=100)] = 1,
            take: Taken = "largest",
            crops: bool = False,
        ) -> Found:
            """Say whom a photo shows: a name of the gallery, or nobody's."""
            return await desk.answer(request, ["photo"], lambda photo: service.search(photo, top, take, crops))

    return Guard(app, metrics, token, hosts, tell)


def _form(*names: str) -> dict[str, Any]:
    """Return how OpenAPI describes a form with files."""
    files = {name: {"type": "string", "format": "binary"} for name in names}
    schema = {"type": "object", "required": list(names), "properties": files}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def _say_errors(app: FastAPI) -> None:
    """Answer each error with its status and one sentence."""

    @app.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException) -> JSONResponse:
        return refusal(error.status_code, str(error.detail), **(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def _(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return refusal(422, f"{first['loc'][-1]}: {first['msg']}")

    @app.exception_handler(BrokenImageError)
    async def _(request: Request, error: BrokenImageError) -> JSONResponse:
        status = 422 if isinstance(error, NoFaceError) else 413 if isinstance(error, TooLargeImageError) else 415
        return refusal(status, str(error))

    @app.exception_handler(UserError)
    async def _(request: Request, error: UserError) -> JSONResponse:
        # Its text may name a person or a folder.
        return refusal(503, "this has no answer now: its owner finds out why with attfc verify, or attfc gallery stats")

    @app.exception_handler(Exception)
    async def _(request: Request, error: Exception) -> JSONResponse:
        return refusal(500, "the service failed: its owner sees where")


def _page() -> tuple[str, str]:
    """Return the page, and the policy that allows its own script and style, this server, and nothing else."""
    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")

    def own(element: str) -> str:
        (text,) = re.findall(rf"<{element}>(.*?)</{element}>", page, re.DOTALL)
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return page, (
        f"default-src 'none'; script-src {own('script')}; style-src {own('style')}; img-src blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    )
