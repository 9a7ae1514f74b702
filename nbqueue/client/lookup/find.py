"""Batches and jobs by their names and ids: from the server, or from the spool where that has them no more.

Nothing is unpickled for it, and nobody follows what was found: what is new about it is asked for, until someone waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from nbqueue import wire
from nbqueue.checks import check_title
from nbqueue.client.lookup import spooled
from nbqueue.client.lookup.waiting import lifetime
from nbqueue.client.session.batch_ref import BatchRef, JobRef
from nbqueue.client.session.session import Session
from nbqueue.client.spool.records import BatchHeader
from nbqueue.client.state.batch_state import BatchState
from nbqueue.errors import BadSignature, Damaged, Expired, NoBatchAtAll, NoSuchBatch, NoSuchJob, NotThere, SetupError
from nbqueue.model import Spec, decode
from nbqueue.store.broker import Broker

if TYPE_CHECKING:
    from nbqueue.store.records import BatchView


def handle(session: Session, view: BatchView) -> BatchRef:
    """A Batch for what the store says of one. Raises BadSignature or UnknownKey if someone else signed it."""
    return _handle(session, view, spec_of(session, view))


def spec_of(session: Session, view: BatchView) -> Spec:
    """The description of a batch, its signature checked. Raises BadSignature or UnknownKey."""
    return decode(Spec, session.sealer.unseal(wire.SPEC, view.id, -1, view.spec), "A description")


def listed(session: Session, view: BatchView) -> BatchRef:
    """As handle; what someone else signed is there too, and says whose key it was."""
    return _handle(session, view, shown_spec(session, view))


def shown_spec(session: Session, view: BatchView) -> Spec:
    """As spec_of; of what someone else signed, no more than whose key it was."""
    try:
        return spec_of(session, view)
    except BadSignature:
        return Spec(label="?", single=view.single, owner=f"someone else (key {view.signer})")


def _handle(session: Session, view: BatchView, spec: Spec) -> BatchRef:
    whole = (each for each in known(session, view, spec) if each.rows is None)
    state = next(whole, None) or _new(session, view, spec)
    return BatchRef(session, state, spec, name=view.name, shown=False)


def known(session: Session, view: BatchView, spec: Spec) -> Iterator[BatchState]:
    """What this session knows of the batch by other handles: a second state would be polled, copied, spooled again."""
    for each in session.collector.known(view.id):
        same = (
            each.on_disk.header is not None
            and each.on_disk.header.nonce == view.nonce
            and each.restored == spec.restored
        )
        if same and not each.gone and not each.fault:
            yield each


def _new(session: Session, view: BatchView, spec: Spec) -> BatchState:
    state = BatchState(view.id, view.queue, "", spec)
    header = _birth(session, view, spec) if view.signer in session.sealer.keyring.ids else None
    state.found(view, header, foreign=view.session != session.id)
    return state


def _birth(session: Session, view: BatchView, spec: Spec) -> BatchHeader:
    where = (session.server, session.settings.namespace, "")
    facts = (view.queue, view.name, spec.label, *where, view.created_us, view.n, view.single)
    return BatchHeader(view.id, view.nonce, view.spec, *facts)


# ---------------------------------------------------------------- one batch


def attach(session: Session, name: str | None) -> BatchRef:
    """The batch of this name or id; None: the latest. What the server has no more is taken from the spool.

    Raises NoSuchBatch, Expired or UnknownKey.
    """
    wanted = None if name is None else check_title("batch", name.rpartition(":")[0] or name)
    try:
        view = _latest(session) if wanted is None else view_named(session, wanted)
    except SetupError as why:
        if (copied := spooled.attached(session, wanted, why)) is None:
            raise
        return copied
    if (view is None or view.expired) and (copied := spooled.attached(session, wanted)) is not None:
        return copied
    if view is None:
        raise NoSuchBatch(name=name, server=session.server) if name else NoBatchAtAll(server=session.server)
    batch = handle(session, view)
    if view.expired:
        raise Expired(what=view.id, ttl=lifetime(batch.spec.result_ttl))
    session.attend()
    if not batch.state.followed:
        spooled.resume(batch, view)
    session.collector.follow(batch.state)
    return batch


def view_named(session: Session, name: str) -> BatchView | None:
    """What the server has under this name or id."""
    found = session.ask(lambda broker: broker.named(name, session.sealer.keyring.current.hex()) or broker.named(name))
    return session.ask(lambda broker: broker.view(found or name))


def _latest(session: Session) -> BatchView | None:
    """The latest batch that this user's keys can open."""
    ours = set(session.sealer.keyring.ids)
    views = [view for view in session.ask(lambda broker: broker.batches()) if view.signer in ours and not view.expired]
    return max(views, key=lambda view: view.created_us, default=None)


# ---------------------------------------------------------------- one job


def fetch(session: Session, name: str) -> JobRef:
    """The job with this id. Raises NoSuchJob, Expired, BadSignature or UnknownKey."""
    (found,) = fetch_many(session, [name])
    if isinstance(found, NotThere):
        raise found
    return found


def fetch_many(session: Session, names: Iterable[str]) -> list[JobRef | NotThere]:
    """As fetch, 1,000 in a round trip; NoSuchJob or Expired in the place of a job that is not there."""
    asked = []
    for name in names:
        owner, colon, last = str(name).rpartition(":")
        asked.append((name, check_title("job", owner if colon else name), last if colon else ""))
    found: dict[str, BatchRef | float | None] = {batch: session.here.get(batch) for _, batch, _ in asked}
    unknown = [batch for batch, known in found.items() if known is None]
    named = {batch for _, batch, digits in asked if digits}
    for batch, view in zip(unknown, session.ask(Broker.views_or_damage, unknown) if unknown else (), strict=True):
        found[batch] = _opened(session, batch, view, named=batch in named)
    return [_job(session, found[batch], name, digits) for name, batch, digits in asked]


def _opened(session: Session, batch: str, view: BatchView | Damaged | None, *, named: bool) -> BatchRef | float | None:
    """The Batch of this id, or else (`named`) name; for how many seconds it was kept if it expired; None: not there."""
    if view is None and named and (other := session.ask(Broker.named, batch)) is not None:
        view = session.ask(Broker.view, other)
    if isinstance(view, Damaged):
        raise view
    if (view is None or view.expired) and (copied := spooled.quietly(session, batch)) is not None:
        return copied
    if view is None:
        return None
    made = handle(session, view)
    return made.spec.result_ttl if view.expired else made


def _job(session: Session, batch: BatchRef | float | None, name: str, digits: str) -> JobRef | NotThere:
    if isinstance(batch, float):
        return Expired(what=name, ttl=lifetime(batch))
    if batch is None:
        return NoSuchJob(name=name, server=session.server, hint="")
    index = int(digits) if digits.isdecimal() else 0 if batch.single and not digits else -1
    if 0 <= index < len(batch):
        return JobRef(batch, index)
    many = f"; {name} is a batch of {len(batch):,} jobs, and {name}:0 its first" if not digits and len(batch) else ""
    return NoSuchJob(name=name, server=session.server, hint=many)
