"""Fixtures for all tests: a real private server, a Broker in a fresh namespace, and the check that nothing leaks."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import flush, leaks
from hypothesis import HealthCheck, settings

from nbqueue.client.batch import Batch
from nbqueue.client.lookup import find
from nbqueue.client.session.session import Session
from nbqueue.store import server as program
from nbqueue.store.broker import Broker
from nbqueue.store.connection import Connection, connect

# The same examples each time; "long" draws others, which is done by hand before a release.
settings.register_profile(
    "suite",
    max_examples=50,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile(
    "long", max_examples=500, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
settings.load_profile(os.environ.get("NBQUEUE_TEST_PROFILE", "suite"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """With NBQUEUE_TEST_REQUIRE_ALL=1, as .ci/run has it, nothing may be skipped."""
    report = yield
    if report.skipped and os.environ.get("NBQUEUE_TEST_REQUIRE_ALL") == "1":
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, but every test is required here: {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def no_loop(request: pytest.FixtureRequest) -> Iterator[None]:
    """The loop of the browser's driver counts as running in this thread while it lives; other tests have their own."""
    found = None if "lab" in request.fixturenames else asyncio._get_running_loop()
    if found is not None:
        asyncio._set_running_loop(None)
    yield
    if found is not None:
        asyncio._set_running_loop(found)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A private folder whose path leaves room for a socket."""
    folder = Path(tempfile.mkdtemp(prefix="nbq-"))
    yield folder
    program.stop(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def server() -> Iterator[program.Server]:
    """A private server for the whole run; NBQUEUE_TEST_SERVER names another program."""
    folder = Path(tempfile.mkdtemp(prefix="nbq-"))
    yield program.start(folder, program=os.environ.get("NBQUEUE_TEST_SERVER"))
    program.stop(folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def connection(server: program.Server) -> Iterator[Connection]:
    found = connect(server.url)
    yield found
    found.close()


@pytest.fixture
def broker(connection: Connection) -> Iterator[Broker]:
    """A Broker in a namespace of its own; afterwards every key there must have an end."""
    found = Broker(connection, f"t{secrets.token_hex(6)}")
    yield found
    left = leaks(found)
    flush(found)
    assert left == []


@pytest.fixture
def anew(session: Session) -> Iterator[Callable[[str], Batch[Any]]]:
    """`anew(name)`: what a session that has just begun has of a batch. Nothing of it is the test's own handles'."""
    others = []

    def look(name: str) -> Batch[Any]:
        others.append(Session(session.settings))
        return Batch(find.attach(others[-1], name))

    yield look
    for each in others:
        each.collector.stop()
        each.disconnect()
