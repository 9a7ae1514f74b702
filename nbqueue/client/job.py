"""A handle on one job: its result or error, and what can be done with it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from nbqueue.client.job_facts import Facts
from nbqueue.client.lookup import awaiting, find, forget, spooled, waiting
from nbqueue.client.lookup import refresh as lookup
from nbqueue.client.lookup.results import error_of, text_of, value_of
from nbqueue.client.panel import display
from nbqueue.client.session import session
from nbqueue.client.session.batch_ref import JobRef
from nbqueue.client.submit import created, in_process, reattach, retry, submission
from nbqueue.errors import BadInput, BadSignature, NoSuchBatch, NoSuchWorker, NotThere, SetupError
from nbqueue.model import Outcome, State
from nbqueue.store.broker import Broker
from nbqueue.worker import mail

R = TypeVar("R")
S = TypeVar("S")
WIDTH = 120


class Job(Facts[R]):
    """One call of a batch. Its value is unpickled when asked for, in the caller's thread."""

    def get_id(self) -> str:
        """As `id`."""
        return self.id

    def __repr__(self) -> str:
        state = self.batch.state.outcomes.state(self.index) or (
            State.CREATED if self.batch.unsent is not None else "not done"
        )
        return f"<Job {self.id}: {state}{f', {line}' if (line := cause_and_error(self)[1]) else ''}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and (other.batch.id, other.index) == (self.batch.id, self.index)

    def __hash__(self) -> int:
        return hash((self.batch.id, self.index))

    def __lt__(self, other: object) -> bool:
        raise TypeError("jobs cannot be compared: sort them by a key, as key=lambda job: job.result")

    # ------------------------------------------------------------ making and finding one

    @classmethod
    def create(
        cls,
        func: Callable[..., Any] | str,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        connection: Any = None,
        *,
        id: str | None = None,  # noqa: A002 - RQ's
        origin: str = "",
        namespace: str | None = None,
        **options: Any,
    ) -> Job[Any]:
        """A call with its options, as `Queue.enqueue_call` takes them; `Queue.enqueue_job(job)` sends it.

        Until then its status is `created`, and only this process has it. Raises BadOption, BadInput.
        """
        submission.refuse_inside("Job.create")
        home = session.of(connection, namespace)
        return Job(created.created(home, origin, func, args, kwargs, {**options, "job_id": id}), 0)

    @classmethod
    def fetch(cls, id: str, connection: Any = None, *, namespace: str | None = None) -> Job[Any]:  # noqa: A002 - RQ's
        """The job with this id, of whatever session. Raises NoSuchJob, Expired, UnknownKey."""
        submission.refuse_inside("Job.fetch")
        return job_of(find.fetch(session.of(connection, namespace), id))

    @classmethod
    def fetch_many(cls, job_ids: Iterable[str], connection: Any = None) -> list[Job[Any] | None]:
        """The jobs with these ids, 1,000 in a round trip; None for those that are not there."""
        submission.refuse_inside("Job.fetch_many")
        found = find.fetch_many(session.of(connection), job_ids)
        return [None if isinstance(each, NotThere) else job_of(each) for each in found]

    @classmethod
    def exists(cls, job_id: str, connection: Any = None) -> bool:
        """Whether there is a job with this id."""
        return cls.fetch_many([job_id], connection) != [None]

    # ------------------------------------------------------------ how it goes

    @property
    def status(self) -> State | str:
        """Its state: from memory once it has ended, else the store is asked.

        `created` (State.CREATED) while it was created only. Raises Expired or LostByServer when the store has it no
        more, and its end was not seen.
        """
        if self.batch.unsent is not None:
            return State.CREATED
        found = lookup.states([self])[0]
        if found is not None:
            return found
        lookup.fill_in(self)
        if self.batch.state.gone:
            raise waiting.absence_of(self)
        return self.batch.state.outcomes.state(self.index) or State.QUEUED  # on its way to the store

    def get_status(self, refresh: bool = True) -> State | str:
        """As `status`; with `refresh` the store is asked in any case."""
        found = self._ask(Broker.states, self.batch.id, [self.index]) if refresh else None
        return (found and found[0]) or self.status

    @property
    def error(self) -> str:
        """Its error in a line; empty where it has none."""
        found = lookup.shown_of(self)
        return "" if found is None else text_of(found, self.dependency_ids)

    @property
    def outcome(self) -> Outcome | None:
        """The record of its run, signature checked; None until it has ended. Raises BadSignature."""
        return lookup.outcome_of(self)

    def wait(self, timeout: float | None = None) -> R:
        """Waits, then returns its value or raises its exception, with the remote traceback as `__cause__`.

        Raises JobFailed where the exception cannot be rebuilt, JobCanceled, NotDone after `timeout` seconds.
        """
        waiting.for_job(self, timeout, bar=display.in_terminal)
        return self._value()

    def _value(self) -> R:
        return value_of(self._ended(), self.id, self.dependency_ids)  # type: ignore[no-any-return]

    def _ended(self) -> Outcome:
        found = self.batch.state.outcome(self.index, self.batch.session.sealer)
        assert found is not None
        return found

    def __await__(self) -> Generator[Any, None, R]:
        """`await job` is as `wait()`; a notebook answers clicks and other tasks meanwhile."""
        return self._awaited().__await__()

    async def _awaited(self) -> R:
        if waiting.unsure(self):
            with contextlib.suppress(SetupError):  # the collector goes on trying
                await asyncio.to_thread(lookup.fill_in, self)  # it asks the server, which may be slow
        await awaiting.until(self.batch, partial(waiting.ended, self), index=self.index, bar=display.in_terminal)
        if self.index not in self.batch.state.outcomes:
            raise waiting.absence_of(self)
        return self._value()

    @property
    def result(self) -> R | None:
        """None until it has ended, then as `wait()`."""
        state = self.batch.state
        lookup.fill_in(self)
        if self.index not in state.outcomes:
            if state.gone or state.settled:
                raise waiting.absence_of(self)
            return None
        return self.wait()

    def return_value(self, refresh: bool = False) -> R | None:
        """The value of a finished job; None for all others. With `refresh` the store is asked again."""
        if refresh:
            self.refresh()
        lookup.fill_in(self)
        finished = self.batch.state.outcomes.state(self.index) is State.FINISHED
        return self.wait() if finished else None

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Waits, then returns what `wait` would raise; None if it finished."""
        waiting.for_job(self, timeout, bar=display.in_terminal)
        return error_of(self._ended(), self.id, self.dependency_ids)

    def refresh(self) -> None:
        """Drops its cached outcome and asks the store: another session may have run it again.

        Raises Expired or LostByServer when the store has it no more.
        """
        batch, state = self.batch, self.batch.state
        self._notes = None
        if batch.inline:
            return
        found = batch.session.ask(Broker.outcomes, batch.id, [self.index])[0]
        with contextlib.suppress(BadSignature):  # the spool has lost it
            if found is not None and found == state.outcomes.stored(self.index):
                return  # withdrawn here, it would count as withdrawn in the spool, too
        with state.changed:
            state.withdraw(self.index)
        lookup.read(batch, self.index)
        if state.gone:
            raise waiting.absence_of(self)
        if state.followed and self.index not in state.outcomes:
            with state.changed:
                state.reopen()
            batch.session.collector.follow(state)

    @property
    def log(self) -> str:
        """The end of its stdout and stderr (4 kB when finished, 64 kB when failed)."""
        return spooled.log(self)

    # ------------------------------------------------------------ verbs

    def replay(self, func: Callable[..., R] | None = None) -> R:
        """Calls it in this process: same function (or `func`), arguments and random numbers; nothing is stored.

        Its exception is raised unchanged, so that %debug goes to where it happened. Raises Expired, BadInput.
        """
        return in_process.replay(self, func)  # type: ignore[no-any-return]

    def cancel(self, *, running: bool = True, enqueue_dependents: bool = False) -> bool:
        """Cancels it, unless it has ended, or with `running=False` has started; returns whether it was canceled.

        Its dependents are canceled too. With `enqueue_dependents` they run, also where this job had failed before,
        except those that take its result, by `then`.
        """
        waiting.refuse_unsent(self.batch)
        try:
            if enqueue_dependents:
                return bool(self._ask(Broker.cancel_alone, self.batch.id, self.index, running=running))
            return bool(self._ask(Broker.cancel, self.batch.id, [self.index], running=running))
        except NoSuchBatch:
            return False  # it has expired, or was deleted

    def stop(self) -> bool:
        """Tells the worker that runs it to stop it: it ends as canceled, and `on_stopped` is called.

        False where it does not run: `cancel()` ends what waits.
        """
        holder = self._holder()
        if holder is None:
            return False
        try:
            self._ask(mail.send, self.batch.session.sealer, holder.worker, mail.STOP, self.id)
        except NoSuchWorker:
            return False  # it has just gone, and gave the job back
        return True

    def requeue(self, at_front: bool = False) -> Job[R]:
        """Runs it again, after it has failed, was canceled, or finished; with `at_front` before others of its queue.

        A job of a batch of many comes before the others of that batch. Raises BadInput while it has not ended, Expired
        when the store has it no more.
        """
        if self.batch.state.gone:
            raise waiting.absence_of(self)
        lookup.look([self], afresh=True, canceled=True)
        try:
            count = retry.retry(self.batch, [self.index], None, {}, front=at_front)
        except NoSuchBatch:
            raise waiting.absence_of(self) from None
        if not count:
            raise BadInput(message=f"{self.id} has not ended: it is waiting or running.")
        return self

    def delete(self) -> None:
        """Cancels it and deletes it from the server. Raises BadInput for a job of a batch of many."""
        batch = self.batch
        if not batch.single:
            raise BadInput(
                message=f"{self.id} is part of a batch, which is removed as a whole: "
                f"nbqueue.attach({batch.id!r}).forget(). cancel() ends this job alone."
            )
        self.cancel()
        forget.forget(batch)

    def then(self, function: Callable[[R], S] | str, **options: Any) -> Job[S]:
        """A job that calls `function` with this one's result, once it has finished. Keywords are nbqueue's options.

        Raises BadInput for a job of a batch of many: `batch.then(function)` takes all of its results.
        """
        if not self.batch.single:
            raise BadInput(
                message=f"{self.id} is part of a batch: batch.then(f) runs f on the results of all of it, job by job."
            )
        return Job(reattach.submit(submission.plan_then(self.batch, function, options)), 0)


def job_of(found: JobRef) -> Job[Any]:
    """A handle on a job."""
    return Job(found.batch, found.index)


def cause_and_error(job: Job[Any]) -> tuple[str, str]:
    """Its cause and its error, in a line; empty where nothing went wrong. From memory: a table asks nothing a row."""
    outcome = job.batch.state.shown(job.index, job.batch.session.sealer)
    if outcome is None:
        return "", ""  # it has not ended, or a retry has withdrawn it since
    line = " ".join(text_of(outcome, job.dependency_ids).split())
    return str(outcome.cause or ""), line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."
