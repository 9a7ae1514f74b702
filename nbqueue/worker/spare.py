"""The spare horse of a stable: forked while nothing else is to be done, so that the next call need not wait for a fork.

It has done all that comes before a call, and waits for one as any horse does that has made its calls.
"""

from __future__ import annotations

import math
import os
import selectors
import time
from typing import TYPE_CHECKING

from nbqueue.worker import tree

if TYPE_CHECKING:
    from nbqueue.worker.certificate import Obituary
    from nbqueue.worker.slots import Call, Forked, Mount, Slot

_PAUSE = 1.0  # seconds until the next one, after one has died or could not be forked
_LIGHT = 1 << 16  # bytes of a job that it is sent: they are taken at once, where more would have to wait


class Spares:
    """At most one horse, which has no slot yet."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self.horse: Forked | None = None
        self.due = math.inf  # when there should be one, if nothing else is to be done
        self._obituary: Obituary | None = None
        self._selector = selector

    def allow(self, obituary: Obituary) -> None:
        """From now on there may be one."""
        self._obituary = obituary

    def want(self) -> None:
        """A call is over, and another one may come."""
        if self._obituary is not None and self.horse is None:
            self.due = time.monotonic()

    def put_off(self) -> None:
        """One has died, or could not be forked."""
        self.due = time.monotonic() + _PAUSE

    def take(self, forked: Forked) -> None:
        """It has been forked."""
        self.due = math.inf
        if forked.pidfd is None:
            # Where nothing would tell of its end there is none.
            self._obituary = None
            tree.kill_group(forked.pid)
            os.waitpid(forked.pid, 0)
            forked.close()
            return
        self.horse = forked
        self._selector.register(forked.pidfd, selectors.EVENT_READ, (forked, self._bury))

    def give(self, slot: Slot, calls: list[Call]) -> Mount | None:
        """Has it make this call, if it is there, and if it is one."""
        from nbqueue.worker.slots import Mount

        forked, call = self.horse, calls[0]
        if forked is None or len(calls) > 1 or len(call.payload) + len(call.meta) > _LIGHT:
            return None
        self._let_go(forked)
        mount = Mount(slot, forked, [])
        mount.give(calls)
        return mount

    def drop(self) -> None:
        """Ends it."""
        if self.horse is not None:
            tree.kill_group(self.horse.pid)

    def _let_go(self, forked: Forked) -> None:
        self.horse = None
        if forked.pidfd is not None:
            self._selector.unregister(forked.pidfd)

    def _bury(self, forked: Forked) -> None:
        pid, status, _ = os.wait4(forked.pid, os.WNOHANG)
        if not pid:
            return
        self._let_go(forked)
        forked.close()
        self.put_off()
        if self._obituary is not None:
            self._obituary.pass_over(status)
