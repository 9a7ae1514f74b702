"""What this session knows of one batch, in memory: outcomes as they landed, counts, and how far the log was read."""

from __future__ import annotations

import contextlib
import logging
import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from nbqueue import perform, wire
from nbqueue.client.spool import records
from nbqueue.client.spool.records import BatchHeader, Checkpoint
from nbqueue.errors import BadSignature, Damaged
from nbqueue.model import Cause, Echo, Failure, Notes, Outcome, Spec, State, Tally, decode
from nbqueue.store.decoding import entry_of
from nbqueue.store.records import Stored

if TYPE_CHECKING:
    from nbqueue.client.spool.reader import SpooledBatch
    from nbqueue.store.decoding import Progress

_log = logging.getLogger(__name__)
PORTION = 16 << 20  # bytes of outcomes to copy at a time
HOLD = 256 << 20  # bytes of outcomes that stay in memory when their copies on disk are removed
KEPT_ARGUMENTS = 64 << 20  # bytes of arguments that a session remembers, a batch


class Listener(Protocol):
    """Something that shows a batch as it moves."""

    def update(self, state: BatchState) -> None:
        """Shows the present state; called from any thread."""


class Sending(Protocol):
    """An upload that is open."""

    canceled: bool

    def tend(self) -> None:
        """Sends what waits, and tells the store that the upload lives."""

    def stop(self, *, wait: bool = True) -> None:
        """Nothing more goes out."""


