"""What the outcome of a job says: its value, or the error that stands for it, or words; and how each run went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import msgspec

from nbqueue import perform
from nbqueue.client.lookup import waiting
from nbqueue.client.session.batch_ref import BatchRef
from nbqueue.errors import (
    BadSignature,
    BatchFailed,
    CannotOpen,
    JobCanceled,
    JobFailed,
    NbqueueError,
    RemoteTraceback,
    SpillLost,
)
from nbqueue.model import MAX_LOSSES, CallbackResult, Cause, Failure, Outcome, Spec, State, utc

_echoes = msgspec.msgpack.Decoder(list[CallbackResult])


@dataclass(frozen=True)
class Run:
    """How one run of a job went. `return_value` unpickles what it gave."""

    job_id: str
    outcome: Outcome

    class Type(StrEnum):
        """What `type` may be."""

        SUCCESSFUL = "successful"
        FAILED = "failed"
        STOPPED = "stopped"
        CANCELED = "canceled"

    @property
    def status(self) -> State:
        """finished, failed or canceled."""
        return self.outcome.state

    @property
    def attempt(self) -> int:
        """Which run it was, from 1."""
        return self.outcome.attempt

    @property
    def started_at(self) -> datetime | None:
        """When it began; None for a job that was canceled before."""
        return utc(self.outcome.started_us) if has_run(self.outcome) else None

    @property
    def ended_at(self) -> datetime:
        """When it ended."""
        return utc(self.outcome.ended_us)

    @property
    def exc_info(self) -> str | None:
        """The traceback, as text; None if it finished."""
        failure = self.outcome.failure
        return None if failure is None else failure.traceback or str(failure)

    @property
    def worker_name(self) -> str | None:
        """The worker that ran it; None for a job that was canceled before."""
        return self.outcome.worker or None

    @property
    def type(self) -> Type:
        """`successful`, `failed`, `stopped` or `canceled`: as in RQ, `run.type == run.Type.FAILED`."""
        words = {State.FINISHED: self.Type.SUCCESSFUL, State.FAILED: self.Type.FAILED}
        return words.get(self.outcome.state) or (self.Type.STOPPED if has_run(self.outcome) else self.Type.CANCELED)

    @property
    def created_at(self) -> datetime:
        """As `ended_at`: when this result came to be."""
        return self.ended_at

    @property
    def exc_string(self) -> str | None:
        """As `exc_info`."""
        return self.exc_info

    @property
    def return_value(self) -> Any:
        """The value that it gave, unpickled now; None if it gave none. Raises SpillLost, CannotOpen."""
        finished = self.outcome.state is State.FINISHED
        return perform.opened(self.outcome, f"The result of {self.job_id}") if finished else None


def parents_of(spec: Spec) -> list[str]:
    """Ids of the jobs and batches that a job, or each of a batch, depends on."""
    return [*spec.depends_on, *([spec.source] if spec.source else [])]


def echoes_in(data: bytes) -> list[CallbackResult]:
    """The echoes in a record whose signature is checked. Raises BadSignature."""
    try:
        return _echoes.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as why:
        raise BadSignature(what="What became of a callback", why=f"it is no list of echoes ({why})") from why


def has_run(outcome: Outcome) -> bool:
    """Whether its job ran, rather than being canceled before."""
    return bool(outcome.runtime_us or (outcome.worker and outcome.state is not State.CANCELED))


def value_or_error(batch: BatchRef, index: int) -> tuple[Any, BaseException | None]:
    """The value of a job that has ended, or the error that stands in its place."""
    job = batch.job(index).id
    try:
        outcome = batch.state.outcome(index, batch.session.sealer)
        if outcome is None:
            return None, waiting.absence(batch.state, batch.session, job)
        error = error_of(outcome, job, parents_of(batch.spec))
        return (value_of(outcome, job), None) if error is None else (None, error)
    except (SpillLost, BadSignature, CannotOpen) as why:
        return None, why


def complaint(batch: BatchRef) -> NbqueueError:
    """The error for a batch of which not all have finished; its cause is that of the first one."""
    tally = batch.tally
    found = ((index, batch.state.shown(index, batch.session.sealer)) for index in batch.indexes)
    bad = ((index, outcome) for index, outcome in found if outcome and outcome.state is not State.FINISHED)
    index, outcome = next(bad, (-1, None))
    if outcome is None:  # counted as failed, and its record is gone
        return waiting.absence(batch.state, batch.session, batch.id)
    job, parents = batch.job(index).id, parents_of(batch.spec)
    facts: dict[str, Any] = {"failed": tally.failed + tally.canceled, "n": len(batch), "batch": batch.id, "job": job}
    if tally.failed:
        facts["what"] = "did not finish" + (f" ({tally.canceled} canceled)" if tally.canceled else "")
        facts["remedy"] = "`batch.failed` lists those that failed, `batch.retry()` runs them again"
    else:
        facts |= {"what": "were canceled", "remedy": f"{canceled_again(batch)} runs them"}
    made = BatchFailed(**facts, error=text_of(outcome, parents).rstrip("."))
    made.__cause__ = error_of(outcome, job, parents) or JobFailed(job=job, cause=None, error="")
    return made


def canceled_again(batch: BatchRef) -> str:
    """The call that runs what was canceled, and only that."""
    rows = "list(batch)" if batch.tally.canceled == len(batch) else "[job for job in batch if job.is_canceled]"
    return f"`batch.retry({rows})`"


def value_of(outcome: Outcome, job: str, parents: Sequence[str] = ()) -> Any:
    """The value of a finished job; raises the job's error otherwise."""
    error = error_of(outcome, job, parents)
    if error is not None:
        raise error
    return perform.opened(outcome, f"The result of {job}")


