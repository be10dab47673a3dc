"""The build cache: builds once, keeps nothing broken, is safe with several processes."""
from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest

from sw.cache import cached_build, digest


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARPLOOM_CACHE", str(tmp_path / "cache"))


def test_builds_once_per_key(tmp_path: Path) -> None:
    built: list[Path] = []

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "result").write_text(str(len(built)))

    first = cached_build(["a", b"b"], build)
    assert cached_build(["a", b"b"], build) == first
    assert (first / "result").read_text() == "1"
    assert first.parent == tmp_path / "cache"
    other = cached_build(["a", b"c"], build)
    assert (other / "result").read_text() == "2"


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("")
        raise RuntimeError("no compiler")

    with pytest.raises(RuntimeError, match="no compiler"):
        cached_build(["x"], fail)
    assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]
    assert cached_build(["x"], lambda folder: None).is_dir()


def test_key_parts_do_not_run_together() -> None:
    assert len({digest(k) for k in (["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""])}) == 4


def slow_build(log: Path) -> None:
    """Build the one key, noting each build in ``log``."""

    def build(folder: Path) -> None:
        time.sleep(0.3)
        with open(log, "a") as out:
            out.write("built\n")
        (folder / "done").touch()

    assert (cached_build(["shared"], build) / "done").exists()


def test_processes_wait_for_each_other(tmp_path: Path) -> None:
    log = tmp_path / "log"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=slow_build, args=(log,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert log.read_text() == "built\n"
