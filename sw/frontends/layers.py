"""Layers with weights, and the constants that fold into them."""
from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from hw.params import Window
from sw.ops import Add, Array, Conv, Deform, Depthwise, Multiply, Op, Requant

from .functions import gated
from .onnx_file import FileNode
from .quant import align
from .scales import exact
from .values import Act, Integers, Taps

if TYPE_CHECKING:
    from .qonnx import Importer


def conv(imp: Importer, node: FileNode) -> None:
    """Conv with quantized weights: dense (group 1) or depthwise (group = channels)."""
    x, weights = _operands(imp, node)
    window = _window(node, weights)
    group, channels = int(node.attributes.get("group", 1)), imp.type(x).channels
    scale = _product(x.scale[0], weights.scale)
    bias = _bias(imp, node, 2, scale, len(weights.values))
    op: Op
    if group == 1:
        op = Conv(weights=weights.values.transpose(0, 2, 3, 1), bias=bias, window=window)
    elif group == channels == len(weights.values):
        op = Depthwise(weights=weights.values[:, 0].transpose(1, 2, 0), bias=bias, window=window)
    else:
        raise node.refuse(f"{group} groups on {channels} channels", "group 1, or one group a channel with as many outputs")
    imp.emit(node, op, (x.tensor,), (scale,))
    imp.set(node.outputs[0], Act(tensor=node.outputs[0], scale=scale, quantized=False))


def _operands(imp: Importer, node: FileNode) -> tuple[Act, Integers]:
    x = imp.act(node)
    weights = imp.value(node, 1)
    if not isinstance(weights, Integers):
        raise node.refuse("its weights are not quantized", "a constant through a Quant of 2 to 8 bits, signed")
    if weights.values.ndim != 4:
        raise node.refuse(f"weights of shape {weights.values.shape}", "a 2-D convolution (4 axes)")
    if weights.bits > 8 or imp.type(x).bits > 8:
        raise node.refuse(f"{weights.bits}-bit weights on {imp.type(x).bits}-bit activations", "operands of 2 to 8 bits")
    return x, weights


def _window(node: FileNode, weights: Integers) -> Window:
    if node.attributes.get("auto_pad", "NOTSET") != "NOTSET":
        raise node.refuse(f"auto_pad {node.attributes['auto_pad']!r}", "explicit pads")
    kh, kw = weights.values.shape[2:]
    return window(node, (kh, kw))


def window(node: FileNode, kernel: tuple[int, int]) -> Window:
    """The node's window; refused if ONNX's attributes do not make one."""
    stride, dilation = node.attributes.get("strides", [1, 1]), node.attributes.get("dilations", [1, 1])
    pads = node.attributes.get("pads", [0, 0, 0, 0])
    if (len(stride), len(dilation), len(pads)) != (2, 2, 4):
        raise node.refuse(f"strides {stride}, dilations {dilation}, pads {pads}", "two strides, two dilations, four pads")
    top, left, bottom, right = pads
    try:
        return Window(
            kernel=kernel, stride=(stride[0], stride[1]), dilation=(dilation[0], dilation[1]), pad=(top, left, bottom, right)
        )
    except ValueError as error:
        raise node.refuse(str(error), "a window that moves by at least 1 and pads less than its reach") from None


def _product(x: Fraction, weights: tuple[Fraction, ...], divisor: int = 1) -> tuple[Fraction, ...]:
    return tuple(x * w / divisor for w in weights)


