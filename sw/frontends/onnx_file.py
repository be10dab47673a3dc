"""Reading an ONNX file that nobody vouches for: size and shape limits, no external data, clear errors."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from sw.errors import CompileError

MAX_FILE_BYTES = 1 << 28
MAX_ELEMENTS = 1 << 26
MAX_NODES = 20_000
QONNX_DOMAINS = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general")


@dataclass(frozen=True, kw_only=True, eq=False)
class FileNode:
    """One node of the file: operator type, name, tensor names, attributes as plain Python values."""

    op_type: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def refuse(self, what: str, accepted: str) -> CompileError:
        """The error for a node that cannot be lowered."""
        return CompileError(f"node {self.name!r} ({self.op_type}): {what}. Accepted: {accepted}.")


@dataclass(frozen=True, kw_only=True, eq=False)
class OnnxFile:
    """What the front end needs of a file, checked."""

    path: Path
    nodes: tuple[FileNode, ...]
    constants: Mapping[str, np.ndarray]
    inputs: Mapping[str, tuple[int, ...]]
    outputs: tuple[str, ...]
    metadata: Mapping[str, str]


def read(path: Path) -> OnnxFile:
    """Parse ``path``; CompileError if it is missing, truncated, too large, refers to other files, or has dynamic shapes."""
    model = _parse(path)
    graph = model.graph
    if len(graph.node) > MAX_NODES:
        raise CompileError(f"{path}: {len(graph.node)} nodes; at most {MAX_NODES} are accepted")
    if not graph.node:
        raise CompileError(f"{path}: the graph has no nodes; is this an ONNX model?")
    constants = {t.name: _array(path, t) for t in graph.initializer}
    nodes = []
    for k, n in enumerate(graph.node):
        node = _node(path, n, k)
        if n.op_type == "Constant":
            constants[node.outputs[0]] = np.asarray(next(iter(node.attributes.values())))
        else:
            nodes.append(node)
    inputs = {i.name: _shape(path, i) for i in graph.input if i.name not in constants}
    metadata = {p.key: p.value for p in model.metadata_props}
    return OnnxFile(
        path=path, nodes=tuple(nodes), constants=constants, inputs=inputs, outputs=tuple(o.name for o in graph.output), metadata=metadata
    )


def _parse(path: Path) -> onnx.ModelProto:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise CompileError(f"{path}: {size} bytes; at most {MAX_FILE_BYTES} are accepted")
        model = onnx.ModelProto()
        model.ParseFromString(path.read_bytes())
    except OSError as error:
        raise CompileError(f"{path}: cannot be read: {error.strerror}") from None
    except DecodeError:
        raise CompileError(f"{path}: not an ONNX file, or a truncated one; export it again") from None
    if not model.HasField("graph") or not model.opset_import:
        raise CompileError(f"{path}: holds no ONNX graph, or is truncated; export it again")
    return model


def _array(path: Path, tensor: onnx.TensorProto) -> np.ndarray:
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        raise CompileError(f"{path}: tensor {tensor.name!r} lies in another file; save the model with its data inside")
    elements = 1
    for d in tensor.dims:
        if d < 0:
            raise CompileError(f"{path}: tensor {tensor.name!r} has a negative dimension: {list(tensor.dims)}")
        elements *= d
    if elements > MAX_ELEMENTS:
        raise CompileError(f"{path}: tensor {tensor.name!r} has {elements} elements; at most {MAX_ELEMENTS} are accepted")
    try:
        array: np.ndarray = numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise CompileError(f"{path}: tensor {tensor.name!r} is broken: {error}") from None
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise CompileError(f"{path}: tensor {tensor.name!r} holds infinities or NaN")
    return array


def _node(path: Path, node: onnx.NodeProto, index: int) -> FileNode:
    name = node.name or (node.output[0] if node.output else f"#{index}")
    if node.domain not in ("", "ai.onnx", *QONNX_DOMAINS):
        raise CompileError(
            f"node {name!r} ({node.op_type}): its domain {node.domain!r} is unknown. Accepted: ONNX's own and {QONNX_DOMAINS[0]!r}."
        )
    attributes: dict[str, Any] = {}
    for a in node.attribute:
        if a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
            raise CompileError(f"node {name!r} ({node.op_type}): holds a sub-graph. Accepted: graphs without control flow.")
        if a.type == onnx.AttributeProto.TENSOR:
            attributes[a.name] = _array(path, a.t)
        else:
            value = onnx.helper.get_attribute_value(a)
            attributes[a.name] = value.decode(errors="replace") if isinstance(value, bytes) else value
    return FileNode(op_type=node.op_type, name=name, inputs=tuple(node.input), outputs=tuple(node.output), attributes=attributes)


def _shape(path: Path, value: onnx.ValueInfoProto) -> tuple[int, ...]:
    dims = value.type.tensor_type.shape.dim
    shape = tuple(d.dim_value for d in dims)
    if not shape or min(shape) < 1:
        raise CompileError(f"{path}: input {value.name!r} has shape {list(shape)}; export with a static shape such as 1x3x128x128")
    if int(np.prod(shape, dtype=np.float64)) > MAX_ELEMENTS:
        raise CompileError(f"{path}: input {value.name!r} has shape {list(shape)}; at most {MAX_ELEMENTS} elements are accepted")
    return shape
