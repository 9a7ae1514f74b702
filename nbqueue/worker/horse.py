"""The forked child: it takes a ticket, makes the call, says at once what became of it, and takes the next.

It ends by itself when it is older than its slice, when a call left threads or children behind, or when there are no
tickets. A spare one is forked before there is a call for it, and waits for one. After a call that has callbacks a horse
waits until the outcome is settled, runs them, and ends. It owns nothing but its report socket, the pipe that it prints
to, and the pipe that its tickets come from.
"""

from __future__ import annotations

import _thread
import fcntl
import functools
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

import msgspec

from nbqueue import current, perform, spill
from nbqueue.errors import LoadError
from nbqueue.model import Cause, Failure, FunctionRecord, Ride, Spilled, State, decode, encode
from nbqueue.worker import frames, fresh, hooks, loading, restore, tree
from nbqueue.worker.limits import ALARM, Alarm, Board, overdue
from nbqueue.worker.slots import Call, Errand

FAILED, UNMARKED, STAYS = 1, 2, 4  # flags of a DONE
MUTE = 71  # exit code: the call closed the descriptor that its outcome would have gone to

_HIGH = 1_000  # descriptors from here on survive a call that closes "all" of them
_SHIELDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_KB = 1 if sys.platform == "linux" else 1024


def no_op(_signum: int, _frame: object) -> None:
    """Does nothing: schedulers send SIGTERM to every process, but when to end is the parent's decision."""


def shield() -> None:
    """Makes this process survive a scheduler's signals. What it executes does not inherit that."""
    for signum in _SHIELDED:
        signal.signal(signum, no_op)


def _unshield() -> None:
    """In a process that a job forks (multiprocessing): its signals are as in any Python program."""
    current.here.note = None
    for signum in _SHIELDED:
        if signal.getsignal(signum) is no_op:
            signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)


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
    slice: float


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


class Horse:
    """The child's side of a saddle."""

    def __init__(self, saddle: Saddle) -> None:
        os.setsid()
        tree.become_subreaper()
        tree.die_with(saddle.stable)
        tree.rename(tree.HORSE)
        os.register_at_fork(after_in_child=_unshield)
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
        self._keep: Callable[[BaseException], None] | None = None
        current.here.note = self._note
        spill.here(saddle.setup.spill)

    def run(self) -> None:
        """Makes calls while there are tickets, time, and a clean process."""
        saddle = self._saddle
        if saddle.errand is not None:
            self._take_over(saddle.errand)
            return
        if not saddle.calls:
            saddle = self._saddle = saddle._replace(calls=[self._first()])
        if saddle.calls[0].run.hooks or saddle.setup.handlers:  # calls that have callbacks are alone in a horse
            self._keep = self._note_error
        wall = time.time()
        copies, loaded = self._loaded()
        limit = max(saddle.slice, loaded)
        shared = len(saddle.calls) > 1
        scene = restore.Scene(self._output, ALARM, loading.own_modules(saddle.record)) if shared else None
        born = time.monotonic()
        for position, call in enumerate(saddle.calls):
            if not os.read(self._tickets, 1):
                return
            if (outcome := self._call(position, call, copies)) is not None:
                self._stay(call, outcome)
                return
            if scene is None or time.monotonic() - born >= limit or not scene.restore():
                return
            if isinstance(copies, fresh.Copies) and not copies.renew(fresh.FORK + loaded):
                return
            self._tell_files(copies, wall)

    def _tell_files(self, copies: fresh.Copies | Failure, since: float) -> None:
        """Says which files this process has loaded, where it makes more calls and must not run them as old code."""
        if self._saddle.record.pinned or isinstance(copies, Failure) or len(sys.modules) == self._modules:
            return
        self._modules = len(sys.modules)
        if files := loading.loaded_files(copies.function, since):
            self._send(frames.FILES, frames.encode(files))

    def _first(self) -> Call:
        """The call of a spare horse, for which it waits."""
        tree.rename(tree.SPARE)
        _rehearse()
        run = frames.decode_run(self._word())
        tree.rename(tree.HORSE)
        return Call(run, *run.jobs[0])

    def _loaded(self) -> tuple[fresh.Copies | Failure, float]:
        """What calls are made with, and the seconds that this process spent on it."""
        saddle = self._saddle
        if saddle.copies is not None:
            return saddle.copies, 0.0
        began = time.monotonic()
        try:
            function = loading.load(saddle.record, saddle.setup.preload)
        except LoadError as why:
            return loading.failure_of(why), 0.0
        took = time.monotonic() - began
        return loading.copies(saddle.record, function), took

    def _call(self, position: int, call: Call, copies: fresh.Copies | Failure) -> Ride | None:
        """Makes one call and tells its outcome; gives it back if this process stays for what follows."""
        run, saddle = call.run, self._saddle
        self._seq = call.seq
        since = saddle.board.begin(position)
        if isinstance(copies, Failure):
            now = time.monotonic()
            outcome = Ride(State.FAILED, Cause.LOAD, now, now, failure=copies)
        else:
            if run.timeout is not None:
                told = functools.partial(overdue, run.label, call.job, run.timeout, run.timeout_from)
                saddle.alarm.set(saddle.board.now, since, run.timeout, told)
            else:
                saddle.alarm.set(saddle.board.now, since, None, str)
            if run.seed is not None:
                restore.sow(run.seed, call.index)
            current.enter(call.job, run.seed, call.index, call.present)
            outcome = perform.perform(
                copies.function,
                call.payload,
                job=call.job,
                max_result=run.max_result,
                spill_to=self._place(call),
                clock=saddle.alarm,
                keep=self._keep,
            )
        if os.getpid() != self._pid:
            _end_fork(failed=outcome.state is State.FAILED)
        saddle.board.end()
        alone = position == 0 and (len(saddle.calls) == 1 or outcome.ended - outcome.started >= saddle.slice)
        weighed = self._weighed(outcome, alone=alone)
        if self._keep is not None and self._stays(run, outcome):
            self._tell(call.seq, weighed, STAYS)
            return outcome
        current.leave()
        self._tell(call.seq, weighed)
        return None

    def _place(self, call: Call) -> spill.Place | None:
        """Where the result goes if it is large."""
        run, setup = call.run, self._saddle.setup
        return spill.Place.of(run.spill, setup.spill, setup.namespace, run.batch, call.index, call.attempt)

    def _weighed(self, outcome: Ride, *, alone: bool) -> Ride:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = children.ru_utime + children.ru_stime
        if not alone and spent == self._children_cpu:
            return outcome
        cpu = outcome.cpu_s + spent - self._children_cpu
        self._children_cpu = spent
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // _KB if alone else None
        return msgspec.structs.replace(outcome, cpu_s=cpu, max_rss_kb=peak)

    def _tell(self, seq: int, outcome: Ride, flags: int = 0) -> None:
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

    def _stays(self, run: frames.Run, outcome: Ride) -> bool:
        """Whether something may have to be done when this outcome is settled."""
        if outcome.state is State.FINISHED:
            return hooks.SUCCESS in run.hooks
        may = hooks.FAILURE in run.hooks or bool(self._saddle.setup.handlers)
        return may and outcome.cause is not Cause.LOAD

    def _stay(self, call: Call, outcome: Ride) -> None:
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
