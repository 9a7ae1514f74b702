"""What may be read: one round trip a read (the listings take two), and nothing is changed or unpickled."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

from nbqueue.checks import is_name
from nbqueue.model import Cause, State, Tally
from nbqueue.store.door import Door
from nbqueue.store.records import BatchView, Stored

_LITE = ("queue", "n", "open", "cut", "canceled", "nrun", "nfin", "nfail", "ncan", "done", "exp", "cuts")
_FULL = (*_LITE, "created", "spec", "key", "signer", "session", "name", "single", "nonce")
_COUNTS = ("n", "nrun", "nfin", "nfail", "ncan")
_CUT = re.compile(r"(\d+)-(\d+)-(\w+)")


class Progress(NamedTuple):
    """What follow tells of a batch."""

    id: str
    n: int
    open: bool
    cut: bool
    tally: Tally
    done_us: int | None
    expires_us: int | None
    expired: bool
    cuts: tuple[tuple[int, int, Cause], ...]

    @property
    def done(self) -> bool:
        """Whether every job has an outcome and no more can arrive."""
        return self.done_us is not None


class WorkerView(NamedTuple):
    """A worker: its encoded WorkerInfo, the seconds of lease left (negative: overdue), how many jobs it holds."""

    info: bytes
    left: float
    held: int


class Reads(Door):
    """The reads of one namespace. A batch that is not there is None."""

    def now_us(self) -> int:
        """Redis's clock, in microseconds since the epoch."""
        return _us(self._read([("TIME",)])[0])

    def epoch(self) -> str:
        """A random id of this server's life: another one means that it forgot everything."""
        key = self.keys.at("epoch")
        fresh = secrets.token_hex(8)
        return str(self._read([("SET", key, fresh, "NX"), ("GET", key)])[1].decode())

    # ---------------------------------------------------------------- batches

    def view(self, batch_id: str) -> BatchView | None:
        """What there is to know of a batch."""
        return self.views([batch_id])[0]

    def views(self, ids: Sequence[str]) -> list[BatchView | None]:
        """As view, of many."""
        commands: list[tuple[str, ...]] = [("TIME",)]
        for batch in ids:
            commands.append(("HMGET", self.keys.at("b", batch), *_FULL))
            commands.append(("LLEN", self.keys.part(batch, "log")))
        now, *answers = self._read(commands)
        rows = zip(ids, answers[::2], answers[1::2], strict=True)
        return [
            _view(batch, _us(now), values, length) if values[0] is not None else None for batch, values, length in rows
        ]

    def batches(self) -> list[BatchView]:
        """All batches that the server knows."""
        ids = self._read([("ZRANGE", self.keys.at("batches"), 0, -1)])[0]
        found: list[BatchView | None] = []
        for start in range(0, len(ids), 500):
            found += self.views([batch.decode() for batch in ids[start : start + 500]])
        return [view for view in found if view is not None]

    def named(self, name: str, signer: str | None = None) -> str | None:
        """The batch that bears this name: that of this signer, or of anyone."""
        found = self._read([("HGETALL", self.keys.at("name", name))])[0]
        if signer is not None:
            batch = found.get(signer.encode())
            return batch.decode() if batch else None
        return next((batch.decode() for batch in found.values()), None)

    def log(self, batch_id: str, position: int, count: int = 1000) -> list[bytes]:
        """Entries of the log from `position` on: b"17" ended, b"r17" withdrawn, b"c5-9" canceled from 5 to 8."""
        key = self.keys.part(batch_id, "log")
        return list(self._read([("LRANGE", key, position, position + count - 1)])[0])

    def session_log(self, session: str, position: int, count: int = 1000) -> list[bytes]:
        """Batches of one of this session in which something happened, from `position` on."""
        key = self.keys.at("log", session)
        return list(self._read([("LRANGE", key, position, position + count - 1)])[0])

    def follow(self, asked: Sequence[tuple[str, int]], count: int = 1000) -> list[tuple[Progress | None, list[bytes]]]:
        """Progress and log entries of many batches (id and log position), in one round trip."""
        commands: list[tuple[str | int, ...]] = [("TIME",)]
        for batch, position in asked:
            # The log after the counts: whatever they count as ended is in it.
            commands.append(("HMGET", self.keys.at("b", batch), *_LITE))
            commands.append(("LRANGE", self.keys.part(batch, "log"), position, position + count - 1))
        now, *answers = self._read(commands)
        rows = zip(asked, answers[::2], answers[1::2], strict=True)
        return [
            (_progress(batch, _us(now), values) if values[0] is not None else None, entries)
            for (batch, _), values, entries in rows
        ]

    # ---------------------------------------------------------------- jobs

    def outcomes(self, batch_id: str, indexes: Sequence[int]) -> list[bytes | None]:
        """The records in `out` (see Stored); None: it has none, or was canceled with a whole range."""
        return self._fields(batch_id, "out", indexes)

    def arguments(self, batch_id: str, indexes: Sequence[int]) -> list[bytes | None]:
        """The sealed arguments."""
        return self._fields(batch_id, "args", indexes)

    def tails(self, batch_id: str, indexes: Sequence[int]) -> list[bytes | None]:
        """The sealed ends of what jobs wrote to stdout and stderr."""
        return self._fields(batch_id, "tail", indexes)

    def metas(self, batch_id: str, indexes: Sequence[int]) -> list[bytes | None]:
        """The sealed metas."""
        return self._fields(batch_id, "meta", indexes)

    def pasts(self, batch_id: str, indexes: Sequence[int]) -> list[bytes | None]:
        """Withdrawn outcomes; `records.past` takes them apart."""
        return self._fields(batch_id, "past", indexes)

    def function(self, batch_id: str) -> bytes | None:
        """The sealed function."""
        found: bytes | None = self._read([("GET", self.keys.part(batch_id, "fn"))])[0]
        return found

    def failed(self, batch_id: str) -> list[int]:
        """The indexes of its failed jobs."""
        return sorted(int(index) for index in self._read([("SMEMBERS", self.keys.part(batch_id, "bad"))])[0])

    def states(self, batch_id: str, indexes: Sequence[int]) -> list[State | None]:
        """Where jobs are; None: there is no such job. Derived from the place in which each of them is."""
        if not indexes:
            return []
        commands = [("HMGET", self.keys.part(batch_id, part), *map(str, indexes)) for part in ("past", "run", "out")]
        # In this order a job that moves on meanwhile is seen in one of its places.
        whole, past, run, out = self._read([("HMGET", self.keys.at("b", batch_id), "n", "cuts"), *commands])
        n, cuts = int(whole[0] or 0), _cuts(whole[1])
        return [_state(index, n, cuts, *records) for index, *records in zip(indexes, out, run, past, strict=True)]

    def attempts(self, batch_id: str, indexes: Sequence[int]) -> list[int]:
        """How many runs each job has begun: as its outcome or its lease says; 0 for one that waits."""
        if not indexes:
            return []
        commands = [("HMGET", self.keys.part(batch_id, part), *map(str, indexes)) for part in ("run", "out")]
        run, out = self._read(commands)
        return [
            Stored.parse(blob).attempt if blob else int(lease.split()[1]) if lease else 0
            for blob, lease in zip(out, run, strict=True)
        ]

    def _fields(self, batch_id: str, part: str, indexes: Sequence[int]) -> list[bytes | None]:
        if not indexes:
            return []
        return list(self._read([("HMGET", self.keys.part(batch_id, part), *map(str, indexes))])[0])

    # ---------------------------------------------------------------- queues, workers, server

    def workers(self) -> list[WorkerView]:
        """All workers that were not given up."""
        now, pairs = self._read([("TIME",), ("ZRANGE", self.keys.at("workers"), 0, -1, "WITHSCORES")])
        ends = [(name.decode(), float(end)) for name, end in _pairs(pairs)]
        commands = [("HGET", self.keys.at("w", name), "info") for name, _ in ends]
        held = [("SCARD", self.keys.at("held", name)) for name, _ in ends]
        answers = self._read([*commands, *held]) if ends else []
        return [
            WorkerView(answers[place], (end * 1000 - _us(now)) / 1e6, answers[len(ends) + place])
            for place, (_, end) in enumerate(ends)
            if answers[place] is not None
        ]

    def queues(self) -> dict[str, Tally]:
        """All queues seen, with their counts over all batches that are kept."""
        found = self._read([("SMEMBERS", self.keys.at("queues"))])[0]
        # What someone else wrote there is no queue of ours.
        names = sorted(filter(is_name, (name.decode("utf-8", "replace") for name in found)))
        return dict(zip(names, self._tallies(names), strict=True))

    def _tallies(self, names: Sequence[str]) -> list[Tally]:
        words = ("queued", "started", "finished", "failed", "canceled")
        found = []
        for values in self._read([("HMGET", self.keys.at("tally", name), *words) for name in names]) if names else []:
            counts = {word: int(value or 0) for word, value in zip(words, values, strict=True)}
            found.append(Tally(n=sum(counts.values()), **counts))
        return found

    def length(self, queue: str) -> int:
        """How many jobs wait in a queue."""
        return int(self._read([("HGET", self.keys.at("tally", queue), "queued")])[0] or 0)

    def live_slots(self, queue: str) -> int:
        """The slots of the queue's workers whose leases stand."""
        slots, now, pairs = self._read(
            [
                ("HGETALL", self.keys.at("slots", queue)),
                ("TIME",),
                ("ZRANGE", self.keys.at("workers"), 0, -1, "WITHSCORES"),
            ]
        )
        living = {name for name, end in _pairs(pairs) if float(end) * 1000 > _us(now)}
        return sum(int(number) for worker, number in _mapping(slots).items() if worker in living)

    def client_count(self) -> int:
        """How many clients the server has, of whatever kind."""
        with self.connection.errors():
            return int(self.client.info("clients")["connected_clients"])

    def shutdown(self) -> None:
        """Ends the server program, its data saved: for the private server only."""
        with self.connection.errors():
            self.client.shutdown()


