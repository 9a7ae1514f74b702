"""All batches as a frame."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any

import msgspec

from nbqueue.client.lookup import find, spooled
from nbqueue.client.session.session import Session
from nbqueue.client.spool.directory import SpooledFiles
from nbqueue.client.spool.records import BatchHeader
from nbqueue.errors import BadSignature
from nbqueue.model import Spec, State, Tally, utc

if TYPE_CHECKING:
    import pandas as pd

    from nbqueue.store.records import BatchView

_FIRST = ("finished", "failed", "started", "queued")  # progress comes first
COLUMNS = (
    *("id", "name", "function", "n", *_FIRST, "created_at", "queue"),
    *(*(state.value for state in State if state not in _FIRST), "expires_at", "bytes", "spooled", "owner"),
)


def batches(session: Session) -> pd.DataFrame:
    """All batches on the server and in the spool, the latest first.

    `bytes` is the approximate size of a batch on the server, `spooled` the size of its copy on this disk. A batch that
    is no longer on the server has no `expires_at`, and 0 bytes. Single jobs are not measured.
    """
    import pandas as pd

    views = [view for view in session.ask(lambda broker: broker.batches()) if not view.expired]
    many = [view.id for view in views if not view.single]  # there may be a million single jobs
    sizes = dict(zip(many, session.ask(lambda broker: broker.sizes(many)), strict=True))
    copies = spooled.copies(session)
    rows = [_row(session, view, sizes.get(view.id), copies.pop(view.id, None)) for view in views]
    rows += [_spooled(copy, header, spec) for copy, header, spec in copies.values()]
    rows.sort(key=itemgetter("created_at"), reverse=True)
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    frame["bytes"] = frame["bytes"].astype("Int64")
    for name in ("created_at", "expires_at"):
        frame[name] = pd.to_datetime(frame[name], utc=True)
    return frame


def _spooled(copy: SpooledFiles, header: BatchHeader, spec: Spec) -> dict[str, Any]:
    checkpoint = copy.checkpoint()
    tally = checkpoint.tally if checkpoint is not None else Tally(n=header.n)
    facts = {
        "id": header.batch,
        "name": header.name,
        "function": header.label,
        "queue": header.queue,
        "owner": spec.owner,
    }
    sizes = {"expires_at": None, "bytes": 0, "spooled": copy.size}
    return {**facts, **msgspec.structs.asdict(tally), "created_at": utc(header.created_us), **sizes}


def _row(
    session: Session, view: BatchView, size: int | None, copy: tuple[SpooledFiles, BatchHeader, Spec] | None
) -> dict[str, Any]:
    try:
        spec = find.spec_of(session, view)
        label, owner = spec.label, spec.owner
    except BadSignature:
        label, owner = "", f"someone else (key {view.signer})"
    facts = {"id": view.id, "name": view.name, "function": label, "queue": view.queue, "owner": owner}
    expires = None if view.expires_us is None else utc(view.expires_us)
    sizes = {"expires_at": expires, "bytes": size, "spooled": 0 if copy is None else copy[0].size}
    return {**facts, **msgspec.structs.asdict(view.tally), "created_at": utc(view.created_us), **sizes}
