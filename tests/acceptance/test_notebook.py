"""The live panel as a user of JupyterLab meets it: a real browser, a real kernel, real workers."""

import nbformat
import pytest
from lab import Page, missing, until

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(bool(missing()), reason=missing() or "-")]

FETCH = """def fetch(page):
    print("fetching", page)
    while page > 20 and not (here / "more").exists(): time.sleep(0.05)
    time.sleep(0.1)
    if page % 10 == 3 and not (here / "mended").exists():
        raise KeyError("title")
    if page == 25 and not (here / "mended").exists():
        raise ValueError(f"<b>page {page}</b> has no <script>document.title = 'hacked'</script>")
    return page"""
READ = """def read(n):
    while not (here / "enough").exists():
        nbqueue.progress(n, 40, "<b>reading</b>")
        time.sleep(0.05)
    if n == 1: raise KeyError("title")"""
BUSY = "(here / 'busy').touch()\nwhile not (here / 'enough').exists(): time.sleep(0.05)"


def count(page, place):
    """How many jobs have ended, as the panel says."""
    return int(page.text(place).partition(" of 60")[0].split()[-1])


def test_a_batch_from_map_to_the_saved_notebook(lab, notebook, fleet, tmp_path):
    fleet.start().up()
    page = notebook("fetch.ipynb", FETCH, "batch = nbqueue.map(fetch, range(60), name='pages')", BUSY, "1 + 1")
    page.run(1)
    page.run(2)
    page.start(3)
    until((tmp_path / "busy").exists)
    page.sees(2, "pages", "2 at a time on", "left", "21 of 60")
    (tmp_path / "more").touch()
    until(lambda: count(page, 2) > 21)
    assert not page.done(3)
    assert page.text(2).count("of 60") == 1
    page.shot("running-light")
    (tmp_path / "enough").touch()
    until(lambda: page.done(3))
    assert page.outputs(3) == 0  # nothing of the panel's landed there
    page.sees(2, "60 of 60", "53 finished", "7 failed", "6x KeyError: 'title' - line 6 of cell [2]")
    page.sees(2, "1x ValueError: <b>page 25</b>")
    page.shot("failed-light")

    page.button(2, "6x KeyError").click()
    page.sees(2, "KeyError: 'title'", "peak memory", "fetching 3")
    assert "page = 3" not in page.text(2)
    assert page.text(2).count("6x KeyError") == 1
    page.button(2, "Show its arguments").click()
    page.sees(2, "page = 3")
    page.shot("opened-light")
    page.theme("JupyterLab Dark")
    page.shot("opened-dark")

    (tmp_path / "mended").touch()
    page.button(2, "Retry 7 failed").press("Enter")
    page.sees(2, "60 of 60", "60 finished")
    until(lambda: "KeyError" not in page.text(2))
    page.shot("retried-dark")
    assert page.page.title() != "hacked"


def test_cancel_asks_also_in_a_reloaded_page_and_a_queue_without_worker_says_what_to_run(lab, notebook, fleet):
    fleet.start().up()
    slow = "slow = nbqueue.map(lambda x: time.sleep(0.2), range(900))"
    lonely = "lonely = nbqueue.options(queue='gpu').map(abs, range(3))"
    page = notebook("cancel.ipynb", slow, lonely, dark=True)
    page.run(1)
    page.run(2)
    page.save()
    page.reload()
    page.button(1, "Cancel").click()
    page.button(1, "Keep running").click()
    page.button(1, "Cancel").click()
    page.sees(1, "Yes, cancel")
    page.shot("asks-dark")
    page.button(1, "Yes, cancel").click()
    page.sees(1, "900 of 900", "canceled")
    page.save()
    (saved, _) = nbformat.read(lab.folder / "cancel.ipynb", 4).cells[1].outputs
    assert "of 900" in saved["data"]["text/html"]  # of before the reload: docs/panel.md says why
    assert "&#x27;)</code></div>" in saved["data"]["text/html"]
    page.sees(2, "No live worker serves the queue 'gpu'", "nbqueue worker", "gpu")
    page.shot("lonely-dark")
    page.button(2, "Cancel").click()
    page.button(2, "Yes, cancel").click()
    page.sees(2, "3 canceled")


def test_an_awaited_batch_answers_clicks_and_shows_how_far_its_jobs_are(notebook, fleet, tmp_path):
    fleet.start().up()
    page = notebook("await.ipynb", READ, "batch = nbqueue.map(read, range(400))", "await batch; print('went on')")
    page.run(1)
    page.run(2)
    page.start(3)
    page.sees(2, "0 of 40, <b>reading</b>", "1 of 40")
    page.shot("awaited-light")
    page.theme("JupyterLab Dark")
    page.shot("awaited-dark")
    page.button(2, "Cancel").click()
    page.button(2, "Keep running").click()
    page.button(2, "Cancel").click()
    page.sees(2, "Yes, cancel 400 jobs")  # answered, and the cell waits as before
    assert not page.done(3)
    page.button(2, "Yes, cancel").click()
    page.sees(2, "400 of 400", "400 canceled")
    until(lambda: page.done(3))
    page.sees(3, "went on")
    assert page.text(3).strip() == "went on"
    assert "reading" not in page.text(2)


def test_a_saved_notebook_shows_its_bars_without_the_kernel(lab, notebook, fleet, tmp_path):
    fleet.start().up()
    ended = "batch = nbqueue.map(fetch, range(20), name='ended')\nbatch.wait(30)"
    page = notebook("saved.ipynb", FETCH, ended, "runs = nbqueue.map(lambda x: time.sleep(0.2), range(900))")
    page.run(1)
    page.run(2)
    page.run(3)
    page.sees(2, "20 of 20", "2 failed", "Retry 2 failed")
    page.sees(3, "of 900", "left")
    until(lambda: "started" in page.cell(3).locator("[class^=nbq-saved]").text_content())  # which nobody sees yet
    page.restart_kernel()
    page.sees(3, "of 900", "started", "Snapshot of")
    page.save()
    kept = page.text(3)
    lab.kill_kernels()
    again = Page(lab, "saved.ipynb", fresh=True)
    until(lambda: again.page.get_by_text("model not found").count() == 2)  # which nobody sees
    again.sees(2, "20 of 20", "18 finished", "2 failed", "2x KeyError: 'title'")
    again.sees(3, *kept.splitlines())
    again.shot("saved-light")
    again.theme("JupyterLab Dark")
    again.cell(2).locator("summary").click()
    again.sees(2, "Traceback")
    again.shot("saved-dark")
    assert "model not found" not in again.text(2) + again.text(3)
    assert "Loading" not in again.text(2) + again.text(3)
    assert again.text(2).count("20 of 20") == 1
    book = nbformat.read(lab.folder / "saved.ipynb", 4)
    assert "18 finished" in book.cells[2].outputs[0]["data"]["text/html"]
    again.close()
