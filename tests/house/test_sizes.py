"""Files of at most 600 lines, functions of at most 50: beyond that a file has more than one reason.

A file of the package under 40 lines is a part of another one, unless there is a reason against that.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for folder in ("nbqueue", "tests", "examples") for path in (ROOT / folder).rglob("*.py"))
MOST_LINES, MOST_IN_FUNCTION, FEW_LINES = 600, 50, 40
SMALL = {
    "__main__.py": "Python runs it",
    "cli/demo_function.py": "the jobs of the demo import it by name, and nothing of ours with it",
    "client/calls/sources.py": "the only place that asks for the lines of a notebook's cells",
    "client/lookup/job_meta.py": "four rooms read and write these bytes",
    "worker/strays.py": "whose a left process is, apart from how it is ended",
    "worker/surroundings.py": "worker and stable both apply it, and the stable has imported nothing else by then",
    "worker/timer.py": "limits within a process; those of other processes are in limits.py",
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sizes(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MOST_LINES
    long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno >= MOST_IN_FUNCTION
    }
    assert not long


def test_a_small_file_has_a_reason():
    package = ROOT / "nbqueue"
    files = {str(path.relative_to(package)): path for path in package.rglob("*.py") if path.name != "__init__.py"}
    assert {name for name, path in files.items() if len(path.read_text().splitlines()) < FEW_LINES} == set(SMALL)


def test_the_rule_sees_files():
    assert len(FILES) > 30
