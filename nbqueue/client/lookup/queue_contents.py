"""What there is in a queue: the jobs that wait, and those in a state."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from nbqueue.client.lookup import refresh
from nbqueue.client.lookup.find import listed
from nbqueue.client.session.batch_ref import JobRef
from nbqueue.client.session.session import Session
from nbqueue.model import State, job_id
from nbqueue.store.broker import Broker
from nbqueue.store.records import BatchView

PART = 1_000


def length(session: Session, queue: str) -> int:
    """How many jobs wait; what has waited longer than its ttl does not, also where no worker is up to say so."""
    count, overdue = session.ask(lambda broker: broker.standing(queue))
    if overdue:
        session.ask(lambda broker: broker.promote())
        count, _ = session.ask(lambda broker: broker.standing(queue))
    return count


def waiting_ids(session: Session, queue: str) -> list[str]:
    """The ids of the jobs that wait, in the order of claims."""
    found = session.ask(lambda broker: broker.queued(queue))
    return [one.view.id if one.view.single else job_id(one.view.id, index) for one in found for index in one.indexes]


def waiting(session: Session, queue: str) -> list[JobRef]:
    """The jobs that wait, in the order of claims."""
    found = session.ask(lambda broker: broker.queued(queue))
    return [JobRef(batch, index) for one in found for batch in [listed(session, one.view)] for index in one.indexes]


def in_state(session: Session, queue: str, state: State) -> list[JobRef]:
    """The jobs of a queue that are in this state; those that have ended with their outcomes."""
    views = session.ask(lambda broker: broker.in_queue(queue))
    found = [
        JobRef(batch, index)
        for view in views
        if not view.expired and getattr(view.tally, state)
        for batch in [listed(session, view)]
        for index in _indexes(session, view, state)
    ]
    if state.over:
        refresh.look(found, canceled=state is State.CANCELED)
    return found


def _indexes(session: Session, view: BatchView, state: State) -> Sequence[int]:
    if view.single or getattr(view.tally, state) == view.n:
        return range(view.n)
    if state is State.FAILED:
        return session.ask(lambda broker: broker.failed(view.id))
    return [index for index, found in enumerate(states(session, view)) if found is state]


def states(session: Session, view: BatchView) -> list[State]:
    """Where all jobs of a batch are."""
    known = [state for state in State if getattr(view.tally, state) == view.n]
    if known:
        return known[:1] * view.n
    return [state or State.QUEUED for state in session.ask(Broker.states, view.id, range(view.n))]


def empty(session: Session, queue: str) -> int:
    """Cancels all jobs that wait; answers how many."""
    found = session.ask(lambda broker: broker.queued(queue))
    # A whole batch is canceled in one go; of one with jobs that wait for something else, only those of the queue.
    whole = [view.id for view, _ in found if view.tally.deferred + view.tally.scheduled == 0]
    count = session.ask(lambda broker: broker.cancel_many(whole, running=False))
    for view, indexes in found:
        if view.tally.deferred + view.tally.scheduled:
            count += session.ask(partial(_cancel, view.id, indexes))
    return count


def _cancel(batch: str, indexes: list[int], broker: Broker) -> int:
    return broker.cancel(batch, indexes, running=False)
