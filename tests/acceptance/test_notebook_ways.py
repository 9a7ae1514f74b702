"""What people do in a notebook, in a real browser: the quickstart, a restart, a cell run twice, a keyboard alone."""

import re
import sys
from pathlib import Path

import msgspec
import nbformat
import pytest
from lab import ARTEFACTS, missing, until

from nbqueue.client.panel import html, job_details
from nbqueue.client.panel.failures import FailureGroup
from nbqueue.client.panel.model import FailureLine, PanelModel
from nbqueue.client.panel.polling import JobProgress, QueueWorkers
from nbqueue.client.panel.widget import _STYLE
from nbqueue.model import Tally

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
    page.sees(3, "8 of 8", "8 finished", "All results saved")
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
    page.sees(2, "Snapshot of", "Current state: nbqueue.attach('squares')")
    for place in (0, 1, 2, 3):
        page.run(place)
    page.sees(2, "6 of 6 jobs reused; nothing new runs", "4 of 6", "2 started")
    page.sees(3, "4 of 6", "2 started")
    (tmp_path / "enough").touch()
    page.sees(2, "6 finished")
    page.sees(3, "6 finished", "All results saved")
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
    page.sees(1, "A batch of this cell's previous run is still running", f"nbqueue.attach('{first}').cancel()")
    page.shot("earlier-light")
    page.button(1, "Cancel the earlier batch").click()
    page.sees(1, f"canceled of {first}.")
    until(lambda: "has been run before" not in page.text(1))
    page.run(2)
    page.sees(2, "lambda-")
    second = page.text(2).split("'")[1]
    page.sees(1, second)
    assert "canceled" not in page.text(1).partition("at a time")[0]
    page.button(1, "Cancel").click()
    page.button(1, "Yes, cancel").click()
    page.sees(1, "900 of 900")


def test_all_of_a_panel_is_reached_by_keyboard_and_an_update_takes_no_focus(notebook, fleet, tmp_path):
    fleet.start().up()
    page = notebook("keys.ipynb", MIXED, "batch = nbqueue.map(mixed, range(40))")
    page.run(1)
    page.run(2)
    page.sees(2, "1x KeyError", "Retry")
    page.button(2, "Cancel").focus()
    page.tab_to("Retry")
    page.tab_to("1x KeyError")
    (tmp_path / "more").touch()
    opens_by_keyboard(page)
    cancels_by_keyboard(page)
    (tmp_path / "enough").touch()
    page.tab_to("Retry")
    page.page.keyboard.press("Enter")
    page.sees(2, "retried")


def opens_by_keyboard(page):
    """From the kind `1x KeyError`, which has the focus while its count moves."""
    page.page.keyboard.press("Enter")
    page.sees(2, "Traceback", "Show its arguments", "31 of 40", "11x KeyError")
    assert page.focused().startswith("11x KeyError")
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


STEPS = """def steps(n):
    for i in range(4):
        nbqueue.progress(i, 4, f"step {i} of {n} " + "with a long word on it " * 9 * (n % 2)); time.sleep(0.3)"""
# Where the button is at each frame that is drawn, from now on; and what has words: its contrast to what is behind it.
_FOLLOW = """button => { window.seen = new Set();
  const look = () => { window.seen.add(Math.round(button.getBoundingClientRect().y)); requestAnimationFrame(look) };
  look() }"""
_CONTRAST = """() => {
  const parts = text => text.match(/[\\d.]+/g).map(Number);
  const light = c => {
    const [r, g, b] = c.map(v => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4 });
    return .2126 * r + .7152 * g + .0722 * b };
  const found = [];
  for (const each of document.querySelectorAll('.nbqueue *')) {
    if (![...each.childNodes].some(node => node.nodeType === 3 && node.textContent.trim())) continue;
    let opacity = 1, back = null;
    for (let up = each; up; up = up.parentElement) {
      const style = getComputedStyle(up), [r, g, b, a = 1] = parts(style.backgroundColor);
      if (!back) { if (a === 1) back = [r, g, b]; opacity *= style.opacity }
    }
    const [r, g, b, a = 1] = parts(getComputedStyle(each).color);
    const seen = [r, g, b].map((v, i) => v * a * opacity + back[i] * (1 - a * opacity));
    const [one, two] = [light(seen), light(back)].sort((x, y) => y - x);
    found.push([each.textContent.slice(0, 30), (one + .05) / (two + .05)]);
  }
  return found }"""


