"""A real JupyterLab in a headless Chromium, driven as a user does: open, run, click, look, save."""

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import nbformat
from helpers import wait_until

ARTEFACTS = Path(__file__).parents[1] / "artefacts"
SIZE = {"width": 1100, "height": 900}
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
TOKEN = "a-token-of-the-test"
# The first cell of a notebook on the test's server.
BEGIN = """import os, time; from pathlib import Path
os.environ["NBQUEUE_HOME"] = {home!r}
import nbqueue
session = nbqueue.connect({url!r}, namespace={space!r})
here = Path({here!r})"""

_RESTORED = "async () => { const a = window.jupyterapp; if (!a) return false; await a.restored; return true }"
_OPEN = "async name => { await window.jupyterapp.commands.execute('docmanager:open', {path: name}); return true }"
_LEAVE = "() => { window.jupyterapp.shell.currentWidget.dispose() }"
_READY = """async name => {
  const w = window.jupyterapp.shell.currentWidget;
  if (!w || !w.sessionContext || w.context.path !== name) return false;
  await w.context.ready; await w.sessionContext.ready;
  const k = w.sessionContext.session?.kernel;
  return Boolean(k) && k.connectionStatus === 'connected' && k.status === 'idle' }"""
_RUN = """i => {
  const n = window.jupyterapp.shell.currentWidget.content;
  n.activeCellIndex = i; n.deselectAll(); n.widgets[i].model.clearExecution();
  window.jupyterapp.commands.execute('notebook:run-cell') }"""
_DONE = """i => {
  const m = window.jupyterapp.shell.currentWidget.content.widgets[i].model;
  return m.executionCount !== null && m.executionState !== 'running' }"""
_RESTART = "async () => { await window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart() }"
_SAVE = "async () => { await window.jupyterapp.shell.currentWidget.context.save(); return true }"


def until(predicate):
    """As wait_until, for what a page shows, in a time that a loaded machine may need."""
    return wait_until(predicate, 30, 0.05)


def missing():
    """Why no notebook can be driven here; empty if it can."""
    for module in ("jupyterlab", "notebook", "playwright"):
        if importlib.util.find_spec(module) is None:
            return f"the Python package {module} is not installed"
    return "" if chromium() else "no Chromium on PATH (apt-get install chromium)"


def chromium():
    return next(filter(None, map(shutil.which, CHROMIUM)), None)


