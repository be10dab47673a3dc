"""``warploom zoo`` lists and shows every system."""
import json

import pytest
from typer.testing import CliRunner

from models.zoo import NAMES, system
from models.zoo.bench import bench
from sw.cli import app


@pytest.mark.parametrize("words", (["zoo", "list", "--json"], ["zoo", "--json"]))
def test_list_is_one_json_document(words: list[str]) -> None:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0
    records = json.loads(done.stdout)
    assert [r["name"] for r in records] == list(NAMES)
    assert all(r[what] for r in records for what in ("paper", "year", "kind", "variants", "checked", "lowering"))


def test_plain_zoo_lists() -> None:
    plain, listed = (CliRunner().invoke(app, words) for words in (["zoo"], ["zoo", "list"]))
    assert plain.exit_code == 0 and plain.stdout == listed.stdout
    misplaced = CliRunner().invoke(app, ["zoo", "--json", "show", NAMES[0]])
    assert misplaced.exit_code != 0


@pytest.mark.parametrize("name", NAMES)
def test_bench_times_both_ways(name: str) -> None:
    rows = bench(system(name), rounds=1)["rows"]
    assert [r["which"] for r in rows] == ["ours", "baseline"]
    assert all(r["forward"] > 0 and r["backward"] > 0 and r["macs"] > 0 for r in rows)


@pytest.mark.parametrize("name", NAMES)
def test_show_tells_sizes_or_what_is_needed(name: str) -> None:
    done = CliRunner().invoke(app, ["zoo", "show", name, "--json"])
    assert done.exit_code == 0, done.output
    for row in json.loads(done.stdout)["parameters"]:
        assert row["needs"] or row["parameters"] >= 0
