"""The one front door of the compiler: QONNX to the integer graph.

Every node of the file is lowered, or refused at once with its name, what it is and what would be accepted. Nothing here
knows which trainer wrote the file. The accepted forms are those of docs/qonnx.md.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from sw.errors import CompileError
from sw.graph import Graph, Node, Origin, Tensor, infer, verify
from sw.ops import Conv, Deform, Depthwise, Op, TensorType

from . import functions, layers, moves, quant
from .onnx_file import MAX_ELEMENTS, FileNode, OnnxFile, read
from .values import Act, Value


class Importer:
    """State of one import: values of the file's tensors, and the graph built so far."""

    def __init__(self, file: OnnxFile) -> None:
        self.file = file
        self.values: dict[str, Value] = {}
        self.raw_inputs = dict(file.inputs)
        self.inputs: list[str] = []
        self.tensors: dict[str, Tensor] = {}
        self.nodes: list[Node] = []
        self.origins: dict[str, Origin] = {}
        self.removed: dict[str, str] = {}
        self.notes: list[str] = []

    def value(self, node: FileNode, index: int) -> Value:
        """The value of input ``index`` of ``node``."""
        name = node.inputs[index] if index < len(node.inputs) else ""
        if name in self.values:
            return self.values[name]
        if name in self.file.constants:
            return self.file.constants[name]
        if name in self.raw_inputs:
            raise node.refuse(f"reads the raw image {name!r}", "the image passes a Quant first (unsigned 8 bits, scale 2^-8)")
        raise node.refuse(f"input {index} ({name!r}) is not defined before it", "nodes in topological order, all inputs present")

    def constant(self, node: FileNode, index: int, what: str) -> np.ndarray:
        """Input ``index``, which must be a constant array."""
        value = self.value(node, index)
        if not isinstance(value, np.ndarray):
            raise node.refuse(f"its {what} ({node.inputs[index]!r}) is computed", f"a constant {what}")
        return value

    def act(self, node: FileNode, index: int = 0, *, quantized: bool = True) -> Act:
        """Input ``index``, which must be an activation; with ``quantized``, integers straight from a Quant."""
        value = self.value(node, index)
        if not isinstance(value, Act):
            raise node.refuse(f"input {index} ({node.inputs[index]!r}) is not a plain activation", "an activation map (1, C, H, W)")
        if quantized and not value.plain:
            raise node.refuse(f"input {index} ({node.inputs[index]!r}) is not quantized", "a Quant node between that tensor and this node")
        return value

    def type(self, act: Act) -> TensorType:
        """Type of the integers behind ``act``."""
        return self.tensors[act.tensor].type

    def emit(self, node: FileNode, op: Op, inputs: tuple[str, ...], scales: tuple[tuple[Fraction, ...], ...], name: str = "") -> None:
        """Append ``op`` as a graph node that writes the node's outputs (or ``name``), each with its scale."""
        outputs = (name,) if name else node.outputs
        new = Node(name=name or node.name, op=op, inputs=inputs, outputs=outputs, source=node.name)
        types = infer(new, [self.tensors[t].type for t in inputs])
        if max(t.pixels * t.channels for t in types) > MAX_ELEMENTS:
            raise node.refuse(f"its output {types[0]} is huge", f"maps of at most {MAX_ELEMENTS} elements")
        self.nodes.append(new)
        for output, kind, scale in zip(outputs, types, scales, strict=True):
            self.tensors[output] = Tensor(name=output, type=kind, scale=scale)

    def set(self, output: str, value: Value, removed: str = "") -> None:
        """Record what the file's tensor ``output`` stands for: mapped to a graph tensor, or removed for a reason."""
        self.values[output] = value
        if removed:
            self.removed[output] = removed
        elif isinstance(value, Act):
            self.origins[output] = Origin(tensor=value.tensor)

    def add_to_bias(self, node: FileNode, act: Act, addend: np.ndarray) -> None:
        """Add integers at accumulator scale to the bias of the layer that writes ``act``."""
        for k, made in enumerate(self.nodes):
            if act.tensor in made.outputs and isinstance(made.op, Conv | Depthwise | Deform):
                changed = replace(made, op=replace(made.op, bias=made.op.bias + addend))
                (kind,) = infer(changed, [self.tensors[t].type for t in made.inputs])
                self.nodes[k] = changed
                self.tensors[act.tensor] = replace(self.tensors[act.tensor], type=kind)
                return
        raise node.refuse("adds a constant to a tensor that no layer writes", "BatchNormalization or Add right after a convolution")


HANDLERS: dict[str, Callable[[Importer, FileNode], None]] = {
    "Quant": quant.quantize,
    "Relu": quant.relu,
    "Clip": quant.clip,
    "Identity": moves.identity,
    "Dropout": moves.identity,
    "Conv": layers.conv,
    "DeformConv": layers.deform_conv,
    "BatchNormalization": layers.batch_normalization,
    "Mul": layers.multiply,
    "Sub": layers.subtract,
    "Add": layers.add,
    "MaxPool": moves.max_pool,
    "AveragePool": moves.average_pool,
    "GlobalAveragePool": moves.global_average_pool,
    "ReduceMean": moves.global_average_pool,
    "Pad": moves.pad,
    **dict.fromkeys(functions.FUNCTIONS, functions.activation),
    "Resize": moves.resize,
    "Upsample": moves.resize,
    "Split": moves.split,
    "Concat": moves.concat,
    "Reshape": moves.reshape,
    "Transpose": moves.transpose,
}


def load(path: Path | str) -> Graph:
    """Read a QONNX file and lower it to a verified integer graph.

    Raises CompileError for a file that is broken, too large or unsafe, and for any node that has no exact lowering.
    """
    file = read(Path(path))
    if len(file.inputs) != 1:
        raise CompileError(f"{path}: {len(file.inputs)} inputs ({', '.join(file.inputs)}). Accepted: one image (1, 3, H, W).")
    ((name, shape),) = file.inputs.items()
    if len(shape) != 4 or shape[0] != 1:
        raise CompileError(f"{path}: input {name!r} has shape {list(shape)}. Accepted: (1, C, H, W).")
    importer = Importer(file)
    for node in file.nodes:
        handler = HANDLERS.get(node.op_type)
        if handler is None:
            raise node.refuse("this operator has no unit", ", ".join(sorted(HANDLERS)))
        handler(importer, node)
    return _finish(importer)


def _finish(importer: Importer) -> Graph:
    outputs = []
    for name in importer.file.outputs:
        value = importer.values.get(name)
        if not isinstance(value, Act) or not value.plain:
            raise CompileError(f"{importer.file.path}: output {name!r} is not quantized; put a Quant (16 bits for head maps) before it")
        outputs.append(value.tensor)
    graph = Graph(
        inputs=tuple(importer.inputs),
        outputs=tuple(outputs),
        tensors=importer.tensors,
        nodes=tuple(importer.nodes),
        origins=importer.origins,
        removed=importer.removed,
        notes=tuple(importer.notes),
        metadata=importer.file.metadata,
    )
    verify(graph)
    return graph
