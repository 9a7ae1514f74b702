"""The heartbeat of a worker whose only thread is busy with a job: a thread of its own, with its own connection."""

from __future__ import annotations

import threading
from collections.abc import Callable

from nbqueue.errors import LeaseEnded, SetupError
from nbqueue.store.broker import Broker


class Pulse:
    """Renews the lease of `worker`, reaps and promotes, until it is stopped; `ended` once the lease is lost."""

    def __init__(
        self, broker: Broker, worker: str, *, lease: float, beat: float, work: Callable[[], str] = str
    ) -> None:
        """`work()` says what the worker has done so far, as Broker.renew takes it."""
        self.worker = worker
        self.ended = False
        self._broker, self._lease, self._beat, self._work = broker, lease, beat, work
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nbqueue pulse", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._beat):
            try:
                self._broker.renew(self.worker, lease=self._lease, work=self._work())
                self._broker.reap()
                self._broker.promote()
            except LeaseEnded:
                self.ended = True
                return
            except SetupError:
                continue  # the server is away: whoever works says so

    def stop(self) -> None:
        """Ends it; returns when its last renewal is over."""
        self._stop.set()
        self._thread.join()
        self._broker.connection.close()
