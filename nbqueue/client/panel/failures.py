"""Failures grouped by what they are: the exception, its message without what varies, and the user's last frame.

Each outcome is looked at once, when it has landed, so the work does not grow with the batch. Signatures are checked,
nothing is unpickled.
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

VARIETY = 5  # messages from one place; where there are more, they are one kind
LOOK = 2_000  # endings that one look takes
WIDTH = 160  # characters of a message
GAP = "…"  # stands for what varies

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
    """Failures that are the same. `members` are in the order in which they were seen."""

    def __init__(self, type_name: str, message: str, where: str) -> None:
        self.where = where
        self.members: dict[Member, None] = {}
        self._type, self._message = type_name, message

    @property
    def what(self) -> str:
        """The exception and its message, as `KeyError: 'title'`; what varies between the members is left out."""
        text = f"{self._type}: {self._message}" if self._type and self._message else self._type or self._message
        return text if len(text) <= WIDTH else text[: WIDTH - 1] + GAP

    def member(self, place: int) -> Member | None:
        """The member at a place, counted round; None if there is none any more."""
        members = list(self.members)  # which may change meanwhile
        return members[place % len(members)] if members else None

    def join(self, message: str) -> None:
        """One more message of this kind: what it does not share with the others is no longer shown."""
        if message != self._message:
            if normal(message) == normal(self._message):
                self._message = _merged(self._message, message)
            else:
                self._message = _shared(self._message, message)


class FailureGroups:
    """The kinds of failure in some batches; `look` keeps up with them."""

    def __init__(self, words: Callable[[Frame], str]) -> None:
        self._words = words
        self._batches: list[BatchRef] = []
        self._read: list[list[int]] = []  # entries of `ended` and of `undone` that were read, by batch
        self._followed: list[
            BatchState
        ] = []  # of which they are entries: a batch that was brought back has another one
        self._kinds: dict[Any, dict[str, FailureGroup]] = {}  # (cause, type, frame) -> normal message -> kind
        self._of: dict[Member, tuple[Any, FailureGroup]] = {}

    def __len__(self) -> int:
        return len(self._of)

    def add(self, batch: BatchRef) -> None:
        """Follows one more batch."""
        self._batches.append(batch)
        self._read.append([0, 0])
        self._followed.append(batch.state)

    def kinds(self) -> list[FailureGroup]:
        """All kinds, in the order in which they appeared."""
        return [kind for kinds in self._kinds.values() for kind in kinds.values()]

    def look(self, most: int = LOOK) -> bool:
        """Takes up to `most` endings; answers whether that was all."""
        for place, batch in enumerate(self._batches):
            state, read = batch.state, self._read[place]
            if state is not self._followed[place]:
                self._followed[place], read[:] = state, [0, 0]
                for member in [member for member in self._of if member[0] == place]:
                    self._drop(member)
            with state.changed:
                ended, undone = state.outcomes.ended[read[0] : read[0] + most], state.outcomes.withdrawn[read[1] :]
            read[0] += len(ended)
            read[1] += len(undone)
            most -= len(ended)
            for index in undone:
                self._drop((place, index))
            for entry in ended:  # ranges were canceled, not run
                if isinstance(entry, int) and state.outcomes.state(entry) is State.FAILED:
                    self._place((place, entry), batch)
            if most <= 0:
                return False
        return True

    def batch(self, member: Member) -> BatchRef:
        """The batch of a member."""
        return self._batches[member[0]]

    # ------------------------------------------------------------ one job

    def _place(self, member: Member, batch: BatchRef) -> None:
        self._drop(member)
        told = _told(batch, member[1])
        if told is None:
            return
        cause, type_name, message, frame = told
        key = cause, type_name, frame
        kinds = self._kinds.setdefault(key, {})
        name = GAP if GAP in kinds else normal(message)
        kind = kinds.get(name)
        if kind is None:
            kind = kinds[name] = FailureGroup(type_name, message, self._words(frame) if frame else "")
        kind.join(message)
        kind.members[member] = None
        self._of[member] = key, kind
        if len(kinds) > VARIETY:
            self._merge(key)

    def _merge(self, key: Any) -> None:
        """Too many messages from one place: what they share is what happened there."""
        first, *others = self._kinds[key].values()
        for other in others:
            first.join(other._message)  # noqa: SLF001 - its own module
            for member in other.members:
                first.members[member] = None
                self._of[member] = key, first
        self._kinds[key] = {GAP: first}

    def _drop(self, member: Member) -> None:
        if member not in self._of:
            return
        key, kind = self._of.pop(member)
        del kind.members[member]
        if not kind.members:
            kinds = self._kinds[key]
            for name in [name for name, each in kinds.items() if each is kind]:
                del kinds[name]
            if not kinds:
                del self._kinds[key]


def _told(batch: BatchRef, index: int) -> tuple[Cause | None, str, str, Frame | None] | None:
    """(cause, exception, first line of the message, frame) of a failed job; None if it was withdrawn meanwhile."""
    outcome = batch.state.shown(index, batch.session.sealer)
    if outcome is None or outcome.state is not State.FAILED:
        return None
    failure = outcome.failure
    if failure is None:
        return outcome.cause, "", text_of(outcome), None
    # A time limit strikes anywhere.
    frame = None if outcome.cause is Cause.TIMEOUT else frame_of(failure.traceback)
    return outcome.cause, failure.type, _line(failure.message), frame


# ---------------------------------------------------------------- words


@lru_cache(maxsize=512)
def frame_of(traceback: str) -> Frame | None:
    """The last frame that is not a library's, of the exception that ended the job; else the last one at all."""
    found = [(file or cell, int(line)) for file, cell, line in _FRAME.findall(traceback.rpartition(_LAST)[2])]
    own = [frame for frame in found if not _LIBRARY.search(frame[0])] or found
    return own[-1] if own else None


@lru_cache(maxsize=512)
def normal(message: str) -> str:
    """A message without what varies: numbers, addresses, digests."""
    return _VARYING.sub(GAP, message)


def place_words(frame: Frame, cell_of: Callable[[str], int | None], this: int | None) -> str:
    """`line 12 of this cell`, `line 3 of cell [7]`, `line 40 of mylib.py`.

    `cell_of` gives the number of the cell of a file, `this` is the number of the cell that speaks.
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
    """Two messages that differ in what varies only: the parts that they have in common stay."""
    pairs = zip(_PARTS.split(one), _PARTS.split(other), strict=True)
    return "".join(mine if mine == yours else GAP for mine, yours in pairs)


def _shared(one: str, other: str) -> str:
    """What two messages have in common: their beginning and their end."""
    begin = _begin(one, other)
    end = _begin(one[len(begin) :][::-1], other[len(begin) :][::-1])[::-1]
    return f"{begin.rstrip(GAP)}{GAP}{end.lstrip(GAP)}"


def _begin(one: str, other: str) -> str:
    size = next((place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
    return min(one, other, key=len) if size is None else one[:size]
