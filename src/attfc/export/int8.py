"""An ONNX graph in int8: weights a quarter as large, convolutions and matrix products in 8 bits; images and embeddings stay float32.

onnxruntime's static quantization: pairs of QuantizeLinear and DequantizeLinear around each product, weights per channel, activations by the smallest
and largest value that some faces of the calibration set show. BatchNorm is folded into convolutions first where it follows one. PReLU and sums stay
float32, and so does the first convolution, which sees the pixels: it is small, and residual networks lost a little less so. The layer that makes
the embedding is most of a small network's bytes and lost nothing (`benchmarks/int8.py`).

Source: onnxruntime's quantization guide. What int8 costs in accuracy is measured on faces (`cost`), never assumed.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from attfc.typing import Float32

__all__ = ["BEFORE", "to_int8"]

BEFORE = "float32.onnx"
"""The file in which `to_int8` leaves the graph as it was."""
QUANTIZED = ("Conv", "Gemm", "MatMul")
_BATCH = 16


class _Faces:
    """Gives images to onnxruntime's calibration, a batch at a time."""

    def __init__(self, name: str, images_NCSS: Float32) -> None:
        self.batches = ({name: images_NCSS[at : at + _BATCH]} for at in range(0, len(images_NCSS), _BATCH))

    def get_next(self) -> dict[str, Float32] | None:
        return next(self.batches, None)


def to_int8(proto: Any, images_NCSS: Float32, folder: Path, in_float: tuple[int, ...] = (0,)) -> Any:
    """Return a float32 ONNX ModelProto, with one input and one output, in int8.

    Args:
        proto: as `attfc export` makes it.
        images_NCSS: (N, 3, S, S) float32, what the graph takes: calibration faces.
        folder: for files on the way; `BEFORE` is left there.
        in_float: which convolutions and matrix products stay float32, by their place among them.
    """
    import onnx
    from onnxruntime import quantization

    source, folded, written = (folder / name for name in (BEFORE, "folded.onnx", "int8.onnx"))
    onnx.save(proto, source)
    with _quiet():
        quantization.quant_pre_process(str(source), str(folded), skip_symbolic_shape=True)
        nodes = [node for node in onnx.load(folded).graph.node if node.op_type in QUANTIZED]
        quantization.quantize_static(
            str(folded),
            str(written),
            _Faces(proto.graph.input[0].name, np.ascontiguousarray(images_NCSS)),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED),
            nodes_to_exclude=[nodes[place].name for place in in_float],
            per_channel=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
        )
    return onnx.load(written)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep onnxruntime's remarks on its own steps from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
