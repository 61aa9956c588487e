"""What int8 costs trained runs, by which layers stay float32: FNMR lost with its interval, time per face, bytes.

Calibrated on faces of the run's training set, measured on the people that it was evaluated on, as `attfc export --int8` does.
Run: python benchmarks/int8.py RUN ...
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import onnx
from common import write_result

from attfc.export import open_model
from attfc.export.cost import Terms, measure_cost
from attfc.export.export import CALIBRATION_IMAGES, _describe, _images, _saved, _to_onnx
from attfc.export.int8 import BEFORE, to_int8
from attfc.run.data import open_data
from attfc.run.saved import saved_configuration, with_found_data

LAYERS = {"all in int8": (), "first in float32": (0,), "last in float32": (-1,), "first and last in float32": (0, -1)}


def measure(run: Path, fmrs: list[float]) -> list[dict[str, Any]]:
    """Return a row per choice of layers and FMR."""
    config = with_found_data(saved_configuration(run), run)[0]
    training, held_out = open_data(config)
    assert held_out is not None
    model, facts = open_model(run)
    rows: list[dict[str, Any]] = []
    for layers, in_float in LAYERS.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            proto = _to_onnx(model, facts)
            _describe(proto, facts, "float32")
            faces, _ = _images(training, facts.image_size, CALIBRATION_IMAGES)
            smaller = to_int8(proto, faces.numpy(), folder, in_float)
            _describe(smaller, facts, "int8")
            files = folder / BEFORE, _saved(smaller, folder / "after.onnx")
            onnx.checker.check_model(smaller)
            for fmr in fmrs:
                before, after = (open_model(file)[0] for file in files)
                sizes = files[0].stat().st_size, files[1].stat().st_size
                cost = measure_cost(before, after, Terms(training, held_out, fmr), sizes)
                about = {"network": facts.network, "image_size": facts.image_size, "layers": layers}
                rows.append({**about, "accepted": cost.accepted(0.2), **cost.to_dict()})
                print(f"{facts.network}, {layers}: {cost.text()}", flush=True)
    return rows


def main() -> None:
    """Export each way, measure, write benchmarks/results/int8.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--fmr", type=float, nargs="+", default=[1e-2, 1e-3])
    asked = parser.parse_args()
    rows = [row for run in asked.runs for row in measure(run, asked.fmr)]
    print(write_result("int8", {"calibration_images": CALIBRATION_IMAGES}, rows))


if __name__ == "__main__":
    main()
