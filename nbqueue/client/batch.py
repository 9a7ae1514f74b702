"""A handle on a batch, a sequence of Jobs. Waiting and changing it asks the store; `repr` and properties do not."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal, SupportsIndex, TypeVar, overload

from nbqueue.checks import brief, check_errors, warn
from nbqueue.client.frames import concat, frame
from nbqueue.client.job import Job
from nbqueue.client.jobs import Jobs, jobs_of, values
from nbqueue.client.lookup import awaiting, forget, refresh, results, waiting
from nbqueue.client.panel import display
from nbqueue.client.session import kernel
from nbqueue.client.session.batch_ref import BatchRef
from nbqueue.client.session.session import within
from nbqueue.client.submit import reattach, retry
from nbqueue.client.submit.submission import plan_then
from nbqueue.errors import LostByServer, NotDone
from nbqueue.model import Spec, Tally

if TYPE_CHECKING:
    import pandas as pd


R = TypeVar("R")
S = TypeVar("S")


class Batch(Sequence[Job[R]], Generic[R]):
    """One submission: a function and n argument sets. `batch[3]` is the Job of item 3; iterating never waits."""

    def __init__(self, ref: BatchRef) -> None:
        self.ref = ref  # its data, which the functions of the package take

    @classmethod
    def shown(cls, ref: BatchRef) -> Batch[R]:
        """A handle on what was submitted or attached; draws its panel in the running cell where one is wanted."""
        if ref.visible:
            display.announce(ref, retry.again)
        return cls(ref)

    # ------------------------------------------------------------ what it is

    @property
    def id(self) -> str:
        """Its id, as `count_words-7k2f`."""
        return self.ref.id

    @property
    def name(self) -> str | None:
        """The name that the user gave it."""
        return self.ref.name

    @property
    def queue(self) -> str:
        """The queue that it was submitted to."""
        return self.ref.queue

    @property
    def single(self) -> bool:
        """Whether it is a batch of one made by `submit`."""
        return self.ref.single

    @property
    def spec(self) -> Spec:
        """Its description, as it was submitted: options, environment, columns."""
        return self.ref.spec

    @property
    def seed(self) -> int | None:
        """What the jobs' random generators are seeded with, together with their index."""
        return self.spec.seed

    @property
    def code(self) -> str:
        """The version of its function, as in the frame's column `code`: jobs that start now run this one."""
        return self.spec.version

    @property
    def tally(self) -> Tally:
        """Counts by state, as of the last update."""
        return self.ref.tally

    @property
    def done(self) -> bool:
        """Whether all have ended and their outcomes are here, as of the last update."""
        return self.ref.state.settled

    def __len__(self) -> int:
        return len(self.ref)

    @overload
    def __getitem__(self, index: int) -> Job[R]: ...
    @overload
    def __getitem__(self, index: slice | Sequence[int] | Sequence[bool]) -> Jobs[R]: ...
    def __getitem__(self, index: int | slice | Sequence[int] | Sequence[bool]) -> Job[R] | Jobs[R]:
        """A Job by position; several as Jobs, by a slice, positions, or a mask of a bool for each."""
        if not isinstance(index, slice | Iterable):
            try:
                return Job(self.ref, self.ref.indexes[operator.index(index)])
            except IndexError:
                raise IndexError(f"{self.id} has {len(self):,} jobs: there is no {index}") from None
        positions = range(len(self))[index] if isinstance(index, slice) else _positions(index, len(self))
        return Jobs([self[position] for position in positions], f"jobs of {self.id}")

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        gone = self.ref.state.gone
        notes = {"lost": ", lost by the server", "expired": ", expired", "forgotten": ", forgotten"}
        if self.ref.state.settled and gone in {"lost", "expired"}:
            notes = {gone: ", no more on the server"}  # and all of it is here
        note = notes.get(gone, "") + (", cut short" if self.ref.state.cut else "")
        return f"<Batch {self.id}{name}: {self.tally}{note}>"

    def _ipython_display_(self) -> None:
        if kernel.shell() is None:
            print(repr(self))  # noqa: T201 - IPython in a terminal displays by printing
        elif self.ref.shown_in is None or self.ref.shown_in != kernel.cell():
            display.view(self.ref, retry.again)

    # ------------------------------------------------------------ waiting

    def wait(self, timeout: float | None = None) -> bool:
        """True when all jobs have ended, False after `timeout` seconds. Never raises for failed jobs.

        Raises LostByServer or Expired when the store has the batch no more, and what stopped the upload.
        """
        met = waiting.for_batch(self.ref, timeout, bar=display.in_terminal)
        frame.warn_if_truncated(self.ref)
        return met

    def __await__(self) -> Generator[Any, None, Batch[R]]:
        """`await batch` waits as `wait()` and gives the batch; a notebook answers clicks and other tasks meanwhile."""
        return self._awaited().__await__()

    async def _awaited(self) -> Batch[R]:
        ref = self.ref
        if refresh.doubtful(ref):
            await asyncio.to_thread(refresh.reconsider_all, ref)  # it asks the server, which may be slow
        await awaiting.until(ref, lambda: ref.state.settled, bar=display.in_terminal)
        waiting.over(ref)
        frame.warn_if_truncated(ref)
        return self

    def results(self, errors: Literal["raise", "return", "skip"] = "raise", timeout: float | None = None) -> list[R]:
        """Waits, then the values in input order.

        `errors`: "raise" raises BatchFailed if any job did not finish, "return" puts the exception in its place,
        "skip" leaves such jobs out. Where the input broke off, "raise" raises what broke it, the others give what had
        arrived, with a warning. NotDone after `timeout` seconds.
        """
        check_errors(errors)
        self._ended(timeout, strict=errors == "raise")
        if errors == "raise" and self.tally.finished < len(self):
            raise results.complaint(self.ref)
        return values(map(self.ref.job, self.ref.indexes), errors)

    def as_completed(self, timeout: float | None = None) -> Iterator[Job[R]]:
        """Yields each Job when it has ended, earlier ones first. NotDone after `timeout` seconds without one.

        Raises what stopped the upload, after the jobs that had arrived.
        """
        with within(timeout):
            refresh.reconsider_all(self.ref)
        state, stop, seen = self.ref.state, 0, set[int]()

        def news() -> bool:
            return len(state.outcomes.ended) > stop or state.settled

        while not (state.settled and stop >= len(state.outcomes.ended)):
            start = stop
            if not waiting.until(self.ref, news, timeout, arrived=True, bar=display.in_terminal):
                raise self._not_done(timeout)
            stop = len(state.outcomes.ended)
            for index in state.ends(start, stop):
                if index not in seen and index in state.outcomes:
                    seen.add(index)
                    yield Job(self.ref, index)
        waiting.raise_error(self.ref)

    # ------------------------------------------------------------ results as tables

    def to_frame(
        self, *, wait: bool = True, meta: bool = False, args: bool = False, timeout: float | None = None
    ) -> pd.DataFrame:
        """One row per input, in input order: arguments, result, status, error, runtime_s, job_id.

        Never raises for a failed job; where the server has lost the batch, it warns, and the rows say so. `wait=False`
        shows what there is. `meta=True` adds causes, times (UTC), CPU seconds, MB of memory, host and
        worker. `args=True` shows arguments over 1 kB whole. NotDone after `timeout` seconds.
        """
        if wait:
            self._ended(timeout)
        return frame.build(self.ref, meta=meta, args=args)

    def concat(self, *, wait: bool = True, args: bool = False, timeout: float | None = None) -> pd.DataFrame:
        """Results that are DataFrames or Series, one below the other: arguments first, then their own columns.

        The index has the batch's labels outside, the results' own inside. A result that is None adds no row; what did
        not finish is left out, with a warning. Raises BadInput where a result is of another kind, NotDone after
        `timeout` seconds.
        """
        if wait:
            self._ended(timeout)
        return concat.concat(self.ref, args=args)

    def _ended(self, timeout: float | None, *, strict: bool = False) -> None:
        """Waits. Raises NotDone, and where the server lost it or its input broke off: a warning unless `strict`."""
        state, met = self.ref.state, None
        try:
            met = self.wait(timeout)
        except LostByServer as why:
            if strict:
                raise
            warn(str(why))
            return
        except BaseException as why:
            if strict or why is not state.error or not waiting.broke_off(state):
                raise
        if met is None:
            met = waiting.until(self.ref, lambda: state.settled, timeout, arrived=True, bar=display.in_terminal)
            what = f"{type(state.error).__name__}: {state.error}"
            warn(f"{self.id} has the {len(self):,} items from before reading its input failed ({what}).")
        if not met:
            raise self._not_done(timeout)

    def _not_done(self, timeout: float | None) -> NotDone:
        return waiting.not_done(self.ref, f"Batch {self.id}", timeout)

    @property
    def failed(self) -> Jobs[R]:
        """The Jobs that failed so far, as a sequence with a table for a repr. Until all is here, the store is asked."""
        return jobs_of(refresh.failed(self.ref), f"failed jobs in {self.id}")

    # ------------------------------------------------------------ verbs

    def then(self, function: Callable[[R], S] | str, **options: Any) -> Batch[S]:
        """A batch whose job i calls `function` with the result of job i, as soon as that one has finished.

        Also while the input is still read. Where a job fails, the one that waits for it ends as canceled. Keywords are
        nbqueue's options, as in `map`. Raises BadOption.
        """
        return Batch.shown(reattach.submit(plan_then(self.ref, function, options)))

    def retry(self, rows: Any = None, func: Callable[..., Any] | str | None = None, **limits: Any) -> Batch[R]:
        """Runs rows again: the failed ones, or those named by position, Job, job id, or a frame with `job_id`.

        `func` replaces the function; `limits` are timeout, grace, isolate, slice, preload, max_result, spill, and
        queue, to which the whole batch moves. With `func` or `queue` it must have ended. Raises BadInput or BadOption.
        """
        retry.retry(self.ref, rows, func, limits)
        return self

    def cancel(self, *, running: bool = True) -> int:
        """Cancels all jobs that have not ended, or with `running=False` those that wait; returns how many."""
        return self.ref.cancel(running=running)

    def forget(self) -> None:
        """Removes a done batch from server and spool, with its spilled results. Raises BadInput while it runs."""
        forget.forget(self.ref)

    # A Sequence's own versions compare every element, and would unpickle nothing useful.
    def __contains__(self, job: object) -> bool:
        return isinstance(job, Job) and job.batch.id == self.id and self.ref.state.holds(job.index)

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        """The position of a Job of this batch."""
        positions: Iterable[int] = range(len(self))[start:stop]
        if value in self and (position := self.ref.indexes.index(value.index)) in positions:
            return position
        raise ValueError(f"{value!r} is not in {self!r}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Batch) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)


def _positions(index: Any, n: int) -> list[int]:
    """The positions that a list, array or Series of numbers or bools names. Raises TypeError, and IndexError."""
    listed = list(index) if isinstance(index, Iterable) and not isinstance(index, str | bytes) else None
    if listed and all(type(each).__name__ in {"bool", "bool_"} for each in listed):
        if len(listed) != n:
            raise IndexError(f"the mask has {len(listed):,} values for {n:,} jobs")
        return [position for position, wanted in enumerate(listed) if wanted]
    if listed is None or not all(isinstance(each, SupportsIndex) for each in listed):
        raise TypeError(f"a batch is indexed by a position, a slice, positions or a mask, not by {brief(index)}")
    return listed
