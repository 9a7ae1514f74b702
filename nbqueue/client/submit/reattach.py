"""`name=`: a batch that is there already is found again; only what is new runs, and what has changed is told and asked.

Values are compared, never pickles: function and arguments by their digests (digests.py, likeness.py, marks.py).
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from nbqueue import wire
from nbqueue.checks import counted
from nbqueue.client.calls import argument_hashes, function_diff
from nbqueue.client.lookup import find, spooled
from nbqueue.client.session import kernel
from nbqueue.client.session.batch_ref import BatchRef
from nbqueue.client.session.session import tell
from nbqueue.client.state.batch_state import KEPT_ARGUMENTS
from nbqueue.client.state.selection import Selection
from nbqueue.client.submit import spoolnames, upload
from nbqueue.client.submit.options import spill_folder
from nbqueue.client.submit.retry import LIMITS
from nbqueue.client.submit.submission import SubmitPlan
from nbqueue.errors import Changed, InUse, NoSuchBatch
from nbqueue.model import FunctionRecord, Spec, State, Tally, decode, encode, new_id
from nbqueue.store.broker import Broker

if TYPE_CHECKING:
    from nbqueue.store.records import BatchView

TRIES = 20  # others that submit the same name at the same moment
LOOK = 0.1  # seconds between two looks at an upload that must end first
FEW = 1_000  # jobs whose ends are asked for at once


def submit(asked: SubmitPlan) -> BatchRef:
    """A new batch, or the one of this name with the jobs of this call.

    Raises Changed or InUse, and what is wrong with the items, or with the store.
    """
    batch = asked.made() if asked.marks is None else _named(asked)
    batch.visible = batch.wanted(asked.options.progress)
    if batch.note and kernel.shell() is None:
        tell(f"nbqueue: {batch.name}: {batch.note}.")
    return batch


def _named(asked: SubmitPlan) -> BatchRef:
    """The batch of this name with the jobs of this call; a new one where there is none. Raises Changed or InUse."""
    fresh = asked.options.fresh
    for _ in range(TRIES):
        view = _standing(asked)
        try:
            if view is None or fresh:
                if view is not None:
                    _set_aside(asked, view)
                if view is None and not fresh and (kept := spoolnames.remembered(asked)) is not None:
                    batch = kept.answer()
                    if batch is not None:
                        return batch
                    if kept.back:
                        continue
                fresh = False
                return asked.made()
            return Reattach(asked, view).run()
        except InUse as why:
            # Another session has just taken the name, or the end of the batch: we find it now. What is read from an
            # iterator cannot be read again.
            if why.facts["what"] not in {"name", "batch", "id"} or (view is None and asked.once):
                raise
        except NoSuchBatch:
            continue  # it expired this moment
    raise InUse(what="name", name=asked.options.name)


def _standing(asked: SubmitPlan) -> BatchView | None:
    session, name = asked.session, asked.options.name
    assert name is not None
    signer = session.sealer.keyring.current.hex()
    found = session.ask(lambda broker: broker.named(name, signer))
    view = session.ask(lambda broker: broker.view(found)) if found else None
    return None if view is None or view.expired else view


def _set_aside(asked: SubmitPlan, view: BatchView) -> None:
    """The old one bears NAME@1 from now on, or the next number."""
    session, name = asked.session, asked.options.name
    assert name is not None
    signer = session.sealer.keyring.current.hex()
    for number in itertools.count(1):
        other = f"{name}@{number}"
        free = session.ask(Broker.named, other, signer) is None
        if free and session.ask(Broker.rename, view.id, name, other):
            return


class Reattach:
    """A submission under the name of a batch that is there."""

    def __init__(self, asked: SubmitPlan, view: BatchView) -> None:
        self._asked, self._view, self._session = asked, view, asked.session
        self._spec = find.spec_of(self._session, view)
        self._new: list[int] = []  # calls that no job has the arguments of
        self._first = view.n  # where these go
        self._replaced: tuple[bytes, bytes] | None = None  # the function and the description that it has from now on
        self._anew = 0  # jobs that run again, with that function

    def run(self) -> BatchRef:
        """Raises Changed, and InUse where another session extends the batch at this moment."""
        asked = self._asked
        if asked.source is not None:
            return self._following(asked.source)
        payloads = asked.packed()
        assert asked.marks is not None
        asked.marks.salt = self._spec.salt or asked.spec.salt
        told = self._changes()
        doubts = [f"item {index} cannot be compared ({why})" for index, why in asked.marks.doubts[:1]]
        if (told or doubts) and not asked.options.update:
            raise self._changed([*told, *doubts])
        if asked.single:
            return self._single(told)
        rows = self._rows()
        spec = self._update(rows) if told else self._spec
        state = self._new_state(spec, rows, payloads)
        known = state.followed
        if self._replaced is not None:
            self._session.spool.add_function(state, *self._replaced)
        batch = self._batch(state, spec, self._updated(len(rows)) if told else self._found(state))
        if not known:
            spooled.resume(batch, self._view)
        self._look_at(state, rows)
        if self._new:
            self._extend(state, [payloads[place] for place in self._new])
        self._session.collector.follow(state)
        return batch

    # ------------------------------------------------------------ what is the same

    def _changes(self) -> list[str]:
        asked, view = self._asked, self._view
        source = "" if asked.source is None else asked.source.id
        if view.single != asked.single or view.source != source:
            kind = f"on the results of {view.source}" if view.source else "of items"
            raise self._changed([f"it is {'a single job' if view.single else 'a batch'} {kind}"])
        sealed = self._session.ask(lambda broker: broker.function(view.id))
        if sealed is None:
            raise NoSuchBatch(name=view.id, server=self._session.server)
        payload = self._session.sealer.unseal(wire.FUNCTION, view.id, -1, sealed)
        record = decode(FunctionRecord, payload, "A function")
        return function_diff.differences(record, asked.function.record, self._spec.seed, asked.options.seed)

    def _changed(self, told: list[str]) -> Changed:
        return Changed(name=self._asked.options.name, batch=self._view.id, what="; ".join(told))

    def _single(self, told: list[str]) -> BatchRef:
        assert self._asked.marks is not None
        stored = self._session.ask(lambda broker: broker.marks(self._view.id))
        if told or self._asked.marks.match(stored, 1) != [0]:
            raise self._changed(told or ["the arguments of this single job changed"])
        batch = find.handle(self._session, self._view)
        batch.function, batch.shown_in = self._asked.function.call, None
        self._session.collector.follow(batch.state)
        return batch

    def _following(self, source: BatchRef) -> BatchRef:
        """What runs on the results of another: it has no arguments of its own to compare."""
        told = self._changes()
        if told and not self._asked.options.update:
            raise self._changed(told)
        if told and self._view.open:
            self._await_upload()
        batch = find.handle(self._session, self._view)
        rows: Sequence[int] = range(self._view.n) if source.state.rows is None else source.state.rows
        if told:
            self._first = self._view.n
            batch.spec = self._update(rows)
        if self._replaced is not None:
            self._session.spool.add_function(batch.state, *self._replaced)
        if source.state.rows is not None:
            state = Selection(batch.id, batch.queue, "", batch.spec, source.state.rows, whole=self._view.tally)
            state.shares(find.handle(self._session, self._view).state)
            batch.state = state
        batch.source, batch.function, batch.shown_in = source, self._asked.function.call, kernel.cell()
        batch.note = self._updated(len(rows)) if told else "reattached to the existing batch; nothing new runs"
        self._session.collector.follow(batch.state)
        return batch

    def _rows(self) -> list[int]:
        """The index of each call in the batch; those of new calls are behind its end."""
        asked, ask = self._asked, self._session.ask
        assert asked.marks is not None
        while True:
            stored = ask(lambda broker: broker.marks(self._view.id))
            found = asked.marks.match(stored, self._view.n)
            self._new = [place for place, index in enumerate(found) if index is None]
            if not self._new or not self._view.open:
                break
            self._await_upload()
        self._first = self._view.n
        ends = iter(range(self._first, self._first + len(self._new)))
        return [next(ends) if index is None else index for index in found]

    def _await_upload(self) -> None:
        """Another session, or a thread of this one, is sending arguments: what follows them must wait for their end."""
        tell(f"nbqueue: {self._asked.options.name!r} is still being uploaded; waiting for the upload to finish.")
        pause = threading.Event()
        while self._view.open:
            pause.wait(LOOK)
            self._session.ask(lambda broker: broker.promote())  # where no worker is, nobody else closes what lapsed
            view = self._session.ask(lambda broker: broker.view(self._view.id))
            if view is None:
                raise NoSuchBatch(name=self._view.id, server=self._session.server)
            self._view = view

    # ------------------------------------------------------------ what changes

    def _update(self, rows: Iterable[int]) -> Spec:
        """Another function for all that has not finished; what has is kept. Answers the description that it has then.

        Where nothing is left to run, all stays as it is: else old results would pass for those of the new function.
        """
        asked, view, sealer, ask = self._asked, self._view, self._session.sealer, self._session.ask
        old = [row for row in rows if row < self._first]
        seen = self._unfinished(old)
        if not seen and not self._new:
            return self._spec
        if not view.done:
            ask(lambda broker: broker.cancel(view.id))
            seen = self._unfinished(old)
        self._anew = len(seen)
        seed = self._spec.seed if asked.options.seed is None else asked.options.seed
        kept = {"salt": self._spec.salt or asked.spec.salt, "restored": self._spec.restored}
        spec = msgspec.structs.replace(asked.spec, seed=seed, **kept)
        record = asked.function.record
        changes: dict[str, Any] = {"key": record.key, "signer": sealer.keyring.current.hex()}
        changes |= {"python": record.python, "host": record.host, "nonce": new_id("update", 12)}
        changes["function"] = sealer.seal(wire.FUNCTION, view.id, -1, encode(record))
        changes["spec"] = sealer.seal(wire.SPEC, view.id, -1, encode(spec))
        ask(lambda broker: broker.retry(view.id, seen, **changes))
        self._replaced = changes["function"], changes["spec"]
        return spec

    def _unfinished(self, rows: list[int]) -> list[tuple[int, int]]:
        """Those of these jobs that have not finished, and in which attempt they are."""
        ask, name = self._session.ask, self._view.id
        each = zip(rows, ask(Broker.states, name, rows), ask(Broker.attempts, name, rows), strict=True)
        return [(row, attempt) for row, state, attempt in each if state is not State.FINISHED]

    def _updated(self, n: int) -> str:
        """What `update=True` does, in words: rows of two functions must not look like those of one."""
        running = self._anew + len(self._new)
        kept = counted(n - running, "finished row")
        if not running:
            return f"kept {kept} of the earlier function; nothing new runs. fresh=True: run all jobs again"
        return f"kept {kept} of the earlier function, running {running:,} with the new one"

    def _new_state(self, spec: Spec, rows: list[int], payloads: list[bytes]) -> Selection:
        view, most = self._view, self._asked.options.max_failed
        if (known := self._known(spec, rows)) is not None:
            return known
        epoch = self._session.ask(lambda broker: broker.epoch())
        whole = msgspec.structs.replace(view.tally, n=self._first + len(self._new))
        state = Selection(
            view.id, view.queue, epoch, spec, argument_hashes.shortened(rows), whole=whole, max_failed=most
        )
        state.shares(find.handle(self._session, view).state)
        state.arguments.named = payloads if sum(map(len, payloads)) <= KEPT_ARGUMENTS else None
        state.count(Tally(n=len(rows), queued=len(rows)) if state.others or self._new else view.tally)
        return state

    def _known(self, spec: Spec, rows: list[int]) -> Selection | None:
        """What this session knows of these very jobs by another handle."""
        if self._new or self._replaced is not None:
            return None
        parts = (each for each in find.known(self._session, self._view, spec) if isinstance(each, Selection))
        return next((each for each in parts if list(each.rows) == rows), None)

    def _look_at(self, state: Selection, rows: list[int]) -> None:
        """Reads the ends of a few jobs where there are others, since the counts of the whole say nothing of these."""
        asked = [row for row in rows if row not in state.outcomes]
        if state.others and len(asked) <= FEW:
            blobs = self._session.ask(lambda broker: broker.outcomes(state.batch, asked))
            for row, blob in zip(asked, blobs, strict=True):
                if blob is not None:
                    state.keep(row, blob)

    def _found(self, state: Selection) -> str:
        """What became of the call, in words, where nothing has changed."""
        told = f"{state.n - len(self._new):,} of {state.n:,} jobs reused"
        told += f"; {len(self._new):,} are new" if self._new else "; nothing new runs"
        open_ = 0 if state.others or self._new else self._view.tally.n - self._view.tally.over
        return told + (f"; {open_:,} of them not ended yet" if open_ else "")

    def _batch(self, state: Selection, spec: Spec, told: str) -> BatchRef:
        asked = self._asked
        mine = {name: getattr(asked.spec, name) for name in ("columns", "labeled", "index_names")}
        own = msgspec.structs.replace(spec, **mine)
        call, name = asked.function.call, asked.options.name
        batch: BatchRef = BatchRef(self._session, state, own, name=name, function=call)
        batch.hooks = asked.function.record.hooks
        batch.note = told
        other = [limit for limit in LIMITS if self._wish(limit) != _limit(spec, self._view, limit)]
        if other:
            batch.note += f". It keeps its own {', '.join(other)}: batch.retry(...) takes others"
        return batch

    def _wish(self, limit: str) -> Any:
        options = self._asked.options
        return spill_folder(options, self._session) if limit == "spill" else getattr(options, limit)

    def _extend(self, state: Selection, payloads: list[bytes]) -> None:
        """Sends the new calls. The first part is taken, or the end of the batch has become another's."""
        asked, session, first = self._asked, self._session, self._first
        assert asked.marks is not None
        begun, start = time.monotonic(), first
        sealed = []
        for part in upload.parts(payloads):
            sealed.append(session.sealer.seal_all(wire.ARGUMENTS, state.batch, start, part))
            start += len(part)
        own = b"".join(asked.marks.of(place) for place in self._new)
        last, name = len(sealed) < 2, state.batch
        session.ask(lambda broker: broker.extend(name, first, sealed[0], nonce=asked.nonce, last=last, marks=own))
        start = first
        for run in sealed:
            session.spool.add_arguments(state, start, run)
            session.spool.add_hashes(state, start, own[upload.MARK * (start - first) :][: upload.MARK * len(run)])
            start += len(run)
        upload.send_parts(session, state, sealed, asked.nonce, begun, first=first, marks=own)


def _limit(spec: Spec, view: BatchView, limit: str) -> Any:
    return view.queue if limit == "queue" else getattr(spec, limit)
