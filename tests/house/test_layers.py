"""One arrow: what DESIGN calls layers is proved, and the doors are where they are said to be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "nbqueue").rglob("*.py"))
DOORS = {
    "redis": lambda path: "store" in path.parts,
    "pickle": lambda path: path.name == "wire.py",
    "cloudpickle": lambda path: path.name == "wire.py",
}
NEVER_AT_MODULE_LEVEL = {"pandas", "ipywidgets", "IPython", "numpy", "rich"}


def test_imports_point_down():
    code = "import sys; from importlinter.cli import lint_imports_command as lint; sys.exit(lint())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def imported(node):
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        return {(node.module or "").partition(".")[0]}
    return set()


@pytest.mark.parametrize("door", DOORS)
def test_a_library_has_one_door(door):
    users = [path for path in SOURCES if any(door in imported(node) for node in ast.walk(ast.parse(path.read_text())))]
    assert users
    assert all(DOORS[door](path) for path in users)


def test_only_the_stable_forks():
    def forks(path):
        nodes = ast.walk(ast.parse(path.read_text()))
        return any(isinstance(node, ast.Attribute) and node.attr in {"fork", "forkpty"} for node in nodes)

    assert [path.name for path in SOURCES if forks(path)] == ["stable.py"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_libraries_are_imported_when_used(path):
    tree = ast.parse(path.read_text())
    top = set().union(*(imported(node) for node in tree.body)) if tree.body else set()
    assert not top & NEVER_AT_MODULE_LEVEL
