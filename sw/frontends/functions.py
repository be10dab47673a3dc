"""Activation functions: of quantized integers they become tables."""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sw.ops import Table
from sw.ops.table import TABLE_BITS

from .onnx_file import FileNode
from .values import Act, Function

if TYPE_CHECKING:
    from .qonnx import Importer

Reals = npt.NDArray[np.float64]


def sigmoid(x: Reals) -> Reals:
    """1 / (1 + e^-x), without overflow."""
    result: Reals = (1 + np.tanh(x / 2)) / 2
    return result


def softplus(x: Reals) -> Reals:
    """log(1 + e^x), without overflow."""
    result: Reals = np.logaddexp(0, x)
    return result


def _erf(x: Reals) -> Reals:
    return np.array([math.erf(v) for v in x])


def _gelu(attributes: Mapping[str, Any]) -> Function:
    if attributes.get("approximate", "none") == "tanh":
        return lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return lambda x: 0.5 * x * (1 + _erf(x / np.sqrt(2)))


def _hard_sigmoid(attributes: Mapping[str, Any]) -> Function:
    alpha, beta = float(attributes.get("alpha", 0.2)), float(attributes.get("beta", 0.5))
    return lambda x: np.clip(alpha * x + beta, 0, 1)


def _leaky_relu(attributes: Mapping[str, Any]) -> Function:
    alpha = float(attributes.get("alpha", 0.01))
    return lambda x: np.where(x < 0, alpha * x, x)


def _elu(attributes: Mapping[str, Any]) -> Function:
    alpha = float(attributes.get("alpha", 1.0))
    return lambda x: np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x)


#: ONNX's activation functions, from a node's attributes (defaults are ONNX's).
FUNCTIONS: dict[str, Callable[[Mapping[str, Any]], Function]] = {
    "Sigmoid": lambda _: sigmoid,
    "Tanh": lambda _: np.tanh,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda _: lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "Gelu": _gelu,
    "Erf": lambda _: _erf,
    "LeakyRelu": _leaky_relu,
    "Elu": _elu,
    "Softplus": lambda _: softplus,
    "Softsign": lambda _: lambda x: x / (1 + np.abs(x)),
    "Mish": lambda _: lambda x: x * np.tanh(softplus(x)),
}


def activation(imp: Importer, node: FileNode) -> None:
    """A function of a quantized activation, pending until the Quant after it makes it a table."""
    act = imp.act(node)
    kind = imp.type(act)
    if kind.bits > TABLE_BITS:
        raise node.refuse(f"an input of {kind.bits} bits", f"at most {TABLE_BITS} bits: a Quant before it")
    function = FUNCTIONS[node.op_type](node.attributes)
    pending = replace(act, quantized=False, function=function)
    imp.set(node.outputs[0], pending, removed=f"requantize: {node.op_type} is part of the table that the Quant after it makes")


def _times_itself(function: Function) -> Function:
    return lambda x: x * function(x)


def gated(imp: Importer, node: FileNode) -> bool:
    """x · f(x), as SiLU is exported: Mul of a quantized activation by a function of itself. True if that is what ``node`` is."""
    values = [imp.value(node, k) for k in (0, 1)]
    for x, gate in (values, values[::-1]):
        if not isinstance(x, Act) or not isinstance(gate, Act) or not x.plain or gate.function is None or x.tensor != gate.tensor:
            continue
        if gate.low is not None or gate.high is not None:
            continue
        pending = replace(gate, function=_times_itself(gate.function))
        imp.set(node.outputs[0], pending, removed="requantize: x · f(x) is the table that the Quant after it makes")
        return True
    return False


def emit_table(imp: Importer, node: FileNode, act: Act, out: Fraction, *, bits: int, signed: bool, low: int, high: int, mode: str) -> None:
    """Append the table of ``act.function`` at scale ``out``: float64, rounded as the Quant says, clamped to ``low..high``."""
    kind = imp.type(act)
    assert act.function is not None
    rounds = {"ROUND": np.rint, "FLOOR": np.floor}.get(mode.upper())
    if rounds is None:
        raise node.refuse(f"its rounding mode is {mode!r}", "ROUND or FLOOR")
    points = np.arange(kind.lowest, kind.highest + 1, dtype=np.float64)
    real = act.function(points * float(act.scale[0])) / float(out)
    values = np.clip(rounds(real), low, high).astype(np.int64)
    imp.emit(node, Table(values=values, low=kind.lowest, bits=bits, signed=signed), (act.tensor,), ((out,),))
