"""One arrow: what DESIGN calls layers is proved, and the doors are where they are said to be."""

import ast
import json
import shutil
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


def assigned(text):
    """`state.x` where an attribute of something called `state` is assigned."""
    for node in ast.walk(ast.parse(text)):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign) else ():
            for each in target.elts if isinstance(target, ast.Tuple) else [target]:
                if isinstance(each, ast.Attribute):
                    of = each.value
                    if getattr(of, "id", getattr(of, "attr", "")).lstrip("_") == "state":
                        yield f"state.{each.attr}"


def test_what_is_known_of_a_batch_is_assigned_in_its_own_room_only():
    assert list(assigned("def f(batch):\n    n, batch.state.over = 1, True\n    self._state.awaited += 1\n")) == [
        "state.over",
        "state.awaited",
    ]
    rooms = [path for path in SOURCES if "client" in path.parts and path.parent.name != "state"]
    assert rooms
    assert {str(path): found for path in rooms if (found := list(assigned(path.read_text())))} == {}


# ---------------------------------------------------------------- the rooms of the client


LATE = {  # imports of ours inside functions, and why they wait
    "decorator": "a worker imports the user's modules that use it, and needs no queue",
}


def graph(root):
    """All imports below a copy of the package: also those in functions, and those for the type checker."""
    code = "import grimp, json\n"
    code += "found = grimp.build_graph('nbqueue', cache_dir=None, exclude_type_checking_imports=False)\n"
    code += "print(json.dumps({one: sorted(found.find_modules_directly_imported_by(one)) for one in found.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def circles(imports, below):
    """Modules that import each other, directly or by others."""
    reached = {}
    for start in (name for name in imports if name.startswith(below)):
        waiting, seen = [start], set()
        while waiting:
            new = set(imports[waiting.pop()]) - seen
            seen |= new
            waiting += new
        reached[start] = seen
    return sorted(name for name, seen in reached.items() if name in seen)


def test_no_circle_is_in_the_client():
    imports = graph(ROOT)
    assert len([name for name in imports if name.startswith("nbqueue.client.")]) > 60
    assert circles(imports, "nbqueue.client") == []


def late_imports(root):
    """Imports of ours inside functions of the client, by module."""
    found = []
    for path in sorted((root / "nbqueue" / "client").rglob("*.py")):
        functions = [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        if any("nbqueue" in imported(node) for function in functions for node in ast.walk(function)):
            found.append(path.stem)
    return found


def test_no_import_of_ours_waits_for_a_call():
    assert late_imports(ROOT) == [*LATE]


PLANTED = {
    "plain": "from nbqueue.client.batch import Batch\n",
    "deferred": "def late():\n    from nbqueue.client.batch import Batch\n    return Batch\n",
    "for the type checker": "if TYPE_CHECKING:\n    from nbqueue.client.batch import Batch\n",
}


@pytest.mark.parametrize("kind", PLANTED)
def test_an_arrow_that_points_up_is_seen(tmp_path, kind):
    shutil.copytree(ROOT / "nbqueue", tmp_path / "nbqueue", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    module = tmp_path / "nbqueue" / "client" / "state" / "selection.py"
    module.write_text(module.read_text() + "\n\nfrom typing import TYPE_CHECKING\n" + PLANTED[kind])
    code = "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports_command as lint; lint()"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "nbqueue.client.state.selection -> nbqueue.client.batch" in done.stdout
    assert "nbqueue.client.state.selection" in circles(graph(tmp_path), "nbqueue.client")
    assert late_imports(tmp_path) == sorted([*LATE, *(["selection"] if kind == "deferred" else [])])


def test_a_room_says_what_it_is_and_has_at_most_ten_files():
    rooms = [path for path in (ROOT / "nbqueue" / "client").iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert sorted(room.name for room in rooms) == sorted(
        ["calls", "spool", "state", "session", "lookup", "submit", "frames", "panel"]
    )
    for room in [*rooms, ROOT / "nbqueue" / "client"]:
        assert len([path for path in room.glob("*.py") if path.name != "__init__.py"]) <= 10, room
    for room in rooms:
        said = ast.get_docstring(ast.parse((room / "__init__.py").read_text()))
        assert "mport" in said.splitlines()[-1], room
