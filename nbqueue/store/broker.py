"""The verbs of the store: each is one Lua script, one method, one test file, and idempotent.

redis-py sends a command again when its reply is lost, so every verb names what it has seen (a nonce, a claim token, an
attempt) and answers a repeat as it answered the first time. Redis's clock is the only one.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any, Literal

from nbqueue.checks import check_name, check_queue, check_title
from nbqueue.errors import BadInput, Damaged, LeaseEnded, NoSuchBatch
from nbqueue.model import BEAT, LEASE, MAX_LOSSES, Rerun, State
from nbqueue.store.door import FIELDS, loads_of, parts
from nbqueue.store.reads import Reads
from nbqueue.store.records import LETTER, Claimed, Fitness, Grant, Held, Lease, Reaped, Renewed, Settled
from nbqueue.store.scripts import Argument
from nbqueue.store.uploads import Uploads


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


class Broker(Uploads, Reads):
    """All that may be done to one namespace on one server. Raises NoServer, WrongPassword, ServerRefused anywhere."""

    # ---------------------------------------------------------------- workers

    def join(
        self,
        worker: str,
        info: bytes,
        queues: Sequence[str],
        slots: int,
        *,
        lease: float = LEASE,
        beat: float = BEAT,
        host: str = "",
    ) -> int:
        """Enters a worker and answers Redis's time in us. Raises LeaseEnded for an id that was given up before."""
        check_name("worker", worker)
        for queue in queues:
            check_queue("queue", queue)
        if slots < 1 or not queues:
            raise BadInput(message="A worker needs at least one slot and one queue.")
        now = self._run("join", worker, info, slots, _ms(lease), _ms(beat), secrets.token_hex(8), host, *queues)
        if now < 0:
            raise LeaseEnded(worker=worker)
        return int(now)

    def leave(self, worker: str, *, burst: bool = False) -> bool:
        """A worker goes; what it still holds goes back. With `burst`, False while it may be needed."""
        while (answer := self._run("leave", worker, int(burst))) == 2:
            burst = False
        return bool(answer)

    def claim(
        self, worker: str, token: str, queues: Sequence[str], *, free: int, want: int, fit: Fitness, more: str = ""
    ) -> Claimed:
        """Takes up to `want` jobs (1,000 and 4 MB at most) for a worker with `free` slots.

        `token` is "<worker>:<counter>"; the same one again is answered again. `more` is that of the answer before, if
        it had any: this claim goes on from there. Raises LeaseEnded.
        """
        if token.rpartition(":")[0] != worker:
            raise BadInput(message=f"The claim token {token!r} must be '{worker}:<counter>'.")
        arguments = (worker, token, free, want, fit.python, fit.host, " ".join(fit.keys), " ".join(fit.unfit))
        answer = self._run("claim", *arguments, more, *queues)
        if answer[0] != b"OK":
            raise LeaseEnded(worker=worker)
        _, now, grants, counts, due, suspended, left, more_after = answer
        skipped = {_text(counts[i]): int(counts[i + 1]) for i in range(0, len(counts), 2)}
        given = [_grant(token, *grant) for grant in grants]
        return Claimed(now, given, skipped, _seconds(due), bool(suspended), bool(left), _text(more_after))

    def renew(self, worker: str, begun: Sequence[Lease] = (), *, lease: float = LEASE, work: str = "") -> Renewed:
        """The heartbeat; `begun` are leases to ask about, `work` is for `work_of`. Raises LeaseEnded."""
        now, held, fallen = 0, 0, []
        for start in range(0, max(1, len(begun)), FIELDS):
            asked = begun[start : start + FIELDS]
            flat: list[Argument] = [fact for one in asked for fact in one]
            answer = self._run("renew", worker, _ms(lease), work, *flat)
            if answer == -1:
                raise LeaseEnded(worker=worker)
            now, held = answer[0], answer[2]
            fallen += [asked[place] for place in answer[1]]
        return Renewed(now, fallen, held)

    def settle(self, worker: str, settled: Sequence[Settled]) -> list[str]:
        """Writes outcomes; answers "OK", "DUP" (it stands already) or "STALE" (another claim has it), in order.

        "AGAIN": the run has ended, but the job has not: it runs once more, at once or later. "DAMAGED": the keys of
        its batch are not as they were written, and take no outcome.
        """
        places: dict[str, list[int]] = {}
        for place, one in enumerate(settled):
            places.setdefault(one.batch, []).append(place)
        calls: list[list[Argument]] = []
        owners: list[Sequence[int]] = []
        for batch, group in places.items():
            for run in parts(group, (len(settled[place].blob) + len(settled[place].tail) for place in group)):
                call: list[Argument] = [worker, batch]
                for place in run:
                    _, index, token, state, blob, tail, rerun, rest = settled[place]
                    more = rest if state is State.FINISHED else rerun if state is State.FAILED else None
                    call += (index, token, LETTER[state], blob, tail, _rerun(more) if more else "")
                calls.append(call)
                owners.append(run)
        answers = [""] * len(settled)
        answered = (answer for load in loads_of(calls) for answer in self._run_many("settle", load, each=True))
        for run, answer in zip(owners, answered, strict=True):
            words = [b"DAMAGED"] * len(run) if isinstance(answer, Damaged) else answer
            for place, word in zip(run, words, strict=True):
                answers[place] = word.decode()
        return answers

    def release(
        self,
        worker: str,
        leases: Sequence[Lease],
        *,
        begun: frozenset[Lease] = frozenset(),
        unfit: bool = False,
        patience: float = 0.0,
    ) -> bool:
        """Gives jobs back, uncharged; the run of those in `begun` is counted.

        With `unfit` their function could not be loaded. True: every living worker of the queue has said so, for at
        least `patience` seconds, nothing was released, and the caller settles them as failed.
        """
        refused, lasting = False, round(patience * 1000) if unfit else -1
        for start in range(0, len(leases), FIELDS):
            flat: list[Argument] = []
            for one in leases[start : start + FIELDS]:
                flat += (*one, int(one in begun))
            refused = bool(self._run("release", worker, lasting, *flat)) or refused
        return refused

    # ---------------------------------------------------------------- batches

    def retry(
        self,
        batch_id: str,
        rows: Sequence[tuple[int, int]],
        *,
        nonce: str,
        function: bytes | None = None,
        key: str | None = None,
        spec: bytes | None = None,
        signer: str | None = None,
        python: str | None = None,
        host: str | None = None,
        queue: str | None = None,
        front: bool = False,
    ) -> int:
        """Withdraws outcomes (rows = index and the attempt seen); answers how many run again, before others if `front`.

        `queue` moves a done batch there, `function` is another one for a done batch. Raises NoSuchBatch; BadInput where
        it still runs.
        """
        check_name("nonce", nonce)
        kept: list[Argument] = [each or "" for each in (function, key, spec, signer, python, host)]
        number = 0
        for start in range(0, max(1, len(rows)), FIELDS):
            flat = [fact for row in rows[start : start + FIELDS] for fact in row]
            answer = self._run_on("retry", batch_id, f"{nonce}.{start}", *kept, queue or "", int(front), *flat)
            if answer == -2:
                raise BadInput(
                    message=f"{batch_id} is still running, and running jobs cannot change: wait() for it, or cancel() "
                    "it first."
                )
            if answer < 0:
                raise NoSuchBatch(name=batch_id, server=self.url)
            number += answer
            if answer:
                kept = [""] * 6  # the script has written them, and by now the batch runs
        return number

    def cancel(self, batch_id: str, rows: Sequence[int] | None = None, *, running: bool = True) -> int:
        """Cancels a batch, or rows of it; answers how many this call ended. Raises NoSuchBatch.

        The rows 0 to n - 1 of a batch that has no others are canceled as the whole, in one script.
        """
        all_of = -1 if rows is None else len(rows) if isinstance(rows, range) and rows == range(len(rows)) else 0
        number, more = 0, int(all_of != 0)
        while more:
            answer = self._run_on("cancel", batch_id, all_of, int(running), 0)
            if answer == -2:
                return number + self.cancel(batch_id, list(rows or ()), running=running)  # it has grown
            number, more = self._canceled(batch_id, number, answer)
        for chosen in () if all_of else _runs(rows or ()):
            answer = self._run_on("cancel", batch_id, 0, int(running), 0, *chosen)
            number, _ = self._canceled(batch_id, number, answer)
        return number

    def cancel_alone(self, batch_id: str, index: int, *, running: bool = True) -> int:
        """Cancels one job, and lets what depends on it run all the same, also where it has failed before.

        Raises NoSuchBatch.
        """
        number, more = 0, 1
        while more:
            answer = self._run_on("cancel", batch_id, 0, int(running), 1, index)
            number, more = self._canceled(batch_id, number, answer)
        return number

    def _canceled(self, batch_id: str, number: int, answer: Any) -> tuple[int, int]:
        if answer == -1:
            raise NoSuchBatch(name=batch_id, server=self.url)
        return number + answer[0], answer[1]

    def cancel_many(self, ids: Sequence[str], *, running: bool = True) -> int:
        """As cancel, of many whole batches, 1,000 in a round trip; one that is not there counts for nothing."""
        number = 0
        for start in range(0, len(ids), FIELDS):
            part = ids[start : start + FIELDS]
            answers = self._run_many("cancel", [[each, -1, int(running), 0] for each in part], each=True)
            for batch, answer in zip(part, answers, strict=True):
                if answer != -1 and not isinstance(answer, Damaged):
                    number += answer[0] + (self.cancel(batch, running=running) if answer[1] else 0)
        return number

    def save(
        self,
        batch_id: str,
        index: int,
        data: bytes,
        token: str | None = None,
        *,
        what: Literal["meta", "echo"] = "meta",
    ) -> bool:
        """Writes a job's sealed meta or echoes; with a token, only while that claim holds the job.

        False also where the keys of the batch are not as they were written, and take none.
        """
        if index < 0:
            return False
        (answer,) = self._run_many("save", [[batch_id, index, data, token or "", what]], each=True)
        return bool(answer) and not isinstance(answer, Damaged)

    def rename(self, batch_id: str, was: str, name: str) -> bool:
        """A batch named `was` bears another name from now on; False if that is in use. Raises NoSuchBatch."""
        answer = self._run_on("rename", batch_id, was, check_title("name", name))
        if answer < 0:
            raise NoSuchBatch(name=batch_id, server=self.url)
        return bool(answer)

    def forget(self, batch_id: str) -> bool:
        """Removes a done batch and every key of it; False if it still runs."""
        return bool(self._run_on("forget", batch_id))

    # ---------------------------------------------------------------- what anyone may do at any time

    def reap(self, *, max_losses: int = MAX_LOSSES, seconds: float = math.inf) -> Reaped:
        """Takes the jobs of workers whose leases have ended, and hands them out again.

        After so many `seconds` it stops, and says whether there is `more`.
        """
        workers: dict[str, None] = {}
        jobs = lost = 0
        more, waiting = 1, 0
        until = time.monotonic() + seconds
        while more:
            worker, some, gone, waiting, more = self._run("reap", max_losses)
            if worker:
                workers[_text(worker)] = None
            jobs, lost = jobs + some, lost + gone
            if time.monotonic() >= until:
                break
        return Reaped(list(workers), jobs, lost, bool(waiting), bool(more))

    def promote(self, *, seconds: float = math.inf) -> float | None:
        """Does what is due; answers the seconds until the next due thing, None if there is none.

        After so many `seconds` it stops, and answers 0 if there is more.
        """
        until = time.monotonic() + seconds
        done, nearest = self._run("promote")
        while done and time.monotonic() < until:
            done, nearest = self._run("promote")
        return _seconds(nearest)

    def suspend(self, seconds: float | None = None) -> None:
        """From now on no worker is given work, for so long or until resume; what runs goes on."""
        if seconds is not None and seconds <= 0:
            raise BadInput(message=f"suspend({seconds!r}): give a time over 0 seconds, or none.")
        self._run("suspend", "" if seconds is None else _ms(seconds))

    def resume(self) -> None:
        """Work is given out again."""
        self._run("resume")

    def post(self, worker: str, message: bytes) -> bool:
        """Puts a message into a worker's mail, once; False if no such worker lives."""
        return bool(self._run("post", worker, message))


