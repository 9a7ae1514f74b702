"""Reads of queues, workers and the server."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from nbqueue.checks import is_name
from nbqueue.model import State, Tally
from nbqueue.store import decoding
from nbqueue.store.decoding import FULL, us
from nbqueue.store.door import Door
from nbqueue.store.records import QueuedBatch


class WorkerView(NamedTuple):
    """A worker: its encoded WorkerInfo, the seconds of lease left (negative: overdue), how many jobs it holds."""

    info: bytes
    left: float
    held: int


class Roster(Door):
    """Who is there, and what waits."""

    def workers(self) -> list[WorkerView]:
        """All workers that were not given up."""
        now, pairs = self._read([("TIME",), ("ZRANGE", self.keys.at("workers"), 0, -1, "WITHSCORES")])
        ends = [(name.decode(), float(end)) for name, end in decoding.pairs(pairs)]
        commands = [("HGET", self.keys.at("w", name), "info") for name, _ in ends]
        held = [("SCARD", self.keys.at("held", name)) for name, _ in ends]
        answers = self._read([*commands, *held]) if ends else []
        return [
            WorkerView(answers[place], (end * 1000 - us(now)) / 1e6, answers[len(ends) + place])
            for place, (_, end) in enumerate(ends)
            if answers[place] is not None
        ]

    def held_by(self, worker: str) -> list[str]:
        """The ids of the jobs that a worker holds."""
        found = self._read([("SMEMBERS", self.keys.at("held", worker))])[0]
        jobs = sorted(job.decode().rpartition(":") for job in found)
        singles = self._read([("HGET", self.keys.at("b", batch), "single") for batch, _, _ in jobs]) if jobs else []
        return [
            batch if single else f"{batch}:{index}" for (batch, _, index), single in zip(jobs, singles, strict=True)
        ]

    def queues(self) -> dict[str, Tally]:
        """All queues seen, with their counts over all batches that are kept."""
        found = self._read([("SMEMBERS", self.keys.at("queues"))])[0]
        # What someone else wrote there is no queue of ours.
        names = sorted(filter(is_name, (name.decode("utf-8", "replace") for name in found)))
        return dict(zip(names, self._tallies(names), strict=True))

    def _tallies(self, names: Sequence[str]) -> list[Tally]:
        words = tuple(state.value for state in State)
        found = []
        for values in self._read([("HMGET", self.keys.at("tally", name), *words) for name in names]) if names else []:
            counts = {word: int(value or 0) for word, value in zip(words, values, strict=True)}
            found.append(Tally(n=sum(counts.values()), **counts))
        return found

    def length(self, queue: str) -> int:
        """How many jobs wait in a queue."""
        return int(self._read([("HGET", self.keys.at("tally", queue), "queued")])[0] or 0)

    def queued(self, queue: str) -> list[QueuedBatch]:
        """The batches that have jobs to hand out, in the order of claims, 1,000 in a round trip."""
        found: list[QueuedBatch] = []
        start, more = 0, 1
        while more:
            now, rows, start, more = self._run("queued", queue, start, *FULL)
            for batch, values, length, again, cursor, skip in rows:
                view = decoding.view(batch.decode(), now, values, length)
                beyond = range(cursor, view.n)
                skipped = set(map(int, skip))
                found.append(QueuedBatch(view, [*again, *(index for index in beyond if index not in skipped)]))
        return found

    def suspended(self) -> float | None:
        """None, or the seconds until work is given out again: infinity if only resume does that."""
        left = int(self._read([("PTTL", self.keys.at("suspended"))])[0])
        return None if left == -2 else math.inf if left == -1 else left / 1000

    def live_slots(self, queue: str) -> int:
        """The slots of the queue's workers whose leases stand."""
        slots, now, pairs = self._read(
            [
                ("HGETALL", self.keys.at("slots", queue)),
                ("TIME",),
                ("ZRANGE", self.keys.at("workers"), 0, -1, "WITHSCORES"),
            ]
        )
        living = {name for name, end in decoding.pairs(pairs) if float(end) * 1000 > us(now)}
        return sum(int(number) for worker, number in decoding.mapping(slots).items() if worker in living)

    def client_count(self) -> int:
        """How many clients the server has, of whatever kind."""
        with self.connection.errors():
            return int(self.client.info("clients")["connected_clients"])

    def shutdown(self) -> None:
        """Ends the server program, its data saved: for the private server only."""
        with self.connection.errors():
            self.client.shutdown()
