"""Workers in a script, `Worker(["high", "low"]).work()`, and handles on those that are running."""

from __future__ import annotations

import importlib.util
import logging
import pkgutil
import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from nbqueue.checks import brief, check_name, check_queue, seconds, warn
from nbqueue.client.job import Job, job_of
from nbqueue.client.lookup import find
from nbqueue.client.session import session as sessions
from nbqueue.client.session.session import Session
from nbqueue.errors import BadInput, BadOption
from nbqueue.model import BEAT, LEASE, WorkerInfo, new_id, utc, worker_info
from nbqueue.settings import host
from nbqueue.store.broker import Broker
from nbqueue.worker import mail
from nbqueue.worker.parent import Parent
from nbqueue.worker.plan import ALL_QUEUES, Plan
from nbqueue.worker.rider import Handler
from nbqueue.worker.score import Score
from nbqueue.worker.simple import Simple

Handlers = Handler | Iterable[Handler] | None
RQS = {  # options and arguments of RQ's workers that change nothing here, and why
    "with_scheduler": "every worker is a scheduler too",
    "results_ttl": "the time that results are kept is set when a job is enqueued: result_ttl=",
    "default_result_ttl": "the time that results are kept is set when a job is enqueued: result_ttl=",
    "dequeue_strategy": "queues are served in the order given, and the batches of one queue in turns",
    "sentry_dsn": "call sentry_sdk.init in a module, and name it with --preload: each job has a process of its own",
    "serializer": "calls are cloudpickle, signed; meta is msgpack",
    "disable_default_exception_handler": "a failure is always kept with its job; --exception-handler adds to that",
    "disable_job_desc_logging": "arguments are never logged",
    "log_job_description": "arguments are never logged",
    "job_monitoring_interval": "running jobs are monitored all the time",
    "maintenance_interval": "expired data are removed when they are due",
}
GRACE = 5.0  # seconds that running jobs get at a SIGTERM
_RQ_HOOKS = frozenset(  # methods that RQ's workers call and ours do not
    (
        *("perform_job", "execute_job", "prepare_job_execution", "prepare_execution", "main_work_horse"),
        *("fork_work_horse", "monitor_work_horse", "kill_horse", "setup_work_horse_signals", "handle_exception"),
        *("handle_job_failure", "handle_job_success", "handle_job_retry", "handle_payload", "run_job"),
        *("dequeue_job_and_maintain_ttl", "heartbeat", "maintain_heartbeats", "register_birth", "register_death"),
        *("bootstrap", "teardown", "request_stop", "run_maintenance_tasks", "push_exc_handler", "move_to_failed_queue"),
    )
)


