"""``warploom zoo`` lists and shows every system."""
import json

import pytest
from typer.testing import CliRunner

from models.zoo import NAMES, system
from models.zoo.bench import bench
from sw.cli import app


def test_list_is_one_json_document() -> None:
    done = CliRunner().invoke(app, ["zoo", "list", "--json"])
    assert done.exit_code == 0
    assert [r["name"] for r in json.loads(done.stdout)] == list(NAMES)


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
