"""`attfc serve`: a model, and a gallery, over HTTP; and a page to try them."""

import os
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from attfc.commands.common import (
    DeviceOption,
    FileOption,
    FolderOption,
    ModelIsOption,
    PositiveOption,
    err,
    out,
    print_notes,
)
from attfc.commands.embed import ModelArgument, open_with_notes
from attfc.errors import UserError

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

__all__ = ["serve"]

NEEDED = ("fastapi", "uvicorn", "python_multipart")
TOKEN = "ATTFC_TOKEN"
SHORTEST_TOKEN = 16
CONNECTIONS = 512


def serve(
    model: ModelArgument,
    gallery: FolderOption = None,
    align: bool = True,
    detector: FileOption = None,
    evaluation: FileOption = None,
    host: str = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65_535)] = 8000,
    token_file: FileOption = None,
    upload_mib: PositiveOption = 16,
    seconds: PositiveOption = 30,
    at_once: PositiveOption = 64,
    workers: Annotated[int | None, Option(min=1)] = None,
    device: DeviceOption = "auto",
    model_is: ModelIsOption = None,
) -> None:
    """Answer over HTTP: embed, verify, search; with a page to try it. It keeps no photo and logs nothing of a request.

    Args:
        gallery: folder of the model's gallery, for searches
        align: find and align the face of each photo; with --no-align the images are aligned faces
        detector: ONNX file that finds faces, as attfc align takes it
        evaluation: file of `attfc evaluate MODEL all-pairs FOLDER --json FILE` or of attfc calibrate; default: the model's operating
            point, else the last evaluation of its run
        host: address to listen on; the default can be reached from this machine only
        port: port to listen on; 0: any free one
        token_file: file whose first line requests must carry as Authorization: Bearer; default: $ATTFC_TOKEN, if set
        upload_mib: largest photo, MiB
        seconds: time for a request to arrive and be answered
        at_once: requests answered at the same time; more are refused with status 503
        workers: threads that compute; default: one per processor core, 4 at most
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise UserError(f"attfc serve needs {missing[0]}: pip install 'attfc[serve]'")
    if detector is not None and not align:
        raise UserError("--detector finds faces in photos: leave out --no-align")
    token = read_token(token_file)

    import torch

    from attfc.evaluation.report.thresholds import thresholds_of
    from attfc.serve.service import NO_THRESHOLD, Service
    from attfc.serve.web import LOOPBACK, Limits, create_app

    opened = open_with_notes(model, model_is, device)
    thresholds, _, point = thresholds_of(opened.facts, evaluation)
    service = Service(opened, thresholds, point, align=align, detector=detector, gallery=gallery)
    cores = os.cpu_count() or 1
    limits = Limits(upload_mib << 20, seconds, at_once, workers or min(cores, 4))
    torch.set_num_threads(max(1, cores // limits.workers))
    local = host in LOOPBACK
    app = create_app(
        service,
        limits,
        token=token,
        hosts=LOOPBACK if local and token is None else None,
        tell=lambda line: err.print(f"error in {line}"),
    )
    notes = [] if thresholds else [NO_THRESHOLD]
    if not local and token is None:
        notes.append(f"whoever can reach {host} can use the service: --token-file FILE makes it ask for a token")
    print_notes(notes)
    with listening(host, port) as listener:
        shown = f"[{host}]" if ":" in host else host
        out.print(f"http://{shown}:{listener.getsockname()[1]}/   (Ctrl-C ends it)")
        server_of(app).run(sockets=[listener])


def server_of(app: "ASGIApp") -> "uvicorn.Server":
    """Return the server of an application: it logs nothing of a request, and tells nothing of itself."""
    import uvicorn

    return uvicorn.Server(
        uvicorn.Config(
            app,
            http="h11",
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=5,
        )
    )


def read_token(file: Path | None) -> str | None:
    """Return the token that requests must carry; None: none was asked for.

    Raises:
        UserError: it is too short, or cannot stand in a header.
    """
    if file is None:
        given, source = os.environ.get(TOKEN), f"${TOKEN}"
    else:
        with file.open(encoding="utf-8", errors="replace") as opened:
            given, source = opened.readline(4096).strip(), str(file)
    if given is None:
        return None
    if len(given) < SHORTEST_TOKEN or not all("!" <= letter <= "~" for letter in given):
        raise UserError(
            f"{source} holds no token: give {SHORTEST_TOKEN} or more ASCII characters without spaces, such as those of openssl rand -hex 16"
        )
    return given


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        UserError: the address is not this machine's, or taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=CONNECTIONS)
        # Connections inherit it. Without it a client that goes on asking waits 40 ms for the second half of each answer.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        raise UserError(
            f"cannot listen on {host} port {port} ({error.strerror or error}): choose another --port or --host"
        ) from None
