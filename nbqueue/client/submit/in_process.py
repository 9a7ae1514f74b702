"""Running a batch, or one call again, in this very process: for %debug, and for testing one's code without a server.

Arguments and results go through pickle all the same, so that what works here works in a job. Retries and repeats follow
at once, whatever their intervals.
"""

from __future__ import annotations

import asyncio
import inspect
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import CoroutineType
from typing import Any, TypeVar

import msgspec

from nbqueue import current, perform, settings, wire
from nbqueue.client.lookup import arguments, spooled, waiting
from nbqueue.client.session.batch_ref import BatchRef, JobRef
from nbqueue.client.state.batch_state import BatchState
from nbqueue.current import CurrentJob
from nbqueue.errors import BadInput, Expired
from nbqueue.model import (
    MAX_RESULT,
    CallbackResult,
    CallResult,
    Cause,
    FunctionRecord,
    Hook,
    JobMeta,
    Outcome,
    Rerun,
    Spec,
    State,
    Tally,
    decode,
    job_id,
    runs_left,
)
from nbqueue.worker import hooks as callbacks
from nbqueue.worker import loading, restore

T = TypeVar("T")


class InlineRun:
    """Runs the jobs of one batch, in order. `mode` True lets the first exception through untouched; "collect" none."""

    def __init__(
        self,
        state: BatchState,
        spec: Spec,
        function: Callable[..., Any] | None,
        mode: bool | str,
        hooks: Mapping[str, Hook] | None = None,
    ) -> None:
        if function is None:
            raise BadInput(message="inline needs a function that can be imported here.")
        self.state, self.spec, self.function, self.mode, self.hooks = state, spec, function, mode, hooks or {}

    def all(self, payloads: list[bytes]) -> None:
        """Runs all payloads."""
        self._begin(payloads)
        self.these(range(len(payloads)))

    def cancel(self, payloads: list[bytes], indexes: Iterable[int]) -> None:
        """Ends jobs as canceled, since what they depend on did not finish."""
        self._begin(payloads)
        for index in indexes:
            self.state.put(index, Outcome(State.CANCELED, Cause.DEPENDENCY, 0, _now_us(), 0))
        self._end()

    def after(self, found: Sequence[Outcome]) -> None:
        """Job by job, runs what has a result; the others end as canceled."""
        self._begin([perform.handed_on(outcome) or b"" for outcome in found])
        lost = [index for index, outcome in enumerate(found) if outcome.state is not State.FINISHED]
        for index in lost:
            self.state.put(index, Outcome(State.CANCELED, Cause.DEPENDENCY, 0, _now_us(), 0))
        self.these(sorted(set(range(len(found))) - set(lost)))

    def _begin(self, payloads: list[bytes]) -> None:
        self.state.begin_inline(payloads, _now_us())

    def _end(self) -> None:
        assert self.state.arguments.sent is not None
        n = len(self.state.arguments.sent)
        self.state.count(_tally(self.state, n))
        self.state.end()

    def these(self, indexes: Iterable[int]) -> None:
        """Runs the jobs at these positions."""
        assert self.state.arguments.sent is not None
        allowed = _allowed(self.state, len(self.state.arguments.sent))
        failed = 0
        for index in indexes:
            if allowed is not None and failed > allowed:
                outcome = Outcome(State.CANCELED, Cause.USER, 0, _now_us(), 0)
            else:
                outcome = self._job(index)
            failed += outcome.state is State.FAILED
            self.state.put(index, outcome)
        self._end()

    # ------------------------------------------------------------ one job

    def _job(self, index: int) -> Outcome:
        """All runs of a job; the outcome of the last."""
        attempt, retried, repeated = 0, 0, 0
        while True:
            attempt += 1
            outcome, rerun = self._run(index, attempt, retried, repeated)
            if outcome.state is State.FAILED and _left(rerun, retried):
                retried += 1
            elif outcome.state is State.FINISHED and _left(self.spec.repeat, repeated):
                repeated, retried = repeated + 1, 0
            else:
                return outcome
            self.state.inline.earlier.setdefault(index, []).append(outcome)

    def _run(self, index: int, attempt: int, retried: int, repeated: int) -> tuple[Outcome, Rerun | None]:
        spec, payloads = self.spec, self.state.arguments.sent
        assert payloads is not None
        left = runs_left(spec.retry, retried), runs_left(spec.repeat, repeated)
        began = time.time()
        job = self.state.batch if spec.single else job_id(self.state.batch, index)

        def present() -> CurrentJob:
            return CurrentJob(
                job,
                batch=self.state.batch,
                index=index,
                attempt=attempt,
                func_name=spec.label,
                description=spec.description,
                queue=self.state.queue,
                timeout=spec.timeout,
                meta=current.pack_meta(notes.meta) if (notes := self.state.inline.notes.get(index)) else spec.meta,
                left=left,
                worker="inline",
                began=began,
                arguments=lambda: perform.unpack(payloads[index]),
            )

        def note(kind: int, payload: bytes) -> None:
            self.state.inline.notes[index] = noted(self.state.inline.notes.get(index), kind, payload, spec.meta)

        with sown(spec.seed, index), current.inside(job, spec.seed, index, present, note):
            if self.mode is True:
                return self._straight(index, attempt), None
            return self._collected(index, attempt, job, retried)

    def _straight(self, index: int, attempt: int) -> Outcome:
        assert self.state.arguments.sent is not None
        args, kwargs, _ = perform.unpack(self.state.arguments.sent[index])
        begun_us, begun = _now_us(), time.monotonic()
        value = self.function(*args, **kwargs)
        if isinstance(value, CoroutineType):
            value = awaited(value)
        runtime_us = int((time.monotonic() - begun) * 1e6)
        data = wire.dumps(value, self.spec.max_result or MAX_RESULT, "The result")
        self._respond(index, callbacks.SUCCESS, callbacks.Ending(data))
        return Outcome(
            State.FINISHED, None, attempt, begun_us, runtime_us, host=settings.host(), worker="inline", value=data
        )

    def _collected(self, index: int, attempt: int, job: str, retried: int) -> tuple[Outcome, Rerun | None]:
        assert self.state.arguments.sent is not None
        function, payload, begun_us = self.function, self.state.arguments.sent[index], _now_us()

        def ride() -> CallResult:
            return perform.perform(function, payload, job=job, max_result=self.spec.max_result)

        found = _aside(ride) if _in_loop() and inspect.iscoroutinefunction(function) else ride()
        hook = callbacks.SUCCESS if found.state is State.FINISHED else callbacks.FAILURE
        if found.rerun is None or not _left(found.rerun, retried):  # who asks to run again has not failed yet
            self._respond(index, hook, callbacks.Ending(found.value, found.failure))
        return _outcome(found, attempt, begun_us), found.rerun or self.spec.retry

    def _respond(self, index: int, hook: str, ending: callbacks.Ending) -> None:
        echoes: list[CallbackResult] = callbacks.respond(callbacks.steps_for(hook, self.hooks), ending)
        if echoes:
            self.state.inline.echoes[index] = echoes


