"""The parent's side of one stable: starting it, telling it what to run, and what it answers."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from nbqueue.model import CallResult, Failure, FunctionRecord, encode
from nbqueue.worker import frames
from nbqueue.worker.channel import Channel
from nbqueue.worker.ledger import Task
from nbqueue.worker.marks import MARK
from nbqueue.worker.surroundings import for_jobs


class Process:
    """A stable that was started, and has no function yet."""

    def __init__(self, interpreter: str, mark: str, threads: int) -> None:
        """Raises OSError."""
        self._made_of = _made_of(interpreter, mark, threads)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            self.process = self._spawn(theirs)
        self.channel = Channel(ours)
        self.channel.send(frames.HELLO, frames.hello())

    def _spawn(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        interpreter, environment = self._made_of
        return subprocess.Popen(
            [interpreter, "-P", "-m", "nbqueue.worker.stable", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            # By number: in a notebook sys.stderr has no descriptor; where the process began without one, 2 may be any.
            stdout=2 if sys.__stderr__ is not None else subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            env=environment,
            start_new_session=True,  # Ctrl-C in a terminal is the parent's to handle
        )

    def fits(self, interpreter: str, mark: str, threads: int) -> bool:
        """Whether it lives, and one that is started now would be no other."""
        return self.process.poll() is None and self._made_of == _made_of(interpreter, mark, threads)

    def close(self) -> None:
        """Ends it; returns when it is dead."""
        self.channel.close()
        self.process.kill()
        self.process.wait()


def _made_of(interpreter: str, mark: str, threads: int) -> tuple[str, dict[str, str]]:
    """The interpreter and the environment of a process that is started now."""
    return interpreter, for_jobs(os.environ, threads) | {MARK: mark}


def interpreter_for(record: FunctionRecord, host: str) -> str:
    """What loads a function: on its client's own machine the client's interpreter, whatever environment that is of."""
    near = record.host == host and bool(record.interpreter) and os.access(record.interpreter, os.X_OK)
    return record.interpreter if near else sys.executable


class Stall:
    """A stable that serves one function, as the parent sees it."""

    def __init__(
        self, record: FunctionRecord, process: Process, *, key: str, preload: bool, setup: frames.Setup
    ) -> None:
        self.key = key
        self.label = record.label
        self.imports = record.imports  # that come on top of what the function needs to be loaded
        self.ready = False
        self.failure: Failure | None = None  # why it cannot load its function
        self.files: dict[str, frames.File] = {}  # what it runs, where that is to be the code as it is now
        self.retired = False  # it runs old code: what it has begun, and no more
        self.began = self.used = time.monotonic()
        self.away = math.inf  # until when it may import ahead, and hears nobody
        self.stopped: float | None = None  # since when it has been seen stopped by a signal
        self.process, self.channel = process.process, process.channel
        self.channel.queue(frames.SETUP, frames.encode(setup))
        self.channel.send(frames.LOAD if preload else frames.LOAD_BARE, encode(record))

    def changed(self) -> str:
        """A file of its code that is another one by now; empty where all are as they were."""
        for path, known in self.files.items():
            try:
                facts = os.stat(path)  # noqa: PTH116 - the short way: it is asked before each row of calls
            except OSError:
                return path
            if (facts.st_mtime_ns, facts.st_size) != (known.mtime_ns, known.size):
                return path
        return ""

    def run(self, slot: int, tasks: Sequence[Task]) -> None:
        """Sends tasks of one batch to run one after another on a slot."""
        self.channel.send(frames.RUN, frames.encode(_run(slot, tasks)))
        self.used = time.monotonic()

    def after(self, slot: int, task: Task, hook: str, ride: CallResult, *, handlers: bool = False) -> None:
        """Says that a task's outcome is settled, and what is to be done about it."""
        value = ride.value if hook == "success" else None
        fd = None
        if value is not None and len(value) >= frames.BIG_FROM:
            fd = frames.write_value(value)
            value = None
        failure = b"" if ride.failure is None else encode(ride.failure)
        spilled = b"" if ride.spilled is None else encode(ride.spilled)
        began = time.time() - time.monotonic() + ride.started
        after = frames.After(_run(slot, [task]), hook, handlers, value, failure, spilled, began)
        self.channel.send(frames.AFTER, frames.encode(after), fd)
        self.used = time.monotonic()

    def close(self) -> None:
        """Ends the stable, which ends all under it; returns when it is dead."""
        self.channel.close()
        if not self.ready:
            self.process.kill()  # it loads, and hears nobody
        try:
            self.process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def is_stopped(self) -> bool:
        """Whether a signal has stopped the process."""
        try:
            return os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
        except OSError:
            return False  # it has ended, and was reaped

    def died(self) -> str:
        """After the channel's end: waits for the process and says how it ended."""
        self.channel.close()
        try:
            code = self.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        if code >= 0:
            return f"exit code {code}"
        known = -code in set(signal.Signals)
        return f"signal {signal.Signals(-code).name}" if known else f"signal {-code}"


def _run(slot: int, tasks: Sequence[Task]) -> frames.Run:
    first = tasks[0]
    spec = first.spec
    return frames.Run(
        slot=slot,
        batch=first.batch,
        label=spec.label,
        isolate=spec.isolate or first.alone,
        timeout=spec.timeout,
        grace=spec.grace,
        slice=spec.slice,
        max_result=spec.max_result,
        seed=spec.seed,
        jobs=[frames.Job(task.seq, task.index, task.attempt, task.payload, task.meta, *task.left) for task in tasks],
        single=spec.single,
        timeout_from=spec.timeout_from,
        queue=first.queue,
        description=spec.description,
        hooks=spec.hooks,
        spill=spec.spill,
        worker=first.worker,
    )
