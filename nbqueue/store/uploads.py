"""Submit, extend and restore: a batch arrives in parts, of which each may be sent again."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from nbqueue.checks import YEAR, check_name, check_queue, check_title
from nbqueue.errors import BadInput, Damaged, InUse, NoSuchBatch, NoSuchDependency, TooManyOpen
from nbqueue.model import State
from nbqueue.store.door import FIELDS, Door, loads_of, parts
from nbqueue.store.records import Need, NewBatch, Submitted
from nbqueue.store.scripts import Argument

MARK = 16  # bytes of the mark of a job


def _lifetime(seconds: float) -> float:
    return YEAR if seconds < 0 else min(seconds, 100 * YEAR)


class Uploads(Door):
    """The verbs that bring work, the only ones that a full server refuses."""

    def submit(self, batch: NewBatch, args: Sequence[bytes], *, last: bool, marks: bytes = b"") -> Submitted:
        """Makes a batch of any number of arguments; not `last`: more will come by extend. `marks`: 16 bytes for each.

        Raises InUse, TooManyOpen, and NoSuchDependency if something that it needs is not there: then it is not made.
        """
        _check(batch, args, last=last)
        runs = list(parts(args, map(len, args))) or [()]
        only = last and len(runs) == 1
        submitted = self._submitted(batch, self._run_on("submit", *_facts(batch, runs[0], last=only, marks=marks)))
        if len(runs) > 1:
            rest = args[len(runs[0]) :]
            left = marks[MARK * len(runs[0]) :]
            self.extend(batch.id, len(runs[0]), rest, nonce=batch.nonce, last=last, marks=left)
            return submitted._replace(n=len(args))
        return submitted

    def submit_many(self, batches: Sequence[tuple[NewBatch, bytes]]) -> list[Submitted]:
        """Many batches of one, with their arguments, 1,000 or 4 MB in a round trip and in order.

        All are sent; then the first refusal is raised, as submit does.
        """
        for batch, args in batches:
            _check(batch, [args], last=True)
        calls = [list(_facts(batch, [args], last=True)) for batch, args in batches]
        answers = [answer for load in loads_of(calls) for answer in self._run_many("submit", load)]
        return [self._submitted(batch, answer) for (batch, _), answer in zip(batches, answers, strict=True)]

    def _submitted(self, batch: NewBatch, answer: list[Any]) -> Submitted:
        word, *facts = answer
        if word == b"OK":
            epoch, state, n = facts
            return Submitted(epoch.decode("utf-8", "replace"), State(state.decode()), n)
        if word == b"NEED":
            raise NoSuchDependency(name=facts[0].decode("utf-8", "replace"), server=self.url)
        if word == b"FULL":
            raise TooManyOpen(queue=batch.queue, limit=batch.max_open, server=self.url)
        what = word.decode()
        raise InUse(what=what, name=batch.name if what == "name" else batch.id)

    def extend(
        self, batch_id: str, start: int, args: Sequence[bytes], *, nonce: str, last: bool, marks: bytes = b""
    ) -> bool:
        """Adds arguments from index `start` on; False: the batch was canceled, stop.

        Without arguments it renews the upload's lease of 30 s. Another nonce takes over a batch that is closed, at its
        end. Raises InUse, NoSuchBatch, and BadInput if `start` leaves a gap.
        """
        runs = list(parts(args, map(len, args))) or [()]
        calls: list[list[Argument]] = []
        place = start
        for number, run in enumerate(runs, 1):
            own = _marks(marks, place - start, run)
            calls.append([batch_id, place, nonce, int(last and number == len(runs)), _longest(run), own, *run])
            place += len(run)
        for load in loads_of(calls):
            for call, first in zip(load, self._run_many("extend", load, each=True), strict=True):
                if isinstance(first, Damaged):
                    raise first
                # A server that lost its scripts in between runs the parts out of order: the later one goes again.
                answer = self._run_on("extend", *call) if first == b"GAP" else first
                if answer == b"CANCELED":
                    return False
                if answer != b"OK":
                    raise self._refusal(answer, batch_id, start)
        return True

    def restore(
        self,
        batch_id: str,
        start: int,
        jobs: Sequence[tuple[bytes, bytes]],
        *,
        nonce: str,
        last: bool,
        created_us: int,
        marks: bytes = b"",
    ) -> bool:
        """Brings jobs of a forgotten batch back, into an upload that was submitted without any; False: canceled, stop.

        `jobs`: sealed arguments and the outcome as it was stored, from index `start` on; empty: not there. What has no
        outcome is queued. Raises InUse, NoSuchBatch, and BadInput if `start` leaves a gap.
        """
        place = start
        runs = list(parts(jobs, (len(args) + len(blob) for args, blob in jobs))) or [()]
        for number, run in enumerate(runs, 1):
            longest = max((len(args) for args, _ in run), default=0)
            own = marks[MARK * (place - start) : MARK * (place - start + len(run))]
            facts = (batch_id, place, nonce, int(last and number == len(runs)), created_us, longest, own)
            answer = self._run_on("restore", *facts, *(each for pair in run for each in pair))
            if answer == b"CANCELED":
                return False
            if answer != b"OK":
                raise self._refusal(answer, batch_id, start)
            place += len(run)
        return True

    def _refusal(self, answer: bytes, batch_id: str, start: int) -> Exception:
        if answer == b"NONE":
            return NoSuchBatch(name=batch_id, server=self.url)
        if answer == b"INUSE":
            return InUse(what="batch", name=batch_id)
        return BadInput(message=f"Arguments of {batch_id} from {start} on would leave a gap.")


def _longest(args: Sequence[bytes]) -> int:
    return max(map(len, args), default=0)


def _marks(marks: bytes, first: int, args: Sequence[bytes]) -> bytes:
    return marks[MARK * first : MARK * (first + len(args))]


def _facts(batch: NewBatch, args: Sequence[bytes], *, last: bool, marks: bytes = b"") -> list[Argument]:
    return [
        batch.id,
        batch.queue,
        batch.session,
        batch.name or "",
        batch.nonce,
        batch.spec,
        batch.function,
        batch.key,
        batch.signer,
        batch.python,
        batch.host,
        _lifetime(batch.result_ttl),
        _lifetime(batch.failure_ttl),
        "" if batch.ttl is None else batch.ttl,
        int(batch.at_front),
        int(batch.single),
        secrets.token_hex(8),
        int(last),
        _longest(args),
        "" if batch.due_us is None else batch.due_us,
        "" if batch.delay is None else round(batch.delay * 1e6),
        batch.source,
        batch.meta,
        _marks(marks, 0, args),
        batch.max_open,
        len(batch.needs),
        *(_need(need) for need in batch.needs),
        *args,
    ]


def _need(need: Need) -> str:
    """As the scripts write it: "<index or *>:<1 if failure is allowed>:<batch>"."""
    return f"{'*' if need.index is None else need.index}:{int(need.allow_failure)}:{need.batch}"


def _check(batch: NewBatch, args: Sequence[bytes], *, last: bool) -> None:
    """What becomes part of a key, or of a list of words in a script, is checked here once more."""
    check_queue("queue", batch.queue)
    named = {"id": batch.id, "session": batch.session, "nonce": batch.nonce}
    named |= {"key": batch.key, "signer": batch.signer, "host": batch.host}
    for what, name in named.items():
        check_name(what, name)
    if batch.name is not None:
        check_title("name", batch.name)
    if batch.single and (len(args) != (not batch.source) or not last):
        raise BadInput(message="A single batch has one job, sent at once.")
    if batch.source and args:
        raise BadInput(message=f"The arguments of {batch.id} are the results of {batch.source}: it takes no others.")
    if batch.meta and not batch.single:
        raise BadInput(message="Only a single batch comes with a meta.")
    if len(batch.needs) > FIELDS:
        raise BadInput(message=f"A batch can depend on {FIELDS:,} others at most; let it depend on whole batches.")
    for need in batch.needs:
        check_name("id of a batch to depend on", need.batch)
        if need.index is not None and need.index < 0:
            raise BadInput(message=f"There is no job {need.index} to depend on.")
    if batch.source:
        check_name("source", batch.source)
