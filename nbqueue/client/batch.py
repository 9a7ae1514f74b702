"""A handle on a batch: a sequence of Jobs, from memory. Waits and verbs ask the store; `repr` and properties do not."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Literal, SupportsIndex, TypeVar, overload

from nbqueue.checks import brief, warn
from nbqueue.client.frames import frame
from nbqueue.client.job import Job
from nbqueue.client.jobs import Jobs
from nbqueue.client.lookup import refresh, spills, waiting
from nbqueue.client.lookup.results import error_of, parents_of, text_of, value_of
from nbqueue.client.panel import display
from nbqueue.client.session.session import Session, within
from nbqueue.client.state.batch_state import Watch
from nbqueue.client.submit import retry
from nbqueue.errors import (
    BadInput,
    BadOption,
    BadSignature,
    BatchFailed,
    CannotOpen,
    JobFailed,
    LostByServer,
    NbqueueError,
    NotPicklable,
    SpillLost,
)
from nbqueue.model import Hook, Outcome, Spec, State, Tally

if TYPE_CHECKING:
    import pandas as pd

    from nbqueue.client.enqueuing import Prepared

R = TypeVar("R")
S = TypeVar("S")


class Batch(Sequence[Job[R]], Generic[R]):
    """One submission: a function and n argument sets. `batch[3]` is the Job of item 3; iterating never waits."""

    def __init__(
        self,
        session: Session,
        watch: Watch,
        spec: Spec,
        *,
        name: str | None = None,
        function: Callable[..., Any] | None = None,
        inline: bool | str = False,
    ) -> None:
        self.session, self.watch, self.spec = session, watch, spec
        self.name, self.function, self.inline = name, function, inline
        self.shown_in = display.cell()
        self.visible = False  # whether a bar may be drawn while someone waits
        self.earlier: list[Batch[Any]] = []  # what the same cell submitted before, and still ran then
        self.told = ""  # what became of a submission under a name that was there already
        self.source: Batch[Any] | None = None  # whose results are the arguments
        self.hooks: dict[str, Hook] = {}  # the callbacks of an inline run
        self.unsent: Prepared | None = None  # the call of a job that was created, until it is enqueued
        session.collector.know(watch)

    # ------------------------------------------------------------ what it is

    @property
    def id(self) -> str:
        """Its id, as `count_words-7k2f`."""
        return self.watch.batch

    @property
    def indexes(self) -> Sequence[int]:
        """The indexes of its jobs in the store, by position: another order where a name was submitted again."""
        return self.watch.indexes

    @property
    def queue(self) -> str:
        """The queue that it was submitted to."""
        return self.watch.queue

    @property
    def single(self) -> bool:
        """Whether it is a batch of one made by `submit`."""
        return self.spec.single

    @property
    def seed(self) -> int | None:
        """What the jobs' random generators are seeded with, together with their index."""
        return self.spec.seed

    @property
    def code(self) -> str:
        """The version of its function, as the frame's column `code` has it: jobs that run from now on run this one."""
        return self.spec.version

    @property
    def tally(self) -> Tally:
        """Counts by state, as last heard."""
        return self.watch.tally

    @property
    def done(self) -> bool:
        """Whether all have ended and their outcomes are here, as last heard."""
        return self.watch.settled

    def __len__(self) -> int:
        return self.watch.n

    @overload
    def __getitem__(self, index: int) -> Job[R]: ...
    @overload
    def __getitem__(self, index: slice | Sequence[int] | Sequence[bool]) -> Jobs[R]: ...
    def __getitem__(self, index: int | slice | Sequence[int] | Sequence[bool]) -> Job[R] | Jobs[R]:
        """A Job by position; several as Jobs, by a slice, positions, or a mask of a bool for each."""
        if not isinstance(index, slice | Iterable):
            try:
                return Job(self, self.indexes[operator.index(index)])
            except IndexError:
                raise IndexError(f"{self.id} has {len(self):,} jobs: there is no {index}") from None
        places = range(len(self))[index] if isinstance(index, slice) else _places(index, len(self))
        return Jobs([self[place] for place in places], f"jobs of {self.id}")

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        marks = {"lost": ", lost by the server", "expired": ", expired", "forgotten": ", forgotten"}
        if self.watch.settled and self.watch.gone in {"lost", "expired"}:
            marks = {self.watch.gone: ", no more on the server"}  # and all of it is here
        tail = marks.get(self.watch.gone, "") + (", cut short" if self.watch.cut else "")
        return f"<Batch {self.id}{name}: {self.tally}{tail}>"

    def _ipython_display_(self) -> None:
        if self.shown_in is None or self.shown_in != display.cell():
            display.view(self)

    # ------------------------------------------------------------ waiting

    def wait(self, timeout: float | None = None) -> bool:
        """True when all jobs have ended, False after `timeout` seconds. Never raises for failed jobs.

        Raises LostByServer or Expired when the store has the batch no more, and what stopped the upload.
        """
        first = partial(refresh.reconsider_all, self) if refresh.doubtful(self) else None
        met = waiting.until(self, lambda: self.watch.settled, timeout, first=first)
        self._end_of_wait()
        return met

    def _end_of_wait(self) -> None:
        self.watch.show()  # its end belongs to the cell that waited
        waiting.raise_error(self)
        frame.warn_if_cut(self)

    def __await__(self) -> Generator[Any, None, Batch[R]]:
        """`await batch` waits as `wait()` and gives the batch; a notebook answers clicks and other tasks meanwhile."""
        return self._awaited().__await__()

    async def _awaited(self) -> Batch[R]:
        from nbqueue.client.lookup import awaiting

        if refresh.doubtful(self):
            await asyncio.to_thread(refresh.reconsider_all, self)  # it asks the server, which may be slow
        await awaiting.until(self, lambda: self.watch.settled)
        self._end_of_wait()
        return self

    def results(self, errors: Literal["raise", "return", "skip"] = "raise", timeout: float | None = None) -> list[R]:
        """Waits, then the values in input order.

        `errors`: "raise" raises BatchFailed if any job did not finish, "return" puts the exception in its place,
        "skip" leaves such jobs out. Where the input broke off, "raise" raises what broke it, the others give what had
        arrived, with a warning. NotDone after `timeout` seconds.
        """
        if errors not in {"raise", "return", "skip"}:
            raise BadOption(message=f"errors={brief(errors)} must be 'raise', 'return' or 'skip'.")
        if not (self.wait(timeout) if errors == "raise" else self._arrived(timeout)):
            raise waiting.not_done(self, f"Batch {self.id}", timeout)
        if errors == "raise" and self.tally.finished < len(self):
            raise self._complaint()
        found: list[Any] = []
        for index in self.indexes:
            value, error = self.value_or_error(index)
            if error is None:
                found.append(value)
            elif errors == "return":
                found.append(error)
            elif errors == "raise":
                raise error
        return found

    def value_or_error(self, index: int) -> tuple[Any, BaseException | None]:
        """The value of a job that has ended, or the error that stands in its place."""
        job = Job(self, index).id
        try:
            outcome = self.watch.outcome(index, self.session.sealer)
            if outcome is None:
                return None, waiting.absence(self.watch, self.session, job)
            error = error_of(outcome, job, parents_of(self.spec))
            return (value_of(outcome, job), None) if error is None else (None, error)
        except (SpillLost, BadSignature, CannotOpen) as why:
            return None, why

    def outcomes(self) -> Iterator[tuple[int, Outcome]]:
        """(index, outcome) of all jobs that have ended, in input order; one that cannot be read counts as failed."""
        sealer = self.session.sealer
        for index in self.indexes:
            outcome = self.watch.shown(index, sealer)
            if outcome is not None:
                yield index, outcome

    def _complaint(self) -> NbqueueError:
        tally = self.tally
        bad = ((index, outcome) for index, outcome in self.outcomes() if outcome.state is not State.FINISHED)
        index, outcome = next(bad, (-1, None))
        if outcome is None:  # counted as failed, and its record is gone
            return waiting.absence(self.watch, self.session, self.id)
        job, parents = Job(self, index).id, parents_of(self.spec)
        facts: dict[str, Any] = {"failed": tally.failed + tally.canceled, "n": len(self), "batch": self.id, "job": job}
        if tally.failed:
            facts["what"] = "did not finish" + (f" ({tally.canceled} canceled)" if tally.canceled else "")
            facts["remedy"] = "`batch.failed` lists those that failed, `batch.retry()` runs them again"
        else:
            facts |= {"what": "were canceled", "remedy": f"{retry.canceled_again(self)} runs them"}
        complaint = BatchFailed(**facts, error=text_of(outcome, parents).rstrip("."))
        complaint.__cause__ = error_of(outcome, job, parents) or JobFailed(job=job, cause=None, error="")
        return complaint

    def as_completed(self, timeout: float | None = None) -> Iterator[Job[R]]:
        """Yields each Job when it has ended, earlier ones first. NotDone after `timeout` seconds without one.

        Raises what stopped the upload, after the jobs that had arrived.
        """
        with within(timeout):
            refresh.reconsider_all(self)
        watch, place, seen = self.watch, 0, set[int]()

        def news() -> bool:
            return len(watch.ended) > place or watch.settled

        while not (watch.settled and place >= len(watch.ended)):
            start = place
            if not waiting.until(self, news, timeout, arrived=True):
                raise waiting.not_done(self, f"Batch {self.id}", timeout)
            place = len(watch.ended)
            for index in watch.ends(start, place):
                if index not in seen and watch.has(index):
                    seen.add(index)
                    yield Job(self, index)
        waiting.raise_error(self)

    # ------------------------------------------------------------ looking

    def to_frame(
        self, *, wait: bool = True, meta: bool = False, args: bool = False, timeout: float | None = None
    ) -> pd.DataFrame:
        """One row per input, in input order: arguments, result, status, error, runtime_s, job_id.

        Never raises for a failed job; where the server has forgotten the batch, a warning and the rows say so.
        `wait=False` shows what there is. `meta=True` adds causes, times (UTC), CPU seconds, MB of memory, host and
        worker. `args=True` shows arguments over 1 kB whole. NotDone after `timeout` seconds.
        """
        if wait and not self._arrived(timeout):
            raise waiting.not_done(self, f"Batch {self.id}", timeout)
        return frame.build(self, meta=meta, args=args)

    def concat(self, *, wait: bool = True, args: bool = False, timeout: float | None = None) -> pd.DataFrame:
        """Results that are DataFrames or Series, one below the other: arguments first, then their own columns.

        The index has the batch's labels outside, the results' own inside. A result that is None adds no row; what did
        not finish is left out, with a warning. Raises BadInput where a result is of another kind, NotDone after
        `timeout` seconds.
        """
        from nbqueue.client.frames import concat

        if wait and not self._arrived(timeout):
            raise waiting.not_done(self, f"Batch {self.id}", timeout)
        return concat.stack(self, args=args)

    def _arrived(self, timeout: float | None) -> bool:
        """As wait; where the input broke off, or the server forgot, what had arrived is enough, with a warning."""
        watch = self.watch
        try:
            return self.wait(timeout)
        except LostByServer as why:
            warn(str(why))
            return True
        except BaseException as why:
            if why is not watch.error or not waiting.broke_off(watch):
                raise
        met = waiting.until(self, lambda: watch.settled, timeout, arrived=True)
        what = f"{type(watch.error).__name__}: {watch.error}"
        warn(f"{self.id} has the {len(self):,} items that came before its input broke off ({what}).")
        return met

    @property
    def failed(self) -> Jobs[R]:
        """The Jobs that failed so far, as a sequence with a table for a repr. Until all is here, the store is asked."""
        watch = self.watch
        if self.inline or watch.settled or watch.gone:
            lost = watch.gone == "lost"
            failed = [
                Job(self, index)
                for index in self.indexes
                if watch.state(index) is State.FAILED or (lost and not watch.has(index))
            ]
        else:
            named = set(self.session.ask(lambda broker: broker.failed(self.id)))
            failed = [Job(self, index) for index in self.indexes if index in named]
            refresh.look(failed)
        return Jobs(failed, f"failed jobs in {self.id}")

    # ------------------------------------------------------------ verbs

    def then(self, function: Callable[[R], S] | str, **options: Any) -> Batch[S]:
        """A batch whose job i calls `function` with the result of job i, as soon as that one has finished.

        Also while the input is still read. Where a job fails, the one that waits for it ends as canceled. Keywords are
        nbqueue's options, as in `map`. Raises BadOption.
        """
        from nbqueue.client.submit import following

        return following.batch(self, function, options)

    def retry(self, rows: Any = None, func: Callable[..., Any] | str | None = None, **limits: Any) -> Batch[R]:
        """Runs rows again: the failed ones, or those named by position, Job, job id, or a frame with `job_id`.

        `func` replaces the function; `limits` are timeout, grace, isolate, slice, preload, max_result, spill, and
        queue, to which the whole batch moves. With `func` or `queue` it must have ended. Raises BadInput or BadOption.
        """
        retry.retry(self, rows, func, limits)
        return self

    def cancel(self, *, running: bool = True) -> int:
        """Cancels all that has not ended; `running=False` spares what runs. Answers how many were canceled."""
        if self.inline:
            return 0
        if self.watch.upload is not None:
            self.watch.upload.stop()
        rows = self.watch.chosen
        return self.session.ask(lambda broker: broker.cancel(self.id, rows, running=running))

    def forget(self) -> None:
        """Removes a done batch from server and spool, with its spilled results. Raises BadInput while it runs."""
        if not self.inline and not self.session.ask(lambda broker: broker.forget(self.id)):
            raise BadInput(message=f"{self.id} still runs ({self.tally}): wait for it, or cancel() it, then forget it.")
        self.session.collector.drop(self.watch)
        self.watch.hold()
        self.watch.gone = "forgotten"
        if self.watch.birth is not None:
            self.session.spool.forget(self.watch.birth)
        if not self.inline:
            spills.forget(self.session, self.watch, self.spec)

    # A Sequence's own versions compare every element, and would unpickle nothing useful.
    def __contains__(self, job: object) -> bool:
        return isinstance(job, Job) and job.batch.id == self.id and self.watch.holds(job.index)

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        """The position of a Job of this batch."""
        places: Iterable[int] = range(len(self))[start:stop]
        if value in self and (place := self.indexes.index(value.index)) in places:
            return place
        raise ValueError(f"{value!r} is not in {self!r}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Batch) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __reduce__(self) -> Any:
        raise NotPicklable(
            what=f"The batch {self.id}",
            why="it is a handle of this process",
            remedy=f"Pickle its id, and get it back with nbqueue.attach({self.id!r})",
        )


def _places(index: Any, n: int) -> list[int]:
    """The positions that a list, array or Series of numbers or bools names. Raises TypeError, and IndexError."""
    listed = list(index) if isinstance(index, Iterable) and not isinstance(index, str | bytes) else None
    if listed and all(type(each).__name__ in {"bool", "bool_"} for each in listed):
        if len(listed) != n:
            raise IndexError(f"the mask has {len(listed):,} values for {n:,} jobs")
        return [place for place, wanted in enumerate(listed) if wanted]
    if listed is None or not all(isinstance(each, SupportsIndex) for each in listed):
        raise TypeError(f"a batch is indexed by a position, a slice, positions or a mask, not by {brief(index)}")
    return listed