class BatchState:
    """The memory of a batch. Written by the collector, read by everyone; `changed` guards it and tells of changes.

    Nothing here is unpickled or even unsealed before someone asks for it.
    """

    def __init__(self, batch: str, queue: str, epoch: str, spec: Spec, *, max_failed: float | None = None) -> None:
        self.batch, self.queue, self.epoch = batch, queue, epoch
        self.rows: Sequence[int] | None = None  # the jobs of one call, in its order; None: all, in theirs
        self.ttl = spec.result_ttl
        self.restored = spec.restored
        self.dependent = bool(spec.depends_on or spec.source)
        self.max_failed = max_failed
        self.expected: int | None = None  # how many jobs there will be, while they are on their way
        self.changed = threading.Condition()
        self.tally = Tally()
        self.known = False  # whether the store has confirmed that it is there
        self.followed = False  # whether the collector brings what is new; if not, whoever wants to know must ask
        self.foreign = False  # of another session, whose log it is that names its end
        self.open = self.cut = self.over = False
        self.single = spec.single
        self.created_us = 0
        self.expires_us: int | None = None
        self.gone = ""  # "expired", "lost" or "forgotten": the store has it no more
        self.error: BaseException | None = None  # what stopped the upload; what arrived goes on
        self.fault: BaseException | None = None  # what stopped the collector: nothing more will be heard
        self.upload: Sending | None = None
        self.bars: list[Listener] = []
        self.awaited = 0  # threads that wait for one job of it
        self.position = self.generation = 0
        self.reread = False  # whether the log was read a second time, since it named too few
        self.behind: deque[int] = deque()  # ended, but the outcome is not copied yet
        self.ended: list[int | range] = []  # in the order in which they ended
        self.undone: list[int] = []  # whose outcomes a retry withdrew, in that order
        self.payloads: list[bytes] | None = []  # arguments as sent, while they are few
        self.given: list[bytes] | None = None  # those of `rows`, in their order, as this call named them
        self._bytes = 0
        self._begin_copies()
        self._opened: dict[int, Outcome] = {}  # those of an inline run, which never were bytes
        self._cuts: list[range] = []
        self._causes: dict[range, Cause] = {}
        self._withdrawn: set[int] = set()
        self.notes: dict[int, Notes] = {}  # of an inline run: what its jobs said of themselves,
        self.echoes: dict[int, list[Echo]] = {}  # what became of their callbacks,
        self.past: dict[int, list[Outcome]] = {}  # and their earlier runs

    def _begin_copies(self) -> None:
        self._blobs: dict[int, bytes | int] = {}  # outcomes, or their places in the spool
        self.weight = 0  # bytes of those that are here
        self.typical = PORTION // 20  # bytes of an outcome, by those that were copied last
        self.birth: BatchHeader | None = None  # what the spool says of it; None: it is not spooled
        self.recalled = False  # whether some of it came from the spool
        self.stood: Checkpoint | None = None  # how it stood there
        self.again: Callable[[str, int], bytes | None] = lambda _batch, _index: None  # asks the store for an outcome
        self.lacks: list[int] = []  # whose arguments the spool has not, of a batch that another session submitted
        self.spooled = False  # of a batch of one: whether its outcome was copied, which may have been read before that
        self.lacks_facts = False  # and whether it lacks its function
        self.tale: SpooledBatch | None = None  # what the spool tells of it, once it was asked
        self.shelves: list[Path] = []  # the spool's files that places are in
        self.taken_back: list[tuple[int, bytes | int]] = []  # outcomes that a retry withdrew; the spool is told next

    # ------------------------------------------------------------ reading

    @property
    def n(self) -> int:
        """The number of jobs: those that arrived, or that are on their way."""
        tally = self.tally.n
        return tally if self.over or self.expected is None else max(self.expected, tally)

    @property
    def indexes(self) -> Sequence[int]:
        """The indexes of its jobs in the store, by position."""
        return range(self.n) if self.rows is None else self.rows

    def holds(self, index: int) -> bool:
        """Whether there is such a job, and it is one of these."""
        return 0 <= index < self.n

    @property
    def chosen(self) -> Sequence[int] | None:
        """The jobs that a verb for all of these names; None: the whole batch, whatever it holds by now."""
        return None if self.rows is None else self.rows[:]

    def concerns(self, entry: bytes) -> bool:
        """Whether an entry of the batch's log may tell of one of these jobs."""
        with contextlib.suppress(Damaged):
            _, low, high = entry_of(entry)
            return any(self.holds(index) for index in range(low, high or low + 1))
        return True

    def attempt(self, index: int) -> int:
        """The attempt of a job's outcome; 0 for one that never ran."""
        found = self._blobs.get(index)
        return header(found)[1] if found is not None else 0

    @property
    def collected(self) -> int:
        """The number of jobs whose outcomes are here."""
        return len(self._blobs) + len(self._opened) + self._cut_alone()

    def _cut_alone(self) -> int:
        """The number of jobs that were canceled with a range of others, and have no outcome of their own."""
        if not self._cuts:
            return 0
        end, number = 0, 0
        own = sorted(self._blobs.keys() | self._opened.keys() | self._withdrawn)
        for cut in sorted(self._cuts, key=lambda each: each.start):
            low = max(cut.start, end)
            end = max(end, cut.stop)
            number += max(0, cut.stop - low) - max(0, bisect_left(own, cut.stop) - bisect_left(own, low))
        return number

    @property
    def whole(self) -> bool:
        """Whether the outcomes of all jobs that arrived are here."""
        return 0 < self.n <= self.collected and not self.open

    @property
    def settled(self) -> bool:
        """Whether every job has ended and every outcome has been copied here."""
        return self.over and not self.behind

    def has(self, index: int) -> bool:
        """Whether the outcome of a job is here."""
        return index in self._blobs or index in self._opened or self._is_cut(index)

    def _is_cut(self, index: int) -> bool:
        return bool(self._cuts) and index not in self._withdrawn and any(index in cut for cut in self._cuts)

    def state_of(self, index: int) -> State | None:
        """How a job ended, by its unsigned header; None while it has not."""
        if index in self._opened:
            return self._opened[index].state
        found = self._blobs.get(index)
        if found is not None:
            return header(found)[0]
        return State.CANCELED if self._is_cut(index) else None

    def outcome(self, index: int, sealer: wire.Sealer) -> Outcome | None:
        """The outcome of a job, its signature checked; None while there is none. Raises BadSignature."""
        if index in self._opened:
            return self._opened[index]
        found = self._blobs.get(index)
        if found is not None:
            return self._outcome(index, found, sealer)
        if self._is_cut(index):
            cause = next((cause for cut, cause in self._causes.items() if index in cut), Cause.USER)
            return Outcome(State.CANCELED, cause, 0, 0, 0)
        return None

    def shown(self, index: int, sealer: wire.Sealer) -> Outcome | None:
        """As outcome, for who shows many: a failure stands for one that cannot be read, or that the server lost."""
        found = shown(lambda: self.outcome(index, sealer))
        if found is None and self.gone == "lost":
            return Outcome(State.FAILED, Cause.LOST_BY_SERVER, 0, 0, 0)
        return found

    def barred(self, index: int) -> bool:
        """Whether a job may have been canceled with what it depends on; where that runs again, so does this job."""
        return self.dependent and self.state_of(index) is State.CANCELED

    def _outcome(self, index: int, found: bytes | int, sealer: wire.Sealer) -> Outcome:
        try:
            return opened(sealer, self.batch, index, self.blob(found))
        except BadSignature:
            # What came from the spool, and is damaged there, the store may still have.
            asked = self.again(self.batch, index) if self.recalled or isinstance(found, int) else None
            if asked is None:
                raise
            with self.changed:
                self.keep(index, asked)
            return opened(sealer, self.batch, index, asked)

    def blob(self, found: bytes | int) -> bytes:
        """An outcome as it lay in the store, read from the spool if need be. Raises BadSignature."""
        if isinstance(found, bytes):
            return found
        where = records.span(found)
        try:
            return records.read(self.shelves[where.file], where.offset, where.size)
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

    def portion(self, most: int) -> int:
        """How many outcomes to copy at a time, so that they are some MB: few before any was seen."""
        return most if self.typical == 0 else max(1, min(most, PORTION // self.typical))

    def standing(self, now: float) -> Checkpoint:
        """How it stands, for the spool."""
        cuts = [
            (
                cut.start,
                cut.stop,
                next((cause for each, cause in self._causes.items() if cut.start in each), Cause.USER),
            )
            for cut in self._cuts
        ]
        facts = (
            self.open,
            self.cut,
            self.over,
            self.expires_us,
            cuts,
            sorted(self._withdrawn),
            self.epoch,
            self.tally,
            self.restored,
        )
        return Checkpoint(now, self.position, self.n, *facts)

    def ends(self, start: int, stop: int) -> Iterator[int]:
        """The indexes that ended, from entry `start` of the order up to `stop`."""
        for entry in self.ended[start:stop]:
            if isinstance(entry, range):
                yield from entry
            else:
                yield entry

    def opened(self, index: int) -> Outcome:
        """The outcome of a job of an inline run."""
        return self._opened[index]

    def show(self) -> None:
        """Tells the bars. One that fails is told no more: what it shows is not what became of the batch."""
        for bar in list(self.bars):
            try:
                bar.update(self)
            except Exception:  # noqa: BLE001 - of a display, which fails in many ways; and whoever waits may be there
                _log.exception("What shows %s has failed, and is told nothing more.", self.batch)
                with contextlib.suppress(ValueError):
                    self.bars.remove(bar)

    # ------------------------------------------------------------ writing (hold `changed`)

    def reach(self, n: int) -> None:
        """So many calls have been read of an iterator, and are sent next."""

    def remember(self, payloads: list[bytes]) -> None:
        """Keeps arguments for frames, up to KEPT_ARGUMENTS."""
        if self.payloads is not None:
            self._bytes += sum(map(len, payloads))
            if self._bytes > KEPT_ARGUMENTS:
                self.payloads = None
            else:
                self.payloads += payloads

    def see(self, view: Progress, *, caught_up: bool, slots: int) -> None:
        """Takes what the store says of the batch as a whole; `caught_up`: its log has been read to the end.

        A worker holds short jobs ahead: no more of them have started than there are slots.
        """
        self.known = True
        ahead = max(0, view.tally.started - max(slots, 1))
        self.tally = view.tally
        if ahead:
            queued, started = view.tally.queued + ahead, view.tally.started - ahead
            self.tally = msgspec.structs.replace(view.tally, queued=queued, started=started)
        self.open, self.cut, self.expires_us = view.open, view.cut, view.expires_us
        self.over = view.done and caught_up
        self._causes = {range(low, high): cause for low, high, cause in view.cuts}
        if self.over and not (self.single or self.reread) and self._unnamed() > 0:
            self._read_again()

    def _unnamed(self) -> int:
        """Of how many jobs that have ended the log did not tell."""
        return self.n - self.collected - sum(not self.has(index) for index in set(self.behind))

    def _read_again(self) -> None:
        """A server that lost its last second wrote its log anew, behind what we had read: from the start, once."""
        self.reread, self.over, self.position = True, False, 0
        self.behind.clear()
        self._cuts.clear()
        self._withdrawn.clear()

    def enter(self, entry: bytes) -> None:
        """Takes one entry of the batch's log. Raises Damaged."""
        kind, low, high = entry_of(entry)
        if kind == "r" and high:
            if range(low, high) in self._cuts:
                self._cuts.remove(range(low, high))  # what it depended on runs again
        elif kind == "r":
            self.withdraw(low)
        elif kind == "c":
            cut = range(low, high)
            self._cuts.append(cut)
            self._withdrawn = {index for index in self._withdrawn if index not in cut}
            self.ended.append(cut)
        else:
            self.behind.append(low)

    def withdraw(self, index: int) -> None:
        """A retry has withdrawn this job's outcome."""
        self.spooled = False
        found = self._blobs.pop(index, None)
        if found is not None:
            self.weight -= len(found) if isinstance(found, bytes) else 0
            self.taken_back += [(index, found)] if self.birth is not None else []
        self._opened.pop(index, None)
        self.undone.append(index)
        if any(index in cut for cut in self._cuts):
            self._withdrawn.add(index)

    def shelf(self, path: Path) -> int:
        """The number of a file of the spool."""
        if path not in self.shelves:
            self.shelves.append(path)
        return self.shelves.index(path)

    def put(self, index: int, found: bytes | int) -> None:
        """An outcome as it lies in the store, or its place in the spool."""
        self.keep(index, found)
        self.ended.append(index)

    def put_opened(self, index: int, outcome: Outcome) -> None:
        """An outcome of an inline run."""
        self._opened[index] = outcome
        self.ended.append(index)

    def put_single(self, blob: bytes | int, generation: int) -> bool:
        """The outcome of a batch of one, which says all that there is to say; False: a retry came in between."""
        if generation != self.generation:
            self.passed_over(blob)
            return False
        self.keep(0, blob)
        if not self.ended:
            self.ended.append(0)
        self.behind.clear()
        self.tally = Tally(n=1, **{str(header(blob)[0]): 1})
        self.known = self.over = True
        return True

    def passed_over(self, found: bytes | int) -> None:
        """Of a batch of one: a retry withdrew this outcome while it was on its way here; the spool has it already."""
        self.spooled = False
        self.taken_back += [(0, found)] if self.birth is not None else []

    def keep(self, index: int, found: bytes | int | Outcome) -> None:
        """What was read before it was heard of, or of a batch that nobody follows."""
        if isinstance(found, Outcome):
            self._opened[index] = found
            return
        self._opened.pop(index, None)
        before = self._blobs.get(index)
        if isinstance(before, bytes):
            self.weight -= len(before)
        if isinstance(found, bytes):
            self.weight += len(found)
        self._blobs[index] = found

    def hold(self) -> None:
        """Reads what lies in the spool into memory, before it is removed there; HOLD bytes at most."""
        for index, found in list(self._blobs.items()):
            if isinstance(found, int) and self.weight < HOLD:
                with contextlib.suppress(BadSignature):  # what cannot be read is told when it is asked for
                    self.keep(index, self.blob(found))

    def recall(self, standing: Checkpoint | None) -> None:
        """Takes over how it stood when it was spooled."""
        self.recalled, self.stood = True, standing
        if standing is not None:
            self._cuts = [range(low, high) for low, high, _ in standing.cuts]
            self._causes = {range(low, high): cause for low, high, cause in standing.cuts}
            self._withdrawn = set(standing.back)
            self.ended += self._cuts
            self.open, self.cut, self.expires_us = standing.open, standing.cut, standing.expires_us

    def recount(self) -> None:
        """Counts what is here: the store, which told the tally, has it no more. What is not here counts as queued."""
        counts = dict.fromkeys(State, 0)
        for index in self.indexes:
            counts[self.state_of(index) or State.QUEUED] += 1
        self.tally = Tally(n=sum(counts.values()), **{str(state): count for state, count in counts.items()})

    def orphaned(self) -> None:
        """In a forked child: whoever followed, showed, fed or locked it has stayed with the parent."""
        self.changed = threading.Condition()
        self.followed, self.foreign, self.upload, self.awaited = False, True, None, 0
        self.bars.clear()

    def reopen(self) -> None:
        """A retry runs: what the store said of the end before is no longer true."""
        self.generation += 1
        self.over = self.reread = False
        self.expires_us = None


def header(found: bytes | int) -> tuple[State, int]:
    """State and attempt of a stored outcome; one that is damaged counts as failed, and says why when it is opened."""
    try:
        stored = Stored.parse(found if isinstance(found, bytes) else records.head_of(found))
    except BadSignature:
        return State.FAILED, 0
    return stored.state, stored.attempt


def opened(sealer: wire.Sealer, batch: str, index: int, blob: bytes) -> Outcome:
    """The Outcome in a stored blob. Only a signed one can carry a value. Raises BadSignature."""
    stored = Stored.parse(blob)
    if stored.signed:
        payload = sealer.unseal(wire.OUTCOME, batch, index, stored.body, stored.attempt)
        outcome = decode(Outcome, payload, "An outcome")
        if outcome.state is not stored.state:
            raise BadSignature(what=f"The outcome of {batch}:{index}", why="its header says another state")
        return outcome
    note = stored.note(f"The outcome of {batch}:{index}")
    return Outcome(stored.state, note.cause, stored.attempt, note.ended_us, 0, host=note.host, worker=note.worker)


def shown(read: Callable[[], Outcome | None]) -> Outcome | None:
    """What `read` gives; in the place of one whose signature is not valid, a failure that says so."""
    try:
        return read()
    except BadSignature as why:
        failure = Failure(perform.type_name(type(why)), str(why))
        return Outcome(State.FAILED, Cause.SIGNATURE, 0, 0, 0, failure=failure)
