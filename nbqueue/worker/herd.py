"""The horses of a stable: the calls that wait for them, what they report, and what follows when one has ended.

Like the stable, this module imports the standard library only until a function is loaded.
"""

from __future__ import annotations

import os
import selectors
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nbqueue.worker import clock, frames, spare, tree
from nbqueue.worker.channel import Channel, Frame

if TYPE_CHECKING:
    from nbqueue.model import FunctionRecord
    from nbqueue.worker.certificate import Obituary
    from nbqueue.worker.slots import Call, Errand, Mount, Slot

_WEIGHT = 0.3  # of the latest horse in what is known of them
NAP, LONG_NAP = 0.0003, 0.003  # seconds in which reports of short calls add up, at least and at most
_BULK = 1 << 14  # bytes of them, with which it is time to wake
_TRIAL = 16  # one of so many horses finds out anew how dear a first call is
_MOST_DEATHS = 3  # of horses that never came to the first step of an errand; then that step is blamed


class Herd:
    """All slots of a stable, and the horses on them. It tells the parent what becomes of every call."""

    def __init__(self, channel: Channel, selector: selectors.BaseSelector) -> None:
        self.channel = channel
        self.slots: dict[int, Slot] = {}
        self.clock = clock.Clock(self._listen, self._take_back, self._begun)
        self.record: FunctionRecord  # this and the next two since LOAD
        self.setup = frames.Setup()
        self.obituary: Obituary
        self.draining = False
        self._busy = False  # whether a horse that reports will soon report again
        self._bulk = 0  # bytes of reports since the last nap
        self.kept: set[int] = set()  # children that loading started
        self.learnt = frames.Learnt(0.0, [])  # what horses had to import, and the next ones should not
        self._warming: float | None = None  # CPU seconds that first calls took longer than second ones, as they were
        self._untried = 0  # horses that have learnt it from the stable, since the last that finds it out
        self.unburied = False  # whether strays of a dead horse may still live
        self.spares = spare.Spares(selector)
        self._gone: list[int] = []  # killed on request, and to be told when no stray lives
        self._selector = selector

    def mounts(self) -> list[Mount]:
        """The live horses."""
        return [slot.mount for slot in self.slots.values() if slot.mount is not None]

    def descriptors(self) -> list[int]:
        """All that belong to one horse, and that another one must not inherit."""
        fds = [] if self.spares.horse is None else self.spares.horse.descriptors()
        return [*fds, *(fd for mount in self.mounts() for fd in mount.descriptors())]

    def rests(self) -> bool:
        """Whether nothing runs or waits; horses that have only to end do not count."""
        if self.draining or self.unburied or self.clock.frozen:
            return False
        return not any(slot.queue or slot.errands or (slot.mount and slot.mount.busy) for slot in self.slots.values())

    def nap(self) -> float:
        """Seconds in which reports may add up; waking for each would cost more than short calls are worth."""
        if not self._busy:
            return 0.0
        lefts = [mount.left() for mount in self.mounts() if mount.busy]
        # Half of it, so that no horse waits long for what it may do next. What is much fills its socket meanwhile.
        least = min(lefts, default=0.0) / 2 if self._bulk < _BULK else 0.0
        self._busy, self._bulk = False, 0
        return min(max(least, NAP), LONG_NAP)

    def _slot(self, number: int) -> Slot:
        from nbqueue.worker.slots import Slot

        if number not in self.slots:
            self.slots[number] = Slot(number)
        return self.slots[number]

    # ------------------------------------------------------------ from the parent

    def enqueue(self, run: frames.Run) -> None:
        """Calls to be made."""
        from nbqueue.worker.slots import Call

        calls = [Call(run, *job) for job in run.jobs]
        if self.draining:
            self._take_back(calls)
        else:
            self._slot(run.slot).queue.extend(calls)

    def drain(self) -> None:
        """From now on makes no more calls than have begun."""
        self.draining = True
        self.give_back()

    def give_back(self) -> None:
        """Gives back all that has not begun, and ends the horses that wait for more."""
        for slot in self.slots.values():
            rest = slot.mount.take_back() if slot.mount is not None else []
            self._take_back([*rest, *slot.clear()])
            if slot.mount is not None and slot.mount.waits:
                self._dismiss(slot.mount)

    def errands(self) -> list[Errand]:
        """Those that no horse attends to."""
        return [errand for slot in self.slots.values() for errand in slot.errands]

    @staticmethod
    def _dismiss(mount: Mount) -> None:
        mount.leaving = True
        tree.kill_group(mount.pid)

    def thaw(self, standing: set[int]) -> None:
        """The lease was renewed for these: they go on, all others end. What is settled is none of its business."""
        held = {call.seq for slot in self.slots.values() for call in slot.queue}
        held.update(call.seq for mount in self.mounts() for call in mount.unfinished)
        self.kill(held - standing)
        self.clock.thaw(self.mounts())

    def kill(self, seqs: set[int]) -> None:
        """Ends these calls, and what follows them, without an outcome."""
        for slot in self.slots.values():
            mount = slot.mount
            if mount is not None:
                self._report(mount)
                self._kill_on(slot, mount, seqs)
            queued = {call.seq for call in slot.queue if call.seq in seqs}
            if queued:
                kept = [call for call in slot.queue if call.seq not in queued]
                slot.queue.clear()
                slot.queue.extend(kept)
            errands = [errand for errand in slot.errands if errand.call.seq in seqs]
            for errand in errands:
                slot.errands.remove(errand)
            self._gone += [*queued, *(errand.call.seq for errand in errands)]
        self._tell_gone()

    def _kill_on(self, slot: Slot, mount: Mount, seqs: set[int]) -> None:
        if mount.stays_for in seqs:
            mount.killed.add(mount.calls[mount.reported - 1].seq)
            tree.kill_group(mount.pid)
        elif any(call.seq in seqs for call in mount.unfinished):
            slot.put_back(mount.take_back())
            running = seqs.intersection(call.seq for call in mount.unfinished)
            if running or not mount.unfinished:
                mount.killed |= running
                tree.kill_group(mount.pid)

    def after(self, after: frames.After, fd: int | None) -> None:
        """The end of a job is settled: its horse, or a fresh one, does what is to be done about it."""
        from nbqueue.worker import hooks
        from nbqueue.worker.slots import Errand

        waiting = (mount for mount in self.mounts() if mount.stays_for == after.seq and mount.errand is None)
        mount = next(waiting, None)
        steps = hooks.steps_for(after.hook, self.record.hooks, self.setup.handlers if after.handlers else ())
        value = after.value
        if fd is not None and mount is None and steps:
            value = frames.read_value(fd)
        elif fd is not None:
            os.close(fd)
        errand = Errand(after, steps, value)
        if not steps:
            if mount is not None:
                self._dismiss(mount)
            if after.hook or after.handlers:
                self._echo(errand)
        elif mount is None:
            self._slot(after.run.slot).errands.append(errand)
        else:
            mount.errand = errand
            mount.channel.send(frames.AFTER, bytes([after.handlers]) + after.hook.encode())

    # ------------------------------------------------------------ to the parent

    def _take_back(self, calls: Sequence[Call]) -> None:
        if calls:
            self.channel.queue(frames.BACK, frames.pack_seqs(call.seq for call in calls))

    def _begun(self, call: Call) -> None:
        self.channel.queue(frames.BEGUN, frames.pack_seqs([call.seq]))

    def _echo(self, errand: Errand) -> None:
        errand.over = True
        self.channel.queue(frames.ECHO, frames.pack_echoes(errand.call.seq, errand.echoes))

    def _tell_gone(self) -> None:
        if self._gone and not self.unburied:
            self.channel.queue(frames.GONE, frames.pack_seqs(self._gone))
            self._gone = []

    # ------------------------------------------------------------ from the horses

    def warming(self) -> float | None:
        """What the next horse is told of how dear a first call is; None: it finds out."""
        self._untried = (self._untried + 1) % _TRIAL
        return self._warming if self._untried else None

    def mounted(self, mount: Mount) -> None:
        """A horse has been forked."""
        mount.slot.mount = mount
        mount.kills = self.obituary.kills()
        self._selector.register(mount.channel, selectors.EVENT_READ, (mount, self._report))
        if mount.pidfd is not None:
            self._selector.register(mount.pidfd, selectors.EVENT_READ, (mount, self._bury))

    def give(self, mount: Mount, calls: list[Call]) -> None:
        """Further calls for a horse that waits for them."""
        mount.give(calls)
        self._tend(mount)

    def make_way(self, slot: Slot) -> bool:
        """Whether the slot's horse, which waits, can have what comes next; else it is ended: that must be alone."""
        if slot.mount is None or not (slot.errands or slot.queue[0].solo):
            return True
        self._dismiss(slot.mount)
        return False

    def _tend(self, mount: Mount) -> None:
        """Listens to a horse, and goes on to send it what it has not taken yet."""
        write = selectors.EVENT_WRITE if mount.channel.wants_write else 0
        self._selector.modify(mount.channel, selectors.EVENT_READ | write, (mount, self._report))

    def keep(self) -> None:
        """Does what is due."""
        if self.unburied:
            self._bury_strays()
        for mount in self.mounts():
            if mount.pidfd is None:
                self._bury(mount)
        self.clock.keep(self.mounts())

    def _listen(self, mount: Mount) -> None:
        if not mount.heard:
            mount.heard = True
            self._selector.register(mount.output, selectors.EVENT_READ, (mount, self._print))

    def _print(self, mount: Mount) -> None:
        mount.output.read()
        if mount.output.eof:
            self._forget(mount.output.fileno())

    def _report(self, mount: Mount) -> None:
        from nbqueue.errors import BadSignature

        if mount.channel.wants_write:
            mount.channel.flush()
            self._tend(mount)
        try:
            self._heard(mount, mount.channel.receive())
            if mount.channel.spoiled:
                mount.channel.receive()
        except (frames.FrameError, BadSignature, struct.error, IndexError):
            mount.garbled = True  # the job wrote into our socket, as its certificate will say
            tree.kill_group(mount.pid)
            mount.channel.eof = True
        if mount.channel.eof:
            self._forget(mount.channel.fileno())

    def _heard(self, mount: Mount, received: list[Frame]) -> None:
        notes: dict[tuple[int, int], bytes] = {}  # of many at once the latest tells all
        for kind, payload, fd in received:
            if kind == frames.DONE:
                if notes:
                    self._pass_on(notes)
                self._done(mount, payload, fd)
            elif kind == frames.NOTE:
                note = frames.unpack_note(payload)
                if all(note.seq != call.seq for call in mount.calls):
                    raise frames.FrameError("a note of a call that is another horse's")
                if note.seq not in mount.killed:
                    notes[note.seq, note.kind] = payload
            elif kind == frames.ECHO:
                self._pass_on(notes)
                self._stepped(mount, payload)
            else:
                self._imported(kind, payload)
        if notes:
            self._pass_on(notes)

    def _imported(self, kind: int, payload: bytes) -> None:
        """What a horse says of the modules that it has imported."""
        if kind == frames.FILES:
            frames.decode_files(payload)
            self.channel.queue(kind, payload)
        elif kind == frames.LEARNT:
            seconds, names = frames.decode_learnt(payload)
            known = dict.fromkeys([*self.learnt.modules, *names])
            self.learnt = frames.Learnt(max(self.learnt.seconds, seconds), list(known))
        elif kind == frames.WARMED:
            seconds = frames.unpack_seconds(payload)
            # A first call may be the longer one by chance: only the mean over horses tells.
            self._warming = seconds if self._warming is None else self._warming + _WEIGHT * (seconds - self._warming)

    def _pass_on(self, notes: dict[tuple[int, int], bytes]) -> None:
        for payload in notes.values():
            self.channel.queue(frames.NOTE, payload)
            self._busy = True
        notes.clear()

    def _done(self, mount: Mount, payload: bytes, fd: int | None) -> None:
        from nbqueue.worker import capture, horse

        call = mount.calls[mount.reported]
        try:
            frames.check_done(payload, call.seq)
        except (frames.FrameError, struct.error):
            if fd is not None:
                os.close(fd)
            raise
        mount.reported += 1
        self._busy = self._busy or mount.reported < len(mount.calls)
        flags = payload[-1]
        tail = mount.output.last() if flags & horse.UNMARKED else mount.output.take()
        mount.lasts = bool(flags & horse.LASTS)
        if flags & horse.STAYS:
            mount.slot.put_back(mount.take_back())
            mount.stay()
        if call.seq in mount.killed:
            if fd is not None:
                os.close(fd)
            if mount.stays_since is None:
                self._gone.append(call.seq)
            return
        tail = capture.tail_for(tail, failed=bool(flags & horse.FAILED))
        self.channel.queue(frames.DONE, payload[:-1] + tail, fd)
        self._bulk += len(payload) + len(tail)
        if not mount.busy:
            self.spares.want()
        if self.draining and mount.waits:
            self._dismiss(mount)

    def _stepped(self, mount: Mount, payload: bytes) -> None:
        """A horse has taken a step of its errand; an empty word means that the errand is over."""
        from nbqueue.model import CallbackResult, decode

        errand = mount.errand
        if errand is None or errand.over:
            raise frames.FrameError("a horse without an errand spoke of one")
        if payload:
            errand.echoes.append(decode(CallbackResult, payload))
            return
        mount.leaving = True
        if errand.call.seq not in mount.killed:
            self._echo(errand)

    def _forget(self, fd: int) -> None:
        try:
            self._selector.unregister(fd)
        except KeyError:
            return  # it has been forgotten before

    # ------------------------------------------------------------ a horse's end

    def _bury(self, mount: Mount) -> None:
        """After a horse's end: its last words, its certificate, its calls to the next horse, its strays."""
        pid, status, usage = os.wait4(mount.pid, os.WNOHANG)
        if not pid:
            return
        while not mount.channel.dry:
            self._report(mount)
        self.channel.flush()  # what it said need not wait for its burial
        mount.output.drain()
        slot = mount.slot
        for fd in mount.descriptors():
            self._forget(fd)
        slot.put_back(mount.take_back())
        slot.mount = None
        if mount.stays_for is not None:
            self._mourn_errand(mount, mount.stays_for, status)
        elif mount.unfinished:
            self._mourn(mount, status, usage)
        elif not (mount.killed or mount.leaving):
            self.obituary.pass_over(status)
        self.spares.want()
        if self.draining:
            self._take_back(slot.clear())
        mount.close()
        self.unburied = True
        self._bury_strays()

    def _mourn(self, mount: Mount, status: int, usage: Any) -> None:
        call, *behind = mount.unfinished
        # What came behind garbage cannot be told from it: these calls are made again.
        mount.slot.put_back([each for each in behind if each.seq not in mount.killed])
        self._gone += [each.seq for each in behind if each.seq in mount.killed]
        if call.seq in mount.killed:
            self._gone.append(call.seq)
            return
        if mount.killed:
            mount.slot.put_back([call])  # it had begun just as its horse was killed for the sake of the one before
            return
        ride = self.obituary.certify(mount, status, usage)
        if mount.shared and not mount.overdue:
            # It shared its process with others, who may have brought it down: once more, alone.
            call.solo = True
            mount.slot.put_back([call])
            return
        from nbqueue.model import encode
        from nbqueue.worker import capture

        tail = capture.tail_for(mount.output.last(), failed=True)
        self.channel.queue(frames.DONE, frames.pack_done(call.seq, encode(ride), tail))

    def _mourn_errand(self, mount: Mount, seq: int, status: int) -> None:
        """The step that a horse died in has failed; a fresh horse takes those behind it."""
        errand = mount.errand
        if seq in mount.killed:
            self._gone.append(seq)
            return
        if errand is None or errand.over:
            return  # it was waiting, and the word may still come; or it was done
        errand.deaths += 1
        if mount.slot.board.read() is not None or errand.deaths >= _MOST_DEATHS:
            errand.echoes.append(self.obituary.echo(mount, errand, status))
        if len(errand.echoes) < len(errand.steps):
            mount.slot.errands.appendleft(errand)
        else:
            self._echo(errand)

    def _bury_strays(self) -> None:
        known = self.kept.union(mount.pid for mount in self.mounts())
        if self.spares.horse is not None:
            known.add(self.spares.horse.pid)
        self.unburied = not tree.kill_strays(known)
        self._tell_gone()
