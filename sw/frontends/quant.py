"""Quant, Relu and Clip: where integers and their clamps come from."""
from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from sw.graph import Tensor
from sw.ops import Requant, TensorType
from sw.ops.requant import Rounding

from .functions import emit_table
from .onnx_file import FileNode
from .scales import EXHAUSTIVE_BITS, can_tie, differing, dyadic, exact
from .values import Act, Integers

if TYPE_CHECKING:
    from .qonnx import Importer


def quantize(imp: Importer, node: FileNode) -> None:
    """QONNX Quant (x, scale, zero point, bits): on a constant, on the image, or on an activation (a requantization)."""
    if len(node.inputs) != 4:
        raise node.refuse(f"has {len(node.inputs)} inputs", "x, scale, zero point, bit width")
    scale = imp.constant(node, 1, "scale")
    if np.any(imp.constant(node, 2, "zero point")):
        raise node.refuse("its zero point is not 0", "zero point 0 (symmetric quantization)")
    bits = _bits(imp, node)
    if not (scale > 0).all():
        raise node.refuse("a scale is not positive", "positive scales")
    if node.inputs[0] in imp.raw_inputs and node.inputs[0] not in imp.values:
        _quantize_image(imp, node, scale, bits)
        return
    value = imp.value(node, 0)
    if isinstance(value, np.ndarray):
        _quantize_constant(imp, node, value, scale, bits)
    else:
        _requantize(imp, node, scale, bits)


def _bits(imp: Importer, node: FileNode) -> int:
    width = imp.constant(node, 3, "bit width")
    bits = float(width.ravel()[0]) if width.size == 1 else 0.0
    if bits != int(bits) or not 2 <= bits <= 32:
        raise node.refuse(f"its bit width is {width.ravel().tolist()}", "one whole number from 2 to 32")
    return int(bits)


def _range(node: FileNode, bits: int) -> tuple[bool, int, int]:
    """(signed, least, greatest) code."""
    signed = bool(node.attributes.get("signed", 1))
    narrow = bool(node.attributes.get("narrow", 0))
    if not signed:
        return False, 0, (1 << bits) - 1 - narrow
    return True, -(1 << bits - 1) + narrow, (1 << bits - 1) - 1


def _scalar(node: FileNode, scale: np.ndarray) -> Fraction:
    if np.unique(scale).size != 1:
        raise node.refuse("an activation has a scale for each channel", "one scale for the whole tensor")
    return exact(scale)[0]


def _quantize_image(imp: Importer, node: FileNode, scale: np.ndarray, bits: int) -> None:
    name = node.inputs[0]
    _, channels, height, width = imp.raw_inputs[name]
    signed, _, _ = _range(node, bits)
    if bits > 8:
        raise node.refuse(f"the image has {bits} bits", "2 to 8 bits, best unsigned 8 with scale 2^-8")
    if imp.inputs:
        raise node.refuse("the image is quantized twice", "one Quant on the image")
    output = node.outputs[0]
    kind = TensorType(height=height, width=width, channels=channels, bits=bits, signed=signed)
    imp.inputs.append(output)
    imp.tensors[output] = Tensor(name=output, type=kind, scale=(_scalar(node, scale),))
    imp.set(output, Act(tensor=output, scale=(_scalar(node, scale),), quantized=True))
    imp.removed[name] = f"input: the image itself; its integers are {output}"


def _quantize_constant(imp: Importer, node: FileNode, value: np.ndarray, scale: np.ndarray, bits: int) -> None:
    signed, low, high = _range(node, bits)
    if not signed and value.min(initial=0) < 0:
        raise node.refuse("negative constants with an unsigned Quant", "signed=1")
    try:
        ratio = np.broadcast_to(value.astype(np.float64) / scale.astype(np.float64), value.shape)
    except ValueError:
        raise node.refuse(f"its scale {scale.shape} does not fit its constant {value.shape}", "broadcastable shapes") from None
    codes = np.clip(np.rint(ratio), low, high).astype(np.int64)
    flat = scale.reshape(-1) if scale.size == 1 or scale.size == value.shape[0] else None
    if flat is None:
        raise node.refuse(f"a scale of shape {scale.shape}", "one scale, or one for each output channel")
    imp.values[node.outputs[0]] = Integers(values=codes, scale=exact(flat), bits=bits)


def _requantize(imp: Importer, node: FileNode, scale: np.ndarray, bits: int) -> None:
    act = imp.act(node, quantized=False)
    signed, low, high = _range(node, bits)
    if bits > 16:
        raise node.refuse(f"an activation of {bits} bits", "2 to 16 bits")
    out = _scalar(node, scale)
    kind = imp.type(act)
    if act.plain and act.scale == (out,) and (kind.bits, kind.signed, kind.lowest, kind.highest) == (bits, signed, low, high):
        imp.set(node.outputs[0], act)  # it is in this form already
        return
    # Rounding is monotone, so a clamp before it equals the clamp of the rounded bound after it.
    if act.low is not None:
        low = max(low, round(act.low / out))
    if act.high is not None:
        high = min(high, round(act.high / out))
    if low > high:
        raise node.refuse("its clamp leaves no value", "a Clip that overlaps the quantizer's range")
    mode = str(node.attributes.get("rounding_mode", "ROUND"))
    emit = emit_requant if act.function is None else emit_table
    emit(imp, node, act, out, bits=bits, signed=signed, low=low, high=high, mode=mode)
    imp.set(node.outputs[0], Act(tensor=node.outputs[0], scale=(out,), quantized=True))


