"""C++ beside Python: compiled, loaded, done without."""
from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest

from sw import native


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WARPLOOM_CACHE", str(tmp_path / "cache"))
    yield
    native.load.cache_clear()


def source(folder: Path, text: str) -> Path:
    path = folder / "code.cpp"
    path.write_text(text)
    return path


def test_code_is_compiled_once(tmp_path: Path) -> None:
    path = source(tmp_path, 'extern "C" long twice(long x) { return 2 * x; }')
    code = native.load(path)
    assert code is not None
    code.twice.restype, code.twice.argtypes = ctypes.c_long, [ctypes.c_long]
    assert code.twice(-21) == -42
    assert native.load(path) is code
    assert len(list((tmp_path / "cache").glob("*/code.so"))) == 1


def test_what_does_not_compile_is_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert native.load(source(tmp_path, "int broken(")) is None
    assert "code.cpp does not compile" in caplog.text


@pytest.mark.parametrize(("name", "value"), [("WARPLOOM_NATIVE", "0"), ("CXX", "/no/such/compiler")])
def test_without_a_compiler_there_is_none(name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert native.load(source(tmp_path, "int fine;")) is None
