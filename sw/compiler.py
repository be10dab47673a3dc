"""``compile``: a QONNX file to Verilog, with everything that simulation, verification and reports need to know of it."""
from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

import hw
import sw
from hw.engine import EngineUnit
from hw.params import Lanes, Multiplier
from hw.units.requant import RequantUnit
from hw.verilog import assemble
from sw import axi as edges
from sw import estimate
from sw.detections import Boxes, heads, with_decoder
from sw.engine import ENGINE, EnginePlan, members
from sw.errors import CompileError
from sw.files import new_folder
from sw.folding.fit import built, fit
from sw.folding.fold import Fold, choose, cycles, read_engine, read_pins, shared_folds
from sw.folding.kept import kept, shape_of
from sw.folding.schedule import size_fifos
from sw.folding.search import Choice
from sw.frontends import qonnx
from sw.graph import Graph
from sw.lower import Design, identifier, lower
from sw.modules import modules_of
from sw.ops import Conv, Deform, Depthwise, Requant
from sw.passes import run_all
from sw.targets import Device, target_of

#: Called with the step that begins.
Step = Callable[[str], None]


def load_graph(model: Path) -> Graph:
    """The optimized integer graph of a QONNX file."""
    return run_all(qonnx.load(model))[0]


def decoded(graph: Graph, boxes: Boxes | None = None, maps: bool = False) -> tuple[Graph, Boxes | None]:
    """The graph with a decoder behind its heads, if it has one (``boxes``, ``maps``: see :func:`compile`), and what that gives."""
    if maps or (boxes is None and heads(graph) is None):
        return graph, None
    boxes = boxes or Boxes()
    return with_decoder(graph, boxes), boxes


def compile(
    model: Path,
    out: Path,
    *,
    target_cycles: int | None = None,
    folding: Path | None = None,
    device: str | None = None,
    multiplier: Multiplier | None = None,
    axi: bool = False,
    prove: int = 0,
    boxes: Boxes | None = None,
    maps: bool = False,
    step: Step = lambda _: None,
) -> dict[str, Any]:
    """Compile ``model`` into the folder ``out`` and return the design's record (``design.json``).

    ``target_cycles``: cycles a frame that no unit may exceed (None: as fast as any folding can be, or as fits ``device``);
    ``folding``: a JSON file that pins nodes; ``device``: search foldings for its resources (sw/folding/search.py);
    ``multiplier``: kind of the convolutions' multipliers (default: the device's packed ones, inferred without a device); ``axi``:
    write accelerator_axi.v and axi.json too, the accelerator behind AXI and its registers; ``prove``: random images on which golden must
    say the same before and after each pass; ``boxes``: how many boxes a frame the chip decodes, and from which score on (default: 100
    from 0.01 on where the outputs are a CenterNet detector's heads, sw/detections.py); ``maps``: leave the outputs as they are. The folder
    appears whole or not at all; if it holds the same design already nothing is done.
    Raises CompileError for anything that cannot be lowered.
    """
    key = _key(model, target_cycles, folding, device, multiplier, axi, prove, boxes, maps)
    if (out / "design.json").is_file() and (found := load_design(out)).get("key") == key:
        step("up to date")
        return found
    step("reading the model")
    graph, passes = run_all(qonnx.load(model), prove=prove)
    graph, given = decoded(graph, boxes, maps)
    step("choosing foldings")
    pins, engine = (read_pins(folding), read_engine(folding)) if folding else (None, None)
    choice = None
    if device is not None:
        design, choice = searched(graph, target_of(device), target_cycles, multiplier, pins, engine, step)
        engine = choice.engine
    else:
        step("building units")
        design = lower(graph, choose(graph, target_cycles, pins, multiplier or "inferred", engine), engine)
        step("sizing FIFOs")
        design.links = size_fifos(design)
    record = describe(design) | {"key": key, "model_sha256": hashlib.sha256(model.read_bytes()).hexdigest()}
    record["boxes"] = asdict(given) if given else None
    record["passes"] = {"proved_on": prove, "done": [asdict(p) for p in passes]}
    if choice is not None:
        record["choice"] = {"device": device, "limit": choice.limit, "shares": choice.shares, "proved_too_short": choice.too_short}
    with new_folder(out) as folder:
        (folder / "model.onnx").write_bytes(model.read_bytes())
        _write_verilog(design, folder, axi, step)
        own = {n.name: vars(design.folds[n.name]) for n in design.nodes.values()}
        (folder / "folding.json").write_text(json.dumps(own | ({"engine": engine.record()} if engine else {}), indent=1))
        (folder / "memory.bin").write_bytes(design.memory_image())
        (folder / "design.json").write_text(json.dumps(record, indent=1))
    return record


