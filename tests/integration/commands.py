"""Run the commands as a user types them, in a process of their own or, quicker, in this one."""

import subprocess
import sys

from attfc import cli


def attfc(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `python -m attfc` and return what it printed."""
    return subprocess.run(
        [sys.executable, "-m", "attfc", *map(str, arguments)], capture_output=True, text=True, timeout=280, check=False
    )


def run_main(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    """The same in this process (no import cost): exit status, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["attfc", *map(str, arguments)])
    try:
        cli.main()
        status = 0
    except SystemExit as leave:
        status = int(leave.code or 0)
    shown = capsys.readouterr()
    return status, shown.out, shown.err
