"""Removing a batch that is done, with all that is kept of it."""

from __future__ import annotations

from nbqueue import spill
from nbqueue.checks import OFF, warn
from nbqueue.client.session.batch_ref import BatchRef
from nbqueue.errors import BadInput, BadSignature, SpillLost


def forget(batch: BatchRef) -> None:
    """Removes it from server and spool, with its spilled results. Raises BadInput while it runs."""
    session, state = batch.session, batch.state
    if not batch.inline and not session.ask(lambda broker: broker.forget(batch.id)):
        raise BadInput(message=f"{batch.id} is still running ({batch.tally}): wait() for it, or cancel() it first.")
    session.collector.drop(state)
    state.hold()
    state.close("forgotten")
    if state.on_disk.header is not None:
        session.spool.forget(state.on_disk.header)
    if not batch.inline:
        _forget_spilled(batch)


def _forget_spilled(batch: BatchRef) -> None:
    """Removes spilled results from every place that is known here; says which could not be."""
    for root in _roots(batch):
        try:
            spill.forget(root, batch.session.settings.namespace, batch.id)
        except SpillLost as why:
            warn(str(why))


def _roots(batch: BatchRef) -> set[str]:
    """The batch's own, the session's, and those of workers that had one of their own."""
    needle = f"/{batch.id}/".encode()  # in the name of a file of it: cheaper to look for than a signature to check
    roots = {batch.spec.spill, batch.session.settings.spill or ""}
    for index in batch.indexes:
        blob = batch.state.outcomes.in_memory(index)
        if blob is not None and needle in blob:
            try:
                found = batch.state.outcome(index, batch.session.sealer)
            except BadSignature:
                continue  # it names no place that could be trusted
            if found is not None and found.spilled is not None:
                roots.add(found.spilled.root)
    return roots - {"", OFF}
