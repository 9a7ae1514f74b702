"""The collector: one thread a session that copies outcomes into memory as they land, and moves the bars.

It follows the logs of all batches in one round trip, wakes on hints, and asks now and then anyway, since hints may be
lost. It never unpickles. When the server is away it waits for it.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
import weakref
from typing import TYPE_CHECKING, Protocol

from nbqueue.client.session import archive
from nbqueue.client.session.singles import KnownStates, SingleJobIndex
from nbqueue.client.spool.records import RecordType
from nbqueue.errors import Damaged, NbqueueError, NoServer, ServerRefused, WrongPassword

if TYPE_CHECKING:
    from nbqueue.client.spool.spool import Spool
    from nbqueue.client.state.batch_state import BatchState, Sending
    from nbqueue.store.broker import Broker
    from nbqueue.store.decoding import Progress
    from nbqueue.store.ear import Hints

PART = 1_000  # outcomes a turn and batch
LOGS = 500  # batches a turn
FEW = 50  # batches of one a turn that are looked at without being named
STRANGERS = 2_000  # those of other sessions, whose ends our log does not name
GAP = 0.02  # seconds between two looks at least, but for a single job that somebody waits for
IDLE = 0.25  # seconds between two looks without a hint
OUTAGE = 0.5  # seconds between two tries while the server is away
SHORT = 60.0  # seconds; results that are kept no longer may expire before anyone saw the batch end
SLOTS = 1.0  # seconds between two counts of a queue's slots
SHOW = 0.1  # seconds between two movements of a bar


KINDS = {
    "tail": RecordType.LOGS,
    "meta": RecordType.METAS,
    "past": RecordType.EARLIER_RUNS,
}  # what of the store the spool has by which name
Parts = dict[str, list[tuple[int, bytes]]]


class Source(Protocol):
    """The session that a collector works for."""

    id: str
    spool: Spool

    @property
    def asleep(self) -> bool:
        """Whether no server is to be asked."""

    def fresh_broker(self) -> Broker:
        """A broker of the caller's own. Raises NoServer and its kin."""

    def fresh_hints(self) -> Hints:
        """A line of hints of the caller's own."""

    def revive(self) -> None:
        """Starts a private server again that was killed."""

    def again(self, batch: str, index: int) -> bytes | None:
        """The outcome of a job as it lies in the store; None where it has none, or cannot be asked."""


