"""The properties that RQ's jobs have: origin, options, state, times, results of all runs, meta and progress."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

from nbqueue import perform, wire
from nbqueue.client.calls.function import resolved
from nbqueue.client.lookup import arguments, job_meta, spooled, waiting
from nbqueue.client.lookup.results import Run, echoes_in, has_run, parents_of
from nbqueue.client.lookup.waiting import lifetime
from nbqueue.client.session.batch_ref import JobRef
from nbqueue.client.session.session import within
from nbqueue.client.spool.records import RecordType
from nbqueue.client.state.batch_state import opened
from nbqueue.client.submit import in_process
from nbqueue.errors import BadInput, Expired
from nbqueue.model import CallbackResult, Cause, JobMeta, Outcome, Rerun, State, runs_left, utc
from nbqueue.policies import Callback
from nbqueue.store.broker import Broker
from nbqueue.store.records import past

if TYPE_CHECKING:
    from nbqueue.store.records import BatchView, Holder

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class _In(property):
    """A property of a job: whether it is in a state."""

    def __init__(self, state: State, doc: str) -> None:
        super().__init__(lambda job: job.status is state, doc=doc)

    if TYPE_CHECKING:

        def __get__(self, job: Any, owner: type | None = None, /) -> bool: ...  # type: ignore[override]


class Facts(JobRef, Generic[R]):
    """The properties of a job. Times are UTC. What is not in memory costs one round trip."""

    _notes: JobMeta | None = None

    @property
    @abstractmethod
    def outcome(self) -> Outcome | None:
        """The record of its run."""

    @property
    @abstractmethod
    def status(self) -> State | str:
        """Where it is."""

    # ------------------------------------------------------------ as it was submitted

    @property
    def origin(self) -> str:
        """The name of its queue; of a job that is not enqueued yet, the `origin` it was created with."""
        return self.batch.queue

    @origin.setter
    def origin(self, name: str) -> None:
        if self.batch.unsent is None:
            raise BadInput(message=f"{self.id} is in {self.origin}: batch.retry(queue=...) moves what has ended.")
        self.batch.state.move(name)

    @property
    def func_name(self) -> str:
        """The name of its function."""
        return self.batch.spec.label

    @property
    def description(self) -> str:
        """The description that the user gave, or the function's name; never the arguments."""
        return self.batch.spec.description or self.batch.spec.label

    @property
    def timeout(self) -> float | None:
        """Its time limit in seconds; None: none, or before it is enqueued, that of its queue."""
        return self.batch.spec.timeout

    @property
    def result_ttl(self) -> float:
        """How many seconds its result is kept."""
        return self.batch.spec.result_ttl

    @property
    def failure_ttl(self) -> float:
        """How many seconds a failure is kept."""
        return self.batch.spec.failure_ttl

    @property
    def ttl(self) -> float | None:
        """How many seconds it may wait before it is canceled; None: for ever. Asks the store."""
        if self.batch.unsent is not None:
            return self.batch.unsent.options["ttl"]  # type: ignore[no-any-return]
        return self._ask(Broker.ttl, self.batch.id)

    def get_ttl(self) -> float | None:
        """As `ttl`."""
        return self.ttl

    @property
    def success_callback(self) -> Callable[..., Any] | None:
        """The function called when it has finished, unpickled now, or None. Asks the store."""
        return self._callback("success")

    @property
    def failure_callback(self) -> Callable[..., Any] | None:
        """The function called when it has failed, unpickled now, or None. Asks the store."""
        return self._callback("failure")

    @property
    def stopped_callback(self) -> Callable[..., Any] | None:
        """The function called when it was stopped, unpickled now, or None. Asks the store."""
        return self._callback("stopped")

    def _callback(self, name: str) -> Callable[..., Any] | None:
        if (unsent := self.batch.unsent) is not None:
            given = unsent.options.get(f"on_{name}")
            return resolved(given.func if isinstance(given, Callback) else given)[0] if given is not None else None
        return in_process.callback_of(self.batch, name) if name in self.batch.spec.hooks else None

    @property
    def retries_left(self) -> int | None:
        """How many retries are left; None where it was submitted without. Asks the store."""
        return self._left(self.batch.spec.retry, "")

    @property
    def repeats_left(self) -> int | None:
        """How many repeats are left; None where it was submitted without. Asks the store."""
        return self._left(self.batch.spec.repeat, "r")

    def _left(self, rerun: Rerun | None, prefix: str) -> int | None:
        return runs_left(rerun, 0 if rerun is None else self._used(prefix))

    def _used(self, prefix: str) -> int:
        return self._ask(Broker.used, self.batch.id, f"{prefix}{self.index}") or 0

    @property
    def number_of_retries(self) -> int:
        """How many retries it has had. Asks the store."""
        return self._used("")

    @property
    def retry_intervals(self) -> list[float] | None:
        """Seconds before each retry; None where it was submitted without."""
        return None if (rerun := self.batch.spec.retry) is None else list(rerun.intervals)

    @property
    def repeat_intervals(self) -> list[float] | None:
        """Seconds before each repeat; None where it was submitted without."""
        return None if (rerun := self.batch.spec.repeat) is None else list(rerun.intervals)

    @property
    def dependent_ids(self) -> list[str]:
        """Ids of the batches and single jobs that depend on it, or on its batch."""
        return self._ask(Broker.dependents, self.batch.id, self.index) or []

    @property
    def func(self) -> Callable[..., R]:
        """Its function, unpickled now. Raises BadSignature, BadInput."""
        return in_process.function_of(self.batch)

    @property
    def dependency_ids(self) -> list[str]:
        """Ids of the jobs and batches that it depends on."""
        return parents_of(self.batch.spec)

    @property
    def args(self) -> tuple[Any, ...]:
        """Its positional arguments, unpickled now."""
        return self._call()[0]

    @property
    def kwargs(self) -> dict[str, Any]:
        """Its keyword arguments, unpickled now."""
        return self._call()[1]

    @property
    def call_string(self) -> str:
        """The call as one would type it, with its arguments, unpickled now."""
        args, kwargs = self._call()
        parts = [repr(value) for value in args] + [f"{name}={value!r}" for name, value in kwargs.items()]
        return f"{self.func_name}({', '.join(parts)})"

    def get_call_string(self) -> str:
        """As `call_string`."""
        return self.call_string

    def _call(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        payload = arguments.payload(self.batch, self.index)
        if payload is None:
            raise Expired(what=f"The arguments of {self.id}", ttl=lifetime(self.batch.spec.result_ttl))
        return perform.unpack(payload, partial(perform.careful, what=f"The call of {self.id}"))[:2]

    # ------------------------------------------------------------ its state

    is_finished = _In(State.FINISHED, "Whether it has finished.")
    is_failed = _In(State.FAILED, "Whether it has failed.")
    is_canceled = _In(State.CANCELED, "Whether it was canceled.")
    is_queued = _In(State.QUEUED, "Whether it waits for a worker.")
    is_started = _In(State.STARTED, "Whether it runs.")
    is_deferred = _In(State.DEFERRED, "Whether it waits for what it depends on.")
    is_scheduled = _In(State.SCHEDULED, "Whether it waits for its time.")

    @property
    def is_stopped(self) -> bool:
        """Whether someone stopped it while it ran."""
        found = self.outcome
        return found is not None and found.cause is Cause.USER and bool(found.runtime_us)

    # ------------------------------------------------------------ its times and its runs

    @property
    def created_at(self) -> datetime | None:
        """When it was submitted."""
        state = self.batch.state
        view = None if state.created_us else self._view()
        created_us = state.created_us if view is None else view.created_us
        return utc(created_us) if created_us else None

    @property
    def due_at(self) -> datetime | None:
        """The time it was scheduled for, or None."""
        view = self._view()
        return None if view is None or view.due_us is None else utc(view.due_us)

    @property
    def enqueued_at(self) -> datetime | None:
        """When it could first be taken; None while it is deferred or scheduled."""
        if self.batch.inline:
            return self.created_at if self.batch.unsent is None else None
        view = self._view()
        return None if view is None or view.queued_us is None else utc(view.queued_us)

    @property
    def started_at(self) -> datetime | None:
        """When its latest run began; None before the first."""
        found = self.outcome
        if found is not None:
            return utc(found.started_us) if has_run(found) else None
        holder = self._holder()
        return None if holder is None else utc(holder.since_us)

    @property
    def ended_at(self) -> datetime | None:
        """When it ended; None while it has not."""
        found = self.outcome
        return utc(found.ended_us) if found is not None and found.ended_us else None

    @property
    def cause(self) -> Cause | None:
        """Why it failed or was canceled."""
        found = self.outcome
        return None if found is None else found.cause

    @property
    def attempt(self) -> int:
        """How many runs have begun."""
        found = self.outcome
        if found is not None:
            return found.attempt
        return (self._ask(Broker.attempts, self.batch.id, [self.index]) or [0])[0]

    @property
    def worker_name(self) -> str | None:
        """The worker that runs it, or ran it last."""
        found = self.outcome or self._holder()
        return None if found is None else found.worker or None

    @property
    def exc_info(self) -> str | None:
        """The traceback of the failed run, as text; None if there is none."""
        found = self.outcome
        return None if found is None else Run(self.id, found).exc_info

    def results(self) -> list[Run]:
        """All runs that have ended, the latest first; retries and repeats count."""
        outcome, batch = self.outcome, self.batch
        before = batch.state.inline.earlier.get(self.index, [])
        if not batch.inline:
            blob = spooled.asked(batch, RecordType.EARLIER_RUNS, self.index)
            before = [opened(batch.session.sealer, batch.id, self.index, one) for one in past(blob or b"") if one]
        return [Run(self.id, each) for each in reversed([*before, outcome]) if each is not None]

    def latest_result(self, timeout: float | None = None) -> Run | None:
        """The latest run that has ended; with `timeout` it waits so many seconds for a first one."""
        if timeout:
            waiting.until(self.batch, lambda: self.index in self.batch.state.outcomes, timeout, index=self.index)
        with within(timeout):
            return next(iter(self.results()), None)

    @property
    def echoes(self) -> list[CallbackResult]:
        """How its callbacks and the workers' exception handlers ended. Raises BadSignature."""
        batch = self.batch
        if (blobs := self._ask(Broker.echoes, batch.id, [self.index])) is None:
            return batch.state.inline.echoes.get(self.index, [])
        return echoes_in(batch.session.sealer.unseal(wire.ECHO, batch.id, self.index, blobs[0])) if blobs[0] else []

    def get_position(self) -> int | None:
        """How many jobs come before it in its queue; None if it does not wait there."""
        found = self._ask(Broker.queued, self.origin) or []
        waiting = [(one.view.id, index) for one in found for index in one.indexes]
        here = (self.batch.id, self.index)
        return waiting.index(here) if here in waiting else None

    def _view(self) -> BatchView | None:
        return self._ask(Broker.view, self.batch.id)

    def _holder(self) -> Holder | None:
        return (self._ask(Broker.holders, self.batch.id, [self.index]) or [None])[0]

    def _ask(self, question: Callable[Concatenate[Broker, P], T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """The server's answer; None for a job that ran in this process."""
        return None if self.batch.inline else self.batch.session.ask(question, *args, **kwargs)

    # ------------------------------------------------------------ meta and progress

    @property
    def meta(self) -> dict[str, Any]:
        """Its dict of plain data, read once. `save_meta()` writes changes, `get_meta()` reads it anew."""
        if self._notes is None:
            self._notes = self._read_notes()
        return self._notes.meta

    @meta.setter
    def meta(self, value: dict[str, Any]) -> None:
        self._notes = JobMeta(value, None if self._notes is None else self._notes.progress)

    def get_meta(self, refresh: bool = True) -> dict[str, Any]:
        """Its meta as it is now. Raises BadSignature."""
        if refresh:
            self._notes = None
        return self.meta

    def save_meta(self) -> None:
        """Writes `meta`; a running job that saves its own overwrites it. Raises BadInput for what is no plain data."""
        batch, progress = self.batch, None if self._notes is None else self._notes.progress
        found = JobMeta(job_meta.plain(self.meta), progress)
        if batch.inline:
            batch.state.inline.notes[self.index] = found
            return
        blob = job_meta.sealed(batch.session.sealer, batch.id, self.index, found.meta, found.progress)
        batch.session.ask(Broker.save, batch.id, self.index, blob)
        batch.session.spool.write_extras(batch.state, [(RecordType.METAS, [(self.index, blob)])])

    def save(self) -> None:
        """As `save_meta`; nothing else of a job changes. Before it is enqueued, its meta is in this process only."""
        self.save_meta()

    @property
    def progress(self) -> tuple[float, float | None, str] | None:
        """The progress that it reports: (done, total or None, a few words), read now; None if it reports none."""
        return self._read_notes().progress

    def _read_notes(self) -> JobMeta:
        batch = self.batch
        if batch.inline and (found := batch.state.inline.notes.get(self.index)) is not None:
            return found
        blob = None if batch.inline else spooled.asked(batch, RecordType.METAS, self.index)
        return job_meta.opened(batch.session.sealer, batch.spec, batch.id, self.index, blob)
