"""Reads of queues, workers and the server."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import NamedTuple

from nbqueue.checks import is_name, is_queue
from nbqueue.errors import Damaged
from nbqueue.model import State, Tally
from nbqueue.store import decoding
from nbqueue.store.decoding import FULL, us
from nbqueue.store.door import Door
from nbqueue.store.records import Lease, QueuedBatch


class WorkerView(NamedTuple):
    """A worker: its encoded WorkerInfo, the seconds of lease left (negative: overdue), how many jobs it holds."""

    info: bytes
    left: float
    held: int


class Roster(Door):
    """Who is there, and what waits."""

    def workers(self) -> list[WorkerView]:
        """All workers that were not given up."""
        now, ends = self._lease_ends()
        commands = [("HGET", self.keys.at("w", name), "info") for name, _ in ends]
        held = [("SCARD", self.keys.at("held", name)) for name, _ in ends]
        answers = self._read([*commands, *held], each=True) if ends else []
        rows = zip(answers[: len(ends)], answers[len(ends) :], ends, strict=True)
        return [
            WorkerView(b"" if isinstance(info, Damaged) else info, end - now, number)
            for info, number, (_, end) in rows
            if info is not None and not isinstance(number, Damaged)
        ]

    def _lease_ends(self) -> tuple[float, list[tuple[str, float]]]:
        """The server's time, and when the lease of each worker ends: none before the wait that follows an outage."""
        commands = ("TIME",), ("ZRANGE", self.keys.at("workers"), 0, -1, "WITHSCORES"), ("GET", self.keys.at("pulse"))
        now, pairs, pulse = self._read(commands)
        last = (pulse or b"").split()[-1:]
        until = int(last[0][:18]) / 1000 if last and last[0].isdigit() else 0.0
        ends = [(name, float(end) / 1000) for raw, end in decoding.pairs(pairs) for name in decoding.names([raw])]
        return us(now) / 1e6, [(name, max(end, until)) for name, end in ends]

    def held_by(self, worker: str) -> list[str]:
        """The ids of the jobs that a worker holds."""
        found = self._read([("SMEMBERS", self.keys.at("held", worker))])[0]
        jobs = sorted(job.decode("utf-8", "replace").rpartition(":") for job in found)
        asked = [("HGET", self.keys.at("b", batch), "single") for batch, _, _ in jobs]
        singles = self._read(asked, each=True) if jobs else []
        return [
            batch if single == b"1" else f"{batch}:{index}"
            for (batch, _, index), single in zip(jobs, singles, strict=True)
        ]

    def work_of(self, worker: str) -> tuple[int, int, float]:
        """What a worker has done until its last heartbeat: runs that finished, runs that failed, seconds of both."""
        (told,) = self._read([("HGET", self.keys.at("w", worker), "work")])
        try:
            finished, failed, seconds = (told or b"0 0 0").split()
            return int(finished), int(failed), float(seconds)
        except ValueError:
            return 0, 0, 0.0  # someone else wrote there

    def leases_of(self, worker: str) -> list[Lease]:
        """The jobs that stand in a worker's name; with an empty token those of which somebody else has the lease."""
        names = self._read([("SMEMBERS", self.keys.at("held", worker))])[0]
        jobs = [name.decode("utf-8", "replace").rpartition(":") for name in names]
        places = [(batch, int(index)) for batch, _, index in jobs if is_name(batch) and index.isdecimal()]
        asked = [("HGET", self.keys.part(batch, "run"), index) for batch, index in places]
        tokens = [
            lease.partition(b" ")[0].decode("utf-8", "replace") if isinstance(lease, bytes) else ""
            for lease in (self._read(asked, each=True) if asked else [])
        ]
        return [
            Lease(batch, index, token if token.rpartition(":")[0] == worker else "")
            for (batch, index), token in zip(places, tokens, strict=True)
        ]

    def queues(self) -> dict[str, Tally]:
        """All queues seen, with their counts over all batches that are kept."""
        found = self._read([("SMEMBERS", self.keys.at("queues"))])[0]
        # What someone else wrote there is no queue of ours.
        names = sorted(filter(is_queue, (name.decode("utf-8", "replace") for name in found)))
        return dict(zip(names, self._tallies(names), strict=True))

    def _tallies(self, names: Sequence[str]) -> list[Tally]:
        words = tuple(state.value for state in State)
        found = []
        for values in self._read([("HMGET", self.keys.at("tally", name), *words) for name in names]) if names else []:
            with decoding.sound("The tally of a queue"):
                counts = {word: decoding.number(value or b"0") for word, value in zip(words, values, strict=True)}
            found.append(Tally(n=sum(counts.values()), **counts))
        return found

    def length(self, queue: str) -> int:
        """How many jobs wait in a queue."""
        return self.standing(queue)[0]

    def standing(self, queue: str) -> tuple[int, bool]:
        """How many jobs wait in a queue, and whether something is overdue that may change that: see promote."""
        commands = [("TIME",), ("ZRANGE", self.keys.at("later"), 0, 0, "WITHSCORES")]
        now, first, count = self._read([*commands, ("HGET", self.keys.at("tally", queue), "queued")])
        overdue = any(float(at) <= us(now) for _, at in decoding.pairs(first))
        with decoding.sound(f"The tally of {queue}"):
            return max(0, decoding.number(count or b"0")), overdue

    def queued(self, queue: str) -> list[QueuedBatch]:
        """The batches that have jobs to hand out, in the order of claims, 1,000 in a round trip."""
        found: list[QueuedBatch] = []
        start, more = 0, 1
        while more:
            now, rows, start, more = self._run("queued", queue, start, *FULL)
            for batch, values, length, again, cursor, skip in rows:
                for name in decoding.names([batch]):
                    with contextlib.suppress(Damaged):  # said where that batch is asked for
                        view = decoding.view(name, now, values, length)
                        skipped = set(decoding.numbers(name, skip))
                        beyond = (index for index in range(cursor, view.n) if index not in skipped)
                        found.append(QueuedBatch(view, [*again, *beyond]))
        return found

    def suspended(self) -> float | None:
        """None, or the seconds until work is given out again: infinity if only resume does that."""
        left = int(self._read([("PTTL", self.keys.at("suspended"))])[0])
        return None if left == -2 else math.inf if left == -1 else left / 1000

    def live_slots(self, queue: str) -> int:
        """The slots of the queue's workers whose leases stand."""
        (slots,) = self._read([("HGETALL", self.keys.at("slots", queue))])
        now, ends = self._lease_ends()
        living = {name.encode() for name, end in ends if end > now}
        with decoding.sound(f"The slots of {queue}"):
            return sum(decoding.number(count) for worker, count in decoding.mapping(slots).items() if worker in living)

    def refusing(self, key: str) -> set[str]:
        """The workers that could not load a function within the last minute."""
        now, pairs = self._read([("TIME",), ("ZRANGE", self.keys.at("unfit", key), 0, -1, "WITHSCORES")])
        since = us(now) / 1000 - 60_000
        return {name.decode("utf-8", "replace") for name, at in decoding.pairs(pairs) if float(at) >= since}

    def place(self, batch_id: str) -> tuple[str, str]:
        """(Python version, host) from which a batch was submitted; empty where it is not there."""
        found = self._read([("HMGET", self.keys.at("b", batch_id), "python", "host")], each=True)[0]
        values = [None, None] if isinstance(found, Damaged) else found
        return tuple((value or b"").decode("utf-8", "replace") for value in values)  # type: ignore[return-value]

    def ttl(self, batch_id: str) -> float | None:
        """After how many seconds of waiting the jobs of a batch are canceled."""
        found = self._read([("HGET", self.keys.at("b", batch_id), "ttl")])[0]
        return None if found is None else float(found)

    def used(self, batch_id: str, field: str) -> int:
        """How many retries of a job (its index) or repeats (`r` and its index) have been used."""
        return decoding.number(self._read([("HGET", self.keys.part(batch_id, "used"), field)])[0] or b"0")

    def dependents(self, batch_id: str, index: int) -> list[str]:
        """What depends on a job, or on the whole of its batch."""
        found = self._read([("ZRANGE", self.keys.part(batch_id, "then"), 0, -1)])[0]
        entries = [entry.decode("utf-8", "replace").split(":", 2) for entry in found]
        return [each[2] for each in entries if len(each) == 3 and each[0] in {"*", "=", str(index)}]

    def left_behind(self, worker: str) -> list[str]:
        """The batches that a worker could not run, when it last asked for jobs."""
        known = self._read([("HGET", self.keys.at("w", worker), "skips")], each=True)[0]
        return decoding.names((known or b"").split()) if isinstance(known, bytes) else []

    def client_count(self) -> int:
        """How many clients the server has, of whatever kind."""
        with self.connection.errors():
            return int(self.client.info("clients")["connected_clients"])

    def shutdown(self) -> None:
        """Ends the server program, its data saved: for the private server only."""
        with self.connection.errors():
            self.client.shutdown()
