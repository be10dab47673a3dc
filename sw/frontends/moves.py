"""Operators that move or select integers: pooling, resizing, splitting, joining, shuffling."""
from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hw.params import Window
from sw.ops import AveragePool, Concat, GlobalAveragePool, Image, MaxPool, Op, Shuffle, Split, Upsample

from .layers import window
from .onnx_file import FileNode
from .quant import align
from .values import Act, Grouped

if TYPE_CHECKING:
    from .qonnx import Importer


def _emit(imp: Importer, node: FileNode, op: Op, act: Act) -> None:
    imp.emit(node, op, (act.tensor,), (act.scale,))
    imp.set(node.outputs[0], replace(act, tensor=node.outputs[0]))


def identity(imp: Importer, node: FileNode) -> None:
    """Identity, or dropout at inference."""
    imp.set(node.outputs[0], imp.act(node, quantized=False))


def max_pool(imp: Importer, node: FileNode) -> None:
    """MaxPool on quantized integers."""
    act = imp.act(node)
    _emit(imp, node, MaxPool(window=_pooling(node)), act)


def average_pool(imp: Importer, node: FileNode) -> None:
    """AveragePool on quantized integers: the sum, at a scale as much finer as a window has taps."""
    act, shape = imp.act(node), _pooling(node)
    if any(shape.pad) and not node.attributes.get("count_include_pad", 0):
        raise node.refuse("padding that the mean leaves out", "no pads, or count_include_pad 1")
    _mean(imp, node, AveragePool(window=shape), act, shape.taps)


def global_average_pool(imp: Importer, node: FileNode) -> None:
    """GlobalAveragePool, or ReduceMean over rows and columns, on quantized integers."""
    act = imp.act(node)
    if node.op_type == "ReduceMean":
        axes = imp.constant(node, 1, "axes").ravel().tolist() if len(node.inputs) > 1 else list(node.attributes.get("axes", []))
        if sorted(a % 4 for a in axes) != [2, 3] or not node.attributes.get("keepdims", 1):
            raise node.refuse(f"axes {axes}, keepdims {node.attributes.get('keepdims', 1)}", "axes 2 and 3 (rows and columns), keepdims 1")
    _mean(imp, node, GlobalAveragePool(), act, imp.type(act).pixels)


def _mean(imp: Importer, node: FileNode, op: Op, act: Act, count: int) -> None:
    scale = (act.scale[0] / count,)
    imp.emit(node, op, (act.tensor,), (scale,))
    imp.set(node.outputs[0], Act(tensor=node.outputs[0], scale=scale, quantized=False))


def pad(imp: Importer, node: FileNode) -> None:
    """Pad with 0 around the rows and columns."""
    act = imp.act(node)
    pads = imp.constant(node, 1, "pads").ravel().tolist() if len(node.inputs) > 1 else list(node.attributes.get("pads", []))
    value = imp.constant(node, 2, "value").ravel().tolist() if len(node.inputs) > 2 and node.inputs[2] else [0]
    if node.attributes.get("mode", "constant") != "constant" or any(value) or len(node.inputs) > 3:
        raise node.refuse("it does not pad all axes with 0", "mode constant, value 0, pads of all four axes")
    if len(pads) != 8 or any(pads[k] for k in (0, 1, 4, 5)) or min(pads) < 0:
        raise node.refuse(f"pads {pads}", "eight pads, none negative, 0 for images and channels")
    _emit(imp, node, Image(pad=(pads[2], pads[3], pads[6], pads[7])), act)


def _pooling(node: FileNode) -> Window:
    """The window of a pooling node."""
    if node.attributes.get("ceil_mode", 0) or node.attributes.get("auto_pad", "NOTSET") != "NOTSET" or len(node.outputs) > 1:
        raise node.refuse("ceil_mode, auto_pad or indices", "explicit pads, floor mode, one output")
    kernel = node.attributes.get("kernel_shape", [])
    if len(kernel) != 2:
        raise node.refuse(f"kernel_shape {list(kernel)}", "two sizes")
    return window(node, (kernel[0], kernel[1]))


def resize(imp: Importer, node: FileNode) -> None:
    """Nearest upsampling by one whole factor."""
    act = imp.act(node)
    accepted = "mode nearest, coordinate_transformation_mode asymmetric, nearest_mode floor, scales (1, 1, f, f) with a whole f"
    kind = imp.type(act)
    factors = _factors(imp, node, (kind.height, kind.width))
    f = int(factors[2]) if len(factors) == 4 else 0
    if f < 2 or list(factors) != [1, 1, f, f]:
        raise node.refuse(f"factors {list(factors)}", accepted)
    if node.op_type == "Resize" and not _picks_floor(node, f):
        raise node.refuse("it does not repeat every pixel", accepted)
    _emit(imp, node, Upsample(factor=f), act)


