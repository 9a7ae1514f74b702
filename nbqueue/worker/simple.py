"""A worker without processes: claim, verify, call the function right here, settle. For tests, and for debugging.

Outcomes, meta, retries and callbacks are those of any worker. What a process of its own gives to a job is not there: a
crash ends this process too, only Python code can be told of its time limit, and a running job cannot be stopped.
"""

from __future__ import annotations

import contextlib
import importlib
import socket
import sys
import threading
import time
from collections.abc import Sequence
from selectors import DefaultSelector

from nbqueue.errors import BadOption, LeaseEnded, SetupError
from nbqueue.model import CallbackResult, CallResult, encode, new_id
from nbqueue.settings import host, python_version
from nbqueue.store import pending
from nbqueue.store.broker import Broker
from nbqueue.store.records import Fitness
from nbqueue.wire import Sealer
from nbqueue.worker import aftermath, mail
from nbqueue.worker.ears import Ears
from nbqueue.worker.intake import Intake
from nbqueue.worker.ledger import Ledger, Task
from nbqueue.worker.notes import Notepad
from nbqueue.worker.plan import ALL_QUEUES, Plan
from nbqueue.worker.pulse import Pulse
from nbqueue.worker.refusals import lacks
from nbqueue.worker.rider import Handler, Rider, Urgent
from nbqueue.worker.score import Score
from nbqueue.worker.settling import Settler
from nbqueue.worker.signals import Signals
from nbqueue.worker.tenure import LATE, MOMENT, describe, queues_of

_AGAIN = 0.25  # seconds between two tries to leave, and to reach a server that is away


