"""Software references of published operators and systems. A new system is a module and its line here."""
from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from .base import System

#: Modules of the zoo, in the order in which they are listed. Each defines SYSTEM.
NAMES: tuple[str, ...] = (
    "lrcn",
    "lsnet",
    "hornet",
    "fdconv",
    "temporal",
    "dcls",
    "secnn",
    "sortednet",
    "tcnca",
    "tvconv",
    "hyperzzw",
    "fitv2",
    "metamixer",
    "convnext",
    "unireplknet",
    "convs5",
    "tunable",
    "attnet",
    "dsm",
    "convbn",
    "filter_db",
    "dymu",
    "overlock",
    "spark",
    "dsclora",
    "spartan",
    "poincare",
    "dimr",
    "tml",
    "fit",
    "hybrid_vad",
    "sit",
    "sgconv",
    "dcd",
    "residualvit",
    "token_routing",
)


def systems() -> dict[str, System]:
    """All systems by name; the modules are loaded here, not before."""
    return {name: importlib.import_module(f"{__name__}.{name}").SYSTEM for name in NAMES}


def system(name: str) -> System:
    """One system; ValueError for an unknown name."""
    if name not in NAMES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}, not {name!r}")
    found: System = importlib.import_module(f"{__name__}.{name}").SYSTEM
    return found


def create(variant: str, **options: Any) -> nn.Module:
    """Build any named variant of any system; ValueError for an unknown one."""
    for each in systems().values():
        if variant in each.variants:
            return each.variants[variant](**options)
    known = sorted(v for each in systems().values() for v in each.variants)
    raise ValueError(f"variant must be one of {', '.join(known)}, not {variant!r}")
