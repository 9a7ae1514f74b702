from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import nbclient
import nbformat
import pytest

from nbqueue.client.panel import rate
from nbqueue.model import Tally

CELLS = (
    (
        "import sys; sys.path[:0] = [{folder!r}, {above!r}]\n"
        "import nbqueue; from hands import Hands\n"
        "session = nbqueue.connect({url!r}, namespace={space!r}); hands = Hands(session)\n"
        "def f(x):\n    if x == 3: raise ValueError('<script>')\n    return {{'double': 2 * x}}"
    ),
    "batch = nbqueue.map(f, range(5)); batch",
    "hands.start(); batch.wait(20)",
    "batch",
    "quiet = nbqueue.map(f, range(3), progress=False); job = nbqueue.submit(f, 1)",
    "many = [nbqueue.map(f, range(3)) for _ in range(6)]; [b.wait(20) for b in many];",
    (
        "from helpers import wait_until\n"
        "def source():\n    yield 1\n    raise OSError('<b>disk</b>')\n"
        "broken = nbqueue.map(f, source()); wait_until(lambda: broken.ref.state.bars[0].closed)"
    ),
    "try:\n    broken.wait(20)\nexcept OSError: print('told')",
    "batch.failed",
    "batch.to_frame()",
    "def g(x):\n    return 1 / 0\nnbqueue.map(g, [1]).wait(20)",
    (
        "import time\n"
        "end = time.monotonic() + 10\n"
        "while session.collector._followed and time.monotonic() < end: time.sleep(0.01)\n"
        "hands.stop(); session.collector.stop()"
    ),
)


@pytest.fixture(scope="module")
def cells(server, tmp_path_factory):
    """The executed notebook's cells."""
    folder = Path(__file__).parent
    facts = {"folder": str(folder), "above": str(folder.parent), "url": server.url, "space": "notebook"}
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.format(**facts)) for cell in CELLS])
    home = tmp_path_factory.mktemp("kernel")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NBQUEUE_HOME", str(home))
        nbclient.NotebookClient(book, timeout=60, kernel_name="python3", allow_errors=False).execute()
    return [cell["outputs"] for cell in book["cells"]]


def bars(outputs):
    return [output["data"]["text/html"] for output in outputs if "html" in str(output.get("data", {}).keys())]


def test_map_displays_once_and_ends_as_static_html(cells):
    found = bars(cells[1])
    assert len(cells[1]) == 1
    assert "5 of 5" in found[0]
    assert "4 finished" in found[0]
    assert "1x ValueError: &lt;script&gt; - line 5 of cell [1]" in found[0]
    assert "<script>" not in found[0]
    assert "widget" not in str(cells[1][0]["data"].keys())


def test_a_batch_shows_a_fresh_view_in_a_later_cell(cells):
    assert "5 of 5" in bars(cells[3])[0]


def test_submit_and_progress_false_display_nothing(cells):
    assert cells[4] == []


def test_from_the_fourth_batch_of_a_cell_on_one_panel_is_shared(cells):
    found = bars(cells[5])
    assert len(found) == 4
    assert "and 2 more" in found[-1]
    assert "9 of 9" in found[-1]


def test_a_fault_of_the_upload_shows_in_the_bar_escaped(cells):
    assert "OSError: &lt;b&gt;disk&lt;/b&gt;" in bars(cells[6])[0]
    assert "told" in str(cells[7])


def test_the_users_text_is_escaped_in_tables(cells):
    assert "<script>" not in cells[8][0]["data"]["text/html"]
    assert "<script>" not in cells[9][0]["data"]["text/html"]


def test_a_failure_in_a_function_of_the_same_cell_says_this_cell(cells):
    assert "1x ZeroDivisionError: division by zero - line 2 of this cell" in bars(cells[10])[0]


def test_words():
    tally = Tally(n=1000, queued=880, started=2, finished=116, failed=2)
    words = "118 of 1,000: 880 queued, 2 started, 116 finished, 2 failed, about 3 min left"
    assert rate.line(tally, 1000, 190) == words
    assert rate.line(Tally(n=3, canceled=1, finished=2), 3, None) == "3 of 3: 2 finished, 1 canceled"
    assert rate.line(Tally(n=2, started=1, finished=1), 2, 0.1).endswith("1 started, 1 finished, about 1 s left")
    assert [rate.span(s) for s in (5, 130, 7300)] == ["5 s", "2 min", "2 h"]
    assert [rate.clock(s) for s in (0, 0.0214, 3, 0.42, 42, 725, 3912)] == [
        "0 s",
        "21 ms",
        "3 s",
        "0.4 s",
        "42 s",
        "12:05",
        "1:05:12",
    ]
    assert [rate.rate_words(r) for r in (1234, 3.2, 0.2, 1 / 720)] == ["1,234/s", "3.2/s", "12/min", "5.0/h"]


def test_a_terminal_has_a_bar_while_it_waits_and_a_pipe_has_none(server, tmp_path):
    code = textwrap.dedent(f"""
        import sys; sys.path.insert(0, {__file__.rpartition("/")[0]!r})
        import nbqueue; from hands import Hands
        session = nbqueue.connect({server.url!r}, namespace="terminal")
        hands = Hands(session)
        batch = nbqueue.map(abs, range(5)); hands.start(); batch.wait(20); hands.stop()
    """)
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (piped.stdout, piped.stderr) == ("", "")
    words = [sys.executable, "-c", f"import pty; pty.spawn([{sys.executable!r}, '-c', {code!r}])"]
    shown = subprocess.run(words, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert "5 of 5" in shown.stdout


def test_heavy_libraries_are_not_imported():
    code = "import sys, nbqueue; nbqueue.map; print([m for m in %r if m in sys.modules])"
    heavy = ["pandas", "numpy", "IPython", "ipywidgets", "rich"]
    done = subprocess.run([sys.executable, "-c", code % heavy], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
