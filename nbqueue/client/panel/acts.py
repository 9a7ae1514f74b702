"""What the buttons of a panel do. Each answers what there is to say of it, and raises what its verb raises."""

from __future__ import annotations

from collections.abc import Callable

from nbqueue.client.panel import model
from nbqueue.client.panel.failures import Groups, Member
from nbqueue.client.session.batch_ref import BatchRef

Retry = Callable[[BatchRef], tuple[int, str]]  # runs what failed again: how many, and what there is to say of it


class Acts:
    """The verbs for all batches of one panel.

    A widget lives until its page forgets it, so what it holds lives as long; `drop` lets the batches go.
    """

    def __init__(self, batches: list[BatchRef], groups: Groups, retry: Retry) -> None:
        self._retry = retry
        self.hold(batches, groups)

    def hold(self, batches: list[BatchRef], groups: Groups) -> None:
        """Acts on these from now on."""
        self._batches, self._groups = batches, groups

    def drop(self) -> None:
        """Acts on nothing from now on."""
        self._batches, self._groups = [], Groups(str)

    def cancel(self) -> str:
        """Cancels all that has not ended."""
        count = sum(batch.cancel() for batch in list(self._batches) if not model.ended(batch.watch))
        return f"{count:,} canceled."

    def cancel_earlier(self) -> str:
        """Cancels what the same cell submitted before."""
        before = {one.id: one for batch in list(self._batches) for one in batch.earlier if not model.ended(one.watch)}
        count = sum(one.cancel() for one in before.values())
        return f"{count:,} canceled of {', '.join(before) or 'what was submitted before'}."

    def retry(self) -> str:
        """Runs what failed again; says so where the notebook's function is another one by now."""
        count, told = 0, []
        for batch in list(self._batches):
            if batch.watch.tally.failed and not batch.watch.gone:
                again, note = self._retry(batch)
                count += again
                told.append(note)
        return " ".join([f"{count:,} run again.", *dict.fromkeys(filter(None, told))])

    def batch_of(self, member: Member) -> BatchRef:
        """The batch of a failed job."""
        return self._groups.batch(member)
