"""The input of a frame: outcomes, arguments, states and meta of jobs, of one batch or several, fetched in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from nbqueue.checks import counted, warn
from nbqueue.client.lookup import find, job_meta, refresh, spooled
from nbqueue.client.lookup.arguments import opened_call, payloads, payloads_of
from nbqueue.client.session.batch_ref import BatchRef, JobRef
from nbqueue.client.spool.records import RecordType
from nbqueue.errors import BadSignature, NoSuchBatch, SetupError
from nbqueue.model import JobMeta, Outcome, Spec, State, job_id
from nbqueue.store.broker import Broker

CHUNK = 1_000


class Group(NamedTuple):
    """Jobs of one batch, and their positions in the frame."""

    batch: BatchRef
    indexes: Sequence[int]
    positions: Sequence[int]


@dataclass(frozen=True)
class FrameInput:
    """The rows of a frame. `specs` has the spec of each job; `labels` is None if the index are positions."""

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
        """The number of rows."""
        return len(self.outcomes)

    def states(self) -> list[State]:
        """The state of each job; `queued` if the server cannot be reached."""
        waiting = [position for position, outcome in enumerate(self.outcomes) if outcome is None]
        try:
            found = iter(_states([self.jobs[position] for position in waiting]))
        except SetupError as why:
            warn(f"Unfinished jobs are shown as queued, because the server cannot be asked at the moment: {why}")
            found = iter([State.QUEUED] * self.n)
        if gone := sum(bool(self.jobs[position].batch.state.gone) for position in waiting):
            warn(
                f"The results of {counted(gone, 'job')} are gone: they expired or were deleted before they were copied."
            )
        return [next(found) if outcome is None else outcome.state for outcome in self.outcomes]

    def queued(self) -> list[int]:
        """The time at which each job was queued, in us; 0 if not known."""
        found = [0] * self.n
        views: dict[tuple[int, str], int] = {}
        firsts = [self.jobs[group.positions[0]] for group in self.groups if group.positions and not group.batch.inline]
        firsts = [job for job in firsts if not job.batch.state.gone]
        for session, _, pairs in refresh.by_session(firsts):
            try:
                answer = session.ask(Broker.views, [batch for batch, _ in pairs])
            except SetupError as why:
                warn(f"queued_at is the time of submission, because the server cannot be asked at the moment: {why}")
                continue
            views |= {(id(session), view.id): view.queued_us or view.created_us for view in answer if view is not None}
        for batch, _, positions in self.groups:
            for position in positions:
                found[position] = views.get((id(batch.session), batch.id), batch.state.created_us)
        return found

    def notes(self) -> list[JobMeta]:
        """Meta and progress of each job; empty if the record is not signed by us."""
        found = [JobMeta()] * self.n
        for batch, indexes, positions in self.groups:
            for position, one in zip(positions, _metas(batch, indexes), strict=True):
                found[position] = one
        return found


def of_batch(batch: BatchRef) -> FrameInput:
    """The rows of a whole batch."""
    n = len(batch)
    spec = batch.spec
    labels = _labels(batch, n) if spec.labeled else None
    return FrameInput(
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


def of_jobs(jobs: Sequence[JobRef]) -> FrameInput:
    """The rows of some jobs, in the given order."""
    found: dict[int, Group] = {}
    for position, job in enumerate(jobs):
        group = found.setdefault(id(job.batch.state), Group(job.batch, [], []))
        group.indexes.append(job.index)  # type: ignore[attr-defined]
        group.positions.append(position)  # type: ignore[attr-defined]
    return FrameInput(
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


def _metas(batch: BatchRef, indexes: Sequence[int]) -> list[JobMeta]:
    if batch.inline:
        return [batch.state.inline.notes.get(index, JobMeta()) for index in indexes]
    try:
        blobs = (
            spooled.said(batch, RecordType.METAS, indexes)
            if batch.state.gone
            else batch.session.ask(lambda broker: broker.metas(batch.id, indexes))
        )
    except SetupError as why:
        warn(f"meta and progress are empty, because the server cannot be asked at the moment: {why}")
        return [JobMeta()] * len(indexes)
    found = []
    for index, blob in zip(indexes, blobs, strict=True):
        try:
            found.append(job_meta.opened(batch.session.sealer, batch.spec, batch.id, index, blob))
        except BadSignature:
            found.append(JobMeta())
    return found


def _labels(batch: BatchRef, n: int) -> list[Any]:
    """The index labels of the items; of a batch that runs on another batch's results, the labels of that batch."""
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