def error_of(outcome: Outcome, job: str, parents: Sequence[str] = ()) -> BaseException | None:
    """The exception that stands for an outcome; None if it finished. `parents` is what the job depends on."""
    if outcome.state is State.FINISHED:
        return None
    if outcome.state is State.CANCELED:
        return JobCanceled(job=job, cause=outcome.cause, remedy=_again(outcome.cause, parents))
    rebuilt = _rebuilt(outcome.failure, outcome.cause)
    if isinstance(rebuilt, StopIteration | StopAsyncIteration):
        # As in a generator (PEP 479): in `map(Job.wait, batch)` it would look like the end of the batch.
        stopped = RuntimeError(f"{job} raised {type(rebuilt).__name__}")
        stopped.__cause__ = rebuilt
        return stopped
    if rebuilt is not None:
        return rebuilt
    error = JobFailed(job=job, cause=outcome.cause, error=text_of(outcome))
    if outcome.failure is not None and outcome.failure.traceback:
        error.__cause__ = RemoteTraceback(outcome.failure.traceback)
    return error


def _again(cause: Cause | None, parents: Sequence[str]) -> str:
    if cause is Cause.DEPENDENCY:
        return f"{_named(parents)} did not finish. Requeue that: then it runs, too."
    return "Its `requeue()` runs it again."


def _rebuilt(failure: Failure | None, cause: Cause | None) -> BaseException | None:
    if failure is None or failure.pickled is None or cause is Cause.TIMEOUT:
        return None
    try:
        error = perform.careful(failure.pickled, "An exception")
    except CannotOpen:
        return None  # its class is not here, or refuses: JobFailed carries the text instead
    if not isinstance(error, Exception):
        return None  # SystemExit or KeyboardInterrupt of a job must not end the notebook
    error.__cause__ = RemoteTraceback(failure.traceback)
    return error


_WORDS = {
    Cause.USER: "canceled",
    Cause.EXPIRED: "canceled: it waited longer than its ttl",
}


def text_of(outcome: Outcome, parents: Sequence[str] = ()) -> str:
    """What went wrong in a word or a line; empty for a finished job. `parents` is what it depends on."""
    if outcome.failure is not None:
        return str(outcome.failure)
    if outcome.state is State.FINISHED:
        return ""
    if outcome.cause is Cause.DEPENDENCY:
        return f"canceled: {_named(parents)} did not finish"
    if outcome.cause is Cause.LOST:
        last = f"{outcome.worker} on {outcome.host}" if outcome.host else outcome.worker
        times = f"its worker was lost {MAX_LOSSES} times while it ran only this job"
        return f"{times}; the last one was {last}, in attempt {outcome.attempt}"
    code = f" (code {outcome.code})" if outcome.code else ""
    word = _WORDS.get(outcome.cause) if outcome.cause else None
    return f"{word or outcome.cause or outcome.state}{code}"


def _named(parents: Sequence[str]) -> str:
    """What a job depends on, in words."""
    if not parents:
        return "what it depends on"
    if len(parents) == 1:
        return f"{parents[0]}, which it depends on,"
    more = f" and {len(parents) - 3:,} more" if len(parents) > 3 else ""
    return f"one of what it depends on ({', '.join(parents[:3])}{more})"
