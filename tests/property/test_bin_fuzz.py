"""Whatever the bytes of a `.bin`: a UserError, or the value that Python's own unpickler makes of them; nothing else, nothing large."""

# ruff: noqa: S301  (the oracle unpickles only what our reader found to be data, and admits our names only)
import io
import os
import pickle
import random
import re
import struct
import time
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attfc.data.stores.verification_sets import read_verification_set, write_verification_set
from attfc.errors import UserError

IMAGES = [b"\xff\xd8\xff\xe0'\n\\", b'"\x89PNG\r\n\x1a', b"\0\x80\xff\t'\"", b""]

_NAMES = re.compile(
    r"numpy\.(_?core\.(multiarray\.(_reconstruct|scalar)|numeric\._frombuffer)|ndarray|dtype)|(_codecs\.encode)|(builtins|__builtin__)\.bytes"
)


class Oracle(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        assert _NAMES.fullmatch(f"{module}.{name}"), f"our reader let {module}.{name} pass"
        return super().find_class(module.replace("numpy.core", "numpy._core").replace("__builtin__", "builtins"), name)


def by_python(content: bytes) -> tuple[list[bytes], list[bool]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy 2.4 about dtypes that older versions wrote
        images, same = Oracle(io.BytesIO(content), encoding="bytes").load()
    return [image.tobytes() if isinstance(image, np.ndarray) else bytes(image) for image in images], [
        bool(s) for s in same
    ]


def check(path: Path, content: bytes) -> bool:
    """Read the file; return whether it was accepted."""
    path.write_bytes(content)
    try:
        found = read_verification_set(path)
    except UserError as error:
        message = str(error)
        assert message.startswith(str(path))
        assert "\n" not in message
        assert len(message) < 600
        return False
    assert all(type(image) is bytes for image in found.encoded)
    assert len(found.encoded) == 2 * len(found.same) > 0
    assert (found.encoded, found.same.tolist()) == by_python(content)
    return True


def arrays(images: list[bytes]) -> list[np.ndarray]:
    return [np.frombuffer(image, np.uint8).copy() for image in images]


def objects(values: list) -> np.ndarray:
    made = np.empty(len(values), object)
    made[:] = values
    return made


def with_slow_pickler(content: object, protocol: int) -> bytes:
    out = io.BytesIO()
    pickle._Pickler(out, protocol).dump(content)  # type: ignore[attr-defined]
    return out.getvalue()


image = st.binary(min_size=1, max_size=300)  # Python 3.11's own slow pickler fails at two empty arrays in protocol 5
forms = st.sampled_from(
    [list, tuple, arrays, lambda images: objects(list(images)), lambda images: objects(arrays(images))]
)
same_forms = st.sampled_from(
    [
        list,
        np.array,
        lambda same: list(np.array(same)),
        lambda same: [int(s) for s in same],
        lambda same: np.array(same, ">i8"),
    ]
)
quick = settings(max_examples=150, deadline=None, derandomize=True)


@quick
@given(
    pairs=st.lists(st.tuples(image, image, st.booleans()), min_size=1, max_size=6),
    form=forms,
    same_form=same_forms,
    protocol=st.integers(0, 5),
    pickler=st.sampled_from([pickle.dumps, with_slow_pickler]),
)
def test_every_writer_is_read(tmp_path_factory, pairs, form, same_form, protocol, pickler) -> None:
    images = [image for first, second, _ in pairs for image in (first, second)]
    same = [flag for _, _, flag in pairs]
    path = tmp_path_factory.getbasetemp() / "any.bin"
    path.write_bytes(pickler((form(images), same_form(same)), protocol))
    found = read_verification_set(path)
    assert found.encoded == images
    assert found.same.tolist() == same
    write_verification_set(path, found.encoded, found.same)
    assert read_verification_set(path).encoded == images
    assert pickle.loads(path.read_bytes(), encoding="bytes") == (images, same)


@quick
@given(text=st.binary(max_size=60))
def test_strings_of_python_2(tmp_path_factory, text: bytes) -> None:
    """repr of a Python 2 str is that of Python 3's bytes without the b; whatever else stands there is refused or means the same."""
    path = tmp_path_factory.getbasetemp() / "any.bin"
    written = b"((lp1\nS" + repr(text)[1:].encode() + b"\naS''\na(lp2\nI01\nat."
    assert check(path, written)
    assert read_verification_set(path).encoded == [text, b""]
    check(path, b"((lp1\nS'" + text + b"'\naS''\na(lp2\nI01\nat.")


def seeds() -> list[bytes]:
    """Small sets in every protocol and form, and pieces of exploits to splice in."""
    same = [True, False]
    contents = [
        (IMAGES, same),
        (arrays(IMAGES), list(np.array(same))),
        (objects(IMAGES), np.array(same)),
        (objects(arrays(IMAGES)), objects(same)),
        ([np.frombuffer(image, np.uint8).reshape(-1, 1) for image in IMAGES], list(np.array(same).astype(np.int32))),
    ]
    made = [pickle.dumps(content, protocol) for content in contents for protocol in range(6)]
    python_2 = b"".join(b"S" + repr(image)[1:].encode() + b"\na" for image in IMAGES)
    made += [
        b"((lp1\n" + python_2 + b"(lp2\nI01\naI00\nat.",
        b"\x80\x02]q\x01(U\x01aU\x02bcT\x01\0\0\0d" + b"U\0e]q\x02(\x88\x89e\x86q\x03.",
    ]
    made += [b"cos\nsystem\n(S'touch ran'\ntR.", b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x09touch ran\x85R."]
    return made


def mutate(rng: random.Random, seeds: list[bytes]) -> bytes:
    content = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(content) + 1)
        kind = rng.randrange(8)
        if kind == 0 and at < len(content):
            content[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(content):
            content[at] = rng.choice(
                b"()]}0125NKMJUTXBC.abcdeghijlopqrstuRILSV\x80\x81\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8e\x92\x93\x94\x95\x96\xff\0"
            )
        elif kind == 2:
            del content[at : at + rng.randrange(1, 9)]
        elif kind == 3:
            content[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 4:
            start = rng.randrange(len(content) + 1)
            content[at:at] = content[start : start + rng.randrange(1, 40)]
        elif kind == 5:
            other = rng.choice(seeds)
            start = rng.randrange(len(other))
            content[at:] = other[start:]
        elif kind == 6:
            content[at : at + 4] = struct.pack("<I", rng.choice((0, 1, 255, 2**31 - 1, 2**31, 2**32 - 1)))
        else:
            del content[at:]
    return bytes(content)


def fuzz(path: Path, files: int, seed: int) -> int:
    rng, whole = random.Random(seed), seeds()
    accepted = 0
    for _ in range(files):
        content = mutate(rng, whole)
        start = time.perf_counter()
        accepted += check(path, content)
        assert time.perf_counter() - start < 5, "a hang"
    return accepted


def test_seeds_are_sound(tmp_path: Path) -> None:
    assert [check(tmp_path / "lfw.bin", content) for content in seeds()] == [True] * 32 + [False] * 2


def test_mutated_files(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        accepted = fuzz(tmp_path / "lfw.bin", 1500, seed=1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.02 < accepted / 1500 < 0.5, "mutations should reach both outcomes"
    assert peak < 2_000_000
    assert os.listdir(tmp_path) == ["lfw.bin"]


@pytest.mark.slow  # 50,000 files take about a minute
def test_many_mutated_files(tmp_path: Path) -> None:
    accepted = fuzz(tmp_path / "lfw.bin", 50_000, seed=2)
    assert 0.02 < accepted / 50_000 < 0.5
    assert os.listdir(tmp_path) == ["lfw.bin"]
