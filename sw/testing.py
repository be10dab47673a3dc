"""Writes small QONNX networks by hand: for the tests, the examples in docs, and whoever brings another trainer."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Floats = npt.NDArray[np.float32]


class QonnxWriter:
    """Collects nodes; every method returns the name of the tensor that it adds.

    Activations carry power-of-two scales, weights a scale m·2^-k for each output channel, biases lie at accumulator scale: the
    forms of DESIGN.md section 3. Weights are random but for the seed.
    """

    def __init__(self, height: int, width: int, *, channels: int = 3, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.scales: dict[str, float] = {}
        self.channels: dict[str, int] = {}
        self.shape = (1, channels, height, width)
        self.image = self.quant("image", "image_q", 2.0**-8, bits=8, signed=False)
        self.channels[self.image] = channels

    def constant(self, name: str, value: npt.ArrayLike, dtype: type = np.float32) -> str:
        """A constant of the file."""
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def node(self, op: str, inputs: Sequence[str], output: str | Sequence[str], *, domain: str = "", **attributes: Any) -> str:
        """Any node; it is named after its (first) output."""
        outputs = [output] if isinstance(output, str) else list(output)
        self.nodes.append(helper.make_node(op, list(inputs), outputs, name=f"{outputs[0]}_node", domain=domain, **attributes))
        return outputs[0]

    def quant(
        self, x: str, name: str, scale: npt.ArrayLike, *, bits: int, signed: bool, narrow: bool = False, rounding: str = "ROUND"
    ) -> str:
        """QONNX Quant with zero point 0."""
        inputs = [x, self.constant(f"{name}.scale", scale), self.constant(f"{name}.zero", 0.0), self.constant(f"{name}.bits", float(bits))]
        attributes = {"signed": int(signed), "narrow": int(narrow), "rounding_mode": rounding}
        self.node("Quant", inputs, name, domain="qonnx.custom_op.general", **attributes)
        if np.asarray(scale).size == 1:
            self.scales[name] = float(np.asarray(scale).ravel()[0])
        self.channels[name] = self.channels.get(x, 0)
        return name

    def conv(
        self,
        x: str,
        name: str,
        channels: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        depthwise: bool = False,
        bits: int = 4,
        out_bits: int = 8,
        relu: bool = True,
        clip: tuple[float, float] | None = None,
        out_scale: float | None = None,
        gain: float = 1.0,
    ) -> str:
        """Conv with quantized weights and bias, ReLU or Clip, and Quant; returns the quantized output."""
        group = self.channels[x] if depthwise else 1
        weights, sw = self._weights(name, (channels, self.channels[x] // group, kernel, kernel), bits, gain)
        bias = self._bias(name, self.scales[x] * sw)
        pad = kernel // 2
        raw = self.node(
            "Conv",
            [x, weights, bias],
            f"{name}.conv",
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[pad] * 4,
            group=group,
        )
        products = self.channels[x] // group * kernel * kernel
        unit = self.scales[x] * float(sw.mean()) * (1 << bits - 1)
        return self._activate(raw, name, channels, unit, products, out_bits, relu, clip, out_scale)

    def deform(self, x: str, offset: str, name: str, *, kernel: int = 3) -> str:
        """The square deformable depthwise convolution on the quantized offsets ``offset`` (o = s - 1, one channel)."""
        channels = self.channels[x]
        weights, sw = self._weights(name, (channels, 1, kernel, kernel), 4)
        steps = range(-(kernel // 2), kernel // 2 + 1)
        pattern = np.array([v for i in steps for j in steps for v in (i, j)]).reshape(1, -1, 1, 1)
        taps = self.node("Mul", [offset, self.constant(f"{name}.pattern", pattern)], f"{name}.taps")
        raw = self.node(
            "DeformConv",
            [x, weights, taps],
            f"{name}.deform",
            kernel_shape=[kernel, kernel],
            pads=[kernel // 2] * 4,
            group=channels,
            offset_group=1,
        )
        return self._activate(raw, name, channels, self.scales[x] * float(sw.mean()) * 8, kernel * kernel, 8, False, None, None)

    def _weights(self, name: str, shape: tuple[int, ...], bits: int, gain: float = 1.0) -> tuple[str, Floats]:
        high = (1 << bits - 1) - 1
        codes = self.rng.integers(-high, high + 1, shape)
        scale = (self.rng.integers(1 << 14, 1 << 15, shape[0]) * 2 + 1) * 2.0**-22 * gain
        wide = scale.reshape(-1, 1, 1, 1)
        real = self.constant(f"{name}.weight", codes * wide)
        return self.quant(real, f"{name}.weight_q", wide, bits=bits, signed=True, narrow=True), scale.astype(np.float32)

    def _bias(self, name: str, scale: npt.NDArray[np.floating]) -> str:
        codes = self.rng.integers(-100, 200, len(scale))
        real = self.constant(f"{name}.bias", codes * scale)
        return self.quant(real, f"{name}.bias_q", scale, bits=24, signed=True)

    def _activate(
        self,
        raw: str,
        name: str,
        channels: int,
        unit: float,
        products: int,
        bits: int,
        relu: bool,
        clip: tuple[float, float] | None,
        scale: float | None,
    ) -> str:
        self.channels[raw] = channels
        # An activation of about 30, a weight of half its range: the result then fills its type without saturating much.
        out = scale or 2.0 ** np.round(np.log2(unit / 2 * 30 * products**0.5 * 4 / (1 << bits)))
        if relu:
            raw = self.node("Relu", [raw], f"{name}.relu")
        if clip:
            bounds = [self.constant(f"{name}.{end}", value) for end, value in zip(("low", "high"), clip, strict=True)]
            raw = self.node("Clip", [raw, *bounds], f"{name}.clip")
        self.channels[raw] = channels
        return self.quant(raw, name, out, bits=bits, signed=not relu)

    def offsets(self, x: str, name: str, *, frac_bits: int = 2) -> str:
        """A 1×1 offset convolution whose codes spread over the whole range -8..7."""
        typical = self.scales[x] * 2.0**-7 * 4 * 30 * self.channels[x] ** 0.5
        gain = 2.0 ** np.round(np.log2(4 / typical))
        bounds, scale = (-8.0, 7.0), 2.0**-frac_bits
        return self.conv(x, name, 1, relu=False, clip=bounds, out_bits=4 + frac_bits, out_scale=scale, gain=gain)

    def max_pool(self, x: str, name: str) -> str:
        """3×3 maximum, stride 2."""
        return self._moved(x, self.node("MaxPool", [x], name, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4), self.channels[x])

    def upsample(self, x: str, name: str) -> str:
        """Nearest, by 2."""
        inputs = [x, "", self.constant(f"{name}.scales", [1, 1, 2, 2])]
        self.node("Resize", inputs, name, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
        return self._moved(x, name, self.channels[x])

    def split(self, x: str, names: Sequence[str]) -> list[str]:
        """Equal parts along the channels."""
        size = self.channels[x] // len(names)
        self.node("Split", [x, self.constant(f"{names[0]}.sizes", [size] * len(names), np.int64)], names, axis=1)
        return [self._moved(x, name, size) for name in names]

    def concat(self, parts: Sequence[str], name: str) -> str:
        """Along the channels."""
        self.node("Concat", parts, name, axis=1)
        return self._moved(parts[0], name, sum(self.channels[p] for p in parts))

    def shuffle(self, x: str, name: str, height: int, width: int, groups: int = 2) -> str:
        """ShuffleNet's channel shuffle."""
        c = self.channels[x]
        five = self.constant(f"{name}.five", [1, groups, c // groups, height, width], np.int64)
        four = self.constant(f"{name}.four", [1, c, height, width], np.int64)
        apart = self.node("Reshape", [x, five], f"{name}.apart")
        swapped = self.node("Transpose", [apart], f"{name}.swapped", perm=[0, 2, 1, 3, 4])
        self.node("Reshape", [swapped, four], name)
        return self._moved(x, name, c)

    def _moved(self, x: str, name: str, channels: int) -> str:
        self.scales[name], self.channels[name] = self.scales[x], channels
        return name

    def model(self, outputs: Sequence[str]) -> onnx.ModelProto:
        """The finished model."""
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, self.shape)
        ends = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs]
        graph = helper.make_graph(self.nodes, "network", [image], ends, self.constants)
        opsets = [helper.make_opsetid("", 19), helper.make_opsetid("qonnx.custom_op.general", 1)]
        return helper.make_model(graph, opset_imports=opsets)

    def save(self, path: Path, outputs: Sequence[str]) -> Path:
        """Write the model to ``path``."""
        path.write_bytes(self.model(outputs).SerializeToString())
        return path


