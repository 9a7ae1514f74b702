"""A handle on one job: its value, or why there is none, and what may be done to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from nbqueue import wire
from nbqueue.client.facts import Facts
from nbqueue.client.lookup import refresh, waiting
from nbqueue.client.lookup.results import error_of, text_of, value_of
from nbqueue.client.spool.records import Kind
from nbqueue.errors import (
    BadInput,
    BadSignature,
    Expired,
    NoSuchBatch,
    NoSuchWorker,
    NotThere,
    SetupError,
)
from nbqueue.model import DEFAULT_QUEUE, Outcome, State, job_id
from nbqueue.worker import mail

if TYPE_CHECKING:
    from nbqueue.client.batch import Batch

R = TypeVar("R")
S = TypeVar("S")


class Job(Facts[R]):
    """One call of a batch. Its value is unpickled when asked for, in the caller's thread."""

    def __init__(self, batch: Batch[R], index: int) -> None:
        self.batch, self.index = batch, index

    @property
    def id(self) -> str:
        """`batch:index`; of a single job the id of its batch."""
        return self.batch.id if self.batch.single else job_id(self.batch.id, self.index)

    def get_id(self) -> str:
        """As `id`; RQ's older spelling."""
        return self.id

    def __repr__(self) -> str:
        state = self.batch.watch.state(self.index) or (State.CREATED if self.batch.unsent is not None else "not done")
        return f"<Job {self.id}: {state}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and (other.batch.id, other.index) == (self.batch.id, self.index)

    def __hash__(self) -> int:
        return hash((self.batch.id, self.index))

    def __lt__(self, other: object) -> bool:
        raise TypeError("jobs have no order of their own: sort by what is meant, as key=lambda job: job.result")

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
        from nbqueue.client import enqueuing, queue
        from nbqueue.client.submit import submission

        submission.refuse_inside("Job.create")
        home = queue.Queue(origin or DEFAULT_QUEUE, connection, namespace=namespace)
        return enqueuing.created(home, origin, func, args, kwargs, {**options, "job_id": id})

    @classmethod
    def fetch(cls, id: str, connection: Any = None, *, namespace: str | None = None) -> Job[Any]:  # noqa: A002 - RQ's
        """The job with this id, of whatever session. Raises NoSuchJob, Expired, UnknownKey."""
        from nbqueue.client.lookup import find
        from nbqueue.client.session import session
        from nbqueue.client.submit import submission

        submission.refuse_inside("Job.fetch")
        return find.fetch(session.of(connection, namespace), id)

    @classmethod
    def fetch_many(cls, job_ids: Iterable[str], connection: Any = None) -> list[Job[Any] | None]:
        """The jobs with these ids, 1,000 in a round trip; None for those that are not there."""
        from nbqueue.client.lookup import find
        from nbqueue.client.session import session
        from nbqueue.client.submit import submission

        submission.refuse_inside("Job.fetch_many")
        found = find.fetch_many(session.of(connection), job_ids)
        return [None if isinstance(each, NotThere) else each for each in found]

    @classmethod
    def exists(cls, job_id: str, connection: Any = None) -> bool:
        """Whether there is a job with this id."""
        return cls.fetch_many([job_id], connection) != [None]

    # ------------------------------------------------------------ how it goes

    @property
    def status(self) -> State | str:
        """Where it is: from memory once it has ended, else the store is asked.

        `created` (State.CREATED) while it was created only. Raises Expired or LostByServer when the store has it no
        more, and its end was not seen.
        """
        if self.batch.unsent is not None:
            return State.CREATED
        found = refresh.states([self])[0]
        if found is not None:
            return found
        self._look()
        if self.batch.watch.gone:
            raise self._absence()
        return self.batch.watch.state(self.index) or State.QUEUED  # on its way to the store

    def get_status(self, refresh: bool = True) -> State | str:
        """As `status`; with `refresh` the store is asked in any case."""
        batch = self.batch
        if not refresh or batch.inline:
            return self.status
        found = batch.session.ask(lambda broker: broker.states(batch.id, [self.index]))[0]
        return found or self.status

    @property
    def error(self) -> str:
        """What went wrong, in a line; empty while nothing has."""
        found = shown(self)
        return "" if found is None else text_of(found, self.dependency_ids)

    @property
    def outcome(self) -> Outcome | None:
        """The record of its run, signature checked; None until it has ended. Raises BadSignature."""
        self._look()
        return self._known()

    def _known(self) -> Outcome | None:
        return self.batch.watch.outcome(self.index, self.batch.session.sealer)

    def _look(self) -> None:
        """Asks the store where memory knows nothing: a status just read must not be ahead of the result."""
        watch = self.batch.watch
        if self.batch.inline or watch.gone:
            return
        if watch.followed and self.batch.session.collector.outage is not None:
            return  # memory is what there is, until the collector reaches the server again
        refresh.reconsider([self])
        if not watch.has(self.index):
            refresh.read(self.batch, self.index)

    def wait(self, timeout: float | None = None) -> R:
        """Its value, when it has ended; or raises what the job raised, with the remote traceback as `__cause__`.

        JobFailed where the exception cannot be rebuilt, JobCanceled, NotDone after `timeout` seconds.
        """
        self._await(timeout)
        return self._value()

    def _value(self) -> R:
        found = self._known()
        assert found is not None
        return value_of(found, self.id, self.dependency_ids)  # type: ignore[no-any-return]

    def __await__(self) -> Generator[Any, None, R]:
        """`await job` is as `wait()`; a notebook answers clicks and other tasks meanwhile."""
        return self._awaited().__await__()

    async def _awaited(self) -> R:
        from nbqueue.client.lookup import awaiting

        if self._doubtful():
            with contextlib.suppress(SetupError):  # the collector goes on trying
                await asyncio.to_thread(self._look)  # it asks the server, which may be slow
        await awaiting.until(self.batch, self._ended, index=self.index)
        if not self.batch.watch.has(self.index):
            raise self._absence()
        return self._value()

    def _doubtful(self) -> bool:
        """Whether the store must be asked before anyone waits: the collector does not bring what it has, or would."""
        watch = self.batch.watch
        missing = not watch.has(self.index) and (watch.settled or not watch.followed)
        return not (self.batch.inline or watch.gone) and (missing or watch.barred(self.index))

    def _ended(self) -> bool:
        return self.batch.watch.has(self.index) or self.batch.watch.settled

    @property
    def result(self) -> R | None:
        """None until it has ended, then as `wait()`."""
        watch = self.batch.watch
        self._look()
        if not watch.has(self.index):
            if watch.gone or watch.settled:
                raise self._absence()
            return None
        return self.wait()

    def return_value(self, refresh: bool = False) -> R | None:
        """The value of a finished job; None for all others. With `refresh` the store is asked again."""
        if refresh:
            self.refresh()
        self._look()
        finished = self.batch.watch.state(self.index) is State.FINISHED
        return self.wait() if finished else None

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What `wait` would raise, when it has ended; None if it finished."""
        self._await(timeout)
        found = self._known()
        assert found is not None
        return error_of(found, self.id, self.dependency_ids)

    def _await(self, timeout: float | None) -> None:
        watch = self.batch.watch
        first = self._look if self._doubtful() else None
        met = waiting.until(self.batch, self._ended, timeout, index=self.index, first=first)
        if not met:
            raise waiting.not_done(self.batch, f"Job {self.id}", timeout, self.index)
        if not watch.has(self.index):
            raise self._absence()

    def _absence(self) -> Exception:
        watch = self.batch.watch
        if not watch.gone:
            return Expired(what=self.id, ttl=waiting.lifetime(watch.ttl))
        return waiting.absence(watch, self.batch.session, self.id)

    def refresh(self) -> None:
        """Forgets what this process knows of it, and asks the store: another session may have run it again.

        Raises Expired or LostByServer when the store has it no more.
        """
        batch, watch = self.batch, self.batch.watch
        self._notes = None
        if batch.inline:
            return
        found = batch.session.ask(lambda broker: broker.outcomes(batch.id, [self.index]))[0]
        if found is not None and found == self._stored():
            return  # withdrawn here, it would count as withdrawn in the spool, too
        with watch.changed:
            watch.withdraw(self.index)
        refresh.read(batch, self.index)
        if watch.gone:
            raise self._absence()
        if watch.followed and not watch.has(self.index):
            with watch.changed:
                watch.reopen()
            batch.session.collector.follow(watch)

    def _stored(self) -> bytes | None:
        try:
            return self.batch.watch.stored(self.index)
        except BadSignature:
            return None  # the spool has lost it

    @property
    def log(self) -> str:
        """The last of what it wrote to stdout and stderr (4 kB when finished, 64 kB when failed)."""
        from nbqueue.client.lookup import archive

        batch = self.batch
        found = self.outcome
        if found is None or batch.inline:
            return ""
        blob = archive.asked(batch, Kind.TAILS, self.index)
        if not blob:
            return ""
        tail = batch.session.sealer.unseal(wire.TAIL, batch.id, self.index, blob, found.attempt)
        return tail.decode("utf-8", "replace")

    # ------------------------------------------------------------ verbs

    def replay(self, func: Callable[..., R] | None = None) -> R:
        """Makes this call again, here: same function (or `func`), arguments and random numbers; nothing is stored.

        What it raises comes untouched, so that %debug goes to where it happened. Raises Expired, BadInput.
        """
        from nbqueue.client.submit import replay

        return replay.replay(self, func)  # type: ignore[no-any-return]

    def cancel(self, *, running: bool = True) -> bool:
        """Cancels it, unless it has ended; `running=False` spares it once it runs. True: it was canceled."""
        batch = self.batch
        waiting.refuse_unsent(batch)
        if batch.inline:
            return False
        try:
            count = batch.session.ask(lambda broker: broker.cancel(batch.id, [self.index], running=running))
        except NoSuchBatch:
            return False  # it has expired, or was deleted
        return bool(count)

    def stop(self) -> bool:
        """Tells the worker that runs it to stop it: it ends as canceled, and `on_stopped` is called.

        False where it does not run: `cancel()` ends what waits.
        """
        holder = self._holder()
        if holder is None:
            return False
        session = self.batch.session
        try:
            session.ask(lambda broker: mail.send(broker, session.sealer, holder.worker, mail.STOP, self.id))
        except NoSuchWorker:
            return False  # it has just gone, and gave the job back
        return True

    def requeue(self, at_front: bool = False) -> Job[R]:
        """Runs it again, after it has failed, was canceled, or finished; with `at_front` before others of its queue.

        A job of a batch of many comes before the others of that.

        Raises BadInput while it has not ended, Expired when the store has it no more.
        """
        from nbqueue.client.submit import retry

        if self.batch.watch.gone:
            raise self._absence()
        refresh.look([self], afresh=True, canceled=True)
        try:
            count = retry.retry(self.batch, [self.index], None, {}, front=at_front)
        except NoSuchBatch:
            raise self._absence() from None
        if not count:
            raise BadInput(message=f"{self.id} has not ended yet: it runs again already, or still.")
        return self

    def delete(self) -> None:
        """Cancels it, and removes all of it from the server. Raises BadInput for a job of a batch of many."""
        batch = self.batch
        if not batch.single:
            raise BadInput(
                message=f"{self.id} is part of a batch, which is removed as a whole: "
                f"nbqueue.attach({batch.id!r}).forget(). cancel() ends this job alone."
            )
        self.cancel()
        batch.forget()

    def then(self, function: Callable[[R], S] | str, **options: Any) -> Job[S]:
        """A job that calls `function` with this one's result, as soon as it has finished. Keywords are our options.

        Raises BadInput for a job of a batch of many: `batch.then(function)` takes all of its results.
        """
        from nbqueue.client.submit import following

        return following.job(self, function, options)


def shown(job: Job[Any]) -> Outcome | None:
    """As `job.outcome`, for who shows many: see Watch.shown."""
    job._look()  # noqa: SLF001 - its own module
    return job.batch.watch.shown(job.index, job.batch.session.sealer)
