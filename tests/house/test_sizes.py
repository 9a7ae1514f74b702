"""Files of at most 600 lines, functions of at most 50: beyond that a file has more than one reason."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for folder in ("nbqueue", "tests", "examples") for path in (ROOT / folder).rglob("*.py"))
MOST_LINES, MOST_IN_FUNCTION = 600, 50


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


def test_the_rule_sees_files():
    assert len(FILES) > 30
