"""A pytest plugin for RQ's own tests: a server for each process, a time limit for each test, outcomes as JSON."""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import redis
from grounds import free_port
from redis.retry import Retry

from nbqueue.store.server import find_program

LIMIT = 30  # seconds that one test may take


class TooLong(BaseException):
    """Not an Exception: what is under test must not take it for a failure of its own."""


def pytest_configure(config):
    if config.option.numprocesses and not hasattr(config, "workerinput"):
        return  # the others run tests
    port = free_port()
    words = [str(find_program()), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--databases", "17"]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, cwd=tempfile.gettempdir())
    config.add_cleanup(server.kill)
    os.environ["RQ_OWN_PORT"] = str(port)
    begin = redis.Redis.__init__

    def reached(self, *args, **kwargs):
        """`Redis(db=4)`, as they say it, is the server of this process."""
        begin(self, *args, **({"port": port} if not args else {}) | kwargs)

    redis.Redis.__init__ = reached
    until = time.monotonic() + 20
    with redis.Redis(retry=Retry(redis.backoff.NoBackoff(), 0)) as client:
        while time.monotonic() < until:
            with contextlib.suppress(redis.ConnectionError):
                client.ping()
                return
            time.sleep(0.01)
    raise pytest.UsageError("no server for RQ's own tests")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    def ring(signum, frame):
        raise TooLong(f"over {LIMIT} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(LIMIT)
    try:
        return (yield)
    except TooLong as why:
        pytest.fail(f"TooLong: {why}")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def pytest_runtest_logreport(report):
    if os.environ.get("PYTEST_XDIST_WORKER") or (report.when != "call" and report.passed):
        return
    line = {
        "id": report.nodeid,
        "outcome": report.outcome,
        "when": report.when,
        "seconds": round(report.duration, 2),
        "text": report.longreprtext,
    }
    with Path(os.environ["RQ_OWN_REPORT"]).open("a") as told:
        told.write(json.dumps(line) + "\n")
