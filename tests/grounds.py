"""Where faults happen: a namespace reached through a proxy, or a server of a test's own that may be hurt."""

import os
import secrets
import shutil
import signal
import socket
import threading

from fleet import Fleet
from helpers import wait_until
from proxy import Proxy
from witness import Witness

import nbqueue
from nbqueue.client.session import session as sessions
from nbqueue.settings import born
from nbqueue.store import server as program
from nbqueue.store.connection import connect

LIMIT = 60.0  # seconds within which whatever waits must come to an end (I8)


class Ground:
    """A namespace on a server where faults happen: `session` and `fleet` reach it by `url`, the witness directly."""

    def __init__(self, server_url, url, home, folder):
        self.server_url = server_url
        self.session = nbqueue.connect(url, namespace=f"t{secrets.token_hex(4)}")
        self.fleet = Fleet(url, self.session.settings.namespace, home)
        self.witness = Witness(server_url, self.session.settings.namespace, self.session.sealer, folder)
        self.start = self.fleet.start
        self.broker = self.witness.broker

    def map(self, n, seconds=0.1, **options):
        """A batch of witnessed jobs, watched from now on."""
        batch = nbqueue.map(self.witness.job(seconds), range(n), **options)
        self.witness.watch(batch.id)
        return batch

    def ends_well(self, *batches):
        """Every job of these has finished with its own value, the invariants hold, and nothing is left."""
        for batch in batches:
            assert batch.wait(LIMIT), self.logs()
            assert batch.results() == list(range(len(batch)))
        self.witness.check(*(batch.id for batch in batches))
        self.witness.check_gone(*batches)

    def logs(self):
        return "\n".join(worker.log for worker in self.fleet.workers)

    def close(self):
        self.fleet.close()
        self.session.collector.stop()
        self.witness.close()
        sessions._current = None


class Wire(Ground):
    """All but the witness come through `proxy`; an answer is waited for `timeout` seconds, 5 by default elsewhere."""

    def __init__(self, server_url, home, folder, timeout=1):
        self.proxy = Proxy(server_url)
        super().__init__(server_url, f"{self.proxy.url}?socket_timeout={timeout}", home, folder)

    def close(self):
        super().close()
        self.proxy.close()


class Hurt(Ground):
    """A server of its own, behind `proxy` for those who ask for it, that may be stopped, killed, and made to forget."""

    def __init__(self, folder, home, notes):
        self.folder = folder
        self.pid = program.start(folder, program=os.environ.get("NBQUEUE_TEST_SERVER")).pid
        self.url = program.status(folder).url
        self.proxy = Proxy(self.url)
        super().__init__(self.url, f"{self.proxy.url}?socket_timeout=1", home, notes)

    def client(self):
        """A connection to the server of the test's own."""
        return connect(self.url).client

    def pause(self, seconds):
        """Stops the server for so long, from another thread."""
        os.kill(self.pid, signal.SIGSTOP)
        threading.Timer(seconds, os.kill, [self.pid, signal.SIGCONT]).start()

    def kill(self):
        before = born(self.pid)
        os.kill(self.pid, signal.SIGKILL)
        wait_until(lambda: born(self.pid) != before, 20)

    def restart(self, *, forgetting=False, options=()):
        """The server again, on the same data, or without them; with more options on its command line."""
        if forgetting:
            shutil.rmtree(self.folder / "appendonlydir", ignore_errors=True)
            (self.folder / "appendonly.aof").unlink(missing_ok=True)
        named = program.find_program(os.environ.get("NBQUEUE_TEST_SERVER"))
        if options:
            words = " ".join(options)
            named, real = self.folder / "program", named
            named.write_text(f'#!/bin/sh\nexec {real} "$@" {words}\n')
            named.chmod(0o700)
        self.pid = program.start(self.folder, program=named).pid

    def close(self):
        if program.status(self.folder) is None and born(self.pid):
            os.kill(self.pid, signal.SIGCONT)
        if program.status(self.folder) is None:
            self.restart()
        super().close()
        self.proxy.close()


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
