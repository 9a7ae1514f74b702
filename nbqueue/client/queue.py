"""A queue with RQ's methods: enqueue a call, list the jobs that wait, that failed, and all others."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from nbqueue.checks import brief, check_queue
from nbqueue.client.calls import items
from nbqueue.client.calls.function import DescribedFunction, describe
from nbqueue.client.calls.items import Calls
from nbqueue.client.frames import queue_frame
from nbqueue.client.job import Job
from nbqueue.client.jobs import Jobs, jobs_of
from nbqueue.client.lookup import queue_contents
from nbqueue.client.session import session
from nbqueue.client.session.batch_ref import Prepared
from nbqueue.client.session.session import Session
from nbqueue.client.submit import options as terms
from nbqueue.client.submit import reattach
from nbqueue.client.submit.submission import Schedule, SubmitPlan, refuse_inside
from nbqueue.client.submit.upload import arrived
from nbqueue.errors import BadInput, BadOption, NotThere
from nbqueue.model import DEFAULT_QUEUE, Options, State
from nbqueue.store.broker import Broker

if TYPE_CHECKING:
    import pandas as pd

R = TypeVar("R")


class _InState(property):
    """A property of a queue: its jobs in a state."""

    def __init__(self, state: State, doc: str) -> None:
        def jobs(queue: Queue) -> Jobs[Any]:
            word = "running" if state is State.STARTED else state
            return jobs_of(queue_contents.in_state(queue.session, queue.name, state), f"{word} jobs in {queue.name}")

        super().__init__(jobs, doc=doc)

    if TYPE_CHECKING:

        def __get__(self, queue: Any, owner: type | None = None, /) -> Jobs[Any]: ...  # type: ignore[override]


class Enqueues:
    """What a queue and `queue.options(...)` have in common."""

    @abstractmethod
    def _enqueue(self, verb: str, f: Any, args: Any, kwargs: Any, when: Schedule | None = None) -> Job[Any]:
        """Enqueues one call as it was typed."""

    def enqueue(self, f: Callable[..., R] | str, /, *args: Any, **kwargs: Any) -> Job[R]:
        """Enqueues the call `f(*args, **kwargs)`; `f` is a function or its dotted name.

        `q.enqueue` takes out of the keywords, as options: timeout (or job_timeout), result_ttl, failure_ttl, ttl,
        depends_on, job_id, at_front, meta, description, retry (or retries), repeat, on_success, on_failure, on_stopped,
        unique; and `args=` with `kwargs=`, where the call is given that way. One that is also a parameter of `f` is an
        error that names the way out. After `q.options(...)` all keywords are the function's.

        Raises BadOption, BadInput, BadItems, InUse, NoSuchDependency.
        """
        return self._enqueue("enqueue", f, args, kwargs)

    def enqueue_at(self, when: datetime, f: Callable[..., R] | str, /, *args: Any, **kwargs: Any) -> Job[R]:
        """As enqueue, not before a time; a datetime without a zone is local time."""
        return self._enqueue("enqueue_at", f, args, kwargs, Schedule(due_us=terms.due_us(when)))

    def enqueue_in(
        self, after: timedelta | float | str, f: Callable[..., R] | str, /, *args: Any, **kwargs: Any
    ) -> Job[R]:
        """As enqueue, not before some time has passed: a timedelta, seconds, or text such as '5m'."""
        return self._enqueue("enqueue_in", f, args, kwargs, Schedule(delay=terms.delay(after)))


class Enqueuer(Enqueues):
    """A queue with options given before the call: all keywords of `enqueue` are then the function's."""

    def __init__(self, queue: Queue, options: Options, typed: frozenset[str]) -> None:
        self.queue, self.given, self._typed = queue, options, typed

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={getattr(self.given, name)!r}" for name in sorted(self._typed))
        return f"{self.queue!r}.options({given})"

    def options(self, **changes: Any) -> Enqueuer:
        """These options with some changed. Raises BadOption."""
        found = terms.parse_for_queue(self.queue.name, changes)
        return Enqueuer(self.queue, self.given.replaced(**found), self._typed | found.keys())

    def send(
        self,
        verb: str,
        f: Callable[..., R] | str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        when: Schedule | None = None,
        taken: Mapping[str, Any] | None = None,
    ) -> Job[R]:
        """Enqueues one call; `taken` are the options among its keywords: none may be a parameter of the function."""
        refuse_inside(f"Queue.{verb}")
        return Job(reattach.submit(self.submission(verb, f, args, kwargs, when, taken)), 0)

    _enqueue = send

    def submission(
        self,
        verb: str,
        f: Callable[..., Any] | DescribedFunction | str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        when: Schedule | None = None,
        taken: Mapping[str, Any] | None = None,
    ) -> SubmitPlan:
        """The call, ready to be sent."""

        def calls(function: DescribedFunction) -> Calls:
            terms.check_clash(verb, function, taken or {}, queue=self.queue.name)
            return items.single(function, tuple(args), dict(kwargs))

        source = "" if "timeout" in self._typed else self.queue.timeout_from
        options = self.given
        if not isinstance(f, DescribedFunction):
            options = options.replaced(pin=terms.pinned(options, f))
        if when is not None and not self.queue.is_async and self.queue.connection is not None:
            options = options.replaced(inline=False)  # as in RQ: what has its time waits for it, on the server
        return SubmitPlan(self.queue.session, options, f, calls, single=True, when=when, timeout_from=source)


