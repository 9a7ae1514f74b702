"""Finding batches again: one, or all."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any

import msgspec

from nbqueue.checks import check_title
from nbqueue.client.lookup import archive
from nbqueue.client.lookup import find as handles
from nbqueue.client.session.batch_ref import BatchRef
from nbqueue.client.session.session import Session
from nbqueue.client.spool.directory import Kept
from nbqueue.client.spool.records import Birth
from nbqueue.errors import BadSignature, Expired, NoBatchAtAll, NoSuchBatch, SetupError
from nbqueue.model import Spec, State, Tally, utc

if TYPE_CHECKING:
    import pandas as pd

    from nbqueue.store.records import BatchView

_FIRST = ("finished", "failed", "started", "queued")  # what one looks for: how far they are
COLUMNS = (
    *("id", "name", "function", "n", *_FIRST, "created_at", "queue"),
    *(*(state.value for state in State if state not in _FIRST), "expires_at", "bytes", "spooled", "owner"),
)


def attach(session: Session, name: str | None) -> BatchRef:
    """The batch of this name or id; None: the latest. What the server has no more is taken from the spool.

    Raises NoSuchBatch, Expired or UnknownKey.
    """
    wanted = None if name is None else check_title("batch", name.rpartition(":")[0] or name)
    try:
        view = _latest(session) if wanted is None else find(session, wanted)
    except SetupError as why:
        if (spooled := archive.attached(session, wanted, why)) is None:
            raise
        return spooled
    if (view is None or view.expired) and (spooled := archive.attached(session, wanted)) is not None:
        return spooled
    if view is None:
        raise NoSuchBatch(name=name, server=session.server) if name else NoBatchAtAll(server=session.server)
    batch = handles.handle(session, view)
    if view.expired:
        from nbqueue.client.lookup.waiting import lifetime

        raise Expired(what=view.id, ttl=lifetime(batch.spec.result_ttl))
    session.attend()
    archive.resume(batch, view)
    session.collector.follow(batch.watch)
    return batch


def find(session: Session, name: str) -> BatchView | None:
    """What the server has under this name or id."""
    found = session.ask(lambda broker: broker.named(name, session.sealer.keyring.current.hex()) or broker.named(name))
    return session.ask(lambda broker: broker.view(found or name))


def _latest(session: Session) -> BatchView | None:
    """The latest batch that this user's keys can open."""
    ours = set(session.sealer.keyring.ids)
    views = [view for view in session.ask(lambda broker: broker.batches()) if view.signer in ours and not view.expired]
    return max(views, key=lambda view: view.created_us, default=None)


def batches(session: Session) -> pd.DataFrame:
    """All batches on the server and those that the spool has besides, the latest first; how far they are comes first.

    `bytes` is about what a batch takes on the server, `spooled` what its copy takes here. What the server has no more
    has no `expires_at`, and 0 bytes. Single jobs are not measured.
    """
    import pandas as pd

    views = [view for view in session.ask(lambda broker: broker.batches()) if not view.expired]
    many = [view.id for view in views if not view.single]  # a million single jobs are not asked about one by one
    sizes = dict(zip(many, session.ask(lambda broker: broker.sizes(many)), strict=True))
    copies = archive.copies(session)
    rows = [_row(session, view, sizes.get(view.id), copies.pop(view.id, None)) for view in views]
    rows += [_spooled(kept, birth, spec) for kept, birth, spec in copies.values()]
    rows.sort(key=itemgetter("created_at"), reverse=True)
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    frame["bytes"] = frame["bytes"].astype("Int64")
    for name in ("created_at", "expires_at"):
        frame[name] = pd.to_datetime(frame[name], utc=True)
    return frame


def _spooled(kept: Kept, birth: Birth, spec: Spec) -> dict[str, Any]:
    standing = kept.standing()
    tally = standing.tally if standing is not None else Tally(n=birth.n)
    facts = {"id": birth.batch, "name": birth.name, "function": birth.label, "queue": birth.queue, "owner": spec.owner}
    sizes = {"expires_at": None, "bytes": 0, "spooled": kept.size}
    return {**facts, **msgspec.structs.asdict(tally), "created_at": utc(birth.created_us), **sizes}


def _row(session: Session, view: BatchView, size: int | None, copy: tuple[Kept, Birth, Spec] | None) -> dict[str, Any]:
    try:
        spec = handles.spec_of(session, view)
        label, owner = spec.label, spec.owner
    except BadSignature:
        label, owner = "", f"someone else (key {view.signer})"
    facts = {"id": view.id, "name": view.name, "function": label, "queue": view.queue, "owner": owner}
    expires = None if view.expires_us is None else utc(view.expires_us)
    sizes = {"expires_at": expires, "bytes": size, "spooled": 0 if copy is None else copy[0].size}
    return {**facts, **msgspec.structs.asdict(view.tally), "created_at": utc(view.created_us), **sizes}
