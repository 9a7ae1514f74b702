"""A notebook's session on the test server, and workers started as users start them."""

import secrets

import pytest
from fleet import Fleet
from lab import BEGIN, Lab, Page

import nbqueue
from nbqueue.client.session import session as sessions


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A nbqueue home of the test's own."""
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("NBQUEUE_HOME", str(folder))
    for name in ("URL", "SECRET", "SLOTS", "NAMESPACE", "INLINE", "SPILL", "MAX_OPEN"):
        monkeypatch.delenv(f"NBQUEUE_{name}", raising=False)
    monkeypatch.setenv("NBQUEUE_PROGRESS", "0")
    return folder


@pytest.fixture
def local_home(home, monkeypatch):
    """A home whose private server and worker are stopped at the end; a login node's worker would yield to everybody."""
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    yield home
    sessions._current = None
    nbqueue.local().stop()
    sessions._current = None


@pytest.fixture
def no_copy(monkeypatch):
    """The store is all there is: no copy on this disk answers in its place."""
    monkeypatch.setenv("NBQUEUE_SPOOL", "0")


@pytest.fixture
def session(server, home):
    """A session on the test server, in a namespace of its own."""
    opened = nbqueue.connect(server.url, namespace=f"t{secrets.token_hex(4)}")
    yield opened
    opened.collector.stop()
    sessions._current = None


@pytest.fixture
def fleet(server, session, home):
    """Starts workers for the session; ends them, and fails if they leave a process behind."""
    started = Fleet(server.url, session.settings.namespace, home)
    yield started
    started.close()


@pytest.fixture
def diary(tmp_path):
    """A file to which every run of a job appends a line."""
    return Diary(tmp_path / "diary")


class Diary:
    def __init__(self, path):
        self.path = path
        path.touch()

    @property
    def lines(self):
        return self.path.read_text().splitlines()


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """One JupyterLab and one browser for all tests that drive a notebook."""
    with Lab(tmp_path_factory.mktemp("lab")) as found:
        yield found


@pytest.fixture
def opened(lab):
    """Opens a notebook of these cells; it is closed and its kernel ends with the test."""
    pages = []

    def open_it(name, *cells, **how):
        lab.write(name, cells)
        pages.append(Page(lab, name, **how))
        return pages[-1]

    yield open_it
    for page in pages:
        page.close()
    lab.kill_kernels()


@pytest.fixture
def notebook(opened, server, session, home, tmp_path):
    """As opened; the first cell connects to the test's server and has run."""

    def open_it(name, *cells, **how):
        facts = {"home": str(home), "url": server.url, "space": session.settings.namespace, "here": str(tmp_path)}
        page = opened(name, BEGIN.format(**facts), *cells, **how)
        page.run(0)
        return page

    return open_it
