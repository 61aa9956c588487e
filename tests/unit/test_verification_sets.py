"""Verification `.bin` sets: what other Pythons wrote is read, what could run code is refused by name, and ours is read elsewhere."""

# ruff: noqa: S301  (pickle.loads proves that each exploit made here works, and that others can read our files)
import base64
import collections
import contextlib
import copyreg
import functools
import gc
import io
import multiprocessing
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tracemalloc
import types
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

import attfc
from attfc.data import FolderStore
from attfc.data.stores.plain_pickle import PlainArray
from attfc.data.stores.verification_sets import (
    VerificationSet,
    make_verification_set,
    read_plain_pickle,
    read_verification_set,
    write_verification_set,
)
from attfc.errors import UserError
from attfc.evaluation.embed import embed_store

SOURCE = Path(attfc.__file__).parents[1]
IMAGES = [b"\xff\xd8\xff\xe0'\n\\", b'"\x89PNG\r\n\x1a', b"\0\x80\xff\t'\"", b"\xff\xd8\0\0"]
"""Not images, but bytes that every way of writing bytes treats in its own way: quotes, backslash, line ends, zeros, above 127."""

# Pickles of (IMAGES in some form, [True, False] in some form) by real interpreters, zlib and base64. "arrays": uint8 arrays with
# a list of numpy.bool_; "columns": arrays of shape (n, 1), as OpenCV 4.2 returns them, with a bool array; "objects": an object array of
# bytes with [1, 0]. Python 2: cPickle unless "pure Python".
WRITTEN_ELSEWHERE = {
    "python 2.7, numpy 1.16, bytes, protocol 0": (
        "eNrT0MgpMOQKVoqpSEuLqUixgNCpBuoxeTExSlwFRlyJwepAWQvLAD/3mCKgaIVhojpXgTFIPKbCwAAoZQDWVBKjrgSUMIFIwEwD"
        "KTAwAIqbciUCrTLj8jQw5Er0NDDgSiwpMOfSAwC7viUN"
    ),
    "python 2.7, numpy 1.16, bytes, protocol 0, pure Python": (
        "eNo1jTsKgDAQRPs9RpqkkvFLPIGkEcF2m4CmEgliscd3NVgNvLc749yRQathSYll8yV3WD6ZDeWa4mrV+nGZJ76USh0t5eblLIAq"
        "fE83W6OiLeJvew8A5R1FneopQCsDQPHOA1UPukAlBg=="
    ),
    "python 2.7, numpy 1.16, bytes, protocol 1": (
        "eNrTiC1k1Ahl/3/j/wN1rphCplAOpc4AP3deLqlC5lA2hob/nOpKhSyhLP9vMDAUsqbGFrJpeBoYcnkaGHCllhSy6wEAhokSUg=="
    ),
    "python 2.7, numpy 1.16, bytes, protocol 2": (
        "eNprYIotZNQIZf9/4/8Dda6YQqZQDqXOAD93Xi6pQuZQNoaG/5zqSoUsoSz/bzAwFLKmxhayaXR0prYVsusBADgLEmg="
    ),
    "python 2.7, numpy 1.16, arrays, protocol 0": (
        "eNp1kEGLgzAQhe/vZ3hJLitJtdb+gsWLLOs1sMRopWBtSCMo7I/faeJCd8HDEJJ535vJ43y0Emaab3ZNzd316W0e/VU7p1d8ud7c"
        "p4d3s/GwB/Cow9TFvs3AKwHfsJbBf9qcrpLqBL8pO7/aHvYI3rBZMpCaFCQtSJahYd8MdV1XbxKhyKythECTqOVyUUtXxrMXTE1K"
        "JdTWAy0y/Jt82iaX8EOB4MDIojx/1O/KEbpIzfbgcoOLF1gtQhAvwnivWLJLnzc6/0P/Lv90ESLAz6TFXtQPo0ftYCVZDSGu9jUu"
        "edjPKywrwy4ygx6CBQHxE/E9h/ZWHpH+AFs7hzI="
    ),
    "python 2.7, numpy 1.16, arrays, protocol 2": (
        "eNp1z0FrgzAYBuBEndrUdvcde6knYb9isICMQm4tQ9NABtb2S+NB2KEXLf7DHvtP0mhXBkJz+Ah8D2/enJwN4JiX1e5QJ3yvRLKr"
        "Cv2TKZXV5FsJvi+PWlVcE3DuipTb+xZcihqG8/MKvJhiGjR/YKvrgyDwwpzqnSKKLfBj6jL8m6bpp7FnGBTpvGOBuZjrkqx1Lh35"
        "nxj0iWEj/Y6Fi+4r/ZiRtxEJe+IPxEcnM1kuRmDSA28Anrkg+5zYAHn22SPPikwRmEpbPH8Uj54UZxi3K5jJqYwYRvY6Fy28Jjcy"
        "B3Fp"
    ),
    "python 2.7, numpy 1.16, columns, protocol 2, pure Python": (
        "eNplz0lrwkAYxvGZ1Goca/fV7nYx3QQ/RaEDoQzk1lKcGIhQlyedHAI9eFHxG3rsN0nzqvXSOcxlfsPDf2C9gzl+N+70k7rfi4J6"
        "J/407WYUNRPxEQV+r/tlotg3AnyuRLc1f4Ul2RArHtfIjbGqkHcklwXJRygsaMsk/UDA9qy4gaJkko8hFEqOzL59Y8113Zc0O7NL"
        "MoOynniFdJr+1MQb1g02dMjD2c5mmI1sKWzTiE0jO2Fp4tnVyav7XBYV7BrsLfU+6QOFQ9J50kek82yQFmtVVAyOl/aE7KnCGdkc"
        "2XOyuXTKGC4MLnXwR6tErxSuiVpD3IRZmm7gdp5WU3AWaXf/0u6zNIszPBg86hGe6r8zo3lJ"
    ),
    "python 2.7, numpy 1.16, objects, protocol 0, pure Python": (
        "eNo1js1ugzAQhO/zGFzMpWhNCDFPUHGhVblaqsxPpEoJWblGAqkP393QHizb883Mbj4u6533YnzEubivt/QVYgw7PuM8PpbvFNcx"
        "gQn54cMyHZwt8paQuERvBgM+ybvCB59FV1bJv8Zfako7z+AL8t68OXE7SFh8iRvJWOlvT1L0I8hadF3Xvlg8T63FtsTQkrhubMWX"
        "+e169dvkjnsm4xfvM8lWCL0R7Jr37tVHkTcbtPSswG9EwugZS95kSuqD/Beqg0jBBUEmOww6tdFtgywtWkkofgEB61gw"
    ),
    "python 2.7, numpy 1.16, objects, protocol 2": (
        "eNprYErOK80tqNRLzi9K1cstzSnJTCwqSqzkii9KTc7PKy4pKk0u4SpkhKjiykuByBYyeTO0hjImtQcVMmt4M3qztEIVpJRUFqRy"
        "FbKEMvlbeDN4MwIVsGp4M4cy1vj5+Xn9BwIw4W1fktQZW8imEcr+/8b/B+pcMYXsoRxKnQF+7rxcUoUcoWwMDf851ZUKOUNZ/t9g"
        "YCjkSi1Jii3kBtnFkNpWyKMHABLJQFo="
    ),
    "python 3.6, numpy 1.13, bytes, protocol 0": (
        "eNotzrEKwjAQxvGsfuALOHZpJrlrm6pPIF1EHDoJEmIpQqkH1t3VN+zom8SEZjkO/j+403oQgru5571zL3RjXCAM3frZ//Lrm4hs"
        "nMZBCrSDnR4jQ0pMUuEiBraPOvueT8f1wjeQGn0UuyD2SaiPX+UZ5LAkptCYU/SzUuFskVoZWwUbvmODhgJriGBDqrH9A07wMnQ="
    ),
    "python 3.6, numpy 1.13, bytes, protocol 2": (
        "eNprYIotZNBIjk/OT0lNLuZKzQMxuAoZI7gZGBgO7z88A4gXqHPFFDJFsAFFchJLMvMMC5nbClmCClkzGCM4gYJKhzoD/Nx5uaQK"
        "2TKAMuxBhRxAGQ6gDMOhhsP7OdWVCjlBElxBhdxACTaoyQwMhTwgYd6gQr7U2EJ+jY7O1LZCAT0ApE0qpA=="
    ),
    "python 3.6, numpy 1.13, arrays, protocol 0, pure Python": (
        "eNp1kr9qw0AMxtOxgr5Axyzx0nD/7TxBKRhTOngqhPPFmIDjHI49BDp07Rtm7Ju4ks8JDWmXO4E+/fTpdFFUewau6Xf+uHT7tlzu"
        "+rrb2ra1R1i3pds3h67tXQeeQxR00GxC3guIUpZC5yW4tdtvSneAsqEAvIIoL8BryGvbbRsO3qAwhjef4L3CmzMs5ykeMTE4n3zA"
        "pjt6JHDE5z0WcgnUhrQoU1SqsUqmkH9g1kCWZekTZsMxOuIxFC+MQUU+htPwvXjvGWOWTu2wKoGKDHFyIhhGgkNhK5yyuowlBFTk"
        "VkgSqbPdZMxpqNDGpcf86zV7fghNHvFpTOALmliMkNUNX7LAlxxFUpz5ZszJa/7sc7hfzMFLFcBSU80YxbfgZALTdOryzopyil+D"
        "h9NshusSAatoVKUo0ojF76HMf//j4GxtW6yNsfe4rQK3pZJf21JkQLOwrervVWl8+NHJHX6XyYYmG5psaJpTG7DV2EafnwO18aRN"
        "SLHCyDCMDAeLoYDlDyXZv+U="
    ),
    "python 3.6, numpy 1.13, arrays, protocol 4": (
        "eNprYJnqx8gABrFTNHpE80pzCyr1kvOLUvVyS3NKMhOLihIrp/TwxBelJufnFZcUlSaXTJk8pYcVrHBKD3teCkTJ5CneDK1TnBmT"
        "prRPCZqi4c3ozd46JYOlhzWlpLIgFaSFqdQQqMabESLP3MNYM8XPz8/rPxCACW+GkilJnc7s/2/8f6DOFTMFyMtgzmADGZvBATOU"
        "A8gR6HTmUOoM8HPn5ZLCrooNooqNoeE/p7oSdjUsEDUs/28wMIBUpAL9n8HYw1acnJiTWAR0cAZvD1MSipMzBDEd7MzIOKUNKJ2h"
        "maHjzMgAZqe2TdEDAOKBg0Y="
    ),
    "python 3.6, numpy 1.13, objects, protocol 1": (
        "eNotjz1vwjAQhh2gKTGl35/0g4oFTxHdunWsWktp5SlDEQpOJJAg4Q1miNSha/9Bx/4TJPLD2jNg6c6+e+59TxY6XUxnha+zPPGn"
        "i4kZR3keFXyQJzpL5yZfaMPBxGaMp/EGwxGSGVT0QGdxouc8Se2DoypChzE2RC106Z5EZpw+YMfAVdg1qCt4QpK4ZsC3nrEpZqRs"
        "iLBCirdH7EkmHYOmwr6Q1bXfJw6CIHj9o7NO8sngcPjS6/E+jsSItjZoqlyWPxS/Xf6B4xEtPVE4tdAj2Fl9vwfPTd7CmUXnChcW"
        "1Qmx1Ve59LodXFpypdCyxN06MoZr279RuE0M7oZ9tOkPklFx7/8DRSRhEA=="
    ),
    "python 3.12, numpy 1.26, arrays, protocol 5": (
        "eNprYJ1qw8gABrFTNHqE8kpzCyr1kvOLUvWAzNSizOQpPdzxaUX5uUmlaWmpRVMmT9GYxg7RwPD/xv8H6lwxU3pYwdqAdEpJZUEq"
        "UE0PU6nhlM6O9ilBUzS8mXsYa6b4+fl5/QcCMOHNUDIlyZu9dUoPo/OUEqCiDGaNaRxQU5U6A/zcebmkpmRweXO0Tsnggylggypg"
        "aPjPqa4EkmZDlmaBu4qBASTJApNMBflMFMlnuaU5JZmJRUWJQCezFScn5iSC/JXB3sOUhOTqDG5MNzszMk5pA9mnkKHszMgAZqe2"
        "TdEDADWLdx8="
    ),
    "python 3.12, numpy 1.26, columns, protocol 3": (
        "eNplz0lPwkAYxvGZFqEM4r7ijgt1SRM+Qw8mNmnMnDhoDC1NSiLLU6cHEg9cAPsNOfpNal+qXJzDHGZ+yZP/WH8FM/1+3BuOLH8Q"
        "BVYvflfddhS1R+ItCvxB/0NFsa8EeK5Ev5P/QnPYBLrNPRRmWJEomg53Sg6fovRLO2o0DASMlsYYi5soJ18zCImK6egtnr19YtV1"
        "3ac0O4vLYQpVL7FL6Tz9bogXrCmseyEPF1sbYTa0KbFFQwYNbYeVxDbqybP7WBU17CjsLvUe6X2JA9JF0oeki2yclht11BSOlvaY"
        "7InEKdkC2TOyhXTOGM4VLrzgj9aJXkpcEdUmuA7zPK+JG8prSJhZXvg/7DYL0zjDncK9N8WD9QMi6Xjf"
    ),
    "python 3.12, numpy 1.26, objects, protocol 4, pure Python": (
        "eNprYJm6gwECekTzSnMLKvWS84tS9XJLc0oyE4uKEiun9PDEF6Um5+cVlxSVJpdMmTylhxWscEoPe14KRMnkKd4MrVOcGZOmtE8J"
        "mqLhzejN0jolg7mHNaWksiAVpIXJ32JKZwdElrmHsWaKn5+f138gABPe9iVTkjpjp2g4s/+/8f+BOlfMFGcOpc4AP3deLqkpzmwM"
        "Df851ZWmOLP8v8HAMCUVqDgWbAtDatsUPQD+cU0Z"
    ),
}