class Worker:
    """A worker in this process, with RQ's words: `Worker(["high", "low"], connection=Redis()).work(burst=True)`.

    `queues` are names or Queues, in order of priority. Without a `connection` (a `redis.Redis`) or `url` it works for
    the first Queue's session, or this process's own. Every job runs in a process of its own; exception handlers are
    called there too, as `handler(job, type, value, traceback)`, so they must be functions of modules. To change what a
    worker does, make a subclass, and name it with `nbqueue worker --worker-class`.
    """

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Raises BadOption for a subclass with hooks of RQ's that nothing here would call."""
        super().__init_subclass__(**keywords)
        if idle := sorted(_RQ_HOOKS & vars(cls).keys()):
            raise BadOption(
                message=f"{cls.__name__}.{idle[0]} would never be called: each job runs in a process of its "
                "own. For failures: exception_handlers=[...] or on_failure=. For what jobs find set up: "
                "preload=['mysetup'], a module that is imported before every function; the rest: work() and plan()."
            )

    def __init__(
        self,
        queues: Any = "default",
        connection: Any = None,
        name: str | None = None,
        *,
        slots: int | None = None,
        namespace: str | None = None,
        url: str | None = None,
        worker_ttl: Any = None,
        exception_handlers: Handlers = None,
        path: str | Iterable[str] = (),
        preload: str | Iterable[str] = (),
        grace: Any = GRACE,
        isolate: bool = False,
        quiet: bool = False,
        **others: Any,
    ) -> None:
        """`slots` is the number of jobs at a time: by default, the CPUs. `worker_ttl`: seconds, as `lease`.

        Other options of RQ's workers, which would choose nothing here, are answered by a warning.
        """
        for option, value in others.items():
            if option not in RQS:
                raise BadOption(message=f"Worker() has no option {option!r}.")
            if value is not None:
                warn(f"Worker({option}={brief(value)}) changes nothing here: {RQS[option]}.")
        listed = _listed(queues)
        if slots is not None and (isinstance(slots, bool) or not isinstance(slots, int) or slots < 1):
            raise BadOption(message=f"slots={slots!r} must be a whole number of 1 or more.")
        self.queues = tuple(dict.fromkeys(_queue(each) for each in listed))
        theirs = [each.session for each in listed if isinstance(getattr(each, "session", None), Session)]
        unsaid = connection is None and url is None and namespace is None
        self.session: Session = theirs[0] if theirs and unsaid else sessions.of(url or connection, namespace)
        self._name = check_name("worker", name) if name else ""
        self.id, self._worked = new_id(self._name or host()), False
        self.slots = slots or self.session.settings.slots or 0
        self.lease = LEASE if worker_ttl is None else seconds("worker_ttl", worker_ttl)
        if self.lease < 0.1:
            raise BadOption(message=f"worker_ttl={worker_ttl!r} must be at least 0.1 seconds.")
        self.beat = min(BEAT, self.lease / 6)
        self.exception_handlers = list(_many(exception_handlers))
        self.paths = tuple(_many(path))
        self.preload = tuple(_many(preload))
        self.grace = seconds("grace", grace)
        self.isolate, self.quiet = isolate, quiet
        self.patience = 0.0  # how long a burst waits for a first job
        self.spill = self.session.settings.spill or ""
        self.local = self.exits = False  # these and the next are set by the command: see Plan
        self.shown = ""

    @property
    def name(self) -> str:
        """Its name, or its id where it has none, also before it works; as `job.worker_name`."""
        return self._name or self.id

    @property
    def hostname(self) -> str:
        """The machine it runs on."""
        return host()

    def work(
        self,
        burst: bool = False,
        logging_level: Any = None,
        *,
        max_jobs: int | None = None,
        max_idle_time: Any = None,
        with_scheduler: bool = True,
    ) -> bool:
        """Runs jobs until it is asked to leave, by a signal or a message; returns whether it ran any.

        With `burst` it leaves when nothing is left to do, with `max_jobs` after so many, with `max_idle_time` after so
        long without one. A `logging_level` of WARNING or more keeps its log short. Every worker is a scheduler too, so
        `with_scheduler` changes nothing.
        """
        del with_scheduler
        if self._worked:
            self.id = new_id(self._name or host())  # an id that has left cannot join again
        self._worked = True
        idle = None if max_idle_time is None else seconds("max_idle_time", max_idle_time)
        level = logging.getLevelName(logging_level.upper()) if isinstance(logging_level, str) else logging_level
        score = Score(quiet=self.quiet or (isinstance(level, int) and level >= logging.WARNING))
        return self._work(self.plan(burst=burst, max_jobs=max_jobs, max_idle=idle), score)

    def plan(self, *, burst: bool, max_jobs: int | None, max_idle: float | None) -> Plan:
        """The options it works with."""
        return Plan(
            queues=self.queues,
            slots=self.slots,
            name=self._name,
            id=self.id,
            burst=burst,
            isolate=self.isolate,
            max_jobs=max_jobs,
            max_idle=max_idle,
            patience=self.patience,
            grace=self.grace,
            lease=self.lease,
            beat=self.beat,
            paths=self.paths,
            preload=self.preload,
            handlers=self._handler_names(),
            spill=self.spill,
            local=self.local,
            exits=self.exits,
            server=self.shown or self.session.server,
        )

    def _handler_names(self) -> tuple[str, ...]:
        return tuple(_dotted(each) for each in self.exception_handlers)

    def _work(self, plan: Plan, score: Score) -> bool:
        if threading.current_thread() is not threading.main_thread():
            raise BadInput(
                message="Worker.work() needs the main thread, where signals arrive. Run it in a process of its own "
                "(`nbqueue worker`), or use SimpleWorker, which works in any thread."
            )
        parent = Parent(self.session.fresh_broker(), self.session.sealer, plan, score=score)
        parent.run()
        return parent.served > 0

    @classmethod
    def all(cls, connection: Any = None, queue: Any = None, *, namespace: str | None = None) -> list[WorkerHandle]:
        """The running workers of all hosts; with `queue` (a name or a Queue) those that serve it."""
        wanted = None if queue is None else _queue(queue)
        session = sessions.of(connection, namespace)
        suspended = session.ask(Broker.suspended) is not None
        return [
            WorkerHandle(session, info, lease_s=left, held=held, suspended=suspended)
            for raw, left, held in session.ask(Broker.workers)
            if (info := worker_info(raw)) is not None and left > 0  # else others will take its jobs
            if wanted is None or wanted in info.queues
        ]

    @classmethod
    def count(cls, connection: Any = None, queue: Any = None, *, namespace: str | None = None) -> int:
        """How many workers run, as `all`."""
        return len(cls.all(connection, queue, namespace=namespace))


