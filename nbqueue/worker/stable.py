"""The stable: has loaded one function, forks a horse for every slot that has calls, and keeps the clock.

`python -m nbqueue.worker.stable FD` with a socket to the parent. Until LOAD comes it has imported the standard library
only. It never blocks on a write and always reads; when the parent is gone it kills its tree and leaves.
"""

from __future__ import annotations

import math
import os
import selectors
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from nbqueue.worker import clock, frames, limits, tree

if TYPE_CHECKING:
    from nbqueue.model import FunctionRecord
    from nbqueue.worker.certificate import Obituary
    from nbqueue.worker.slots import Call, Mount, Slot

_NAP = 0.0003  # seconds in which short calls add up: waking for each would cost more than it is worth
_RETRY = 0.1  # seconds until the next try, after the system refused a process
_LOOK = 0.02  # seconds between looks for the dead, where nothing tells of them
_LAST_LOOK = 5.0  # seconds in which all below us must be dead at the end


class Stable:
    """One function, its slots, and the channel to the parent."""

    def __init__(self, channel: frames.Channel) -> None:
        self.channel = channel
        self.slots: dict[int, Slot] = {}
        self.alarm = limits.Alarm()
        self.record: FunctionRecord  # this and the next since LOAD
        self.obituary: Obituary
        self.function: Callable[..., Any] | None = None
        self._loaded = False
        self._draining = False
        self._busy = False  # whether a horse that reports will soon report again
        self._clock = clock.Clock(self._listen, self._take_back, self._begun)
        self._retry_at = 0.0
        self._kept: set[int] = set()  # children that loading started
        self._unburied = False  # whether strays of a dead horse may still live
        self._gone: list[int] = []  # killed on request, and to be told when no stray lives
        self._selector = selectors.DefaultSelector()
        self._selector.register(channel.fileno(), selectors.EVENT_READ)
        self._environ = dict(os.environ)

    # ------------------------------------------------------------ the loop

    def serve(self) -> None:
        """Works until the parent is gone."""
        self._hear(selectors.EVENT_READ)  # what it was started with, after it had to start over
        self._start()
        self._flush()
        while not self.channel.eof:
            if self._busy:
                time.sleep(_NAP)
                self._busy = False
            events = self._selector.select(self._patience())
            self._clock.keep_fence(self._mounts())
            for key, mask in events:
                if key.data is None:
                    self._hear(mask)
                elif not key.data[0].gone:
                    key.data[1](key.data[0])
            self._keep_time()
            self._start()
            self._flush()
        self._end()

    def _mounts(self) -> list[Mount]:
        return [slot.mount for slot in self.slots.values() if slot.mount is not None]

    def _patience(self) -> float | None:
        mounts = self._mounts()
        due = self._clock.patience(mounts)
        if self._retry_at:
            due = min(due, self._retry_at - time.monotonic())
        if self._unburied or any(mount.pidfd is None for mount in mounts):
            due = min(due, _LOOK)
        return None if due == math.inf else max(0.0, due)

    def _flush(self) -> None:
        self.channel.flush()
        if not self.channel.eof:
            write = selectors.EVENT_WRITE if self.channel.wants_write else 0
            self._selector.modify(self.channel.fileno(), selectors.EVENT_READ | write)

    def _end(self) -> None:
        for mount in self._mounts():
            tree.kill_group(mount.pid)
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
        for position, (kind, payload, _) in enumerate(received):
            if kind in (frames.LOAD, frames.LOAD_BARE):
                self._load(payload, received[position + 1 :], bare=kind == frames.LOAD_BARE)
            elif kind == frames.RUN:
                self._enqueue(frames.decode_run(payload))
            elif kind == frames.FENCE:
                self._clock.fence = frames.unpack_fence(payload)
            elif kind == frames.THAW:
                self._thaw(set(frames.unpack_seqs(payload)))
            elif kind == frames.KILL:
                self._kill(set(frames.unpack_seqs(payload)))
            elif kind == frames.DRAIN:
                self._drain()

    def _load(self, payload: bytes, later: frames.Frames, *, bare: bool) -> None:
        from nbqueue.errors import LoadError
        from nbqueue.model import FunctionRecord, decode, encode
        from nbqueue.worker import capture, certificate, horse, loading

        began = time.monotonic()
        self.record = decode(FunctionRecord, payload, "The function")
        start = os.getcwd()  # noqa: PTH109 - a str for execve
        capture.open_streams()
        loading.settle_in(self.record)
        if not bare:
            # While a module is imported nobody reads the channel: the kernel watches the parent instead.
            tree.die_with(os.getppid())
            try:
                self.function = loading.load(self.record)
            except LoadError as why:
                self.channel.queue(frames.UNFIT, encode(loading.failure_of(why)))
                return
            finally:
                tree.die_with(None)
            if loading.must_fork_bare():
                loading.start_over(self.channel, payload, later, start, self._environ)
        loading.freeze_memory()
        horse.shield()
        self.alarm.install()
        self.obituary = certificate.Obituary()
        self._kept = set(tree.children())
        self._loaded = True
        self.channel.queue(frames.READY, frames.pack_seconds(time.monotonic() - began))

    def _slot(self, number: int) -> Slot:
        from nbqueue.worker.slots import Slot

        if number not in self.slots:
            self.slots[number] = Slot(number)
        return self.slots[number]

    def _enqueue(self, run: frames.Run) -> None:
        from nbqueue.worker.slots import Call

        calls = [Call(run, *job) for job in run.jobs]
        if self._draining:
            self._take_back(calls)
        else:
            self._slot(run.slot).queue.extend(calls)

    def _take_back(self, calls: Sequence[Call]) -> None:
        if calls:
            self.channel.queue(frames.BACK, frames.pack_seqs(call.seq for call in calls))

    def _begun(self, call: Call) -> None:
        self.channel.queue(frames.BEGUN, frames.pack_seqs([call.seq]))

    def _drain(self) -> None:
        self._draining = True
        for slot in self.slots.values():
            rest = slot.mount.take_back() if slot.mount is not None else []
            self._take_back([*rest, *slot.clear()])

    def _kill(self, seqs: set[int]) -> None:
        for slot in self.slots.values():
            mount = slot.mount
            if mount is not None:
                self._report(mount)
            if mount is not None and any(call.seq in seqs for call in mount.unfinished):
                slot.put_back(mount.take_back())
                running = seqs.intersection(call.seq for call in mount.unfinished)
                if running or not mount.unfinished:
                    mount.killed |= running
                    tree.kill_group(mount.pid)
            queued = [call.seq for call in slot.queue if call.seq in seqs]
            if queued:
                kept = [call for call in slot.queue if call.seq not in seqs]
                slot.queue.clear()
                slot.queue.extend(kept)
                self._gone += queued
        self._tell_gone()

    def _tell_gone(self) -> None:
        if self._gone and not self._unburied:
            self.channel.queue(frames.GONE, frames.pack_seqs(self._gone))
            self._gone = []

    # ------------------------------------------------------------ time

    def _thaw(self, standing: set[int]) -> None:
        """The lease was renewed for these: they go on, all others end."""
        held = {call.seq for slot in self.slots.values() for call in slot.queue}
        held.update(call.seq for mount in self._mounts() for call in mount.unfinished)
        self._kill(held - standing)
        self._clock.thaw(self._mounts())

    def _keep_time(self) -> None:
        if self._unburied:
            self._bury_strays()
        for mount in self._mounts():
            if mount.pidfd is None:
                self._bury(mount)
        self._clock.keep(self._mounts())

    # ------------------------------------------------------------ horses

    def _start(self) -> None:
        if not self._loaded or self._draining or self._clock.frozen:
            return
        if self._retry_at > time.monotonic():
            return
        self._retry_at = 0.0
        for slot in self.slots.values():
            if slot.queue and slot.mount is None:
                calls = slot.pick()
                try:
                    self._fork(slot, calls)
                except OSError as why:
                    # No process or descriptor is to be had for now: the calls wait, as they would for a slot.
                    sys.stderr.write(f"nbqueue: no horse for {calls[0].job}: {why}\n")
                    slot.put_back(calls)
                    self._retry_at = time.monotonic() + _RETRY
                    return

    def _fork(self, slot: Slot, calls: list[Call]) -> None:
        from nbqueue.worker import horse, slots

        slot.board.clear()
        mark = os.urandom(16)
        with slots.Gear(len(calls)) as gear:
            saddle = horse.Saddle(
                calls=calls,
                function=self.function,
                record=self.record,
                board=slot.board,
                alarm=self.alarm,
                mark=mark,
                report=gear.report,
                output=gear.output,
                tickets=gear.tickets,
                stable=os.getpid(),
                slice=0.0 if calls[0].solo else calls[0].run.slice,
            )
            pid = os.fork()
            if pid == 0:
                try:
                    self._close_in_child(gear.report_in, gear.output_in)
                    horse.ride(saddle)
                finally:
                    os._exit(70)  # whatever happens, the child is no second stable
            gear.keep_ours()
        mount = slot.mount = slots.Mount(slot, pid, calls, gear, mark)
        self._selector.register(mount.channel, selectors.EVENT_READ, (mount, self._report))
        if mount.pidfd is not None:
            self._selector.register(mount.pidfd, selectors.EVENT_READ, (mount, self._bury))

    def _close_in_child(self, *more: int) -> None:
        """A horse, and what it forks, must hold nothing that others wait to see closed."""
        selector = self._selector.fileno() if hasattr(self._selector, "fileno") else -1
        mine = [self.channel.fileno(), selector, *more]
        for fd in (*mine, *(fd for mount in self._mounts() for fd in mount.descriptors())):
            if fd >= 0:
                os.close(fd)

    def _listen(self, mount: Mount) -> None:
        if not mount.heard:
            mount.heard = True
            self._selector.register(mount.output, selectors.EVENT_READ, (mount, self._print))

    def _print(self, mount: Mount) -> None:
        mount.output.read()
        if mount.output.eof:
            self._forget(mount.output.fileno())

    def _report(self, mount: Mount) -> None:
        try:
            received = mount.channel.receive()
        except frames.FrameError:
            tree.kill_group(mount.pid)  # the job wrote into our socket: its certificate will say that it crashed
            self._forget(mount.channel.fileno())
            return
        try:
            for kind, payload, fd in received:
                if kind == frames.DONE:
                    self._done(mount, payload, fd)
                elif kind == frames.NOTE and frames.unpack_note(payload).seq not in mount.killed:
                    self.channel.queue(kind, payload)
        except (struct.error, IndexError):
            tree.kill_group(mount.pid)  # as above
        if mount.channel.eof:
            self._forget(mount.channel.fileno())

    def _done(self, mount: Mount, payload: bytes, fd: int | None) -> None:
        from nbqueue.worker import capture, horse

        call = mount.calls[mount.reported]
        mount.reported += 1
        self._busy = self._busy or mount.reported < len(mount.calls)
        flags = payload[-1]
        tail = mount.output.last() if flags & horse.UNMARKED else mount.output.take()
        if call.seq in mount.killed:
            if fd is not None:
                os.close(fd)
            self._gone.append(call.seq)
            return
        tail = capture.tail_for(tail, failed=bool(flags & horse.FAILED))
        self.channel.queue(frames.DONE, payload[:-1] + tail, fd)

    def _forget(self, fd: int) -> None:
        try:
            self._selector.unregister(fd)
        except KeyError:
            return  # it has been forgotten before

    def _bury(self, mount: Mount) -> None:
        """After a horse's end: its last words, its certificate, its calls to the next horse, its strays."""
        pid, status, usage = os.wait4(mount.pid, os.WNOHANG)
        if not pid:
            return
        while not mount.channel.dry:
            self._report(mount)
        mount.output.drain()
        slot = mount.slot
        for fd in mount.descriptors():
            self._forget(fd)
        slot.put_back(mount.take_back())
        slot.mount = None
        if mount.unfinished:
            self._mourn(mount, status, usage)
        if self._draining:
            self._take_back(slot.clear())
        mount.close()
        self._unburied = True
        self._bury_strays()

    def _mourn(self, mount: Mount, status: int, usage: Any) -> None:
        call = mount.unfinished[0]
        if call.seq in mount.killed:
            self._gone.append(call.seq)
            return
        if mount.killed:
            mount.slot.put_back([call])  # it had begun just as its horse was killed for the sake of the one before
            return
        ride = self.obituary.certify(mount, status, usage)
        if mount.reported and not mount.overdue:
            # It shared its process with others, who may have brought it down: once more, alone.
            call.solo = True
            mount.slot.put_back([call])
            return
        from nbqueue.model import encode
        from nbqueue.worker import capture

        tail = capture.tail_for(mount.output.last(), failed=True)
        self.channel.queue(frames.DONE, frames.pack_done(call.seq, encode(ride), tail))

    def _bury_strays(self) -> None:
        known = self._kept.union(mount.pid for mount in self._mounts())
        self._unburied = not tree.kill_strays(known)
        self._tell_gone()


def main(arguments: list[str]) -> None:
    """Serves the socket with this number; a second one names a file of frames to begin with."""
    limits.become_subreaper()
    channel = frames.Channel(socket.socket(fileno=int(arguments[0])))
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
