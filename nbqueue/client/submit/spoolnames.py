"""`name=` where the server has forgotten the name, and the spool has not: what has run does not run again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from nbqueue.client.calls import argument_hashes, function_diff
from nbqueue.client.lookup import spooled
from nbqueue.client.session.batch_ref import BatchRef
from nbqueue.client.session.session import tell
from nbqueue.client.submit.restore import Restoring
from nbqueue.errors import BadSignature, Changed
from nbqueue.model import State

if TYPE_CHECKING:
    from nbqueue.client.spool.reader import SpooledBatch
    from nbqueue.client.submit.submission import SubmitPlan


class Remembered:
    """A submission under a name that the spool knows. `back` says whether its batch is on the server again."""

    def __init__(self, asked: SubmitPlan, found: SpooledBatch, kept: Restoring) -> None:
        self._asked, self._found, self._kept, self._session = asked, found, kept, asked.session
        self.back = False

    def answer(self) -> BatchRef | None:
        """The Batch, where all of this call is in the spool. Else it is brought back to the server, as far as it goes.

        Raises Changed, and InUse where another session is about to do the same.
        """
        asked, spec = self._asked, self._kept.spec
        if asked.source is not None:
            return self._following()
        payloads = asked.packed()
        assert asked.marks is not None
        asked.marks.salt = spec.salt
        told = self._changes()
        doubts = [f"item {index} cannot be compared ({why})" for index, why in asked.marks.doubts[:1]]
        if (told or doubts) and not asked.options.update:
            raise self._changed([*told, *doubts])
        rows = asked.marks.match(self._found.hashes(), self._found.n)
        states = [None if row is None else self._kept.state(row) for row in rows]
        wanted = {State.FINISHED} if asked.options.update else set(State)
        if not told and all(state in wanted for state in states):
            return self._spooled([row for row in rows if row is not None], payloads)
        if asked.single:
            raise self._changed(told or ["the arguments of this single job changed"])
        known = {row for row in rows if row is not None}
        unfinished = {row for row, state in zip(rows, states, strict=True) if row is not None and state not in wanted}
        # A function that has changed must not run even for a moment: then what has not finished is held back.
        self._kept.back(run=() if told else known, afresh=() if told else unfinished)
        tell(f"nbqueue: restored {asked.options.name!r} from the spool to {self._session.server}.")
        self.back = True
        return None

    def _changes(self) -> list[str]:
        asked, spec, birth = self._asked, self._kept.spec, self._found.header
        source = "" if asked.source is None else asked.source.id
        if birth.single != asked.single or spec.source != source:
            kind = f"on the results of {spec.source}" if spec.source else "of items"
            raise self._changed([f"it is {'a single job' if birth.single else 'a batch'} {kind}"])
        return function_diff.differences(self._kept.record, asked.function.record, spec.seed, asked.options.seed)

    def _changed(self, told: list[str]) -> Changed:
        return Changed(name=self._asked.options.name, batch=self._found.header.batch, what="; ".join(told))

    def _following(self) -> BatchRef | None:
        """What ran on the results of another batch: all of it, or it must run again."""
        source = self._asked.source
        assert source is not None
        told = self._changes()
        if told and not self._asked.options.update:
            raise self._changed(told)
        rows = list(source.indexes)
        if told or any(self._kept.state(row) is None for row in rows):
            return None
        return self._spooled(rows, None)

    def _spooled(self, rows: list[int], payloads: list[bytes] | None) -> BatchRef | None:
        asked, spec, session = self._asked, self._kept.spec, self._session
        whole = asked.single or rows == list(range(self._found.n))
        why = spooled.why_gone(session, self._found)
        batch = spooled.batch(session, self._found, why, None if whole else argument_hashes.shortened(rows))
        if batch is None:
            return None
        mine = {name: getattr(asked.spec, name) for name in ("columns", "labeled", "index_names")}
        batch.spec = msgspec.structs.replace(spec, **mine)
        batch.name, batch.function, batch.source = asked.options.name, asked.function.call, asked.source
        if payloads is not None:
            batch.state.arguments.named = payloads
        batch.note = (
            f"{len(rows):,} of {len(rows):,} jobs reused from the spool, because they are no longer on "
            f"{session.server}; nothing new runs"
        )
        return batch


def remembered(asked: SubmitPlan) -> Remembered | None:
    """What the spool has of a batch of this name; None where that cannot be compared with this call."""
    session, name = asked.session, asked.options.name
    found = spooled.find(session, name)
    if found is None or found.header.name != name:
        return None
    try:
        return Remembered(asked, found, Restoring(session, found))
    except BadSignature:
        return None  # neither is its function known, nor anything sure: it runs as if it had never been