def save(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "lfw.bin"
    path.write_bytes(content)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_verification_set(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < 500
    return message


# Reading


@pytest.mark.parametrize("writer", WRITTEN_ELSEWHERE)
def test_what_other_pythons_wrote(tmp_path: Path, writer: str) -> None:
    path = save(tmp_path, zlib.decompress(base64.b64decode(WRITTEN_ELSEWHERE[writer])))
    found = read_verification_set(path)
    assert found.encoded == IMAGES
    assert {type(image) for image in found.encoded} == {bytes}
    assert found.same.tolist() == [True, False]
    assert found.same.dtype == np.bool_
    assert (found.name, found.path, len(found)) == ("lfw", path, 4)


def arrays(images: list[bytes]) -> list[np.ndarray]:
    return [np.frombuffer(image, np.uint8).copy() for image in images]


def objects(values: list) -> np.ndarray:
    made = np.empty(len(values), object)
    made[:] = values
    return made


IMAGE_FORMS: dict[str, Callable[[list[bytes]], object]] = {
    "bytes": list,
    "tuple": tuple,
    "arrays": arrays,
    "read-only arrays": lambda images: [np.frombuffer(image, np.uint8) for image in images],
    "columns": lambda images: [array.reshape(-1, 1) for array in arrays(images)],
    "rows": lambda images: [array.reshape(1, -1) for array in arrays(images)],
    "object array": objects,
    "object array of arrays": lambda images: objects(arrays(images)),
}
SAME_FORMS: dict[str, Callable[[list[bool]], object]] = {
    "list": list,
    "tuple": tuple,
    "ints": lambda same: [int(value) for value in same],
    "numpy booleans": lambda same: list(np.array(same)),
    "numpy integers": lambda same: list(np.array(same).astype(">i4")),
    "bool array": np.array,
    "int64 array": lambda same: np.array(same).astype(np.int64),
    "big-endian array": lambda same: np.array(same).astype(">i2"),
    "uint64 scalars": lambda same: list(np.array(same).astype(np.uint64)),
    "object array": objects,
}


def all_forms() -> Iterator[tuple[str, str, int]]:
    for protocol in range(6):
        yield from ((images, "list", protocol) for images in IMAGE_FORMS)
        yield from (("bytes", same, protocol) for same in SAME_FORMS)
    yield "bytearrays", "list", 5  # before protocol 5 a call of builtins.bytearray, which no known writer of sets makes


@pytest.mark.parametrize(("images", "same", "protocol"), list(all_forms()))
def test_every_form_in_every_protocol(tmp_path: Path, images: str, same: str, protocol: int) -> None:
    encoded = [*IMAGES, b"", bytes(range(256)), b"x" * 70_000, "ä€".encode()]
    flags = [True, False, False, True]
    as_form = IMAGE_FORMS.get(images, lambda encoded: [bytearray(image) for image in encoded])
    content = (as_form(encoded), SAME_FORMS[same](flags))
    slow = io.BytesIO()
    pickle._Pickler(slow, protocol).dump(content)
    for written in (pickle.dumps(content, protocol), slow.getvalue()):
        found = read_verification_set(save(tmp_path, written))
        assert found.encoded == encoded
        assert found.same.tolist() == flags


def test_more_images_than_fit_short_memo_indexes(tmp_path: Path) -> None:
    encoded = [struct.pack("<I", number) for number in range(70_000)]
    same = [number % 3 == 0 for number in range(35_000)]
    for protocol in (0, 2, 4):
        found = read_verification_set(save(tmp_path, pickle.dumps((encoded, same), protocol)))
        assert found.encoded == encoded
        assert found.same.tolist() == same


def test_an_image_that_occurs_twice_is_one_object(tmp_path: Path) -> None:
    image = bytes(1000)
    found = read_verification_set(save(tmp_path, pickle.dumps(([image, image], [True]))))
    assert found.encoded[0] is found.encoded[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (([b"a"] * 3, [True]), "3 images for 1 pairs, which need 2 "),
        (([b"a"] * 3, [True, False]), "3 images for 2 pairs, which need 4 "),
        (([b"a"] * 2, [True, False]), "2 images for 2 pairs"),
        (([], []), "holds no pairs"),
        (([b"a", "text"], [True]), "image 1 is text: bytes or a row of uint8 are needed"),
        (([b"a", 7], [True]), "image 1 is a whole number"),
        (([b"a", None], [True]), "image 1 is None"),
        (([b"a", [b"b"]], [True]), "image 1 is a list of 1"),
        (
            ([b"a", np.zeros((4, 4, 3), np.uint8)], [True]),
            r"image 1 is an array of u1, shape \(4, 4, 3\): pixels, it seems",
        ),
        (([b"a", np.zeros(4, np.int8)], [True]), r"image 1 is an array of i1, shape \(4,\)"),
        ((b"ab", [True]), "images are bytes: a list"),
        ((np.zeros((2, 9), np.uint8), [True]), r"images are an array of u1, shape \(2, 9\)"),
        (([b"a", b"b"], True), "same-or-not are a boolean"),
        (([b"a", b"b"], [2]), "same-or-not of pair 0 is 2: true or false"),
        (([b"a"] * 4, [True, -1]), "same-or-not of pair 1 is -1"),
        (([b"a", b"b"], [None]), "same-or-not of pair 0 is None"),
        (([b"a", b"b"], np.array([3])), "same-or-not of pair 0 is 3"),
        (([b"a", b"b"], np.array([[True]])), r"same-or-not are an array of b1, shape \(1, 1\)"),
        (([b"a", b"b"], [0.5], [True]), "BINFLOAT"),
        (([b"a", b"b"], [1], [True]), "holds a tuple of 3: a verification set is a tuple"),
        ([b"a", b"b", b"c"], "holds a list of 3"),
        (np.array([1, 2]), r"holds an array of i8, shape \(2,\)"),
        (([b"a", np.zeros(2, np.float32)], [True]), "an array of type 'f4': images are bytes or uint8 arrays"),
        (({}, [True]), "uses the instruction EMPTY_DICT"),
        (np.array([b"ab", b"cd"]), "an array of type 'S2'"),
        (np.zeros(2, [("a", "u1")]), "an array of type 'V1'"),
    ],
)
def test_a_pickle_of_something_else(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_verification_set(save(tmp_path, pickle.dumps(content, 4)))


def test_booleans_are_zero_or_one(tmp_path: Path) -> None:
    for same in (np.array([True]), [np.True_]):
        written = pickle.dumps(([b"a", b"b"], same), 4)
        assert written.count(b"C\x01\x01") == 1
        with pytest.raises(UserError, match=r"is 2: true or false|a boolean of value 2"):
            read_verification_set(save(tmp_path, written.replace(b"C\x01\x01", b"C\x01\x02")))


def jpeg(level: int = 0, size: int = 16) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (size, size), (level, level, level)).save(out, "JPEG")
    return out.getvalue()


def zip_file() -> bytes:
    out = io.BytesIO()
    np.savez(out, a=np.zeros(3))
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"not a pickle \(an empty file\): pass a verification set"),
        (jpeg(), "a JPEG image"),
        (b"\x1f\x8b\x08\0abc", "packed with gzip; unpack it first"),
        (zip_file(), "a zip archive, as torch.save"),
        (b"\x0a\x23\xd7\xce\0\0\0\0", "MXNet RecordIO"),
        (b"Ann Lee\t1\t2\n", r"it starts with b'Ann Lee\\t'"),
        (b"(a text in brackets)", "byte 1: damaged pickle: an instruction finds no value on the stack"),
        (b"\x80\x04\xfe", "byte 2: damaged pickle: 0xfe is not a pickle instruction"),
        (b"\x80\x09.", "byte 0: damaged pickle: protocol 9"),
        (pickle.dumps(([b"a"] * 2, [True])) + b"more", r"4 bytes after the end of the pickle \(byte \d+\)"),
    ],
)
def test_no_pickle_at_all(tmp_path: Path, content: bytes, message: str) -> None:
    assert re.search(message, refusal(save(tmp_path, content)))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    save(tmp_path, b"")
    with pytest.raises(UserError, match=r"cfp\.bin: no such file; .* holds lfw\.bin"):
        read_verification_set(tmp_path / "cfp.bin")
    with pytest.raises(UserError, match=r"is a folder: pass a \.bin file"):
        read_verification_set(tmp_path)
    os.mkfifo(tmp_path / "pipe.bin")
    with pytest.raises(UserError, match="is not a regular file"):
        read_verification_set(tmp_path / "pipe.bin")
    path = save(tmp_path, pickle.dumps(([bytes(1000)] * 2, [True])))
    with pytest.raises(UserError, match="more than the limit of 500: raise max_bytes"):
        read_verification_set(path, max_bytes=500)


