"""What memory does not know of jobs: the store is asked for many at once. Nothing is unpickled."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from nbqueue.client.session.batch_ref import BatchRef, JobRef
from nbqueue.errors import SetupError
from nbqueue.model import Outcome, State
from nbqueue.store.broker import Broker

if TYPE_CHECKING:
    from nbqueue.client.session.session import Session
    from nbqueue.store.records import BatchView

PART = 1_000


def by_session(jobs: Iterable[JobRef]) -> Iterator[tuple[Session, list[JobRef], list[tuple[str, int]]]]:
    """Whom to ask, for which of these jobs, and by what the store knows them."""
    found: dict[int, list[JobRef]] = {}
    for job in jobs:
        found.setdefault(id(job.batch.session), []).append(job)
    for some in found.values():
        yield some[0].batch.session, some, [(job.batch.id, job.index) for job in some]


def look(jobs: Sequence[JobRef], *, afresh: bool = False, canceled: bool = False) -> None:
    """Reads the outcomes of those jobs that memory knows none of; `afresh`: of all.

    With `canceled` it also asks for the ends of those that were canceled before anyone took them: these have no record.
    """
    asked = [job for job in jobs if not job.batch.inline and (afresh or job.index not in job.batch.state.outcomes)]
    for session, some, pairs in by_session(asked):
        blobs = session.ask(Broker.outcomes_of, pairs)
        for job, blob in zip(some, blobs, strict=True):
            if blob is not None:
                job.batch.state.keep(job.index, blob)
        if canceled:
            _look_at_cuts(session, [job for job, blob in zip(some, blobs, strict=True) if blob is None])


def reconsider(jobs: Sequence[JobRef]) -> None:
    """Forgets the end of jobs that were canceled with what they depend on, where that runs again, and they with it."""
    barred = [job for job in jobs if not job.batch.inline and job.batch.state.barred(job.index)]
    for session, some, pairs in by_session(barred):
        with contextlib.suppress(SetupError):  # where the store cannot be asked, memory is what there is
            for job, state in zip(some, session.ask(Broker.states_of, pairs), strict=True):
                if state not in {None, State.CANCELED}:
                    reopen(job.batch, [job.index])


def doubtful(batch: BatchRef) -> bool:
    """Whether somebody may have brought jobs of a batch to run again, of which nothing is heard here."""
    state = batch.state
    return not (batch.inline or state.gone) and state.settled and bool(state.tally.canceled or state.tally.failed)


def reconsider_all(batch: BatchRef) -> None:
    """Follows a batch again that somebody else has brought to run: by a retry, also of what it depends on."""
    state = batch.state
    if not doubtful(batch):
        return
    view = batch.session.glance(lambda broker: broker.view(batch.id))
    if view is None or view.expired:
        return
    if batch.single:
        moved = view.tally != state.tally
    elif view.log_length - state.cursor.position in range(1, PART):
        answer = batch.session.glance(lambda broker: broker.follow([(batch.id, state.cursor.position)], PART))
        moved = answer is not None and any(map(state.concerns, answer[0][1]))
    else:
        moved = view.log_length != state.cursor.position
    if moved:
        reopen(batch, [0] if batch.single else [])


def reopen(batch: BatchRef, indexes: Sequence[int]) -> None:
    """Forgets the ends of these jobs: they run again. The collector, if it follows the batch, does so again."""
    state = batch.state
    with state.changed:
        for index in indexes:
            state.withdraw(index)
        state.reopen()
    if state.followed:
        batch.session.collector.follow(state)


def _look_at_cuts(session: Session, jobs: list[JobRef]) -> None:
    views = session.ask(Broker.views, list(dict.fromkeys(job.batch.id for job in jobs)))
    known = {view.id: view for view in views if view is not None and view.cuts}
    cut = [(job, end) for job in jobs if job.batch.id in known and (end := _end(known[job.batch.id], job.index))]
    # What a retry has taken out of such a range since is somewhere else now.
    found = session.ask(Broker.states_of, [(job.batch.id, job.index) for job, _ in cut])
    for (job, end), state in zip(cut, found, strict=True):
        if state is State.CANCELED:
            job.batch.state.keep(job.index, end)


def _end(view: BatchView, index: int) -> Outcome | None:
    cause = next((cause for low, high, cause in view.cuts if low <= index < high), None)
    return None if cause is None else Outcome(State.CANCELED, cause, 0, 0, 0)


def states(jobs: Sequence[JobRef]) -> list[State | None]:
    """Where jobs are: from memory where they have ended there, else from the store. None: not there."""
    reconsider(jobs)
    kept = list(jobs)
    found = {id(job): job.batch.state.outcomes.state(job.index) for job in kept}
    for session, some, pairs in by_session(job for job in kept if found[id(job)] is None and not job.batch.inline):
        found.update(zip(map(id, some), session.ask(Broker.states_of, pairs), strict=True))
    return [found[id(job)] for job in kept]


def outcome_of(job: JobRef) -> Outcome | None:
    """The record of its run, signature checked; None until it has ended. Raises BadSignature."""
    fill_in(job)
    return job.batch.state.outcome(job.index, job.batch.session.sealer)


def shown_of(job: JobRef) -> Outcome | None:
    """As outcome_of, for who shows many: see BatchState.shown."""
    fill_in(job)
    return job.batch.state.shown(job.index, job.batch.session.sealer)


def fill_in(job: JobRef) -> None:
    """Asks the store where memory knows nothing: a status just read must not be ahead of the result."""
    state = job.batch.state
    if job.batch.inline or state.gone:
        return
    if state.followed and job.batch.session.collector.outage is not None:
        return  # memory is what there is, until the collector reaches the server again
    reconsider([job])
    if job.index not in state.outcomes:
        read(job.batch, job.index)


def failed(batch: BatchRef) -> list[JobRef]:
    """Those that failed so far. Until all is here, the store is asked."""
    state = batch.state
    if batch.inline or state.settled or state.gone:
        lost = state.gone == "lost"
        return [
            batch.job(index)
            for index in batch.indexes
            if state.outcomes.state(index) is State.FAILED or (lost and index not in state.outcomes)
        ]
    named = set(batch.session.ask(lambda broker: broker.failed(batch.id)))
    found = [batch.job(index) for index in batch.indexes if index in named]
    look(found)
    return found


def read(batch: BatchRef, index: int) -> None:
    """Asks the store for the outcome of one job."""
    state, session = batch.state, batch.session
    blob = session.ask(lambda broker: broker.outcomes(batch.id, [index]))[0]
    if blob is not None:
        state.keep(index, blob)
        return
    view = session.ask(lambda broker: broker.view(batch.id))
    if view is None or view.expired:
        if not state.followed:  # if it is, the collector knows whether it expired or was lost
            state.close("expired")
        return
    if not state.followed:
        state.count(view.tally)
    end = _end(view, index)
    if end is not None and session.ask(lambda broker: broker.states(batch.id, [index]))[0] is State.CANCELED:
        state.keep(index, end)
