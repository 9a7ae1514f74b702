"""The stable's clock: time limits of calls, the calls behind a long one, and the fence of the lease."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from nbqueue.worker import limits, tree

if TYPE_CHECKING:
    from nbqueue.worker.slots import Call, Mount

WAIT = 10.0  # seconds that a horse waits for the word that its job's outcome is settled
_LISTEN = 0.005  # seconds after which the output of a call is watched: a short call is not worth a wake-up


class Clock:
    """Looks at each horse when something is due for it.

    It is told how to `listen` to a horse's output, how to give calls back, and how to say that one has begun.
    """

    def __init__(
        self,
        listen: Callable[[Mount], None],
        take_back: Callable[[Sequence[Call]], None],
        begun: Callable[[Call], None],
    ) -> None:
        self._listen, self._take_back, self._begun = listen, take_back, begun
        self.fence: float | None = None
        self._frozen_at: float | None = None

    @property
    def frozen(self) -> bool:
        """Whether the fence has been reached: nothing runs and nothing starts until the parent says what stands."""
        return self._frozen_at is not None

    def patience(self, mounts: Sequence[Mount]) -> float:
        """Seconds until the next thing is due."""
        if self._frozen_at is not None:
            return math.inf
        now = time.monotonic()
        due = math.inf if self.fence is None else self.fence - limits.fence_clock()
        return min([due, *(mount.check_at - now for mount in mounts)])

    def room(self, mounts: Sequence[Mount]) -> float:
        """Seconds in which no time limit and no fence falls due."""
        found = math.inf if self.fence is None else self.fence - limits.fence_clock()
        for mount in mounts:
            if (going := mount.slot.board.read()) is not None and mount.busy:
                position, since = going
                steps = mount.errand.steps if mount.errand is not None else [call.run for call in mount.calls]
                limit = steps[position].timeout if position < len(steps) else None
                found = min(found, math.inf if limit is None else limit - (mount.slot.board.now() - since))
        return found

    def keep_fence(self, mounts: Sequence[Mount]) -> None:
        """At the fence, freezes all horses and what is under them."""
        if self._frozen_at is None and self.fence is not None and limits.fence_clock() >= self.fence:
            self._frozen_at = time.monotonic()
            for mount in mounts:
                tree.freeze(mount.pid)

    def thaw(self, mounts: Sequence[Mount]) -> None:
        """Lets all go on, their clocks set back by the time that they were frozen."""
        if self.fence is not None and limits.fence_clock() >= self.fence:
            self.fence = None
        if self._frozen_at is None:
            return
        lapse, self._frozen_at = time.monotonic() - self._frozen_at, None
        for mount in mounts:
            mount.slot.board.froze(lapse)
            mount.check_at = 0.0
            tree.thaw(mount.pid)

    def keep(self, mounts: Sequence[Mount]) -> None:
        """Does what is due."""
        self.keep_fence(mounts)
        now = time.monotonic()
        for mount in mounts:
            if self._frozen_at is None and not mount.gone and mount.check_at <= now:
                self._check(mount, now)

    def _check(self, mount: Mount, now: float) -> None:
        """Does what is due for the call that goes on, and says when to look again."""
        going = mount.slot.board.read()
        if mount.waits:
            self._listen(mount)
            mount.check_at = math.inf  # until it is given more
            return
        if mount.stays_since is not None:
            self._attend(mount, mount.stays_since, going, now)
            return
        if going is None or mount.overdue or going[0] >= len(mount.calls):
            self._listen(mount)  # it loads, or its last words are many
            mount.check_at = now + mount.rhythm
            return
        position, since = going
        call, elapsed = mount.calls[position], mount.slot.board.now() - since
        if not mount.heard:
            if elapsed < _LISTEN:
                mount.check_at = now + min(mount.rhythm, _LISTEN)
                return
            self._listen(mount)
        due = [mount.patience]
        if elapsed >= mount.patience:
            due = [elapsed + mount.patience]  # what is sent behind a long call is taken back again
            self._take_back([*mount.take_back(), *mount.slot.clear()])
            if mount.begun != position:
                mount.begun = position
                self._begun(call)
        if (limit := call.run.timeout) is not None:
            due.append(self._enforce(mount, position, elapsed, limit, call.run.grace))
        mount.check_at = now + min(due) - elapsed

    def _attend(self, mount: Mount, since: float, going: tuple[int, float] | None, now: float) -> None:
        """After a call: the wait for the word has an end, and so has every step of an errand."""
        self._listen(mount)
        clock = mount.slot.board.now()
        mount.check_at = now + mount.patience
        if mount.overdue or mount.leaving:
            return
        if clock - since >= mount.patience:
            self._take_back(mount.slot.clear())
        if mount.errand is None:
            if clock - since >= WAIT:
                tree.kill_group(mount.pid)
        elif going is not None and going[0] < len(mount.errand.steps):
            position, begun = going
            errand = mount.errand
            limit, grace = errand.steps[position].timeout, errand.call.run.grace
            due = self._enforce(mount, position, clock - begun, limit, grace)
            mount.check_at = min(mount.check_at, now + due - (clock - begun))

    def _enforce(self, mount: Mount, position: int, elapsed: float, limit: float, grace: float) -> float:
        """Tells a call of its time limit, or ends it; returns when the next step is due."""
        if elapsed < limit:
            return limit
        if elapsed >= limit + grace:
            mount.overdue = True
            tree.kill_group(mount.pid)
            return math.inf
        if mount.alarmed != position:
            mount.alarmed = position
            tree.send(mount.pid, limits.ALARM)
        return limit + grace
