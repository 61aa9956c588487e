"""A bar where somebody watches; one line of a long stage, and none of a short one, in a log."""

import io

import pytest

from attfc.commands import common
from attfc.commands.common import progress_bar
from attfc.commands.screen import Screen


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(common.time, "monotonic", lambda: now[0])
    return now


def shown(monkeypatch: pytest.MonkeyPatch, clock: list[float], file: io.StringIO, seconds: float, **said: str) -> str:
    screen = Screen(file=file, width=80, soft_wrap=True, highlight=False, _environ={"TERM": "xterm", **said})
    monkeypatch.setattr(common, "err", screen)
    with progress_bar("faces") as bar:
        for done in range(1025):
            bar(done, 1024)
            clock[0] += seconds / 1024
    return file.getvalue()


@pytest.mark.parametrize("said", [{}, {"FORCE_COLOR": "1"}])
def test_a_log_gets_one_line_of_a_long_stage_and_none_of_a_short_one(monkeypatch, clock, said) -> None:
    assert shown(monkeypatch, clock, io.StringIO(), 4, **said) == ""
    assert shown(monkeypatch, clock, io.StringIO(), 16, **said) == "faces: 320 of 1,024 after 5 s\n"
    assert shown(monkeypatch, clock, Terminal(), 16, TERM="dumb") == "faces: 320 of 1,024 after 5 s\n"


@pytest.mark.parametrize(("seconds", "most"), [(0.4, 4), (10, 24)])
def test_a_terminal_is_drawn_twice_a_second_and_at_the_end(monkeypatch, clock, seconds, most) -> None:
    drawn = shown(monkeypatch, clock, Terminal(), seconds)
    assert 2 <= drawn.count("/1024") <= most
    assert "1024/1024" in drawn


@pytest.mark.parametrize("file", [io.StringIO(), Terminal()], ids=["a pipe", "a terminal"])
def test_text_of_a_strangers_file_moves_no_cursor(file: io.StringIO) -> None:
    Screen(file=file, soft_wrap=True, highlight=False, markup=False, _environ={"TERM": "dumb"}).print(
        "\x1b[31mred\x1b]0;title\x07 \x9b2J\r of Ärger\nin two lines"
    )
    assert file.getvalue() == "\\x1b[31mred\\x1b]0;title\\x07 \\x9b2J\\x0d of Ärger\nin two lines\n"
