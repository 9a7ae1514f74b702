"""What a stable knows of its slots: the calls that wait, the horse that rides, and what follows when a call is over.

A horse takes a ticket before each call, a byte from a pipe, which says to which gift of calls it belongs. Gift 0 it had
when it was forked. Those that follow are sent to a horse that has made all its calls, and waits for more.

A horse whose call has callbacks *stays*: it waits for the parent's word that the outcome is settled, and runs them. The
errand for this is done by a fresh horse where that one is gone.
"""

from __future__ import annotations

import functools
import os
import socket
import time
from collections import deque
from collections.abc import Iterable
from typing import Self

from nbqueue.current import CurrentJob
from nbqueue.model import CallbackResult
from nbqueue.perform import unpack
from nbqueue.worker.capture import Output
from nbqueue.worker.channel import Channel
from nbqueue.worker.frames import RUN, After, Job, Run, encode
from nbqueue.worker.hooks import Step
from nbqueue.worker.limits import Board

MOST_CALLS = 4_000  # of one horse: as many tickets fit into the smallest pipe
PATIENCE = 0.1  # seconds after which the calls behind a long one are taken back, whatever its slice
_REPORT_LIMIT = 1 << 28


class Call:
    """One call of a RUN, on its way through the stable."""

    __slots__ = ("attempt", "began", "index", "left", "meta", "payload", "run", "seq", "solo")

    def __init__(
        self, run: Run, seq: int, index: int, attempt: int, payload: bytes, meta: bytes = b"", *left: int | None
    ) -> None:
        """`left`: how many more runs there are after failures, and after successes."""
        self.run = run
        self.seq = seq
        self.index = index
        self.attempt = attempt
        self.payload = payload
        self.meta = meta
        self.left = left
        self.began: float | None = None  # when it was made, in seconds since the epoch
        self.solo = run.isolate or bool(run.hooks)  # alone in its process

    @property
    def job(self) -> str:
        """The job's id."""
        return self.run.batch if self.run.single else f"{self.run.batch}:{self.index}"

    def present(self) -> CurrentJob:
        """What get_current_job gives in it."""
        run = self.run
        return CurrentJob(
            self.job,
            batch=run.batch,
            index=self.index,
            attempt=self.attempt,
            func_name=run.label,
            description=run.description,
            queue=run.queue,
            timeout=run.timeout,
            meta=self.meta,
            left=self.left,
            worker=run.worker,
            began=self.began,
            arguments=functools.partial(unpack, self.payload),
        )


class Errand:
    """What is to be done about the end of a job, and what has become of it so far."""

    __slots__ = ("after", "call", "deaths", "echoes", "over", "steps", "value")

    def __init__(self, after: After, steps: list[Step], value: bytes | None) -> None:
        self.after = after
        self.call = Call(after.run, *after.run.jobs[0])
        self.call.began = after.began
        self.steps = steps
        self.value = value  # the pickled result
        self.echoes: list[CallbackResult] = []  # of the steps taken
        self.deaths = 0  # of horses that ran it
        self.over = False


class Forked:
    """A process that was forked to be a horse, and what connects it with its stable."""

    def __init__(self, pid: int, gear: Gear, board: Board) -> None:
        self.pid = pid
        self.gear = gear
        self.board = board
        self.pidfd = _pidfd(pid)
        self.gone = False

    def descriptors(self) -> list[int]:
        """Those that another horse must not inherit."""
        fds = [self.gear.report_in, self.gear.output_in, self.gear.tickets, self.gear.feed]
        return fds if self.pidfd is None else [*fds, self.pidfd]

    def close(self) -> None:
        """Closes them; for a horse that never was mounted."""
        self.gone = True
        for fd in self.descriptors():
            os.close(fd)


