"""What README and docs say is run, or held against the code."""

import ast
import re
import tomllib
from pathlib import Path

import nbqueue
from nbqueue import settings
from nbqueue.cli.worker import worker
from nbqueue.model import Cause, Options

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SETTINGS = (ROOT / "docs/settings.md").read_text()
PROMISES = (ROOT / "docs/promises.md").read_text()
HOW = (ROOT / "docs/how-it-works.md").read_text()


def first_column(text):
    rows = re.findall(r"^\| (`[^|]*`) \|", text, re.MULTILINE)
    return {word for row in rows for word in re.findall(r"`([^`]*)`", row)}


def count_words_at_url(url):
    if url == "missing":
        raise LookupError(url)
    return len(url.split())


def test_the_readmes_first_lines_run(session, fleet):
    fleet.start().up()
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    names = {"count_words_at_url": count_words_at_url, "urls": ["one two", "missing", "a b c"]}
    exec(code, names)
    batch = names["batch"]
    assert batch.wait(20)
    assert batch.results(errors="skip") == [2, 3]


def test_every_line_of_the_readmes_table_runs(session, fleet):
    fleet.start().up()
    fleet.start("gpu").up()

    def f(*args, **kwargs):
        return len(args) + len(kwargs)

    names = {"nbqueue": nbqueue, "f": f, "items": [1, 2], "pairs": [(1, 2), (3, 4)]}
    names["batch"] = nbqueue.map(f, [1], name="wordcount")
    rows = re.findall(r"^\| (`(?:nbqueue|batch)\.[^|]*) \|", README, re.MULTILINE)
    snippets = [snippet for row in rows for snippet in re.findall(r"`([^`]*)`", row)]
    assert len(snippets) >= 12
    for snippet in snippets:
        result = eval(snippet, names)
        if isinstance(result, nbqueue.Batch) and not snippet.startswith("batch"):
            assert all(value >= 1 for value in result.results(timeout=20)), snippet


def test_every_option_is_in_the_table_and_no_other():
    table = SETTINGS.partition("## Options of a batch")[2]
    assert first_column(table) == set(Options.__struct_fields__)


def test_every_variable_is_in_the_table_and_no_other():
    sources = [path.read_text() for path in (ROOT / "nbqueue").rglob("*.py")]
    used = {name for text in sources for name in re.findall(r"NBQUEUE_[A-Z_]*[A-Z]", text)} - {"NBQUEUE_MARK"}
    table = SETTINGS.partition("## Options of a batch")[0]
    assert {word.partition("=")[0] for word in first_column(table)} == used


def test_the_sample_file_is_one(tmp_path):
    sample = re.search(r"```toml\n(.*?)```", SETTINGS, re.DOTALL)[1]
    (tmp_path / "config.toml").write_text(sample)
    found = settings.load(environ={"NBQUEUE_HOME": str(tmp_path)})
    assert found.url == tomllib.loads(sample)["url"]


def test_causes_of_failure_are_explained():
    told = first_column(HOW)
    later = {Cause.LOST_BY_SERVER, Cause.USER, Cause.DEPENDENCY, Cause.EXPIRED}
    assert told >= {str(cause) for cause in Cause} - later


def test_the_options_of_the_worker_command_that_the_readme_names_exist():
    known = {name for option in worker.params for name in option.opts}
    assert {"--burst", "--slots", "--url", "--name", "--isolate", "--max-jobs", "--max-idle", "--patience"} <= known
    named = set(re.findall(r"nbqueue worker[^`|]*?(--[a-z-]+)", README))
    assert named <= known


def test_every_test_that_the_page_of_promises_names_exists():
    faults = PROMISES.partition("## What each fault costs")[2].partition("\n## ")[0]
    rows = [row for row in faults.splitlines() if row.startswith("| ") and not row.startswith("| fault |")]
    named = [re.search(r"`(test_\w+)` \|$", row) for row in rows]
    assert len(rows) > 10
    assert all(named), rows
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert {match[1] for match in named if match} <= defined


def test_every_place_that_the_page_of_internals_names_is_there():
    page = (ROOT / "docs/internals.md").read_text()
    named = re.findall(r"`((?:[a-z_]+/)*[a-z_]+\.(?:py|lua))(?::([\w.]+))?`", page)
    assert len(named) > 30
    for path, name in named:
        file = ROOT / "nbqueue" / path
        assert file.is_file(), path
        inside = ast.parse(file.read_text()).body if name else []
        for part in name.split(".") if name else []:
            found = [node for node in inside if part in defined(node)]
            assert found, f"{path}:{name}"
            inside = getattr(found[0], "body", [])


def defined(node):
    """The names that a statement binds."""
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return {target.id for target in targets if isinstance(target, ast.Name)}
    return {getattr(node, "name", "")}


def test_the_drawing_of_the_rooms_is_what_the_linter_proves():
    page = (ROOT / "docs/internals.md").read_text()
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    drawn = [line.strip() for line in page.partition("```\n")[2].partition("```")[0].splitlines()]
    lines = [set(re.findall(r"\w+", re.split(r"\s{3,}", line)[0])) for line in drawn]
    for contract in contracts:
        layers = [set(re.findall(r"\w+", layer)) for layer in contract["layers"] if layer != "__main__"]
        places = [next(place for place, names in enumerate(lines) if layer <= names) for layer in layers]
        assert places == sorted(places), contract["name"]


def test_what_the_documents_say_of_batches_and_jobs_they_have():
    kinds = {"batch": nbqueue.Batch, "job": nbqueue.Job}
    texts = [*ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("examples/*.py")]
    told = {found for path in texts for found in re.findall(r"\b(batch|job)\.([a-z_]\w*)", path.read_text())}
    assert len(told) > 20
    assert [f"{kind}.{name}" for kind, name in sorted(told) if not hasattr(kinds[kind], name)] == []
