"""The forked child: it takes a ticket, makes the call, says at once what became of it, and takes the next.

It ends by itself when it is older than its slice, when a call left threads or children behind, or when there are no
tickets. It owns nothing but its report socket, the pipe that it prints to, and the pipe that its tickets come from.
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
from typing import Any, NamedTuple, NoReturn

import msgspec

from nbqueue import perform
from nbqueue.errors import LoadError
from nbqueue.model import Cause, Failure, FunctionRecord, Ride, State, encode
from nbqueue.worker import frames, loading, restore, tree
from nbqueue.worker.limits import ALARM, Alarm, Board, overdue
from nbqueue.worker.slots import Call

FAILED, UNMARKED = 1, 2  # flags of a DONE
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
    perform.here.note = None
    for signum in _SHIELDED:
        if signal.getsignal(signum) is no_op:
            signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)


class Saddle(NamedTuple):
    """What a horse gets from its stable by being forked."""

    calls: Sequence[Call]
    function: Callable[..., Any] | None  # None: the horse loads `record` itself
    record: FunctionRecord
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
        perform.here.note = self._note

    def run(self) -> None:
        """Makes calls while there are tickets, time, and a clean process."""
        saddle = self._saddle
        function, loaded = self._loaded()
        limit = saddle.slice if saddle.function is not None else max(saddle.slice, loaded)
        scene = restore.Scene(self._output, ALARM) if len(saddle.calls) > 1 else None
        born = time.monotonic()
        for position, call in enumerate(saddle.calls):
            if not os.read(self._tickets, 1):
                return
            self._call(position, call, function)
            if scene is None or time.monotonic() - born >= limit or not scene.restore():
                return

    def _loaded(self) -> tuple[Callable[..., Any] | Failure, float]:
        saddle = self._saddle
        if saddle.function is not None:
            return saddle.function, 0.0
        began = time.monotonic()
        try:
            function = loading.load(saddle.record)
        except LoadError as why:
            return loading.failure_of(why), 0.0
        return function, time.monotonic() - began

    def _call(self, position: int, call: Call, function: Callable[..., Any] | Failure) -> None:
        run, saddle = call.run, self._saddle
        self._seq = call.seq
        since = saddle.board.begin(position)
        if isinstance(function, Failure):
            now = time.monotonic()
            outcome = Ride(State.FAILED, Cause.LOAD, now, now, failure=function)
        else:
            if run.timeout is not None:
                told = functools.partial(overdue, run.label, call.job, run.timeout, run.timeout_from)
                saddle.alarm.set(saddle.board.now, since, run.timeout, told)
            else:
                saddle.alarm.set(saddle.board.now, since, None, str)
            if run.seed is not None:
                restore.sow(run.seed, call.index)
            perform.enter(call.job, run.seed, call.index)
            outcome = perform.perform(
                function, call.payload, job=call.job, max_result=run.max_result, clock=saddle.alarm
            )
        if os.getpid() != self._pid:
            _end_fork(outcome)
        perform.leave()
        saddle.board.end()
        alone = position == 0 and (len(saddle.calls) == 1 or outcome.ended - outcome.started >= saddle.slice)
        self._tell(call.seq, self._weighed(outcome, alone=alone))

    def _weighed(self, outcome: Ride, *, alone: bool) -> Ride:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = children.ru_utime + children.ru_stime
        if not alone and spent == self._children_cpu:
            return outcome
        cpu = outcome.cpu_s + spent - self._children_cpu
        self._children_cpu = spent
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // _KB if alone else None
        return msgspec.structs.replace(outcome, cpu_s=cpu, max_rss_kb=peak)

    def _tell(self, seq: int, outcome: Ride) -> None:
        flags = FAILED if outcome.state is State.FAILED else 0
        if not self._end_output():
            flags |= UNMARKED
        value = outcome.value
        if value is None or len(value) < frames.BIG_FROM:
            self._send(frames.DONE, frames.pack_done(seq, encode(outcome), bytes([flags])))
            return
        outcome = msgspec.structs.replace(outcome, value=None)
        fd = _memory(value)
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


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _memory(value: bytes) -> int:
    """A descriptor with `value` in it, without a name in any folder."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("nbqueue-result")
    else:
        import tempfile

        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    view = memoryview(value)
    while view:
        view = view[os.write(fd, view) :]
    return fd


def _lift(fd: int) -> int:
    """The same descriptor with a high number, where a job's `os.closerange(3, 1000)` does not reach."""
    try:
        high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    except OSError:
        return fd  # the limit on descriptors is lower than that
    os.close(fd)
    return high


def _end_fork(outcome: Ride) -> NoReturn:
    """Ends a process that the job forked and that fell through to here: only the horse itself reports."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(1 if outcome.state is State.FAILED else 0)
