"""A session: one notebook (or script) and one server. It holds the connection, the keys, and the collector."""

from __future__ import annotations

import os
import secrets
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Concatenate, ParamSpec, TypeVar

import msgspec

from nbqueue import settings as settings_module
from nbqueue import spill, wire
from nbqueue.checks import check_name, counted, seconds, warn
from nbqueue.client.session.collector import Collector
from nbqueue.client.session.kernel import shell
from nbqueue.client.spool import records
from nbqueue.client.spool.spool import Spool
from nbqueue.errors import BadInput, BadSecret, NbqueueError, NoServer, SetupError, WrongPassword
from nbqueue.launch import local
from nbqueue.model import LEASE, new_id
from nbqueue.settings import Settings
from nbqueue.store import connection, server
from nbqueue.store.broker import Broker
from nbqueue.store.ear import Hints
from nbqueue.store.keys import Keys

P = ParamSpec("P")
T = TypeVar("T")
ANSWER = 1.0  # seconds that a server has to answer one question, whatever the timeout
NAMED = 5  # variables that a message names
_LIBRARIES = ("KMP_",)  # variables that libraries set as they are imported, as scikit-learn does: no news to the user
ATTEND = 1.0  # seconds between two looks for a local worker: 3,000 submits need not look 3,000 times