def emit_requant(
    imp: Importer,
    node: FileNode,
    act: Act,
    out: Fraction,
    *,
    bits: int,
    signed: bool,
    low: int,
    high: int,
    mode: str = "ROUND",
    name: str = "",
) -> None:
    """Append the requantization of ``act`` to scale ``out``; multipliers that are not m·2^-s are approximated and listed."""
    channels = imp.type(act).channels
    ratios = [s / out for s in act.scale]
    try:
        forms = [dyadic(r) for r in ratios]
    except ValueError as error:
        raise node.refuse(str(error), "an output scale that is not far smaller than the input's") from None
    inexact = sum(not ok for _, _, ok in forms)
    kind = imp.type(act)
    if inexact:
        imp.notes.append(
            f"{node.name}: {inexact} of {len(forms)} multipliers are not m·2^-s and were rounded to 16 bits"
            + _effect([(r, f) for r, f in zip(ratios, forms, strict=True) if not f[2]], kind, (low, high), mode)
        )
    forms = forms * channels if len(forms) == 1 else forms
    multipliers, shifts = [m for m, _, _ in forms], [s for _, s, _ in forms]
    reach = max(-kind.lowest, kind.highest)
    op = Requant(
        multiplier=np.array(multipliers),
        shift=np.array(shifts),
        low=low,
        high=high,
        bits=bits,
        signed=signed,
        rounding=_rounding(node, mode, signed, can_tie(multipliers, shifts, low, high, reach)),
    )
    imp.emit(node, op, (act.tensor,), ((out,),), name=name)


def _effect(rounded: list[tuple[Fraction, tuple[int, int, bool]]], kind: TensorType, clamp: tuple[int, int], mode: str) -> str:
    """What rounding the multipliers does to the results, where the input's values are few enough to try them all."""
    if kind.bits > EXHAUSTIVE_BITS or mode.upper() not in ("ROUND", "FLOOR"):
        return ""
    wrong = [differing(r, m, s, (kind.lowest, kind.highest), clamp, floor=mode.upper() == "FLOOR") for r, (m, s, _) in rounded]
    if not any(wrong):
        return f"; every one of the {1 << kind.bits} inputs is still rounded as by the true quotient"
    return f"; at most {max(wrong)} of {1 << kind.bits} inputs differ by 1 from the true quotient"


def align(imp: Importer, node: FileNode) -> tuple[list[Act], Fraction]:
    """The node's inputs at one scale and type; those that differ are requantized to the coarsest scale, and listed."""
    acts = [imp.act(node, k) for k in range(len(node.inputs))]
    coarsest = max(a.scale[0] for a in acts)
    signed = any(imp.type(a).signed for a in acts)
    bits = max(imp.type(a).bits for a in acts)
    for k, act in enumerate(acts):
        kind = imp.type(act)
        if act.scale[0] == coarsest and (kind.signed, kind.bits) == (signed, bits):
            continue
        name = f"{node.name}.requant{k}"
        imp.notes.append(f"{node.name}: input {node.inputs[k]!r} is requantized to the coarsest scale")
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
        emit_requant(imp, node, act, coarsest, bits=bits, signed=signed, low=low, high=high, name=name)
        acts[k] = Act(tensor=name, scale=(coarsest,), quantized=True)
    return acts, coarsest


def _rounding(node: FileNode, mode: str, signed: bool, ties: bool) -> Rounding:
    if mode.upper() == "FLOOR":
        return "floor"
    if mode.upper() == "ROUND":
        return "half_even" if ties else "half_up"
    if mode.upper() == "HALF_UP" and not signed:
        return "half_up"
    raise node.refuse(f"its rounding mode is {mode!r}", "ROUND, FLOOR, or HALF_UP on unsigned tensors")


def relu(imp: Importer, node: FileNode) -> None:
    """A ReLU becomes the lower clamp of the requantization after it."""
    _clamp(imp, node, Fraction(0), None, "relu")


def clip(imp: Importer, node: FileNode) -> None:
    """A Clip becomes the clamp of the requantization after it."""
    bounds = [_bound(imp, node, k) for k in (1, 2)]
    _clamp(imp, node, bounds[0], bounds[1], "clip")


def _bound(imp: Importer, node: FileNode, index: int) -> Fraction | None:
    if index >= len(node.inputs) or not node.inputs[index]:
        return None
    return exact(imp.constant(node, index, "bound"))[0]


def _clamp(imp: Importer, node: FileNode, low: Fraction | None, high: Fraction | None, what: str) -> None:
    act = imp.act(node, quantized=False)
    if act.plain and low == 0 and high is None and not imp.type(act).signed:
        imp.set(node.outputs[0], act)  # unsigned already
        return
    bound = replace(
        act,
        low=low if act.low is None else act.low if low is None else max(act.low, low),
        high=high if act.high is None else act.high if high is None else min(act.high, high),
    )
    imp.set(node.outputs[0], bound, removed=f"requantize: the {what} is the clamp of the requantization after it")