def _text(name: bytes) -> str:
    """What should be a name of ours, and is shown as it can be where it is not: then nothing is signed for it."""
    return name.decode("utf-8", "replace")


def _number(text: bytes | None) -> int:
    return int(text) if text and text.isdigit() else 0


def _seconds(us: int) -> float | None:
    return None if us < 0 else us / 1e6


def _rerun(rerun: Rerun) -> str:
    """As settle.lua reads it: "<times> <1 if at the front> <seconds before each further run>"."""
    return f"{rerun.times} {int(rerun.front)} {','.join(map(str, rerun.intervals)) or 0}"


def _runs(rows: Sequence[int]) -> Iterable[Sequence[int]]:
    valid = [row for row in rows if row >= 0]
    return [valid[start : start + FIELDS] for start in range(0, max(1, len(valid)), FIELDS)]


def _grant(
    token: str,
    batch: bytes,
    queue: bytes,
    spec: bytes | None,
    key: bytes | None,
    indexes: list[int],
    payloads: list[bytes | None],
    attempts: list[int],
    solos: list[int],
    source: bytes,
    metas: list[bytes | None],
    used: list[list[bytes | None]],
) -> Grant:
    # Arguments that someone removed come as None: empty bytes carry no signature, so that job alone will fail.
    rows = zip(
        indexes,
        attempts or repeat(1),
        payloads,
        solos or repeat(0),
        metas or repeat(None),
        *(map(_number, each) for each in used or (repeat(None), repeat(None))),
        strict=False,
    )
    jobs = [
        Held(index, attempt, args or b"", bool(solo), meta or b"", *spent)
        for index, attempt, args, solo, meta, *spent in rows
    ]
    return Grant(_text(batch), _text(queue), spec or b"", _text(key or b""), token, jobs, _text(source))
