"""The outcomes of one batch, by the indexes of its jobs: as bytes, as offsets in the spool, or as canceled ranges."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path

from nbqueue.client.spool import records
from nbqueue.errors import BadSignature
from nbqueue.model import Cause, Outcome, State
from nbqueue.store.records import Stored


class OutcomeTable:
    """What has landed of a batch. Nothing here is unpickled, or even unsealed.

    The lock of its BatchState guards it, which alone writes to it.
    """

    def __init__(self, batch: str) -> None:
        self.batch = batch
        self.ended: list[int | range] = []  # in the order in which they ended
        self.withdrawn: list[int] = []  # by retries, in that order
        self.weight = 0  # bytes of those in memory
        self.files: list[Path] = []  # of the spool, that offsets are in
        self._blobs: dict[int, bytes | int] = {}  # outcomes as in the store, or their offsets in the spool
        self._inline: dict[int, Outcome] = {}  # those of an inline run, which never were bytes
        self._canceled: list[range] = []  # jobs that were canceled together, and have no outcomes of their own
        self._causes: dict[range, Cause] = {}  # of the ranges
        self._not_canceled: set[int] = set()  # in these ranges, but a retry withdrew it

    # ------------------------------------------------------------ reading

    def __len__(self) -> int:
        return len(self._blobs) + len(self._inline) + self._only_canceled()

    def __contains__(self, index: int) -> bool:
        return index in self._blobs or index in self._inline or self._is_canceled(index)

    def _only_canceled(self) -> int:
        """The number of jobs that were canceled with a range of others, and have no outcome of their own."""
        if not self._canceled:
            return 0
        end, number = 0, 0
        own = sorted(self._blobs.keys() | self._inline.keys() | self._not_canceled)
        for canceled in sorted(self._canceled, key=lambda each: each.start):
            low = max(canceled.start, end)
            end = max(end, canceled.stop)
            number += max(0, canceled.stop - low) - max(0, bisect_left(own, canceled.stop) - bisect_left(own, low))
        return number

    def _is_canceled(self, index: int) -> bool:
        if not self._canceled or index in self._not_canceled:
            return False
        return any(index in canceled for canceled in self._canceled)

    def state(self, index: int) -> State | None:
        """How a job ended, by its unsigned header; None while it has not."""
        if index in self._inline:
            return self._inline[index].state
        found = self._blobs.get(index)
        if found is not None:
            return header(found)[0]
        return State.CANCELED if self._is_canceled(index) else None

    def attempt(self, index: int) -> int:
        """The attempt of a job's outcome; 0 for one that never ran."""
        found = self._blobs.get(index)
        return header(found)[1] if found is not None else 0

    def unsealed(self, index: int) -> Outcome | None:
        """The outcome of a job that never was bytes: of an inline run, or canceled with others."""
        if index in self._inline:
            return self._inline[index]
        if index in self._blobs or not self._is_canceled(index):
            return None
        cause = next((cause for canceled, cause in self._causes.items() if index in canceled), Cause.USER)
        return Outcome(State.CANCELED, cause, 0, 0, 0)

    def is_inline(self, index: int) -> bool:
        """Whether it is the outcome of an inline run."""
        return index in self._inline

    def get(self, index: int) -> bytes | int | None:
        """The outcome of a job as it lay in the store, or its offset in the spool."""
        return self._blobs.get(index)

    def blob(self, found: bytes | int) -> bytes:
        """An outcome as it lay in the store, read from the spool if need be. Raises BadSignature."""
        if isinstance(found, bytes):
            return found
        where = records.unpack_offset(found)
        try:
            return records.read(self.files[where.file], where.offset, where.size)
        except OSError as why:
            raise BadSignature(what=f"An outcome of {self.batch}", why=f"the spool has lost it ({why})") from why

    def stored(self, index: int) -> bytes | None:
        """The outcome of a job as it lay in the store; None where it is not here. Raises BadSignature."""
        found = self._blobs.get(index)
        return None if found is None else self.blob(found)

    def in_memory(self, index: int) -> bytes | None:
        """The outcome of a job as it lay in the store, if it is small enough to be held here."""
        found = self._blobs.get(index)
        return found if isinstance(found, bytes) else None

    def in_spool(self) -> list[tuple[int, int]]:
        """The jobs whose outcomes are read from the spool, with their offsets."""
        return [(index, found) for index, found in list(self._blobs.items()) if isinstance(found, int)]

    def ends(self, start: int, stop: int) -> Iterator[int]:
        """The indexes that ended, from entry `start` of the order up to `stop`."""
        for entry in self.ended[start:stop]:
            if isinstance(entry, range):
                yield from entry
            else:
                yield entry

    def checkpoint(self) -> tuple[list[tuple[int, int, Cause]], list[int]]:
        """What the spool is to know of the ranges: (start, stop, cause), and the jobs that were withdrawn from them."""
        causes = self._causes
        canceled = [
            (each.start, each.stop, next((causes[other] for other in causes if each.start in other), Cause.USER))
            for each in self._canceled
        ]
        return canceled, sorted(self._not_canceled)

    # ------------------------------------------------------------ writing

    def put(self, index: int, found: bytes | int | Outcome) -> None:
        """An outcome: as it lies in the store, its offset in the spool, or that of an inline run."""
        if isinstance(found, Outcome):
            self._inline[index] = found
            return
        self._inline.pop(index, None)
        before = self._blobs.get(index)
        if isinstance(before, bytes):
            self.weight -= len(before)
        if isinstance(found, bytes):
            self.weight += len(found)
        self._blobs[index] = found

    def withdraw(self, index: int) -> bytes | int | None:
        """A retry has withdrawn this job's outcome, which is returned."""
        found = self._blobs.pop(index, None)
        if isinstance(found, bytes):
            self.weight -= len(found)
        self._inline.pop(index, None)
        self.withdrawn.append(index)
        if any(index in canceled for canceled in self._canceled):
            self._not_canceled.add(index)
        return found

    def cancel(self, canceled: range) -> None:
        """These jobs were canceled together."""
        self._canceled.append(canceled)
        self._not_canceled = {index for index in self._not_canceled if index not in canceled}
        self.ended.append(canceled)

    def uncancel(self, canceled: range) -> None:
        """What these jobs depend on runs again, and they wait for it."""
        if canceled in self._canceled:
            self._canceled.remove(canceled)

    def causes(self, canceled: dict[range, Cause]) -> None:
        """Why the ranges were canceled."""
        self._causes = canceled

    def forget_canceled(self) -> None:
        """The log of the batch is read from its start once more."""
        self._canceled.clear()
        self._not_canceled.clear()

    def recall(self, canceled: list[tuple[int, int, Cause]], not_canceled: list[int]) -> None:
        """The ranges as a checkpoint in the spool has them."""
        self._canceled = [range(low, high) for low, high, _ in canceled]
        self._causes = {range(low, high): cause for low, high, cause in canceled}
        self._not_canceled = set(not_canceled)
        self.ended += self._canceled

    def file_number(self, path: Path) -> int:
        """The number of a file of the spool, as offsets tell it."""
        if path not in self.files:
            self.files.append(path)
        return self.files.index(path)


def header(found: bytes | int) -> tuple[State, int]:
    """State and attempt of a stored outcome; one that is damaged counts as failed, and says why when it is opened."""
    try:
        stored = Stored.parse(found if isinstance(found, bytes) else records.head_of(found))
    except BadSignature:
        return State.FAILED, 0
    return stored.state, stored.attempt
