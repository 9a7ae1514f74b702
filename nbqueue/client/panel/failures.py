"""Grouping failures by exception, message without its varying parts, and the user's last frame.

Each outcome is read once, when it is collected, so that an update does not depend on the size of the batch. Signatures
are checked; nothing is unpickled.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from nbqueue.client.lookup.results import text_of
from nbqueue.client.session.batch_ref import BatchRef
from nbqueue.model import Cause, State

if TYPE_CHECKING:
    from nbqueue.client.state.batch_state import BatchState

VARIETY = 5  # groups with the same exception and frame; if there are more, they are merged
LOOK = 2_000  # ended jobs that one update reads
WIDTH = 160  # characters of a message
GAP = "…"  # replaces the varying parts of a message

_LAST = "Traceback (most recent call last):"
_FRAME = re.compile(r'^ *(?:File "(.+)"|Cell (In\[\d+\])), line (\d+)(?:, in .*)?$', re.MULTILINE)
_LIBRARY = re.compile(r"/(?:site|dist)-packages/|/lib/python3[.\d]*/|^<frozen ")
_CELL = re.compile(r"/ipykernel_\d+/|^<ipython-input-|^In\[")
_VARYING = re.compile(
    r"0x[0-9a-fA-F]+|\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|\b(?=\w*\d)[0-9a-f]{12,}\b"
    r"|[-+]?\d[\d,_.]*\d(?:[eE][-+]?\d+)?|\d"
)
_PARTS = re.compile(f"({GAP}|{_VARYING.pattern})")

Frame = tuple[str, int]  # file and line
Member = tuple[int, int]  # which batch, which of its jobs


class FailureGroup:
    """Failures with the same cause. `members` are in the order of their arrival."""

    def __init__(self, type_name: str, message: str, where: str) -> None:
        self.where = where
        self.members: dict[Member, None] = {}
        self._type, self._message = type_name, message

    @property
    def what(self) -> str:
        """The exception and its message, as `KeyError: 'title'`, without the parts that vary between members."""
        text = f"{self._type}: {self._message}" if self._type and self._message else self._type or self._message
        return text if len(text) <= WIDTH else text[: WIDTH - 1] + GAP

    def member(self, position: int) -> Member | None:
        """The member at a position (modulo their number); None if the group is empty by now."""
        members = list(self.members)  # a copy: other threads change it
        return members[position % len(members)] if members else None

    def join(self, message: str) -> None:
        """Adds a message to this group; only the parts that all messages share are shown."""
        if message != self._message:
            if normal(message) == normal(self._message):
                self._message = _merged(self._message, message)
            else:
                self._message = _shared(self._message, message)


class FailureGroups:
    """The failure groups of some batches; `update` reads the jobs that have ended since."""

    def __init__(self, words: Callable[[Frame], str]) -> None:
        self._words = words
        self._batches: list[BatchRef] = []
        self._read: list[list[int]] = []  # entries of `ended` and of `withdrawn` that were read, by batch
        self._followed: list[BatchState] = []  # the states that were read: a restored batch may get a new one
        self._groups: dict[Any, dict[str, FailureGroup]] = {}  # (cause, type, frame) -> normal message -> group
        self._group_of: dict[Member, tuple[Any, FailureGroup]] = {}

    def __len__(self) -> int:
        return len(self._group_of)

    def add(self, batch: BatchRef) -> None:
        """Adds a batch."""
        self._batches.append(batch)
        self._read.append([0, 0])
        self._followed.append(batch.state)

    def groups(self) -> list[FailureGroup]:
        """All groups, in the order in which they appeared."""
        return [group for groups in self._groups.values() for group in groups.values()]

    def update(self, most: int = LOOK) -> bool:
        """Reads up to `most` ended jobs; returns whether that was all."""
        for position, batch in enumerate(self._batches):
            state, read = batch.state, self._read[position]
            if state is not self._followed[position]:
                self._followed[position], read[:] = state, [0, 0]
                for member in [member for member in self._group_of if member[0] == position]:
                    self._remove(member)
            with state.changed:
                ended, withdrawn = state.outcomes.ended[read[0] : read[0] + most], state.outcomes.withdrawn[read[1] :]
            read[0] += len(ended)
            read[1] += len(withdrawn)
            most -= len(ended)
            for index in withdrawn:
                self._remove((position, index))
            for entry in ended:  # ranges were canceled, not run
                if isinstance(entry, int) and state.outcomes.state(entry) is State.FAILED:
                    self._add_failure((position, entry), batch)
            if most <= 0:
                return False
        return True

    def batch(self, member: Member) -> BatchRef:
        """The batch of a member."""
        return self._batches[member[0]]

    # ------------------------------------------------------------ one job

    def _add_failure(self, member: Member, batch: BatchRef) -> None:
        self._remove(member)
        failure = _failure(batch, member[1])
        if failure is None:
            return
        cause, type_name, message, frame = failure
        key = cause, type_name, frame
        groups = self._groups.setdefault(key, {})
        name = GAP if GAP in groups else normal(message)
        group = groups.get(name)
        if group is None:
            group = groups[name] = FailureGroup(type_name, message, self._words(frame) if frame else "")
        group.join(message)
        group.members[member] = None
        self._group_of[member] = key, group
        if len(groups) > VARIETY:
            self._merge(key)

    def _merge(self, key: Any) -> None:
        """Merges the groups of one exception and frame; the message keeps the parts that they share."""
        first, *others = self._groups[key].values()
        for other in others:
            first.join(other._message)  # noqa: SLF001 - its own module
            for member in other.members:
                first.members[member] = None
                self._group_of[member] = key, first
        self._groups[key] = {GAP: first}

    def _remove(self, member: Member) -> None:
        if member not in self._group_of:
            return
        key, group = self._group_of.pop(member)
        del group.members[member]
        if not group.members:
            groups = self._groups[key]
            for name in [name for name, each in groups.items() if each is group]:
                del groups[name]
            if not groups:
                del self._groups[key]


def _failure(batch: BatchRef, index: int) -> tuple[Cause | None, str, str, Frame | None] | None:
    """(cause, exception, first line of the message, frame) of a failed job; None if it was retried meanwhile."""
    outcome = batch.state.shown(index, batch.session.sealer)
    if outcome is None or outcome.state is not State.FAILED:
        return None
    failure = outcome.failure
    if failure is None:
        return outcome.cause, "", text_of(outcome), None
    # A time limit may interrupt any line.
    frame = None if outcome.cause is Cause.TIMEOUT else frame_of(failure.traceback)
    return outcome.cause, failure.type, _line(failure.message), frame


# ---------------------------------------------------------------- words


@lru_cache(maxsize=512)
def frame_of(traceback: str) -> Frame | None:
    """The last frame outside of libraries, of the exception that ended the job; else the last frame."""
    found = [(file or cell, int(line)) for file, cell, line in _FRAME.findall(traceback.rpartition(_LAST)[2])]
    own = [frame for frame in found if not _LIBRARY.search(frame[0])] or found
    return own[-1] if own else None


@lru_cache(maxsize=512)
def normal(message: str) -> str:
    """A message without its varying parts: numbers, addresses, digests."""
    return _VARYING.sub(GAP, message)


def place_words(frame: Frame, cell_of: Callable[[str], int | None], this: int | None) -> str:
    """`line 12 of this cell`, `line 3 of cell [7]`, `line 40 of mylib.py`.

    `cell_of` gives the number of the cell of a file; `this` is the number of the panel's cell.
    """
    file, line = frame
    number = cell_of(file)
    if number is not None:
        return f"line {line} of this cell" if number == this else f"line {line} of cell [{number}]"
    if _CELL.search(file):
        return f"line {line} of a cell"
    return f"line {line} of {file.replace(chr(92), '/').rpartition('/')[2]}"


def _line(text: str) -> str:
    return next((" ".join(line.split()) for line in text.splitlines() if line.strip()), "")[: 2 * WIDTH]


def _merged(one: str, other: str) -> str:
    """Merges two messages that differ only in varying parts: the equal ones stay."""
    pairs = zip(_PARTS.split(one), _PARTS.split(other), strict=True)
    return "".join(mine if mine == yours else GAP for mine, yours in pairs)


def _shared(one: str, other: str) -> str:
    """The common beginning and end of two messages."""
    begin = _begin(one, other)
    end = _begin(one[len(begin) :][::-1], other[len(begin) :][::-1])[::-1]
    return f"{begin.rstrip(GAP)}{GAP}{end.lstrip(GAP)}"


def _begin(one: str, other: str) -> str:
    size = next((position for position, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
    return min(one, other, key=len) if size is None else one[:size]
