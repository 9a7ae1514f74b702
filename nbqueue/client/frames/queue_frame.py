"""The jobs of a queue as a frame. Nothing is unpickled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from nbqueue.client.frames import columns, frame
from nbqueue.client.lookup import job_meta
from nbqueue.client.lookup.find import shown_spec
from nbqueue.client.lookup.results import has_run, parents_of, text_of
from nbqueue.client.session.session import Session
from nbqueue.client.state.batch_state import opened, shown
from nbqueue.errors import BadSignature
from nbqueue.model import JobMeta, Spec, State, job_id
from nbqueue.store.broker import Broker
from nbqueue.store.records import BatchView

if TYPE_CHECKING:
    import pandas as pd

from nbqueue.client.lookup import queue_contents

CHUNK = 1_000
_TIMES = ("created_at", "enqueued_at", "started_at", "ended_at")
COLUMNS = (
    *("job_id", "function", "description", "status", "cause", "error", "attempt", *_TIMES, "runtime_s"),
    *("depends_on", "meta", "progress", "worker", "owner"),
)


class _Row(NamedTuple):
    batch: str
    index: int  # type: ignore[assignment]
    view: BatchView
    spec: Spec
    state: State


def to_frame(session: Session, queue: str) -> pd.DataFrame:
    """One row per job, the latest submitted first."""
    import pandas as pd

    views = [view for view in session.ask(lambda broker: broker.in_queue(queue)) if not view.expired]
    rows = [row for view in reversed(views) for row in _rows(session, view)]
    cells: list[dict[str, Any]] = []
    for start in range(0, len(rows), CHUNK):  # in chunks: results may be large, and no cell holds one
        chunk = rows[start : start + CHUNK]
        pairs = [row[:2] for row in chunk]
        blobs, metas = session.ask(Broker.outcomes_of, pairs), session.ask(Broker.metas_of, pairs)
        cells += [_cells(session, *each) for each in zip(chunk, blobs, metas, strict=True)]
    made = pd.DataFrame({name: columns.column([row[name] for row in cells]) for name in COLUMNS})
    for name in _TIMES:
        made[name] = frame.times(row[name] for row in cells)
    made["runtime_s"] = pd.Series([row["runtime_s"] for row in cells], dtype="float64")
    made["attempt"] = made["attempt"].astype("Int64")
    return made


def _rows(session: Session, view: BatchView) -> Iterator[_Row]:
    spec = shown_spec(session, view)
    for index, state in enumerate(queue_contents.states(session, view)):
        yield _Row(view.id, index, view, spec, state)


def _cells(session: Session, row: _Row, blob: bytes | None, meta: bytes | None) -> dict[str, Any]:
    view, spec = row.view, row.spec
    outcome = None if blob is None else shown(lambda: opened(session.sealer, row.batch, row.index, blob))
    notes = _notes(session, row, meta)
    ran = outcome if outcome is not None and has_run(outcome) else None
    return {
        "job_id": view.id if view.single else job_id(view.id, row.index),
        "function": spec.label,
        "description": spec.description or spec.label,
        "status": str(row.state if outcome is None else outcome.state),
        "cause": str(outcome.cause) if outcome is not None and outcome.cause else None,
        "error": None if outcome is None else text_of(outcome, parents_of(spec)) or None,
        "attempt": None if outcome is None else outcome.attempt,
        "created_at": view.created_us,
        "enqueued_at": view.queued_us,
        "started_at": None if ran is None else ran.started_us,
        "ended_at": None if outcome is None else outcome.ended_us or None,
        "runtime_s": None if ran is None else ran.runtime_us / 1e6,
        "depends_on": ", ".join([*spec.depends_on, *([spec.source] if spec.source else [])]) or None,
        "meta": notes.meta or None,
        "progress": notes.progress,
        "worker": None if outcome is None else outcome.worker or None,
        "owner": spec.owner or None,
    }


def _notes(session: Session, row: _Row, meta: bytes | None) -> JobMeta:
    try:
        return job_meta.opened(session.sealer, row.spec, row.batch, row.index, meta)
    except BadSignature:
        return JobMeta()
