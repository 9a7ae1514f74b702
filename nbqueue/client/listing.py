"""Finding batches again: one, or all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbqueue.checks import check_name
from nbqueue.client import handles
from nbqueue.client.batch import Batch
from nbqueue.client.session import Session
from nbqueue.errors import BadSignature, Expired, NoSuchBatch
from nbqueue.model import State, utc

if TYPE_CHECKING:
    import pandas as pd

    from nbqueue.store.records import BatchView

_COUNTS = ("n", *State)
COLUMNS = ("id", "name", "function", "queue", *_COUNTS, "created_at", "expires_at", "owner")


def attach(session: Session, name: str | None) -> Batch[Any]:
    """The batch of this name or id; None: the latest. Raises NoSuchBatch, Expired or UnknownKey."""
    view = _latest(session) if name is None else _find(session, check_name("batch", name.rpartition(":")[0] or name))
    if view is None:
        raise NoSuchBatch(name=name or "at all", server=session.server)
    batch = handles.handle(session, view)
    if view.expired:
        from nbqueue.client.waiting import lifetime

        raise Expired(what=view.id, ttl=lifetime(batch.spec.result_ttl))
    session.attend()
    batch.watch.epoch = session.ask(lambda broker: broker.epoch())
    session.collector.follow(batch.watch)
    return batch


def _find(session: Session, name: str) -> BatchView | None:
    found = session.ask(lambda broker: broker.named(name, session.sealer.keyring.current.hex()) or broker.named(name))
    return session.ask(lambda broker: broker.view(found or name))


def _latest(session: Session) -> BatchView | None:
    """The latest batch that this user's keys can open."""
    ours = set(session.sealer.keyring.ids)
    views = [view for view in session.ask(lambda broker: broker.batches()) if view.signer in ours and not view.expired]
    return max(views, key=lambda view: view.created_us, default=None)


def batches(session: Session) -> pd.DataFrame:
    """All batches on the server, the latest first."""
    import pandas as pd

    views = sorted(session.ask(lambda broker: broker.batches()), key=lambda view: -view.created_us)
    frame = pd.DataFrame([_row(session, view) for view in views if not view.expired], columns=list(COLUMNS))
    for name in ("created_at", "expires_at"):
        frame[name] = pd.to_datetime(frame[name], utc=True)
    return frame


def _row(session: Session, view: BatchView) -> tuple[Any, ...]:
    try:
        spec = handles.spec_of(session, view)
        label, owner = spec.label, spec.owner
    except BadSignature:
        label, owner = "", f"someone else (key {view.signer})"
    tally = view.tally
    counts = tuple(getattr(tally, name) for name in _COUNTS)
    expires = None if view.expires_us is None else utc(view.expires_us)
    return view.id, view.name, label, view.queue, *counts, utc(view.created_us), expires, owner
