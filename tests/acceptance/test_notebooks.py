"""The notebooks that teach: run as their readers run them, in local mode, from the first cell to the last."""

import json
import re
import time
from pathlib import Path

import nbclient
import nbformat
import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
NAMES = ("quickstart", "failures_and_retry", "parameter_study", "coming_back")


@pytest.fixture(autouse=True)
def panels(local_home, monkeypatch):
    monkeypatch.setenv("NBQUEUE_PROGRESS", "1")
    monkeypatch.setenv("MPLCONFIGDIR", str(local_home / "mpl"))


def run(name):
    """The outputs of each cell, by number, as text; the errors of cells that are meant to raise among them."""
    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    began = time.monotonic()
    nbclient.NotebookClient(book, timeout=60, kernel_name="python3").execute()
    print(f"{name}: {time.monotonic() - began:.1f} s")
    return book.cells, [json.dumps(cell.get("outputs", [])) for cell in book.cells]


def test_the_quickstart():
    _, shown = run("quickstart")
    assert "ZeroDivisionError" in "".join(shown)
    assert "measuring 0" in "".join(shown)


def test_failures_and_retry():
    cells, shown = run("failures_and_retry")
    whole = "".join(shown)
    assert "ValueError: no such unit: F" in whole
    assert "number, unit = line.split()" in whole  # the worker's traceback, with the notebook's own lines
    (replayed,) = [cell for cell in cells if "raises-exception" in cell.metadata.get("tags", [])]
    assert replayed.outputs[-1].ename == "ValueError"
    assert "JobTimeout" in whole


def test_a_parameter_study():
    _, shown = run("parameter_study")
    assert sum("image/png" in each for each in shown) == 2
    assert "150 of 150" in "".join(shown)


def test_coming_back_the_next_day():
    for _ in range(2):  # the second time in a new kernel, which finds all that the first has done
        _, shown = run("coming_back")
        assert "attached to survey-" in "".join(shown)


def test_nothing_of_a_machine_is_stored():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)
    for name in NAMES:
        book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
        code = [cell for cell in book.cells if cell.cell_type == "code"]
        assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
        assert set(book.metadata) == {"kernelspec", "language_info"}
        assert set(book.metadata.language_info) == {"name"}
        assert not re.search(r"/home/|/root/|/tmp/|/Users/|\\\\Users|://\d", (FOLDER / f"{name}.ipynb").read_text())
        assert (FOLDER / f"{name}.ipynb").stat().st_size < 20_000
