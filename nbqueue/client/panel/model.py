"""The content of a panel as a frozen record: counts, rate, workers, saved results, failures. No frontend code here."""

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

# In the order of the bar.
STATES = ("finished", "failed", "canceled", "started", "queued", "scheduled", "deferred")
SOON = 2  # days; dates within them are shown with the time
MAX_GROUPS = 8  # failure groups that a panel lists


class FailureLine(NamedTuple):
    """One failure group of `size` jobs: `37x KeyError: 'title' - line 12 of this cell`."""

    group: FailureGroup
    size: int

    @property
    def text(self) -> str:
        """The group in one line."""
        where = f" - {self.group.where}" if self.group.where else ""
        return f"{self.size:,}x {self.group.what}{where}"


class PanelModel(msgspec.Struct, frozen=True, kw_only=True):
    """Snapshot of some batches for display. Times in seconds, rate in jobs per second."""

    title: str
    about: str = ""
    tally: Tally
    n: int
    ended: bool = False
    open: bool = False  # more items may arrive
    rate: float | None = None
    eta: float | None = None
    elapsed: float | None = None
    workers: tuple[QueueWorkers, ...] = ()
    running: tuple[JobProgress | None, ...] = ()  # progress of some running jobs; None: an empty line
    notes: tuple[tuple[str, str], ...] = ()  # (text, the command in it)
    earlier: int = 0  # number of running batches that the same cell submitted before
    seed: str = ""
    retention: str = ""
    problems: tuple[str, ...] = ()
    failures: tuple[FailureLine, ...] = ()
    more: str = ""  # about the failure groups that are not listed
    retry: int = 0  # number of jobs that `retry` would run again

    @property
    def counts(self) -> list[tuple[str, int]]:
        """(state, count) in the order of the bar; zero counts are left out, except of finished."""
        found = [(state, int(getattr(self.tally, state))) for state in STATES]
        return [(state, count) for state, count in found if count or state == "finished"]

    @property
    def progress_text(self) -> str:
        """`118 of 1,000, 3.2/s, about 3 min left, 42 s elapsed`."""
        parts = [f"{self.tally.over:,} of {self.n:,}{'+' if self.open else ''}"]
        parts += [rate_words(self.rate)] if self.rate and not self.ended else []
        parts += [f"about {left_words(self.eta)} left"] if self.eta is not None and not self.ended else []
        if self.elapsed is not None:
            parts.append(f"took {clock(self.elapsed)}" if self.ended else f"{clock(int(self.elapsed))} elapsed")
        return ", ".join(parts)

    @property
    def workers_text(self) -> str:
        """`2 at a time on node3`, for each queue."""
        several = len(self.workers) > 1
        served = [each for each in self.workers if not each.advice]
        return "; ".join((f"{each.queue}: " if several else "") + _workers_text(each) for each in served)


def _workers_text(workers: QueueWorkers) -> str:
    if not workers.workers:
        return "No worker yet"
    hosts = ", ".join(workers.hosts[:3]) + (f" and {len(workers.hosts) - 3} more" if len(workers.hosts) > 3 else "")
    return f"{workers.slots:,} at a time on {hosts}"


# ---------------------------------------------------------------- from batches


