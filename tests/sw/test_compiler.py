"""Compile as a whole: deterministic, skipped when nothing changed, and never leaves a half-written folder."""
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sw.compiler
from sw.compiler import compile, load_design
from sw.errors import CompileError
from sw.testing import nano_network


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.fixture
def compiled(tmp_path: Path) -> Path:
    compile(nano_network(tmp_path / "nano.onnx"), tmp_path / "compiled")
    return tmp_path


def test_the_same_model_gives_the_same_verilog(compiled: Path) -> None:
    first = contents(compiled / "compiled")
    assert set(first) == {"accelerator.v", "accelerator_sim.v", "design.json", "folding.json", "memory.bin", "model.onnx"}
    compile(compiled / "nano.onnx", compiled / "again")
    assert contents(compiled / "again") == first


def test_nothing_is_done_twice(compiled: Path) -> None:
    said: list[str] = []
    compile(compiled / "nano.onnx", compiled / "compiled", step=said.append)
    assert said == ["up to date"]


def test_the_record_has_what_later_steps_need(compiled: Path) -> None:
    design = load_design(compiled / "compiled")
    assert design["input"]["shape"] == [16, 16, 3] and design["input"]["lanes"] == 3
    assert [o["tensor"] for o in design["outputs"]] == ["head"]
    assert design["multiplications"] == sum(n["multiplications"] for n in design["nodes"]) > 0
    assert design["interval_cycles"] >= max(n["cycles"] for n in design["nodes"])
    assert all(n["cycles"] == n["planned_cycles"] for n in design["nodes"])
    assert set(design["area"]) == {"lut", "ff", "dsp", "bram36"} and design["area"]["lut"] > 0
    by_family = design["area_by_family"]
    assert by_family["xcup"] == design["area"] and by_family["ecp5"]["lut"] > by_family["xcup"]["lut"]
    assert "probe_valid" not in (compiled / "compiled" / "accelerator.v").read_text()


def test_the_folding_that_was_written_can_be_pinned(compiled: Path) -> None:
    again = compile(compiled / "nano.onnx", compiled / "again", folding=compiled / "compiled" / "folding.json")
    assert again["nodes"] == load_design(compiled / "compiled")["nodes"]


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_a_truncated_model_leaves_the_earlier_design_whole(compiled: Path, share: float) -> None:
    before = contents(compiled / "compiled")
    raw = (compiled / "nano.onnx").read_bytes()
    (compiled / "nano.onnx").write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(CompileError, match=r"nano\.onnx"):
        compile(compiled / "nano.onnx", compiled / "compiled")
    assert contents(compiled / "compiled") == before


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=["full disk", "ctrl-c"])
def test_a_full_disk_or_ctrl_c_leaves_the_earlier_design_whole(
    compiled: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    before = contents(compiled / "compiled")
    whole = Path.write_text

    def failing(self: Path, text: str, *args: Any, **kwargs: Any) -> int:
        if self.name == "folding.json":
            raise failure
        return whole(self, text, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", failing)
    with pytest.raises(type(failure)):
        compile(compiled / "nano.onnx", compiled / "compiled", target_cycles=4000)
    monkeypatch.undo()
    assert contents(compiled / "compiled") == before
    assert [p.name for p in compiled.iterdir() if p.name.startswith(".")] == []


def test_a_design_of_another_model_replaces_the_folder(compiled: Path) -> None:
    before = load_design(compiled / "compiled")
    compile(nano_network(compiled / "other.onnx", seed=2), compiled / "compiled")
    assert load_design(compiled / "compiled")["model_sha256"] != before["model_sha256"]


def warploom(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sw.cli", *map(str, arguments)]
    root = Path(sw.compiler.__file__).parents[1]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(root)})


def test_the_command_line_prints_one_json_document(compiled: Path) -> None:
    done = warploom("compile", compiled / "nano.onnx", "--run", compiled / "run", "--json", cwd=compiled)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert isinstance(record["nodes"], list) and record["nodes"][0]["name"]
    assert "writing Verilog" in done.stderr


def test_errors_are_one_clear_line_and_a_status(compiled: Path) -> None:
    for arguments, message in (
        (("compile", "absent.onnx"), "absent.onnx: cannot be read"),
        (("compile", compiled / "nano.onnx", "--cycles", "3"), "no folding takes at most 3 cycles"),
        (("evaluate", "--run", "nowhere"), "holds no trained run"),
        (("simulate", "--run", "nowhere"), "holds no compiled design"),
        (("report", "--run", "nowhere"), "nothing was compiled yet"),
        (("train", "--data", "nowhere"), "nowhere"),
        (("data", "letters"), "the only embedded set is 'digits'"),
    ):
        done = warploom(*arguments, cwd=compiled)
        assert done.returncode == 1, (arguments, done.stderr)
        assert message in " ".join(done.stderr.split()) and "Traceback" not in done.stderr, done.stderr
        assert done.stdout == ""


def test_ctrl_c_on_the_command_line_says_how_to_go_on(compiled: Path) -> None:
    before = contents(compiled / "compiled")
    root = Path(sw.compiler.__file__).parents[1]
    command = [sys.executable, "-m", "sw.cli", "compile", str(compiled / "nano.onnx"), "--run", str(compiled), "--cycles", "5000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(root)}) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "building units" in line:
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(30) == 130 and "interrupted" in rest and "Traceback" not in rest
    assert contents(compiled / "compiled") == before


def test_help_of_every_verb(tmp_path: Path) -> None:
    for verb in ("data", "models", "train", "quantize", "evaluate", "compile", "simulate", "verify", "detect", "report", "demo"):
        done = warploom(verb, "--help", cwd=tmp_path)
        assert done.returncode == 0 and "--json" in done.stdout, verb
