"""One page with every figure of a run, each with the command that gives it: Markdown, HTML and JSON."""
from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sw.errors import WarploomError
from sw.files import whole_file
from sw.targets import DEVICES

STEPS = ("train", "quantize", "simulate", "verify", "detect")
BACKENDS = ("torch-float", "torch-quantized", "golden", "rtl")


@dataclass(frozen=True, kw_only=True)
class Section:
    """A table of the page: rows of text under a header, or pictures."""

    title: str
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    text: str = ""
    pictures: tuple[str, ...] = ()


def collect(run: Path) -> dict[str, Any]:
    """All records that the steps have left in the run folder; WarploomError if there is no compiled design."""
    record: dict[str, Any] = {"run": str(run)}
    names = {step: f"{step}.json" for step in STEPS} | {f"evaluate-{b}": f"evaluate-{b}.json" for b in BACKENDS}
    names |= {f"synth-{d}": f"synth-{d}.json" for d in DEVICES} | {"config": "config.json"}
    for key, name in names.items():
        if (run / name).is_file():
            record[key] = _read(run / name)
    if not (run / "compiled" / "design.json").is_file():
        raise WarploomError(f"{run}: nothing was compiled yet; run `warploom compile --run {run}` first")
    record["design"] = _read(run / "compiled" / "design.json")
    record["model_bytes"] = (run / "compiled" / "model.onnx").stat().st_size
    return record


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise WarploomError(f"{path}: broken ({error}); run its step again") from None


def summarize(record: dict[str, Any]) -> dict[str, Any]:
    """The figures of issue and page in one flat record."""
    design, simulated, verified = record["design"], record.get("simulate", {}), record.get("verify", {})
    interval = simulated.get("interval_cycles") or design["interval_cycles"]
    summary = {
        "ap50": {b: record[f"evaluate-{b}"]["ap50"] for b in BACKENDS if f"evaluate-{b}" in record},
        "ap50_11": {b: record[f"evaluate-{b}"].get("ap50_11") for b in BACKENDS if f"evaluate-{b}" in record},
        "ap50_images": {b: record[f"evaluate-{b}"]["images"] for b in BACKENDS if f"evaluate-{b}" in record},
        "weight_bytes": design["weight_bytes"],
        "file_bytes": record["model_bytes"],
        "multiplications": design["multiplications"],
        "multipliers": design["multipliers"],
        "interval_cycles": interval,
        "latency_cycles": simulated.get("latency_cycles"),
        "multipliers_used": design["multiplications"] / (design["multipliers"] * interval),
        "mismatches": verified.get("mismatches"),
        "images_verified": verified.get("images"),
        "tensors_compared": verified.get("tensors_compared"),
        "tensors_removed": verified.get("tensors_removed"),
        "values_compared": verified.get("values_compared"),
        "first_mismatch": verified.get("first_mismatch"),
        "area_estimate": design["area_by_family"],
    }
    both = summary["ap50"]
    if "torch-float" in both and "torch-quantized" in both:
        summary["quantization_loss"] = both["torch-float"] - both["torch-quantized"]
    return summary


def write_report(run: Path) -> dict[str, Any]:
    """Write report.md, report.html and report.json in ``run`` and return the record."""
    record = collect(run)
    record["summary"] = summarize(record)
    sections = build(record, run)
    for name, text in (("report.md", markdown(sections)), ("report.html", page(sections)), ("report.json", json.dumps(record, indent=1))):
        with whole_file(run / name) as path:
            path.write_text(text)
    return record


def build(record: dict[str, Any], run: Path) -> list[Section]:
    """The page's sections."""
    return [
        Section(title=f"Warploom: {run.name}", text=_opening(record)),
        _accuracy(record, run),
        _figures(record, run),
        _area(record, run),
        *_choices(record, run),
        *(_synthesis(record, device, run) for device in DEVICES if f"synth-{device}" in record),
        _verification(record, run),
        _offsets(record),
        _nodes(record),
        _pictures(record, run),
    ]


def _opening(record: dict[str, Any]) -> str:
    s = record["summary"]
    image = "x".join(map(str, record["design"]["input"]["shape"]))
    found = "not verified yet" if s["mismatches"] is None else f"{s['mismatches']} mismatches in {s['values_compared']:,} values compared"
    return (
        f"Input {image}, {s['multiplications']:,} multiplications a frame, one frame every {s['interval_cycles']:,.0f} cycles; {found}."
        f"{_output(record['design'])}"
    )  # fmt: skip


def _output(design: dict[str, Any]) -> str:
    """What leaves the accelerator."""
    boxes = design.get("boxes")
    if not boxes:
        return f" Maps leave the accelerator: {', '.join(o['tensor'] for o in design['outputs'])}."
    return f" The {boxes['top_k']} best boxes with a score of at least {boxes['threshold']} leave it (a register changes that)."