@pytest.mark.parametrize("protocol", range(6))
def test_every_truncation_names_the_byte(tmp_path: Path, protocol: int) -> None:
    whole = pickle.dumps((arrays(IMAGES), [True, False]), protocol)
    for length in range(1, len(whole)):
        message = refusal(save(tmp_path, whole[:length]))
        at = int(message.split(" byte ")[1].split(":")[0])
        assert "cut short" in message
        assert length - 300 < at <= length


def test_a_file_that_shrinks_under_the_reader(tmp_path: Path) -> None:
    path = save(tmp_path, pickle.dumps(([bytes(100_000), b""], [True])))
    real = os.fstat

    class Longer:
        st_size = 200_000

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            os, "fstat", lambda descriptor: Longer if real(descriptor).st_size > 100_000 else real(descriptor)
        )
        os.truncate(path, 100_001)
        assert "shrank while it was read" in refusal(path)


# Exploits: each is proven with Python's own unpickler before ours has to refuse it.


class Call:
    """Pickles as a call."""

    def __init__(self, function: Callable, *args: object, state: object = None) -> None:
        self.function, self.args, self.state = function, args, state

    def __reduce__(self) -> tuple:
        return (self.function, self.args) if self.state is None else (self.function, self.args, self.state)


class Setter:
    """Runs code when its state is set."""

    def __setstate__(self, state: str) -> None:
        Path(state).touch()