def searched(
    graph: Graph, device: Device, target: int | None, multiplier: Multiplier | None, pins: dict[str, Fold] | None,
    engine: EnginePlan | None, step: Step,
) -> tuple[Design, Choice]:  # fmt: skip
    """The design of the folds that a search finds (sw/folding/fit.py), not searched again for a network of the same shapes."""
    options = [repr(x) for x in (device, target, multiplier, sorted((pins or {}).items()), engine)]
    choice = kept([source_hash(), shape_of(graph), *options], lambda: fit(graph, device, target, multiplier, pins, engine, step))
    step("building units and sizing FIFOs")
    return built(graph, choice), choice


def _write_verilog(design: Design, folder: Path, axi: bool, step: Step) -> None:
    """accelerator.v for synthesis, with instances of the families' multipliers, accelerator_sim.v with models of them and every stream
    brought out, and with ``axi`` the first behind AXI. Units that were written before, for any design, are not written again."""
    step("writing Verilog")
    parts = design.accelerator().parts
    real, model = modules_of(parts, primitives=True), modules_of(parts)
    plain = design.accelerator(modules=real.of)
    (folder / "accelerator.v").write_text(assemble(plain, "accelerator", real.of.values(), primitives=True))
    step("writing Verilog with probes")
    watched = design.accelerator(probes=True, modules=model.of)
    (folder / "accelerator_sim.v").write_text(assemble(watched, "accelerator", model.of.values()))
    if axi:
        step("writing Verilog with AXI edges")
        wrapped = edges.wrap(design, real.of)
        (folder / "accelerator_axi.v").write_text(assemble(wrapped, "accelerator_axi", real.of.values(), primitives=True))
        (folder / "axi.json").write_text(json.dumps(edges.describe(wrapped), indent=1))
    anew, kinds = real.written + model.written, real.kinds + model.kinds
    step(f"{anew} of {kinds} modules written anew, for {len(parts)} units and queues with and without models of multipliers")


def _key(model: Path, target_cycles: int | None, folding: Path | None, *options: object) -> str:
    """Hash of all that the result depends on: the model, the options and the compiler's own code."""
    state = hashlib.sha256(source_hash().encode())
    try:
        state.update(model.read_bytes())
        state.update(repr((target_cycles, folding.read_bytes() if folding else None, options)).encode())
    except OSError as error:
        raise CompileError(f"{error.filename}: cannot be read: {error.strerror}") from None
    return state.hexdigest()


def source_hash() -> str:
    """Hash of the code of the compiler and the hardware."""
    state = hashlib.sha256()
    for package in (hw, sw):
        for path in sorted(Path(str(package.__file__)).parent.rglob("*.py")):
            state.update(path.read_bytes())
    return state.hexdigest()


def build_design(folder: Path) -> Design:
    """The units and links of a compiled design, as ``compile`` built them."""
    graph, folding = load_model(folder), folder / "folding.json"
    engine = read_engine(folding)
    design = lower(graph, read_pins(folding) | shared_folds(graph, engine), engine)
    design.links = size_fifos(design)
    return design


def load_design(folder: Path) -> dict[str, Any]:
    """The record of a compiled design; CompileError if the folder holds none."""
    try:
        record: dict[str, Any] = json.loads((folder / "design.json").read_text())
    except (OSError, ValueError) as error:
        raise CompileError(f"{folder}: holds no compiled design ({error}); run `warploom compile` first") from None
    return record


def load_built(folder: Path) -> Design:
    """The units and links of a compiled design, built again by the compiler as it is now."""
    table = json.loads((folder / "folding.json").read_text())
    folds = {name: Fold(**fold) for name, fold in table.items() if name != ENGINE}
    design = lower(load_model(folder), folds, read_engine(folder / "folding.json"))
    depths = {k["link"]: k["depth"] for k in load_design(folder)["fifos"]}
    design.links = [replace(link, depth=depths.get(link.name, 0)) for link in design.links]
    return design


