"""The forked child: it takes a ticket, makes the call, says at once what became of it, and takes the next.

It ends by itself when it is old enough, or when a call left threads or children behind; until then it waits for more
calls. It is old enough when it is older than its slice, and what it had to do to get ready is a small part of that. A
spare one is forked before there is a call for it, and waits for the first. After a call that has callbacks a horse
waits until the outcome is settled, runs them, and ends. It owns nothing but its report socket, the pipe that it prints
to, and the pipe that its tickets come from.
"""

from __future__ import annotations

import _thread
import fcntl
import functools
import math
import os
import resource
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple, NoReturn

import msgspec

from nbqueue import current, perform, spill
from nbqueue.errors import LoadError
from nbqueue.model import CallResult, Cause, Failure, FunctionRecord, Spilled, State, decode, encode
from nbqueue.worker import frames, fresh, hooks, loading, restore, tree
from nbqueue.worker.limits import Alarm, Board, overdue
from nbqueue.worker.slots import Call, Errand

FAILED, UNMARKED, STAYS, LASTS = 1, 2, 4, 8  # flags of a DONE
MUTE = 71  # exit code: the call closed the descriptor that its outcome would have gone to

_HIGH = 1_000  # descriptors from here on survive a call that closes "all" of them
_SHIELDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_SHARE = 0.05  # of a horse's life that its setting up may take
_WAITING = 10  # times as long it may live until that is true of its CPU seconds, too
_KB = 1 if sys.platform == "linux" else 1024


def no_op(_signum: int, _frame: object) -> None:
    """Does nothing: schedulers send SIGTERM to every process, but when to end is the parent's decision."""


def shield() -> None:
    """Makes this process survive a scheduler's signals. What it executes does not inherit that."""
    for signum in _SHIELDED:
        signal.signal(signum, no_op)


_masks: dict[int, set[signal.Signals | int]] = {}  # thread that forks -> its signal mask before


def _hold_signals() -> None:
    """Before a job forks: what is sent to the new process at once must not meet `no_op` there, and be lost."""
    _masks[_thread.get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, _SHIELDED)


def _let_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.pop(_thread.get_ident()))


def _unshield() -> None:
    """In a process that a job forks (multiprocessing): its signals are as in any Python program."""
    current.here.note = None
    for signum in _SHIELDED:
        if signal.getsignal(signum) is no_op:
            signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
    _let_signals()


class Saddle(NamedTuple):
    """What a horse gets from its stable by being forked."""

    calls: Sequence[Call]
    copies: fresh.Copies | None  # of the function; None: the horse loads `record` itself
    record: FunctionRecord
    setup: frames.Setup
    errand: Errand | None  # what is to be done in place of calls
    board: Board
    alarm: Alarm
    mark: bytes
    report: int
    output: int
    tickets: int
    stable: int
    refused: AbstractSet[str]  # modules that the stable could not import
    warming: float | None  # for its Life
    forking: float  # CPU seconds that forking the one before took


def ride(saddle: Saddle) -> NoReturn:
    """The whole life of a horse."""
    code = 70
    try:
        Horse(saddle).run()
        code = 0
    except BrokenPipeError:
        code = MUTE
    except OSError as why:
        code = MUTE if why.errno == 9 else code  # EBADF
        traceback.print_exc()
    except BaseException:  # noqa: BLE001 - this is the end of the process, and its exit code tells
        traceback.print_exc()
    finally:
        os._exit(code)


class Life:
    """How long a horse lives: as long as its slice, and so long that getting ready was a small part of it.

    `warming` is by how many CPU seconds the first call of earlier horses took longer than their second; None where that
    is to be found out. `setup` is what was spent on it before it was there.
    """

    def __init__(self, warming: float | None = None, setup: float = 0.0) -> None:
        self._known = warming
        self.setup = setup  # seconds spent on what calls after the first have for nothing
        self._born = math.inf  # when the first call began
        self._calls = 0
        self._first = self._later = 0.0  # CPU seconds of the first call, and of all after it

    def begins(self) -> bool:
        """Called before every call; says whether it is the first."""
        if self._born < math.inf:
            return False
        self._born = time.monotonic()
        self.setup += time.process_time()  # since it was forked
        return True

    def lived(self, cpu: float) -> bool:
        """Takes a call in, by its CPU seconds; says whether it was the first."""
        self._calls += 1
        if self._calls == 1:
            self._first = cpu
        else:
            self._later += cpu
        return self._calls == 1

    def over(self, least: float) -> bool:
        """Whether it is to end after this call.

        Where processes share the cores, or calls wait for others, its CPU seconds are few: it goes on for a while.
        """
        lived = time.monotonic() - self._born
        if lived < least or self.left(least) > 0.0:
            return False
        return lived >= _WAITING * self._worth() or time.process_time() >= self._worth()

    def left(self, least: float) -> float:
        """Seconds that it waits for calls, if it is to last for `least` at least; never less than 0."""
        return max(0.0, self._born + max(least, self._worth()) - time.monotonic())

    def _worth(self) -> float:
        """Seconds of which getting ready was a small part."""
        warming = self._known or 0.0
        if self._calls > 1 or self._known is None:
            warming = max(warming, self.warmed())
        return (self.setup + warming) / _SHARE

    def warmed(self) -> float:
        """CPU seconds of the first call that later ones are spared: memory is copied, caches are filled.

        After the first call that may be all of it.
        """
        return self._first - (self._later / (self._calls - 1) if self._calls > 1 else 0.0)

    @property
    def compared(self) -> bool:
        """Whether the last call was the second, the first that can be compared."""
        return self._calls == 2


