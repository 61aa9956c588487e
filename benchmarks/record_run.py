"""Keeps the figures of one finished run as a benchmark result: `record_run.py RUN NAME` writes results/NAME.json.

Nothing is computed here: the resolved configuration, the last training record and evaluation.json are the run's own files.
"""

import argparse
import json
from pathlib import Path

from common import write_result


def main() -> None:
    """Read the run's files and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder that attfc train made")
    parser.add_argument("name", help="for example main_job_faces112")
    arguments = parser.parse_args()
    lines = (arguments.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    last = [record for record in map(json.loads, lines) if record["kind"] == "train"][-1]
    print(
        write_result(
            arguments.name,
            {"resolved": (arguments.run / "config.yaml").read_text(encoding="utf-8")},
            {
                "training_seconds": last["seconds"],
                "steps": last["step"],
                "memory_mib": last["memory_mib"],
                "evaluation": json.loads((arguments.run / "evaluation.json").read_text(encoding="utf-8")),
            },
        )
    )


if __name__ == "__main__":
    main()
