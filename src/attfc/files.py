"""A file that is replaced as a whole: whoever opens it finds the old or the new content, and after a failure nothing lies beside it."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from attfc.errors import UserError

__all__ = ["write_json_whole", "write_text_whole", "written_whole"]


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write into, hidden beside `path`; at the end it takes the place of `path`.

    Raises:
        UserError: it could not be written (disk full, no permission ...); what was at `path` stands.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with draft.open("wb") as file:
            yield file
        draft.replace(path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}; make room or permission there"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def write_text_whole(path: Path, text: str) -> None:
    """Write `text` as UTF-8 with `written_whole`."""
    with written_whole(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def write_json_whole(path: Path, values: Mapping[str, Any]) -> None:
    """Write `values` as JSON with `written_whole`."""
    write_text_whole(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
