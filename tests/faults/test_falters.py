"""A server that is there and does not yet, or no more, do what it should: as somebody begins, or is half through."""

import os
import subprocess
import threading

import pytest
import redis
from fleet import Fleet
from helpers import wait_until
from proxy import Proxy

import nbqueue
from nbqueue.client.session import session as sessions
from nbqueue.errors import NoServer, ServerRefused
from nbqueue.store import server as program
from nbqueue.store.connection import connect, preflight
from nbqueue.store.scripts import load


def test_a_worker_whose_server_goes_away_as_it_joins_joins_when_it_is_back(server, session, home):
    proxy = Proxy(server.url)
    proxy.lose(load("join").sha, times=7)
    fleet = Fleet(proxy.url, session.settings.namespace, home)
    worker = fleet.start(lease=10).up()
    assert proxy.lost == 7
    assert "the server is back" in worker.log
    assert nbqueue.submit(abs, -3).wait(20) == 3
    assert worker.stop() == 0
    fleet.close()
    proxy.close()


def test_a_server_that_still_loads_is_not_said_to_keep_no_file(short_folder):
    found = str(program.find_program(os.environ.get("NBQUEUE_TEST_SERVER")))
    socket = short_folder / "slow.sock"
    words = [found, "--port", "0", "--unixsocket", str(socket), "--dir", str(short_folder)]
    client = redis.Redis(unix_socket_path=str(socket))
    first = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    wait_until(lambda: _answers(client), 20)
    for number in range(200):
        client.set(f"key{number}", os.urandom(4000))
    client.shutdown(save=True)
    first.wait(20)
    slow = [*words, "--key-load-delay", "20000", "--loading-process-events-interval-bytes", "1024"]
    second = subprocess.Popen(slow, stdout=subprocess.DEVNULL)
    line = connect(f"unix://{socket}")
    try:
        wait_until(lambda: _answers(client, loading=True), 20)
        with pytest.raises(NoServer, match="loading"):
            preflight(line)
    finally:
        second.kill()
        second.wait(20)
        line.close()


def _answers(client, *, loading=False):
    try:
        return client.info()["loading"] == int(loading)
    except redis.RedisError:
        return False


@pytest.fixture
def full(short_folder, home):
    """A server of one's own, and a session on it."""
    running = program.start(short_folder, program=os.environ.get("NBQUEUE_TEST_SERVER"))
    yield nbqueue.connect(running.url, namespace="full")
    sessions._current.collector.stop()
    sessions._current = None


def test_an_upload_that_is_refused_tells_who_waits_and_no_thread_dies_of_it(full, monkeypatch):
    go_on, died = threading.Event(), []
    monkeypatch.setattr(threading, "excepthook", died.append)

    def items():
        yield 1
        go_on.wait(20)
        yield from range(2000)

    batch = nbqueue.map(abs, items())
    wait_until(lambda: batch.ref.state.known, 20)
    full.broker.client.config_set("maxmemory", 1 << 20)
    go_on.set()
    with pytest.raises(ServerRefused, match="memory"):
        batch.wait(20)
    wait_until(lambda: not any(thread.name == "nbqueue reader" for thread in threading.enumerate()), 20)
    full.broker.client.config_set("maxmemory", 0)
    assert not died