def test_nothing_moves_beneath_running_jobs_that_come_and_go(notebook, fleet):
    fleet.start(slots=2).up()
    page = notebook("steady.ipynb", STEPS, "batch = nbqueue.map(steps, range(12))", "print('beneath')")
    for place in (0, 1, 2, 3):
        page.run(place)
    page.sees(2, "step 1 of")
    page.button(2, "Cancel").evaluate(_FOLLOW)
    page.shot("steady-light")
    wide = page.cell(2).locator(".nbq-head").first.evaluate("e => [e.scrollWidth, e.clientWidth]")
    assert wide[0] <= wide[1], "a long word of a job makes the panel no wider"
    spans = "all => all.map(e => e.getBoundingClientRect()).filter(r => r.width).map(r => [r.left, r.right])"
    bar = page.cell(2).locator("[role=progressbar]")
    [running] = bar.evaluate_all(spans)
    page.sees(2, "8 finished")
    assert page.page.evaluate("[...window.seen]") == [page.page.evaluate("[...window.seen][0]")]
    page.sees(2, "12 of 12")
    until(lambda: page.button(2, "Cancel").count() == 0)
    assert bar.evaluate_all(spans) == [running], "the bar that stays is where the moving one was"


LAB = Path(sys.prefix) / "share/jupyter/lab/themes/@jupyterlab"
VSCODE = {  # its two themes' colours
    "dark": {
        "foreground": "#cccccc",
        "editor-background": "#1f1f1f",
        "charts-red": "#f14c4c",
        "charts-blue": "#3794ff",
    },
    "light": {
        "foreground": "#3b3b3b",
        "editor-background": "#ffffff",
        "charts-red": "#e51400",
        "charts-blue": "#1a85ff",
    },
}


def themes():
    """(name, the style sheet of a frontend, what it puts behind an output)."""
    lab = {name: (LAB / f"theme-{name}-extension/index.css").read_text() for name in ("light", "dark")}
    code = {
        name: ":root{" + "".join(f"--vscode-{word}:{colour};" for word, colour in colours.items()) + "}"
        for name, colours in VSCODE.items()
    }
    for name in ("light", "dark"):
        yield f"lab-{name}", lab[name], "var(--jp-layout-color0)"
        yield f"vscode-{name}", code[name], "var(--vscode-editor-background)"
        yield f"vscode-widget-{name}", code[name], "white"  # which lies behind each of its widgets
        yield f"vscode-{name}-with-the-lab's-light", code[name] + lab["light"], "var(--vscode-editor-background)"
        yield f"plain-{name}", f":root{{color-scheme:{name}}}", "Canvas"


def test_the_panel_can_be_read_on_every_background(lab):
    kind = FailureGroup("ValueError", "it diverged", "line 3 of this cell")
    kind.members[0, 0] = None
    seen = PanelModel(
        title="pages",
        about="pages-7k2f",
        tally=Tally(n=9, finished=4, failed=1, started=2, queued=2),
        n=9,
        seed="seed 5",
        retention="Results saved",
        running=(JobProgress("pages-7k2f:3", 4, 8, "reading"), None),
        workers=(
            QueueWorkers("default", 1, 2, ("node3",)),
            QueueWorkers("gpu", 0, 0, (), "run nbqueue worker gpu", "nbqueue worker"),
        ),
        problems=("the server cannot be reached",),
        failures=(FailureLine(kind, 1),),
        retry=1,
    )
    told = job_details.JobDetails("pages-7k2f:3", "ran 3 s", "Traceback ...", "printed")
    inner = html.static(msgspec.structs.replace(seen, ended=True), {0: told}, asof="Snapshot. See x()", command="x()")
    inner += "<div class='nbq-controls'>" + _STYLE + html.head(seen) + html.message("Canceled.", wrong=True)
    inner += html.job_html(told, "x = 5") + "</div>"
    page = lab.browser.new_page(viewport={"width": 900, "height": 900})
    for name, sheet, behind in themes():
        page.set_content(f"<style>{sheet}</style><body style='margin:0;padding:9px;background:{behind}'>{inner}</body>")
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        found = page.evaluate(_CONTRAST)
        assert len(found) > 20
        assert not [each for each in found if each[1] < 4.5], name
        ARTEFACTS.mkdir(exist_ok=True)
        page.screenshot(path=ARTEFACTS / f"colours-{name}.png")
    page.close()


def test_notebook_7_shows_the_same(notebook, fleet, tmp_path):
    (tmp_path / "more").touch()
    fleet.start().up()
    page = notebook("seven.ipynb", MIXED, "batch = nbqueue.map(mixed, range(30))", "batch.wait(60)", simple=True)
    for place in (1, 2, 3):
        page.run(place)
    page.sees(2, "30 of 30", "13 failed", "Retry 13 failed", "KeyError")
    page.button(2, "10x KeyError").click()
    page.sees(2, "Traceback", "Show its arguments")
    page.shot("seven-light")
    assert page.text(2).count("30 of 30") == 1
    until(lambda: page.text(3).split() == ["[4]:", "True"])
