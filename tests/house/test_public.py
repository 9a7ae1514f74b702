"""What the package shows: its public names, its README, its environment file."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import nbqueue

ROOT = Path(__file__).parents[2]
AGREED = {
    "pyproject.toml",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "environment.yml",
    "nbqueue",
    "notebooks",
    "examples",
    "tests",
    "docs",
}


def tracked():
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", nbqueue.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert getattr(nbqueue, name).__doc__


def test_all_is_sorted_and_complete():
    assert nbqueue.__all__ == sorted(set(nbqueue.__all__))
    assert set(nbqueue.__all__) == set(nbqueue._HOMES)
    tree = ast.parse((ROOT / "nbqueue/__init__.py").read_text())
    typed = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nbqueue.")
        for alias in node.names
    }
    assert typed == set(nbqueue.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        nbqueue.nothing  # noqa: B018 - looking is the test


def test_importing_is_lean():
    code = "import sys, nbqueue; print([m for m in ('redis', 'pandas', 'IPython', 'msgspec') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_top_level_is_as_agreed():
    assert {path.partition("/")[0] for path in tracked()} - AGREED <= {".ci", ".gitignore"}


def test_every_module_has_a_docstring():
    for path in (ROOT / "nbqueue").rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_every_package_is_importable():
    for path in (ROOT / "nbqueue").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if not name.endswith("__main__"):
            importlib.import_module(name)


def test_environment_yml_names_conda_packages_that_parse():
    rattler = pytest.importorskip("rattler")
    text = (ROOT / "environment.yml").read_text()
    specs = re.findall(r"^  - (?!conda-forge)(.+)$", text, re.MULTILINE)
    names = {str(rattler.MatchSpec(spec).name.normalized) for spec in specs}
    assert {"python", "redis-py", "valkey", "pandas"} <= names
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[\[<>=]", each)[0] for each in project["dependencies"]}
    assert {name.replace("redis", "redis-py") if name == "redis" else name for name in wanted} <= names


def test_ci_runs_the_readmes_test_command():
    command = (
        "python3 -m venv .venv && .venv/bin/pip install -q -e '.[dev]' -c tests/constraints.txt && .venv/bin/pytest"
    )
    assert command in (ROOT / "README.md").read_text().splitlines()
    assert command in (ROOT / ".ci/run").read_text().splitlines()


def test_links_in_the_documents_lead_somewhere():
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name} -> {target}"
