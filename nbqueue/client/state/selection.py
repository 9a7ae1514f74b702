"""What a session knows of some jobs of a batch: those of one call, where others may be in the batch too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import msgspec

from nbqueue.client.spool.records import Checkpoint
from nbqueue.client.state.batch_state import BatchState
from nbqueue.model import Outcome, Spec, State, Tally
from nbqueue.store.decoding import Progress, entry_of


class Sent(Sequence[int]):
    """The jobs of a call whose items are still read: the first `n`, as a range that grows."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __contains__(self, index: object) -> bool:
        return index in range(self.n)

    def __getitem__(self, place: Any) -> Any:
        return range(self.n)[place]


class Selection(BatchState):
    """The memory of the jobs at `rows`, in the order in which one call named them. Indexes are those of the batch."""

    def __init__(
        self,
        batch: str,
        queue: str,
        epoch: str,
        spec: Spec,
        rows: Sequence[int],
        *,
        whole: Tally | None = None,
        max_failed: float | None = None,
    ) -> None:
        super().__init__(batch, queue, epoch, spec, max_failed=max_failed)
        self.rows: Sequence[int] = rows
        self._own: Collection[int] = rows if isinstance(rows, range | Sent) else frozenset(rows)
        self.whole_tally = whole or Tally()  # of the whole batch, as last heard
        self._states: dict[int, State] = {}
        self._counts: Counter[State] = Counter()

    @property
    def n(self) -> int:
        """The number of these jobs."""
        return len(self.rows)

    @property
    def others(self) -> bool:
        """Whether the batch held other jobs, too, when it was heard of last; another call may add some at any time."""
        return self.whole_tally.n > len(self.rows)

    def holds(self, index: int) -> bool:
        """Whether it is one of these."""
        return index in self._own

    @property
    def collected(self) -> int:
        """The number of them whose outcomes are here."""
        return len(self._states)

    def ends(self, start: int, stop: int) -> Iterator[int]:
        """The indexes among these that ended, from entry `start` of the order up to `stop`."""
        return (index for index in super().ends(start, stop) if index in self._own)

    def standing(self, now: float) -> Checkpoint:
        """How it stands, for the spool: where there are others, nothing is said of what was not copied."""
        found = super().standing(now)
        return msgspec.structs.replace(found, position=0, over=False, n=self.whole_tally.n) if self.others else found

    # ------------------------------------------------------------ writing (hold `changed`)

    def see(self, view: Progress, *, caught_up: bool, slots: int) -> None:
        """As of the whole, whose counts are these jobs' own only where there are no others."""
        super().see(view, caught_up=caught_up, slots=slots)
        self.whole_tally = self.tally
        if not view.open and isinstance(self.rows, Sent):
            self.rows.n = min(self.rows.n, view.n)  # what did not arrive is in no batch
        if self.others:
            self.tally = self._tally()
            last = len(self._own) - 1 if isinstance(self._own, range | Sent) else max(self._own, default=-1)
            arrived = self.whole_tally.n > last
            self.open, self.cut = self.open and not arrived, self.cut and not arrived
            self.over = self.over or self.tally.over == len(self.rows)

    def reach(self, n: int) -> None:
        """So many calls have been read of an iterator, and are sent next."""
        if isinstance(self.rows, Sent):
            self.rows.n = n

    def _tally(self) -> Tally:
        counts = {str(state): self._counts[state] for state in (State.FINISHED, State.FAILED, State.CANCELED)}
        left = len(self.rows) - sum(counts.values())
        for state in (State.STARTED, State.SCHEDULED, State.DEFERRED):
            counts[str(state)] = min(left, getattr(self.whole_tally, state))  # of which of them they are is not known
            left -= counts[str(state)]
        return Tally(n=len(self.rows), queued=left, **counts)

    def enter(self, entry: bytes) -> None:
        """Takes one entry of the batch's log, if it is of these. Raises Damaged."""
        _, low, high = entry_of(entry)
        if not high and low not in self._own:
            return
        super().enter(entry)
        if high:
            for index in self.rows:
                if low <= index < high:
                    self._count(index)

    def keep(self, index: int, found: bytes | int | Outcome) -> None:
        """As of any batch."""
        super().keep(index, found)
        self._count(index)

    def recall(self, standing: Checkpoint | None) -> None:
        """As of any batch."""
        super().recall(standing)
        for index in self.rows if standing is not None and standing.canceled_ranges else ():
            self._count(index)

    def withdraw(self, index: int) -> None:
        """As of any batch."""
        super().withdraw(index)
        self._count(index)

    def _count(self, index: int) -> None:
        before, after = self._states.pop(index, None), self.outcomes.state(index)
        if before is not None:
            self._counts[before] -= 1
        if after is not None and index in self._own:
            self._states[index] = after
            self._counts[after] += 1
        if self.others:
            self.tally = self._tally()
