"""Jobs that were enqueued one by one, waited for and shown together."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from nbqueue.checks import seconds
from nbqueue.client.frames import frame
from nbqueue.client.job import Job
from nbqueue.client.lookup import refresh, waiting
from nbqueue.client.session.session import within
from nbqueue.errors import BadInput, SetupError

if TYPE_CHECKING:
    import pandas as pd


def gather(jobs: Iterable[Job[Any]], timeout: float | None, *, meta: bool, args: bool) -> pd.DataFrame:
    """Waits for all, then one row per job.

    Raises BadInput for what is no Job, NotDone after `timeout` seconds, Expired or LostByServer for what is gone.
    """
    chosen: list[Job[Any]] = [jobs] if isinstance(jobs, Job) else list(jobs)
    if strange := [one for one in chosen if not isinstance(one, Job)]:
        raise BadInput(message=f"gather() takes Jobs, not {strange[0]!r}: Job.fetch(id) gives the Job of an id.")
    until(chosen, timeout)
    return frame.of(chosen, meta=meta, args=args)


def until(chosen: Sequence[Job[Any]], timeout: float | None) -> None:
    """Waits for all. Raises NotDone after `timeout` seconds, Expired or LostByServer for what is gone."""
    end = None if timeout is None else time.monotonic() + seconds("timeout", timeout)
    with within(timeout), suppress(SetupError):  # where the store cannot be asked, the collector goes on trying
        refresh.reconsider(chosen)
        refresh.look(chosen)
    _follow(chosen)
    for job in chosen:
        if not _await(job, end):
            left = sum(one.index not in one.batch.state.outcomes for one in chosen)
            raise waiting.not_done(
                job.batch, f"{left:,} of {len(chosen):,} jobs, {job.id} among them,", timeout, job.index
            )


def _follow(jobs: Sequence[Job[Any]]) -> None:
    """Lets the collector bring what is missing: all together, not one after the other as each is waited for."""
    for job in jobs:
        state = job.batch.state
        if not state.followed and not job.batch.inline and job.index not in state.outcomes:
            job.batch.session.collector.follow(state)


def _await(job: Job[Any], end: float | None) -> bool:
    """Whether the job has ended before `end`. Raises Expired or LostByServer where it is not there any more."""
    state = job.batch.state
    left = None if end is None else max(0.0, end - time.monotonic())
    return waiting.until(job.batch, lambda: job.index in state.outcomes or state.settled, left, index=job.index)
