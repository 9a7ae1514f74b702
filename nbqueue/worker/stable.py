"""The stable: has loaded one function, forks a horse for every slot that has calls, and keeps the clock.

`python -m nbqueue.worker.stable FD` with a socket to the parent. Until HELLO comes it has imported the standard library
only. It never blocks on a write and always reads; when the parent is gone it kills its tree and leaves.
"""

from __future__ import annotations

import math
import os
import select
import selectors
import socket
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, NoReturn

from nbqueue.worker import frames, herd, limits, tree
from nbqueue.worker.channel import Channel, Frame
from nbqueue.worker.herd import NAP

if TYPE_CHECKING:
    from nbqueue.worker import fresh
    from nbqueue.worker.slots import Call, Errand, Forked, Slot

_LONG = 5.0  # seconds that an import takes, at most, for whoever must know how long to be away
_RETRY = 0.1  # seconds until the next try, after the system refused a process
_LOOK = 0.02  # seconds between looks for the dead, where nothing tells of them
_LAST_LOOK = 5.0  # seconds in which all below us must be dead at the end


class Stable:
    """One function, its horses, and the channel to the parent."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.alarm = limits.Alarm()
        self.copies: fresh.Copies | None = None
        self._loaded = False
        self._refused: set[str] = set()  # modules that could not be imported here
        self._parent = os.getppid()
        self._outgrown = False  # what was imported since forbids to fork: it starts over once nothing runs
        self._retry_at = 0.0
        self._forking = 0.0  # CPU seconds that the last fork took
        self._setup = b""
        self._selector = selectors.DefaultSelector()
        self._selector.register(channel.fileno(), selectors.EVENT_READ)
        self._environ = dict(os.environ)
        self._herd = herd.Herd(channel, self._selector)

    # ------------------------------------------------------------ the loop

    def serve(self) -> None:
        """Works until the parent is gone."""
        self._hear(selectors.EVENT_READ)  # what it was started with, after it had to start over
        self._go_on()
        while not self.channel.eof:
            self._nap()
            events = self._selector.select(self._patience())
            self._herd.clock.keep_fence(self._herd.mounts())
            for key, mask in events:
                if key.data is None:
                    self._hear(mask)
                elif not key.data[0].gone:
                    key.data[1](key.data[0])
            self._herd.keep()
            self._learn()
            self._go_on()
            self._keep_spare()
        self._end()

    def _go_on(self) -> None:
        """Starts what waits, unless the lease may be over by now: the parent is gone, or the fence was reached."""
        self._herd.clock.keep_fence(self._herd.mounts())
        if not self.channel.eof and os.getppid() == self._parent:
            self._start()
        self._flush()

    def _nap(self) -> None:
        """While short calls go on, lets their reports add up; a word of the parent and a horse's end cut that short."""
        if not (seconds := self._herd.nap()):
            return
        if seconds <= NAP:
            time.sleep(seconds)
            return
        if (patience := self._patience()) is not None:
            seconds = min(seconds, patience)
        poll = select.poll()
        for fd in (self.channel.fileno(), *(mount.pidfd for mount in self._herd.mounts())):
            if fd is not None:
                poll.register(fd, select.POLLIN)
        poll.poll(1e3 * seconds)

    def _patience(self) -> float | None:
        mounts = self._herd.mounts()
        due = self._herd.clock.patience(mounts)
        if self._herd.spares.due != math.inf and self._herd.rests():
            due = min(due, self._herd.spares.due - time.monotonic())
        if self._retry_at:
            due = min(due, self._retry_at - time.monotonic())
        if self._herd.unburied or any(mount.pidfd is None for mount in mounts):
            due = min(due, _LOOK)
        return None if due == math.inf else max(0.0, due)

    def _flush(self) -> None:
        self.channel.flush()
        if not self.channel.eof:
            write = selectors.EVENT_WRITE if self.channel.wants_write else 0
            self._selector.modify(self.channel.fileno(), selectors.EVENT_READ | write)

    def _end(self) -> None:
        for mount in self._herd.mounts():
            tree.kill_group(mount.pid)
        self._herd.spares.drop()
        until = time.monotonic() + _LAST_LOOK
        while not tree.kill_strays(()) and time.monotonic() < until:
            time.sleep(0.01)  # a killed process needs a moment; nothing tells of its end

    # ------------------------------------------------------------ from the parent

    def _hear(self, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self.channel.flush()
        if not mask & selectors.EVENT_READ:
            return
        received = self.channel.receive()
        for position, (kind, payload, fd) in enumerate(received):
            if kind == frames.HELLO and (why := frames.stranger(payload)):
                self._decline(why)
                return
            if kind == frames.HELLO:
                self._prepare()
            if kind == frames.SETUP:
                self._setup = payload
            elif kind in (frames.LOAD, frames.LOAD_BARE):
                self._load(payload, received[position + 1 :], bare=kind == frames.LOAD_BARE)
            else:
                self._obey(kind, payload, fd)

    def _prepare(self) -> None:
        """Imports what every function needs: it may still be some time until there is one."""
        with tree.lean_forks():
            from nbqueue.worker import capture, certificate, horse, loading  # noqa: F401

    def _decline(self, why: str) -> None:
        """The worker is of another nbqueue: what it sends would be misunderstood."""
        from nbqueue.model import Failure, encode

        self.channel.queue(frames.UNFIT, encode(Failure("LoadError", why)))

    def _obey(self, kind: int, payload: bytes, fd: int | None) -> None:
        if kind == frames.RUN:
            self._herd.enqueue(frames.decode_run(payload))
        elif kind == frames.AFTER:
            self._herd.after(frames.decode_after(payload), fd)
        elif kind == frames.FENCE:
            self._herd.clock.fence = frames.unpack_fence(payload)
        elif kind == frames.THAW:
            self._herd.thaw(set(frames.unpack_seqs(payload)))
        elif kind == frames.KILL:
            self._herd.kill(set(frames.unpack_seqs(payload)))
        elif kind == frames.DRAIN:
            self._herd.drain()

    def _load(self, payload: bytes, later: list[Frame], *, bare: bool) -> None:
        from nbqueue.errors import LoadError
        from nbqueue.model import FunctionRecord, decode, encode
        from nbqueue.worker import capture, certificate, horse, loading

        began, since = time.monotonic(), time.time()
        record = self._herd.record = decode(FunctionRecord, payload, "The function")
        setup = self._herd.setup = frames.decode_setup(self._setup) if self._setup else frames.Setup()
        self._payload, self._cwd = payload, os.getcwd()  # noqa: PTH109 - a str for execve
        capture.open_streams()
        loading.settle_in(record, setup.paths)
        if not bare:
            # While a module is imported nobody reads the channel: the kernel watches the parent instead.
            tree.die_with(self._parent)
            try:
                function = loading.load(record, setup.preload)
                loading.import_ahead(record.imports)
            except LoadError as why:
                self.channel.queue(frames.UNFIT, encode(loading.failure_of(why)))
                return
            finally:
                tree.die_with(None)
            if loading.must_fork_bare():
                self._start_over(map(_folded, later))
            if not record.pinned:
                self.channel.queue(frames.FILES, frames.encode(loading.loaded_files(function, since)))
            self.copies = loading.copies(record, function)
        loading.freeze_memory()
        horse.shield()
        self.alarm.install()
        self._herd.obituary = certificate.Obituary()
        if self.copies is not None:
            self._herd.spares.allow(self._herd.obituary)
        self._herd.kept = set(tree.children())
        self._loaded = True
        # Sent at once: a first call may kill this process, and must then be blamed for it, not the loading.
        self.channel.send(frames.READY, frames.pack_seconds(time.monotonic() - began))

    def _start_over(self, more: Iterable[Frame]) -> NoReturn:
        """Loads nothing from now on: every horse does that itself. What the parent has sent by now goes along."""
        from nbqueue.worker import loading

        again = [(frames.LOAD_BARE, self._payload, None), *more]
        if self._setup:
            again.insert(0, (frames.SETUP, self._setup, None))
        loading.start_over(self.channel, again, self._cwd, self._environ)

    # ------------------------------------------------------------ learning

    def _learn(self) -> None:
        """Imports what calls had to import, so that the next horses have it; when nothing falls due meanwhile."""
        seconds, names = self._herd.learnt
        if self._outgrown and not self._herd.mounts():
            self._begin_bare()
        if not names or not self._herd.setup.learn or self._outgrown or self._herd.clock.frozen:
            return
        if self._herd.clock.room(self._herd.mounts()) < 2 * min(seconds, _LONG):
            return
        from nbqueue.worker import loading

        self._herd.learnt = frames.Learnt(0.0, [])
        fresh = [name for name in names if name not in sys.modules and name not in self._refused]
        if not fresh:
            return
        # Sent before: where it does not come back, the parent knows where from.
        self.channel.send(frames.LEARNT, frames.encode(frames.Learnt(seconds, fresh)))
        began, since = time.monotonic(), time.time()
        tree.die_with(self._parent)  # as while loading
        self._refused.update(loading.import_ahead(fresh))
        tree.die_with(None)
        if not self._herd.record.pinned and self.copies is not None:
            self.channel.queue(frames.FILES, frames.encode(loading.loaded_files(self.copies.function, since)))
        self.channel.queue(frames.READY, frames.pack_seconds(time.monotonic() - began))
        self._herd.spares.drop()  # it was forked without them
        self._outgrown = bool(loading.must_fork_bare())
        if not self._outgrown:
            loading.freeze_memory()

    def _begin_bare(self) -> NoReturn:
        """What waits here is given back; the parent sends it again."""
        herd = self._herd
        herd.give_back()
        while self.channel.wants_write:
            select.select([], [self.channel], [])
            self.channel.flush()
        afters = [errand.after._replace(value=errand.value) for errand in herd.errands()]
        more: list[Frame] = [(frames.AFTER, frames.encode(after), None) for after in afters]
        if herd.clock.fence is not None:
            more.append((frames.FENCE, frames.pack_fence(herd.clock.fence), None))
        if herd.draining:
            more.append((frames.DRAIN, b"", None))
        self._start_over(more)

    # ------------------------------------------------------------ horses

    def _start(self) -> None:
        if not self._loaded or self._outgrown or self._herd.clock.frozen:
            return
        if self._retry_at > time.monotonic():
            return
        self._retry_at = 0.0
        for slot in self._herd.slots.values():
            if slot.waits and self._herd.make_way(slot):
                if slot.mount is not None:
                    self._herd.give(slot.mount, slot.pick(gift=True))
                    continue
                errand = slot.errands.popleft() if slot.errands else None
                calls = slot.pick() if errand is None else [errand.call]
                if errand is None and (mount := self._herd.spares.give(slot, calls)) is not None:
                    self._herd.mounted(mount)
                    continue
                try:
                    self._fork(slot, calls, errand)
                except OSError as why:
                    # No process or descriptor is to be had for now: the calls wait, as they would for a slot.
                    sys.stderr.write(f"nbqueue: no horse for {calls[0].job}: {why}\n")
                    if errand is None:
                        slot.put_back(calls)
                    else:
                        slot.errands.appendleft(errand)
                    self._herd.spares.drop()  # it may take the place
                    self._retry_at = time.monotonic() + _RETRY
                    return

    def _fork(self, slot: Slot, calls: list[Call], errand: Errand | None) -> None:
        from nbqueue.worker import slots

        slot.board.clear()
        forked = self._horse(slot.board, calls, errand, tickets=0 if errand is not None else len(calls))
        self._herd.mounted(slots.Mount(slot, forked, calls, errand))

    def _keep_spare(self) -> None:
        """While nothing is to be done, forks the horse of the next call ahead."""
        if self._herd.spares.due > time.monotonic() or not self._herd.rests():
            return
        tree.make_way()  # for the parent, which hears of an outcome just now, and wakes where we run
        try:
            self._herd.spares.take(self._horse(limits.Board(), [], None, tickets=0))
        except OSError:
            self._herd.spares.put_off()  # no process to be had: it can wait

    def _horse(self, board: limits.Board, calls: list[Call], errand: Errand | None, *, tickets: int) -> Forked:
        """Forks a horse; without calls or an errand it waits for its first."""
        from nbqueue.worker import horse, slots

        with slots.Gear(tickets) as gear:
            saddle = horse.Saddle(
                calls=calls,
                copies=self.copies,
                record=self._herd.record,
                setup=self._herd.setup,
                errand=errand,
                board=board,
                alarm=self.alarm,
                mark=gear.mark,
                report=gear.report,
                output=gear.output,
                tickets=gear.tickets,
                stable=os.getpid(),
                refused=self._refused,
                warming=self._herd.warming(),
                forking=self._forking,
            )
            began = time.process_time()
            tree.is_lean(lean=True)
            pid = os.fork()
            tree.is_lean(lean=False)
            if pid == 0:
                try:
                    self._close_in_child(gear.report_in, gear.output_in, gear.feed)
                    horse.ride(saddle)
                finally:
                    os._exit(70)  # whatever happens, the child is no second stable
            self._forking = time.process_time() - began
            gear.keep_ours()
        return slots.Forked(pid, gear, board)

    def _close_in_child(self, *more: int) -> None:
        """A horse, and what it forks, must hold nothing that others wait to see closed."""
        selector = self._selector.fileno() if hasattr(self._selector, "fileno") else -1
        mine = [self.channel.fileno(), selector, *more]
        for fd in (*mine, *self._herd.descriptors()):
            if fd >= 0:
                os.close(fd)


def _folded(frame: Frame) -> Frame:
    """A frame that can lie in a file: an AFTER with its value in it, and not in a descriptor."""
    kind, payload, fd = frame
    if fd is None:
        return frame
    return kind, frames.encode(frames.decode_after(payload)._replace(value=frames.read_value(fd))), None


def main(arguments: list[str]) -> None:
    """Serves the socket with this number; a second one names a file of frames to begin with."""
    limits.become_subreaper()
    channel = Channel(socket.socket(fileno=int(arguments[0])))
    os.set_inheritable(channel.fileno(), False)
    if len(arguments) > 1:
        with os.fdopen(int(arguments[1]), "rb") as file:
            channel.feed(file.read())
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    Stable(channel).serve()


if __name__ == "__main__":
    # Under its own name, so that `__main__` can be the user's.
    from nbqueue.worker import stable  # noqa: PLW0406 - see above

    stable.main(sys.argv[1:])
