"""Rules about where things live."""
import ast
import re
from pathlib import Path

import pytest

import hw
import models
import sim
import sw
from sw.ops import OPS
from sw.steps import UPWARD

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {"hw": {"hw"}, "sw": {"sw", "hw"}, "sim": {"sim", "sw", "hw"}, "models": {"models", "sw"}}
#: Third-party packages that a part may use beside the standard library.
MAY_USE = {
    "hw": {"amaranth"},
    "sw": {"numpy", "onnx", "google", "typer", "rich", "threadpoolctl"},
    "sim": {"numpy", "cocotb", "cocotb_tools", "cocotbext", "amaranth", "pyosys"},
    "models": {"numpy", "torch", "brevitas", "onnx", "PIL", "sklearn", "pycocotools", "rich", "matplotlib", "triton", "torchvision"},
}
#: Operators that are trained, and so have a file in models/ops.
TRAINED = {"deform"}


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.append(node.module or "")
    return found


def test_packages_are_this_checkouts() -> None:
    for package in (hw, sw, sim, models):
        assert Path(str(package.__file__)).resolve().parents[1] == ROOT


@pytest.mark.parametrize("name", sorted(OPS))
def test_operator_has_its_four_files(name: str) -> None:
    for path in (f"sw/ops/{name}.py", f"hw/units/{name}.py", f"tests/ops/test_{name}.py"):
        assert (ROOT / path).is_file(), f"operator {name} lacks {path}"
    if name in TRAINED:
        assert (ROOT / f"models/ops/{name}.py").is_file()


def test_every_operator_file_is_in_the_table() -> None:
    helpers = {"__init__", "base", "windows"}
    assert {p.stem for p in (ROOT / "sw" / "ops").glob("*.py")} - helpers == set(OPS)
    assert {p.stem for p in (ROOT / "hw" / "units").glob("*.py")} - helpers == set(OPS)


@pytest.mark.parametrize("top", sorted(MAY_IMPORT))
def test_imports_point_downwards(top: str) -> None:
    standard = __import__("sys").stdlib_module_names
    for path in sorted((ROOT / top).rglob("*.py")):
        for name in imports(path):
            root = name.partition(".")[0]
            where = f"{path.relative_to(ROOT)} imports {name}"
            if root in MAY_IMPORT:
                assert root in MAY_IMPORT[top], where
            elif root not in standard and root != "__future__":
                assert root in MAY_USE[top], where


def test_nothing_imports_tests_and_only_steps_names_what_is_above() -> None:
    upward = re.compile(r"[\"'](models|sim)\.[\w.]+:\w+[\"']")
    for top in MAY_IMPORT:
        for path in sorted((ROOT / top).rglob("*.py")):
            assert not any(n.partition(".")[0] == "tests" for n in imports(path)), path
            if top in ("sw", "hw") and path != ROOT / "sw" / "steps.py":
                assert not upward.search(path.read_text()), f"{path.relative_to(ROOT)} points upward"
    assert all(target.startswith(("models.", "sim.")) for target in UPWARD.values())


def test_nothing_depends_on_the_workplace() -> None:
    """No file refers to absolute paths of a machine; tests reach ../shared only through the fixture that may skip."""
    for path in sorted([*ROOT.glob("*.*"), *(p for t in (*MAY_IMPORT, "docs") for p in (ROOT / t).rglob("*.*"))]):
        if path.suffix in {".py", ".md", ".toml"}:
            text = path.read_text()
            assert "/work/" not in text, path