class Session:
    """Everything that talks for this process to one server. Connects when first needed.

    `settings.url` None and no `client` means local mode: a private server on this machine, and a worker for it.
    """

    ends_by = "nbqueue.local().stop()"  # what to type to end the local server and worker; a command says its own

    def __init__(self, settings: Settings, client: Any = None) -> None:
        check_name("namespace", settings.namespace)
        self.settings = settings
        self.id = _new_id()
        self.local = settings.url is None and client is None
        self.slots: int | None = settings.slots
        self.memory: int | None = None
        self.asleep = False  # the private server was stopped on purpose: only a verb starts it again
        spill.here(settings.spill)
        self.spool = Spool(settings.spool, settings.spool_cap, tell)
        self.collector = Collector(self)
        self.here = weakref.WeakValueDictionary[str, Any]()  # BatchRefs of what ran inline: no server knows it
        self._no_secret: BadSecret | None = None  # raised where a server is asked: what runs at once needs none
        try:
            keyring = wire.Keyring.load(settings.home)
        except BadSecret as why:
            self._no_secret, keyring = why, wire.Keyring([secrets.token_bytes(32)], str(settings.home / "secret"))
        self.sealer = wire.Sealer(keyring, settings.namespace)
        self._client = client
        self._lock = threading.RLock()
        self._broker: Broker | None = None
        self._url = settings.url
        self._told = False
        self._named: set[str] = set()  # variables that a message has named
        self._environment: tuple[Any, dict[str, str | None]] | None = None  # what it was told for, and the answer
        self._server_was_there = False
        self.filed = client is None and settings_module.filed_url(settings.home) == settings.url
        self._attended = 0.0  # when we looked last for a local worker
        _alive.add(self)

    def _orphaned(self) -> None:
        """In a forked child: threads, sockets, held locks and the session's log are the parent's."""
        self.collector.orphaned()
        self.id = _new_id()
        self.spool = Spool(self.settings.spool, self.settings.spool_cap, tell)  # files of its own
        self.collector, self._lock, self._broker = Collector(self), threading.RLock(), None

    @property
    def place(self) -> tuple[Any, ...]:
        """What tells it from other sessions: its home, its server, its namespace."""
        return self.settings.home, address(self._client or self.settings.url), self.settings.namespace

    def __repr__(self) -> str:
        return f"<nbqueue session on {self.server}, namespace {self.settings.namespace}>"

    @property
    def server(self) -> str:
        """Where the server is, for messages: the URL without its password."""
        if self._broker is not None:
            return self._broker.connection.url
        if self._client is not None:
            return connection.adopt(self._client).url
        return connection.shown(self._url) if self._url else "a private server on this machine"

    # ------------------------------------------------------------ the store

    @property
    def broker(self) -> Broker:
        """The connected Broker. Raises NoServer, WrongPassword, ServerUnfit or NoServerProgram."""
        with self._lock:
            if self._no_secret is not None:
                raise self._no_secret
            if self._broker is None:
                if self.local:
                    self._start_server()
                line = self._line()
                notes = [] if self.local else connection.preflight(line)
                for note in notes:
                    warn(note)
                self._broker = Broker(line, self.settings.namespace)
            return self._broker

    def fresh_broker(self) -> Broker:
        """A Broker with sockets of its own, for a thread."""
        self.broker  # noqa: B018 - connects, and starts the private server if there is none
        return Broker(self._line(), self.settings.namespace)

    def fresh_hints(self) -> Hints:
        """This session's hints, on a socket of their own."""
        return Hints(self._line(), Keys(self.settings.namespace).hint(self.id))

    def _line(self) -> connection.Connection:
        if self._client is not None:
            return connection.adopt(self._client)
        if self._url is None:
            raise BadInput(message="There is no server to connect to.")
        return connection.connect(self._url)

    def ask(self, question: Callable[Concatenate[Broker, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`question(broker, ...)`; a private server that was killed is started again, and asked once more.

        Every verb may be sent twice, so asking again is safe. Raises NoServer where the time that `within` gives is up.
        """

        def asked() -> T:
            try:
                return question(self.broker, *args, **kwargs)
            except (NoServer, WrongPassword):
                # It was killed, or `nbqueue server start` has given it a password.
                if not self.local:
                    raise
                self.revive()
                return question(self.broker, *args, **kwargs)

        return self._timed(asked)

    def glance(self, question: Callable[[Broker], T]) -> T | None:
        """`question(broker)` where a server is connected and answers; else None, and nothing is started for it."""
        broker = self._broker
        if broker is None or self.asleep or self.collector.outage is not None:
            return None
        try:
            return self._timed(lambda: question(broker))
        except SetupError:
            return None

    def _timed(self, work: Callable[[], T]) -> T:
        """`work()`, which may hang as long as sockets let it; within `within`, on a thread that is left behind then."""
        until = _until.get()
        if until is None:
            return work()
        found = Future[T]()
        threading.Thread(target=_fulfil, args=(found, work), name="nbqueue look", daemon=True).start()
        # Not `found.result(timeout)`: `work` may raise TimeoutError itself.
        if not wait([found], max(ANSWER, until - time.monotonic())).done:
            remedy = "It may be stopped or unreachable: running jobs go on, and a longer timeout may help."
            raise connection.NoServer(url=self.server, why="it does not answer in time", remedy=remedy)
        return found.result()

    def again(self, batch: str, index: int) -> bytes | None:
        """The outcome of a job as it lies in the store; None where it has none, or cannot be asked."""
        try:
            return self.ask(lambda broker: broker.outcomes(batch, [index]))[0]
        except NbqueueError:
            return None

    # ------------------------------------------------------------ local mode

    def _start_server(self) -> None:
        self._server_was_there = server.status(self.settings.local) is not None
        self._url = server.start(self.settings.local, maxmemory=self.memory).url

    def revive(self) -> None:
        """In local mode: makes sure that the private server and its worker are there. Elsewhere nothing."""
        if self.local:
            self._start_again()
            self._attended = 0.0
            self.attend()

    def _start_again(self) -> None:
        with self._lock:
            self.disconnect()
            self._start_server()

    def attend(self) -> None:
        """In local mode: makes sure that a worker is there; says once what was started, and each time why again."""
        if not self.local:
            return
        if not self.asleep and time.monotonic() - self._attended < ATTEND:
            return
        self.asleep = False
        begun = self._timed(self._ensured)
        self._attended = time.monotonic()
        if begun is not None and begun.lost is not None:
            self._told = True
            # Where nobody else renewed meanwhile, a pause of the server is allowed for: one lease more, from now on.
            pid, left, held = begun.lost
            tell(
                f"nbqueue: the local worker (process {pid}) was killed, or has died, while it ran "
                f"{counted(held, 'job')}: started another, {begun.slots} at a time{begun.why}. These jobs are "
                f"re-queued when its lease expires, in {min(left, LEASE):.0f} to {LEASE:.0f} s; log: "
                f"{self.settings.local / 'worker.log'}"
            )
        elif begun is not None and not self._told:
            self._told = True
            what = "local worker" if self._server_was_there else "local server and worker"
            tell(
                f"nbqueue: started a {what}, {begun.slots} at a time{begun.why}.\n"  # notebooks cut words of long lines
                f"They stop by themselves when idle; to stop them now: {self.ends_by}"
            )

    def environment(self) -> dict[str, str | None]:
        """In local mode: what jobs must be told of this process's environment, since their worker began with another.

        Name -> value, None for what is not set here. Names each of them once.
        """
        if not self.local:
            return {}
        now = local.stamp(self.settings.local), dict(os.environ)
        if self._environment is None or self._environment[0] != now:
            self._environment = now, local.differing(self.settings.local)
        found = self._environment[1]
        fresh = [name for name in found if not (name in self._named or name.startswith(_LIBRARIES))]
        if fresh:
            self._named.update(fresh)
            more = f" and {len(fresh) - NAMED} more" if len(fresh) > NAMED else ""
            tell(
                f"nbqueue: jobs see {', '.join(fresh[:NAMED])}{more} as in this process now; the local worker was "
                "started with other values."
            )
        return found

    def _ensured(self) -> local.Begun | None:
        try:
            return self._ensure()
        except (NoServer, WrongPassword):
            self._start_again()
            return self._ensure()

    def _ensure(self) -> local.Begun | None:
        broker = self.broker
        assert self._url is not None
        return local.ensure(self.settings.local, self._url, self.settings.namespace, broker, self.slots)

    def resize(self, slots: int) -> local.Begun | None:
        """Starts a local worker of so many slots where the one that lives has another number."""
        broker = self.broker
        assert self._url is not None
        return local.resize(self.settings.local, self._url, self.settings.namespace, broker, slots)

    def disconnect(self) -> None:
        """Closes the connection; the next question opens another."""
        with self._lock:
            if self._broker is not None:
                self._broker.connection.close()
            self._broker = None


def _fulfil(found: Future[T], work: Callable[[], T]) -> None:
    try:
        found.set_result(work())
    except BaseException as why:  # noqa: BLE001 - it is raised again by who asked
        found.set_exception(why)


_until: ContextVar[float | None] = ContextVar("until", default=None)


@contextmanager
def within(timeout: Any) -> Iterator[None]:
    """All questions to a server in here have so long (one has ANSWER at least); None: what its sockets give."""
    token = _until.set(None if timeout is None else time.monotonic() + seconds("timeout", timeout))
    try:
        yield
    finally:
        _until.reset(token)


def _new_id() -> str:
    return new_id(f"{settings_module.host()}.{os.getpid()}", 8)


_alive = weakref.WeakSet[Session]()


def _after_fork() -> None:
    """A child may use what its parent made: sessions, queues, jobs."""
    global _lock  # noqa: PLW0603 - another thread may have held it
    _lock = threading.Lock()
    records.after_fork()
    for session in list(_alive):
        session._orphaned()  # noqa: SLF001 - its own module


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def tell(message: str) -> None:
    """One line to the user, beside the results: in a notebook, where stderr is red, as what is printed."""
    print(message, file=sys.stderr if shell() is None else sys.stdout, flush=True)


# ---------------------------------------------------------------- the session of this process

_lock = threading.Lock()
_current: Session | None = None


def connect(url: Any = None, *, namespace: str | None = None) -> Session:
    """Makes the session that all verbs use from now on: `url` is a URL, a `redis.Redis`, or None for the settings.

    Raises NoServer, WrongPassword or ServerUnfit at once, not at the first `map`.
    """
    session = _made(url, namespace, "connect()")
    session.broker  # noqa: B018 - the check is the point
    use(session)
    return session


def check(url: Any, whose: str) -> None:
    """Raises BadInput for what is neither a URL nor a client nor None."""
    if isinstance(url, str) and not url.strip():
        raise BadInput(message=f"{whose} was given an empty URL. Leave it out to use the settings.")
    if url is not None and not isinstance(url, str):
        connection.check_client(url, whose)


def _made(url: Any, namespace: str | None, whose: str) -> Session:
    check(url, whose)
    client = None if isinstance(url, str) or url is None else url
    return Session(settings_module.load(url if isinstance(url, str) else None, namespace), client)


def peek() -> Session | None:
    """The session of this process, if there is one."""
    return _current


def use(session: Session) -> None:
    """Makes `session` the one that all verbs use from now on."""
    global _current  # noqa: PLW0603 - a process has one current session, as it has one current directory
    with _lock:
        _current = session


def current() -> Session:
    """The session of this process, made from the settings if there is none."""
    global _current  # noqa: PLW0603 - as in connect
    with _lock:
        if _current is None:
            _current = Session(settings_module.load())
        return _current


_by_place: dict[tuple[Any, ...], Session] = {}


def of(connection: Any = None, namespace: str | None = None) -> Session:
    """The session on the server of `connection` (a `redis.Redis` or a URL): one for all who name the same server.

    Without a connection the session of this process, in another namespace if one is given. It connects when first used.
    """
    now = current() if connection is None else _current
    if connection is None and now is not None:
        if namespace in {None, now.settings.namespace}:
            return now
        wanted = Session(msgspec.structs.replace(now.settings, namespace=namespace), now._client)  # noqa: SLF001 - its own module
    else:
        wanted = _made(connection, namespace, "connection=")
    if now is not None and now.place == wanted.place:
        return now
    with _lock:
        known = _by_place.get(wanted.place)
        if known is None:
            known = _by_place[wanted.place] = wanted
        return known


def address(connection: Any) -> Any:
    """What tells servers apart: a URL, or how a client reaches its own."""
    pool = getattr(connection, "connection_pool", None)
    if pool is None:
        return connection
    told = ("host", "port", "path", "db", "username", "password", "server")  # the last is that of fakeredis
    return (pool.connection_class, *(str(pool.connection_kwargs.get(name)) for name in told))
