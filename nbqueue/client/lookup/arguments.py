"""The arguments of jobs as they were sent: from memory, from the spool, from the store."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from nbqueue import perform, wire
from nbqueue.checks import warn
from nbqueue.client.lookup import refresh, spooled
from nbqueue.client.session.batch_ref import BatchRef, JobRef
from nbqueue.client.state.batch_state import opened
from nbqueue.errors import BadSignature, NbqueueError
from nbqueue.store.broker import Broker

PART = 1_000
_Unsealing = Callable[[BatchRef, int, bytes | None], bytes | None]


def payload(batch: BatchRef, index: int) -> bytes | None:
    """The arguments of one job as they were sent; None if nobody has them any more. Raises BadSignature."""
    state = batch.state
    if batch.unsent is not None:
        return perform.pack(batch.unsent.args, batch.unsent.kwargs, None)
    with state.changed:
        if state.arguments.sent is not None and index < len(state.arguments.sent):
            return state.arguments.sent[index]
    return None if batch.inline else _fetched(batch, [index], _checked)[0]


def payloads_of(jobs: Sequence[JobRef]) -> list[bytes | None]:
    """The arguments of some jobs: from memory, the others from the store."""
    kept = list(jobs)
    found: dict[int, bytes | None] = {}
    asked: list[JobRef] = []
    for job in kept:
        state = job.batch.state
        if state.arguments.sent is not None or state.gone or job.batch.spec.source:
            with contextlib.suppress(BadSignature):  # as in _unsealed
                found[id(job)] = payload(job.batch, job.index)
        else:
            asked.append(job)
    for session, some, pairs in refresh.by_session(asked):
        for job, blob in zip(some, session.ask(Broker.arguments_of, pairs), strict=True):
            sealed = blob if blob is not None else spooled.arguments(job.batch, [job.index])[0]
            found[id(job)] = _unsealed(job.batch, job.index, sealed)
    return [found.get(id(job)) for job in kept]


def payloads(batch: BatchRef, n: int) -> list[bytes | None]:
    """The arguments of all jobs as they were sent; None for those that neither memory nor the store has."""
    state = batch.state
    with state.changed:
        found: list[bytes | None] = [
            *((state.arguments.sent if state.arguments.named is None else state.arguments.named) or [])
        ]
    del found[n:]
    if batch.inline:
        return found + [None] * (n - len(found))
    try:
        for start in range(len(found), n, PART):
            found += _fetched(batch, list(batch.indexes[start : min(n, start + PART)]))
    except NbqueueError as why:
        warn(f"Some arguments are missing here: {why}")
    return found + [None] * (n - len(found))


def _fetched(batch: BatchRef, indexes: list[int], unsealed: _Unsealing | None = None) -> list[bytes | None]:
    """From the spool, the others from the store."""
    unsealed = unsealed or _unsealed
    if batch.spec.source:
        return [_result(batch, index, blob) for index, blob in zip(indexes, _results(batch, indexes), strict=True)]
    sealed = spooled.arguments(batch, indexes)
    missing = [place for place, blob in enumerate(sealed) if blob is None]
    if missing and not batch.state.gone:
        asked = [indexes[place] for place in missing]
        blobs = batch.session.ask(lambda broker: broker.arguments(batch.id, asked))
        for place, blob in zip(missing, blobs, strict=True):
            sealed[place] = blob
    return [unsealed(batch, index, blob) for index, blob in zip(indexes, sealed, strict=True)]


def _checked(batch: BatchRef, index: int, blob: bytes | None) -> bytes | None:
    return None if blob is None else batch.session.sealer.unseal(wire.ARGUMENTS, batch.id, index, blob)


def _unsealed(batch: BatchRef, index: int, blob: bytes | None) -> bytes | None:
    try:
        return _checked(batch, index, blob)
    except BadSignature:
        return None  # the job fails with cause `signature`, which its row says


def _results(batch: BatchRef, indexes: list[int]) -> list[bytes | None]:
    """The stored outcomes of what a batch runs on."""
    source = batch.spec.source
    gone = batch.state.gone
    found: list[bytes | None] = (
        [None] * len(indexes) if gone else batch.session.ask(lambda b: b.outcomes(source, indexes))
    )
    return found if None not in found else spooled.merged(found, batch.session, source, indexes)


def _result(batch: BatchRef, index: int, blob: bytes | None) -> bytes | None:
    if blob is None:
        return None
    try:
        return perform.handed_on(opened(batch.session.sealer, batch.spec.source, index, blob))
    except BadSignature:
        return None  # as in _unsealed


def opened_call(payload: bytes | None) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """(args, kwargs, label) of a payload; what cannot be opened here says so in its cell."""
    if payload is None:
        return (), {}, None
    try:
        return perform.unpack(payload, partial(perform.careful, what="A call"))
    except NbqueueError as why:  # it costs one cell, not the frame
        return (perform.cell(why),), {}, None