def _accuracy(record: dict[str, Any], run: Path) -> Section:
    rows = []
    for backend in BACKENDS:
        found = record.get(f"evaluate-{backend}")
        if found:
            kinds = [found.get(kind) for kind in ("ap50", "ap50_nms", "ap50_11")]
            figures = (*("" if ap is None else f"{ap:.4f}" for ap in kinds), str(found["images"]), found["split"])
            rows.append((backend, *figures, f"warploom evaluate --run {run} --backend {backend}"))
    header = ("backend", "AP50 (area, no NMS)", "AP50 (area, with NMS)", "AP50 (11 points)", "images", "split", "command")
    return Section(title="Accuracy", header=header, rows=tuple(rows), text="IoU at least 0.5, single pass, difficult objects ignored.")


def _figures(record: dict[str, Any], run: Path) -> Section:
    s, compiled, simulated = record["summary"], f"warploom compile --run {run}", f"warploom simulate --run {run}"
    rows = [
        ("weights and biases", f"{s['weight_bytes']:,} bytes", compiled),
        ("QONNX file", f"{s['file_bytes']:,} bytes", f"warploom quantize --run {run}"),
        ("multiplications a frame", f"{s['multiplications']:,}", compiled),
        ("multipliers", f"{s['multipliers']:,}", compiled),
        ("initiation interval", f"{s['interval_cycles']:,.0f} cycles", simulated),
        ("latency of the first frame", f"{s['latency_cycles'] or 0:,} cycles", simulated),
        ("use of the multipliers", f"{100 * s['multipliers_used']:.1f} %", simulated),
    ]
    for device in DEVICES.values():
        rate = device.clock_hz / s["interval_cycles"]
        rows.append((f"frames a second at {device.clock_hz / 1e6:.0f} MHz ({device.name})", f"{rate:,.0f}", f"{simulated} ({device.note})"))
    return Section(title="Size and speed", header=("figure", "value", "command"), rows=tuple(rows))


def _area(record: dict[str, Any], run: Path) -> Section:
    rows = []
    for device in DEVICES.values():
        area = record["summary"]["area_estimate"][device.family]
        for key, have in (("lut", device.luts), ("ff", device.flip_flops), ("dsp", device.multipliers), ("bram36", device.bram36)):
            rows.append((device.name, key, f"{area[key]:,.0f}", f"{have:,.0f}", f"{100 * area[key] / have:.0f} %"))
    text = (
        "Estimate from sizes alone (sw/estimate), not synthesis, in LUTs and multipliers of each device's family; "
        f"printed by `warploom compile --run {run} --json`."
    )
    return Section(title="Area estimate", header=("device", "resource", "estimate", "device has", "share"), rows=tuple(rows), text=text)


def _choices(record: dict[str, Any], run: Path) -> list[Section]:
    """What the compiler chose and saved: passes, what limits, the shared engine, every bit of memory."""
    design, found = record["design"], []
    rows = [(p["name"], *(f"{a:,} → {b:,}" for a, b in (p["nodes"], p["multiplications"], p["values"]))) for p in design["passes"]["done"]]
    proved = design["passes"]["proved_on"]
    shown = f"Golden's outputs compared before and after each on {proved} random images."
    text = shown if proved else "Proved by `warploom compile --prove 2`."
    found.append(Section(title="Passes", header=("pass", "nodes", "multiplications", "values of all tensors"), rows=tuple(rows), text=text))
    engine = design.get("engine")
    limit = f"Limit: {design['choice']['limit']}. " if "choice" in design else ""
    if engine:
        limit += (
            f"Shared engine of {engine['pe']} × {engine['simd']} products a cycle for {len(engine['places'])} layers: "
            f"{engine['cycles']:,} cycles and {engine['words_a_frame'] * engine['data_bits'] // 8:,} bytes of weights read a frame. "
        )
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in design["memory"]:
        groups.setdefault((row["kind"], row["holds"], row["place"]), []).append(row)
    lines = []
    for key, part in sorted(groups.items()):
        lines.append((*key, str(len(part)), *(f"{sum(r[n] for r in part):,g}" for n in ("bits", "lut", "bram36"))))
    header = ("part", "holds", "place", "number", "bits", "LUT", "BRAM36")
    text = f"{limit}Each memory by itself: `warploom compile --run {run} --json`, key `memory`. Estimates of LUTs and blocks."
    return [*found, Section(title="Memory", header=header, rows=tuple(lines), text=text)]


def _synthesis(record: dict[str, Any], device: str, run: Path) -> Section:
    """What ``warploom synth`` measured, and how far the estimates are off."""
    found = record[f"synth-{device}"]
    rows = []
    for row in [*found.get("kinds", []), {"kind": "all", **found["total"]}]:
        cells = []
        for name in ("lut", "ff", "dsp", "bram36"):
            error = row["error"][name]
            cells.append(f"{row['measured'][name]:,.10g}" + ("" if error is None else f" ({100 * error:+.0f} %)"))
        rows.append((row["kind"], str(row["parts"]), *cells))
    clock = f" {found['mhz']:.1f} MHz after place and route by nextpnr; bitstream by ecppack." if "mhz" in found else ""
    stale = "" if found["key"] == record["design"]["key"] else " Of an earlier design: run it again."
    text = f"Yosys' area and the error of the estimate; `warploom synth --run {run} --device {device}`.{clock}{stale}"
    return Section(title=f"Synthesis for {device}", header=("part", "number", "LUT", "FF", "DSP", "BRAM36"), rows=tuple(rows), text=text)


