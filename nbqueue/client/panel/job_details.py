"""Details of one failed job, on a click: outcome, log and arguments, from memory or read from the server."""

from __future__ import annotations

from typing import Any, NamedTuple

from nbqueue import perform
from nbqueue.client.lookup import arguments as lookup
from nbqueue.client.lookup import refresh, spooled
from nbqueue.client.lookup.results import parents_of, text_of
from nbqueue.client.panel.rate import clock
from nbqueue.client.session.batch_ref import BatchRef
from nbqueue.errors import NbqueueError
from nbqueue.model import Cause

ARGUMENT = 2_000  # characters of an argument
LOG = 4_000  # characters of its log


class JobDetails(NamedTuple):
    """One failed job. `facts` is one line about its run; `log` is None if it was not read."""

    job: str
    facts: str
    traceback: str
    log: str | None = None


def details_of(batch: BatchRef, index: int, *, log: bool = False) -> JobDetails | None:
    """The details of a job; None while it has no outcome. Reading the `log` may ask the server, and never raises."""
    job = batch.job(index)
    outcome = refresh.shown_of(job)
    if outcome is None:
        return None
    facts = [f"cause {outcome.cause}"] if outcome.cause not in {None, Cause.ERROR} else []  # `error` says nothing new
    facts += [f"ran {clock(outcome.runtime_us / 1e6)}"] if outcome.runtime_us else []
    facts += [f"CPU {clock(outcome.cpu_us / 1e6)}"] if outcome.cpu_us else []
    facts += [f"peak memory {outcome.max_rss_kb / 1024:,.0f} MB"] if outcome.max_rss_kb else []
    facts += [f"on {outcome.host}"] if outcome.host else []
    facts += [f"attempt {outcome.attempt}"] if outcome.attempt > 1 else []
    failure = outcome.failure
    trace = failure.traceback if failure is not None and failure.traceback else text_of(outcome, parents_of(batch.spec))
    return JobDetails(job.id, ", ".join(facts), trace, _log(batch, index) if log else None)


def _log(batch: BatchRef, index: int) -> str:
    try:
        text = spooled.log(batch.job(index))
    except NbqueueError as why:
        return f"<log unavailable: {why}>"
    return text if len(text) <= LOG else "... " + text[-LOG:]


def arguments(batch: BatchRef, index: int) -> str:
    """The arguments of a job as `name = repr`, one per line. Unpickles them, so called on request only."""
    try:
        payload = lookup.payload(batch, index)
    except NbqueueError as why:
        return f"<arguments unavailable: {why}>"
    if payload is None:
        return "<arguments no longer available>"
    args, kwargs, label = lookup.opened_call(payload)
    names = [*batch.spec.columns, *(f"arg_{position}" for position in range(len(batch.spec.columns), len(args)))]
    lines = [f"{name} = {_shown(value)}" for name, value in [*zip(names, args, strict=False), *kwargs.items()]]
    return "\n".join(([f"# {_shown(label)}"] if label is not None else []) + lines) or "no arguments"


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except Exception as why:  # noqa: BLE001 - the user's __repr__ may raise anything
        return f"<cannot be shown: {perform.type_name(type(why))}: {perform.text_of(why)}>"
    return text if len(text) <= ARGUMENT else f"{text[:ARGUMENT]}... ({len(text):,} characters)"
