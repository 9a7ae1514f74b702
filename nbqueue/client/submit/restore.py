"""Bringing a batch back from the spool to a server that has forgotten it: what has ended stays so, the rest can run."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from nbqueue import wire
from nbqueue.client.lookup import find, spooled
from nbqueue.client.session import archive
from nbqueue.client.session.batch_ref import BatchRef
from nbqueue.client.spool import records
from nbqueue.client.spool.records import Checkpoint
from nbqueue.client.state.batch_state import BatchState, opened
from nbqueue.client.state.outcome_table import header
from nbqueue.client.state.selection import Selection
from nbqueue.errors import BadSignature, InUse
from nbqueue.model import Cause, FunctionRecord, Outcome, State, Tally, decode, encode
from nbqueue.store.broker import Broker
from nbqueue.store.records import NewBatch

if TYPE_CHECKING:
    from nbqueue.client.session.session import Session
    from nbqueue.client.spool.reader import SpooledBatch

PART = 1_000
MARK = 16  # bytes of the mark of a job
PART_BYTES = 4 << 20


class Restoring:
    """One batch on its way back. Raises BadSignature where its function or description are not signed by us."""

    def __init__(self, session: Session, found: SpooledBatch) -> None:
        self._session, self._found, self._birth = session, found, found.header
        self.sealed = found.function()
        if self.sealed is None:
            raise BadSignature(what=f"The function of {found.header.batch}", why="the spool has no copy of it")
        payload = session.sealer.unseal(wire.FUNCTION, found.header.batch, -1, self.sealed)
        self.record = decode(FunctionRecord, payload, "A function")
        self.spec = spooled.spec_of(session, found)
        self._outcomes = {index: (path, each) for index, path, each in found.outcomes()}
        self._made: list[tuple[int, bytes]] = []
        self._withdrawn: list[tuple[int, bytes | int]] = []
        self._tally = dict.fromkeys(State, 0)
        self._before = 0  # ended jobs before the first that is queued: after these, others may write into the log

    def state(self, index: int) -> State | None:
        """How a job ended; None if the spool has no outcome of it."""
        if index not in self._outcomes:
            return State.CANCELED if self._found.is_canceled(index) else None
        return header(self._outcomes[index][1].head)[0]

    def back(self, run: Collection[int], afresh: Collection[int] = ()) -> None:
        """Sends all of it. Of what has no outcome the jobs in `run` are queued, the others count as canceled.

        Those in `afresh` are queued, whatever they had. Raises InUse where the id or the name is another's by now.
        """
        session, birth, sealer = self._session, self._birth, self._session.sealer
        session.attend()
        self.spec = msgspec.structs.replace(self.spec, restored=self.spec.restored + 1)
        assert self.sealed is not None
        new = NewBatch(
            id=birth.batch,
            queue=birth.queue,
            session=session.id,
            name=birth.name,
            nonce=birth.nonce,
            spec=sealer.seal(wire.SPEC, birth.batch, -1, encode(self.spec)),
            function=self.sealed,
            key=self.record.key,
            signer=sealer.keyring.current.hex(),
            python=self.record.python,
            host=self.record.host,
            result_ttl=self.spec.result_ttl,
            failure_ttl=self.spec.failure_ttl,
        )
        told = session.ask(lambda broker: broker.submit(new, [], last=False))
        marks, start = self._found.hashes() if self.spec.salt else b"", 0
        for part, last in self._parts(run, afresh):
            facts: dict[str, Any] = {"nonce": birth.nonce, "last": last, "created_us": birth.created_us}
            facts["marks"] = marks[MARK * start :]
            session.ask(partial(Broker.restore, batch_id=birth.batch, start=start, jobs=part, **facts))
            start += len(part)
        self._note(told.epoch, new.spec, start)

    def _parts(self, run: Collection[int], afresh: Collection[int]) -> Iterator[tuple[list[tuple[bytes, bytes]], bool]]:
        """Pairs of arguments and outcome, in parts, and whether it is the last one."""
        part: list[tuple[bytes, bytes]] = []
        size, n = 0, self._found.n
        for index in range(n):
            pair = self._pair(index, run, afresh)
            more = len(pair[0]) + len(pair[1])
            if part and (len(part) >= PART or size + more > PART_BYTES):
                yield part, False
                part, size = [], 0
            part.append(pair)
            size += more
        yield part, True

    def _pair(self, index: int, run: Collection[int], afresh: Collection[int]) -> tuple[bytes, bytes]:
        given = self._arguments(index)
        blob = self._outcome(index)
        if blob is not None and index in afresh:
            self._withdrawn.append((index, blob))
            blob = None
        wanted = index in afresh or (index in run and not self._found.is_canceled(index))
        if blob is None and not (given and wanted):
            blob = self._canceled(index)
            self._made.append((index, blob))
        self._tally[State.QUEUED if blob is None else header(blob)[0]] += 1
        self._before += not self._tally[State.QUEUED]
        return given, blob or b""

    def _arguments(self, index: int) -> bytes:
        blob = self._found.arguments(index)
        try:
            if blob is not None:
                self._session.sealer.unseal(wire.ARGUMENTS, self._birth.batch, index, blob)
        except BadSignature:
            return b""
        return blob or b""

    def _outcome(self, index: int) -> bytes | None:
        if index not in self._outcomes:
            return None
        path, found = self._outcomes[index]
        try:
            blob = found.blob or records.read(path, found.offset, found.size)
            opened(self._session.sealer, self._birth.batch, index, blob)
        except (BadSignature, OSError):
            return None  # it is damaged: the job runs again
        return blob

    def _canceled(self, index: int) -> bytes:
        outcome = Outcome(State.CANCELED, Cause.USER, 0, time.time_ns() // 1000, 0)
        sealed = self._session.sealer.seal(wire.OUTCOME, self._birth.batch, index, encode(outcome), 0)
        return b"C\0\0" + sealed

    def _note(self, epoch: str, spec: bytes, n: int) -> None:
        """Tells the spool, so that nothing of it needs to be copied again."""
        birth, spool = self._birth, self._session.spool
        tally = Tally(n=n, **{str(each): count for each, count in self._tally.items()})
        state = BatchState(birth.batch, birth.queue, epoch, self.spec)
        state.on_disk.header, state.on_disk.withdrawn = birth, self._withdrawn
        now = time.time()
        spool.add_function(state, b"", spec)
        spool.flush()
        standing = Checkpoint(now, self._before, n, False, False, False, None, [], [], epoch, tally, self.spec.restored)
        spool.write_outcomes(state, ())
        spool.write_restored(state, self._made, standing)


# ---------------------------------------------------------------- for a retry


def revived(batch: BatchRef) -> list[int] | None:
    """Brings a batch that the server has no more back, ended, so that jobs of it can be retried.

    Answers the jobs of which the spool has no outcome; None where that cannot be done.
    """
    session, state = batch.session, batch.state
    if state.gone not in {"lost", "expired"} or state.on_disk.header is None or batch.single or batch.spec.source:
        return None
    session.spool.flush()
    if not session.spool.on or (found := archive.tale(session.spool, state.on_disk.header)) is None:
        return None
    try:
        kept = Restoring(session, found)
        lost = [index for index in batch.indexes if kept.state(index) is None]
        kept.back(run=())
    except (BadSignature, InUse):
        return None  # its function is not to be had, or another session has just done the same
    _look_again(batch)
    return lost


def _look_again(batch: BatchRef) -> None:
    """From now on the batch is followed as one of the server's."""
    session, before = batch.session, batch.state
    view = session.ask(lambda broker: broker.view(batch.id))
    assert view is not None
    found = find.handle(session, view)
    state = found.state
    if before.rows is not None:
        state = Selection(batch.id, view.queue, "", found.spec, before.rows, whole=view.tally)
        state.shares(found.state)
        state.count(before.tally)
    state.replaces(before)
    batch.state = state
    mine = {name: getattr(batch.spec, name) for name in ("columns", "labeled", "index_names")}
    batch.spec = msgspec.structs.replace(found.spec, **mine)
    spooled.resume(batch, view)
    with state.changed:
        state.judge()
    session.collector.follow(state)
