"""Configurations that are odd or hostile: values or one line, at once."""

import os
import re

import pytest

from attfc.config import load_config
from attfc.config.safe_yaml import read_yaml
from attfc.errors import UserError

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 12))
HOSTILE = {
    LAUGHS: "its anchors stand for more than 20,000 values",
    MERGES: "its anchors stand for more than 20,000 values",
    "&a [*a]": "an anchor holds itself",
    "[" * 9_999: "nested too deeply",
    "{a: " * 9_999: "nested too deeply",
    "- " * 9_999: "nested too deeply",
    "name: !!timestamp 2024-13-01": "month must be in 1..12",
    "seed: !!int x": "invalid literal for int",
    "seed: " + "9" * 6_000: "Exceeds the limit",
    "name: !!binary x": "failed to decode base64",
    "? [a]\n: b": "found unhashable key",
    "!!python/object/apply:os.system [ls]": "could not determine a constructor",
    "name: \0": "special characters are not allowed",
    "#" * 300_000: "300,000 characters",
    "data: {root: a}\nseed: 1\ndata: {licence: b}\n": "key 'data' stands twice in one section",
    "optimizer: {momentum: 0.9, momentum: 0.8}": "key 'momentum' stands twice",
}


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_yaml_is_one_line(text, tmp_path) -> None:
    with pytest.raises(ValueError, match=re.escape(HOSTILE[text])):
        read_yaml(text)
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as told:
        load_config(str(path))
    assert "c.yaml" in str(told.value)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 700


@pytest.mark.parametrize(
    "value",
    ["2024-13-01", "2024-01-01", "2024-01-01 10:00:00", "12:30:45", "<<", "=", "!!int x", "&a [*a]", "[" * 100],
)
def test_a_value_that_is_a_date_or_no_yaml_is_the_text_that_was_typed(value) -> None:
    assert load_config("demo", [f"name={value}"]).name == value


def test_dates_in_a_file_are_text_and_numbers_stay_numbers(tmp_path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(
        b"\xef\xbb\xbfname: 2024-13-01\nseed: 0x10\ndata: {root: a}\noptimizer: {learning_rate: 1e-2}\n"
    )  # with a BOM
    config = load_config(str(path))
    assert (config.name, config.seed, config.optimizer.learning_rate) == ("2024-13-01", 16, 0.01)


def test_anchors_within_bounds_are_read() -> None:
    assert read_yaml("a: &x [1, 2]\nb: *x\nc: {<<: {d: 1}, e: 2}") == {"a": [1, 2], "b": [1, 2], "c": {"d": 1, "e": 2}}


def test_files_that_are_none_are_refused_without_waiting(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(UserError, match=rf"cannot read configuration .*{name}\.yaml: it is not a regular file"):
            load_config(str(tmp_path / f"{name}.yaml"))
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(
        UserError, match=r"cannot read configuration .*bytes\.yaml: byte 1 is not UTF-8 text: save it as UTF-8"
    ):
        load_config(str(tmp_path / "bytes.yaml"))


def test_a_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(UserError) as caught:
        load_config("demo", [f"seed={'x' * 10_000}"])
    assert len(str(caught.value)) < 400
