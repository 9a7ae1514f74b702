"""What a panel shows, as a plain record: counts, pace, who serves, what is collected, what failed. No frontend here."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from nbqueue.checks import counted
from nbqueue.client.panel import previous_run
from nbqueue.client.panel.failures import FailureGroup, FailureGroups
from nbqueue.client.panel.polling import JobProgress, QueueWorkers
from nbqueue.client.panel.rate import RateEstimator, clock, left_words, lifetime, rate_words
from nbqueue.client.session.batch_ref import BatchRef
from nbqueue.model import Tally

if TYPE_CHECKING:
    from nbqueue.client.state.batch_state import BatchState

# In the order in which a bar shows them.
STATES = ("finished", "failed", "canceled", "started", "queued", "scheduled", "deferred")
SOON = 2  # days, for which the hour matters
KINDS = 8  # kinds of failure that a panel lists


class Failures(NamedTuple):
    """One kind of failure, `size` times: `37x KeyError: 'title' - line 12 of this cell`."""

    kind: FailureGroup
    size: int

    @property
    def text(self) -> str:
        """The kind in a line."""
        where = f" - {self.kind.where}" if self.kind.where else ""
        return f"{self.size:,}x {self.kind.what}{where}"


class PanelModel(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to see of some batches at one moment. Times in seconds, rate in jobs per second."""

    title: str
    about: str = ""
    tally: Tally
    n: int
    ended: bool = False
    open: bool = False  # more items may arrive
    rate: float | None = None
    eta: float | None = None
    elapsed: float | None = None
    serving: tuple[QueueWorkers, ...] = ()
    going: tuple[
        JobProgress | None, ...
    ] = ()  # some of the jobs that run, and how far they say they are; None: a free line
    notes: tuple[tuple[str, str], ...] = ()  # (what there is to say, the command in it)
    earlier: int = 0  # how many batches the same cell submitted before, and still run
    seed: str = ""
    safe: str = ""
    trouble: tuple[str, ...] = ()
    failures: tuple[Failures, ...] = ()
    more: str = ""  # how many kinds of failure are not listed
    retry: int = 0  # how many jobs `retry` would run again

    @property
    def counts(self) -> list[tuple[str, int]]:
        """(state, count) in the order of the bar, without what is nil; finished is always told."""
        found = [(state, int(getattr(self.tally, state))) for state in STATES]
        return [(state, count) for state, count in found if count or state == "finished"]

    @property
    def pace(self) -> str:
        """`118 of 1,000, 3.2/s, about 3 min left, 42 s elapsed`."""
        parts = [f"{self.tally.over:,} of {self.n:,}{'+' if self.open else ''}"]
        parts += [rate_words(self.rate)] if self.rate and not self.ended else []
        parts += [f"about {left_words(self.eta)} left"] if self.eta is not None and not self.ended else []
        if self.elapsed is not None:
            parts.append(f"took {clock(self.elapsed)}" if self.ended else f"{clock(int(self.elapsed))} elapsed")
        return ", ".join(parts)

    @property
    def served(self) -> str:
        """`2 at a time on node3`, for each queue."""
        several = len(self.serving) > 1
        told = [each for each in self.serving if not each.advice]
        return "; ".join((f"{each.queue}: " if several else "") + _served(each) for each in told)


def _served(serving: QueueWorkers) -> str:
    if not serving.workers:
        return "No worker yet"
    hosts = ", ".join(serving.hosts[:3]) + (f" and {len(serving.hosts) - 3} more" if len(serving.hosts) > 3 else "")
    return f"{serving.slots:,} at a time on {hosts}"


# ---------------------------------------------------------------- from batches


def look(
    batches: Sequence[BatchRef],
    pace: RateEstimator,
    groups: FailureGroups,
    serving: Sequence[QueueWorkers],
    going: Sequence[JobProgress | None] = (),
) -> PanelModel:
    """What there is to see of `batches` now. From memory, in a time that does not depend on the number of jobs."""
    states = [batch.state for batch in batches]
    tally, n = total([state.tally for state in states]), sum(state.n for state in states)
    over = all(ended(state) for state in states)
    missing = sum(map(_missing, states))
    # The race is over with the last job. What is left then is to copy, of a batch that was attached all of it.
    pace.see(tally.over, ended=not any(map(_runs, states)), missing=missing)
    first = batches[0]
    about = f"and {len(batches) - 1} more" if len(batches) > 1 else first.id if first.name else ""
    kinds = groups.kinds()
    listed = sorted(kinds, key=lambda kind: -_weight(kind, exact=over))[:KINDS]
    hidden = sum(len(kind.members) for kind in kinds) - sum(len(kind.members) for kind in listed)
    return PanelModel(
        title=first.name or first.id,
        about=about,
        tally=tally,
        n=n,
        ended=over,
        open=any(state.open and not ended(state) for state in states),
        rate=pace.rate,
        eta=None if over or any(state.open for state in states) else pace.eta(n - tally.over),
        elapsed=pace.elapsed,
        serving=() if over else tuple(serving),
        going=() if over else tuple(going),
        safe=safety(_first_to_go(states), missing if pace.lags or over else 0, first.session.spool.why),
        notes=_notes(batches),
        earlier=0 if over else len(_earlier(batches)),
        seed=f"seed {first.spec.seed}" if len(batches) == 1 and first.spec.seed is not None else "",
        trouble=tuple(dict.fromkeys(word for batch in batches if (word := trouble_of(batch)))),
        failures=tuple(Failures(kind, len(kind.members)) for kind in kinds if kind in listed),
        more=f"and {hidden:,} more, of {counted(len(kinds) - KINDS, 'other kind')}" if hidden else "",
        retry=sum(state.tally.failed for state in states if not state.gone and not state.fault),
    )