class Collector:
    """Follows batches until each is settled."""

    def __init__(self, session: Source) -> None:
        self._session = session
        self._lock = threading.Lock()
        self._followed: dict[BatchState, None] = {}  # in the order of their arrival; of one batch there may be several
        self._singles = SingleJobIndex()  # the batches of one
        self._known = KnownStates()  # of all handles, also of what is settled, or was never followed
        self._wake = threading.Event()
        self._pause = threading.Event()
        self._thread: threading.Thread | None = None
        self._queues: dict[str, tuple[float, int]] = {}  # queue -> (when counted, live slots)
        self._shown = weakref.WeakKeyDictionary["BatchState", float]()
        self._named: dict[str, None] = {}  # batches of one that the session's log has named
        self._position = self._round = 0
        self.outage: NbqueueError | None = None  # why the store cannot be read at the moment

    def know(self, state: BatchState) -> None:
        """There is a handle on `state`."""
        with self._lock:
            len(self._known)  # forgets those that are gone
            self._known.add(state)

    def known(self, batch: str) -> list[BatchState]:
        """What the handles of this process on a batch know of it."""
        with self._lock:
            return self._known.of(batch)

    def follow(self, state: BatchState) -> None:
        """Follows `state` from now on (again, after a retry)."""
        with self._lock:
            state.follow(self._session.again)
            if state.single:
                self._singles.add(state)
            else:
                self._followed[state] = None
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="nbqueue collector", daemon=True)
                self._thread.start()
                atexit.register(self.stop)
        self._wake.set()

    def drop(self, state: BatchState) -> None:
        """Stops following."""
        with self._lock:
            self._followed.pop(state, None)
            self._singles.drop(state)

    def stop(self) -> None:
        """Ends the thread; at the latest with its next answer."""
        self._pause.set()
        self._wake.set()
        self._session.spool.close()
        atexit.unregister(self.stop)

    def _run(self) -> None:
        broker = hints = None
        while not self._pause.is_set():
            self._session.spool.flush()
            if self._idle():
                self._wake.wait()
                self._wake.clear()
                continue
            if self._session.asleep:
                broker = hints = None
                self._pause.wait(OUTAGE)
                continue
            try:
                if broker is None or hints is None:
                    broker, hints = self._session.fresh_broker(), self._session.fresh_hints()
                looked = time.monotonic()
                busy = self._turn(broker)
                self.outage = None
                if not busy and not self._idle():
                    heard = hints.wait(IDLE)
                    self._gather(hints, heard, looked + GAP)
            except (NoServer, ServerRefused, WrongPassword) as why:
                self._away(why)
                broker = hints = None
            except Exception as why:  # noqa: BLE001 - a fault of ours must reach those who wait, not die with a thread
                self._fail(self._active(), why)

    def _gather(self, hints: Hints, heard: set[str], until: float) -> None:
        """Lets time pass: of a stream of hints one look takes many. The first after a silence is followed at once."""
        while not self._awaited(heard) and (left := until - time.monotonic()) > 0 and not self._pause.is_set():
            if self._late(heard):
                heard = hints.wait(left)
            else:
                self._pause.wait(left)

    def _late(self, heard: set[str]) -> bool:
        """Whether these are hints of batches of one that are over by now, while others may be waited for."""
        with self._lock:
            return not self._followed and not any(self._singles.of(batch) for batch in heard)

    def _awaited(self, heard: set[str]) -> bool:
        """Whether somebody waits for one of these batches of one, and for nothing else."""
        with self._lock:
            return any(state.awaited for batch in heard for state in self._singles.of(batch))

    def _active(self) -> list[BatchState]:
        with self._lock:
            return [*self._followed, *self._singles]

    def orphaned(self) -> None:
        """In a forked child: there is no thread, and there never will be; whoever waits has another collector."""
        atexit.unregister(self.stop)
        for state in [*self._followed, *self._singles]:
            state.orphaned()

    def _idle(self) -> bool:
        with self._lock:
            return not self._followed and not len(self._singles)

    def _away(self, why: NbqueueError) -> None:
        self.outage = why
        if not self._pause.wait(OUTAGE) and not self._idle() and not self._session.asleep:
            # A private server that was killed is started again, on the same data.
            with contextlib.suppress(NbqueueError):
                self._session.revive()

    def _fail(self, states: list[BatchState], why: Exception) -> None:
        for state in states:
            self.drop(state)
            state.break_off(following=why)

    # ------------------------------------------------------------ one turn

    def _turn(self, broker: Broker) -> bool:
        """One look at what is followed; answers whether there was more than one look could take."""
        busy, singles = self._take_singles(broker)
        with self._lock:
            many = list(self._followed)
        states = [*_window(many, LOGS, self._round), *singles]
        self._round += 1
        for state in states:
            if state.upload is not None:
                self._tend(state, state.upload)
        generations = [state.cursor.generation for state in states]
        answers = broker.follow([(state.batch, state.cursor.position) for state in states], PART) if states else []
        for state, generation, (view, entries) in zip(states, generations, answers, strict=True):
            try:
                if view is None:
                    self._missing(broker, state)
                elif isinstance(view, Damaged):
                    self._fail([state], view)
                else:
                    busy |= self._take(broker, state, generation, view, entries)
            except (NoServer, ServerRefused, WrongPassword):
                raise
            except Exception as why:  # noqa: BLE001 - what is wrong with one batch must not end the others
                self._fail([state], why)
        return busy

    def _tend(self, state: BatchState, upload: Sending) -> None:
        """Keeps an open upload alive. What is wrong with it must not keep other batches from being followed."""
        try:
            upload.tend()
        except (NoServer, WrongPassword):
            raise
        except ServerRefused:
            return  # for the moment: it is tried again
        except Exception as why:  # noqa: BLE001 - it is raised again by whoever waits
            upload.canceled = True
            state.break_off(upload=why)

    # ------------------------------------------------------------ batches of one

    def _take_singles(self, broker: Broker) -> tuple[bool, list[BatchState]]:
        """Copies the outcomes of all that have ended, in one round trip.

        Answers whether more were named than it could take, and whose state is to be looked at: some in turn, in case
        a line was lost, and those that were named but have no outcome.
        """
        with self._lock:
            if not len(self._singles):
                return False, []
        entries, length = broker.session_log(self._session.id, self._position, PART)
        # Shorter than we have read: the server has forgotten it, and begun it anew.
        self._position = self._position + len(entries) if self._position <= length else 0
        self._named |= dict.fromkeys(entry.decode("utf-8", "replace") for entry in entries)
        with self._lock:
            named = [state for batch in list(self._named)[:PART] for state in self._singles.of(batch)]
            few = self._singles.some(FEW, foreign=False)
            strangers = self._singles.some(STRANGERS, foreign=True)
        self._named = dict.fromkeys(list(self._named)[PART:])
        asked = list(dict.fromkeys([*named, *few, *strangers]))
        generations = [state.cursor.generation for state in asked]
        blobs = broker.outcomes_of([(state.batch, 0) for state in asked]) if asked else []
        ended = [(state, blob) for state, blob in zip(asked, blobs, strict=True) if blob is not None]
        fresh = (
            [(state, blob) for state, blob in ended if not state.on_disk.has_outcome] if self._session.spool.on else []
        )
        said = broker.said_of([state.batch for state, _ in fresh])
        places = self._session.spool.write_single_outcomes(
            [(*each, _of_one(parts)) for each, parts in zip(fresh, said, strict=True)]
        )
        for state, generation, blob in zip(asked, generations, blobs, strict=True):
            if blob is not None:
                self._end_single(state, generation, places.get(state, blob))
        look = [*named, *few, *_window(strangers, FEW, self._round)]
        silent = {state for state, blob in zip(asked, blobs, strict=True) if blob is None}
        return len(entries) == PART or bool(self._named), [state for state in dict.fromkeys(look) if state in silent]

    def _end_single(self, state: BatchState, generation: int, blob: bytes | int) -> None:
        with state.changed:
            if not state.put_single(blob, generation):
                return
        self._show(state, last=True)
        with state.changed:
            if state.settled:  # still: a retry may have reopened it this moment
                self.drop(state)

    def _slots(self, broker: Broker, queue: str) -> int:
        """The queue's live slots, as of the last second."""
        now = time.monotonic()
        asked, slots = self._queues.get(queue, (-SLOTS, 0))
        if now - asked >= SLOTS:
            slots = broker.live_slots(queue)
            self._queues[queue] = now, slots
        return slots

    def _take(self, broker: Broker, state: BatchState, generation: int, view: Progress, entries: list[bytes]) -> bool:
        caught_up = len(entries) < PART
        slots = self._slots(broker, state.queue) if view.tally.started else 0
        with state.changed:
            for entry in entries:
                state.enter(entry)
            state.cursor.position += len(entries)
            if generation == state.cursor.generation:
                state.see(view, caught_up=caught_up, slots=slots)
            # Who waits may have read the outcome while this look was on its way: then the spool lacks it.
            lacked = 0 not in state.outcomes or not (state.on_disk.has_outcome or view.cuts)
            if state.single and state.over and lacked and not state.cursor.uncopied:
                # A batch of one writes no log of its own; canceled before it was taken, it has no record either.
                state.enter(b"c0-1" if view.cuts else b"0")
            wanted = [
                state.cursor.uncopied[place]
                for place in range(min(state.cursor.portion(PART), len(state.cursor.uncopied)))
            ]
        if wanted or state.on_disk.withdrawn:
            self._copy(broker, state, wanted)
        if state.on_disk.lacks_arguments or state.on_disk.lacks_function:
            self._copy_arguments(broker, state)
        self._session.spool.checkpoint(state)
        self._limit(broker, state)
        if view.expired and wanted and not state.settled:
            self._gone(state, "expired")
            return False
        settled = state.settled
        self._show(state, last=settled)
        with state.changed:
            if state.settled and not state.on_disk.lacks_arguments:  # still: a retry may have reopened it this moment
                self.drop(state)
        return bool(state.on_disk.lacks_arguments) or (not settled and (not caught_up or bool(state.cursor.uncopied)))

    def _copy(self, broker: Broker, state: BatchState, wanted: list[int]) -> None:
        generation = state.cursor.generation
        blobs, said = self._read(broker, state, wanted)
        pairs = [(index, blob) for index, blob in zip(wanted, blobs, strict=True) if blob is not None]
        places = self._session.spool.write_outcomes(state, pairs, [(KINDS[part], each) for part, each in said.items()])
        if pairs:
            state.cursor.typical = max(1, sum(len(blob) for _, blob in pairs) // len(pairs))
        with state.changed:
            if state.single and generation != state.cursor.generation:
                for index, blob in pairs:  # withdrawn meanwhile, which no log says of a batch of one
                    state.on_disk.withdraw(index, places.get(index, blob))
                pairs = []
            for index, blob in pairs:  # None: a retry has just withdrawn it, and the log says so next
                state.put(index, places.get(index, blob))
            for _ in wanted:  # last: with nothing behind, it counts as settled
                state.cursor.uncopied.popleft()  # others only append
            state.changed.notify_all()

    def _read(self, broker: Broker, state: BatchState, wanted: list[int]) -> tuple[list[bytes | None], Parts]:
        """Outcomes, and what goes into the spool with them."""
        if state.on_disk.header is None or not self._session.spool.on:
            return broker.outcomes(state.batch, wanted), {}
        return broker.landed(state.batch, wanted)

    def _copy_arguments(self, broker: Broker, state: BatchState) -> None:
        """Those of a batch that another session submitted: its frame is to outlive the server, too."""
        spool = self._session.spool
        if state.on_disk.lacks_function:
            state.on_disk.lacks_function = False
            spool.add_function(state, broker.function(state.batch) or b"")
            spool.add_hashes(state, 0, broker.marks(state.batch))
        part, state.on_disk.lacks_arguments = state.on_disk.lacks_arguments[:FEW], state.on_disk.lacks_arguments[FEW:]
        pairs = zip(part, broker.arguments(state.batch, part), strict=True)
        spool.write_arguments(state, [(index, blob) for index, blob in pairs if blob is not None])

    def _limit(self, broker: Broker, state: BatchState) -> None:
        """Cancels the rest of a batch in which more failed than `max_failed` allows."""
        allowed, tally = state.max_failed, state.tally
        if allowed is None or state.over:
            return
        if 0 < allowed < 1:
            allowed = allowed * state.n
        if tally.failed > allowed:
            state.lift_limit()  # once: a retry of the rest is the user's will
            if state.upload is not None:
                state.upload.stop(wait=False)
            broker.cancel(state.batch, state.chosen)

    def _missing(self, broker: Broker, state: BatchState) -> None:
        if state.known or broker.view(state.batch) is None:
            forgot = bool(state.epoch) and broker.epoch() != state.epoch
            lost = forgot or (not state.over and state.ttl > SHORT)
            self._gone(state, "lost" if lost else "expired")

    def _gone(self, state: BatchState, why: str) -> None:
        self.drop(state)
        archive.mend(self._session.spool, state)
        with state.changed:
            state.lose(why)  # what this process removed meanwhile was not lost
            state.changed.notify_all()
        self._show(state, last=True)

    def _show(self, state: BatchState, *, last: bool) -> None:
        now = time.monotonic()
        if last or now - self._shown.get(state, 0.0) > SHOW:
            self._shown[state] = now
            if last:
                self._shown.pop(state, None)
            with state.changed:
                state.changed.notify_all()
            state.show()


def _of_one(parts: dict[str, bytes]) -> list[tuple[RecordType, list[tuple[int, bytes]]]]:
    return [(KINDS[part], [(0, blob)]) for part, blob in parts.items()]


def _window(states: list[BatchState], size: int, turn: int) -> list[BatchState]:
    """`size` of the states, others with every turn."""
    windows = max(1, -(-len(states) // size))
    start = turn % windows * size
    return states[start : start + size]