def _picks_floor(node: FileNode, factor: int) -> bool:
    """Whether output pixel k is input pixel k // factor."""
    mode = node.attributes.get("mode", "nearest")
    coordinates = node.attributes.get("coordinate_transformation_mode", "half_pixel")
    rounding = node.attributes.get("nearest_mode", "round_prefer_floor")
    if coordinates == "asymmetric":
        return bool(mode == "nearest" and rounding == "floor")
    # (k + 1/2) / f - 1/2 lies less than half a pixel from k // f, so any rounding to nearest finds it.
    return bool(mode == "nearest" and coordinates == "half_pixel" and rounding.startswith("round") and factor >= 2)


def _factors(imp: Importer, node: FileNode, size: tuple[int, int]) -> list[float]:
    """The four scale factors, from ``scales`` or from ``sizes``."""
    scales_at = 1 if node.op_type == "Upsample" else 2
    if len(node.inputs) > scales_at and node.inputs[scales_at]:
        scales = imp.constant(node, scales_at, "scales")
        if scales.size:
            return [float(v) for v in scales.ravel()]
    if len(node.inputs) > 3 and node.inputs[3]:
        sizes = imp.constant(node, 3, "sizes").ravel()
        return [1.0, 1.0, *(float(n) / m for n, m in zip(sizes[2:], size, strict=True))]
    return []


def split(imp: Importer, node: FileNode) -> None:
    """Split along the channels."""
    act = imp.act(node)
    if node.attributes.get("axis", 0) not in (1, -3):
        raise node.refuse(f"axis {node.attributes.get('axis', 0)}", "axis 1 (channels)")
    channels, parts = imp.type(act).channels, len(node.outputs)
    if len(node.inputs) > 1 and node.inputs[1]:
        sizes = [int(v) for v in imp.constant(node, 1, "sizes").ravel()]
    else:
        sizes = list(node.attributes.get("split", [])) or [channels // parts] * parts
    if len(sizes) != parts or sum(sizes) != channels:
        raise node.refuse(f"sizes {sizes} of {channels} channels", "sizes that add up to the channels")
    imp.emit(node, Split(sizes=tuple(sizes)), (act.tensor,), (act.scale,) * parts)
    for output in node.outputs:
        imp.set(output, replace(act, tensor=output))


def concat(imp: Importer, node: FileNode) -> None:
    """Concat along the channels; unequal scales get an explicit requantization to the coarsest, which is listed."""
    if node.attributes.get("axis", 1) not in (1, -3):
        raise node.refuse(f"axis {node.attributes.get('axis')}", "axis 1 (channels)")
    acts, scale = align(imp, node)
    imp.emit(node, Concat(), tuple(a.tensor for a in acts), ((scale,),))
    imp.set(node.outputs[0], Act(tensor=node.outputs[0], scale=(scale,), quantized=True))


_SHUFFLE = "Reshape to (1, g, C/g, H, W), Transpose (0, 2, 1, 3, 4), Reshape back: a channel shuffle"


def reshape(imp: Importer, node: FileNode) -> None:
    """First or last step of a channel shuffle."""
    value = imp.value(node, 0)
    shape = [int(v) for v in imp.constant(node, 1, "shape").ravel()]
    if isinstance(value, Grouped):
        kind = imp.type(value.act)
        expected = (1, kind.channels, kind.height, kind.width)
        if not value.transposed or len(shape) != 4 or any(s not in (-1, 0, e) for s, e in zip(shape, expected, strict=True)):
            raise node.refuse(f"shape {shape}", _SHUFFLE)
        _emit(imp, node, Shuffle(groups=value.groups), value.act)
        return
    act = imp.act(node)
    kind = imp.type(act)
    if len(shape) == 5 and (groups := shape[1] if shape[1] > 0 else kind.channels // max(shape[2], 1)) > 1:
        expected5 = (1, groups, kind.channels // groups, kind.height, kind.width)
        if kind.channels % groups == 0 and all(s in (-1, e) for s, e in zip(shape, expected5, strict=True)):
            grouped = Grouped(act=act, groups=groups, transposed=False)
            imp.set(node.outputs[0], grouped, removed=f"lower shuffle: {act.tensor} seen with 5 axes")
            return
    raise node.refuse(f"shape {shape}", _SHUFFLE)


def transpose(imp: Importer, node: FileNode) -> None:
    """Middle step of a channel shuffle."""
    value = imp.value(node, 0)
    if not isinstance(value, Grouped) or value.transposed or list(node.attributes.get("perm", [])) != [0, 2, 1, 3, 4]:
        raise node.refuse(f"perm {node.attributes.get('perm')}", _SHUFFLE)
    imp.set(node.outputs[0], replace(value, transposed=True), removed="lower shuffle: the shuffled map seen with 5 axes")