def snapshot(
    batches: Sequence[BatchRef],
    rate: RateEstimator,
    groups: FailureGroups,
    workers: Sequence[QueueWorkers],
    running: Sequence[JobProgress | None] = (),
) -> PanelModel:
    """The present content of a panel, from memory, in a time that does not depend on the number of jobs."""
    states = [batch.state for batch in batches]
    tally, n = total([state.tally for state in states]), sum(state.n for state in states)
    over = all(ended(state) for state in states)
    missing = sum(map(_missing, states))
    # The clock stops with the last job, although outcomes may remain to be copied (all, of an attached batch).
    rate.see(tally.over, ended=not any(map(_runs, states)), missing=missing)
    first = batches[0]
    about = f"and {len(batches) - 1} more" if len(batches) > 1 else first.id if first.name else ""
    all_groups = groups.groups()
    listed = sorted(all_groups, key=lambda group: -_weight(group, exact=over))[:MAX_GROUPS]
    hidden = sum(len(group.members) for group in all_groups) - sum(len(group.members) for group in listed)
    return PanelModel(
        title=first.name or first.id,
        about=about,
        tally=tally,
        n=n,
        ended=over,
        open=any(state.open and not ended(state) for state in states),
        rate=rate.rate,
        eta=None if over or any(state.open for state in states) else rate.eta(n - tally.over),
        elapsed=rate.elapsed,
        workers=() if over else tuple(workers),
        running=() if over else tuple(running),
        retention=retention_note(_first_to_go(states), missing if rate.lags or over else 0, first.session.spool.why),
        notes=_notes(batches),
        earlier=0 if over else len(_earlier(batches)),
        seed=f"seed {first.spec.seed}" if len(batches) == 1 and first.spec.seed is not None else "",
        problems=tuple(dict.fromkeys(word for batch in batches if (word := problem_of(batch)))),
        failures=tuple(FailureLine(group, len(group.members)) for group in all_groups if group in listed),
        more=f"and {hidden:,} more in {counted(len(all_groups) - MAX_GROUPS, 'other group')}" if hidden else "",
        retry=sum(state.tally.failed for state in states if not state.gone and not state.fault),
    )


def _weight(group: FailureGroup, *, exact: bool) -> int:
    """Sort key of the listed groups: rounded unless `exact`, so that growing groups do not swap all the time."""
    size = len(group.members)
    return size if exact else size.bit_length()


def _earlier(batches: Sequence[BatchRef]) -> list[BatchRef]:
    return [
        one
        for one in {id(one): one for batch in batches for one in batch.earlier}.values()
        if previous_run.running(one)
    ]


def _notes(batches: Sequence[BatchRef]) -> tuple[tuple[str, str], ...]:
    notes = [(batch.note, "") for batch in batches if batch.note]
    return (*notes, *previous_run.words(_earlier(batches)))


def ended(state: BatchState) -> bool:
    """Whether no more updates of a batch will come."""
    return bool(state.settled or state.gone or state.fault)


def _runs(state: BatchState) -> bool:
    return not ended(state) and (state.open or state.tally.over < state.n)


def problem_of(batch: BatchRef) -> str:
    """The problem of a batch, or of the connection; empty if there is none."""
    found = problem(batch.state)
    outage = batch.session.collector.outage
    if not found and outage is not None and not ended(batch.state):
        return f"The server cannot be reached at the moment; running jobs go on. {outage}"
    return found


def problem(state: BatchState) -> str:
    """The problem of a batch; empty if there is none."""
    if state.fault is not None:
        return f"live updates stopped: {type(state.fault).__name__}: {state.fault}"
    if state.error is not None:
        return f"reading the input failed: {type(state.error).__name__}: {state.error}"
    words = {
        "lost": f"the server lost this batch; {counted(state.n - state.collected, 'job')} of it must run again. "
        "Results that were collected here are kept",
        "expired": "its results have expired",
        "forgotten": "it was removed from the server",
    }
    if state.settled and state.gone != "forgotten":
        return "the upload was cut short" if state.cut else ""  # all outcomes are here
    return words.get(state.gone, "") or ("the upload was cut short" if state.cut else "")


def retention_note(state: BatchState, missing: int, why: str = "") -> str:
    """Where the results are (server, spool, memory), and for how long; `why` is the reason if the spool is off."""
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
    """A date, with the year if it is not this one; with the time if it is soon."""
    then, now = datetime.fromtimestamp(us / 1e6, tz=UTC).astimezone(), datetime.now(UTC).astimezone()
    year = f" {then.year}" if then.year != now.year and (then - now).days > SOON else ""
    clock = f", {then:%H:%M}" if (then - now).days < SOON else ""
    return f"{then.day} {then:%b}{year}{clock}"


def _missing(state: BatchState) -> int:
    return 0 if state.gone else max(0, state.tally.over - state.collected)


def _first_to_go(states: Sequence[BatchState]) -> BatchState:
    """A running batch if there is one; else the batch whose results expire first."""
    running = [state for state in states if state.expires_us is None]
    return running[0] if running else min(states, key=lambda state: state.expires_us or 0)


def total(tallies: Sequence[Tally]) -> Tally:
    """The sum of tallies."""
    return Tally(**{name: sum(getattr(t, name) for t in tallies) for name in Tally.__struct_fields__})