def load_model(folder: Path) -> Graph:
    """The graph of a compiled design, with the decoder if it has one."""
    graph, boxes = load_graph(folder / "model.onnx"), outputs_of(folder)["boxes"]
    return with_decoder(graph, boxes) if boxes else graph


def outputs_of(folder: Path) -> dict[str, Any]:
    """The options of :func:`compile` that say what leaves a compiled design: ``boxes`` and ``maps``."""
    found = load_design(folder)["boxes"]
    return {"boxes": Boxes(**found) if found else None, "maps": not found}


def describe(design: Design) -> dict[str, Any]:
    """Everything about a design that later steps read, ready for JSON."""
    graph = design.graph
    (image,) = graph.inputs
    areas = estimate.design(design)
    by_family = {f: sum(estimate.design(design, f).values(), estimate.Area()).record() for f in get_args(estimate.Family)}
    return {
        "input": _stream("image", image, graph, design.inputs["image"].lanes),
        "outputs": [_stream(identifier(t), t, graph, design.ports[t].lanes) for t in graph.outputs],
        "probes": [_stream("", t, graph, p.lanes) | design.order(t) for t, p in design.probes.items()],
        "memories": design.memory_ports(),
        "controls": design.control_ports(),
        "nodes": [_node(design, name, areas[name]) for name in design.nodes],
        "engine": _engine(design, areas) if design.engine and design.engine.places else None,
        "fifos": [{"link": k.name, "depth": k.depth, "bits": k.depth * k.source.lanes.width} for k in design.links if k.depth],
        "multiplications": graph.multiplications(),
        "multipliers": sum(u.multipliers for u in design.units.values()),
        "lanes": sum(u.multipliers for u in design.units.values() if not isinstance(u, RequantUnit)),
        "weight_bytes": weight_bytes(graph),
        "area": by_family["xcup"],
        "area_by_family": by_family,
        "memory": estimate.memories(design),
        "interval_cycles": design.interval,
        "notes": list(graph.notes),
        "metadata": dict(graph.metadata),
    }


def _engine(design: Design, areas: Mapping[str, estimate.Area]) -> dict[str, Any]:
    """The shared engine: its plan, its cycles, what it reads."""
    assert design.engine is not None
    unit = design.units[ENGINE]
    assert isinstance(unit, EngineUnit)
    layers = members(design.graph, design.engine)
    useful = sum(conv.op.multiplications(*design.graph.types(conv.inputs)) for conv, _ in layers.values())
    return design.engine.record() | {
        "cycles": unit.frame_cycles, "multipliers": unit.multipliers, "multiplications": useful, "area": areas[ENGINE].record(),
        "words_a_frame": unit.frame_words, "region_bytes": unit.region_bytes,
    }  # fmt: skip


def _stream(port: str, tensor: str, graph: Graph, beats: Lanes) -> dict[str, Any]:
    shape = graph.tensors[tensor].type.shape
    count = shape[0] * shape[1] * beats.beats(shape[2])
    lanes = {"lanes": beats.lanes, "bits": beats.bits, "signed": beats.signed}
    return {"port": port, "tensor": tensor, "shape": shape, "beats": count} | lanes


def weight_bytes(graph: Graph) -> int:
    """Bytes of all weights (at 4 bits, or 8 where they need them), biases, multipliers and shifts."""
    bits = 0
    for node in graph.nodes:
        if isinstance(node.op, Conv | Depthwise | Deform):
            wide = 4 if np.abs(node.op.weights).max(initial=0) < 8 else 8
            bits += node.op.weights.size * wide + node.op.bias.size * 24
        elif isinstance(node.op, Requant):
            bits += node.op.shift.size * (16 + 6)
    return -(-bits // 8)


def _node(design: Design, name: str, area: estimate.Area) -> dict[str, Any]:
    node, unit = design.nodes[name], design.units[name]
    types = design.graph.types(node.inputs)
    fold: Fold = design.folds[node.name]
    return {
        "name": node.name,
        "op": node.op.name,
        "source": node.source,
        "output": str(design.graph.tensors[node.outputs[0]].type),
        "lanes_in": fold.lanes_in,
        "lanes_out": fold.lanes_out,
        "cycles": unit.frame_cycles,
        "planned_cycles": cycles(node, types, fold),
        "multipliers": unit.multipliers,
        "multiplications": node.op.multiplications(*types),
        "area": area.record(),
    }
