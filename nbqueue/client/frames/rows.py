"""What a frame is made of: outcomes, arguments, states and notes of jobs, of one batch or of many, fetched in parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from nbqueue.checks import warn
from nbqueue.client.lookup import find, job_meta, refresh, spooled
from nbqueue.client.lookup.arguments import opened_call, payloads, payloads_of
from nbqueue.client.session.batch_ref import BatchRef, JobRef
from nbqueue.client.spool.records import RecordType
from nbqueue.errors import BadSignature, NoSuchBatch, SetupError
from nbqueue.model import Notes, Outcome, Spec, State, job_id
from nbqueue.store.broker import Broker

PART = 1_000


class Group(NamedTuple):
    """Jobs of one batch, and where they stand in the frame."""

    batch: BatchRef
    indexes: Sequence[int]
    places: Sequence[int]


@dataclass(frozen=True)
class Rows:
    """Rows in the order of the frame. `specs` says how each was submitted; `labels` is None where positions do."""

    jobs: Sequence[JobRef]
    ids: list[str]
    groups: list[Group]
    outcomes: list[Outcome | None]
    payloads: list[bytes | None]
    specs: list[Spec]
    labels: list[Any] | None = None
    index_names: tuple[str | None, ...] = ()
    empty: tuple[str, ...] = ()  # argument columns where there are no rows

    @property
    def n(self) -> int:
        """How many."""
        return len(self.outcomes)

    def states(self) -> list[State]:
        """Where each job is; `queued` where the store cannot be asked."""
        waiting = [place for place, outcome in enumerate(self.outcomes) if outcome is None]
        try:
            found = iter(_states([self.jobs[place] for place in waiting]))
        except SetupError as why:
            warn(f"What is queued and what runs is not known at the moment: {why}")
            found = iter([State.QUEUED] * self.n)
        if gone := sum(bool(self.jobs[place].batch.state.gone) for place in waiting):
            text = (
                "What became of {:,} jobs is not known any more: it expired, or was deleted, before it was copied here."
            )
            warn(text.format(gone))
        return [next(found) if outcome is None else outcome.state for outcome in self.outcomes]

    def queued(self) -> list[int]:
        """When each could first be taken, in us; 0 where that is not known."""
        found = [0] * self.n
        views: dict[tuple[int, str], int] = {}
        firsts = [self.jobs[group.places[0]] for group in self.groups if group.places and not group.batch.inline]
        firsts = [job for job in firsts if not job.batch.state.gone]
        for session, _, pairs in refresh.by_session(firsts):
            try:
                told = session.ask(Broker.views, [batch for batch, _ in pairs])
            except SetupError as why:
                warn(f"When jobs were queued is not known at the moment: {why}")
                continue
            views |= {(id(session), view.id): view.queued_us or view.created_us for view in told if view is not None}
        for batch, _, places in self.groups:
            for place in places:
                found[place] = views.get((id(batch.session), batch.id), batch.state.created_us)
        return found

    def notes(self) -> list[Notes]:
        """What each job said of itself; nothing of one whose record is not signed by us."""
        found = [Notes()] * self.n
        for batch, indexes, places in self.groups:
            for place, one in zip(places, _noted(batch, indexes), strict=True):
                found[place] = one
        return found


def of_batch(batch: BatchRef) -> Rows:
    """The rows of a whole batch."""
    n = len(batch)
    spec = batch.spec
    labels = _labels(batch, n) if spec.labeled else None
    return Rows(
        [batch.job(index) for index in batch.indexes],
        [batch.id] if batch.single else [job_id(batch.id, index) for index in batch.indexes],
        [Group(batch, batch.indexes, range(n))],
        [batch.state.shown(index, batch.session.sealer) for index in batch.indexes],
        payloads(batch, n),
        [spec] * n,
        labels,
        spec.index_names,
        spec.columns,
    )


def of_jobs(jobs: Sequence[JobRef]) -> Rows:
    """The rows of some jobs, in their order."""
    found: dict[int, Group] = {}
    for place, job in enumerate(jobs):
        group = found.setdefault(id(job.batch.state), Group(job.batch, [], []))
        group.indexes.append(job.index)  # type: ignore[attr-defined]
        group.places.append(place)  # type: ignore[attr-defined]
    return Rows(
        jobs,
        [job.id for job in jobs],
        list(found.values()),
        [job.batch.state.shown(job.index, job.batch.session.sealer) for job in jobs],
        payloads_of(jobs),
        [job.batch.spec for job in jobs],
    )


def _states(jobs: list[JobRef]) -> list[State]:
    there = [job for job in jobs if not job.batch.state.gone]
    answers = iter(refresh.states(there))
    return [State.QUEUED if job.batch.state.gone else next(answers) or State.QUEUED for job in jobs]


def _noted(batch: BatchRef, indexes: Sequence[int]) -> list[Notes]:
    if batch.inline:
        return [batch.state.inline.notes.get(index, Notes()) for index in indexes]
    try:
        blobs = (
            spooled.said(batch, RecordType.METAS, indexes)
            if batch.state.gone
            else batch.session.ask(lambda broker: broker.metas(batch.id, indexes))
        )
    except SetupError as why:
        warn(f"What jobs said of themselves is not known at the moment: {why}")
        return [Notes()] * len(indexes)
    found = []
    for index, blob in zip(indexes, blobs, strict=True):
        try:
            found.append(job_meta.opened(batch.session.sealer, batch.spec, batch.id, index, blob))
        except BadSignature:
            found.append(Notes())
    return found


def _labels(batch: BatchRef, n: int) -> list[Any]:
    """The index labels that came with the items; of a batch that runs on another's results, those of the other."""
    origin: BatchRef = batch
    while origin.spec.source:
        known = origin.source or _source(origin)
        if known is None:
            return [None] * n
        origin = known
    return [opened_call(each)[2] for each in payloads(origin, n)]


def _source(batch: BatchRef) -> BatchRef | None:
    if (view := batch.session.ask(lambda broker: broker.view(batch.spec.source))) is None:
        return spooled.quietly(batch.session, batch.spec.source)
    try:
        return find.handle(batch.session, view)
    except (BadSignature, NoSuchBatch):
        return None
