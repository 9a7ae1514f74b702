"""The answers of Redis made into values."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from nbqueue.checks import is_name
from nbqueue.errors import Damaged
from nbqueue.model import Cause, State, Tally
from nbqueue.store.records import BatchView, Holder, Stored

_COUNTS = ("nrun", "nfin", "nfail", "ncan", "ndef", "npark")
LITE = ("queue", "n", "open", "cut", "canceled", *_COUNTS, "done", "exp", "cuts", "hold", "due", "queued", "src")
FULL = (*LITE, "created", "spec", "key", "signer", "session", "name", "single", "nonce")
PLACES = ("n", "cuts", "hold", "src")
HOLD = {b"D": State.DEFERRED, b"S": State.SCHEDULED}
_CUT = re.compile(rb"(\d{1,15})-(\d{1,15})-(\w+)", re.ASCII)
_ENTRY = re.compile(rb"([rc])?(\d{1,15})(?:-(\d{1,15}))?", re.ASCII)
_NUMBER = re.compile(rb"-?\d{1,18}", re.ASCII)
T = TypeVar("T")
_MOST = (1 << 32) - 1  # what a hash of Redis can hold
_LATEST = 253_402_300_799_000_000  # the last second of year 9999, in microseconds: no number of ours is larger


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


@contextmanager
def sound(what: str) -> Iterator[None]:
    """What is read of a batch within is not signed: where it makes no sense, Damaged is raised."""
    try:
        yield
    except (ValueError, TypeError, LookupError) as why:
        raise Damaged(what=what, why=str(why)) from why


def number(value: bytes) -> int:
    """A whole number as the scripts write it. Raises ValueError, also for one that no count and no time can have."""
    if not _NUMBER.fullmatch(value) or abs(found := int(value)) > _LATEST:
        shown = value[:40].decode("ascii", "backslashreplace")
        raise ValueError(f"{shown!r} is no number of ours")
    return found


def size(value: bytes | None) -> int:
    """The number of jobs of a batch. Raises ValueError."""
    if not 0 <= (found := number(value or b"0")) <= _MOST:
        raise ValueError(f"{found:,} jobs are in no batch")
    return found


def numbers(batch: str, found: Iterable[bytes]) -> list[int]:
    """Indexes of jobs of a batch. Raises Damaged."""
    with sound(f"A list of jobs of {batch}"):
        return list(map(number, found))


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
    return tuple((int(lo), int(hi), Cause(why.decode())) for lo, hi, why in _CUT.findall(text or b""))


def _optional(value: bytes | None) -> int | None:
    return None if value is None else number(value)


def progress(batch: str, now: int, values: Sequence[bytes | None]) -> Progress:
    """The values of LITE. Raises Damaged."""
    with sound(f"The record of {batch}"):
        return _progress(batch, now, values)


def _progress(batch: str, now: int, values: Sequence[bytes | None]) -> Progress:
    fields = dict(zip(LITE, values, strict=False))
    hold = fields["hold"]
    expires = _optional(fields["exp"])
    return Progress(
        id=batch,
        n=size(fields["n"]),
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


def told(
    reader: Callable[..., T], batch: str, now: int, values: Sequence[bytes | None] | Damaged, *rest: Any
) -> T | Damaged | None:
    """What `reader` makes of the values of a batch; None where there is none, Damaged in place of what it raises."""
    for answer in (values, *rest):
        if isinstance(answer, Damaged):
            return answer
    assert not isinstance(values, Damaged)
    try:
        return None if values[0] is None else reader(batch, now, values, *rest)
    except Damaged as why:
        return why


def names(found: Iterable[bytes]) -> list[str]:
    """Ids, as far as they are some: what else someone wrote there is none of ours."""
    return [name for name in (each.decode("utf-8", "replace") for each in found) if is_name(name)]


def _tally(fields: dict[str, bytes | None]) -> Tally:
    n, started, finished, failed, canceled, deferred, parked = (
        number(fields[name] or b"0") for name in ("n", *_COUNTS)
    )
    counts = {State.DEFERRED: deferred, State.SCHEDULED: parked, State.QUEUED: 0}
    # What waits and is neither: held with the whole batch, or queued.
    counts[HOLD.get(fields["hold"] or b"", State.QUEUED)] += (
        n - started - finished - failed - canceled - deferred - parked
    )
    facts = {state.value: number for state, number in counts.items()}
    return Tally(n=n, started=started, finished=finished, failed=failed, canceled=canceled, **facts)


def view(batch: str, now: int, values: Sequence[bytes | None], log_length: int) -> BatchView:
    """The values of FULL. Raises Damaged."""
    with sound(f"The record of {batch}"):
        return _view(batch, now, values, log_length)


def _view(batch: str, now: int, values: Sequence[bytes | None], log_length: int) -> BatchView:
    fields = dict(zip(FULL, values, strict=True))
    facts: dict[str, Any] = _progress(batch, now, values)._asdict()
    facts |= {name: (fields[name] or b"").decode() for name in ("queue", "key", "signer", "session", "nonce")}
    name = fields["name"]
    created = number(fields["created"] or b"0")
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


def holder(lease: bytes) -> Holder:
    """An entry of `run`. Raises Damaged."""
    with sound("The lease of a job"):
        token, attempt, since, *_ = lease.split()
        return Holder(token.rpartition(b":")[0].decode(), number(attempt), number(since))


def entry_of(entry: bytes) -> tuple[str, int, int]:
    """An entry of a batch's log: its letter (or none), the first index, and the end of a range (else 0).

    Raises Damaged.
    """
    found = _ENTRY.fullmatch(entry)
    if found is None or (found[1] == b"c" and not found[3]):
        shown = entry[:40].decode("ascii", "backslashreplace")
        raise Damaged(what="The log of a batch", why=f"{shown!r} is no entry of ours")
    return (found[1] or b"").decode(), int(found[2]), int(found[3] or 0)


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
        """The values of PLACES. Raises Damaged."""
        with sound("The record of a batch"):
            n, cuts = size(values[0]), cuts_of(values[1])
        return cls(n, cuts, values[2] or b"", values[3] or b"", first, ready)

    def waiting(self, index: int) -> State:
        """Where a job is that has no place of its own."""
        place, bit = divmod(index - self.first, 8)
        if self.source and not (place < len(self.ready) and self.ready[place] & (0x80 >> bit)):
            return State.DEFERRED
        return HOLD.get(self.hold, State.QUEUED)