def finished(one: JobRef | BatchRef, *, allow_failure: bool) -> bool:
    """Waits for a job, or for each of a batch; whether it went as what depends on it asks."""
    jobs = [one] if isinstance(one, JobRef) else [one.job(index) for index in one.indexes]
    for job in jobs:
        waiting.for_job(job, None)
    return allow_failure or all(job.batch.state.outcomes.state(job.index) is State.FINISHED for job in jobs)


def again(batch: BatchRef, indexes: list[int], func: Callable[..., Any] | str | None, spec: Spec) -> None:
    """A retry of an inline batch."""
    if isinstance(func, str):
        raise BadInput(message="An inline batch takes a function, not a dotted name.")
    batch.function = func or batch.function
    for index in indexes:
        batch.state.withdraw(index)
    InlineRun(batch.state, spec, batch.function, batch.inline, batch.hooks).these(indexes)


def noted(before: JobMeta | None, kind: int, payload: bytes, meta: bytes = b"") -> JobMeta:
    """A job's notes after it sent one more."""
    found = before or JobMeta(current.unpack_meta(meta))
    if kind == current.META:
        return JobMeta(current.unpack_meta(payload), found.progress)
    return JobMeta(found.meta, msgspec.msgpack.decode(payload, type=tuple[float, float | None, str]))


def _left(rerun: Rerun | None, used: int) -> bool:
    return bool(runs_left(rerun, used))


