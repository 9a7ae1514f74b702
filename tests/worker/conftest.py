"""What tests of a worker's parts need where they speak to a store: a server that may be hurt, and a session on it."""

import os
import secrets

import pytest
from acceptance.conftest import home  # noqa: F401 - the same fixture

import nbqueue
from nbqueue.client.session import session as sessions
from nbqueue.store import server as program


@pytest.fixture
def own(short_folder, home):  # noqa: F811 - the fixture
    """A session on a server of the test's own, which lies in `short_folder`."""
    running = program.start(short_folder, program=os.environ.get("NBQUEUE_TEST_SERVER"))
    session = nbqueue.connect(running.url, namespace=f"w{secrets.token_hex(4)}")
    yield session
    session.collector.stop()
    sessions._current = None
