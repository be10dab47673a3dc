"""C++ beside Python: one source file, compiled once for this machine, kept in the cache, loaded with ctypes. No build step, no headers."""
from __future__ import annotations

import ctypes
import logging
import os
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

from sw.cache import cached_build

logger = logging.getLogger(__name__)

#: No flag changes a result: only traps and errno, which nobody looks at, are given up.
FLAGS = (
    "-O3", "-march=native", "-std=c++17", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared", "-pthread",
)  # fmt: skip


def _machine() -> str:
    """What -march=native depends on: a cache may move to another machine."""
    try:
        return next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        return ""


@lru_cache(maxsize=8)
def load(source: Path) -> ctypes.CDLL | None:
    """The compiled code of ``source``; None where there is no compiler, it fails, or WARPLOOM_NATIVE is 0: callers then do without."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None or os.environ.get("WARPLOOM_NATIVE") == "0":
        return None

    def build(folder: Path) -> None:
        subprocess.run([compiler, *FLAGS, str(source), "-o", str(folder / "code.so")], check=True, capture_output=True, text=True)

    try:
        version = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout
        folder = cached_build(["native", source.read_bytes(), version, _machine(), *FLAGS], build)
        return ctypes.CDLL(str(folder / "code.so"))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", "") or error
        logger.warning("%s does not compile, slower Python takes its place: %s", source.name, str(reason)[:400])
        return None
