"""What one call sees of a batch, and of one job of it: the data behind the handles `Batch` and `Job`.

Everything below the handles takes these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from nbqueue.client.session import kernel
from nbqueue.client.session.session import Session
from nbqueue.client.state.batch_state import BatchState
from nbqueue.errors import NotPicklable
from nbqueue.model import Hook, Spec, Tally, job_id


@dataclass(frozen=True)
class Prepared:
    """A call with its options, to be sent later; made by `Queue.prepare_data` and `Job.create`."""

    func: Callable[..., Any] | str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


class BatchRef:
    """A batch as one call sees it: what is known of it (`state`), and how this call named and described it."""

    def __init__(
        self,
        session: Session,
        state: BatchState,
        spec: Spec,
        *,
        name: str | None = None,
        function: Callable[..., Any] | None = None,
        inline: bool | str = False,
        source: BatchRef | None = None,
        hooks: dict[str, Hook] | None = None,
        shown: bool = True,
    ) -> None:
        self.session, self.state, self.spec = session, state, spec
        self.name, self.function, self.inline = name, function, inline
        self.source = source  # whose results are the arguments
        self.hooks = hooks or {}  # the callbacks of an inline run
        self.unsent: Prepared | None = None  # the call of a job that was created, until it is enqueued
        self.note = ""  # what became of a submission under a name that was there already
        self.shown_in = kernel.cell() if shown else None  # the cell that shows it without being asked
        self.visible = False  # whether a bar may be drawn while someone waits
        self.earlier: list[BatchRef] = []  # what the same cell submitted before, and still ran then
        session.collector.know(state)

    @property
    def id(self) -> str:
        """Its id, as `count_words-7k2f`."""
        return self.state.batch

    @property
    def indexes(self) -> Sequence[int]:
        """The indexes of its jobs in the store, by position: another order where a name was submitted again."""
        return self.state.indexes

    @property
    def queue(self) -> str:
        """The queue that it was submitted to."""
        return self.state.queue

    @property
    def single(self) -> bool:
        """Whether it is a batch of one made by `submit`."""
        return self.spec.single

    @property
    def tally(self) -> Tally:
        """Counts by state, as last heard."""
        return self.state.tally

    def wanted(self, progress: bool | None = None) -> bool:
        """Whether it is to be shown: as its option `progress` says, or the setting."""
        chosen = self.session.settings.progress if progress is None else progress
        return chosen and not (self.inline or self.single)

    def __len__(self) -> int:
        return self.state.n

    def __bool__(self) -> bool:
        return True

    def job(self, index: int) -> JobRef:
        """The job of this index."""
        return JobRef(self, index)

    def cancel(self, *, running: bool = True) -> int:
        """Cancels all that has not ended; `running=False` spares what runs. Answers how many were canceled."""
        if self.inline:
            return 0
        if self.state.upload is not None:
            self.state.upload.stop()
        rows = self.state.chosen
        return self.session.ask(lambda broker: broker.cancel(self.id, rows, running=running))

    def __reduce__(self) -> Any:
        raise NotPicklable(
            what=f"The batch {self.id}",
            why="it is a handle of this process",
            remedy=f"Pickle its id, and get it back with nbqueue.attach({self.id!r})",
        )


class JobRef:
    """One job of a batch."""

    def __init__(self, batch: BatchRef, index: int) -> None:
        self.batch, self.index = batch, index

    @property
    def id(self) -> str:
        """`batch:index`; of a single job the id of its batch."""
        return self.batch.id if self.batch.single else job_id(self.batch.id, self.index)
