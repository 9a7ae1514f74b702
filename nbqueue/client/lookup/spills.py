"""Spilled results of a batch, as a notebook sees them: where they lie, and their removal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbqueue import spill
from nbqueue.checks import OFF, warn
from nbqueue.errors import BadSignature, SpillLost
from nbqueue.model import Options, Spec

if TYPE_CHECKING:
    from nbqueue.client.session.session import Session
    from nbqueue.client.state.batch_state import Watch


def place(options: Options, session: Session) -> str:
    """Where large results of a batch with these options go; empty where no folder is set."""
    return options.spill or session.settings.spill or ""


def forget(session: Session, watch: Watch, spec: Spec) -> None:
    """Removes them from every place that is known here; says which could not be."""
    for root in _roots(session, watch, spec):
        try:
            spill.forget(root, session.settings.namespace, watch.batch)
        except SpillLost as why:
            warn(str(why))


def _roots(session: Session, watch: Watch, spec: Spec) -> set[str]:
    """The batch's own, the session's, and those of workers that had one of their own."""
    needle = f"/{watch.batch}/".encode()  # in the name of a file of it: cheaper to look for than a signature to check
    roots = {spec.spill, session.settings.spill or ""}
    for index in watch.indexes:
        blob = watch.in_memory(index)
        if blob is not None and needle in blob:
            try:
                found = watch.outcome(index, session.sealer)
            except BadSignature:
                continue  # it names no place that could be trusted
            if found is not None and found.spilled is not None:
                roots.add(found.spilled.root)
    return roots - {"", OFF}
