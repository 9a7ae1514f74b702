"""Calls made in the worker's own process: what a horse does elsewhere."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nbqueue import current, perform, spill
from nbqueue.errors import BadSignature, LoadError, SetupError
from nbqueue.model import CallbackResult, CallResult, Cause, FunctionRecord
from nbqueue.worker import fresh, hooks, loading, restore
from nbqueue.worker.intake import Intake, failed, refused
from nbqueue.worker.ledger import Task
from nbqueue.worker.limits import overdue
from nbqueue.worker.notes import Notepad
from nbqueue.worker.refusals import Refusals
from nbqueue.worker.score import Score
from nbqueue.worker.timer import Timer

Handler = Callable[..., Any] | str  # an exception handler, or its dotted name
_KEPT = 256  # functions that stay loaded


class Urgent(KeyboardInterrupt):
    """Raised in a call whose worker was asked to leave twice: the job is given back."""


class Rider:
    """Makes the calls of one worker, and their callbacks."""

    def __init__(
        self, intake: Intake, notes: Notepad, handlers: Sequence[Handler], score: Score, spill_to: tuple[str, str]
    ) -> None:
        """`spill_to`: the worker's own root for large results (or none), and the namespace."""
        self._root, self._namespace = spill_to
        spill.here(self._root)
        self.handlers = tuple(handlers)
        self.refusals = Refusals(score)
        self._intake, self._notes = intake, notes
        self._loaded: dict[str, tuple[FunctionRecord, fresh.Copies]] = {}
        # By task: what its callbacks are told.
        self._jobs: dict[int, tuple[FunctionRecord, current.CurrentJob, BaseException | None]] = {}
        self._lock = threading.Lock()
        self._saver = threading.Timer(0.0, self._save_later)

    def ride(self, task: Task) -> CallResult | None:
        """Makes the call; None where the function cannot be loaded here."""
        try:
            record, copies = self._load(task)
        except BadSignature as why:
            return refused(why)
        except LoadError as why:
            self.refusals.call_unfit(task.spec.key, task.spec.label, loading.failure_of(why))
            return None
        spec = task.spec
        told = functools.partial(overdue, spec.label, task.label, spec.timeout or 0.0, spec.timeout_from)
        raised: list[BaseException] = []
        job = self._job(task)
        if spec.seed is not None:
            restore.sow(spec.seed, task.index)
        with _environment(record.env), self._inside(task, job):
            found = perform.perform(
                copies.function,
                task.payload,
                job=task.label,
                max_result=spec.max_result,
                spill_to=self._place(task),
                clock=Timer(spec.timeout, told),
                keep=raised.append,
            )
        if spec.hooks or self.handlers:
            self._jobs[task.seq] = record, job, raised[0] if raised else None
        if raised and isinstance(raised[0], Urgent):
            raise raised[0]  # no outcome of the job's
        return found

    def _place(self, task: Task) -> spill.Place | None:
        return spill.Place.of(task.spec.spill, self._root, self._namespace, task.batch, task.index, task.attempt)

    def unloadable(self, task: Task) -> CallResult:
        """The outcome of a job whose function no living worker can load."""
        return failed(Cause.LOAD, self.refusals.why(task.spec.key))

    def respond(self, task: Task, ride: CallResult, hook: str, *, handlers: bool) -> list[CallbackResult]:
        """Calls what is to be called when the outcome is settled; says how that went."""
        if task.seq not in self._jobs:  # it was never called here
            return []
        record, job, error = self._jobs.pop(task.seq)
        ending = hooks.Ending(ride.value, ride.failure, error, ride.spilled)
        echoes = []
        with _environment(record.env), self._inside(task, job):
            for step in hooks.steps_for(hook, record.hooks, self.handlers if handlers else ()):
                text = f"The {step.name} of {task.label} ran over its time limit of {step.timeout:g} s."
                echo, going = hooks.take(step, ending, Timer(step.timeout, functools.partial(str, text)))
                echoes.append(echo)
                if not going:
                    break
        return echoes

    def forget(self, task: Task) -> None:
        """There is nothing to be called at the end of this task."""
        self._jobs.pop(task.seq, None)

    def close(self) -> None:
        """Ends the thread that saves what jobs say of themselves."""
        with self._lock:
            self._saver.cancel()

    def _load(self, task: Task) -> tuple[FunctionRecord, fresh.Copies]:
        """The function of a task, as no call has touched it. Raises BadSignature or LoadError."""
        key = task.spec.key
        if (found := self._loaded.pop(key, None)) is not None:
            with contextlib.suppress(Exception):  # where it does not open again, load says why
                found[1].renew()
                self._loaded[key] = found
                return found
        record = self._intake.function(task.batch, key)
        # Behind what is there: this process has its own modules, which come first.
        sys.path += [path for path in (*record.path, record.cwd) if Path(path).is_dir() and path not in sys.path]
        loaded = record, loading.copies(record, loading.load(record), alone=False)
        if len(self._loaded) >= _KEPT:
            del self._loaded[next(iter(self._loaded))]
        self._loaded[key] = loaded
        return loaded

    def _job(self, task: Task) -> current.CurrentJob:
        spec = task.spec
        return current.CurrentJob(
            task.label,
            batch=task.batch,
            index=task.index,
            attempt=task.attempt,
            func_name=spec.label,
            description=spec.description,
            queue=task.queue,
            timeout=spec.timeout,
            meta=task.meta,
            left=task.left,
            worker=task.worker,
            arguments=lambda: perform.unpack(task.payload),
        )

    def _save(self) -> None:
        """Saves what jobs have said, once that is due: the thread that runs them has no time to look."""
        with contextlib.suppress(SetupError):  # what cannot be saved now is saved before the outcome
            self._notes.flush()
        with self._lock:
            if (due := self._notes.due) is not None and not self._saver.is_alive():
                self._saver = threading.Timer(max(due, 0.05), self._save_later)
                self._saver.daemon = True
                self._saver.start()

    def _save_later(self) -> None:
        with contextlib.suppress(SetupError):
            self._notes.flush()

    def _inside(self, task: Task, job: current.CurrentJob) -> contextlib.AbstractContextManager[None]:
        def note(kind: int, payload: bytes) -> None:
            self._notes.take(task, kind, payload)
            self._save()

        return current.inside(task.label, task.spec.seed, task.index, lambda: job, note)


@contextlib.contextmanager
def _environment(env: dict[str, str | None]) -> Iterator[None]:
    """The variables that travel with a function, while it runs."""
    before = {name: os.environ.get(name) for name in env}
    _set(env)
    try:
        yield
    finally:
        _set(before)


def _set(env: dict[str, str | None]) -> None:
    for name, value in env.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
