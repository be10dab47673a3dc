"""Stands in for the ``yosys`` command in SymbiYosys: ``-ql LOG SCRIPT``, run by pyosys (ten times as fast as WebAssembly)."""
from __future__ import annotations

import os
import sys


def main(arguments: list[str]) -> None:
    """Run a script, its output in a log; Yosys ends the process itself if a pass fails."""
    flag, log, script = arguments
    if flag != "-ql":
        raise SystemExit(f"expected -ql LOG SCRIPT, not {arguments}")
    from pyosys import libyosys

    with open(log, "w") as sink:
        os.dup2(sink.fileno(), 1)
        libyosys.run_pass(f"script {script}", libyosys.Design())


if __name__ == "__main__":
    main(sys.argv[1:])
