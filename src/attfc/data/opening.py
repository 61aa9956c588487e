"""One name for any data: a folder of identity folders, or `synthetic:...` for rendered faces that need no disk."""

import os
from collections.abc import Callable

from attfc.data.folder import FolderStore
from attfc.data.store import Store
from attfc.errors import UserError, nearest

__all__ = ["open_store"]

_SYNTHETIC = "synthetic"
_SYNTHETIC_KEYS = {"identities": 1000, "images": 20, "seed": 0, "first": 0}


def open_store(
    path_or_spec: str | os.PathLike[str],
    *,
    cache: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Store:
    """Open a source of face images.

    Args:
        path_or_spec: a folder `root/<identity>/<image>`, or "synthetic:identities=1000,images=20,seed=0" with any of
            the keys identities, images (of each: 20, or 5-40 for a long tail), seed, first (number of the first
            identity: held-out people of the same seed); what is not given has these values, and first=0.
        cache: folder for the index of an image folder (see `FolderStore`).
        progress: called as (done, total) while a folder is scanned for the first time.

    Raises:
        UserError: nothing there, a kind of data that is not supported, or a malformed specification.

    >>> len(open_store("synthetic:identities=3,images=2"))
    6
    """
    spec = os.path.expanduser(os.fspath(path_or_spec))  # the shell leaves the ~ of data.root=~/faces
    if spec == _SYNTHETIC or spec.startswith(_SYNTHETIC + ":"):
        return _open_synthetic(spec)
    if not spec:
        raise UserError('no data given: a folder root/<identity>/<image>, or "synthetic:identities=1000,images=20"')
    if os.path.isfile(spec):
        raise UserError(f"{spec}: is a file; supported are folders root/<identity>/<image> and synthetic:...")
    if os.path.isfile(os.path.join(spec, "train.rec")):
        raise UserError(
            f"{spec}: holds train.rec (MXNet RecordIO), which this version does not read: unpack it to folders"
        )
    if not os.path.exists(spec):
        word, colon, _ = spec.partition(":")
        hint = nearest(word, [_SYNTHETIC]) if colon or word.startswith("syn") else ""
        raise UserError(f"{spec}: no such folder{hint}")
    return FolderStore(spec, cache=cache, progress=progress)


def _open_synthetic(spec: str) -> Store:
    from attfc.data.synthetic import SyntheticFaces  # the renderer is loaded only by those who use it

    values = dict(_SYNTHETIC_KEYS)
    most_images = 0
    for part in filter(None, (part.strip() for part in spec.partition(":")[2].split(","))):
        key, _, value = (word.strip() for word in part.partition("="))
        key = "first" if key == "first_identity" else key
        if key not in values:
            raise UserError(f"{spec}: unknown key {key!r}{nearest(key, values)}; known: {', '.join(values)}")
        low, dash, high = value.partition("-") if key == "images" else (value, "", "")
        try:
            values[key] = int(low)
            most_images = int(high) if dash else most_images
        except ValueError:
            example = "images=20 or images=5-40" if key == "images" else f"{key}={_SYNTHETIC_KEYS[key]}"
            raise UserError(f"{spec}: {key} needs a whole number, as in {example}") from None
    images = (values["images"], most_images) if most_images else values["images"]
    return SyntheticFaces(values["identities"], images, seed=values["seed"], first_identity=values["first"])
