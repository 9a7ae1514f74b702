"""What may be read of batches and jobs: one round trip a read, or for each 1,000 (the listings take two).

Nothing is ever changed.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from nbqueue.errors import Damaged
from nbqueue.model import State
from nbqueue.store import decoding
from nbqueue.store.decoding import FULL, LITE, PLACES, Progress, Whole, us
from nbqueue.store.door import FIELDS
from nbqueue.store.keys import PARTS
from nbqueue.store.records import BatchView, Holder, Stored
from nbqueue.store.roster import Roster

SAID = ("tail", "meta", "past")  # what jobs wrote and said, and their earlier runs
SOME = 250  # of which so many are read in a round trip: a tail may have 64 kB
PAGE = 50  # batches whose size is asked for in a round trip
_PLACES = ("past", "park", "run", "out")

P = ParamSpec("P")
T = TypeVar("T")


def _in_parts(read: Callable[P, list[T]]) -> Callable[P, list[T]]:
    """A read of as many as one likes, its last argument, makes a round trip for each 1,000 of them."""

    @wraps(read)
    def whole(*args: P.args, **kwargs: P.kwargs) -> list[T]:
        facts: Any = args[:-1]
        asked: Any = args[-1]
        found: list[T] = []
        for start in range(0, len(asked), FIELDS):
            found += read(*facts, asked[start : start + FIELDS], **kwargs)
        return found

    return whole


class Reads(Roster):
    """The reads of one namespace. A batch that is not there is None."""

    def now_us(self) -> int:
        """Redis's clock, in microseconds since the epoch."""
        return us(self._read([("TIME",)])[0])

    def epoch(self) -> str:
        """A random id of this server's life: another one means that it forgot everything."""
        key = self.keys.at("epoch")
        fresh = secrets.token_hex(8)
        return str(self._read([("SET", key, fresh, "NX"), ("GET", key)])[1].decode("utf-8", "replace"))

    # ---------------------------------------------------------------- batches

    def view(self, batch_id: str) -> BatchView | None:
        """What there is to know of a batch. Raises Damaged."""
        found = self.views_or_damage([batch_id])[0]
        if isinstance(found, Damaged):
            raise found
        return found

    def views(self, ids: Sequence[str]) -> list[BatchView | None]:
        """As view, of many; None also for one that is damaged, which `view` says."""
        return [None if isinstance(found, Damaged) else found for found in self.views_or_damage(ids)]

    @_in_parts
    def views_or_damage(self, ids: Sequence[str]) -> list[BatchView | Damaged | None]:
        """As view, of many; what `view` would raise in the place of one that is damaged."""
        commands: list[tuple[str, ...]] = [("TIME",)]
        for batch in ids:
            commands.append(("HMGET", self.keys.at("b", batch), *FULL))
            commands.append(("LLEN", self.keys.part(batch, "log")))
        now, *answers = self._read(commands, each=True)
        rows = zip(ids, answers[::2], answers[1::2], strict=True)
        return [decoding.told(decoding.view, batch, us(now), values, length) for batch, values, length in rows]

    def batches(self) -> list[BatchView]:
        """All batches that the server knows, but for those that are damaged."""
        return self._known(self._read([("ZRANGE", self.keys.at("batches"), 0, -1)])[0])

    def sizes(self, ids: Sequence[str]) -> list[int]:
        """About how many bytes batches take in the server's memory, by a sample of their jobs."""
        found: list[int] = []
        for start in range(0, len(ids), PAGE):
            page = ids[start : start + PAGE]
            keys = [[self.keys.at("b", batch), *(self.keys.part(batch, part) for part in PARTS)] for batch in page]
            answers = self._read([("MEMORY", "USAGE", key) for each in keys for key in each])
            step = len(PARTS) + 1
            found += [sum(size or 0 for size in answers[at : at + step]) for at in range(0, len(answers), step)]
        return found

    def _known(self, names: Iterable[bytes]) -> list[BatchView]:
        return [view for view in self.views(decoding.names(names)) if view is not None]

    def in_queue(self, queue: str) -> list[BatchView]:
        """All batches of a queue that the server knows, in the order in which they were made."""
        names = [("ZRANGE", self.keys.at(shape, queue), 0, -1) for shape in ("open", "ended")]
        found = self._known({batch: None for ids in self._read(names) for batch in ids})
        return sorted(found, key=lambda view: view.created_us)

    def named(self, name: str, signer: str | None = None) -> str | None:
        """The batch that bears this name: that of this signer, or of anyone."""
        found = self._read([("HGETALL", self.keys.at("name", name))])[0]
        if signer is not None:
            batch = found.get(signer.encode())
            return next(iter(decoding.names([batch])), None) if batch else None
        return next(iter(decoding.names(found.values())), None)

    def log(self, batch_id: str, position: int, count: int = 1000) -> list[bytes]:
        """Entries of the log from `position` on: b"17" ended, b"r17" withdrawn, b"c5-9" canceled from 5 to 8."""
        key = self.keys.part(batch_id, "log")
        return list(self._read([("LRANGE", key, position, position + count - 1)])[0])

    def session_log(self, session: str, position: int, count: int = 1000) -> tuple[list[bytes], int]:
        """Batches of one of this session in which something happened, from `position` on, and how many were named."""
        key = self.keys.at("log", session)
        entries, length = self._read([("LRANGE", key, position, position + count - 1), ("LLEN", key)])
        return list(entries), length

    def follow(
        self, asked: Sequence[tuple[str, int]], count: int = 1000
    ) -> list[tuple[Progress | Damaged | None, list[bytes]]]:
        """Progress and log entries of many batches (id and log position), in one round trip.

        Damaged, not raised, in the place of one whose keys are not as they were written.
        """
        commands: list[tuple[str | int, ...]] = [("TIME",)]
        for batch, position in asked:
            # The log after the counts: whatever they count as ended is in it.
            commands.append(("HMGET", self.keys.at("b", batch), *LITE))
            commands.append(("LRANGE", self.keys.part(batch, "log"), position, position + count - 1))
        now, *answers = self._read(commands, each=True)
        rows = zip(asked, answers[::2], answers[1::2], strict=True)
        return [
            (entries, [])
            if isinstance(entries, Damaged)
            else (decoding.told(decoding.progress, batch, us(now), values), entries)
            for (batch, _), values, entries in rows
        ]

    # ---------------------------------------------------------------- jobs

    def outcomes(self, batch_id: str, indexes: Sequence[int]) -> list[bytes | None]:
        """The records in `out` (see Stored); None: it has none, or was canceled with a whole range."""
        return self._fields(batch_id, "out", indexes)

    def landed(
        self, batch_id: str, indexes: Sequence[int]
    ) -> tuple[list[bytes | None], dict[str, list[tuple[int, bytes]]]]:
        """As outcomes; and what there is of SAID: its name -> (index, blob). Raises Damaged for the outcomes alone."""
        if not indexes:
            return [], {}
        out, keys = self.keys.part(batch_id, "out"), [self.keys.part(batch_id, part) for part in SAID]
        blobs, *kinds = self._read([("HMGET", out, *map(str, indexes)), *(("TYPE", key) for key in keys)], each=True)
        if isinstance(blobs, Damaged):
            raise blobs
        said: dict[str, list[tuple[int, bytes]]] = {}
        for part in (part for part, kind in zip(SAID, kinds, strict=True) if kind == b"hash"):
            for start in range(0, len(indexes), SOME):
                some = indexes[start : start + SOME]
                pairs = zip(some, self._fields(batch_id, part, some), strict=True)
                said.setdefault(part, []).extend((index, blob) for index, blob in pairs if blob)
        return list(blobs), said

    def said_of(self, batches: Sequence[str]) -> list[dict[str, bytes]]:
        """What there is of SAID, of batches of one: its name -> blob."""
        keys = [[self.keys.part(batch, part) for part in SAID] for batch in batches]
        there = self._read([("EXISTS", *each) for each in keys]) if keys else []
        found: list[dict[str, bytes]] = [{} for _ in batches]
        spoke = [place for place, count in enumerate(there) if count]
        for start in range(0, len(spoke), SOME):
            some = spoke[start : start + SOME]
            blobs = iter(self._read([("HGET", key, "0") for place in some for key in keys[place]], each=True))
            for place in some:
                told = {part: next(blobs) for part in SAID}
                found[place] = {part: blob for part, blob in told.items() if blob and not isinstance(blob, Damaged)}
        return found

    def arguments(self, batch_id: str, indexes: Sequence[int]) -> list[bytes | None]:
        """The sealed arguments."""
        return self._fields(batch_id, "args", indexes)

    def tails(self, batch_id: str, indexes: Sequence[int]) -> list[bytes | None]:
        """The sealed ends of what jobs wrote to stdout and stderr."""
        return self._fields(batch_id, "tail", indexes)

    def metas(self, batch_id: str, indexes: Sequence[int]) -> list[bytes | None]:
        """The sealed metas."""
        return self._fields(batch_id, "meta", indexes)

    def echoes(self, batch_id: str, indexes: Sequence[int]) -> list[bytes | None]:
        """The sealed echoes of their callbacks."""
        return self._fields(batch_id, "echo", indexes)

    def pasts(self, batch_id: str, indexes: Sequence[int]) -> list[bytes | None]:
        """Withdrawn outcomes; `records.past` takes them apart."""
        return self._fields(batch_id, "past", indexes)

    def noted(self, batch_id: str, most: int = 100) -> list[tuple[int, bytes]]:
        """(index, sealed meta) of jobs that are held and have one; of very many held ones, of some."""
        run, meta = (self.keys.part(batch_id, part) for part in ("run", "meta"))
        told, (_, held) = self._read([("HLEN", meta), ("HSCAN", run, 0, "COUNT", most)])
        indexes = sorted(decoding.numbers(batch_id, held))[:most] if told else []
        pairs = zip(indexes, self.metas(batch_id, indexes), strict=True)
        return [(index, blob) for index, blob in pairs if blob is not None]

    def marks(self, batch_id: str) -> bytes:
        """16 bytes for each job of a named batch. Raises Damaged."""
        return self._text(batch_id, "marks") or b""

    def function(self, batch_id: str) -> bytes | None:
        """The sealed function. Raises Damaged."""
        return self._text(batch_id, "fn")

    def _text(self, batch_id: str, part: str) -> bytes | None:
        found: bytes | Damaged | None = self._read([("GET", self.keys.part(batch_id, part))], each=True)[0]
        if isinstance(found, Damaged):
            raise found
        return found

    def failed(self, batch_id: str) -> list[int]:
        """The indexes of its failed jobs."""
        found = self._read([("SMEMBERS", self.keys.part(batch_id, "bad"))])[0]
        return sorted(decoding.numbers(batch_id, found))

    @_in_parts
    def states(self, batch_id: str, indexes: Sequence[int]) -> list[State | None]:
        """Where jobs are; None: there is no such job. Derived from the place in which each of them is."""
        first = max(0, min(indexes)) // 8 * 8
        span = ("GETRANGE", self.keys.part(batch_id, "ready"), first // 8, max(0, *indexes) // 8)
        fields = [("HMGET", self.keys.part(batch_id, part), *map(str, indexes)) for part in _PLACES]
        # In this order a job that moves on meanwhile is seen in one of its places.
        values, ready, *places = self._read([("HMGET", self.keys.at("b", batch_id), *PLACES), span, *fields])
        whole = Whole.parse(values, first, ready)
        rows = zip(indexes, *reversed(places), strict=True)
        return [decoding.state(index, whole, *records) for index, *records in rows]

    @_in_parts
    def states_of(self, pairs: Sequence[tuple[str, int]]) -> list[State | None]:
        """As states, of jobs of many batches."""
        commands: list[tuple[str | int, ...]] = []
        for batch, index in pairs:
            commands.append(("HMGET", self.keys.at("b", batch), *PLACES))
            commands.append(("GETRANGE", self.keys.part(batch, "ready"), max(0, index) // 8, max(0, index) // 8))
            commands += [("HGET", self.keys.part(batch, part), index) for part in _PLACES]
        answers = self._read(commands)
        step, found = len(_PLACES) + 2, []
        for place, (_, index) in enumerate(pairs):
            values, ready, *records = answers[step * place : step * (place + 1)]
            whole = Whole.parse(values, max(0, index) // 8 * 8, ready)
            found.append(decoding.state(index, whole, *reversed(records)))
        return found

    def outcomes_of(self, pairs: Sequence[tuple[str, int]]) -> list[bytes | None]:
        """As outcomes, of jobs of many batches."""
        return self._fields_of("out", pairs)

    def arguments_of(self, pairs: Sequence[tuple[str, int]]) -> list[bytes | None]:
        """As arguments, of jobs of many batches."""
        return self._fields_of("args", pairs)

    def metas_of(self, pairs: Sequence[tuple[str, int]]) -> list[bytes | None]:
        """As metas, of jobs of many batches."""
        return self._fields_of("meta", pairs)

    def holders(self, batch_id: str, indexes: Sequence[int]) -> list[Holder | None]:
        """Who runs these jobs; None where nobody does."""
        leases = self._fields(batch_id, "run", indexes)
        return [None if lease is None else decoding.holder(lease) for lease in leases]

    @_in_parts
    def attempts(self, batch_id: str, indexes: Sequence[int]) -> list[int]:
        """How many runs each job has begun: as its outcome or its lease says; 0 for one that waits."""
        commands = [("HMGET", self.keys.part(batch_id, part), *map(str, indexes)) for part in ("run", "out")]
        run, out = self._read(commands)
        return [
            Stored.parse(blob).attempt if blob else decoding.holder(lease).attempt if lease else 0
            for blob, lease in zip(out, run, strict=True)
        ]

    @_in_parts
    def _fields_of(self, part: str, pairs: Sequence[tuple[str, int]]) -> list[bytes | None]:
        answers = self._read([("HGET", self.keys.part(batch, part), str(index)) for batch, index in pairs], each=True)
        # What is no hash holds no record: empty bytes carry no signature, so that job alone is refused.
        return [b"" if isinstance(answer, Damaged) else answer for answer in answers]

    @_in_parts
    def _fields(self, batch_id: str, part: str, indexes: Sequence[int]) -> list[bytes | None]:
        (found,) = self._read([("HMGET", self.keys.part(batch_id, part), *map(str, indexes))], each=True)
        if isinstance(found, Damaged):
            raise found
        return list(found)