class Horse:
    """The child's side of a saddle."""

    def __init__(self, saddle: Saddle) -> None:
        os.setsid()
        tree.become_subreaper()
        tree.die_with(saddle.stable)
        tree.rename(tree.HORSE)
        os.register_at_fork(before=_hold_signals, after_in_parent=_let_signals, after_in_child=_unshield)
        self._saddle = saddle
        self._pid = os.getpid()
        self._report, self._output, self._tickets = map(_lift, (saddle.report, saddle.output, saddle.tickets))
        for fd in (1, 2):
            os.dup2(self._output, fd)
        self._streams = sys.stdout, sys.stderr
        self._children_cpu = 0.0
        self._lock = _thread.allocate_lock()
        self._seq = 0
        self._modules = len(sys.modules) if saddle.copies is not None else 0  # that whoever watches them knows of
        self._error: BaseException | None = None  # of the last call
        self._calls: Sequence[Call] = saddle.calls
        self._gift = 0  # which calls these are
        self._made = 0  # of them
        self._life = Life(saddle.warming, saddle.forking)
        self._lasts = False  # whether it takes further calls
        current.here.note = self._note
        spill.here(saddle.setup.spill)

    def run(self) -> None:
        """Makes calls while there are tickets, time, and a clean process."""
        saddle = self._saddle
        if saddle.errand is not None:
            self._take_over(saddle.errand)
            return
        wall = time.time()
        copies = self._loaded()
        self._imported = len(sys.modules)
        alone = bool(saddle.calls) and saddle.calls[0].solo
        scene = None if alone else restore.Scene(self._output, loading.own_modules(saddle.record))
        if not saddle.calls:
            tree.rename(tree.SPARE)
            _rehearse()
        while (call := self._next()) is not None:
            if (outcome := self._call(call, copies)) is not None:
                self._stay(call, outcome)
                return
            if not self._lasts or scene is None or not scene.restore():
                return
            if isinstance(copies, fresh.Copies) and not copies.renew(self._life.setup):
                return
            self._tell_files(copies, wall)

    def _tell_files(self, copies: fresh.Copies | Failure, since: float) -> None:
        """Says which files this process has loaded, where it makes more calls and must not run them as old code."""
        if self._saddle.record.pinned or isinstance(copies, Failure) or len(sys.modules) == self._modules:
            return
        self._modules = len(sys.modules)
        if files := loading.loaded_files(copies.function, since):
            self._send(frames.FILES, frames.encode(files))

    def _next(self) -> Call | None:
        """The next call, with its ticket; None when this process is old enough and has none, or its stable is gone."""
        while True:
            try:
                ticket = os.read(self._tickets, 1)
            except BlockingIOError:
                if not self._wait():
                    return None
                continue
            if not ticket:
                return None
            if self._life.begins() and not self._calls:
                tree.rename(tree.HORSE)
            while self._gift != ticket[0]:
                run = frames.decode_run(self._word())
                self._calls, self._made = [Call(run, *job) for job in run.jobs], 0
                self._gift = (self._gift + 1) % 256
            self._made += 1
            return self._calls[self._made - 1]

    def _wait(self) -> bool:
        """Whether there may be a ticket before this process is old enough; a spare horse waits for ever."""
        poll = select.poll()
        poll.register(self._tickets, select.POLLIN)
        return bool(poll.poll(1e3 * self._left() if self._made else None))

    def _left(self) -> float:
        return self._life.left(self._calls[self._made - 1].run.slice)

    def _loaded(self) -> fresh.Copies | Failure:
        """What calls are made with."""
        saddle = self._saddle
        if saddle.copies is not None:
            return saddle.copies
        began, cpu = time.monotonic(), time.process_time()
        try:
            function = loading.load(saddle.record, saddle.setup.preload)
        except LoadError as why:
            return loading.failure_of(why)
        # Not its CPU seconds, which count as all others before the first call.
        self._life.setup += max(0.0, time.monotonic() - began - (time.process_time() - cpu))
        return loading.copies(saddle.record, function)

    def _call(self, call: Call, copies: fresh.Copies | Failure) -> CallResult | None:
        """Makes one call and tells its outcome; gives it back if this process stays for what follows."""
        run, saddle, job = call.run, self._saddle, call.job
        self._seq = call.seq
        keep = self._note_error if run.hooks or saddle.setup.handlers else None
        since = saddle.board.begin(self._made - 1)
        if isinstance(copies, Failure):
            now = time.monotonic()
            outcome = CallResult(State.FAILED, Cause.LOAD, now, now, failure=copies)
        else:
            if run.timeout is not None:
                told = functools.partial(overdue, run.label, job, run.timeout, run.timeout_from)
                saddle.alarm.set(saddle.board.now, since, run.timeout, told)
            else:
                saddle.alarm.set(saddle.board.now, since, None, str)
            if run.seed is not None:
                restore.sow(run.seed, call.index)
            call.began = time.time()
            current.enter(job, run.seed, call.index, call.present)
            outcome = perform.perform(
                copies.function,
                call.payload,
                job=job,
                max_result=run.max_result,
                spill_to=self._place(call),
                clock=saddle.alarm,
                keep=keep,
            )
        if os.getpid() != self._pid:
            _end_fork(failed=outcome.state is State.FAILED)
        saddle.board.end()
        spent = outcome.ended - outcome.started
        first = self._life.lived(outcome.cpu_s)
        weighed = self._weighed(outcome, alone=first and (len(self._calls) == 1 or spent >= run.slice))
        if keep is not None and self._stays(run, outcome):
            self._tell(call.seq, weighed, STAYS)
            return outcome
        current.leave()
        learnt = self._learnt(spent)
        self._lasts = not call.solo and not self._life.over(run.slice)
        self._tell(call.seq, weighed, LASTS if self._lasts else 0)
        if learnt is not None:
            self._send(frames.LEARNT, frames.encode(learnt))
        if self._life.compared:
            self._send(frames.WARMED, frames.pack_seconds(self._life.warmed()))
        return None

    def _learnt(self, spent: float) -> frames.Learnt | None:
        """What the stable should import before it forks again, after a call of so many seconds.

        What it should not, or could not, makes this process one that lives longer.
        """
        if len(sys.modules) <= self._imported:
            return None
        names = list(sys.modules)[self._imported :]
        self._imported = len(sys.modules)
        own, others = loading.repeatable(names, self._saddle.record.modules)
        bare = self._saddle.copies is None or bool(loading.must_fork_bare())
        if bare or others or not self._saddle.refused.isdisjoint(own):
            self._life.setup += spent
        return None if bare or not own else frames.Learnt(spent, own)

    def _place(self, call: Call) -> spill.Place | None:
        """Where the result goes if it is large."""
        run, setup = call.run, self._saddle.setup
        return spill.Place.of(run.spill, setup.spill, setup.namespace, run.batch, call.index, call.attempt)

    def _weighed(self, outcome: CallResult, *, alone: bool) -> CallResult:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = children.ru_utime + children.ru_stime
        if not alone and spent == self._children_cpu:
            return outcome
        cpu = outcome.cpu_s + spent - self._children_cpu
        self._children_cpu = spent
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // _KB if alone else None
        return msgspec.structs.replace(outcome, cpu_s=cpu, max_rss_kb=peak)

    def _tell(self, seq: int, outcome: CallResult, flags: int = 0) -> None:
        if outcome.state is State.FAILED:
            flags |= FAILED
        if not self._end_output():
            flags |= UNMARKED
        value = outcome.value
        if value is None or len(value) < frames.BIG_FROM:
            self._send(frames.DONE, frames.pack_done(seq, encode(outcome), bytes([flags])))
            return
        outcome = msgspec.structs.replace(outcome, value=None)
        fd = frames.write_value(value)
        self._send(frames.DONE, frames.pack_done(seq, encode(outcome), bytes([flags])), fd)

    def _end_output(self) -> bool:
        """Marks the end of a job's output; False when the job has closed the pipe."""
        try:
            for stream in self._streams:
                if not stream.closed:
                    stream.flush()
            os.write(self._output, self._saddle.mark)
        except (OSError, ValueError):
            return False
        return True

    # ------------------------------------------------------------ what follows a call

    def _note_error(self, error: BaseException) -> None:
        self._error = error

    def _stays(self, run: frames.Run, outcome: CallResult) -> bool:
        """Whether something may have to be done when this outcome is settled."""
        if outcome.state is State.FINISHED:
            return hooks.SUCCESS in run.hooks
        may = hooks.FAILURE in run.hooks or bool(self._saddle.setup.handlers)
        return may and outcome.cause is not Cause.LOAD

    def _stay(self, call: Call, outcome: CallResult) -> None:
        """Waits for the word that the outcome is settled, and does what it says."""
        word = self._word()
        handlers = self._saddle.setup.handlers if word[0] else ()
        steps = hooks.steps_for(word[1:].decode(), self._saddle.record.hooks, handlers)
        self._take(call, steps, hooks.Ending(outcome.value, outcome.failure, self._error, outcome.spilled))

    def _take_over(self, errand: Errand) -> None:
        """Takes the steps that the horse before it has left."""
        saddle, failure = self._saddle, errand.after.failure
        before = functools.partial(loading.prepare, saddle.record, saddle.setup.preload)
        spilled = decode(Spilled, errand.after.spilled) if errand.after.spilled else None
        ending = hooks.Ending(errand.value, decode(Failure, failure) if failure else None, None, spilled)
        first = len(errand.echoes)
        self._take(errand.call, errand.steps, ending, first, before if saddle.copies is None else None)

    def _take(
        self,
        call: Call,
        steps: Sequence[hooks.Step],
        ending: hooks.Ending,
        first: int = 0,
        before: Callable[[], None] | None = None,
    ) -> None:
        self._seq = call.seq
        current.enter(call.job, call.run.seed, call.index, call.present)
        board, alarm = self._saddle.board, self._saddle.alarm
        for position, step in enumerate(steps[first:], first):
            told = functools.partial(overdue, step.name, call.job, step.timeout, "")
            alarm.set(board.now, board.begin(position), step.timeout, told)
            echo, going = hooks.take(step, ending, alarm, before if position == first else None)
            if os.getpid() != self._pid:
                _end_fork(failed=echo.failure is not None)
            board.end()
            self._send(frames.ECHO, encode(echo))
            if not going:
                break
        self._send(frames.ECHO, b"")

    def _word(self) -> bytes:
        """The next frame from the stable, waited for."""
        size, _kind = frames.HEAD.unpack(_read(self._report, frames.HEAD.size))
        return _read(self._report, size)

    def _note(self, kind: int, payload: bytes) -> None:
        self._send(frames.NOTE, frames.pack_note(self._seq, kind, payload))

    def _send(self, kind: int, payload: bytes, fd: int | None = None) -> None:
        """Writes a frame; blocks until the stable, which always reads, has taken it."""
        with self._lock:
            if fd is None:
                _write(self._report, frames.HEAD.pack(len(payload), kind) + payload)
                return
            head = frames.HEAD.pack(len(payload), kind | frames.WITH_FD)
            with socket.socket(fileno=os.dup(self._report)) as sock:
                sent = socket.send_fds(sock, [head + payload], [fd])
            _write(self._report, (head + payload)[sent:])
        os.close(fd)


