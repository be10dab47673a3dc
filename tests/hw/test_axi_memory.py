"""Thresholds by register and weights from memory: a decoder and a held convolution fed with the same maps, behind AXI."""
from pathlib import Path

import numpy as np
import pytest

from hw.axi import AxiAccelerator, Register
from hw.lib.fork import Fork
from hw.lib.held import HeldMatVec
from hw.lib.regroup import Regroup
from hw.params import Lanes, Range
from hw.testing import lanes_of
from hw.top import Accelerator, Link, Port
from hw.units.base import Unit
from hw.units.decode import DecodeUnit
from hw.units.split import SplitUnit
from sim.axi import Scenario, Step, packet, run_scenarios
from sw.ops import Array, TensorType
from sw.ops.decode import Decode

H, W, OUTPUTS, PE, LEAST = 4, 5, 32, 2, 10
PARTS = (3, 2, 2)  # channels of heat map, sizes and shifts, which the image carries
ONE, TWO = (Lanes(lanes=n, bits=8, signed=True) for n in (1, 2))
BIAS = list(range(-OUTPUTS, OUTPUTS, 2))


def decode(least: int) -> Decode:
    return Decode(top_k=4, least=least, wh_frac=1, reg_frac=2)


def boxes_type() -> TensorType:
    return decode(LEAST).infer(*(TensorType(height=H, width=W, channels=c, bits=8, signed=True) for c in PARTS))[0]


def build() -> tuple[AxiAccelerator, HeldMatVec]:
    """Pixels of seven channels, to a decoder and to a convolution whose weights come from memory."""
    records = Lanes(lanes=8, bits=boxes_type().bits, signed=True)
    held = HeldMatVec(
        pixels=H * W, in_channels=7, bias=BIAS, weight=Range(low=-7, high=7), i=ONE, o=Lanes(lanes=PE, bits=20, signed=True)
    )
    units: dict[str, Unit] = {
        "fork": Fork(lanes=ONE, outputs=2), "split": SplitUnit(height=H, width=W, sizes=PARTS, i=ONE), "held": held,
        "wh": Regroup(channels=2, i=ONE, o_lanes=2, pixels=H * W), "reg": Regroup(channels=2, i=ONE, o_lanes=2, pixels=H * W),
        "decode": DecodeUnit(
            height=H, width=W, channels=3, top_k=4, cells=3, least=LEAST, wh_frac=1, reg_frac=2, i=ONE, wh=TWO, reg=TWO, o=records
        ),
    }  # fmt: skip

    def link(source: str, o: str, target: str, i: str, lanes: Lanes = ONE, depth: int = 8) -> Link:
        return Link(source=Port(unit=source, port=o, lanes=lanes), target=Port(unit=target, port=i, lanes=lanes), depth=depth)

    links = [link("fork", "o0", "split", "i"), link("fork", "o1", "held", "i"), link("split", "o0", "decode", "i")]
    links += [link("split", "o1", "wh", "i"), link("split", "o2", "reg", "i")]
    links += [link(name, "o", "decode", f"{name}_i", TWO, 4 * W) for name in ("wh", "reg")]
    accelerator = Accelerator(
        units=units, links=links,
        inputs={"image": Port(unit="fork", port="i", lanes=ONE), "weights": Port(unit="held", port="w_i", lanes=held.w_lanes)},
        outputs={"boxes": Port(unit="decode", port="o", lanes=records), "sums": Port(unit="held", port="o", lanes=lanes_of(held.o))},
        controls={"least": ("decode", "least")},
    )  # fmt: skip
    beats = {"image": H * W * 7, "weights": held.folds * 7, "boxes": 4, "sums": held.folds * H * W}
    return AxiAccelerator(accelerator, beats, data_bits=32, burst=8, outstanding=3), held


def sums(x: Array, weights: Array) -> Array:
    """The convolution of a frame (H, W, 7), output channel groups first."""
    y = x.reshape(H * W, 7) @ weights.T + np.array(BIAS)
    ordered: Array = y.reshape(H * W, OUTPUTS // PE, PE).transpose(1, 0, 2).reshape(1, -1, PE)
    return ordered


@pytest.mark.rtl
def test_threshold_and_weights_from_memory(tmp_path: Path) -> None:
    dut, held = build()
    rng = np.random.default_rng(4)
    x = rng.integers(-128, 128, (3, H, W, 7))
    weights = rng.integers(-7, 8, (2, OUTPUTS, 7))
    mask, bits = (1 << held.w_lanes.bits) - 1, held.w_lanes.bits
    payloads = [[sum((v & mask) << n * bits for n, v in enumerate(beat)) for beat in held.encode(w.tolist())] for w in weights]
    least, base = dut.addresses["least"], dut.addresses["weights"]
    places = (0xFD0, 0x2A000)  # the first region crosses a page

    def take(k: int, threshold: int, which: int) -> list[Step]:
        maps = np.split(x[k : k + 1], np.cumsum(PARTS)[:-1], axis=3)
        boxes = decode(threshold).golden(*maps)[0][0]
        results = {"boxes": boxes, "sums": sums(x[k], weights[which])}
        return [("receive", n, packet(v, dut.lanes[n])) for n, v in results.items()]

    send: list[Step] = [("send", packet(frame, dut.lanes["image"])) for frame in x]
    steps: list[Step] = [("load", "weights", at, dut.readers["weights"].image(beats)) for at, beats in zip(places, payloads, strict=True)]
    steps += [("read", least, LEAST), ("write", base, places[0]), ("read", base, places[0])]
    steps += [("write", base + 4, 0x1FF), ("read", base + 4, 0xFF), ("write", base + 4, 0)]
    steps += [("write", Register.CONTROL, 1), send[0], send[1], *take(0, LEAST, 0), *take(1, LEAST, 0)]
    steps += [("poll", Register.STATUS, 0), ("read", Register.READ_ERRORS, 0), ("outstanding", "weights", 2)]
    steps += [("write", least, (1 << 32) - 100), ("read", least, (1 << 32) - 100), ("write", base, places[1])]
    steps += [send[2], *take(2, -100, 1), ("poll", Register.STATUS, 0), ("write", least, 90), ("fault", "weights", 0x50000)]
    steps += [("load", "weights", 0x50000, bytes(4) + dut.readers["weights"].image(payloads[0])[4:]), ("write", base, 0x50000), send[2]]
    steps += [take(2, 90, 0)[0], ("poll", Register.READ_ERRORS, 1)]
    scenarios = [Scenario(name=f"stalls_{s}", steps=steps, stalls=s) for s in (False, True)]
    run_scenarios(dut, scenarios, tmp_path / "bench")
