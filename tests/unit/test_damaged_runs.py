"""Whatever lies in a run folder or a result file: `report` and `compare` end in one line that names the file."""

import errno
import io
import itertools
import json
import os
import zipfile

import numpy as np
import pytest

from attfc.errors import UserError
from attfc.evaluation.metrics import evaluate_scores
from attfc.evaluation.npz_file import read_npz
from attfc.evaluation.report.compare import write_comparison_report
from attfc.evaluation.report.run import write_report
from attfc.evaluation.results import EvaluationResult, compare_results, read_result, save_result
from attfc.evaluation.samples import PairListSample
from attfc.files import write_text_whole, written_whole
from attfc.training.progress import RunLog

EVALUATION = {
    "accuracy": 0.9,
    "accuracy_std": 0.01,
    "threshold": 0.3,
    "auc": 0.95,
    "eer": 0.1,
    "impostor_pairs": 20,
    "genuine_pairs": 20,
    "tar_at_far": {"0.1": 0.9},
    "all_pairs": {"tar_at_far": {"0.1": 0.8}, "impostor_pairs": 50, "genuine_pairs": 9},
    "rank_one": 0.5,
    "notes": ["a note"],
    "step": 2,
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder with everything a report reads; nothing is drawn, which is what takes time."""
    monkeypatch.setattr("attfc.evaluation.report.run.line_figure", lambda *_, **__: "<svg></svg>")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("name: demo\ndata: {root: faces}\n")
    (folder / "environment.json").write_text(json.dumps({"started": "today", "machine": {"cores": 2}}))
    (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
    records = [
        {"kind": "train", "step": step, "loss": 1.0, "images_per_second": 9.0, "seconds": 1.0} for step in (1, 2)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    np.savez_compressed(
        folder / "evaluation.npz", broken_where=np.array(["a.jpg"]), broken_reasons=np.array(["cut short"])
    )
    write_report(folder)
    return folder


def told_by(call):
    """The text of the UserError that a call ends with, or None."""
    try:
        call()
    except UserError as error:
        return str(error)
    return None


def reported(run, name):
    """Make the report; an error is one line that names the folder and the file."""
    told = told_by(lambda: write_report(run))
    assert told is None or (name in told and "\n" not in told and len(told) < 600)
    return told


def test_any_damage_to_evaluation_npz_is_one_line(run):
    path = run / "evaluation.npz"
    whole = path.read_bytes()
    told = []
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        told.append(reported(run, "evaluation.npz"))
    assert all(told)
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        reported(run, "evaluation.npz")


def npz(path, name, data, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(name, data)


def header(shape, descr="|u1"):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def test_arrays_that_would_grow_are_refused_before_they_are_made(run):
    path = run / "evaluation.npz"
    npz(path, "scores.npy", header((2**27,)) + bytes(2**27))  # 128 MiB in 130 KB
    assert "claim more than a file of" in reported(run, "evaluation.npz")
    npz(path, "scores.npy", header((2**50,)) + bytes(64))
    assert "announces more than it holds" in reported(run, "evaluation.npz")
    npz(path, "scores.npy", header((2**60,), "<U0") + bytes(64))  # elements of no bytes
    assert "announces more than it holds" in reported(run, "evaluation.npz")
    npz(path, "scores.npy", header((1,), "|O") + bytes(64))
    assert "announces more than it holds" in reported(run, "evaluation.npz")
    npz(path, "scores.npy", b"\x93NUMPY\x01\x00\x10\x00{'descr': 1L, ((")
    assert "not a readable .npz file" in reported(run, "evaluation.npz")


@pytest.mark.parametrize("name", ["evaluation.json", "environment.json", "metrics.jsonl"])
@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b"\xff\xfe", b"[1]", b'{"a": ' * 50_000, b"9" * 10_000, b"\0", b"{}"]
)
def test_odd_json_is_one_line(run, name, content):
    (run / name).write_bytes(content + b"\n" + (b"" if name != "metrics.jsonl" else b"{}\n"))
    if content != b"{}":
        assert reported(run, name) is not None
    else:
        assert reported(run, name) is None


ODD = [
    None,
    True,
    -1,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    "x",
    [],
    {},
    ["x"],
    {"x": "y"},
    {"x": 1},
    {"0.1": 10**400},
]


def test_odd_values_in_json_make_a_report_or_one_line(run):
    for field, value in itertools.product([*EVALUATION, "intervals", "uncertainty", "interval_notes"], ODD):
        (run / "evaluation.json").write_text(json.dumps({**EVALUATION, field: value}))
        reported(run, "evaluation.json")
    (run / "evaluation.json").write_text(json.dumps(EVALUATION))
    lines = (run / "metrics.jsonl").read_text()
    for kind, field, value in itertools.product(
        ("train", "evaluation", "broken"), ("step", "loss", "seconds", "kind", "where", "tar_at_far", "memory_mib"), ODD
    ):
        (run / "metrics.jsonl").write_text(lines + json.dumps({"kind": kind, "step": 3, field: value}) + "\n")
        reported(run, "metrics.jsonl")
    (run / "metrics.jsonl").write_text(lines)
    for field, value in itertools.product(("machine", "versions", "started"), ODD):
        (run / "environment.json").write_text(json.dumps({field: value}))
        assert reported(run, "environment.json") is None


def test_a_configuration_that_is_no_text_is_named(run):
    (run / "config.yaml").write_bytes(b"\xff")
    assert "config.yaml: cannot be read (byte 1 is not UTF-8 text: save it as UTF-8)" in reported(run, "config.yaml")
    (run / "config.yaml").write_text("a: &a [*a]")  # shown as it stands
    assert reported(run, "config.yaml") is None


def test_a_log_torn_inside_a_letter_is_read_and_resumed(run):
    path = run / "metrics.jsonl"
    whole = path.read_bytes()
    record = json.dumps({"kind": "broken", "step": 3, "where": "Zoë/1.jpg"}, ensure_ascii=False).encode()
    path.write_bytes(whole + record[: record.index(b"\xc3") + 1])
    assert reported(run, "metrics.jsonl") is None
    assert "cut short" in (run / "report.html").read_text()
    with RunLog(tensorboard=False).opened(run, 2, 10):
        pass
    assert path.read_bytes() == whole
    assert sorted(entry.name for entry in run.iterdir() if "part" in entry.name) == []


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_under_report_names_the_path_and_leaves_nothing(run, monkeypatch):
    before = (run / "report.html").read_text()
    monkeypatch.setattr("attfc.files.Path.replace", full_disk)
    with pytest.raises(
        UserError, match=r"report\.html cannot be written: No space left on device; make room or permission there"
    ):
        write_report(run)
    assert (run / "report.html").read_text() == before
    assert not [entry.name for entry in run.iterdir() if entry.name.endswith(".part")]


@pytest.mark.skipif(os.name != "posix" or not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path):
    path = tmp_path / "page.html"
    write_text_whole(path, "old")

    def half() -> None:
        with written_whole(path) as file, open("/dev/full", "wb", buffering=0) as full:
            file.write(b"half")
            full.write(b"x")

    with pytest.raises(UserError, match=r"page\.html cannot be written: No space left"):
        half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["page.html"]
    with pytest.raises(ZeroDivisionError), written_whole(path):
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == ["page.html"]


@pytest.fixture
def result(tmp_path):
    rng = np.random.default_rng(0)
    same = np.arange(40) % 2 == 0
    found = evaluate_scores(same + rng.normal(0, 0.3, 40), same, np.arange(40) % 5)
    sample = PairListSample.of(found, np.arange(40) % 7, np.arange(40) % 5)
    path = tmp_path / "a.npz"
    save_result(path, EvaluationResult("m", "lfw", ("p",), {"accuracy": 0.9}, {(): [sample]}))
    read_result(path)
    return path


def test_any_damage_to_a_result_is_one_line(result):
    whole = result.read_bytes()
    for at in [*range(0, len(whole), 11), *range(len(whole) - 200, len(whole))]:
        for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]):
            result.write_bytes(damaged)
            told = told_by(lambda: read_result(result))
            assert told is None or ("a.npz" in told and "\n" not in told)


def places(value, place=()):
    """Every place in nested JSON."""
    yield place
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*place, key))


@pytest.mark.filterwarnings("ignore:constrained_layout")  # odd words make odd figures
def test_odd_facts_in_a_result_are_compared_and_shown_or_one_line(result, tmp_path):
    other = tmp_path / "b.npz"
    other.write_bytes(result.read_bytes())
    with np.load(result) as file:
        arrays = dict(file)
    told = []
    for place, odd in itertools.product(
        list(places(json.loads(arrays["facts"].tobytes()))), (None, 10**400, "x", [], {})
    ):
        facts = json.loads(arrays["facts"].tobytes())
        holder = facts
        for key in place[:-1]:
            holder = holder[key]
        if place:
            holder[place[-1]] = odd
        np.savez(result, **{**arrays, "facts": np.frombuffer(json.dumps(facts if place else odd).encode(), np.uint8)})
        told.append(told_by(lambda: compare_results(read_result(result), read_result(other), resamples=20)))
        told.append(told_by(lambda: write_comparison_report(tmp_path / "page.md", [read_result(result)])))
    assert any(told)
    assert not [text for text in told if text is not None and "\n" in text]


def test_members_that_share_their_bytes_cannot_claim_more_than_the_file(result, tmp_path):
    packed = tmp_path / "packed.npz"
    npz(packed, "facts.npy", header((4,)) + b"abcd")
    with pytest.raises(UserError, match="is compressed in a way that attfc does not write"):
        read_result(packed)
    entry = header((1000,)) + bytes(1000)
    npz(packed, "a.npy", entry, zipfile.ZIP_STORED)
    data = packed.read_bytes()
    start = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    directory, tail = data[start:end], bytearray(data[end:])
    count = 20
    tail[8:12] = count.to_bytes(2, "little") * 2
    tail[12:16] = (count * len(directory)).to_bytes(4, "little")
    packed.write_bytes(data[:start] + directory * count + bytes(tail))
    with pytest.raises(ValueError, match="its 20 members claim more than"):
        read_npz(packed)


def test_an_identity_number_that_would_fill_the_memory_is_refused(result):
    with np.load(result) as file:
        arrays = dict(file)
    arrays["0.first"] = arrays["0.first"].copy()
    arrays["0.first"][0] = 2**31
    np.savez(result, **arrays)
    with pytest.raises(UserError, match="names identities that it has not"):
        read_result(result)
