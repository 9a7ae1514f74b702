"""The answers of Redis made into values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from nbqueue.model import Cause, State, Tally
from nbqueue.store.records import BatchView, Stored

_COUNTS = ("nrun", "nfin", "nfail", "ncan", "ndef", "npark")
LITE = ("queue", "n", "open", "cut", "canceled", *_COUNTS, "done", "exp", "cuts", "hold", "due", "queued", "src")
FULL = (*LITE, "created", "spec", "key", "signer", "session", "name", "single", "nonce")
PLACES = ("n", "cuts", "hold", "src")
HOLD = {b"D": State.DEFERRED, b"S": State.SCHEDULED}
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
    hold: str = ""
    due_us: int | None = None
    queued_us: int | None = None
    source: str = ""

    @property
    def done(self) -> bool:
        """Whether every job has an outcome and no more can arrive."""
        return self.done_us is not None


def us(clock: Sequence[bytes | int]) -> int:
    """The answer of TIME in microseconds."""
    return int(clock[0]) * 1_000_000 + int(clock[1])


def pairs(answer: Sequence[object]) -> list[tuple[bytes, bytes | float]]:
    """ZRANGE ... WITHSCORES, which redis-py gives flat or in pairs, by version."""
    if answer and not isinstance(answer[0], bytes):
        return [(pair[0], pair[1]) for pair in answer]  # type: ignore[index]
    return list(zip(answer[::2], answer[1::2], strict=True))  # type: ignore[arg-type]


def mapping(answer: dict[bytes, bytes] | list[bytes]) -> dict[bytes, bytes]:
    """HGETALL, which comes flat from a pipeline of some versions."""
    return answer if isinstance(answer, dict) else dict(zip(answer[::2], answer[1::2], strict=True))


def cuts_of(text: bytes | None) -> tuple[tuple[int, int, Cause], ...]:
    """The ranges in the field `cuts`."""
    return tuple((int(lo), int(hi), Cause(why)) for lo, hi, why in _CUT.findall((text or b"").decode()))


def _optional(value: bytes | None) -> int | None:
    return None if value is None else int(value)


def progress(batch: str, now: int, values: Sequence[bytes | None]) -> Progress:
    """The values of LITE."""
    fields = dict(zip(LITE, values, strict=False))
    hold = fields["hold"]
    expires = _optional(fields["exp"])
    return Progress(
        id=batch,
        n=int(fields["n"] or 0),
        open=fields["open"] == b"1",
        cut=fields["cut"] == b"1",
        tally=_tally(fields),
        done_us=_optional(fields["done"]),
        expires_us=expires,
        expired=expires is not None and expires <= now,
        cuts=cuts_of(fields["cuts"]),
        hold=HOLD[hold].value if hold else "",
        due_us=_optional(fields["due"]),
        queued_us=_optional(fields["queued"]),
        source=(fields["src"] or b"").decode(),
    )


def _tally(fields: dict[str, bytes | None]) -> Tally:
    n, started, finished, failed, canceled, deferred, parked = (int(fields[name] or 0) for name in ("n", *_COUNTS))
    counts = {State.DEFERRED: deferred, State.SCHEDULED: parked, State.QUEUED: 0}
    # What waits and is neither: held with the whole batch, or queued.
    counts[HOLD.get(fields["hold"] or b"", State.QUEUED)] += (
        n - started - finished - failed - canceled - deferred - parked
    )
    facts = {state.value: number for state, number in counts.items()}
    return Tally(n=n, started=started, finished=finished, failed=failed, canceled=canceled, **facts)


def view(batch: str, now: int, values: Sequence[bytes | None], log_length: int) -> BatchView:
    """The values of FULL."""
    fields = dict(zip(FULL, values, strict=True))
    facts: dict[str, Any] = progress(batch, now, values)._asdict()
    facts |= {name: (fields[name] or b"").decode() for name in ("queue", "key", "signer", "session", "nonce")}
    name = fields["name"]
    created = int(fields["created"] or 0)
    if not facts["hold"] and not facts["source"]:
        facts["queued_us"] = facts["queued_us"] or created
    return BatchView(
        **facts,
        canceled=fields["canceled"] == b"1",
        created_us=created,
        log_length=log_length,
        spec=fields["spec"] or b"",
        name=name.decode() if name else None,
        single=fields["single"] == b"1",
    )


def state(
    index: int, whole: Whole, out: bytes | None, run: bytes | None, park: bytes | None, past: bytes | None
) -> State | None:
    """Where a job is, by the place in which it was found."""
    if not 0 <= index < whole.n:
        return None
    if out is not None:
        return Stored.parse(out).state
    if run is not None:
        return State.STARTED
    if park is not None:
        return State.SCHEDULED
    if past is None and any(lo <= index < hi for lo, hi, _ in whole.cuts):
        return State.CANCELED
    return whole.waiting(index)


class Whole(NamedTuple):
    """What of a batch decides where its jobs are; `ready` is a bitmap that begins with job `first`."""

    n: int
    cuts: tuple[tuple[int, int, Cause], ...]
    hold: bytes
    source: bytes
    first: int
    ready: bytes

    @classmethod
    def parse(cls, values: Sequence[bytes | None], first: int, ready: bytes) -> Whole:
        """The values of PLACES."""
        return cls(int(values[0] or 0), cuts_of(values[1]), values[2] or b"", values[3] or b"", first, ready)

    def waiting(self, index: int) -> State:
        """Where a job is that has no place of its own."""
        place, bit = divmod(index - self.first, 8)
        if self.source and not (place < len(self.ready) and self.ready[place] & (0x80 >> bit)):
            return State.DEFERRED
        return HOLD.get(self.hold, State.QUEUED)