def _rehearse() -> None:
    """Makes a call of no matter, so that what calls touch is in memory of this process's own by the time of a real one.

    Until it is written to, all memory is shared with the stable, and each page is copied when it first is.
    """
    job = frames.Job(0, 0, 1, perform.pack((0,), {}))
    run = frames.decode_run(frames.encode(frames.Run(0, "", "", True, None, 0.0, 0.0, 1 << 20, None, [job])))
    call = Call(run, *run.jobs[0])
    current.enter(call.job, run.seed, call.index, call.present)
    outcome = perform.perform(abs, call.payload, job=call.job, max_result=run.max_result)
    current.leave()
    frames.pack_done(0, encode(msgspec.structs.replace(outcome, max_rss_kb=0)), b"")


def _read(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = os.read(fd, size - len(data))
        if not part:
            raise BrokenPipeError  # the stable is gone
        data += part
    return data


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _lift(fd: int) -> int:
    """The same descriptor with a high number, where a job's `os.closerange(3, 1000)` does not reach."""
    try:
        high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    except OSError:
        return fd  # the limit on descriptors is lower than that
    os.close(fd)
    return high


def _end_fork(*, failed: bool) -> NoReturn:
    """Ends a process that the job forked and that fell through to here: only the horse itself reports."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(1 if failed else 0)
