"""What people do in a notebook, in a real browser: the quickstart, a restart, a cell run twice, a keyboard alone."""

import re
from pathlib import Path

import nbformat
import pytest
from lab import missing, until

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(bool(missing()), reason=missing() or "-")]

QUICKSTART = Path(__file__).parents[2] / "notebooks/quickstart.ipynb"
ALONE = "import os; os.environ |= {{'NBQUEUE_HOME': {home!r}, 'NBQUEUE_SLOTS': '2', 'SLURM_JOB_ID': '1'}}"
WRITE = """def write(n):
    with (here / "diary").open("a") as diary: diary.write(f"{n}\\n")
    while n > 3 and not (here / "enough").exists(): time.sleep(0.05)
    return n * n"""
FRAME = "frame = nbqueue.attach('squares').to_frame(); print('sum', frame.result.sum())"
MIXED = """def mixed(n):
    while n > 0 and not (here / "more").exists(): time.sleep(0.05)
    while n > 30 and not (here / "enough").exists(): time.sleep(0.05)
    time.sleep(0.02)
    if n % 3 == 0: raise KeyError("title")
    if n % 7 == 0: raise ValueError("none")"""


def test_the_quickstart(opened, local_home):
    cells = [cell.source for cell in nbformat.read(QUICKSTART, 4).cells if cell.cell_type == "code"]
    page = opened("quickstart.ipynb", ALONE.format(home=str(local_home)), *cells)
    for place in range(len(cells) + 1):
        page.run(place)
    page.sees(3, "8 of 8", "8 finished", "All results are copied to this disk")
    page.cell(3).scroll_into_view_if_needed()
    page.shot("quickstart-light")
    page.sees(3, "nbqueue: started a local server and worker")
    assert page.page.locator("[data-mime-type*=stderr]").count() == 0  # where Jupyter shows it as an error
    page.sees(4, "ZeroDivisionError", "failed")
    page.sees(6, "measuring 0", "division by zero")
    page.sees(8, "4527.83")
    assert not any("of 8" in page.text(place) for place in range(len(cells) + 1) if place != 3)


def test_a_restarted_kernel_finds_its_batch_and_a_flushed_server_costs_no_result(notebook, fleet, session, tmp_path):
    fleet.start().up()
    cells = WRITE, "batch = nbqueue.map(write, range(6), name='squares')", "nbqueue.attach('squares')", FRAME
    page = notebook("again.ipynb", *cells)
    page.run(1)
    page.run(2)
    page.sees(2, "4 of 6", "2 started")
    page.restart_kernel()
    page.sees(2, "As of", "nbqueue.attach('squares') shows it")
    for place in (0, 1, 2, 3):
        page.run(place)
    page.sees(2, "6 of 6 jobs were there already; nothing new runs", "4 of 6", "2 started")
    page.sees(3, "4 of 6", "2 started")
    (tmp_path / "enough").touch()
    page.sees(2, "6 finished")
    page.sees(3, "6 finished", "All results are copied to this disk")
    page.shot("again-light")
    assert sorted((tmp_path / "diary").read_text().split()) == list("012345")

    page.restart_kernel()
    client = session.broker.client
    client.delete(*client.scan_iter(match=session.broker.keys.prefix + "b:*", count=1000))
    client.delete(session.broker.keys.at("batches"), session.broker.keys.at("name", "squares"))
    page.run(0)
    page.run(4)
    page.sees(4, "sum 55", "write-")


def test_a_cell_that_is_run_twice_says_what_still_runs_and_cancels_it(notebook, fleet):
    fleet.start().up()
    page = notebook("twice.ipynb", "batch = nbqueue.map(lambda x: time.sleep(0.2), range(900))", "batch.id")
    page.run(1)
    page.sees(1, "started")
    page.run(2)
    page.sees(2, "lambda-")
    first = page.text(2).split("'")[1]
    page.run(1)
    page.sees(1, "This cell has been run before", f"nbqueue.attach('{first}').cancel()")
    page.shot("earlier-light")
    page.button(1, "Cancel the earlier batch").click()
    page.sees(1, f"canceled of {first}.")
    until(lambda: "has been run before" not in page.text(1))
    page.run(2)
    page.sees(2, "lambda-")
    second = page.text(2).split("'")[1]
    page.sees(1, second)
    assert "canceled" not in page.text(1).partition("slots of")[0]
    page.button(1, "Cancel").click()
    page.button(1, "Yes, cancel").click()
    page.sees(1, "900 of 900")


def test_all_of_a_panel_is_reached_by_keyboard_and_an_update_takes_no_focus(notebook, fleet, tmp_path):
    fleet.start().up()
    page = notebook("keys.ipynb", MIXED, "batch = nbqueue.map(mixed, range(40))")
    page.run(1)
    page.run(2)
    page.sees(2, "1 of 1: KeyError", "Retry")
    page.button(2, "Cancel").focus()
    page.tab_to("Retry")
    page.tab_to("1 of 1: KeyError")
    (tmp_path / "more").touch()
    opens_by_keyboard(page)
    cancels_by_keyboard(page)
    (tmp_path / "enough").touch()
    page.tab_to("Retry")
    page.page.keyboard.press("Enter")
    page.sees(2, "run again")


def opens_by_keyboard(page):
    """From the kind `1 of 1: KeyError`, which has the focus while its count moves."""
    page.page.keyboard.press("Enter")
    page.sees(2, "Traceback", "Show its arguments", "31 of 40", "11 of 14: KeyError")
    assert page.focused().startswith("11 of 14: KeyError")
    page.tab_to("Traceback")
    page.tab_to("Show its arguments")
    page.page.keyboard.press("Space")
    page.sees(2, "n = 0")
    assert page.focused() == "Hide its arguments"
    page.tab_to("Next job")
    page.page.keyboard.press("Enter")
    until(lambda: re.search(r"mixed-\w+:[1-9]", page.text(2)))
    page.shot("keys-light")
    began = page.text(2).partition(" elapsed")[0]
    until(lambda: page.text(2).partition(" elapsed")[0] != began)  # it was drawn anew meanwhile
    assert page.focused() == "Next job"
    assert "Traceback" in page.text(2)


def cancels_by_keyboard(page):
    page.button(2, "Cancel").focus()
    page.page.keyboard.press("Space")
    until(lambda: page.focused() == "Keep running")
    page.page.keyboard.press("Enter")
    until(lambda: page.focused() == "Cancel")
    page.page.keyboard.press("Enter")
    until(lambda: page.focused() == "Keep running")
    page.page.keyboard.press("Shift+Tab")
    assert page.focused().startswith("Yes, cancel")
    page.page.keyboard.press("Space")
    page.sees(2, "40 of 40", "canceled")
    assert "Traceback" in page.text(2)


def test_notebook_7_shows_the_same(notebook, fleet, tmp_path):
    (tmp_path / "more").touch()
    fleet.start().up()
    page = notebook("seven.ipynb", MIXED, "batch = nbqueue.map(mixed, range(30))", "batch.wait(60)", simple=True)
    for place in (1, 2, 3):
        page.run(place)
    page.sees(2, "30 of 30", "13 failed", "Retry 13 failed", "KeyError")
    page.button(2, "10 of 13").click()
    page.sees(2, "Traceback", "Show its arguments")
    page.shot("seven-light")
    assert page.text(2).count("30 of 30") == 1
    until(lambda: page.text(3).split() == ["[4]:", "True"])
