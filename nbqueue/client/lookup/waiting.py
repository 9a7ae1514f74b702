"""Waiting for a batch or a job: yields to Ctrl-C, says once what is missing, and never waits for what cannot come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING

from nbqueue import wire
from nbqueue.checks import in_units, seconds
from nbqueue.client.lookup import refresh
from nbqueue.client.session.batch_ref import BatchRef, JobRef
from nbqueue.client.session.session import Session, tell, within
from nbqueue.client.state.batch_state import BatchState
from nbqueue.errors import BadInput, Expired, LostByServer, NbqueueError, NoServer, NotDone, SetupError
from nbqueue.model import State, utc
from nbqueue.store import pending
from nbqueue.store.records import BatchView

if TYPE_CHECKING:
    from nbqueue.store.broker import Broker

LOOK = 0.5  # seconds between two looks without news
ADVISE = 5.0  # seconds without a live worker, after which one is asked for


Bar = Callable[[BatchRef], AbstractContextManager[Callable[[], None]]]  # what it gives draws the bar anew


def no_bar(batch: BatchRef) -> AbstractContextManager[Callable[[], None]]:
    """Nothing moves while someone waits."""
    del batch
    return nullcontext(lambda: None)


def until(
    batch: BatchRef,
    met: Callable[[], bool],
    timeout: float | None,
    *,
    index: int | None = None,
    first: Callable[[], None] | None = None,
    arrived: bool = False,
    bar: Bar = no_bar,
) -> bool:
    """Waits until `met()`; False when `timeout` seconds have passed before. `first` asks the store before that.

    Raises what stopped the upload (for one job, `index`, only if it had not arrived), LostByServer, or Expired. With
    `arrived`, what arrived before the input broke off is waited for all the same. `bar` moves meanwhile.
    """
    timeout = None if timeout is None else seconds("timeout", timeout)
    state, begun = batch.state, time.monotonic()
    advice = Advice(batch.session, state)
    try:
        with within(timeout):
            if first is not None:
                with suppress(SetupError):  # where the store cannot be asked, the collector goes on trying
                    first()
            prepare(batch, met)
        with awaiting(state, index), bar(batch) as show:
            while not met():
                raise_trouble(batch, index, arrived=arrived)
                passed = time.monotonic() - begun
                if timeout is not None and passed >= timeout:
                    return False
                left = LOOK if timeout is None else min(LOOK, timeout - passed)
                with state.changed:
                    if not met():
                        state.changed.wait(left)
                show()
                if passed > ADVISE:
                    advice.give()
    except KeyboardInterrupt:
        tell(stopped(batch))
        raise
    return True


def for_batch(batch: BatchRef, timeout: float | None, *, bar: Bar = no_bar) -> bool:
    """Waits until all jobs have ended; False when `timeout` seconds have passed before.

    Raises LostByServer or Expired when the store has the batch no more, and what stopped the upload.
    """
    first = partial(refresh.reconsider_all, batch) if refresh.doubtful(batch) else None
    met = until(batch, lambda: batch.state.settled, timeout, first=first, bar=bar)
    over(batch)
    return met


def over(batch: BatchRef) -> None:
    """Shows how it stands when the wait for it is over. Raises what stopped the upload."""
    batch.state.show()  # its end belongs to the cell that waited
    raise_error(batch)


def for_job(job: JobRef, timeout: float | None, *, bar: Bar = no_bar) -> None:
    """Waits until one job has ended. Raises NotDone after `timeout` seconds, LostByServer or Expired."""
    first = partial(refresh.fill_in, job) if unsure(job) else None
    met = until(job.batch, partial(ended, job), timeout, index=job.index, first=first, bar=bar)
    if not met:
        raise not_done(job.batch, f"Job {job.id}", timeout, job.index)
    if job.index not in job.batch.state.outcomes:
        raise absence_of(job)


def unsure(job: JobRef) -> bool:
    """Whether the store must be asked before anyone waits: the collector does not bring what it has, or would."""
    state = job.batch.state
    missing = job.index not in state.outcomes and (state.settled or not state.followed)
    return not (job.batch.inline or state.gone) and (missing or state.barred(job.index))


def ended(job: JobRef) -> bool:
    """Whether its outcome is here, or will never be."""
    return job.index in job.batch.state.outcomes or job.batch.state.settled


def absence_of(job: JobRef) -> NbqueueError:
    """The error that says why a job is not there."""
    state = job.batch.state
    if not state.gone:
        return Expired(what=job.id, ttl=lifetime(state.ttl))
    return absence(state, job.batch.session, job.id)


def prepare(batch: BatchRef, met: Callable[[], bool]) -> None:
    """Makes sure that the collector brings what is waited for; also after a fault, which may be over by now."""
    refuse_unsent(batch)
    state = batch.state
    if state.fault is not None and not batch.inline:
        batch.session.collector.follow(state)
    if not (met() or batch.state.followed or batch.inline):
        batch.session.attend()
        batch.session.collector.follow(batch.state)


def refuse_unsent(batch: BatchRef) -> None:
    """Raises BadInput for a job that `Job.create` made, and that is in no queue yet."""
    if batch.unsent is not None:
        raise BadInput(message=f"{batch.id} was created but not enqueued: Queue.enqueue_job(job) enqueues it.")


def stopped(batch: BatchRef) -> str:
    """What to say to who stops waiting."""
    return (
        f"nbqueue: stopped waiting; {batch.id} is still running.\n"  # notebooks cut words of long lines
        f"nbqueue.attach({batch.name or batch.id!r}) opens it again, .cancel() cancels it."
    )


@contextmanager
def awaiting(state: BatchState, index: int | None) -> Iterator[None]:
    """Says that somebody waits for one job: the collector then looks without a pause."""
    by = int(index is not None)
    with state.changed:
        state.awaits(by)
    try:
        yield
    finally:
        with state.changed:
            state.awaits(-by)


def raise_trouble(batch: BatchRef, index: int | None = None, *, arrived: bool = False) -> None:
    """Raises what keeps this batch, or one job of it, or what arrived of it, from ever being complete here."""
    if (index is None or index >= batch.tally.n) and not (arrived and broke_off(batch.state)):
        raise_error(batch)
    if batch.state.fault is not None:
        raise batch.state.fault
    if batch.state.gone:
        raise absence(batch.state, batch.session, batch.id)


def broke_off(state: BatchState) -> bool:
    """Whether the input ended with an error, and what arrived before goes on."""
    return state.error is not None and (state.known or not isinstance(state.error, SetupError))


def raise_error(batch: BatchRef) -> None:
    """Raises what stopped the upload, or the collector."""
    error = batch.state.fault or batch.state.error
    if error is not None:
        raise error


def absence(state: BatchState, session: Session, what: str) -> NbqueueError:
    """The error that says why the store has something no more."""
    if state.gone == "lost":
        return LostByServer(server=session.server, what=what)
    return Expired(what=what, ttl=lifetime(state.ttl))


def lifetime(span: float) -> str:
    """A duration, in seconds, as people say it."""
    return in_units(span, "days", "hours", "minutes") or f"{span:g} s"


class Advice:
    """What to do when nothing moves; given once a wait."""

    def __init__(self, session: Session, state: BatchState) -> None:
        self._session, self._state = session, state
        self._given = self._looking = False
        self._next = 0.0
        self._found = ""

    def give(self) -> None:
        """Looks (every few seconds) whether anyone serves the queue, and says what to run if not.

        It looks on a thread, and says in a later call what was found: who waits must not wait for the answer.
        """
        if self._found:
            self._given = True
            tell(f"nbqueue: {self._found}")
            self._found = ""
        elif not self._given and not self._looking and time.monotonic() >= self._next:
            self._looking = True
            threading.Thread(target=self._look, name="nbqueue advice", daemon=True).start()

    def _look(self) -> None:
        try:
            self._found = self.message()
        finally:
            self._next = time.monotonic() + ADVISE
            self._looking = False

    def message(self) -> str:
        """What keeps this batch from moving, and what to do; empty where a worker that fits is up."""
        session = self._session
        try:
            if session.local:
                # Its lease may outlive a worker that was killed: the process is looked for.
                session.attend()
            found = self.pending()
        except NbqueueError as why:
            return f"still waiting: {why}"
        if found is None or found.reason == pending.BUSY:
            return ""
        if session.local and found.reason == pending.QUEUE:
            return f"no local worker has joined yet; its log is {session.settings.local / 'worker.log'}"
        where = f" on {session.server}" if found.reason == pending.QUEUE else ""
        return f"{found.text}{where}. {found.remedy}".rstrip()

    def pending(self) -> pending.Pending | None:
        """Why the queued jobs of this batch wait; None where a worker that can run them is free, or nothing waits.

        Raises NoServer and its kin.
        """
        broker, state = self._session.broker, self._state
        view = broker.view(state.batch)
        if view is None or not view.tally.queued:
            return None
        spec = wire.shown_spec(view.spec)
        return pending.Workers(broker).pending(view, label=spec.label, owner=spec.owner, start=self.command())

    def command(self) -> str:
        """The line that starts a worker for this batch."""
        session = self._session
        space = session.settings.namespace
        prefix = f"NBQUEUE_NAMESPACE={space} " if space != "nbq" else ""
        prefix += "NBQUEUE_URL=... " if "***" in session.server and not session.filed else ""
        url = "" if "***" in session.server or session.filed else f"--url {session.server} "
        return f"{prefix}nbqueue worker {url}{self._state.queue}"


def not_done(batch: BatchRef, what: str, timeout: float | None, index: int | None = None) -> NotDone:
    """The error that says how far it is, and why it does not go on where that is known."""
    waited = None if timeout is None else seconds("timeout", timeout)
    return NotDone(what=what, seconds=waited, tally=str(batch.tally), now=_standing(batch, index))


def _standing(batch: BatchRef, index: int | None) -> str:
    """What becomes of a batch, or of one job of it, that is not done."""
    session = batch.session
    if batch.inline:
        return "It is still running"

    def look(broker: Broker) -> str:
        view = broker.view(batch.id)
        if view is None:
            return "It is not on the server yet"
        known = None if index is None else broker.states(batch.id, [index])[0]
        return _words(batch, view, known, Advice(session, batch.state).pending())

    try:
        with within(0.0):
            return session.ask(look)
    except NoServer:
        return f"The server at {session.server} does not answer"
    except NbqueueError as why:
        return str(why).rstrip(".")


def _words(batch: BatchRef, view: BatchView, state: State | None, why: pending.Pending | None) -> str:
    """The same, by what the store says of it."""
    alone = state is None and not view.tally.started
    if state is State.QUEUED or (alone and view.tally.queued):
        return f"It waits: {why or 'a worker takes it as soon as one of its slots is free'}".rstrip(".")
    if state is State.SCHEDULED or (alone and view.tally.scheduled):
        return "It waits for its time" + (f", {utc(view.due_us):%Y-%m-%d %H:%M:%S} UTC" if view.due_us else "")
    if state is State.DEFERRED or (alone and view.tally.deferred):
        return f"It waits for {', '.join(batch.spec.depends_on[:3]) or batch.spec.source or 'others'}"
    return "It is still running"