# ---------------------------------------------------------------- decoding


def _us(clock: Sequence[bytes | int]) -> int:
    return int(clock[0]) * 1_000_000 + int(clock[1])


def _pairs(answer: Sequence[object]) -> list[tuple[bytes, bytes | float]]:
    """ZRANGE ... WITHSCORES, which redis-py gives flat or in pairs, by version."""
    if answer and not isinstance(answer[0], bytes):
        return [(pair[0], pair[1]) for pair in answer]  # type: ignore[index]
    return list(zip(answer[::2], answer[1::2], strict=True))  # type: ignore[arg-type]


def _mapping(answer: dict[bytes, bytes] | list[bytes]) -> dict[bytes, bytes]:
    return answer if isinstance(answer, dict) else dict(zip(answer[::2], answer[1::2], strict=True))


def _cuts(text: bytes | None) -> tuple[tuple[int, int, Cause], ...]:
    return tuple((int(lo), int(hi), Cause(why)) for lo, hi, why in _CUT.findall((text or b"").decode()))


def _optional(value: bytes | None) -> int | None:
    return None if value is None else int(value)


def _progress(batch: str, now: int, values: Sequence[bytes | None]) -> Progress:
    fields = dict(zip(_LITE, values, strict=False))
    n, started, finished, failed, canceled = (int(fields[name] or 0) for name in _COUNTS)
    queued = n - started - finished - failed - canceled
    tally = Tally(n=n, queued=queued, started=started, finished=finished, failed=failed, canceled=canceled)
    expires = _optional(fields["exp"])
    return Progress(
        id=batch,
        n=n,
        open=fields["open"] == b"1",
        cut=fields["cut"] == b"1",
        tally=tally,
        done_us=_optional(fields["done"]),
        expires_us=expires,
        expired=expires is not None and expires <= now,
        cuts=_cuts(fields["cuts"]),
    )


def _view(batch: str, now: int, values: Sequence[bytes | None], log_length: int) -> BatchView:
    fields = dict(zip(_FULL, values, strict=True))
    facts: dict[str, Any] = _progress(batch, now, values)._asdict()
    facts |= {name: (fields[name] or b"").decode() for name in ("queue", "key", "signer", "session", "nonce")}
    name = fields["name"]
    return BatchView(
        **facts,
        canceled=fields["canceled"] == b"1",
        created_us=int(fields["created"] or 0),
        log_length=log_length,
        spec=fields["spec"] or b"",
        name=name.decode() if name else None,
        single=fields["single"] == b"1",
    )


def _state(
    index: int,
    n: int,
    cuts: tuple[tuple[int, int, Cause], ...],
    out: bytes | None,
    run: bytes | None,
    past: bytes | None,
) -> State | None:
    if not 0 <= index < n:
        return None
    if out is not None:
        return Stored.parse(out).state
    if run is not None:
        return State.STARTED
    if past is None and any(lo <= index < hi for lo, hi, _ in cuts):
        return State.CANCELED
    return State.QUEUED
