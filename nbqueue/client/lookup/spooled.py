"""Batches and jobs from the spool: those that the server has no more, and what of the others need not be asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from nbqueue import wire
from nbqueue.client.lookup import refresh
from nbqueue.client.session import archive
from nbqueue.client.session.batch_ref import BatchRef, JobRef
from nbqueue.client.session.session import Session, tell
from nbqueue.client.spool import directory, records
from nbqueue.client.spool.directory import SpooledFiles
from nbqueue.client.spool.reader import SpooledBatch
from nbqueue.client.spool.records import BatchHeader, RecordType
from nbqueue.client.state.batch_state import BatchState
from nbqueue.client.state.selection import Selection
from nbqueue.errors import BadSignature, SetupError
from nbqueue.model import Spec, Tally, decode
from nbqueue.store.broker import Broker

if TYPE_CHECKING:
    from nbqueue.store.records import BatchView


# ---------------------------------------------------------------- finding


def find(session: Session, name: str | None) -> SpooledBatch | None:
    """What the spool tells of the batch or single job of this id or name; None as `name`: of the latest batch.

    Only of what this session's keys have signed, in its namespace.
    """
    folder = session.spool.folder
    if folder is None:
        return None
    session.spool.flush()
    if not session.spool.is_readable():
        return None
    births = [birth for birth in archive.births(session.spool, folder, name) if _spec(session, birth) is not None]
    birth = max(births, key=lambda each: each.created_us, default=None)
    return None if birth is None else archive.tale(session.spool, birth)


def _spec(session: Session, birth: BatchHeader) -> Spec | None:
    """The description of a batch, if its signature is one of ours for this namespace."""
    if birth.namespace != session.settings.namespace:
        return None
    try:
        return decode(Spec, session.sealer.unseal(wire.SPEC, birth.batch, -1, birth.spec), "A description")
    except BadSignature:
        return None


def spec_of(session: Session, found: SpooledBatch) -> Spec:
    """The description of a batch as it was last. Raises BadSignature."""
    blob = found.spec()
    return decode(Spec, session.sealer.unseal(wire.SPEC, found.header.batch, -1, blob), "A description")


def copies(session: Session) -> dict[str, tuple[SpooledFiles, BatchHeader, Spec]]:
    """What the spool has, without single jobs: id -> its files and what it is."""
    session.spool.flush()
    if session.spool.folder is None or not session.spool.is_readable():
        return {}
    found = ((one, one.header()) for one in directory.list_batches(session.spool.folder))
    told = ((one, birth, _spec(session, birth)) for one, birth in found if birth is not None)
    return {one.key: (one, birth, spec) for one, birth, spec in told if spec is not None}


# ---------------------------------------------------------------- a batch that the server does not tell of


def batch(session: Session, found: SpooledBatch, gone: str, rows: Sequence[int] | None = None) -> BatchRef | None:
    """The Batch in the spool, or these jobs of it.

    `gone` says why the server has it no more; empty: it cannot be asked at the moment.
    """
    birth = found.header
    try:
        spec = spec_of(session, found)
    except BadSignature:
        return None
    facts = birth.batch, birth.queue, birth.epoch, spec
    state = BatchState(*facts) if rows is None else Selection(*facts, rows, whole=Tally(n=found.n))
    state.recalled(birth, gone)
    state.follow(session.again)
    archive.fill(session.spool, state, found)
    archive.count(state, found)
    state.judge()
    made: BatchRef = BatchRef(session, state, spec, name=birth.name)
    made.shown_in = None
    if not state.over and not gone:
        state.cursor.position = 0 if found.damaged else found.position
        session.collector.follow(state)
    return made


def attached(session: Session, name: str | None, outage: SetupError | None = None) -> BatchRef | None:
    """The Batch of this name or id that the spool has and the server has not, or does not tell of; says so once."""
    found = find(session, name)
    made = None if found is None else batch(session, found, "" if outage is not None else why_gone(session, found))
    if made is not None:
        why = f"it is no longer on {session.server}" if outage is None else f"the server cannot be reached ({outage})"
        tell(f"nbqueue: loaded {made.id} from the spool, because {why}.")
    return made


def quietly(session: Session, name: str) -> BatchRef | None:
    """As attached, and says nothing: a job of it was asked for."""
    found = find(session, name)
    return None if found is None else batch(session, found, why_gone(session, found))


def why_gone(session: Session, found: SpooledBatch) -> str:
    """`lost` where the server cannot have dropped it by the clock, or is another than knew it; else `expired`."""
    birth, standing = found.header, found.checkpoint
    epoch, now = session.ask(lambda broker: (broker.epoch(), broker.now_us()))
    known = (standing.epoch if standing is not None else "") or birth.epoch
    return "lost" if (known and known != epoch) or now < _earliest(session, found) else "expired"


def _earliest(session: Session, found: SpooledBatch) -> float:
    """When it can have expired at the earliest, in us on the server's clock: after its end, or else its beginning."""
    spec, standing = _spec(session, found.header), found.checkpoint
    if standing is not None and standing.over and standing.expires_us is not None:
        return standing.expires_us
    ttl = 0.0 if spec is None else min(spec.result_ttl, spec.failure_ttl)
    return found.header.created_us + ttl * 1e6 if found.header.created_us else 0.0


