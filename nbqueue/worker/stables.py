"""All the stables of a worker: which function has one, what they answer, and what happens when one dies."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from selectors import EVENT_READ, EVENT_WRITE, BaseSelector

import msgspec

from nbqueue.errors import BadSignature
from nbqueue.model import CALLBACK_TIMEOUT, MAX_LOSSES, CallResult, Cause, Failure, FunctionRecord, State, decode
from nbqueue.worker import frames
from nbqueue.worker.aftermath import Aftermath
from nbqueue.worker.intake import Intake, failed, refused
from nbqueue.worker.ledger import MOST_PACES, SHORT, Ledger, Pace, Task
from nbqueue.worker.refusals import Refusals
from nbqueue.worker.score import Score
from nbqueue.worker.settling import Settler
from nbqueue.worker.stall import Process, Stall, interpreter_for
from nbqueue.worker.strays import Strays

KEPT_WARM = 4  # idle stables
STOPPED = 1.0  # seconds after which a stable that was stopped by a signal is ended
AWAY = 10.0  # seconds that a stable may import ahead, and twice what it took a call
_KILLED = "signal SIGKILL"  # whatever did that need not do it again
_NOTHING = CallResult(State.CANCELED, None, 0.0, 0.0)


@dataclass(slots=True)
class Stables:
    """Sends waiting tasks to stables, and takes in what they answer."""

    ledger: Ledger
    intake: Intake
    settler: Settler
    score: Score
    selector: BaseSelector
    refusals: Refusals
    strays: Strays
    mark: str
    host: str
    threads: int
    setup: frames.Setup
    aftermath: Aftermath = field(init=False)  # given once it is made: it speaks to stables
    recent: Pace = field(default_factory=Pace)
    fence: float | None = None
    _stalls: dict[str, Stall] = field(default_factory=dict)
    _ready: Process | None = None  # started ahead, for the next function
    _refused: bool = False  # the system has refused that
    _retired: int = 0  # stables that were found to run old code
    _ahead: dict[str, tuple[str, ...] | None] = field(default_factory=dict)  # learnt to be imported; None: nothing is
    _kills: Counter[str] = field(default_factory=Counter)  # how often the process that loads a function was killed

    # ------------------------------------------------------------ to the stables

    def dispatch(self) -> None:
        """Gives waiting tasks to slots, first claimed first: a chunk a free slot, and one ahead of short calls."""
        self._retire_changed()
        free, ahead = self.ledger.free_slots(), self.ledger.slots_ahead()
        for batch in self.ledger.in_order():
            if not free and not ahead:
                return
            while (queue := self.ledger.waiting.get(batch)) and (free or ahead):
                first = queue[0]
                if (slot := self._slot_for(first, free, ahead)) is None:
                    ahead = {}  # it waits for a slot to be free: what was claimed later must not keep them all taken
                    break
                if (stall := self._stall_for(first)) is None:
                    break
                count = (
                    1
                    if first.alone or first.spec.hooks
                    else self.ledger.chunk(first, len(queue), len(free) or len(ahead))
                )
                self._send(stall, slot, self.ledger.take(batch, count))
                ahead.pop(slot, None)
                if slot in free:
                    free.remove(slot)

    def _retire_changed(self) -> None:
        """An edit never runs as old code: what a stable that has loaded it before has begun ends there, and no more."""
        for stall in [stall for stall in self._stalls.values() if stall.retired and not self._busy(stall)]:
            self._end(stall)
        for key in {queue[0].spec.key for queue in self.ledger.waiting.values()}:
            if (loading := self._stalls.get(key)) is not None and not loading.ready:
                self.hear(loading, EVENT_READ)  # it may have said this moment what it has loaded, and begun a call
            if key not in self._stalls or not (path := self._stalls[key].changed()):
                continue
            stall = self._stalls.pop(key)
            self.score.line("--", f"{path} has changed: {stall.label} is loaded anew")
            self._retired += 1
            stall.key, stall.retired = f"{key}#old{self._retired}", True
            self._stalls[stall.key] = stall
            stall.channel.send(frames.DRAIN, b"")
            self._watch(stall)

    def let_go(self, task: Task) -> None:
        """Tells the horse that waits after this call to end."""
        if task.stall is not None and self._stalls.get(task.stall.key) is task.stall:
            task.stall.after(task.slot, task, "", _NOTHING)
            self._watch(task.stall)

    def after(self, task: Task, hook: str, ride: CallResult, *, handlers: bool) -> bool:
        """Has a callback run by the horse that made the call, or by another one; False: it can be run nowhere here."""
        alive = task.stall is not None and self._stalls.get(task.stall.key) is task.stall
        stall = task.stall if alive else self._stall_for(task)
        if stall is None:
            return False
        # Of a task that has no slot any more, in a place beyond all slots.
        stall.after(task.slot if task.slot >= 0 else self.ledger.slots, task, hook, ride, handlers=handlers)
        task.stall = stall
        self._watch(stall)
        return True

    def _send(self, stall: Stall, slot: int, tasks: list[Task]) -> None:
        for task in tasks:
            self.ledger.mount(task, slot, stall)
        stall.run(slot, tasks)
        self._watch(stall)
        self.score.group("->", tasks[0].batch, [task.index for task in tasks], tasks[0].spec.single)

    @property
    def brisk(self) -> bool:
        """Whether short calls go on, and no horse waits for a word of ours."""
        short = self.recent.mean is not None and self.recent.mean < SHORT
        return short and not self.ledger.trailing and any(map(len, self.ledger.riding))

    def _slot_for(self, task: Task, free: list[int], ahead: dict[int, str]) -> int | None:
        if free:
            return free[0]
        if task.apart:
            return None
        return next((slot for slot, key in ahead.items() if key == task.spec.key), None)

    def _stall_for(self, task: Task) -> Stall | None:
        """The stable of a task's function, started if need be; None when the task cannot run and was dealt with."""
        key = f"{task.spec.key}#{task.seq}" if task.alone else task.spec.key
        if key in self._stalls:
            return self._stalls[key]
        if self.refusals.refuses(task):
            self._refuse(task.batch)
            return None
        try:
            record = self.intake.function(task.batch, task.spec.key)
        except BadSignature as why:
            for each in self.ledger.take_all(task.batch):
                self.finish(each, refused(why))
            return None
        self._make_room()
        try:
            return self._start(key, record, preload=task.spec.preload)
        except OSError as why:
            # No process, no descriptor, or an interpreter that cannot be executed: others may have better luck.
            self.refusals.call_unfit(
                task.spec.key, record.label, Failure("LoadError", f"no process could be started ({why})")
            )
            self._refuse(task.batch)
            return None

    def _start(self, key: str, record: FunctionRecord, *, preload: bool) -> Stall:
        ahead = self._ahead.get(key.partition("#")[0], ())
        imports = () if ahead is None else (*record.imports, *ahead)
        stall = Stall(
            msgspec.structs.replace(record, imports=imports),
            self._process(interpreter_for(record, self.host)),
            key=key,
            preload=preload,
            setup=self.setup._replace(learn=ahead is not None),
        )
        self._stalls[key] = stall
        self.selector.register(stall.channel.fileno(), EVENT_READ, stall)
        if self.fence is not None:
            stall.channel.send(frames.FENCE, frames.pack_fence(self.fence))
        self._watch(stall)
        return stall

    def _process(self, interpreter: str) -> Process:
        """A process for a stable: the one that stands ready, or another. Raises OSError."""
        ready, self._ready = self._ready, None
        if ready is None or not ready.fits(interpreter, self.mark, self.threads):
            if ready is not None:
                ready.close()
            ready = Process(interpreter, self.mark, self.threads)
        return ready

    def stand_ready(self) -> None:
        """Starts a process ahead, while none is loading: the next function need not wait for an interpreter."""
        if self._ready is None and not self._refused and not self.loading():
            try:
                self._ready = Process(sys.executable, self.mark, self.threads)
            except OSError as why:
                self._refused = True  # functions start their own
                self.score.line("!!", f"no process is started ahead ({why})")

    def _make_room(self) -> None:
        idle = sorted((stall for stall in self._stalls.values() if not self._busy(stall)), key=lambda stall: stall.used)
        for stall in idle[: max(0, len(idle) - KEPT_WARM + 1)]:
            self._end(stall)

    def _busy(self, stall: Stall) -> bool:
        trailing = any(task.stall is stall for task in self.ledger.trailing.values())
        return trailing or any(task.stall is stall for riding in self.ledger.riding for task in riding.values())

    def _watch(self, stall: Stall) -> None:
        """Asks the selector for what the channel needs now."""
        events = EVENT_READ | (EVENT_WRITE if stall.channel.wants_write else 0)
        self.selector.modify(stall.channel.fileno(), events, stall)

    def set_fence(self, fence: float) -> None:
        """Tells all stables until when the lease lasts, on the clock that counts suspend."""
        self.fence = fence
        self._tell_all(frames.FENCE, frames.pack_fence(fence))

    def thaw(self) -> None:
        """After a fence: what rides now stands, and goes on."""
        for stall in self._stalls.values():
            mine = [task.seq for riding in self.ledger.riding for task in riding.values() if task.stall is stall]
            mine += [task.seq for task in self.ledger.trailing.values() if task.stall is stall]
            stall.channel.send(frames.THAW, frames.pack_seqs(mine))
            self._watch(stall)

    def drain(self) -> None:
        """Takes back all that has not begun: also what waits for a load, in which a stable hears nobody."""
        self._tell_all(frames.DRAIN, b"")
        trailing = {id(task.stall) for task in self.ledger.trailing.values()}
        for stall in self.loading():
            if id(stall) not in trailing:
                self._abandon(stall, set())

    def kill(self, tasks: Iterable[Task]) -> None:
        """Ends these tasks without an outcome; their slots are free when the stable says GONE."""
        by_stall: dict[Stall, list[int]] = {}
        for task in tasks:
            if task.stall is not None:
                by_stall.setdefault(task.stall, []).append(task.seq)
            else:
                self.ledger.drop(task)
                self.aftermath.gone(task)
        for stall, seqs in by_stall.items():
            if not stall.ready and not self._wanted(stall, set(seqs)):
                self._abandon(stall, set(seqs))
                continue
            stall.channel.send(frames.KILL, frames.pack_seqs(seqs))
            self._watch(stall)
            if not stall.ready:
                # Others wait for the same load: it goes on, and hears of this when it is over.
                for task in filter(None, map(self.ledger.tasks.get, seqs)):
                    self.ledger.drop(task)
                    self.aftermath.gone(task)

    def _wanted(self, stall: Stall, unwanted: set[int]) -> bool:
        """Whether anything waits for a stable but for these."""
        riding = (task for riding in self.ledger.riding for task in riding.values())
        waiting = [*riding, *self.ledger.trailing.values()]
        return any(task.stall is stall and task.seq not in unwanted for task in waiting)

    def _tell_all(self, kind: int, payload: bytes) -> None:
        for stall in self._stalls.values():
            stall.channel.send(kind, payload)
            self._watch(stall)

    def close(self) -> None:
        """Ends every stable and all under them."""
        if self._ready is not None:
            self._ready.close()
            self._ready = None
        for stall in list(self._stalls.values()):
            self._end(stall)

    def _end(self, stall: Stall) -> None:
        self._remove(stall)
        stall.close()
        self.reap_strays()

    def _remove(self, stall: Stall) -> None:
        self._stalls.pop(stall.key, None)
        self.selector.unregister(stall.channel.fileno())

    # ------------------------------------------------------------ from the stables

    def hear(self, stall: Stall, events: int) -> None:
        """Handles what a stable's channel has for us."""
        if self._stalls.get(stall.key) is not stall:
            return  # it was ended while its event waited
        if events & EVENT_WRITE:
            stall.channel.flush()
        try:
            for kind, payload, fd in stall.channel.receive():
                self._heard(stall, kind, payload, fd)
            if stall.channel.spoiled:
                stall.channel.receive()
        except (frames.FrameError, BadSignature) as why:
            # A job wrote into what is not its own: nothing that comes after can be trusted.
            self.score.line("!!", f"the stable of {stall.label} sent what is no frame ({why}) and is ended")
            stall.process.kill()
        if self._stalls.get(stall.key) is not stall:
            return  # it served one job alone, which is done
        if stall.channel.eof or stall.failure is not None:
            self._died(stall)
        else:
            self._watch(stall)

    def _heard(self, stall: Stall, kind: int, payload: bytes, fd: int | None) -> None:
        if kind == frames.DONE:
            self._done(payload, fd)
        elif kind == frames.NOTE:
            self._noted(frames.unpack_note(payload))
        elif kind == frames.ECHO:
            self.aftermath.heard(*frames.unpack_echoes(payload))
        elif kind == frames.READY:
            stall.ready, stall.away = True, math.inf
            self._kills.pop(stall.key.partition("#")[0], None)
        elif kind == frames.LEARNT:
            seconds, names = frames.decode_learnt(payload)
            stall.away = time.monotonic() + AWAY + 2 * seconds
            self._learn(stall, names)
        elif kind == frames.FILES:
            # Of what a horse and its stable have loaded, and at different times, the first tells.
            stall.files = {file.path: file for file in frames.decode_files(payload)} | stall.files
        elif kind == frames.UNFIT:
            stall.failure = decode(Failure, payload, "A stable's answer")
        elif kind in (frames.BACK, frames.BEGUN, frames.GONE):
            known = map(self.ledger.tasks.get, reversed(frames.unpack_seqs(payload)))
            for task in filter(None, known):
                self._moved(task, kind)

    def _learn(self, stall: Stall, names: list[str]) -> None:
        """A stable that is started later for the same function has from the beginning what calls had to import."""
        key = stall.key.partition("#")[0]
        if (known := self._ahead.get(key, ())) is not None:
            if len(self._ahead) >= MOST_PACES:
                del self._ahead[next(iter(self._ahead))]
            self._ahead[key] = tuple(dict.fromkeys([*known, *names]))

    def _noted(self, note: frames.Note) -> None:
        task = self.ledger.tasks.get(note.seq) or self.ledger.trailing.get(note.seq)
        if task is not None:
            self.settler.notes.take(task, note.kind, note.payload)

    def _moved(self, task: Task, kind: int) -> None:
        if kind == frames.BACK:
            self.ledger.put_back(task)
        elif kind == frames.BEGUN:
            task.begun = True
        else:
            self.ledger.drop(task)
            self.aftermath.gone(task)

    def _done(self, payload: bytes, fd: int | None) -> None:
        done = frames.unpack_done(payload)
        task = self.ledger.tasks.get(done.seq)
        if task is None:
            if fd is not None:
                os.close(fd)
            return  # it was killed on request while its outcome was on the way
        value = None if fd is None else frames.read_value(fd, task.spec.max_result)
        ride = frames.decode_ride(done.ride)
        if value is not None:
            ride = msgspec.structs.replace(ride, value=value)
        self.ledger.pace(task.spec.key).saw(ride.ended - ride.started)
        self.recent.saw(ride.ended - ride.started)
        self.aftermath.done(task, ride)
        self.settler.add(task, ride, done.tail)
        if task.alone and task.seq not in self.ledger.trailing:
            self.retire(task)

    def retire(self, task: Task) -> None:
        """Ends the stable that a task had for itself."""
        if task.alone and task.stall is not None and task.stall.key in self._stalls:
            self._end(task.stall)

    def finish(self, task: Task, ride: CallResult) -> None:
        """Settles a task that never came to a stable, or whose stable is no more."""
        self.ledger.drop(task)
        self.settler.add(task, ride, b"")

    # ------------------------------------------------------------ when a stable dies

    def _died(self, stall: Stall) -> None:
        self._remove(stall)
        how = stall.died()
        self.reap_strays()
        self.aftermath.died(stall, how)
        riding = [[task for task in riding.values() if task.stall is stall] for riding in self.ledger.riding if riding]
        key = stall.key.partition("#")[0]
        for tasks in riding:
            for task in reversed(tasks):
                self.ledger.put_back(task)
        if stall.failure is None and not stall.ready:
            self._kills[key] += 1
            if how == _KILLED and self._kills[key] < MAX_LOSSES:
                self.score.line("--", f"the process that loaded {stall.label} was killed; it is loaded again")
                return
            if stall.imports:
                self._ahead[key] = None  # calls may never come to what ended it
                self.score.line("--", f"the process that loaded {stall.label} died with {how}; it now imports less")
                return
            stall.failure = Failure("LoadError", f"the process that loaded {stall.label} died with {how}")
        if stall.failure is not None:
            self.refusals.call_unfit(key, stall.label, stall.failure)
            return
        self.score.line("--", f"the stable of {stall.label} died with {how}; its jobs run again")
        if stall.away < math.inf:
            self._ahead[key] = None  # it was in an import that calls come back from
            return
        for tasks in riding:
            if tasks:
                self._suspect(tasks[0], how)

    def _suspect(self, task: Task, how: str) -> None:
        """A job under which the stable died runs next with a stable of its own, so that no other is blamed."""
        task.alone, task.deaths = True, task.deaths + 1
        if task.deaths >= MAX_LOSSES:
            text = f"the process that forks this function's calls died with {how}, {task.deaths} times under this job"
            self.finish(task, failed(Cause.CRASHED, Failure("Crashed", text)))

    # ------------------------------------------------------------ functions that cannot be loaded

    def _refuse(self, batch: str) -> None:
        """The waiting tasks of a batch whose function cannot be loaded here: the caller gives them back."""
        self.refusals.tasks += self.ledger.take_all(batch)

    def fail_unloadable(self, key: str, tasks: list[Task]) -> None:
        """Jobs whose function no living worker can load have failed."""
        for task in tasks:
            self.finish(task, failed(Cause.LOAD, self.refusals.why(key)))

    def loading(self) -> list[Stall]:
        """The stables that have not loaded their function yet."""
        return [stall for stall in self._stalls.values() if not stall.ready]

    def end_slow_loads(self) -> None:
        """A load counts as the beginning of a call: over its time limit, the call has failed."""
        for stall in self.loading():
            spent = time.monotonic() - stall.began
            tasks = (task for riding in self.ledger.riding for task in riding.values())
            first = next((task for task in tasks if task.stall is stall), None)
            if first is None and spent > CALLBACK_TIMEOUT:
                self._end(stall)
                self.aftermath.died(stall, "no end of loading")
            if first is None or first.spec.timeout is None or spent < first.spec.timeout + first.spec.grace:
                continue
            limit = f"{first.spec.timeout:g} s"
            text = (
                f"{stall.label} was still being loaded (its module, or its data) when its time limit of {limit} passed"
            )
            self.finish(first, failed(Cause.TIMEOUT, Failure("nbqueue.errors.JobTimeout", text)))
            self._abandon(stall, set())

    def _abandon(self, stall: Stall, unwanted: set[int]) -> None:
        """Ends a stable that hangs in loading, where it hears nobody; what it should have run waits again."""
        self._end(stall)
        riding = [task for riding in self.ledger.riding for task in riding.values() if task.stall is stall]
        for task in reversed(riding):
            if task.seq in unwanted:
                self.ledger.drop(task)
                self.aftermath.gone(task)
            else:
                self.ledger.put_back(task)

    def unbegun(self, age: float) -> list[Task]:
        """Waiting tasks older than `age` seconds, for the caller to give back."""
        limit = time.monotonic() - age
        return [task for task in self.ledger.all_waiting() if task.since < limit and not task.alone]

    def end_deaf(self) -> None:
        """Ends a stable that keeps no clock, and hears nobody, stopped or lost in an import; its jobs run again."""
        now = time.monotonic()
        for stall in self._stalls.values():
            if now >= stall.away:
                self.score.line(
                    "!!", f"the stable of {stall.label} hangs in an import that calls have made, and is ended"
                )
                stall.process.kill()
            elif not stall.is_stopped():
                stall.stopped = None
            elif stall.stopped is None:
                stall.stopped = now  # it may go on at once: a scheduler stops and continues all of a job's processes
            elif now - stall.stopped >= STOPPED:
                self.score.line("!!", f"the stable of {stall.label} was stopped by a signal, and is ended")
                stall.process.kill()

    @property
    def deaf(self) -> bool:
        """Whether a stable was seen stopped, or imports ahead, and may have to be ended."""
        return any(stall.stopped is not None or stall.away < math.inf for stall in self._stalls.values())

    def reap_strays(self) -> None:
        """Collects dead children; a live one that is no stable has lost its stable, and is killed."""
        processes = {stall.process.pid for stall in self._stalls.values()}
        self.strays.reap(processes if self._ready is None else {*processes, self._ready.process.pid})
