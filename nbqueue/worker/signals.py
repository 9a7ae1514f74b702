"""The signals of a worker: its children's ends, and the wish that it stop."""

from __future__ import annotations

import contextlib
import math
import signal
import socket
import time
from collections.abc import Callable, Iterator
from selectors import EVENT_READ, BaseSelector

TWICE = 1.0  # seconds: a scheduler may send its first SIGTERM twice


class Signals:
    """What the signals have said; each wakes the selector, so that the loop sees it at once, wherever it is."""

    def __init__(self, grace: float, *, exits: bool, urgent: Callable[[], None] | None = None) -> None:
        """`urgent` is called, within the handler, when the end is asked for once more."""
        self._grace, self._exits, self._urgent = grace, exits, urgent
        self._at = 0.0
        self.stop_at: float | None = None  # when running jobs are killed (inf: never); None: nobody asked it to stop
        self.bereaved = False  # a child has ended

    @contextlib.contextmanager
    def watched(self, selector: BaseSelector) -> Iterator[None]:
        """Handles signals while the context lasts; in the main thread only."""
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        selector.register(near, EVENT_READ, near)
        known = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)}
        wakeup = signal.set_wakeup_fd(far.fileno(), warn_on_full_buffer=False)
        for number in known:
            signal.signal(number, self._signalled)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in known.items():
                late = self._exits and number != signal.SIGCHLD
                signal.signal(number, signal.SIG_IGN if late else handler)
            selector.unregister(near)
            near.close()
            far.close()

    def _signalled(self, number: int, _frame: object) -> None:
        if number == signal.SIGCHLD:
            self.bereaved = True
        else:
            self.stop()

    def stop(self) -> None:
        """Asks for the end: after the grace at first, at once when it is asked for again."""
        now = time.monotonic()
        if self.stop_at is None or self.stop_at == math.inf:
            self.stop_at = now + self._grace
        elif now - self._at >= TWICE:
            self.stop_at = now
            if self._urgent is not None:
                self._urgent()
        else:
            return
        self._at = now

    def finish(self) -> None:
        """Asks for the end once all that runs is over, however long that takes."""
        if self.stop_at is None:
            self.stop_at = math.inf