class Queue(Enqueues):
    """A named queue. `connection` is a `redis.Redis` or a URL; without one the session of this process is used.

    What is enqueued has a time limit of 180 s and keeps its result for 500 s, as in RQ, unless options say otherwise.
    `is_async=False` runs calls at once in this process, without a worker or a server; only what has its time
    (`enqueue_in`, `enqueue_at`) goes to the server of `connection`, as in RQ.
    """

    def __init__(
        self,
        name: str = DEFAULT_QUEUE,
        connection: Any = None,
        *,
        default_timeout: Any = None,
        is_async: bool = True,
        namespace: str | None = None,
    ) -> None:
        if hasattr(name, "connection_pool"):
            raise BadInput(message="Queue() takes its name first. Pass the server as Queue(connection=Redis()).")
        self.name = check_queue("queue", name)
        self.connection, self.is_async, self._namespace = connection, is_async, namespace
        limit = terms.time_limit("default_timeout", default_timeout)
        self.timeout_from = "Queue.enqueue's default" if default_timeout is None else f"the default of {self!r}"
        self._default = Options().replaced(
            queue=name,
            timeout=terms.TIMEOUT if default_timeout is None else limit,
            result_ttl=terms.RESULT_TTL,
            inline=False if is_async else "collect",
        )
        self._found: tuple[Session | None, Session] | None = None
        session.check(connection, "connection=")

    def __repr__(self) -> str:
        return f"Queue({self.name!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Queue) and other._key == self._key

    @property
    def _key(self) -> tuple[Any, ...]:
        return self.name, session.address(self.connection), self._namespace

    def __hash__(self) -> int:
        return hash(self.name)

    def __reduce__(self) -> tuple[Any, ...]:
        # A function that mentions a queue may travel; a connection cannot, and a job has none.
        return Queue, (self.name,)

    @property
    def session(self) -> Session:
        """The session behind it: one for all queues on the same server and namespace."""
        now = session.current() if self.connection is None else None
        if now is not None and self._namespace in {None, now.settings.namespace}:
            return now
        if self._found is None or self._found[0] is not now:
            self._found = now, session.of(self.connection, self._namespace)
        return self._found[1]

    @classmethod
    def all(cls, connection: Any = None, *, namespace: str | None = None) -> list[Queue]:
        """All queues that the server has seen."""
        refuse_inside("Queue.all")
        names = session.of(connection, namespace).ask(lambda broker: broker.queues())
        return [cls(name, connection, namespace=namespace) for name in names]

    # ------------------------------------------------------------ enqueue

    def options(self, **changes: Any) -> Enqueuer:
        """Options before the call: `q.options(timeout=5).enqueue(f, 1)`. Raises BadOption."""
        return Enqueuer(self, self._default, frozenset()).options(**changes)

    def _enqueue(self, verb: str, f: Any, args: Any, kwargs: Any, when: Schedule | None = None) -> Job[Any]:
        args, kwargs, options, taken = terms.split(args, kwargs)
        terms.check_clash(verb, f, taken, queue=self.name)
        return self._given(options).send(verb, f, args, kwargs, when, taken)

    def enqueue_call(
        self,
        func: Callable[..., R] | str,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Job[R]:
        """As enqueue, with the call in `args` and `kwargs`, and all other keywords as options."""
        return self._given(options).send("enqueue_call", func, *terms.explicit(args, kwargs))

    def enqueue_job(self, job: Job[R], at_front: bool = False) -> Job[R]:
        """Enqueues what `Job.create` made; the same Job follows it from then on.

        A job that was enqueued before runs again, as its `requeue`: BadInput where it is in another queue or has not
        ended. Raises what `enqueue` raises.
        """
        if not isinstance(job, Job):
            raise BadOption(message=f"enqueue_job() takes a job from Job.create(f), not {brief(job)}: see enqueue().")
        call = job.batch.unsent
        if call is None:
            if job.origin != self.name:
                raise BadInput(message=f"{job.id} is in the queue {job.origin}: batch.retry(queue=...) moves it.")
            return job.requeue(at_front)
        options = {**call.options, "job_id": job.id, "meta": job.meta or None}
        options |= {"at_front": True} if at_front else {}
        sent = self._given(options).send("enqueue_job", call.func, call.args, call.kwargs)
        job.batch, job.index = sent.batch, sent.index
        return job

    def delayed(
        self,
        func: Callable[..., R],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: Mapping[str, Any],
        given: Mapping[str, Any],
    ) -> Job[R]:
        """Enqueues a call of a decorated function; `given` are the options among its keywords."""
        refuse_inside("job.delay")
        terms.check_clash("enqueue", func, given, queue=self.name)
        return self._given({**options, **given}).send("delay", func, args, kwargs)

    @staticmethod
    def prepare_data(
        func: Callable[..., Any] | str,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Prepared:
        """A call with its options, for `enqueue_many`."""
        return Prepared(func, *terms.explicit(args, kwargs), options)

    def enqueue_many(self, calls: Iterable[Prepared]) -> list[Job[Any]]:
        """Enqueues many calls, 1,000 in a round trip. Nothing is sent if one of them is invalid.

        An id in use, or a missing dependency, is raised after all others are sent.
        """
        refuse_inside("Queue.enqueue_many")
        known: dict[Any, tuple[list[Any], DescribedFunction]] = {}
        ready = [self._plan(call, known) for call in calls]
        ids = Counter(one.options.job_id for one in ready if one.options.job_id is not None)
        if twice := next((name for name, count in ids.items() if count > 1), None):
            raise BadOption(message=f"job_id={twice!r} is given more than once: each job needs an id of its own.")
        if any(one.mode for one in ready):
            return [Job(reattach.submit(one), 0) for one in ready]
        sent = [one.prepared() for one in ready]
        send = partial(self.session.ask, Broker.submit_many, [(new, args) for new, args, _ in sent])
        answers = arrived(sent[0][0].id, send) if sent else []
        return [
            Job(one.sent(new.id, payload, each), 0)
            for one, (new, _, payload), each in zip(ready, sent, answers, strict=True)
        ]

    def _plan(self, call: Prepared, known: dict[Any, tuple[list[Any], DescribedFunction]]) -> SubmitPlan:
        if not isinstance(call, Prepared):
            raise BadOption(message=f"enqueue_many() takes calls from Queue.prepare_data(f, args), not {brief(call)}.")
        enqueuer = self._given(call.options)
        options = enqueuer.given
        hooks, pin = terms.hooks(options), terms.pinned(options, call.func)
        # The same function a thousand times is described once. `known` holds the functions, so that their ids last.
        functions = [call.func, *(hook.func for hook in hooks.values())]
        same = (each if isinstance(each, str) else id(each) for each in functions)
        key = (options.env, pin, *same, *((name, hook.timeout) for name, hook in hooks.items()))
        if key not in known:
            salt = self.session.sealer.keyring.key
            inherited = {} if options.inline else self.session.environment()
            described = describe(call.func, env=options.env, inherited=inherited, salt=salt, hooks=hooks, pin=pin)
            known[key] = functions, described
        return enqueuer.submission("enqueue_many", known[key][1], call.args, call.kwargs)

    def _given(self, given: Mapping[str, Any]) -> Enqueuer:
        """These options, without those that are None, which is the default in RQ."""
        return self.options(**{name: value for name, value in given.items() if value is not None})

    # ------------------------------------------------------------ jobs that wait

    def __len__(self) -> int:
        return queue_contents.length(self.session, self.name)

    def __bool__(self) -> bool:
        return True  # an empty queue is a queue

    @property
    def count(self) -> int:
        """The number of jobs that wait, as `len`."""
        return len(self)

    def is_empty(self) -> bool:
        """Whether no job waits."""
        return not len(self)

    @property
    def job_ids(self) -> list[str]:
        """The ids of the jobs that wait, in the order in which workers take them."""
        return queue_contents.waiting_ids(self.session, self.name)

    @property
    def jobs(self) -> Jobs[Any]:
        """The jobs that wait, in the order in which workers take them."""
        return jobs_of(queue_contents.waiting(self.session, self.name), f"waiting jobs in {self.name}")

    def get_job_ids(self, offset: int = 0, length: int = -1) -> list[str]:
        """`length` ids (all: -1) from `offset` on."""
        return self.job_ids[_window(offset, length)]

    def get_jobs(self, offset: int = 0, length: int = -1) -> list[Job[Any]]:
        """`length` jobs (all: -1) from `offset` on."""
        return list(self.jobs[_window(offset, length)])

    def get_position(self, job: Job[Any] | str) -> int | None:
        """How many jobs come before this one, or this id; None if it does not wait here."""
        name = job.id if isinstance(job, Job) else job
        waiting = self.job_ids
        return waiting.index(name) if name in waiting else None

    get_job_position = get_position

    def fetch_job(self, job_id: str) -> Job[Any] | None:
        """The job of this queue with this id; None if there is none, or it has expired."""
        try:
            job = Job.fetch(job_id, self.connection, namespace=self._namespace)
        except NotThere:
            return None
        return job if job.origin == self.name else None

    # ------------------------------------------------------------ jobs by state

    failed = _InState(State.FAILED, "The failed jobs that have not expired; `.requeue()` runs all of them again.")
    finished = _InState(State.FINISHED, "The finished jobs whose results have not expired.")
    canceled = _InState(State.CANCELED, "The canceled jobs that have not expired.")
    started = _InState(State.STARTED, "The jobs that workers hold: they run, or are about to.")
    scheduled = _InState(State.SCHEDULED, "The jobs that wait for their time.")
    deferred = _InState(State.DEFERRED, "The jobs that wait for what they depend on.")

    # RQ's names for them; each access reads the store anew.
    failed_job_registry = failed
    finished_job_registry = finished
    canceled_job_registry = canceled
    started_job_registry = started
    scheduled_job_registry = scheduled
    deferred_job_registry = deferred

    def to_frame(self) -> pd.DataFrame:
        """One row per job of this queue, waiting or ended, the latest submitted first. Nothing is unpickled for it."""
        return queue_frame.to_frame(self.session, self.name)

    # ------------------------------------------------------------ verbs

    def empty(self) -> int:
        """Cancels all jobs that wait; returns how many. Started, deferred and scheduled jobs stay."""
        refuse_inside("Queue.empty")
        return queue_contents.empty(self.session, self.name)

    def delete(self, delete_jobs: bool = True) -> None:
        """Cancels all jobs that wait, and with `delete_jobs` removes all single jobs of this queue that have ended."""
        self.empty()
        if delete_jobs:
            for job in [*self.failed, *self.finished, *self.canceled]:
                if job.batch.single:
                    job.delete()

    def remove(self, job: Job[Any] | str) -> bool:
        """Cancels one job, if it waits. True: it did."""
        found = self.fetch_job(job) if isinstance(job, str) else job
        return found is not None and found.cancel(running=False)

    def requeue(self, jobs: Iterable[Job[Any] | str] | Job[Any] | str | None = None) -> int:
        """Runs failed jobs again: all of this queue, or these (Jobs or ids). Returns how many. Raises NoSuchJob."""
        refuse_inside("Queue.requeue")
        if jobs is None:
            return self.failed.requeue()
        listed = [jobs] if isinstance(jobs, str | Job) else list(jobs)
        found = [
            job if isinstance(job, Job) else Job.fetch(job, self.connection, namespace=self._namespace)
            for job in listed
        ]
        return Jobs(found, f"to requeue in {self.name}").requeue()


def _window(offset: int, length: int) -> slice:
    return slice(offset, None if length < 0 else offset + length)