class Made:
    """Runs code when it is made without __init__."""

    def __new__(cls, path: str = "") -> "Made":
        if path:
            Path(path).touch()
        return super().__new__(cls)

    def __init__(self, path: str = "") -> None:
        if path:
            Path(path).touch()


def in_a_set(payload: object) -> tuple:
    return ([b"a", payload], [True])


def as_global(module: str, name: str, argument: str) -> bytes:
    return b"c" + f"{module}\n{name}\n".encode() + b"(S" + repr(argument).encode() + b"\ntR."


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def getattr_chain(path: str) -> bytes:
    # getattr(__import__("os"), "system")("touch ...")
    imported = b"c__builtin__\n__import__\n(S'os'\ntR"
    return b"c__builtin__\ngetattr\n(" + imported + b"S'system'\ntR(S" + repr(f"touch {path}").encode() + b"\ntR."


def from_memo(path: str) -> bytes:
    # the name's two halves were remembered long before, among the data
    data = b"(" + short("posix") + b"\x94" + short("system") + b"\x94t"
    return b"\x80\x04(" + data + b"h\x00h\x01\x93" + short(f"touch {path}") + b"\x85Rt."


def dotted(path: str) -> bytes:
    # STACK_GLOBAL walks attributes: a harmless module, then anything that it happens to have imported
    return (
        b"\x80\x04"
        + short("attfc.data.stores.folder")
        + short("os.system")
        + b"\x93"
        + short(f"touch {path}")
        + b"\x85R."
    )


def inst(path: str) -> bytes:
    return b"(S" + repr(f"touch {path}").encode() + b"\niposix\nsystem\n."


def obj(path: str) -> bytes:
    return b"(c" + f"{__name__}\nMade\n".encode() + b"S" + repr(path).encode() + b"\no."


def newobj(path: str) -> bytes:
    return (
        b"\x80\x02c"
        + f"{__name__}\nMade\n".encode()
        + b"X"
        + struct.pack("<I", len(path))
        + path.encode()
        + b"\x85\x81."
    )


def newobj_ex(path: str) -> bytes:
    made = b"\x80\x04" + short(__name__) + short("Made") + b"\x93)}" + short("path") + short(path) + b"s\x92."
    return made


def smuggled_after_the_data(path: str) -> bytes:
    # a list that is sound, then POP, then the payload
    return pickle.dumps(([b"a", b"b"], [True]), 2)[:-1] + b"0" + as_global("posix", "system", f"touch {path}")


def beside_an_admitted_name(path: str) -> bytes:
    return b"(cnumpy\nndarray\n" + as_global("posix", "system", f"touch {path}")[:-1] + b"t."