# ---------------------------------------------------------------- a batch that the server knows


def resume(batch: BatchRef, view: BatchView) -> None:
    """Takes from the spool what need not be copied again. The log is then read from where the spool ends."""
    state = batch.state
    state.seen_in(batch.session.ask(lambda broker: broker.epoch()))
    if batch.single or state.on_disk.header is None or batch.session.spool.folder is None:
        return
    batch.session.spool.flush()
    found = archive.tale(batch.session.spool, state.on_disk.header)
    if batch.session.spool.on and not batch.spec.source:
        there = set() if found is None else found.indexes_with_arguments()
        state.on_disk.lacks_arguments = [index for index in range(view.n) if index not in there]
        state.on_disk.lacks_function = found is None or found.function() is None
    if found is None or found.damaged or not 0 < found.position <= view.log_length:
        return
    standing = found.checkpoint
    if standing is not None and standing.epoch in {"", state.epoch} and standing.restored == batch.spec.restored:
        archive.fill(batch.session.spool, state, found)
        state.cursor.position = found.position


# ---------------------------------------------------------------- arguments and outcomes, one by one


def arguments(batch: BatchRef, indexes: Sequence[int]) -> list[bytes | None]:
    """The sealed arguments of jobs, as far as the spool has them."""
    return _told(batch, lambda known: [known.arguments(index) for index in indexes]) or [None] * len(indexes)


def said(batch: BatchRef, kind: RecordType, indexes: Sequence[int]) -> list[bytes | None]:
    """What the spool has of what jobs wrote or said, sealed."""
    return _told(batch, lambda known: [known.extra_record(kind, index) for index in indexes]) or [None] * len(indexes)


_READS = {RecordType.LOGS: Broker.tails, RecordType.METAS: Broker.metas, RecordType.EARLIER_RUNS: Broker.pasts}


def asked(batch: BatchRef, kind: RecordType, index: int) -> bytes | None:
    """What a job wrote or said, sealed: from the server; from the spool where that has it no more, or does not answer.

    Raises SetupError where neither answers.
    """
    blob = None
    if not batch.state.gone:
        try:
            blob = batch.session.ask(lambda broker: _READS[kind](broker, batch.id, [index]))[0]
        except SetupError:
            if (spooled := said(batch, kind, [index])[0]) is not None:
                return spooled
            raise
    return said(batch, kind, [index])[0] if blob is None else blob


def log(job: JobRef) -> str:
    """The last of what it wrote to stdout and stderr. Raises SetupError, BadSignature."""
    batch = job.batch
    found = refresh.outcome_of(job)
    blob = None if found is None or batch.inline else asked(batch, RecordType.LOGS, job.index)
    if found is None or not blob:
        return ""
    tail = batch.session.sealer.unseal(wire.TAIL, batch.id, job.index, blob, found.attempt)
    return tail.decode("utf-8", "replace")


def function(batch: BatchRef) -> bytes | None:
    """The sealed function, if the spool has it."""
    return (_told(batch, lambda known: [known.function()]) or [None])[0]


def _told(batch: BatchRef, ask: Callable[[SpooledBatch], list[bytes | None]]) -> list[bytes | None]:
    """What the spool's tale of a batch answers; where that lacks something, the files are read again if they grew."""
    state, spool = batch.state, batch.session.spool
    if state.on_disk.header is None or spool.folder is None:
        return []
    known = state.on_disk.read
    found: list[bytes | None] = [None] if known is None else ask(known)
    if None in found:
        if not spool.is_readable():
            return found
        spool.flush()
        written = sum(path.stat().st_size for path in archive.paths(spool.folder, state.on_disk.header))
        if known is None or known.size != written:
            known = state.on_disk.read = archive.tale(batch.session.spool, state.on_disk.header)
            if known is not None and not state.single:
                known.drop_outcomes()
            found = [] if known is None else ask(known)
    return found


def merged(told: list[bytes | None], session: Session, source: str, indexes: Sequence[int]) -> list[bytes | None]:
    """The stored outcomes of another batch's jobs: as the server told, those that it has no more from the spool."""
    found = find(session, source)
    if found is None:
        return told
    wanted, blobs = set(indexes), dict[int, bytes]()
    for index, path, each in found.outcomes():
        if index in wanted:
            try:
                blobs[index] = each.blob or records.read(path, each.offset, each.size)
            except OSError:
                continue  # another session has dropped the file
    return [blobs.get(index) if blob is None else blob for index, blob in zip(indexes, told, strict=True)]
