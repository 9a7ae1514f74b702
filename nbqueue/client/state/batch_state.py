"""What this session knows of one batch, in memory: outcomes as they landed, counts, and how far the log was read."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from nbqueue import perform, wire
from nbqueue.client.spool.records import Checkpoint
from nbqueue.client.spool.spool import SpoolCopy
from nbqueue.client.state.outcome_table import OutcomeTable, header
from nbqueue.errors import BadSignature, Damaged
from nbqueue.model import CallbackResult, Cause, Failure, JobMeta, Outcome, Spec, State, Tally, decode
from nbqueue.store.decoding import entry_of
from nbqueue.store.records import Stored

if TYPE_CHECKING:
    from nbqueue.client.spool.records import BatchHeader
    from nbqueue.store.decoding import Progress
    from nbqueue.store.records import BatchView

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


class LogCursor:
    """How far the log of a batch was read, and what it has named that is not copied yet. Written by the collector."""

    def __init__(self) -> None:
        self.position = 0  # in the log
        self.generation = 0  # retries that have reopened the batch
        self.reread = False  # whether the log was read a second time, since it named too few
        self.uncopied: deque[int] = deque()  # ended, but the outcome is not copied yet
        self.typical = PORTION // 20  # bytes of an outcome, by those that were copied last

    def portion(self, most: int) -> int:
        """How many outcomes to copy at a time, so that they are some MB: few before any was seen."""
        return most if self.typical == 0 else max(1, min(most, PORTION // self.typical))


class ArgumentCache:
    """The arguments of a batch as they were sent, while they are few."""

    def __init__(self) -> None:
        self.sent: list[bytes] | None = []  # by index; None: they are not held here
        self.named: list[bytes] | None = None  # those of `rows`, in their order, as this call named them
        self._bytes = 0

    def add(self, payloads: list[bytes]) -> None:
        """Keeps arguments for frames, up to KEPT_ARGUMENTS."""
        if self.sent is not None:
            self._bytes += sum(map(len, payloads))
            if self._bytes > KEPT_ARGUMENTS:
                self.sent = None
            else:
                self.sent += payloads


class InlineRecords:
    """What an inline run leaves besides outcomes, by index; where workers run the jobs the store has it."""

    def __init__(self) -> None:
        self.notes: dict[int, JobMeta] = {}  # what jobs said of themselves
        self.echoes: dict[int, list[CallbackResult]] = {}  # what became of their callbacks
        self.earlier: dict[int, list[Outcome]] = {}  # runs before the last


class BatchState:
    """The memory of a batch. Its fields are assigned here only; `changed` guards them and tells of changes.

    Nothing is unpickled or even unsealed before someone asks for it.
    """

    def __init__(
        self, batch: str, queue: str, epoch: str, spec: Spec, *, max_failed: float | None = None, created_us: int = 0
    ) -> None:
        self.batch, self.queue, self.epoch, self.spec = batch, queue, epoch, spec
        self.rows: Sequence[int] | None = None  # the jobs of one call, in its order; None: all, in theirs
        self.max_failed = max_failed
        self.expected: int | None = None  # how many jobs there will be, while they are on their way
        self.changed = threading.Condition()
        self.tally = Tally()
        self.known = False  # whether the store has confirmed that it is there
        self.followed = False  # whether the collector brings what is new; else whoever wants to know must poll
        self.foreign = False  # of another session, whose log it is that names its end
        self.open = self.cut = self.over = False
        self.created_us = created_us  # 0: not known
        self.expires_us: int | None = None
        self.gone = ""  # "expired", "lost" or "forgotten": the store has it no more
        self.error: BaseException | None = None  # what stopped the upload; what arrived goes on
        self.fault: BaseException | None = None  # what stopped the collector: polling has ended
        self.upload: Sending | None = None
        self.bars: list[Listener] = []
        self.awaited = 0  # threads that wait for one job of it
        self.outcomes = OutcomeTable(batch)
        self.cursor = LogCursor()
        self.on_disk = SpoolCopy()
        self.arguments = ArgumentCache()
        self.inline = InlineRecords()
        self.refetch: Callable[[str, int], bytes | None] = lambda _batch, _index: None  # asks the store for an outcome

    # ------------------------------------------------------------ reading

    @property
    def ttl(self) -> float:
        """Seconds that results are kept after the batch has ended."""
        return self.spec.result_ttl

    @property
    def restored(self) -> int:
        """How often it was brought back to a server."""
        return self.spec.restored

    @property
    def single(self) -> bool:
        """Whether it is a batch of one made by `submit`."""
        return self.spec.single

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

    @property
    def collected(self) -> int:
        """The number of jobs whose outcomes are here."""
        return len(self.outcomes)

    @property
    def whole(self) -> bool:
        """Whether the outcomes of all jobs that arrived are here."""
        return 0 < self.n <= self.collected and not self.open

    @property
    def settled(self) -> bool:
        """Whether every job has ended and every outcome has been copied here."""
        return self.over and not self.cursor.uncopied

    def outcome(self, index: int, sealer: wire.Sealer) -> Outcome | None:
        """The outcome of a job, its signature checked; None while there is none. Raises BadSignature."""
        found = self.outcomes.get(index)
        if found is None or self.outcomes.is_inline(index):
            return self.outcomes.unsealed(index)
        try:
            return opened(sealer, self.batch, index, self.outcomes.blob(found))
        except BadSignature:
            # What came from the spool, and is damaged there, the store may still have.
            fetched = self.refetch(self.batch, index) if self.on_disk.recalled or isinstance(found, int) else None
            if fetched is None:
                raise
            with self.changed:
                self.keep(index, fetched)
            return opened(sealer, self.batch, index, fetched)

    def shown(self, index: int, sealer: wire.Sealer) -> Outcome | None:
        """As outcome, for who shows many: a failure stands for one that cannot be read, or that the server lost."""
        found = shown(lambda: self.outcome(index, sealer))
        if found is None and self.gone == "lost":
            return Outcome(State.FAILED, Cause.LOST_BY_SERVER, 0, 0, 0)
        return found

    def barred(self, index: int) -> bool:
        """Whether a job may have been canceled with what it depends on; where that runs again, so does this job."""
        dependent = bool(self.spec.depends_on or self.spec.source)
        return dependent and self.outcomes.state(index) is State.CANCELED

    def standing(self, now: float) -> Checkpoint:
        """How it stands, for the spool."""
        canceled, withdrawn = self.outcomes.checkpoint()
        facts = self.open, self.cut, self.over, self.expires_us, canceled, withdrawn
        return Checkpoint(now, self.cursor.position, self.n, *facts, self.epoch, self.tally, self.restored)

    def ends(self, start: int, stop: int) -> Iterator[int]:
        """The indexes that ended, from entry `start` of the order up to `stop`."""
        return self.outcomes.ends(start, stop)

    def show(self) -> None:
        """Tells the bars. One that fails is told no more: what it shows is not what became of the batch."""
        for bar in list(self.bars):
            try:
                bar.update(self)
            except Exception:  # noqa: BLE001 - of a display, which fails in many ways; and whoever waits may be there
                _log.exception("The display of %s failed and gets no more updates.", self.batch)
                with contextlib.suppress(ValueError):
                    self.bars.remove(bar)

    # ------------------------------------------------------------ writing: how it is found, and what becomes of it

    def submitted(self, header: BatchHeader, tally: Tally) -> None:
        """The store has taken it in."""
        self.on_disk.header, self.tally = header, tally

    def found(self, view: BatchView, header: BatchHeader | None, *, foreign: bool) -> None:
        """The store knows it: another session, or an earlier call, submitted it."""
        self.on_disk.header, self.arguments.sent, self.foreign = header, None, foreign
        self.known, self.tally, self.created_us = True, view.tally, view.created_us
        self.open, self.cut, self.expires_us = view.open, view.cut, view.expires_us

    def shares(self, other: BatchState) -> None:
        """It is of the same batch as `other`."""
        self.on_disk.header, self.foreign, self.created_us = other.on_disk.header, other.foreign, other.created_us
        self.known, self.arguments.sent = True, None

    def replaces(self, before: BatchState) -> None:
        """It stands where `before` did: whoever showed that is told of this, and arguments are at hand."""
        self.arguments, self.bars = before.arguments, before.bars

    def recalled(self, header: BatchHeader, gone: str) -> None:
        """The spool has it. `gone` says why the server has it no more; empty: it cannot be asked at the moment."""
        self.on_disk.header, self.arguments.sent, self.created_us = header, None, header.created_us
        self.known, self.followed, self.foreign, self.gone = True, True, True, gone

    def begin_inline(self, payloads: list[bytes], created_us: int) -> None:
        """It runs in this process."""
        self.arguments.sent, self.created_us, self.known = payloads, created_us, True

    def expect(self, n: int | None, *, still_open: bool = False) -> None:
        """So many jobs are on their way; None: nobody knows yet."""
        self.expected, self.open, self.over = n, still_open, n == 0 and not still_open

    def send(self, upload: Sending) -> None:
        """Its items are still read."""
        self.upload, self.open = upload, True

    def count(self, tally: Tally) -> None:
        """Its jobs stand like this."""
        self.tally = tally

    def end(self) -> None:
        """Every job has ended."""
        self.over = True

    def judge(self) -> None:
        """Nobody tells whether every job has ended: they have where all outcomes are here."""
        self.over = self.whole

    def close(self, gone: str) -> None:
        """The store has it no more: it "expired", is "lost", or "forgotten"; what was forgotten is not lost."""
        self.gone = self.gone if self.gone == "forgotten" else gone

    def lose(self, gone: str) -> None:
        """As close; what is here is all that there will be."""
        self.close(self.gone or gone)
        self.recount()
        if self.whole:
            self.over = True
            self.cursor.uncopied.clear()

    def seen_in(self, epoch: str) -> None:
        """The server has it in this epoch of its data."""
        self.epoch = epoch

    def awaits(self, by: int) -> None:
        """So many threads more wait for one job of it."""
        self.awaited += by

    def move(self, queue: str) -> None:
        """It is in another queue."""
        self.queue = queue

    def lift_limit(self) -> None:
        """However many fail from now on, the rest runs."""
        self.max_failed = None

    def follow(self, refetch: Callable[[str, int], bytes | None]) -> None:
        """From now on the collector brings what is new; `refetch` asks the store for an outcome."""
        self.followed, self.refetch, self.fault = True, refetch, None

    def break_off(self, *, upload: BaseException | None = None, following: BaseException | None = None) -> None:
        """Its upload, or the collector, has met an error, which is raised by those who wait."""
        with self.changed:
            self.error, self.fault = self.error or upload, self.fault or following
            self.changed.notify_all()

    # ------------------------------------------------------------ writing what the store tells (hold `changed`)

    def reach(self, n: int) -> None:
        """So many calls have been read of an iterator, and are sent next."""

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
        self.outcomes.causes({range(low, high): cause for low, high, cause in view.cuts})
        if self.over and not (self.single or self.cursor.reread) and self._unnamed() > 0:
            self._read_again()

    def _unnamed(self) -> int:
        """Of how many jobs that have ended the log did not tell."""
        return self.n - self.collected - sum(index not in self.outcomes for index in set(self.cursor.uncopied))

    def _read_again(self) -> None:
        """A server that lost its last second wrote its log anew, behind what we had read: from the start, once."""
        self.over = False
        self.cursor.reread, self.cursor.position = True, 0
        self.cursor.uncopied.clear()
        self.outcomes.forget_canceled()

    def enter(self, entry: bytes) -> None:
        """Takes one entry of the batch's log. Raises Damaged."""
        kind, low, high = entry_of(entry)
        if kind == "r" and high:
            self.outcomes.uncancel(range(low, high))  # what it depended on runs again
        elif kind == "r":
            self.withdraw(low)
        elif kind == "c":
            self.outcomes.cancel(range(low, high))
        else:
            self.cursor.uncopied.append(low)

    def withdraw(self, index: int) -> None:
        """A retry has withdrawn this job's outcome."""
        self.on_disk.withdraw(index, self.outcomes.withdraw(index))

    def put(self, index: int, found: bytes | int | Outcome) -> None:
        """An outcome that has landed: as in the store, its offset in the spool, or that of an inline run."""
        self.keep(index, found)
        self.outcomes.ended.append(index)

    def put_single(self, blob: bytes | int, generation: int) -> bool:
        """The outcome of a batch of one, which says all that there is to say; False: a retry came in between."""
        if generation != self.cursor.generation:
            # A retry withdrew this outcome while it was on its way here; the spool has it already.
            self.on_disk.withdraw(0, blob)
            return False
        self.keep(0, blob)
        if not self.outcomes.ended:
            self.outcomes.ended.append(0)
        self.cursor.uncopied.clear()
        self.tally = Tally(n=1, **{str(header(blob)[0]): 1})
        self.known = self.over = True
        return True

    def keep(self, index: int, found: bytes | int | Outcome) -> None:
        """An outcome that was read before the log named it, or of a batch that is not followed."""
        self.outcomes.put(index, found)

    def hold(self) -> None:
        """Reads what lies in the spool into memory, before it is removed there; HOLD bytes at most."""
        for index, found in self.outcomes.in_spool():
            if self.outcomes.weight < HOLD:
                with contextlib.suppress(BadSignature):  # what cannot be read is told when it is asked for
                    self.keep(index, self.outcomes.blob(found))

    def recall(self, standing: Checkpoint | None) -> None:
        """Takes over how it stood when it was spooled."""
        self.on_disk.recalled, self.on_disk.checkpoint = True, standing
        if standing is not None:
            self.outcomes.recall(standing.canceled_ranges, standing.requeued)
            self.open, self.cut, self.expires_us = standing.open, standing.truncated, standing.expires_us

    def recount(self) -> None:
        """Counts what is here: the store, which told the tally, has it no more. What is not here counts as queued."""
        counts = dict.fromkeys(State, 0)
        for index in self.indexes:
            counts[self.outcomes.state(index) or State.QUEUED] += 1
        self.tally = Tally(n=sum(counts.values()), **{str(state): count for state, count in counts.items()})

    def orphaned(self) -> None:
        """In a forked child: whoever followed, showed, fed or locked it has stayed with the parent."""
        self.changed = threading.Condition()
        self.followed, self.foreign, self.upload, self.awaited = False, True, None, 0
        self.bars.clear()

    def reopen(self) -> None:
        """A retry runs: what the store said of the end before is no longer true."""
        self.cursor.generation += 1
        self.over = self.cursor.reread = False
        self.expires_us = None


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
