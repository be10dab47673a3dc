"""A cache of builds, addressed by the hash of everything that went into them."""
from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

#: Folder of the checkout; the cache lies in ``build/cache`` below it unless WARPLOOM_CACHE names another folder.
ROOT = Path(__file__).resolve().parent.parent


def cache_folder() -> Path:
    """Where builds are kept."""
    return Path(os.environ.get("WARPLOOM_CACHE") or ROOT / "build" / "cache")


def digest(parts: Sequence[str | bytes]) -> str:
    """Hash of a sequence of texts; where one ends and the next begins matters."""
    state = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        state.update(len(raw).to_bytes(8, "little"))
        state.update(raw)
    return state.hexdigest()[:32]


def cached(key_parts: Sequence[str | bytes]) -> Path | None:
    """The folder of a key, if it has been built."""
    target = cache_folder() / digest(key_parts)
    return target if target.is_dir() else None


def cached_build(key_parts: Sequence[str | bytes], build: Callable[[Path], None]) -> Path:
    """The folder that ``build(folder)`` fills, built at most once per key.

    ``build`` gets an empty temporary folder, which is renamed into place when it returns; if it raises, nothing stays.
    So a folder in the cache is always complete. Processes that want the same key wait for the first (a lock file each).
    """
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / digest(key_parts)
    with open(target.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            work = Path(tempfile.mkdtemp(prefix=target.name + ".", suffix=".tmp", dir=cache))
            try:
                build(work)
                work.chmod(0o755)
                work.rename(target)
            except BaseException:
                shutil.rmtree(work, ignore_errors=True)
                raise
    return target