def _verification(record: dict[str, Any], run: Path) -> Section:
    verified = record.get("verify")
    if not verified:
        return Section(title="Verification", text=f"Not run: `warploom verify --run {run}`.")
    rows = [("trained weights", *_counts(verified))]
    if verified.get("exercise"):
        rows.append(("weights made to reach every offset", *_counts(verified["exercise"])))
    first = verified["first_mismatch"]
    text = f"`warploom verify --run {run}`. First mismatch: {json.dumps(first) if first else 'none'}."
    return Section(title="Verification", header=("weights", "images", "tensors", "removed", "mismatches"), rows=tuple(rows), text=text)


def _counts(part: dict[str, Any]) -> tuple[str, ...]:
    wrong = sum(r["mismatches"] for r in part["tensors"])
    return str(part["images"]), str(part["tensors_compared"]), str(part["tensors_removed"]), str(wrong)


def _offsets(record: dict[str, Any]) -> Section:
    rows = []
    verified = record.get("verify") or {}
    for part, what in ((verified, "trained"), (verified.get("exercise") or {}, "made")):
        for layer, found in part.get("offsets", {}).items():
            counts = " ".join(f"{h['code']}:{h['count']}" for h in found["histogram"])
            rows.append((what, layer, str(found["distinct"]), "yes" if found["proves"] else "no", counts))
    header = ("weights", "layer", "distinct", "both ends", "code:count (code = (s - 1)·steps a pixel)")
    return Section(title="Offsets seen by the deformable layers", header=header, rows=tuple(rows))


def _nodes(record: dict[str, Any]) -> Section:
    rows = []
    for n in record["design"]["nodes"]:
        counts = (f"{n['cycles']:,}", f"{n['multiplications']:,}", str(n["multipliers"]))
        rows.append((n["name"], n["op"], n["output"], f"{n['lanes_in']} → {n['lanes_out']}", *counts))
    header = ("unit", "operator", "output", "lanes", "cycles a frame", "multiplications", "multipliers")
    return Section(title="Units", header=header, rows=tuple(rows))


def _pictures(record: dict[str, Any], run: Path) -> Section:
    found = record.get("detect", {}).get("pictures", [])
    how = "Boxes from the Verilog" if record["design"].get("boxes") else "Boxes decoded from the Verilog's own head maps"
    text = f"{how} (left) and ground truth (right): `warploom detect --run {run}`."
    return Section(title="Detections", text=text, pictures=tuple(f"detect/{Path(p['picture']).name}" for p in found))


def markdown(sections: list[Section]) -> str:
    """The page as Markdown."""
    lines = []
    for k, s in enumerate(sections):
        lines += [f"{'#' if k == 0 else '##'} {s.title}", "", *([s.text, ""] if s.text else [])]
        if s.rows:
            lines += ["| " + " | ".join(s.header) + " |", "|" + " --- |" * len(s.header)]
            lines += ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in s.rows]
            lines.append("")
        lines += [f"![]({p})\n" for p in s.pictures]
    return "\n".join(lines) + "\n"


def _inline(text: str) -> str:
    """Text as HTML, with Markdown's `code`."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text))


STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#1d2430}
h1{font-size:1.6em}h2{font-size:1.15em;margin-top:2em;border-bottom:1px solid #d5dae2}
table{border-collapse:collapse;width:100%;font-size:13px}
th,td{text-align:left;padding:3px 10px 3px 0;border-bottom:1px solid #eceff3;vertical-align:top}th{color:#5a6577;font-weight:600}
img{max-width:520px;margin:6px;border:1px solid #d5dae2}code{background:#f2f4f7;padding:1px 4px}"""


def page(sections: list[Section]) -> str:
    """The page as HTML; the pictures lie beside it."""
    parts = []
    for k, s in enumerate(sections):
        parts.append(f"<h{min(k + 1, 2)}>{html.escape(s.title)}</h{min(k + 1, 2)}>")
        if s.text:
            parts.append(f"<p>{_inline(s.text)}</p>")
        if s.rows:
            head = "".join(f"<th>{html.escape(c)}</th>" for c in s.header)
            body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in s.rows)
            parts.append(f"<table><tr>{head}</tr>{body}</table>")
        parts += [f'<img src="{html.escape(p)}" alt="{html.escape(p)}">' for p in s.pictures]
    return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Warploom</title><style>{STYLE}</style>{"".join(parts)}</html>\n'
