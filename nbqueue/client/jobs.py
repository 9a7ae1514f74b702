"""Jobs of one batch or of many, as a sequence with a table for its repr."""

from __future__ import annotations

import html
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from nbqueue.checks import check_errors, seconds
from nbqueue.client.frames import frame
from nbqueue.client.job import Job, cause_and_error, job_of
from nbqueue.client.lookup import refresh, results, waiting
from nbqueue.client.session.batch_ref import JobRef
from nbqueue.client.session.session import within
from nbqueue.client.submit import retry
from nbqueue.errors import BadOption, NotThere, SetupError

if TYPE_CHECKING:
    import pandas as pd

R = TypeVar("R")
SHOWN = 20


class Jobs(Sequence[Job[R]], Generic[R]):
    """Jobs in their order; `which` says in words what they are, as `failed jobs in low`."""

    def __init__(self, jobs: Iterable[Job[R]], which: str) -> None:
        self._jobs, self._which = list(jobs), which

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job: object) -> bool:
        """Whether a job, or the job of an id, is among them."""
        return any(job in (each, each.id) for each in self._jobs)

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Jobs | list | tuple) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    @property
    def count(self) -> int:  # type: ignore[override]
        """How many there are, as RQ's registries call it."""
        return len(self)

    def get_job_ids(self, start: int = 0, end: int = -1) -> list[str]:
        """Their ids, from `start` up to and with `end`, as RQ's registries give them."""
        return [job.id for job in self._jobs][start : None if end == -1 else end + 1]

    def get_job_count(self) -> int:
        """As `len`."""
        return len(self)

    def remove(self, job: Job[R] | str, delete_job: bool = True) -> None:
        """Deletes a job, or the job of an id, for good. Raises NoSuchJob, and BadOption for RQ's `delete_job=False`."""
        if not delete_job:
            raise BadOption(message="remove(delete_job=False) is not possible: a job is listed as long as it exists.")
        found = self._named(job)
        found.delete()
        self._jobs.remove(found)

    def _named(self, job: Job[R] | str) -> Job[R]:
        found = next((each for each in self._jobs if job in (each, each.id)), None)
        if found is None:
            raise NotThere(message=f"{job if isinstance(job, str) else job.id} is not among the {self._which}.")
        return found

    @overload
    def __getitem__(self, index: int) -> Job[R]: ...
    @overload
    def __getitem__(self, index: slice) -> Jobs[R]: ...
    def __getitem__(self, index: int | slice) -> Job[R] | Jobs[R]:
        found = self._jobs[index]
        return found if isinstance(found, Job) else Jobs(found, self._which)

    def requeue(self, job: Job[R] | str | None = None, at_front: bool = False) -> int:
        """Runs all (or one: a Job or its id) again, except those that have expired; returns how many.

        With `at_front` before others of its queue, as `Job.requeue`. Raises BadInput if one has not ended yet, NotThere
        for one that is not among them.
        """
        if job is not None:
            return Jobs([self._named(job)], self._which).requeue(at_front=at_front)
        groups: dict[int, list[Job[R]]] = {}
        for each in self._jobs:
            groups.setdefault(id(each.batch.state), []).append(each)
        if self._jobs:
            # Another session may have run them again since: the latest outcome is the one to withdraw.
            refresh.look(self._jobs, afresh=True, canceled=True)
        count = 0
        for jobs in groups.values():
            try:
                count += retry.retry(jobs[0].batch, jobs, None, {}, front=at_front)
            except NotThere:
                continue  # it has expired since these jobs were listed
        return count

    def results(self, errors: Literal["raise", "return", "skip"] = "raise", timeout: float | None = None) -> list[R]:
        """Waits, then the values in this order; `errors` as in `Batch.results`, where "raise" raises the first one.

        NotDone after `timeout` seconds.
        """
        check_errors(errors)
        self._wait(timeout)
        return values(self._jobs, errors)

    def to_frame(self, *, meta: bool = False, args: bool = False, timeout: float | None = None) -> pd.DataFrame:
        """Waits, then the frame of these jobs, as `nbqueue.gather(jobs)`. NotDone after `timeout` seconds."""
        self._wait(timeout)
        return frame.of(self._jobs, meta=meta, args=args)

    def _wait(self, timeout: float | None) -> None:
        """Waits for all. Raises NotDone after `timeout` seconds, Expired or LostByServer for what is gone."""
        end = None if timeout is None else time.monotonic() + seconds("timeout", timeout)
        with within(timeout), suppress(SetupError):  # where the store cannot be asked, the collector goes on trying
            refresh.reconsider(self._jobs)
            refresh.look(self._jobs)
        for job in self._jobs:  # all are polled together, rather than each when its turn to be waited for comes
            state = job.batch.state
            if not (state.followed or job.batch.inline or job.index in state.outcomes):
                job.batch.session.collector.follow(state)
        for job in self._jobs:
            left = None if end is None else max(0.0, end - time.monotonic())
            if not waiting.until(job.batch, partial(waiting.ended, job), left, index=job.index):
                missing = sum(one.index not in one.batch.state.outcomes for one in self._jobs)
                what = f"{missing:,} of {len(self):,} jobs, {job.id} among them,"
                raise waiting.not_done(job.batch, what, timeout, job.index)

    # ------------------------------------------------------------ as a table

    def _rows(self) -> list[tuple[str, ...]]:
        """The header, and a row for each of the first jobs; empty columns are left out."""
        several = len({job.func_name for job in self._jobs[:SHOWN]}) > 1
        rows = [(job.id, job.func_name if several else "", *cause_and_error(job)) for job in self._jobs[:SHOWN]]
        heads = ("job", "function", "cause", "error")
        filled = [column for column in range(len(heads)) if any(row[column] for row in rows)]
        return [tuple(row[column] for column in filled) for row in (heads, *rows)]

    @property
    def causes(self) -> Counter[str]:
        """How many ended without a result, by cause."""
        found = Counter(cause_and_error(job)[0] for job in self._jobs)
        del found[""]
        return found

    def _rest(self) -> str:
        more = len(self) - SHOWN
        if more <= 0:
            return ""
        causes = self.causes
        counts = ", ".join(f"{count:,} {cause}" for cause, count in causes.most_common()) if len(causes) > 1 else ""
        return f"... and {more:,} more" + (f"; in all: {counts}" if counts else "")

    def __repr__(self) -> str:
        if not self._jobs:
            return f"no {self._which}"
        rows = self._rows()
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
        lines = [
            "  ".join([*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[-1]])
            for row in rows
        ]
        return "\n".join(line.rstrip() for line in [*lines, self._rest()] if line)

    def _repr_html_(self) -> str:
        if not self._jobs:
            return f"<p>no {html.escape(self._which)}</p>"
        heads, *rows = self._rows()
        body = "".join(
            "<tr>" + "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in rows
        )
        head = "<tr>" + "".join(f"<th>{name}</th>" for name in heads) + "</tr>"
        return f"<table><thead>{head}</thead><tbody>{body}</tbody></table><p>{self._rest()}</p>"


def jobs_of(found: Iterable[JobRef], which: str) -> Jobs[Any]:
    """Handles on jobs."""
    return Jobs(map(job_of, found), which)


def values(jobs: Iterable[JobRef], errors: str) -> list[Any]:
    """The values of jobs that have ended; `errors` as in `Batch.results`."""
    found: list[Any] = []
    for job in jobs:
        value, error = results.value_or_error(job.batch, job.index)
        if error is None or errors == "return":
            found.append(value if error is None else error)
        elif errors == "raise":
            raise error
    return found