def _weight(kind: FailureGroup, *, exact: bool) -> int:
    """What decides which kinds are listed. While they grow side by side, the list shall not change all the time."""
    size = len(kind.members)
    return size if exact else size.bit_length()


def _earlier(batches: Sequence[BatchRef]) -> list[BatchRef]:
    return [
        one
        for one in {id(one): one for batch in batches for one in batch.earlier}.values()
        if previous_run.running(one)
    ]


def _notes(batches: Sequence[BatchRef]) -> tuple[tuple[str, str], ...]:
    told = [(batch.note, "") for batch in batches if batch.note]
    return (*told, *previous_run.words(_earlier(batches)))


def ended(state: BatchState) -> bool:
    """Whether nothing more will be heard of a batch."""
    return bool(state.settled or state.gone or state.fault)


def _runs(state: BatchState) -> bool:
    return not ended(state) and (state.open or state.tally.over < state.n)


def trouble_of(batch: BatchRef) -> str:
    """What is wrong with a batch; empty if nothing."""
    found = trouble(batch.state)
    outage = batch.session.collector.outage
    if not found and outage is not None and not ended(batch.state):
        return f"The server cannot be reached at the moment; what runs goes on. {outage}"
    return found


def trouble(state: BatchState) -> str:
    """What is wrong with a batch, by what was heard of it; empty if nothing."""
    if state.fault is not None:
        return f"nothing more is heard of it here: {type(state.fault).__name__}: {state.fault}"
    if state.error is not None:
        return f"its input stopped here: {type(state.error).__name__}: {state.error}"
    words = {
        "lost": f"the server has forgotten this batch, and {counted(state.n - state.collected, 'job')} of it that must "
        "run again; what was collected here stays",
        "expired": "its results have expired",
        "forgotten": "it was removed from the server",
    }
    if state.settled and state.gone != "forgotten":
        return "the upload was cut short" if state.cut else ""  # all of it is here
    return words.get(state.gone, "") or ("the upload was cut short" if state.cut else "")


def safety(state: BatchState, missing: int, why: str = "") -> str:
    """What is not copied here yet, how long the server keeps it, and where the copies are.

    `why` nothing is written to disk; empty where it is.
    """
    if not state.known or not state.tally.over or (state.gone and not state.settled):
        return ""
    until = f"for {lifetime(state.ttl)} after the batch ends"
    if state.expires_us is not None:
        until = f"until {_day(state.expires_us)}"
    if missing:
        return f"{counted(missing, 'result')} not saved here yet: on the server {until}"
    spooled = state.on_disk.header is not None and not why
    what = "Results" if state.expires_us is None and not state.gone else "All results"
    saved = f"{what} saved" if spooled else f"{what} in memory here{f' only ({why})' if why else ''}"
    if state.gone:
        return f"{saved}; no longer on the server"
    return saved if state.expires_us is None else f"{saved}; also on the server {until}"


def _day(us: int) -> str:
    """A day, as people write it, with its year only where that is another one; the time too where it is soon."""
    then, now = datetime.fromtimestamp(us / 1e6, tz=UTC).astimezone(), datetime.now(UTC).astimezone()
    year = f" {then.year}" if then.year != now.year and (then - now).days > SOON else ""
    clock = f", {then:%H:%M}" if (then - now).days < SOON else ""
    return f"{then.day} {then:%b}{year}{clock}"


def _missing(state: BatchState) -> int:
    return 0 if state.gone else max(0, state.tally.over - state.collected)


def _first_to_go(states: Sequence[BatchState]) -> BatchState:
    """The one of whose results the server keeps the shortest; those that run are kept."""
    running = [state for state in states if state.expires_us is None]
    return running[0] if running else min(states, key=lambda state: state.expires_us or 0)


def total(tallies: Sequence[Tally]) -> Tally:
    """The sum of tallies."""
    return Tally(**{name: sum(getattr(t, name) for t in tallies) for name in Tally.__struct_fields__})