class Simple:
    """A worker with one slot, which is this very thread. `run()` returns when it has left."""

    def __init__(
        self,
        broker: Broker,
        other: Broker,
        sealer: Sealer,
        plan: Plan,
        *,
        handlers: Sequence[Handler] = (),
        score: Score | None = None,
    ) -> None:
        """`other` is a Broker with sockets of its own, for the thread that renews the lease."""
        self.broker, self.sealer, self.plan = broker, sealer, plan
        self.score = score = score or Score()
        self.id = plan.id or new_id(plan.name or host())
        self.ledger = Ledger(1)
        self.notes = Notepad(broker, sealer, score)
        self.settler = Settler(broker, sealer, score, self.notes, host(), self.id, self._settled)
        self.intake = Intake(broker, sealer, self.ledger)
        self.rider = Rider(self.intake, self.notes, handlers, score, (plan.spill, broker.namespace))
        self.served = 0
        self._other = other
        self._selector = DefaultSelector()
        self._signals = Signals(0.0, exits=False, urgent=self._urge)
        self._mailbox = mail.Mailbox(sealer)
        self._ears = Ears(broker, self._selector, plan.beat)
        self._queues = plan.queues
        self._pulse: Pulse | None = None
        self._after: list[tuple[Task, CallResult, str, bool]] = []
        self._echoes: list[tuple[Task, list[CallbackResult]]] = []
        self._claims = 0
        self._skipped: dict[str, int] = {}
        self._next_due: float | None = None
        self._idle_since = self._began = time.monotonic()
        self._thirsty = True
        self._more = ""  # where the last claim stopped, short of the end of the queues
        self._over = False

    # ------------------------------------------------------------ its life

    def run(self) -> None:
        """Works in this thread until there is nothing left to do, or until it is asked to leave."""
        sys.path[:0] = [path for path in self.plan.paths if path not in sys.path]
        for module in self.plan.preload:
            try:
                importlib.import_module(module)
            except ImportError as why:
                raise BadOption(message=f"preload={module!r} cannot be imported ({why}). path= says where.") from why
        main = threading.current_thread() is threading.main_thread()
        with self._signals.watched(self._selector) if main else contextlib.nullcontext():
            try:
                self._join()
                self.score.line("--", f"worker {self.id} is up: this process, queues {' '.join(self._queues)}")
                while not self._over:
                    self._turn()
            finally:
                if not self._over:
                    with contextlib.suppress(SetupError):
                        self.broker.leave(self.id)  # what it holds is given back now
                self._stop_pulse()
                self.rider.close()
                self._ears.close()
                self.broker.connection.close()
        self._selector.close()

    def _join(self) -> None:
        self._enter()
        self._stop_pulse()
        lease, beat = self.plan.lease, self.plan.beat
        self._pulse = Pulse(self._other, self.id, lease=lease, beat=beat, work=lambda: self.settler.work)

    def _enter(self) -> None:
        """Joins under the present id; again, to serve other queues."""
        plan = self.plan
        self._queues = queues_of(plan, self.broker)
        info = describe(plan, self.id, 1, self._queues, self.sealer.keyring)
        asked = time.monotonic()
        now = self.broker.join(self.id, encode(info), self._queues, 1, lease=plan.lease, beat=plan.beat, host=info.host)
        self.settler.clock(now, asked)

    def _stop_pulse(self) -> None:
        if self._pulse is not None:
            self._pulse.stop()
            self._pulse = None

    @staticmethod
    def _urge() -> None:
        raise Urgent

    def _turn(self) -> None:
        try:
            try:
                self._serve()
            except LeaseEnded as why:
                self._rejoin(why)
        except SetupError as why:
            self.score.once("server", "!!", f"{why} Trying again.")
            self._wait(_AGAIN)
        else:
            self.score.once("server", "--", "")

    def _rejoin(self, why: LeaseEnded) -> None:
        """Too late: its jobs belong to others. Where the server cannot be reached, it is tried again."""
        dropped = self.settler.forget() + len(self.ledger.tasks)
        self.score.line("!!", f"{why} {dropped} outcomes were dropped")
        for task in list(self.ledger.tasks.values()):
            self.ledger.drop(task)
        self.notes.clear()
        self.id = self.settler.worker = new_id(self.plan.name or host())
        self._thirsty = True
        self._join()

    def _serve(self) -> None:
        if self._pulse is not None and self._pulse.ended:
            raise LeaseEnded(worker=self.id)
        self._ears.attend(self.id)
        self._wait(0.0)  # what was said while a job ran
        self._finish()
        if self._signals.stop_at is not None:
            self._leave("asked to stop")
        elif self.plan.max_jobs is not None and self.served >= self.plan.max_jobs and not self.ledger.tasks:
            self._leave("it has done its jobs")
        elif (task := self._take()) is not None:
            self._work(task)
        elif not self.settler.pending and not self._thirsty:
            self._rest()

    # ------------------------------------------------------------ one job

    def _take(self) -> Task | None:
        if self._next_due is not None and time.monotonic() >= self._next_due:
            self._next_due = None
            self._due_in(self.broker.promote(seconds=MOMENT))
            self._thirsty = True
        if self.ledger.waiting:
            return self._next()
        if not self._thirsty:
            return None
        if ALL_QUEUES in self.plan.queues and set(self.broker.queues()) - set(self._queues):
            self._enter()
        keys, unfit = self.sealer.keyring.ids, self.rider.refusals.unfit
        fit = Fitness(keys=keys, python=python_version(), host=host(), unfit=unfit)
        token = f"{self.id}:{self._claims + 1}"
        asked = time.monotonic()
        claimed = self.broker.claim(self.id, token, self._queues, free=1, want=1, fit=fit, more=self._more)
        self._claims += 1
        self.settler.clock(claimed.now_us, asked)
        self._due_in(claimed.due)
        self._more = claimed.more
        self._thirsty = bool(claimed.grants or claimed.more)
        if claimed.skipped != self._skipped and not claimed.more:
            self._skipped = claimed.skipped
            self.score.once("skipped", "!!", "; ".join(lacks(self.broker, self.id, claimed.skipped)))
        self.score.once("suspended", "--", "suspended: it takes no jobs until `nbqueue resume`" * claimed.suspended)
        for task, ride in self.intake.take(claimed):
            self.settler.add(task, ride, b"")
        self.served += sum(len(grant.jobs) for grant in claimed.grants)
        return self._next()

    def _next(self) -> Task | None:
        return next((self.ledger.take(batch, 1)[0] for batch in self.ledger.in_order()), None)

    def _due_in(self, seconds: float | None) -> None:
        if seconds is not None:
            at = time.monotonic() + seconds + LATE
            self._next_due = at if self._next_due is None else min(at, self._next_due)

    def _work(self, task: Task) -> None:
        self.score.line("->", task.label)
        try:
            ride = self._ridden(task)
        except SetupError:
            self.ledger.put_back(task)  # it has not begun: the server is away
            raise
        self.ledger.drop(task)
        self._idle_since = time.monotonic()
        if ride is not None:
            self.settler.add(task, ride, b"")
            self._finish()

    def _ridden(self, task: Task) -> CallResult | None:
        """How the call went; None where the job was given back, since its function cannot be loaded here."""
        if (ride := self.rider.ride(task)) is not None:
            return ride
        patience = self.rider.refusals.patience(task.spec.key)
        if self.broker.release(self.id, [task.lease], unfit=True, patience=patience):
            return self.rider.unloadable(task)
        self.served -= 1
        return None

    def _finish(self) -> None:
        """Settles, and then does what is to be done about it; raises SetupError, and keeps what is not done."""
        self.settler.flush(patient=False)
        while self._after:
            task, ride, hook, handlers = self._after.pop(0)
            self._echoes.append((task, self.rider.respond(task, ride, hook, handlers=handlers)))
        while self._echoes:
            task, echoes = self._echoes[0]
            self.notes.save([task.lease])
            aftermath.keep(self.broker, self.sealer, task, echoes)
            aftermath.warn(self.score, task, echoes)
            self._echoes.pop(0)
            self.notes.forget([task.lease])

    def _settled(self, task: Task, ride: CallResult, answer: str) -> None:
        hook, handlers = aftermath.due(task, ride, answer, handlers=bool(self.rider.handlers))
        if hook or handlers:
            self._after.append((task, ride, hook, handlers))
        else:
            self.rider.forget(task)
            self.notes.forget([task.lease])

    # ------------------------------------------------------------ rest and leave

    def _rest(self) -> None:
        now = time.monotonic()
        idle = now - self._idle_since
        if self.plan.burst:
            waits = not self.served and now - self._began < self.plan.patience
            if not waits and self.broker.leave(self.id, burst=True):
                self._leave("nothing is left to do")
                return
            self._wait(_AGAIN)
            self._thirsty = True
        elif self.plan.max_idle is not None and idle >= self.plan.max_idle:
            self._leave(f"idle for {idle:.0f} s")
        else:
            self._ears.listen(self._queues, self.plan.beat)
            left = self.plan.beat if self.plan.max_idle is None else min(self.plan.beat, self.plan.max_idle - idle)
            self._wait(left)

    def _wait(self, seconds: float) -> None:
        """Until something is heard, or due."""
        if self._next_due is not None:
            seconds = min(seconds, self._next_due - time.monotonic())
        began = time.monotonic()
        for key, _ in self._selector.select(max(0.0, seconds)):
            if isinstance(key.data, socket.socket):
                key.data.recv(4096)
                continue
            letter = self._ears.hear(key.data)
            self._thirsty = True
            if letter and letter != mail.LOOK:
                self._told(letter)
        self._thirsty = self._thirsty or time.monotonic() - began >= self.plan.beat

    def _told(self, letter: bytes) -> None:
        message = self._mailbox.heard(self.id, letter, self.settler.now_us, self.score)
        if message is None:
            return
        if message.verb == mail.SHUTDOWN:
            self.score.line("--", "told to shut down")
            self._signals.finish()
        else:
            self.score.line("--", f"told to {message.verb} {message.job}, which does not run any more")

    def _leave(self, why: str) -> None:
        self.broker.leave(self.id)
        self.score.line("--", f"leaves: {why}; jobs served: {self.served}")
        if self.plan.burst and (text := pending.elsewhere(self.broker, self._queues)):
            self.score.line("!!", f"left for others: {text}")
        self._over = True
