"""What is known of batches in this process, by their names, and of them the batches of one that a collector follows.

They are held weakly: a session may have a million. Who enqueues and drops the Job can ask nothing of it any more, so
there is nothing to bring.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbqueue.client.state.batch_state import BatchState


class _Ref(weakref.ref["BatchState"]):
    """A state that may be gone, the name that it stood under, and whether it is of another session."""

    __slots__ = ("batch", "foreign")
    batch: str
    foreign: bool


class KnownStates:
    """States by the name of their batch, of which there may be several. Whoever calls holds the collector's lock."""

    def __init__(self) -> None:
        self._named: dict[str, list[_Ref]] = {}
        self._lost: deque[_Ref] = deque()  # those whose state is gone; filled wherever a thread happens to be

    def __len__(self) -> int:
        while self._lost:
            self._remove(self._lost.popleft())
        return len(self._named)

    def __iter__(self) -> Iterator[BatchState]:
        return iter([state for batch in list(self._named) for state in self.of(batch)])

    def of(self, batch: str) -> list[BatchState]:
        """The states of this batch."""
        return [state for ref in self._named.get(batch, ()) if (state := ref()) is not None]

    def add(self, state: BatchState) -> None:
        """Takes a state in, once."""
        if state not in self.of(state.batch):
            self._add(state)

    def _add(self, state: BatchState) -> _Ref:
        ref = _Ref(state, self._lost.append)
        ref.batch, ref.foreign = state.batch, state.foreign
        self._named.setdefault(ref.batch, []).append(ref)
        return ref

    def drop(self, state: BatchState) -> None:
        """Lets go of a state."""
        for ref in list(self._named.get(state.batch, ())):
            if ref() is state:
                self._remove(ref)

    def _remove(self, ref: _Ref) -> None:
        left = [each for each in self._named.get(ref.batch, ()) if each is not ref]
        if left:
            self._named[ref.batch] = left
        else:
            self._named.pop(ref.batch, None)


class SingleJobIndex(KnownStates):
    """The batches of one that are followed: those of our own session, and of others."""

    def __init__(self) -> None:
        super().__init__()
        self._kinds: dict[bool, dict[_Ref, None]] = {False: {}, True: {}}  # of our own session, and of others
        self._turns: dict[bool, list[_Ref]] = {False: [], True: []}  # whose turn is to come

    def some(self, size: int, *, foreign: bool) -> list[BatchState]:
        """Up to `size` of those of our own session, or of others: not again before all have had their turn."""
        turns, kind = self._turns[foreign], self._kinds[foreign]
        if not turns:
            turns += reversed(kind)
        found: list[BatchState] = []
        while turns and len(found) < size:
            ref = turns.pop()
            if ref in kind and (state := ref()) is not None:
                found.append(state)
        return found

    def _add(self, state: BatchState) -> _Ref:
        ref = super()._add(state)
        self._kinds[ref.foreign][ref] = None
        return ref

    def _remove(self, ref: _Ref) -> None:
        self._kinds[ref.foreign].pop(ref, None)
        super()._remove(ref)