EXPLOITS: dict[str, tuple[Callable[[str], bytes], str]] = {
    **{
        f"os.system by __reduce__, protocol {protocol}": (
            functools.partial(
                lambda path, protocol: pickle.dumps(in_a_set(Call(os.system, f"touch {path}")), protocol),
                protocol=protocol,
            ),
            "asks for posix.system ",
        )
        for protocol in range(6)
    },
    "os.system, protocol 0 by hand": (
        lambda path: as_global("os", "system", f"touch {path}"),
        r"asks for os.system \(byte 0\), which no verification set needs",
    ),
    "posix.system, behind a tuple": (
        lambda path: b"(" + as_global("posix", "system", f"touch {path}")[:-1] + b"t.",
        "asks for posix.system ",
    ),
    "eval": (
        lambda path: pickle.dumps(in_a_set(Call(eval, f"open({path!r}, 'w').close()")), 2),
        "asks for __builtin__.eval ",
    ),
    "exec, protocol 4": (
        lambda path: pickle.dumps(Call(exec, f"open({path!r}, 'w').close()"), 4),
        "asks for builtins.exec ",
    ),
    "open": (lambda path: pickle.dumps(Call(open, path, "w"), 4), "asks for (_io|io).open "),
    "subprocess": (
        lambda path: pickle.dumps(Call(subprocess.check_output, ["touch", path]), 4),
        "asks for subprocess.check_output ",
    ),
    "getattr chain": (getattr_chain, "asks for __builtin__.getattr "),
    "name from the memo": (from_memo, "asks for posix.system "),
    "dotted name": (dotted, "asks for attfc.data.stores.folder.os.system "),
    "INST": (inst, "uses the instruction INST "),
    "OBJ": (obj, rf"asks for {__name__}.Made "),
    "NEWOBJ": (newobj, rf"asks for {__name__}.Made "),
    "NEWOBJ_EX": (newobj_ex, rf"asks for {__name__}.Made "),
    "__setstate__": (
        lambda path: pickle.dumps(in_a_set(Call(Setter, state=path)), 2),
        rf"asks for {__name__}.Setter ",
    ),
    "object array": (
        lambda path: pickle.dumps(objects([b"a", Call(os.system, f"touch {path}")]), 4),
        "asks for posix.system ",
    ),
    "object array, protocol 0": (
        lambda path: pickle.dumps((objects([Call(os.system, f"touch {path}")]), [True]), 0),
        "asks for posix.system ",
    ),
    "NumPy's runstring": (
        lambda path: (
            b"\x80\x04"
            + short("numpy.testing._private.utils")
            + short("runstring")
            + b"\x93"
            + short(f"open({path!r},'w').close()")
            + b"}\x86R."
        ),
        "asks for numpy.testing._private.utils.runstring ",
    ),
    "f2py's eval": (
        lambda path: as_global("numpy.f2py.crackfortran", "myeval", f"open({path!r},'w')"),
        "asks for numpy.f2py.crackfortran.myeval ",
    ),
    "an admitted module's other names": (
        lambda path: b"cnumpy\nsave\n(S" + repr(path + ".npy").encode() + b"\n(ltR.",
        "asks for numpy.save ",
    ),
    "an argument of an admitted name": (beside_an_admitted_name, "asks for posix.system "),
    "after sound data": (smuggled_after_the_data, "uses the instruction POP "),
    "in _codecs.encode's arguments": (
        lambda path: b"c_codecs\nencode\n(" + as_global("posix", "system", f"touch {path}")[:-1] + b"tR.",
        "asks for posix.system ",
    ),
    "collections.OrderedDict's items": (
        lambda path: pickle.dumps(collections.OrderedDict(a=Call(os.system, f"touch {path}")), 2),
        "asks for collections.OrderedDict ",
    ),
    "types.FunctionType": (
        lambda path: pickle.dumps(Call(types.SimpleNamespace, Call(os.system, f"touch {path}")), 4),
        "asks for types.SimpleNamespace ",
    ),
}