def _allowed(state: BatchState, n: int) -> float | None:
    allowed = state.max_failed
    return allowed * n if allowed is not None and 0 < allowed < 1 else allowed


def _tally(state: BatchState, n: int) -> Tally:
    states = [state.outcomes.state(index) for index in range(n)]
    counts = {str(each): states.count(each) for each in (State.FINISHED, State.FAILED, State.CANCELED)}
    return Tally(n=n, **counts)


def awaited(value: CoroutineType[Any, Any, Any]) -> Any:
    """What a coroutine gives; on a thread of its own where this one runs an event loop."""
    return _aside(lambda: asyncio.run(value)) if _in_loop() else asyncio.run(value)


def _in_loop() -> bool:
    """Whether this thread runs an event loop, as a notebook's does: another one must then run elsewhere."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _aside(work: Callable[[], T]) -> T:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def _outcome(ride: CallResult, attempt: int, begun_us: int) -> Outcome:
    return Outcome(
        ride.state,
        ride.cause,
        attempt,
        begun_us,
        int((ride.ended - ride.started) * 1e6),
        int(ride.cpu_s * 1e6),
        host=settings.host(),
        worker="inline",
        failure=ride.failure,
        value=ride.value,
    )


def _now_us() -> int:
    return int(time.time() * 1e6)


# ---------------------------------------------------------------- one call again


def replay(job: JobRef, func: Callable[..., Any] | None) -> Any:
    """Calls the job's function, or `func`, with its arguments and its random numbers; what it raises comes untouched.

    Nothing is stored. Raises Expired where the arguments are not to be had any more.
    """
    batch, index, spec = job.batch, job.index, job.batch.spec
    payload = arguments.payload(batch, index)
    if payload is None:
        raise Expired(what=f"The call of {job.id}", ttl="some time")
    function = func or function_of(batch)
    args, kwargs, _ = perform.unpack(payload)

    def present() -> CurrentJob:
        return CurrentJob(
            job.id,
            batch=batch.id,
            index=index,
            func_name=spec.label,
            description=spec.description,
            queue=batch.queue,
            meta=spec.meta,
            arguments=lambda: perform.unpack(payload),
        )

    with sown(spec.seed, index), current.inside(job.id, spec.seed, index, present):
        value = function(*args, **kwargs)
        return awaited(value) if isinstance(value, CoroutineType) else value


def function_of(batch: BatchRef) -> Callable[..., Any]:
    """The function as it was sent, with what it took along then; this kernel's own where the server has it no more."""
    if (record := _record(batch)) is not None:
        loading.know_lines(record.sources)
        found: Callable[..., Any] = wire.loads(record.payload)
        return found
    if batch.function is None:
        raise BadInput(message=f"The function of {batch.id} is no longer available: give one, as replay(func=f).")
    return batch.function


def callback_of(batch: BatchRef, name: str) -> Callable[..., Any] | None:
    """What is called after success, failure or stop; None: nothing, or the server has it no more."""
    record = _record(batch)
    hook = (batch.hooks if record is None else record.hooks).get(name)
    return None if hook is None else wire.loads(hook.payload)


def _record(batch: BatchRef) -> FunctionRecord | None:
    if batch.inline:
        return None
    sealed = None if batch.state.gone else batch.session.ask(lambda broker: broker.function(batch.id))
    sealed = spooled.function(batch) if sealed is None else sealed
    if sealed is None:
        return None
    opened = batch.session.sealer.unseal(wire.FUNCTION, batch.id, -1, sealed)
    return decode(FunctionRecord, opened, f"The function of {batch.id}")


@contextmanager
def sown(seed: int | None, index: int) -> Iterator[None]:
    """Seeds `random` and NumPy's global state as a job's, while it lasts."""
    if seed is None:
        yield
        return
    numpy = sys.modules.get("numpy.random")
    before, state = random.getstate(), None if numpy is None else numpy.get_state()
    restore.sow(seed, index)
    try:
        yield
    finally:
        restore.forget()
        random.setstate(before)
        if numpy is not None:
            numpy.set_state(state)
        elif (made := sys.modules.get("numpy.random")) is not None:
            made.seed()  # the call has imported it: the caller's own numbers are not the job's
