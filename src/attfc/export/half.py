"""An ONNX graph in float16: weights half as large, products on GPUs about twice as fast; images and embeddings stay float32.

Every float32 weight becomes float16, every cast to float32 a cast to float16; one cast after the input and one before the output. A graph
in one precision is what runtimes fuse best. It holds for the graphs that `attfc export` makes: flat, and of operators that take float16.
onnxruntime checks the types when it loads the result, and the export compares the embeddings, so a graph for which it does not hold is
refused and not written.
"""

from typing import Any

import numpy as np

from attfc.errors import UserError

__all__ = ["to_float16"]

FLOAT, FLOAT16 = 1, 10  # TensorProto's numbers
LARGEST = float(np.finfo(np.float16).max)


def to_float16(model: Any) -> None:
    """Turn a float32 ONNX ModelProto with one input and one output into float16, in place.

    Raises:
        UserError: a weight beyond float16's 65,504.
    """
    from onnx import helper

    graph = model.graph
    for tensor in graph.initializer:
        _halve(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == FLOAT:
                attribute.i = FLOAT16
            elif attribute.HasField("t"):
                _halve(attribute.t)
    for value in graph.value_info:
        if value.type.tensor_type.elem_type == FLOAT:
            value.type.tensor_type.elem_type = FLOAT16
    source, result = graph.input[0].name, graph.output[0].name
    halves = {name: f"{name}_float16" for name in (source, result)}
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [halves.get(name, name) for name in names]
    first = helper.make_node("Cast", [source], [halves[source]], name="node_cast_input", to=FLOAT16)
    last = helper.make_node("Cast", [halves[result]], [result], name="node_cast_output", to=FLOAT)
    nodes = [first, *graph.node, last]
    del graph.node[:]
    graph.node.extend(nodes)


def _halve(tensor: Any) -> None:
    from onnx import numpy_helper

    if tensor.data_type != FLOAT:
        return
    values = numpy_helper.to_array(tensor)
    finite = values[np.isfinite(values)]
    largest = float(np.abs(finite).max()) if finite.size else 0.0
    # The smallest float32 stands for "no bound" in Clip nodes; float16's smallest says the same.
    unbounded = values.size == 1 and largest == float(np.finfo(np.float32).max)
    if largest > LARGEST and not unbounded:
        raise UserError(
            f"weight {tensor.name!r} has a value of {largest:g}, beyond float16's {LARGEST:g}: export it in float32, without --half"
        )
    half = np.clip(values, -LARGEST, LARGEST).astype(np.float16) if unbounded else values.astype(np.float16)
    tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
