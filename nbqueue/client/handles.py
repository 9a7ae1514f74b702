"""Handles on what the store tells of: batches and jobs that this process need not have submitted.

Nothing is unpickled for a handle, and nobody follows it: what is new about it is asked for, until someone waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbqueue import wire
from nbqueue.checks import check_title
from nbqueue.client.batch import Batch
from nbqueue.client.job import Job
from nbqueue.client.session import Session
from nbqueue.client.spoolfile import Birth
from nbqueue.client.watch import Watch
from nbqueue.errors import BadSignature, Expired, NoSuchJob
from nbqueue.model import Spec, decode

if TYPE_CHECKING:
    from nbqueue.store.records import BatchView


def handle(session: Session, view: BatchView) -> Batch[Any]:
    """A Batch for what the store says of one. Raises BadSignature or UnknownKey if someone else signed it."""
    return _handle(session, view, spec_of(session, view))


def spec_of(session: Session, view: BatchView) -> Spec:
    """The description of a batch, its signature checked. Raises BadSignature or UnknownKey."""
    return decode(Spec, session.sealer.unseal(wire.SPEC, view.id, -1, view.spec), "A description")


def listed(session: Session, view: BatchView) -> Batch[Any]:
    """As handle; what someone else signed is there too, and says whose key it was."""
    return _handle(session, view, shown_spec(session, view))


def shown_spec(session: Session, view: BatchView) -> Spec:
    """As spec_of; of what someone else signed, no more than whose key it was."""
    try:
        return spec_of(session, view)
    except BadSignature:
        return Spec(label="?", single=view.single, owner=f"someone else (key {view.signer})")


def _handle(session: Session, view: BatchView, spec: Spec) -> Batch[Any]:
    watch = Watch(view.id, view.queue, "", spec)
    watch.payloads, watch.foreign = None, view.session != session.id
    watch.birth = _birth(session, view, spec) if view.signer in session.sealer.keyring.ids else None
    watch.known, watch.tally, watch.created_us = True, view.tally, view.created_us
    watch.open, watch.cut, watch.expires_us = view.open, view.cut, view.expires_us
    batch: Batch[Any] = Batch(session, watch, spec, name=view.name)
    batch.shown_in = None
    return batch


def _birth(session: Session, view: BatchView, spec: Spec) -> Birth:
    where = (session.server, session.settings.namespace, "")
    facts = (view.queue, view.name, spec.label, *where, view.created_us, view.n, view.single)
    return Birth(view.id, view.nonce, view.spec, *facts)


# ---------------------------------------------------------------- one job


def fetch(session: Session, name: str) -> Job[Any]:
    """The job with this id, in one round trip. Raises NoSuchJob, Expired, BadSignature or UnknownKey."""
    owner, colon, digits = str(name).rpartition(":")
    batch = check_title("job", owner if colon else name)
    if (found := session.here.get(batch)) is not None:
        return _job(found, name, digits if colon else "", session)
    view = session.ask(lambda broker: broker.view(batch))
    if view is None and colon and (named := session.ask(lambda broker: broker.named(batch))) is not None:
        view = session.ask(lambda broker: broker.view(named))
    if view is None or view.expired:
        from nbqueue.client import recall

        if (spooled := recall.quietly(session, batch)) is not None:
            return _job(spooled, name, digits if colon else "", session)
    if view is None:
        raise NoSuchJob(name=name, server=session.server, hint="")
    opened = handle(session, view)
    if view.expired:
        from nbqueue.client.waiting import lifetime

        raise Expired(what=name, ttl=lifetime(opened.spec.result_ttl))
    return _job(opened, name, digits if colon else "", session)


def _job(batch: Batch[Any], name: str, digits: str, session: Session) -> Job[Any]:
    index = int(digits) if digits.isdecimal() else 0 if batch.single and not digits else -1
    if not 0 <= index < len(batch):
        many = (
            f"; {name} is a batch of {len(batch):,} jobs, and {name}:0 its first" if not digits and len(batch) else ""
        )
        raise NoSuchJob(name=name, server=session.server, hint=many)
    return Job(batch, index)
