"""Every test has a home, a namespace, a session and hands of its own."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import closing

import pytest
from fleet import Fleet
from hands import Hands
from helpers import flush, leaks

import nbqueue
from nbqueue import Queue
from nbqueue.client.session import session as session_module
from nbqueue.client.session.session import Session


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("NBQUEUE_") and "TEST" not in name]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NBQUEUE_HOME", str(tmp_path / "home"))
    yield
    session_module.use(None)


@pytest.fixture
def session(server):
    found = nbqueue.connect(server.url, namespace=f"c{secrets.token_hex(6)}")
    yield found
    found.collector.stop()
    broker = found.broker
    left = leaks(broker)
    flush(broker)
    found.disconnect()
    assert not left


@pytest.fixture
def other(session):
    """Another session on the same server."""
    found = Session(session.settings)
    yield found
    found.collector.stop()
    found.disconnect()


@pytest.fixture
def another_kernel(server, session):
    """`another_kernel()`: a session as a restarted kernel has it; the one before stops."""
    found = [session]

    def restart():
        found[-1].collector.stop()
        found.append(nbqueue.connect(server.url, namespace=session.settings.namespace))
        return found[-1]

    yield restart
    for each in found[1:]:
        each.collector.stop()
        each.disconnect()


@pytest.fixture
def hands(session):
    found = Hands(session, ("default", "low"))
    yield found
    found.stop()


@pytest.fixture
def q(session):
    return Queue("low")


@pytest.fixture
def fleet(server, session, tmp_path):
    """Worker processes of the command, once they are started."""
    with closing(Fleet(server.url, session.settings.namespace, tmp_path / "home")) as found:
        yield found


@pytest.fixture
def busy(hands):
    """Hands that work on a thread of their own."""
    return hands.start()