class Mount:
    """A live horse, seen from the stable."""

    def __init__(self, slot: Slot, forked: Forked, calls: list[Call], errand: Errand | None = None) -> None:
        gear = forked.gear
        self.slot = slot
        slot.board = forked.board
        self.pid = forked.pid
        self.channel = Channel(socket.socket(fileno=gear.report_in), _REPORT_LIMIT)
        self.output = Output(gear.output_in, gear.mark)
        self.pidfd = forked.pidfd
        self.served = 0  # calls made before the last gift
        self.lasts = not calls  # whether it waits for more when it has made its calls
        self.overdue = False  # killed, because the grace was over
        self.garbled = False  # killed, because its call wrote what is no frame of ours
        self.kills = 0  # by the kernel, for memory, before it was there
        self.killed: set[int] = set()  # seqs of calls that nobody wants to hear of
        self.gone = False
        self._tickets, self._feed, self._gift = gear.tickets, gear.feed, 0
        self._expect(calls)
        self.heard = False  # whether the selector watches its output
        self.errand: Errand | None = None
        self.stays_since: float | None = (
            None  # on the slot's clock: it makes no more calls, and waits or runs an errand
        )
        self.leaving = False  # there is nothing more for it to do
        if errand is not None:
            self.reported = len(calls)
            self.stay()
            self.errand = errand

    def _expect(self, calls: list[Call]) -> None:
        self.calls = calls  # those whose tickets it took, or may still take
        self.reported = 0  # calls that have their outcome
        self.begun: int | None = None  # position of the call that outlasted the slice
        self.alarmed: int | None = None  # position of the call that was told of its limit
        limits = [call.run.timeout for call in calls if call.run.timeout is not None]
        self.patience = max(PATIENCE, calls[0].run.slice if calls else 0.0)
        self.rhythm = min(self.patience, *limits) if limits else self.patience
        self._given = time.monotonic()
        self.check_at = self._given + min(self.rhythm, 0.005)

    def give(self, calls: list[Call]) -> None:
        """Has it make these calls, all of one RUN. Only while it waits for more."""
        self.served += self.reported
        self._expect(calls)
        self._gift = (self._gift + 1) % 256
        os.write(self._feed, bytes([self._gift]) * len(calls))
        jobs = [Job(call.seq, call.index, call.attempt, call.payload, call.meta, *call.left) for call in calls]
        self.channel.send(RUN, encode(calls[0].run._replace(jobs=jobs)))

    @property
    def waits(self) -> bool:
        """Whether it has made all its calls, and waits for more; one that has closed its end is about to be buried."""
        return self.lasts and not (self.busy or self.leaving or self.channel.eof)

    def left(self) -> float:
        """Seconds in which it will have made its calls, as far as those that it has made tell; else 0."""
        made = self.reported
        return (time.monotonic() - self._given) / made * (len(self.calls) - made) if made else 0.0

    @property
    def shared(self) -> bool:
        """Whether its process has made other calls before the one that goes on."""
        return self.served + self.reported > 0

    def stay(self) -> None:
        """Its call is over, and it waits for what is to be done about that."""
        self.stays_since = self.slot.board.now()
        self.alarmed = None

    @property
    def stays_for(self) -> int | None:
        """The seq of the job whose end it attends to; None while it makes calls."""
        return None if self.stays_since is None else self.calls[self.reported - 1].seq

    def take_back(self) -> list[Call]:
        """The calls whose tickets were not taken; the horse will not make them."""
        try:
            count = len(os.read(self._tickets, MOST_CALLS))
        except BlockingIOError:
            count = 0
        if not count:
            return []
        rest = self.calls[-count:]
        del self.calls[-count:]
        return rest

    @property
    def unfinished(self) -> list[Call]:
        """The calls without an outcome, the one that goes on first."""
        return self.calls[self.reported :]

    @property
    def busy(self) -> bool:
        """Whether it has more to do than to end."""
        return self.stays_since is not None or self.reported < len(self.calls)

    def close(self) -> None:
        """Closes every descriptor that belongs to this horse."""
        self.gone = True
        self.channel.close()
        self.output.close()
        os.close(self._tickets)
        os.close(self._feed)
        if self.pidfd is not None:
            os.close(self.pidfd)

    def descriptors(self) -> list[int]:
        """Those that another horse must not inherit."""
        fds = [self.channel.fileno(), self.output.fileno(), self._tickets, self._feed]
        return fds if self.pidfd is None else [*fds, self.pidfd]


def _pidfd(pid: int) -> int | None:
    """A descriptor that tells of a child's end; None where the system has none (old kernels, seccomp, macOS)."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


class Gear:
    """The descriptors between a stable and a horse that is about to be forked; a context that closes what is left."""

    def __init__(self, count: int) -> None:
        self._open: set[int] = set()
        self.mark = os.urandom(16)  # ends the output of every call
        try:
            self.report_in, self.report = self._keep(end.detach() for end in socket.socketpair())
            self.output_in, self.output = self._keep(os.pipe())
            self.tickets, self.feed = self._keep(os.pipe())
            for fd in (self.output_in, self.tickets):  # either side may find no ticket: the other one was faster
                os.set_blocking(fd, False)
            os.write(self.feed, bytes(count))
        except OSError:
            self.__exit__()
            raise

    def _keep(self, fds: Iterable[int]) -> tuple[int, int]:
        first, second = fds
        self._open.update((first, second))
        return first, second

    def keep_ours(self) -> None:
        """Leaves the stable's ends open."""
        self._open -= {self.report_in, self.output_in, self.tickets, self.feed}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            os.close(self._open.pop())


class Slot:
    """A place for one horse at a time."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.queue: deque[Call] = deque()
        self.errands: deque[Errand] = deque()
        self.board = Board()
        self.mount: Mount | None = None

    @property
    def waits(self) -> bool:
        """Whether there is something to do, and no horse that has something else to do."""
        return (self.mount is None or self.mount.waits) and bool(self.queue or self.errands)

    def pick(self, *, gift: bool = False) -> list[Call]:
        """The next horse's calls: one that must be alone, or all up to such a one; of a gift, those of one RUN."""
        first = self.queue.popleft()
        calls = [first]
        if first.solo:
            return calls
        queue, run = self.queue, first.run
        while queue and len(calls) < MOST_CALLS and not queue[0].solo and queue[0].run.slice == run.slice:
            if gift and queue[0].run is not run:
                break
            calls.append(queue.popleft())
        return calls

    def put_back(self, calls: Iterable[Call]) -> None:
        """Puts calls before all others, in their order."""
        self.queue.extendleft(reversed(list(calls)))

    def clear(self) -> list[Call]:
        """Takes all calls that wait."""
        calls = list(self.queue)
        self.queue.clear()
        return calls
