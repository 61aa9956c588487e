"""The speed tables of `attfc bench heads` on this machine: benchmarks/results/head_speed.json and docs/head_speed.svg.

Options are handed to the command; without any: all twelve sizes, 16 GiB, with r10_tiny (some 20 minutes on two quiet cores, 16 GiB of free
memory). Interrupted, it goes on with the next call. `make docs` then rewrites the tables of docs/speed.md.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import write_result

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Run the command and put its figures where the documents look for them."""
    found = Path(tempfile.gettempdir()) / "attfc_head_speed.json"
    figure = ROOT / "docs" / "head_speed.svg"
    command = [sys.executable, "-m", "attfc", "bench", "heads", "--json", str(found), "--figure", str(figure)]
    subprocess.run([*command, *sys.argv[1:]], check=True)
    results = json.loads(found.read_text(encoding="utf-8"))
    config = {"settings": results.pop("settings"), "columns": results.pop("columns")}
    results.pop("environment")  # write_result says more
    print(write_result("head_speed", config, results))


if __name__ == "__main__":
    main()