@pytest.mark.parametrize("exploit", EXPLOITS)
def test_an_exploit_is_refused_by_name_and_does_not_run(tmp_path: Path, exploit: str) -> None:
    make, message = EXPLOITS[exploit]
    sentinel = tmp_path / "ran"
    path = save(tmp_path, make(str(sentinel)))
    traces = [sentinel, tmp_path / "ran.npy"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(Exception):
            pickle.loads(path.read_bytes())
    assert any(trace.exists() for trace in traces), "not an exploit: Python's own unpickler did not run it"
    for trace in traces:
        trace.unlink(missing_ok=True)
    with pytest.raises(UserError, match=message):
        read_verification_set(path)
    assert refusal(path).startswith(f"{path}: refused: the pickle ")
    assert not any(trace.exists() for trace in traces)


def test_the_interpreter_sees_nothing_but_the_file_being_opened(tmp_path: Path) -> None:
    """Python's own audit events while every exploit is read: no import, no find_class, no exec, no process."""
    for number, (make, _) in enumerate(EXPLOITS.values()):
        (tmp_path / f"{number}.bin").write_bytes(make(str(tmp_path / "ran")))
    code = """if True:
        import pickletools, sys
        from attfc.data.stores.verification_sets import read_verification_set
        from attfc.errors import UserError
        events, listening = [], False
        sys.addaudithook(lambda event, args: events.append((event, *args[:1])) if listening else None)
        for path in sys.argv[1:]:
            listening = True
            try:
                read_verification_set(path)
            except UserError:
                listening = False
            assert not listening, path
            assert [event for event in events if event != ("open", path)] == [], (path, events)
            assert len(events) == 1
            events.clear()
    """
    paths = sorted(str(path) for path in tmp_path.glob("*.bin"))
    assert len(paths) == len(EXPLOITS)
    subprocess.run([sys.executable, "-c", code, *paths], check=True)
    assert not list(tmp_path.glob("ran*"))


def test_a_copyreg_extension_is_refused(tmp_path: Path) -> None:
    sentinel = tmp_path / "ran"
    copyreg.add_extension("posix", "system", 0xA77FC)
    try:
        path = save(tmp_path, pickle.dumps(Call(os.system, f"touch {sentinel}"), 2))
        pickle.loads(path.read_bytes())
        assert sentinel.exists()
        sentinel.unlink()
        assert "refused: the pickle uses the instruction EXT4 (byte 2)" in refusal(path)
    finally:
        copyreg.remove_extension("posix", "system", 0xA77FC)
    assert not sentinel.exists()


def test_every_instruction_is_read_or_refused_by_name(tmp_path: Path) -> None:
    """What plain data needs, and nothing else; the list is written out here so that a wider table has to pass by a reader."""
    import pickletools

    read = (
        "MARK STOP NONE NEWTRUE NEWFALSE INT LONG LONG1 BININT BININT1 BININT2 STRING BINSTRING SHORT_BINSTRING "
        "BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 EMPTY_LIST LIST APPEND APPENDS "
        "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD "
        "PROTO FRAME"
    )
    words = read.split(" ")
    assert len(pickletools.opcodes) == 68
    for opcode in pickletools.opcodes:
        message = refusal(save(tmp_path, b"]" + opcode.code.encode("latin-1") + bytes(8)))
        by_name = (
            f"refused: the pickle uses the instruction {opcode.name} (byte 1), which no verification set needs"
            in message
        )
        assert by_name == (opcode.name not in words), message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"]\x88b.", "sets the state of a list of 0 "),
        (b"\x80\x02cnumpy\ndtype\n}b.", "uses the instruction EMPTY_DICT "),
        (b"\x80\x02cnumpy\ndtype\n)b.", "sets the state of numpy.dtype "),
        (b"\x80\x02cnumpy\nndarray\n(K\x05tR.", "calls numpy.ndarray "),
        (b"\x80\x02U\x02os)R.", "calls bytes "),
        (b"\x80\x02c__builtin__\nbytes\nJ\xff\xff\xff\x7f\x85R.", "calls bytes with a whole number "),
        (b"\x80\x02c_codecs\nencode\nX\x01\0\0\0aX\x05\0\0\0utf-8\x86R.", "calls _codecs.encode with text, text "),
        (b"\x80\x02c_codecs\nencode\nU\x01aX\x06\0\0\0latin1\x86R.", "calls _codecs.encode with bytes, text "),
        (b"\x80\x04" + short("os") + b"K\x01\x93.", "asks for a name made of text and a whole number "),
        (b"\x80\x04c" + b"a" * 900 + b"\nb\x1b[2J\n.", r"asks for a{100}\.\.\.\.b\\x1b\[2J "),
    ],
)
def test_calls_that_plain_data_does_not_make(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_verification_set(save(tmp_path, content))
    assert refusal(tmp_path / "lfw.bin").startswith(f"{tmp_path}/lfw.bin: refused: the pickle ")


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
HUGE = b"\x8a\x05" + (2**38).to_bytes(5, "little")


def dtype(code: bytes, state: bytes = b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb") -> bytes:
    return b"cnumpy\ndtype\nU" + bytes([len(code)]) + code + b"K\x00K\x01\x87R" + state


BOMBS: dict[str, tuple[bytes, str]] = {
    "bytes longer than the file": (
        b"\x80\x04B\xff\xff\xff\x7fabc.",
        r"byte 2: cut short: 2,147,483,647 bytes are to follow byte 7, 4 are there",
    ),
    "bytes of 2^62": (b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc.", "cut short: 4,611,686"),
    "bytearray of 2^62": (b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b"abc.", "cut short: 4,611,686"),
    "negative length of BINSTRING": (b"\x80\x02T\xff\xff\xff\xffabc.", "cut short: 4,294,967,295 bytes"),
    "text longer than the file": (b"\x80\x04\x8d" + struct.pack("<Q", 2**63) + b"abc.", "cut short"),
    "frame longer than the file": (
        b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N.",
        "cut short: a frame of 1,099,511,627,776 bytes, 2 are left",
    ),
    "instruction across the end of its frame": (
        b"\x80\x04\x95\x03" + bytes(7) + b"(C\x01ab.",
        "byte 12: damaged pickle: an instruction reaches beyond the end of its frame",
    ),
    "frame within a frame": (
        b"\x80\x04\x95\x0a" + bytes(7) + b"\x95\x01" + bytes(7) + b"N.",
        "a frame within a frame",
    ),
    "memo index": (b"\x80\x02]r\xff\xff\xff\x7f.", "remembers a value as number 2,147,483,647"),
    "memo index as text": (b"(p99999999999\n.", "an instruction finds no value|remembers a value"),
    "memo index of many digits": (
        b"]p" + b"9" * 100_000 + b"\n.",
        "more than 20 characters where a name or number stands",
    ),
    "negative memo index": (b"]p-1\n.", "remembers a value as number -1"),
    "memo index that was never put": (b"\x80\x02]h\x07.", "asks for remembered value 7, which is none of 0"),
    "whole number of a million digits": (b"(L" + b"9" * 1_000_000 + b"L\n.", "more than 21 characters"),
    "whole number of 200 bytes": (b"\x80\x02\x8a\xc8" + bytes(200) + b".", "holds a whole number of 200 bytes"),
    "LONG4": (b"\x80\x02\x8b\xff\xff\xff\x7f.", "uses the instruction LONG4"),
    "array of a huge shape": (
        b"\x80\x02" + RECONSTRUCT + b"(K\x01" + HUGE + b"\x85" + dtype(b"u1") + b"\x89U\x01atb.",
        "numpy.ndarray with arguments that NumPy would not write",
    ),
    "reconstruct with a huge shape": (
        RECONSTRUCT.replace(b"K\x00\x85", HUGE + b"\x85").join([b"\x80\x02", b"."]),
        "_reconstruct with arguments",
    ),
    "shape of 2^38 x 2^38 x 0": (
        b"\x80\x02" + RECONSTRUCT + b"(K\x01" + HUGE + HUGE + b"K\x00\x87" + dtype(b"u1") + b"\x89U\x00tb.",
        r"holds an array of u1, shape \(274877906944, 274877906944, 0\)",
    ),
    "negative side": (
        b"\x80\x02" + RECONSTRUCT + b"(K\x01J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86" + dtype(b"u1") + b"\x89U\x01atb.",
        "numpy.ndarray with arguments",
    ),
    "10,000 dimensions": (
        b"\x80\x02" + RECONSTRUCT + b"(K\x01(" + b"K\x01" * 10_000 + b"t" + dtype(b"u1") + b"\x89U\x01atb.",
        "numpy.ndarray with arguments",
    ),
    "object array from bytes": (
        b"\x80\x02" + RECONSTRUCT + b"(K\x01K\x01\x85" + dtype(b"O8", b"") + b"\x89U\x08aaaaaaaatb.",
        "numpy.ndarray of objects with arguments",
    ),
    "object array of fewer elements than its shape": (
        b"\x80\x02" + RECONSTRUCT + b"(K\x01K\x03\x85" + dtype(b"O8", b"") + b"\x89]U\x01aatb.",
        "numpy.ndarray of objects with arguments",
    ),
    "uint8 array from a list": (
        b"\x80\x02" + RECONSTRUCT + b"(K\x01K\x01\x85" + dtype(b"u1") + b"\x89]K\x01atb.",
        "numpy.ndarray with arguments",
    ),
    "state set twice": (
        b"\x80\x02" + RECONSTRUCT + 2 * (b"(K\x01K\x01\x85" + dtype(b"u1") + b"\x89U\x01atb") + b".",
        "sets the state of an array of u1, shape",
    ),
    "dtype with fields": (b"\x80\x02" + dtype(b"V8") + b".", "an array of type 'V8'"),
    "dtype by a format string": (b"\x80\x02" + dtype(b"O,O") + b".", "an array of type 'O,O'"),
    "dtype with a sub-array": (
        b"\x80\x02" + dtype(b"u1", b"(K\x03U\x01|U\x01a)NJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb") + b".",
        "numpy.dtype's state with arguments",
    ),
    "dtype that claims to hold objects": (
        b"\x80\x02" + dtype(b"u1", b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ftb") + b".",
        "numpy.dtype's state with arguments",
    ),
    "dtype's state set twice": (
        b"\x80\x02" + dtype(b"i8") + dtype(b"i8").split(b"R", 1)[1] + b".",
        "numpy.dtype's state with arguments",
    ),
    "dtype with a size of its own": (
        b"\x80\x02" + dtype(b"u1", b"(K\x03U\x01|NNNJ\xff\xff\xff\x7fJ\xff\xff\xff\xffK\x00tb") + b".",
        "numpy.dtype's state with arguments",
    ),
    "object scalar": (
        b"\x80\x02cnumpy.core.multiarray\nscalar\n" + dtype(b"O8", b"") + b"U\x08aaaaaaaa\x86R.",
        "scalar with arguments",
    ),
    "scalar of another length": (
        b"\x80\x02cnumpy.core.multiarray\nscalar\n" + dtype(b"i8") + b"U\x01a\x86R.",
        "scalar with arguments",
    ),
    "frombuffer beyond its buffer": (
        b"\x80\x05cnumpy.core.numeric\n_frombuffer\n(C\x01a" + dtype(b"u1") + HUGE + b"\x85" + short("C") + b"tR.",
        "numpy.ndarray with arguments",
    ),
    "an array that is never filled": (
        b"\x80\x02]" + RECONSTRUCT + b"a" + RECONSTRUCT + b"a]\x88a\x86.",
        "image 0 is an array without content",
    ),
    "bytes made from one text again and again": (
        b"\x80\x02c_codecs\nencode\nq\x00X\x06\0\0\0latin1q\x01X"
        + struct.pack("<I", 100_000)
        + b"a" * 100_000
        + b"q\x02"
        + b"h\x00h\x02h\x01\x86R" * 1000
        + b".",
        "makes more bytes than the file has",
    ),
    "a billion laughs": (
        b"\x80\x02]q\x00U\x03lol"
        + b"a"
        + b"".join(b"](" + bytes([ord("h"), n]) * 10 + b"eq" + bytes([n + 1]) for n in range(30))
        + b".",
        "ends with 31 values",
    ),
    "a million lists": (b"\x80\x02" + b"]" * 1_000_000 + b".", "has more than 350,000 instructions in 1,000,003 bytes"),
    "a million marks": (b"\x80\x02" + b"(" * 1_000_000 + b".", "has more than 350,000 instructions"),
    "nested 90,000 deep": (b"\x80\x02]" + b"\x85" * 90_000 + b".", "holds a tuple of 1: a verification set"),
    "an open mark at the end": (b"\x80\x02](.", "ends with 1 values and 1 open marks"),
    "nothing at the end": (b"\x80\x02.", "ends with 0 values"),
    "a list that holds itself": (b"\x80\x02]q\x00h\x00a]\x88a\x86.", "1 images for 1 pairs|image 0 is a list of 1"),
    "a list of itself twice": (b"\x80\x02]q\x00(h\x00h\x00e]\x88a\x86.", "image 0 is a list of 2"),
    "a set that holds itself": (b"\x80\x02]q\x00(h\x00h\x00e.", "image 0 is a list of 2"),
    "appending across a mark": (b"\x80\x02]N(a.", "finds no value on the stack"),
    "appending to a tuple": (b"\x80\x02)Na.", "appends to a tuple of 0, not to a list"),
    "octal number": (b"(I010\n.", r"b'010' is not a whole number"),
    "number with blanks": (b"(I 1\n.", "is not a whole number"),
    "string without quotes": (b"(Sabc\n.", "not written as Python 2 writes it"),
    "string with an octal escape": (rb"(S'\101'" + b"\n.", "not written as Python 2 writes it"),
    "string with a text escape": (rb"(S'\u0041\N{BULLET}'" + b"\n.", "not written as Python 2 writes it"),
    "text with a broken escape": (rb"(V\u12" + b"\n.", "text with a broken escape"),
    "text that is not UTF-8": (b"\x80\x02X\x02\0\0\0\xff\xfe.", "text that is not UTF-8"),
    "bytes from text beyond latin1": (
        b"\x80\x02c_codecs\nencode\nX\x03\0\0\0\xe2\x82\xacX\x06\0\0\0latin1\x86R.",
        "other characters than those of latin1",
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_does_not_go_off(tmp_path: Path, bomb: str) -> None:
    content, message = BOMBS[bomb]
    path = save(tmp_path, content)
    with pytest.raises(UserError, match=message):  # once untraced: what is imported on first use is no part of the bill
        read_verification_set(path)
    tracemalloc.start()
    try:
        refusal(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    allowed = 100_000 + len(content) // 4
    assert peak < 600_000 + 80 * min(len(content), allowed), (
        "an instruction may leave a small object, a declared size nothing"
    )


def test_memory_is_the_files_own(tmp_path: Path) -> None:
    images = [os.urandom(50_000) for _ in range(60)]
    for protocol, times in ((4, 1.1), (2, 2.6), (0, 2.6)):  # text is remembered by the pickle until its end
        path = save(tmp_path, pickle.dumps((images, [True] * 30), protocol))
        tracemalloc.start()
        found = read_verification_set(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert found.encoded == images
        assert peak < times * 3_000_000 + 300_000


OUTCOMES = """if True:
    import io, json, sys
    from pathlib import Path
    from attfc.data.stores.plain_pickle import PlainUnpickler
    from attfc.errors import UserError

    def shown(value):
        parts = [getattr(value, name) for name in ("dtype", "shape", "values")] if hasattr(value, "shape") else value
        return [shown(part) for part in parts] if isinstance(parts, (list, tuple)) else repr(parts)

    for path in sorted(Path(sys.argv[1]).iterdir()):
        content = path.read_bytes()
        try:
            print(path.name, shown(PlainUnpickler(io.BytesIO(content), "x.bin", len(content)).load()))
        except UserError as error:
            print(path.name, error)
        except RecursionError:
            print(path.name, "a value that holds itself, or is very deep")
"""


def test_every_supported_python_reads_and_refuses_the_same(tmp_path: Path) -> None:
    """The table that is cut is the library's own, and private: each Python that is installed gives the same answers (numpy need not be there)."""
    sets = [zlib.decompress(base64.b64decode(written)) for written in WRITTEN_ELSEWHERE.values()]
    sets += [make(str(tmp_path / "ran")) for make, _ in EXPLOITS.values()] + [content for content, _ in BOMBS.values()]
    (tmp_path / "sets").mkdir()
    for number, content in enumerate(sets):
        (tmp_path / "sets" / f"{number:03d}.bin").write_bytes(content)

    def outcomes(python: str) -> str:
        return subprocess.run(
            [python, "-c", OUTCOMES, str(tmp_path / "sets")],
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    expected = outcomes(sys.executable)
    assert expected.count("refused: the pickle") >= len(EXPLOITS)
    assert len(expected.splitlines()) == len(sets)
    pythons = [shutil.which(f"python3.{minor}") for minor in range(11, 16)]
    pythons += map(str, Path.home().glob(".pyenv/versions/3.1[1-9].*/bin/python3"))
    for python in filter(None, pythons):
        if subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0:
            assert outcomes(python) == expected, python


def test_a_set_lives_no_longer_than_its_last_user(tmp_path: Path) -> None:
    """No cycle of references keeps 60 MB until the next collection."""
    path = save(tmp_path, pickle.dumps(([bytes(1_000_000), b""], [True])))
    read_verification_set(path)
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(3):
            read_verification_set(path)
        assert tracemalloc.get_traced_memory()[0] < 500_000
    finally:
        tracemalloc.stop()
        gc.enable()


def test_the_reader_alone_gives_plain_values(tmp_path: Path) -> None:
    content = ["ä", b"b", 7, -1, 2**63, True, None, (), ([],), np.int8(-1), np.uint8(255), np.int64(-(2**40))]
    for protocol in range(6):
        assert read_plain_pickle(save(tmp_path, pickle.dumps(content, protocol))) == content
    array = read_plain_pickle(save(tmp_path, pickle.dumps(np.array([[1, 2]], np.int16), 4)))
    assert isinstance(array, PlainArray)
    assert (array.dtype, array.shape, array.values) == ("<i2", (1, 2), b"\1\0\2\0")
    scalar = b"\x80\x02cnumpy.core.multiarray\nscalar\n" + dtype(b"i4").replace(b"|", b">") + b"U\x04\0\0\1\2\x86R."
    assert read_plain_pickle(save(tmp_path, scalar)) == 258


# Decoding


def test_images_are_decoded_and_broken_ones_named() -> None:
    found = VerificationSet("tiny", [jpeg(10), b"", jpeg(30)[:200], jpeg(40)], np.array([True, False]))
    rows = found.images([3, 1, 2, 3, 0], 16)
    assert rows.pixels.shape == (5, 16, 16, 3)
    assert rows.pixels[:, 8, 8, 0].tolist() == [40, 0, 0, 40, 10]
    assert list(rows.broken) == [1, 2]
    assert rows.broken[1] == "empty file"
    assert rows.broken[2].startswith("cannot be decoded")
    out = np.full((2, 8, 8, 3), 9, np.uint8)
    assert found.images([0, 1], 8, out).pixels is out
    assert out[:, 4, 4, 0].tolist() == [10, 0]
    assert (found.where(2), found.where(3)) == ("image 2 (pair 1, first)", "image 3 (pair 1, second)")
    assert repr(found) == "VerificationSet('tiny', 2 pairs, 1 of one person)"
    for position in (-1, 4):
        with pytest.raises(IndexError, match="a set of 4 images"):
            found.images([position], 16)
    assert found.images([], 16).pixels.shape == (0, 16, 16, 3)


class MeanColour(nn.Module):
    image_size = 16

    def forward(self, images):  # type: ignore[no-untyped-def]
        return images.mean(dim=(2, 3)) + 2


def test_a_set_can_be_embedded(tmp_path: Path) -> None:
    path = tmp_path / "tiny.bin"
    write_verification_set(path, [jpeg(10), jpeg(200), b"junk", jpeg(40)], [True, False])
    for workers in (0, 1):
        found = embed_store(MeanColour(), read_verification_set(path), batch_size=3, workers=workers)  # type: ignore[arg-type]
        assert found.vectors.shape == (4, 3)
        assert found.broken == {2: "not a JPEG, PNG, WebP or BMP image (starts with b'junk')"}
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(len, (read_verification_set(path),)) == 4


# Writing


def test_round_trip_and_python_reads_ours(tmp_path: Path) -> None:
    path = tmp_path / "lfw.bin"
    encoded = [jpeg(1), jpeg(2), bytes(range(256)), bytes(70_000)]
    write_verification_set(path, encoded, np.array([1, 0]))
    bins, issame_list = pickle.loads(path.read_bytes(), encoding="bytes")
    assert (bins, issame_list) == (encoded, [True, False])
    assert (type(bins), type(issame_list)) == (list, list)
    assert {type(value) for value in (*bins, *issame_list)} == {bytes, bool}
    found = read_verification_set(path)
    assert found.encoded == encoded
    assert found.same.tolist() == [True, False]
    assert os.listdir(tmp_path) == ["lfw.bin"]


def test_our_files_are_as_documented(tmp_path: Path) -> None:
    """docs/formats.md, byte by byte."""
    write_verification_set(tmp_path / "lfw.bin", [b"ab", b"cde"], [True])
    rows = [
        "80 04",
        "95 16 00 00 00 00 00 00 00",
        "5D 94",
        "28",
        "43 02 61 62 94",
        "43 03 63 64 65 94",
        "65",
        "5D 94",
        "88 61",
        "86 94",
        "2E",
    ]
    assert (tmp_path / "lfw.bin").read_bytes() == bytes.fromhex(" ".join(rows))


@pytest.mark.parametrize(
    ("encoded", "same", "message"),
    [
        ([b"a"], [True], "1 images for 1 pairs, which need 2"),
        ([], [], r"holds no pairs|same is float64"),
        ([], np.zeros(0, bool), "holds no pairs"),
        ([b"a", "b"], [True], "image 1 is str: bytes are needed"),
        ([b"a", b"b"], [0.5], r"same is float64 of shape \(1,\): a row of booleans"),
        ([b"a", b"b"], [2], "same is int64"),
        ([b"a", b"b"], [[True]], r"of shape \(1, 1\)"),
    ],
)
def test_writing_refuses(tmp_path: Path, encoded: list, same: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_verification_set(tmp_path / "lfw.bin", encoded, same)  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


def test_a_failed_write_leaves_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lfw.bin"
    write_verification_set(path, [b"a", b"b"], [True])
    former = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"lfw\.bin: cannot be written \(No space left on device\)"):
        write_verification_set(path, [b"c", b"d"], [True])
    assert path.read_bytes() == former
    assert os.listdir(tmp_path) == ["lfw.bin"]
    with pytest.raises(UserError, match="cannot be written"):
        write_verification_set(tmp_path / "absent" / "lfw.bin", [b"c", b"d"], [True])


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    for name, levels in {"Ann": (10, 20, 30), "Bob": (40, 50)}.items():
        (tmp_path / "faces" / name).mkdir(parents=True)
        for level in levels:
            (tmp_path / "faces" / name / f"{level}.jpg").write_bytes(jpeg(level))
    return FolderStore(tmp_path / "faces", cache=tmp_path / "cache")


def test_a_set_is_made_from_a_store(store: FolderStore, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    positions = np.array([[0, 1], [0, 3], [1, 4]])
    path = tmp_path / "mine.bin"
    made = make_verification_set(store, positions, [True, False, False], path, lambda *call: calls.append(call))
    read = read_verification_set(path)
    for found in (made, read):
        assert found.encoded == [jpeg(level) for level in (10, 20, 10, 40, 20, 50)]
        assert found.same.tolist() == [True, False, False]
        assert (found.name, found.path) == ("mine", path)
    assert path.stat().st_size < 4 * len(jpeg()) + 300, "an image of two pairs is written once"
    assert calls == [(4, 4)]
    assert read.images(np.arange(6), 16).pixels[:, 8, 8, 0].tolist() == [10, 20, 10, 40, 20, 50]


def test_a_set_must_be_whole(store: FolderStore, tmp_path: Path) -> None:
    bad = tmp_path / "faces" / "Bob" / "40.jpg"
    bad.write_bytes(jpeg(40)[:300])
    path = tmp_path / "mine.bin"
    with pytest.raises(UserError, match=r"^faces: Bob/40\.jpg: cannot be decoded .*: a verification set must be whole"):
        make_verification_set(store, [[0, 3]], [False], path)
    bad.unlink()
    with pytest.raises(UserError, match=r"^faces: Bob/40\.jpg: No such file or directory: a verification set must"):
        make_verification_set(store, [[0, 3]], [False], path)
    assert not path.exists()


@pytest.mark.parametrize(
    ("positions", "same", "message"),
    [
        ([[0, 5]], [True], r"positions 0 \.\.\. 5, but faces has images 0 \.\.\. 4: use the store"),
        ([[-1, 2]], [True], r"positions -1 \.\.\. 2"),
        ([0, 1], [True], r"positions are int64 of shape \(2,\): whole numbers \(pairs, 2\)"),
        ([[0.0, 1.0]], [True], "positions are float64"),
        ([[0, 1]], [True, False], "2 images for 2 pairs"),
        (np.zeros((0, 2), int), [], "holds no pairs"),
    ],
)
def test_making_refuses(store: FolderStore, tmp_path: Path, positions: object, same: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_verification_set(store, positions, same, tmp_path / "mine.bin")  # type: ignore[arg-type]