def _bias(imp: Importer, node: FileNode, index: int, scale: tuple[Fraction, ...], channels: int) -> Array:
    """The bias as integers at accumulator scale; a float bias is rounded, and listed if that changes it."""
    if index >= len(node.inputs) or not node.inputs[index]:
        return np.zeros(channels, np.int64)
    value = imp.value(node, index)
    if isinstance(value, Integers):
        scales = value.scale * (channels // len(value.scale))
        real = [int(v) * s for v, s in zip(value.values.ravel(), scales, strict=True)]
    elif isinstance(value, np.ndarray):
        real = list(exact(value))
    else:
        raise node.refuse("its bias is computed", "a constant bias, quantized or not")
    if len(real) != channels:
        raise node.refuse(f"{len(real)} biases for {channels} channels", "one bias an output channel")
    return _to_accumulator(imp, node, real, scale)


def _to_accumulator(imp: Importer, node: FileNode, real: list[Fraction], scale: tuple[Fraction, ...]) -> Array:
    scales = scale if len(scale) == len(real) else scale * len(real)
    ratios = [r / s for r, s in zip(real, scales, strict=True)]
    inexact = sum(r.denominator != 1 for r in ratios)
    if inexact:
        imp.notes.append(f"{node.name}: {inexact} of {len(ratios)} biases are not whole at accumulator scale and were rounded")
    codes = [round(r) for r in ratios]
    if max(map(abs, codes), default=0) >= 1 << 31:
        raise node.refuse("a bias of 2^31 or more accumulator units", "weight scales that are not vanishingly small")
    return np.array(codes, np.int64)


def deform_conv(imp: Importer, node: FileNode) -> None:
    """ONNX DeformConv, depthwise. Square: offsets = quantized map × constant tap pattern. Free: a quantized map of 2·K·K channels."""
    x, weights = _operands(imp, node)
    channels, size = imp.type(x).channels, weights.values.shape[2]
    taps = _taps(imp, node, size)
    if len(node.inputs) > 4 and node.inputs[4]:
        raise node.refuse("it has a modulation mask", "no mask")
    group, offset_group = int(node.attributes.get("group", 1)), int(node.attributes.get("offset_group", 1))
    if group != channels or len(weights.values) != channels or offset_group != 1:
        raise node.refuse(f"group {group}, offset_group {offset_group} on {channels} channels", "one group a channel, one offset group")
    kernel = (weights.values.shape[2], weights.values.shape[3])
    if window(node, kernel) != Window(kernel=(size, size), pad=(size // 2,) * 4) or size % 2 == 0 or size != taps.kernel:
        raise node.refuse("its window is not centred", f"K×K, K odd (here {taps.kernel}), pads K//2, strides and dilations 1")
    op = _deform(imp, node, x, weights, taps)
    scale = _product(x.scale[0], weights.scale, 1 << 2 * op.frac_bits)
    op = replace(op, bias=_bias(imp, node, 3, scale, channels))
    imp.emit(node, op, (x.tensor, taps.tensor), (scale,))
    imp.set(node.outputs[0], Act(tensor=node.outputs[0], scale=scale, quantized=False))


def _taps(imp: Importer, node: FileNode, size: int) -> Taps:
    value = imp.value(node, 2)
    if isinstance(value, Taps):
        return value
    act = imp.act(node, 2)
    if imp.type(act).channels != 2 * size * size:
        raise node.refuse(
            f"its offsets have {imp.type(act).channels} channels",
            f"{2 * size * size} channels, y before x, row by row; or square: Clip, Quant, Mul by the constant tap pattern",
        )
    return Taps(tensor=act.tensor, scale=act.scale[0], kernel=size, free=True)


def _deform(imp: Importer, node: FileNode, x: Act, weights: Integers, taps: Taps) -> Deform:
    steps = 1 / taps.scale
    frac_bits = steps.numerator.bit_length() - 1
    if steps != 1 << frac_bits or not 0 <= frac_bits <= 4:
        raise node.refuse(f"offsets in steps of {float(taps.scale)} pixel", "steps of 2^-F pixel, F in 0..4")
    maker = next(n for n in imp.nodes if taps.tensor in n.outputs)
    kind = imp.tensors[taps.tensor].type
    low, high = (maker.op.low, maker.op.high) if isinstance(maker.op, Requant) else (kind.lowest, kind.highest)
    return Deform(
        weights=weights.values[:, 0].transpose(1, 2, 0),
        bias=np.zeros(len(weights.values), np.int64),
        frac_bits=frac_bits,
        low=low,
        high=high,
        base=None if taps.free else (1 << frac_bits) * (1 - taps.shift),
        free=taps.free,
    )


def batch_normalization(imp: Importer, node: FileNode) -> None:
    """Folded: the factor into the accumulator's scale, the rest into the bias."""
    act = imp.act(node, quantized=False)
    gamma, beta, mean, variance = (imp.constant(node, k, "statistic").astype(np.float64) for k in range(1, 5))
    factor = gamma / np.sqrt(variance + float(node.attributes.get("epsilon", 1e-5)))
    _affine(imp, node, act, factor, beta - mean * factor)


def _affine(imp: Importer, node: FileNode, act: Act, factor: np.ndarray, addend: np.ndarray) -> None:
    """y = act · factor + addend, a constant pair for each channel, folded into the layer before it."""
    if act.quantized or act.low is not None or act.high is not None or act.function is not None:
        raise node.refuse("its input is not a layer's accumulator", "the node right after a convolution, before activation and Quant")
    if len(imp.origins) and any(act.tensor in n.inputs for n in imp.nodes):
        raise node.refuse("its input is used elsewhere too", "a convolution whose only reader is this node")
    channels = imp.type(act).channels
    factors = exact(np.broadcast_to(factor.ravel(), channels) if factor.size in (1, channels) else factor)
    addends = exact(np.broadcast_to(addend.ravel(), channels) if addend.size in (1, channels) else addend)
    if len(factors) != channels or len(addends) != channels:
        raise node.refuse(f"{factor.size} constants for {channels} channels", "one, or one a channel")
    if any(f == 0 for f in factors):
        raise node.refuse("a channel's factor is 0", "factors other than 0")
    scales = act.scale if len(act.scale) == channels else act.scale * channels
    scale = tuple(s * f for s, f in zip(scales, factors, strict=True))
    imp.add_to_bias(node, act, _to_accumulator(imp, node, list(addends), scale))
    imp.tensors[act.tensor] = replace(imp.tensors[act.tensor], scale=scale)
    for name in [n for n, o in imp.origins.items() if o.tensor == act.tensor]:
        del imp.origins[name]
        imp.removed[name] = f"fold constants: {node.name} is folded into the layer before it"
    imp.set(node.outputs[0], replace(act, scale=scale))


def multiply(imp: Importer, node: FileNode) -> None:
    """Mul of two activations: a unit. By a constant: the tap pattern of a deformable convolution, or a factor that is folded."""
    if not any(isinstance(imp.value(node, k), np.ndarray) for k in (0, 1)):
        _multiply_maps(imp, node)
        return
    index = 0 if not isinstance(imp.value(node, 0), np.ndarray) else 1
    act, constant = imp.act(node, index, quantized=False), imp.constant(node, 1 - index, "factor")
    kernel = round((constant.size // 2) ** 0.5)
    if imp.type(act).channels == 1 and act.quantized and constant.size == 2 * kernel * kernel and kernel > 1:
        if not np.array_equal(constant.ravel(), tap_pattern(kernel)):
            wanted = tap_pattern(kernel).astype(int).tolist()
            raise node.refuse("its constant is not the tap pattern", f"{wanted}: y before x, taps row by row")
        taps = Taps(tensor=act.tensor, scale=act.scale[0], kernel=kernel, shift=int(-sum(act.offset)))
        imp.set(node.outputs[0], taps, removed="lower deformable convolution: the tap pattern is built into the unit")
        return
    _affine(imp, node, act, constant.astype(np.float64), np.zeros(1))


def _multiply_maps(imp: Importer, node: FileNode) -> None:
    """Element by element, scales multiply and nothing is rounded; or x · f(x), which is a table."""
    if gated(imp, node):
        return
    a, b = imp.act(node, 0), imp.act(node, 1)
    if imp.type(a).shape != imp.type(b).shape:
        raise node.refuse(f"its inputs are {imp.type(a)} and {imp.type(b)}", "two maps of one size and as many channels")
    scale = (a.scale[0] * b.scale[0],)
    imp.emit(node, Multiply(), (a.tensor, b.tensor), (scale,))
    imp.set(node.outputs[0], Act(tensor=node.outputs[0], scale=scale, quantized=False))


def tap_pattern(kernel: int) -> np.ndarray:
    """(2·K·K,) y and x of every tap, row by row, as ONNX DeformConv orders its offset channels."""
    half = kernel // 2
    return np.array([v for i in range(-half, half + 1) for j in range(-half, half + 1) for v in (i, j)], np.float64)


def subtract(imp: Importer, node: FileNode) -> None:
    """Sub 1 between the Quant of a dilation s and the tap pattern (offsets = s - 1)."""
    act, constant = imp.act(node), imp.constant(node, 1, "subtrahend")
    if imp.type(act).channels != 1 or constant.size != 1 or constant.ravel()[0] != 1:
        raise node.refuse("it is not a dilation map minus 1", "Sub 1 between the Quant of s and the Mul by the tap pattern")
    shifted = replace(act, offset=(Fraction(-1),))
    imp.set(node.outputs[0], shifted, removed="lower deformable convolution: s - 1 is built into the unit")


def add(imp: Importer, node: FileNode) -> None:
    """Add of a constant right after a layer: into its bias. Of two activations: a unit, with a Quant after it."""
    index = 0 if not isinstance(imp.value(node, 0), np.ndarray) else 1
    if not isinstance(imp.value(node, 1 - index), np.ndarray):
        acts, scale = align(imp, node)
        imp.emit(node, Add(), tuple(a.tensor for a in acts), ((scale,),))
        imp.set(node.outputs[0], Act(tensor=node.outputs[0], scale=(scale,), quantized=False))
        return
    act = imp.act(node, index, quantized=False)
    _affine(imp, node, act, np.ones(1), imp.constant(node, 1 - index, "addend").astype(np.float64))
