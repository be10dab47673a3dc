"""Units are written once: by content, the same whatever is written beside them; a second compile redoes what changed."""
from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from hw.lib.fifo import Fifo
from hw.lib.fork import Fork
from hw.params import Lanes
from hw.units.base import Unit
from hw.verilog import SELF, convert, convert_each
from sw.cache import cached
from sw.compiler import compile, load_built
from sw.modules import key_of, modules_of
from sw.synth import measure
from sw.synth.network import parts
from sw.testing import nano_network

BYTE = Lanes(lanes=1, bits=8, signed=False)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARPLOOM_CACHE", str(tmp_path / "cache"))


def texts(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in folder.glob("*.v")}


def reweighted(model: Path, out: Path, layer: str) -> Path:
    """The model with the weights of one layer mirrored: as many bits, the same ends."""
    loaded = onnx.load(model)
    for constant in loaded.graph.initializer:
        if constant.name == f"{layer}.weight":
            values = numpy_helper.to_array(constant)
            assert (values != values[..., ::-1]).any()
            constant.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values[..., ::-1]), constant.name))
    out.write_bytes(loaded.SerializeToString())
    return out


def anew(said: list[str]) -> tuple[int, int]:
    found = [re.match(r"(\d+) of (\d+) modules written anew", text) for text in said]
    (match,) = [m for m in found if m]
    return int(match[1]), int(match[2])


@pytest.mark.parametrize("device", [None, "xczu3eg"])
def test_a_second_compile_writes_only_the_unit_whose_weights_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str | None
) -> None:
    options: dict[str, Any] = {"device": device, "target_cycles": 2000, "axi": True}
    first: list[str] = []
    again: list[str] = []
    second: list[str] = []
    model = nano_network(tmp_path / "first.onnx")
    compile(model, tmp_path / "first", step=first.append, **options)
    written, kinds = anew(first)
    assert written == kinds > 30
    compile(model, tmp_path / "again", step=again.append, **options)
    assert anew(again) == (0, kinds) and texts(tmp_path / "again") == texts(tmp_path / "first")
    other = reweighted(model, tmp_path / "other.onnx", "dw")
    compile(other, tmp_path / "second", step=second.append, **options)
    assert anew(second) == (2, kinds)  # the unit, with and without models of multipliers
    changed = texts(tmp_path / "second")
    assert changed["accelerator.v"] != texts(tmp_path / "first")["accelerator.v"]
    monkeypatch.setenv("WARPLOOM_CACHE", str(tmp_path / "another cache"))
    scratch: list[str] = []
    compile(other, tmp_path / "scratch", step=scratch.append, **options)
    assert anew(scratch) == (kinds, kinds) and texts(tmp_path / "scratch") == changed
    assert set(changed) == {"accelerator.v", "accelerator_sim.v", "accelerator_axi.v"}


def test_what_is_measured_is_what_the_accelerator_is_made_of(tmp_path: Path) -> None:
    """accelerator.v holds every part's module as synthesis gets it, multipliers instantiated; only the simulation has models."""
    compile(nano_network(tmp_path / "m.onnx"), tmp_path / "c", device="xczu3eg", target_cycles=2000)
    design, plain = load_built(tmp_path / "c"), (tmp_path / "c" / "accelerator.v").read_text()
    found = modules_of({p.name: p.unit for p in parts(design, "xcup")}, primitives=True)
    assert found.written == 0
    for part in parts(design, "xcup"):
        module = found.of[part.name]
        assert module.named(module.name) in plain
        assert measure.readable(module.named(measure.TOP)) == measure.verilog_of(part.unit)
    assert plain.count("DSP48E2") > 3 and "DSP48E2" not in (tmp_path / "c" / "accelerator_sim.v").read_text()


def test_a_text_does_not_depend_on_what_is_written_beside_it() -> None:
    made = [Fifo(BYTE, 9), Fork(BYTE, 3), Fifo(BYTE, 2)]
    together, apart = convert_each(made), [convert_each([unit])[0] for unit in made]
    assert together == apart and convert_each(list(reversed(made))) == apart[::-1] and convert_each([]) == []
    for text, unit in zip(apart, made, strict=True):
        assert text.split() == re.sub(r"\A/\*.*?\*/", "", convert(unit, SELF)).split()


def test_parts_with_equal_text_share_a_module_and_names_tell_the_others_apart() -> None:
    found = modules_of({"a": Fifo(BYTE, 9), "b": Fifo(lanes=BYTE, depth=9), "c": Fifo(BYTE, 10), "d": Fork(BYTE, 2)})
    names = {name: module.name for name, module in found.of.items()}
    assert names["a"] == names["b"] != names["c"] and names["d"].startswith("fork_") and names["a"].startswith("fifo_")
    assert found.of["a"].ports == {"clk", "rst", "i__valid", "i__ready", "i__payload", "o__valid", "o__ready", "o__payload"}


def test_a_key_holds_every_parameter() -> None:
    keys = {key_of(unit, primitives) for unit in (Fifo(BYTE, 9), Fifo(BYTE, 10), Fork(BYTE, 9)) for primitives in (False, True)}
    assert len(keys) == 6 and all(cached([key]) is None for key in keys)

    class Odd(Unit):
        def __init__(self, weights: Any) -> None:
            super().__init__({})

    with pytest.raises(TypeError, match="numbers, texts, sequences or dataclasses, not ndarray"):
        key_of(Odd(np.zeros(3)), False)
