"""The examples in README.md and docs/ run."""
import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = [
    (path.name, k, code)
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for k, code in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.S))
]


@pytest.mark.parametrize(("name", "k", "code"), EXAMPLES, ids=[f"{name}-{k}" for name, k, _ in EXAMPLES])
def test_example_runs(name: str, k: int, code: str) -> None:
    exec(compile(code, f"{name} example {k}", "exec"), {})


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 4


def test_sessions_say_what_is_written() -> None:
    results = [doctest.testfile(str(path), module_relative=False) for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]]
    assert sum(r.attempted for r in results) >= 3 and not any(r.failed for r in results)


def test_links_lead_somewhere() -> None:
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_readme_names_real_verbs() -> None:
    from sw.cli import app

    verbs = {str(c.name or c.callback.__name__) for c in app.registered_commands if c.callback}
    verbs |= {g.name for g in app.registered_groups if g.name}
    used = set(re.findall(r"^    warploom (\w+)", (ROOT / "README.md").read_text(), re.M))
    assert used and used <= verbs