class Lab:
    """JupyterLab on a folder, and a browser; a context manager."""

    def __init__(self, folder):
        self.folder = folder
        self.tab = None  # the browser's, in which one notebook after the other is opened: to load JupyterLab takes long
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{probe.getsockname()[1]}"

    def __enter__(self):
        from playwright.sync_api import sync_playwright

        places = ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")
        own = {f"JUPYTER_{name}": str(self.folder / f".{name.lower()}") for name in places}
        own |= {f"JUPYTERLAB_{name}_DIR": str(self.folder / f".{name.lower()}") for name in ("SETTINGS", "WORKSPACES")}
        own["IPYTHONDIR"] = str(self.folder / ".ipython")
        env = {name: value for name, value in os.environ.items() if not name.startswith("NBQUEUE_")}
        quiet = self.folder / ".settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
        quiet.parent.mkdir(parents=True)
        quiet.write_text('{"fetchNews": "false"}')
        words = [sys.executable, "-m", "jupyterlab", "--allow-root", "--no-browser", "--ServerApp.ip=127.0.0.1"]
        words += [f"--ServerApp.port={self.url.rpartition(':')[2]}", "--ServerApp.port_retries=0"]
        words += [f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={self.folder}"]
        words += ["--LabApp.expose_app_in_browser=True", "--JupyterNotebookApp.expose_app_in_browser=True"]
        self._log = (self.folder / "lab.log").open("w")
        self.process = subprocess.Popen(words, stdout=self._log, stderr=self._log, env=env | own)
        wait_until(self._up, 60, 0.1)
        self._playwright = sync_playwright().start()
        flags = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        self.browser = self._playwright.chromium.launch(executable_path=chromium(), headless=True, args=flags)
        return self

    def __exit__(self, *_):
        self.browser.close()
        self._playwright.stop()
        self.process.terminate()  # it takes its kernels along
        self.process.wait(20)
        self._log.close()

    def ask(self, path, method="GET"):
        headers = {"Authorization": f"token {TOKEN}"}
        request = urllib.request.Request(f"{self.url}/api/{path}", method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read() or "null")

    def _up(self):
        assert self.process.poll() is None, (self.folder / "lab.log").read_text()
        try:
            return self.ask("status")
        except OSError:
            return None

    def write(self, name, cells):
        """A notebook of these code cells."""
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(book, self.folder / name)

    def kill_kernels(self):
        for session in self.ask("sessions"):
            self.ask(f"sessions/{session['id']}", "DELETE")


class Page:
    """A notebook in JupyterLab, or with `simple` in Notebook 7, which the same server serves.

    With `fresh` in a tab of its own, which has seen nothing of it; else in the tab of the notebooks before it.
    """

    def __init__(self, lab, name, *, dark=False, simple=False, fresh=False):
        self.lab, self.name = lab, name
        self._url = f"{lab.url}/{'notebooks' if simple else 'lab/tree'}/{name}?token={TOKEN}&reset"
        self._own = simple or fresh
        if self._own or lab.tab is None:
            self._load()
        else:
            self.page = lab.tab
            self.page.evaluate(_OPEN, name)
        wait_until(lambda: self.page.evaluate(_READY, name), 60, 0.05)
        self.theme("JupyterLab Dark" if dark else "JupyterLab Light")

    def _load(self):
        self.page = self.lab.browser.new_page(viewport=SIZE)
        if not self._own:
            self.lab.tab = self.page
        self.page.goto(self._url)
        wait_until(lambda: self.page.evaluate(_RESTORED), 60, 0.05)

    def reload(self):
        """Closes the page and opens it again; the kernel lives on."""
        self.page.close()
        self._load()
        wait_until(lambda: self.page.evaluate(_READY, self.name), 60, 0.05)

    def theme(self, name):
        if self.page.evaluate("document.body.dataset.jpThemeName") == name:
            return
        change = "name => window.jupyterapp.commands.execute('apputils:change-theme', {theme: name})"
        self.page.evaluate(change, name)
        light = "document.body.dataset.jpThemeLight"
        until(lambda: self.page.evaluate(light) == ("false" if "Dark" in name else "true"))
        until(lambda: self.page.locator("#jupyterlab-splash").count() == 0)

    def start(self, place):
        """Begins to run a cell."""
        self.page.evaluate(_RUN, place)

    def done(self, place):
        return self.page.evaluate(_DONE, place)

    def run(self, place, seconds=30):
        self.start(place)
        wait_until(lambda: self.done(place), seconds, 0.05)

    def cell(self, place):
        return self.page.locator(".jp-Notebook .jp-Cell").nth(place)

    def text(self, place):
        """What is seen below a cell."""
        return self.cell(place).locator(".jp-Cell-outputWrapper").inner_text()

    def outputs(self, place):
        return self.cell(place).locator(".jp-OutputArea-child").count()

    def sees(self, place, *words):
        try:
            until(lambda: all(word in self.text(place) for word in words))
        except AssertionError as why:
            raise AssertionError(f"{words} not seen in {self.text(place)!r}") from why

    def button(self, place, name):
        """The button whose words begin so."""
        return self.cell(place).get_by_role("button").filter(has_text=re.compile(rf"^\W*{re.escape(name)}"))

    def focused(self):
        """The words of what has the keyboard's focus."""
        return self.page.evaluate("document.activeElement.innerText ?? ''").lstrip("▸▾ ").strip()

    def tab_to(self, words, most=25):
        """Presses Tab until what begins with these words has the focus."""
        for _ in range(most):
            if self.focused().startswith(words):
                return
            self.page.keyboard.press("Tab")
        message = f"Tab does not lead to {words!r}, but to {self.focused()!r}"
        raise AssertionError(message)

    def restart_kernel(self):
        self.page.evaluate(_RESTART)

    def save(self):
        assert self.page.evaluate(_SAVE)

    def close(self):
        if self._own or self.page.locator(".jp-Dialog").count():
            self.page.close()
            self.lab.tab = self.lab.tab if self._own else None
        else:
            self.page.evaluate(_LEAVE)

    def shot(self, name):
        """A picture for people, in a folder that git ignores."""
        ARTEFACTS.mkdir(exist_ok=True)
        self.page.screenshot(path=ARTEFACTS / f"{name}.png")