class SimpleWorker(Worker):
    """A Worker that makes every call in this very process and thread, one at a time: for tests, and for debugging.

    A job that crashes takes this process along, and a time limit ends Python code only. Modules that it has imported
    stay: after an edit, start it anew. Exception handlers may be any functions.
    """

    def _handler_names(self) -> tuple[str, ...]:
        return ()  # they are called here, whatever their names

    def _work(self, plan: Plan, score: Score) -> bool:
        session = self.session
        brokers = session.fresh_broker(), session.fresh_broker()
        worker = Simple(*brokers, session.sealer, plan, handlers=self.exception_handlers, score=score)
        worker.run()
        return worker.served > 0


class WorkerHandle:
    """A running worker, as of the time it was listed."""

    def __init__(self, session: Session, info: WorkerInfo, *, lease_s: float, held: int, suspended: bool) -> None:
        self._session = session
        self.id, self.name, self.pid, self.slots, self.version = info.id, info.name, info.pid, info.slots, info.version
        self.host = self.hostname = info.host
        self.queues = self.queue_names = list(info.queues)  # in order of priority
        self.birth_date = utc(round(info.born * 1e6)) if info.born else None
        self.last_heartbeat = datetime.now(UTC) - timedelta(seconds=max(0.0, info.lease - lease_s))
        self.lease_s = lease_s  # seconds that its lease still lasts, unless it renews it
        self.held = held  # jobs in its name
        self.state = "busy" if held else "suspended" if suspended else "idle"

    def __repr__(self) -> str:
        return f"<Worker {self.id} on {self.host}, {self.state}: {self.held} of {self.slots} slots>"

    def get_state(self) -> str:
        """`busy`, `idle` or `suspended`, as of the time it was listed."""
        return self.state

    @property
    def job_ids(self) -> list[str]:
        """The ids of the jobs that it holds now: those that run, and a few more."""
        return self._session.ask(Broker.held_by, self.id)

    @property
    def successful_job_count(self) -> int:
        """How many runs have finished there, as of its last heartbeat."""
        return self._work[0]

    @property
    def failed_job_count(self) -> int:
        """How many runs have failed there, as of its last heartbeat."""
        return self._work[1]

    @property
    def total_working_time(self) -> float:
        """The seconds of all these runs; with several slots, more than have passed."""
        return self._work[2]

    @property
    def _work(self) -> tuple[int, int, float]:
        return self._session.ask(Broker.work_of, self.id)

    def get_current_job_id(self) -> str | None:
        """The id of a job that it holds now; None if it holds none. `job_ids` are all."""
        return next(iter(self.job_ids), None)

    def get_current_job(self) -> Job[Any] | None:
        """A job that it holds now; None if it holds none."""
        found = self.get_current_job_id()
        return None if found is None else job_of(find.fetch(self._session, found))

    def shutdown(self) -> None:
        """Tells it to finish what it runs and leave. Raises NoSuchWorker when it has left already."""
        self._send(mail.SHUTDOWN)

    def kill_horse(self) -> None:
        """Tells it to kill the processes of what runs there: it fails, as in a crash, and may be retried.

        A SimpleWorker has no process but its own, and kills nothing. Raises NoSuchWorker when it has left.
        """
        self._send(mail.KILL)

    def _send(self, verb: str) -> None:
        self._session.ask(mail.send, self._session.sealer, self.id, verb)


def _listed(queues: Any) -> list[Any]:
    single = isinstance(queues, str) or hasattr(queues, "name") or not isinstance(queues, Iterable)
    if found := [queues] if single else list(queues):
        return found
    raise BadOption(message="Worker([]) has no queue to serve: name at least one.")


def _queue(queue: Any) -> str:
    name = getattr(queue, "name", queue)
    return name if name == ALL_QUEUES else check_queue("queue", name)


def _many(value: Any) -> Sequence[Any]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) or callable(value) else tuple(value)


def _dotted(handler: Handler) -> str:
    """The dotted name of a handler, by which another process finds it. Raises BadOption."""
    if isinstance(handler, str):
        return handler
    module, name = getattr(handler, "__module__", None) or "", getattr(handler, "__qualname__", "")
    found: Callable[..., Any] | None = None
    if module and module != "__main__" and "<" not in name and importlib.util.find_spec(module) is not None:
        found = pkgutil.resolve_name(f"{module}:{name}")
    if found is not handler:
        raise BadOption(
            message=f"The exception handler {handler!r} is called in other processes, which cannot find it: make it "
            "a function of a module. A SimpleWorker takes any function."
        )
    return f"{module}:{name}"
