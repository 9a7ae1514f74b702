"""Arguments on their way to the store: parts of at most 1,000, in order, each safe to send twice.

What has a length is sealed before `map` returns, sent at once for half a second, and the rest on a thread. What has
none is read on a thread, and whatever has been read goes out soon, so that first jobs run before the last item is read.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from nbqueue import wire
from nbqueue.client.session import kernel
from nbqueue.errors import NbqueueError, NoServer

if TYPE_CHECKING:
    from nbqueue.client.session.session import Session
    from nbqueue.client.state.batch_state import BatchState

T = TypeVar("T")
PART = 1_000
PART_BYTES = 4 << 20
MARK = 16  # bytes of the mark of a job
AT_ONCE = 0.5  # seconds that `map` may spend sending
STALE = 0.05  # seconds that an item may wait for company
BEAT = 8.0  # seconds between signs of life of an upload; its lease is 30 s
PATIENCE = 120.0  # seconds that an upload outlives a server that does not answer
STOP = 5.0  # seconds that a cancel waits for a part that is on its way
ARRIVE = 5.0  # seconds that `map` asks again whether its first part has arrived


def parts(payloads: list[bytes]) -> Iterator[list[bytes]]:
    """`payloads` in runs of at most PART and PART_BYTES (or one)."""
    start = weight = 0
    for place, payload in enumerate(payloads):
        if place > start and (place - start >= PART or weight + len(payload) > PART_BYTES):
            yield payloads[start:place]
            start, weight = place, 0
        weight += len(payload)
    if start < len(payloads):
        yield payloads[start:]


def send_parts(
    session: Session,
    state: BatchState,
    sealed: list[list[bytes]],
    nonce: str,
    since: float,
    *,
    first: int = 0,
    marks: bytes = b"",
) -> None:
    """Sends sealed parts 1.. of a batch (part 0 went before, to index `first`); after AT_ONCE seconds on a thread."""
    start = first + len(sealed[0])
    place = 1
    while place < len(sealed):
        if time.monotonic() - since > AT_ONCE:
            _begin(state, lambda: _rest(session, state, sealed, nonce, place, first, marks), daemon=False)  # noqa: B023 - the loop ends here
            return
        own, last = marks[MARK * (start - first) :], place == len(sealed) - 1
        try:
            if not session.broker.extend(state.batch, start, sealed[place], nonce=nonce, last=last, marks=own):
                return
        except NoServer:
            # The batch is there: the thread tries for longer than anyone would wait for `map`.
            since = -math.inf
            continue
        start += len(sealed[place])
        place += 1


def _rest(
    session: Session, state: BatchState, sealed: list[list[bytes]], nonce: str, begin: int, first: int, marks: bytes
) -> None:
    start = first + sum(len(part) for part in sealed[:begin])
    for place in range(begin, len(sealed)):
        part, last = sealed[place], place == len(sealed) - 1

        def send(start: int = start, part: list[bytes] = part, last: bool = last) -> bool:
            own = marks[MARK * (start - first) :]
            return session.broker.extend(state.batch, start, part, nonce=nonce, last=last, marks=own)

        if not patiently(send):
            return  # canceled
        start += len(part)
        sealed[place] = []  # sent: its memory is free


def patiently(action: Callable[[], T], patience: float = PATIENCE) -> T:
    """Repeats `action` (it is idempotent) while the server is away, for so many seconds."""
    end = time.monotonic() + patience
    pause, seconds = threading.Event(), 0.1
    while True:
        try:
            return action()
        except NoServer:
            if time.monotonic() >= end:
                raise
            pause.wait(seconds)
            seconds = min(0.5, 2 * seconds)


def arrived(what: str, send: Callable[[], T]) -> T:
    """Sends what makes a batch or job, `what`, and asks again for a while: a user who tries again makes another one.

    Raises NoServer, which then says how to find out whether it has arrived.
    """
    try:
        return patiently(send, ARRIVE)
    except NoServer as why:
        remedy = f"{why.facts['remedy']} The batch may have arrived: `nbqueue.attach({what!r})` tells."
        raise NoServer(**(why.facts | {"remedy": remedy})) from why


def _begin(state: BatchState, work: Callable[[], None], *, daemon: bool) -> None:
    """Runs `work` on a thread; its error is kept for those who wait.

    No daemon where the input is finite: a script that ends after `map` has still sent all its items.
    """

    def run() -> None:
        try:
            work()
        except BaseException as why:  # noqa: BLE001 - it is raised again by whoever waits
            state.break_off(upload=why)

    threading.Thread(target=run, name=f"nbqueue upload of {state.batch}", daemon=daemon).start()


class Upload:
    """An open upload. `add`, `tend` and `close` may be called from several threads."""

    def __init__(
        self, session: Session, state: BatchState, nonce: str, sent: int, marks: Callable[[int, int], bytes]
    ) -> None:
        self._session, self._state, self._nonce, self._sent, self._marks = session, state, nonce, sent, marks
        self._lock = threading.Lock()
        self._buffer: list[bytes] = []
        self._bytes = 0
        self._flushed = time.monotonic()
        self.canceled = self.closed = False

    def add(self, payload: bytes) -> bool:
        """One more call; goes out when the part is full, or has waited long enough. False: the batch was canceled."""
        with self._lock:
            self._buffer.append(payload)
            self._bytes += len(payload)
            full = len(self._buffer) >= PART or self._bytes >= PART_BYTES
            if full or time.monotonic() - self._flushed > STALE:
                self._send(last=False)
            return not self.canceled

    def close(self) -> None:
        """Sends what is left and says that this was all."""
        with self._lock:
            self._send(last=True)
            self.closed = True

    def stop(self, *, wait: bool = True) -> None:
        """Nothing more goes out: the batch is about to be canceled. What is on its way counts as sent."""
        self.canceled = True
        if self._lock.acquire(timeout=STOP if wait else 0):
            self._lock.release()

    def tend(self) -> None:
        """Called now and then by the collector: sends what waits, and tells the store that the upload lives.

        Tries once: the collector has more to do than to wait for a server. Raises NoServer; it is called again.
        """
        if not self._lock.acquire(blocking=False):
            return  # something is being sent this moment, which is sign of life enough
        try:
            age = time.monotonic() - self._flushed
            if not self.closed and not self.canceled and (age > BEAT or (self._buffer and age > STALE)):
                self._send(last=False, patience=0.0)
        finally:
            self._lock.release()

    def _send(self, *, last: bool, patience: float = PATIENCE) -> None:
        state, start, buffer = self._state, self._sent, self._buffer
        sealed = self._session.sealer.seal_all(wire.ARGUMENTS, state.batch, start, buffer)

        def extend() -> bool:
            marks = self._marks(start, start + len(buffer))
            return self._session.broker.extend(state.batch, start, sealed, nonce=self._nonce, last=last, marks=marks)

        if self.canceled:
            return
        with state.changed:
            state.reach(start + len(buffer))
        self.canceled = not patiently(extend, patience)
        if self.canceled:
            with state.changed:
                state.reach(start)
        else:
            self._session.spool.add_arguments(state, start, sealed)
            self._session.spool.add_hashes(state, start, self._marks(start, start + len(buffer)))
        with state.changed:
            state.arguments.add(buffer)
        self._sent += len(buffer)
        self._buffer, self._bytes, self._flushed = [], 0, time.monotonic()


class IteratorReader:
    """Reads an iterator of payloads on a thread of its own, from the first item on."""

    def __init__(self, payloads: Iterator[bytes]) -> None:
        self._payloads = payloads
        self._first: list[bytes] = []
        self._here = threading.Event()  # the first item, the end, or an error is there
        self._upload = threading.Event()  # the batch is made: what is read may be sent
        self._target: Upload | None = None
        self._state: BatchState | None = None
        self._taken = False
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        # A kernel that is shut down must not wait for an iterator without an end; a script sends all it has.
        daemon = kernel.shell() is not None
        threading.Thread(target=self._run, name="nbqueue reader", daemon=daemon).start()

    def first(self, seconds: float) -> list[bytes]:
        """The first payload, in a list, or an empty one if none came in time. Raises what reading it raised."""
        self._here.wait(seconds)
        with self._lock:
            if self._error is not None:
                raise self._error
            self._taken = True
            return list(self._first)

    def abandon(self) -> None:
        """Nothing will be sent: the thread ends."""
        self._upload.set()

    def drain(self, upload: Upload, state: BatchState) -> None:
        """From now on, what is read is sent."""
        self._target, self._state = upload, state
        self._upload.set()

    def _run(self) -> None:
        try:
            self._read()
        except BaseException as why:  # noqa: BLE001 - it is raised again by `first`, or by whoever waits
            with self._lock:
                late = self._taken
                self._error = why
            self._here.set()
            if late:
                self._fail(why)

    def _read(self) -> None:
        head = next(self._payloads, None)
        with self._lock:
            unseen = self._taken
            if head is not None and not unseen:
                self._first.append(head)
        self._here.set()
        self._upload.wait()
        if self._target is None:
            return  # abandoned
        if head is not None and unseen:
            self._target.add(head)
        for payload in self._payloads:
            if not self._target.add(payload):
                return
        self._target.close()

    def _fail(self, why: BaseException) -> None:
        self._upload.wait()
        if self._target is None or self._state is None:
            return  # abandoned
        self._state.break_off(upload=why)
        if not isinstance(why, NoServer):
            # Refused again: the store closes it when its lease has ended. Or it is gone, which was told.
            with contextlib.suppress(NbqueueError):
                self._target.close()  # what arrived is a batch of its own