def micro_network(path: Path, *, size: int = 32, seed: int = 8, frac_bits: int = 2, detector: bool = False) -> Path:
    """A network with every operator of CoDeNet on a ``size``×``size`` image, a few thousand weights: seconds in Verilator.

    ``detector``: with the third head, too, so that its outputs are those of a CenterNet detector.
    """
    w = QonnxWriter(size, size, seed=seed)
    stem = w.conv(w.image, "stem", 8, kernel=3, stride=2, bits=8)
    pool = w.max_pool(stem, "pool")
    left, right = w.split(pool, ["left", "right"])
    scale = w.scales[pool]
    deep = w.conv(right, "pw1", 4)
    deep = w.conv(deep, "dw", 4, kernel=3, depthwise=True, relu=False)
    deep = w.conv(deep, "pw2", 4, out_scale=scale, gain=scale / w.scales[deep] * 4)
    joined = w.shuffle(w.concat([left, deep], "joined"), "shuffled", size // 4, size // 4)
    down = w.conv(joined, "down", 8, kernel=3, stride=2, depthwise=True, relu=False)
    x = w.conv(down, "conv5", 12)
    x = w.deform(x, w.offsets(x, "offset1", frac_bits=frac_bits), "dec1")
    x = w.upsample(w.conv(x, "dec1pw", 8), "up1")
    x = w.deform(x, w.offsets(x, "offset2", frac_bits=frac_bits), "dec2")
    x = w.upsample(w.conv(x, "dec2pw", 6), "up2")
    heads = []
    for head, channels in (("hm", 3), ("wh", 2), ("reg", 2))[: 2 + detector]:
        y = w.conv(w.conv(x, f"{head}1", 6), f"{head}2", 6, kernel=3, depthwise=True)
        unit = w.scales[y] * 2.0**-9
        scale = (2.0**-8 if head == "wh" else 2.0**-12) if detector else unit
        heads.append(w.conv(y, head, channels, relu=False, out_bits=16, out_scale=scale, gain=scale / unit))
    return w.save(path, heads)


def nano_network(path: Path, *, size: int = 16, seed: int = 1) -> Path:
    """The smallest network with a line buffer, a branch with a FIFO, a requantization and weights in memory: planted bugs live here."""
    w = QonnxWriter(size, size, seed=seed)
    stem = w.conv(w.image, "stem", 4, kernel=3, stride=2, bits=8)
    left, right = w.split(stem, ["left", "right"])
    scale = w.scales[stem]
    deep = w.conv(right, "dw", 2, kernel=3, depthwise=True, relu=False)
    deep = w.conv(deep, "pw", 2, out_scale=scale, gain=scale / w.scales[deep] * 4)
    joined = w.concat([left, deep], "joined")
    return w.save(path, [w.conv(joined, "head", 3, relu=False)])


def random_network(path: Path, *, seed: int, size: int = 6) -> Path:
    """A random network of splits, concats and skips around branches of unequal latency, some within others."""
    w = QonnxWriter(size, size, seed=seed)
    rng = np.random.default_rng([seed, 1])
    names = (f"t{k}" for k in range(1000))

    def chain(x: str, steps: int, scale: float) -> str:
        """``steps`` layers that keep the channels; what comes out has ``scale``."""
        channels = w.channels[x]
        for _ in range(steps - 1):
            x = w.conv(x, next(names), channels, kernel=3, depthwise=True) if rng.random() < 0.6 else w.conv(x, next(names), channels)
        return w.conv(x, next(names), channels, out_scale=scale, gain=scale / w.scales[x] * 4)

    def block(x: str, depth: int) -> str:
        """Two branches that part and meet again."""
        scale, channels = w.scales[x], w.channels[x]
        left, right = w.split(x, [next(names), next(names)]) if channels % 2 == 0 and rng.random() < 0.6 else (x, x)
        if depth and rng.random() < 0.5:
            right = block(right, depth - 1)
        right = chain(right, int(rng.integers(1, 4)), scale)
        left = chain(left, 1, scale) if rng.random() < 0.4 else left
        parts = [left, right] if rng.random() < 0.5 else [right, left]
        joined = w.concat(parts, next(names))
        halves = w.channels[joined] % 2 == 0 and rng.random() < 0.5
        return w.shuffle(joined, next(names), height, height) if halves else joined

    x, height = w.conv(w.image, "stem", 4, kernel=3), size
    for _ in range(int(rng.integers(1, 4))):
        x = block(x, 1)
        x = w.conv(x, next(names), int(rng.choice([2, 4])))
        if height == size and rng.random() < 0.5:
            x, height = w.max_pool(x, next(names)), (size + 1) // 2
    return w.save(path, [w.conv(x, "head", 2, relu=False)])
