"""Build an ONNX graph by writing formulas; and what `export` does to whole graphs. Needs onnx, so it is imported late."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import numpy as np
import onnx
from numpy.typing import DTypeLike, NDArray
from onnx import compose, helper, numpy_helper

OPSET, IR = 20, 9  # those of ONNX 1.15
ONNXRUNTIME = "1.17"  # the first version that reads both; IR 10 would need 1.18


class Value:
    """A tensor of a graph that is being built; arithmetic with it adds nodes."""

    def __init__(self, graph: Graph, name: str) -> None:
        self.graph, self.name = graph, name

    def __add__(self, other: Operand) -> Value:
        return self.graph.op("Add", self, other)

    def __sub__(self, other: Operand) -> Value:
        return self.graph.op("Sub", self, other)

    def __mul__(self, other: Operand) -> Value:
        return self.graph.op("Mul", self, other)

    def __truediv__(self, other: Operand) -> Value:
        return self.graph.op("Div", self, other)

    def __getitem__(self, index: int) -> Value:
        """Return one of a vector's values, as a tensor without axes."""
        return self.graph.op("Gather", self, index)

    def to(self, kind: DTypeLike) -> Value:
        """Return the same values as another type of number; floats lose what is behind the point."""
        return self.graph.op("Cast", self, to=helper.np_dtype_to_tensor_dtype(np.dtype(kind)))


Operand = Value | NDArray[Any] | np.generic | int | float | Sequence[int]


class Graph:
    """A graph that is being built: nodes are added one after the other. Numbers of Python are float64 and int64."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._numbers = count()

    def op(self, kind: str, *operands: Operand, **attributes: Any) -> Value:
        """Add a node of one output; constants among its operands are added too."""
        names = [operand.name if isinstance(operand, Value) else self._constant(operand) for operand in operands]
        name = f"{kind}_{next(self._numbers)}"
        self._nodes.append(helper.make_node(kind, names, [name], **attributes))
        return Value(self, name)

    def either(self, condition: Value, yes: Callable[[], Value], no: Callable[[], Value]) -> Value:
        """Add a choice of two formulas, of which only one is computed: float32."""
        return self.op("If", condition, then_branch=self._branch(yes), else_branch=self._branch(no))

    def _branch(self, formula: Callable[[], Value]) -> onnx.GraphProto:
        outside, self._nodes = self._nodes, []
        found = formula()
        inside, self._nodes = self._nodes, outside
        return helper.make_graph(inside, "branch", [], [tensor(found.name, np.float32, None)])

    def _constant(self, number: Any) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(number), name))
        return name

    def model(self, given: onnx.ValueInfoProto, found: Value, wanted: onnx.ValueInfoProto) -> onnx.ModelProto:
        """Return the graph from the input `given` to `found`, under the name and form of `wanted`."""
        last = helper.make_node("Identity", [found.name], [wanted.name])
        graph = helper.make_graph([*self._nodes, last], "graph", [given], [wanted], self._constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)


def tensor(name: str, kind: DTypeLike, shape: Sequence[int | str] | None) -> onnx.ValueInfoProto:
    """Return the description of an input or output; a name in its shape stands for any size, None for any shape."""
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), shape)


def chained(first: onnx.ModelProto, **others: onnx.ModelProto) -> onnx.ModelProto:
    """Join graphs, the output of each the input of the next; inside the others, names get the graph's own in front.

    Only `first` may hold choices: onnx renames nothing inside of them.
    """
    whole = first
    for name, model in others.items():
        after = compose.add_prefix(model, f"{name}/", rename_inputs=False, rename_outputs=False)
        whole = compose.merge_models(whole, after, [(whole.graph.output[0].name, after.graph.input[0].name)])
    return whole


def tidied(model: onnx.ModelProto, metadata: dict[str, str]) -> onnx.ModelProto:
    """Take away where in PyTorch each node comes from, paths on this machine among it, and put `metadata` into the model.

    Of the sets of operators only the standard one stays, which each of the joined graphs has imported, and once.
    """
    graph = model.graph
    model.ir_version = IR
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", OPSET))
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    model.ClearField("metadata_props")
    model.ClearField("doc_string")
    graph.name = model.producer_name = "alexnet"
    model.producer_version = metadata["version"]
    helper.set_model_props(model, metadata)
    return model
