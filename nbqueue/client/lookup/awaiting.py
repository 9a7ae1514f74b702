"""`await batch` and `await job`: waiting that leaves the event loop free, so that a notebook answers clicks meanwhile.

No thread is made for it: the collector's news wake the loop, which looks now and then anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator

from nbqueue.client.lookup import waiting
from nbqueue.client.session.batch_ref import BatchRef
from nbqueue.client.session.kernel import shell
from nbqueue.client.session.session import tell
from nbqueue.client.state.batch_state import BatchState

LOOK = 0.1  # seconds between two looks without news


class _Bell:
    """Stands among the listeners of a batch, and wakes the loop that waits."""

    def __init__(self) -> None:
        self._loop, self._rung = asyncio.get_running_loop(), asyncio.Event()

    def update(self, state: BatchState) -> None:
        """Takes news, from any thread."""
        del state
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            self._loop.call_soon_threadsafe(self._rung.set)

    async def heard(self, seconds: float) -> None:
        """Waits for news, at most so long."""
        # Not wait_for: before Python 3.12 it swallows a cancellation (the user's interrupt) that meets the news.
        late = self._loop.call_later(seconds, self._rung.set)
        try:
            await self._rung.wait()
        finally:
            late.cancel()
        self._rung.clear()


async def until(
    batch: BatchRef, met: Callable[[], bool], *, index: int | None = None, bar: waiting.Bar = waiting.no_bar
) -> None:
    """As waiting.until, for a running event loop. A task that is canceled leaves the batch running."""
    waiting.prepare(batch, met)
    begun, advice = time.monotonic(), waiting.Advice(batch.session, batch.state)
    try:
        with _listening(batch.state) as bell, waiting.awaiting(batch.state, index), bar(batch) as show:
            while not met():
                waiting.raise_trouble(batch, index)
                await bell.heard(LOOK)
                show()
                if time.monotonic() - begun > waiting.ADVISE:
                    advice.give()
    except asyncio.CancelledError:
        if shell() is not None:  # there it was the interrupt of this cell
            tell(waiting.stopped(batch))
        raise


@contextlib.contextmanager
def _listening(state: BatchState) -> Iterator[_Bell]:
    bell = _Bell()
    state.bars.append(bell)
    try:
        yield bell
    finally:
        state.bars.remove(bell)
